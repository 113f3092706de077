//! Schedules: jobs that run again and again, or once at a time.
//!
//! A schedule lies in bucket SCHEDULES. The broker keeps the time: of each schedule one message waits in stream LATER, for its next firing alone
//! (`@at`); whoever takes that firing (`firing`) puts the next one there. The broker's own repeating schedules are not used, for what
//! nats-server 2.15.1 does with them: killed, it forgets an overdue `@every` or cron without a word and counts `@every` anew from its start, where
//! an overdue `@at` comes at once; a cron whose zone's clock is put forward by an hour passes over times that there are; and one whose clock is
//! put back comes once or twice, as it happens. Nor does it tell when a firing was due. So [`trigger`] computes the times.
//!
//! What is taken away in LATER may come back when the broker is killed, so a message there is only ever a reminder: the bucket says what is due.

pub(crate) mod results;
pub(crate) mod trigger;

use std::fmt;
use std::time::Duration;

use async_nats::header::{NATS_MESSAGE_TTL, NATS_SCHEDULE, NATS_SCHEDULE_TARGET, NATS_SCHEDULE_TTL};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{Context, kv};
use data_encoding::HEXLOWER;
use probeops_shared::ids::JobId;
use probeops_shared::problem::Code;
use probeops_shared::selector::Selector;
use probeops_shared::subjects::{self, ANY, broker, storage};
use probeops_shared::timestamp::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::access::Principal;
use crate::broker::Broker;
use crate::broker::last::{last_of_each, next_of};
use crate::callbacks::HeaderView;
use crate::jobs::{JobRequest, owner};
use crate::later::rights::PrincipalRef;
use crate::problem::{Asked, Problem, ProblemDocument};
use trigger::Trigger;

/// How many schedules one principal may have.
const SCHEDULES_MAX: usize = 100;
/// How large one may be, in bytes.
const SCHEDULE_BYTES_MAX: usize = 16 * 1024;
/// How long the mark of one that was deleted is kept.
const DELETED_KEPT: Duration = Duration::from_mins(1);
/// How many entries are read at once.
const READ_AT_ONCE: usize = 256;
/// How often a change tries again when somebody else wrote the schedule in between.
const WRITES_MAX: usize = 5;
/// How long a firing waits for somebody to take it; after that the sweep puts it there again.
const FIRING_KEPT: &str = "1h";
/// How long what takes a reminder's place is kept: as short as the broker has it.
const NOTHING_KEPT: &str = "1s";
/// How long after a firing is due it is overdue, unless the schedule says otherwise.
pub(crate) const OVERDUE_AFTER_MS: u64 = 60_000;
/// The longest that it may say.
pub(crate) const OVERDUE_AFTER_MS_MAX: u64 = 24 * 3_600_000;
/// The longest that a firing may be put off by chance.
pub(crate) const JITTER_MS_MAX: u64 = 3_600_000;

/// What becomes of a firing that is overdue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Overdue {
    /// It is not run.
    #[default]
    Drop,
    /// One is run, however many there were.
    RunOnce,
}

/// A schedule as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Schedule {
    pub(crate) id: String,
    /// Whose it is.
    pub(crate) caller: String,
    /// How to find what he may do when it is due.
    pub(crate) principal: PrincipalRef,
    /// The request of its jobs, as it was given.
    pub(crate) job: Map<String, Value>,
    pub(crate) trigger: Trigger,
    pub(crate) jitter_ms: u64,
    pub(crate) overdue: Overdue,
    pub(crate) overdue_after_ms: u64,
    pub(crate) paused: bool,
    /// Why it does not go on, though nobody paused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) suspended: Option<String>,
    pub(crate) created_at: Timestamp,
    /// The firing that is waited for; none when there will be none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) next_due: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last: Option<Last>,
    /// The firing of which the last one came: it is the same unless several were missed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_reminded: Option<Timestamp>,
}

/// What became of the last firing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "LastFiring")]
pub(crate) struct Last {
    /// When it was due.
    pub(crate) due: Timestamp,
    /// When it was taken.
    pub(crate) fired_at: Timestamp,
    /// The job that it became.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) job: Option<JobId>,
    /// Why it was not to be run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) skipped: Option<Skipped>,
    /// Why it could not be run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) refused: Option<ProblemDocument>,
}

