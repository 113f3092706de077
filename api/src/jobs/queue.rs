//! Jobs that wait for a node (`"when": "online"`).
//!
//! Such a job lies in stream LATER until it begins, is cancelled, or has waited long enough. Replicas share what lies there: each holds some of it
//! in memory, says to the broker that it still does, and looks again whenever the nodes that are there change. What one holds when it ends comes to
//! another. Where more wait than are held, the oldest go back for a while, so that one that could run never waits behind those that cannot.
//!
//! A job begins by replacing the state `queued` that was read and no other: so of a start, a cancellation and the end of its time one wins, on
//! whatever replica.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use async_nats::header::{HeaderMap, HeaderValue, NATS_MESSAGE_TTL};
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::{AckKind, Message};
use probeops_shared::audit::{Record, Verdict};
use probeops_shared::ids::JobId;
use probeops_shared::job::{GRACE, Job};
use probeops_shared::outcome::{Failure, FailureKind, Outcome};
use probeops_shared::problem::Code;
use probeops_shared::subjects::{self, ANY, broker, storage};
use probeops_shared::timestamp::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::advance::Advance;
use super::callback::Patience;
use super::idempotency::Promise;
use super::store::{Open, State, Stored};
use super::{Came, How, Id, JobDocument, JobRequest, JobStatus, Jobs, Room, Submitted, accepted, admission, choose, document, owner};
use crate::access::{Access, Identity, Principal};
use crate::broker::room::filled;
use crate::callbacks::Callback;
use crate::later::rights::{self, PrincipalRef, Refused};
use crate::limits::Admitted;
use crate::problem::Problem;
use crate::roster::Roster;
use crate::trace::Context;

/// The longest that a job waits for a node.
pub(crate) const EXPIRES_IN_MAX: Duration = Duration::from_hours(7 * 24);
/// As long as it waits unless the caller says otherwise.
pub(crate) const EXPIRES_IN: Duration = Duration::from_hours(1);
/// How many jobs that wait are held here.
const HELD_MAX: usize = 2_000;
/// How many bytes of them, as they lie in the stream.
const HELD_BYTES_MAX: usize = 32 * 1024 * 1024;
/// How often a job that waits is looked at though no node is there.
const LOOKED_AT_EVERY: Duration = Duration::from_hours(1);
/// How long whoever queues a job may take to write its state.
const WRITTEN_WITHIN: Duration = Duration::from_secs(2);
/// How many of one principal may wait.
const QUEUED_OF_ONE_MAX: u64 = 5_000;
/// From when on the stream takes no more jobs, in percent of what it may take; what is left is for schedules.
const FILLED_PERCENT_MAX: u64 = 80;
/// How many may wait in all; it is less than the broker hands out at once, so that none is out of reach behind the others.
const QUEUED_MAX: u64 = 90_000;
/// How often those that are held are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often the broker is told of each that it is still held; half a minute's silence gives it to another.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// How soon one is tried again though nothing seems to have changed, and how soon one that was given back comes again at the earliest.
const AGAIN_AFTER: Duration = Duration::from_secs(30);
/// How many of those that wait without being held come again in a second.
const BACK_PER_SECOND: u64 = 200;
/// When to try again what failed.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// How many that waited go on here at once: a node that comes back is not flooded with all that waited for it.
const AT_ONCE_MAX: usize = 32;
/// How many are asked for at once.
const ASK_MAX: usize = 256;
/// How often they are counted.
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// How much longer than its job waits a message is kept, if nobody was there to end it.
const KEPT_AFTER: Duration = Duration::from_hours(24);
/// A state this old is written again before its stream forgets it.
const REFRESH_AFTER: Duration = Duration::from_hours(12);
/// How long ending a job that waits may take before another replica does it.
const ENDED_WITHIN: Duration = Duration::from_secs(30);

/// A job that waits, as it lies in stream LATER.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Waiting {
    /// Its first state.
    state: State,
    /// What to run, as a node is told.
    job: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    /// On whose behalf.
    principal: PrincipalRef,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
}

