//! Takes schedules that are due from stream LATER, and makes each firing an ordinary job. All replicas share them; one that ends in the middle of a
//! firing is followed by another that takes it again, and finds or makes the same job.
//!
//! What a firing becomes is decided and kept first, with when the schedule is due next; then the broker is told of that, and only then is the job
//! made: so no firing is in the way of the next, and whoever takes it again goes on from there.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::{AckKind, Message};
use probeops_shared::ids::JobId;
use probeops_shared::problem::Code;
use probeops_shared::subjects::storage;
use probeops_shared::timestamp::Timestamp;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::Access;
use crate::audit::{Audit, Refusal};
use crate::broker::Broker;
use crate::jobs::{Ending, Jobs};
use crate::later::rights::{self, Refused};
use crate::later::schedules::{Last, Overdue, Reminder, Schedule, Schedules, Skipped, unavailable};
use crate::problem::{Asked, Problem};

/// How long after it was decided a firing is looked after whose taker may have ended; its records are kept for longer in any case.
const BEFORE_LOOKED_AT_WITHIN: Duration = Duration::from_mins(10);
/// How many firings are taken at once.
const AT_ONCE_MAX: usize = 64;
/// When to take a firing again that could not be made a job for the moment.
const TAKE_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How often it is looked whether the broker still reminds of every schedule.
const SWEEP_EVERY: Duration = Duration::from_mins(1);
/// How many firings that were missed one by one are kept as such; of more the last ones are not looked at.
const MISSED_MAX: usize = 100;

/// What takes firings.
#[derive(Clone, Debug)]
pub(crate) struct Firings {
    pub(crate) schedules: Schedules,
    pub(crate) jobs: Jobs,
    pub(crate) access: Access,
    pub(crate) audit: Audit,
}

impl Firings {
    /// Takes firings until told to stop; those that are being taken then end in `tasks`.
    pub(crate) async fn start(self, broker: &Broker, Ending { tasks, stop }: Ending<'_>) -> Result<(), String> {
        let [usual, spare] = storage::DUE;
        let jetstream = broker.jetstream();
        let due: PullConsumer = match jetstream.get_consumer_from_stream(usual, storage::LATER).await {
            Ok(due) => due,
            Err(error) => {
                let spare = jetstream.get_consumer_from_stream(spare, storage::LATER).await;
                spare.map_err(|_neither| format!("stream {} cannot be used: {error} (was the broker provisioned?)", storage::LATER))?
            }
        };
        let (firings, broker, room, tracked, stopped) =
            (self.clone(), broker.clone(), Arc::new(Semaphore::new(AT_ONCE_MAX)), tasks.clone(), stop.clone());
        drop(tasks.spawn(async move { stopped.run_until_cancelled(firings.take(due, broker, (room, tracked))).await }));
        let stopped: CancellationToken = stop.clone();
        drop(tasks.spawn(async move { stopped.run_until_cancelled(self.sweep()).await }));
        Ok(())
    }

    async fn sweep(self) {
        loop {
            if let Err(error) = self.schedules.sweep().await {
                tracing::warn!(error, "it could not be seen whether the broker reminds of every schedule");
            }
            // Replicas that start together do not look together for long.
            sleep(SWEEP_EVERY.mul_f64(0.75 + rand::random::<f64>() / 2.0)).await;
        }
    }

    async fn take(self, due: PullConsumer, broker: Broker, (room, tasks): (Arc<Semaphore>, TaskTracker)) {
        loop {
            // Nobody else takes places, so there are at least so many until they are taken here.
            drop(room.acquire().await);
            let take = |message: Message| {
                let Ok(place) = Arc::clone(&room).try_acquire_owned() else { return false };
                let firings = self.clone();
                drop(tasks.spawn(async move {
                    firings.handle(&message).await;
                    drop(place);
                }));
                true
            };
            broker.pull(&due, room.available_permits(), take).await;
        }
    }

    async fn handle(&self, message: &Message) {
        let kind = match serde_json::from_slice::<Reminder>(&message.payload) {
            Ok(reminder) => match self.fire(&reminder).await {
                Ok(()) => AckKind::Ack,
                Err(problem) => {
                    tracing::warn!(schedule.id = reminder.id, due = %reminder.due, %problem, "a firing is put off");
                    AckKind::Nak(Some(TAKE_AGAIN_AFTER))
                }
            },
            Err(error) => {
                tracing::error!(subject = %message.subject, %error, "what is due cannot be read; it is dropped");
                AckKind::Term
            }
        };
        // Lost, the firing is taken again, and becomes the same job.
        if let Err(error) = message.ack_with(kind).await {
            tracing::warn!(%error, "the broker could not be told what became of a firing");
        }
    }

