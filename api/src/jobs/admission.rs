//! Whether a job may run: by the limits of who asks, by who is there, and by the time it is given.

use std::time::Duration;

use probeops_shared::host::{DnsName, Host};
use probeops_shared::ids::{NodeId, Region};
use probeops_shared::invalid::Invalid;
use probeops_shared::job::GRACE;
use probeops_shared::problem::Code;
use probeops_shared::tools::{Spec, ToolName};

use super::{JobRequest, Selector};
use crate::access::Principal;
use crate::broker::Destination;
use crate::problem::Problem;
use crate::roster::Roster;

/// When somebody may be there who is not now.
const ABSENT_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Where each run goes, if the principal may and somebody is there.
pub(super) fn destinations(roster: &Roster, principal: &Principal, request: &JobRequest) -> Result<Vec<Destination>, Problem> {
    let tool = request.spec.tool();
    principal.check_tool(tool)?;
    let one = request.from.len() == 1;
    let destination = |(index, selector): (usize, &Selector)| {
        let pointer = if one { "/from".to_owned() } else { format!("/from/{index}") };
        match selector {
            Selector::Region(region) => {
                principal.check_region(region, &pointer)?;
                region_has(roster, principal, (region, tool), &pointer)?;
                Ok(Destination::Region(region.clone()))
            }
            Selector::Node(id) => {
                node_is_there(roster, principal, id, &pointer)?;
                Ok(Destination::Node(id.clone()))
            }
        }
    };
    request.from.iter().enumerate().map(destination).collect()
}

fn node_is_there(roster: &Roster, principal: &Principal, id: &NodeId, pointer: &str) -> Result<(), Problem> {
    let Some(node) = roster.node(id).filter(|node| !node.revoked) else {
        let nodes = roster.nodes();
        let seen = nodes.iter().filter(|node| !node.revoked && principal.sees_region(&node.region));
        let names: Vec<String> = seen.map(|node| node.id.to_string()).collect();
        let detail = format!("there is no node `{id}`; {}", listed("the nodes are", &names));
        return Err(Problem::new(Code::NoSuchNode, detail).at(Invalid::new(pointer, "no such node")));
    };
    principal.check_region(&node.region, pointer)?;
    if node.online {
        return Ok(());
    }
    let absent = Problem::new(Code::NoNodeAvailable, format!("node {id} is not online"));
    Err(absent.at(Invalid::new(pointer, "not online")).retry_after(ABSENT_RETRY_AFTER))
}

fn region_has(roster: &Roster, principal: &Principal, (region, tool): (&Region, ToolName), pointer: &str) -> Result<(), Problem> {
    if !roster.candidates(region, tool).is_empty() {
        return Ok(());
    }
    let regions = roster.regions();
    if !roster.knows_region(region) {
        let seen = regions.iter().filter(|summary| principal.sees_region(&summary.region));
        let names: Vec<String> = seen.map(|summary| summary.region.to_string()).collect();
        let detail = format!("there is no region `{region}`; {}", listed("the regions are", &names));
        return Err(Problem::new(Code::NoSuchRegion, detail).at(Invalid::new(pointer, "no such region")));
    }
    let there = regions.iter().find(|summary| summary.region == *region);
    let tools = there.map(|summary| summary.tools.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap_or_default();
    let (online, draining) = there.map_or((0, 0), |summary| (summary.online, summary.draining));
    let draining = if draining == 0 { String::new() } else { format!(" ({draining} of them draining)") };
    let detail = format!(
        "no node of region {region} that can run {tool} takes jobs now; {online} of its nodes are online{draining}, and {}",
        listed("they can run", &tools)
    );
    let absent = Problem::new(Code::NoNodeAvailable, detail).at(Invalid::new(pointer, "nobody there can run this now"));
    Err(absent.retry_after(ABSENT_RETRY_AFTER))
}

fn listed(words: &str, names: &[String]) -> String {
    if names.is_empty() { format!("{words}: none") } else { format!("{words}: {}", names.join(", ")) }
}

/// The name or literal address is judged here, so that a caller learns at once; the node judges again, with every address.
pub(super) fn check_target(principal: &Principal, spec: &Spec) -> Result<(), Problem> {
    let Some(targets) = &principal.limits.targets else { return Ok(()) };
    let target = spec.target();
    let allowed = match (target.parse::<Host>(), target.parse::<DnsName>()) {
        (Ok(Host::Address(address)), _) | (Err(_), Ok(DnsName::Address(address))) => targets.allow_literal(address),
        (Ok(Host::Name(name)), _) | (Err(_), Ok(DnsName::Name(name))) => targets.allow_name(&name),
        (Err(_), Err(_)) => true,
    };
    if allowed {
        return Ok(());
    }
    let detail = format!("your credential is limited to the targets {targets}; `{target}` is none of them");
    Err(Problem::new(Code::Forbidden, detail).at(Invalid::new("/target", "outside the limit `targets`")))
}

/// How long a node may wait with starting: grace, or what `timeout_ms` leaves for it beside the budget.
pub(super) fn start_within(timeout: Option<Duration>, budget: Duration) -> Result<Duration, Problem> {
    let Some(timeout) = timeout else { return Ok(GRACE) };
    if let Some(left) = timeout.checked_sub(budget).filter(|left| !left.is_zero()) {
        return Ok(left.min(GRACE));
    }
    let (timeout_ms, budget_ms) = (timeout.as_millis(), budget.as_millis());
    let detail = format!(
        "{timeout_ms} ms is too short: this tool with these parameters may take {budget_ms} ms (lower `timeout`, `count` or `interval_ms`, or allow more than {budget_ms})"
    );
    Err(Problem::new(Code::Invalid, "timeout_ms is smaller than the tool's budget").at(Invalid::new("/timeout_ms", detail)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_caps_grace_but_not_the_budget() {
        let budget = Duration::from_secs(8);
        assert_eq!(start_within(None, budget).unwrap(), GRACE);
        assert_eq!(start_within(Some(Duration::from_secs(10)), budget).unwrap(), Duration::from_secs(2));
        assert_eq!(start_within(Some(Duration::from_secs(60)), budget).unwrap(), GRACE);
        assert!(start_within(Some(budget), budget).is_err());
    }
}
