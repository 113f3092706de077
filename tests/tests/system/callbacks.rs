//! Callbacks: told, signed, told again, never to where they must not go, and not forgotten by anything that is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use probeops_shared::ids::JobId;
use probeops_shared::subjects;
use probeops_tests::crash;
use probeops_tests::fabric::{Api, ApiOptions, Fabric, program};
use probeops_tests::receiver::{Received, Receiver, Reply};
use probeops_tests::silent::Silent;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

fn open() -> ApiOptions {
    ApiOptions { callback_allow: Some("127.0.0.0/8".to_owned()), ..ApiOptions::default() }
}

fn body(callback: &Value) -> Value {
    json!({"tool": "echo", "target": "hello", "from": "eu", "callback": callback})
}

/// A job with a callback, which is what the caller waits for.
#[track_caller]
fn posted(api: &Api, callback: &Value) -> Value {
    api.admin().post("/v1/jobs", &body(callback)).expect(200)
}

/// The delivery of a job, once it is over.
#[track_caller]
fn delivery(api: &Api, job: &Value) -> Value {
    let path = format!("/v1/deliveries/{}", job["callback"]["delivery"].as_str().unwrap());
    api.wait_until(&format!("{path} is over"), || {
        let answer = api.admin().get(&path);
        answer.status == 200 && answer.body["status"] != "pending"
    });
    api.admin().get(&path).expect(200)
}

/// How long after each other they came, in seconds.
fn gaps(received: &[Received]) -> Vec<f64> {
    received.windows(2).map(|pair| (pair[1].at - pair[0].at).as_secs_f64()).collect()
}

#[test]
fn a_callback_is_signed_and_has_the_job_and_the_url_as_it_was_given() {
    let fabric = Fabric::start();
    let api = fabric.api_with(&open());
    fabric.agent("c-1", "eu");
    api.wait_for_nodes(1);
    let receiver = Receiver::start(|_, _| Reply::status(204));
    let made = api.admin().post("/v1/secrets", &json!({"name": "n8n", "origin": receiver.origin()})).expect(201);
    let (id, secret) = (made["id"].as_str().unwrap(), made["secret"].as_str().unwrap());
    assert!(secret.starts_with("whsec_") && !api.admin().get("/v1/secrets").text.contains(secret), "it is shown once");
    let target = "/webhook-waiting/7?signature=TOPSECRETQUERY%2f+~&b";
    let header = json!({"name": "X-Token", "value": "TOPSECRETVALUE"});
    let job = posted(&api, &json!({"url": receiver.url(target), "secret_id": id, "header": header}));
    let first = receiver.wait_for(target, 1).remove(0);
    assert_eq!(first.header("x-token"), Some("TOPSECRETVALUE"));
    assert_eq!(first.header("content-type"), Some("application/json"));
    assert_eq!(first.header("webhook-id"), job["callback"]["delivery"].as_str());
    assert_eq!((first.signatures().len(), first.signatures_by(secret)), (1, 1));
    let told = first.json();
    assert_eq!((&told["type"], &told["timestamp"]), (&json!("job.completed"), &job["finished_at"]));
    assert_eq!(told["data"], job);
    assert_eq!(job["results"][0]["status"], "success");
    let delivery = delivery(&api, &job);
    assert_eq!((&delivery["status"], &delivery["attempts"][0]["status"]), (&json!("delivered"), &json!(204)), "{delivery}");

    // Rotated, both sign; elsewhere neither does.
    let rotated = api.admin().post(&format!("/v1/secrets/{id}/rotate"), &json!({})).expect(200);
    let new = rotated["secret"].as_str().unwrap();
    let replayed = format!("/v1/deliveries/{}/replay", job["callback"]["delivery"].as_str().unwrap());
    assert_eq!(api.admin().post(&replayed, &json!({})).expect(200)["status"], "pending");
    let again = receiver.wait_for(target, 2).remove(1);
    assert_eq!(again.header("webhook-id"), first.header("webhook-id"), "a replay is known by its id");
    assert_eq!((again.signatures().len(), again.signatures_by(secret), again.signatures_by(new)), (2, 1, 1));
    assert_eq!(again.body, first.body);
    let elsewhere = Receiver::start(|_, _| Reply::status(204));
    let refused = api.admin().post("/v1/jobs", &body(&json!({"url": elsewhere.url("/"), "secret_id": id}))).expect(403);
    assert_eq!(refused["errors"][0]["pointer"], "/callback/secret_id", "{refused}");
    let other = api.key(&json!({"name": "other", "scopes": ["jobs:write"]}));
    let stranger = api.caller(&other);
    stranger.post("/v1/jobs", &body(&json!({"url": receiver.url("/"), "secret_id": id}))).expect(422);
    stranger.post(&replayed, &json!({})).expect(404);
    assert_eq!(stranger.get("/v1/deliveries").expect(200)["deliveries"], json!([]));
    assert_eq!(stranger.get("/v1/secrets").expect(200)["secrets"], json!([]));
    stranger.post(&format!("/v1/secrets/{id}/rotate"), &json!({})).expect(404);

    // What only the receiver may know is told nobody else.
    let listed = api.admin().get("/v1/deliveries").text;
    let read = api.admin().get(&format!("/v1/jobs/{}", job["id"].as_str().unwrap())).text;
    let trail = json!(api.audit("")).to_string();
    let to = format!("callback to {}\"", receiver.origin());
    assert!(
        trail.contains(&to) && !trail.contains("/webhook-waiting/7"),
        "who had what sent to whom is in the trail, and no path: {trail}"
    );
    for text in [api.log(), listed, read, trail, job.to_string()] {
        assert!(!text.contains("TOPSECRET") && !text.contains("whsec_"), "{text}");
    }
}

