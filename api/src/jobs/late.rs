//! What nodes find after their run was over: kept with the job, beside what counts.

use probeops_shared::outcome::FailureKind;
use tokio::sync::mpsc;

use super::Jobs;
use crate::broker::LateAnswer;

impl Jobs {
    /// Keeps what comes late. What did not begin found nothing, and what was cancelled is not wanted.
    pub(super) async fn keep_late(&self, mut answers: mpsc::Receiver<LateAnswer>) {
        while let Some(LateAnswer { run, attempt, node, payload, span }) = answers.recv().await {
            let outcome = self.0.broker.attested(&run, node, &payload);
            let found = outcome.filter(|outcome| outcome.started_at.is_some() && outcome.failure_kind() != Some(FailureKind::Cancelled));
            let (Some(outcome), Some((id, index))) = (found, run.request_id.of_job()) else { continue };
            tracing::info!(job.id = %id, run = index, attempt, "an outcome came after its run was over, and is kept as late");
            self.0.tracer.worked(&run, &outcome, span);
            self.0.store.put_late((&run.principal, id), (index, attempt), &outcome);
            if let Some(live) = self.live().get(&id) {
                live.learn_late(outcome);
            }
        }
    }
}
