//! From where a job runs: every form of selector finds its nodes, says who is missing, and falls over to others where it may.

use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use probeops_tests::fabric::{Agent, AgentOptions, Api, Fabric, program};
use probeops_tests::http::{Answer, Caller};
use probeops_tests::silent::Silent;
use serde_json::{Value, json};

/// Two nodes of `eu`, one of `us`, with labels; that one may not ping.
fn three_nodes() -> (Fabric, Api, [Rc<Agent>; 3]) {
    let fabric = Fabric::start();
    let api = fabric.api();
    let labelled = |labels| AgentOptions { labels, ..AgentOptions::default() };
    let agents = [
        fabric.agent_with("eu-1", "eu", &labelled(vec![("site", "fra"), ("role", "edge")])),
        fabric.agent_with("eu-2", "eu", &labelled(vec![("site", "ber"), ("role", "core")])),
        fabric.agent_with(
            "us-1",
            "us",
            &AgentOptions { tools: vec!["echo", "tcp"], ..labelled(vec![("site", "nyc"), ("role", "edge"), ("env", "lab")]) },
        ),
    ];
    api.wait_for_nodes(3);
    (fabric, api, agents)
}

fn echo(caller: &Caller, from: &Value) -> Answer {
    caller.post("/v1/jobs", &json!({"tool": "echo", "target": "x", "from": from}))
}

/// The nodes that ran a job, sorted; all did well.
#[track_caller]
fn nodes(document: &Value) -> Vec<String> {
    assert_eq!(document["status"], "finished", "{document}");
    let results = document["results"].as_array().unwrap();
    assert!(results.iter().all(|outcome| outcome["status"] == "success"), "{document}");
    let mut nodes: Vec<String> = results.iter().map(|outcome| outcome["node"]["id"].as_str().unwrap().to_owned()).collect();
    nodes.sort_unstable();
    nodes
}

/// What became of each run: node, and the kind of its failure.
fn ends(document: &Value) -> Vec<(&str, &str)> {
    let results = document["results"].as_array().unwrap().iter();
    let mut ends: Vec<(&str, &str)> = results
        .map(|outcome| (outcome["node"]["id"].as_str().unwrap_or("nobody"), outcome["failure"]["kind"].as_str().unwrap_or("-")))
        .collect();
    ends.sort_unstable();
    ends
}

#[test]
fn every_form_runs_on_its_nodes() {
    let (_fabric, api, _agents) = three_nodes();
    let admin = api.admin();
    let all = vec!["eu-1", "eu-2", "us-1"];
    for (from, expected) in [
        (json!("node:eu-2"), vec!["eu-2"]),
        (json!({"node": "eu-2"}), vec!["eu-2"]),
        (json!("eu:all"), vec!["eu-1", "eu-2"]),
        (json!({"region": "eu", "take": "all"}), vec!["eu-1", "eu-2"]),
        (json!("eu*2"), vec!["eu-1", "eu-2"]),
        (json!("*:all"), all.clone()),
        (json!("*3"), all.clone()),
        (json!({"region": "*", "take": 3}), all.clone()),
        (json!(["eu:all", "us", "node:eu-1"]), all.clone()),
        (json!("site=fra"), vec!["eu-1"]),
        (json!({"labels": {"site": ["fra", "nyc"]}, "take": "all"}), vec!["eu-1", "us-1"]),
        (json!("role=edge:all"), vec!["eu-1", "us-1"]),
        (json!("role=edge,env!=lab"), vec!["eu-1"]),
        (json!("role in (edge,core)*3"), all.clone()),
        (json!({"labels": "role in (core)"}), vec!["eu-2"]),
    ] {
        let document = echo(&admin, &from).expect(200);
        assert_eq!(nodes(&document), expected, "{from}");
        assert_eq!(document.get("missing"), None, "{document}");
    }
    let everywhere = echo(&admin, &json!("*")).expect(200);
    let regions: Vec<&Value> = everywhere["results"].as_array().unwrap().iter().map(|outcome| &outcome["node"]["region"]).collect();
    assert_eq!(regions, [&json!("eu"), &json!("us")]);
    // Of the regions in turn, so that both are there.
    assert!(nodes(&echo(&admin, &json!("*2")).expect(200)).contains(&"us-1".to_owned()));
    let by_url = admin.get("/v1/run/echo?target=x&from=site%3Dfra%2Cenv!%3Dlab&from=us%3Aall").expect(200);
    assert_eq!((nodes(&by_url), &by_url["from"]), (vec!["eu-1".to_owned(), "us-1".to_owned()], &json!(["site=fra,env!=lab", "us:all"])));
    let nobody = echo(&admin, &json!("site=muc")).expect(404);
    assert_eq!((&nobody["code"], &nobody["errors"][0]["pointer"]), (&json!("no_such_node"), &json!("/from")));
    assert!(nobody["detail"].as_str().unwrap().contains("the labels are: env=lab, role=core, role=edge, site=ber"), "{nobody}");
}

