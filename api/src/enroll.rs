//! Enrolment: how nodes come by their credentials, renew them and change their keys.
//!
//! A node shows by a signature that it has the private half of its key. The first time a token, or the operator who registered the key, says what
//! it may be; from then on its entry in bucket NODES does. A first credential lasts some minutes, until the node has shown that the broker takes it:
//! only then the token is used up.

mod challenge;
mod ephemeral;
mod revoke;
mod strangers;
pub mod tokens;

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::kv;
use probeops_nats::node_key::{Unproven, verify};
use probeops_shared::enroll::{Challenge, ConfirmRequest, EnrollRequest, NodeCredential, PublicKey, Signature};
use probeops_shared::ids::NodeId;
use probeops_shared::invalid::Invalid;
use probeops_shared::keymaster::{Minted, NodeRights};
use probeops_shared::problem::Code;
use probeops_shared::registry::{Enrollment, NodeGrant, ValidFor};
use probeops_shared::subjects::storage;
use probeops_shared::timestamp::Timestamp;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::challenge::{Challenges, SECRET_BYTES};
use self::strangers::Strangers;
use self::tokens::{CONFIRM_WITHIN, TokenView, Tokens};
use crate::access::keyring::Keyring;
use crate::audit::Audit;
use crate::broker::Broker;
use crate::keymaster::Keymaster;
use crate::limits::changes::Allowances;
use crate::problem::{Asked, Problem};

/// How often in a second keys may ask that nobody knows: from one address, and in all.
const ASKED_PER_SECOND: (NonZeroU32, NonZeroU32) = (NonZeroU32::new(50).expect("not zero"), NonZeroU32::new(1_000).expect("not zero"));
/// How many tokens are looked up in a second, so that guessing does not burden the broker: of one address, and in all.
const TOKENS_PER_SECOND: (NonZeroU32, NonZeroU32) = (NonZeroU32::new(20).expect("not zero"), NonZeroU32::new(100).expect("not zero"));
/// Where in bucket TOKENS the key is that signs challenges.
const CHALLENGE_KEY: &str = "challenge";
/// How long the copy of a bucket that a server of the broker has may be behind what was written a moment ago.
const BEHIND_MAX: Duration = Duration::from_secs(5);
/// How long to wait before it is read again.
const AGAIN_AFTER: Duration = Duration::from_millis(50);
/// How often an entry is read and written again that somebody else has changed meanwhile.
const WRITES_MAX: usize = 5;
/// How long a node has a key before it may have another: each that is revoked is one more that the broker is told of.
const KEY_KEPT: Duration = Duration::from_hours(1);
/// How many credentials a node may ask for at once. After them it is one in a twentieth of their lifetime, or in these minutes: it renews at half.
const GIVEN_AT_ONCE: NonZeroU32 = NonZeroU32::new(20).expect("not zero");
const GIVEN_EACH_MAX: Duration = Duration::from_mins(5);
/// By how much the lifetime of credentials varies, so that a fleet does not renew in step.
const LIFETIME_JITTER: f64 = 0.1;

/// What nodes are told, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSettings {
    /// The broker's addresses as nodes reach them.
    pub servers: Vec<String>,
    /// How long the credential of a node lasts, more or less.
    pub lifetime: Duration,
    /// How long an ephemeral node may be away before it is forgotten.
    pub ephemeral_after: Duration,
}

/// How nodes come by their credentials.
#[derive(Clone)]
pub(crate) struct Enroll(Arc<Inner>);

struct Inner {
    broker: Broker,
    keymaster: Keymaster,
    keyring: Keyring,
    audit: Audit,
    nodes: kv::Store,
    tokens: Tokens,
    challenges: Challenges,
    asked: Strangers,
    looked_up: Strangers,
    given: Allowances<NodeId>,
    settings: NodeSettings,
    /// The authority that signed the broker's certificate (PEM).
    ca: Option<String>,
}

impl std::fmt::Debug for Enroll {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Enroll").field("settings", &self.0.settings).finish_non_exhaustive()
    }
}

/// Who a key is.
struct Known {
    grant: NodeGrant,
    enrolled: Enrollment,
    revision: u64,
}

