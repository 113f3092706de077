//! A message becomes a run, and a run becomes exactly one outcome. `headers`: what a message says beside its body;
//! `admission`: what is said without running it; `narration`: what is said before its end; `ending`: what it came to;
//! `control`: what is no job.

mod admission;
mod control;
pub(crate) mod ending;
pub(crate) mod headers;
mod narration;

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use futures_util::FutureExt;
use probeops_shared::access::Targets;
use probeops_shared::audit::{Record, Verdict};
use probeops_shared::ids::{Caller, RequestId};
use probeops_shared::job::{Event, Events, GRACE, Job, header};
use probeops_shared::outcome::{Failure, FailureKind, NodeRef, OUTCOME_BYTES_MAX, Outcome};
use probeops_shared::presence::Unavailable;
use probeops_shared::subjects::{self, ToNode};
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::ToolName;
use probeops_shared::tools::network::ms;
use probeops_shared::traceparent::Traceparent;
use serde_json::value::RawValue;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use ending::{Ending, within};
use narration::Narration;

use crate::clock::Clock;
use crate::executors::{self, Context, Live};
use crate::limits::{Limits, Pass};
use crate::outbox::{self, Answer, Leaving, Outbox};
use crate::runs::{Running, Runs};
use crate::slots::Slots;
use crate::trail::{Promise, Trail};

/// What runs jobs.
#[derive(Debug)]
pub(crate) struct Worker {
    /// This node.
    pub(crate) node: NodeRef,
    /// What it can run.
    pub(crate) tools: Vec<ToolName>,
    /// What it was granted and cannot run.
    pub(crate) unavailable: Vec<Unavailable>,
    /// What executors work with.
    pub(crate) context: Context,
    /// Room.
    pub(crate) slots: Slots,
    /// The control plane's time.
    pub(crate) clock: Arc<Clock>,
    /// The way out.
    pub(crate) outbox: Arc<Outbox>,
    /// The audit trail.
    pub(crate) trail: Trail,
    /// What callers may.
    pub(crate) limits: Arc<Limits>,
    /// What is running.
    pub(crate) runs: Arc<Runs>,
    /// Owns every run.
    pub(crate) running: TaskTracker,
    /// Tells every run that the agent's patience is over.
    pub(crate) abort: CancellationToken,
    /// Takes no new jobs.
    pub(crate) draining: AtomicBool,
    /// Messages that could not be answered, because they were not asked as a caller may ask.
    pub(crate) unanswerable: AtomicU64,
}

/// What a run is answered with.
type Answered = Outcome<Box<RawValue>>;

/// Who asked and where the answer goes.
#[derive(Clone, Debug)]
struct Asker {
    caller: Caller,
    principal: String,
    reply: String,
    /// Which dispatch of the run this is, as the caller counts them.
    attempt: Option<u32>,
    /// This node's own span, where the job is part of a trace.
    span: Option<Traceparent>,
}

/// A job that is about to run.
struct Accepted {
    asker: Asker,
    job: Job,
    /// Begin before then or not at all, by the control plane's time.
    deadline_unix_ms: Option<i64>,
    events: Option<Events>,
    targets: Option<Targets>,
    dispatch_ms: Option<f64>,
    entry: Running,
    pass: Pass,
    /// Room in the trail for how it ends.
    promise: Promise,
}

/// What a run leaves when it is over.
struct End {
    /// What is left of its budget.
    budget_left: Duration,
    /// Its slot, where it had one.
    slot: Option<OwnedSemaphorePermit>,
    /// Room in the trail, where it was kept.
    promise: Option<Promise>,
}

impl Worker {
    /// Takes a message and answers it, now or when its run is over.
    pub(crate) async fn receive(self: &Arc<Self>, message: Message) {
        match subjects::parse_to_node(&message.subject) {
            Some(ToNode::Job { tool, caller }) => self.receive_job(&tool, caller, message).await,
            Some(ToNode::Control { verb, caller }) => self.control(&verb, caller, message).await,
            None => self.count_unanswerable(&message, "its subject is not one of ours"),
        }
    }

