//! How agents end, and what they do when the broker or the network is gone.

use std::time::Duration;

use probeops_tests::fabric::{AgentOptions, Fabric};
use probeops_tests::silent::Silent;
use serde_json::json;

#[test]
fn a_revoked_node_is_cut_off_at_once_and_says_why() {
    let fabric = Fabric::start();
    let api = fabric.api();
    let agent = fabric.agent("v-1", "eu");
    api.wait_for_nodes(1);
    assert_eq!(api.admin().post("/v1/nodes/v-2/revoke", &json!({})).expect(404)["code"], "no_such_node");
    let revoked = api.admin().post("/v1/nodes/v-1/revoke", &json!({})).expect(200);
    assert_eq!(revoked, json!({"node": "v-1", "change": "revoked", "servers": ["probeops"], "waiting": []}));
    assert_eq!(agent.wait(), Some(78), "{}", agent.log());
    api.wait_until("the trail says where", || {
        api.audit("verdict=changed").iter().any(|record| record["detail"] == "node revoked, taken by probeops" && record["node"] == "v-1")
    });
    assert!(agent.log().contains("has been revoked"), "{}", agent.log());
    api.wait_until("the roster shows it", || api.admin().get("/v1/nodes/v-1").expect(200)["revoked"] == json!(true));
    let node = api.admin().get("/v1/nodes/v-1").expect(200);
    assert!(node["revoked_at"].is_string() && node["revoked_because"] == "by an operator" && node["revoking"].is_null(), "{node}");
    assert_eq!(api.admin().job("echo", "x", "node:v-1", &json!({})).status, 404);
    let again = fabric.agent_with_credential("v-1", &AgentOptions { wait_ready: false, ..AgentOptions::default() });
    assert_eq!(again.wait(), Some(78), "{}", again.log());
}

/// The API asks for it again and again while nothing is heard, and a person each time that he wants it.
#[test]
fn a_revocation_is_in_the_trail_as_often_as_somebody_wanted_it_however_often_the_keymaster_was_asked() {
    let fabric = Fabric::start();
    let api = fabric.api();
    api.admin().post("/v1/services", &json!({"name": "billing", "regions": ["eu"], "tools": ["echo"]})).expect(201);
    fabric.pause_keymaster();
    let caller = api.admin();
    let asked = std::thread::spawn(move || caller.delete("/v1/services/billing").expect(200));
    // Long enough to ask four times.
    std::thread::sleep(Duration::from_millis(1_500));
    fabric.resume_keymaster();
    assert_eq!(asked.join().unwrap()["servers"], json!(["probeops"]));
    api.admin().delete("/v1/services/billing").expect(200);
    let records = api.wait_for_audit("verdict=signed&target=service:billing", 3);
    let said = |words: &str| records.iter().filter(|record| record["detail"].as_str().unwrap().contains(words)).count();
    assert_eq!((records.len(), said(" revoked on probeops"), said(" was revoked before, and is on probeops")), (3, 1, 1), "{records:#?}");
}

#[test]
fn a_node_told_to_stop_finishes_what_runs_and_takes_nothing_new() {
    let fabric = Fabric::start();
    let api = fabric.api();
    let agent = fabric.agent("s-1", "eu");
    api.wait_for_nodes(1);
    let silent = Silent::start();
    let (caller, parameters) = (api.admin(), silent.parameters(3_000));
    let running = std::thread::spawn(move || caller.job("tcp", "127.0.0.1", "eu", &parameters).outcome());
    // The run has begun when its connection is there.
    let _stream = silent.connected();
    agent.terminate();
    let outcome = running.join().unwrap();
    assert_eq!((&outcome["status"], &outcome["report"]["ports"][0]["state"]), (&json!("success"), &json!("open")), "{outcome}");
    assert_eq!(agent.wait(), Some(0), "{}", agent.log());
    api.wait_until("the roster knows", || api.admin().get("/v1/nodes/s-1").expect(200)["online"] == json!(false));
    assert_eq!(api.admin().job("echo", "x", "eu", &json!({})).expect(503)["code"], "no_node_available");
    api.wait_for_audit("tool=tcp&verdict=finished", 1);
}

#[test]
fn a_run_whose_node_falls_silent_is_lost_and_one_that_nobody_takes_unavailable() {
    let fabric = Fabric::start();
    let api = fabric.api();
    let agent = fabric.agent("q-1", "eu");
    api.wait_for_nodes(1);
    let silent = Silent::start();
    let (caller, parameters) = (api.admin(), silent.parameters(10_000));
    let asked = std::thread::spawn(move || caller.job("tcp", "127.0.0.1", "node:q-1", &parameters).failure_kind());
    let _begun = silent.connected();
    // Long enough for it to have said that it accepted.
    std::thread::sleep(Duration::from_millis(200));
    agent.pause();
    assert_eq!(asked.join().unwrap(), "lost");
    // The roster still has it, and nobody listens any more.
    agent.kill();
    assert_eq!(api.admin().job("echo", "x", "node:q-1", &json!({})).failure_kind(), "unavailable");
}

#[test]
fn a_drained_node_says_so_and_is_not_asked_any_more() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("d-1", "eu");
    fabric.agent("d-2", "eu");
    api.wait_for_nodes(2);
    api.admin().post("/v1/nodes/d-1/drain", &json!({})).expect(200);
    api.wait_until("the roster knows", || api.admin().get("/v1/nodes/d-1").expect(200)["beat"]["draining"] == json!(true));
    for _ in 0..20 {
        assert_eq!(api.admin().job("echo", "x", "eu", &json!({})).outcome()["node"]["id"], "d-2");
    }
}

#[test]
fn a_full_node_says_busy_and_another_takes_the_job() {
    let fabric = Fabric::start();
    let api = fabric.api();
    let one_slot = || AgentOptions { slots_probe: Some(1), ..AgentOptions::default() };
    fabric.agent_with("b-1", "eu", &one_slot());
    fabric.agent_with("b-2", "eu", &one_slot());
    api.wait_for_nodes(2);
    let silent = Silent::start();
    let listen = silent.parameters(4_000);
    let (caller, parameters) = (api.admin(), listen.clone());
    let first = std::thread::spawn(move || caller.job("tcp", "127.0.0.1", "node:b-1", &parameters).outcome());
    let _stream = silent.connected();
    let elsewhere = api.admin().job("tcp", "127.0.0.1", "eu", &json!({"port": listen["port"]})).outcome();
    assert_eq!((&elsewhere["status"], &elsewhere["node"]["id"]), (&json!("success"), &json!("b-2")), "{elsewhere}");
    let busy = api.admin().job("tcp", "127.0.0.1", "node:b-1", &json!({"port": listen["port"]})).outcome();
    assert_eq!(busy["failure"]["kind"], "busy", "{busy}");
    assert_eq!(first.join().unwrap()["status"], "success");
}
