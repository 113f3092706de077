//! From one selector to nodes.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Duration;

use probeops_shared::ids::{NodeId, Region};
use probeops_shared::invalid::Invalid;
use probeops_shared::problem::Code;
use probeops_shared::registry::NodeGrant;
use probeops_shared::selector::{Place, Selector, Take};
use probeops_shared::tools::ToolName;

use super::{Excluded, Why};
use crate::access::Principal;
use crate::problem::Problem;
use crate::roster::{Nodes, Seen};

/// When somebody may be there who is not now.
const ABSENT_RETRY_AFTER: Duration = Duration::from_secs(1);
/// How many names an error lists.
const LISTED_MAX: usize = 50;

/// Who looks for nodes, and for what.
#[derive(Clone, Copy)]
pub(super) struct Asker<'a> {
    pub(super) nodes: &'a Nodes,
    pub(super) principal: &'a Principal,
    pub(super) tool: ToolName,
}

/// What one selector comes to.
#[derive(Debug, Default)]
pub(super) struct Pick {
    /// Any one node of each.
    pub(super) regions: Vec<Region>,
    /// Each of the nodes of these.
    pub(super) groups: Vec<Group>,
    /// Those that were meant and cannot.
    pub(super) missing: Vec<Excluded>,
}

/// Nodes, and who stands in for them.
#[derive(Debug)]
pub(super) struct Group {
    /// Each of these.
    pub(super) nodes: Vec<NodeId>,
    /// Those that stand in for them, the best first; none where no other is meant.
    pub(super) spares: Option<Vec<NodeId>>,
}

impl Pick {
    fn of(nodes: Vec<NodeId>, spares: Option<Vec<NodeId>>, missing: Vec<Excluded>) -> Self {
        Self { regions: Vec::new(), groups: vec![Group { nodes, spares }], missing }
    }
}

impl<'a> Asker<'a> {
    pub(super) fn pick(&self, selector: &Selector, pointer: &str) -> Result<Pick, Problem> {
        let (place, take) = match selector {
            Selector::Node(id) => return self.node(id, pointer).map(|()| Pick::of(vec![id.clone()], None, Vec::new())),
            Selector::Nodes { place, take } => (place, *take),
        };
        // The broker picks any node of a region: where not all of them may be used, we say which, and not the broker.
        let we_pick = self.principal.limits.tell_nodes_apart();
        match (place, take) {
            (Place::Region(region), Take::One) if !we_pick => {
                self.principal.check_region(region, pointer)?;
                // Which node, the broker says: one of the region's queue group.
                let pick = Pick { regions: vec![region.clone()], ..Pick::default() };
                if self.somebody_takes(region) { Ok(pick) } else { Err(self.nobody_in(region, pointer)) }
            }
            (Place::Region(region), _) => {
                self.principal.check_region(region, pointer)?;
                self.of(vec![self.of_region(region)], one_is_distinct(take)).map_err(|_missing| self.nobody_in(region, pointer))
            }
            (Place::Everywhere, Take::One) => {
                let mut pick = Pick::default();
                for region in self.regions() {
                    if we_pick {
                        match self.of(vec![self.of_region(region)], Take::Distinct(1)) {
                            Ok(picked) => pick.groups.extend(picked.groups),
                            Err(missing) => pick.missing.extend(missing),
                        }
                    } else if self.somebody_takes(region) {
                        pick.regions.push(region.clone());
                    } else {
                        pick.missing.extend(self.nodes.of_region(region).filter_map(|seen| self.missing(seen)));
                    }
                }
                if pick.regions.is_empty() && pick.groups.is_empty() {
                    Err(self.nobody(&pick.missing, "no node", pointer))
                } else {
                    Ok(pick)
                }
            }
            (Place::Everywhere, Take::All | Take::Distinct(_)) => {
                let regions = self.regions().map(|region| self.of_region(region)).collect();
                self.of(regions, take).map_err(|missing| self.nobody(&missing, "no node", pointer))
            }
            (Place::Labels(terms), _) => {
                let labelled = self.nodes.labelled(terms).into_iter();
                let labelled: Vec<Seen<'a>> = labelled.filter(|seen| self.sees(seen) && seen.grant.revoked_at.is_none()).collect();
                if labelled.is_empty() {
                    return Err(self.no_such_labels(selector, pointer));
                }
                self.of(vec![labelled], one_is_distinct(take))
                    .map_err(|missing| self.nobody(&missing, &format!("no node of `{selector}`"), pointer))
            }
        }
    }

