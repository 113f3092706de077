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
use crate::tools::network::{BUDGET_SLACK, Family, IcmpMessage, RESOLUTION_MAX};
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
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tools::{Spec, ToolName};

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn reply(seq: u64, rtt_ms: f64) -> PingPacket {
        let reply = PingPacket { seq, status: PacketStatus::Reply, from: Some(ADDRESS), bytes: Some(64), ..PingPacket::default() };
        PingPacket { rtt_ms: Some(rtt_ms), ..reply }
    }

    fn timeout(seq: u64) -> PingPacket {
        PingPacket { seq, ..PingPacket::default() }
    }

    fn error(seq: u64, icmp: Option<IcmpMessage>) -> PingPacket {
        let error = icmp.is_none().then(|| "Network is unreachable".to_owned());
        PingPacket {
            seq,
            status: PacketStatus::Error,
            from: icmp.as_ref().and_then(|icmp| icmp.from),
            icmp,
            error,
            ..PingPacket::default()
        }
    }

    fn report(packets: Vec<PingPacket>) -> PingReport {
        let stats = PingStats::of(&packets, 1503.2, 2000.0);
        let method = PingMethod::IcmpDatagram;
        PingReport { address: ADDRESS, family: Family::V4, resolve_ms: None, method, payload_bytes: 56, packets, stats }
    }

    #[test]
    fn statistics_are_those_of_ping() {
        let stats = PingStats::of(&[reply(2, 20.0), reply(1, 10.0), timeout(3), reply(4, 35.0)], 0.0, 0.0);
        assert_eq!((stats.sent, stats.received, stats.errors), (4, 3, 0));
        assert_eq!(
            (stats.loss_pct, stats.rtt_min_ms, stats.rtt_avg_ms, stats.rtt_max_ms),
            (Some(25.0), Some(10.0), Some(21.667), Some(35.0))
        );
        assert_eq!((stats.rtt_mdev_ms, stats.jitter_ms, stats.out_of_order), (Some(10.274), Some(12.5), 1));
    }

    #[test]
    fn what_was_not_measured_is_absent() {
        let stats = serde_json::to_value(PingStats::of(&[timeout(1), error(2, None)], 5.0, 7.0)).unwrap();
        assert_eq!(
            stats,
            json!({"sent": 1, "received": 0, "errors": 1, "loss_pct": 100.0, "out_of_order": 0, "sending_ms": 5.0, "elapsed_ms": 7.0})
        );
        assert_eq!(PingStats::of(&[error(1, None)], 0.0, 0.0).loss_pct, None);
        assert_eq!(serde_json::to_value(timeout(3)).unwrap(), json!({"seq": 3, "status": "timeout"}));
    }

    #[test]
    fn output_reads_like_ping() {
        let unreachable = IcmpMessage::new(Family::V4, 3, 1, Some("192.0.2.254".parse().unwrap()));
        let packets = vec![
            PingPacket { ttl: Some(56), ..reply(1, 11.64) },
            reply(2, 0.0421),
            timeout(3),
            error(4, Some(unreachable)),
            error(5, None),
        ];
        let text = Ping::default().output(&"Example.com".parse().unwrap(), &report(packets));
        assert_eq!(
            text,
            "PING example.com (192.0.2.1) 56(84) bytes of data.\n\
             64 bytes from 192.0.2.1: icmp_seq=1 ttl=56 time=11.6 ms\n\
             64 bytes from 192.0.2.1: icmp_seq=2 time=0.042 ms\n\
             no answer for icmp_seq=3\n\
             From 192.0.2.254 icmp_seq=4 Destination Host Unreachable\n\
             ping: icmp_seq=5 not sent: Network is unreachable\n\
             \n\
             --- example.com ping statistics ---\n\
             4 packets transmitted, 2 received, +2 errors, 50% packet loss, time 1503ms\n\
             rtt min/avg/max/mdev = 0.042/5.841/11.640/5.799 ms\n"
        );
    }

    #[test]
    fn the_budget_covers_every_packet_and_a_run_without_end_is_refused() {
        let spec = |parameters: serde_json::Value| Spec::parse(ToolName::Ping, "example.com", parameters.as_object().unwrap().clone());
        let budget = spec(json!({"count": 10, "interval_ms": 1000, "timeout": 3})).unwrap().budget();
        assert_eq!(budget, Duration::from_millis(5_000 + 9_000 + 3_000 + 500));
        let invalid = spec(json!({"count": 100, "interval_ms": 10_000})).unwrap_err();
        assert_eq!(invalid.pointer, "/parameters/interval_ms");
        assert!(invalid.detail.contains("would take 992 s"), "{invalid}");
        assert_eq!(spec(json!({"count": 0})).unwrap_err().pointer, "/parameters/count");
        let other = Spec::parse(ToolName::Ping, "::1", json!({"family": "4"}).as_object().unwrap().clone()).unwrap_err();
        assert_eq!(other.to_string(), "/parameters/family: ::1 is an IPv6 address; leave `family` out, or set it to \"any\"");
        assert_eq!(spec(json!({"ttl": 256})).unwrap_err().pointer, "/parameters/ttl");
    }
}
