//! From a target to the one address that a run may touch: resolved once, every candidate judged, the first allowed one kept.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use probeops_shared::host::{DnsName, Host};
use probeops_shared::outcome::{Failure, FailureKind};
use probeops_shared::tools::dns::DNS_PORT;
use probeops_shared::tools::network::{Family, FamilyChoice, RESOLUTION_MAX, Resolved, Source, ms};

use crate::executors::{Context, Touched, denied};
use crate::net::{interfaces, words};
use crate::policy::surroundings::Surroundings;
use crate::policy::{Denial, Policy, Touch};
use crate::resolve::{Found, Resolver};

/// Who judges what the principal may be pointed at, in messages.
const PRINCIPAL: &str = "the caller's own target limits";

/// How many denied addresses a failure names; whoever owns the name says how many there are.
const DENIALS_SHOWN_MAX: usize = 4;

/// An address that may be touched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Reached {
    /// The address.
    pub(super) address: IpAddr,
    /// How long its name took to resolve.
    pub(super) resolve_ms: Option<f64>,
}

impl Reached {
    /// What is told of it.
    pub(super) fn resolved(self) -> Resolved {
        Resolved { address: self.address, family: Family::of(self.address), resolve_ms: self.resolve_ms }
    }
}

impl Context {
    /// The address of `host` to touch on `port`.
    pub(super) async fn reach(&self, host: &Host, port: Option<u16>, family: FamilyChoice) -> Result<Reached, Failure> {
        self.reach_all(host, &[port], family).await
    }

    /// The same, as `resolver` finds it, which is a target like any other.
    pub(super) async fn reach_by(&self, resolver: &Host, host: &Host, port: Option<u16>, family: FamilyChoice) -> Result<Reached, Failure> {
        let Reached { address, .. } = self.reach(resolver, Some(DNS_PORT), FamilyChoice::Any).await?;
        let resolver = Resolver::new(&[SocketAddr::new(address, DNS_PORT)]);
        Box::pin(self.choose(&resolver, host, &[port], family)).await
    }

    /// The address of `host` to touch on all these ports: one that is denied denies the run, before any packet leaves.
    pub(super) async fn reach_all(&self, host: &Host, ports: &[Option<u16>], family: FamilyChoice) -> Result<Reached, Failure> {
        // Boxed, so that no run is as large as a look-up for as long as it lasts.
        Box::pin(self.choose(&self.node.resolver, host, ports, family)).await
    }

    async fn choose(&self, resolver: &Resolver, host: &Host, ports: &[Option<u16>], family: FamilyChoice) -> Result<Reached, Failure> {
        let (Found { addresses: candidates, aliases }, resolved_in) = match host {
            Host::Address(address) => (Found { addresses: vec![address.to_canonical()], aliases: Vec::new() }, None),
            Host::Name(name) => {
                // The surroundings are looked at meanwhile, so that they are known by then.
                let (_, found) = tokio::join!(self.in_force(), self.find(resolver, name, ports));
                let (found, took) = found?;
                (found, Some(took))
            }
        };
        // A name may take seconds to be found, and the owner may have thought better of it: what holds now decides. Nothing is waited for from
        // here until the run is known to touch it, so that a change after this ends it.
        let (policy, surroundings) = self.in_force().await;
        if let Host::Name(name) = host {
            self.permit_host(&policy, name, &aliases, ports)?;
        }
        let mut wanted: Vec<IpAddr> = candidates.iter().copied().filter(|address| family.includes(*address)).collect();
        if wanted.is_empty() {
            return Err(unresolved(host, family, &candidates));
        }
        wanted.sort_by_key(|address| family.rank(*address));
        let mut denials = Vec::new();
        for address in wanted {
            match ports.iter().try_for_each(|port| self.permit_address(&policy, (host, address, *port), &surroundings)) {
                Ok(()) => {
                    self.touch(Touched { host: host.clone(), aliases, address: Some(address), ports: ports.to_vec() });
                    return Ok(Reached { address, resolve_ms: resolved_in.map(ms) });
                }
                Err(rule) if host.address().is_some() => denials.push(format!("{host}: {rule}")),
                Err(rule) => denials.push(format!("{host} ({address}): {rule}")),
            }
        }
        let more = denials.len().saturating_sub(DENIALS_SHOWN_MAX);
        denials.truncate(DENIALS_SHOWN_MAX);
        if more > 0 {
            denials.push(format!("and {more} more of its addresses are denied too"));
        }
        Err(denied(&denials.join("; ")))
    }

    /// The policy in force, and the surroundings that it is judged by.
    async fn in_force(&self) -> (Arc<Policy>, Arc<Surroundings>) {
        loop {
            let policy = self.node.policy.current();
            let surroundings = self.node.lookout.look(&policy, &self.node.resolver).await;
            if Arc::ptr_eq(&policy, &self.node.policy.current()) {
                return (policy, surroundings);
            }
        }
    }

    /// What a name leads to that may be asked for, and how long that took to find.
    async fn find(&self, resolver: &Resolver, name: &str, ports: &[Option<u16>]) -> Result<(Found, Duration), Failure> {
        self.permit_host(&self.node.policy.current(), name, &[], ports)?;
        self.touch(Touched { host: Host::Name(name.to_owned()), aliases: Vec::new(), address: None, ports: ports.to_vec() });
        let (mut found, took) = resolve(resolver, name).await?;
        for address in &mut found.addresses {
            *address = address.to_canonical();
        }
        Ok((found, took))
    }

