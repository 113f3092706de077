//! What is counted, for Prometheus to read: jobs, requests, nodes. Base units; no target, job or node is ever a label.

use std::sync::Arc;
use std::time::Duration;

use probeops_nats::connect::violations_total;
use probeops_shared::outcome::Outcome;
use probeops_shared::tools::ToolName;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder, exponential_buckets,
};

use crate::roster::RegionSummary;

/// The shortest time that is told apart, in seconds, and how many times longer each next one is.
const SECONDS: (f64, f64, usize) = (0.001, 2.5, 13);

/// What this process has counted.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    jobs: IntCounterVec,
    job_seconds: HistogramVec,
    queue_seconds: HistogramVec,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    spans: IntCounterVec,
    jwks: IntCounterVec,
    jwks_fetched_at: IntGauge,
    connected: IntGauge,
    violations: IntCounter,
    lies: IntCounter,
    queued: IntGauge,
    audit: Trail,
}

/// What is counted of the audit trail.
#[derive(Debug)]
struct Trail {
    recording: IntGauge,
    filled: IntGauge,
    lost: IntCounter,
}

impl Trail {
    fn registered(registry: &Registry) -> prometheus::Result<Self> {
        let made = Self {
            recording: IntGauge::new("probeops_audit_recording", "Whether the audit trail takes records.")?,
            filled: IntGauge::new("probeops_audit_filled_percent", "How full the audit trail is; every replica tells the same.")?,
            lost: IntCounter::new("probeops_audit_lost_total", "Records that the audit trail does not have.")?,
        };
        registry.register(Box::new(made.recording.clone()))?;
        registry.register(Box::new(made.filled.clone()))?;
        registry.register(Box::new(made.lost.clone()))?;
        Ok(made)
    }
}

impl Metrics {
    /// Nothing yet.
    pub fn new() -> Result<Self, String> {
        Self::registered().map_err(|error| format!("metrics cannot be made: {error}"))
    }