#[test]
fn an_answer_says_whether_and_when_it_is_told_again() {
    let fabric = Fabric::start();
    let api = fabric.api_with(&open());
    fabric.agent("c-1", "eu");
    api.wait_for_nodes(1);
    let receiver = Receiver::start(|before, received| match (received.target.as_str(), before) {
        ("/conflict", 0 | 1) => Reply::status(409),
        ("/gone", _) => Reply::status(410),
        ("/later", 0) => Reply::status(503).header("retry-after", "3"),
        ("/moved", 0) => Reply::status(302).header("location", "/elsewhere"),
        ("/broken", 0) => Reply::status(500).body_bytes(10_000_000),
        ("/never", _) => Reply::status(500),
        _ => Reply::status(200),
    });
    let jobs: BTreeMap<&str, Value> = ["/conflict", "/gone", "/later", "/moved", "/broken"]
        .into_iter()
        .map(|target| (target, posted(&api, &json!({"url": receiver.url(target)}))))
        .collect();
    let never = posted(&api, &json!({"url": receiver.url("/never"), "max_age_ms": 2_000}));
    let conflict = receiver.wait_for("/conflict", 3);
    let passed = gaps(&conflict);
    assert!((0.2..2.0).contains(&passed[0]) && (0.8..3.0).contains(&passed[1]), "{passed:?}");
    let ids: BTreeSet<Option<&str>> = conflict.iter().map(|received| received.header("webhook-id")).collect();
    assert_eq!(ids.len(), 1, "one id at every attempt");
    assert!(conflict.iter().all(|received| received.body == conflict[0].body));
    let statuses = |job: &Value| -> Vec<Value> {
        delivery(&api, job)["attempts"].as_array().unwrap().iter().map(|attempt| attempt["status"].clone()).collect()
    };
    assert_eq!(statuses(&jobs["/conflict"]), [409, 409, 200]);
    assert_eq!((statuses(&jobs["/gone"]), &delivery(&api, &jobs["/gone"])["status"]), (vec![json!(410)], &json!("gone")));
    assert_eq!(statuses(&jobs["/later"]), [503, 200]);
    let waited = gaps(&receiver.received_at("/later"));
    assert!((2.9..8.0).contains(&waited[0]), "{waited:?}");
    assert_eq!(statuses(&jobs["/moved"]), [302, 200]);
    assert!(receiver.received_at("/elsewhere").is_empty(), "a redirect is not followed");
    assert_eq!(statuses(&jobs["/broken"]), [500, 200]);
    let expired = delivery(&api, &never);
    assert_eq!((&expired["status"], &expired["attempts"][0]["status"]), (&json!("expired"), &json!(500)), "{expired}");
    let listed = api.admin().get("/v1/deliveries?status=gone").expect(200);
    assert_eq!(listed["deliveries"][0]["job"], jobs["/gone"]["id"]);
    let by_job = format!("/v1/deliveries?job={}", jobs["/later"]["id"].as_str().unwrap());
    assert_eq!(api.admin().get(&by_job).expect(200)["deliveries"].as_array().unwrap().len(), 1);
    let (mut found, mut cursor) = (BTreeSet::new(), String::new());
    loop {
        let page = api.admin().get(&format!("/v1/deliveries?limit=2{cursor}")).expect(200);
        found.extend(page["deliveries"].as_array().unwrap().iter().map(|delivery| delivery["id"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(found.len(), 6, "page by page");
}

#[test]
fn a_destination_that_must_not_be_reached_is_refused_and_the_setting_named() {
    let fabric = Fabric::start();
    let closed = fabric.api();
    fabric.agent("c-1", "eu");
    closed.wait_for_nodes(1);
    let receiver = Receiver::start(|_, _| Reply::status(200));
    let port = receiver.url("").rsplit(':').next().unwrap().to_owned();
    let hosts = [
        "127.0.0.1",
        "127.1",
        "0x7f000001",
        "0x7f.1",
        "2130706433",
        "0177.0.0.1",
        "017700000001",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[2002:7f00:1::]",
        "[2001:0:7f00:1::]",
        "0.0.0.0",
        "[::]",
        "localhost",
        "a.localhost",
        "169.254.169.254",
        "10.0.0.1",
        "192.168.1.1",
        "172.16.0.1",
        "100.64.0.1",
        "[fd00:ec2::254]",
        "224.0.0.1",
    ];
    for host in hosts {
        let refused = closed.admin().post("/v1/jobs", &body(&json!({"url": format!("https://{host}:{port}/x?TOPSECRET")}))).expect(403);
        assert_eq!(refused["errors"][0]["pointer"], "/callback/url", "{host}: {refused}");
        assert!(refused["detail"].as_str().unwrap().contains("--callback-allow"), "{host}: {refused}");
    }
    let clear = closed.admin().post("/v1/jobs", &body(&json!({"url": "http://n8n.example/"}))).expect(403);
    assert!(clear["detail"].as_str().unwrap().contains("must be https"), "{clear}");
    for (url, status) in
        [("https://u:p@n8n.example/", 422), ("https://n8n.example/#f", 422), ("ftp://n8n.example/", 400), ("n8n.example", 400)]
    {
        closed.admin().post("/v1/jobs", &body(&json!({"url": url}))).expect(status);
    }
    // A name is judged by where it leads when it is connected to; our own servers are never a destination.
    let named = ApiOptions { callback_allow: Some("10.99.0.0/16,127.0.0.0/30".to_owned()), ..ApiOptions::default() };
    let api = fabric.api_with(&named);
    api.wait_for_nodes(1);
    for own in [api.url().to_owned(), format!("http://{}", fabric.listen())] {
        let refused = api.admin().post("/v1/jobs", &body(&json!({"url": own}))).expect(403);
        assert!(refused["detail"].as_str().unwrap().contains("itself"), "{refused}");
    }
    let only_elsewhere = fabric.api_with(&ApiOptions { callback_allow: Some("10.99.0.0/16".to_owned()), ..ApiOptions::default() });
    // They would take it from the queue, and judge it by their own setting.
    assert_eq!((api.stop(), closed.stop()), (Some(0), Some(0)));
    only_elsewhere.wait_for_nodes(1);
    let job = posted(&only_elsewhere, &json!({"url": format!("https://localhost:{port}/"), "max_age_ms": 1_000}));
    let refused = delivery(&only_elsewhere, &job);
    let why = refused["attempts"][0]["error"].as_str().unwrap();
    assert!(why.contains("callback_allow") && !why.contains("127."), "{refused}");
    assert!(receiver.received().is_empty());
    assert!(!only_elsewhere.log().contains("TOPSECRET") && !json!(only_elsewhere.audit("")).to_string().contains("TOPSECRET"));
}

#[test]
fn a_destination_that_is_dead_holds_no_other_up() {
    let fabric = Fabric::start();
    let api = fabric.api_with(&open());
    fabric.agent("c-1", "eu");
    api.wait_for_nodes(1);
    // It accepts and never answers: each attempt there lasts as long as one may.
    let dead = Silent::start();
    let alive = Receiver::start(|_, _| Reply::status(200));
    let caller = api.admin();
    for _ in 0..100 {
        caller.post("/v1/jobs", &body(&json!({"url": format!("http://127.0.0.1:{}/", dead.port())}))).expect(200);
    }
    let started = Instant::now();
    for index in 0..20 {
        posted(&api, &json!({"url": alive.url(&format!("/{index}"))}));
    }
    (0..20).for_each(|index| drop(alive.wait_for(&format!("/{index}"), 1)));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    let pending = caller.get("/v1/deliveries?status=pending").expect(200);
    assert_eq!(pending["deliveries"].as_array().unwrap().len(), 100);
}

#[test]
fn a_caller_whose_destinations_are_dead_holds_up_nobody_else_and_has_a_bound() {
    let fabric = Fabric::start();
    let api = fabric.api_with(&open());
    fabric.agent("c-1", "eu");
    api.wait_for_nodes(1);
    // Takes every connection and never says a word, under as many addresses as there are.
    let dead = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = dead.local_addr().unwrap().port();
    let key = api.key(&json!({"name": "dead", "scopes": ["jobs:write"]}));
    let caller = api.caller(&key);
    let jobs = |batch: usize| -> Vec<Value> {
        (0..100)
            .map(|job| body(&json!({"url": format!("http://127.0.{}.{}:{port}/", batch + 1, job + 1), "max_age_ms": 3_600_000})))
            .collect()
    };
    let posted = |batch: usize| {
        let batch = json!({"jobs": jobs(batch)}).to_string();
        let answer = caller.post_raw("/v1/jobs/batch", "application/json", batch.as_bytes(), &[("prefer", "wait=30")]).expect(200);
        answer["results"].as_array().unwrap().clone()
    };
    for batch in 0..20 {
        for result in posted(batch) {
            assert_eq!(result["status"], 200, "{result}");
        }
    }
    for result in posted(20) {
        assert_eq!((&result["status"], &result["problem"]["code"]), (&json!(429), &json!("rate_limited")), "{result}");
    }
    let receiver = Receiver::start(|_, _| Reply::status(204));
    let begun = Instant::now();
    self::posted(&api, &json!({"url": receiver.url("/alive")}));
    receiver.wait_for("/alive", 1);
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

#[test]
fn a_job_that_is_large_is_told_without_what_was_found() {
    let fabric = Fabric::start();
    let api = fabric.api_with(&open());
    fabric.agent("c-1", "eu");
    fabric.agent("c-2", "us");
    api.wait_for_nodes(2);
    let receiver = Receiver::start(|_, _| Reply::status(200));
    let told = |target: &str, from: Value| {
        let callback = json!({"url": receiver.url(target)});
        let parameters = json!({"payload_bytes": 65_536});
        let body = json!({"tool": "echo", "target": "x", "from": from, "parameters": parameters, "callback": callback});
        let job = api.admin().post("/v1/jobs", &body).expect(200);
        let first = receiver.wait_for(target, 1).remove(0);
        assert!(first.body.len() <= 256 * 1024, "{}", first.body.len());
        (job, first.json()["data"].clone())
    };
    let (job, data) = told("/small", json!(["eu", "us"]));
    assert_eq!(data, job);
    let (job, data) = told("/large", json!(["eu", "us", "node:c-1", "node:c-2"]));
    let results = data["results"].as_array().unwrap();
    assert_eq!((results.len(), &data["id"], &data["status"]), (4, &job["id"], &json!("finished")));
    for (short, whole) in results.iter().zip(job["results"].as_array().unwrap()) {
        assert_eq!((&short["node"], &short["status"], &short["truncated"]), (&whole["node"], &json!("success"), &json!(true)));
        assert!(short["report"].is_null() && short["output"] == "" && whole["report"].is_object());
    }
}

#[test]
fn the_end_of_a_job_that_was_forgotten_is_told_all_the_same() {
    let fabric = Fabric::start();
    let api = fabric.api_with(&open());
    fabric.agent("c-1", "eu");
    api.wait_for_nodes(1);
    let receiver = Receiver::start(|_, _| Reply::status(200));
    let mut job = posted(&api, &json!({"url": receiver.url("/kept")}));
    receiver.wait_for("/kept", 1);
    // As it is queued for a job of which its stream kept nothing until it was told.
    let id = JobId::new();
    let callback = json!({"url": receiver.url("/forgotten"), "max_age_ms": 60_000});
    job["id"] = json!(id);
    job["results"] = json!([]);
    let due = json!({"job": id, "caller": job["caller"], "callback": callback, "status": "finished", "finished_at": job["finished_at"],
        "expires_at": "2999-01-01T00:00:00Z", "replay": 0, "document": job});
    let owner = HEXLOWER.encode(&Sha256::digest(job["caller"].as_str().unwrap())[..8]);
    fabric.store(&subjects::callback(owner, format!("msg_{id}")), &due);
    let told = receiver.wait_for("/forgotten", 1).remove(0).json();
    assert_eq!((&told["type"], &told["outcomes_forgotten"], &told["data"]), (&json!("job.completed"), &json!(true), &job));
}

#[test]
fn an_operator_sees_and_replays_from_the_command_line() {
    let fabric = Fabric::start();
    let api = fabric.api_with(&open());
    fabric.agent("c-1", "eu");
    api.wait_for_nodes(1);
    let receiver = Receiver::start(|_, _| Reply::status(410));
    let says = |arguments: &[&str]| {
        let mut command = program();
        command.args(arguments).env("PROBEOPS_URL", api.url()).env("PROBEOPS_TOKEN", api.admin_key());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let made: Value = serde_json::from_str(&says(&["secrets", "add", "n8n", "--origin", &receiver.origin(), "-o", "json"])).unwrap();
    let id = made["id"].as_str().unwrap();
    assert!(says(&["secrets", "list"]).contains(id));
    let job = posted(&api, &json!({"url": receiver.url("/x?TOPSECRET"), "secret_id": id}));
    let delivery = delivery(&api, &job)["id"].as_str().unwrap().to_owned();
    let listed = says(&["deliveries", "list", "--status", "gone"]);
    assert!(listed.contains(&delivery) && !listed.contains("TOPSECRET"), "{listed}");
    assert!(says(&["deliveries", "show", &delivery]).contains("410"));
    assert!(says(&["deliveries", "replay", &delivery]).contains("pending"));
    assert_eq!(receiver.wait_for("/x?TOPSECRET", 2)[1].signatures_by(made["secret"].as_str().unwrap()), 1);
    assert!(says(&["secrets", "rotate", id]).contains("whsec_"));
    assert!(says(&["secrets", "remove", id]).contains(id) && !says(&["secrets", "list"]).contains(id));
    api.admin().post("/v1/jobs", &body(&json!({"url": receiver.url("/y"), "secret_id": id}))).expect(422);
    // What it was to sign is not sent unsigned.
    api.wait_until("it is asked for again", || api.admin().post(&format!("/v1/deliveries/{delivery}/replay"), &json!({})).status == 200);
    api.wait_until("it has failed", || says(&["deliveries", "list", "--status", "failed"]).contains(&delivery));
    assert!(says(&["deliveries", "show", &delivery]).contains("its secret was deleted"));
    assert_eq!(receiver.received_at("/x?TOPSECRET").len(), 2);
}

#[test]
fn a_job_whose_api_is_killed_while_it_runs_has_its_callback_from_another() {
    let fabric = Fabric::start();
    let (owner, other) = (fabric.api_with(&open()), fabric.api_with(&open()));
    fabric.agent("c-1", "eu");
    owner.wait_for_nodes(1);
    let (silent, receiver) = (Silent::start(), Receiver::start(|_, _| Reply::status(204)));
    let callback = json!({"url": receiver.url("/lost")});
    let job = json!({"tool": "tcp", "target": "127.0.0.1", "from": "eu", "parameters": silent.parameters(10_000), "callback": callback});
    let asked = owner.admin().post_raw("/v1/jobs", "application/json", job.to_string().as_bytes(), &[("prefer", "respond-async")]);
    let job = asked.expect(202);
    let _held = silent.connected();
    owner.kill();
    let told = receiver.wait_for("/lost", 1).remove(0);
    assert_eq!(told.header("webhook-id"), job["callback"]["delivery"].as_str());
    let data = &told.json()["data"];
    assert_eq!(
        (&data["id"], &data["status"], &data["results"][0]["failure"]["kind"]),
        (&job["id"], &json!("finished"), &json!("lost")),
        "{data}"
    );
    assert_eq!(delivery(&other, &job)["status"], "delivered");
}

#[test]
fn whatever_is_killed_every_callback_is_delivered_under_one_id() {
    let survived = crash::callbacks(100);
    assert_eq!((survived.delivered, survived.ids, survived.told), (100, 100, 100), "{survived:?}");
}
