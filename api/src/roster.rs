//! The nodes: who was granted what (bucket NODES), and who is there (bucket PRESENCE). Held in memory, kept by watching.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use probeops_shared::ids::{LabelKey, LabelValue, NodeId, Region};
use probeops_shared::presence::{BEAT_INTERVAL_MS, BEATS_UNTIL_GONE, Beat};
use probeops_shared::registry::{Labels, NodeGrant};
use probeops_shared::selector::Term;
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
pub struct Roster(Arc<RwLock<Nodes>>);

/// The nodes as they are at one moment.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    granted: BTreeMap<NodeId, NodeGrant>,
    present: BTreeMap<NodeId, Present>,
    /// Who was granted a region, so that a job looks at nobody else.
    by_region: BTreeMap<Region, BTreeSet<NodeId>>,
    /// Who was granted a label, likewise.
    by_label: BTreeMap<(LabelKey, LabelValue), BTreeSet<NodeId>>,
}

/// A node as a job that looks for one sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'a> {
    /// What it was granted.
    pub(crate) grant: &'a NodeGrant,
    /// What it last said of itself; none while it is not online.
    pub(crate) beat: Option<&'a Beat>,
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
    /// The labels it was granted.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
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

    /// All regions, by name.
    pub fn regions(&self) -> Vec<RegionSummary> {
        self.look(|nodes| nodes.summaries(|_| true))
    }

    /// The region that a node was granted.
    pub(crate) fn region(&self, node: &NodeId) -> Option<Region> {
        self.look(|inner| inner.granted.get(node).map(|grant| grant.region.clone()))
    }

    /// A node's round trip to the control plane, in milliseconds.
    pub(crate) fn rtt_ms(&self, node: &NodeId) -> Option<f64> {
        self.look(|nodes| nodes.node(node)?.beat?.rtt_ms)
    }

    /// The longest round trip to the control plane of a region's nodes, in milliseconds.
    pub(crate) fn slowest_rtt_ms(&self, region: &Region) -> f64 {
        self.look(|nodes| nodes.of_region(region).filter_map(|seen| seen.beat?.rtt_ms).fold(0.0, f64::max))
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

    /// Learns what bucket NODES says.
    pub(crate) fn learn_grant(&self, change: Change) {
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

    /// Looks at the nodes as they are now. Nobody learns anything new meanwhile, and who looks must not look again from within.
    pub(crate) fn look<T>(&self, reader: impl FnOnce(&Nodes) -> T) -> T {
        reader(&self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn write(&self, writer: impl FnOnce(&mut Nodes)) {
        writer(&mut self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}

impl Seen<'_> {
    /// How many slots are free for the tool, if it says that it can run it and takes jobs.
    pub(crate) fn takes(&self, tool: ToolName) -> Option<usize> {
        let beat = self.beat.filter(|beat| !beat.draining && beat.tools.contains(&tool))?;
        Some(beat.slots.get(&tool.class()).map_or(0, |slots| slots.free))
    }
}

impl Nodes {
    /// One node.
    pub(crate) fn node(&self, id: &NodeId) -> Option<Seen<'_>> {
        self.granted.get(id).map(|grant| self.seen(grant))
    }

    /// All nodes, by id.
    pub(crate) fn all(&self) -> impl Iterator<Item = Seen<'_>> {
        self.granted.values().map(|grant| self.seen(grant))
    }

    /// The regions that nodes were granted.
    pub(crate) fn regions(&self) -> impl Iterator<Item = &Region> {
        self.by_region.keys()
    }

    /// The nodes of a region.
    pub(crate) fn of_region(&self, region: &Region) -> impl Iterator<Item = Seen<'_>> {
        self.by_region.get(region).into_iter().flatten().filter_map(|id| self.node(id))
    }

    /// The nodes of whose labels all this holds.
    pub(crate) fn labelled(&self, terms: &[Term]) -> Vec<Seen<'_>> {
        let with = |key: &LabelKey, value: &LabelValue| self.by_label.get(&(key.clone(), value.clone())).into_iter().flatten();
        let narrowed = terms.iter().filter_map(|term| match term {
            Term::Equal(key, value) => Some(with(key, value).collect::<Vec<_>>()),
            Term::In(key, values) => Some(values.iter().collect::<BTreeSet<_>>().into_iter().flat_map(|value| with(key, value)).collect()),
            // Most nodes lack a label: no index helps.
            Term::Unequal(..) => None,
        });
        let mut ids = narrowed.min_by_key(Vec::len).unwrap_or_else(|| self.granted.keys().collect());
        ids.sort_unstable();
        let seen = ids.into_iter().filter_map(|id| self.node(id));
        seen.filter(|seen| terms.iter().all(|term| term.holds(&seen.grant.labels))).collect()
    }

    /// The regions that are `wanted`, by name, without what was revoked.
    pub(crate) fn summaries(&self, wanted: impl Fn(&Region) -> bool) -> Vec<RegionSummary> {
        let summaries = self.by_region.keys().filter(|region| wanted(region)).map(|region| {
            let mut summary = RegionSummary { region: region.clone(), nodes: 0, online: 0, draining: 0, tools: Vec::new() };
            for seen in self.of_region(region).filter(|seen| seen.grant.revoked_at.is_none()) {
                summary.nodes += 1;
                match seen.beat {
                    None => {}
                    Some(beat) if beat.draining => (summary.online, summary.draining) = (summary.online + 1, summary.draining + 1),
                    Some(beat) => {
                        summary.online += 1;
                        summary.tools.extend(&beat.tools);
                    }
                }
            }
            summary.tools.sort_unstable();
            summary.tools.dedup();
            summary
        });
        summaries.filter(|summary| summary.nodes > 0).collect()
    }

    fn seen<'a>(&'a self, grant: &'a NodeGrant) -> Seen<'a> {
        Seen { grant, beat: self.online(grant).map(|present| &present.beat) }
    }

    fn grant(&mut self, grant: NodeGrant) {
        self.forget(&grant.id);
        self.by_region.entry(grant.region.clone()).or_default().insert(grant.id.clone());
        for (key, value) in &grant.labels {
            self.by_label.entry((key.clone(), value.clone())).or_default().insert(grant.id.clone());
        }
        self.granted.insert(grant.id.clone(), grant);
    }

    fn forget(&mut self, id: &NodeId) {
        let Some(grant) = self.granted.remove(id) else { return };
        leave(&mut self.by_region, &grant.region, id);
        for label in grant.labels {
            leave(&mut self.by_label, &label, id);
        }
    }

    fn online(&self, grant: &NodeGrant) -> Option<&Present> {
        let present = self.present.get(&grant.id)?;
        (grant.revoked_at.is_none() && present.beat.region == grant.region && present.heard.elapsed() < GONE_AFTER).then_some(present)
    }

    fn described(&self, grant: &NodeGrant) -> Node {
        let online = self.online(grant);
        Node {
            id: grant.id.clone(),
            region: grant.region.clone(),
            granted: grant.tools.clone(),
            labels: grant.labels.clone(),
            expires_at: grant.expires_at,
            revoked: grant.revoked_at.is_some(),
            online: online.is_some(),
            last_seen: self.present.get(&grant.id).map(|present| present.heard_at),
            beat: online.map(|present| present.beat.clone()),
        }
    }
}

fn leave<K: Ord>(index: &mut BTreeMap<K, BTreeSet<NodeId>>, key: &K, id: &NodeId) {
    if let Some(ids) = index.get_mut(key) {
        ids.remove(id);
        if ids.is_empty() {
            index.remove(key);
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
