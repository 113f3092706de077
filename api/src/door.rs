//! The front door: jobs that services ask for over NATS, run as those of HTTP callers are, with the same limits, selectors, retries and trail.
//!
//! It is a NATS service (ADR-32) on a connection and credential of its own, which can publish to inboxes of callers and nowhere else. The
//! broker attests who knocks, by the last token of the subject, but checks no reply subject: the door answers in that caller's own inbox only.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::service::endpoint::Endpoint;
use async_nats::service::{NATS_SERVICE_ERROR, NATS_SERVICE_ERROR_CODE, Request, Service, ServiceExt};
use async_nats::{Client, HeaderMap, Message};
use axum::http;
use axum::http::header::CONTENT_TYPE;
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use probeops_shared::VERSION;
use probeops_shared::ids::Caller;
use probeops_shared::job::{ALIVE_EVERY, Event, Events, header};
use probeops_shared::problem::Code;
use probeops_shared::subjects::{self, ANY, FRONT_DOOR_QUEUE};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::App;
use crate::audit::Refusal;
use crate::broker::{Broker, log_events};
use crate::callbacks::hosts::Hosts;
use crate::jobs::{Came, How, JobDocument, Kind, Next, Submitted, Watcher};
use crate::problem::{PROBLEM_JSON, Problem};
use crate::routes::knock::{self, Knock};

/// The service's name, as `nats micro` shows it.
const SERVICE: &str = "probeops";
/// What it says of itself.
const DESCRIPTION: &str = "Runs a job from where its selectors say: the body of POST /v1/jobs in, the job out";
/// How many may wait for their answer at once.
const KNOCKS_MAX: usize = 4_096;
/// How many of one service, so that none takes all of them.
const KNOCKS_OF_CALLER_MAX: usize = 1_024;
/// How long the door waits for the roster before it opens: whoever knocks at another replica meanwhile is served there.
const ROSTER_WITHIN: Duration = Duration::from_secs(2);
/// When a full door may have room again.
const FULL_RETRY_AFTER: Duration = Duration::from_secs(1);
/// What the headers of an answer need beside its body, at most.
const HEADERS_BYTES_MAX: usize = 8 * 1024;
/// The headers of a request that mean what they mean over HTTP.
const HEADERS_READ: [&str; 4] = ["prefer", "idempotency-key", "traceparent", "x-request-id"];
/// What refusals are about, in the trail.
const REQUEST: &str = "api.v1.run";
/// The event of a job that was accepted.
const JOB: &str = "job";
/// The event that says that some before it are no longer kept.
const GAP: &str = "gap";

/// The front door of one replica.
pub(crate) struct Door {
    client: Client,
    /// It answers what `nats micro` asks as long as it lives.
    service: Service,
    refused: Arc<AtomicU64>,
}

/// An answer: headers and body.
type Answer = (http::HeaderMap, Bytes);

