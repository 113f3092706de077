//! The nodes: who was granted what (bucket NODES), and who is there (bucket PRESENCE). Held in memory, kept by watching.

mod nodes;

use std::sync::{Arc, RwLock};
use std::time::Instant;

use probeops_shared::ids::{NodeId, Region};
use probeops_shared::presence::Beat;
use probeops_shared::registry::{Labels, NodeGrant};
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::ToolName;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use self::nodes::Present;
pub(crate) use self::nodes::{Nodes, Seen};
use crate::watch::Change;

/// Who there is.
#[derive(Clone, Debug, Default)]
pub struct Roster(Arc<RwLock<Nodes>>, Arc<Notify>);

/// A node.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Its region.
    pub region: Region,
    /// The tools it was granted.
    pub granted: Vec<ToolName>,
    /// The labels it was granted.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// When its credential ends.
    pub expires_at: Timestamp,
    /// Whether it was revoked.
    pub revoked: bool,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
    /// Why it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_because: Option<String>,
    /// Whether its key is not void yet, because the keymaster did not answer; it is asked again until it does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub revoking: bool,
    /// Whether it has been heard of within three beats.
    pub online: bool,
    /// When it was last heard of; absent when not since it left or this API started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Timestamp>,
    /// What it last said of itself; absent while it is not online.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beat: Option<Beat>,
}

/// A region.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RegionSummary {
    /// Its name.
    pub region: Region,
    /// How many nodes were granted it.
    pub nodes: usize,
    /// How many of them are online.
    pub online: usize,
    /// How many of those online take no new jobs.
    #[serde(default)]
    pub draining: usize,
    /// The tools that at least one of those that take jobs can run.
    pub tools: Vec<ToolName>,
}

/// A node that a job may be sent to.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    /// Its id.
    pub(crate) id: NodeId,
    /// Free slots of the tool's class when it last spoke.
    pub(crate) free: usize,
}

impl Roster {
    /// All nodes, by id.
    pub fn nodes(&self) -> Vec<Node> {
        self.look(|inner| inner.granted.values().map(|grant| inner.described(grant)).collect())
    }

    /// One node.
    pub fn node(&self, id: &NodeId) -> Option<Node> {
        self.look(|inner| inner.granted.get(id).map(|grant| inner.described(grant)))
    }

    /// The nodes that are `wanted`, by id.
    pub(crate) fn nodes_of(&self, wanted: impl Fn(&NodeGrant) -> bool) -> Vec<Node> {
        self.look(|inner| inner.granted.values().filter(|grant| wanted(grant)).map(|grant| inner.described(grant)).collect())
    }

    /// One node, if it is `wanted`.
    pub(crate) fn node_of(&self, id: &NodeId, wanted: impl Fn(&NodeGrant) -> bool) -> Option<Node> {
        self.look(|inner| inner.granted.get(id).filter(|grant| wanted(grant)).map(|grant| inner.described(grant)))
    }

    /// What a node was granted.
    pub(crate) fn grant(&self, id: &NodeId) -> Option<NodeGrant> {
        self.look(|inner| inner.granted.get(id).cloned())
    }

    /// The region that a node was granted.
    pub(crate) fn region(&self, node: &NodeId) -> Option<Region> {
        self.look(|inner| inner.granted.get(node).map(|grant| grant.region.clone()))
    }

    /// The node with this key, or that is about to have it.
    pub(crate) fn node_of_key(&self, public_key: &str) -> Option<NodeId> {
        self.look(|inner| {
            let is_its = |grant: &&NodeGrant| {
                let successor = grant.enrolled.as_ref().and_then(|enrolled| enrolled.successor.as_ref());
                grant.public_key == public_key || successor.is_some_and(|successor| successor.as_str() == public_key)
            };
            inner.granted.values().find(is_its).map(|grant| grant.id.clone())
        })
    }

    /// The nodes whose first credential has ended before they confirmed it.
    pub(crate) fn never_enrolled(&self) -> Vec<NodeId> {
        let now = Timestamp::now();
        self.look(|inner| inner.granted.values().filter(|grant| grant.has_failed_to_enroll(now)).map(|grant| grant.id.clone()).collect())
    }

    /// The nodes of which the keymaster has yet to void the keys, and those of which it has yet to void the one before.
    pub(crate) fn owed(&self) -> (Vec<NodeId>, Vec<NodeId>) {
        let owing = |grant: &&NodeGrant| grant.enrolled.as_ref().is_some_and(|enrolled| enrolled.predecessor.is_some());
        let ids = |inner: &Nodes, wanted: &dyn Fn(&&NodeGrant) -> bool| {
            inner.granted.values().filter(wanted).map(|grant| grant.id.clone()).collect()
        };
        self.look(|inner| (ids(inner, &|grant| grant.revoking), ids(inner, &|grant| grant.revoked_at.is_none() && owing(grant))))
    }

