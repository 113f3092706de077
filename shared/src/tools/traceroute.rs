//! `traceroute`: the routers on the way to a host.

mod output;

use std::net::IpAddr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bounded::{Bounded, Seconds};
use crate::host::Host;
use crate::invalid::Invalid;
use crate::tools::network::{BUDGET_SLACK, Family, FamilyChoice, RESOLUTION_MAX, Resolved, Source, check_duration};
use crate::tools::trace::{
    HANDSHAKE_PATIENCE, TraceEnd, TraceFlow, TraceMethod, TraceOptions, TracePayload, TraceProbe, TraceProtocol, check_ttls,
};
use crate::tools::{Class, Tool};

/// How many hops are asked at once, at least.
pub const HOPS_AT_ONCE: u64 = 5;
/// How many packets of a run are under way at once.
pub const PROBES_AT_ONCE: usize = 32;
/// How many packets a run may send: an outcome has room for the answers to so many, from the longest addresses.
const PROBES_MAX: u64 = 2_048;
/// How long it may take to look up names and origins of the hops.
pub const LOOKUPS_MAX: Duration = Duration::from_secs(3);
/// How long hops that seem to limit their answers are asked again.
pub const AGAIN_MAX: Duration = Duration::from_secs(5);
/// How many probes a node sends in a second, over all its traces.
pub const PROBES_PER_SECOND: u64 = 1_000;

/// Find the routers on the way to a host: packets are sent that the first, second, third … router has to drop, and these say so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Traceroute {
    /// What is sent.
    pub protocol: TraceProtocol,
    /// To which port; 33434 for UDP and 80 for TCP unless given. ICMP has no ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<u16>", range(min = 0, max = 65_535))]
    pub port: Option<Bounded<0, 65_535, 80>>,
    /// The first hop to ask.
    pub first_ttl: Bounded<1, 255, 1>,
    /// The last hop to ask.
    pub max_ttl: Bounded<1, 255, 30>,
    /// How many packets each hop is sent; at most 2048 to all hops together.
    pub queries: Bounded<1, 64, 3>,
    /// After how many hops in a row without an answer to stop.
    pub silent_hops: Bounded<1, 255, 5>,
    /// How long to wait for an answer, in seconds; less long for a hop behind which others have answered.
    pub timeout: Seconds<100, 60_000, 2_000>,
    /// How many bytes each packet carries; 32 unless given. A TCP handshake carries none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<u16>", range(min = 16, max = 8_972))]
    pub payload_bytes: Option<TracePayload>,
    /// Whether to forbid fragments. Not for TCP.
    pub dont_fragment: bool,
    /// The differentiated services code point of each packet (RFC 2474), such as 46 for expedited forwarding.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<u8>", range(min = 0, max = 63))]
    pub dscp: Option<Bounded<0, 63, 0>>,
    /// Over how many flows the queries of a hop are spread: 1 keeps all of them on one of several equal paths, more may show the others.
    pub flows: Bounded<1, 64, 1>,
    /// Whether the packets of a flow are alike to routers that choose among equal paths (`constant`), or each has a port of its own
    /// (`per_probe`, UDP and TCP only). Over TCP those that are alike have to go one by one, which takes longer.
    pub flow: TraceFlow,
    /// Whether to look up the names of the hops, at the node's own resolver: whoever runs it learns their addresses.
    pub names: bool,
    /// Whether to look up which autonomous systems announce the addresses of the hops, at the node's own resolver in the zone that its operator
    /// has set; unless he has, in Team Cymru's, which is asked of public addresses only and learns them.
    pub asn: bool,
    /// Which kind of address to use where the name has both.
    pub family: FamilyChoice,
    /// From which address of the node to send; the system's choice unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
}

/// The way to a host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TracerouteReport {
    /// The address that was traced.
    pub address: IpAddr,
    /// Its family.
    pub family: Family,
    /// How long the name took to resolve, in milliseconds; absent for a literal address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolve_ms: Option<f64>,
    /// With which kind of socket.
    pub method: TraceMethod,
    /// The port; absent for ICMP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The size of each packet, headers included.
    pub packet_bytes: u64,
    /// Whether all packets of a flow take one of several equal paths.
    pub flow: TraceFlow,
    /// Why no further hop was asked.
    pub end: TraceEnd,
    /// The hops, nearest first; those behind the last that answered are only as many as were waited for.
    pub hops: Vec<TraceHop>,
    /// From the first packet until the last was answered or given up, in milliseconds.
    pub elapsed_ms: f64,
}

/// A hop.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TraceHop {
    /// How many routers away it is.
    pub ttl: u8,
    /// One entry for each packet.
    pub probes: Vec<TraceProbe>,
    /// Whether it left packets unanswered although it answers others: routers limit how often they do. That is no loss on the path.
    pub limited: bool,
    /// Who they are, by address; only those that have a name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<HopName>,
    /// Who announces them, by address; only those of whom that was asked for and is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub origins: Vec<HopOrigin>,
}

/// The name of an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HopName {
    /// The address.
    pub address: IpAddr,
    /// Its name.
    pub name: String,
}

/// Who announces an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HopOrigin {
    /// The address.
    pub address: IpAddr,
    /// The numbers of the autonomous systems that announce the longest prefix that it is in; seldom more than one.
    pub asn: Vec<u32>,
}

/// What a run tells while it goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TracerouteProgress {
    /// Who is traced; before the first packet.
    Resolved(Resolved),
    /// Somebody answered.
    Probe(ProbeAnswer),
    /// All that is known of a hop, and of those before it.
    Hop(TraceHop),
}