impl Enroll {
    /// Begins to enrol, and to forget ephemeral nodes until `stop`.
    pub(crate) async fn start(
        (broker, keymaster, keyring): (&Broker, &Keymaster, &Keyring),
        audit: &Audit,
        settings: NodeSettings,
        (tasks, stop): (&TaskTracker, &CancellationToken),
    ) -> Result<Self, String> {
        let tokens = broker.jetstream().get_key_value(storage::TOKENS).await;
        let tokens = tokens.map_err(|error| format!("bucket TOKENS cannot be used: {error} (was the broker provisioned?)"))?;
        let secret = shared_secret(&tokens).await.map_err(|error| format!("the key that signs challenges: {error}"))?;
        let ca = broker.links().ca.as_ref().map(std::fs::read_to_string).transpose();
        let enroll = Self(Arc::new(Inner {
            challenges: Challenges::new(&secret)?,
            tokens: Tokens::new(broker.jetstream(), tokens),
            asked: Strangers::new(ASKED_PER_SECOND.0, ASKED_PER_SECOND.1),
            looked_up: Strangers::new(TOKENS_PER_SECOND.0, TOKENS_PER_SECOND.1),
            given: Allowances::new((GIVEN_AT_ONCE, (settings.lifetime / 20).min(GIVEN_EACH_MAX))),
            ca: ca.map_err(|error| format!("the broker's authority cannot be read: {error}"))?,
            broker: broker.clone(),
            keymaster: keymaster.clone(),
            keyring: keyring.clone(),
            audit: audit.clone(),
            nodes: broker.nodes(),
            settings,
        }));
        let revoked = broker.jetstream().get_key_value(storage::REVOKED).await;
        let revoked = revoked.map_err(|error| format!("bucket REVOKED cannot be used: {error} (was the broker provisioned?)"))?;
        drop(tasks.spawn(ephemeral::forget(enroll.clone(), stop.clone())));
        drop(tasks.spawn(revoke::keep_up(enroll.clone(), revoked, stop.clone())));
        Ok(enroll)
    }

    /// The enrolment tokens.
    pub(crate) fn tokens(&self) -> &Tokens {
        &self.0.tokens
    }

    /// A challenge for a key.
    pub(crate) fn challenge(&self, key: &PublicKey, from: Option<IpAddr>) -> Result<Challenge, Problem> {
        self.not_too_many(key, from)?;
        Ok(self.0.challenges.make(key, Timestamp::now()))
    }

    /// Gives a node a credential.
    pub(crate) async fn enroll(&self, request: &EnrollRequest, from: Option<IpAddr>, request_id: &str) -> Result<NodeCredential, Problem> {
        let statement = request.statement(&tokens::digest(request.token.as_deref()));
        self.0.challenges.check(&request.public_key, &request.challenge, Timestamp::now())?;
        proven(("/public_key", &request.public_key), &statement, ("/signature", &request.signature))?;
        match (&request.new_public_key, &request.new_signature) {
            (Some(key), Some(signature)) => proven(("/new_public_key", key), &statement, ("/new_signature", signature))?,
            (None, None) => {}
            (Some(_), None) => return Err(Problem::invalid(Invalid::new("/new_signature", "is missing: the new key signs too"))),
            (None, Some(_)) => return Err(Problem::invalid(Invalid::new("/new_public_key", "is missing: whose signature is it?"))),
        }
        self.not_too_many(&request.public_key, from)?;
        for _ in 0..WRITES_MAX {
            let known = self.known(&request.public_key, request.node.as_ref()).await?;
            let given = match known {
                Some(known) if !known.enrolled.pending || known.grant.revoked_at.is_some() => {
                    let about = asked(&known.grant.id);
                    self.renew(known, request, request_id).await.map_err(|problem| problem.asked(about))?
                }
                Some(_) | None => self.admit(request, from, request_id).await?,
            };
            if let Some(given) = given {
                return Ok(given);
            }
        }
        Err(unavailable("somebody else changes it all the time"))
    }

