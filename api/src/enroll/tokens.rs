//! Enrolment tokens: `pe_<id>_<secret><checksum>`, of which bucket TOKENS keeps a hash, what they grant, and who is using them.
//!
//! The uses of a token are counted by compare-and-set. Whoever enrols takes one for a few minutes, and uses it up when the broker has taken the
//! credential; so two at once never exceed what the token allows, and one that fails in between costs nothing.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::{HeaderValue, NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_TTL};
use async_nats::jetstream::{self, kv};
use probeops_shared::enroll::PublicKey;
use probeops_shared::ids::{NodeId, Region};
use probeops_shared::problem::Code;
use probeops_shared::registry::Labels;
use probeops_shared::subjects::{broker, storage};
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::ToolName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::access::keys::{Fault, hash, id_in, is_hashed, is_id, new_text};
use crate::broker::last::last_of_each;
use crate::problem::Problem;

const PREFIX: &str = "pe_";
/// How long a node has to confirm that the broker takes its first credential.
pub const CONFIRM_WITHIN: Duration = Duration::from_mins(5);
/// How many may be enrolling with one token at the same time.
const ENROLLING_MAX: usize = 100;
/// How many tokens that are not revoked there may be, in all and of one who makes them, with the keys that he has made.
const TOKENS_MAX: usize = 1000;
const TOKENS_OF_ONE_MAX: usize = 200;
/// How often a count tries again when somebody else wrote it in between.
const WRITES_MAX: usize = 16;
/// How much longer than a token its record is kept, for those that were enrolling when it expired.
const KEPT_AFTER: Duration = Duration::from_mins(6);

/// How long the record of one that was revoked is kept.
const REVOKED_KEPT: Duration = Duration::from_hours(1);

/// What is kept of a token, in bucket TOKENS under its id.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TokenRecord {
    /// What it is, and what it grants.
    #[serde(flatten)]
    pub view: TokenView,
    /// SHA-256 of the whole token, in hexadecimal.
    pub sha256: String,
    /// Who is enrolling with it, or was until a moment ago.
    #[serde(default)]
    enrolling: Vec<Enrolling>,
}

/// A use of a token that is going on.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Enrolling {
    public_key: PublicKey,
    /// As which node.
    node: NodeId,
    /// Until when it is this key's.
    until: Timestamp,
    /// It is used up.
    confirmed: bool,
}

/// An enrolment token as it is shown: without what could be used to check guesses.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "EnrollToken")]
pub struct TokenView {
    /// Its id, the second part of the token.
    pub id: String,
    /// The region of nodes that enrol with it.
    pub region: Region,
    /// The tools they may serve.
    pub tools: Vec<ToolName>,
    /// Their labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// The name of the one node that it is for; absent where nodes choose their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// How many nodes may enrol with it.
    pub uses: u32,
    /// How many have.
    pub used: u32,
    /// Whether nodes that enrol with it are forgotten once they were away for a while.
    pub ephemeral: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// Until when nodes can enrol with it.
    pub expires_at: Timestamp,
    /// When it was revoked; absent while it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
}

/// What a new token is to be.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// The region of nodes that enrol with it.
    pub region: Region,
    /// The tools they may serve.
    pub tools: Vec<ToolName>,
    /// Their labels.
    pub labels: Labels,
    /// The one node that it is for.
    pub node: Option<NodeId>,
    /// How many nodes may enrol with it.
    pub uses: u32,
    /// Whether they are forgotten once they were away for a while.
    pub ephemeral: bool,
    /// How long it can be used.
    pub valid_for: Duration,
    /// Who makes it.
    pub created_by: String,
}

/// Makes a token: the text, shown once, and what is kept of it, in bucket TOKENS under its id.
pub fn mint(new: NewToken) -> (String, TokenRecord) {
    let (id, token) = new_text(PREFIX);
    let created_at = Timestamp::now();
    let NewToken { region, tools, labels, node, uses, ephemeral, valid_for, created_by } = new;
    let expires_at = created_at.plus(valid_for);
    let view =
        TokenView { id, region, tools, labels, node, uses, used: 0, ephemeral, created_at, created_by, expires_at, revoked_at: None };
    let record = TokenRecord { sha256: hash(&token), view, enrolling: Vec::new() };
    (token, record)
}