impl Door {
    /// Connects; nobody can knock yet.
    pub(crate) async fn connect(broker: &Broker, tasks: &TaskTracker, stop: &CancellationToken) -> Result<Self, String> {
        let (client, events) = broker.links().connected("frontdoor", "front door", stop).await?;
        drop(tasks.spawn(log_events("frontdoor", events)));
        let refused = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&refused);
        let service = client
            .service_builder()
            .description(DESCRIPTION)
            .queue_group(FRONT_DOOR_QUEUE)
            .stats_handler(move |_endpoint, _stats| json!({"problems": counted.load(Ordering::Relaxed)}))
            .start(SERVICE, VERSION);
        let service = service.await.map_err(|error| format!("the front door cannot be opened: {error}"))?;
        Ok(Self { client, service, refused })
    }

    /// Opens, and answers whoever knocks until `stop`, and then those who have knocked.
    pub(crate) async fn serve(self, app: App, stop: CancellationToken) {
        app.broker.roster_told(ROSTER_WITHIN).await;
        let endpoint = self.service.endpoint_builder().name("run").add(subjects::front_door(ANY)).await;
        match endpoint {
            Ok(endpoint) => self.answer(endpoint, app, stop).await,
            Err(error) => tracing::error!(%error, "the front door cannot be opened"),
        }
    }

    async fn answer(self, mut endpoint: Endpoint, app: App, stop: CancellationToken) {
        let (answering, room) = (TaskTracker::new(), Arc::new(Semaphore::new(KNOCKS_MAX)));
        let inside =
            Inside { app, client: self.client.clone(), refused: self.refused, callers: Hosts::new(KNOCKS_OF_CALLER_MAX, FULL_RETRY_AFTER) };
        let take = |request: Request| {
            let (inside, room) = (inside.clone(), Arc::clone(&room).try_acquire_owned().ok());
            drop(answering.spawn(async move { inside.answer(&request, room).await }));
        };
        while let Some(Some(request)) = stop.run_until_cancelled(endpoint.next()).await {
            take(request);
        }
        if !stop.is_cancelled() {
            tracing::error!("the front door has closed by itself; this API takes no more from services until it is started again");
        }
        if let Err(error) = endpoint.stop().await {
            tracing::warn!(%error, "the front door cannot be closed");
        }
        while let Some(Some(request)) = endpoint.next().now_or_never() {
            take(request);
        }
        answering.close();
        answering.wait().await;
        drop(self.service.stop().await);
        drop(self.client.flush().await);
    }
}

/// What answers.
#[derive(Clone, Debug)]
struct Inside {
    app: App,
    client: Client,
    refused: Arc<AtomicU64>,
    /// How many of each service wait.
    callers: Hosts,
}

impl Inside {
    async fn answer(&self, request: &Request, room: Option<OwnedSemaphorePermit>) {
        let message = &request.message;
        let Some(caller) = subjects::parse_front_door(&message.subject) else { return };
        let headers = read_headers(message);
        let id = knock::request_id(&headers);
        let own = message.reply.as_ref().is_some_and(|reply| subjects::is_own_door_inbox(reply, &caller));
        let knocked = async {
            if !own {
                let detail =
                    format!("the reply subject must be in your own inbox, {}.>; nobody is answered", subjects::door_inbox(&caller));
                return Err(Problem::new(Code::Forbidden, detail));
            }
            let _room = room.ok_or_else(|| full(KNOCKS_MAX, "in all"))?;
            let place = self.callers.enter(caller.as_str());
            let _place = place.map_err(|_busy_for| full(KNOCKS_OF_CALLER_MAX, "of this service"))?;
            self.run(&caller, message, &headers).await
        };
        let panicked = |_| Err(Problem::new(Code::Internal, "the request met a fault of this API; its log says more"));
        let answered = AssertUnwindSafe(knocked).catch_unwind().await.unwrap_or_else(panicked);
        let (mut headers, body, failed) = match answered {
            Ok((headers, body)) => (headers, body, None),
            Err(problem) => {
                let (headers, body) = self.refuse(&caller, &id, &problem);
                (headers, body, Some(problem))
            }
        };
        if !own {
            return;
        }
        if let Ok(id) = http::HeaderValue::from_str(&id) {
            headers.insert("x-request-id", id);
        }
        let mut sent = written_headers(&headers);
        if let Some(problem) = failed {
            let document = problem.document(&id);
            sent.insert(NATS_SERVICE_ERROR, document.title.as_str());
            sent.insert(NATS_SERVICE_ERROR_CODE, document.status.to_string());
        }
        if let Err(error) = request.respond_with_headers(Ok(body), sent).await {
            tracing::warn!(request.id = %id, %caller, %error, "an answer of the front door could not be sent");
        }
    }

