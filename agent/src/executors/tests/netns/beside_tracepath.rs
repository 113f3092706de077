//! `pmtu` beside `tracepath` and `ping -M do`, on a path with a narrow link behind the router.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::network::Network;
use super::path::Path;
use super::{on, ours, theirs};

const TARGETS: [(&str, &str); 2] = [("10.9.1.2", "10.9.0.1"), ("fd09:1::2", "fd09::1")];
const PROTOCOLS: [&str; 2] = ["icmp", "udp"];

fn pmtu(network: &Network, target: &str, parameters: Value) -> (Value, String) {
    let found = ours(network, "pmtu", target, parameters);
    (found.report, found.output)
}

/// The words after "Resume: pmtu".
fn tracepath(network: &Network, target: &str) -> String {
    let text = theirs(network, "tracepath", &["-n", "-m", "5", target]);
    let resume = text.lines().last().and_then(|line| line.trim().strip_prefix("Resume: pmtu ")).unwrap_or_else(|| panic!("{text}"));
    resume.split(' ').next().unwrap().to_owned()
}

/// Whether a packet of this size, headers included, is answered. A second time, for a first that only teaches the way back.
fn ping_arrives(network: &Network, target: &str, size: u64) -> bool {
    let payload = size - if target.contains(':') { 48 } else { 28 };
    let arguments = ["-n", "-M", "do", "-c", "2", "-i", "0.2", "-W", "1", "-s", &payload.to_string(), target];
    theirs(network, "ping", &arguments).contains(" bytes from ")
}

