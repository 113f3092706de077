//! `ping`: ICMP echo, or TCP handshakes.

mod output;
pub mod report;

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::report::{PingDuplicate, PingPacket, PingReport};
use crate::bounded::{Bounded, Seconds};
use crate::host::Host;
use crate::invalid::Invalid;
use crate::tools::choice::choice;
use crate::tools::network::{BUDGET_SLACK, FamilyChoice, RESOLUTION_MAX, Resolved, Source, check_duration};
use crate::tools::{Class, Tool};

/// The port that a TCP ping goes to unless told.
const PORT: u16 = 80;

/// Send ICMP echo requests, or open TCP connections, to a host and time the replies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Ping {
    /// What is sent.
    pub protocol: PingProtocol,
    /// To which port a TCP ping connects; 80 unless given. ICMP has no ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<u16>", range(min = 0, max = 65_535))]
    pub port: Option<Bounded<0, 65_535, 80>>,
    /// How many requests to send.
    pub count: Bounded<1, 100, 4>,
    /// How long after one request the next is sent, in milliseconds; it does not wait for the reply.
    pub interval_ms: Bounded<100, 10_000, 500>,
    /// How long to wait for the reply to one request, in seconds; a reply that comes later, while the run goes on, is told as late.
    pub timeout: Seconds<100, 30_000, 2_000>,
    /// How many bytes each ICMP request carries: 1472 is the most that an Ethernet frame takes without fragments, 8972 a jumbo frame, 65507
    /// an IPv4 packet. A TCP ping carries none.
    pub payload_bytes: Bounded<0, 65_507, 56>,
    /// Whether to forbid fragments: a request that is too big for a link is then answered with its MTU. ICMP only.
    pub dont_fragment: bool,
    /// After how many routers a request is dropped (time to live, hop limit); the node's own default unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<u8>", range(min = 1, max = 255))]
    pub ttl: Option<Bounded<1, 255, 64>>,
    /// The differentiated services code point of each request (RFC 2474), such as 46 for expedited forwarding.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<u8>", range(min = 0, max = 63))]
    pub dscp: Option<Bounded<0, 63, 0>>,
    /// Which kind of address to use where the name has both.
    pub family: FamilyChoice,
    /// From which address of the node to send; the system's choice unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
}

choice! {
    /// What a ping sends.
    PingProtocol {
        /// ICMP echo requests.
        #[default]
        Icmp = "icmp",
        /// TCP handshakes: the reply is the host's yes or no. The system repeats a lost SYN after a second, so that a time of more than a
        /// second can mean loss.
        Tcp = "tcp",
    }
}

/// What a run tells while it goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PingProgress {
    /// Who is pinged; before the first request.
    Resolved(Resolved),
    /// What became of a request.
    Packet(PingPacket),
    /// A further reply to a request.
    Duplicate(PingDuplicate),
    /// A reply to a request that was given up.
    Late(PingPacket),
}

impl Ping {
    /// The port of a TCP ping.
    pub fn port(&self) -> Option<u16> {
        (self.protocol == PingProtocol::Tcp).then(|| self.port.map_or(PORT, Bounded::get_u16))
    }

    /// How much each request carries.
    pub fn payload_bytes(&self) -> u64 {
        match self.protocol {
            PingProtocol::Icmp => self.payload_bytes.get(),
            PingProtocol::Tcp => 0,
        }
    }

    fn check_protocol(&self) -> Result<(), Invalid> {
        let refuse = |option: &str, detail: &str| Err(Invalid::new(format!("/parameters/{option}"), detail));
        match self.protocol {
            PingProtocol::Icmp if self.port.is_some() => {
                refuse("port", "ICMP has no ports; leave `port` out, or set `protocol` to \"tcp\"")
            }
            PingProtocol::Tcp if self.dont_fragment => {
                refuse("dont_fragment", "a TCP handshake carries nothing to cut; leave `dont_fragment` out, or set `protocol` to \"icmp\"")
            }
            PingProtocol::Tcp if self.payload_bytes != Bounded::default() => {
                refuse("payload_bytes", "a TCP handshake carries nothing; leave `payload_bytes` out, or set `protocol` to \"icmp\"")
            }
            PingProtocol::Icmp | PingProtocol::Tcp => Ok(()),
        }
    }

    /// From the first request until the last is given up.
    fn longest(&self) -> Duration {
        let gaps = u32::try_from(self.count.get() - 1).unwrap_or(u32::MAX);
        self.interval_ms.ms().saturating_mul(gaps) + self.timeout.duration()
    }
}

impl Tool for Ping {
    const SUMMARY: &'static str = "Send ICMP echo requests, or open TCP connections, and time the replies";
    const CLASS: Class = Class::Probe;
    const EXAMPLE_TARGET: &'static str = "example.com";
    type Target = Host;
    type Report = PingReport;
    type Progress = PingProgress;

    fn check(&self, target: &Host) -> Result<(), Invalid> {
        self.family.check(target)?;
        self.source.map_or(Ok(()), |source| source.check(self.family, target))?;
        self.check_protocol()?;
        let plan = || format!("{} requests every {} ms would take", self.count, self.interval_ms);
        check_duration(self.longest(), "interval_ms", plan, "`count` or `interval_ms`")
    }

    fn budget(&self) -> Duration {
        RESOLUTION_MAX + self.longest() + BUDGET_SLACK
    }

    fn output(&self, target: &Host, report: &PingReport) -> String {
        output::of(target, report)
    }

    fn progress_output(&self, target: &Host, progress: &PingProgress) -> String {
        let of = output::Of { target, port: self.port(), payload_bytes: self.payload_bytes() };
        match progress {
            PingProgress::Resolved(resolved) => of.opening(resolved.address),
            PingProgress::Packet(packet) => of.packet(packet),
            PingProgress::Duplicate(duplicate) => of.duplicate(duplicate),
            PingProgress::Late(packet) => of.late(packet),
        }
    }

    /// Nothing was received.
    fn is_bad(&self, report: &PingReport) -> bool {
        report.stats.received == 0
    }
}

#[cfg(test)]
mod tests;
