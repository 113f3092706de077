//! What was granted to nodes and services: the values of buckets NODES and SERVICES, by id and name.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::access::{AtOnce, Rate, Targets};
use crate::bounded::shown;
use crate::enroll::{Digest, Mark, PublicKey};
use crate::ids::{Caller, LabelKey, LabelValue, NodeId, Region};
use crate::selector::Term;
use crate::text::as_text;
use crate::timestamp::Timestamp;
use crate::tools::ToolName;

/// How many labels a node may have.
pub const LABELS_MAX: usize = 32;

/// What a node was labelled with.
pub type Labels = BTreeMap<LabelKey, LabelValue>;

/// A node that was given a credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeGrant {
    /// Its id.
    pub id: NodeId,
    /// Its region.
    pub region: Region,
    /// The tools it may serve.
    pub tools: Vec<ToolName>,
    /// Its labels. They are granted: a node cannot give itself any.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// At most so many runs of all callers together in so long: `10/s`, `60/m`, `1000/h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// At most so many runs of all callers together at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_once: Option<AtOnce>,
    /// The public half of its key (an nkey, `U…`).
    pub public_key: String,
    /// When it was granted.
    pub created_at: Timestamp,
    /// When its credential ends.
    pub expires_at: Timestamp,
    /// When it was revoked; absent while it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
    /// Why it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_because: Option<String>,
    /// Whether the keymaster has yet to void its keys: it is asked once nothing can put another key in their place.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub revoking: bool,
    /// How it comes by its credentials; absent for one whose credential the operator carries to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enrolled: Option<Enrollment>,
}

impl NodeGrant {
    /// What is granted now, with this key and a credential until then: no labels and no limits.
    pub fn new(id: NodeId, region: Region, tools: Vec<ToolName>, public_key: impl Into<String>, expires_at: Timestamp) -> Self {
        Self {
            id,
            region,
            tools,
            labels: Labels::new(),
            rate: None,
            at_once: None,
            public_key: public_key.into(),
            created_at: Timestamp::now(),
            expires_at,
            revoked_at: None,
            revoked_because: None,
            revoking: false,
            enrolled: None,
        }
    }
}

/// How a node comes by its credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Enrollment {
    /// The id of the token that it enrolled with; absent for one whose public key was registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Whether it has yet to confirm that the broker takes its first credential. Where that has ended, the name is free again.
    #[serde(default)]
    pub pending: bool,
    /// Whether it is forgotten once it was away for a while.
    #[serde(default)]
    pub ephemeral: bool,
    /// A digest of what identifies its machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Digest>,
    /// What it wrote down when it last got a credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<Mark>,
    /// The key that is to take the place of the one it has, until it has confirmed that the broker takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successor: Option<PublicKey>,
    /// When the credential of that key ends, if it is not confirmed; until then no other takes its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successor_until: Option<Timestamp>,
    /// When it last changed its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_changed_at: Option<Timestamp>,
    /// The key that it had before and that is still to be revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predecessor: Option<PublicKey>,
}

/// A node's key that the sentry had revoked: the value of bucket REVOKED, under the key itself. The register of nodes says so, too, as soon as an
/// API has read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedKey {
    /// Whose it was.
    pub node: NodeId,
    /// Its public half.
    pub public_key: PublicKey,
    /// When.
    pub at: Timestamp,
    /// Why.
    pub because: String,
}

/// A service that may publish jobs straight to the broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceGrant {
    /// Its name, the last token of its jobs' subjects.
    pub name: Caller,
    /// The regions it may ask; none where it may only ask nodes by id.
    pub regions: Vec<Region>,
    /// The tools it may ask for.
    pub tools: Vec<ToolName>,
    /// The nodes it may ask by id.
    pub nodes: Vec<NodeId>,
    /// Of all of these only nodes of whose labels this holds. Such a service has its jobs run at the front door of the API, and publishes none itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<Term>>,
    /// Only these targets. Such a service has its jobs run at the front door of the API, and publishes none itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub targets: Option<Targets>,
    /// At most so many runs in so long, over all nodes: `10/s`, `60/m`, `1000/h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// At most so many runs at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_once: Option<AtOnce>,
    /// The public half of its key (an nkey, `U…`).
    pub public_key: String,
    /// When it was granted.
    pub created_at: Timestamp,
    /// Who made it: `key:<id>`, `jwt:<subject>`, or `command` where the signing keys are. It ends with that key.
    pub created_by: String,
    /// When its credential ends.
    pub expires_at: Timestamp,
    /// When it was revoked; absent while it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
}

/// How long a credential lasts: `90m`, `12h`, `30d`; at most [`ValidFor::MAX`], as long as revocations are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValidFor(Duration);