    /// Makes a credential lasting that a node has shown the broker to take.
    pub(crate) async fn confirm(
        &self,
        request: &ConfirmRequest,
        from: Option<IpAddr>,
        request_id: &str,
    ) -> Result<NodeCredential, Problem> {
        self.0.challenges.check(&request.public_key, &request.challenge, Timestamp::now())?;
        proven(("/public_key", &request.public_key), &request.statement(), ("/signature", &request.signature))?;
        self.not_too_many(&request.public_key, from)?;
        let about = asked(&request.node);
        for _ in 0..WRITES_MAX {
            let known = self.known(&request.public_key, Some(&request.node)).await?.filter(|known| known.grant.id == request.node);
            let known = known.ok_or_else(|| stranger().asked(about.clone()))?;
            let confirmed = self.settle(known, &request.public_key, request_id).await;
            if let Some(given) = confirmed.map_err(|problem| problem.asked(about.clone()))? {
                return Ok(given);
            }
        }
        Err(unavailable("somebody else changes it all the time"))
    }

    /// Enrols a key that nobody knows, by its token; none where somebody else has changed the node meanwhile.
    async fn admit(&self, request: &EnrollRequest, from: Option<IpAddr>, request_id: &str) -> Result<Option<NodeCredential>, Problem> {
        if request.new_public_key.is_some() {
            return Err(stranger());
        }
        let Some(token) = &request.token else { return Err(stranger()) };
        self.0.looked_up.check(from)?;
        let grants = self.0.tokens.take(token, &request.public_key, |view| name(view, request)).await?;
        let admitted = match self.is_in_force(&grants).await {
            Ok(()) => self.admit_by(&grants, request, request_id).await,
            Err(problem) => Err(problem),
        };
        if !matches!(admitted, Ok(Some(_))) {
            self.0.tokens.give_back(&grants.id, &request.public_key, &name(&grants, request)?).await;
        }
        admitted.map_err(|problem| match &request.node {
            Some(node) => problem.asked(asked(node)),
            None => problem,
        })
    }

    /// Refuses a stranger who asks too often, before anything is looked up for him. Whose key is a node's is no stranger, and waits for nobody.
    fn not_too_many(&self, key: &PublicKey, from: Option<IpAddr>) -> Result<(), Problem> {
        if self.0.broker.roster().node_of_key(key.as_str()).is_some() { Ok(()) } else { self.0.asked.check(from) }
    }

    /// Refuses a node one credential too many, before it is made: each is a record of the trail.
    fn not_too_often(&self, node: &NodeId) -> Result<(), Problem> {
        self.0.given.take(node).map_err(|after| {
            let detail = format!(
                "node `{node}` has asked for {GIVEN_AT_ONCE} credentials and more in a short time; what it has stays good until it ends"
            );
            Problem::new(Code::RateLimited, detail).retry_after(after)
        })
    }

    /// Refuses the token of a key that was revoked, or that nobody knows any more.
    async fn is_in_force(&self, token: &TokenView) -> Result<(), Problem> {
        let Some(id) = token.created_by.strip_prefix("key:") else { return Ok(()) };
        let what = if let Some(maker) = self.0.keyring.find(id).await? {
            maker.revoked_at.map(|at| format!("was revoked at {at}"))
        } else {
            // So few are looked up in a second that one may be missed.
            let present = self.0.keyring.present(id).await.map_err(|error| Problem::new(Code::Unavailable, error))?;
            present.is_none().then(|| "is not known any more".to_owned())
        };
        match what {
            None => Ok(()),
            Some(what) => {
                let detail = format!("the API key that made the enrolment token {} {what}; get another one", token.id);
                Err(Problem::new(Code::Forbidden, detail))
            }
        }
    }

