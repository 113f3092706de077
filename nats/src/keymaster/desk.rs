//! Where replicas of the API ask.
//!
//! Nothing that they have looked at already is believed to be right: who is taken over asks for whatever he likes. What is signed, and which keys
//! are revoked, is decided by what was signed before ([`crate::vault::ledger`]). What was done for whom, and refused to whom, is in the trail, whatever
//! he says of it himself.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use async_nats::header::NATS_MESSAGE_ID;
use async_nats::{Client, HeaderValue, Message, Subscriber};
use bytes::Bytes;
use futures_util::future::{BoxFuture, Shared};
use futures_util::{FutureExt, StreamExt, stream};
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use nkeys::{KeyPair, KeyPairType};
use probeops_shared::audit::{Record, Verdict};
use probeops_shared::ids::Caller;
use probeops_shared::keymaster::{Answer, Mint, Minted, NodeRights, REQUEST_BYTES_MAX, Refusal, Revoke, Revoked, ServiceRights, Verb};
use probeops_shared::problem::Code;
use probeops_shared::subjects::{self, KEYMASTER_QUEUE};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::keymaster::MintsPerMinute;
use crate::keymaster::fleet::{Signed, Wanted};
use crate::permissions::{AccountName, Role};
use crate::trail::Pen;
use crate::vault::ledger::Kind;
use crate::vault::{Unsigned, Vault};

/// How many requests are worked on at once; more wait.
const REQUESTS_AT_ONCE: usize = 256;
/// How long the trail may take to keep the record of a credential, before it is given to nobody, and of a revocation, before whoever asked is told that
/// it is not kept yet.
const KEPT_WITHIN: Duration = Duration::from_secs(2);
/// So many keys that are revoked already one asker may have revoked again at once: all that there can be …
const REPEATS_AT_ONCE: NonZeroU32 = NonZeroU32::new(10_000).expect("not zero");
/// … and so many a minute in the long run.
const REPEATS_PER_MINUTE: NonZeroU32 = NonZeroU32::new(1200).expect("not zero");
/// How long a revocation is known as the one that was asked for before. Whoever asks again does so within seconds; what a server held back that hung
/// may come later.
const LATELY: Duration = Duration::from_mins(1);
/// How many are.
const LATELY_MAX: usize = 8192;
/// The longest id of a request.
const ID_BYTES_MAX: usize = 64;
/// So many refusals a minute of one asker are recorded one by one.
const REFUSALS_PER_MINUTE: NonZeroU32 = NonZeroU32::new(30).expect("not zero");
/// How many regions or nodes a service may have.
const ENTRIES_MAX: usize = 100;

/// Where replicas of the API ask.
pub(super) struct Desk {
    client: Client,
    requests: Subscriber,
    clerk: Clerk,
    trail: Pen,
}

impl Desk {
    pub(super) async fn open(client: Client, clerk: Clerk, trail: Pen) -> Result<Self> {
        let requests = client.queue_subscribe(subjects::keymaster_all(), KEYMASTER_QUEUE.to_owned()).await;
        Ok(Self { client, requests: requests.context("cannot subscribe to requests")?, clerk, trail })
    }

    /// Answers requests until the connection ends, or it is told to stop: then those that it has.
    pub(super) async fn serve(self, stop: &CancellationToken) {
        let Self { client, requests, clerk, trail } = self;
        let requests = stream::unfold((requests, false), async |(mut requests, mut is_last)| {
            loop {
                tokio::select! {
                    message = requests.next() => return Some((message?, (requests, is_last))),
                    () = stop.cancelled(), if !is_last => {
                        is_last = true;
                        if let Err(error) = requests.drain().await {
                            tracing::debug!("requests cannot be unsubscribed: {error}");
                        }
                    }
                }
            }
        });
        requests.for_each_concurrent(REQUESTS_AT_ONCE, |message| answer(&client, &clerk, &trail, message)).await;
    }
}

