//! `ping` beside ping(8), line by line.

use std::net::TcpListener;
use std::time::Duration;

use probeops_shared::outcome::FailureKind;
use probeops_shared::tools::ping::report::IcmpEngine;
use serde_json::json;

use super::super::run;
use super::network::Network;
use super::responder::Responder;
use super::{Context, must, node, ours, ours_on, theirs};

/// Replaces what differs between two runs: times.
fn comparable(text: &str) -> Vec<String> {
    let word = |word: &str| if word.starts_with("time=") { "time=T".to_owned() } else { word.to_owned() };
    let line = |line: &str| match line.split_once(", time ").or_else(|| line.split_once(" min/avg")) {
        Some((before, _)) => before.to_owned(),
        None => line.split(' ').map(word).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" "),
    };
    // How many were under way at once is ping's own business.
    text.lines()
        .map(|line| line.split(", pipe").next().unwrap_or_default())
        .filter(|line| !line.is_empty() && !line.starts_with("pipe "))
        .map(line)
        .collect()
}

struct Case {
    target: &'static str,
    ttl: Option<u32>,
    timeout_s: u32,
}

/// A node that pings by the other engine.
fn surge() -> Context {
    node().with_engine(IcmpEngine::Surge)
}

#[track_caller]
fn same(network: &Network, case: &Case) {
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
    let real = theirs(network, "ping", &arguments);
    for make in [node, surge] {
        let found = ours_on(network, make, "ping", target, parameters.clone());
        // The other engine does not know the time to live of every reply; that of a raw IPv4 socket it does.
        let says_ttl = found.report["engine"] == "own" || (found.report["method"] == "icmp_raw" && !target.contains(':'));
        let real: Vec<String> = comparable(&real).iter().map(|line| if says_ttl { line.clone() } else { without_ttl(line) }).collect();
        assert_eq!(comparable(&found.output), real, "{}", found.output);
    }
}

fn without_ttl(line: &str) -> String {
    line.split(' ').filter(|word| !word.starts_with("ttl=")).collect::<Vec<_>>().join(" ")
}