    async fn admit_by(&self, token: &TokenView, request: &EnrollRequest, request_id: &str) -> Result<Option<NodeCredential>, Problem> {
        let id = name(token, request)?;
        let now = Timestamp::now();
        let held = self.node(&id).await?;
        if let Some((held, _)) = held.as_ref().filter(|(held, _)| !is_free(held, &request.public_key, now)) {
            let detail = format!(
                "node `{id}` is another machine with another key; choose another name (`--node NAME`), or, if this machine takes its place, take \
                 its credential back first (`probeops nodes revoke {id}`){}",
                if held.enrolled.as_ref().is_some_and(|enrolled| enrolled.pending) { ", or wait until it has failed to enrol" } else { "" }
            );
            return Err(Problem::new(Code::Conflict, detail).at(Invalid::new("/node", "is taken")));
        }
        // What it had must be void before it is in the register no more.
        if let Some((held, _)) = held.as_ref().filter(|(held, _)| held.revoking) {
            drop(self.void(&held.id, None).await?);
            return Ok(None);
        }
        self.not_too_often(&id)?;
        let enrolled = Enrollment {
            token: Some(token.id.clone()),
            pending: true,
            ephemeral: token.ephemeral,
            machine: request.machine.clone(),
            mark: Some(request.next_mark.clone()),
            successor: None,
            successor_until: None,
            key_changed_at: None,
            predecessor: None,
        };
        let grant = NodeGrant {
            labels: token.labels.clone(),
            enrolled: Some(enrolled),
            ..NodeGrant::new(id, token.region.clone(), token.tools.clone(), request.public_key.to_string(), now.plus(CONFIRM_WITHIN))
        };
        let given = self.certified(&grant, &request.public_key, CONFIRM_WITHIN, true).await?;
        let revision = held.map(|(_, revision)| revision);
        let detail = format!("node is enrolling: region {}, key {}", grant.region, request.public_key);
        self.0.audit.changing(&format!("token:{}", token.id), request_id, target(&grant.id), detail).await?;
        Ok(self.write(&grant, revision).await?.map(|_| given))
    }

    /// Renews the credential of a node, or begins to change its key.
    async fn renew(&self, known: Known, request: &EnrollRequest, request_id: &str) -> Result<Option<NodeCredential>, Problem> {
        let Known { mut grant, mut enrolled, revision } = known;
        not_revoked(&grant)?;
        is_the_same(&grant.id, &enrolled, request)?;
        self.not_too_often(&grant.id)?;
        enrolled.machine = enrolled.machine.or_else(|| request.machine.clone());
        enrolled.mark = Some(request.next_mark.clone());
        let resumed = enrolled.successor.clone().filter(|successor| *successor == request.public_key);
        let (key, detail) = match request.new_public_key.clone().or(resumed) {
            Some(successor) => {
                may_change_key(&grant.id, &enrolled, &successor, Timestamp::now())?;
                if let Some(other) = self.0.broker.roster().node_of_key(successor.as_str()).filter(|other| *other != grant.id) {
                    let detail = format!("the new key is that of node `{other}`; make another");
                    return Err(Problem::new(Code::Conflict, detail).at(Invalid::new("/new_public_key", "is taken")));
                }
                // One that was revoked where the register does not say so, as by a sentry, is refused here, and does not change into another.
                let current: PublicKey = grant.public_key.parse().map_err(|detail: String| unavailable(detail))?;
                drop(self.certified(&grant, &current, CONFIRM_WITHIN, true).await?);
                let detail = format!("node changes its key to {successor}");
                enrolled.successor = Some(successor.clone());
                (successor, detail)
            }
            None => (request.public_key.clone(), "node credential renewed".to_owned()),
        };
        let to_confirm = enrolled.successor.as_ref() == Some(&key);
        let lifetime = if to_confirm { CONFIRM_WITHIN } else { self.lifetime() };
        let given = self.certified(&grant, &key, lifetime, to_confirm).await?;
        if to_confirm {
            enrolled.successor_until = Some(given.expires_at);
        } else {
            grant.expires_at = given.expires_at;
        }
        let (id, owed) = (grant.id.clone(), enrolled.predecessor.is_some());
        grant.enrolled = Some(enrolled);
        if self.write(&grant, revision.into()).await?.is_none() {
            return Ok(None);
        }
        self.0.audit.changed(&format!("node:{id}"), request_id, target(&id), format!("{detail}, until {}", given.expires_at));
        if owed && let Err(problem) = self.revoke_predecessor(&id, request_id).await {
            tracing::warn!("the key that node {id} had before is still accepted: {problem}");
        }
        Ok(Some(given))
    }