impl TokenRecord {
    /// The token as it is shown now: those that are enrolling do not count.
    pub fn shown(&self) -> TokenView {
        let confirmed = self.enrolling.iter().filter(|use_| use_.confirmed).count();
        let used = self.view.used.saturating_add(u32::try_from(confirmed).unwrap_or(u32::MAX));
        TokenView { used, ..self.view.clone() }
    }

    /// For how long the broker keeps it.
    pub fn kept_for(&self) -> Duration {
        let kept_for = self.view.expires_at.since(Timestamp::now()).saturating_add(KEPT_AFTER);
        if self.view.revoked_at.is_some() { kept_for.min(REVOKED_KEPT) } else { kept_for }
    }

    /// Takes a use for a key to become this node, or keeps the one that it has.
    fn take(&mut self, key: &PublicKey, node: &NodeId, now: Timestamp) -> Result<(), Problem> {
        self.settle(now);
        let id = &self.view.id;
        if let Some(at) = self.view.revoked_at {
            return Err(refused(format!("the enrolment token {id} was revoked at {at}; get another one")));
        }
        if self.view.expires_at <= now {
            return Err(refused(format!("the enrolment token {id} expired at {}; get another one", self.view.expires_at)));
        }
        let until = now.plus(CONFIRM_WITHIN);
        if let Some(own) = self.enrolling.iter_mut().find(|other| other.public_key == *key) {
            if own.confirmed || own.node != *node {
                return Err(refused(format!("this key has a use of the enrolment token {id} already, as node `{}`", own.node)));
            }
            own.until = until;
            return Ok(());
        }
        let uses = self.view.uses;
        if self.shown().used >= uses {
            return Err(refused(format!("the enrolment token {id} is used up: {uses} of {uses} nodes enrolled with it; get another one")));
        }
        let taken = self.view.used as usize + self.enrolling.len();
        if taken >= uses as usize || self.enrolling.len() >= ENROLLING_MAX {
            let free_in = self.enrolling.iter().map(|other| other.until.since(now)).min().unwrap_or(CONFIRM_WITHIN);
            let detail = format!(
                "every use that is left of the enrolment token {id} is taken by a node that is enrolling; where that fails, it is free again in \
                 {} s",
                free_in.as_secs() + 1
            );
            return Err(Problem::new(Code::Conflict, detail).retry_after(free_in));
        }
        self.enrolling.push(Enrolling { public_key: key.clone(), node: node.clone(), until, confirmed: false });
        Ok(())
    }

    /// Gives a use back that is not used up.
    fn give_back(&mut self, key: &PublicKey, node: &NodeId) {
        self.enrolling.retain(|other| other.confirmed || other.public_key != *key || other.node != *node);
    }

    /// Uses up the use that a key has taken; once more changes nothing.
    fn confirm(&mut self, key: &PublicKey, node: &NodeId, now: Timestamp) -> Result<(), Problem> {
        self.settle(now);
        let id = &self.view.id;
        if let Some(at) = self.view.revoked_at {
            return Err(refused(format!("the enrolment token {id} was revoked at {at}; get another one")));
        }
        let own = self.enrolling.iter_mut().find(|other| other.public_key == *key && other.node == *node);
        let own = own.ok_or_else(|| {
            refused(format!(
                "the node took longer than {} s to confirm its enrolment with token {id}; enrol again",
                CONFIRM_WITHIN.as_secs()
            ))
        })?;
        own.confirmed = true;
        Ok(())
    }

    /// Forgets uses whose time is over; those that were used up count for ever.
    fn settle(&mut self, now: Timestamp) {
        let used = self.enrolling.iter().filter(|other| other.confirmed && other.until <= now).count();
        self.view.used = self.view.used.saturating_add(u32::try_from(used).unwrap_or(u32::MAX));
        self.enrolling.retain(|other| other.until > now);
    }
}

