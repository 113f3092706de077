//! What a node announces of itself, and what it is told in return.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{NodeId, Region};
use crate::timestamp::Timestamp;
use crate::tools::{Class, ToolName};

/// How often a node announces itself, in milliseconds; each wait is jittered by a tenth.
pub const BEAT_INTERVAL_MS: u64 = 10_000;
/// A node that has been silent for this many beats is gone.
pub const BEATS_UNTIL_GONE: u64 = 3;

/// How often a replica of the API says that it is there.
pub const REPLICA_BEAT: Duration = Duration::from_secs(2);
/// A replica of the API that has not said so for this long is gone. Longer than [`GRACE`](crate::job::GRACE): what it had not begun until then,
/// nobody may begin.
pub const REPLICA_GONE_AFTER: Duration = Duration::from_secs(6);

/// The kinds of event a node publishes: the last token of `ev.v1.<region>.<node>.<kind>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It has (re)connected; the body is a [`Beat`].
    Hello,
    /// It is still there; the body is a [`Beat`].
    Beat,
    /// It leaves; the body is a [`Beat`].
    Bye,
    /// What it ran or refused; the body is a list of [`crate::audit::Record`].
    Audit,
}

impl EventKind {
    /// The token on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Beat => "beat",
            Self::Bye => "bye",
            Self::Audit => "audit",
        }
    }

    /// Reads the token.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Hello, Self::Beat, Self::Bye, Self::Audit].into_iter().find(|kind| kind.as_str() == text)
    }
}

impl std::fmt::Display for EventKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One announcement of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Beat {
    /// The node.
    pub node: NodeId,
    /// Its region.
    pub region: Region,
    /// Changes with every start of the agent; with `counter` it orders announcements.
    pub boot_id: String,
    /// When the agent started, by its own clock.
    pub started_at: Timestamp,
    /// Counts up with every announcement of this start.
    pub counter: u64,
    /// The agent's version.
    pub version: String,
    /// The tools it can really run and has joined the groups of.
    pub tools: Vec<ToolName>,
    /// The tools it was granted and cannot run, and what would change that.
    #[serde(default)]
    pub unavailable: Vec<Unavailable>,
    /// Free and total slots of each class.
    pub slots: BTreeMap<Class, Slots>,
    /// It takes no new jobs.
    pub draining: bool,
    /// Its clock minus the control plane's, in milliseconds; absent before the first acknowledgement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_offset_ms: Option<f64>,
    /// How long the last announcement took to be acknowledged, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<f64>,
    /// Its owner's policy in one line.
    pub policy: String,
}

/// A tool that a node was granted and cannot run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Unavailable {
    /// The tool.
    pub tool: ToolName,
    /// What the node lacks.
    pub missing: String,
    /// The command that grants it.
    pub grant: String,
}

/// Slots of one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Slots {
    /// Free now.
    pub free: usize,
    /// In all.
    pub total: usize,
}

/// What the control plane answers to an event of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventAck {
    /// The control plane's clock, in milliseconds since the Unix epoch.
    pub time_unix_ms: i64,
}
