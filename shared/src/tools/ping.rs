//! `ping`: ICMP echo.

mod output;

use std::net::IpAddr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bounded::{Bounded, Seconds};
use crate::host::Host;
use crate::invalid::Invalid;
use crate::tools::choice::choice;
use crate::tools::network::{BUDGET_SLACK, Family, IcmpMessage, RESOLUTION_MAX, Resolved};
use crate::tools::{Class, Tool};

/// The longest a run may be planned to take.
const RUN_MAX: Duration = Duration::from_mins(5);

/// Send ICMP echo requests to a host and time the replies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Ping {
    /// How many requests to send.
    pub count: Bounded<1, 100, 4>,
    /// How long after one request the next is sent, in milliseconds; it does not wait for the reply.
    pub interval_ms: Bounded<100, 10_000, 500>,
    /// How long to wait for the reply to one request, in seconds.
    pub timeout: Seconds<100, 30_000, 2_000>,
    /// How many bytes each request carries; 1472 is the most that an Ethernet frame takes without fragments.
    pub payload_bytes: Bounded<0, 1_472, 56>,
    /// After how many routers a request is dropped (time to live, hop limit); the node's own default unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<u8>", range(min = 1, max = 255))]
    pub ttl: Option<Bounded<1, 255, 64>>,
    /// Which kind of address to use where the name has both.
    pub family: Family,
}

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
    /// How many bytes each request carried.
    pub payload_bytes: u64,
    /// One entry for each request, in the order they were sent.
    pub packets: Vec<PingPacket>,
    /// All of them together.
    pub stats: PingStats,
}

choice! {
    /// How ICMP was spoken. The kernel sees to it that a datagram socket gets only the replies to its own requests and the errors about
    /// them; it does not tell the TTL of a reply. A raw socket needs a privilege.
    PingMethod {
        /// A datagram ICMP socket.
        #[default]
        IcmpDatagram = "icmp_datagram",
        /// A raw ICMP socket.
        IcmpRaw = "icmp_raw",
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
    /// The shortest round trip, in milliseconds; this and the next three are absent when there was no reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_min_ms: Option<f64>,
    /// The mean round trip, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_avg_ms: Option<f64>,
    /// The longest round trip, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_max_ms: Option<f64>,
    /// The standard deviation of the round trips, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_mdev_ms: Option<f64>,
    /// How many replies came after the reply to a later request.
    pub out_of_order: usize,
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
    pub fn of(packets: &[PingPacket], sending_ms: f64, elapsed_ms: f64) -> Self {
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
            rtt_max_ms: rtts.iter().copied().reduce(f64::max),
            rtt_mdev_ms: avg.and_then(|avg| mean(&|rtt| (rtt - avg).powi(2))).map(|variance| rounded(variance.sqrt())),
            out_of_order,
            jitter_ms: (!differences.is_empty()).then(|| rounded(differences.iter().sum::<f64>() / number(differences.len()))),
            sending_ms,
            elapsed_ms,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "at most a hundred packets")]
fn number(count: usize) -> f64 {
    count as f64
}

fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

/// What a run tells while it goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PingProgress {
    /// Who is pinged; before the first request.
    Resolved(Resolved),
    /// What became of a request.
    Packet(PingPacket),
}

impl Ping {
    /// From the first request until the last is given up.
    fn longest(&self) -> Duration {
        let gaps = u32::try_from(self.count.get() - 1).unwrap_or(u32::MAX);
        self.interval_ms.ms().saturating_mul(gaps) + self.timeout.duration()
    }
}

impl Tool for Ping {
    const SUMMARY: &'static str = "Send ICMP echo requests and time the replies";
    const CLASS: Class = Class::Probe;
    const EXAMPLE_TARGET: &'static str = "example.com";
    type Target = Host;
    type Report = PingReport;
    type Progress = PingProgress;

    fn check(&self, target: &Host) -> Result<(), Invalid> {
        self.family.check(target)?;
        let (longest, most) = (self.longest(), RUN_MAX);
        if longest <= most {
            return Ok(());
        }
        let detail = format!(
            "{} requests every {} ms would take {} s; a run may take at most {} s, so lower `count` or `interval_ms`",
            self.count,
            self.interval_ms,
            longest.as_secs(),
            most.as_secs()
        );
        Err(Invalid::new("/parameters/interval_ms", detail))
    }

    fn budget(&self) -> Duration {
        RESOLUTION_MAX + self.longest() + BUDGET_SLACK
    }

    fn output(&self, target: &Host, report: &PingReport) -> String {
        output::of(target, report)
    }

    fn progress_output(&self, target: &Host, progress: &PingProgress) -> String {
        match progress {
            PingProgress::Resolved(resolved) => output::opening(target, resolved.address, self.payload_bytes.get()),
            PingProgress::Packet(packet) => output::packet_line(packet, self.payload_bytes.get()),
        }
    }
}

#[cfg(test)]
mod tests;