    /// Makes a firing what it becomes. An error passes by itself: it is to be taken again.
    async fn fire(&self, reminder: &Reminder) -> Result<(), Problem> {
        let Some((schedule, revision)) = self.schedules.entry(&reminder.owner, &reminder.id).await? else { return Ok(()) };
        let (schedule, before) = if schedule.next_due == Some(reminder.due) {
            let now = Timestamp::now();
            let Decided { became, missed, next_due } = decide(&schedule, reminder.due, now);
            // One of long ago has been kept, and may have been forgotten since: it is not done again.
            let before = schedule.last.clone().filter(|last| now.since(last.fired_at) < BEFORE_LOOKED_AT_WITHIN);
            let decided = Schedule { next_due, last: Some(became), last_reminded: Some(reminder.due), ..schedule };
            self.schedules.update(&decided, revision).await?;
            for due in missed {
                let skipped = Last { due, fired_at: now, job: None, skipped: Some(Skipped::Overdue), refused: None };
                self.kept(&decided, &skipped).await?;
            }
            (decided, before)
        } else if schedule.last_reminded == Some(reminder.due) {
            // Somebody took it before, and did not come to its end.
            (schedule, None)
        } else {
            return Ok(());
        };
        self.schedules.remind(&schedule).await.map_err(|error| unavailable(&error))?;
        // The broker reminds of the last firing only: if whoever took the one before has ended, nobody is told of that again.
        if let Some(before) = before
            && !self.schedules.is_kept(&schedule, before.due).await.map_err(|error| unavailable(&error))?
        {
            self.end(&schedule, &before).await?;
        }
        match &schedule.last {
            Some(became) => self.end(&schedule, became).await,
            None => Ok(()),
        }
    }

    /// Has what was decided of a firing done and kept.
    async fn end(&self, schedule: &Schedule, became: &Last) -> Result<(), Problem> {
        match became.job {
            Some(id) => self.run(schedule, became, id).await,
            None => self.kept(schedule, became).await,
        }
    }

    async fn kept(&self, schedule: &Schedule, became: &Last) -> Result<(), Problem> {
        self.schedules.keep(schedule, became).await.map_err(|error| unavailable(&error))
    }

    /// Makes the job of a firing, with what its owner may do now.
    async fn run(&self, schedule: &Schedule, became: &Last, id: JobId) -> Result<(), Problem> {
        let refused = match self.submit(schedule, id).await {
            Ok(()) => return self.kept(schedule, became).await,
            // The API or the broker is at fault: that passes, and if it does not, it is too late one day.
            Err(problem) if problem.code() == Code::Unavailable && !is_given_up(schedule, became, Timestamp::now()) => return Err(problem),
            Err(problem) => problem,
        };
        let request = format!("schedule {}", schedule.id);
        let about = if refused.names_something() { refused.clone() } else { refused.clone().asked(asked(schedule)) };
        self.audit.refused(&Refusal { principal: Some(&schedule.caller), request_id: &id.to_string(), request: &request, problem: &about });
        let came = Last { job: None, refused: Some(refused.document(&id.to_string())), ..became.clone() };
        self.kept(schedule, &came).await?;
        let gone = refused.code() == Code::Unauthorized;
        let noted = self.schedules.change(schedule, |schedule| {
            if schedule.last.as_ref().is_some_and(|last| last.due == came.due) {
                schedule.last = Some(came.clone());
            }
            if gone {
                schedule.suspended = Some(refused.detail().to_owned());
                schedule.next_due = None;
            }
        });
        let noted = noted.await?;
        if gone && noted.is_some() {
            let (target, why) = (format!("schedule:{}", schedule.id), format!("schedule suspended: {}", refused.detail()));
            self.audit.changed(&schedule.caller, &id.to_string(), target, why);
        }
        Ok(())
    }

    async fn submit(&self, schedule: &Schedule, id: JobId) -> Result<(), Problem> {
        let principal = rights::present(&self.access, &schedule.principal).await.map_err(|refused| match refused {
            Refused::Never(why) => Problem::bad_credential(why),
            Refused::Unknown(why) => Problem::new(Code::Unavailable, why),
        })?;
        self.jobs.submit_as(&principal, schedule.request()?, id).await
    }
}

/// What a firing becomes, and what comes after it.
#[derive(Debug, PartialEq)]
struct Decided {
    became: Last,
    /// Earlier ones that nobody took.
    missed: Vec<Timestamp>,
    next_due: Option<Timestamp>,
}

/// Of all that have come until now only one is run: the last one, unless that is overdue and overdue ones are dropped.
fn decide(schedule: &Schedule, due: Timestamp, now: Timestamp) -> Decided {
    let (mut last, mut missed) = (due, Vec::new());
    let mut next_due = schedule.due_after(due);
    while let Some(next) = next_due.filter(|next| schedule.comes_at(*next) <= now) {
        missed.push(last);
        last = next;
        if missed.len() >= MISSED_MAX {
            next_due = schedule.due_after(now);
            break;
        }
        next_due = schedule.due_after(next);
    }
    let runs = schedule.overdue == Overdue::RunOnce || !is_overdue(schedule, last, now);
    let (job, skipped) = if runs { (Some(schedule.job_of(last)), None) } else { (None, Some(Skipped::Overdue)) };
    Decided { became: Last { due: last, fired_at: now, job, skipped, refused: None }, missed, next_due }
}