impl Waiting {
    fn id(&self) -> JobId {
        self.state.document.id
    }

    fn expires_at(&self) -> Timestamp {
        self.state.document.expires_at.unwrap_or_else(Timestamp::now)
    }

    fn request(&self) -> Result<JobRequest, String> {
        let job = Job::parse(self.job.to_string().as_bytes()).map_err(|rejected| rejected.invalid.to_string())?;
        Ok(JobRequest {
            spec: job.spec,
            from: self.state.document.from.clone(),
            timeout: self.timeout_ms.map(Duration::from_millis),
            callback: self.state.deliver.clone(),
            traceparent: self.traceparent.as_deref().and_then(Context::kept),
            idempotency: None,
            expires_in: None,
            schedule: self.state.document.schedule.clone(),
        })
    }
}

/// A job that is held here.
#[derive(Debug)]
struct Held {
    message: Message,
    waiting: Arc<Waiting>,
    /// When it was last tried, or came here.
    attempted: Instant,
    /// Since when.
    since: Instant,
    /// When the broker was last told.
    said: Instant,
    /// The nodes that were there when it was last tried.
    tried_with: Option<u64>,
    /// When it is tried again in any case.
    again_at: Instant,
    /// Whether it is being tried.
    busy: bool,
}

/// What became of trying a job.
#[derive(Clone, Copy, Debug)]
enum Tried {
    /// It waits no longer.
    Over,
    /// It waits on, so long at least.
    Waits(Duration),
}

impl Jobs {
    /// Queues a job until a node is there that fits.
    pub(super) async fn queue(
        &self,
        principal: &Principal,
        request: JobRequest,
        how: How,
        (id, expires_in): (Id, Duration),
    ) -> Result<Submitted, Problem> {
        let who = PrincipalRef::of(principal)?;
        self.admit(principal, &request).await?;
        self.check_room_to_wait(principal).await?;
        // What it takes beyond the first run is known when it begins.
        let (allowance, payment) = self.0.limits.pay(principal, 1).await?;
        let (id, advance) = match self.promised(principal, id, request.idempotency.as_ref(), payment).await? {
            Promise::Given(id, advance) => (id, advance),
            Promise::GivenBefore(id) => return self.join_made(principal, id, how).await,
        };
        let document = document(principal, &request, id, Vec::new());
        let expires_at = document.created_at.plus(expires_in);
        let expires_at = who.expires_at().map_or(expires_at, |ends| ends.min(expires_at));
        let document = JobDocument { status: JobStatus::Queued, expires_at: Some(expires_at), ..document };
        let job = serde_json::from_slice(&Job { request_id: id.into(), spec: request.spec }.to_bytes()).unwrap_or_default();
        let traceparent = request.traceparent.as_ref().map(Context::traceparent);
        let deliver = request.callback.map(|callback| Callback { traceparent: traceparent.clone(), ..callback });
        let state = State { document, runs: Some(0), replica: None, deliver, refreshed: 0 };
        let timeout_ms = request.timeout.and_then(|timeout| u64::try_from(timeout.as_millis()).ok());
        let waiting = Waiting { state: state.clone(), job, timeout_ms, principal: who, traceparent };
        let jobs = self.clone();
        // What is stored is recorded, though its caller hang up meanwhile.
        let stored = self.0.tasks.spawn(async move {
            let record = accepted(&waiting.state.document, jobs.0.broker.caller().to_string());
            let detail = format!("{}, when a node is online, until {}", record.detail, waiting.expires_at());
            let record = Record { detail, ..record };
            let payment = jobs.recorded(record.clone(), advance).await?;
            let put = jobs.put_waiting(&waiting).await;
            jobs.paid_if_begun(put, payment, record).await.map_err(|error| unqueued(&error))
        });
        let stored = stored.await;
        let Some(sequence) = stored.unwrap_or_else(|_| Err(unqueued("it met a fault of this API")))? else {
            // Another call with the same key was faster.
            return self.join_made(principal, id, how).await;
        };
        if how == How::Wait(Duration::ZERO) {
            return Ok(Submitted { id, answer: Came::SoFar(state.document.to_bytes()), allowance, replayed: false });
        }
        let so_far = state.document.to_bytes();
        let Ok(live) = self.elsewhere(&Stored { state, sequence, runs: Vec::new(), late: Vec::new() }) else {
            // It is queued, whether it can be followed from here or not.
            return Ok(Submitted { id, answer: Came::SoFar(so_far), allowance, replayed: false });
        };
        let mut watcher = live.watch(None);
        let answer = match how {
            How::Watch { .. } => Came::Watched(watcher),
            How::Wait(wait) => match timeout(wait, watcher.end()).await {
                Ok(Some(document)) => Came::Over(document),
                Ok(None) | Err(_) => Came::SoFar(self.get(principal, id).await?.to_bytes()),
            },
        };
        Ok(Submitted { id, answer, allowance, replayed: false })
    }