/// Why a firing was not to be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Skipped {
    /// Its time was over, or that of the next one had come.
    Overdue,
}

/// What the message says that waits in the broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reminder {
    pub(crate) owner: String,
    pub(crate) id: String,
    pub(crate) due: Timestamp,
}

/// A schedule.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Schedule")]
pub(crate) struct ScheduleView {
    /// Its id.
    id: String,
    /// Whose it is; its jobs run with what he may do then.
    caller: String,
    /// The tool.
    tool: String,
    /// The target in its normal form.
    target: String,
    /// The options, defaults included; what is secret of them is replaced by `***`.
    parameters: Map<String, Value>,
    /// From where.
    from: Vec<Selector>,
    /// What waiting for nodes and running may take together, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    /// Whom the end of each job is told.
    #[serde(skip_serializing_if = "Option::is_none")]
    callback: Option<ScheduleCallback>,
    /// When it is due, once.
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<Timestamp>,
    /// After how long it is due again, from when it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    every: Option<String>,
    /// When it is due: second, minute, hour, day of the month, month, day of the week.
    #[serde(skip_serializing_if = "Option::is_none")]
    cron: Option<String>,
    /// On whose clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    time_zone: Option<String>,
    /// By how much at most a firing is put off by chance, in milliseconds.
    jitter_ms: u64,
    /// What becomes of a firing that is overdue.
    overdue: Overdue,
    /// How long after it is due that is, in milliseconds.
    overdue_after_ms: u64,
    /// Whether it was paused.
    paused: bool,
    /// Why it does not go on, though nobody paused it: its owner's credential is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    suspended: Option<String>,
    /// When it was made.
    created_at: Timestamp,
    /// When it is due next, before jitter; absent when it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_due: Option<Timestamp>,
    /// What became of its last firing; absent when there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<Last>,
}

/// A callback as it is shown: without what only its receiver may know. Each job's has the id of its own delivery.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct ScheduleCallback {
    /// Where, without the query.
    url: String,
    /// The secret that signs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_id: Option<String>,
    /// The header that is sent with it; its value is `***`.
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<HeaderView>,
    /// How long it is tried, in milliseconds.
    max_age_ms: u64,
}

impl Schedule {
    /// As it is shown. Its request was understood when it was made.
    pub(crate) fn view(&self) -> Result<ScheduleView, Problem> {
        let request = self.request()?;
        let callback = request.callback.as_ref().map(|callback| {
            let shown = callback.view(JobId::default());
            ScheduleCallback { url: shown.url, secret_id: shown.secret_id, header: shown.header, max_age_ms: shown.max_age_ms }
        });
        let (mut at, mut every, mut cron, mut time_zone) = (None, None, None, None);
        match self.trigger.clone() {
            Trigger::At(time) => at = Some(time),
            Trigger::Every(text) => every = Some(text),
            Trigger::Cron { pattern, time_zone: zone } => (cron, time_zone) = (Some(pattern), Some(zone)),
        }
        Ok(ScheduleView {
            id: self.id.clone(),
            caller: self.caller.clone(),
            tool: request.spec.tool().as_str().to_owned(),
            target: request.spec.target(),
            parameters: request.spec.shown_parameters(),
            from: request.from,
            timeout_ms: request.timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
            callback,
            at,
            every,
            cron,
            time_zone,
            jitter_ms: self.jitter_ms,
            overdue: self.overdue,
            overdue_after_ms: self.overdue_after_ms,
            paused: self.paused,
            suspended: self.suspended.clone(),
            created_at: self.created_at,
            next_due: self.next_due,
            last: self.last.clone(),
        })
    }

    /// What its jobs ask for.
    pub(crate) fn request(&self) -> Result<JobRequest, Problem> {
        let request = crate::routes::scheduled_job(self.job.clone())?;
        Ok(JobRequest { schedule: Some(self.id.clone()), ..request })
    }

    /// The job of a firing: the same however often the firing is taken.
    pub(crate) fn job_of(&self, due: Timestamp) -> JobId {
        let hash = self.hash(due, b"job");
        let mut random = [0; 10];
        random.iter_mut().zip(hash).for_each(|(byte, hashed)| *byte = hashed);
        JobId::of(due, random)
    }