    fn registered() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let (first, factor, count) = SECONDS;
        let buckets = exponential_buckets(first, factor, count)?;
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let made = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(made.clone()))?;
            prometheus::Result::Ok(made)
        };
        let seconds = |name: &str, help: &str, label: &str| {
            let made = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.clone()), &[label])?;
            registry.register(Box::new(made.clone()))?;
            prometheus::Result::Ok(made)
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let made = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(made.clone()))?;
            prometheus::Result::Ok(made)
        };
        gauges("probeops_build_info", "The version of this API.", &["version"])?.with_label_values(&[probeops_shared::VERSION]).set(1);
        let connected = IntGauge::new("probeops_broker_connected", "Whether the broker can be reached.")?;
        registry.register(Box::new(connected.clone()))?;
        let violations =
            IntCounter::new("probeops_violations_total", "What the broker has forbidden this API; more than none is a fault.")?;
        registry.register(Box::new(violations.clone()))?;
        let lies = IntCounter::new(
            "probeops_node_violations_total",
            "What nodes said that is not believed, such as records that are not theirs.",
        )?;
        registry.register(Box::new(lies.clone()))?;
        let queued = IntGauge::new("probeops_jobs_queued", "Jobs that wait for a node, in all; every replica tells the same.")?;
        registry.register(Box::new(queued.clone()))?;
        let fetched_at = "When the keys that check JWTs were last fetched from their URL, in seconds since 1970; 0 where they were not.";
        let jwks_fetched_at = IntGauge::new("probeops_jwks_fetched_timestamp_seconds", fetched_at)?;
        registry.register(Box::new(jwks_fetched_at.clone()))?;
        Ok(Self(Arc::new(Inner {
            jobs: counters("probeops_jobs_total", "Jobs by what became of them; one for each node that was asked.", &["tool", "outcome"])?,
            job_seconds: seconds("probeops_job_duration_seconds", "From a job's dispatch to its outcome.", "tool")?,
            queue_seconds: seconds("probeops_job_queue_seconds", "Of that, what the tool itself did not take.", "tool")?,
            requests: counters("probeops_http_requests_total", "Requests by what they were answered.", &["method", "route", "status"])?,
            request_seconds: seconds("probeops_http_request_duration_seconds", "From a request to the head of its answer.", "route")?,
            spans: counters("probeops_spans_total", "Spans by what became of them: exported, or lost and why.", &["result"])?,
            jwks: counters("probeops_jwks_fetches_total", "Fetches of the keys that check JWTs from their URL.", &["result"])?,
            jwks_fetched_at,
            connected,
            violations,
            lies,
            queued,
            audit: Trail::registered(&registry)?,
            registry,
        })))
    }

    /// A node's share of a job is over, so long after it was dispatched.
    pub(crate) fn ended(&self, tool: ToolName, outcome: &Outcome, elapsed: Duration) {
        let became = outcome.failure_kind().map_or_else(|| "success".to_owned(), |kind| kind.to_string());
        let (elapsed_s, worked_s) = (elapsed.as_secs_f64(), outcome.duration_ms / 1000.0);
        self.0.jobs.with_label_values(&[tool.as_str(), &became]).inc();
        self.0.job_seconds.with_label_values(&[tool.as_str()]).observe(elapsed_s);
        self.0.queue_seconds.with_label_values(&[tool.as_str()]).observe((elapsed_s - worked_s).max(0.0));
    }

    /// A request was answered. `route` is a path of the table, or none.
    pub(crate) fn answered(&self, method: &str, route: &str, status: u16, elapsed: Duration) {
        self.0.requests.with_label_values(&[method, route, &status.to_string()]).inc();
        self.0.request_seconds.with_label_values(&[route]).observe(elapsed.as_secs_f64());
    }

    /// A node said what is not believed.
    pub(crate) fn node_lied(&self) {
        self.0.lies.inc();
    }

    /// So many jobs wait for a node.
    pub(crate) fn count_queued(&self, count: u64) {
        self.0.queued.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Whether the audit trail takes records.
    pub(crate) fn audit_records(&self, takes: bool) {
        self.0.audit.recording.set(takes.into());
    }

    /// How full the audit trail was when it was last looked at, in percent.
    pub(crate) fn audit_filled_percent(&self) -> i64 {
        self.0.audit.filled.get()
    }

    /// How full the audit trail is.
    pub(crate) fn audit_filled(&self, percent: u64) {
        self.0.audit.filled.set(i64::try_from(percent).unwrap_or(i64::MAX));
    }

    /// One record was left out of the audit trail.
    pub(crate) fn audit_lost(&self) {
        self.0.audit.lost.inc();
    }

    /// How many jobs wait for a node.
    pub(crate) fn queued(&self) -> u64 {
        u64::try_from(self.0.queued.get()).unwrap_or_default()
    }

    /// So many spans were `exported`, or lost: `queue_full`, `unreachable` or `refused`.
    pub(crate) fn spans(&self, result: &str, count: usize) {
        self.0.spans.with_label_values(&[result]).inc_by(u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// The keys that check JWTs were fetched, or could not be.
    pub(crate) fn jwks_fetched(&self, well: bool) {
        self.0.jwks.with_label_values(&[if well { "fetched" } else { "failed" }]).inc();
        if well {
            self.0.jwks_fetched_at.set(probeops_shared::timestamp::Timestamp::now().unix_s());
        }
    }

    /// All of it as Prometheus reads it (text format 0.0.4), with those regions that the reader may know of.
    pub(crate) fn text(&self, regions: &[RegionSummary], connected: bool) -> Result<String, String> {
        self.written(regions, connected).map_err(|error| error.to_string())
    }

    fn written(&self, regions: &[RegionSummary], connected: bool) -> prometheus::Result<String> {
        self.0.connected.set(connected.into());
        self.0.violations.inc_by(violations_total().saturating_sub(self.0.violations.get()));
        // Made anew for each reader, of whom not all see the same.
        let nodes = IntGaugeVec::new(Opts::new("probeops_nodes", "Nodes by whether they are there."), &["region", "state"])?;
        let readers = Registry::new();
        readers.register(Box::new(nodes.clone()))?;
        for region in regions {
            let states =
                [("ready", region.online - region.draining), ("draining", region.draining), ("offline", region.nodes - region.online)];
            for (state, count) in states {
                nodes.with_label_values(&[region.region.as_str(), state]).set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
        TextEncoder::new().encode_to_string(&[self.0.registry.gather(), readers.gather()].concat())
    }
}

#[cfg(test)]
mod tests {
    use probeops_shared::ids::RequestId;
    use probeops_shared::outcome::{Failure, FailureKind};

    use super::*;

    #[test]
    fn what_is_counted_is_told_in_the_text_format() {
        let metrics = Metrics::new().unwrap();
        let outcome = Outcome::failed(RequestId::new(), "ping", "a", Failure::new(FailureKind::Busy, ""));
        let outcome = Outcome { duration_ms: 250.0, ..outcome };
        metrics.ended(ToolName::Ping, &outcome, Duration::from_secs(1));
        metrics.answered("GET", "/v1/jobs/{id}", 200, Duration::from_millis(2));
        let text = metrics.text(&[], true).unwrap();
        for line in [
            "probeops_jobs_total{outcome=\"busy\",tool=\"ping\"} 1",
            "probeops_job_duration_seconds_sum{tool=\"ping\"} 1",
            "probeops_job_queue_seconds_sum{tool=\"ping\"} 0.75",
            "probeops_http_requests_total{method=\"GET\",route=\"/v1/jobs/{id}\",status=\"200\"} 1",
            "probeops_broker_connected 1",
            concat!("probeops_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        ] {
            assert!(text.lines().any(|told| told == line), "{line}\n{text}");
        }
    }
}
