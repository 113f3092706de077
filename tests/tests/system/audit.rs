//! Everything asked and everything done is in the trail.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use probeops_tests::asker::Asker;
use probeops_tests::fabric::Fabric;
use probeops_tests::up::Home;
use serde_json::{Value, json};

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

    // What a service asks a node for itself is recorded before it begins, and when it is over.
    let service = Asker::service(&fabric, &["echo"], &[]);
    assert_eq!(
        service.ask("job.v1.eu.echo", &json!({"request_id": "direct", "tool": "echo", "target": "x"}), &[]).hear().body["status"],
        "success"
    );
    let of_direct = api.wait_for_audit("request_id=direct", 2);
    let verdicts: Vec<&str> = of_direct.iter().rev().map(|record| record["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts, ["started", "finished"], "{of_direct:?}");
    assert!(of_direct.iter().all(|record| record["principal"] == "billing" && record["node"] == "a-1"), "{of_direct:?}");

    // All of it is whole, the node's part and the API's; and one that was changed is named.
    let home = Home::new();
    let probeops = |arguments: &[&str]| {
        let mut command = home.probeops(arguments);
        command.env("PROBEOPS_URL", api.url()).env("PROBEOPS_TOKEN", api.admin_key());
        home.finish(command)
    };
    let exported = probeops(&["audit", "export"]).good();
    let file = home.file("trail.jsonl", &exported);
    let verified = probeops(&["audit", "verify", file.to_str().unwrap()]).good();
    assert!(verified.contains("node:a-1 (chain of ") && verified.contains("\nwhole: nothing was changed"), "{verified}");
    let changed = exported.replacen("\"target\":\"fine\"", "\"target\":\"fire\"", 1);
    let file = home.file("changed.jsonl", &changed);
    let verified = probeops(&["audit", "verify", file.to_str().unwrap()]);
    assert!(verified.code == Some(1) && verified.out.contains("was changed: its hash does not fit what it says"), "{verified:?}");
    // And what comes is shown as it comes, no other than what was asked for.
    let mut tail = home.probeops(&["audit", "tail", "--target", "tailed", "-o", "json"]);
    tail.env("PROBEOPS_URL", api.url()).env("PROBEOPS_TOKEN", api.admin_key()).stdout(Stdio::piped());
    let mut tail = tail.spawn().unwrap();
    let shown = BufReader::new(tail.stdout.take().unwrap());
    let (tell, told) = std::sync::mpsc::channel();
    let reading = std::thread::spawn(move || shown.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
    let mut line = None;
    api.wait_until("the tail shows a job", || {
        caller.job("echo", "other", "eu", &json!({})).expect(200);
        caller.job("echo", "tailed", "eu", &json!({})).expect(200);
        line = told.try_recv().ok();
        line.is_some()
    });
    let record: Value = serde_json::from_str(&line.unwrap()).unwrap();
    assert_eq!((&record["target"], &record["tool"]), (&json!("tailed"), &json!("echo")));
    tail.kill().unwrap();
    tail.wait().unwrap();
    drop(told);
    drop(reading.join());
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