    /// Runs the job that is asked for, and says how it went.
    async fn run(&self, caller: &Caller, message: &Message, headers: &http::HeaderMap) -> Result<Answer, Problem> {
        let principal = self.app.access.service(caller).await?;
        let events = events(message)?;
        let Knock { request, wait, applied } = knock::read(&message.payload, headers)?;
        let how = if events.is_some() { How::Watch { cancel_on_disconnect: false } } else { How::Wait(wait) };
        let about = crate::problem::Asked { tool: request.spec.tool().to_string(), target: request.spec.target() };
        let submitted = self.app.jobs.submit(&principal, request, how).await;
        let Submitted { id: _, answer, allowance, replayed } = submitted.map_err(|problem| problem.asked(about))?;
        let mut said = http::HeaderMap::new();
        said.insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
        said.extend(allowance.iter().flat_map(crate::limits::Allowance::headers));
        said.extend(replayed.then(knock::replayed));
        let document = match (answer, events, &message.reply) {
            (Came::Watched(watcher), Some(events), Some(reply)) => self.tell(watcher, events, reply).await,
            (Came::Watched(mut watcher), _, _) => watcher.end().await.unwrap_or_else(|| watcher.so_far().to_bytes()),
            (Came::Over(document) | Came::SoFar(document), ..) => {
                said.extend(applied.map(|applied| (http::HeaderName::from_static("preference-applied"), applied)));
                document
            }
        };
        Ok((said, fitting(document, self.client.server_info().max_payload.saturating_sub(HEADERS_BYTES_MAX))))
    }

    /// Tells what a job's nodes tell, in the caller's inbox; the job as it ended.
    async fn tell(&self, mut watcher: Watcher, events: Events, to: &str) -> Bytes {
        let mut seq = 0_u64;
        let mut told = async |event: &str, body: Bytes| {
            let mut headers = HeaderMap::new();
            headers.insert(header::EVENT, event);
            headers.insert(header::SEQ, seq.to_string());
            seq += 1;
            if let Err(error) = self.client.publish_with_headers(to.to_owned(), headers, body).await {
                tracing::warn!(%error, "an event could not be told at the front door");
            }
        };
        told(JOB, watcher.so_far().to_bytes()).await;
        loop {
            match tokio::time::timeout(ALIVE_EVERY, watcher.next()).await {
                Err(_elapsed) => told(Event::Alive.as_str(), Bytes::new()).await,
                Ok(Some(Next::Event(event))) if events == Events::SignsOfLife && event.kind != Kind::Accepted => {}
                Ok(Some(Next::Event(event))) => told(event.kind.as_str(), event.data.clone()).await,
                Ok(Some(Next::Gap)) => told(GAP, Bytes::new()).await,
                Ok(Some(Next::End(document))) => return document,
                // It has ended somewhere else; the job so far is all that is known here.
                Ok(None) => return watcher.so_far().to_bytes(),
            }
        }
    }

    /// Records a refusal; what is answered.
    fn refuse(&self, caller: &Caller, id: &str, problem: &Problem) -> Answer {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let principal = format!("service:{caller}");
        let refusal = Refusal { principal: Some(&principal), request_id: id, request: REQUEST, problem };
        self.app.audit.refused(&refusal);
        match problem.code() {
            Code::Internal => tracing::error!(request.id = id, principal, "{REQUEST}: {problem}"),
            Code::Unavailable => tracing::warn!(request.id = id, principal, "{REQUEST}: {problem}"),
            _ => tracing::debug!(request.id = id, principal, "{REQUEST}: {problem}"),
        }
        let mut headers = http::HeaderMap::new();
        problem.add_headers(&mut headers);
        // How to send a better credential over HTTP is of no use here.
        drop(headers.remove(http::header::WWW_AUTHENTICATE));
        headers.insert(CONTENT_TYPE, http::HeaderValue::from_static(PROBLEM_JSON));
        // Plain data always serialises.
        (headers, serde_json::to_vec(&problem.document(id)).unwrap_or_default().into())
    }
}

