//! `echo`: the fabric itself. Asks nothing of the network.

use std::fmt::{self, Write as _};
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bounded::{Bounded, Seconds};
use crate::timestamp::Timestamp;
use crate::tools::{Class, Nothing, Tool};

/// Ask a node for its clock, its version and what dispatch cost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Echo {
    /// How many bytes of payload the answer carries back.
    pub payload_bytes: Bounded<0, 65_536, 0>,
    /// How long the answer may take, in seconds.
    pub timeout: Seconds<100, 30_000, 5_000>,
}

/// Anything, or nothing: `echo` sends no packet to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(inline)]
pub struct EchoTarget(#[schemars(length(max = 253))] String);

impl FromStr for EchoTarget {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() > 253 || text.chars().any(char::is_control) {
            return Err("must be at most 253 bytes long and without control characters; echo only repeats it".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for EchoTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EchoReport {
    /// The node's clock when it began.
    pub node_time: Timestamp,
    /// The agent's version.
    pub version: String,
    /// From the publisher's clock to the node's, both as they are, in milliseconds; absent when the publisher said no time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dispatch_ms: Option<f64>,
    /// The node's clock minus the control plane's, in milliseconds; absent before the first acknowledged beat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_offset_ms: Option<f64>,
    /// The payload asked for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub payload: String,
}

impl Tool for Echo {
    const SUMMARY: &'static str = "Ask a node for its clock, version and dispatch cost; sends nothing to the network";
    const CLASS: Class = Class::Light;
    const EXAMPLE_TARGET: &'static str = "hello";
    type Target = EchoTarget;
    type Report = EchoReport;
    type Progress = Nothing;

    fn budget(&self) -> Duration {
        self.timeout.duration()
    }

    fn output(&self, target: &EchoTarget, report: &EchoReport) -> String {
        let mut text = format!("ECHO {target}: node clock {}, agent {}", report.node_time, report.version);
        if let Some(dispatch_ms) = report.dispatch_ms {
            let _ = write!(text, ", dispatch {dispatch_ms:.3} ms");
        }
        if !report.payload.is_empty() {
            let _ = write!(text, ", {} bytes of payload", report.payload.len());
        }
        text.push('\n');
        text
    }
}
