//! The names of the hops.

use std::collections::HashMap;
use std::net::IpAddr;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use probeops_shared::tools::trace::TraceProbe;
use probeops_shared::tools::traceroute::{HopName, NAMES_MAX};
use tokio::time::timeout;

use crate::executors::Context;

/// The names of the hops, found beside all else.
pub(in crate::executors) struct Names<'a> {
    context: &'a Context,
    wanted: bool,
    /// None, while it is not known.
    known: HashMap<IpAddr, Option<String>>,
    under_way: FuturesUnordered<BoxFuture<'a, (IpAddr, Option<String>)>>,
}

impl<'a> Names<'a> {
    /// None yet; none ever, where they are not wanted.
    pub(in crate::executors) fn new(context: &'a Context, wanted: bool) -> Self {
        Self { context, wanted, known: HashMap::new(), under_way: FuturesUnordered::new() }
    }

    /// Has an address looked up, once.
    pub(in crate::executors) fn want(&mut self, address: IpAddr) {
        if !self.wanted || self.known.contains_key(&address) {
            return;
        }
        self.known.insert(address, None);
        let resolver = &self.context.node.resolver;
        let found = async move { (address, timeout(NAMES_MAX, resolver.name(address)).await.ok().flatten()) };
        self.under_way.push(Box::pin(found));
    }

    /// Waits until another is known; for ever, where none is being looked up.
    pub(in crate::executors) async fn next(&mut self) {
        match self.under_way.next().await {
            Some((address, name)) => drop(self.known.insert(address, name.or_else(|| Some(String::new())))),
            None => std::future::pending().await,
        }
    }

    /// Waits until all are known.
    pub(in crate::executors) async fn all(&mut self) {
        while !self.under_way.is_empty() {
            self.next().await;
        }
    }

    /// Whether all that can be known of these addresses is.
    pub(in crate::executors) fn are_known_of(&self, mut addresses: impl Iterator<Item = IpAddr>) -> bool {
        !self.wanted || addresses.all(|address| self.known.get(&address).is_some_and(Option::is_some))
    }

    /// The name of an address, if it has one.
    pub(in crate::executors) fn get(&self, address: IpAddr) -> Option<&str> {
        self.known.get(&address)?.as_deref().filter(|name| !name.is_empty())
    }

    /// The names of those who answered.
    pub(in crate::executors) fn of(&self, probes: &[TraceProbe]) -> Vec<HopName> {
        let mut names: Vec<HopName> = Vec::new();
        for address in probes.iter().filter_map(|probe| probe.from) {
            if let Some(name) = self.get(address)
                && names.iter().all(|known| known.address != address)
            {
                names.push(HopName { address, name: name.to_owned() });
            }
        }
        names
    }
}
