//! Jobs: from a request to a document, and back from stream JOBS.

mod admission;
mod detachable;
mod selector;
mod store;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use probeops_shared::audit::{Record, Verdict};
use probeops_shared::ids::{JobId, RequestId};
use probeops_shared::job::{GRACE, Job};
use probeops_shared::outcome::Outcome;
use probeops_shared::problem::Code;
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::Spec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::{Allowance, Principal};
use crate::audit::Audit;
use crate::broker::{Broker, Destination, Run};
use crate::jobs::detachable::Detachable;
use crate::jobs::store::Store;
use crate::problem::{Asked, Problem};

pub use selector::Selector;

/// The longest a call waits for its job.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(60);
/// Most documents fit into so many bytes.
const DOCUMENT_BYTES_USUAL: usize = 1_000;
/// How many runs this API has going on at once; each holds a task and a token.
const RUNS_MAX: usize = 20_000;
/// When a full API may have room again.
const FULL_RETRY_AFTER: Duration = Duration::from_secs(1);

/// What a caller wants run.
#[derive(Clone, Debug)]
pub struct JobRequest {
    /// The tool, target and options.
    pub spec: Spec,
    /// From where: one run for each.
    pub from: Vec<Selector>,
    /// What grace and budget together may take.
    pub timeout: Option<Duration>,
    /// W3C trace context of the call.
    pub traceparent: Option<String>,
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
    /// Whether it goes on.
    pub status: JobStatus,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When its last run ended; absent while it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// One outcome for each selector, in their order; while it goes on, those there are.
    pub results: Vec<Outcome>,
}

impl JobDocument {
    /// The document as JSON.
    fn to_bytes(&self) -> Bytes {
        // Plain data can always be written.
        let mut written = Vec::with_capacity(DOCUMENT_BYTES_USUAL);
        if let Err(error) = serde_json::to_writer(&mut written, self) {
            tracing::error!(job.id = %self.id, %error, "a job could not be written");
        }
        written.into()
    }
}

/// Whether a job goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    /// Not every run has its outcome yet.
    Running,
    /// Every run has its outcome.
    Finished,
}

/// A job that was accepted.
#[derive(Clone, Debug)]
pub struct Submitted {
    /// Its id.
    pub id: JobId,
    /// Whether it goes on.
    pub status: JobStatus,
    /// Its [`JobDocument`] as JSON, finished or as far as it is.
    pub document: Bytes,
    /// What its principal has left of its rate; absent where it has none.
    pub allowance: Option<Allowance>,
}

/// What takes jobs.
#[derive(Clone, Debug)]
pub struct Jobs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    broker: Broker,
    audit: Audit,
    store: Store,
    room: Arc<Semaphore>,
    tasks: TaskTracker,
}

impl Jobs {
    /// Takes jobs for this broker. What it writes goes on in `tasks` until `stop`.
    pub(crate) fn new(broker: Broker, audit: Audit, tasks: &TaskTracker, stop: &CancellationToken) -> Self {
        let store = Store::start(broker.jetstream(), tasks, stop);
        Self(Arc::new(Inner { broker, audit, store, room: Arc::new(Semaphore::new(RUNS_MAX)), tasks: TaskTracker::new() }))
    }