    /// Refuses one more job that waits where too many of this principal do, so that nobody takes the place of all others, and where the queue is
    /// about to be full: its stream would let the oldest go.
    async fn check_room_to_wait(&self, principal: &Principal) -> Result<(), Problem> {
        let filter = subjects::later_online(owner(&principal.name), ANY);
        let filled = filled(&self.0.broker.jetstream().client(), storage::LATER, &filter).await;
        let filled = filled
            .map_err(|error| Problem::new(Code::Unavailable, format!("the queue of jobs that wait cannot be looked at now: {error}")))?;
        if filled.subjects >= QUEUED_OF_ONE_MAX {
            let detail = format!(
                "{QUEUED_OF_ONE_MAX} jobs of yours wait for nodes, and no more are taken until some have begun; /v1/jobs?status=queued lists them"
            );
            return Err(Problem::new(Code::RateLimited, detail).retry_after(AGAIN_AFTER));
        }
        if filled.percent >= FILLED_PERCENT_MAX || self.0.metrics.queued() >= QUEUED_MAX {
            let detail = "so many jobs wait for nodes that no more are taken for the moment";
            return Err(Problem::new(Code::Unavailable, detail).retry_after(AGAIN_AFTER));
        }
        Ok(())
    }

    /// Stores a job that waits: first where it is taken from, for that is what has everything. The place of its state; none when it is there already.
    async fn put_waiting(&self, waiting: &Waiting) -> Result<Option<u64>, String> {
        let kept = waiting.expires_at().since(Timestamp::now()) + KEPT_AFTER;
        let headers = HeaderMap::from_iter([(NATS_MESSAGE_TTL, HeaderValue::from(kept.as_secs()))]);
        let payload = serde_json::to_vec(waiting).map_err(|error| error.to_string())?;
        let subject = subjects::later_online(owner(&waiting.state.document.caller), waiting.id());
        let sent = self.0.broker.jetstream().publish_with_headers(subject, headers, payload.into()).await;
        sent.map_err(|error| error.to_string())?.await.map_err(|error| error.to_string())?;
        let place = match self.0.store.replace(&waiting.state, 0).await {
            Ok(place) => place,
            Err(error) => {
                // Only its acknowledgement may have been lost; what is there waits.
                let place = self.store_of(waiting.id()).await?;
                if place.is_none() {
                    // Whoever asked is told that it failed, so it must not run.
                    let _tried = self.take_away(&waiting.state.document).await;
                    return Err(error);
                }
                place
            }
        };
        Ok(place)
    }

    /// Takes jobs that wait from the stream and begins with those for which a node is there, until told to stop.
    pub(crate) async fn take_queued(self, access: Access, stop: CancellationToken) {
        let (taken, messages) = mpsc::channel(ASK_MAX);
        tokio::select! {
            () = self.take(taken) => {}
            () = self.hold(access, messages) => {}
            () = stop.cancelled() => {}
        }
    }

