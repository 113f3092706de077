//! What a run leaves when it is over before its end: no socket, and what it has found.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use probeops_shared::outcome::{FailureKind, Status};
use probeops_shared::tools::ToolName;
use serde_json::{Value, json};

use super::super::{Found, Live, execute, spec};
use super::node;
use super::path::Path;
use super::ways::{self, Way};
use crate::executors;
use crate::worker::ending::{Ending, within};

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_run_that_is_dropped_frees_its_sockets_at_once() {
    let path = Path::new(1);
    for groups in ["0 2147483647", "1 0"] {
        path.ping_groups(groups);
        // Nobody answers there.
        for way in ways::to("10.8.204.1") {
            // Without groups these use raw sockets; what else there is does not care, or does without ICMP.
            if groups == "0 2147483647" || ["ping", "traceroute", "mtr"].contains(&way.0) {
                dropped(&path, way, || sockets() > 0);
            }
        }
    }
}

/// Where servers listen, by TCP; the name server's by UDP too.
const PORTS: [u16; 8] = [22, 25, 43, 53, 80, 443, 853, 3128];

/// Servers that take every connection and say nothing, at the end of the path.
fn silent_servers(path: &Path) -> (Vec<TcpListener>, UdpSocket) {
    let host = path.host();
    path.at(2, move || {
        let listen = |port| TcpListener::bind((host.as_str(), port)).unwrap();
        (PORTS.map(listen).into_iter().collect(), UdpSocket::bind((host.as_str(), 53)).unwrap())
    })
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_run_that_waits_for_a_server_to_speak_frees_its_sockets_at_once() {
    let path = Path::new(1);
    let _servers = silent_servers(&path);
    for way in ways::to(&path.host()) {
        let (tool, _, parameters) = &way;
        let waits = match *tool {
            "tcp" => *parameters != json!({}),
            "tls" | "http" | "dns" | "whois" => true,
            _ => false,
        };
        if waits {
            dropped(&path, way, || is_connected() || of("udp").len() > OWN);
        }
    }
}

/// Drops a run when this holds; its sockets are gone then.
fn dropped(path: &Path, (tool, target, parameters): Way, when: impl Fn() -> bool + Send + 'static) {
    let shown = format!("{tool} {target} {parameters}");
    let (during, after) = path.at(0, move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (node, live) = (node(), Live::default());
            // Those of an earlier node may not be gone yet.
            gone().await;
            let mut run = Box::pin(execute(&node, spec(tool, &target, parameters), &live));
            let there_are = async {
                while !when() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                sockets()
            };
            let during = tokio::select! {
                ended = &mut run => panic!("{tool} {target} ended: {ended:?}"),
                sockets = there_are => sockets,
            };
            drop(run);
            gone().await;
            (during, sockets())
        })
    });
    assert!(during > 0 && after == 0, "{shown}: {during} sockets during the run, {after} after");
}

/// Waits until there are none, but not for long. Tasks that were aborted end in the runtime's next turns; and while another test starts a
/// program, that has a copy of each socket until it runs. A run that went on would wait for much longer.
async fn gone() {
    let gone = async {
        while sockets() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    drop(tokio::time::timeout(Duration::from_millis(500), gone).await);
}

/// How many sockets a node has for itself, for UDP.
const OWN: usize = 1;

/// How many sockets this thread's namespace has that belong to somebody, a node's own apart.
fn sockets() -> usize {
    let all: usize = ["icmp", "icmp6", "raw", "raw6", "udp", "udp6", "tcp", "tcp6"].map(|kind| of(kind).len()).iter().sum();
    all.saturating_sub(OWN)
}

/// Whether one of them is a connection.
fn is_connected() -> bool {
    of("tcp").iter().any(|line| line.split_whitespace().nth(3) == Some("01"))
}

/// Those of a kind, as lines of /proc (`proc_net_tcp(5)`). What was closed, and waits for the other side, has no inode.
fn of(kind: &str) -> Vec<String> {
    let lines = std::fs::read_to_string(format!("/proc/thread-self/net/{kind}")).unwrap_or_default();
    let is_owned = |line: &&str| line.split_whitespace().nth(9) != Some("0");
    lines.lines().skip(1).filter(is_owned).map(str::to_owned).collect()
}

/// A registry that refers whoever asks it first.
fn refers(path: &Path, to: &str) {
    let (host, answer) = (path.host(), format!("refer: {to}\n"));
    let registry = path.at(2, move || TcpListener::bind((host.as_str(), 4343)).unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = registry.accept().unwrap();
        BufReader::new(&mut stream).read_line(&mut String::new()).unwrap();
        stream.write_all(answer.as_bytes()).unwrap();
    });
}