const fn case(target: &'static str) -> Case {
    Case { target, ttl: None, timeout_s: 1 }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn replies_and_errors_read_as_ping_prints_them_over_datagram_and_raw() {
    let network = Network::new();
    for groups in ["0 2147483647", "1 0"] {
        network.ping_groups(groups);
        for target in ["10.9.1.2", "fd09:1::2"] {
            same(&network, &case(target));
            same(&network, &Case { ttl: Some(1), ..case(target) });
        }
        for target in ["10.9.66.1", "fd09:66::1", "10.9.77.1"] {
            same(&network, &case(target));
        }
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn the_largest_requests_go_and_come_in_fragments() {
    let network = Network::new();
    for groups in ["0 2147483647", "1 0"] {
        network.ping_groups(groups);
        for target in ["10.9.1.2", "fd09:1::2"] {
            let real = theirs(&network, "ping", &["-n", "-i", "0.2", "-c", "3", "-W", "2", "-s", "65507", target]);
            let found = ours(&network, "ping", target, json!({"count": 3, "interval_ms": 200, "payload_bytes": 65_507}));
            assert_eq!(comparable(&found.output), comparable(&real), "{}", found.output);
            assert_eq!(found.report["stats"]["received"], 3, "{}", found.report);
        }
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn the_method_is_what_the_machine_grants() {
    let network = Network::new();
    for (groups, method) in [("0 2147483647", "icmp_datagram"), ("1 0", "icmp_raw")] {
        network.ping_groups(groups);
        for (make, target) in
            [node, surge].into_iter().flat_map(|make| ["10.9.1.2", "fd09:1::2", "127.0.0.1", "::1"].map(|target| (make, target)))
        {
            let report = ours_on(&network, make, "ping", target, json!({"count": 2, "interval_ms": 100})).report;
            assert_eq!((&report["method"], &report["stats"]["received"]), (&json!(method), &json!(2)), "{report}");
        }
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_neighbour_that_is_not_there_is_told_by_icmp() {
    let network = Network::new();
    for target in ["10.9.0.77", "fd09::77"] {
        same(&network, &Case { timeout_s: 5, ..case(target) });
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn loss_is_counted_as_ping_counts_it() {
    let network = Network::new();
    network.host_filter("icmp type echo-request numgen inc mod 2 0 drop");
    let real = theirs(&network, "ping", &["-n", "-i", "0.2", "-c", "4", "-W", "1", "10.9.1.2"]);
    for make in [node, surge] {
        let found = ours_on(&network, make, "ping", "10.9.1.2", json!({"count": 4, "interval_ms": 200, "timeout": 1}));
        for text in [&real, &found.output] {
            assert!(text.contains("4 packets transmitted, 2 received, 50% packet loss"), "{text}");
        }
        let packets = found.report["packets"].as_array().unwrap();
        let statuses: Vec<&str> = packets.iter().map(|packet| packet["status"].as_str().unwrap()).collect();
        assert_eq!(statuses, ["timeout", "reply", "timeout", "reply"], "{}", found.report);
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
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

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn further_replies_are_counted_and_marked_as_ping_does() {
    let network = Network::new();
    let host = Responder::start(&network, |reply| vec![(Duration::ZERO, reply.clone()), (Duration::from_millis(20), reply)]);
    let real = theirs(&network, "ping", &["-n", "-i", "0.3", "-c", "3", "-W", "1", "10.9.1.2"]);
    for groups in ["0 2147483647", "1 0"] {
        network.ping_groups(groups);
        let found = ours(&network, "ping", "10.9.1.2", json!({"count": 3, "interval_ms": 300, "timeout": 1}));
        // Both end with the last reply, so that its duplicates come too late.
        for text in [&real, &found.output] {
            assert_eq!(text.matches("(DUP!)").count(), 4, "two for each but the last: {text}");
            assert!(text.contains("3 packets transmitted, 3 received, +4 duplicates, 0% packet loss"), "{text}");
        }
        assert_eq!(
            (&found.report["stats"]["duplicates"], found.report["packets"][0]["duplicates"].as_array().unwrap().len()),
            (&json!(4), 2)
        );
    }
    drop(host);
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_reply_after_the_timeout_is_late_and_not_taken_for_another() {
    let network = Network::new();
    network.host_is_silent();
    let host = Responder::start(&network, |reply| vec![(Duration::from_millis(350), reply)]);
    let found = ours(&network, "ping", "10.9.1.2", json!({"count": 4, "interval_ms": 200, "timeout": 0.2}));
    let stats = &found.report["stats"];
    assert_eq!((&stats["received"], &stats["loss_pct"]), (&json!(0), &json!(100.0)), "{}", found.output);
    // The last two are answered when the run is over.
    assert!(stats["late"].as_u64().unwrap() >= 2, "{}", found.output);
    let late = found.report["packets"][0]["late_ms"].as_f64().unwrap();
    assert!((350.0..1000.0).contains(&late), "{late}");
    drop(host);
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_reply_that_does_not_carry_what_was_sent_is_none() {
    let network = Network::new();
    network.host_is_silent();
    let host = Responder::start(&network, |mut reply| {
        // Another payload, with the checksum that goes with it: two words swapped.
        reply.swap(8, 10);
        reply.swap(9, 11);
        vec![(Duration::ZERO, reply)]
    });
    let found = ours(&network, "ping", "10.9.1.2", json!({"count": 2, "interval_ms": 100, "timeout": 0.3}));
    assert_eq!(found.report["stats"]["received"], 0, "{}", found.output);
    drop(host);
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_packet_that_must_not_be_cut_is_answered_with_the_mtu() {
    for (target, from) in [("10.9.1.2", "10.9.0.1"), ("fd09:1::2", "fd09::1")] {
        for groups in ["0 2147483647", "1 0"] {
            let network = Network::new();
            network.ping_groups(groups);
            network.narrow_the_far_link(1300);
            let parameters = json!({"count": 2, "interval_ms": 100, "payload_bytes": 1400, "dont_fragment": true, "timeout": 1});
            let found = ours(&network, "ping", target, parameters);
            // Each is answered by the router, also when the system knows by then.
            for packet in found.report["packets"].as_array().unwrap() {
                assert_eq!((&packet["icmp"]["mtu_bytes"], &packet["icmp"]["from"]), (&json!(1300), &json!(from)), "{}", found.output);
            }
            let real = theirs(&network, "ping", &["-n", "-c", "1", "-W", "1", "-M", "probe", "-s", "1400", target]);
            let line = |text: &str| text.lines().nth(1).map(str::to_owned);
            if !real.contains("invalid") {
                assert_eq!(line(&found.output), line(&real), "{real}");
            }
            let cut = ours(&network, "ping", target, json!({"count": 1, "payload_bytes": 1400, "timeout": 1}));
            assert_eq!(cut.report["stats"]["received"], 1, "the system cuts it, knowing the MTU: {}", cut.output);
            let small = ours(&network, "ping", target, json!({"count": 1, "payload_bytes": 1200, "dont_fragment": true, "timeout": 1}));
            assert_eq!(small.report["stats"]["received"], 1, "{}", small.output);
            let large = ours(&network, "ping", target, json!({"count": 1, "payload_bytes": 8000, "dont_fragment": true}));
            assert!(large.output.contains("not sent: Message too long"), "it does not fit the first link: {}", large.output);
        }
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn what_the_options_say_is_on_the_wire() {
    let network = Network::new();
    must(network.node_command("ip").args(["addr", "add", "10.9.0.22/24", "dev", "eth0"]));
    must(network.node_command("ip").args(["addr", "add", "fd09::22/64", "dev", "eth0", "preferred_lft", "0"]));
    // Only what is as asked for is let in.
    for rule in [
        "ip saddr 10.9.0.22 ip dscp 46 ip ttl 6 accept",
        "ip6 saddr fd09::22 ip6 dscp 46 ip6 hoplimit 6 accept",
        "icmp type echo-request drop",
        "icmpv6 type echo-request drop",
        "tcp flags syn drop",
    ] {
        network.host_filter(rule);
    }
    let foreign = network.in_node(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(&node(), "ping", "10.9.1.2", json!({"source": "10.9.1.2"}))).unwrap_err()
    });
    assert!(
        foreign.kind == FailureKind::Invalid && foreign.detail.contains("10.9.1.2 in `source` is not an address of this node"),
        "{foreign}"
    );
    for (target, source) in [("10.9.1.2", "10.9.0.22"), ("fd09:1::2", "fd09::22")] {
        let listener = network.in_host(move || TcpListener::bind((target, 0)).unwrap());
        let port = listener.local_addr().unwrap().port();
        let options = json!({"count": 1, "source": source, "dscp": 46, "ttl": 7, "timeout": 0.5});
        let mut tcp = options.clone();
        (tcp["protocol"], tcp["port"]) = (json!("tcp"), json!(port));
        for groups in ["0 2147483647", "1 0"] {
            network.ping_groups(groups);
            for parameters in [&options, &tcp] {
                let found = ours(&network, "ping", target, parameters.clone());
                assert_eq!(found.report["stats"]["received"], 1, "{parameters}: {}", found.output);
            }
        }
        for option in ["source", "dscp", "ttl"] {
            let mut without = options.clone();
            without.as_object_mut().unwrap().remove(option);
            assert_eq!(ours(&network, "ping", target, without).report["stats"]["received"], 0, "without {option}");
        }
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_tcp_ping_times_an_open_and_a_refused_port_and_hears_filters() {
    let network = Network::new();
    network.host_filter("tcp dport 9 drop");
    network.host_filter("tcp dport 11 reject with icmpx type admin-prohibited");
    for target in ["10.9.1.2", "fd09:1::2"] {
        let listener = network.in_host(move || TcpListener::bind((target, 80)).unwrap());
        let tcp = |port: u16| {
            ours(&network, "ping", target, json!({"protocol": "tcp", "port": port, "count": 2, "interval_ms": 100, "timeout": 0.5})).report
        };
        for (port, status, state) in
            [(80, "reply", json!("open")), (81, "reply", json!("refused")), (9, "timeout", json!(null)), (11, "error", json!(null))]
        {
            let report = tcp(port);
            assert_eq!((&report["method"], &report["port"]), (&json!("tcp_connect"), &json!(port)), "{report}");
            for packet in report["packets"].as_array().unwrap() {
                assert_eq!((&packet["status"], &packet["state"]), (&json!(status), &state), "{report}");
                assert_eq!(packet["rtt_ms"].is_number(), status == "reply");
            }
        }
        assert_eq!(tcp(11)["packets"][0]["icmp"]["from"], target);
        drop(listener);
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_burst_of_errors_is_heard_whole() {
    let network = Network::new();
    network.errors_without_limit();
    for (make, groups) in [node, surge].into_iter().flat_map(|make| ["0 2147483647", "1 0"].map(|groups| (make, groups))) {
        network.ping_groups(groups);
        let reports = network.in_node(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            runtime.block_on(async {
                let node = make();
                // At one moment, several times as many as are read at once.
                let ping = || run(&node, "ping", "10.9.77.1", json!({"count": 2, "interval_ms": 100, "timeout": 1}));
                futures_util::future::join_all((0..300).map(|_| ping())).await
            })
        });
        for found in reports {
            let found = found.unwrap();
            assert_eq!(found.report["stats"]["errors"], 2, "{}", found.output);
        }
    }
}