    async fn online(&self) -> PullConsumer {
        loop {
            for name in storage::ONLINE {
                match self.0.broker.jetstream().get_consumer_from_stream(name, storage::LATER).await {
                    Ok(consumer) => return consumer,
                    Err(error) => tracing::warn!(%error, name, "jobs that wait for nodes cannot be taken (was the broker provisioned?)"),
                }
            }
            sleep(RETRY_AFTER).await;
        }
    }

    /// Hands on what waits, and counts it.
    async fn take(&self, taken: mpsc::Sender<Message>) {
        let mut online = self.online().await;
        let mut counted = Instant::now() - COUNT_EVERY;
        loop {
            if counted.elapsed() >= COUNT_EVERY
                && let Ok(info) = online.info().await
            {
                let count = info.num_pending + u64::try_from(info.num_ack_pending).unwrap_or_default();
                self.0.metrics.count_queued(count);
                counted = Instant::now();
            }
            if taken.reserve().await.is_err() {
                return;
            }
            self.0.broker.pull(&online, taken.capacity(), |message| taken.try_send(message).is_ok()).await;
        }
    }

    /// Holds what waits.
    async fn hold(&self, access: Access, mut messages: mpsc::Receiver<Message>) {
        let mut held: HashMap<JobId, Held> = HashMap::new();
        let room = Arc::new(Semaphore::new(AT_ONCE_MAX));
        let (tell, mut told) = mpsc::unbounded_channel();
        let mut look = interval(LOOK_EVERY);
        // Whether a node would do for anybody is known without asking what its owner may.
        let anybody = Principal::of(Arc::new(Identity {
            name: String::new(),
            scopes: vec![probeops_shared::access::Scope::Admin],
            limits: probeops_shared::access::Limits::default(),
            nodes: Vec::new(),
            expires_at: None,
        }));
        loop {
            tokio::select! {
                Some(message) = messages.recv() => self.keep(&mut held, message).await,
                Some((id, tried)) = told.recv() => match tried {
                    Tried::Over => drop(held.remove(&id)),
                    Tried::Waits(delay) => {
                        if let Some(held) = held.get_mut(&id) {
                            (held.busy, held.again_at) = (false, Instant::now() + delay);
                        }
                    }
                },
                _ = look.tick() => {
                    let nodes = if held.is_empty() { 0 } else { there(self.0.broker.roster()) };
                    for (id, held) in &mut held {
                        if held.said.elapsed() >= SAY_EVERY {
                            held.said = Instant::now();
                            say(&held.message, AckKind::Progress).await;
                        }
                        let expired = held.waiting.expires_at() <= Timestamp::now();
                        let due = held.tried_with != Some(nodes) || held.again_at <= Instant::now();
                        if held.busy || !(expired || due) {
                            continue;
                        }
                        // Now and then it is looked at though no node is there: its state may have to be written anew.
                        let old = held.attempted.elapsed() >= LOOKED_AT_EVERY;
                        let fits = expired || old || self.fits(&anybody, &held.waiting);
                        let place = fits.then(|| Arc::clone(&room).try_acquire_owned().ok()).flatten();
                        if fits && place.is_none() {
                            continue;
                        }
                        (held.tried_with, held.again_at) = (Some(nodes), Instant::now() + AGAIN_AFTER);
                        let Some(place) = place else { continue };
                        (held.busy, held.attempted) = (true, Instant::now());
                        let (jobs, access, waiting, message) = (self.clone(), access.clone(), Arc::clone(&held.waiting), held.message.clone());
                        let (tell, id) = (tell.clone(), *id);
                        drop(self.0.tasks.spawn(async move { jobs.attempt(&access, &waiting, &message, (place, id, tell)).await }));
                    }
                }
            }
        }
    }

