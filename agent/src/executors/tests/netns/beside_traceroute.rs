//! `traceroute` beside traceroute(8): the same hops and the same marks.

use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};

use super::super::dns_server::DnsServer;
use super::super::{Live, execute, spec};
use super::path::Path;
use super::router::{Router, with_labels};
use super::{Context, Found, finds, node, on, policy};

/// A hop as both print it: who answered, with which marks.
type Line = Vec<String>;

fn ours(path: &Path, target: &str, parameters: Value) -> Found {
    on(path, "traceroute", target, parameters)
}

fn theirs(path: &Path, arguments: &[&str]) -> String {
    // By itself it waits three times as long as for the answer before, which on a busy machine is too short.
    let output = path.node_command("traceroute").args(["-n", "-w", "0.5,9999,9999"]).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("traceroute: {error}; apt-get install traceroute"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Without the times; the opening line without the name of the program.
fn comparable(text: &str) -> Vec<Line> {
    let is_time = |words: &[&str], at: usize| words.get(at + 1) == Some(&"ms");
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (0..words.len()).filter(|at| !is_time(&words, *at)).map(|at| words[at].to_owned()).collect()
    };
    text.lines().map(line).collect()
}

#[track_caller]
fn same(path: &Path, target: &str, parameters: Value, arguments: &[&str]) -> Found {
    let mut all = arguments.to_vec();
    all.push(target);
    let (real, found) = (theirs(path, &all), ours(path, target, parameters));
    assert_eq!(comparable(&found.output), comparable(&real), "traceroute said:\n{real}\nwe said:\n{}", found.output);
    found
}

const PROTOCOLS: [(&str, &str); 3] = [("icmp", "-I"), ("udp", "-U"), ("tcp", "-T")];

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn every_hop_is_found_by_every_protocol_in_both_families() {
    let path = Path::new(5);
    path.silence(3);
    let listener = path.at(6, || TcpListener::bind("[::]:80").unwrap());
    for groups in ["0 2147483647", "1 0"] {
        path.ping_groups(groups);
        for target in [path.host(), path.host_v6()] {
            for (protocol, flag) in PROTOCOLS {
                // traceroute(8) sends its UDP to one port with this flag, and TCP to 80 as we do.
                let arguments = if protocol == "udp" { vec![flag, "-p", "33434"] } else { vec![flag] };
                let found = same(&path, &target, json!({"protocol": protocol}), &arguments);
                assert_eq!(
                    (&found.report["end"], found.report["hops"].as_array().unwrap().len()),
                    (&json!("reached"), 6),
                    "{}",
                    found.report
                );
            }
        }
        let method = ours(&path, &path.host(), json!({"queries": 1})).report["method"].clone();
        assert_eq!(method, if groups == "1 0" { "icmp_raw" } else { "icmp_datagram" });
    }
    let report = ours(&path, &path.host(), json!({"protocol": "tcp", "queries": 1})).report;
    assert_eq!((&report["hops"][5]["probes"][0]["state"], &report["flow"]), (&json!("open"), &json!("constant")), "{report}");
    let report = ours(&path, &path.host(), json!({"protocol": "tcp", "port": 81, "queries": 1})).report;
    assert_eq!(report["hops"][5]["probes"][0]["state"], "refused", "{report}");
    drop(listener);
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn routers_that_refuse_are_marked_as_traceroute_marks_them() {
    let path = Path::new(3);
    for net in [201, 202, 203] {
        for target in [format!("10.8.{net}.1"), format!("fd08:{net}::1")] {
            for (protocol, flag) in [("icmp", "-I"), ("udp", "-U")] {
                let found = same(&path, &target, json!({"protocol": protocol}), &[flag]);
                assert_eq!(found.report["end"], "unreachable", "{}", found.report);
            }
            let tcp = ours(&path, &target, json!({"protocol": "tcp"}));
            assert_eq!(
                (&tcp.report["end"], &tcp.report["hops"][3]["probes"][0]["icmp"]["from"]),
                (&json!("unreachable"), &tcp.report["hops"][2]["probes"][0]["from"]),
                "{}",
                tcp.output
            );
        }
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_packet_that_is_too_big_for_a_link_is_marked_with_its_mtu() {
    let path = Path::new(3);
    path.narrow(1300);
    for (target, packet_bytes) in [(path.host(), 1400), (path.host_v6(), 1400)] {
        let headers = if target.contains(':') { 48 } else { 28 };
        let parameters = json!({"payload_bytes": packet_bytes - headers, "dont_fragment": true, "protocol": "udp"});
        let found = ours(&path, &target, parameters);
        let line = found.output.lines().last().unwrap();
        assert!(line.starts_with(" 4  ") && line.matches("!F-1300").count() == 3, "{}", found.output);
        let real = theirs(&path, &["-F", "-U", "--mtu", &target, &packet_bytes.to_string()]);
        assert!(real.contains("F=1300"), "{real}");
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_path_that_ends_in_silence_is_given_up() {
    let path = Path::new(3);
    for target in ["10.8.204.1", "fd08:204::1"] {
        let found = ours(&path, target, json!({"timeout": 0.3}));
        let hops = found.report["hops"].as_array().unwrap();
        assert_eq!((&found.report["end"], hops.len()), (&json!("silent"), 8), "three that answer and five that do not: {}", found.output);
        let real = theirs(&path, &["-I", "-m", "8", target]);
        assert_eq!(comparable(&found.output)[1..], comparable(&real)[1..], "{real}");
    }
    let found = ours(&path, "10.8.204.1", json!({"timeout": 0.2, "first_ttl": 2, "max_ttl": 4, "queries": 1}));
    assert_eq!((&found.report["end"], &found.report["hops"][0]["ttl"], found.output.lines().count()), (&json!("max_ttl"), &json!(2), 4));
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_flow_stays_on_one_of_two_equal_paths_and_several_show_both() {
    let path = Path::with_twin(3);
    let routers = |parameters: Value| {
        let report = ours(&path, &path.host(), parameters).report;
        let mut routers: Vec<String> =
            report["hops"][1]["probes"].as_array().unwrap().iter().map(|probe| probe["from"].as_str().unwrap().to_owned()).collect();
        routers.sort_unstable();
        routers.dedup();
        routers
    };
    for protocol in ["udp", "tcp"] {
        for _ in 0..4 {
            assert_eq!(routers(json!({"protocol": protocol, "queries": 8})).len(), 1, "{protocol}: one flow");
        }
        let both = ["10.8.1.2", "10.8.51.2"];
        assert_eq!(routers(json!({"protocol": protocol, "queries": 16, "max_ttl": 10, "flows": 16})), both, "{protocol}");
        assert_eq!(routers(json!({"protocol": protocol, "queries": 16, "flow": "per_probe"})), both, "{protocol}: each of another port");
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_router_that_limits_its_answers_is_no_loss() {
    let path = Path::new(3);
    (1..=3).for_each(|router| path.limit(router));
    // Ten at once ask each router thirty times; it answers six and then one a second.
    let reports = path.at(0, {
        let host = path.host();
        move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            runtime.block_on(async {
                let node = node();
                let trace = || finds(&node, "traceroute", &host, json!({"queries": 1}));
                futures_util::future::join_all((0..10).map(|_| trace())).await
            })
        }
    });
    let hops =
        |found: &Found| found.report["hops"].as_array().unwrap().iter().filter(|hop| hop["probes"][0]["status"] == "answered").count();
    assert!(reports.iter().all(|found| found.report["end"] == "reached"));
    let found: usize = reports.iter().map(hops).sum();
    assert_eq!(found, 40, "{}", reports.iter().map(|found| found.output.as_str()).collect::<String>());
    assert!(reports.iter().any(|found| found.report["hops"][0]["limited"] == true));
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_target_that_answers_udp_is_reached() {
    let path = Path::new(2);
    let target = path.host();
    let echo = path.at(3, || UdpSocket::bind("0.0.0.0:7").unwrap());
    let answering = std::thread::spawn(move || {
        echo.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut buffer = [0; 100];
        while let Ok((length, from)) = echo.recv_from(&mut buffer) {
            echo.send_to(&buffer[..length], from).unwrap();
        }
    });
    let found = ours(&path, &target, json!({"protocol": "udp", "port": 7}));
    assert_eq!((&found.report["end"], found.report["hops"].as_array().unwrap().len()), (&json!("reached"), 3), "{}", found.output);
    answering.join().unwrap();
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn the_labels_of_a_router_are_shown_as_traceroute_shows_them() {
    let path = Path::new(3);
    let router = Router::start(&path, 2, with_labels);
    for groups in ["0 2147483647", "1 0"] {
        path.ping_groups(groups);
        for (protocol, flag) in PROTOCOLS {
            let found = same(&path, &path.host(), json!({"protocol": protocol}), &["-e", flag]);
            let label = &found.report["hops"][1]["probes"][0]["mpls"][0];
            assert_eq!(*label, json!({"label": 24001, "traffic_class": 1, "bottom": false, "ttl": 1}), "{}", found.output);
        }
    }
    drop(router);
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_router_that_quotes_no_more_than_it_must_is_told_from_the_others_by_port() {
    let path = Path::new(4);
    // The IP header and eight bytes (RFC 792); slowly, so that several probes wait.
    let shortly = |dropped: &[u8]| {
        std::thread::sleep(Duration::from_millis(5));
        [&[0; 4], &dropped[..28]].concat()
    };
    let routers = [Router::start(&path, 1, shortly), Router::start(&path, 3, shortly)];
    for (protocol, flag) in PROTOCOLS {
        let found = same(&path, &path.host(), json!({"protocol": protocol}), &[flag]);
        assert_eq!(found.report["flow"], if protocol == "udp" { "per_probe" } else { "constant" }, "{}", found.report);
    }
    drop(routers);
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn hops_are_told_as_they_answer_and_their_lines_are_the_output() {
    let path = Path::new(5);
    path.silence(2);
    let target = path.host();
    let (found, news) = path.at(0, move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let (live, mut news) = Live::heard();
            let found = execute(&node(), spec("traceroute", &target, json!({})), &live).await.unwrap();
            drop(live);
            let mut told = Vec::new();
            while let Some(news) = news.recv().await {
                told.push(news);
            }
            (found, told)
        })
    });
    let kinds = |kind: &str| news.iter().filter(|news| news.progress["type"] == kind).count();
    // Answers of the target to packets that were on their way past it may be among them.
    assert!(
        (kinds("resolved"), kinds("hop")) == (1, 6) && kinds("probe") >= 15,
        "{:?}",
        news.iter().map(|news| &news.progress).collect::<Vec<_>>()
    );
    assert_eq!(news.iter().map(|news| news.output.as_str()).collect::<String>(), found.output);
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn names_are_those_of_the_nodes_resolver() {
    let path = Path::new(1);
    let target = path.host();
    let (found, watched) = path.at(0, move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let server = DnsServer::start().await;
            let node = Context::new(policy("allow_loopback = true"), &[server.address]).unwrap();
            let watch = json!({"names": true, "rounds": 2, "interval_ms": 200});
            (finds(&node, "traceroute", &target, json!({"names": true})).await, finds(&node, "mtr", &target, watch).await)
        })
    });
    assert_eq!(watched.report["hops"][0]["addresses"][0]["name"], "router.test", "{}", watched.report);
    assert!(watched.output.contains("  1.|-- router.test (10.8.0.2)  "), "{}", watched.output);
    assert_eq!(found.report["hops"][0]["names"], json!([{"address": "10.8.0.2", "name": "router.test"}]), "{}", found.report);
    assert!(
        found.output.contains(" 1  router.test (10.8.0.2)  ") && found.output.contains(" 2  10.8.1.2 (10.8.1.2)  "),
        "{}",
        found.output
    );
}
