//! Everything asked and everything done is in the trail.

use probeops_tests::fabric::Fabric;
use serde_json::json;

#[test]
fn accepted_refused_finished_and_denied_are_all_recorded() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("a-1", "eu");
    api.wait_for_nodes(1);
    let key = api.key(&json!({"name": "auditee", "scopes": ["jobs:write"]}));
    let caller = api.caller(&key);
    let id = caller.job("echo", "fine", "eu", &json!({})).expect(200)["id"].as_str().unwrap().to_owned();
    let denied = caller.job("tcp", "169.254.169.254", "eu", &json!({})).expect(200);
    assert_eq!(denied["results"][0]["failure"]["kind"], "denied", "{denied}");
    caller.get("/v1/audit").expect(403);
    let of_job = api.wait_for_audit(&format!("request_id={id}"), 2);
    let verdicts: std::collections::BTreeSet<_> = of_job.iter().map(|record| record["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts, ["accepted", "finished"].into());
    let finished = of_job.iter().find(|record| record["verdict"] == "finished").unwrap();
    assert_eq!((&finished["node"], &finished["tool"], &finished["target"]), (&json!("a-1"), &json!("echo"), &json!("fine")));
    assert!(finished["caller"].as_str().unwrap().starts_with("api-"), "{finished}");
    assert!(finished["principal"].as_str().unwrap().starts_with("key:"), "{finished}");
    let accepted = of_job.iter().find(|record| record["verdict"] == "accepted").unwrap();
    assert_eq!((&accepted["caller"], &accepted["principal"]), (&finished["caller"], &finished["principal"]), "{accepted}");
    let at_node = api.wait_for_audit("verdict=denied", 1);
    assert!(at_node[0]["detail"].as_str().unwrap().starts_with("denied:"), "{}", at_node[0]);
    let refused = api.wait_for_audit("verdict=refused", 1);
    assert!(refused[0]["detail"].as_str().unwrap().contains("audit:read"), "{}", refused[0]);
}

#[test]
fn the_trail_is_read_newest_first_in_pages() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("a-1", "eu");
    api.wait_for_nodes(1);
    for number in 0..5 {
        api.admin().job("echo", &format!("n{number}"), "eu", &json!({})).expect(200);
    }
    api.wait_for_audit("verdict=accepted", 5);
    let mut targets = Vec::new();
    let mut path = "/v1/audit?verdict=accepted&limit=2".to_owned();
    loop {
        let page = api.admin().get(&path).expect(200);
        targets.extend(page["records"].as_array().unwrap().iter().map(|record| record["target"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/v1/audit?verdict=accepted&limit=2&cursor={next}");
    }
    assert_eq!(targets, ["n4", "n3", "n2", "n1", "n0"]);
}