    /// Ends an enrolment or a change of keys. Where there is none to end, nothing is given: a copy of the node would have its credential renewed
    /// without the mark that tells them apart. None where somebody else has changed the node meanwhile.
    async fn settle(&self, known: Known, key: &PublicKey, request_id: &str) -> Result<Option<NodeCredential>, Problem> {
        let Known { mut grant, mut enrolled, revision } = known;
        not_revoked(&grant)?;
        let mut principal = format!("node:{}", grant.id);
        let done = if enrolled.successor.as_ref() == Some(key) {
            // The one before that is still owed is not forgotten for it.
            if enrolled.predecessor.is_some() {
                self.revoke_predecessor(&grant.id, request_id).await?;
                return Ok(None);
            }
            let current: PublicKey = grant.public_key.parse().map_err(|detail: String| unavailable(detail))?;
            drop(self.certified(&grant, &current, CONFIRM_WITHIN, true).await?);
            enrolled.predecessor = Some(current);
            (enrolled.successor, enrolled.successor_until) = (None, None);
            enrolled.key_changed_at = Some(Timestamp::now());
            format!("node changed its key to {key}")
        } else if enrolled.pending {
            if let Some(token) = &enrolled.token {
                let view = self.0.tokens.confirm(token, key, &grant.id).await?;
                self.is_in_force(&view).await?;
                principal = format!("token:{token}");
            }
            enrolled.pending = false;
            format!("node enrolled: region {}, key {key}", grant.region)
        } else {
            return Err(nothing_to_confirm(&grant.id));
        };
        let given = self.certified(&grant, key, self.lifetime(), false).await?;
        let (id, owed) = (grant.id.clone(), enrolled.predecessor.is_some());
        (grant.public_key, grant.expires_at, grant.enrolled) = (key.to_string(), given.expires_at, Some(enrolled));
        if self.write(&grant, revision.into()).await?.is_none() {
            return Ok(None);
        }
        self.0.audit.changed(&principal, request_id, target(&id), done);
        if owed {
            self.revoke_predecessor(&id, request_id).await?;
        }
        Ok(Some(given))
    }

    /// Revokes the key that a node had before.
    async fn revoke_predecessor(&self, id: &NodeId, request_id: &str) -> Result<(), Problem> {
        for _ in 0..WRITES_MAX {
            let Some((mut grant, revision)) = self.node(id).await? else { return Ok(()) };
            let Some(predecessor) = grant.enrolled.as_ref().and_then(|enrolled| enrolled.predecessor.clone()) else { return Ok(()) };
            self.0.keymaster.revoke(predecessor.as_str()).await?;
            if let Some(enrolled) = &mut grant.enrolled {
                enrolled.predecessor = None;
            }
            if self.write(&grant, revision.into()).await?.is_some() {
                self.0.audit.changed(
                    &format!("node:{id}"),
                    request_id,
                    target(id),
                    format!("the key it had before is revoked: {predecessor}"),
                );
                return Ok(());
            }
        }
        Err(unavailable("somebody else changes the node all the time"))
    }

    /// Whose key this is.
    async fn known(&self, key: &PublicKey, named: Option<&NodeId>) -> Result<Option<Known>, Problem> {
        let of = |(grant, revision): (NodeGrant, u64)| {
            let enrolled = grant.enrolled.clone().unwrap_or_default();
            let is_its = grant.public_key == key.as_str() || enrolled.successor.as_ref() == Some(key);
            is_its.then_some(Known { grant, enrolled, revision })
        };
        if let Some(named) = named
            && let Some(known) = self.node(named).await?.and_then(of)
        {
            return Ok(Some(known));
        }
        match self.0.broker.roster().node_of_key(key.as_str()) {
            Some(id) => Ok(self.node(&id).await?.and_then(of)),
            None => Ok(None),
        }
    }

    async fn node(&self, id: &NodeId) -> Result<Option<(NodeGrant, u64)>, Problem> {
        let entry = self.0.nodes.entry(id.as_str()).await.map_err(|error| unavailable(error.to_string()))?;
        let Some(entry) = entry.filter(|entry| entry.operation == kv::Operation::Put) else { return Ok(None) };
        let grant = serde_json::from_slice(&entry.value).map_err(|error| unavailable(format!("node {id} cannot be read: {error}")))?;
        Ok(Some((grant, entry.revision)))
    }