fn full(waiting: usize, whose: &str) -> Problem {
    let detail = format!("{waiting} requests {whose} wait at the front door of this API already, and it takes no more for the moment");
    Problem::new(Code::Unavailable, detail).retry_after(FULL_RETRY_AFTER)
}

/// What the caller wants to hear before the job's end.
fn events(message: &Message) -> Result<Option<Events>, Problem> {
    let given = message.headers.as_ref().and_then(|headers| headers.get(header::EVENTS));
    let read = given.map(|given| given.as_str().parse()).transpose();
    read.map_err(|detail: String| Problem::new(Code::Invalid, format!("header {}: {detail}", header::EVENTS)))
}

/// The headers that mean what they mean over HTTP; their names are written in any case.
fn read_headers(message: &Message) -> http::HeaderMap {
    let mut read = http::HeaderMap::new();
    for (name, values) in message.headers.iter().flat_map(HeaderMap::iter) {
        let known = HEADERS_READ.iter().find(|known| AsRef::<str>::as_ref(name).eq_ignore_ascii_case(known));
        for value in values {
            if let (Some(known), Ok(value)) = (known, http::HeaderValue::from_str(value.as_str())) {
                read.append(*known, value);
            }
        }
    }
    read
}

fn written_headers(headers: &http::HeaderMap) -> HeaderMap {
    let mut written = HeaderMap::new();
    for (name, value) in headers {
        if let Ok(value) = value.to_str() {
            written.insert(title_case(name.as_str()), value);
        }
    }
    written
}

/// `retry-after` as `Retry-After`: header names of NATS are compared byte by byte, and this is how people write them.
fn title_case(name: &str) -> String {
    match name {
        "ratelimit" => "RateLimit".to_owned(),
        "ratelimit-policy" => "RateLimit-Policy".to_owned(),
        _ => name.split('-').map(crate::openapi::capitalised).collect::<Vec<_>>().join("-"),
    }
}

/// The document, or where no message can carry it, all but its results.
fn fitting(document: Bytes, bytes_max: usize) -> Bytes {
    if document.len() <= bytes_max {
        return document;
    }
    let read: Option<JobDocument> = serde_json::from_slice(&document).ok();
    let emptied = read.map(|job| JobDocument { results: Vec::new(), late: Vec::new(), missing: Vec::new(), ..job });
    let mut value = serde_json::to_value(emptied).unwrap_or_default();
    if let Value::Object(fields) = &mut value {
        fields.insert("truncated".to_owned(), Value::Bool(true));
    }
    value.to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(headers: &[(&str, &str)]) -> Message {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, *value);
        }
        Message {
            subject: "api.v1.run.svc".into(),
            reply: None,
            payload: Bytes::new(),
            headers: Some(map),
            status: None,
            description: None,
            length: 0,
        }
    }

    #[test]
    fn headers_are_read_in_any_case_and_written_as_people_write_them() {
        let read =
            read_headers(&message(&[("Prefer", "wait=1"), ("prefer", "respond-async"), ("Authorization", "x"), ("X-REQUEST-ID", "r")]));
        assert_eq!((read.get_all("prefer").iter().count(), read.len()), (2, 3));
        assert_eq!(read["x-request-id"], "r");
        let mut headers = http::HeaderMap::new();
        for name in ["retry-after", "ratelimit", "ratelimit-policy", "x-request-id"] {
            headers.insert(name, http::HeaderValue::from_static("1"));
        }
        let written = written_headers(&headers);
        for name in ["Retry-After", "RateLimit", "RateLimit-Policy", "X-Request-Id"] {
            assert!(written.get(name).is_some(), "{name}");
        }
    }

    #[test]
    fn what_is_to_be_heard_is_read_as_nodes_read_it() {
        assert_eq!(events(&message(&[])).unwrap(), None);
        assert_eq!(events(&message(&[("Probe-Events", "1")])).unwrap(), Some(Events::All));
        assert_eq!(events(&message(&[("Probe-Events", "yes")])).unwrap_err().code(), Code::Invalid);
    }
}
