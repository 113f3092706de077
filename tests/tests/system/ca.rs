//! One authority after the other, with jobs going on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use probeops_tests::fabric::{AgentOptions, Fabric, program};
use serde_json::json;

/// A step of `probeops ca rotate`.
#[track_caller]
fn rotate(fabric: &Fabric, arguments: &[&str]) -> (bool, String) {
    let mut command = program();
    command.args(["ca", "rotate", "--servers", &fabric.url(), "--data"]).arg(fabric.data()).args(arguments);
    let said = command.output().unwrap();
    (said.status.success(), String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr))
}

#[test]
fn an_authority_is_replaced_without_a_restart_or_a_lost_job() {
    let mut fabric = Fabric::start();
    let api = fabric.api();
    // One agent reads a copy of the authorities, as on another machine; the other speaks WebSocket.
    let old = std::fs::read_to_string(fabric.ca()).unwrap();
    let copy = fabric.file("agent-ca.pem", &old);
    let tls = fabric.agent_with("c-1", "eu", &AgentOptions { ca: Some(copy.clone()), ..AgentOptions::default() });
    let wss = fabric.agent_with("c-2", "us", &AgentOptions { server: Some(fabric.wss_url()), ..AgentOptions::default() });
    api.wait_for_nodes(2);

    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let (caller, stopped, counted) = (api.admin(), Arc::clone(&stop), Arc::clone(&done));
    let asking = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            for region in ["eu", "us"] {
                let outcome = caller.job("echo", "on and on", region, &json!({})).outcome();
                assert_eq!(outcome["status"], "success", "{outcome}");
                counted.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let some_more = |api: &probeops_tests::fabric::Api| {
        let before = done.load(Ordering::Relaxed);
        api.wait_until("jobs go on", || done.load(Ordering::Relaxed) >= before + 4 || asking.is_finished());
    };

    let (made, said) = rotate(&fabric, &[]);
    assert!(made && said.contains("a second authority is trusted"), "{said}");
    let both = std::fs::read_to_string(fabric.ca()).unwrap();
    assert!(both.starts_with(old.trim_end()) && both.matches("BEGIN CERTIFICATE").count() == 2, "{both}");
    assert!(probeops_agent::way::authorities::store_ca(&copy, &both).unwrap(), "as a renewal of the credential brings it");
    some_more(&api);
    let (early, said) = rotate(&fabric, &[]);
    assert!(!early && said.contains("--now goes on at once"), "{said}");
    let (switched, said) = rotate(&fabric, &["--now"]);
    assert!(switched && said.contains("Servers that show the new certificate: "), "{said}");
    some_more(&api);
    // A stranger sees the new certificate, which the old authority does not vouch for.
    let only_old = fabric.file("old.pem", &old);
    let late = fabric.agent_with("c-3", "eu", &AgentOptions { ca: Some(only_old), wait_ready: false, ..AgentOptions::default() });
    late.wait_for_log("certificate");
    let (removed, said) = rotate(&fabric, &[]);
    assert!(removed && said.contains("the rotation is complete"), "{said}");
    let new = std::fs::read_to_string(fabric.ca()).unwrap();
    assert!(new.matches("BEGIN CERTIFICATE").count() == 1 && both.contains(new.trim_end()) && !old.contains(new.trim_end()), "{new}");
    assert!(probeops_agent::way::authorities::store_ca(&copy, &new).unwrap());
    some_more(&api);
    stop.store(true, Ordering::Relaxed);
    asking.join().expect("no job was lost");

    // All connect anew, by the new authority alone, and none is started again.
    fabric.restart_broker();
    for region in ["eu", "us"] {
        api.wait_until(&format!("{region} answers after the broker's restart"), || {
            let answer = api.admin().job("echo", "again", region, &json!({}));
            answer.status == 200 && answer.body["results"][0]["status"] == "success"
        });
    }
    let of_ca = |api: &probeops_tests::fabric::Api| api.audit("principal=command").iter().filter(|record| record["target"] == "ca").count();
    api.wait_until("each step is in the trail", || of_ca(&api) == 3);
    for agent in [&tls, &wss] {
        assert_eq!(agent.log().matches("the agent is ready").count(), 1);
    }
}
