//! What is told of each kind of span.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::http::Method;
use probeops_shared::outcome::Outcome;
use probeops_shared::traceparent::Traceparent;

use super::message::{KeyValue, span};
use super::{Context, Told, Tracer, attribute, began_at, unix_ns};
use crate::broker::{Dispatched, Run};
use crate::callbacks::CallbackUrl;

/// What is told while a run is dispatched, for the span that is told in the end.
pub(crate) type Event = span::Event;

/// Something that happens now in a span.
pub(crate) fn event(name: &str, attributes: Vec<KeyValue>) -> Event {
    Event { time_unix_nano: unix_ns(SystemTime::now()), name: name.to_owned(), attributes }
}

/// Which attempt, and where it went.
pub(crate) fn attempted(number: u32, subject: &str) -> Event {
    event("attempt", vec![attribute("probeops.attempt", number), attribute("messaging.destination.name", subject)])
}

/// What became of an attempt, at which node, if at one.
pub(crate) fn answered(name: &str, number: Option<u32>, node: Option<&str>, failure: Option<String>) -> Event {
    let number = number.map(|number| attribute("probeops.attempt", number));
    let node = node.map(|node| attribute("probeops.node", node));
    event(name, number.into_iter().chain(node).chain(failure.map(|kind| attribute("error.type", kind))).collect())
}

/// A request that was answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    pub(crate) method: &'a Method,
    /// Of the table; empty of what is not in it.
    pub(crate) route: &'a str,
    pub(crate) path: &'a str,
    pub(crate) status: u16,
    pub(crate) id: &'a str,
    pub(crate) principal: Option<&'a str>,
}

/// An attempt of a callback.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Posted<'a> {
    pub(crate) url: &'a CallbackUrl,
    pub(crate) delivery: &'a str,
    /// Which attempt, from 1.
    pub(crate) number: u32,
    /// What it was answered with.
    pub(crate) answered: Result<u16, &'a str>,
}

impl Tracer {
    /// A request that began then was answered.
    pub(crate) fn request(&self, context: &Context, began: Instant, request: Request<'_>) {
        let Some(inner) = self.0.as_ref().filter(|_| context.is_told()) else { return };
        let Request { method, route, path, status, id, principal } = request;
        let method = if [Method::GET, Method::HEAD, Method::POST, Method::DELETE].contains(method) { method.as_str() } else { "_OTHER" };
        let mut attributes = vec![
            attribute("http.request.method", method),
            attribute("http.response.status_code", u32::from(status)),
            attribute("url.scheme", inner.scheme),
            attribute("probeops.request.id", id),
        ];
        let name = if route.is_empty() {
            method.to_owned()
        } else {
            // Of what is not in the table nobody knows what is in its path.
            attributes.extend([attribute("http.route", route), attribute("url.path", path)]);
            format!("{method} {route}")
        };
        attributes.extend(principal.map(|principal| attribute("user.id", principal)));
        let failed = (status >= 500).then(String::new);
        attributes.extend(failed.iter().map(|_| attribute("error.type", status.to_string())));
        let (started, took) = began_at(began);
        let (events, links) = (Vec::new(), Vec::new());
        let told = Told { name, kind: span::Kind::Server, started, took, attributes, events, links, failed, below_ours: false };
        self.tell(context, None, told);
    }

    /// A run that was dispatched then has its outcome: tells its dispatch, and what its node did.
    pub(crate) fn dispatched(&self, run: &Run, began: Instant, dispatched: &mut Dispatched) {
        let Some(context) = run.trace.as_ref().filter(|context| context.is_told()) else { return };
        let (outcome, (started, took)) = (&dispatched.outcome, began_at(began));
        let attempts = dispatched.told.events.iter().filter(|event| event.name == "attempt").count();
        let mut attributes = messaging(run, "send");
        attributes.push(attribute("probeops.attempts", u32::try_from(attempts).unwrap_or(u32::MAX)));
        attributes.extend(run.request_id.of_job().map(|(job, _)| attribute("messaging.message.conversation_id", job.to_string())));
        attributes.extend(outcome.failure_kind().map(|kind| attribute("error.type", kind.to_string())));
        let told = Told {
            name: format!("send {}", run.to.template()),
            kind: span::Kind::Producer,
            started,
            took,
            attributes,
            events: std::mem::take(&mut dispatched.told.events),
            links: Vec::new(),
            failed: outcome.failure_kind().map(|kind| kind.to_string()),
            below_ours: true,
        };
        self.tell(context, None, told);
        if dispatched.answered.is_some() {
            self.worked(run, outcome, dispatched.told.span);
        }
    }

