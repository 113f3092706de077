//! The audit trail: who asked what, and what was done. [`chain`]: how records are tied to one another; [`closing`]: how an export of
//! them ends; [`verify`]: whether it is whole.

pub mod chain;
pub mod closing;
pub mod verify;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{NodeId, Region};
use crate::timestamp::Timestamp;

/// The most records one message of the trail holds.
pub const BATCH_MAX: usize = 100;
/// The most bytes a record of a node has, as it is written.
pub const RECORD_BYTES_MAX: usize = 16 * 1024;

/// One entry of the trail.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Record {
    /// When.
    pub time: Timestamp,
    /// What happened.
    pub verdict: Verdict,
    /// On whose behalf: `key:<id>`, `jwt:<subject>`, `service:<name>` at the front door, or the name of a service that asked a node itself.
    pub principal: String,
    /// Who published the job, as attested by the broker; absent when it never got so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// The node; absent when none was reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// The node's region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Region>,
    /// The tool, as asked for.
    pub tool: String,
    /// The target, as asked for.
    pub target: String,
    /// The request or job.
    pub request_id: String,
    /// How it ended, in a word (`success`, a failure kind, a problem code) and a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// How long the node worked on it, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<f64>,
}

impl Record {
    /// A record of this moment that says no more than this.
    pub fn new(verdict: Verdict, principal: impl Into<String>) -> Self {
        Self {
            time: Timestamp::now(),
            verdict,
            principal: principal.into(),
            caller: None,
            node: None,
            region: None,
            tool: String::new(),
            target: String::new(),
            request_id: String::new(),
            detail: String::new(),
            duration_ms: None,
        }
    }
}

/// What a record says happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The API accepted a job.
    Accepted,
    /// The API refused a request, or did not begin with what it had recorded before; or the keymaster refused one of the API or the sentry.
    Refused,
    /// The API changed something about access: a key was made or revoked, a node drained or revoked.
    Changed,
    /// The keymaster signed a credential, or that a key is revoked, for the replica of the API, or the sentry, that asked; target is whose.
    Signed,
    /// Somebody read what is not his own: the trail, keys, services, somebody else's job.
    Read,
    /// A node begins with what a service asked of it itself, or the API with a job that waited for a node.
    Started,
    /// A node finished a run.
    Finished,
    /// A node did not run it: policy, bounds, deadline, slots.
    Denied,
    /// A node tells of itself: its agent begins or stops, its owner's policy, that it drains, another credential or key. The target says which.
    Reported,
    /// Whoever writes here had to leave out records; `detail` says how many and why.
    Lost,
    /// The broker refused what somebody tried whom it lets in, or did not let somebody in; or a connection was cut: a flood, a clone; or the API
    /// did not believe what a node said. Target is the subject, where there is one.
    Violation,
}

impl Verdict {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Accepted,
        Self::Refused,
        Self::Changed,
        Self::Signed,
        Self::Read,
        Self::Started,
        Self::Finished,
        Self::Denied,
        Self::Reported,
        Self::Lost,
        Self::Violation,
    ];

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Refused => "refused",
            Self::Changed => "changed",
            Self::Signed => "signed",
            Self::Read => "read",
            Self::Started => "started",
            Self::Finished => "finished",
            Self::Denied => "denied",
            Self::Reported => "reported",
            Self::Lost => "lost",
            Self::Violation => "violation",
        }
    }
}
