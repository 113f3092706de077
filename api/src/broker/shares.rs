//! What services that publish straight to the broker may ask each node for: a share of their limits each, told to the nodes with the
//! acknowledgement of a beat, and at once when a service or the nodes that are there have changed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_nats::Client;
use data_encoding::HEXLOWER;
use probeops_shared::ids::{Caller, NodeId, Region};
use probeops_shared::job::Verb;
use probeops_shared::presence::{Beat, Share, Shares};
use probeops_shared::registry::ServiceGrant;
use probeops_shared::subjects;
use probeops_shared::tools::ToolName;
use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::roster::Roster;

/// Changes that come so close together are told together.
const TOLD_WITHIN: Duration = Duration::from_millis(200);

/// What each node is told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told(Arc<RwLock<HashMap<NodeId, Arc<Shares>>>>);

/// A node that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Present {
    id: NodeId,
    region: Region,
    tools: Vec<ToolName>,
}

impl Told {
    /// What this node is to know, if it does not know it.
    pub(crate) fn news(&self, node: &NodeId, known: &str) -> Option<Shares> {
        let told = self.0.read().unwrap_or_else(PoisonError::into_inner);
        // Who knows nothing yet need not be told that there is nothing.
        let shares = told.get(node).filter(|shares| !(known.is_empty() && shares.callers.is_empty()));
        shares.filter(|shares| shares.digest != known).map(|shares| Shares::clone(shares))
    }

    /// Learns what all are to know; those that do not know it yet.
    fn change(&self, all: HashMap<NodeId, Arc<Shares>>) -> Vec<(NodeId, Arc<Shares>)> {
        let mut told = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let is_new = |node: &NodeId, shares: &Shares| match told.get(node) {
            Some(before) => before.digest != shares.digest,
            None => !shares.callers.is_empty(),
        };
        let changed = all.iter().filter(|(node, shares)| is_new(node, shares));
        let changed = changed.map(|(node, shares)| (node.clone(), Arc::clone(shares))).collect();
        *told = all;
        changed
    }
}