    /// What a node did, under the span that it named.
    pub(crate) fn worked(&self, run: &Run, outcome: &Outcome, span: Option<Traceparent>) {
        let Some(context) = run.trace.as_ref().filter(|context| context.is_told()) else { return };
        let (Some(started_at), Some(node)) = (outcome.started_at, outcome.node.clone()) else { return };
        // One that names no span of this trace is older than they are.
        let at = span.filter(|span| span.trace_id() == context.at.trace_id()).unwrap_or_else(|| context.at.child()).sampled(true);
        let context = Context { at, parent: Some(context.at.span_id()), ..context.clone() };
        let mut attributes = messaging(run, "process");
        attributes.extend(outcome.failure_kind().map(|kind| attribute("error.type", kind.to_string())));
        let took = Duration::try_from_secs_f64(outcome.duration_ms / 1000.0).unwrap_or_default();
        let told = Told {
            name: format!("process {}", run.to.template()),
            kind: span::Kind::Consumer,
            // By the node's own clock, as in its log.
            started: UNIX_EPOCH + Duration::from_micros(started_at.unix_us()),
            took,
            attributes,
            events: Vec::new(),
            links: Vec::new(),
            failed: outcome.failure_kind().map(|kind| kind.to_string()),
            below_ours: false,
        };
        self.tell(&context, Some(node), told);
    }

    /// An attempt of a callback that began then, of a trace of its own, linked to the request that asked for it.
    pub(crate) fn called_back(&self, (context, cause): &(Context, Traceparent), began: Instant, posted: Posted<'_>) {
        let Posted { url, delivery, number, answered } = posted;
        let mut attributes = vec![
            attribute("http.request.method", "POST"),
            // Neither path nor query: there is what a receiver knows the caller by.
            attribute("server.address", url.host().to_string()),
            attribute("server.port", u32::from(url.port())),
            attribute("url.scheme", url.scheme().as_str()),
            attribute("probeops.delivery.id", delivery),
        ];
        if number > 1 {
            attributes.push(attribute("http.request.resend_count", number - 1));
        }
        let failed = match answered {
            Ok(status) => {
                attributes.push(attribute("http.response.status_code", u32::from(status)));
                (status >= 400).then(|| status.to_string())
            }
            Err(_) => Some("_OTHER".to_owned()),
        };
        attributes.extend(failed.iter().map(|kind| attribute("error.type", kind.as_str())));
        let link = span::Link {
            trace_id: cause.trace_id().to_be_bytes().to_vec(),
            span_id: cause.span_id().to_be_bytes().to_vec(),
            flags: cause.flags().into(),
        };
        let (started, took) = began_at(began);
        let told = Told {
            name: "POST".to_owned(),
            kind: span::Kind::Client,
            started,
            took,
            attributes,
            events: Vec::new(),
            links: vec![link],
            failed: failed.map(|kind| answered.err().map_or(kind, str::to_owned)),
            below_ours: false,
        };
        self.tell(context, None, told);
    }
}

/// What is known of a run's message.
fn messaging(run: &Run, operation: &str) -> Vec<KeyValue> {
    vec![
        attribute("messaging.system", "nats"),
        attribute("messaging.operation.type", operation),
        attribute("messaging.operation.name", operation),
        attribute("messaging.destination.template", run.to.template()),
        attribute("messaging.message.id", run.request_id.as_str()),
        attribute("probeops.tool", run.tool.as_str()),
    ]
}
