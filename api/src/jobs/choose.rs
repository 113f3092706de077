//! Which nodes a job goes to, and why not to others. Who asks never learns of nodes in regions outside his limits.

mod explain;
mod pick;

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use probeops_shared::ids::{NodeId, Region};
use probeops_shared::invalid::Invalid;
use probeops_shared::selector::{RUNS_PER_JOB_MAX, Selector};
use probeops_shared::tools::ToolName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(super) use self::explain::explain;
pub use self::explain::{Explained, Explanation, NotChosen};
use self::pick::{Asker, Group, Pick};
use crate::access::Principal;
use crate::broker::{Destination, Spares, UsedNodes};
use crate::problem::Problem;
use crate::roster::Roster;

/// How many nodes are named that a job does not go to.
const EXCLUDED_MAX: usize = 1_000;

/// A node that a job does not go to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Excluded {
    /// Which; absent where it is a whole region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// Its region.
    pub region: Region,
    /// Why.
    pub why: Why,
    /// What would change that, where there is something to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Why a job does not go to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// It is in another region.
    OtherRegion,
    /// Its labels are not those that were asked for.
    LabelMismatch,
    /// It has not been heard of for three beats.
    Offline,
    /// It takes no new jobs.
    Draining,
    /// It was not granted the tool.
    ToolNotGranted,
    /// It was granted the tool and cannot run it; the detail says what is missing and how to grant it.
    ToolUnavailable,
    /// Its credential was taken back.
    Revoked,
    /// It is a region that your credential is not for.
    OutsideLimits,
    /// It would do, but enough others do, or it is used already.
    NotNeeded,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherRegion => "other_region",
            Self::LabelMismatch => "label_mismatch",
            Self::Offline => "offline",
            Self::Draining => "draining",
            Self::ToolNotGranted => "tool_not_granted",
            Self::ToolUnavailable => "tool_unavailable",
            Self::Revoked => "revoked",
            Self::OutsideLimits => "outside_limits",
            Self::NotNeeded => "not_needed",
        })
    }
}

/// Where the runs of a job go.
#[derive(Debug)]
pub(super) struct Chosen {
    /// One for each run.
    pub(super) destinations: Vec<Destination>,
    /// Nodes that were meant and cannot take the job now.
    pub(super) missing: Vec<Excluded>,
}

/// Chooses, if the principal may and somebody is there.
pub(super) fn choose(roster: &Roster, principal: &Principal, tool: ToolName, from: &[Selector]) -> Result<Chosen, Problem> {
    principal.check_tool(tool)?;
    roster.look(|nodes| {
        let asker = Asker { nodes, principal, tool };
        let mut runs = Runs::default();
        for (index, selector) in from.iter().enumerate() {
            let pointer = pointer(from, index);
            runs.add(asker.pick(selector, &pointer)?, &pointer)?;
        }
        Ok(Chosen { destinations: runs.destinations, missing: runs.missing })
    })
}

fn pointer(from: &[Selector], index: usize) -> String {
    if from.len() == 1 { "/from".to_owned() } else { format!("/from/{index}") }
}

/// What all selectors together come to: nothing runs twice.
#[derive(Debug, Default)]
struct Runs {
    destinations: Vec<Destination>,
    regions: HashSet<Region>,
    used: UsedNodes,
    missing: Vec<Excluded>,
    named: HashSet<Option<NodeId>>,
}

impl Runs {
    /// Adds what a selector comes to; the nodes it adds.
    fn add(&mut self, pick: Pick, pointer: &str) -> Result<Vec<NodeId>, Problem> {
        let regions = pick.regions.into_iter().filter(|region| self.regions.insert(region.clone()));
        self.destinations.extend(regions.map(Destination::Region));
        let mut all = Vec::new();
        for Group { nodes, spares } in pick.groups {
            let new: Vec<NodeId> = nodes.into_iter().filter(|node| self.used.mark(node)).collect();
            let spares = spares.map(|spares| Spares::new(spares, &self.used));
            let destination = |node: &NodeId| match &spares {
                Some(spares) => Destination::OneOf(node.clone(), Arc::clone(spares)),
                None => Destination::Node(node.clone()),
            };
            self.destinations.extend(new.iter().map(destination));
            all.extend(new);
        }
        let runs = self.destinations.len();
        if runs > usize::from(RUNS_PER_JOB_MAX) {
            let detail = format!(
                "this comes to {runs} runs; a job has at most {RUNS_PER_JOB_MAX}: select fewer nodes, or so many of them with *{RUNS_PER_JOB_MAX}"
            );
            return Err(Problem::invalid(Invalid::new(pointer, detail)));
        }
        for missing in pick.missing {
            if self.missing.len() < EXCLUDED_MAX && self.named.insert(missing.node.clone()) {
                self.missing.push(missing);
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests;
