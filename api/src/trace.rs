//! Traces: a span for each request, each run's dispatch, each node's work and each attempt of a callback, sent to a collector by OTLP over HTTP.
//!
//! A job goes from its caller over the broker to a node and back, and `traceparent` goes with it. Nodes have no way out of their networks but
//! the broker, so a node names its span in the head of its outcome, and the span is sent from here, as the node's own. Names are those of
//! OpenTelemetry's semantic conventions. A target, an option or a query is in no span: they may be secret, and the job's id leads to them.
//!
//! Nothing waits for a collector: what does not fit into the queue is lost, and counted. `spans` says what is told, `export` sends it, `client`
//! is the connection, `message` the protocol, `settings` what the operator may say.

mod client;
mod export;
mod message;
pub mod settings;
pub(crate) mod spans;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use probeops_shared::outcome::NodeRef;
use probeops_shared::traceparent::Traceparent;
use tokio::sync::mpsc;

use self::export::{Finished, Identity};
use self::message::{KeyValue, Span, Status, any_value, span};
use self::settings::TraceSettings;
use crate::jobs::Ending;
use crate::metrics::Metrics;

/// W3C trace context, in and out.
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What other systems say of the trace, passed on to spans as it came.
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// The longest `tracestate` that is passed on (W3C Trace Context 3.3.1.5: at least 512).
const TRACESTATE_BYTES_MAX: usize = 512;
/// How many spans wait to be sent; what does not fit is lost.
const QUEUE_MAX: usize = 16_384;
/// The flags of a span whose parent is known to be somebody else's, and of one whose parent is known to be ours (OTLP `SpanFlags`).
const PARENT_REMOTE: u32 = 0x300;
const PARENT_LOCAL: u32 = 0x100;

/// Where in a trace a span is.
#[derive(Clone, Debug)]
pub struct Context {
    /// The span.
    at: Traceparent,
    /// The span that caused it; none of one that others have made, and of the first of a trace.
    parent: Option<u64>,
    /// Whether it is one of ours, which is to be told.
    ours: bool,
    /// What other systems say of the trace.
    state: Option<Arc<str>>,
}

impl Context {
    /// The caller's, if a request has one.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let at = headers.get(TRACEPARENT)?.to_str().ok()?.parse().ok()?;
        let states: Vec<&str> = headers.get_all(TRACESTATE).iter().filter_map(|value| value.to_str().ok()).collect();
        let state = Some(states.join(",")).filter(|state| !state.is_empty() && state.len() <= TRACESTATE_BYTES_MAX);
        Some(Self { at, parent: None, ours: false, state: state.map(Arc::from) })
    }

    /// The caller's, of a request that was kept.
    pub(crate) fn kept(traceparent: &str) -> Option<Self> {
        Some(Self { at: traceparent.parse().ok()?, parent: None, ours: false, state: None })
    }

    /// As those who come after it are told.
    pub(crate) fn traceparent(&self) -> String {
        self.at.to_string()
    }

    /// The same as a header.
    pub(crate) fn header(&self) -> Option<HeaderValue> {
        HeaderValue::try_from(self.traceparent()).ok()
    }

    /// Whether the span will be told.
    pub(crate) fn is_told(&self) -> bool {
        self.ours && self.at.is_sampled()
    }
}

/// What tells spans; nothing where no collector is set.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tracer(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    /// The share of the traces begun here that is kept.
    ratio: f64,
    /// How requests come in: `http` or `https`.
    scheme: &'static str,
    queue: mpsc::Sender<Finished>,
    metrics: Metrics,
}