    /// Waits until every job accepted has its outcome.
    pub(crate) async fn finish(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Checks a request against what the principal may do and what there is, runs it, and waits for it.
    pub async fn submit(&self, principal: &Principal, request: JobRequest) -> Result<Submitted, Problem> {
        let destinations = admission::destinations(self.0.broker.roster(), principal, &request)?;
        admission::check_target(principal, &request.spec)?;
        let budget = request.spec.budget();
        let start_within = admission::start_within(request.timeout, budget)?;
        // Room before rate: a job that finds no room costs nothing.
        let room = self.room_for(destinations.len())?;
        let allowance = principal.take(destinations.len())?;
        let document = document(principal, &request);
        let runs = runs(principal, &request, &document, destinations, start_within);
        let outlives_call = start_within + budget + GRACE > WAIT_MAX;
        let keeping = if runs.len() > 1 || outlives_call { Keeping::FromItsStart } else { Keeping::AtItsEnd };
        if keeping == Keeping::FromItsStart {
            let kept = self.0.store.put_now(&document).await;
            kept.map_err(|error| Problem::new(Code::Unavailable, format!("the job could not be kept: {error}")))?;
        }
        self.0.audit.record(accepted(&document, self.0.broker.caller().to_string()));
        let so_far = SoFar::of(runs.len());
        let (jobs, running, results) = (self.clone(), document.clone(), so_far.clone());
        let counted = self.0.tasks.token();
        // The job outlives the call: a caller that hangs up finds it under its id.
        let mut job = Detachable::new(&self.0.tasks, async move {
            let finished = jobs.run(document, &runs, keeping, &results).await;
            drop((room, counted));
            finished
        });
        let id = running.id;
        let (status, document) = match tokio::time::timeout(WAIT_MAX, &mut job).await {
            Ok(finished) => (JobStatus::Finished, finished),
            Err(_elapsed) => (JobStatus::Running, JobDocument { results: so_far.results(), ..running }.to_bytes()),
        };
        Ok(Submitted { id, status, document, allowance })
    }

    /// Gets every run done, and keeps what comes of it; the finished document as JSON.
    async fn run(&self, document: JobDocument, runs: &[Run], keeping: Keeping, so_far: &SoFar) -> Bytes {
        let results = join_all(runs.iter().enumerate().map(async |(index, run)| {
            let outcome = self.0.broker.dispatch(run).await;
            if keeping == Keeping::FromItsStart {
                self.0.store.put_outcome(&document, index, &outcome);
                so_far.learn(index, &outcome);
            }
            outcome
        }))
        .await;
        let document = JobDocument { status: JobStatus::Finished, finished_at: Some(Timestamp::now()), results, ..document };
        let written = document.to_bytes();
        self.0.store.put(&document, &written);
        written
    }

    fn room_for(&self, runs: usize) -> Result<OwnedSemaphorePermit, Problem> {
        let runs = u32::try_from(runs).unwrap_or(u32::MAX);
        Arc::clone(&self.0.room).try_acquire_many_owned(runs).map_err(|_full| {
            let detail = format!("this API has {RUNS_MAX} runs going on and takes no more for the moment");
            Problem::new(Code::Unavailable, detail).retry_after(FULL_RETRY_AFTER)
        })
    }

    /// A job of this principal.
    pub async fn get(&self, principal: &Principal, id: JobId) -> Result<JobDocument, Problem> {
        let found =
            self.0.store.get(id).await.map_err(|error| Problem::new(Code::Unavailable, format!("jobs cannot be read now: {error}")))?;
        let missing = || {
            Problem::new(
                Code::NotFound,
                format!("there is no job `{id}` of yours; jobs are kept for 24 hours, and fewer where many come in"),
            )
        };
        let document = found.ok_or_else(missing)?;
        if document.caller == principal.name || principal.is_admin() {
            return Ok(document);
        }
        // The answer is that of a job that never was; the trail knows better.
        Err(missing().asked(Asked { tool: document.tool, target: format!("job:{id}") }))
    }
}

/// When a job is written to the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keeping {
    /// Before its runs are dispatched, and whenever one is over: it may be asked for while it goes on.
    FromItsStart,
    /// Once: its one run is over before its call is.
    AtItsEnd,
}

/// The outcomes of a job that goes on, in the order of its selectors.
#[derive(Clone, Debug)]
struct SoFar(Arc<Mutex<Vec<Option<Outcome>>>>);

impl SoFar {
    fn of(runs: usize) -> Self {
        Self(Arc::new(Mutex::new(vec![None; runs])))
    }

    fn learn(&self, index: usize, outcome: &Outcome) {
        if let Some(place) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(index) {
            *place = Some(outcome.clone());
        }
    }

    fn results(&self) -> Vec<Outcome> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().flatten().cloned().collect()
    }
}

fn document(principal: &Principal, request: &JobRequest) -> JobDocument {
    JobDocument {
        id: JobId::new(),
        tool: request.spec.tool().as_str().to_owned(),
        target: request.spec.target(),
        parameters: request.spec.shown_parameters(),
        from: request.from.clone(),
        caller: principal.name.clone(),
        status: JobStatus::Running,
        created_at: Timestamp::now(),
        finished_at: None,
        results: Vec::new(),
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
                traceparent: request.traceparent.clone(),
                deadline: document.created_at.plus(start_within),
                budget: request.spec.budget(),
            }
        })
        .collect()
}

fn accepted(document: &JobDocument, caller: String) -> Record {
    let from: Vec<String> = document.from.iter().map(ToString::to_string).collect();
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
        detail: format!("from {}", from.join(", ")),
        duration_ms: None,
    }
}
