//! What a job would do, without doing it.

use std::collections::HashSet;

use probeops_shared::ids::NodeId;
use probeops_shared::outcome::NodeRef;
use probeops_shared::problem::Code;
use probeops_shared::selector::{Place, Selector};
use probeops_shared::tools::ToolName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::pick::Asker;
use super::{EXCLUDED_MAX, Excluded, Runs, Why, pointer};
use crate::access::Principal;
use crate::problem::Problem;
use crate::roster::{Roster, Seen};

/// Which nodes a job would go to, and why not to others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// How many runs it would have.
    pub runs: usize,
    /// What each selector comes to, in their order.
    pub selectors: Vec<Explained>,
}

/// What a selector comes to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Explained {
    /// The selector.
    pub selector: Selector,
    /// How many runs it adds to those of the selectors before it.
    pub runs: usize,
    /// The nodes that would run it. Where they are more than `runs`, the broker picks: one of each region.
    pub nodes: Vec<NodeRef>,
    /// The others that you may know of, and why not they; at most 1,000.
    pub excluded: Vec<Excluded>,
    /// What the job would be refused for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<NotChosen>,
}

/// Why a selector comes to nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NotChosen {
    /// The problem's code.
    pub code: Code,
    /// What is wrong, and what there is.
    pub detail: String,
}

/// Says for each selector what it comes to.
pub(in crate::jobs) fn explain(roster: &Roster, principal: &Principal, tool: ToolName, from: &[Selector]) -> Result<Explanation, Problem> {
    principal.check_tool(tool)?;
    roster.look(|nodes| {
        let asker = Asker { nodes, principal, tool };
        let mut runs = Runs::default();
        let mut selectors = Vec::with_capacity(from.len());
        for (index, selector) in from.iter().enumerate() {
            let pointer = pointer(from, index);
            let before = runs.destinations.len();
            let (chosen, problem) = match asker.pick(selector, &pointer) {
                Ok(pick) => {
                    let regions: HashSet<_> = pick.regions.iter().filter(|region| !runs.regions.contains(*region)).cloned().collect();
                    let mut chosen: HashSet<NodeId> = runs.add(pick, &pointer)?.into_iter().collect();
                    let of_regions = regions.iter().flat_map(|region| nodes.of_region(region));
                    chosen.extend(of_regions.filter(|seen| seen.takes(tool).is_some()).map(|seen| seen.grant.id.clone()));
                    (chosen, None)
                }
                Err(problem) => (HashSet::new(), Some(NotChosen { code: problem.code(), detail: problem.detail().to_owned() })),
            };
            selectors.push(Explained {
                selector: selector.clone(),
                runs: runs.destinations.len() - before,
                nodes: nodes.all().filter(|seen| chosen.contains(&seen.grant.id)).map(reference).collect(),
                excluded: asker.excluded(selector, &chosen),
                problem,
            });
        }
        Ok(Explanation { runs: runs.destinations.len(), selectors })
    })
}

fn reference(seen: Seen<'_>) -> NodeRef {
    NodeRef { id: seen.grant.id.clone(), region: seen.grant.region.clone() }
}

impl Asker<'_> {
    /// Every other node that the principal may know of, and why not it. Of a named node only itself.
    fn excluded(&self, selector: &Selector, chosen: &HashSet<NodeId>) -> Vec<Excluded> {
        if let Selector::Nodes { place: Place::Region(region), .. } = selector
            && !self.principal.sees_region(region)
        {
            return vec![Excluded { node: None, region: region.clone(), why: Why::OutsideLimits, detail: None }];
        }
        let meant = |seen: &Seen<'_>| match selector {
            Selector::Node(id) => seen.grant.id == *id,
            Selector::Nodes { .. } => true,
        };
        let others = self.nodes.all().filter(|seen| self.sees(seen) && meant(seen) && !chosen.contains(&seen.grant.id));
        let excluded = others.map(|seen| {
            let (why, detail) = self.why_not(seen, selector);
            Excluded { node: Some(seen.grant.id.clone()), region: seen.grant.region.clone(), why, detail }
        });
        excluded.take(EXCLUDED_MAX).collect()
    }

    fn why_not(&self, seen: Seen<'_>, selector: &Selector) -> (Why, Option<String>) {
        let elsewhere = match selector {
            Selector::Nodes { place: Place::Region(region), .. } => (seen.grant.region != *region).then_some(Why::OtherRegion),
            Selector::Nodes { place: Place::Labels(terms), .. } => {
                (!terms.iter().all(|term| term.holds(&seen.grant.labels))).then_some(Why::LabelMismatch)
            }
            Selector::Nodes { place: Place::Everywhere, .. } | Selector::Node(_) => None,
        };
        elsewhere.map(|why| (why, None)).or_else(|| self.unfit(seen)).unwrap_or((Why::NotNeeded, None))
    }
}