    async fn keep(&self, held: &mut HashMap<JobId, Held>, message: Message) {
        let waiting: Waiting = match serde_json::from_slice(&message.payload) {
            Ok(waiting) => waiting,
            Err(error) => {
                tracing::error!(subject = %message.subject, %error, "a job that waits cannot be read; it is dropped");
                return say(&message, AckKind::Term).await;
            }
        };
        let id = waiting.id();
        let now = Instant::now();
        if let Some(known) = held.get_mut(&id) {
            // It was long silent here.
            (known.message, known.said) = (message, now);
            return;
        }
        let bytes: usize = held.values().map(|held| held.message.payload.len()).sum();
        if held.len() >= HELD_MAX || bytes > HELD_BYTES_MAX {
            let oldest = held.iter().filter(|(_, held)| !held.busy).min_by_key(|(_, held)| held.since).map(|(id, _)| *id);
            if let Some(oldest) = oldest.and_then(|id| held.remove(&id)) {
                let after = AGAIN_AFTER.max(Duration::from_secs(self.0.metrics.queued() / BACK_PER_SECOND));
                say(&oldest.message, AckKind::Nak(Some(after.mul_f64(0.8 + 0.4 * rand::random::<f64>())))).await;
            }
        }
        let waiting = Arc::new(waiting);
        drop(
            held.insert(id, Held { message, waiting, since: now, attempted: now, said: now, tried_with: None, again_at: now, busy: false }),
        );
    }

    /// Whether a node is there for it, whoever its owner is.
    fn fits(&self, anybody: &Principal, waiting: &Waiting) -> bool {
        let tool = waiting.state.document.tool.parse();
        tool.is_ok_and(|tool| choose::choose(self.0.broker.roster(), anybody, tool, &waiting.state.document.from).is_ok())
    }

    async fn attempt(
        &self,
        access: &Access,
        waiting: &Waiting,
        message: &Message,
        (place, id, tell): (OwnedSemaphorePermit, JobId, mpsc::UnboundedSender<(JobId, Tried)>),
    ) {
        let (tried, watcher) = match self.try_to_begin(access, waiting).await {
            Ok(watcher) => {
                if let Err(error) = self.take_away(&waiting.state.document).await {
                    tracing::warn!(job.id = %id, %error, "a job that waits no longer is still in its queue");
                } else {
                    say(message, AckKind::Ack).await;
                }
                (Tried::Over, watcher)
            }
            Err(delay) => (Tried::Waits(delay), None),
        };
        // Whoever held it may have stopped.
        let _stopped = tell.send((id, tried));
        if let Some(mut watcher) = watcher {
            drop(watcher.end().await);
        }
        drop(place);
    }

