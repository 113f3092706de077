//! A report as ping(8) prints it; a TCP ping in the same form, with the port and the answer to the handshake.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::report::{PacketStatus, PingDuplicate, PingPacket, PingReport, PingStats, rounded};
use crate::host::Host;

/// What an ICMP echo adds to its payload.
const ICMP_HEADER_BYTES: u64 = 8;
/// What IPv4 adds to that.
const IPV4_HEADER_BYTES: u64 = 20;

/// What is the same in every line.
#[derive(Clone, Copy)]
pub(super) struct Of<'a> {
    pub(super) target: &'a Host,
    /// Of a TCP ping.
    pub(super) port: Option<u16>,
    pub(super) payload_bytes: u64,
}

pub(super) fn of(target: &Host, report: &PingReport) -> String {
    let of = Of { target, port: report.port, payload_bytes: report.payload_bytes };
    let mut text = of.opening(report.address);
    for packet in &report.packets {
        text.push_str(&of.packet(packet));
        text.push_str(&of.late(packet));
        text.extend(packet.duplicates.iter().map(|duplicate| of.duplicate(duplicate)));
    }
    text.push_str(&closing(target, &report.stats));
    text
}

impl Of<'_> {
    pub(super) fn opening(self, address: IpAddr) -> String {
        let Self { target, port, payload_bytes } = self;
        match (port, address) {
            (Some(port), _) => format!("PING {target} ({address}) TCP port {port}\n"),
            (None, IpAddr::V4(address)) => {
                let packet_bytes = payload_bytes + ICMP_HEADER_BYTES + IPV4_HEADER_BYTES;
                format!("PING {target} ({address}) {payload_bytes}({packet_bytes}) bytes of data.\n")
            }
            (None, IpAddr::V6(address)) => format!("PING {target}({address}) {payload_bytes} data bytes\n"),
        }
    }

    pub(super) fn packet(self, packet: &PingPacket) -> String {
        let (seq, name) = (packet.seq, self.name());
        let from = packet.from.map_or_else(|| "?".to_owned(), |from| from.to_string());
        match packet.status {
            PacketStatus::Reply => self.reply(packet, packet.rtt_ms),
            PacketStatus::Timeout => format!("no answer for {name}={seq}\n"),
            PacketStatus::Error => match (&packet.icmp, &packet.error) {
                (Some(icmp), _) => format!("From {from} {name}={seq} {}\n", icmp.meaning),
                (None, error) => format!("ping: {name}={seq} not sent: {}\n", error.as_deref().unwrap_or("unknown error")),
            },
        }
    }

    /// The line of a reply that came after its timeout.
    pub(super) fn late(self, packet: &PingPacket) -> String {
        match packet.late_ms {
            Some(late_ms) => self.reply(packet, Some(late_ms)).replace('\n', " (late)\n"),
            None => String::new(),
        }
    }

    pub(super) fn duplicate(self, duplicate: &PingDuplicate) -> String {
        let PingDuplicate { seq, rtt_ms, ttl, bytes, from } = duplicate;
        let ttl = ttl.map_or_else(String::new, |ttl| format!(" ttl={ttl}"));
        format!("{bytes} bytes from {from}: {}={seq}{ttl} time={} ms (DUP!)\n", self.name(), rtt(*rtt_ms))
    }

    fn reply(self, packet: &PingPacket, rtt_ms: Option<f64>) -> String {
        let (seq, name) = (packet.seq, self.name());
        let from = packet.from.map_or_else(|| "?".to_owned(), |from| from.to_string());
        let time = rtt_ms.map_or_else(String::new, |rtt_ms| format!(" time={} ms", rtt(rtt_ms)));
        if let Some(port) = self.port {
            return format!("{} from {from}: {name}={seq} port={port}{time}\n", packet.state.unwrap_or_default());
        }
        let bytes = packet.bytes.unwrap_or(self.payload_bytes + ICMP_HEADER_BYTES);
        let ttl = packet.ttl.map_or_else(String::new, |ttl| format!(" ttl={ttl}"));
        format!("{bytes} bytes from {from}: {name}={seq}{ttl}{time}\n")
    }

    fn name(self) -> &'static str {
        if self.port.is_some() { "tcp_seq" } else { "icmp_seq" }
    }
}

/// Three significant digits, as ping(8) prints a round trip.
fn rtt(rtt_ms: f64) -> String {
    let digits = match rtt_ms {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    format!("{rtt_ms:.digits$}")
}

fn closing(target: &Host, stats: &PingStats) -> String {
    let duplicates = stats.duplicates.filter(|count| *count > 0).map_or_else(String::new, |count| format!(", +{count} duplicates"));
    let errors = if stats.errors > 0 { format!(", +{} errors", stats.errors) } else { String::new() };
    let loss = stats.loss_pct.map_or_else(String::new, |loss_pct| format!(", {} packet loss", percent(loss_pct)));
    let mut text = format!(
        "\n--- {target} ping statistics ---\n{} packets transmitted, {} received{duplicates}{errors}{loss}, time {:.0}ms\n",
        stats.sent, stats.received, stats.sending_ms
    );
    if let (Some(min), Some(avg), Some(max), Some(mdev)) = (stats.rtt_min_ms, stats.rtt_avg_ms, stats.rtt_max_ms, stats.rtt_mdev_ms) {
        let _ = writeln!(text, "rtt min/avg/max/mdev = {min:.3}/{avg:.3}/{max:.3}/{mdev:.3} ms");
    }
    text
}

/// Six significant digits at most, as ping(8) prints a loss.
fn percent(number: f64) -> String {
    format!("{}%", rounded(number))
}