/// What the system has learnt of paths would show in the next run of the others, though never in ours.
fn forget(network: &Network) {
    for family in ["-4", "-6"] {
        theirs(network, "ip", &[family, "route", "flush", "cache"]);
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_hop_that_speaks_is_named_and_the_mtu_is_that_of_tracepath() {
    let network = Network::new();
    network.narrow_the_far_link(1400);
    for (target, router) in TARGETS {
        for protocol in PROTOCOLS {
            let (report, output) = pmtu(&network, target, json!({"protocol": protocol}));
            assert_eq!(
                (&report["mtu_bytes"], &report["verdict"], &report["limited_by"]),
                (&json!(1400), &json!("hop"), &json!(router)),
                "{report}"
            );
            assert_eq!((&report["interface_mtu_bytes"], &report["protocol"]), (&json!(1500), &json!(protocol)));
            let sizes: Vec<&Value> = report["probes"].as_array().unwrap().iter().map(|probe| &probe["size_bytes"]).collect();
            assert_eq!(sizes, [65_535, 1500, 1400], "{report}");
            assert!(output.ends_with(&format!("     Resume: pmtu 1400, limited by {router}\n")), "{output}");
        }
        // Our line is ping's line.
        forget(&network);
        let ping = theirs(&network, "ping", &["-n", "-M", "do", "-c", "1", "-W", "1", "-s", "1400", target]);
        let output = pmtu(&network, target, json!({})).1;
        let theirs = ping.lines().find(|line| line.starts_with("From ")).unwrap_or_else(|| panic!("{ping}"));
        let words = theirs.split_once(" icmp_seq=1 ").unwrap().1;
        assert!(output.contains(words), "{words}\n{output}");
        forget(&network);
        assert_eq!(tracepath(&network, target), "1400");
        forget(&network);
        assert!(ping_arrives(&network, target, 1400));
        forget(&network);
        assert!(!ping_arrives(&network, target, 1401));
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_black_hole_is_said_to_be_one_and_ping_agrees_about_its_edge() {
    let network = Network::new();
    network.narrow_the_far_link(1400);
    network.router_says_nothing_of_size();
    for (target, router) in TARGETS {
        for protocol in PROTOCOLS {
            let (report, output) = pmtu(&network, target, json!({"protocol": protocol, "timeout": 0.3, "tries": 2}));
            assert_eq!((&report["mtu_bytes"], &report["verdict"]), (&json!(1400), &json!("black_hole")), "{report}");
            assert!(report.get("limited_by").is_none());
            let hole = json!({"after": {"ttl": 1, "address": router}, "before": {"ttl": 2, "address": target}});
            assert_eq!(report["black_hole"], hole, "{report}");
            let place = format!("between hop 1 ({router}) and hop 2 ({target})");
            let resume = format!("     Resume: pmtu 1400, black hole {place}: larger packets vanish and nobody says so\n");
            assert!(output.ends_with(&resume), "{output}");
        }
        assert!(ping_arrives(&network, target, 1400) && !ping_arrives(&network, target, 1401));
    }
}

/// Where packets vanish on the way to a path's host, by each protocol over each version of IP: behind this hop, and before that one. Routers are
/// numbered, and the number behind the last is the host's.
#[track_caller]
fn vanishes_between(path: &Path, protocols: &[&str], after: Option<u8>, before: Option<u8>) {
    let v4: (String, fn(u8) -> String) = (path.host(), |hop| format!("10.8.{}.2", hop - 1));
    let v6: (String, fn(u8) -> String) = (path.host_v6(), |hop| format!("fd08:{}::2", hop - 1));
    for (target, address) in [v4, v6] {
        let hop = |ttl: Option<u8>| ttl.map(|ttl| json!({"ttl": ttl, "address": address(ttl).parse::<IpAddr>().unwrap()}));
        let hole = json!({"after": hop(after), "before": hop(before)});
        for protocol in protocols {
            let report = on(path, "pmtu", &target, json!({"protocol": protocol, "timeout": 0.2, "tries": 2, "max_bytes": 1500})).report;
            assert_eq!((&report["mtu_bytes"], &report["verdict"]), (&json!(1400), &json!("black_hole")), "{report}");
            assert_eq!(report["black_hole"], hole, "{target} {protocol} {report}");
            let probes = report["probes"].as_array().unwrap();
            let located: Vec<&Value> = probes.iter().filter(|probe| probe.get("ttl").is_some()).collect();
            let sizes = located.iter().all(|probe| probe["size_bytes"] == 1401 || probe["size_bytes"] == 1400);
            assert!(sizes && located.len() <= 2 * 5 + 2, "{located:?}");
        }
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_black_hole_is_behind_the_last_hop_that_answers_what_vanishes() {
    // Router 5 is the host. At once, because most of the time nothing is heard.
    std::thread::scope(|scope| {
        for hole in [1, 3, 4] {
            scope.spawn(move || {
                let path = Path::new(4);
                path.filter(hole.into(), "forward", "meta length > 1400 drop");
                vanishes_between(&path, &PROTOCOLS, Some(hole), Some(hole + 1));
            });
        }
    });
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_black_hole_can_be_before_the_first_hop() {
    let path = Path::new(2);
    path.filter(1, "prerouting", "meta length > 1400 drop");
    vanishes_between(&path, &PROTOCOLS, None, Some(1));
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_router_that_does_not_say_what_its_next_link_carries_is_a_black_hole() {
    let path = Path::new(2);
    path.narrow(1400);
    path.filter(2, "output", "icmp type destination-unreachable icmp code frag-needed drop");
    path.filter(2, "output", "icmpv6 type packet-too-big drop");
    vanishes_between(&path, &PROTOCOLS, Some(2), Some(3));
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn hops_that_say_nothing_make_it_vague_where_a_black_hole_is() {
    let path = Path::new(4);
    path.filter(2, "forward", "meta length > 1400 drop");
    path.silence(3);
    vanishes_between(&path, &PROTOCOLS, Some(2), Some(4));
    path.silence(2);
    vanishes_between(&path, &PROTOCOLS, Some(1), Some(4));
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_reply_that_vanishes_on_its_way_back_is_none_to_udp() {
    let path = Path::new(2);
    path.filter(2, "prerouting", "iifname right meta length > 1400 drop");
    vanishes_between(&path, &["icmp"], Some(2), Some(3));
    for target in [path.host(), path.host_v6()] {
        let report = on(&path, "pmtu", &target, json!({"protocol": "udp"})).report;
        assert_eq!((&report["verdict"], report.get("black_hole")), (&json!("interface"), None), "{report}");
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_path_as_wide_as_the_interface_takes_one_packet() {
    let network = Network::new();
    for (target, _) in TARGETS {
        for protocol in PROTOCOLS {
            let report = pmtu(&network, target, json!({"protocol": protocol})).0;
            assert_eq!((&report["mtu_bytes"], &report["verdict"]), (&json!(1500), &json!("interface")), "{report}");
            assert_eq!(report["probes"].as_array().unwrap().len(), 2, "one did not leave: {report}");
        }
        assert_eq!(tracepath(&network, target), "1500");
        let capped = pmtu(&network, target, json!({"max_bytes": 1300})).0;
        assert_eq!((&capped["mtu_bytes"], &capped["verdict"]), (&json!(1300), &json!("capped")), "{capped}");
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn without_an_icmp_socket_it_asks_over_udp() {
    let network = Network::new();
    network.narrow_the_far_link(1400);
    network.ping_groups("1 0");
    for (target, router) in TARGETS {
        let report = pmtu(&network, target, json!({})).0;
        assert_eq!(
            (&report["protocol"], &report["mtu_bytes"], &report["limited_by"]),
            (&json!("udp"), &json!(1400), &json!(router)),
            "{report}"
        );
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_target_that_is_silent_or_out_of_reach_is_no_black_hole() {
    let network = Network::new();
    network.host_filter("icmp type echo-request drop");
    let silent = pmtu(&network, "10.9.1.2", json!({"timeout": 0.2, "tries": 2})).0;
    assert_eq!(silent["verdict"], "silent", "{silent}");
    assert!(silent.get("mtu_bytes").is_none());
    assert_eq!(silent["probes"].as_array().unwrap().len(), 5, "largest and smallest twice, and one that did not leave: {silent}");
    for (target, from) in [("10.9.77.1", json!("10.9.0.1")), ("198.51.100.1", Value::Null)] {
        let (report, output) = pmtu(&network, target, json!({}));
        assert_eq!(report["verdict"], "unreachable", "{report}");
        let probe = report["probes"].as_array().unwrap().last().unwrap();
        assert_eq!(probe.get("icmp").map_or(&Value::Null, |icmp| &icmp["from"]), &from, "{report}");
        assert!(output.ends_with("     Resume: the target cannot be reached\n"), "{output}");
    }
}