    /// When a firing is to come: as far after it is due as chance puts it, which is always the same for it.
    pub(crate) fn comes_at(&self, due: Timestamp) -> Timestamp {
        let hash = self.hash(due, b"jitter");
        let chance = hash.iter().take(8).fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
        due.plus(Duration::from_millis(chance % (self.jitter_ms + 1)))
    }

    fn hash(&self, due: Timestamp, what: &[u8]) -> [u8; 32] {
        Sha256::new().chain_update(&self.id).chain_update(due.unix_ms().to_be_bytes()).chain_update(what).finalize().into()
    }

    /// When it is due next after this.
    pub(crate) fn due_after(&self, after: Timestamp) -> Option<Timestamp> {
        self.trigger.next_after(after, self.created_at)
    }

    /// Whether it is over for good: it was due for the last time.
    fn is_over(&self) -> bool {
        self.next_due.is_none() && !self.paused && self.suspended.is_none()
    }

    fn key(&self) -> String {
        key(&owner(&self.caller), &self.id)
    }
}

fn key(owner: &str, id: &str) -> String {
    format!("{owner}.{id}")
}

/// The schedules of all principals.
#[derive(Clone, Debug)]
pub(crate) struct Schedules {
    pub(super) jetstream: Context,
    bucket: kv::Store,
}

impl Schedules {
    /// Finds the bucket.
    pub(crate) async fn start(broker: &Broker) -> Result<Self, String> {
        let jetstream = broker.jetstream();
        let bucket = jetstream.get_key_value(storage::SCHEDULES).await;
        let bucket = bucket.map_err(|error| format!("{} cannot be used: {error} (was the broker provisioned?)", storage::SCHEDULES))?;
        Ok(Self { jetstream, bucket })
    }

    /// Makes one: `schedule` has no id and is not due yet.
    pub(crate) async fn create(&self, schedule: Schedule) -> Result<Schedule, Problem> {
        if self.of(&owner(&schedule.caller)).await?.len() >= SCHEDULES_MAX {
            return Err(Problem::new(Code::Conflict, format!("you have {SCHEDULES_MAX} schedules already; delete one that is not used")));
        }
        let id = format!("sch_{}", HEXLOWER.encode(&rand::random::<[u8; 10]>()));
        let next_due = if schedule.paused { None } else { schedule.due_after(schedule.created_at) };
        let schedule = Schedule { id, next_due, ..schedule };
        let value = serde_json::to_vec(&schedule).map_err(|error| unavailable(&error))?;
        if value.len() > SCHEDULE_BYTES_MAX {
            let detail = format!(
                "the job of a schedule may have {SCHEDULE_BYTES_MAX} bytes with everything that is kept of it, not {}",
                value.len()
            );
            return Err(Problem::new(Code::TooLarge, detail));
        }
        self.bucket.create(schedule.key(), value.into()).await.map_err(|error| unavailable(&error))?;
        if let Err(error) = self.remind(&schedule).await {
            // Who is told that it was not made must not find it.
            drop(self.bucket.purge_with_ttl(schedule.key(), DELETED_KEPT).await);
            return Err(unavailable(&error));
        }
        Ok(schedule)
    }

    /// A page of a principal's schedules by id, and where to go on. An admin sees everybody's.
    pub(crate) async fn list(&self, principal: &Principal) -> Result<Vec<Schedule>, Problem> {
        let of = if principal.oversees() { ANY.to_owned() } else { owner(&principal.name) };
        let mut schedules = self.of(&of).await?;
        schedules.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(schedules)
    }

    /// All schedules of an owner, or of everybody.
    pub(super) async fn of(&self, owner: &str) -> Result<Vec<Schedule>, Problem> {
        let (client, stream) = (self.jetstream.client(), broker::bucket_stream(storage::SCHEDULES));
        let subject = broker::bucket_key(storage::SCHEDULES, key(owner, ANY));
        // The bucket keeps what was there before, too: the last of each counts.
        let (mut found, mut from) = (std::collections::BTreeMap::new(), 1);
        loop {
            let (read, more) = next_of(&client, &stream, &subject, from, READ_AT_ONCE).await.map_err(|error| unavailable(&error))?;
            from = read.last().map_or(from, |last| last.sequence + 1);
            let nothing = read.is_empty();
            for entry in read {
                // A mark that one was deleted says nothing else.
                match serde_json::from_slice::<Schedule>(&entry.payload) {
                    Ok(schedule) => drop(found.insert(entry.subject, schedule)),
                    Err(_) => drop(found.remove(&entry.subject)),
                }
            }
            if nothing || !more {
                return Ok(found.into_values().collect());
            }
        }
    }

