//! What must not happen, seen from outside of the process: no packet to whom the policy denies, no socket of a run that is over.

use std::time::Duration;

use probeops_shared::outcome::FailureKind;
use serde_json::{Value, json};

use super::super::{Live, execute, run, spec};
use super::path::Path;
use super::{Context, node, policy};

/// Every way in which these tools send.
fn ways() -> Vec<(&'static str, Value)> {
    let protocols = |tool, protocols: &[&str]| protocols.iter().map(|protocol| (tool, json!({"protocol": protocol}))).collect::<Vec<_>>();
    let all = ["icmp", "udp", "tcp"];
    [protocols("ping", &["icmp", "tcp"]), protocols("traceroute", &all), protocols("mtr", &all)].concat()
}

#[test]
fn no_packet_leaves_for_whom_the_policy_denies() {
    let path = Path::new(1);
    path.count_probes();
    let host = path.host();
    let kinds = path.at(0, move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let denying = Context::new(policy(&format!("[deny]\nnetworks = [\"{host}/32\"]")), &[]).unwrap();
            let mapped = format!("::ffff:{host}");
            let translated = "64:ff9b::127.0.0.1".to_owned();
            let metadata = "169.254.169.254".to_owned();
            let mut kinds = Vec::new();
            for target in [host.clone(), mapped, translated, metadata, "::1".to_owned(), "localhost".to_owned()] {
                for (tool, parameters) in ways() {
                    kinds.push(run(&denying, tool, &target, parameters).await.unwrap_err().kind);
                }
            }
            kinds
        })
    });
    assert!(kinds.iter().all(|kind| *kind == FailureKind::Denied), "{kinds:?}");
    assert_eq!(path.probes_counted(), 0);
    let reached = super::on(&path, "ping", &path.host(), json!({"count": 1}));
    assert_eq!((&reached.report["stats"]["received"], path.probes_counted()), (&json!(1), 1), "the counter counts");
}

#[test]
fn a_run_that_is_dropped_frees_its_sockets_at_once() {
    let path = Path::new(1);
    for groups in ["0 2147483647", "1 0"] {
        path.ping_groups(groups);
        for (tool, parameters) in ways() {
            let shown = parameters.to_string();
            let (during, after) = path.at(0, move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let (node, live) = (node(), Live::default());
                    // Nobody answers there.
                    let mut run = Box::pin(execute(&node, spec(tool, "10.8.204.1", parameters), &live));
                    let during = tokio::select! {
                        ended = &mut run => panic!("{tool} ended: {ended:?}"),
                        sockets = some_sockets() => sockets,
                    };
                    drop(run);
                    // Tasks that were aborted end in the runtime's next turns; and while another test starts a program, that has a copy of each
                    // socket until it runs. A run that went on would wait for much longer.
                    let gone = async {
                        while sockets() > 0 {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                        }
                    };
                    drop(tokio::time::timeout(Duration::from_millis(500), gone).await);
                    (during, sockets())
                })
            });
            assert!(during > 0 && after == 0, "{tool} {shown}: {during} sockets during the run, {after} after");
        }
    }
}

/// Waits until there are any.
async fn some_sockets() -> usize {
    loop {
        match sockets() {
            0 => tokio::time::sleep(Duration::from_millis(1)).await,
            some => return some,
        }
    }
}

/// How many sockets this thread's namespace has.
fn sockets() -> usize {
    let of = |kind: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{kind}")).unwrap_or_default();
    ["icmp", "icmp6", "raw", "raw6", "udp", "udp6", "tcp", "tcp6"].map(|kind| of(kind).lines().skip(1).count()).iter().sum()
}

#[test]
fn a_trace_that_is_cut_short_leaves_the_hops_it_found() {
    let path = Path::new(3);
    let found = path.at(0, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (node, live) = (node(), Live::default());
            // Three routers answer at once, and then nobody for ten seconds.
            let run = execute(&node, spec("traceroute", "10.8.204.1", json!({"timeout": 10})), &live);
            assert!(tokio::time::timeout(Duration::from_millis(500), run).await.is_err());
            live.take().unwrap()
        })
    });
    let answered = |hop: &Value| hop["probes"].as_array().unwrap().iter().filter(|probe| probe["status"] == "answered").count();
    assert_eq!(found.report["hops"].as_array().unwrap().iter().map(answered).collect::<Vec<_>>(), [3; 3], "{}", found.output);
}