    async fn receive_job(self: &Arc<Self>, tool: &str, caller: Caller, message: Message) {
        let given = message.reply.as_ref().map_or("", |reply| reply.as_str());
        let Some(reply) = subjects::answer(given, &caller, &self.node.id) else {
            let why = format!("its reply subject `{given}` is not of the form _INBOX.{caller}.<token>._");
            self.count_unanswerable(&message, &why);
            let failure = Failure::new(FailureKind::Invalid, why);
            let outcome = Outcome::failed(RequestId::new(), tool, "", failure);
            return self.trail.record(self.record_of(&caller, caller.as_str(), &outcome));
        };
        let headers = message.headers.as_ref();
        let principal = headers::principal(headers, caller.as_str(), caller.is_api()).to_owned();
        let (attempt, span) = (headers::attempt(headers), headers::span(headers).map(Traceparent::child));
        let asker = Asker { caller, principal, reply, attempt, span };
        match self.accept(tool, asker.clone(), &message) {
            Ok(accepted) => {
                // Boxed: the executors' states are large, and most runs are of the smallest.
                drop(self.running.spawn(Box::pin(Arc::clone(self).run(Box::new(accepted)))));
            }
            Err(outcome) => self.conclude(&asker, 0, *outcome, End { budget_left: Duration::ZERO, slot: None, promise: None }).await,
        }
    }

    async fn run(self: Arc<Self>, accepted: Box<Accepted>) {
        let started_at = match self.begins(&accepted).await {
            Ok(started_at) => started_at,
            Err(failure) => return self.refuse(*accepted, failure).await,
        };
        // What was accepted stays where it is until the run is over: a thousand runs are a thousand times as large as one.
        let (spec, entry) = (&accepted.job.spec, &accepted.entry);
        let (started, budget) = (Instant::now(), spec.budget());
        let (live, mut narration) = match accepted.events {
            Some(events) => {
                let (live, narration) = Narration::of(events, &self.outbox, &accepted.asker, &accepted.job.request_id);
                // Boxed, so that runs that nobody listens to are not as large as this.
                (live, Some(Box::new(narration)))
            }
            None => (Live::default(), None),
        };
        let clock_offset_ms = self.clock.measured().map(|measured| measured.offset_ms);
        let context = self.context.for_run(accepted.targets.clone(), accepted.dispatch_ms, clock_offset_ms);
        let mut executed = AssertUnwindSafe(Box::pin(executors::execute(&context, spec, &live))).catch_unwind();
        let result = {
            let bounded = pin!(async {
                tokio::select! {
                    done = within(budget, &mut executed) => done.and_then(|done| done.unwrap_or_else(|_panic| Err(internal(&accepted.job.request_id)))),
                    () = entry.cancel.cancelled() => Err(Failure::new(FailureKind::Cancelled, "the run was cancelled")),
                    () = entry.superseded.cancelled() => Err(Failure::new(FailureKind::Cancelled, "a later attempt of the same job has taken its place")),
                    () = self.abort.cancelled() => Err(Failure::new(FailureKind::Cancelled, "the agent stopped before the run was over")),
                }
            });
            match &mut narration {
                Some(narration) => Box::pin(narration.accompany(bounded)).await,
                None => bounded.await,
            }
        };
        // Neither what it takes to tell the rest nor a slow connection is part of the run.
        let duration_ms = ms(started.elapsed());
        // To put into words what was found until now is the tool's work, too.
        let kept = std::panic::catch_unwind(AssertUnwindSafe(|| {
            drop(executed);
            result.is_err().then(|| live.take()).flatten()
        }));
        let next_seq = match narration {
            Some(narration) => Box::pin(narration.finish()).await,
            None => 0,
        };
        let unheard = entry.superseded.is_cancelled() && result.is_err();
        let Accepted { asker, job, entry, pass, promise, .. } = *accepted;
        let slot = entry.over();
        drop(pass);
        let tool = job.spec.tool();
        let Ending { status, failure, found } = Ending::of(tool, result, kept.ok().flatten());
        let outcome = Outcome {
            request_id: job.request_id,
            status,
            output: found.output,
            duration_ms,
            tool: tool.as_str().to_owned(),
            target: job.spec.target(),
            node: Some(self.node.clone()),
            started_at: Some(started_at),
            report: found.report,
            failure,
            truncated: false,
        };
        if unheard {
            promise.keep(self.record_of(&asker.caller, &asker.principal, &outcome));
            return;
        }
        let end = End { budget_left: budget.saturating_sub(started.elapsed()), slot, promise: Some(promise) };
        self.conclude(&asker, next_seq, outcome, end).await;
    }

    /// Of a job that was accepted and does not begin.
    async fn refuse(&self, accepted: Accepted, failure: Failure) {
        let Accepted { asker, job, entry, pass, promise, .. } = accepted;
        pass.give_back();
        let outcome = Outcome::failed(job.request_id, job.spec.tool().as_str(), job.spec.target(), failure);
        let end = End { budget_left: Duration::ZERO, slot: entry.over(), promise: Some(promise) };
        self.conclude(&asker, 0, outcome, end).await;
    }