#[test]
fn an_explanation_names_every_node_and_runs_nothing() {
    let (_fabric, api, agents) = three_nodes();
    agents[1].kill();
    api.wait_until("it is known to be gone", || api.admin().get("/v1/nodes/eu-2").expect(200)["online"] == json!(false));
    let key = api.key(&json!({"name": "rare", "scopes": ["jobs:write"], "limits": {"rate": "3/h"}}));
    let caller = api.caller(&key);
    let ask = |from: &Value| {
        let body = json!({"tool": "ping", "target": "127.0.0.1", "from": from, "parameters": {"count": 1}});
        caller.post("/v1/jobs?explain=true", &body)
    };
    let (eu_1, gone) = (json!([{"id": "eu-1", "region": "eu"}]), json!({"node": "eu-2", "region": "eu", "why": "offline"}));
    let explained = ask(&json!(["eu:all", "role=core", "us"])).expect(200);
    assert_eq!(explained["runs"], 1);
    let [all, core, us] = explained["selectors"].as_array().unwrap().as_slice() else { panic!("{explained}") };
    assert_eq!((&all["selector"], &all["runs"], &all["nodes"]), (&json!("eu:all"), &json!(1), &eu_1));
    assert_eq!(all["excluded"], json!([gone, {"node": "us-1", "region": "us", "why": "other_region"}]));
    assert_eq!(
        (&core["problem"]["code"], &core["excluded"][0]["why"], &core["excluded"][1]),
        (&json!("no_node_available"), &json!("label_mismatch"), &gone)
    );
    assert_eq!(
        (&us["problem"]["code"], &us["excluded"][2]["why"]),
        (&json!("no_node_available"), &json!("tool_not_granted")),
        "{explained}"
    );
    let by_url = caller.get("/v1/run/ping?target=127.0.0.1&from=*&explain=true").expect(200);
    assert_eq!((&by_url["runs"], &by_url["selectors"][0]["nodes"]), (&json!(1), &eu_1), "{by_url}");
    let wrong = caller.post("/v1/jobs?explain=yes", &json!({"tool": "echo", "from": "eu"})).expect(400);
    assert!(wrong["detail"].as_str().unwrap().contains("?explain: must be true or false"), "{wrong}");
    // Each explanation counted as one run, the mistake as none: one run of this hour is still there, and a job that goes without a node says so.
    let document = caller.post("/v1/jobs", &json!({"tool": "echo", "target": "x", "from": "eu:all"})).expect(200);
    assert_eq!((nodes(&document), &document["missing"]), (vec!["eu-1".to_owned()], &json!([gone])));
    assert_eq!(echo(&caller, &json!("eu")).status, 429);
}

#[test]
fn a_fan_out_with_a_stopped_node_returns_and_names_it() {
    let (_fabric, api, agents) = three_nodes();
    let admin = api.admin();
    agents[2].pause();
    let begun = Instant::now();
    let body = |timeout_ms: Option<u64>| {
        let mut body = json!({"tool": "echo", "target": "x", "from": "*:all", "parameters": {"timeout": 0.5}});
        if let Some(timeout_ms) = timeout_ms {
            body["timeout_ms"] = timeout_ms.into();
        }
        body
    };
    let cut = admin.post("/v1/jobs", &body(Some(1_500))).expect(200);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(ends(&cut), [("eu-1", "-"), ("eu-2", "-"), ("us-1", "unavailable")], "{cut}");
    let whole = admin.post("/v1/jobs", &body(None)).expect(200);
    assert_eq!(ends(&whole), [("eu-1", "-"), ("eu-2", "-"), ("us-1", "unavailable")], "{whole}");
    agents[2].resume();

    // Stopped after it has begun: its silence is noticed.
    let silent = Silent::start();
    let asked = {
        let body = json!({"tool": "tcp", "target": "127.0.0.1", "from": "*:all", "parameters": silent.parameters(500)});
        let caller = admin.clone();
        std::thread::spawn(move || caller.post("/v1/jobs", &body))
    };
    let connections: Vec<_> = (0..3).map(|_| silent.connected()).collect();
    std::thread::sleep(Duration::from_millis(200));
    agents[2].pause();
    let lost = asked.join().unwrap().expect(200);
    agents[2].resume();
    drop(connections);
    assert_eq!(ends(&lost), [("eu-1", "-"), ("eu-2", "-"), ("us-1", "lost")], "{lost}");
}

