//! The callback of a job that is over.

use probeops_shared::ids::JobId;
use probeops_shared::timestamp::Timestamp;

use super::Jobs;
use super::store::{State, Stored};
use crate::callbacks::Due;

/// How long to try to queue a callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// Until it is, or this API stops.
    AllThereIs,
    /// A few times: somebody will come by again.
    Little,
}

impl Jobs {
    /// A job as it lies in the stream.
    pub(crate) async fn stored(&self, id: JobId) -> Result<Option<Stored>, String> {
        self.0.store.read(id).await
    }

    /// Puts the callback of a job with this end into the queue, if it has one, with its outcomes in the stream before it; the end itself must only be
    /// written afterwards, so that a job that is seen to be over has its callback. False when it could not, and must not be written.
    pub(super) async fn call_back(&self, end: &State, patience: Patience) -> bool {
        let Some(callback) = &end.deliver else { return true };
        if let Err(error) = self.0.store.settle(&end.document).await {
            tracing::error!(job.id = %end.document.id, %error, "a job's outcomes could not be kept, so its callback must wait");
            return false;
        }
        let finished_at = end.document.finished_at.unwrap_or_else(Timestamp::now);
        let due = Due {
            job: end.document.id,
            caller: end.document.caller.clone(),
            callback: callback.clone(),
            status: end.document.status,
            finished_at,
            expires_at: finished_at.plus(std::time::Duration::from_millis(callback.max_age_ms)),
            replay: 0,
            document: end.document.without_outcomes(),
        };
        self.0.callbacks.queue(&due, || patience == Patience::Little || self.0.tasks.is_closed()).await
    }
}