/// The id in a token that is whole. Nothing of the token is repeated in a refusal.
pub(super) fn id_of(token: &str) -> Result<&str, Problem> {
    id_in(token, PREFIX).map_err(|fault| {
        refused(match fault {
            Fault::Form => "the enrolment token is cut off or has something added: it is pe_, an id of 10 characters, _, and 60 more",
            Fault::Checksum => "the enrolment token is mistyped: its checksum does not fit",
            Fault::Id => "the enrolment token is mistyped: its id has other characters than a-z and 0-9",
        })
    })
}

/// The digest of a token that a node signs.
pub(super) fn digest(token: Option<&str>) -> String {
    token.map_or_else(|| "-".to_owned(), hash)
}

/// All enrolment tokens.
#[derive(Clone, Debug)]
pub(crate) struct Tokens {
    jetstream: jetstream::Context,
    bucket: kv::Store,
}

impl Tokens {
    pub(super) fn new(jetstream: jetstream::Context, bucket: kv::Store) -> Self {
        Self { jetstream, bucket }
    }

    /// Refuses one token too many, of all or of one who makes them.
    pub(crate) async fn check_room(&self, is_of_him: impl Fn(&TokenView) -> bool) -> Result<(), Problem> {
        check_room(&self.list().await?, is_of_him)
    }

    /// Keeps a new one.
    pub(crate) async fn add(&self, record: &TokenRecord) -> Result<(), Problem> {
        let value = serde_json::to_vec(record).map_err(|error| unavailable(&error))?;
        let created = self.bucket.create_with_ttl(&record.view.id, value.into(), record.kept_for()).await;
        created.map(drop).map_err(|error| unavailable(&error))
    }

    /// Those that have not expired, by id.
    pub(crate) async fn list(&self) -> Result<Vec<TokenView>, Problem> {
        let filter = broker::bucket_key(storage::TOKENS, "*");
        let found = last_of_each(&self.jetstream.client(), &broker::bucket_stream(storage::TOKENS), &[filter]).await;
        let found = found.map_err(|error| unavailable(&error))?;
        let now = Timestamp::now();
        let records = found.iter().filter_map(|last| serde_json::from_slice::<TokenRecord>(&last.payload).ok());
        let mut views: Vec<TokenView> = records.filter(|record| record.view.expires_at > now).map(|record| record.shown()).collect();
        views.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(views)
    }

    /// One of them.
    pub(crate) async fn find(&self, id: &str) -> Result<Option<TokenView>, Problem> {
        let found = self.entry(id).await?.map(|(record, _)| record.shown());
        Ok(found.filter(|view| view.expires_at > Timestamp::now()))
    }

    /// Revokes one; nobody enrols with it any more. None when there is no such one.
    pub(crate) async fn revoke(&self, id: &str) -> Result<Option<TokenView>, Problem> {
        let changed = self.change(id, |record| {
            record.view.revoked_at.get_or_insert_with(Timestamp::now);
            Ok(())
        });
        Ok(changed.await?.map(|record| record.shown()))
    }

    /// Takes a use of a token for a key.
    pub(super) async fn take(
        &self,
        token: &str,
        key: &PublicKey,
        node: impl Fn(&TokenView) -> Result<NodeId, Problem>,
    ) -> Result<TokenView, Problem> {
        let unknown =
            || refused("the enrolment token is not known here: it has expired, or belongs to another installation; get another one");
        let used = self.change(id_of(token)?, |record| {
            if !is_hashed(token, &record.sha256) {
                return Err(unknown());
            }
            let node = node(&record.view)?;
            record.take(key, &node, Timestamp::now())
        });
        used.await?.map(|record| record.view).ok_or_else(unknown)
    }

    /// Gives a use back that came to nothing.
    pub(super) async fn give_back(&self, id: &str, key: &PublicKey, node: &NodeId) {
        let given_back = self.change(id, |record| {
            record.give_back(key, node);
            Ok(())
        });
        if let Err(problem) = given_back.await {
            tracing::warn!(token = id, "a use of an enrolment token is free again only in {} s: {problem}", CONFIRM_WITHIN.as_secs());
        }
    }

    /// Uses up what a key has taken.
    pub(super) async fn confirm(&self, id: &str, key: &PublicKey, node: &NodeId) -> Result<TokenView, Problem> {
        let gone = || refused(format!("the enrolment token {id} has expired meanwhile; get another one and enrol again"));
        self.change(id, |record| record.confirm(key, node, Timestamp::now())).await?.map(|record| record.view).ok_or_else(gone)
    }

