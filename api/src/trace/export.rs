//! Sends spans in batches. A collector that does not take them is tried again for a while, then the batch is lost; meanwhile the queue fills.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use probeops_shared::VERSION;
use probeops_shared::ids::NodeId;
use probeops_shared::outcome::NodeRef;
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::client::{Answer, Collector};
use super::message::{ExportRequest, ExportResponse, KeyValue, Resource, ResourceSpans, Scope, ScopeSpans, Span};
use super::settings::TraceSettings;
use crate::metrics::Metrics;

/// How many spans are sent at once.
const BATCH_MAX: usize = 1_024;
/// How long a span waits for others.
const BATCH_WITHIN: Duration = Duration::from_secs(1);
/// How often a batch is tried.
const TRIES: u32 = 5;
/// The wait before the second try; it doubles.
const RETRY_MIN: Duration = Duration::from_millis(500);
/// The longest wait that a collector may ask for.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How long what is left may take when the API stops.
const LEFT_WITHIN: Duration = Duration::from_secs(5);

/// A span that is over.
#[derive(Debug)]
pub(super) struct Finished {
    /// The span.
    pub(super) span: Span,
    /// The node whose span it is; none of our own.
    pub(super) node: Option<NodeRef>,
}

/// As whom this API speaks.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    /// `service.name`.
    pub(super) service: String,
    /// `service.instance.id`.
    pub(super) instance: String,
}

/// Why a batch was not taken.
enum Refused {
    /// It may be later.
    Later { why: String, after: Option<Duration> },
    /// It never will.
    Never(String),
}

/// Sends what comes until told to stop, and then what is left.
pub(super) async fn export(
    mut waiting: mpsc::Receiver<Finished>,
    settings: TraceSettings,
    identity: Identity,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let mut exporter = Exporter { collector: Collector::new(settings.endpoint, settings.headers), identity, metrics, failing: false };
    loop {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        let gathered = stop.run_until_cancelled(gather(&mut waiting, &mut batch)).await;
        let sent = stop.run_until_cancelled(exporter.send(&batch)).await;
        match (gathered, sent) {
            (Some(()), Some(())) => {}
            // It may have been on its way: two of one id are one.
            (_, None) => break exporter.finish(batch, waiting).await,
            (None, Some(())) => break exporter.finish(Vec::new(), waiting).await,
        }
    }
}

/// Waits for a span and then a little for others.
async fn gather(waiting: &mut mpsc::Receiver<Finished>, batch: &mut Vec<Finished>) {
    if waiting.recv_many(batch, BATCH_MAX).await == 0 {
        return std::future::pending().await;
    }
    let until = Instant::now() + BATCH_WITHIN;
    while batch.len() < BATCH_MAX {
        let room = BATCH_MAX - batch.len();
        if !matches!(timeout_at(until, waiting.recv_many(batch, room)).await, Ok(1..)) {
            return;
        }
    }
}

struct Exporter {
    collector: Collector,
    identity: Identity,
    metrics: Metrics,
    /// Whether the last batch was lost: what goes on is said once.
    failing: bool,
}

impl Exporter {
    /// Sends a batch, however often it takes up to a bound.
    async fn send(&mut self, batch: &[Finished]) {
        if batch.is_empty() {
            return;
        }
        let body: Bytes = request(batch, &self.identity).encode_to_vec().into();
        let mut wait = RETRY_MIN;
        for tried in 1.. {
            match self.attempt(body.clone(), batch.len()).await {
                Ok(()) => return self.failing = false,
                Err(Refused::Later { after, .. }) if tried < TRIES => {
                    sleep(after.unwrap_or(wait).min(RETRY_MAX).mul_f64(0.75 + rand::random::<f64>() / 2.0)).await;
                    wait *= 2;
                }
                Err(Refused::Later { why, .. }) => return self.lose("unreachable", batch.len(), &why),
                Err(Refused::Never(why)) => return self.lose("refused", batch.len(), &why),
            }
        }
    }

    async fn attempt(&mut self, body: Bytes, count: usize) -> Result<(), Refused> {
        let Answer { status, retry_after, body } = self.collector.post(body).await.map_err(|why| Refused::Later { why, after: None })?;
        match status {
            200..300 => {
                let partial = ExportResponse::decode(body).ok().and_then(|response| response.partial_success).unwrap_or_default();
                let rejected = usize::try_from(partial.rejected_spans).unwrap_or(0).min(count);
                if rejected > 0 {
                    tracing::warn!(rejected, "the collector did not take all spans: {}", partial.error_message);
                    self.metrics.spans("refused", rejected);
                }
                self.metrics.spans("exported", count - rejected);
                Ok(())
            }
            // OTLP/HTTP names those that may be tried again.
            429 | 502 | 503 | 504 => Err(Refused::Later { why: format!("it answers {status}"), after: retry_after }),
            _ => Err(Refused::Never(format!("it answers {status}"))),
        }
    }

    fn lose(&mut self, result: &str, count: usize, why: &str) {
        self.metrics.spans(result, count);
        if !self.failing {
            tracing::warn!(count, "spans are lost, the collector does not take them: {why} (probeops_spans_total counts them)");
        }
        self.failing = true;
    }

    /// Sends what is left, as far as it can be sent soon.
    async fn finish(mut self, mut left: Vec<Finished>, mut waiting: mpsc::Receiver<Finished>) {
        waiting.close();
        while let Ok(finished) = waiting.try_recv() {
            left.push(finished);
        }
        let until = Instant::now() + LEFT_WITHIN;
        for batch in left.chunks(BATCH_MAX) {
            let body = request(batch, &self.identity).encode_to_vec().into();
            let within = until.saturating_duration_since(Instant::now());
            if !matches!(timeout(within, self.attempt(body, batch.len())).await, Ok(Ok(()))) {
                self.lose("unreachable", batch.len(), "this API has stopped");
            }
        }
    }
}

/// The spans by whose they are.
fn request(batch: &[Finished], identity: &Identity) -> ExportRequest {
    let mut of: HashMap<Option<&NodeId>, (Option<&NodeRef>, Vec<Span>)> = HashMap::new();
    for finished in batch {
        let node = finished.node.as_ref();
        of.entry(node.map(|node| &node.id)).or_insert_with(|| (node, Vec::new())).1.push(finished.span.clone());
    }
    let resource_spans = of.into_values().map(|(node, spans)| {
        let mut attributes = match node {
            None => vec![
                KeyValue::new("service.name", identity.service.as_str()),
                KeyValue::new("service.instance.id", identity.instance.as_str()),
                KeyValue::new("service.version", VERSION),
            ],
            Some(node) => vec![
                KeyValue::new("service.name", "probeops-agent"),
                KeyValue::new("service.instance.id", node.id.as_str()),
                KeyValue::new("probeops.region", node.region.as_str()),
            ],
        };
        attributes.push(KeyValue::new("service.namespace", "probeops"));
        let scope = Scope { name: "probeops".to_owned(), version: VERSION.to_owned() };
        ResourceSpans { resource: Some(Resource { attributes }), scope_spans: vec![ScopeSpans { scope: Some(scope), spans }] }
    });
    ExportRequest { resource_spans: resource_spans.collect() }
}