/// An answer to a probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProbeAnswer {
    /// How many routers away the probe was to go.
    pub ttl: u8,
    /// Which of the hop's packets it was, from 1.
    pub query: u64,
    /// What became of it.
    #[serde(flatten)]
    pub probe: TraceProbe,
}

impl Traceroute {
    /// The port that packets go to.
    pub fn port(&self) -> Option<u16> {
        self.protocol.port(self.port)
    }

    /// Whether each packet waits for what becomes of the one before.
    pub fn is_one_by_one(&self) -> bool {
        self.protocol == TraceProtocol::Tcp && self.flow == TraceFlow::Constant
    }

    /// How much each packet carries.
    pub fn payload_bytes(&self) -> u64 {
        self.protocol.payload_bytes(self.payload_bytes)
    }

    /// The size of each packet to this address.
    pub fn packet_bytes(&self, address: IpAddr) -> u64 {
        self.protocol.packet_bytes(address, self.payload_bytes())
    }

    fn hops(&self) -> u64 {
        self.max_ttl.get().saturating_sub(self.first_ttl.get()) + 1
    }

    /// From the first packet until the last is given up, where nobody answers.
    fn longest(&self) -> Duration {
        let hops = self.hops();
        if self.is_one_by_one() {
            let packets = u32::try_from(hops * self.queries.get()).unwrap_or(u32::MAX);
            return self.timeout.duration().min(HANDSHAKE_PATIENCE).saturating_mul(packets) + LOOKUPS_MAX + AGAIN_MAX;
        }
        let turns = u32::try_from(hops.div_ceil(HOPS_AT_ONCE.min(self.silent_hops.get()))).unwrap_or(u32::MAX);
        // Once for the first packet of each hop, turn by turn; the others leave together, as many as may be under way. Hops before one that has
        // answered are not waited for as long.
        let at_once = u64::try_from(PROBES_AT_ONCE).unwrap_or(u64::MAX);
        let together = u32::try_from((hops.min(self.silent_hops.get()) * self.queries.get()).div_ceil(at_once)).unwrap_or(u32::MAX);
        let waits = self.timeout.duration().saturating_mul(turns.saturating_add(together));
        waits + Duration::from_secs((hops * self.queries.get()).div_ceil(PROBES_PER_SECOND)) + LOOKUPS_MAX + AGAIN_MAX
    }
}

impl Tool for Traceroute {
    const SUMMARY: &'static str = "Find the routers on the way to a host, by ICMP, UDP or TCP";
    const CLASS: Class = Class::Probe;
    const EXAMPLE_TARGET: &'static str = "example.com";
    type Target = Host;
    type Report = TracerouteReport;
    type Progress = TracerouteProgress;

    fn check(&self, target: &Host) -> Result<(), Invalid> {
        self.family.check(target)?;
        self.source.map_or(Ok(()), |source| source.check(self.family, target))?;
        check_ttls(self.first_ttl.get(), self.max_ttl.get())?;
        let Self { port, payload_bytes: payload, dont_fragment, .. } = *self;
        self.protocol.check(TraceOptions { port, payload, dont_fragment, flows: self.flows.get(), flow: self.flow })?;
        if self.flows.get() > self.queries.get() {
            let (flows, queries) = (self.flows, self.queries);
            let detail = format!("{queries} queries cannot be spread over {flows} flows; lower `flows`, or raise `queries`");
            return Err(Invalid::new("/parameters/flows", detail));
        }
        let probes = self.hops() * self.queries.get();
        if probes > PROBES_MAX {
            let (queries, first, max) = (self.queries, self.first_ttl, self.max_ttl);
            let detail = format!(
                "{queries} packets to each of the hops {first} to {max} are {probes}; a run may send {PROBES_MAX}, so lower `queries` or `max_ttl`"
            );
            return Err(Invalid::new("/parameters/queries", detail));
        }
        let plan = || {
            let timeout_ms = self.timeout.duration().as_millis();
            format!(
                "waiting {timeout_ms} ms for {} packets to each of the hops {} to {} may take",
                self.queries, self.first_ttl, self.max_ttl
            )
        };
        if self.is_one_by_one() {
            let lower = "`queries` or `max_ttl`, or set `flow` to \"per_probe\"";
            return check_duration(
                self.longest(),
                "queries",
                || format!("{} handshakes to each hop, one by one, may take", self.queries),
                lower,
            );
        }
        check_duration(self.longest(), "timeout", plan, "`timeout`, `queries` or `max_ttl`")
    }

    fn budget(&self) -> Duration {
        RESOLUTION_MAX + self.longest() + BUDGET_SLACK
    }

    fn output(&self, target: &Host, report: &TracerouteReport) -> String {
        let mut text = output::opening(self, target, report.address);
        text.extend(report.hops.iter().map(|hop| output::hop(hop, self)));
        text
    }

    fn progress_output(&self, target: &Host, progress: &TracerouteProgress) -> String {
        match progress {
            TracerouteProgress::Resolved(resolved) => output::opening(self, target, resolved.address),
            TracerouteProgress::Probe(_) => String::new(),
            TracerouteProgress::Hop(hop) => output::hop(hop, self),
        }
    }

    /// The target did not answer.
    fn is_bad(&self, report: &TracerouteReport) -> bool {
        report.end != TraceEnd::Reached
    }
}

#[cfg(test)]
mod tests;
