//! What the DNS knows of the hops: their names, and who announces their addresses.

use std::collections::HashMap;
use std::net::IpAddr;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use probeops_shared::tools::trace::TraceProbe;
use probeops_shared::tools::traceroute::{HopName, HopOrigin, LOOKUPS_MAX};
use tokio::time::timeout;

use crate::executors::Context;

/// What is known of the hops, found beside all else.
pub(in crate::executors) struct Lookups<'a> {
    context: &'a Context,
    names: bool,
    asn: bool,
    known: HashMap<IpAddr, Known>,
    under_way: FuturesUnordered<BoxFuture<'a, (IpAddr, Answer)>>,
}

/// What is known of an address.
#[derive(Debug, Default)]
struct Known {
    /// How many answers it waits for.
    open: usize,
    name: Option<String>,
    asn: Vec<u32>,
}

enum Answer {
    Name(Option<String>),
    Asn(Vec<u32>),
}

impl<'a> Lookups<'a> {
    /// None yet; none ever of what is not wanted.
    pub(in crate::executors) fn new(context: &'a Context, names: bool, asn: bool) -> Self {
        Self { context, names, asn, known: HashMap::new(), under_way: FuturesUnordered::new() }
    }

    fn is_wanted(&self) -> bool {
        self.names || self.asn
    }

    /// Has an address looked up, once.
    pub(in crate::executors) fn want(&mut self, address: IpAddr) {
        if !self.is_wanted() || self.known.contains_key(&address) {
            return;
        }
        let (resolver, zone) = (&self.context.node.resolver, self.context.asn_zone.as_deref());
        let before = self.under_way.len();
        if self.names {
            let name = async move { (address, Answer::Name(timeout(LOOKUPS_MAX, resolver.name(address)).await.ok().flatten())) };
            self.under_way.push(Box::pin(name));
        }
        if self.asn {
            let asn = async move { (address, Answer::Asn(timeout(LOOKUPS_MAX, resolver.asn(address, zone)).await.unwrap_or_default())) };
            self.under_way.push(Box::pin(asn));
        }
        self.known.insert(address, Known { open: self.under_way.len() - before, ..Known::default() });
    }

    /// Waits until another answer is there; for ever, where none is waited for.
    pub(in crate::executors) async fn next(&mut self) {
        let Some((address, answer)) = self.under_way.next().await else { return std::future::pending().await };
        let known = self.known.entry(address).or_default();
        known.open = known.open.saturating_sub(1);
        match answer {
            Answer::Name(name) => known.name = name,
            Answer::Asn(asn) => known.asn = asn,
        }
    }

    /// Waits until all answers are there.
    pub(in crate::executors) async fn all(&mut self) {
        while !self.under_way.is_empty() {
            self.next().await;
        }
    }

    /// Whether all that can be known of these addresses is.
    pub(in crate::executors) fn are_over_for(&self, mut addresses: impl Iterator<Item = IpAddr>) -> bool {
        !self.is_wanted() || addresses.all(|address| self.known.get(&address).is_some_and(|known| known.open == 0))
    }

    /// The name of an address, if it has one.
    pub(in crate::executors) fn name(&self, address: IpAddr) -> Option<&str> {
        self.known.get(&address)?.name.as_deref()
    }

    /// The autonomous systems that announce an address.
    pub(in crate::executors) fn asn(&self, address: IpAddr) -> &[u32] {
        self.known.get(&address).map_or(&[], |known| &known.asn)
    }

    /// The names of those who answered.
    pub(in crate::executors) fn names_of(&self, probes: &[TraceProbe]) -> Vec<HopName> {
        let name = |address| Some(HopName { address, name: self.name(address)?.to_owned() });
        senders(probes).into_iter().filter_map(name).collect()
    }

    /// The origins of those who answered.
    pub(in crate::executors) fn origins_of(&self, probes: &[TraceProbe]) -> Vec<HopOrigin> {
        let origin = |address| HopOrigin { address, asn: self.asn(address).to_vec() };
        senders(probes).into_iter().map(origin).filter(|origin| !origin.asn.is_empty()).collect()
    }
}

/// Who answered, each once.
fn senders(probes: &[TraceProbe]) -> Vec<IpAddr> {
    let mut senders = Vec::new();
    for from in probes.iter().filter_map(|probe| probe.from) {
        if !senders.contains(&from) {
            senders.push(from);
        }
    }
    senders
}
