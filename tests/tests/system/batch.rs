//! Many jobs in one call, each for itself.

use std::collections::BTreeSet;

use probeops_tests::fabric::Fabric;
use serde_json::{Value, json};

fn job(target: usize) -> Value {
    json!({"tool": "echo", "target": format!("t{target}"), "from": "eu"})
}

#[test]
fn one_bad_job_of_a_hundred_keeps_no_other_from_running() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("b-1", "eu");
    api.wait_for_nodes(1);
    let mut jobs: Vec<Value> = (0..100).map(job).collect();
    jobs[41] = json!({"tool": "ping", "target": "192.0.2.1", "from": "eu", "parameters": {"count": 0}});
    let body = json!({"jobs": jobs}).to_string();
    let admin = api.admin();
    let answer = admin.post_raw("/v1/jobs/batch", "application/json", body.as_bytes(), &[("prefer", "wait=30")]);
    assert_eq!((answer.status, answer.header("preference-applied")), (200, Some("wait=30")), "{}", answer.text);
    let results = answer.body["results"].as_array().unwrap();
    assert_eq!(results.len(), 100);
    for (index, result) in results.iter().enumerate() {
        assert_eq!(result["index"], index, "{result}");
        if index == 41 {
            assert_eq!((&result["status"], &result["problem"]["code"], &result["job"]), (&json!(400), &json!("invalid"), &Value::Null));
            assert_eq!(result["problem"]["errors"][0]["pointer"], "/jobs/41/parameters/count", "{result}");
            assert!(result["problem"]["detail"].as_str().unwrap().starts_with("/jobs/41/parameters/count: "), "{result}");
            continue;
        }
        assert_eq!((&result["status"], &result["job"]["status"]), (&json!(200), &json!("finished")), "{result}");
        assert_eq!(result["job"]["target"], format!("t{index}"), "{result}");
        assert_eq!(result["job"]["results"][0]["status"], "success", "{result}");
    }
    let ids: BTreeSet<&str> = results.iter().filter_map(|result| result["job"]["id"].as_str()).collect();
    assert_eq!(ids.len(), 99);
    let refused = api.wait_for_audit("verdict=refused", 1);
    assert_eq!((refused.len(), &refused[0]["tool"], &refused[0]["target"]), (1, &json!("ping"), &json!("192.0.2.1")), "{refused:?}");
}

#[test]
fn jobs_of_a_batch_are_begun_counted_and_known_again_each() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("b-1", "eu");
    api.wait_for_nodes(1);
    let key = api.key(&json!({"name": "limited", "scopes": ["jobs:write"], "limits": {"rate": "3/h"}}));
    let caller = api.caller(&key);
    let keyed = |target: usize, key: &str| {
        let mut job = job(target);
        job["idempotency_key"] = json!(key);
        job
    };
    let first = caller.post("/v1/jobs/batch", &json!({"jobs": [keyed(0, "zero"), job(1)]})).expect(200);
    for result in first["results"].as_array().unwrap() {
        assert_eq!(result["status"], 202, "{result}");
        let path = format!("/v1/jobs/{}", result["job"]["id"].as_str().unwrap());
        api.wait_until("it is over", || caller.get(&path).expect(200)["status"] == "finished");
    }
    // Known again, another, one more than the rate allows, and one that is nothing.
    let body = json!({"jobs": [keyed(0, "zero"), keyed(9, "zero"), job(2), job(3), 7, keyed(0, "")]});
    let second = caller.post("/v1/jobs/batch", &body).expect(200);
    let statuses: Vec<u64> = second["results"].as_array().unwrap().iter().map(|result| result["status"].as_u64().unwrap()).collect();
    assert_eq!((statuses[0], statuses[1], statuses[4], statuses[5]), (200, 422, 400, 400), "{second}");
    assert_eq!(BTreeSet::from([statuses[2], statuses[3]]), BTreeSet::from([202, 429]), "{second}");
    assert_eq!(second["results"][0]["job"]["id"], first["results"][0]["job"]["id"]);
    assert_eq!(second["results"][5]["problem"]["errors"][0]["pointer"], "/jobs/5/idempotency_key");
    let refused = caller.post("/v1/jobs/batch", &json!({"jobs": []})).expect(400);
    assert!(refused["detail"].as_str().unwrap().starts_with("/jobs: must hold 1 to 100 jobs"), "{refused}");
    let named = caller.post_raw(
        "/v1/jobs/batch",
        "application/json",
        json!({"jobs": [job(0)]}).to_string().as_bytes(),
        &[("idempotency-key", "a")],
    );
    assert!(named.expect(422)["detail"].as_str().unwrap().contains("cannot name several jobs"));
}
