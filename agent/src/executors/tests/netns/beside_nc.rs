//! `tcp` beside `nc -v`: the same words, and filters told apart where nc does not.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Stdio;

use serde_json::{Value, json};

use super::network::Network;
use super::{ours, theirs};

const TARGETS: [&str; 2] = ["10.9.1.2", "fd09:1::2"];

struct Case {
    port: u16,
    filter: &'static str,
    state: &'static str,
    /// Type and code of the ICMP message, for IPv4 and IPv6.
    icmp: Option<[(u8, u8); 2]>,
}

const CASES: [Case; 7] = [
    Case { port: 8001, filter: "", state: "refused", icmp: None },
    Case { port: 8002, filter: "drop", state: "filtered", icmp: None },
    Case { port: 8003, filter: "reject with tcp reset", state: "refused", icmp: None },
    Case { port: 8004, filter: "reject with icmpx type admin-prohibited", state: "filtered", icmp: Some([(3, 13), (1, 1)]) },
    Case { port: 8005, filter: "reject with icmpx type port-unreachable", state: "refused", icmp: Some([(3, 3), (1, 4)]) },
    Case { port: 8006, filter: "reject with icmpx type host-unreachable", state: "unreachable", icmp: Some([(3, 1), (1, 3)]) },
    Case { port: 8007, filter: "reject with icmpx type no-route", state: "unreachable", icmp: Some([(3, 0), (1, 0)]) },
];

fn tcp(network: &Network, target: &str, port: u16) -> (Value, String) {
    let found = ours(network, "tcp", target, json!({"port": port, "timeout": 1}));
    (found.report["ports"][0].clone(), found.output)
}

fn nc(network: &Network, target: &str, port: u16) -> String {
    theirs(network, "nc", &["-v", "-z", "-w", "1", target, &port.to_string()])
}

/// The line without what nc does not say: how long it took, and who said it.
fn without_more(line: &str) -> String {
    let line = line.split(" (ICMP").next().unwrap_or_default().trim_end();
    match line.split_once(" in ") {
        Some((before, after)) => {
            format!("{before}{}", after.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').trim_start_matches(" ms"))
        }
        None => line.to_owned(),
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn open_refused_filtered_and_unreachable_are_told_apart() {
    let network = Network::new();
    for Case { port, filter, .. } in CASES.iter().filter(|case| !case.filter.is_empty()) {
        network.host_filter(&format!("tcp dport {port} {filter}"));
    }
    for (index, target) in TARGETS.into_iter().enumerate() {
        for Case { port, filter, state, icmp } in &CASES {
            let (report, output) = tcp(&network, target, *port);
            assert_eq!(report["state"], *state, "{target} {filter}: {report}");
            let told = report.get("icmp").map(|icmp| (icmp["type"].as_u64().unwrap(), icmp["code"].as_u64().unwrap()));
            assert_eq!(told, icmp.map(|icmp| (icmp[index].0.into(), icmp[index].1.into())), "{target} {filter}: {report}");
            assert_eq!(report.get("connect_ms").is_some(), *state == "refused", "{report}");
            let real = nc(&network, target, *port);
            if *state == "filtered" && icmp.is_none() {
                assert!(real.contains("timed out") && output.contains("timed out"), "{real}{output}");
            } else if !real.contains("timed out") {
                // Where nc does not hear of a filter's ICMPv6 it times out; we do hear.
                assert_eq!(without_more(output.trim_end()), real.trim_end(), "{target} {filter}");
            }
        }
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn an_open_port_reads_as_nc_prints_it() {
    let network = Network::new();
    for target in TARGETS {
        for port in [8000, 443, 22, 25, 53] {
            let listener = network.in_host(move || TcpListener::bind((target, port)).unwrap());
            let (report, output) = tcp(&network, target, port);
            assert_eq!(report["state"], "open", "{report}");
            assert!(report["connect_ms"].as_f64().unwrap() > 0.0);
            assert_eq!(without_more(output.trim_end()), nc(&network, target, port).trim_end());
            drop(listener);
        }
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_router_that_forbids_or_knows_no_way_is_named() {
    let network = Network::new();
    for (target, state, router) in
        [("10.9.66.1", "filtered", "10.9.0.1"), ("fd09:66::1", "filtered", "fd09::1"), ("10.9.77.1", "unreachable", "10.9.0.1")]
    {
        let report = tcp(&network, target, 80).0;
        assert_eq!((&report["state"], &report["icmp"]["from"]), (&json!(state), &json!(router)), "{report}");
    }
    for target in ["192.0.2.1", "2001:db8::1"] {
        let (report, output) = tcp(&network, target, 80);
        assert_eq!(report["state"], "unreachable", "no way from here at all: {report}");
        assert!(report.get("icmp").is_none() && report.get("connect_ms").is_none());
        assert_eq!(without_more(output.trim_end()), nc(&network, target, 80).trim_end());
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn several_ports_read_as_nc_prints_them() {
    let network = Network::new();
    network.host_filter("tcp dport 8002 reject with tcp reset");
    network.host_filter("tcp dport 8005 drop");
    for target in TARGETS {
        let listeners = [8000, 8003].map(|port| network.in_host(move || TcpListener::bind((target, port)).unwrap()));
        let found = ours(&network, "tcp", target, json!({"ports": "8000-8005", "timeout": 1}));
        let real = theirs(&network, "nc", &["-v", "-z", "-w", "1", target, "8000-8005"]);
        let judged = |text: &str| -> BTreeSet<String> {
            // What times out names another bound.
            text.lines().map(|line| without_more(line.split(" timed out").next().unwrap_or_default())).collect()
        };
        assert_eq!(judged(&found.output), judged(&real), "{}\n{real}", found.output);
        let states: Vec<&str> = found.report["ports"].as_array().unwrap().iter().map(|port| port["state"].as_str().unwrap()).collect();
        assert_eq!(states, ["open", "refused", "refused", "open", "refused", "filtered"], "in order, the silent one last");
        drop(listeners);
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn what_nc_is_told_we_are_told() {
    let network = Network::new();
    for target in TARGETS {
        let port = 8000;
        let listener = network.in_host(move || TcpListener::bind((target, port)).unwrap());
        let server = std::thread::spawn(move || {
            for stream in listener.incoming().take(2) {
                let mut stream = stream.unwrap();
                let mut line = [0; 6];
                stream.read_exact(&mut line).unwrap();
                stream.write_all(b"+PONG\r\n").unwrap();
            }
        });
        let found = ours(&network, "tcp", target, json!({"port": port, "send": "PING\\r\\n", "expect": "+PONG"}));
        assert_eq!(found.report["ports"][0]["expect"]["matched"], true, "{}", found.report);
        let mut nc = network.node_command("nc");
        let mut nc = nc.args(["-w", "2", target, "8000"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        nc.stdin.as_mut().unwrap().write_all(b"PING\r\n").unwrap();
        let said = nc.wait_with_output().unwrap().stdout;
        assert_eq!(found.report["ports"][0]["reply"], said.escape_ascii().to_string());
        server.join().unwrap();
    }
}
