//! How a run ends, and what it has to show then.

use std::time::Duration;

use probeops_shared::outcome::{Failure, FailureKind, Status};
use probeops_shared::tools::ToolName;

use crate::executors::Found;

/// What a run came to.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) status: Status,
    pub(crate) failure: Option<Failure>,
    pub(crate) found: Found,
}

impl Ending {
    /// Of a run that came to this; one that failed has what was kept of it, and where that is nothing, it prints why.
    pub(crate) fn of(tool: ToolName, result: Result<Found, Failure>, kept: Option<Found>) -> Self {
        match result {
            Ok(found) => Self { status: Status::Success, failure: None, found },
            Err(failure) => {
                let found = kept.unwrap_or_else(|| Found { report: None, output: format!("{tool}: {failure}\n") });
                Self { status: Status::Failed, failure: Some(failure), found }
            }
        }
    }
}

/// Waits for a run as long as its budget lasts.
pub(crate) async fn within<T>(budget: Duration, run: impl Future<Output = T>) -> Result<T, Failure> {
    let too_late = |_| Failure::new(FailureKind::TimedOut, format!("not finished within its budget of {} ms", budget.as_millis()));
    tokio::time::timeout(budget, run).await.map_err(too_late)
}
