//! Jobs: from a request to a document, and back from stream JOBS.

mod admission;
mod advance;
mod callback;
mod choose;
mod detachable;
mod elsewhere;
mod idempotency;
mod late;
mod list;
pub(crate) mod live;
mod queue;
mod store;
mod takeover;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use probeops_shared::audit::{Record, Verdict};
use probeops_shared::ids::{JobId, RequestId};
use probeops_shared::job::{GRACE, Job};
use probeops_shared::outcome::Outcome;
use probeops_shared::problem::Code;
use probeops_shared::selector::Selector;
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::Spec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::Principal;
use crate::audit::Audit;
use crate::broker::{Broker, Destination, Dispatched, Run, Watched};
use crate::callbacks::{Callback, CallbackView, Callbacks, origin_of};
use crate::jobs::callback::Patience;
use crate::jobs::detachable::Detachable;
use crate::jobs::idempotency::Promise;
use crate::jobs::live::Live;
use crate::jobs::store::{Open, State, Store};
use crate::limits::{Admitted, Allowance, Held, Limits, LimitsDocument};
use crate::metrics::Metrics;
use crate::problem::{Asked, Problem};
use crate::trace::{Context, Tracer};

pub use choose::{Excluded, Explained, Explanation, NotChosen, Why};
pub use idempotency::Idempotency;
pub use list::{JobPage, JobSummary, Wanted};
pub use live::{Begun, Ended, EventId, Found, Kind, Next, Told, Watcher};
pub(crate) use queue::{EXPIRES_IN, EXPIRES_IN_MAX};
pub(crate) use store::{Stored, owner};

/// The longest a call waits for its job, and as long as it waits unless it says otherwise.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(60);
/// Most documents fit into so many bytes.
const DOCUMENT_BYTES_USUAL: usize = 1_000;
/// How many runs this API has going on at once; each holds a task and a token.
const RUNS_MAX: usize = 20_000;
/// How long the events of a job gather before they are written to the stream.
const EVENTS_WITHIN: Duration = Duration::from_millis(20);
/// How long a cancelled job may take to end.
const CANCELLED_WITHIN: Duration = Duration::from_secs(2);
/// When a full API may have room again.
const FULL_RETRY_AFTER: Duration = Duration::from_secs(1);

/// What a caller wants run.
#[derive(Clone, Debug)]
pub struct JobRequest {
    /// The tool, target and options.
    pub spec: Spec,
    /// From where.
    pub from: Vec<Selector>,
    /// What grace and budget together may take.
    pub timeout: Option<Duration>,
    /// Whom to tell its end.
    pub callback: Option<Callback>,
    /// Where in a trace the call is.
    pub traceparent: Option<Context>,
    /// What makes a call that is made again the same call.
    pub idempotency: Option<Idempotency>,
    /// How long it waits for a node; absent where it does not.
    pub expires_in: Option<Duration>,
    /// The schedule that asks for it.
    pub schedule: Option<String>,
}

/// A job, whether one node ran it or several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobDocument {
    /// Its id.
    pub id: JobId,
    /// The tool.
    pub tool: String,
    /// The target in its normal form.
    pub target: String,
    /// The options, defaults included; what is secret of them is replaced by `***`.
    pub parameters: Map<String, Value>,
    /// From where.
    pub from: Vec<Selector>,
    /// On whose behalf.
    pub caller: String,
    /// The schedule that made it; absent where somebody asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// Whether it goes on.
    pub status: JobStatus,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// Until when it waits for a node that fits, or would have; absent where it never waited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// When its last run ended; absent while it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// Whom its end is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback: Option<CallbackView>,
    /// One outcome for each run, in the order of the selectors; while it goes on, those there are. One that no node gave names the node that
    /// the run was for, where it was for one.
    pub results: Vec<Outcome>,
    /// Nodes that the selectors mean and that could not take the job when it was accepted: no run is for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<Excluded>,
    /// What nodes found that were thought lost and had been replaced, or given up: it came after the run was over. Absent when nothing did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub late: Vec<Outcome>,
}

