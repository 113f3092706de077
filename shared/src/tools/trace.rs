//! What the tools that follow a path have in common: `traceroute` and `mtr`.

use std::net::IpAddr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bounded::Bounded;
use crate::invalid::Invalid;
use crate::tools::choice::choice;
use crate::tools::network::{Family, IcmpMessage, MplsLabel};
use crate::tools::ping::report::TcpReply;

/// How much a probe carries unless told: with its headers it is as large as one of traceroute(8).
const PAYLOAD_BYTES: u64 = 32;
/// Where probes over UDP go: a port at which nobody listens.
const UDP_PORT: u16 = 33_434;
/// Where probes over TCP go: a port that firewalls let through.
const TCP_PORT: u16 = 80;
/// How long a handshake is waited for: after a second the system repeats it (RFC 6298), and which of the two was answered cannot be told.
pub const HANDSHAKE_PATIENCE: Duration = Duration::from_millis(950);
/// Headers of IPv4, IPv6, TCP with its options, and of ICMP and UDP both.
const IPV4_BYTES: u64 = 20;
const IPV6_BYTES: u64 = 40;
const TCP_BYTES: u64 = 40;
const ICMP_BYTES: u64 = 8;

/// How much a probe carries.
pub type TracePayload = Bounded<16, 8_972, PAYLOAD_BYTES>;

choice! {
    /// What probes are made of.
    TraceProtocol {
        /// ICMP echo requests.
        #[default]
        Icmp = "icmp",
        /// UDP to a port where nobody listens.
        Udp = "udp",
        /// TCP handshakes. Each is given up within a second, because then the system would repeat it.
        Tcp = "tcp",
    }
}

choice! {
    /// How probes were sent. A raw socket needs a privilege; the others need none.
    TraceMethod {
        /// A datagram ICMP socket.
        #[default]
        IcmpDatagram = "icmp_datagram",
        /// A raw ICMP socket.
        IcmpRaw = "icmp_raw",
        /// A UDP socket.
        Udp = "udp",
        /// The system's own TCP.
        TcpConnect = "tcp_connect",
    }
}

choice! {
    /// Whether routers that share packets out over equal paths keep all probes of a flow on one of them.
    TraceFlow {
        /// They do: all that they go by is the same in each probe ("Paris").
        #[default]
        Constant = "constant",
        /// They may not: each probe has a port of its own. So it is if asked for, in `mtr` over TCP, and over UDP where a router quotes too little
        /// of a probe to tell it from the others by anything but its port.
        PerProbe = "per_probe",
    }
}

choice! {
    /// Why no further hop was asked.
    TraceEnd {
        /// The target answered.
        Reached = "reached",
        /// A router said that the target cannot be reached, or that it may not.
        Unreachable = "unreachable",
        /// Nobody answered for several hops in a row.
        #[default]
        Silent = "silent",
        /// It was the last that was asked for.
        MaxTtl = "max_ttl",
        /// The run was cut short.
        CutShort = "cut_short",
    }
}

choice! {
    /// What became of a probe.
    ProbeStatus {
        /// Somebody answered.
        Answered = "answered",
        /// Nobody answered in time.
        #[default]
        Silent = "silent",
        /// The node could not send it.
        Error = "error",
    }
}

/// A probe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TraceProbe {
    /// What became of it.
    pub status: ProbeStatus,
    /// Who answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<IpAddr>,
    /// After how long, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<f64>,
    /// The ICMP error; absent for *time exceeded*, which is the rule, and where the target itself replied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<IcmpMessage>,
    /// What the target said to a TCP handshake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<TcpReply>,
    /// The MPLS labels that the probe bore at this hop, outermost first, where the router says so (RFC 4950).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mpls: Vec<MplsLabel>,
    /// Why the node could not send it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl TraceProbe {
    /// What traceroute(8) puts behind the time of an answer that is an error, such as `!H`.
    pub fn mark(&self) -> Option<String> {
        let icmp = self.icmp.as_ref()?;
        let family = icmp.from.map_or(Family::V4, Family::of);
        let code = match (family, icmp.kind, icmp.code) {
            (_, _, _) if icmp.is_port_unreachable(family) => return None,
            (Family::V6, 1, 0) | (Family::V4, 3, 0 | 6 | 8 | 11) => "N",
            (Family::V6, 1, 2 | 3) | (Family::V4, 3, 1 | 7 | 12) => "H",
            (Family::V6, 1, 1) | (Family::V4, 3, 9 | 10 | 13) => "X",
            (Family::V4, 3, 2) => "P",
            (Family::V4, 3, 5) => "S",
            (Family::V4, 3, 14) => "V",
            (Family::V4, 3, 15) => "C",
            (Family::V6, 2, _) | (Family::V4, 3, 4) => return Some(format!("!F-{}", icmp.mtu_bytes.unwrap_or_default())),
            (_, _, code) => return Some(format!("!<{code}>")),
        };
        Some(format!("!{code}"))
    }
}

