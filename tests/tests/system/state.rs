//! What is kept of jobs: the list of a caller's own, and what comes late.

use std::io::Write;

use probeops_tests::fabric::{AgentOptions, Api, Fabric};
use probeops_tests::silent::Silent;
use probeops_tests::up::Home;
use probeops_tests::wire::Wire;
use serde_json::{Value, json};

fn ids(page: &Value) -> Vec<&str> {
    page["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap()).collect()
}

#[test]
fn a_callers_own_jobs_are_listed_newest_first_in_pages_on_every_replica() {
    let fabric = Fabric::start();
    let (first, second) = (fabric.api(), fabric.api());
    fabric.agent("s-1", "eu");
    first.wait_for_nodes(1);
    let [one, other] = ["one", "two"].map(|name| first.key(&json!({"name": name, "scopes": ["jobs:write", "jobs:read"]})));
    let mut posted = Vec::new();
    let echo = |key: &str, target: String| first.caller(key).job("echo", &target, "eu", &json!({})).expect(200)["id"].clone();
    for number in 0..3 {
        posted.push(echo(&one, format!("n{number}")));
        // Those of others lie between them, far more than a window has.
        for _ in 0..100 {
            echo(&other, "other".to_owned());
        }
    }
    let silent = Silent::start();
    let body = json!({"tool": "tcp", "target": "127.0.0.1", "from": ["eu", "node:s-1"], "parameters": silent.parameters(10_000)});
    let running = first.caller(&one).post_raw("/v1/jobs", "application/json", body.to_string().as_bytes(), &[("prefer", "respond-async")]);
    posted.push(running.expect(202)["id"].clone());
    second.wait_until("the key is known", || second.caller(&one).get("/v1/tools").status == 200);
    let list = |query: &str| second.caller(&one).get(&format!("/v1/jobs{query}"));
    second.wait_until("all are stored", || ids(&list("").expect(200)).len() == 4);
    let all = list("").expect(200);
    let newest_first: Vec<&str> = posted.iter().rev().map(|id| id.as_str().unwrap()).collect();
    assert_eq!((ids(&all), &all["next"]), (newest_first.clone(), &Value::Null));
    assert_eq!(
        (&all["jobs"][0]["status"], &all["jobs"][0]["runs"], &all["jobs"][0]["results"]),
        (&json!("running"), &json!(2), &Value::Null)
    );
    let document = second.caller(&one).get(&format!("/v1/jobs/{}", newest_first[1])).expect(200);
    for field in ["tool", "target", "parameters", "from", "caller", "status", "created_at", "finished_at"] {
        assert_eq!(all["jobs"][1][field], document[field], "{field}");
    }
    // Pages, while another job comes in.
    let (mut paged, mut query) = (Vec::new(), "?limit=2".to_owned());
    loop {
        let page = list(&query).expect(200);
        paged.extend(ids(&page).into_iter().map(str::to_owned));
        let Some(next) = page["next"].as_str() else { break };
        query = format!("?limit=2&cursor={next}");
        if paged.len() == 2 {
            echo(&one, "later".to_owned());
        }
    }
    assert_eq!(paged, newest_first);
    // What is asked for.
    assert_eq!(ids(&list("?status=running").expect(200)), [newest_first[0]]);
    assert_eq!(ids(&list("?tool=tcp&status=finished").expect(200)), [""; 0]);
    for _ in 0..2 {
        silent.connected().write_all(b"hello\r\n").unwrap();
    }
    second.wait_until("it is over", || ids(&list("?tool=tcp&status=finished").expect(200)) == [newest_first[0]]);
    assert_eq!(ids(&list("?status=running").expect(200)), [""; 0]);
    // Whose they are.
    let caller = all["jobs"][0]["caller"].as_str().unwrap();
    assert_eq!(ids(&second.admin().get("/v1/jobs").expect(200)), [""; 0]);
    assert_eq!(ids(&second.admin().get(&format!("/v1/jobs?caller={caller}&tool=tcp")).expect(200)), [newest_first[0]]);
    let refused = first.caller(&other).get(&format!("/v1/jobs?caller={caller}")).expect(403);
    assert!(refused["detail"].as_str().unwrap().contains("are not yours"), "{refused}");
    // From the command line.
    let home = Home::new();
    let key = home.file("key", &one);
    let probeops = |arguments: &[&str]| {
        let whom = ["--url", first.url(), "--token-file", key.to_str().unwrap()];
        home.run(&[&["jobs"], arguments, &whom].concat()).good()
    };
    let listed: Value = serde_json::from_str(&probeops(&["list", "--limit", "3", "-o", "json"])).unwrap();
    assert_eq!(ids(&listed)[1..], newest_first[..2]);
    let shown = probeops(&["show", newest_first[0]]);
    assert!(shown.contains("finished") && shown.matches("== s-1 in eu").count() == 2 && shown.contains("hello"), "{shown}");
    let running = first.caller(&one).post_raw("/v1/jobs", "application/json", body.to_string().as_bytes(), &[("prefer", "respond-async")]);
    let shown = probeops(&["cancel", running.expect(202)["id"].as_str().unwrap()]);
    assert!(shown.contains("cancelled"), "{shown}");
    for (query, wrong) in [
        ("status=done", "?status: must be one of queued, running, finished, cancelled, expired, not the string \"done\""),
        ("tool=pong", "?tool: "),
        ("cursor=x", "?cursor: must be a cursor as an earlier answer gave it in `next`"),
        ("limit=0", "?limit: must be a whole number from 1 to 1000"),
    ] {
        let problem = list(&format!("?{query}")).expect(400);
        assert!(problem["detail"].as_str().unwrap().contains(wrong), "{problem}");
    }
}

/// Posts a job that lasts to region `eu`; its path, and who has begun with it.
fn begun(api: &Api, silent: &Silent) -> (String, String) {
    let body = json!({"tool": "tcp", "target": "127.0.0.1", "from": "eu", "parameters": silent.parameters(10_000)});
    let mut live = api.admin().stream("POST", "/v1/jobs", &body, &[("accept", "text/event-stream")]);
    let path = live.header("location").unwrap().to_owned();
    let accepted = std::iter::from_fn(|| live.event()).find(|event| event.event == "accepted").unwrap();
    (path, accepted.data["node"].as_str().unwrap().to_owned())
}

#[test]
fn what_a_replaced_node_found_is_kept_as_late_unless_it_was_cancelled() {
    let fabric = Fabric::start();
    let (first, second) = (fabric.api(), fabric.api());
    let wires = ["s-1", "s-2"].map(|id| (id, Wire::to(fabric.listen())));
    let agents = wires.each_ref().map(|(id, wire)| {
        let server = Some(format!("tls://{}", wire.address()));
        (*id, fabric.agent_with(id, "eu", &AgentOptions { server, ..AgentOptions::default() }))
    });
    first.wait_for_nodes(2);
    let silent = Silent::start();
    // Cut off: nobody can tell it that it is not wanted any more, and it ends while it is away.
    let (path, node) = begun(&first, &silent);
    let mut held = silent.connected();
    let (_, wire) = wires.iter().find(|(id, _)| *id == node).unwrap();
    wire.break_off();
    silent.connected().write_all(b"in time\r\n").unwrap();
    first.wait_until("it is over", || first.admin().get(&path).expect(200)["status"] == "finished");
    let before = first.admin().get(&path).expect(200);
    held.write_all(b"late\r\n").unwrap();
    assert!(before["results"][0]["node"]["id"] != node.as_str() && before["late"].is_null(), "{before}");
    wire.mend();
    for api in [&first, &second] {
        api.wait_until("the rest is known", || !api.admin().get(&path).expect(200)["late"].is_null());
        let mut after = api.admin().get(&path).expect(200);
        let late = after["late"].as_array().unwrap().clone();
        assert_eq!((late.len(), &late[0]["node"]["id"], &late[0]["status"]), (1, &json!(node), &json!("success")), "{after}");
        assert_eq!(late[0]["report"]["ports"][0]["banner"], "late\\r\\n");
        after.as_object_mut().unwrap().remove("late");
        assert_eq!(after, before);
    }
    first.wait_for_nodes(2);
    // Held still: it reads that it is not wanted when it goes on, and what it had until then is nothing new.
    let (path, node) = begun(&first, &silent);
    let _held = silent.connected();
    let (_, agent) = agents.iter().find(|(id, _)| *id == node).unwrap();
    agent.pause();
    silent.connected().write_all(b"in time\r\n").unwrap();
    first.wait_until("it is over", || first.admin().get(&path).expect(200)["status"] == "finished");
    agent.resume();
    first.wait_for_audit(&format!("request_id={}&node={node}", path.rsplit('/').next().unwrap()), 1);
    let after = first.admin().get(&path).expect(200);
    assert!(after["results"][0]["node"]["id"] != node.as_str() && after["late"].is_null(), "{after}");
}
