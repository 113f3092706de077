//! The way of every delegation from the root to the answer. Each server is judged like a target before anything is sent to it, whoever names
//! it: the hints, the delegation, or the node's own resolver.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use probeops_shared::host::{DnsName, Host};
use probeops_shared::outcome::{Failure, FailureKind};
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::dns::record_type::RecordType;
use probeops_shared::tools::dns::report::{DnsReport, DnsServer, DnsTimings};
use probeops_shared::tools::dns::trace::{
    AddressSource, DnsTraceServer, DnsTraceStep, StepResult, TRACE_LOOKUPS_MAX, TRACE_QUERIES_MAX, TRACE_STEPS_MAX,
};
use probeops_shared::tools::dns::{DNS_PORT, Dns, DnsProgress, Transport};
use rand::seq::SliceRandom as _;

use super::asking::Asking;
use super::referral::{self, Delegation};
use super::{Servers, query};
use crate::executors::{Context, Live};
use crate::net::dns::Way;
use crate::net::dns::message::Query;
use crate::net::dns::root;

/// How many servers of a zone are asked, of each family, until one answers.
const SERVERS_MAX: usize = 2;
/// How many addresses of a zone's servers are judged; whoever owns a zone says how many there are.
const ADDRESSES_MAX: usize = 64;
/// A query, and the same over TCP.
const QUERIES_AT_ONCE: u32 = 2;

pub(super) async fn run(context: &Context, target: &DnsName, options: &Dns, live: &Live) -> Result<DnsReport, Failure> {
    // As dig does it: with DNSSEC records, and without recursion but at the start, where a resolver may have been named.
    let asked = Dns { dnssec: options.edns, recursion: false, ..options.clone() };
    let started = Dns { recursion: options.recursion && options.resolver.is_some(), kind: Some(RecordType::NS), ..asked.clone() };
    let (first, others) = (query(&DnsName::Name(String::new()), &started)?, query(target, &asked)?);
    let mut trace = Trace {
        context,
        target,
        options,
        asked,
        live,
        way: if options.protocol == Transport::Udp { Way::Udp } else { Way::Tcp },
        steps: Vec::new(),
        resolve_ms: None,
        queries_left: TRACE_QUERIES_MAX,
        lookups_left: TRACE_LOOKUPS_MAX,
    };
    let (start, permitted) = trace.start().await?;
    let mut next = trace.step(&first, start, Some(permitted)).await;
    while let Some(delegation) = next {
        next = trace.step(&others, delegation, None).await;
    }
    Ok(trace.report())
}

struct Trace<'a> {
    context: &'a Context,
    target: &'a DnsName,
    /// As the caller gave them.
    options: &'a Dns,
    /// As the servers on the way are asked.
    asked: Dns,
    live: &'a Live,
    way: Way,
    steps: Vec<DnsTraceStep>,
    resolve_ms: Option<f64>,
    queries_left: u32,
    lookups_left: u32,
}