    /// Begins with a job that waits, or ends it; somebody who watches it where it has begun. Or how long it waits on.
    async fn try_to_begin(&self, access: &Access, waiting: &Waiting) -> Result<Option<super::Watcher>, Duration> {
        let later = |error: &dyn std::fmt::Display| {
            tracing::warn!(job.id = %waiting.id(), %error, "a job that waits cannot be begun now");
            RETRY_AFTER
        };
        let Some(stored) = self.0.store.read(waiting.id()).await.map_err(|error| later(&error))? else {
            if Timestamp::now().since(waiting.state.document.created_at) < WRITTEN_WITHIN {
                return Err(RETRY_AFTER);
            }
            // Its API ended before it could write it, or the stream has forgotten it.
            self.0.store.replace(&waiting.state, 0).await.map_err(|error| later(&error))?;
            return Err(Duration::ZERO);
        };
        if stored.state.document.status != JobStatus::Queued {
            return Ok(None);
        }
        // Where its state has changed meanwhile, it is looked at again: it may only have been written anew.
        let over = async |status, why| match self.end_queued(&stored, status, why).await {
            Ok(true) => Ok(None),
            Ok(false) => Err(RETRY_AFTER),
            Err(error) => Err(later(&error)),
        };
        if waiting.expires_at() <= Timestamp::now() {
            return over(JobStatus::Expired, None).await;
        }
        let refused = async |why: String| {
            self.0.audit.record(refusal(&stored.state.document, self.0.broker.caller().to_string(), &why));
            over(JobStatus::Finished, Some(why)).await
        };
        let principal = match rights::present(access, &waiting.principal).await {
            Ok(principal) => principal,
            Err(Refused::Unknown(why)) => return Err(later(&why)),
            Err(Refused::Never(why)) => return refused(why).await,
        };
        let request = match waiting.request() {
            Ok(request) => request,
            Err(why) => return refused(why).await,
        };
        let chosen = match choose::choose(self.0.broker.roster(), &principal, request.spec.tool(), &request.from) {
            Ok(chosen) => chosen,
            Err(problem) if matches!(problem.code(), Code::NoNodeAvailable | Code::NoSuchNode | Code::NoSuchRegion) => {
                self.refresh(&stored).await.map_err(|error| later(&error))?;
                return Err(AGAIN_AFTER);
            }
            Err(problem) => return refused(problem.detail().to_owned()).await,
        };
        let budget = request.spec.budget();
        let start_within =
            match admission::check_target(&principal, &request.spec).and_then(|()| admission::start_within(request.timeout, budget)) {
                Ok(start_within) => start_within,
                Err(problem) => return refused(problem.detail().to_owned()).await,
            };
        let free = self.room_for(chosen.destinations.len()).map_err(|problem| later(&problem))?;
        let Admitted { destinations, held, payment, .. } =
            match self.0.limits.admit(&principal, request.spec.tool(), chosen.destinations, 1).await {
                Ok(admitted) => admitted,
                Err(problem) if matches!(problem.code(), Code::RateLimited | Code::Unavailable | Code::NoNodeAvailable) => {
                    return Err(RETRY_AFTER);
                }
                Err(problem) => return refused(problem.detail().to_owned()).await,
            };
        let room = Room { _free: free, _held: held };
        let document = JobDocument { status: JobStatus::Running, missing: chosen.missing, ..stored.state.document.clone() };
        // Its runs have as long from now as those of any other from its beginning.
        let now = JobDocument { created_at: Timestamp::now(), ..document.clone() };
        let runs = self.runs(&principal, &request, &now, destinations, start_within);
        let ends_by = now.created_at.plus(start_within + budget + 2 * GRACE);
        let (deliver, refreshed) = (stored.state.deliver.clone(), stored.state.refreshed);
        let state = State { document, runs: Some(runs.len()), replica: Some(self.0.broker.caller().clone()), deliver, refreshed };
        let record = started(&state.document, self.0.broker.caller().to_string());
        let payment = self.recorded(record.clone(), Advance { payment, key: None }).await.map_err(|problem| later(&problem))?;
        let begun = self.begin(state, runs, (ends_by, stored.sequence), false, room).await;
        let begun = self.paid_if_begun(begun, payment, record).await.map_err(|error| later(&error))?;
        begun.map(Some).ok_or(RETRY_AFTER)
    }

    /// Writes the state of a job that waits again, if its stream is to forget it before long.
    async fn refresh(&self, stored: &Stored) -> Result<(), String> {
        let State { document, refreshed, .. } = &stored.state;
        let written_at = document.created_at.plus(REFRESH_AFTER * *refreshed);
        if written_at.plus(REFRESH_AFTER) > Timestamp::now() {
            return Ok(());
        }
        let state = State { refreshed: refreshed + 1, ..stored.state.clone() };
        self.0.store.replace(&state, stored.sequence).await.map(drop)
    }

    /// Ends a job that waits, with why it was not run where that is to be said. False when it waits no longer.
    async fn end_queued(&self, stored: &Stored, status: JobStatus, why: Option<String>) -> Result<bool, String> {
        let State { document, deliver, refreshed, .. } = stored.state.clone();
        let denied = |why| {
            Outcome::failed(document.id.into(), document.tool.clone(), document.target.clone(), Failure::new(FailureKind::Denied, why))
        };
        let results = why.map(denied).into_iter().collect();
        let document = JobDocument { status, finished_at: Some(Timestamp::now()), results, ..document };
        let end = State { document, runs: None, replica: None, deliver, refreshed };
        if end.deliver.is_none() {
            return self.0.store.replace(&end, stored.sequence).await.map(|place| place.is_some());
        }
        // Its callback is queued before its end is stored, as that of any job; so it must be ours before that, and if we end, another's.
        let (me, now) = (self.0.broker.caller().clone(), Timestamp::now());
        let document = JobDocument { status: JobStatus::Running, ..end.document.clone() };
        let claim = State { document, runs: Some(0), replica: Some(me.clone()), ..end.clone() };
        let open = Open { id: end.document.id, replica: me, begun_at: now, ends_by: now.plus(ENDED_WITHIN) };
        let Some(place) = self.0.store.put_now(&claim, &open, stored.sequence).await? else { return Ok(false) };
        if !self.call_back(&end, Patience::AllThereIs).await {
            return Ok(true);
        }
        self.0.store.put_end(&end, place).await
    }

