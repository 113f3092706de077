//! The nodes: who was granted what (bucket NODES), and who is there (bucket PRESENCE). Held in memory, kept by watching.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use probeops_shared::ids::{NodeId, Region};
use probeops_shared::presence::{BEAT_INTERVAL_MS, BEATS_UNTIL_GONE, Beat};
use probeops_shared::registry::NodeGrant;
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::ToolName;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::watch::Change;

/// A node that has not been heard of for this long is not there, whatever the bucket says.
const GONE_AFTER: Duration = Duration::from_millis(BEAT_INTERVAL_MS * BEATS_UNTIL_GONE);

/// Who there is.
#[derive(Clone, Debug, Default)]
pub struct Roster(Arc<RwLock<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    granted: BTreeMap<NodeId, NodeGrant>,
    present: BTreeMap<NodeId, Present>,
}

#[derive(Debug)]
struct Present {
    beat: Beat,
    heard: Instant,
    heard_at: Timestamp,
}

/// A node.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Its region.
    pub region: Region,
    /// The tools it was granted.
    pub granted: Vec<ToolName>,
    /// When its credential ends.
    pub expires_at: Timestamp,
    /// Whether it was revoked.
    pub revoked: bool,
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
    /// Its round trip to the control plane, in milliseconds.
    pub(crate) rtt_ms: Option<f64>,
}

impl Roster {
    /// All nodes, by id.
    pub fn nodes(&self) -> Vec<Node> {
        self.read(|inner| inner.granted.values().map(|grant| inner.node(grant)).collect())
    }

    /// One node.
    pub fn node(&self, id: &NodeId) -> Option<Node> {
        self.read(|inner| inner.granted.get(id).map(|grant| inner.node(grant)))
    }

    /// All regions, by name.
    pub fn regions(&self) -> Vec<RegionSummary> {
        self.read(|inner| {
            let mut regions: BTreeMap<&Region, RegionSummary> = BTreeMap::new();
            for grant in inner.granted.values().filter(|grant| grant.revoked_at.is_none()) {
                let summary = regions.entry(&grant.region).or_insert_with(|| RegionSummary {
                    region: grant.region.clone(),
                    nodes: 0,
                    online: 0,
                    draining: 0,
                    tools: Vec::new(),
                });
                summary.nodes += 1;
                if let Some(present) = inner.online(grant) {
                    summary.online += 1;
                    if present.beat.draining {
                        summary.draining += 1;
                    } else {
                        summary.tools.extend(&present.beat.tools);
                    }
                }
            }
            regions
                .into_values()
                .map(|mut summary| {
                    summary.tools.sort_unstable();
                    summary.tools.dedup();
                    summary
                })
                .collect()
        })
    }

    /// The region that a node was granted.
    pub(crate) fn region(&self, node: &NodeId) -> Option<Region> {
        self.read(|inner| inner.granted.get(node).map(|grant| grant.region.clone()))
    }

    /// Whether any node was ever granted the region.
    pub(crate) fn knows_region(&self, region: &Region) -> bool {
        self.read(|inner| inner.granted.values().any(|grant| grant.region == *region && grant.revoked_at.is_none()))
    }

    /// The nodes of a region that say they can run the tool and take jobs.
    pub(crate) fn candidates(&self, region: &Region, tool: ToolName) -> Vec<Candidate> {
        self.read(|inner| {
            let grants = inner.granted.values().filter(|grant| grant.region == *region);
            let online = grants.filter_map(|grant| inner.online(grant));
            let able = online.filter(|present| present.beat.tools.contains(&tool) && !present.beat.draining);
            able.map(|present| Candidate {
                id: present.beat.node.clone(),
                free: present.beat.slots.get(&tool.class()).map_or(0, |slots| slots.free),
                rtt_ms: present.beat.rtt_ms,
            })
            .collect()
        })
    }

    /// Learns what bucket NODES says.
    pub(crate) fn learn_grant(&self, change: Change) {
        self.write(|inner| match change {
            // What is known stays known: a region does not disappear for the moment of a reconnect.
            Change::Restart => {}
            Change::Put(entry) => {
                if let Some(grant) = read::<NodeGrant>(&entry.value, &entry.key) {
                    inner.granted.insert(grant.id.clone(), grant);
                }
            }
            Change::Gone(entry) => {
                if let Ok(id) = entry.key.parse::<NodeId>() {
                    inner.granted.remove(&id);
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
                    inner.present.insert(beat.node.clone(), Present { beat, heard, heard_at });
                }
            }
            Change::Gone(entry) => {
                let node = entry.key.split_once('.').and_then(|(_, node)| node.parse::<NodeId>().ok());
                if let Some(node) = node {
                    inner.present.remove(&node);
                }
            }
        });
    }

    fn read<T>(&self, reader: impl FnOnce(&Inner) -> T) -> T {
        reader(&self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn write(&self, writer: impl FnOnce(&mut Inner)) {
        writer(&mut self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}

impl Inner {
    fn online(&self, grant: &NodeGrant) -> Option<&Present> {
        let present = self.present.get(&grant.id)?;
        (grant.revoked_at.is_none() && present.beat.region == grant.region && present.heard.elapsed() < GONE_AFTER).then_some(present)
    }

    fn node(&self, grant: &NodeGrant) -> Node {
        let online = self.online(grant);
        Node {
            id: grant.id.clone(),
            region: grant.region.clone(),
            granted: grant.tools.clone(),
            expires_at: grant.expires_at,
            revoked: grant.revoked_at.is_some(),
            online: online.is_some(),
            last_seen: self.present.get(&grant.id).map(|present| present.heard_at),
            beat: online.map(|present| present.beat.clone()),
        }
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
