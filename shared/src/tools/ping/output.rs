//! A report as ping(8) prints it.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::{PacketStatus, PingPacket, PingReport, PingStats, rounded};
use crate::host::Host;

/// What an ICMP echo adds to its payload.
const ICMP_HEADER_BYTES: u64 = 8;
/// What IPv4 adds to that.
const IPV4_HEADER_BYTES: u64 = 20;

pub(super) fn of(target: &Host, report: &PingReport) -> String {
    let mut text = opening(target, report.address, report.payload_bytes);
    for packet in &report.packets {
        text.push_str(&packet_line(packet, report.payload_bytes));
    }
    text.push_str(&closing(target, &report.stats));
    text
}

pub(super) fn opening(target: &Host, address: IpAddr, payload_bytes: u64) -> String {
    match address {
        IpAddr::V4(address) => {
            let packet_bytes = payload_bytes + ICMP_HEADER_BYTES + IPV4_HEADER_BYTES;
            format!("PING {target} ({address}) {payload_bytes}({packet_bytes}) bytes of data.\n")
        }
        IpAddr::V6(address) => format!("PING {target}({address}) {payload_bytes} data bytes\n"),
    }
}

pub(super) fn packet_line(packet: &PingPacket, payload_bytes: u64) -> String {
    let seq = packet.seq;
    let from = packet.from.map_or_else(|| "?".to_owned(), |from| from.to_string());
    match (packet.status, packet.rtt_ms) {
        (PacketStatus::Reply, rtt_ms) => {
            let bytes = packet.bytes.unwrap_or(payload_bytes + ICMP_HEADER_BYTES);
            let ttl = packet.ttl.map_or_else(String::new, |ttl| format!(" ttl={ttl}"));
            let time = rtt_ms.map_or_else(String::new, |rtt_ms| format!(" time={} ms", rtt(rtt_ms)));
            format!("{bytes} bytes from {from}: icmp_seq={seq}{ttl}{time}\n")
        }
        (PacketStatus::Timeout, _) => format!("no answer for icmp_seq={seq}\n"),
        (PacketStatus::Error, _) => match (&packet.icmp, &packet.error) {
            (Some(icmp), _) => format!("From {from} icmp_seq={seq} {}\n", icmp.meaning),
            (None, error) => format!("ping: icmp_seq={seq} not sent: {}\n", error.as_deref().unwrap_or("unknown error")),
        },
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
    let errors = if stats.errors > 0 { format!(", +{} errors", stats.errors) } else { String::new() };
    let loss = stats.loss_pct.map_or_else(String::new, |loss_pct| format!(", {} packet loss", percent(loss_pct)));
    let mut text = format!(
        "\n--- {target} ping statistics ---\n{} packets transmitted, {} received{errors}{loss}, time {:.0}ms\n",
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