    /// Ends a job that waits because its owner wants it; none when it waits no longer.
    pub(super) async fn cancel_queued(&self, stored: &Stored) -> Result<Option<JobDocument>, Problem> {
        let id = stored.state.document.id;
        let unavailable = |why: String| Problem::new(Code::Unavailable, format!("job `{id}` could not be cancelled: {why}"));
        let (jobs, ending) = (self.clone(), stored.clone());
        // What has been begun is done, though its caller hang up meanwhile.
        let ended = self.0.tasks.spawn(async move { jobs.end_queued(&ending, JobStatus::Cancelled, None).await }).await;
        if !ended.unwrap_or_else(|_| Err("it met a fault of this API".to_owned())).map_err(unavailable)? {
            return Ok(None);
        }
        if let Err(error) = self.take_away(&stored.state.document).await {
            // Whoever takes it sees that it waits no longer.
            tracing::warn!(job.id = %id, %error, "a job that was cancelled is still in its queue");
        }
        let stored = self.0.store.read(id).await.map_err(unavailable)?;
        Ok(stored.map(Stored::into_document))
    }

    /// The place of a job's state, if it is there.
    async fn store_of(&self, id: JobId) -> Result<Option<u64>, String> {
        Ok(self.0.store.read(id).await?.map(|stored| stored.sequence))
    }

    /// Takes a job out of the queue.
    async fn take_away(&self, job: &JobDocument) -> Result<(), String> {
        let filter = serde_json::json!({"filter": subjects::later_online(owner(&job.caller), job.id)}).to_string();
        let client = self.0.broker.jetstream().client();
        let asked =
            client.request(broker::lent(&broker::stream_purge(storage::LATER)), filter.into()).await.map_err(|error| error.to_string())?;
        let answer: Value = serde_json::from_slice(&asked.payload).map_err(|error| error.to_string())?;
        match answer.get("error") {
            None => Ok(()),
            Some(error) => Err(error.to_string()),
        }
    }
}

/// What changes when a node comes or goes, or what it takes.
fn there(roster: &Roster) -> u64 {
    roster.look(|nodes| {
        let mut hasher = DefaultHasher::new();
        for seen in nodes.all() {
            if let Some(beat) = seen.beat.filter(|beat| !beat.draining) {
                (&seen.grant.id, seen.grant.revoked_at.is_some(), beat.tools.len()).hash(&mut hasher);
            }
        }
        hasher.finish()
    })
}

/// Lost, it is as if it had not been said: the job comes again.
async fn say(message: &Message, kind: AckKind) {
    if let Err(error) = message.ack_with(kind).await {
        tracing::debug!(%error, "the queue of jobs that wait could not be told what became of one");
    }
}

fn unqueued(error: &str) -> Problem {
    Problem::new(Code::Unavailable, format!("the job could not be queued: {error}"))
}

fn started(document: &JobDocument, caller: String) -> Record {
    let record = accepted(document, caller);
    Record {
        time: Timestamp::now(),
        verdict: Verdict::Started,
        detail: format!("it waited for a node, and begins {}", record.detail),
        ..record
    }
}

fn refusal(document: &JobDocument, caller: String, why: &str) -> Record {
    let record = accepted(document, caller);
    Record { time: Timestamp::now(), verdict: Verdict::Refused, detail: format!("it waited for a node, and is not run: {why}"), ..record }
}
