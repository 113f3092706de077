//! Jobs that wait for a node: kept through anything that is killed, run when one is there, and on nobody's behalf who may not any more.

use std::rc::Rc;
use std::time::{Duration, Instant};

use probeops_tests::fabric::{Agent, Api, ApiOptions, Fabric};
use probeops_tests::http::Caller;
use probeops_tests::receiver::{Receiver, Reply};
use serde_json::{Value, json};

/// A region with a node that is known and not there.
fn without_nodes(api: &Api, fabric: &Fabric) -> Rc<Agent> {
    let agent = fabric.agent("q-1", "eu");
    api.wait_for_nodes(1);
    agent.terminate();
    agent.wait();
    api.wait_until("the node is gone", || {
        let nodes = api.admin().get("/v1/nodes").expect(200);
        nodes["nodes"][0]["online"] == json!(false)
    });
    agent
}

#[track_caller]
fn queued(caller: &Caller, more: &Value) -> Value {
    let mut body = json!({"tool": "echo", "target": "hello", "from": "eu", "when": "online"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let job = caller.post("/v1/jobs", &body).expect(202);
    assert_eq!((&job["status"], &job["results"]), (&json!("queued"), &json!([])), "{job}");
    job
}

fn path(job: &Value) -> String {
    format!("/v1/jobs/{}", job["id"].as_str().unwrap())
}

/// The job, once it is over.
#[track_caller]
fn over(api: &Api, job: &Value) -> Value {
    let path = path(job);
    api.wait_until(&format!("{path} is over"), || {
        let status = api.admin().get(&path).expect(200)["status"].clone();
        status != "queued" && status != "running"
    });
    api.admin().get(&path).expect(200)
}

fn listed(api: &Api, status: &str) -> Vec<Value> {
    let jobs = api.admin().get(&format!("/v1/jobs?status={status}")).expect(200);
    jobs["jobs"].as_array().unwrap().iter().map(|job| job["id"].clone()).collect()
}

#[test]
fn a_job_waits_for_its_node_and_runs_as_soon_as_it_is_there() {
    let fabric = Fabric::start();
    let options = ApiOptions { callback_allow: Some("127.0.0.0/8".to_owned()), ..ApiOptions::default() };
    let (api, other) = (fabric.api_with(&options), fabric.api_with(&options));
    without_nodes(&api, &fabric);
    let receiver = Receiver::start(|_, _| Reply::status(204));
    let admin = api.admin();
    let job = queued(&admin, &json!({"callback": {"url": receiver.url("/end")}, "idempotency_key": "once"}));
    let again = queued(&admin, &json!({"callback": {"url": receiver.url("/end")}, "idempotency_key": "once"}));
    assert_eq!(again["id"], job["id"]);
    assert_eq!(listed(&other, "queued"), [job["id"].clone()]);
    // Somebody may wait for it, in whatever way.
    let body = json!({"tool": "echo", "target": "hello", "from": "eu", "when": "online"});
    let mut followed = admin.stream("POST", "/v1/jobs", &body, &[("accept", "text/event-stream")]);
    let begun = followed.event().unwrap();
    assert!(begun.data["status"] == "queued", "{begun:?}");
    let waited = {
        let (caller, body) = (other.admin(), body.clone());
        std::thread::spawn(move || caller.post_raw("/v1/jobs", "application/json", body.to_string().as_bytes(), &[("prefer", "wait=60")]))
    };
    other.wait_until("three wait", || listed(&other, "queued").len() == 3);
    other.wait_until("they are counted", || other.admin().get("/metrics").text.contains("probeops_jobs_queued 3\n"));
    let _agent = fabric.agent_again("q-1");
    let started = Instant::now();
    let ended = over(&other, &job);
    println!("run {:?} after the node was started", started.elapsed());
    assert_eq!((&ended["status"], &ended["results"][0]["status"]), (&json!("finished"), &json!("success")), "{ended}");
    assert_eq!(waited.join().unwrap().expect(200)["status"], "finished");
    let last = followed.events().pop().unwrap();
    assert!(last.event == "job" && last.data["status"] == "finished", "{last:?}");
    let told = receiver.wait_for("/end", 1).remove(0).json();
    assert_eq!((&told["data"]["id"], &told["data"]["status"]), (&job["id"], &json!("finished")));
    assert_eq!(listed(&api, "finished").len(), 3, "each is listed once");
    api.wait_until("nothing waits", || api.admin().get("/metrics").text.contains("probeops_jobs_queued 0\n"));
    // While a node is there, it does not wait.
    let now = queued(&admin, &json!({}));
    assert_eq!(over(&api, &now)["status"], "finished");
}

#[test]
fn a_job_waits_through_the_end_of_broker_and_api() {
    let mut fabric = Fabric::start();
    let api = fabric.api();
    without_nodes(&api, &fabric);
    let job = queued(&api.admin(), &json!({}));
    api.kill();
    fabric.restart_broker();
    let after = fabric.api();
    assert_eq!(after.admin().get(&path(&job)).expect(200)["status"], "queued");
    let _agent = fabric.agent_again("q-1");
    let ended = over(&after, &job);
    assert_eq!((&ended["status"], &ended["results"][0]["status"]), (&json!("finished"), &json!("success")), "{ended}");
}

#[test]
fn a_job_is_not_run_for_whom_may_not_any_more() {
    let fabric = Fabric::start();
    let api = fabric.api();
    without_nodes(&api, &fabric);
    let make = |name: &str| api.admin().post("/v1/keys", &json!({"name": name, "scopes": ["jobs:write", "jobs:read"]})).expect(201);
    let (revoked, narrowed) = (make("revoked"), make("narrowed"));
    let by = |made: &Value| api.caller(made["key"].as_str().unwrap());
    api.wait_until("the keys are known", || [&revoked, &narrowed].iter().all(|made| by(made).get("/v1/tools").status == 200));
    let jobs = [queued(&by(&revoked), &json!({})), queued(&by(&narrowed), &json!({}))];
    assert_eq!(api.admin().delete(&format!("/v1/keys/{}", revoked["id"].as_str().unwrap())).status / 100, 2);
    let id = narrowed["id"].as_str().unwrap();
    let mut record = fabric.entry("KEYS", id);
    record["limits"] = json!({"tools": ["ping"]});
    fabric.put("KEYS", id, &record);
    let _agent = fabric.agent_again("q-1");
    for (job, part) in jobs.iter().zip(["revoked", "limited to the tools ping"]) {
        let ended = over(&api, job);
        let failure = &ended["results"][0]["failure"];
        assert_eq!(failure["kind"], "denied", "{ended}");
        assert!(failure["detail"].as_str().unwrap().contains(part), "{ended}");
        let id = job["id"].as_str().unwrap();
        api.wait_until("it is in the trail", || {
            api.audit("verdict=refused")
                .iter()
                .any(|record| record["request_id"] == job["id"] && record["detail"].as_str().is_some_and(|detail| detail.contains(part)))
        });
        assert!(!api.audit("verdict=finished").iter().any(|record| record["request_id"] == id), "no node ran it");
    }
}

#[test]
fn a_job_stops_waiting_when_its_time_is_over_or_it_is_cancelled() {
    let fabric = Fabric::start();
    let options = ApiOptions { callback_allow: Some("127.0.0.0/8".to_owned()), ..ApiOptions::default() };
    let (api, other) = (fabric.api_with(&options), fabric.api_with(&options));
    without_nodes(&api, &fabric);
    let receiver = Receiver::start(|_, _| Reply::status(204));
    let brief = queued(&api.admin(), &json!({"expires_in_ms": 1_500, "callback": {"url": receiver.url("/expired")}}));
    let silent = queued(&api.admin(), &json!({"expires_in_ms": 1_500}));
    let long = queued(&api.admin(), &json!({"callback": {"url": receiver.url("/cancelled")}}));
    let cancelled = other.admin().delete(&path(&long)).expect(200);
    assert_eq!((&cancelled["status"], &cancelled["results"]), (&json!("cancelled"), &json!([])), "{cancelled}");
    api.admin().delete(&path(&long)).expect(409);
    for job in [&brief, &silent] {
        let ended = over(&other, job);
        assert_eq!((&ended["status"], &ended["results"]), (&json!("expired"), &json!([])), "{ended}");
        assert!(ended["finished_at"].as_str() >= ended["expires_at"].as_str(), "{ended}");
    }
    for (target, status) in [("/expired", "expired"), ("/cancelled", "cancelled")] {
        assert_eq!(receiver.wait_for(target, 1).remove(0).json()["data"]["status"], status);
    }
    let _agent = fabric.agent_again("q-1");
    api.wait_for_nodes(1);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(listed(&api, "finished"), Vec::<Value>::new(), "neither ran");
}