/// Tells nodes what has changed for them, whenever services or nodes have; ends with `stop`. `services` says which there are.
pub(super) fn start(
    told: &Told,
    (client, caller, roster): (&Client, &Caller, &Roster),
    (services, changed): (impl Fn() -> Vec<ServiceGrant> + Send + Sync + 'static, Arc<Notify>),
    (tasks, stop): (&TaskTracker, &CancellationToken),
) {
    let (told, client, caller, roster, stop) = (told.clone(), client.clone(), caller.clone(), roster.clone(), stop.clone());
    drop(tasks.spawn(async move {
        let telling = async {
            loop {
                tokio::select! {
                    () = changed.notified() => {}
                    () = roster.changed() => {}
                }
                tokio::time::sleep(TOLD_WITHIN).await;
                let shares = shares(&services(), &present(&roster));
                for (node, shares) in told.change(shares) {
                    tell(&client, &caller, &node, &shares).await;
                }
            }
        };
        stop.run_until_cancelled(telling).await
    }));
}

async fn tell(client: &Client, caller: &Caller, node: &NodeId, shares: &Shares) {
    let subject = subjects::node_control(node, Verb::Limits.as_str(), caller);
    let body = serde_json::to_vec(shares).unwrap_or_default();
    if let Err(error) = client.publish(subject, body.into()).await {
        // It is told again with its next beat.
        tracing::warn!(%node, %error, "a node could not be told what services may ask for");
    }
}

fn present(roster: &Roster) -> Vec<Present> {
    let of = |beat: &Beat| Present { id: beat.node.clone(), region: beat.region.clone(), tools: beat.tools.clone() };
    roster.look(|nodes| nodes.all().filter_map(|seen| seen.beat.map(of)).collect())
}

/// The shares of each node of these, which are ordered by id.
fn shares(services: &[ServiceGrant], nodes: &[Present]) -> HashMap<NodeId, Arc<Shares>> {
    let mut all: HashMap<&NodeId, BTreeMap<Caller, Share>> = nodes.iter().map(|node| (&node.id, BTreeMap::new())).collect();
    for service in services {
        let asks = |node: &&Present| {
            let meant = service.regions.contains(&node.region) || service.nodes.contains(&node.id);
            meant && service.tools.iter().any(|tool| node.tools.contains(tool))
        };
        let asked: Vec<&Present> = nodes.iter().filter(asks).collect();
        let count = u32::try_from(asked.len()).unwrap_or(u32::MAX);
        for (place, node) in (0..).zip(asked) {
            if let Some(callers) = all.get_mut(&node.id) {
                callers.insert(service.name.clone(), Share::of(service.rate, service.at_once, place, count));
            }
        }
    }
    let digested = |callers: BTreeMap<Caller, Share>| {
        let written = serde_json::to_vec(&callers).unwrap_or_default();
        let hash = Sha256::digest(written);
        Arc::new(Shares { digest: HEXLOWER.encode(hash.get(..8).unwrap_or_default()), callers })
    };
    all.into_iter().map(|(node, callers)| (node.clone(), digested(callers))).collect()
}

#[cfg(test)]
mod tests {
    use probeops_shared::presence::ShareRate;
    use probeops_shared::timestamp::Timestamp;

    use super::*;

    fn service(name: &str, regions: &[&str], nodes: &[&str], rate: Option<&str>) -> ServiceGrant {
        ServiceGrant {
            name: name.parse().unwrap(),
            regions: regions.iter().map(|region| region.parse().unwrap()).collect(),
            tools: vec![ToolName::Echo],
            labels: None,
            nodes: nodes.iter().map(|node| node.parse().unwrap()).collect(),
            targets: None,
            rate: rate.map(|rate| rate.parse().unwrap()),
            at_once: None,
            public_key: "U".to_owned(),
            created_at: Timestamp::now(),
            created_by: "command".to_owned(),
            expires_at: Timestamp::now(),
            revoked_at: None,
        }
    }

    fn node(id: &str, region: &str, tools: &[ToolName]) -> Present {
        Present { id: id.parse().unwrap(), region: region.parse().unwrap(), tools: tools.to_vec() }
    }

    #[test]
    fn a_rate_is_shared_by_those_who_may_be_asked() {
        let nodes = [
            node("a", "eu", &[ToolName::Echo]),
            node("b", "eu", &[ToolName::Echo, ToolName::Ping]),
            node("c", "eu", &[ToolName::Ping]),
            node("d", "us", &[ToolName::Echo]),
        ];
        let services = [service("billing", &["eu"], &["d"], Some("31/m")), service("free", &["us"], &[], None)];
        let told = shares(&services, &nodes);
        let count = |node: &str| {
            let shares = &told[&node.parse::<NodeId>().unwrap()];
            shares.callers.get(&"billing".parse::<Caller>().unwrap()).and_then(|share| share.rate).map(|rate: ShareRate| rate.count)
        };
        assert_eq!([count("a"), count("b"), count("c"), count("d")], [Some(11), Some(10), None, Some(10)]);
        assert_eq!(told[&"d".parse::<NodeId>().unwrap()].callers[&"free".parse::<Caller>().unwrap()], Share::default());
        let table = Told::default();
        assert_eq!(table.change(told.clone()).len(), 3, "nothing is not told");
        assert_eq!(table.change(told.clone()).len(), 0, "nothing has changed");
        let a: NodeId = "a".parse().unwrap();
        assert_eq!(table.news(&a, ""), Some(Shares::clone(&told[&a])));
        assert_eq!(table.news(&a, &told[&a].digest), None);
        let fewer = shares(&services, &nodes[1..]);
        let changed = table.change(fewer);
        assert_eq!(changed.len(), 2, "only those whose share is another one: {changed:?}");
    }
}