    /// The ephemeral nodes that are not there.
    pub(crate) fn ephemeral_away(&self) -> Vec<NodeId> {
        let is_ephemeral = |grant: &NodeGrant| grant.enrolled.as_ref().is_some_and(|enrolled| enrolled.ephemeral && !enrolled.pending);
        self.look(|nodes| {
            nodes.all().filter(|seen| seen.beat.is_none() && is_ephemeral(seen.grant)).map(|seen| seen.grant.id.clone()).collect()
        })
    }

    /// A node's round trip to the control plane, in milliseconds.
    pub(crate) fn rtt_ms(&self, node: &NodeId) -> Option<f64> {
        self.look(|nodes| nodes.node(node)?.beat?.rtt_ms)
    }

    /// The longest round trip to the control plane of a region's nodes, in milliseconds.
    pub(crate) fn slowest_rtt_ms(&self, region: &Region) -> f64 {
        self.look(|nodes| nodes.slowest_rtt_ms(region))
    }

    /// The nodes of a region that say they can run the tool and take jobs.
    pub(crate) fn candidates(&self, region: &Region, tool: ToolName) -> Vec<Candidate> {
        self.look(|nodes| {
            let able = nodes.of_region(region).filter_map(|seen| Some((seen, seen.takes(tool)?)));
            able.map(|(seen, free)| Candidate { id: seen.grant.id.clone(), free }).collect()
        })
    }

    /// These nodes; those with an announcement are online.
    #[cfg(test)]
    pub(crate) fn of(nodes: Vec<(NodeGrant, Option<Beat>)>) -> Self {
        let roster = Self::default();
        roster.write(|inner| {
            for (grant, beat) in nodes {
                let present = beat.map(|beat| (grant.id.clone(), Present { beat, heard: Instant::now(), heard_at: Timestamp::now() }));
                inner.grant(grant);
                inner.present.extend(present);
            }
        });
        roster
    }

    /// Waits until other nodes are there than before, or they can run something else; for one who waits.
    pub(crate) async fn changed(&self) {
        self.1.notified().await;
    }

    /// Learns what bucket NODES says.
    pub(crate) fn learn_grant(&self, change: Change) {
        self.1.notify_one();
        self.write(|inner| match change {
            // What is known stays known: a region does not disappear for the moment of a reconnect.
            Change::Restart => {}
            Change::Put(entry) => {
                if let Some(grant) = read::<NodeGrant>(&entry.value, &entry.key) {
                    inner.grant(grant);
                }
            }
            Change::Gone(entry) => {
                if let Ok(id) = entry.key.parse::<NodeId>() {
                    inner.forget(&id);
                }
            }
        });
    }

    /// Learns what bucket PRESENCE says.
    pub(crate) fn learn_presence(&self, change: Change) {
        self.write(|inner| match change {
            Change::Restart => {}
            Change::Put(entry) => {
                if let Some(beat) = read::<Beat>(&entry.value, &entry.key) {
                    // A watch begins with what was there before: it counts from when it was written.
                    let age = Timestamp::now().since(Timestamp::from_unix_ms(unix_ms(entry.created)).unwrap_or_else(Timestamp::now));
                    let heard = Instant::now().checked_sub(age).unwrap_or_else(Instant::now);
                    let heard_at = Timestamp::from_unix_ms(unix_ms(entry.created)).unwrap_or_else(Timestamp::now);
                    let same = inner.node(&beat.node).and_then(|seen| seen.beat).is_some_and(|before| before.tools == beat.tools);
                    if !same {
                        self.1.notify_one();
                    }
                    inner.hear(Present { beat, heard, heard_at });
                }
            }
            Change::Gone(entry) => {
                let node = entry.key.split_once('.').and_then(|(_, node)| node.parse::<NodeId>().ok());
                if let Some(node) = node {
                    self.1.notify_one();
                    inner.miss(&node);
                }
            }
        });
    }

    /// Looks at the nodes as they are now. Nobody learns anything new meanwhile, and who looks must not look again from within.
    pub(crate) fn look<T>(&self, reader: impl FnOnce(&Nodes) -> T) -> T {
        reader(&self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn write(&self, writer: impl FnOnce(&mut Nodes)) {
        writer(&mut self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}

fn unix_ms(at: time::OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
}

fn read<T: DeserializeOwned>(value: &[u8], key: &str) -> Option<T> {
    serde_json::from_slice(value)
        .inspect_err(|error| tracing::warn!(key, %error, "an entry of a bucket cannot be read and is passed over"))
        .ok()
}
