use std::net::IpAddr;

use serde_json::json;

use super::report::{PacketStatus, PingMethod, PingStats, TcpReply};
use super::*;
use crate::tools::network::Family;
use crate::tools::network::IcmpMessage;
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
    PingPacket { seq, status: PacketStatus::Error, from: icmp.as_ref().and_then(|icmp| icmp.from), icmp, error, ..PingPacket::default() }
}

fn report(packets: Vec<PingPacket>) -> PingReport {
    let stats = PingStats::of(&packets, Some(0), 1503.2, 2000.0);
    let method = PingMethod::IcmpDatagram;
    PingReport {
        address: ADDRESS,
        family: Family::V4,
        resolve_ms: None,
        method,
        engine: None,
        port: None,
        payload_bytes: 56,
        packets,
        stats,
    }
}

#[test]
fn statistics_are_those_of_ping() {
    let stats = PingStats::of(&[reply(2, 20.0), reply(1, 10.0), timeout(3), reply(4, 35.0)], Some(0), 0.0, 0.0);
    assert_eq!((stats.sent, stats.received, stats.errors), (4, 3, 0));
    assert_eq!((stats.loss_pct, stats.rtt_min_ms, stats.rtt_avg_ms, stats.rtt_max_ms), (Some(25.0), Some(10.0), Some(21.667), Some(35.0)));
    assert_eq!((stats.rtt_mdev_ms, stats.jitter_ms, stats.out_of_order), (Some(10.274), Some(12.5), 1));
    let median = |rtts: &[f64]| PingStats::of(&rtts.iter().map(|rtt| reply(1, *rtt)).collect::<Vec<_>>(), Some(0), 0.0, 0.0).rtt_median_ms;
    assert_eq!((stats.rtt_median_ms, median(&[5.0]), median(&[9.0, 1.0, 100.0, 2.0])), (Some(20.0), Some(5.0), Some(5.5)));
}

#[test]
fn what_was_not_measured_is_absent() {
    let stats = serde_json::to_value(PingStats::of(&[timeout(1), error(2, None)], Some(0), 5.0, 7.0)).unwrap();
    assert_eq!(
        stats,
        json!({"sent": 1, "received": 0, "errors": 1, "loss_pct": 100.0, "out_of_order": 0, "duplicates": 0, "late": 0, "sending_ms": 5.0, "elapsed_ms": 7.0})
    );
    assert_eq!(PingStats::of(&[error(1, None)], Some(0), 0.0, 0.0).loss_pct, None);
    assert_eq!(serde_json::to_value(timeout(3)).unwrap(), json!({"seq": 3, "status": "timeout"}));
}

#[test]
fn output_reads_like_ping() {
    let unreachable = IcmpMessage::new(Family::V4, 3, 1, Some("192.0.2.254".parse().unwrap()));
    let packets =
        vec![PingPacket { ttl: Some(56), ..reply(1, 11.64) }, reply(2, 0.0421), timeout(3), error(4, Some(unreachable)), error(5, None)];
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

#[test]
fn further_and_late_replies_are_told_as_ping_tells_them() {
    let twice = PingDuplicate { seq: 1, rtt_ms: 12.3, ttl: Some(56), bytes: 64, from: ADDRESS };
    let packets = vec![
        PingPacket { duplicates: vec![twice], ..reply(1, 11.64) },
        PingPacket { late_ms: Some(2105.0), ttl: Some(56), bytes: Some(64), from: Some(ADDRESS), ..timeout(2) },
    ];
    let stats = PingStats::of(&packets, Some(1), 500.0, 2600.0);
    assert_eq!((stats.received, stats.duplicates, stats.late, stats.loss_pct), (1, Some(1), 1, Some(50.0)));
    let text = Ping::default().output(&"192.0.2.1".parse().unwrap(), &PingReport { stats, ..report(packets) });
    assert_eq!(
        text,
        "PING 192.0.2.1 (192.0.2.1) 56(84) bytes of data.\n\
         64 bytes from 192.0.2.1: icmp_seq=1 time=11.6 ms\n\
         64 bytes from 192.0.2.1: icmp_seq=1 ttl=56 time=12.3 ms (DUP!)\n\
         no answer for icmp_seq=2\n\
         64 bytes from 192.0.2.1: icmp_seq=2 ttl=56 time=2105 ms (late)\n\
         \n\
         --- 192.0.2.1 ping statistics ---\n\
         2 packets transmitted, 1 received, +1 duplicates, 50% packet loss, time 500ms\n\
         rtt min/avg/max/mdev = 11.640/11.640/11.640/0.000 ms\n"
    );
}

#[test]
fn a_tcp_ping_reads_alike() {
    let of = |seq, state| PingPacket { state: Some(state), bytes: None, ..reply(seq, 1.5) };
    let packets = vec![of(1, TcpReply::Open), of(2, TcpReply::Refused), timeout(3)];
    let report = PingReport { port: Some(443), payload_bytes: 0, ..report(packets) };
    let text = Ping::default().output(&"example.com".parse().unwrap(), &report);
    assert!(
        text.starts_with(
            "PING example.com (192.0.2.1) TCP port 443\n\
             open from 192.0.2.1: tcp_seq=1 port=443 time=1.50 ms\n\
             refused from 192.0.2.1: tcp_seq=2 port=443 time=1.50 ms\n\
             no answer for tcp_seq=3\n"
        ),
        "{text}"
    );
}

#[test]
fn what_means_nothing_together_is_refused() {
    let refuses = |target: &str, parameters: serde_json::Value, pointer: &str, part: &str| {
        let invalid = Spec::parse(ToolName::Ping, target, parameters.as_object().unwrap().clone()).unwrap_err();
        assert!(invalid.pointer == pointer && invalid.detail.contains(part), "{invalid}");
    };
    refuses("example.com", json!({"port": 80}), "/parameters/port", "ICMP has no ports");
    refuses("example.com", json!({"protocol": "tcp", "dont_fragment": true}), "/parameters/dont_fragment", "nothing to cut");
    refuses("example.com", json!({"protocol": "tcp", "payload_bytes": 9}), "/parameters/payload_bytes", "carries nothing");
    refuses("example.com", json!({"source": "10.0.0.1", "family": "6"}), "/parameters/source", "10.0.0.1 is an IPv4 address");
    refuses("2001:db8::1", json!({"source": "10.0.0.1"}), "/parameters/source", "over IPv6");
    refuses("example.com", json!({"source": "eth0"}), "/parameters/source", "must be an address of the node");
    refuses("example.com", json!({"dscp": 64}), "/parameters/dscp", "0 to 63");
    refuses("example.com", json!({"payload_bytes": 65_508}), "/parameters/payload_bytes", "0 to 65507");
}
