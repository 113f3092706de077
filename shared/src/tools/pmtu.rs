//! `pmtu`: how large a packet a path carries, and who says so.

mod output;

use std::net::IpAddr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bounded::{Bounded, Seconds};
use crate::host::Host;
use crate::invalid::Invalid;
use crate::tools::choice::choice;
use crate::tools::network::{BUDGET_SLACK, Family, FamilyChoice, IcmpMessage, RESOLUTION_MAX, Resolved};
use crate::tools::{Class, Tool};

/// The smallest packets that every link must carry (RFC 791, RFC 8200); from there a search goes up.
pub const FLOOR_V4_BYTES: u16 = 68;
/// The same for IPv6.
pub const FLOOR_V6_BYTES: u16 = 1280;
/// The time between two probes: at most twenty leave in a second.
pub const PROBE_INTERVAL: Duration = Duration::from_millis(50);
/// How many times a hop's word for the MTU is taken; whoever names ever smaller ones would be asked for ever.
pub const HINTS_MAX: u32 = 8;
/// How far the hop behind which packets vanish is looked for.
pub const HOPS_MAX: u8 = 30;
/// How many hops in a row may say nothing, to either size, until nobody behind them is asked.
pub const SILENT_HOPS_MAX: u8 = 5;
/// How long that hop is looked for; what is known then is the answer.
pub const LOCATION_MAX: Duration = Duration::from_secs(30);
/// How many sizes a search tries at most: the largest, what hops name, the floor, and half of what is left each time (16 bits).
const SIZES_MAX: u32 = 1 + HINTS_MAX + 1 + 16;
/// Where UDP probes go unless told otherwise: the first port of traceroute(8), where nobody listens.
const PORT: u64 = 33_434;

/// Find the largest packet that reaches a host in one piece (path MTU), by packets that must not be fragmented.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Pmtu {
    /// What is sent: ICMP echo, UDP datagrams to a port where nobody listens, or whichever the node may send (ICMP first).
    pub protocol: PmtuProtocol,
    /// The port for UDP.
    pub port: Bounded<1, 65_535, PORT>,
    /// The largest packet to try, IP header included; never more than the node's own interface carries.
    pub max_bytes: Bounded<1_280, 65_535, 65_535>,
    /// How long to wait for the answer to one probe, in seconds.
    pub timeout: Seconds<100, 3_000, 1_000>,
    /// How many times in a row a size must stay unanswered to count as too large.
    pub tries: Bounded<1, 3, 3>,
    /// Which kind of address to use where the name has both.
    pub family: FamilyChoice,
}

choice! {
    /// What carries a probe.
    PmtuProtocol {
        /// ICMP, over UDP where the node may open no ICMP socket.
        #[default]
        Auto = "auto",
        /// ICMP echo requests; a reply says that the packet arrived.
        Icmp = "icmp",
        /// UDP datagrams; *port unreachable* says that the packet arrived.
        Udp = "udp",
    }
}

choice! {
    /// What limits the packets of a path.
    PmtuVerdict {
        /// The interface of the node: the path carries all that it can send.
        Interface = "interface",
        /// A hop, which said that a packet was too big.
        Hop = "hop",
        /// A hop that drops larger packets without a word; `black_hole` says where.
        BlackHole = "black_hole",
        /// Only `max_bytes`: the largest packet that was to be tried arrived.
        Capped = "capped",
        /// Unknown: the target does not answer even the smallest packet.
        #[default]
        Silent = "silent",
        /// Unknown: somebody said that the target cannot be reached; the last probe has who and how.
        Unreachable = "unreachable",
    }
}

/// What the path carries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PmtuReport {
    /// The address that was asked.
    pub address: IpAddr,
    /// Its family.
    pub family: Family,
    /// How long the name took to resolve, in milliseconds; absent for a literal address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolve_ms: Option<f64>,
    /// What was sent; never `auto`.
    pub protocol: PmtuProtocol,
    /// The largest packet that arrived, IP header included: the path MTU. Absent when none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu_bytes: Option<u16>,
    /// What limits it.
    pub verdict: PmtuVerdict,
    /// The hop that said so; absent unless one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limited_by: Option<IpAddr>,
    /// Between which hops larger packets vanish; absent unless there is a black hole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub black_hole: Option<BlackHole>,
    /// What the node's own interface towards the target carries; absent when `max_bytes` is less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface_mtu_bytes: Option<u16>,
    /// Every probe, in the order they were sent.
    pub probes: Vec<PmtuProbe>,
}

