//! Nodes and the broker fail while jobs come in: every job is answered once, none starts after its deadline, everything recovers by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use probeops_shared::job::GRACE;
use probeops_shared::timestamp::Timestamp;
use probeops_tests::fabric::{Agent, AgentOptions, Api, Fabric};
use probeops_tests::http::Caller;
use probeops_tests::silent::Silent;
use probeops_tests::wire::Wire;
use serde_json::{Value, json};

/// The nodes of a test with three.
const ALL: [&str; 3] = ["f-1", "f-2", "f-3"];
/// How many threads ask at once.
const ASKERS: usize = 8;
/// How often each asks, before, while and after something fails.
const PAUSE: Duration = Duration::from_millis(10);
/// Only a hang takes this long.
const HANG: Duration = Duration::from_secs(120);

/// A steady stream of jobs.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    askers: Vec<JoinHandle<Vec<Value>>>,
}

impl Load {
    fn start(caller: &Caller) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let askers = (0..ASKERS)
            .map(|_| {
                let (caller, stop, answered) = (caller.clone(), Arc::clone(&stop), Arc::clone(&answered));
                std::thread::spawn(move || {
                    let mut documents = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        documents.push(caller.job("echo", "load", "eu", &json!({})).expect(200));
                        answered.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(PAUSE);
                    }
                    documents
                })
            })
            .collect();
        Self { stop, answered, askers }
    }

    /// How many jobs have been answered.
    fn count(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until so many have.
    #[track_caller]
    fn wait_for(&self, count: usize) {
        let started = Instant::now();
        while self.count() < count {
            assert!(started.elapsed() < HANG, "only {} of {count} jobs were answered", self.count());
            std::thread::sleep(PAUSE);
        }
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

/// No run of these jobs began after its deadline: neither those whose outcome the caller has, whatever became of the node, nor those in the
/// trail. The trail is read once the `alive` nodes have told it all; a killed one took with it what it had told to neither.
#[track_caller]
fn none_started_late(api: &Api, documents: &[Value], alive: &[&str]) {
    let grace_ms = i128::try_from(GRACE.as_millis()).expect("milliseconds");
    let mut ids = BTreeSet::new();
    let mut created = BTreeMap::new();
    for document in documents {
        let (id, created_at, outcome) = (document["id"].as_str().expect("an id"), ms(&document["created_at"]), &document["results"][0]);
        assert!(ms(&outcome["started_at"]) - created_at <= grace_ms, "{document} began too late");
        created.insert(id, created_at);
        if alive.iter().any(|node| outcome["node"]["id"] == *node) {
            ids.insert(id);
        }
    }
    // A node tells its runs in their order, so with its last one all are there.
    let last: Vec<Value> = alive.iter().map(|node| answer_of(api, node)).collect();
    ids.extend(last.iter().filter_map(|document| document["id"].as_str()));
    api.wait_for_audit_of(&ids, "verdict=finished");
    for run in api.audit("verdict=finished") {
        let Some(created_at) = created.get(run["request_id"].as_str().expect("an id")) else { continue };
        let duration_ms = run["duration_ms"].as_f64().expect("a duration");
        #[expect(clippy::cast_possible_truncation, reason = "milliseconds of a test")]
        let started = ms(&run["time"]) - duration_ms as i128;
        assert!(started - created_at <= grace_ms, "{run} began too late");
    }
}

fn ms(time: &Value) -> i128 {
    i128::from(Timestamp::parse(time.as_str().expect("a time")).expect("RFC 3339").unix_ms())
}

fn three_nodes() -> (Fabric, Api, Vec<Rc<Agent>>) {
    let fabric = Fabric::start();
    let api = fabric.api();
    let agents = ALL.iter().map(|id| fabric.agent(id, "eu")).collect();
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
    none_started_late(&api, &documents, &ALL);
}

#[test]
fn a_killed_node_costs_no_job() {
    let (fabric, api, agents) = three_nodes();
    let load = Load::start(&api.admin());
    load.wait_for(50);
    // It has run jobs, and some of them are in the trail already.
    api.wait_for_audit("node=f-1&verdict=finished", 1);
    agents[0].kill();
    let killed_at = load.count();
    load.wait_for(killed_at + 300);
    let documents = load.stop();
    let nodes = nodes_of(&documents);
    assert_eq!(nodes.len(), 3, "all three took part, the killed one before it was: {nodes:?}");
    none_started_late(&api, &documents, &["f-2", "f-3"]);
    fabric.agent_again("f-1");
    api.wait_until("f-1 answers again", || api.admin().job("echo", "x", "node:f-1", &json!({})).status == 200);
}

#[test]
fn a_node_that_dies_soon_after_it_began_is_replaced_before_the_deadline() {
    let fabric = Fabric::start();
    let api = fabric.api();
    let first = fabric.agent("f-1", "eu");
    fabric.agent_with("f-2", "eu", &AgentOptions { slots_probe: Some(1), ..AgentOptions::default() });
    api.wait_for_nodes(2);
    let silent = Silent::start();
    let ask = |from: &'static str| {
        let (caller, parameters) = (api.admin(), silent.parameters(10_000));
        std::thread::spawn(move || caller.job("tcp", "127.0.0.1", from, &parameters).outcome())
    };
    // The second node is full, so the first takes the job.
    let (filling, mut filled) = (ask("node:f-2"), silent.connected());
    let (asked, _begun) = (ask("eu"), silent.connected());
    // Long enough for it to have said that it accepted: before that, it would be replaced in any case.
    std::thread::sleep(Duration::from_millis(200));
    first.kill();
    filled.write_all(b"done\r\n").unwrap();
    assert_eq!(filling.join().unwrap()["status"], "success");
    silent.connected().write_all(b"hello\r\n").unwrap();
    let outcome = asked.join().unwrap();
    assert_eq!((&outcome["status"], &outcome["node"]["id"]), (&json!("success"), &json!("f-2")), "{outcome}");
}

#[test]
fn a_stopped_node_costs_no_job_and_comes_back() {
    let (_fabric, api, agents) = three_nodes();
    let load = Load::start(&api.admin());
    load.wait_for(50);
    agents[0].pause();
    // Longer than grace, so that what waits in its socket is past its deadline when it goes on.
    std::thread::sleep(Duration::from_secs(7));
    agents[0].resume();
    let resumed_at = load.count();
    load.wait_for(resumed_at + 100);
    let documents = load.stop();
    nodes_of(&documents);
    // Jobs did wait in its socket, past their deadline, and it says of each that it did not run it.
    let denied = api.wait_for_audit("node=f-1&verdict=denied", 1);
    assert!(denied.iter().all(|record| record["detail"].as_str().is_some_and(|detail| detail.starts_with("expired: "))), "{denied:?}");
    none_started_late(&api, &documents, &ALL);
}

#[test]
fn a_link_cut_without_a_word_costs_no_job_and_comes_back() {
    let fabric = Fabric::start();
    let api = fabric.api();
    let wire = Wire::to(fabric.listen());
    fabric.agent("f-1", "eu");
    fabric.agent("f-2", "eu");
    fabric.agent_with("f-3", "eu", &AgentOptions { server: Some(format!("tls://{}", wire.address())), ..AgentOptions::default() });
    api.wait_for_nodes(3);
    let load = Load::start(&api.admin());
    load.wait_for(50);
    wire.cut();
    let cut_at = load.count();
    load.wait_for(cut_at + 300);
    let documents = load.stop();
    let nodes = nodes_of(&documents);
    assert_eq!(nodes.len(), 3, "all three took part before the cut: {nodes:?}");
    // What the cut node had not yet told the trail it tells now: it was only cut off.
    none_started_late(&api, &documents, &ALL);
}

#[test]
fn a_restarted_broker_loses_no_job_and_needs_no_restart_of_anything_else() {
    let (mut fabric, api, _agents) = three_nodes();
    let load = Load::start(&api.admin());
    load.wait_for(50);
    fabric.restart_broker();
    let back_at = load.count();
    load.wait_for(back_at + 300);
    let documents = load.stop();
    nodes_of(&documents);
    api.wait_for_nodes(3);
    none_started_late(&api, &documents, &ALL);
}

/// The document of a job that the node answered, asked until it does: one that comes back may answer before the roster has heard of it again.
fn answer_of(api: &Api, id: &str) -> Value {
    let mut document = Value::Null;
    api.wait_until(&format!("{id} answers"), || {
        let answer = api.admin().job("echo", "x", &format!("node:{id}"), &json!({}));
        document = answer.body;
        answer.status == 200 && document["results"][0]["status"] == "success"
    });
    document
}