impl JobDocument {
    /// The document without what nodes found.
    pub(crate) fn without_outcomes(&self) -> Self {
        Self { results: Vec::new(), late: Vec::new(), ..self.clone() }
    }

    /// The document as JSON.
    pub(crate) fn to_bytes(&self) -> Bytes {
        // Plain data can always be written.
        let mut written = Vec::with_capacity(DOCUMENT_BYTES_USUAL);
        if let Err(error) = serde_json::to_writer(&mut written, self) {
            tracing::error!(job.id = %self.id, %error, "a job could not be written");
        }
        written.into()
    }
}

impl JobStatus {
    /// All of them, and their words.
    pub const ALL: [(Self, &str); 5] = [
        (Self::Queued, "queued"),
        (Self::Running, "running"),
        (Self::Finished, "finished"),
        (Self::Cancelled, "cancelled"),
        (Self::Expired, "expired"),
    ];

    /// Whether nothing more will come of it.
    pub fn is_over(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

/// Whether a job goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    /// It waits for a node that fits (`"when": "online"`).
    Queued,
    /// Not every run has its outcome yet.
    Running,
    /// Every run has its outcome.
    Finished,
    /// It was ended before its time; every run has its outcome, if only that it was cancelled.
    Cancelled,
    /// It waited for a node until its time was over, and did not run.
    Expired,
}

/// How a caller wants his answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The job, finished or as far as it is after this long.
    Wait(Duration),
    /// Everything its nodes tell, as they tell it.
    Watch {
        /// Whether the job is to end when nobody watches it any more.
        cancel_on_disconnect: bool,
    },
}

/// The id of a job that is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Id {
    /// None yet.
    New,
    /// This one: it has no key.
    Given(JobId),
    /// That to which its call's key belongs, as it was written with this revision.
    Promised(JobId, u64),
}

/// A job that was accepted.
#[derive(Debug)]
pub struct Submitted {
    /// Its id.
    pub id: JobId,
    /// What the caller gets.
    pub answer: Came,
    /// What its principal has left of its rate; absent where it has none.
    pub allowance: Option<Allowance>,
    /// Whether an earlier call with the same key made it.
    pub replayed: bool,
}

/// What a caller gets of a job.
#[derive(Debug)]
pub enum Came {
    /// Its [`JobDocument`] as JSON: it is over.
    Over(Bytes),
    /// The same as far as it is.
    SoFar(Bytes),
    /// What its nodes tell.
    Watched(Watcher),
}

/// What a job takes as long as it goes on.
#[derive(Debug)]
struct Room {
    /// Of this API.
    _free: OwnedSemaphorePermit,
    /// Of the limits it meets.
    _held: Vec<Held>,
}

/// What tasks end with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending<'a> {
    /// Where they are counted.
    pub(crate) tasks: &'a TaskTracker,
    /// What ends them.
    pub(crate) stop: &'a CancellationToken,
}

/// What takes jobs.
#[derive(Clone, Debug)]
pub struct Jobs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    broker: Broker,
    audit: Audit,
    metrics: Metrics,
    tracer: Tracer,
    callbacks: Callbacks,
    limits: Limits,
    store: Store,
    room: Arc<Semaphore>,
    tasks: TaskTracker,
    /// What is tried again until it is done, or the end.
    afterwards: (TaskTracker, CancellationToken),
    /// The jobs that go on here and may be asked for meanwhile.
    live: Mutex<HashMap<JobId, Arc<Live>>>,
    /// The jobs of other replicas that are followed here.
    elsewhere: Mutex<HashMap<JobId, Arc<Live>>>,
}