#[test]
fn of_several_that_fit_others_stand_in_for_one_that_refuses() {
    let fabric = Fabric::start();
    let api = fabric.api();
    let one_slot = AgentOptions { slots_probe: Some(1), ..AgentOptions::default() };
    fabric.agent_with("s-1", "eu", &one_slot);
    fabric.agent_with("s-2", "eu", &one_slot);
    fabric.agent_with("s-3", "eu", &AgentOptions { allow_loopback: false, ..AgentOptions::default() });
    api.wait_for_nodes(3);
    let admin = api.admin();
    let silent = Silent::start();
    let ask = |from: &str| {
        admin.post("/v1/jobs", &json!({"tool": "tcp", "target": "127.0.0.1", "from": from, "parameters": {"port": silent.port()}}))
    };
    // The third has most slots free and is asked first; its policy denies the target.
    for _ in 0..3 {
        assert_eq!(nodes(&ask("eu*2").expect(200)), ["s-1", "s-2"]);
    }
    assert_eq!(ends(&ask("eu*3").expect(200)), [("s-1", "-"), ("s-2", "-"), ("s-3", "denied")]);
    let busy = {
        let (caller, body) =
            (admin.clone(), json!({"tool": "tcp", "target": "127.0.0.1", "from": "node:s-1", "parameters": silent.parameters(5_000)}));
        std::thread::spawn(move || caller.post("/v1/jobs", &body))
    };
    std::thread::sleep(Duration::from_millis(500));
    let begun = Instant::now();
    assert_eq!(nodes(&ask("eu*1").expect(200)), ["s-2"]);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    busy.join().unwrap().expect(200);
}

#[test]
fn a_key_with_regions_sees_and_asks_no_others() {
    let (_fabric, api, _agents) = three_nodes();
    let key = api.key(&json!({"name": "european", "scopes": ["jobs:write"], "limits": {"regions": ["e*"]}}));
    let caller = api.caller(&key);
    for from in ["*", "*:all", "*9", "role in (edge,core):all"] {
        let document = echo(&caller, &json!(from)).expect(200);
        assert!(nodes(&document).iter().all(|node| node.starts_with("eu-")), "{from}: {document}");
        let explained = caller.post("/v1/jobs?explain=true", &json!({"tool": "echo", "target": "x", "from": from})).expect(200);
        assert!(!explained.to_string().contains("us-1"), "{explained}");
    }
    let unknown = echo(&caller, &json!("env=lab")).expect(404);
    assert!(!unknown["detail"].as_str().unwrap().contains("nyc"), "{unknown}");
    assert_eq!(echo(&caller, &json!("us:all")).expect(403)["code"], "forbidden");
}

#[test]
fn who_is_limited_to_nodes_or_labels_reaches_and_sees_no_others() {
    let (fabric, api, agents) = three_nodes();
    let key = |limits: Value| {
        let scopes = ["jobs:write", "jobs:read", "nodes:read", "keys:write", "services:write"];
        api.caller(&api.key(&json!({"name": "limited", "scopes": scopes, "limits": limits})))
    };
    let limits =
        [json!({"nodes": ["eu-1"]}), json!({"labels": ["site=fra", "env!=lab"]}), json!({"regions": ["eu"], "labels": ["role in (edge)"]})];
    for given in &limits {
        let limited = key(given.clone());
        for from in ["eu", "eu:all", "eu*2", "*", "*:all", "node:eu-1", "role=edge"] {
            assert_eq!(nodes(&echo(&limited, &json!(from)).expect(200)), ["eu-1"], "{given} {from}");
            let explained =
                limited.post("/v1/jobs?explain=true", &json!({"tool": "echo", "target": "x", "from": from})).expect(200).to_string();
            assert!(
                explained.contains("eu-1") && !explained.contains("eu-2") && !explained.contains("us-1"),
                "{given} {from}: {explained}"
            );
        }
        // One that may not be known is one that is not there: word for word, in whatever way it is asked for.
        let told = |answer: Answer, name: &str| (answer.status, answer.body["detail"].as_str().unwrap_or_default().replace(name, "?"));
        for waiting in [json!({}), json!({"when": "online"})] {
            let ask = |from: &str| {
                let mut body = json!({"tool": "echo", "target": "x", "from": from});
                body.as_object_mut().unwrap().extend(waiting.as_object().unwrap().clone());
                limited.post("/v1/jobs", &body)
            };
            assert_eq!(told(ask("node:eu-2"), "`eu-2`"), told(ask("node:zz-2"), "`zz-2`"), "{given} {waiting}");
            assert_eq!(told(ask("site=ber"), "`site=ber`"), told(ask("site=zzz"), "`site=zzz`"), "{given} {waiting}");
        }
        assert_eq!(told(limited.get("/v1/nodes/eu-2"), "`eu-2`"), told(limited.get("/v1/nodes/zz-2"), "`zz-2`"));
        let batch = limited.post("/v1/jobs/batch", &json!({"jobs": [{"tool": "echo", "target": "x", "from": "node:us-1"}]})).expect(200);
        assert_eq!(batch["results"][0]["problem"]["code"], "no_such_node", "{batch}");
        let seen = limited.get("/v1/nodes").expect(200);
        assert_eq!(seen["nodes"].as_array().unwrap().iter().map(|node| &node["id"]).collect::<Vec<_>>(), ["eu-1"], "{seen}");
        let regions = limited.get("/v1/regions").expect(200);
        assert_eq!((&regions["regions"][0]["region"], &regions["regions"][0]["nodes"]), (&json!("eu"), &json!(1)), "{regions}");
        assert_eq!(limited.get("/v1/limits").expect(200)["limits"], *given);
        // What it makes is no wider.
        let made = limited.post("/v1/keys", &json!({"name": "made", "scopes": ["jobs:write"]})).expect(201);
        assert_eq!(made["limits"], *given);
        let service = limited.post("/v1/services", &json!({"name": "made", "regions": ["eu"], "tools": ["echo"]}));
        if given.get("nodes").is_some() {
            assert!(service.text.contains("outside the limit `nodes`") && service.status == 403, "{}", service.text);
        } else {
            let service = service.expect(201);
            assert_eq!(service["labels"], given["labels"]);
            assert!(!service["creds"].as_str().unwrap().is_empty());
            limited.delete("/v1/services/made").expect(200);
        }
    }
    let wider = key(limits[0].clone()).post("/v1/keys", &json!({"name": "wider", "scopes": ["jobs:write"], "limits": {"nodes": ["eu-2"]}}));
    assert!(wider.status == 403 && wider.body["detail"].as_str().unwrap().contains("which is eu-1"), "{}", wider.text);
    the_owners_policy_is_taken_while_it_runs(&fabric, &api, &agents[2]);
}