fn is_overdue(schedule: &Schedule, due: Timestamp, now: Timestamp) -> bool {
    now.since(schedule.comes_at(due)) > Duration::from_millis(schedule.overdue_after_ms)
}

/// Whether a firing that could not be made a job is not tried any more. One that is run although it was overdue when it was taken has as long from
/// then as any other has from when it was due.
fn is_given_up(schedule: &Schedule, became: &Last, now: Timestamp) -> bool {
    match schedule.overdue {
        Overdue::Drop => is_overdue(schedule, became.due, now),
        Overdue::RunOnce => now.since(became.fired_at) > Duration::from_millis(schedule.overdue_after_ms),
    }
}

fn asked(schedule: &Schedule) -> Asked {
    let text = |name: &str| schedule.job.get(name).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
    Asked { tool: text("tool"), target: text("target") }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;
    use crate::later::rights::PrincipalRef;
    use crate::later::schedules::trigger::Trigger;

    const START: i64 = 1_800_000_000_000;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_unix_ms(START + second * 1_000).unwrap()
    }

    fn minutely(overdue: Overdue, jitter_ms: u64) -> Schedule {
        Schedule {
            id: "sch_1".to_owned(),
            caller: "key:a".to_owned(),
            principal: PrincipalRef::Key("a".to_owned()),
            job: Map::new(),
            trigger: Trigger::Every("1m".to_owned()),
            jitter_ms,
            overdue,
            overdue_after_ms: 10_000,
            paused: false,
            suspended: None,
            created_at: at(0),
            next_due: Some(at(60)),
            last: None,
            last_reminded: None,
        }
    }

    fn decided(overdue: Overdue, now: Timestamp) -> (Timestamp, bool, Vec<Timestamp>, Option<Timestamp>) {
        let Decided { became, missed, next_due } = decide(&minutely(overdue, 0), at(60), now);
        assert_ne!(became.job.is_some(), became.skipped.is_some());
        (became.due, became.job.is_some(), missed, next_due)
    }

    #[test]
    fn of_all_that_were_due_one_is_run_and_only_in_time_unless_it_says_otherwise() {
        for overdue in [Overdue::Drop, Overdue::RunOnce] {
            assert_eq!(decided(overdue, at(61)), (at(60), true, vec![], Some(at(120))));
            assert_eq!(decided(overdue, at(189)), (at(180), true, vec![at(60), at(120)], Some(at(240))), "the last is in time");
        }
        assert_eq!(decided(Overdue::Drop, at(80)), (at(60), false, vec![], Some(at(120))));
        assert_eq!(decided(Overdue::RunOnce, at(80)), (at(60), true, vec![], Some(at(120))));
        assert_eq!(decided(Overdue::RunOnce, at(199)), (at(180), true, vec![at(60), at(120)], Some(at(240))));
        let (_, _, missed, next_due) = decided(Overdue::Drop, at(60 * 10_000 + 30));
        assert_eq!((missed.len(), next_due), (MISSED_MAX, Some(at(60 * 10_001))), "a long time is not counted through");
    }

    #[test]
    fn what_cannot_be_made_a_job_is_tried_for_as_long_as_it_may_be_late() {
        let given_up = |overdue, fired: i64, now: i64| {
            let became = Last { due: at(60), fired_at: at(fired), job: None, skipped: None, refused: None };
            is_given_up(&minutely(overdue, 0), &became, at(now))
        };
        assert!(!given_up(Overdue::Drop, 69, 70) && given_up(Overdue::Drop, 69, 71), "never later than it may be");
        assert!(!given_up(Overdue::RunOnce, 90, 100) && given_up(Overdue::RunOnce, 90, 101), "it was overdue when it was taken");
    }

    #[test]
    fn chance_puts_a_firing_off_by_the_same_each_time_and_its_job_is_the_same() {
        let schedule = minutely(Overdue::Drop, 5_000);
        let offs: std::collections::BTreeSet<Duration> = (1..50).map(|n| schedule.comes_at(at(60 * n)).since(at(60 * n))).collect();
        assert!(offs.len() > 30 && offs.iter().all(|off| off.as_millis() <= 5_000), "{offs:?}");
        assert_eq!(schedule.comes_at(at(60)), minutely(Overdue::Drop, 5_000).comes_at(at(60)));
        assert_eq!(schedule.job_of(at(60)), minutely(Overdue::RunOnce, 0).job_of(at(60)));
        assert_ne!(schedule.job_of(at(60)), schedule.job_of(at(120)));
        assert_eq!(serde_json::to_value(Overdue::RunOnce).unwrap(), json!("run_once"));
    }
}