    /// Answers with an outcome and puts it in the trail. The caller waits for what is left of the budget, and for grace.
    async fn conclude(&self, asker: &Asker, seq: u64, mut outcome: Answered, End { budget_left, slot, promise }: End) {
        outcome.node.get_or_insert_with(|| self.node.clone());
        let record = self.record_of(&asker.caller, &asker.principal, &outcome);
        match promise {
            // Who is answered is in the trail. What the file does not take stays in memory until it does.
            Some(promise) => drop(self.trail.stored(promise.keep(record)).await),
            None => self.trail.record(record),
        }
        if let Some(span) = asker.span {
            let (trace_id, span_id) = (format!("{:032x}", span.trace_id()), format!("{:016x}", span.span_id()));
            tracing::debug!(trace_id, span_id, job.id = %outcome.request_id, tool = outcome.tool, "a job of a trace was answered");
        }
        let (request_id, tool) = (outcome.request_id.clone(), outcome.tool.clone());
        let (body, useless_at) = (outcome.to_bytes(OUTCOME_BYTES_MAX), Instant::now() + budget_left + GRACE);
        let room = tokio::time::timeout_at(useless_at.into(), self.outbox.room(body.len())).await;
        // Taken as long as the outcome is, and free before the caller can ask again.
        drop(slot);
        match room {
            Ok(Some(room)) => room.fill(body, |payload| {
                Leaving::Outcome(outbox::Outcome { request_id, tool, answer: answer(asker, Event::Outcome, seq, payload), useless_at })
            }),
            Ok(None) => outbox::lost(&request_id, &tool, "it had not left when the agent stopped"),
            Err(_elapsed) => outbox::lost(&request_id, &tool, "the connection was too slow for as long as anybody waits for it"),
        }
    }

    fn record_of(&self, caller: &Caller, principal: &str, outcome: &Answered) -> Record {
        let not_run = [
            FailureKind::Invalid,
            FailureKind::Denied,
            FailureKind::Unsupported,
            FailureKind::Busy,
            FailureKind::Draining,
            FailureKind::Expired,
            FailureKind::Limited,
        ];
        let (verdict, detail) = match &outcome.failure {
            Some(failure) if not_run.contains(&failure.kind) => (Verdict::Denied, failure.to_string()),
            Some(failure) => (Verdict::Finished, failure.to_string()),
            None => (Verdict::Finished, "success".to_owned()),
        };
        tracing::debug!(job.id = %outcome.request_id, %principal, tool = outcome.tool, target = outcome.target, detail, "a job was answered");
        // A run's record is of the moment it ended.
        let ended_at = outcome.started_at.map(|started_at| started_at.plus(Duration::from_secs_f64(outcome.duration_ms.max(0.0) / 1000.0)));
        Record {
            time: ended_at.unwrap_or_else(Timestamp::now),
            caller: Some(caller.to_string()),
            node: Some(self.node.id.clone()),
            region: Some(self.node.region.clone()),
            tool: outcome.tool.clone(),
            target: outcome.target.clone(),
            request_id: outcome.request_id.to_string(),
            detail,
            duration_ms: outcome.started_at.map(|_| outcome.duration_ms),
            ..Record::new(verdict, principal)
        }
    }

    fn count_unanswerable(&self, message: &Message, why: &str) {
        let count = self.unanswerable.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::warn!(subject = %message.subject, count, "a message was dropped: {why}");
    }
}

/// An event on its way to the caller.
fn answer(asker: &Asker, event: Event, seq: u64, payload: Bytes) -> Answer {
    let mut headers = HeaderMap::new();
    headers.insert(header::EVENT, event.as_str());
    headers.insert(header::SEQ, seq.to_string());
    if let Some(attempt) = asker.attempt {
        headers.insert(header::ATTEMPT, attempt.to_string());
    }
    if let Some(span) = asker.span.filter(|_| event == Event::Outcome) {
        headers.insert(header::TRACEPARENT, span.to_string());
    }
    Answer { subject: asker.reply.clone(), headers, payload }
}

fn internal(request_id: &RequestId) -> Failure {
    let incident = format!("{:016x}", rand::random::<u64>());
    tracing::error!(incident, job.id = %request_id, "an executor panicked");
    Failure::new(FailureKind::Internal, format!("a fault in the agent; its log has it as incident {incident}"))
}
