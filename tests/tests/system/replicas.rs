//! Two APIs, one truth: any of them answers for any job.

use std::io::Write;
use std::time::Duration;

use probeops_tests::fabric::{ApiOptions, Fabric};
use probeops_tests::silent::Silent;
use probeops_tests::wire::Wire;
use serde_json::json;

#[test]
fn a_job_posted_on_one_api_is_read_on_another_and_on_one_started_later() {
    let fabric = Fabric::start();
    let (first, second) = (fabric.api(), fabric.api());
    fabric.agent("r-1", "eu");
    first.wait_for_nodes(1);
    second.wait_for_nodes(1);
    let key = first.key(&json!({"name": "one", "scopes": ["jobs:write", "jobs:read"]}));
    let other = first.key(&json!({"name": "two", "scopes": ["jobs:write", "jobs:read"]}));
    let posted = first.caller(&key).job("echo", "replicas", "eu", &json!({})).expect(200);
    let path = format!("/v1/jobs/{}", posted["id"].as_str().unwrap());
    second.wait_until("the key is known", || second.caller(&key).get("/v1/tools").status == 200);
    assert_eq!(second.caller(&key).get(&path).expect(200), posted);
    second.wait_until("the other key is known", || second.caller(&other).get("/v1/tools").status == 200);
    assert_eq!(second.caller(&other).get(&path).expect(404)["code"], "not_found");
    // Told nothing, and remembered.
    let tried = second.wait_for_audit("verdict=refused", 1);
    assert_eq!((&tried[0]["target"], &tried[0]["tool"]), (&json!(format!("job:{}", posted["id"].as_str().unwrap())), &json!("echo")));
    first.kill();
    let third = fabric.api();
    assert_eq!(third.caller(&key).get(&path).expect(200), posted);
    assert_eq!(second.caller(&key).get(&path).expect(200), posted);
}

#[test]
fn a_job_from_several_places_has_one_shape_on_every_api() {
    let fabric = Fabric::start();
    let (first, second) = (fabric.api(), fabric.api());
    fabric.agent("r-1", "eu");
    fabric.agent("r-2", "us");
    first.wait_for_nodes(2);
    second.wait_for_nodes(2);
    let body = json!({"tool": "echo", "target": "x", "from": ["eu", "us", "node:r-1"]});
    let posted = first.admin().post("/v1/jobs", &body).expect(200);
    let ran_by: Vec<_> = posted["results"].as_array().unwrap().iter().map(|outcome| outcome["node"]["id"].clone()).collect();
    assert_eq!(ran_by, ["r-1", "r-2", "r-1"]);
    assert_eq!(posted["from"], json!(["eu", "us", "node:r-1"]));
    let path = format!("/v1/jobs/{}", posted["id"].as_str().unwrap());
    let admin = second.admin();
    second.wait_until("the job is finished there", || admin.get(&path).expect(200)["status"] == "finished");
    assert_eq!(admin.get(&path).expect(200), posted);
}

#[test]
fn a_revoked_key_is_refused_at_once_everywhere() {
    let fabric = Fabric::start();
    let (first, second) = (fabric.api(), fabric.api());
    let made = first.admin().post("/v1/keys", &json!({"name": "short", "scopes": ["jobs:read"]})).expect(201);
    let key = made["key"].as_str().unwrap().to_owned();
    second.wait_until("the key is known", || second.caller(&key).get("/v1/tools").status == 200);
    let revoked = first.admin().delete(&format!("/v1/keys/{}", made["id"].as_str().unwrap()));
    assert!([200, 204].contains(&revoked.status), "{}", revoked.text);
    for api in [&first, &second] {
        api.wait_until("the key is refused", || api.caller(&key).get("/v1/tools").status == 401);
    }
}

#[test]
fn an_answer_that_came_while_the_replica_was_away_is_asked_for_again() {
    let fabric = Fabric::start();
    let wire = Wire::to(fabric.listen());
    let api = fabric.api_with(&ApiOptions { server: Some(format!("tls://{}", wire.address())), ..ApiOptions::default() });
    fabric.agent("r-1", "eu");
    api.wait_for_nodes(1);
    let silent = Silent::start();
    let (caller, parameters) = (api.admin(), silent.parameters(10_000));
    let asked = std::thread::spawn(move || caller.job("tcp", "127.0.0.1", "eu", &parameters).outcome());
    let mut first = silent.connected();
    // Long enough for the node to have said that it accepted, and then to say its outcome to nobody.
    std::thread::sleep(Duration::from_millis(200));
    wire.break_off();
    first.write_all(b"unheard\r\n").unwrap();
    drop(first);
    std::thread::sleep(Duration::from_millis(500));
    wire.mend();
    silent.connected().write_all(b"heard\r\n").unwrap();
    let outcome = asked.join().unwrap();
    assert_eq!((&outcome["status"], &outcome["report"]["ports"][0]["banner"]), (&json!("success"), &json!("heard\\r\\n")), "{outcome}");
}
