//! A call that is made again with the same key is the same call: it gets the job that the first one made, in whatever way it asks.
//!
//! The key is written before its job, with the id that the job will have, and after everything that could refuse it but the audit trail; where that
//! does not take the job's record, the key is let go. A job that is asked for by a key is kept from its start, and its first state is stored only
//! if there is none: so of several that come at once, and of one that comes after a crash between key and job, one makes the job, and the rest
//! find it. Whoever makes the job of a key that was written before writes the key again, and only whoever wrote it last lets it go: so none is let
//! go whose job begins.

use std::time::Duration;

use data_encoding::HEXLOWER;
use probeops_shared::ids::JobId;
use probeops_shared::problem::Code;
use probeops_shared::timestamp::Timestamp;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use super::advance::{Advance, Key};
use super::{Came, How, Id, JobRequest, Jobs, Submitted};
use crate::access::Principal;
use crate::broker::{Use, Used};
use crate::limits::Payment;
use crate::problem::Problem;

/// How long after a key is used first its job may be made, by a call that comes after a crash.
const BEGINS_WITHIN: Duration = Duration::from_mins(10);

/// How often a key is written that others with it write at the same time.
const WRITES_MAX: u32 = 16;

/// The key of a call, and what the call asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    key: String,
    fingerprint: String,
}

impl Idempotency {
    /// The key given with these fields of a request. How the answer is wanted is not among them.
    pub fn new(key: String, fields: &Map<String, Value>) -> Self {
        let mut normal = Value::Object(fields.clone());
        normal.sort_all_objects();
        Self { key, fingerprint: HEXLOWER.encode(&Sha256::digest(normal.to_string())) }
    }

    /// The key in the bucket: those of different principals are different.
    fn bucket_key(&self, principal: &str) -> String {
        let hash = Sha256::new().chain_update(principal).chain_update([0]).chain_update(&self.key).finalize();
        HEXLOWER.encode(&hash)
    }

    /// Refuses a key that was used for something else.
    fn check(&self, used: &Used) -> Result<(), Problem> {
        if used.fingerprint == self.fingerprint {
            return Ok(());
        }
        let detail = format!(
            "this Idempotency-Key was used within the last 24 hours for another request, which is job `{}`; use a new key",
            used.job
        );
        Err(Problem::new(Code::IdempotencyMismatch, detail))
    }
}

/// Whether a job that was promised has had its time to begin.
fn is_old(job: JobId) -> bool {
    let promised_at = job.unix_ms().and_then(Timestamp::from_unix_ms);
    promised_at.is_some_and(|at| Timestamp::now().since(at) > BEGINS_WITHIN)
}

fn unavailable(error: impl std::fmt::Display) -> Problem {
    Problem::new(Code::Unavailable, format!("idempotency keys cannot be looked up now: {error}"))
}

/// Which job a key belongs to.
#[derive(Debug)]
pub(super) enum Promise {
    /// The one that is about to be made, with what is taken for it.
    Given(JobId, Advance),
    /// One that another call makes, or has made.
    GivenBefore(JobId),
}

impl Jobs {
    /// Makes the job of this call, or finds the one that an earlier call with the same key made.
    pub(super) async fn submit_once(
        &self,
        principal: &Principal,
        request: JobRequest,
        how: How,
        idempotency: &Idempotency,
    ) -> Result<Submitted, Problem> {
        let key = idempotency.bucket_key(&principal.name);
        let used = self.0.broker.idempotency().read(&key).await;
        let Some((used, revision)) = used.map_err(unavailable)? else {
            let made = self.make(principal, request, how, Id::New).await;
            // A twin of this call may have been there first, and what it took may be what this one lacked.
            let twin = if made.is_err() { self.0.broker.idempotency().read(&key).await.ok().flatten() } else { None };
            let Some((twin, _)) = twin else { return made };
            idempotency.check(&twin)?;
            return self.join(principal, twin.job, how).await?.map_or(made, Ok);
        };
        idempotency.check(&used)?;
        // A job that is about to begin is waited for, a little; one that never began is begun.
        match self.join(principal, used.job, how).await? {
            Some(joined) => Ok(joined),
            // One of long ago has begun, and its stream has had to let it go.
            None if is_old(used.job) => Err(Problem::new(
                Code::NotFound,
                format!("job `{}`, which this Idempotency-Key was used for, is no longer kept: too many newer ones came in", used.job),
            )),
            None => self.make(principal, request, how, Id::Promised(used.job, revision)).await,
        }
    }