impl Trace<'_> {
    /// Where to begin, and the addresses of it that may be asked.
    async fn start(&mut self) -> Result<(Delegation, Vec<SocketAddr>), Failure> {
        let zone = ".".to_owned();
        let Some(resolver) = &self.options.resolver else {
            let of = |(name, addresses): (String, [_; 2])| DnsTraceServer {
                name,
                addresses: addresses.to_vec(),
                source: Some(AddressSource::Hints),
                not_asked: None,
            };
            let mut hints = Delegation { zone, servers: root::servers().map(of).collect() };
            let permitted = self.permitted(&mut hints.servers).await;
            let denied = hints.servers.iter().find_map(|server| server.not_asked.as_deref()).filter(|_| permitted.is_empty());
            return match denied {
                Some(why) => Err(Failure::new(FailureKind::Denied, format!("no server of the root may be asked: {why}"))),
                None => Ok((hints, permitted)),
            };
        };
        let servers = Servers::of(self.context, self.target, self.options, self.live).await?;
        self.resolve_ms = servers.resolve_ms;
        let addresses = servers.addresses.iter().map(SocketAddr::ip).collect();
        let given = DnsTraceServer { name: resolver.to_string(), addresses, source: Some(AddressSource::Given), not_asked: None };
        Ok((Delegation { zone, servers: vec![given] }, servers.addresses))
    }

    /// Asks the servers of a zone; where their answer leads.
    async fn step(&mut self, query: &Query, delegation: Delegation, permitted: Option<Vec<SocketAddr>>) -> Option<Delegation> {
        let Delegation { zone, mut servers } = delegation;
        let permitted = match permitted {
            Some(permitted) => permitted,
            None => self.locate(&mut servers).await,
        };
        self.steps.push(DnsTraceStep { zone, question: query.question(), servers, ..DnsTraceStep::default() });
        let (result, next) = self.ask(query, &permitted).await;
        let may_go_on = self.steps.len() < TRACE_STEPS_MAX;
        if let Some(step) = self.steps.last_mut() {
            step.result = if next.is_some() && !may_go_on { StepResult::Limit } else { result };
            let progress = DnsProgress::Step(Box::new(step.clone()));
            self.live.set(self.options, self.target, self.report());
            self.live.tell(self.options, self.target, &progress);
        }
        next.filter(|_| may_go_on)
    }

    /// Asks one server after another until there is an answer that leads somewhere; what it is otherwise.
    async fn ask(&mut self, query: &Query, permitted: &[SocketAddr]) -> (StepResult, Option<Delegation>) {
        let first = self.steps.len() == 1;
        let options = self.asked.clone();
        let mut asking = Asking::new(query, self.way.clone(), &options);
        let mut found = (self.unasked(permitted), None);
        let mut have_answered = Vec::new();
        for server in permitted.iter().cycle().take(self.options.tries.get_usize().max(permitted.len())) {
            // Asked again, a server that answered would say the same.
            if have_answered.contains(server) {
                continue;
            }
            if self.queries_left < QUERIES_AT_ONCE {
                return (StepResult::Limit, None);
            }
            let before = asking.attempts.len();
            asking.ask(*server, |_, attempt| self.live.tell(self.options, self.target, &DnsProgress::Attempt(attempt.clone()))).await;
            self.queries_left -= u32::try_from(asking.attempts.len() - before).unwrap_or(u32::MAX).min(self.queries_left);
            let Some(step) = self.steps.last_mut() else { break };
            step.query_wire = asking.query_wire();
            step.attempts.clone_from(&asking.attempts);
            let (Some(response), Some(last)) = (&asking.response, &asking.last) else {
                self.live.set(self.options, self.target, self.report());
                continue;
            };
            have_answered.push(last.server);
            let named = step.servers.iter().find(|server| server.addresses.contains(&last.server.ip())).map(|server| server.name.clone());
            let named = named.filter(|name| *name != last.server.ip().to_string());
            step.server = Some(DnsServer { name: named, address: last.server.ip(), port: last.server.port() });
            (step.query_ms, step.response) = (last.timings.query_ms, Some(response.clone()));
            found = if first { referral::root(response) } else { referral::judge(response, &step.zone, &step.question) };
            if !matches!(found.0, StepResult::Error | StepResult::Lame) {
                break;
            }
        }
        found
    }

    /// What there is to say of a zone when none of its servers has said anything.
    fn unasked(&self, permitted: &[SocketAddr]) -> StepResult {
        let mut servers = self.steps.last().map(|step| step.servers.as_slice()).unwrap_or_default().iter();
        match servers.any(|server| server.source.is_some() && server.not_asked.is_some()) {
            _ if !permitted.is_empty() => StepResult::NoAnswer,
            true => StepResult::Denied,
            false => StepResult::Unresolved,
        }
    }

    /// The addresses of a zone's servers that may be asked: those that the delegation came with; only where there is none, the first name
    /// that has one.
    async fn locate(&mut self, servers: &mut [DnsTraceServer]) -> Vec<SocketAddr> {
        let permitted = self.permitted(servers).await;
        if !permitted.is_empty() {
            return permitted;
        }
        let port = self.options.port();
        for server in servers.iter_mut().filter(|server| server.addresses.is_empty()) {
            let host: Host = match server.name.parse() {
                Ok(host) if self.lookups_left > 0 => host,
                Ok(_) => {
                    server.not_asked = Some("no more names are looked up in one trace".to_owned());
                    continue;
                }
                Err(why) => {
                    server.not_asked = Some(why);
                    continue;
                }
            };
            self.lookups_left -= 1;
            match self.context.reach(&host, Some(port), self.options.family).await {
                Ok(reached) => {
                    (server.addresses, server.source) = (vec![reached.address], Some(AddressSource::Resolved));
                    return vec![SocketAddr::new(reached.address, port)];
                }
                Err(Failure { kind, detail, .. }) => {
                    server.source = (kind == FailureKind::Denied).then_some(AddressSource::Resolved);
                    let why = detail.split_once(" cannot be resolved on this node: ").map(|(_, why)| why.to_owned());
                    server.not_asked = Some(why.unwrap_or(detail));
                }
            }
        }
        Vec::new()
    }

    /// Some of the known addresses, in no order: they share the load.
    async fn permitted(&self, servers: &mut [DnsTraceServer]) -> Vec<SocketAddr> {
        let port = self.options.port();
        let family = self.options.family;
        let mut known: Vec<(usize, IpAddr)> = Vec::new();
        for (index, server) in servers.iter_mut().enumerate() {
            let wanted = server.addresses.iter().filter(|address| family.includes(**address)).map(|address| (index, *address));
            known.extend(wanted);
            if !server.addresses.is_empty() && known.last().is_none_or(|(of, _)| *of != index) {
                (server.source, server.not_asked) = (None, Some(format!("it has no IPv{family} address")));
            }
        }
        known.shuffle(&mut rand::rng());
        known.truncate(ADDRESSES_MAX);
        let mut permitted: Vec<SocketAddr> = Vec::new();
        for (index, address) in known {
            if permitted.iter().filter(|one| one.is_ipv4() == address.is_ipv4()).count() >= SERVERS_MAX {
                continue;
            }
            match self.context.reach(&Host::Address(address), Some(port), family).await {
                Ok(reached) => permitted.push(SocketAddr::new(reached.address, port)),
                Err(failure) => {
                    if let Some(server) = servers.get_mut(index) {
                        server.not_asked = Some(failure.detail);
                    }
                }
            }
        }
        // A node without IPv6 shall not spend its tries on it, unless it is preferred.
        permitted.sort_by_key(|server| (family.rank(server.ip()), server.is_ipv6()));
        permitted
    }

    /// The report of what is known so far is that of the last step.
    fn report(&self) -> DnsReport {
        let last = self.steps.last().cloned().unwrap_or_default();
        // At the start somebody is asked, or there is no report.
        let attempt = self.steps.iter().rev().find_map(|step| step.attempts.last());
        let (address, port) = attempt.map_or((Ipv4Addr::UNSPECIFIED.into(), DNS_PORT), |attempt| (attempt.address, attempt.port));
        DnsReport {
            question: last.question,
            query_wire: last.query_wire,
            server: last.server.unwrap_or(DnsServer { name: None, address, port }),
            transport: attempt.map_or(self.options.protocol, |attempt| attempt.transport),
            answered: last.response.is_some(),
            attempts: last.attempts,
            asked_at: Timestamp::now(),
            timings: DnsTimings { resolve_ms: self.resolve_ms, query_ms: last.query_ms, ..DnsTimings::default() },
            tls: None,
            response: last.response,
            trace: self.steps.clone(),
            validation: None,
            comparison: None,
            assertions: Vec::new(),
        }
    }
}