impl ValidFor {
    /// The longest, and as long as a credential lasts unless it is said.
    pub const MAX: Self = Self(Duration::from_hours(30 * 24));

    /// The same.
    pub fn duration(self) -> Duration {
        self.0
    }
}

impl FromStr for ValidFor {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let unit_s = match text.chars().last() {
            Some('s') => Some(1),
            Some('m') => Some(60),
            Some('h') => Some(3_600),
            Some('d') => Some(86_400),
            _ => None,
        };
        let parsed = unit_s.and_then(|unit_s: u64| {
            let count: u64 =
                text.get(..text.len() - 1)?.parse().ok().filter(|_| text.starts_with(|first: char| ('1'..='9').contains(&first)))?;
            Some(Self(Duration::from_secs(count.checked_mul(unit_s)?)))
        });
        parsed
            .filter(|valid_for| (1..=Self::MAX.0.as_secs()).contains(&valid_for.0.as_secs()))
            .ok_or_else(|| format!("must be a number and `s`, `m`, `h` or `d`, at most 30d, such as 12h, not {}", shown(&text.into())))
    }
}

impl fmt::Display for ValidFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (count, unit) = [(86_400, 'd'), (3_600, 'h'), (60, 'm')]
            .into_iter()
            .find(|(unit_s, _)| seconds.is_multiple_of(*unit_s))
            .map_or((seconds, 's'), |(unit_s, unit)| (seconds / unit_s, unit));
        write!(f, "{count}{unit}")
    }
}

const VALID_FOR_PATTERN: &str = "^(([1-9]|[12][0-9]|30)d|([1-9][0-9]?|[1-6][0-9]{2}|7[01][0-9]|720)h\
    |([1-9][0-9]{0,3}|[1-3][0-9]{4}|4[0-2][0-9]{3}|43[01][0-9]{2}|43200)m\
    |([1-9][0-9]{0,5}|1[0-9]{6}|2[0-4][0-9]{5}|25[0-8][0-9]{4}|259[01][0-9]{3}|2592000)s)$";
as_text!(ValidFor, {"type": "string", "pattern": VALID_FOR_PATTERN, "examples": ["12h"]});

impl NodeGrant {
    /// Whether its first credential has ended before it confirmed that the broker takes it. Its name is free again.
    pub fn has_failed_to_enroll(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at <= now && self.enrolled.as_ref().is_some_and(|enrolled| enrolled.pending)
    }

    /// Marks it as revoked, unless it is; whether it was not. Whoever marks it sees to it that its keys are voided then.
    pub fn mark_revoked(&mut self, at: Timestamp, because: &str) -> bool {
        if self.revoked_at.is_some() {
            return false;
        }
        (self.revoked_at, self.revoked_because, self.revoking) = (Some(at), Some(because.to_owned()), true);
        true
    }

    /// Every key of which a credential of this node may be in force: its own, and one that it had before or is about to have.
    pub fn keys(&self) -> Vec<String> {
        let others = self.enrolled.iter().flat_map(|enrolled| [&enrolled.successor, &enrolled.predecessor]).flatten();
        std::iter::once(self.public_key.clone()).chain(others.map(ToString::to_string)).collect()
    }
}

impl ServiceGrant {
    /// Whether it may publish jobs itself: not with limits that only the API can hold.
    pub fn direct(&self) -> bool {
        self.targets.is_none() && self.labels.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_is_a_number_and_a_unit() {
        for (text, seconds) in [("1s", 1), ("90m", 5_400), ("12h", 43_200), ("30d", 2_592_000), ("2592000s", 2_592_000)] {
            assert_eq!(text.parse::<ValidFor>().unwrap().duration().as_secs(), seconds, "{text}");
        }
        let pattern = regex::Regex::new(VALID_FOR_PATTERN).unwrap();
        for seconds in (1..=2_592_100_u64).step_by(97).chain(2_591_990..2_592_010) {
            for text in
                [format!("{seconds}s"), format!("{}m", seconds / 60), format!("{}h", seconds / 3_600), format!("{}d", seconds / 86_400)]
            {
                assert_eq!(pattern.is_match(&text), text.parse::<ValidFor>().is_ok(), "{text}");
            }
        }
        assert_eq!("5400s".parse::<ValidFor>().unwrap().to_string(), "90m");
        assert_eq!(ValidFor::MAX.to_string(), "30d");
        for bad in [
            "",
            "s",
            "0s",
            "01s",
            "31d",
            "721h",
            "43201m",
            "2592001s",
            "1w",
            "-1h",
            "+1h",
            "1.5h",
            "12",
            "99999999999999999999d",
            "1 h",
            "é",
        ] {
            assert!(bad.parse::<ValidFor>().is_err(), "{bad}");
        }
    }
}