/// What a run has found of something when its time is over.
type Expected = fn(&Value) -> bool;

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_run_whose_time_is_over_leaves_what_it_has_found() {
    let path = Path::new(1);
    let _servers = silent_servers(&path);
    let (host, nobody) = (path.host(), "10.8.204.1");
    refers(&path, nobody);
    let cases: Vec<(&str, &str, Value, Expected)> = vec![
        ("ping", &host, json!({"count": 100, "interval_ms": 100}), |report| report["stats"]["received"].as_u64() > Some(3)),
        ("ping", &host, json!({"protocol": "tcp", "count": 100, "interval_ms": 100}), |report| {
            report["stats"]["received"].as_u64() > Some(3)
        }),
        ("ping", nobody, json!({"count": 100, "timeout": 0.2}), |report| report["packets"][0]["status"] == "timeout"),
        ("traceroute", nobody, json!({"timeout": 10}), |report| report["hops"][0]["probes"][0]["status"] == "answered"),
        ("traceroute", nobody, json!({"timeout": 10, "protocol": "udp"}), |report| report["hops"][0]["probes"][0]["status"] == "answered"),
        ("traceroute", nobody, json!({"timeout": 10, "protocol": "tcp"}), |report| report["hops"][0]["probes"][0]["status"] == "answered"),
        ("mtr", &host, json!({"rounds": 100, "interval_ms": 200}), |report| report["hops"][1]["received"].as_u64() > Some(2)),
        ("pmtu", nobody, json!({"timeout": 0.5}), |report| report["probes"][1]["status"] == "timeout"),
        ("pmtu", nobody, json!({"timeout": 0.5, "protocol": "udp"}), |report| report["probes"][1]["status"] == "timeout"),
        ("tcp", &host, json!({"port": 22, "banner": true, "banner_wait_ms": 10_000}), |report| report["ports"][0]["state"] == "open"),
        ("tcp", &host, json!({"ports": "22,80", "banner": true, "banner_wait_ms": 10_000}), |report| report["ports"][1]["state"] == "open"),
        ("tls", &host, json!({}), |report| report["state"] == "open" && report["timings"]["connect_ms"].is_number()),
        ("tls", &host, json!({"starttls": "smtp"}), |report| report["timings"]["connect_ms"].is_number()),
        ("http", "http://10.8.1.2/", json!({}), |report| report["requests"][0]["timings"]["connect_ms"].is_number()),
        ("http", "https://10.8.1.2/", json!({}), |report| report["requests"][0]["timings"]["connect_ms"].is_number()),
        ("whois", "192.0.2.1", json!({"server": host, "port": 4343}), |report| report["queries"][0]["status"] == "referral"),
        ("dns", "a.test", json!({"resolver": host, "timeout": 0.3, "tries": 5}), |report| report["attempts"][1]["result"] == "timeout"),
        ("dns", "a.test", json!({"resolver": host, "timeout": 0.3, "tries": 5, "compare_with": [nobody]}), |report| {
            report["attempts"][1]["result"] == "timeout" && report["comparison"]["answers"][1]["attempts"][1]["result"] == "timeout"
        }),
        ("dns", "a.test", json!({"resolver": host, "timeout": 0.3, "tries": 5, "trace": true}), |report| {
            report["trace"][0]["attempts"][1]["result"] == "timeout"
        }),
    ];
    for tool in ToolName::ALL.iter().filter(|tool| **tool != ToolName::Echo) {
        assert!(cases.iter().any(|(known, ..)| *known == tool.as_str()), "there is no case of {tool} here");
    }
    for (tool, target, parameters, expected) in cases {
        let (shown, spec) = (format!("{tool} {target} {parameters}"), spec(tool, target, parameters));
        let Ending { status, failure, found } = path.at(0, move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (node, live) = (node(), Live::default());
                let result = within(Duration::from_secs(1), executors::execute(&node, &spec, &live)).await;
                Ending::of(spec.tool(), result.and_then(|done| done), live.take())
            })
        });
        let found = Found::from(found);
        let failure = failure.unwrap_or_else(|| panic!("{shown} has ended: {}", found.report));
        assert_eq!((status, failure.kind), (Status::Failed, FailureKind::TimedOut), "{shown}: {failure}");
        assert!(expected(&found.report), "{shown}: {}", found.report);
        // It prints what it has found, and not only why it ended.
        assert!(!found.output.trim().is_empty() && !found.output.starts_with(&format!("{tool}: timed_out")), "{shown}: {}", found.output);
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_trace_that_is_cut_short_leaves_the_hops_it_found() {
    let path = Path::new(3);
    let found = path.at(0, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (node, live) = (node(), Live::default());
            // Three routers answer at once, and then nobody for ten seconds.
            let found = async |tool: &str, parameters: Value| {
                let run = execute(&node, spec(tool, "10.8.204.1", parameters), &live);
                assert!(tokio::time::timeout(Duration::from_millis(500), run).await.is_err());
                live.taken().unwrap()
            };
            [found("traceroute", json!({"timeout": 10})).await, found("mtr", json!({"timeout": 10, "rounds": 1})).await]
        })
    });
    let [traced, watched] = &found;
    let answered = |hop: &Value| hop["probes"].as_array().unwrap().iter().filter(|probe| probe["status"] == "answered").count();
    assert_eq!(traced.report["hops"].as_array().unwrap().iter().map(answered).collect::<Vec<_>>(), [3; 3], "{}", traced.output);
    let received = |hop: &Value| hop["received"].as_u64().unwrap();
    assert_eq!(watched.report["hops"].as_array().unwrap().iter().map(received).sum::<u64>(), 3, "{}", watched.output);
    assert_eq!((&traced.report["end"], &watched.report["end"]), (&json!("cut_short"), &json!("cut_short")));
}
