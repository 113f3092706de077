//! Whether a job is run at all.

use std::sync::atomic::Ordering;

use async_nats::Message;
use probeops_shared::audit::{Record, Verdict};
use probeops_shared::invalid::Invalid;
use probeops_shared::job::{DEADLINE_MAX, Job, header};
use probeops_shared::outcome::{Failure, FailureKind, Outcome};
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::ToolName;

use crate::runs::Candidate;
use crate::trail::Promise;

use super::{Accepted, Answered, Asker, Worker, headers};

/// When a caller that was told `busy` may try again, in milliseconds: a guess at when a light class has room.
const BUSY_RETRY_AFTER_MS: u64 = 100;

/// When one may try again that was told that its record has no room: the control plane may be back.
const SPOOL_RETRY_AFTER_MS: u64 = 1_000;

impl Worker {
    /// Everything that can be said without running it.
    pub(super) fn accept(&self, tool: &str, asker: Asker, message: &Message) -> Result<Accepted, Box<Answered>> {
        let headers = message.headers.as_ref();
        let job = Job::parse(&message.payload).map_err(|rejected| Box::new(rejected.into_outcome()))?;
        let refuse =
            |failure: Failure| Box::new(Outcome::failed(job.request_id.clone(), job.spec.tool().as_str(), job.spec.target(), failure));
        if job.spec.tool().as_str() != tool {
            let detail = format!("the message asks for `{}`, its subject for `{tool}`; they must be the same", job.spec.tool());
            return Err(refuse(Failure::from(Invalid::new("/tool", detail))));
        }
        let deadline_unix_ms = headers::deadline_unix_ms(headers).map_err(&refuse)?;
        self.check_deadline(deadline_unix_ms, "arrived").map_err(&refuse)?;
        self.check_furthest(deadline_unix_ms).map_err(&refuse)?;
        let events = headers::events(headers).map_err(&refuse)?;
        let targets = headers::targets(headers, asker.caller.is_api()).map_err(&refuse)?;
        if self.draining.load(Ordering::Acquire) {
            return Err(refuse(Failure::new(
                FailureKind::Draining,
                format!("node {} is being drained and takes no new jobs", self.node.id),
            )));
        }
        self.check_capability(job.spec.tool()).map_err(&refuse)?;
        let class = job.spec.tool().class();
        let pass = self.limits.enter(&asker.caller).map_err(&refuse)?;
        let candidate = Candidate { caller: asker.caller.clone(), request_id: job.request_id.clone(), attempt: asker.attempt, class };
        let Some(entry) = self.runs.enter(candidate, &self.slots) else {
            pass.give_back();
            let class = class.as_str();
            let busy = Failure::new(FailureKind::Busy, format!("all {class} slots of node {} are taken", self.node.id));
            return Err(refuse(Failure { retry_after_ms: Some(BUSY_RETRY_AFTER_MS), ..busy }));
        };
        let promise = match self.spool(&job, &asker) {
            Ok(promise) => promise,
            Err(why) => {
                pass.give_back();
                return Err(refuse(self.unrecorded(&why)));
            }
        };
        #[expect(clippy::cast_precision_loss, reason = "a difference of clocks in microseconds is far below 2^52")]
        let dispatch_ms = headers::sent_unix_us(headers).map(|sent| now_unix_us().saturating_sub(sent) as f64 / 1000.0);
        Ok(Accepted { asker, job, deadline_unix_ms, events, targets, dispatch_ms, entry, pass, promise })
    }

    /// When a job begins that was accepted; or why it does not. To keep its record may have taken long, and the node may have been held still.
    pub(super) async fn begins(&self, accepted: &Accepted) -> Result<Timestamp, Failure> {
        accepted.promise.begun().await.map_err(|why| self.unrecorded(&why))?;
        // Read before the deadline is looked at, so that no beginning is after it.
        let started_at = Timestamp::now();
        self.check_deadline(accepted.deadline_unix_ms, "could begin")?;
        Ok(started_at)
    }

    /// That a job is not run, since nobody would know of it.
    fn unrecorded(&self, why: &str) -> Failure {
        let detail = format!("node {} cannot record it: {why}", self.node.id);
        Failure { retry_after_ms: Some(SPOOL_RETRY_AFTER_MS), ..Failure::new(FailureKind::Busy, detail) }
    }

    /// Records that a job begins, if nobody else has: of a job of the API the trail has a record before it is sent. Room for its end.
    fn spool(&self, job: &Job, asker: &Asker) -> Result<Promise, String> {
        if asker.caller.is_api() {
            return self.trail.promise();
        }
        self.trail.begin(Record {
            caller: Some(asker.caller.to_string()),
            node: Some(self.node.id.clone()),
            region: Some(self.node.region.clone()),
            tool: job.spec.tool().as_str().to_owned(),
            target: job.spec.target(),
            request_id: job.request_id.to_string(),
            ..Record::new(Verdict::Started, asker.principal.as_str())
        })
    }

    /// Whether the job is in time, which has just done what is named.
    fn check_deadline(&self, deadline_unix_ms: Option<i64>, done: &str) -> Result<(), Failure> {
        let Some(deadline) = deadline_unix_ms else { return Ok(()) };
        let left_ms = deadline.saturating_sub(self.clock.now_unix_ms());
        if left_ms <= 0 {
            let detail = format!("the deadline passed {} ms before the job {done}", left_ms.unsigned_abs());
            return Err(Failure::new(FailureKind::Expired, detail));
        }
        Ok(())
    }

    /// Whether a deadline is one that anybody can mean.
    fn check_furthest(&self, deadline_unix_ms: Option<i64>) -> Result<(), Failure> {
        let left_ms = deadline_unix_ms.map_or(0, |deadline| deadline.saturating_sub(self.clock.now_unix_ms()));
        let furthest_ms = i64::try_from(DEADLINE_MAX.as_millis()).unwrap_or(i64::MAX);
        if left_ms > furthest_ms {
            let name = header::DEADLINE;
            let detail = format!("header {name} is {left_ms} ms away; at most {furthest_ms} ms are allowed (is it in milliseconds?)");
            return Err(Failure::new(FailureKind::Invalid, detail));
        }
        Ok(())
    }

    fn check_capability(&self, tool: ToolName) -> Result<(), Failure> {
        if self.tools.contains(&tool) {
            return Ok(());
        }
        let detail = match self.unavailable.iter().find(|unavailable| unavailable.tool == tool) {
            Some(lacks) => format!("node {} cannot run {tool}: {}; to grant it: {}", self.node.id, lacks.missing, lacks.grant),
            None => format!("node {} was not granted {tool}", self.node.id),
        };
        Err(Failure::new(FailureKind::Unsupported, detail))
    }
}

fn now_unix_us() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_micros()).ok())
        .unwrap_or(0)
}