impl Jobs {
    /// Takes jobs for this broker. What it writes goes on in `tasks` until `stop`.
    pub(crate) async fn start(
        broker: Broker,
        audit: Audit,
        (callbacks, metrics, tracer): (Callbacks, Metrics, Tracer),
        Ending { tasks, stop }: Ending<'_>,
    ) -> Result<Self, String> {
        let store = Store::start(broker.jetstream(), tasks, stop);
        let (live, elsewhere) = (Mutex::default(), Mutex::default());
        let room = Arc::new(Semaphore::new(RUNS_MAX));
        let said = broker.replicas().await.map_err(|error| format!("cannot hear other replicas: {error}"))?;
        let limits = Limits::new(&broker);
        let afterwards = (tasks.clone(), stop.clone());
        let counted = TaskTracker::new();
        let inner = Inner { broker, audit, metrics, tracer, callbacks, limits, store, room, tasks: counted, afterwards, live, elsewhere };
        let jobs = Self(Arc::new(inner));
        let (hearing, stopped) = (jobs.clone(), stop.clone());
        drop(tasks.spawn(async move { stopped.run_until_cancelled(hearing.hear(said)).await }));
        if let Some(answers) = jobs.0.broker.late_answers() {
            let (keeping, stop) = (jobs.clone(), stop.clone());
            drop(tasks.spawn(async move { stop.run_until_cancelled(keeping.keep_late(answers)).await }));
        }
        let (gone, watching) = jobs.0.broker.lease().gone(jobs.0.broker.store_link(), stop.clone());
        drop(tasks.spawn(watching));
        let (taking, stopped) = (jobs.clone(), stop.clone());
        drop(tasks.spawn(async move { stopped.run_until_cancelled(taking.take_over(gone)).await }));
        Ok(jobs)
    }

    /// What tells spans.
    pub(crate) fn tracer(&self) -> &Tracer {
        &self.0.tracer
    }

