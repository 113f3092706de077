//! What a ping finds.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::tools::choice::choice;
use crate::tools::network::{Family, IcmpMessage};

/// How many duplicates of one reply a report tells of each by itself; more are only counted.
pub const DUPLICATES_TOLD_MAX: usize = 16;

/// What became of the requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PingReport {
    /// The address that was asked.
    pub address: IpAddr,
    /// Its family.
    pub family: Family,
    /// How long the name took to resolve, in milliseconds; absent for a literal address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolve_ms: Option<f64>,
    /// With which kind of socket.
    pub method: PingMethod,
    /// What spoke ICMP; absent for TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<IcmpEngine>,
    /// The port; absent for ICMP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// How many bytes each request carried; 0 for TCP.
    pub payload_bytes: u64,
    /// One entry for each request, in the order they were sent.
    pub packets: Vec<PingPacket>,
    /// All of them together.
    pub stats: PingStats,
}

choice! {
    /// How the requests were sent. A raw socket needs a privilege; the others need none.
    PingMethod {
        /// A datagram ICMP socket.
        #[default]
        IcmpDatagram = "icmp_datagram",
        /// A raw ICMP socket.
        IcmpRaw = "icmp_raw",
        /// The system's own TCP.
        TcpConnect = "tcp_connect",
    }
}

choice! {
    /// What speaks ICMP on a node.
    IcmpEngine {
        /// The node's own, with all options.
        #[default]
        Own = "own",
        /// surge-ping: it has no source, DSCP and "don't fragment", sees no duplicates, and the time to live of a reply only on a raw IPv4 socket.
        Surge = "surge",
    }
}

choice! {
    /// What a host says to a TCP handshake.
    TcpReply {
        /// The port is open.
        #[default]
        Open = "open",
        /// The host, or a firewall in its name, refuses it: it is there all the same.
        Refused = "refused",
    }
}

choice! {
    /// What became of one request.
    PacketStatus {
        /// The target replied.
        Reply = "reply",
        /// Nobody answered in time.
        #[default]
        Timeout = "timeout",
        /// Somebody answered with an ICMP error, or the node could not send.
        Error = "error",
    }
}

/// One request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PingPacket {
    /// Its number, from 1.
    pub seq: u64,
    /// What became of it.
    pub status: PacketStatus,
    /// How long the reply took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<f64>,
    /// What the host said to the TCP handshake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<TcpReply>,
    /// How long a reply took that came after the timeout, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late_ms: Option<f64>,
    /// The reply's time to live on arrival; absent where the system does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u8>,
    /// The size of the reply, ICMP header included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Who answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<IpAddr>,
    /// The ICMP error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<IcmpMessage>,
    /// Why the node could not send it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Further replies to it, at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub duplicates: Vec<PingDuplicate>,
}

/// A further reply to the same request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PingDuplicate {
    /// The number of the request, from 1.
    pub seq: u64,
    /// How long after the request it came, in milliseconds.
    pub rtt_ms: f64,
    /// Its time to live on arrival; absent where the system does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u8>,
    /// Its size, ICMP header included.
    pub bytes: u64,
    /// Who sent it.
    pub from: IpAddr,
}

/// All requests together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PingStats {
    /// How many left the node.
    pub sent: usize,
    /// How many were replied to.
    pub received: usize,
    /// How many were answered with an ICMP error or could not be sent.
    pub errors: usize,
    /// How many of those sent were not replied to, in per cent; absent when none was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_pct: Option<f64>,
    /// The shortest round trip, in milliseconds; this and the next four are absent when there was no reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_min_ms: Option<f64>,
    /// The mean round trip, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_avg_ms: Option<f64>,
    /// The median round trip, in milliseconds: of an even number the mean of the two in the middle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_median_ms: Option<f64>,
    /// The longest round trip, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_max_ms: Option<f64>,
    /// The standard deviation of the round trips, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_mdev_ms: Option<f64>,
    /// How many replies came after the reply to a later request.
    pub out_of_order: usize,
    /// How many further replies came to requests that had one already; absent where the engine does not see them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicates: Option<usize>,
    /// How many replies came after their timeout; they count as lost.
    #[serde(default)]
    pub late: usize,
    /// The mean difference between one round trip and the next, in milliseconds; absent with fewer than two replies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter_ms: Option<f64>,
    /// From the first request until the last left, in milliseconds: the time that ping(8) prints.
    pub sending_ms: f64,
    /// From the first request until the last was answered or given up, in milliseconds.
    pub elapsed_ms: f64,
}

impl PingStats {
    /// Adds up packets in the order of their answers.
    pub fn of(packets: &[PingPacket], duplicates: Option<usize>, sending_ms: f64, elapsed_ms: f64) -> Self {
        let count = |wanted: fn(&PingPacket) -> bool| packets.iter().filter(|packet| wanted(packet)).count();
        let sent = count(|packet| packet.error.is_none());
        let received = count(|packet| packet.status == PacketStatus::Reply);
        let replies = || packets.iter().filter(|packet| packet.status == PacketStatus::Reply);
        let mut latest = 0;
        let out_of_order = replies()
            .filter(|packet| {
                let late = packet.seq < latest;
                latest = latest.max(packet.seq);
                late
            })
            .count();
        let mut by_number: Vec<(u64, f64)> = replies().filter_map(|packet| Some((packet.seq, packet.rtt_ms?))).collect();
        by_number.sort_unstable_by_key(|(seq, _)| *seq);
        let rtts: Vec<f64> = by_number.into_iter().map(|(_, rtt_ms)| rtt_ms).collect();
        let differences: Vec<f64> = rtts.iter().zip(rtts.iter().skip(1)).map(|(one, next)| (next - one).abs()).collect();
        let mean = |of: &dyn Fn(f64) -> f64| (!rtts.is_empty()).then(|| rtts.iter().map(|rtt| of(*rtt)).sum::<f64>() / number(rtts.len()));
        let avg = mean(&|rtt| rtt);
        Self {
            sent,
            received,
            errors: count(|packet| packet.status == PacketStatus::Error),
            loss_pct: (sent > 0).then(|| rounded(100.0 * number(sent - received) / number(sent))),
            rtt_min_ms: rtts.iter().copied().reduce(f64::min),
            rtt_avg_ms: avg.map(rounded),
            rtt_median_ms: median(&rtts).map(rounded),
            rtt_max_ms: rtts.iter().copied().reduce(f64::max),
            rtt_mdev_ms: avg.and_then(|avg| mean(&|rtt| (rtt - avg).powi(2))).map(|variance| rounded(variance.sqrt())),
            out_of_order,
            duplicates,
            late: count(|packet| packet.late_ms.is_some()),
            jitter_ms: (!differences.is_empty()).then(|| rounded(differences.iter().sum::<f64>() / number(differences.len()))),
            sending_ms,
            elapsed_ms,
        }
    }
}

fn median(rtts: &[f64]) -> Option<f64> {
    let mut sorted = rtts.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = *sorted.get(sorted.len().saturating_sub(1) / 2)?;
    Some(f64::midpoint(lower, upper))
}

#[expect(clippy::cast_precision_loss, reason = "at most a hundred packets")]
fn number(count: usize) -> f64 {
    count as f64
}

pub(super) fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}
