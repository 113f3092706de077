//! Jobs whose replica is gone: ended by whoever is first, so that nothing is `running` for ever.
//!
//! The bucket forgets a replica only after every run of its jobs that had not begun is too old to begin, and what nodes say of those that had
//! goes to a replica that is not there. So nothing can be run again, and what has no outcome is lost.
//!
//! Whoever ends a job replaces the state that he has read and no other. So one of several wins, and a replica that was only held still finds
//! that its jobs are not its own any more.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use probeops_shared::ids::{Caller, JobId, RequestId};
use probeops_shared::outcome::{Failure, FailureKind, Outcome};
use probeops_shared::timestamp::Timestamp;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::callback::Patience;
use super::store::{RunEnd, State};
use super::{JobDocument, JobStatus, Jobs};

/// How often all jobs that go on are looked at.
const LOOK_EVERY: Duration = Duration::from_mins(1);
/// How much longer than it should a job of a replica that is there may take: its clock is another, and storing its end may be slow.
const SLACK: Duration = Duration::from_mins(1);

impl Jobs {
    /// Ends what replicas leave behind that are gone, as soon as they are, and looks now and then whether anything else was left.
    pub(super) async fn take_over(&self, mut gone: mpsc::Receiver<Option<Caller>>) {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                replica = gone.recv() => {
                    let Some(replica) = replica else { return };
                    if let Some(replica) = replica {
                        tracing::info!(%replica, "another replica is gone; its jobs end if it does not come back");
                    }
                }
                _ = look.tick() => {}
            }
            self.0.broker.lease().steady().await;
            while gone.try_recv().is_ok() {}
            if let Err(error) = self.end_what_is_left().await {
                tracing::warn!(%error, "it is not known whether jobs of other replicas are left");
            }
        }
    }

    async fn end_what_is_left(&self) -> Result<(), String> {
        let lease = self.0.broker.lease();
        let mut there: HashMap<Caller, bool> = HashMap::new();
        let mut left: HashSet<JobId> = HashSet::new();
        for open in self.0.store.open().await? {
            let is_there = if open.replica == *self.0.broker.caller() {
                // Of the process before this one it is left, too.
                open.begun_at.unix_ms() >= lease.since().unix_ms()
            } else if let Some(is_there) = there.get(&open.replica) {
                *is_there
            } else {
                let is_there = lease.is_there(&open.replica).await?;
                there.insert(open.replica, is_there);
                is_there
            };
            // Even a replica that is there may have lost one.
            if (!is_there || open.ends_by.plus(SLACK) < Timestamp::now())
                && !self.live().contains_key(&open.id)
                && !self.is_cancelled_here(open.id)
            {
                left.insert(open.id);
            }
        }
        for id in self.0.store.running(left.into_iter().collect()).await? {
            // One that cannot be ended must not keep the others going on.
            if let Err(error) = self.end_for_another(id, FailureKind::Lost).await {
                tracing::warn!(job.id = %id, %error, "a job that was left cannot be ended now");
            }
        }
        Ok(())
    }

    /// Ends a job in the place of the replica at which it goes on, which is gone or has lost it: what has no outcome fails so. Nothing happens if it
    /// has ended meanwhile.
    pub(super) async fn end_for_another(&self, id: JobId, kind: FailureKind) -> Result<(), String> {
        let Some(stored) = self.0.store.read(id).await? else { return Ok(()) };
        let State { document, runs, replica, deliver, refreshed } = stored.state;
        let (JobStatus::Running, Some(count), Some(replica)) = (document.status, runs, replica) else { return Ok(()) };
        let ended: HashSet<usize> = stored.runs.iter().map(|(index, _)| *index).collect();
        for index in (0..count).filter(|index| !ended.contains(index)) {
            let request_id = if count > 1 { RequestId::of_run(id, index) } else { id.into() };
            let failure = Failure::new(
                kind,
                format!("the API's replica {replica}, where the job went on, did not say in time what became of this run"),
            );
            let outcome = Outcome::failed(request_id, document.tool.clone(), document.target.clone(), failure);
            self.0.store.put_run(&document, index, &RunEnd { attempt: 0, seq: 0, outcome }).await;
        }
        let status = match kind {
            FailureKind::Cancelled => JobStatus::Cancelled,
            // It had not begun: whoever was ending it as it waited has gone.
            _ if count == 0 && document.expires_at.is_some_and(|at| at <= Timestamp::now()) => JobStatus::Expired,
            _ if count == 0 && document.results.is_empty() => JobStatus::Cancelled,
            _ => JobStatus::Finished,
        };
        let document = JobDocument { status, finished_at: Some(Timestamp::now()), ..document };
        let end = State { document, runs, replica: None, deliver, refreshed };
        if self.call_back(&end, Patience::Little).await && self.0.store.put_end(&end, stored.sequence).await? {
            tracing::warn!(job.id = %id, %replica, "a job was ended in the place of its replica");
        }
        Ok(())
    }
}