    /// Changes a record; what others write meanwhile is kept.
    async fn change(&self, id: &str, change: impl Fn(&mut TokenRecord) -> Result<(), Problem>) -> Result<Option<TokenRecord>, Problem> {
        for _ in 0..WRITES_MAX {
            let Some((mut record, revision)) = self.entry(id).await? else { return Ok(None) };
            change(&mut record)?;
            if self.write(&record, revision).await? {
                return Ok(Some(record));
            }
        }
        Err(unavailable(&"many are using it at the same time"))
    }

    /// Writes a record in the place of that revision; whether it was still that.
    async fn write(&self, record: &TokenRecord, revision: u64) -> Result<bool, Problem> {
        let value = serde_json::to_vec(record).map_err(|error| unavailable(&error))?;
        // The bucket's own `update` would keep the new record for ever.
        let headers = HeaderMap::from_iter([
            (NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, HeaderValue::from(revision)),
            (NATS_MESSAGE_TTL, HeaderValue::from(record.kept_for().as_secs().max(1))),
        ]);
        let subject = broker::lent(&broker::bucket_key(storage::TOKENS, &record.view.id));
        let sent = self.jetstream.publish_with_headers(subject, headers, value.into()).await.map_err(|error| unavailable(&error))?;
        match sent.await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == jetstream::context::PublishErrorKind::WrongLastSequence => Ok(false),
            Err(error) => Err(unavailable(&error)),
        }
    }

    async fn entry(&self, id: &str) -> Result<Option<(TokenRecord, u64)>, Problem> {
        if !is_id(id) {
            return Ok(None);
        }
        let entry = self.bucket.entry(id).await.map_err(|error| unavailable(&error))?;
        let entry = entry.filter(|entry| entry.operation == kv::Operation::Put);
        Ok(entry.and_then(|entry| Some((serde_json::from_slice(&entry.value).ok()?, entry.revision))))
    }
}

/// Those that are revoked take no room: their records are gone before long.
fn check_room(tokens: &[TokenView], is_of_him: impl Fn(&TokenView) -> bool) -> Result<(), Problem> {
    let in_force = || tokens.iter().filter(|view| view.revoked_at.is_none());
    let full = |count: usize, whose: &str| {
        let detail = format!("there are {count} enrolment tokens{whose} already; revoke some, or wait until they expire");
        Err(Problem::new(Code::Conflict, detail))
    };
    if in_force().count() >= TOKENS_MAX {
        return full(TOKENS_MAX, "");
    }
    if in_force().filter(|view| is_of_him(view)).count() >= TOKENS_OF_ONE_MAX {
        return full(TOKENS_OF_ONE_MAX, " of yours, and of the keys that you have made,");
    }
    Ok(())
}

fn refused(detail: impl Into<String>) -> Problem {
    Problem::new(Code::Forbidden, detail)
}