    /// Whether a name may be asked for at all; for tools that only ask.
    pub(super) fn permit_question(&self, name: &DnsName) -> Result<(), Failure> {
        match name {
            DnsName::Name(name) => {
                self.permit_name(&self.node.policy.current(), name)?;
                self.touch(Touched { host: Host::Name(name.clone()), aliases: Vec::new(), address: None, ports: Vec::new() });
                Ok(())
            }
            DnsName::Address(address) => match &self.targets {
                Some(targets) if !targets.allow_literal(*address) => Err(denied(&format!("{address}: {PRINCIPAL} do not include it"))),
                Some(_) | None => Ok(()),
            },
        }
    }

    /// Whether all that the run was let touch may be touched by this policy, too.
    pub(super) async fn judge_again(&self, policy: &Policy) -> Result<(), Failure> {
        let surroundings = self.node.lookout.look(policy, &self.node.resolver).await;
        let touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
        touched.iter().try_for_each(|Touched { host, aliases, address, ports }| {
            if let Host::Name(name) = host {
                self.permit_host(policy, name, aliases, ports)?;
            }
            let Some(address) = address else { return Ok(()) };
            let permitted = ports.iter().try_for_each(|port| self.permit_address(policy, (host, *address, *port), &surroundings));
            permitted.map_err(|rule| denied(&format!("{address}: {rule}")))
        })
    }

    /// Remembers whom the run was let touch.
    fn touch(&self, touched: Touched) {
        let mut all = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.contains(&touched) {
            all.push(touched);
        }
    }

    /// Whether a name may be touched on these ports, and whatever it is an alias of: whoever may ask for a name may be led on by it, but not to
    /// one that is denied.
    fn permit_host(&self, policy: &Policy, name: &str, aliases: &[String], ports: &[Option<u16>]) -> Result<(), Failure> {
        self.permit_name(policy, name)?;
        permit_endpoint(policy, name, ports).map_err(|rule| denied(&format!("{name}: this node's policy: {rule}")))?;
        aliases.iter().try_for_each(|alias| {
            let permitted = policy.check_denied_name(alias).and_then(|()| permit_endpoint(policy, alias, ports));
            permitted.map_err(|rule| denied(&format!("{name}, an alias of {alias}: this node's policy: {rule}")))
        })
    }

    fn permit_name(&self, policy: &Policy, name: &str) -> Result<(), Failure> {
        if self.targets.as_ref().is_some_and(|targets| !targets.allow_name(name)) {
            return Err(denied(&format!("{name}: {PRINCIPAL} do not include it")));
        }
        policy.check_name(name).map_err(|rule| denied(&format!("{name}: this node's policy: {rule}")))
    }

    fn permit_address(
        &self,
        policy: &Policy,
        (host, address, port): (&Host, IpAddr, Option<u16>),
        surroundings: &Surroundings,
    ) -> Result<(), String> {
        let named = host.address().is_none();
        let included = |targets: &probeops_shared::access::Targets| {
            if named { targets.allow_resolved(address) } else { targets.allow_literal(address) }
        };
        if self.targets.as_ref().is_some_and(|targets| !included(targets)) {
            return Err(format!("{PRINCIPAL} do not include it"));
        }
        let touch = Touch { address, port, named };
        policy.check_address(touch, surroundings).map_err(|rule| format!("this node's policy: {rule}"))
    }
}

/// Whether a name is none of the node's own servers on these ports.
fn permit_endpoint(policy: &Policy, name: &str, ports: &[Option<u16>]) -> Result<(), Denial> {
    ports.iter().try_for_each(|port| policy.check_endpoint_name(name, *port))
}

async fn resolve(resolver: &Resolver, name: &str) -> Result<(Found, Duration), Failure> {
    let started = Instant::now();
    let none = |why: &str| Failure::new(FailureKind::Unresolved, format!("{name} cannot be resolved on this node: {why}"));
    let looked_up = tokio::time::timeout(RESOLUTION_MAX, resolver.lookup(name)).await;
    let found = looked_up.map_err(|_| none(&format!("no answer within {} s", RESOLUTION_MAX.as_secs())))?.map_err(|why| none(&why))?;
    Ok((found, started.elapsed()))
}

/// The address to send from, which must be one of this machine's.
pub(super) fn source(source: Option<Source>) -> Result<Option<IpAddr>, Failure> {
    let Some(source) = source.map(Source::address) else { return Ok(None) };
    let refused = |why: String| Failure::new(FailureKind::Invalid, why);
    let own = interfaces::read().map_err(|error| refused(format!("this node cannot read its own addresses: {}", words(&error))))?;
    if own.addresses.contains(&source) {
        return Ok(Some(source));
    }
    Err(refused(format!("{source} in `source` is not an address of this node; leave `source` out, or give one of its addresses")))
}

fn unresolved(host: &Host, family: FamilyChoice, candidates: &[IpAddr]) -> Failure {
    let found: Vec<String> = candidates.iter().take(DENIALS_SHOWN_MAX).map(ToString::to_string).collect();
    let wanted = family.only().map_or_else(String::new, |only| format!("IPv{only} "));
    let has = if found.is_empty() { String::new() } else { format!(", only {}", found.join(", ")) };
    Failure::new(FailureKind::Unresolved, format!("{host} has no {wanted}address{has}"))
}
