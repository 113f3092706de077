//! What a node announces of itself, and what it is told in return.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::access::{AtOnce, Rate};
use crate::ids::{Caller, NodeId, Region};
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
    /// What it ran or refused, and what became of itself; the body is a [`crate::audit::chain::Batch`].
    Audit,
    /// It asks for the control plane's time, which every acknowledgement has, and says nothing; the body is empty.
    Time,
}

impl EventKind {
    /// The token on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Beat => "beat",
            Self::Bye => "bye",
            Self::Audit => "audit",
            Self::Time => "time",
        }
    }

    /// Reads the token.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Hello, Self::Beat, Self::Bye, Self::Audit, Self::Time].into_iter().find(|kind| kind.as_str() == text)
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
    /// Its owner's policy.
    pub policy: PolicyReport,
}

/// What a node tells of its owner's policy, which says whom tools may touch from there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyReport {
    /// The policy in one line.
    pub summary: String,
    /// The classes of addresses of which it leaves something open.
    pub allows: Vec<AddressClass>,
    /// SHA-256 of the owner's file, in hexadecimal; absent where there is none and the default policy holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Since when it is in force, by the node's clock.
    pub since: Timestamp,
    /// Why the owner's file, as it is now, is not in force: the last good one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl PolicyReport {
    /// Of a policy of which only this is known.
    pub fn new(summary: impl Into<String>) -> Self {
        Self { summary: summary.into(), allows: Vec::new(), digest: None, since: Timestamp::now(), error: None }
    }
}

/// A class of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AddressClass {
    /// The node itself.
    Loopback,
    /// Private networks (RFC 1918, RFC 6598, RFC 4193).
    Private,
    /// Everything else that is not always denied.
    Public,
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventAck {
    /// The control plane's clock, in milliseconds since the Unix epoch.
    pub time_unix_ms: i64,
    /// What callers may ask this node for; absent while the node knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares: Option<Shares>,
    /// That audit records are not taken, however often they are sent; absent where they are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refusal>,
}

/// Why audit records of a node are not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What is wrong with them.
    pub why: String,
    /// When the chain began that the trail has of this node; another one must begin later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Timestamp>,
}

/// What callers that publish straight to the broker may ask a node for. Replicas of the API are not among them: they keep to limits themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shares {
    /// Changes with what is said here; a node that knows it says so with each beat ([`crate::job::header::SHARES`]).
    pub digest: String,
    /// Each caller's share.
    pub callers: BTreeMap<Caller, Share>,
}

/// A node's share of what a caller may ask all nodes for; what is absent is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// So many runs in so long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<ShareRate>,
    /// So many runs at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_once: Option<u32>,
}

/// A share of a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareRate {
    /// How many.
    pub count: u32,
    /// In how long, in milliseconds.
    pub window_ms: u64,
}

impl Share {
    /// What the node at `place`, of so many, has of limits: all shares together are the whole. Where there are fewer runs than nodes, each node
    /// has one, in a window that is so much longer; and one at once.
    pub fn of(rate: Option<Rate>, at_once: Option<AtOnce>, place: u32, nodes: u32) -> Self {
        let nodes = nodes.max(1);
        let part = |whole: u32| whole / nodes + u32::from(place < whole % nodes);
        let rate = rate.map(|rate| {
            let window_ms = u64::try_from(rate.window.as_millis()).unwrap_or(u64::MAX);
            if rate.count >= nodes {
                ShareRate { count: part(rate.count), window_ms }
            } else {
                ShareRate { count: 1, window_ms: window_ms.saturating_mul(u64::from(nodes)).div_ceil(u64::from(rate.count.max(1))) }
            }
        });
        Self { rate, at_once: at_once.map(|at_once| part(at_once.get()).max(1)) }
    }
}

impl ShareRate {
    /// As a rate.
    pub fn rate(self) -> Rate {
        Rate { count: self.count, window: Duration::from_millis(self.window_ms) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_together_are_the_whole() {
        let shares = |rate: &str, nodes: u32| -> Vec<ShareRate> {
            (0..nodes).map(|place| Share::of(Some(rate.parse().unwrap()), None, place, nodes).rate.unwrap()).collect()
        };
        for (rate, nodes, counts) in
            [("60/m", 1, vec![60]), ("60/m", 2, vec![30, 30]), ("10/s", 3, vec![4, 3, 3]), ("3/s", 3, vec![1, 1, 1])]
        {
            assert_eq!(shares(rate, nodes).iter().map(|share| share.count).collect::<Vec<_>>(), counts, "{rate} over {nodes}");
        }
        let few = shares("2/m", 4);
        assert!(few.iter().all(|share| *share == ShareRate { count: 1, window_ms: 120_000 }), "{few:?}");
        let at_once = |place| Share::of(None, Some("5".parse().unwrap()), place, 2).at_once;
        assert_eq!([at_once(0), at_once(1)], [Some(3), Some(2)]);
        assert_eq!(Share::of(None, None, 0, 0), Share::default());
    }
}
