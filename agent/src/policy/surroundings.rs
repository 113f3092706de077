//! What the policy needs to know of the moment: the node's own addresses, and where its servers are now.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use probeops_shared::host::Host;
use tokio::sync::Mutex;

use crate::net::interfaces::{self, Interfaces};
use crate::policy::{Endpoint, Policy};
use crate::resolve::Resolver;

/// How long what was found out is taken to be true.
const FRESH_FOR: Duration = Duration::from_mins(1);
/// How long finding out may hold up a run; what is not found out by then is asked for again after [`FRESH_FOR`].
const FOUND_WITHIN: Duration = Duration::from_secs(2);

/// The node's addresses and those of its servers, at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Surroundings {
    interfaces: Interfaces,
    endpoints: Vec<(Endpoint, SocketAddr)>,
}

impl Surroundings {
    #[cfg(test)]
    pub(crate) fn new(interfaces: Interfaces, endpoints: Vec<(Endpoint, SocketAddr)>) -> Self {
        Self { interfaces, endpoints }
    }

    /// The servers and where they are.
    pub(super) fn endpoints(&self) -> &[(Endpoint, SocketAddr)] {
        &self.endpoints
    }

    /// Whether it is this machine itself: what is sent to any address of its interfaces never leaves it.
    pub(super) fn is_here(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.interfaces.addresses.contains(&address)
    }

    /// Whether it is the broadcast address of a network the node is in.
    pub(super) fn is_broadcast(&self, address: IpAddr) -> bool {
        self.interfaces.broadcasts.contains(&address)
    }

    /// Whether what is sent to `address` (and `port`, where the tool has one) arrives at `own`. Every address of this machine reaches a
    /// server on it.
    pub(super) fn reaches(&self, address: IpAddr, port: Option<u16>, own: SocketAddr) -> bool {
        if port.is_some_and(|port| port != own.port()) {
            return false;
        }
        address == own.ip() || (port.is_some() && self.is_here(address) && self.is_here(own.ip()))
    }
}

/// The surroundings as last seen.
#[derive(Debug)]
pub(crate) struct Lookout(Mutex<Seen>);

#[derive(Debug)]
struct Seen {
    at: Option<Instant>,
    /// Whose places these are.
    of: Vec<Endpoint>,
    what: Arc<Surroundings>,
}

impl Lookout {
    /// Looks at the interfaces once, so that a node which cannot see them does not start.
    pub(crate) fn new() -> io::Result<Self> {
        let surroundings = Surroundings { interfaces: interfaces::read()?, endpoints: Vec::new() };
        Ok(Self(Mutex::new(Seen { at: None, of: Vec::new(), what: Arc::new(surroundings) })))
    }

    /// The surroundings, not older than a minute.
    pub(crate) async fn look(&self, policy: &Policy, resolver: &Resolver) -> Arc<Surroundings> {
        let mut seen = self.0.lock().await;
        if seen.at.is_none_or(|at| at.elapsed() > FRESH_FOR) || seen.of != policy.endpoints() {
            let interfaces = interfaces::read().unwrap_or_else(|error| {
                tracing::warn!(%error, "could not read the network interfaces; going by what they were");
                seen.what.interfaces.clone()
            });
            let endpoints = locate(policy.endpoints(), resolver, &seen.what.endpoints).await;
            let what = Arc::new(Surroundings { interfaces, endpoints });
            *seen = Seen { at: Some(Instant::now()), of: policy.endpoints().to_vec(), what };
        }
        Arc::clone(&seen.what)
    }
}

/// Where the endpoints are; where they were, if that cannot be found out now.
async fn locate(endpoints: &[Endpoint], resolver: &Resolver, before: &[(Endpoint, SocketAddr)]) -> Vec<(Endpoint, SocketAddr)> {
    let each = endpoints.iter().map(|endpoint| async move {
        let addresses = match &endpoint.host {
            Host::Address(address) => Ok(vec![*address]),
            Host::Name(name) => tokio::time::timeout(FOUND_WITHIN, resolver.lookup(name))
                .await
                .unwrap_or_else(|_| Err("no answer".to_owned()))
                .map(|found| found.addresses),
        };
        match addresses {
            Ok(addresses) => addresses
                .into_iter()
                .map(|address| (endpoint.clone(), SocketAddr::new(address.to_canonical(), endpoint.port)))
                .collect::<Vec<_>>(),
            Err(error) => {
                tracing::warn!(%endpoint, error, "could not resolve the node's own server, which tools must keep away from");
                before.iter().filter(|(known, _)| known == endpoint).cloned().collect()
            }
        }
    });
    futures_util::future::join_all(each).await.concat()
}
