//! Whether the trail takes records, how full it is, and how many were left out.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use probeops_shared::subjects::{broker as subject, storage};
use tokio_util::sync::CancellationToken;

use crate::broker::Broker;
use crate::broker::room::filled;
use crate::metrics::Metrics;

/// For so long after the trail has refused a record no other is tried for a job.
const REFUSED_FOR: Duration = Duration::from_secs(1);
/// How often one looks how full the trail is.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// From when on its being full is warned of, in percent, and at how many more each time.
const WARN_PERCENT: u64 = 80;
const WARN_STEP_PERCENT: u64 = 5;

/// What is known of the trail.
#[derive(Clone, Debug)]
pub(super) struct Taking(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    metrics: Metrics,
    /// Why it does not take records, and when it last refused one.
    refuses: Mutex<Option<(String, Instant)>>,
    lost: AtomicU64,
}

impl Taking {
    /// One that takes them.
    pub(super) fn new(metrics: Metrics) -> Self {
        metrics.audit_records(true);
        Self(Arc::new(Inner { metrics, refuses: Mutex::default(), lost: AtomicU64::new(0) }))
    }

    /// It has taken one.
    pub(super) fn takes(&self) {
        if self.refuses_now().take().is_some() {
            self.0.metrics.audit_records(true);
            tracing::info!("the audit trail takes records again");
        }
    }

    /// It has not.
    pub(super) fn refuses(&self, why: String) {
        let mut refuses = self.refuses_now();
        if refuses.is_none() {
            self.0.metrics.audit_records(false);
            tracing::error!(why, "the audit trail takes no records");
        }
        *refuses = Some((why, Instant::now()));
    }

    /// Why it takes none, if so.
    pub(super) fn why_not(&self) -> Option<String> {
        self.refuses_now().as_ref().map(|(why, _)| why.clone())
    }

    /// Why it need not be tried just now, if so.
    pub(super) fn why_not_even_try(&self) -> Option<String> {
        self.refuses_now().as_ref().filter(|(_, last)| last.elapsed() < REFUSED_FOR).map(|(why, _)| why.clone())
    }

    /// One more record was left out.
    pub(super) fn lose(&self) {
        self.0.metrics.audit_lost();
        let lost = self.0.lost.fetch_add(1, Ordering::Relaxed) + 1;
        if lost.is_power_of_two() {
            tracing::error!(lost, "audit records are left out: the broker keeps them more slowly than they are made");
        }
    }

    /// How many were left out since this was last asked.
    pub(super) fn lost(&self) -> u64 {
        self.0.lost.swap(0, Ordering::Relaxed)
    }

    fn refuses_now(&self) -> MutexGuard<'_, Option<(String, Instant)>> {
        self.0.refuses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks how full the trail is, until told to stop.
    pub(super) async fn watch(self, broker: Broker, stop: CancellationToken) {
        let mut warned = WARN_PERCENT - WARN_STEP_PERCENT;
        loop {
            match filled(&broker.audit_reader().client(), storage::AUDIT, subject::AUDIT_ALL).await {
                Ok(filled) => {
                    self.0.metrics.audit_filled(filled.percent);
                    if filled.percent >= warned + WARN_STEP_PERCENT {
                        tracing::warn!(percent = filled.percent, "the audit trail is nearly full; when it is, no job is run");
                    }
                    warned = filled.percent.clamp(WARN_PERCENT - WARN_STEP_PERCENT, 100);
                }
                Err(error) => tracing::debug!(error, "it is not known how full the audit trail is"),
            }
            if stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
                return;
            }
        }
    }
}