impl TraceProtocol {
    /// The port that probes go to.
    pub(crate) fn port(self, given: Option<Bounded<0, 65_535, 80>>) -> Option<u16> {
        match self {
            Self::Icmp => None,
            Self::Udp => Some(given.map_or(UDP_PORT, Bounded::get_u16)),
            Self::Tcp => Some(given.map_or(TCP_PORT, Bounded::get_u16)),
        }
    }

    /// How much a probe carries.
    pub(crate) fn payload_bytes(self, given: Option<TracePayload>) -> u64 {
        match self {
            Self::Icmp | Self::Udp => given.unwrap_or_default().get(),
            Self::Tcp => 0,
        }
    }

    /// The size of a probe of this protocol, all headers included.
    pub(crate) fn packet_bytes(self, address: IpAddr, payload_bytes: u64) -> u64 {
        let ip = if address.is_ipv4() { IPV4_BYTES } else { IPV6_BYTES };
        ip + payload_bytes + if self == Self::Tcp { TCP_BYTES } else { ICMP_BYTES }
    }

    /// Refuses options that mean nothing with this protocol.
    pub(crate) fn check(self, options: TraceOptions) -> Result<(), Invalid> {
        let TraceOptions { port, payload, dont_fragment, flows, flow } = options;
        let refuse = |option: &str, detail: String| Err(Invalid::new(format!("/parameters/{option}"), detail));
        match self {
            Self::Icmp if flow == TraceFlow::PerProbe => {
                refuse("flow", "ICMP has no ports to vary; leave `flow` out, or set `protocol` to \"udp\" or \"tcp\"".to_owned())
            }
            Self::Icmp | Self::Udp | Self::Tcp if flow == TraceFlow::PerProbe && flows > 1 => {
                refuse("flows", format!("each {self} probe is a flow of its own already, so {flows} flows mean nothing; leave `flows` out"))
            }
            Self::Icmp if port.is_some() => {
                refuse("port", "ICMP has no ports; leave `port` out, or set `protocol` to \"udp\" or \"tcp\"".to_owned())
            }
            Self::Udp if port.is_some_and(|port| port.get() == 0) => {
                refuse("port", "must be from 1 to 65535 for UDP, not 0: the system sends nothing there".to_owned())
            }
            Self::Tcp if payload.is_some() => refuse(
                "payload_bytes",
                "a TCP handshake carries nothing; leave `payload_bytes` out, or set `protocol` to \"icmp\" or \"udp\"".to_owned(),
            ),
            Self::Tcp if dont_fragment => refuse(
                "dont_fragment",
                "a TCP handshake carries nothing to cut; leave `dont_fragment` out, or set `protocol` to \"icmp\" or \"udp\"".to_owned(),
            ),
            Self::Icmp | Self::Udp | Self::Tcp => Ok(()),
        }
    }
}

/// The options that not every protocol has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TraceOptions {
    pub(crate) port: Option<Bounded<0, 65_535, 80>>,
    pub(crate) payload: Option<TracePayload>,
    pub(crate) dont_fragment: bool,
    pub(crate) flows: u64,
    pub(crate) flow: TraceFlow,
}

/// Refuses a path that ends before it begins.
pub(crate) fn check_ttls(first: u64, max: u64) -> Result<(), Invalid> {
    if first <= max {
        return Ok(());
    }
    let detail = format!("the first hop ({first}) lies behind the last ({max}); lower `first_ttl` or raise `max_ttl`");
    Err(Invalid::new("/parameters/first_ttl", detail))
}
