//! A call that is made again with the same key is the same call, on whichever replica.

use std::collections::BTreeSet;
use std::io::Write;

use probeops_shared::ids::JobId;
use probeops_tests::fabric::Fabric;
use probeops_tests::http::{Answer, Caller};
use probeops_tests::silent::Silent;
use serde_json::{Value, json};

fn ask(caller: &Caller, key: &str, body: &Value, prefer: &str) -> Answer {
    caller.post_raw("/v1/jobs", "application/json", body.to_string().as_bytes(), &[("idempotency-key", key), ("prefer", prefer)])
}

#[test]
fn the_same_key_fifty_times_at_once_on_two_replicas_is_one_job() {
    let fabric = Fabric::start();
    let apis = [fabric.api(), fabric.api()];
    fabric.agent("i-1", "eu");
    for api in &apis {
        api.wait_for_nodes(1);
    }
    let silent = Silent::start();
    let body = json!({"tool": "tcp", "target": "127.0.0.1", "from": "eu", "parameters": silent.parameters(10_000)});
    let calls: Vec<_> = (0..50)
        .map(|number| {
            let (caller, body) = (apis[number % 2].admin(), body.clone());
            // Some wait, some do not.
            let prefer = if number % 5 == 0 { "wait=30" } else { "respond-async" };
            std::thread::spawn(move || (prefer, ask(&caller, "fifty", &body, prefer)))
        })
        .collect();
    let mut held = silent.connected();
    let waiting = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_secs(2));
        held.write_all(b"one\r\n").unwrap();
    });
    let answers: Vec<(&str, Answer)> = calls.into_iter().map(|call| call.join().unwrap()).collect();
    waiting.join().unwrap();
    for (prefer, answer) in &answers {
        let wanted = if *prefer == "respond-async" { 202 } else { 200 };
        assert_eq!(answer.status, wanted, "{}", answer.text);
    }
    let ids: BTreeSet<&str> = answers.iter().map(|(_, answer)| answer.body["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    let made = answers.iter().filter(|(_, answer)| answer.header("idempotent-replayed").is_none()).count();
    assert_eq!(made, 1, "the others are told that it is not theirs");
    for api in &apis {
        api.wait_until("all replicas list it", || api.admin().get("/v1/jobs").expect(200)["jobs"].as_array().unwrap().len() == 1);
    }
}

#[test]
fn a_call_made_again_gets_the_job_of_the_first_in_whatever_way_it_asks() {
    let fabric = Fabric::start();
    let (first, second) = (fabric.api(), fabric.api());
    let other = first.key(&json!({"name": "other", "scopes": ["jobs:write"]}));
    let body = json!({"tool": "echo", "target": "x", "from": "eu", "parameters": {"payload_bytes": 3}});
    // What was refused was not a job; it may be asked for again.
    assert!(ask(&first.admin(), "again", &body, "wait=10").status >= 400);
    fabric.agent("i-1", "eu");
    first.wait_for_nodes(1);
    second.wait_for_nodes(1);
    let made = ask(&first.admin(), "again", &body, "wait=10");
    assert_eq!((made.status, made.header("idempotent-replayed")), (200, None), "{}", made.text);
    let same = json!({"parameters": {"payload_bytes": 3}, "from": "eu", "tool": "echo", "target": "x"});
    for api in [&first, &second] {
        api.wait_until("it is over there", || api.admin().get(&format!("/v1/jobs/{}", made.body["id"].as_str().unwrap())).status == 200);
        for (key, prefer) in [("again", "wait=10"), ("\"again\"", "respond-async")] {
            let again = ask(&api.admin(), key, &same, prefer);
            assert_eq!((again.status, again.header("idempotent-replayed")), (200, Some("true")), "{}", again.text);
            assert_eq!(again.body, made.body);
        }
        let told = api.admin().stream("POST", "/v1/jobs", &same, &[("accept", "text/event-stream"), ("idempotency-key", "again")]).events();
        assert_eq!(told.last().unwrap().data, made.body);
        let different = json!({"tool": "echo", "target": "y", "from": "eu", "parameters": {"payload_bytes": 3}});
        let refused = ask(&api.admin(), "again", &different, "wait=10").expect(422);
        assert_eq!(refused["code"], "idempotency_mismatch");
        assert!(refused["detail"].as_str().unwrap().contains(made.body["id"].as_str().unwrap()), "{refused}");
    }
    // The key of another caller is another key.
    let theirs = ask(&first.caller(&other), "again", &body, "wait=10");
    assert_eq!((theirs.status, theirs.header("idempotent-replayed")), (200, None), "{}", theirs.text);
    assert_ne!(theirs.body["id"], made.body["id"]);
    let wrong = ask(&first.admin(), "\"open", &body, "wait=10").expect(422);
    assert!(wrong["detail"].as_str().unwrap().starts_with("header Idempotency-Key: must be 1 to 255 printable"), "{wrong}");
}

#[test]
fn a_key_whose_replica_died_before_the_job_began_makes_it_later() {
    let fabric = Fabric::start();
    let (first, second) = (fabric.api(), fabric.api());
    fabric.agent("i-1", "eu");
    second.wait_for_nodes(1);
    // As a replica leaves it that dies between the key and the job.
    let body = json!({"tool": "echo", "target": "x", "from": "eu"});
    let made = ask(&first.admin(), "kept", &body, "wait=10").expect(200);
    let bucket = "IDEMPOTENCY";
    let entry = fabric.oldest_entry(bucket);
    let begun_never = json!({"fingerprint": entry.1["fingerprint"], "job": JobId::new()});
    fabric.put(bucket, &entry.0, &begun_never);
    first.kill();
    let later = ask(&second.admin(), "kept", &body, "wait=10").expect(200);
    assert_eq!((&later["id"], &later["status"]), (&begun_never["job"], &json!("finished")));
    assert_ne!(later["id"], made["id"]);
    // One that was promised long ago has begun, and was forgotten: it does not run a second time.
    fabric.put(bucket, &entry.0, &json!({"fingerprint": entry.1["fingerprint"], "job": "01927f6e-0000-7000-8000-000000000000"}));
    let forgotten = ask(&second.admin(), "kept", &body, "wait=10").expect(404);
    assert!(forgotten["detail"].as_str().unwrap().contains("is no longer kept"), "{forgotten}");
}

#[test]
fn a_call_that_is_refused_leaves_no_key_and_its_twins_get_its_job() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("i-1", "eu");
    api.wait_for_nodes(1);
    let limited = |name: &str| api.caller(&api.key(&json!({"name": name, "scopes": ["jobs:write"], "limits": {"rate": "1/h"}})));
    let echo = |target: &str| json!({"tool": "echo", "target": target, "from": "eu"});
    let caller = limited("one");
    let made = ask(&caller, "taken", &echo("a"), "wait=10").expect(200);
    for target in ["b", "c"] {
        assert_eq!(ask(&caller, "refused", &echo(target), "wait=10").expect(429)["code"], "rate_limited", "not the mismatch of a key");
    }
    assert_eq!(ask(&caller, "taken", &echo("a"), "wait=10").expect(200), made, "made again, it costs nothing");

    let caller = limited("many");
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let (caller, body) = (caller.clone(), echo("twin"));
            std::thread::spawn(move || ask(&caller, "twins", &body, "wait=10"))
        })
        .collect();
    let answers: Vec<Answer> = calls.into_iter().map(|call| call.join().unwrap()).collect();
    let ids: BTreeSet<&str> =
        answers.iter().filter(|answer| answer.status == 200).map(|answer| answer.body["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert!(answers.iter().all(|answer| [200, 429].contains(&answer.status)), "one job, or not yet");
    assert_eq!(caller.get("/v1/jobs").expect(200)["jobs"].as_array().unwrap().len(), 1);
}
