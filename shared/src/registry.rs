//! What was granted to nodes and services: the values of buckets NODES and SERVICES, by id and name.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::access::{AtOnce, Rate};
use crate::ids::{Caller, LabelKey, LabelValue, NodeId, Region};
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
}

/// A service that may publish jobs straight to the broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceGrant {
    /// Its name, the last token of its jobs' subjects.
    pub name: Caller,
    /// The regions it may ask.
    pub regions: Vec<Region>,
    /// The tools it may ask for.
    pub tools: Vec<ToolName>,
    /// The nodes it may ask by id.
    pub nodes: Vec<NodeId>,
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
    /// When its credential ends.
    pub expires_at: Timestamp,
    /// When it was revoked; absent while it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
}