/// Where larger packets vanish, as packets tell that die on the way (RFC 792, RFC 4443 *time exceeded*): of the size that arrives, and one byte
/// larger. An answer to an ICMP echo request is as large as the request and may vanish on its way back; if so, all hops answer, and `protocol`
/// "udp", whose answers are small, finds no black hole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BlackHole {
    /// The last hop that answers the larger size: they vanish behind it. Null when no hop does.
    #[serde(default)]
    pub after: Option<PmtuHop>,
    /// The first hop behind that, the target included, that answers only the smaller size. Null when none was found: because nobody there
    /// answers, or in time (30 hops, five in a row that say nothing, 30 s).
    #[serde(default)]
    pub before: Option<PmtuHop>,
}

/// A hop of the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PmtuHop {
    /// How many hops away it is, from 1.
    pub ttl: u8,
    /// The address that it answers from.
    pub address: IpAddr,
}

choice! {
    /// What became of a probe.
    PmtuProbeStatus {
        /// It arrived.
        Reply = "reply",
        /// A hop said that it was too big.
        TooBig = "too_big",
        /// It was too big for the node's own interface, and did not leave.
        NotSent = "not_sent",
        /// The hop where it was to die said that it got there.
        Expired = "expired",
        /// Nobody answered in time.
        #[default]
        Timeout = "timeout",
        /// Somebody answered that the target cannot be reached.
        Unreachable = "unreachable",
    }
}

/// One probe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PmtuProbe {
    /// The size of the packet, IP header included.
    pub size_bytes: u16,
    /// After how many hops it was to die; absent when it was to arrive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u8>,
    /// What became of it.
    pub status: PmtuProbeStatus,
    /// How long the answer took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<f64>,
    /// The MTU that a hop, or the node's interface, named; absent where an old router names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu_bytes: Option<u16>,
    /// The ICMP error, and who sent it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<IcmpMessage>,
    /// Why the target cannot be reached, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What a run tells while it goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PmtuProgress {
    /// Where the target is, and what will be sent.
    Resolved {
        /// The address.
        #[serde(flatten)]
        resolved: Resolved,
        /// What is sent.
        protocol: PmtuProtocol,
    },
    /// What became of a probe.
    Probe(PmtuProbe),
}

impl Pmtu {
    /// The smallest packet that is tried.
    pub fn floor(address: IpAddr) -> u16 {
        if address.is_ipv4() { FLOOR_V4_BYTES } else { FLOOR_V6_BYTES }
    }
}

impl Tool for Pmtu {
    const SUMMARY: &'static str = "Find the path MTU, and the hop that limits it or behind which larger packets vanish";
    const CLASS: Class = Class::Probe;
    const EXAMPLE_TARGET: &'static str = "example.com";
    type Target = Host;
    type Report = PmtuReport;
    type Progress = PmtuProgress;

    fn check(&self, target: &Host) -> Result<(), Invalid> {
        if self.port != Bounded::default() && self.protocol != PmtuProtocol::Udp {
            return Err(Invalid::new("/parameters/port", "only UDP has ports; set `protocol` to \"udp\""));
        }
        self.family.check(target)
    }

    fn budget(&self) -> Duration {
        let tries = u32::try_from(self.tries.get()).unwrap_or(u32::MAX);
        let each = self.timeout.duration().max(PROBE_INTERVAL);
        RESOLUTION_MAX + each.saturating_mul(tries.saturating_mul(SIZES_MAX)) + LOCATION_MAX + BUDGET_SLACK
    }

    fn output(&self, target: &Host, report: &PmtuReport) -> String {
        let probes: String = report.probes.iter().map(output::probe).collect();
        output::heading(target, report.address, report.protocol) + &probes + &output::summary(report)
    }

    fn progress_output(&self, target: &Host, progress: &PmtuProgress) -> String {
        match progress {
            PmtuProgress::Resolved { resolved, protocol } => output::heading(target, resolved.address, *protocol),
            PmtuProgress::Probe(probe) => output::probe(probe),
        }
    }

    /// No packet arrives, or large ones vanish.
    fn is_bad(&self, report: &PmtuReport) -> bool {
        matches!(report.verdict, PmtuVerdict::Silent | PmtuVerdict::Unreachable | PmtuVerdict::BlackHole)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tools::{Spec, ToolName};

    #[test]
    fn a_port_means_something_only_over_udp() {
        let parse = |parameters: serde_json::Value| Spec::parse(ToolName::Pmtu, "192.0.2.1", parameters.as_object().unwrap().clone());
        assert_eq!(parse(json!({"port": 53})).unwrap_err().pointer, "/parameters/port");
        assert!(parse(json!({"port": 53, "protocol": "udp"})).is_ok());
        assert_eq!(parse(json!({"family": "6"})).unwrap_err().pointer, "/parameters/family");
    }

    #[test]
    fn the_longest_legal_run_stays_below_five_minutes() {
        let slowest: Pmtu = serde_json::from_value(json!({"timeout": 3, "tries": 3})).unwrap();
        assert!(slowest.budget() < Duration::from_mins(5), "{:?}", slowest.budget());
    }
}
