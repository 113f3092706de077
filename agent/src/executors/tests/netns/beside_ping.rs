//! `ping` beside ping(8), line by line.

use serde_json::json;

use super::network::Network;
use super::{ours, theirs};

/// Whether the lines must tell the same TTL; a datagram socket of ours does not learn it.
#[derive(Clone, Copy, PartialEq)]
enum Ttl {
    Told,
    Untold,
}

/// Replaces what differs between two runs: times, and the TTL where it is not told.
fn comparable(text: &str, ttl: Ttl) -> Vec<String> {
    let word = |word: &str| match word.split_once('=') {
        Some(("time", _)) => "time=T".to_owned(),
        Some(("ttl", _)) if ttl == Ttl::Untold => String::new(),
        _ => word.to_owned(),
    };
    let line = |line: &str| match line.split_once(", time ").or_else(|| line.split_once(" = ")) {
        Some((before, _)) => before.to_owned(),
        None => line.split(' ').map(word).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" "),
    };
    // How many were under way at once is ping's own business.
    text.lines().filter(|line| !line.is_empty() && !line.starts_with("pipe ")).map(line).collect()
}

struct Case {
    target: &'static str,
    ttl: Option<u32>,
    timeout_s: u32,
}

#[track_caller]
fn same(network: &Network, case: &Case, told: Ttl) {
    let Case { target, ttl, timeout_s } = case;
    let timeout_text = timeout_s.to_string();
    let mut arguments = vec!["-n", "-i", "0.2", "-c", "3", "-W", &timeout_text];
    let ttl_text = ttl.map(|ttl| ttl.to_string());
    arguments.extend(ttl_text.iter().flat_map(|ttl| ["-t", ttl.as_str()]));
    arguments.push(target);
    let mut parameters = json!({"count": 3, "interval_ms": 200, "timeout": timeout_s});
    if let Some(ttl) = ttl {
        parameters["ttl"] = json!(ttl);
    }
    let (real, found) = (theirs(network, "ping", &arguments), ours(network, "ping", target, parameters));
    assert_eq!(comparable(&found.output, told), comparable(&real, told), "ping said:\n{real}\nwe said:\n{}", found.output);
}

const fn case(target: &'static str) -> Case {
    Case { target, ttl: None, timeout_s: 1 }
}

#[test]
fn replies_and_errors_read_as_ping_prints_them_over_datagram_and_raw() {
    let network = Network::new();
    for (groups, told) in [("0 2147483647", Ttl::Untold), ("1 0", Ttl::Told)] {
        network.ping_groups(groups);
        same(&network, &case("10.9.1.2"), told);
        // The crate does not tell the hop limit of an IPv6 reply, on any socket.
        same(&network, &case("fd09:1::2"), Ttl::Untold);
        for target in ["10.9.1.2", "fd09:1::2"] {
            same(&network, &Case { ttl: Some(1), ..case(target) }, told);
        }
        for target in ["10.9.66.1", "fd09:66::1", "10.9.77.1"] {
            same(&network, &case(target), told);
        }
    }
}

#[test]
fn the_method_is_what_the_machine_grants() {
    let network = Network::new();
    for (groups, method) in [("0 2147483647", "icmp_datagram"), ("1 0", "icmp_raw")] {
        network.ping_groups(groups);
        for target in ["10.9.1.2", "fd09:1::2", "127.0.0.1", "::1"] {
            let report = ours(&network, "ping", target, json!({"count": 2, "interval_ms": 100})).report;
            assert_eq!((&report["method"], &report["stats"]["received"]), (&json!(method), &json!(2)), "{report}");
        }
    }
}

#[test]
fn a_neighbour_that_is_not_there_is_told_by_icmp() {
    let network = Network::new();
    for target in ["10.9.0.77", "fd09::77"] {
        same(&network, &Case { timeout_s: 5, ..case(target) }, Ttl::Untold);
    }
}

#[test]
fn loss_is_counted_as_ping_counts_it() {
    let network = Network::new();
    network.host_filter("icmp type echo-request numgen inc mod 2 0 drop");
    let real = theirs(&network, "ping", &["-n", "-i", "0.2", "-c", "4", "-W", "1", "10.9.1.2"]);
    let found = ours(&network, "ping", "10.9.1.2", json!({"count": 4, "interval_ms": 200, "timeout": 1}));
    for text in [&real, &found.output] {
        assert!(text.contains("4 packets transmitted, 2 received, 50% packet loss"), "{text}");
    }
    let statuses: Vec<&str> = found.report["packets"].as_array().unwrap().iter().map(|packet| packet["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["timeout", "reply", "timeout", "reply"], "{}", found.report);
}

#[test]
fn what_did_not_leave_was_not_sent() {
    let network = Network::new();
    for target in ["198.51.100.1", "2001:db8::1"] {
        let real = theirs(&network, "ping", &["-n", "-c", "1", target]);
        assert!(real.contains("Network is unreachable"), "{real}");
        let found = ours(&network, "ping", target, json!({"count": 2, "interval_ms": 100}));
        let stats = &found.report["stats"];
        assert_eq!((&stats["sent"], &stats["received"], &stats["errors"]), (&json!(0), &json!(0), &json!(2)), "{}", found.report);
        assert!(stats.get("loss_pct").is_none() && stats.get("rtt_avg_ms").is_none(), "{stats}");
        assert!(found.output.contains("Network is unreachable"), "{}", found.output);
    }
}
