//! The jobs of one caller, newest first.
//!
//! A job is listed where the stream first knew of it: one that its caller waited for at its end, any other at its beginning. So nothing moves
//! while pages are read.

use std::collections::HashMap;

use probeops_shared::ids::JobId;
use probeops_shared::invalid::Invalid;
use probeops_shared::problem::Code;
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::ToolName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::store::State;
use super::{JobStatus, Jobs, Selector};
use crate::access::Principal;
use crate::problem::Problem;

/// How many states one page looks at; a job has two or more.
const STATES_MAX: usize = 2_000;

/// Which jobs to list.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Of whom; of who asks unless said.
    pub caller: Option<String>,
    /// Only those that are so now.
    pub status: Option<JobStatus>,
    /// Only with this tool.
    pub tool: Option<ToolName>,
    /// How many.
    pub limit: usize,
    /// Older than the one there.
    pub cursor: Option<u64>,
}

/// A page of jobs.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct JobPage {
    /// The jobs, newest first.
    pub jobs: Vec<JobSummary>,
    /// Give this as `cursor` to read on; absent at the end. There may be more even when this page is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A job without its outcomes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobSummary {
    /// Its id.
    pub id: JobId,
    /// The tool.
    pub tool: String,
    /// The target in its normal form.
    pub target: String,
    /// The options, defaults included; what is secret of them is replaced by `***`.
    pub parameters: Map<String, Value>,
    /// From where.
    pub from: Vec<Selector>,
    /// On whose behalf.
    pub caller: String,
    /// Whether it goes on.
    pub status: JobStatus,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When its last run ended; absent while it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// How many outcomes it has, or will have.
    pub runs: usize,
}

impl From<State> for JobSummary {
    fn from(State { document, runs, .. }: State) -> Self {
        Self {
            runs: runs.unwrap_or(document.results.len()),
            id: document.id,
            tool: document.tool,
            target: document.target,
            parameters: document.parameters,
            from: document.from,
            caller: document.caller,
            status: document.status,
            created_at: document.created_at,
            finished_at: document.finished_at,
        }
    }
}

impl Jobs {
    /// A page of the jobs of this principal, or of another where it may see them.
    pub async fn list(&self, principal: &Principal, wanted: &Wanted) -> Result<JobPage, Problem> {
        let caller = wanted.caller.as_deref().unwrap_or(&principal.name);
        if caller != principal.name && !principal.oversees() {
            let detail = format!("the jobs of `{caller}` are not yours; only scope `admin` without limits sees those of others");
            return Err(Problem::new(Code::Forbidden, detail).at(Invalid::new("?caller", "not you")));
        }
        let unreadable = |error: String| Problem::new(Code::Unavailable, format!("jobs cannot be read now: {error}"));
        let newest = wanted.cursor.map(|cursor| cursor.saturating_sub(1));
        let mut states = self.0.store.backwards(caller, newest).await.map_err(unreadable)?;
        let (mut jobs, mut looked): (Vec<(u64, JobSummary)>, usize) = (Vec::new(), 0);
        // One more than wanted tells that there is more.
        while jobs.len() <= wanted.limit
            && let Some(window) = states.next().await.map_err(unreadable)?
        {
            looked += window.len();
            jobs.extend(self.listed(window, wanted).await.map_err(unreadable)?);
            if looked >= STATES_MAX && jobs.len() <= wanted.limit {
                let next = states.unread().map(|newest| (newest + 1).to_string());
                return Ok(JobPage { jobs: jobs.into_iter().map(|(_, job)| job).collect(), next });
            }
        }
        let next = jobs.get(wanted.limit).and_then(|_| jobs.get(wanted.limit.checked_sub(1)?)).map(|(sequence, _)| sequence.to_string());
        Ok(JobPage { jobs: jobs.into_iter().take(wanted.limit).map(|(_, job)| job).collect(), next })
    }

    /// Of these states those that are the first of a job that is wanted, with the job as it is now.
    async fn listed(&self, window: Vec<(u64, State)>, wanted: &Wanted) -> Result<Vec<(u64, JobSummary)>, String> {
        let of_tool = |state: &State| wanted.tool.is_none_or(|tool| state.document.tool == tool.as_str());
        let first: Vec<(u64, State)> = window.into_iter().filter(|(_, state)| state.is_first() && of_tool(state)).collect();
        let begun: Vec<&State> = first.iter().map(|(_, state)| state).filter(|state| !state.document.status.is_over()).collect();
        let mut now: HashMap<JobId, State> = self.0.store.now(&begun).await?;
        let jobs = first.into_iter().filter_map(|(sequence, state)| {
            // Of one that was written again the newest counts.
            let refreshed = state.refreshed;
            let state = now.remove(&state.document.id).unwrap_or(state);
            (state.refreshed == refreshed).then(|| (sequence, JobSummary::from(state)))
        });
        Ok(jobs.filter(|(_, job)| wanted.status.is_none_or(|status| job.status == status)).collect())
    }
}
