//! Takes callbacks from the queue and delivers them. All replicas share the queue; one that ends in the middle of an attempt is followed by another
//! that makes it again, under the same id.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::{AckKind, Message};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use probeops_shared::timestamp::Timestamp;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::client::Client;
use super::deliveries::{Attempt, Delivery, DeliveryStatus};
use super::hosts::{Hosts, Place};
use super::schedule::{self, Answered, Next};
use super::{Callbacks, Due};
use crate::broker::Broker;
use crate::jobs::{JobDocument, Jobs};
use crate::trace::TRACEPARENT;
use crate::trace::spans::Posted;

/// How many attempts go on at once.
const AT_ONCE_MAX: usize = 128;
/// How many of them to one destination: one that is dead or slow holds up no other.
const OF_HOST_MAX: usize = 8;
/// How many of them for one caller: who calls back to many that are holds up nobody else.
const OF_CALLER_MAX: usize = 32;
/// When to come back to a destination that has enough to do.
const HOST_BUSY_FOR: Duration = Duration::from_millis(500);
/// When to come back to a caller who has: he may have thousands waiting, and each that comes too early costs something.
const CALLER_BUSY_FOR: Duration = Duration::from_secs(5);
/// When to look again for what is not in its stream yet, or cannot be read now.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How long after its end a job's outcomes are waited for; then it is told with those there are.
const OUTCOMES_WITHIN: Duration = Duration::from_mins(1);
/// How long an attempt may take with everything that belongs to it: after 30 s the queue hands it to another replica.
const HANDLED_WITHIN: Duration = Duration::from_secs(25);
/// How long of that its name may take to be resolved, and the destination to answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(20);
/// How long an attempt goes on when its replica is told to stop; then it is another's.
const STOPPED_WITHIN: Duration = Duration::from_secs(5);
/// The largest body that is sent whole; what nodes found is left out of a larger one.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// What makes the attempts.
#[derive(Clone, Debug)]
struct Deliverer {
    callbacks: Callbacks,
    jobs: Jobs,
    client: Client,
    /// The destinations, and the callers.
    hosts: Hosts,
    callers: Hosts,
    stop: CancellationToken,
}

/// Delivers until told to stop; attempts that go on then end in `tasks`.
pub(crate) async fn deliver(callbacks: Callbacks, jobs: Jobs, broker: Broker, tasks: TaskTracker, stop: CancellationToken) {
    let deliverer = Deliverer {
        callbacks,
        jobs,
        client: Client::new(),
        hosts: Hosts::new(OF_HOST_MAX, HOST_BUSY_FOR),
        callers: Hosts::new(OF_CALLER_MAX, CALLER_BUSY_FOR),
        stop: stop.clone(),
    };
    let room = Arc::new(Semaphore::new(AT_ONCE_MAX));
    let taking = async {
        loop {
            // Nobody else takes places, so there are at least so many until they are taken here.
            drop(room.acquire().await);
            let take = |message| {
                let Ok(place) = Arc::clone(&room).try_acquire_owned() else { return false };
                let deliverer = deliverer.clone();
                drop(tasks.spawn(async move {
                    deliverer.handle(message).await;
                    drop(place);
                }));
                true
            };
            broker.pull(&deliverer.callbacks.0.queue, room.available_permits(), take).await;
        }
    };
    tokio::select! {
        () = taking => {}
        () = stop.cancelled() => {}
    }
}

/// The body of a callback (Standard Webhooks).
#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    timestamp: Timestamp,
    data: &'a JobDocument,
    /// That the job had outcomes which are no longer kept.
    #[serde(skip_serializing_if = "is_false")]
    outcomes_forgotten: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// Why there is nothing to send.
