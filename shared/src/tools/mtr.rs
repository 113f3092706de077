//! `mtr`: the routers on the way to a host, asked again and again.

mod output;
pub mod report;

use std::net::IpAddr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::report::{MtrHop, MtrReport};
use crate::bounded::{Bounded, Seconds};
use crate::host::Host;
use crate::invalid::Invalid;
use crate::tools::network::{BUDGET_SLACK, FamilyChoice, RESOLUTION_MAX, Resolved, Source, check_duration};
use crate::tools::trace::{TraceEnd, TraceFlow, TraceOptions, TracePayload, TraceProtocol, check_ttls};
use crate::tools::traceroute::{HOPS_AT_ONCE, LOOKUPS_MAX, PROBES_PER_SECOND};
use crate::tools::{Class, Tool};

/// How many packets of a run are under way at once.
pub const WATCHED_AT_ONCE: usize = 128;

/// Find the routers on the way to a host and ask each of them once a round, to see where packets are lost or held up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Mtr {
    /// What is sent.
    pub protocol: TraceProtocol,
    /// To which port; 33434 for UDP and 80 for TCP unless given. ICMP has no ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<u16>", range(min = 0, max = 65_535))]
    pub port: Option<Bounded<0, 65_535, 80>>,
    /// How many rounds: in each, every hop is sent one packet.
    pub rounds: Bounded<1, 100, 10>,
    /// How long after one round the next begins, in milliseconds. Many routers answer no more than once a second.
    pub interval_ms: Bounded<200, 10_000, 1_000>,
    /// The first hop to ask.
    pub first_ttl: Bounded<1, 255, 1>,
    /// The last hop to ask.
    pub max_ttl: Bounded<1, 255, 30>,
    /// How many hops are asked behind the last that has answered.
    pub silent_hops: Bounded<1, 255, 5>,
    /// How long to wait for an answer, in seconds.
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
    /// Over how many flows the rounds are spread: 1 keeps all packets on one of several equal paths, more may show the others.
    pub flows: Bounded<1, 64, 1>,
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

/// What a run tells while it goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum MtrProgress {
    /// Who is traced; before the first packet.
    Resolved(Resolved),
    /// The hops as they stand at the end of a round. What is still under way is not counted.
    Round(MtrRound),
}

/// The hops at the end of a round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MtrRound {
    /// Which round, from 1.
    pub round: u64,
    /// The hops, nearest first.
    pub hops: Vec<MtrHop>,
}

impl Mtr {
    /// The port that packets go to.
    pub fn port(&self) -> Option<u16> {
        self.protocol.port(self.port)
    }

    /// How much each packet carries.
    pub fn payload_bytes(&self) -> u64 {
        self.protocol.payload_bytes(self.payload_bytes)
    }

    /// The size of each packet to this address.
    pub fn packet_bytes(&self, address: IpAddr) -> u64 {
        self.protocol.packet_bytes(address, self.payload_bytes())
    }

    /// Whether the packets of a flow are alike. Those of TCP would have to go one by one, and a round would take longer than a round may.
    pub fn flow(&self) -> TraceFlow {
        match self.protocol {
            TraceProtocol::Icmp | TraceProtocol::Udp => TraceFlow::Constant,
            TraceProtocol::Tcp => TraceFlow::PerProbe,
        }
    }

    fn hops(&self) -> u64 {
        self.max_ttl.get().saturating_sub(self.first_ttl.get()) + 1
    }

    /// The first round finds out, turn by turn, how far the path goes; the last is waited for.
    fn waiting(&self) -> Duration {
        let turns = u32::try_from(self.hops().div_ceil(HOPS_AT_ONCE.min(self.silent_hops.get()))).unwrap_or(u32::MAX);
        self.timeout.duration().saturating_mul(turns.saturating_add(1))
    }

    /// All rounds, which are held up where more packets are unanswered than may be under way; those are of the hops behind the last that has
    /// answered, as a rule.
    fn watching(&self) -> Duration {
        let at_once = u64::try_from(WATCHED_AT_ONCE).unwrap_or(u64::MAX);
        let times = u32::try_from((self.hops().min(self.silent_hops.get()) * self.rounds.get()).div_ceil(at_once)).unwrap_or(u32::MAX);
        let rounds = u32::try_from(self.rounds.get()).unwrap_or(u32::MAX);
        self.interval_ms.ms().saturating_mul(rounds).max(self.timeout.duration().saturating_mul(times))
    }

    /// From the first packet until the last is given up, where nobody answers.
    fn longest(&self) -> Duration {
        let sending = Duration::from_secs((self.hops() * self.rounds.get()).div_ceil(PROBES_PER_SECOND));
        self.waiting() + self.watching() + sending + LOOKUPS_MAX
    }
}

impl Tool for Mtr {
    const SUMMARY: &'static str = "Find the routers on the way to a host and watch their loss and delay, round by round";
    const CLASS: Class = Class::Probe;
    const EXAMPLE_TARGET: &'static str = "example.com";
    type Target = Host;
    type Report = MtrReport;
    type Progress = MtrProgress;

    fn check(&self, target: &Host) -> Result<(), Invalid> {
        self.family.check(target)?;
        self.source.map_or(Ok(()), |source| source.check(self.family, target))?;
        check_ttls(self.first_ttl.get(), self.max_ttl.get())?;
        let Self { port, payload_bytes: payload, dont_fragment, .. } = *self;
        self.protocol.check(TraceOptions { port, payload, dont_fragment, flows: self.flows.get(), flow: self.flow() })?;
        if self.flows.get() > self.rounds.get() {
            let (flows, rounds) = (self.flows, self.rounds);
            let detail = format!("{rounds} rounds cannot be spread over {flows} flows; lower `flows`, or raise `rounds`");
            return Err(Invalid::new("/parameters/flows", detail));
        }
        let rounds = u32::try_from(self.rounds.get()).unwrap_or(u32::MAX);
        if self.interval_ms.ms().saturating_mul(rounds) < self.waiting().max(self.watching()) {
            let timeout_ms = self.timeout.duration().as_millis();
            let plan = || {
                format!("waiting {timeout_ms} ms in {} rounds for the hops {} to {} may take", self.rounds, self.first_ttl, self.max_ttl)
            };
            return check_duration(self.longest(), "timeout", plan, "`timeout`, `rounds` or `max_ttl`");
        }
        let plan = || format!("{} rounds every {} ms may take", self.rounds, self.interval_ms);
        check_duration(self.longest(), "interval_ms", plan, "`rounds`, `interval_ms` or `timeout`")
    }

    fn budget(&self) -> Duration {
        RESOLUTION_MAX + self.longest() + BUDGET_SLACK
    }

    fn output(&self, _target: &Host, report: &MtrReport) -> String {
        output::of(report, self)
    }

    /// The target did not answer.
    fn is_bad(&self, report: &MtrReport) -> bool {
        report.end != TraceEnd::Reached
    }
}

#[cfg(test)]
mod tests;