    /// Waits until every job accepted has its outcome.
    pub(crate) async fn finish(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Checks a request against what the principal may do and what there is, runs it, and answers as the caller wants.
    pub async fn submit(&self, principal: &Principal, request: JobRequest, how: How) -> Result<Submitted, Problem> {
        match request.idempotency.clone() {
            None => self.make(principal, request, how, Id::New).await,
            Some(idempotency) => Box::pin(self.submit_once(principal, request, how, &idempotency)).await,
        }
    }

    /// Makes the job with this id, which goes on by itself; when it is there already, that is all.
    pub(crate) async fn submit_as(&self, principal: &Principal, request: JobRequest, id: JobId) -> Result<(), Problem> {
        // It is looked for first: what it may take from the rate it has taken.
        let there =
            self.0.store.read(id).await.map_err(|error| Problem::new(Code::Unavailable, format!("jobs cannot be read now: {error}")))?;
        if there.is_some() {
            return Ok(());
        }
        self.make(principal, request, How::Wait(Duration::ZERO), Id::Given(id)).await.map(drop)
    }

    /// Refuses a request that is for later and could not be run now by what the principal may do and what there is; nodes need not be there.
    pub(crate) async fn admit(&self, principal: &Principal, request: &JobRequest) -> Result<(), Problem> {
        match choose::choose(self.0.broker.roster(), principal, request.spec.tool(), &request.from) {
            Err(problem) if problem.code() != Code::NoNodeAvailable => return Err(problem),
            Ok(_) | Err(_) => {}
        }
        admission::check_target(principal, &request.spec)?;
        admission::start_within(request.timeout, request.spec.budget())?;
        match &request.callback {
            Some(callback) => self.0.callbacks.admit(principal, callback).await,
            None => Ok(()),
        }
    }

    /// Makes a job.
    async fn make(&self, principal: &Principal, request: JobRequest, how: How, id: Id) -> Result<Submitted, Problem> {
        if let Some(expires_in) = request.expires_in {
            return Box::pin(self.queue(principal, request, how, (id, expires_in))).await;
        }
        let chosen = choose::choose(self.0.broker.roster(), principal, request.spec.tool(), &request.from)?;
        admission::check_target(principal, &request.spec)?;
        if let Some(callback) = &request.callback {
            self.0.callbacks.admit(principal, callback).await?;
        }
        let budget = request.spec.budget();
        let start_within = admission::start_within(request.timeout, budget)?;
        // Room before rate: a job that finds no room costs nothing.
        let free = self.room_for(chosen.destinations.len())?;
        let admitted = self.0.limits.admit(principal, request.spec.tool(), chosen.destinations, 0).await?;
        let Admitted { destinations, allowance, held, payment } = admitted;
        let room = Room { _free: free, _held: held };
        // What is refused is refused before, and leaves no key behind.
        let (id, advance) = match self.promised(principal, id, request.idempotency.as_ref(), payment).await? {
            Promise::Given(id, advance) => (id, advance),
            Promise::GivenBefore(id) => {
                drop(room);
                return Box::pin(self.join_made(principal, id, how)).await;
            }
        };
        let document = document(principal, &request, id, chosen.missing);
        let runs = self.runs(principal, &request, &document, destinations, start_within);
        let waits_to_the_end = matches!(how, How::Wait(wait) if start_within + budget + GRACE <= wait)
            && request.callback.is_none()
            && request.idempotency.is_none();
        let accepted = accepted(&document, self.0.broker.caller().to_string());
        // The job outlives the call: a caller that hangs up finds it under its id.
        if waits_to_the_end && let [_] = runs.as_slice() {
            let (jobs, counted) = (self.clone(), self.0.tasks.token());
            let job = Detachable::new(&self.0.tasks, async move {
                let _spent = jobs.recorded(accepted, advance).await?;
                let finished = jobs.run_unwatched(document, &runs).await;
                drop((room, counted));
                Ok(finished)
            });
            return Ok(Submitted { id, answer: Came::Over(job.await?), allowance, replayed: false });
        }
        let ends_by = document.created_at.plus(start_within + budget + 2 * GRACE);
        let traceparent = request.traceparent.as_ref().map(Context::traceparent);
        let deliver = request.callback.map(|callback| Callback { traceparent, ..callback });
        let state = State { document, runs: Some(runs.len()), replica: Some(self.0.broker.caller().clone()), deliver, refreshed: 0 };
        let only_watched = matches!(how, How::Watch { cancel_on_disconnect: true });
        let jobs = self.clone();
        // What is stored is begun, though its caller hang up meanwhile.
        let begun = self.0.tasks.spawn(async move {
            let payment = jobs.recorded(accepted.clone(), advance).await?;
            let begun = jobs.begin(state, runs, (ends_by, 0), only_watched, room).await;
            jobs.paid_if_begun(begun, payment, accepted).await.map_err(|error| unkept(&error))
        });
        let Some(mut watcher) = begun.await.unwrap_or_else(|_| Err(unkept("it met a fault of this API")))? else {
            // Another call with the same key was faster.
            return self.join_made(principal, id, how).await;
        };
        let answer = match how {
            How::Watch { .. } => Came::Watched(watcher),
            // Who does not wait is told the same whether it was quick or not: that it was accepted.
            How::Wait(Duration::ZERO) => Came::SoFar(watcher.so_far().to_bytes()),
            How::Wait(wait) => match tokio::time::timeout(wait, watcher.end()).await {
                Ok(Some(document)) => Came::Over(document),
                Ok(None) | Err(_) => Came::SoFar(watcher.so_far().to_bytes()),
            },
        };
        Ok(Submitted { id, answer, allowance, replayed: false })
    }

    /// The runs of a job, each with a span of its own below the call's.
    fn runs(
        &self,
        principal: &Principal,
        request: &JobRequest,
        document: &JobDocument,
        destinations: Vec<Destination>,
        start_within: Duration,
    ) -> Vec<Run> {
        let mut runs = runs(principal, request, document, destinations, start_within);
        for run in &mut runs {
            run.trace = run.trace.as_ref().map(|call| self.0.tracer.child(call));
        }
        runs
    }

    /// Stores a job after its state at this place (0: as its first) and begins with its runs; somebody who watches it, or none when its state is
    /// another already.
    async fn begin(
        &self,
        state: State,
        runs: Vec<Run>,
        (ends_by, after): (Timestamp, u64),
        only_watched: bool,
        room: Room,
    ) -> Result<Option<Watcher>, String> {
        let id = state.document.id;
        let open = Open { id, replica: self.0.broker.caller().clone(), begun_at: Timestamp::now(), ends_by };
        let Some(place) = self.0.store.put_now(&state, &open, after).await? else { return Ok(None) };
        let live = Live::new(state.document, runs.len(), only_watched);
        drop(self.live().insert(id, Arc::clone(&live)));
        let watcher = live.watch(None);
        let jobs = self.clone();
        drop(self.0.tasks.spawn(async move {
            let _here = Here { jobs: &jobs, live: &live };
            jobs.run_watched(&live, &runs, (place, room), (state.deliver, state.refreshed)).await;
        }));
        Ok(Some(watcher))
    }

    /// What is left of the limits of this principal, and of the nodes he may know of.
    pub async fn limits(&self, principal: &Principal) -> Result<LimitsDocument, Problem> {
        self.0.limits.look(principal).await
    }

    /// Takes one run of this principal's rate for what costs something and runs nothing.
    pub(crate) async fn charge(&self, principal: &Principal) -> Result<(), Problem> {
        let (_left, _spent) = self.0.limits.pay(principal, 1).await?;
        Ok(())
    }

    /// Says which nodes would be used for a request and why not others; runs nothing and costs as much as one run.
    pub async fn explain(&self, principal: &Principal, request: &JobRequest) -> Result<Explanation, Problem> {
        self.charge(principal).await?;
        let explanation = choose::explain(self.0.broker.roster(), principal, request.spec.tool(), &request.from)?;
        admission::check_target(principal, &request.spec)?;
        admission::start_within(request.timeout, request.spec.budget())?;
        Ok(explanation)
    }

    /// Gets the one run of a job done that nobody can ask for meanwhile, and keeps what comes of it; the finished document as JSON.
    async fn run_unwatched(&self, document: JobDocument, runs: &[Run]) -> Bytes {
        let results = join_all(runs.iter().map(async |run| self.dispatch(run, None).await.outcome)).await;
        let document = JobDocument { status: JobStatus::Finished, finished_at: Some(Timestamp::now()), results, ..document };
        let written = document.to_bytes();
        self.0.store.put_whole(&document, &written);
        written
    }

    /// Gets every run of a job done whose state is at `place` in the stream, and keeps and tells what comes of it as it comes.
    async fn run_watched(&self, live: &Arc<Live>, runs: &[Run], (place, room): (u64, Room), (deliver, refreshed): (Option<Callback>, u32)) {
        let every = join_all(runs.iter().enumerate().map(async |(index, run)| {
            let watched = Watched { listener: live.listener(index), cancel: live.cancel.clone() };
            let dispatched = self.dispatch(run, Some(&watched)).await;
            let end = live.conclude(index, dispatched);
            // What was told before it is in the stream before it.
            self.write_events(live);
            self.0.store.put_run(&live.document, index, &end).await;
        }));
        tokio::select! {
            _ = every => {}
            () = self.write_events_as_they_come(live) => {}
        }
        self.write_events(live);
        let status = if live.cancel.is_cancelled() { JobStatus::Cancelled } else { JobStatus::Finished };
        let document = JobDocument { status, finished_at: Some(Timestamp::now()), ..live.so_far() };
        let written = document.to_bytes();
        // Its nodes are free; what follows may wait for the broker.
        drop(room);
        let document = JobDocument { results: Vec::new(), late: Vec::new(), ..document };
        let end = State { document, runs: Some(runs.len()), replica: None, deliver, refreshed };
        if !self.call_back(&end, Patience::AllThereIs).await {
            // Another replica ends it, with its callback.
            return live.leave_off();
        }
        // Nobody is told an end that another replica, or this one after a crash, could still replace.
        match self.0.store.put_end(&end, place).await {
            Ok(true) => live.finish(written),
            Ok(false) => {
                tracing::warn!(job.id = %live.document.id, "another replica has ended the job while this one was thought gone");
                live.leave_off();
            }
            Err(error) => {
                tracing::error!(job.id = %live.document.id, %error, "a job's end could not be kept");
                live.leave_off();
            }
        }
    }

    async fn dispatch(&self, run: &Run, watched: Option<&Watched>) -> Dispatched {
        let begun = Instant::now();
        let mut dispatched = self.0.broker.dispatch(run, watched).await;
        self.0.metrics.ended(run.tool, &dispatched.outcome, begun.elapsed());
        self.0.tracer.dispatched(run, begun, &mut dispatched);
        dispatched
    }

    async fn write_events_as_they_come(&self, live: &Live) {
        let mut changes = live.changes();
        while changes.changed().await.is_ok() {
            tokio::time::sleep(EVENTS_WITHIN).await;
            self.write_events(live);
        }
    }

    fn write_events(&self, live: &Live) {
        // The job may have been ended by another replica.
        if !self.0.broker.lease().is_held() {
            return;
        }
        let (batch, events) = live.unwritten();
        if !events.is_empty() {
            self.0.store.put_events(&live.document, batch, events);
        }
    }

    fn live(&self) -> MutexGuard<'_, HashMap<JobId, Arc<Live>>> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn room_for(&self, runs: usize) -> Result<OwnedSemaphorePermit, Problem> {
        let runs = u32::try_from(runs).unwrap_or(u32::MAX);
        Arc::clone(&self.0.room).try_acquire_many_owned(runs).map_err(|_full| {
            let detail = format!("this API has {RUNS_MAX} runs going on and takes no more for the moment");
            Problem::new(Code::Unavailable, detail).retry_after(FULL_RETRY_AFTER)
        })
    }

