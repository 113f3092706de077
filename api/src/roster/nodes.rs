//! The nodes as they are at one moment, found by region and by label.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use probeops_shared::ids::{LabelKey, LabelValue, NodeId, Region};
use probeops_shared::presence::{BEAT_INTERVAL_MS, BEATS_UNTIL_GONE, Beat};
use probeops_shared::registry::NodeGrant;
use probeops_shared::selector::Term;
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::ToolName;

use super::{Node, RegionSummary};

/// A node that has not been heard of for this long is not there, whatever the bucket says.
const GONE_AFTER: Duration = Duration::from_millis(BEAT_INTERVAL_MS * BEATS_UNTIL_GONE);

/// The nodes as they are at one moment.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    pub(super) granted: BTreeMap<NodeId, NodeGrant>,
    /// Who has limits of its own.
    limited: BTreeSet<NodeId>,
    pub(super) present: BTreeMap<NodeId, Present>,
    /// Who was granted a region, so that a job looks at nobody else.
    by_region: BTreeMap<Region, BTreeSet<NodeId>>,
    /// The longest round trip of a region's nodes: every job to the region asks for it.
    slowest_rtt_ms: BTreeMap<Region, f64>,
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
pub(super) struct Present {
    pub(super) beat: Beat,
    pub(super) heard: Instant,
    pub(super) heard_at: Timestamp,
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

    /// Those that have limits of their own, by id.
    pub(crate) fn limited(&self) -> impl ExactSizeIterator<Item = &NodeGrant> {
        self.limited.iter().filter_map(|id| self.granted.get(id)).collect::<Vec<_>>().into_iter()
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

    /// The regions that are `wanted`, by name, as far as their nodes are, without what was revoked.
    pub(crate) fn summaries(&self, wanted: impl Fn(&Region) -> bool, wanted_node: impl Fn(&NodeGrant) -> bool) -> Vec<RegionSummary> {
        let summaries = self.by_region.keys().filter(|region| wanted(region)).map(|region| {
            let mut summary = RegionSummary { region: region.clone(), nodes: 0, online: 0, draining: 0, tools: Vec::new() };
            for seen in self.of_region(region).filter(|seen| seen.grant.revoked_at.is_none() && wanted_node(seen.grant)) {
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

    /// The longest round trip to the control plane of a region's nodes, in milliseconds.
    pub(crate) fn slowest_rtt_ms(&self, region: &Region) -> f64 {
        self.slowest_rtt_ms.get(region).copied().unwrap_or_default()
    }

    /// A node has said something of itself.
    pub(super) fn hear(&mut self, present: Present) {
        let (region, rtt_ms) = (present.beat.region.clone(), present.beat.rtt_ms);
        let before = self.present.insert(present.beat.node.clone(), present);
        self.rank(region, before.and_then(|before| before.beat.rtt_ms), rtt_ms);
    }

    /// A node is gone.
    pub(super) fn miss(&mut self, node: &NodeId) {
        if let Some(before) = self.present.remove(node) {
            self.rank(before.beat.region, before.beat.rtt_ms, None);
        }
    }

    /// Keeps the longest round trip; only where it was this node's and is no longer, all of the region are looked at.
    fn rank(&mut self, region: Region, before_ms: Option<f64>, now_ms: Option<f64>) {
        let slowest_ms = self.slowest_rtt_ms(&region);
        if let Some(now_ms) = now_ms.filter(|now_ms| *now_ms >= slowest_ms) {
            self.slowest_rtt_ms.insert(region, now_ms);
        } else if before_ms.is_some_and(|before_ms| before_ms >= slowest_ms) {
            let present = self.by_region.get(&region).into_iter().flatten().filter_map(|id| self.present.get(id));
            let slowest_ms = present.filter_map(|present| present.beat.rtt_ms).fold(0.0, f64::max);
            self.slowest_rtt_ms.insert(region, slowest_ms);
        }
    }

    pub(super) fn grant(&mut self, grant: NodeGrant) {
        self.forget(&grant.id);
        self.by_region.entry(grant.region.clone()).or_default().insert(grant.id.clone());
        for (key, value) in &grant.labels {
            self.by_label.entry((key.clone(), value.clone())).or_default().insert(grant.id.clone());
        }
        if grant.rate.is_some() || grant.at_once.is_some() {
            self.limited.insert(grant.id.clone());
        }
        self.granted.insert(grant.id.clone(), grant);
    }

    pub(super) fn forget(&mut self, id: &NodeId) {
        let Some(grant) = self.granted.remove(id) else { return };
        self.limited.remove(id);
        leave(&mut self.by_region, &grant.region, id);
        for label in grant.labels {
            leave(&mut self.by_label, &label, id);
        }
    }

    fn online(&self, grant: &NodeGrant) -> Option<&Present> {
        let present = self.present.get(&grant.id)?;
        (grant.revoked_at.is_none() && present.beat.region == grant.region && present.heard.elapsed() < GONE_AFTER).then_some(present)
    }

    pub(super) fn described(&self, grant: &NodeGrant) -> Node {
        let online = self.online(grant);
        Node {
            id: grant.id.clone(),
            region: grant.region.clone(),
            granted: grant.tools.clone(),
            labels: grant.labels.clone(),
            expires_at: grant.expires_at,
            revoked: grant.revoked_at.is_some(),
            revoked_at: grant.revoked_at,
            revoked_because: grant.revoked_because.clone(),
            revoking: grant.revoking,
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use probeops_shared::presence::PolicyReport;

    use super::*;

    fn heard(id: &str, rtt_ms: f64) -> Present {
        let now = Timestamp::now();
        let beat = Beat {
            node: id.parse().unwrap(),
            region: "eu".parse().unwrap(),
            boot_id: "b".to_owned(),
            started_at: now,
            counter: 1,
            version: "0".to_owned(),
            tools: Vec::new(),
            unavailable: Vec::new(),
            slots: BTreeMap::new(),
            draining: false,
            clock_offset_ms: None,
            rtt_ms: Some(rtt_ms),
            policy: PolicyReport::new(""),
        };
        Present { beat, heard: Instant::now(), heard_at: now }
    }

    #[test]
    fn the_longest_round_trip_of_a_region_is_that_of_who_is_there() {
        let region = "eu".parse().unwrap();
        let mut nodes = Nodes::default();
        for id in ["a", "b"] {
            nodes.by_region.entry("eu".parse().unwrap()).or_default().insert(id.parse().unwrap());
        }
        let mut slowest_after = |present: Present| {
            nodes.hear(present);
            nodes.slowest_rtt_ms(&region)
        };
        let told = [heard("a", 5.0), heard("b", 9.0), heard("b", 7.0), heard("a", 6.0), heard("b", 2.0)].map(&mut slowest_after);
        assert_eq!(told.map(f64::to_bits), [5.0, 9.0, 7.0, 7.0, 6.0].map(f64::to_bits));
        nodes.miss(&"a".parse().unwrap());
        assert_eq!(nodes.slowest_rtt_ms(&region).to_bits(), 2.0_f64.to_bits());
    }
}