impl Tracer {
    /// Sends spans to a collector, if one is set, until what ends is over.
    pub(crate) fn start(
        settings: Option<TraceSettings>,
        (instance, scheme): (&str, &'static str),
        metrics: &Metrics,
        Ending { tasks, stop }: Ending<'_>,
    ) -> Self {
        let Some(settings) = settings else { return Self::default() };
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let identity = Identity { service: settings.service_name.clone(), instance: instance.to_owned() };
        tracing::info!(collector = %settings.endpoint, service = identity.service, ratio = settings.ratio, "spans are sent to a collector");
        let ratio = settings.ratio;
        drop(tasks.spawn(export::export(waiting, settings, identity, metrics.clone(), stop.clone())));
        Self(Some(Arc::new(Inner { ratio, scheme, queue, metrics: metrics.clone() })))
    }

    /// Begins the span of a request, below the caller's where he names one; whoever reads `traceparent` of the request then finds the new span.
    pub(crate) fn enter(&self, headers: &mut HeaderMap) -> Option<Context> {
        let inner = self.0.as_ref()?;
        let context = if let Some(caller) = Context::of(headers) {
            child_of(&caller)
        } else {
            let at = Traceparent::new_trace();
            Context { at: at.sampled(is_kept(at.trace_id(), inner.ratio)), parent: None, ours: true, state: None }
        };
        drop(headers.insert(TRACEPARENT, context.header()?));
        Some(context)
    }

    /// A span below this one; where none are told, those who come after are below this one itself.
    pub(crate) fn child(&self, parent: &Context) -> Context {
        if self.0.is_some() { child_of(parent) } else { parent.clone() }
    }

    /// The first span of a new trace, kept as the one is that caused it.
    pub(crate) fn follow(&self, cause: &str) -> Option<(Context, Traceparent)> {
        let cause: Traceparent = self.0.as_ref().and_then(|_| cause.parse().ok())?;
        let at = Traceparent::new_trace().sampled(cause.is_sampled());
        Some((Context { at, parent: None, ours: true, state: None }, cause))
    }

    /// Tells a span that is over.
    fn tell(&self, context: &Context, node: Option<NodeRef>, told: Told) {
        let Some(inner) = self.0.as_ref().filter(|_| context.is_told()) else { return };
        let (at, remote) = (context.at, if told.below_ours { PARENT_LOCAL } else { PARENT_REMOTE });
        let span = Span {
            trace_id: at.trace_id().to_be_bytes().to_vec(),
            span_id: at.span_id().to_be_bytes().to_vec(),
            parent_span_id: context.parent.map(|id| id.to_be_bytes().to_vec()).unwrap_or_default(),
            trace_state: context.state.as_deref().unwrap_or_default().to_owned(),
            flags: u32::from(at.flags()) | remote,
            name: told.name,
            kind: told.kind.into(),
            start_time_unix_nano: unix_ns(told.started),
            // What a node says of its time may be more than there is.
            end_time_unix_nano: unix_ns(told.started.checked_add(told.took).unwrap_or(told.started)),
            attributes: told.attributes,
            events: told.events,
            links: told.links,
            status: told.failed.map(|message| Status { message, code: message::STATUS_ERROR }),
        };
        if inner.queue.try_send(Finished { span, node }).is_err() {
            inner.metrics.spans("queue_full", 1);
        }
    }
}

/// What is told of a span.
#[derive(Debug)]
struct Told {
    name: String,
    kind: span::Kind,
    started: SystemTime,
    took: Duration,
    attributes: Vec<KeyValue>,
    events: Vec<span::Event>,
    links: Vec<span::Link>,
    /// Why it is an error, if it is one.
    failed: Option<String>,
    /// Whether its parent is a span of this process.
    below_ours: bool,
}

/// When something began that ends now.
fn began_at(began: Instant) -> (SystemTime, Duration) {
    let took = began.elapsed();
    (SystemTime::now().checked_sub(took).unwrap_or(UNIX_EPOCH), took)
}

fn unix_ns(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).ok().and_then(|since| u64::try_from(since.as_nanos()).ok()).unwrap_or_default()
}

/// An attribute.
fn attribute(key: &str, value: impl Into<any_value::Value>) -> KeyValue {
    KeyValue::new(key, value)
}

fn child_of(parent: &Context) -> Context {
    Context { at: parent.at.child(), parent: Some(parent.at.span_id()), ours: true, state: parent.state.clone() }
}

/// Whether a trace is of the share that is kept: by its id, so that everybody who is asked with the same share says the same.
fn is_kept(trace_id: u128, ratio: f64) -> bool {
    // 53 bits are what a float tells apart.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    let of_one = ((trace_id & ((1 << 53) - 1)) as u64) as f64 / (1_u64 << 53) as f64;
    of_one < ratio
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_traces_begun_here_a_share_is_kept() {
        let kept = |ratio: f64| (0..10_000).filter(|_| is_kept(Traceparent::new_trace().trace_id(), ratio)).count();
        assert_eq!((kept(0.0), kept(1.0)), (0, 10_000));
        // Seven standard deviations.
        assert!((2_200..2_800).contains(&kept(0.25)));
    }

    #[test]
    fn where_nothing_is_told_the_callers_context_is_passed_on_as_it_came() {
        let given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let mut headers = HeaderMap::from_iter([(TRACEPARENT, HeaderValue::from_static(given))]);
        let off = Tracer::default();
        assert!(off.enter(&mut headers).is_none() && headers[TRACEPARENT] == given);
        let caller = Context::of(&headers).unwrap();
        assert!(!caller.is_told() && off.child(&caller).traceparent() == given);
    }

    #[test]
    fn what_other_systems_say_of_a_trace_is_passed_on_unless_it_is_too_long() {
        let of = |states: &[String]| {
            let mut headers = HeaderMap::new();
            headers.insert(TRACEPARENT, HeaderValue::from_static("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"));
            for state in states {
                headers.append(TRACESTATE, HeaderValue::try_from(state).unwrap());
            }
            Context::of(&headers).unwrap().state
        };
        assert_eq!(of(&["a=1".to_owned(), "b=2".to_owned()]).as_deref(), Some("a=1,b=2"));
        assert_eq!((of(&[]), of(&["a".repeat(TRACESTATE_BYTES_MAX + 1)])), (None, None));
    }
}