    /// Writes a node where there is none, or in the place of that revision; the revision it has then, none where it was not so any more.
    async fn write(&self, grant: &NodeGrant, revision: Option<u64>) -> Result<Option<u64>, Problem> {
        let value = serde_json::to_vec(grant).map_err(|error| unavailable(error.to_string()))?;
        let id = grant.id.as_str();
        match revision {
            Some(revision) => match self.0.nodes.update(id, value.into(), revision).await {
                Ok(written) => Ok(Some(written)),
                Err(error) if error.kind() == kv::UpdateErrorKind::WrongLastRevision => Ok(None),
                Err(error) => Err(unavailable(error.to_string())),
            },
            None => match self.0.nodes.create(id, value.into()).await {
                Ok(written) => Ok(Some(written)),
                Err(error) if error.kind() == kv::CreateErrorKind::AlreadyExists => Ok(None),
                Err(error) => Err(unavailable(error.to_string())),
            },
        }
    }

    async fn certified(&self, grant: &NodeGrant, key: &PublicKey, lifetime: Duration, to_confirm: bool) -> Result<NodeCredential, Problem> {
        let rights = NodeRights { node: grant.id.clone(), region: grant.region.clone(), tools: grant.tools.clone() };
        let Minted { jwt, expires_at } = self.0.keymaster.mint_node(key.as_str(), rights, lifetime).await?;
        Ok(NodeCredential {
            node: grant.id.clone(),
            region: grant.region.clone(),
            jwt,
            expires_at,
            valid_for_ms: u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX),
            servers: self.0.settings.servers.clone(),
            ca: self.0.ca.clone(),
            to_confirm,
        })
    }

    fn lifetime(&self) -> Duration {
        let jitter = 1.0 + LIFETIME_JITTER * (2.0 * rand::random::<f64>() - 1.0);
        let seconds = self.0.settings.lifetime.mul_f64(jitter).as_secs();
        Duration::from_secs(seconds.max(1)).min(ValidFor::MAX.duration())
    }
}

/// The key that all replicas sign challenges with; the first of them makes it.
async fn shared_secret(bucket: &kv::Store) -> Result<Vec<u8>, String> {
    if let Some(secret) = bucket.get(CHALLENGE_KEY).await.map_err(|error| error.to_string())? {
        return Ok(secret.to_vec());
    }
    // Whoever comes second reads what the first has made.
    drop(bucket.create(CHALLENGE_KEY, rand::random::<[u8; SECRET_BYTES]>().to_vec().into()).await);
    let begun = Instant::now();
    loop {
        match bucket.get(CHALLENGE_KEY).await.map_err(|error| error.to_string())? {
            Some(made) => return Ok(made.to_vec()),
            None if begun.elapsed() < BEHIND_MAX => tokio::time::sleep(AGAIN_AFTER).await,
            None => return Err("it is not in the bucket".to_owned()),
        }
    }
}

fn proven((key_at, key): (&str, &PublicKey), statement: &str, (at, signature): (&str, &Signature)) -> Result<(), Problem> {
    verify(key, statement, signature).map_err(|unproven| match unproven {
        Unproven::Key => Problem::invalid(Invalid::new(key_at, "is not a key: its own checksum does not fit")),
        Unproven::Signature => {
            let detail = "the signature is not that of this key over the challenge and what is asked";
            Problem::new(Code::Forbidden, detail).at(Invalid::new(at, "does not fit"))
        }
    })
}

/// The name of the node that a token enrols; where it gives one, that is it.
fn name(token: &TokenView, request: &EnrollRequest) -> Result<NodeId, Problem> {
    match (&token.node, &request.node) {
        (Some(name), _) | (None, Some(name)) => Ok(name.clone()),
        (None, None) => {
            let key = request.public_key.as_str().to_ascii_lowercase();
            format!("node-{}", key.get(1..13).unwrap_or_default()).parse().map_err(|detail: String| unavailable(detail))
        }
    }
}

