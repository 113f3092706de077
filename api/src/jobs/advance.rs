//! What a job has taken before it begins, and what becomes of that if it does not: its rate is given back, and its key is let go, so that the same
//! call finds everything as it was.

use std::time::Duration;

use probeops_shared::audit::Record;
use tokio::time::sleep;

use super::Jobs;
use crate::audit::undone;
use crate::limits::Payment;
use crate::problem::Problem;

/// When to try again to let go a key, where the broker did not answer.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// What was taken for a job that has not begun.
#[derive(Debug)]
pub(super) struct Advance {
    pub(super) payment: Payment,
    pub(super) key: Option<Key>,
}

/// A key that belongs to it, as this call has written it.
#[derive(Clone, Debug)]
pub(super) struct Key {
    /// As it is called in the bucket.
    pub(super) name: String,
    pub(super) revision: u64,
}

impl Jobs {
    /// Records a job that is about to begin; what it has paid. One that cannot be recorded has cost nothing.
    pub(super) async fn recorded(&self, record: Record, advance: Advance) -> Result<Payment, Problem> {
        let Advance { payment, key } = advance;
        let Err(problem) = self.0.audit.stored(record).await else { return Ok(payment) };
        payment.give_back().await;
        if let Some(key) = key {
            self.let_go(key).await;
        }
        Err(problem)
    }

    /// Gives back what was paid for a job, and records that it does not run, if it has not begun after all. Its key stays: only the
    /// acknowledgement of its beginning may have been lost.
    pub(super) async fn paid_if_begun<T>(
        &self,
        begun: Result<Option<T>, String>,
        payment: Payment,
        record: Record,
    ) -> Result<Option<T>, String> {
        if !matches!(begun, Ok(Some(_))) {
            payment.give_back().await;
        }
        begun.inspect_err(|error| self.0.audit.record(undone(record, &format!("it could not be kept: {error}"))))
    }

    async fn let_go(&self, key: Key) {
        let Err(error) = self.0.broker.idempotency().let_go(&key.name, key.revision).await else { return };
        tracing::debug!(error, "an Idempotency-Key whose job did not begin could not be let go; trying again");
        let (tasks, stop) = self.0.afterwards.clone();
        let jobs = self.clone();
        let again = async move {
            while jobs.0.broker.idempotency().let_go(&key.name, key.revision).await.is_err() {
                sleep(RETRY_AFTER).await;
            }
        };
        drop(tasks.spawn(async move { stop.run_until_cancelled(again).await }));
    }
}