    /// A job of this principal, as far as it is.
    pub async fn get(&self, principal: &Principal, id: JobId) -> Result<JobDocument, Problem> {
        match self.find(principal, id).await? {
            Place::Here(live) => Ok(live.document_now()),
            Place::Stored(stored) => Ok(stored.into_document()),
        }
    }

    /// Watches a job of this principal, from its beginning or from after an event.
    pub async fn watch(&self, principal: &Principal, id: JobId, after: Option<EventId>) -> Result<Watcher, Problem> {
        match self.find(principal, id).await? {
            Place::Here(live) => Ok(live.watch(after)),
            Place::Stored(stored) if !stored.state.document.status.is_over() => Ok(self.elsewhere(&stored)?.watch(after)),
            Place::Stored(stored) => Ok(Live::of_stored(*stored).watch(after)),
        }
    }

    /// Ends a job of this principal before its time, and waits until it has.
    pub async fn cancel(&self, principal: &Principal, id: JobId) -> Result<JobDocument, Problem> {
        let document = self.end_early(principal, id).await?;
        let how = JobStatus::ALL.iter().find(|(known, _)| *known == document.status).map_or("over", |(_, word)| word);
        self.0.audit.changed(&principal.name, &id.to_string(), format!("job:{id}"), format!("to be cancelled; it is {how}"));
        Ok(document)
    }