/// On the same nodes: what is written into its file holds a moment later, for what runs too, and the roster has it.
fn the_owners_policy_is_taken_while_it_runs(fabric: &Fabric, api: &Api, agent: &Agent) {
    let admin = api.admin();
    let policy = || admin.get("/v1/nodes/us-1").expect(200)["beat"]["policy"].clone();
    let first = policy();
    assert_eq!((&first["allows"], first.get("error")), (&json!(["loopback", "private", "public"]), None), "{first}");
    let silent = Silent::start();
    let running = json!({"tool": "tcp", "target": "127.0.0.1", "from": "us", "parameters": silent.parameters(10_000)});
    let (running, _connection) = std::thread::scope(|scope| {
        let job = scope.spawn(|| admin.post("/v1/jobs", &running).expect(200));
        let connection = silent.connected();
        fabric.file("us-1-policy.toml", "[allow]\nnetworks = [\"10.0.0.0/8\"]\n");
        (job.join().unwrap(), connection)
    });
    let failure = &running["results"][0]["failure"];
    assert_eq!(failure["kind"], "denied", "{running}");
    assert!(
        failure["detail"].as_str().unwrap().starts_with("the node's owner has changed its policy while this ran: 127.0.0.1: "),
        "{failure}"
    );
    assert_eq!(running["results"][0]["report"]["ports"][0]["state"], "open", "what was found before it: {running}");
    api.wait_until("the roster has the policy", || policy()["digest"] != first["digest"]);
    assert_eq!(policy()["allows"], json!(["private"]));
    fabric.file("us-1-policy.toml", "[allow]\nnetworks = [\"10.0.0.0/33\"]\n");
    api.wait_until("the roster says what is wrong with it", || policy()["error"].as_str().is_some_and(|error| error.contains(" line 2: ")));
    assert_eq!(policy()["allows"], json!(["private"]), "the last good one stays");
    let denied = admin.job("tcp", "127.0.0.1", "us", &json!({"port": 1})).outcome();
    assert_eq!(denied["failure"]["kind"], "denied", "{denied}");
    let file = fabric.file("us-1-policy.toml", "[allow]\nnetworks = [\"10.0.0.0/8\"]\n");
    api.wait_until("it is mended", || policy().get("error").is_none());
    kill(Pid::from_raw(i32::try_from(agent.process_id()).unwrap()), Signal::SIGHUP).unwrap();
    agent.wait_for_log("told to read the owner's policy again: it is as it was");
    // The same file, asked from the command line.
    for (target, code, words) in [
        ("10.0.0.1", 0, "target 10.0.0.1: allowed: 10.0.0.0/8 is in allow.networks (line 2 of "),
        ("127.0.0.1", 1, "target 127.0.0.1: denied: loopback is denied unless"),
        ("10.0.0.0/8", 2, ""),
    ] {
        let said = program().args(["agent", "policy", "test", "ping", target, "--policy"]).arg(&file).output().unwrap();
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        assert_eq!((said.status.code(), text.contains(words)), (Some(code), true), "{target}: {said:?}");
    }
}