enum Unready {
    /// Not yet.
    Later(String),
    /// No more.
    Never(&'static str),
}

impl Deliverer {
    async fn handle(&self, message: Message) {
        let due: Due = match serde_json::from_slice(&message.payload) {
            Ok(due) => due,
            Err(error) => {
                tracing::error!(subject = %message.subject, %error, "a callback in the queue cannot be read; it is dropped");
                return self.acknowledge(&message, AckKind::Term).await;
            }
        };
        let delivered = message.info().map_or(1, |info| u32::try_from(info.delivered).unwrap_or(1));
        let stopped = async {
            self.stop.cancelled().await;
            sleep(STOPPED_WITHIN).await;
        };
        let kind = tokio::select! {
            kind = self.attempt(&due, delivered) => kind,
            () = stopped => AckKind::Nak(None),
            () = sleep(HANDLED_WITHIN) => later("it took too long altogether"),
        };
        self.acknowledge(&message, kind).await;
    }

    async fn acknowledge(&self, message: &Message, kind: AckKind) {
        // Lost, it is as if the attempt had not been made.
        if let Err(error) = message.ack_with(kind).await {
            tracing::warn!(%error, "the queue of callbacks could not be told what became of one");
        }
        // Nobody may be there to send it later.
        if self.stop.is_cancelled()
            && let Err(error) = message.context.client().flush().await
        {
            tracing::warn!(%error, "the queue of callbacks may not have heard what became of one");
        }
    }

    /// Makes an attempt, and says what the queue is to do.
    async fn attempt(&self, due: &Due, delivered: u32) -> AckKind {
        let busy = |busy_for: Duration| AckKind::Nak(Some(busy_for.mul_f64(0.5 + rand::random::<f64>())));
        let _callers_place = match self.callers.enter(&due.caller) {
            Ok(place) => place,
            Err(busy_for) => return busy(busy_for),
        };
        let known = match self.callbacks.known(due).await {
            Ok(known) => known.map(|known| known.replayed(due)),
            Err(error) => return later(&error),
        };
        // Put off, a callback comes from the queue more often than it is tried; the record knows better, where there is one.
        let number = known.as_ref().map_or(delivered, |known| known.tries + 1);
        let mut delivery = known.unwrap_or_else(|| Delivery::of(due));
        // It is over, and only its acknowledgement was lost.
        if delivery.status != DeliveryStatus::Pending {
            return AckKind::Ack;
        }
        let started_at = Timestamp::now();
        if started_at >= due.expires_at {
            return self.over(delivery, DeliveryStatus::Expired).await;
        }
        let place = match self.hosts.enter(&due.callback.url.origin()) {
            Ok(place) => place,
            Err(busy_for) => return busy(busy_for),
        };
        let (body, mut headers) = match self.prepared(due, &delivery.id, started_at).await {
            Ok(prepared) => prepared,
            Err(Unready::Later(why)) => return later(&why),
            Err(Unready::Never(why)) => {
                delivery.add(Attempt { at: started_at, status: None, error: Some(why.to_owned()), took_ms: 0.0, next_at: None });
                return self.over(delivery, DeliveryStatus::Failed).await;
            }
        };
        let span = due.callback.traceparent.as_deref().and_then(|cause| self.jobs.tracer().follow(cause));
        if let Some(value) = span.as_ref().and_then(|(context, _)| context.header()) {
            headers.entry(TRACEPARENT).or_insert(value);
        }
        let started = Instant::now();
        let answer = timeout(ANSWERED_WITHIN, async {
            let addresses = self.callbacks.0.guard.addresses(&due.callback.url).await?;
            self.client.post(&due.callback.url, &addresses, headers, body).await
        });
        let answer = answer.await.unwrap_or_else(|_elapsed| Err(format!("no answer within {} s", ANSWERED_WITHIN.as_secs())));
        let took = started.elapsed();
        if let Some(span) = &span {
            let answered = answer.as_ref().map(|answer| answer.status).map_err(String::as_str);
            let posted = Posted { url: &due.callback.url, delivery: &delivery.id, number, answered };
            self.jobs.tracer().called_back(span, started.into_std(), posted);
        }
        note(&place, &answer);
        drop(place);
        let age = Timestamp::now().since(due.finished_at);
        let next = schedule::next(answer.as_ref().ok().copied(), number, age, rand::random());
        let expires = |delay: &Duration| Timestamp::now().plus(*delay) >= due.expires_at;
        let (status, next) = match next {
            Next::Done => (DeliveryStatus::Delivered, None),
            Next::Gone => (DeliveryStatus::Gone, None),
            Next::Again(delay) if expires(&delay) => (DeliveryStatus::Expired, None),
            Next::Again(delay) => (DeliveryStatus::Pending, Some(delay)),
        };
        let (answered, error) = (answer.as_ref().ok().map(|answer| answer.status), answer.as_ref().err().cloned());
        tracing::info!(delivery = delivery.id, origin = due.callback.url.origin(), attempt = number, status = answered, error, next = ?next, "a callback was tried");
        let next_at = next.map(|delay| Timestamp::now().plus(delay));
        delivery.add(Attempt { at: started_at, status: answered, error, took_ms: took.as_secs_f64() * 1_000.0, next_at });
        match next {
            None => self.over(delivery, status).await,
            Some(delay) => {
                self.callbacks.keep(&delivery).await;
                AckKind::Nak(Some(delay))
            }
        }
    }