/// Whether a key may have this name: nobody has it any more, or the key itself.
fn is_free(held: &NodeGrant, key: &PublicKey, now: Timestamp) -> bool {
    held.revoked_at.is_some() || held.has_failed_to_enroll(now) || held.public_key == key.as_str()
}

fn not_revoked(grant: &NodeGrant) -> Result<(), Problem> {
    let Some(at) = grant.revoked_at else { return Ok(()) };
    let detail = format!(
        "node `{}` was revoked at {at}{}; to bring the machine back, enrol it anew with a token: `probeops-agent enroll URL --new-identity`",
        grant.id,
        grant.revoked_because.as_ref().map_or_else(String::new, |because| format!(" ({because})"))
    );
    Err(Problem::new(Code::Forbidden, detail))
}

/// Refuses another key so soon after the last one, and in the place of one that the broker may take already.
fn may_change_key(id: &NodeId, enrolled: &Enrollment, successor: &PublicKey, now: Timestamp) -> Result<(), Problem> {
    // What was begun may be finished at any time.
    if enrolled.successor.as_ref() == Some(successor) {
        return Ok(());
    }
    let refused = |detail: String, until: Timestamp| Err(Problem::new(Code::RateLimited, detail).retry_after(until.since(now)));
    if let (Some(begun), Some(until)) = (&enrolled.successor, enrolled.successor_until.filter(|until| now < *until)) {
        let detail = format!("node `{id}` is changing its key to {begun} already: go on with that one, or begin anew after {until}");
        return refused(detail, until);
    }
    match enrolled.key_changed_at.map(|changed| (changed, changed.plus(KEY_KEPT))) {
        Some((changed, until)) if now < until => {
            refused(format!("node `{id}` changed its key at {changed}; it may again at {until}"), until)
        }
        Some(_) | None => Ok(()),
    }
}

/// Refuses a copy of a node: on another machine, or one of two that go on from the same credential.
fn is_the_same(id: &NodeId, enrolled: &Enrollment, request: &EnrollRequest) -> Result<(), Problem> {
    let cure = "make this machine a node of its own with a token: `probeops-agent enroll URL --new-identity`; or, if it is to take the place of the \
                other, take that one's credential back first";
    if let (Some(held), Some(given)) = (&enrolled.machine, &request.machine)
        && held != given
    {
        let detail =
            format!("node `{id}` was enrolled on another machine, and this is a copy of its disk; {cure} (`probeops nodes revoke {id}`)");
        return Err(Problem::new(Code::Conflict, detail).at(Invalid::new("/machine", "is another than before")));
    }
    // Whoever did not hear the answer asks again with the same `next_mark`.
    let goes_on = enrolled.mark.as_ref().is_none_or(|held| Some(held) == request.mark.as_ref() || *held == request.next_mark);
    if !goes_on {
        let detail = format!(
            "node `{id}` has renewed its credential somewhere else since this copy of it was made: its disk was cloned, or restored from a backup; \
             {cure} (`probeops nodes revoke {id}`)"
        );
        return Err(Problem::new(Code::Conflict, detail).at(Invalid::new("/mark", "is not that of the newest credential")));
    }
    Ok(())
}

fn stranger() -> Problem {
    let detail = "this key is not known here: enrol with a token (`probeops enroll-tokens add` makes one), or have an operator register the key \
                  first (`probeops nodes add NAME --public-key U…`)";
    Problem::new(Code::Forbidden, detail)
}

fn nothing_to_confirm(id: &NodeId) -> Problem {
    let detail = format!("nothing of node `{id}` is to be confirmed: it has enrolled with this key; ask /v1/enroll for a newer credential");
    Problem::new(Code::Conflict, detail)
}

fn target(id: &NodeId) -> String {
    format!("node:{id}")
}

fn asked(id: &NodeId) -> Asked {
    Asked { target: target(id), ..Asked::default() }
}

fn unavailable(detail: impl std::fmt::Display) -> Problem {
    Problem::new(Code::Unavailable, format!("the node could not be enrolled: {detail}"))
}