async fn answer(client: &Client, clerk: &Clerk, trail: &Pen, message: Message) {
    let Some((verb, caller)) = subjects::parse_keymaster(&message.subject) else {
        tracing::warn!(subject = %message.subject, "a request for something that is not known is refused");
        return clerk.note_violation(trail, &message.subject, "it asks for something that is not known");
    };
    // The broker does not check where a request wants its answer, and would let this credential publish it in anybody's inbox.
    let Some(reply) = message.reply.filter(|reply| subjects::is_own_client_inbox(reply, &caller)) else {
        tracing::warn!(%verb, %caller, "a request that wants its answer elsewhere than in the asker's own inbox is refused");
        return clerk.note_violation(trail, &message.subject, "it wants its answer elsewhere than in its own inbox");
    };
    let id = message.headers.as_ref().and_then(|headers| headers.get(NATS_MESSAGE_ID)).map(HeaderValue::as_str);
    let id = id.filter(|id| id.len() <= ID_BYTES_MAX).unwrap_or(&reply).to_owned();
    let said = clerk.answer(&caller, trail, (verb, id, message.payload)).await;
    let sent = match serde_json::to_vec(&said) {
        Ok(body) => client.publish(reply, body.into()).await.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = sent {
        tracing::error!(%verb, %caller, "an answer could not be sent: {error}");
    }
}

/// What is answered.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
enum Said {
    Minted(Answer<Minted>),
    Revoked(Answer<Revoked>),
}

impl From<Answer<Minted>> for Said {
    fn from(answer: Answer<Minted>) -> Self {
        Self::Minted(answer)
    }
}

impl From<Answer<Revoked>> for Said {
    fn from(answer: Answer<Revoked>) -> Self {
        Self::Revoked(answer)
    }
}

/// What the trail is told.
#[derive(Debug)]
struct Noted {
    record: Record,
    /// Whether it is done for good, whatever the trail takes, and must not be missing there.
    is_done: bool,
}

impl From<Record> for Noted {
    fn from(record: Record) -> Self {
        Self { record, is_done: false }
    }
}

/// Whoever does what is asked.
#[derive(Clone, Debug)]
pub(super) struct Clerk {
    vault: Arc<Vault>,
    revoking: mpsc::Sender<Wanted>,
    /// How often each replica may ask for a credential, at all desks together.
    mints: Arc<Rate>,
    /// How often each may have a key revoked that is already: to revoke one that is not has no bound but the number of keys.
    repeats: Arc<Rate>,
    refusals: Arc<Refusals>,
    lately: Arc<Mutex<Lately>>,
}

/// What is being done, or was, for all who ask for it.
type Doing = Shared<BoxFuture<'static, Said>>;
/// A revocation that was asked for: by whom, under which id, and of which key. Whoever asks again because he hears nothing gives the same id; who
/// asks anew, another, or none and is answered elsewhere.
type Asked = (Caller, String, String);

/// Revocations that were asked for lately. What is asked again is answered again, and done and recorded once: which desk it came to does not matter.
#[derive(Debug, Default)]
struct Lately {
    doing: HashMap<Asked, Doing>,
    in_turn: VecDeque<(Instant, Asked)>,
}

impl Lately {
    /// The same that is done already, or this.
    fn same(&mut self, asked: Asked, now: Instant, doing: Doing) -> Doing {
        while let Some((at, before)) = self.in_turn.front()
            && (self.in_turn.len() >= LATELY_MAX || now.duration_since(*at) > LATELY)
        {
            drop(self.doing.remove(before));
            drop(self.in_turn.pop_front());
        }
        if let Some(before) = self.doing.get(&asked) {
            return before.clone();
        }
        self.in_turn.push_back((now, asked.clone()));
        drop(self.doing.insert(asked, doing.clone()));
        doing
    }
}

/// What is refused is recorded in bounded number, so that nobody fills the trail in the keymaster's name.
#[derive(Debug)]
struct Refusals {
    limiter: DefaultKeyedRateLimiter<String>,
    unrecorded: AtomicU64,
}

/// How often each asker may ask for something.
#[derive(Debug)]
struct Rate {
    limiter: DefaultKeyedRateLimiter<Caller>,
    clock: DefaultClock,
    refused: AtomicU64,
    /// What is more than that.
    too_much: String,
}

impl Clerk {
    pub(super) fn new(vault: Arc<Vault>, revoking: mpsc::Sender<Wanted>, most: MintsPerMinute) -> Self {
        let too_much = format!("more than {} credentials a minute (--mints-per-minute-max of the keymaster)", most.0);
        let mints = Arc::new(Rate::new(Quota::per_minute(most.0), too_much));
        let too_much = format!(
            "keys to be revoked that are already, more than {REPEATS_AT_ONCE} at once and {REPEATS_PER_MINUTE} a minute; they stay revoked"
        );
        let repeats = Arc::new(Rate::new(Quota::per_minute(REPEATS_PER_MINUTE).allow_burst(REPEATS_AT_ONCE), too_much));
        let limiter = RateLimiter::hashmap(Quota::per_minute(REFUSALS_PER_MINUTE));
        let refusals = Arc::new(Refusals { limiter, unrecorded: AtomicU64::new(0) });
        Self { vault, revoking, mints, repeats, refusals, lately: Arc::default() }
    }

    /// Does what is asked, has it recorded, and says so; a revocation that is asked for again is the same.
    async fn answer(&self, caller: &Caller, trail: &Pen, (verb, id, payload): (Verb, String, Bytes)) -> Said {
        let revoke = Some(verb).filter(|verb| *verb == Verb::Revoke).and_then(|_| read::<Revoke>(&payload).ok());
        let key = revoke.map(|revoke| revoke.public_key).filter(|key| check_key(key).is_ok());
        let (clerk, of, trail) = (self.clone(), caller.clone(), trail.clone());
        let doing = async move { clerk.work_and_record((verb, &of, &payload), &trail).await };
        let Some(key) = key else { return doing.await };
        let asked = (caller.clone(), id, key);
        let doing = self.lately.lock().unwrap_or_else(PoisonError::into_inner).same(asked, Instant::now(), doing.boxed().shared());
        doing.await
    }

    async fn work_and_record(&self, (verb, caller, payload): (Verb, &Caller, &[u8]), trail: &Pen) -> Said {
        let (said, noted) = self.work(verb, caller, payload).await;
        let Some(Noted { record, is_done }) = noted else { return said };
        if record.verdict != Verdict::Signed {
            trail.put(record);
            return said;
        }
        let kept = match &said {
            Said::Minted(_) => trail.keep(record, KEPT_WITHIN).await,
            Said::Revoked(_) => trail.keep_done(record, is_done, KEPT_WITHIN).await,
        };
        match said {
            said if kept.is_ok() => said,
            // A credential is in nobody's hands before the trail says so.
            Said::Minted(_) => {
                let why = "the audit trail does not take the record of this credential now, and without one it is given to nobody";
                tracing::error!(%verb, %caller, "{why}");
                Said::Minted(Answer::Refused { problem: unavailable(why.to_owned()) })
            }
            // What takes something away waits for nothing.
            Said::Revoked(answer) => {
                tracing::warn!(%caller, "the audit trail does not take the record of a revocation now; it waits, and is kept when the trail does");
                Said::Revoked(match answer {
                    Answer::Done(revoked) => Answer::Done(Revoked { unrecorded: true, ..revoked }),
                    refused @ Answer::Refused { .. } => refused,
                })
            }
        }
    }

    /// The answer, and what the trail is told of it.
    async fn work(&self, verb: Verb, caller: &Caller, payload: &[u8]) -> (Said, Option<Noted>) {
        // The sentry takes away, and gives nobody anything; the broker lets it ask nothing else, either.
        if !(caller.is_api() || verb == Verb::Revoke && caller.as_str() == Role::Sentry.name()) {
            let refusal = forbidden(format!("only replicas of the API may ask, and `{caller}` is none"));
            return self.answered::<Minted>((verb, caller, payload), Err(refusal.into()));
        }
        let asked = (verb, caller, payload);
        match verb {
            Verb::MintNode => self.answered(asked, self.mint_node(caller, payload).await.map_err(Refused::from)),
            Verb::MintService => self.answered(asked, self.mint_service(caller, payload).await.map_err(Refused::from)),
            Verb::Revoke => self.answered(asked, self.revoke(caller, payload).await),
        }
    }

    fn answered<T>(&self, (verb, caller, payload): (Verb, &Caller, &[u8]), done: Result<(T, Noted), Refused>) -> (Said, Option<Noted>)
    where
        Said: From<Answer<T>>,
    {
        let (answer, noted) = match done {
            Ok((done, noted)) => (Answer::Done(done), Some(noted)),
            Err(Refused { problem, noted }) => {
                // It is said there, and now and then.
                if problem.code != Code::RateLimited {
                    tracing::warn!(%verb, %caller, code = problem.code.as_str(), "refused: {}", problem.detail);
                }
                let of = key_in(payload).map_or_else(String::new, |key| format!(" for key {key}"));
                let detail = format!("{verb}{of}: {}: {}", problem.code.as_str(), problem.detail);
                let refused = || self.refusals.record(Verdict::Refused, caller.as_str(), Some(caller), detail);
                (Answer::Refused { problem }, noted.or_else(|| refused().map(Noted::from)))
            }
        };
        (answer.into(), noted)
    }

    /// Somebody of the control plane tries what none of it may.
    fn note_violation(&self, trail: &Pen, subject: &str, what: &str) {
        let name = subject.rsplit('.').next().unwrap_or_default();
        let record = self.refusals.record(Verdict::Violation, name, None, what.to_owned());
        if let Some(record) = record {
            trail.put(Record { target: subject.to_owned(), ..record });
        }
    }

    async fn mint_node(&self, caller: &Caller, payload: &[u8]) -> Result<(Minted, Noted), Refusal> {
        self.mints.check(caller)?;
        let Mint { public_key, rights: NodeRights { node, region, tools }, lifetime_s } = read(payload)?;
        node.check_node().map_err(forbidden)?;
        if tools.is_empty() {
            return Err(invalid(format!("node `{node}` needs at least one tool")));
        }
        check_each_once("tools", &tools)?;
        self.mint(caller, Role::Node { node, region, tools }, public_key, lifetime_s).await
    }

    async fn mint_service(&self, caller: &Caller, payload: &[u8]) -> Result<(Minted, Noted), Refusal> {
        self.mints.check(caller)?;
        let Mint { public_key, rights: ServiceRights { name, regions, tools, nodes, direct }, lifetime_s } = read(payload)?;
        name.check_service().map_err(forbidden)?;
        check_each_once("tools", &tools)?;
        check_each_once("regions", &regions)?;
        check_each_once("nodes", &nodes)?;
        self.mint(caller, Role::Service { name, regions, tools, nodes, direct }, public_key, lifetime_s).await
    }

    async fn mint(&self, caller: &Caller, role: Role, public_key: String, lifetime_s: u64) -> Result<(Minted, Noted), Refusal> {
        check_key(&public_key)?;
        let (name, vault) = (role.name(), Arc::clone(&self.vault));
        let (of, node, region) = match &role {
            Role::Node { node, region, .. } => ("node", Some(node.clone()), Some(region.clone())),
            _ => ("service", None, None),
        };
        let key = public_key.clone();
        let signed = blocking(move || vault.sign(&role, Duration::from_secs(lifetime_s), &key).map_err(|why| unsigned(&why)));
        let (jwt, expires_at) = signed.await?;
        tracing::info!(%caller, name, public_key, %expires_at, "credential signed");
        let detail = format!("credential signed for key {public_key}, until {expires_at}");
        let record = Record { node, region, target: format!("{of}:{name}"), detail, ..about(Verdict::Signed, caller) };
        Ok((Minted { jwt, expires_at }, record.into()))
    }

    async fn revoke(&self, caller: &Caller, payload: &[u8]) -> Result<(Revoked, Noted), Refused> {
        let Revoke { public_key } = read(payload)?;
        check_key(&public_key)?;
        let (of, before) = self.check_revocable(caller, &public_key).await?;
        if before {
            self.repeats.check(caller)?;
        }
        let (asker, done) = oneshot::channel();
        let crowded = |_| unavailable("too many revocations wait already; try again".to_owned());
        self.revoking.try_send((public_key.clone(), asker)).map_err(crowded)?;
        let done = done.await.map_err(|_| unavailable("the keymaster is stopping".to_owned()))?;
        let Signed { anew, told } = done.map_err(unavailable)?;
        // Somebody else wanted the same at the same time, and was first.
        if !anew && !before {
            self.repeats.check(caller)?;
        }
        let target = of.unwrap_or_else(|| public_key.clone());
        let noted = |detail: String| Noted { record: Record { target, detail, ..about(Verdict::Signed, caller) }, is_done: anew };
        let revoked = match told {
            Ok(revoked) => revoked,
            Err(why) => {
                let noted = anew.then(|| noted(format!("key {public_key} revoked and not yet known to any server")));
                return Err(Refused { problem: unavailable(why), noted });
            }
        };
        let (servers, waiting) = (revoked.servers.join(","), revoked.waiting.join(","));
        tracing::info!(%caller, public_key, anew, servers, waiting, "key revoked");
        let not_yet = if waiting.is_empty() { String::new() } else { format!(", not yet on {waiting}") };
        let how = if anew { "revoked on" } else { "was revoked before, and is on" };
        Ok((revoked, noted(format!("key {public_key} {how} {servers}{not_yet}"))))
    }

    /// Whose key it is, as far as that is known, and whether it is revoked already. Refuses to revoke what is not a node's or a service's: it would end the control plane itself.
    async fn check_revocable(&self, caller: &Caller, public_key: &str) -> Result<(Option<String>, bool), Refusal> {
        let (vault, key, is_api) = (Arc::clone(&self.vault), public_key.to_owned(), caller.is_api());
        let unusable = |error| unavailable(format!("what was signed cannot be looked up: {error:#}"));
        let known = blocking(move || {
            let signed = vault.signed(&key).map_err(unusable)?;
            // One that is revoked may be asked for again, by whomever and whatever is known of it: it says how far that has come.
            let revoked = vault.is_revoked(AccountName::Application, &key).map_err(unusable)?;
            if is_api && !revoked && !vault.has_room_for_apis().map_err(unusable)? {
                return Err(unavailable(
                    "as many credentials are revoked already as APIs may ask for; where the signing keys are, `probeops nodes revoke` still \
                     revokes, and APIs may again when some have ended"
                        .to_owned(),
                ));
            }
            Ok((signed, revoked))
        });
        let may = |kind: Kind| kind == Kind::Node || kind == Kind::Service && is_api;
        match known.await? {
            (Some(signed), revoked) if may(signed.kind) => {
                Ok((Some(format!("{}:{}", if signed.kind == Kind::Node { "node" } else { "service" }, signed.name)), revoked))
            }
            (Some(signed), _) => Err(forbidden(format!(
                "{public_key} is the key of `{}`, one of {}, and `{caller}` may have only {} revoked",
                signed.name,
                signed.kind,
                if is_api { "nodes and services" } else { "nodes" }
            ))),
            (None, true) => Ok((None, true)),
            (None, false) => Err(Refusal {
                code: Code::NotFound,
                detail: format!(
                    "nothing that is in force was signed for {public_key}, as far as is known here; if what was signed before was lost with a folder \
                     `keys`, revoke it where the signing keys are (`probeops nodes revoke`, `probeops services revoke`)"
                ),
                retry_after_ms: None,
            }),
        }
    }
}

impl Refusals {
    /// The record of something that somebody is refused, if there is to be one.
    fn record(&self, verdict: Verdict, name: &str, caller: Option<&Caller>, detail: String) -> Option<Record> {
        if self.limiter.check_key(&name.to_owned()).is_err() {
            self.unrecorded.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let detail = match self.unrecorded.swap(0, Ordering::Relaxed) {
            0 => detail,
            more => format!("{detail}; {more} more before were not recorded one by one"),
        };
        Some(Record { caller: caller.map(ToString::to_string), detail, ..Record::new(verdict, format!("part:{name}")) })
    }
}

/// What is not done, and what the trail is told of it, where that is more than that.
struct Refused {
    problem: Refusal,
    noted: Option<Noted>,
}

impl From<Refusal> for Refused {
    fn from(problem: Refusal) -> Self {
        Self { problem, noted: None }
    }
}

/// The key that a request is about, whatever else is wrong with it.
fn key_in(payload: &[u8]) -> Option<String> {
    let request: serde_json::Value = serde_json::from_slice(payload.get(..REQUEST_BYTES_MAX).unwrap_or(payload)).ok()?;
    Some(request.get("public_key")?.as_str()?.chars().take(64).collect())
}

impl Rate {
    fn new(quota: Quota, too_much: String) -> Self {
        Self { limiter: RateLimiter::hashmap(quota), clock: DefaultClock::default(), refused: AtomicU64::new(0), too_much }
    }

    fn check(&self, caller: &Caller) -> Result<(), Refusal> {
        let Err(not_until) = self.limiter.check_key(caller) else { return Ok(()) };
        let refused = self.refused.fetch_add(1, Ordering::Relaxed) + 1;
        if refused.is_power_of_two() {
            tracing::error!(%caller, refused_total = refused, "one asks for {}", self.too_much);
        }
        let wait = not_until.wait_time_from(self.clock.now());
        Err(Refusal {
            code: Code::RateLimited,
            detail: format!("`{caller}` has asked for {}", self.too_much),
            retry_after_ms: Some(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1)),
        })
    }
}

fn unsigned(why: &Unsigned) -> Refusal {
    let detail = why.to_string();
    match why {
        Unsigned::Revoked(_) | Unsigned::OfAnother { .. } => Refusal { code: Code::Conflict, detail, retry_after_ms: None },
        Unsigned::Wrong(_) => invalid(detail),
        Unsigned::Unusable(_) => unavailable(detail),
    }
}

fn read<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Refusal> {
    if payload.len() > REQUEST_BYTES_MAX {
        return Err(invalid(format!("a request has at most {REQUEST_BYTES_MAX} bytes, not {}", payload.len())));
    }
    serde_json::from_slice(payload).map_err(|error| invalid(format!("the request cannot be understood: {error}")))
}

/// A record of something that somebody of the control plane asked for.
fn about(verdict: Verdict, caller: &Caller) -> Record {
    Record { caller: Some(caller.to_string()), ..Record::new(verdict, format!("part:{caller}")) }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Refusal> + Send + 'static) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(|error| unavailable(format!("the keymaster failed: {error}")))?
}

fn check_key(public_key: &str) -> Result<(), Refusal> {
    let is_user = KeyPair::from_public_key(public_key).is_ok_and(|key| key.key_pair_type() == KeyPairType::User);
    let shown = || public_key.chars().take(64).collect::<String>();
    is_user.then_some(()).ok_or_else(|| invalid(format!("`{}` is not the public key of a user (an nkey, U…)", shown())))
}

fn check_each_once<T: PartialEq + std::fmt::Display>(what: &str, items: &[T]) -> Result<(), Refusal> {
    if items.len() > ENTRIES_MAX {
        return Err(invalid(format!("{what}: at most {ENTRIES_MAX}, not {}", items.len())));
    }
    match items.iter().enumerate().find(|(index, item)| items.iter().take(*index).any(|before| before == *item)) {
        Some((_, twice)) => Err(invalid(format!("{what}: `{twice}` is there twice"))),
        None => Ok(()),
    }
}

fn invalid(detail: String) -> Refusal {
    Refusal { code: Code::Invalid, detail, retry_after_ms: None }
}

fn forbidden(detail: String) -> Refusal {
    Refusal { code: Code::Forbidden, detail, retry_after_ms: None }
}

fn unavailable(detail: String) -> Refusal {
    Refusal { code: Code::Unavailable, detail, retry_after_ms: None }
}

#[cfg(test)]
mod tests;