    async fn end_early(&self, principal: &Principal, id: JobId) -> Result<JobDocument, Problem> {
        let over = |status: JobStatus| {
            let how = JobStatus::ALL.iter().find(|(known, _)| *known == status).map_or("over", |(_, word)| word);
            Problem::new(Code::Conflict, format!("job `{id}` is {how} already"))
        };
        match self.find(principal, id).await? {
            Place::Here(live) => {
                let before = live.document_now();
                if before.status != JobStatus::Running {
                    return Err(over(before.status));
                }
                let mut watcher = live.watch(None);
                live.cancel.cancel();
                drop(tokio::time::timeout(CANCELLED_WITHIN, watcher.end()).await);
                Ok(live.document_now())
            }
            Place::Stored(stored) => match stored.state.document.status {
                JobStatus::Running => self.cancel_elsewhere(&stored).await,
                JobStatus::Queued => match self.cancel_queued(&stored).await? {
                    Some(document) => Ok(document),
                    // It has begun in this moment, or is over.
                    None => Box::pin(self.end_early(principal, id)).await,
                },
                status => Err(over(status)),
            },
        }
    }

    async fn find(&self, principal: &Principal, id: JobId) -> Result<Place, Problem> {
        let here = self.live().get(&id).cloned();
        let found = if let Some(live) = here {
            Some(Place::Here(live))
        } else {
            let stored = self.0.store.get(id).await;
            let stored = stored.map_err(|error| Problem::new(Code::Unavailable, format!("jobs cannot be read now: {error}")))?;
            stored.map(|stored| Place::Stored(Box::new(stored)))
        };
        let missing = || {
            Problem::new(
                Code::NotFound,
                format!("there is no job `{id}` of yours; jobs are kept for 24 hours, and fewer where many come in"),
            )
        };
        let found = found.ok_or_else(missing)?;
        let document = match &found {
            Place::Here(live) => &live.document,
            Place::Stored(stored) => &stored.state.document,
        };
        if document.caller == principal.name {
            return Ok(found);
        }
        if principal.oversees() {
            self.0.audit.read(&principal.name, &id.to_string(), format!("job:{id}"), &format!("a job of {}", document.caller));
            return Ok(found);
        }
        // The answer is that of a job that never was; the trail knows better.
        Err(missing().asked(Asked { tool: document.tool.clone(), target: format!("job:{id}") }))
    }
}

