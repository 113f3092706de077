//! What became of a run: the one answer to a job message.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::{NodeId, Region, RequestId};
use crate::planted;
use crate::timestamp::Timestamp;

/// The largest outcome a node publishes, in bytes.
pub const OUTCOME_BYTES_MAX: usize = 256 * 1024;

/// What became of one run. Whoever only writes it may have the report as JSON that is written already.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Outcome")]
pub struct Outcome<R = Value> {
    /// The request this answers.
    pub request_id: RequestId,
    /// Whether the tool ran. A dead host or a refused port is a finding in the report, not a failure.
    pub status: Status,
    /// What the tool would print in a terminal.
    pub output: String,
    /// How long the node worked on it, in milliseconds.
    pub duration_ms: f64,
    /// The tool.
    pub tool: String,
    /// The target as given.
    pub target: String,
    /// Who ran it, or was to run it and did not; absent when nobody ran it and any node of a region might have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeRef>,
    /// When the node began; absent when it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// What was found (the tool's own shape); with `failure`, what was measured until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<R>,
    /// Why there is no complete report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// The outcome was larger than 256 KiB and has been cut.
    #[serde(default, skip_serializing_if = "is_false")]
    pub truncated: bool,
}

/// What a run has just found, told while it goes on; its outcome will have all of it again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// The request that is being answered.
    pub request_id: RequestId,
    /// How long after the node began, in milliseconds.
    pub elapsed_ms: f64,
    /// What was found (the tool's own shape).
    pub progress: Value,
    /// What the tool would print of it in a terminal; absent where it prints nothing yet.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output: String,
    /// How many before this one could not be told, because too many came at once; absent when none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missed: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

impl<R> Outcome<R> {
    /// An outcome without a run: what the dispatcher, or a node that refuses, has to say.
    pub fn failed(request_id: RequestId, tool: impl Into<String>, target: impl Into<String>, failure: Failure) -> Self {
        Self {
            request_id,
            status: Status::Failed,
            output: format!("{}: {}\n", failure.kind, failure.detail),
            duration_ms: 0.0,
            tool: tool.into(),
            target: target.into(),
            node: None,
            started_at: None,
            report: None,
            failure: Some(failure),
            truncated: false,
        }
    }

    /// The outcome as JSON, cut to `bytes_max`: first the output, then the report.
    pub fn to_bytes(mut self, bytes_max: usize) -> Vec<u8>
    where
        R: Serialize,
    {
        // Serialising plain data cannot fail; if it ever did, an empty body is refused by the reader.
        let written = |outcome: &Self| serde_json::to_vec(outcome).unwrap_or_default();
        let whole = written(&self);
        if whole.len() <= bytes_max {
            return whole;
        }
        self.truncated = true;
        let output = std::mem::take(&mut self.output);
        let mut spare = bytes_max.saturating_sub(written(&self).len());
        let fits = |c: &char| {
            // In JSON a character may be longer than it is: `\n`, `\u0001`.
            let length = serde_json::to_string(c).map_or(usize::MAX, |quoted| quoted.len() - 2);
            spare = spare.saturating_sub(length);
            spare > 0
        };
        self.output = output.chars().take_while(fits).collect();
        let cut = written(&self);
        if cut.len() <= bytes_max || planted!("outcome" if self.report.is_some() && self.failure.is_some()) {
            return cut;
        }
        self.output.clear();
        self.report = None;
        written(&self)
    }

    /// The kind of failure, if it failed.
    pub fn failure_kind(&self) -> Option<FailureKind> {
        self.failure.as_ref().map(|failure| failure.kind)
    }
}

/// Whether the tool ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It ran; what it found is in the report.
    Success,
    /// It did not, or not to its end; why is in `failure`.
    Failed,
}

/// The node that ran it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeRef {
    /// Its id.
    pub id: NodeId,
    /// Its region.
    pub region: Region,
}

/// Why a run has no complete report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Failure {
    /// Of which kind.
    pub kind: FailureKind,
    /// In words: what was being done, what stood in the way, what would help.
    pub detail: String,
    /// Where in the job message, as a JSON pointer; only with `invalid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pointer: Option<String>,
    /// When to try again, in milliseconds; only with `limited` and `busy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(kind: FailureKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), pointer: None, retry_after_ms: None }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.detail)
    }
}

impl std::error::Error for Failure {}

impl From<crate::invalid::Invalid> for Failure {
    fn from(invalid: crate::invalid::Invalid) -> Self {
        Self { pointer: Some(invalid.pointer), ..Self::new(FailureKind::Invalid, invalid.detail) }
    }
}

/// The closed set of reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The job is malformed.
    Invalid,
    /// The node's policy, or the principal's own limits, forbid the target.
    Denied,
    /// This node cannot run the tool or the option; the detail says what is missing and how to grant it.
    Unsupported,
    /// No free slot.
    Busy,
    /// The node is being drained.
    Draining,
    /// The deadline had passed.
    Expired,
    /// The budget was used up; what was measured so far is in the report.
    TimedOut,
    /// Somebody cancelled it.
    Cancelled,
    /// The target's name has no address.
    Unresolved,
    /// This caller's rate at this node is used up.
    Limited,
    /// A fault of ours; the detail has an id to look up in the node's log.
    Internal,
    /// No node took it (said by the dispatcher).
    Unavailable,
    /// A node accepted it and fell silent (said by the dispatcher).
    Lost,
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Invalid => "invalid",
            Self::Denied => "denied",
            Self::Unsupported => "unsupported",
            Self::Busy => "busy",
            Self::Draining => "draining",
            Self::Expired => "expired",
            Self::TimedOut => "timed_out",
            Self::Cancelled => "cancelled",
            Self::Unresolved => "unresolved",
            Self::Limited => "limited",
            Self::Internal => "internal",
            Self::Unavailable => "unavailable",
            Self::Lost => "lost",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(output: String, report: Value) -> Outcome {
        let failure = Failure::new(FailureKind::Internal, "x");
        Outcome {
            output,
            report: Some(report),
            failure: None,
            status: Status::Success,
            ..Outcome::failed(RequestId::new(), "dns", "example.com", failure)
        }
    }

    #[test]
    fn a_large_outcome_is_cut_and_says_so() {
        let small = outcome("fits".to_owned(), Value::from(1)).to_bytes(1000);
        assert!(!serde_json::from_slice::<Outcome>(&small).unwrap().truncated);
        let long_output = outcome("ü\n".repeat(5000), Value::from("kept")).to_bytes(2000);
        assert!(long_output.len() <= 2000);
        let read: Outcome = serde_json::from_slice(&long_output).unwrap();
        assert!(read.truncated && !read.output.is_empty() && read.report == Some(Value::from("kept")));
        let long_report = outcome("x".repeat(5000), Value::from("y".repeat(5000))).to_bytes(2000);
        let read: Outcome = serde_json::from_slice(&long_report).unwrap();
        assert!(read.truncated && read.report.is_none());
    }
}
