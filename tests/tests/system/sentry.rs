//! What the broker refuses is in the trail, and a key that two use is cut and revoked.

use probeops_tests::fabric::{Api, Fabric};
use probeops_tests::up::Home;
use serde_json::json;

#[test]
fn ordinary_work_is_no_violation_an_attack_is_and_a_cloned_agent_ends() {
    let fabric = Fabric::start();
    let sentry = fabric.sentry();
    let api = fabric.api();
    let first = fabric.agent("a-1", "eu");
    api.wait_for_nodes(1);
    for _ in 0..3 {
        api.admin().job("echo", "fine", "eu", &json!({})).expect(200);
    }
    assert_eq!(api.audit("verdict=violation"), Vec::<serde_json::Value>::new(), "who does what he is for breaks nothing");

    let service = fabric.service("billing", &["eu"], &["echo"], &[]);
    let client = fabric.connect(&service.creds);
    fabric.block_on(async {
        client.publish("job.v1.us.echo.billing", "{}".into()).await.unwrap();
        client.flush().await.unwrap();
    });
    let seen = api.wait_for_audit("verdict=violation&principal=service:billing", 1);
    assert_eq!((&seen[0]["target"], &seen[0]["caller"]), (&json!("job.v1.us.echo.billing"), &json!("billing")), "{}", seen[0]);
    assert!(seen[0]["detail"].as_str().unwrap().starts_with("publish; from 127.0.0.1, key U"), "{}", seen[0]);

    // The same credential on another machine: both have it, and nobody can say which of them is the thief.
    let second = fabric.agent_again("a-1");
    assert_eq!((first.wait(), second.wait()), (Some(78), Some(78)), "both end: {}", sentry.log());
    let said = first.log();
    assert!(
        said.contains("the broker's sentry cuts this connection: clone: its key is used by two connections at the same time"),
        "{said}"
    );
    let records = api.wait_for_audit("verdict=violation&node=a-1", 3);
    for words in ["cut: clone", "clone: its key", "revoked: its key is void on probeops"] {
        assert!(records.iter().any(|record| record["detail"].as_str().unwrap().starts_with(words)), "{words}: {records:#?}");
    }

    // The register says so, too: at once, and of one that was cut while no API was there as soon as one is.
    let because = "clone: its key was used by two connections at the same time, from 127.0.0.1";
    let says = |api: &Api, id: &str| {
        let node = api.admin().get(&format!("/v1/nodes/{id}")).body;
        node["revoked"] == json!(true) && node["revoked_at"].is_string() && node["revoked_because"] == because && node["revoking"].is_null()
    };
    api.wait_until("the register says that it is revoked, when and why", || says(&api, "a-1"));
    let trail = api.audit("verdict=changed&node=a-1");
    assert!(
        trail.iter().any(|record| record["principal"] == "sentry" && record["detail"] == format!("node revoked: {because}")),
        "{trail:?}"
    );
    api.kill();
    let third = fabric.agent("a-2", "eu");
    let fourth = fabric.agent_again("a-2");
    assert_eq!((third.wait(), fourth.wait()), (Some(78), Some(78)), "{}", sentry.log());
    let (data, url) = (fabric.data().display().to_string(), fabric.url());
    let listed = Home::new().run(&["nodes", "list", "--data", &data, "--servers", &url]).good();
    let line = listed.lines().find(|line| line.starts_with("a-2 ")).unwrap_or_default();
    assert!(line.contains("revoked 2") && line.contains(because), "{listed}");
    let api = fabric.api();
    api.wait_until("an API that was away says so", || says(&api, "a-2"));
}