    /// The id of a job that nothing but the trail refuses any more. What was paid for it is given back where another call makes it.
    pub(super) async fn promised(
        &self,
        principal: &Principal,
        id: Id,
        idempotency: Option<&Idempotency>,
        payment: Payment,
    ) -> Result<Promise, Problem> {
        let (job, mut after) = match id {
            Id::New => (JobId::new(), None),
            Id::Given(job) => (job, None),
            Id::Promised(job, revision) => (job, Some(revision)),
        };
        let Some(idempotency) = idempotency else { return Ok(Promise::Given(job, Advance { payment, key: None })) };
        let name = idempotency.bucket_key(&principal.name);
        let wanted = Used { fingerprint: idempotency.fingerprint.clone(), job };
        let mut before = Err(unavailable("many calls with this key come at once"));
        for _ in 0..WRITES_MAX {
            match self.0.broker.idempotency().use_or_read(&name, &wanted, after).await {
                Ok(Use::Now(revision)) => return Ok(Promise::Given(job, Advance { payment, key: Some(Key { name, revision }) })),
                // A twin begins with the same job; which of the two does is decided where it is stored.
                Ok(Use::Before(used, revision)) if used.job == job => after = Some(revision),
                Ok(Use::Before(used, _)) => {
                    before = idempotency.check(&used).map(|()| Promise::GivenBefore(used.job));
                    break;
                }
                Err(error) => {
                    before = Err(unavailable(error));
                    break;
                }
            }
        }
        payment.give_back().await;
        before
    }

    /// An answer from a job that another call has just made.
    pub(super) async fn join_made(&self, principal: &Principal, id: JobId, how: How) -> Result<Submitted, Problem> {
        let joined = self.join(principal, id, how).await?;
        joined.ok_or_else(|| Problem::new(Code::Unavailable, "the job was made by another call and cannot be found"))
    }

    /// An answer from a job that there is.
    pub(super) async fn join(&self, principal: &Principal, id: JobId, how: How) -> Result<Option<Submitted>, Problem> {
        let mut watcher = match self.watch(principal, id, None).await {
            Ok(watcher) => watcher,
            Err(problem) if problem.code() == Code::NotFound => return Ok(None),
            Err(problem) => return Err(problem),
        };
        let answer = match how {
            How::Watch { .. } => Came::Watched(watcher),
            How::Wait(wait) => match timeout(wait, watcher.end()).await {
                Ok(Some(document)) => Came::Over(document),
                Ok(None) | Err(_) => Came::SoFar(self.get(principal, id).await?.to_bytes()),
            },
        };
        Ok(Some(Submitted { id, answer, allowance: None, replayed: true }))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(key: &str, fields: &Value) -> Idempotency {
        Idempotency::new(key.to_owned(), fields.as_object().unwrap())
    }

    #[test]
    fn the_same_request_has_one_fingerprint_in_whatever_order_it_is_written() {
        let one = of("k", &json!({"tool": "ping", "parameters": {"count": 1, "timeout": 2}}));
        assert_eq!(one, of("k", &json!({"parameters": {"timeout": 2, "count": 1}, "tool": "ping"})));
        assert_ne!(one, of("k", &json!({"tool": "ping", "parameters": {"count": 2, "timeout": 2}})));
    }

    #[test]
    fn keys_of_different_principals_are_different() {
        let [one, other] = ["a", "b"].map(|key| of(key, &json!({})));
        assert_ne!(one.bucket_key("key:x"), one.bucket_key("key:y"));
        assert_ne!(one.bucket_key("key:x"), other.bucket_key("key:x"));
        assert_ne!(of("xa", &json!({})).bucket_key("key:"), one.bucket_key("key:x"));
    }
}