fn unavailable(error: &dyn std::fmt::Display) -> Problem {
    Problem::new(Code::Unavailable, format!("enrolment tokens cannot be used now: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minted(uses: u32) -> (String, TokenRecord) {
        mint(NewToken {
            region: "eu".parse().unwrap(),
            tools: vec![ToolName::Echo],
            labels: Labels::new(),
            node: None,
            uses,
            ephemeral: false,
            valid_for: Duration::from_hours(1),
            created_by: "key:k".to_owned(),
        })
    }

    fn key(letter: char) -> PublicKey {
        format!("U{}", letter.to_string().repeat(55)).parse().unwrap()
    }

    #[test]
    fn a_token_is_known_by_its_record_and_kept_nowhere() {
        let (token, record) = minted(1);
        assert_eq!(id_of(&token).unwrap(), record.view.id);
        assert!(is_hashed(&token, &record.sha256));
        let kept = serde_json::to_string(&record).unwrap() + &serde_json::to_string(&record.shown()).unwrap();
        assert!(!kept.contains(&token[14..]), "{kept}");
        for (text, why) in [("pe_", "cut off"), (&token[..token.len() - 1], "cut off"), (&token.replace("pe_", "pk_"), "cut off")] {
            let problem = id_of(text).unwrap_err();
            assert!(problem.code() == Code::Forbidden && problem.detail().contains(why), "{problem}");
        }
        let mut mistyped = token.clone();
        mistyped.replace_range(20..21, if &token[20..21] == "a" { "b" } else { "a" });
        assert!(id_of(&mistyped).unwrap_err().detail().contains("checksum"));
    }

    fn node(letter: char) -> NodeId {
        format!("n-{}", letter.to_ascii_lowercase()).parse().unwrap()
    }

    #[test]
    fn uses_are_taken_given_back_used_up_and_never_exceeded() {
        let now = Timestamp::now();
        let mut record = minted(2).1;
        record.take(&key('A'), &node('A'), now).unwrap();
        record.take(&key('A'), &node('A'), now).unwrap();
        record.take(&key('B'), &node('B'), now).unwrap();
        let taken = record.take(&key('C'), &node('C'), now).unwrap_err();
        assert!(taken.code() == Code::Conflict && taken.detail().contains("free again in 301 s"), "{taken}");
        let other = record.take(&key('B'), &node('X'), now).unwrap_err();
        assert!(other.code() == Code::Forbidden && other.detail().contains("as node `n-b`"), "one use is one node: {other}");
        record.give_back(&key('B'), &node('X'));
        assert_eq!(record.enrolling.len(), 2, "the use of another name is not given back");
        record.give_back(&key('B'), &node('B'));
        record.take(&key('C'), &node('C'), now).unwrap();
        record.confirm(&key('A'), &node('A'), now).unwrap();
        record.confirm(&key('A'), &node('A'), now).unwrap();
        record.give_back(&key('A'), &node('A'));
        assert_eq!(record.shown().used, 1, "what is used up is not given back");
        assert!(record.take(&key('A'), &node('A'), now).is_err() && record.confirm(&key('A'), &node('X'), now).is_err());
        // C has crashed; its use is free again, and A's is not.
        let later = now.plus(CONFIRM_WITHIN);
        record.take(&key('D'), &node('D'), later).unwrap();
        assert_eq!((record.shown().used, record.enrolling.len()), (1, 1));
        assert_eq!(record.confirm(&key('C'), &node('C'), later).unwrap_err().code(), Code::Forbidden);
        record.confirm(&key('D'), &node('D'), later).unwrap();
        let used_up = record.take(&key('C'), &node('C'), later.plus(CONFIRM_WITHIN)).unwrap_err();
        assert!(used_up.code() == Code::Forbidden && used_up.detail().contains("used up: 2 of 2"), "{used_up}");
        assert_eq!(record.shown().used, 2);
    }

    #[test]
    fn one_who_makes_too_many_tokens_leaves_room_for_others_and_revoked_ones_take_none() {
        let mut tokens: Vec<TokenView> = (0..TOKENS_OF_ONE_MAX).map(|_| minted(1).1.view).collect();
        let check = |tokens: &[TokenView], maker: &str| check_room(tokens, |view| view.created_by == maker);
        let refused = check(&tokens, "key:k").unwrap_err();
        assert!(refused.code() == Code::Conflict && refused.detail().contains("200 enrolment tokens of yours"), "{refused}");
        check(&tokens, "key:other").unwrap();
        let mut revoked = minted(1).1;
        assert!(revoked.kept_for() > REVOKED_KEPT);
        revoked.view.revoked_at = Some(Timestamp::now());
        assert!(revoked.kept_for() <= REVOKED_KEPT, "it is forgotten");
        tokens[0] = revoked.view;
        check(&tokens, "key:k").unwrap();
    }

    #[test]
    fn a_token_that_expired_or_was_revoked_takes_nobody() {
        let mut record = minted(1).1;
        let late = record.view.expires_at;
        assert!(record.take(&key('A'), &node('A'), late).unwrap_err().detail().contains("expired at"));
        record.view.revoked_at = Some(Timestamp::now());
        assert!(record.take(&key('A'), &node('A'), Timestamp::now()).unwrap_err().detail().contains("was revoked at"));
    }
}