    /// One of a principal's.
    pub(crate) async fn find(&self, principal: &Principal, id: &str) -> Result<Schedule, Problem> {
        let shown: String = id.chars().take(64).collect();
        let missing = || Problem::new(Code::NotFound, format!("there is no schedule `{shown}` of yours; /v1/schedules lists them"));
        if !is_id(id) {
            return Err(missing());
        }
        let subject = broker::bucket_key(storage::SCHEDULES, key(ANY, id));
        let found = last_of_each(&self.jetstream.client(), &broker::bucket_stream(storage::SCHEDULES), &[subject]).await;
        let found = found.map_err(|error| unavailable(&error))?;
        let schedule: Schedule = found.iter().find_map(|last| serde_json::from_slice(&last.payload).ok()).ok_or_else(missing)?;
        if schedule.caller == principal.name || principal.oversees() {
            return Ok(schedule);
        }
        // The answer is that of one that never was; the trail knows better.
        Err(missing().asked(Asked { target: format!("schedule:{id}"), ..Asked::default() }))
    }

    /// One as it is now, with its revision.
    pub(super) async fn entry(&self, owner: &str, id: &str) -> Result<Option<(Schedule, u64)>, Problem> {
        let entry = self.bucket.entry(key(owner, id)).await.map_err(|error| unavailable(&error))?;
        Ok(entry.and_then(|entry| Some((serde_json::from_slice(&entry.value).ok()?, entry.revision))))
    }

    /// Writes one, if it is still at this revision.
    pub(super) async fn update(&self, schedule: &Schedule, revision: u64) -> Result<(), Problem> {
        let value = serde_json::to_vec(schedule).map_err(|error| unavailable(&error))?;
        self.bucket.update(schedule.key(), value.into(), revision).await.map(drop).map_err(|error| unavailable(&error))
    }

    /// Changes one and sees to its reminder; none when it is gone.
    pub(super) async fn change(&self, schedule: &Schedule, change: impl Fn(&mut Schedule)) -> Result<Option<Schedule>, Problem> {
        let mut failed = None;
        for _ in 0..WRITES_MAX {
            let Some((mut now, revision)) = self.entry(&owner(&schedule.caller), &schedule.id).await? else { return Ok(None) };
            change(&mut now);
            match self.update(&now, revision).await {
                Ok(()) => {
                    self.remind(&now).await.map_err(|error| unavailable(&error))?;
                    return Ok(Some(now));
                }
                Err(problem) => failed = Some(problem),
            }
        }
        Err(failed.unwrap_or_else(|| unavailable(&"somebody else changes it all the time")))
    }

    /// Pauses one of a principal's; firings until it is resumed are not made up for.
    pub(crate) async fn pause(&self, principal: &Principal, id: &str) -> Result<(Schedule, bool), Problem> {
        let schedule = self.find(principal, id).await?;
        let before = schedule.paused;
        let paused = self.change(&schedule, |schedule| {
            schedule.paused = true;
            schedule.next_due = None;
        });
        Ok((paused.await?.ok_or_else(|| gone(id))?, !before))
    }

    /// Lets one of a principal's go on that was paused or suspended.
    pub(crate) async fn resume(&self, principal: &Principal, id: &str) -> Result<(Schedule, bool), Problem> {
        let schedule = self.find(principal, id).await?;
        if !schedule.paused && schedule.suspended.is_none() {
            return Ok((schedule, false));
        }
        let resumed = self.change(&schedule, |schedule| {
            schedule.paused = false;
            schedule.suspended = None;
            schedule.next_due = schedule.due_after(Timestamp::now());
        });
        Ok((resumed.await?.ok_or_else(|| gone(id))?, true))
    }

