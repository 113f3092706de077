//! Nodes and the broker fail while jobs come in: every job is answered once, none starts after its deadline, everything recovers by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use probeops_tests::fabric::{Agent, Api, Fabric};
use probeops_tests::http::Caller;
use serde_json::{Value, json};

/// How many threads ask at once.
const ASKERS: usize = 8;
/// How often each asks, before, while and after something fails.
const PAUSE: Duration = Duration::from_millis(10);

/// A steady stream of jobs.
struct Load {
    stop: Arc<AtomicBool>,
    askers: Vec<JoinHandle<Vec<Value>>>,
}

impl Load {
    fn start(caller: &Caller) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let askers = (0..ASKERS)
            .map(|_| {
                let (caller, stop) = (caller.clone(), Arc::clone(&stop));
                std::thread::spawn(move || {
                    let mut documents = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        documents.push(caller.job("echo", "load", "eu", &json!({})).expect(200));
                        std::thread::sleep(PAUSE);
                    }
                    documents
                })
            })
            .collect();
        Self { stop, askers }
    }

    fn stop(self) -> Vec<Value> {
        self.stop.store(true, Ordering::Relaxed);
        self.askers.into_iter().flat_map(|asker| asker.join().expect("an asker")).collect()
    }
}

/// Every job has one outcome; which nodes they came from.
#[track_caller]
fn nodes_of(documents: &[Value]) -> BTreeMap<String, usize> {
    let ids: BTreeSet<&str> = documents.iter().filter_map(|document| document["id"].as_str()).collect();
    assert_eq!(ids.len(), documents.len(), "every job has an id of its own");
    let mut nodes = BTreeMap::new();
    for document in documents {
        assert_eq!(document["results"].as_array().map(Vec::len), Some(1), "{document}");
        let outcome = &document["results"][0];
        let node = outcome["node"]["id"].as_str().unwrap_or_else(|| panic!("nobody ran {document}"));
        assert_eq!(outcome["status"], "success", "{document}");
        *nodes.entry(node.to_owned()).or_insert(0) += 1;
    }
    nodes
}

/// No run in the trail began later than grace after its job was accepted.
fn none_started_late(api: &Api, documents: &[Value]) {
    const GRACE_MS: i128 = 5_000;
    let created: BTreeMap<&str, i128> =
        documents.iter().filter_map(|document| Some((document["id"].as_str()?, ms(&document["created_at"])))).collect();
    let runs = api.wait_for_audit_of(&created.keys().copied().collect(), "verdict=finished");
    for run in &runs {
        let id = run["request_id"].as_str().expect("an id");
        let duration_ms = run["duration_ms"].as_f64().expect("a duration");
        #[expect(clippy::cast_possible_truncation, reason = "milliseconds of a test")]
        let started = ms(&run["time"]) - duration_ms as i128;
        assert!(started - created[id] <= GRACE_MS, "{run} began too late");
    }
}

fn ms(time: &Value) -> i128 {
    i128::from(probeops_shared::timestamp::Timestamp::parse(time.as_str().expect("a time")).expect("RFC 3339").unix_ms())
}

fn three_nodes() -> (Fabric, Api, Vec<Rc<Agent>>) {
    let fabric = Fabric::start();
    let api = fabric.api();
    let agents = ["f-1", "f-2", "f-3"].iter().map(|id| fabric.agent(id, "eu")).collect();
    api.wait_for_nodes(3);
    (fabric, api, agents)
}

#[test]
fn a_thousand_jobs_spread_over_three_nodes() {
    let (_fabric, api, _agents) = three_nodes();
    let caller = api.admin();
    let askers: Vec<_> = (0..ASKERS)
        .map(|_| {
            let caller = caller.clone();
            std::thread::spawn(move || {
                (0..1000 / ASKERS).map(|_| caller.job("echo", "spread", "eu", &json!({})).expect(200)).collect::<Vec<_>>()
            })
        })
        .collect();
    let documents: Vec<Value> = askers.into_iter().flat_map(|asker| asker.join().unwrap()).collect();
    let nodes = nodes_of(&documents);
    assert_eq!(documents.len(), 1000);
    assert_eq!(nodes.len(), 3);
    for (node, count) in nodes {
        assert!((200..=470).contains(&count), "{node} got {count} of 1000");
    }
    none_started_late(&api, &documents);
}

#[test]
fn a_killed_node_costs_no_job() {
    let (fabric, api, agents) = three_nodes();
    let load = Load::start(&api.admin());
    std::thread::sleep(Duration::from_secs(1));
    agents[0].kill();
    std::thread::sleep(Duration::from_secs(2));
    let documents = load.stop();
    let nodes = nodes_of(&documents);
    assert!(nodes.contains_key("f-2") && nodes.contains_key("f-3"), "{nodes:?}");
    // What the killed node had not yet told the trail went with it.
    let told: Vec<Value> = documents.into_iter().filter(|document| document["results"][0]["node"]["id"] != "f-1").collect();
    none_started_late(&api, &told);
    fabric.agent_again("f-1");
    api.wait_until("f-1 answers again", || api.admin().job("echo", "x", "node:f-1", &json!({})).status == 200);
}

#[test]
fn a_stopped_node_costs_no_job_and_comes_back() {
    let (_fabric, api, agents) = three_nodes();
    let load = Load::start(&api.admin());
    std::thread::sleep(Duration::from_secs(1));
    agents[0].pause();
    std::thread::sleep(Duration::from_secs(7));
    agents[0].resume();
    std::thread::sleep(Duration::from_secs(1));
    let documents = load.stop();
    nodes_of(&documents);
    none_started_late(&api, &documents);
    api.wait_until("f-1 answers again", || {
        let answer = api.admin().job("echo", "x", "node:f-1", &json!({}));
        answer.status == 200 && answer.body["results"][0]["status"] == "success"
    });
}

#[test]
fn a_restarted_broker_loses_no_job_and_needs_no_restart_of_anything_else() {
    let (mut fabric, api, _agents) = three_nodes();
    let load = Load::start(&api.admin());
    std::thread::sleep(Duration::from_secs(1));
    fabric.restart_broker();
    std::thread::sleep(Duration::from_secs(3));
    let documents = load.stop();
    // While the broker is away a job may be refused by name (503) or answered `unavailable`; what was accepted has exactly one outcome.
    for document in &documents {
        assert_eq!(document["results"].as_array().map(Vec::len), Some(1), "{document}");
    }
    api.wait_for_nodes(3);
    api.wait_until("all three answer again", || {
        ["f-1", "f-2", "f-3"].iter().all(|id| {
            let answer = api.admin().job("echo", "x", &format!("node:{id}"), &json!({}));
            answer.status == 200 && answer.body["results"][0]["status"] == "success"
        })
    });
    none_started_late(&api, &documents);
}