    /// The regions that the principal may use.
    fn regions(&self) -> impl Iterator<Item = &'a Region> {
        self.nodes.regions().filter(|region| self.principal.sees_region(region))
    }

    pub(super) fn sees(&self, seen: &Seen<'_>) -> bool {
        self.principal.sees_node(seen.grant)
    }

    /// The nodes of a region that the principal may use.
    fn of_region(&self, region: &Region) -> Vec<Seen<'a>> {
        self.nodes.of_region(region).filter(|seen| self.sees(seen)).collect()
    }

    fn somebody_takes(&self, region: &Region) -> bool {
        self.nodes.of_region(region).any(|seen| seen.takes(self.tool).is_some())
    }

    /// So many of these: of the groups in turn, and of each first those with most free slots. If none can, those that were meant.
    fn of(&self, groups: Vec<Vec<Seen<'_>>>, take: Take) -> Result<Pick, Vec<Excluded>> {
        let mut missing = Vec::new();
        let mut able: Vec<std::vec::IntoIter<NodeId>> = Vec::with_capacity(groups.len());
        for group in groups {
            let mut fit: Vec<(Reverse<usize>, u32, &NodeId)> = Vec::with_capacity(group.len());
            for seen in group {
                match seen.takes(self.tool) {
                    // Among equals nobody is always the first.
                    Some(free) => fit.push((Reverse(free), rand::random(), &seen.grant.id)),
                    None => missing.extend(self.missing(seen)),
                }
            }
            if take != Take::All {
                fit.sort_unstable();
            }
            able.push(fit.into_iter().map(|(_, _, id)| id.clone()).collect::<Vec<_>>().into_iter());
        }
        let mut nodes = Vec::new();
        loop {
            let before = nodes.len();
            nodes.extend(able.iter_mut().filter_map(Iterator::next));
            if nodes.len() == before {
                break;
            }
        }
        match take {
            _ if nodes.is_empty() => Err(missing),
            Take::One | Take::All => Ok(Pick::of(nodes, None, missing)),
            Take::Distinct(count) => {
                let spares = nodes.split_off(usize::from(count).min(nodes.len()));
                let missing = if nodes.len() < usize::from(count) { missing } else { Vec::new() };
                Ok(Pick::of(nodes, Some(spares), missing))
            }
        }
    }

    /// A node that was meant and cannot; none for one that can, or whose credential was taken back.
    fn missing(&self, seen: Seen<'_>) -> Option<Excluded> {
        let (why, detail) = self.unfit(seen)?;
        let excluded = Excluded { node: Some(seen.grant.id.clone()), region: seen.grant.region.clone(), why, detail };
        (why != Why::Revoked).then_some(excluded)
    }

    /// Why a node cannot take the job, and what would change that.
    pub(super) fn unfit(&self, Seen { grant, beat }: Seen<'_>) -> Option<(Why, Option<String>)> {
        if grant.revoked_at.is_some() {
            return Some((Why::Revoked, None));
        }
        let Some(beat) = beat else { return Some((Why::Offline, None)) };
        if beat.draining {
            return Some((Why::Draining, None));
        }
        if beat.tools.contains(&self.tool) {
            return None;
        }
        if !grant.tools.contains(&self.tool) {
            return Some((Why::ToolNotGranted, None));
        }
        let unavailable = beat.unavailable.iter().find(|unavailable| unavailable.tool == self.tool);
        let detail = unavailable.map(|unavailable| format!("missing: {}; to grant it: {}", unavailable.missing, unavailable.grant));
        Some((Why::ToolUnavailable, detail))
    }

    /// A node that is named is asked whatever it last said, and answers for itself.
    fn node(&self, id: &NodeId, pointer: &str) -> Result<(), Problem> {
        let found = self.nodes.node(id).filter(|seen| self.sees(seen) && seen.grant.revoked_at.is_none());
        let Some(seen) = found else {
            let there = self.nodes.all().filter(|seen| self.sees(seen) && seen.grant.revoked_at.is_none());
            let names = listed("the nodes are", there.map(|seen| seen.grant.id.to_string()));
            let detail = format!("there is no node `{id}`; {names}");
            return Err(Problem::new(Code::NoSuchNode, detail).at(Invalid::new(pointer, "no such node")));
        };
        if seen.beat.is_some() {
            return Ok(());
        }
        let absent = Problem::new(Code::NoNodeAvailable, format!("node {id} is not online"));
        Err(absent.at(Invalid::new(pointer, "not online")).retry_after(ABSENT_RETRY_AFTER))
    }

    fn nobody_in(&self, region: &Region, pointer: &str) -> Problem {
        let of = |node: &NodeGrant| self.principal.sees_node(node);
        let Some(there) = self.nodes.summaries(|known| known == region, of).pop() else {
            let seen = self.nodes.summaries(|region| self.principal.sees_region(region), of);
            let names = listed("the regions are", seen.into_iter().map(|summary| summary.region.to_string()));
            let detail = format!("there is no region `{region}`; {names}");
            return Problem::new(Code::NoSuchRegion, detail).at(Invalid::new(pointer, "no such region"));
        };
        let draining = if there.draining == 0 { String::new() } else { format!(" ({} of them draining)", there.draining) };
        let detail = format!(
            "no node of region {region} that can run {} takes jobs now; {} of its nodes are online{draining}, and {}",
            self.tool,
            there.online,
            listed("they can run", there.tools.iter().map(ToString::to_string))
        );
        let absent = Problem::new(Code::NoNodeAvailable, detail).at(Invalid::new(pointer, "nobody there can run this now"));
        absent.retry_after(ABSENT_RETRY_AFTER)
    }

    fn no_such_labels(&self, selector: &Selector, pointer: &str) -> Problem {
        let there = self.nodes.all().filter(|seen| self.sees(seen) && seen.grant.revoked_at.is_none());
        let labels: BTreeSet<String> =
            there.flat_map(|seen| seen.grant.labels.iter().map(|(key, value)| format!("{key}={value}"))).collect();
        let detail = format!("no node has the labels of `{selector}`; {}", listed("the labels are", labels));
        Problem::new(Code::NoSuchNode, detail).at(Invalid::new(pointer, "no such node"))
    }

    fn nobody(&self, missing: &[Excluded], whom: &str, pointer: &str) -> Problem {
        let names = missing.iter().map(|excluded| {
            let node = excluded.node.as_ref().map_or_else(|| excluded.region.to_string(), ToString::to_string);
            format!("{node} ({})", excluded.why)
        });
        let detail = format!("{whom} that can run {} takes jobs now; {}", self.tool, listed("there are", names));
        let absent = Problem::new(Code::NoNodeAvailable, detail).at(Invalid::new(pointer, "nobody can run this now"));
        absent.retry_after(ABSENT_RETRY_AFTER)
    }
}

/// Any one node, where we say which.
fn one_is_distinct(take: Take) -> Take {
    if take == Take::One { Take::Distinct(1) } else { take }
}

fn listed(words: &str, names: impl IntoIterator<Item = String>) -> String {
    let mut names: Vec<String> = names.into_iter().collect();
    if names.is_empty() {
        return format!("{words}: none");
    }
    let more = names.len().saturating_sub(LISTED_MAX);
    names.truncate(LISTED_MAX);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{words}: {}{more}", names.join(", "))
}
