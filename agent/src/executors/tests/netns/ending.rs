//! What a run leaves when it is over before its end: no socket, and what it has found.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::{Live, execute, spec};
use super::node;
use super::path::Path;
use super::ways;

#[test]
fn a_run_that_is_dropped_frees_its_sockets_at_once() {
    let path = Path::new(1);
    for groups in ["0 2147483647", "1 0"] {
        path.ping_groups(groups);
        // Nobody answers there.
        for (tool, target, parameters) in ways::to("10.8.204.1") {
            // Without groups these use raw sockets; what else there is does not care, or does without ICMP.
            if groups == "1 0" && !["ping", "traceroute", "mtr"].contains(&tool) {
                continue;
            }
            let shown = format!("{target} {parameters}");
            let (during, after) = path.at(0, move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let (node, live) = (node(), Live::default());
                    let mut run = Box::pin(execute(&node, spec(tool, &target, parameters), &live));
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