    async fn over(&self, mut delivery: Delivery, status: DeliveryStatus) -> AckKind {
        delivery.status = status;
        self.callbacks.keep(&delivery).await;
        AckKind::Ack
    }

    /// Body and headers of an attempt.
    async fn prepared(&self, due: &Due, id: &str, at: Timestamp) -> Result<(Bytes, HeaderMap), Unready> {
        let body = self.body(due).await?;
        let mut headers = HeaderMap::new();
        let mut add = |name: &str, value: &str| {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                headers.insert(name, value);
            }
        };
        if let Some(header) = &due.callback.header {
            add(&header.name, &header.value);
        }
        add("webhook-id", id);
        add("webhook-timestamp", &at.unix_s().to_string());
        if let Some(secret_id) = &due.callback.secret_id {
            let secret = self.callbacks.0.secrets.find(&due.caller, secret_id).await;
            let secret = secret.map_err(|problem| Unready::Later(problem.detail().to_owned()))?;
            let signature = secret.and_then(|secret| secret.sign(id, at.unix_s(), &body));
            add("webhook-signature", &signature.ok_or(Unready::Never("its secret was deleted, and it is not sent unsigned"))?);
        }
        Ok((body, headers))
    }

    /// The job as it is in its stream now, the same at every attempt; without what nodes found where the stream has forgotten it.
    async fn body(&self, due: &Due) -> Result<Bytes, Unready> {
        let stored = match self.jobs.stored(due.job).await {
            Ok(Some(stored)) => stored,
            Ok(None) => return written(due, &due.document, true),
            Err(error) => return Err(Unready::Later(error)),
        };
        // Whoever queued it may have ended before it could write that the job is over.
        let whole = stored.state.document.status.is_over() || stored.state.runs.is_some_and(|runs| stored.runs.len() >= runs);
        if !whole && Timestamp::now().since(due.finished_at) < OUTCOMES_WITHIN {
            return Err(Unready::Later("the job's outcomes are not all in its stream yet".to_owned()));
        }
        let mut job = JobDocument { status: due.status, finished_at: Some(due.finished_at), ..stored.into_document() };
        let whole = written(due, &job, false)?;
        if whole.len() <= BODY_BYTES_MAX {
            return Ok(whole);
        }
        for outcome in &mut job.results {
            (outcome.output, outcome.report, outcome.truncated) = (String::new(), None, true);
        }
        written(due, &job, false)
    }
}

fn written(due: &Due, job: &JobDocument, outcomes_forgotten: bool) -> Result<Bytes, Unready> {
    let body = serde_json::to_vec(&Body { kind: "job.completed", timestamp: due.finished_at, data: job, outcomes_forgotten });
    body.map(Bytes::from).map_err(|error| Unready::Later(error.to_string()))
}

fn note(place: &Place, answer: &Result<Answered, String>) {
    match answer {
        Ok(_) => place.answered(),
        Err(_) => place.unanswered(),
    }
}

fn later(why: &str) -> AckKind {
    tracing::debug!(why, "a callback is put off");
    AckKind::Nak(Some(LOOK_AGAIN_AFTER))
}