    /// Deletes one of a principal's.
    pub(crate) async fn delete(&self, principal: &Principal, id: &str) -> Result<Schedule, Problem> {
        let schedule = self.find(principal, id).await?;
        self.forget(&schedule).await?;
        Ok(schedule)
    }

    async fn forget(&self, schedule: &Schedule) -> Result<(), Problem> {
        self.bucket.purge_with_ttl(schedule.key(), DELETED_KEPT).await.map_err(|error| unavailable(&error))?;
        self.remind(&Schedule { next_due: None, ..schedule.clone() }).await.map_err(|error| unavailable(&error))
    }

    /// Has the broker remind of the next firing, or of none.
    pub(super) async fn remind(&self, schedule: &Schedule) -> Result<(), String> {
        let message = PublishMessage::build();
        let message = match schedule.next_due {
            Some(due) => {
                let reminder = Reminder { owner: owner(&schedule.caller), id: schedule.id.clone(), due };
                message
                    .payload(serde_json::to_vec(&reminder).map_err(|error| error.to_string())?.into())
                    .header(NATS_SCHEDULE, format!("@at {}", schedule.comes_at(due)))
                    .header(NATS_SCHEDULE_TARGET, subjects::later_due(&schedule.id))
                    .header(NATS_SCHEDULE_TTL, FIRING_KEPT)
            }
            // The last message of a subject is the only one; this one goes by itself.
            None => message.header(NATS_MESSAGE_TTL, NOTHING_KEPT),
        };
        let sent = self.jetstream.send_publish(subjects::schedule(&schedule.id), message).await.map_err(|error| error.to_string())?;
        sent.await.map(drop).map_err(|error| error.to_string())
    }

    /// Puts back every reminder that is not there though its schedule waits for it, and forgets schedules that have been over for so long that
    /// nothing of them is kept.
    pub(super) async fn sweep(&self) -> Result<(), String> {
        let problem = |problem: Problem| problem.detail().to_owned();
        // What is due is read before what reminds of it: a firing that is taken meanwhile is only reminded of once too often.
        let schedules = self.of(ANY).await.map_err(problem)?;
        let waiting: Vec<Reminder> = self.reminders(&subjects::schedule(ANY)).await?;
        let fired: Vec<Reminder> = self.reminders(&subjects::later_due(ANY)).await?;
        let reminded: std::collections::HashSet<(&str, Timestamp)> =
            waiting.iter().chain(&fired).map(|reminder| (reminder.id.as_str(), reminder.due)).collect();
        for schedule in &schedules {
            match schedule.next_due {
                Some(due) if !reminded.contains(&(schedule.id.as_str(), due)) => {
                    // It may have been changed since.
                    let now = self.entry(&owner(&schedule.caller), &schedule.id).await.map_err(problem)?;
                    if let Some((now, _)) = now.filter(|(now, _)| now.next_due == Some(due)) {
                        tracing::warn!(schedule.id = now.id, %due, "the broker has lost the reminder of a schedule; it is put there again");
                        self.remind(&now).await?;
                    }
                }
                None if schedule.is_over() => {
                    let ended = schedule.last.as_ref().map_or(schedule.created_at, |last| last.fired_at);
                    if Timestamp::now().since(ended) > results::KEPT {
                        self.forget(schedule).await.map_err(problem)?;
                    }
                }
                Some(_) | None => {}
            }
        }
        Ok(())
    }

    async fn reminders(&self, subject: &str) -> Result<Vec<Reminder>, String> {
        let (mut found, mut from) = (Vec::new(), 1);
        loop {
            let (read, more) = next_of(&self.jetstream.client(), storage::LATER, subject, from, READ_AT_ONCE).await?;
            from = read.last().map_or(from, |last| last.sequence + 1);
            found.extend(read.iter().filter_map(|message| serde_json::from_slice(&message.payload).ok()));
            if read.is_empty() || !more {
                return Ok(found);
            }
        }
    }
}

fn is_id(id: &str) -> bool {
    id.len() <= 64 && id.strip_prefix("sch_").is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

fn gone(id: &str) -> Problem {
    Problem::new(Code::NotFound, format!("schedule `{id}` was deleted meanwhile"))
}

pub(super) fn unavailable(error: &dyn fmt::Display) -> Problem {
    Problem::new(Code::Unavailable, format!("schedules cannot be used now: {error}"))
}
