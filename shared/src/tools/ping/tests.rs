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
    PingPacket { seq, status: PacketStatus::Error, from: icmp.as_ref().and_then(|icmp| icmp.from), icmp, error, ..PingPacket::default() }
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
    assert_eq!((stats.loss_pct, stats.rtt_min_ms, stats.rtt_avg_ms, stats.rtt_max_ms), (Some(25.0), Some(10.0), Some(21.667), Some(35.0)));
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