/// A job that goes on here, however it ends: whoever watches one that ended without a word looks again.
struct Here<'a> {
    jobs: &'a Jobs,
    live: &'a Live,
}

impl Drop for Here<'_> {
    fn drop(&mut self) {
        drop(self.jobs.live().remove(&self.live.document.id));
        self.live.leave_off();
    }
}

/// Where a job is.
#[derive(Debug)]
enum Place {
    /// It goes on here.
    Here(Arc<Live>),
    /// In the stream.
    Stored(Box<Stored>),
}

fn document(principal: &Principal, request: &JobRequest, id: JobId, missing: Vec<Excluded>) -> JobDocument {
    JobDocument {
        id,
        tool: request.spec.tool().as_str().to_owned(),
        target: request.spec.target(),
        parameters: request.spec.shown_parameters(),
        from: request.from.clone(),
        caller: principal.name.clone(),
        schedule: request.schedule.clone(),
        status: JobStatus::Running,
        created_at: Timestamp::now(),
        expires_at: None,
        finished_at: None,
        callback: request.callback.as_ref().map(|callback| callback.view(id)),
        results: Vec::new(),
        late: Vec::new(),
        missing,
    }
}

fn runs(
    principal: &Principal,
    request: &JobRequest,
    document: &JobDocument,
    destinations: Vec<Destination>,
    start_within: Duration,
) -> Vec<Run> {
    let several = destinations.len() > 1;
    destinations
        .into_iter()
        .enumerate()
        .map(|(index, to)| {
            let request_id = if several { RequestId::of_run(document.id, index) } else { document.id.into() };
            Run {
                message: Job { request_id: request_id.clone(), spec: request.spec.clone() }.to_bytes().into(),
                request_id,
                tool: request.spec.tool(),
                target: document.target.clone(),
                to,
                principal: principal.name.clone(),
                targets: principal.limits.targets.as_ref().map(ToString::to_string),
                trace: request.traceparent.clone(),
                deadline: document.created_at.plus(start_within),
                budget: request.spec.budget(),
                ends_by: request.timeout.map(|timeout| document.created_at.plus(timeout)),
            }
        })
        .collect()
}

fn unkept(error: &str) -> Problem {
    Problem::new(Code::Unavailable, format!("the job could not be kept: {error}"))
}

/// The record of a job that was accepted: it is stored before any of its runs is dispatched.
fn accepted(document: &JobDocument, caller: String) -> Record {
    let from: Vec<String> = document.from.iter().map(ToString::to_string).collect();
    let calls_back = document.callback.as_ref().map_or_else(String::new, |callback| format!(", callback to {}", origin_of(&callback.url)));
    let scheduled = document.schedule.as_ref().map_or_else(String::new, |schedule| format!(", schedule {schedule}"));
    Record {
        time: document.created_at,
        verdict: Verdict::Accepted,
        principal: document.caller.clone(),
        caller: Some(caller),
        node: None,
        region: None,
        tool: document.tool.clone(),
        target: document.target.clone(),
        request_id: document.id.to_string(),
        detail: format!("from {}{calls_back}{scheduled}", from.join(", ")),
        duration_ms: None,
    }
}
