//! One job, several ways to its answer: waited for, later, live as events or as text, by a URL, from any replica; and its end before its time.

use std::io::Write;
use std::time::{Duration, Instant};

use probeops_tests::fabric::{AgentOptions, Api, Fabric};
use probeops_tests::http::Event;
use probeops_tests::silent::Silent;
use serde_json::{Value, json};

const EVENTS: (&str, &str) = ("accept", "text/event-stream");
const TEXT: (&str, &str) = ("accept", "text/plain");

fn one_node() -> (Fabric, Api) {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("l-1", "eu");
    api.wait_for_nodes(1);
    (fabric, api)
}

fn ping(count: u32) -> Value {
    json!({"tool": "ping", "target": "127.0.0.1", "from": "eu", "parameters": {"count": count, "interval_ms": 200}})
}

fn waiting(silent: &Silent, from: &str) -> Value {
    json!({"tool": "tcp", "target": "127.0.0.1", "from": from, "parameters": silent.parameters(10_000)})
}

fn words(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.event.as_str()).collect()
}

#[test]
fn every_packet_is_told_as_it_comes_on_every_replica_and_to_who_comes_back() {
    let (fabric, first) = one_node();
    let second = fabric.api();
    second.wait_for_nodes(1);
    let mut live = first.admin().stream("POST", "/v1/jobs", &ping(5), &[EVENTS]);
    assert_eq!((live.status, live.header("content-type")), (200, Some("text/event-stream")));
    let begun = live.event().unwrap();
    assert_eq!((begun.event.as_str(), &begun.data["status"]), ("job", &json!("running")));
    let path = format!("/v1/jobs/{}", begun.data["id"].as_str().unwrap());
    assert_eq!(live.header("location"), Some(path.as_str()));
    let seen = [live.event().unwrap(), live.event().unwrap()];
    assert_eq!(words(&seen), ["accepted", "progress"]);
    assert_eq!((&seen[0].data["node"], &seen[1].data["run"]), (&json!("l-1"), &json!(0)));
    // Told while it goes on, here and there.
    for api in [&first, &second] {
        assert_eq!(api.admin().get(&path).expect(200)["status"], "running");
    }
    let events = format!("{path}/events");
    let followers: Vec<_> = [&first, &second]
        .into_iter()
        .flat_map(|api| [(api.admin(), None), (api.admin(), Some(seen[1].id.clone()))])
        .map(|(caller, after)| {
            let events = events.clone();
            std::thread::spawn(move || {
                let resume: Vec<(&str, &str)> = after.iter().map(|id| ("last-event-id", id.as_str())).chain([EVENTS]).collect();
                caller.stream("GET", &events, &Value::Null, &resume).events()
            })
        })
        .collect();
    let rest = live.events();
    // Its first line, and five packets.
    assert_eq!(words(&rest), ["progress", "progress", "progress", "progress", "progress", "outcome", "job"]);
    let ids: Vec<&str> = seen.iter().chain(&rest).map(|event| event.id.as_str()).collect();
    assert_eq!(ids, ["0.1.0", "0.1.1", "0.1.2", "0.1.3", "0.1.4", "0.1.5", "0.1.6", "0.1.7", "end"]);
    let document = &rest.last().unwrap().data;
    assert_eq!((&document["status"], &document["results"][0]), (&json!("finished"), &rest[5].data["outcome"]));
    for (index, follower) in followers.into_iter().enumerate() {
        let told = follower.join().unwrap();
        let expected: Vec<&Event> = if index % 2 == 0 { seen.iter().chain(&rest).collect() } else { rest.iter().collect() };
        assert_eq!(told[0].event, "job");
        let ids = |events: &mut dyn Iterator<Item = &Event>| events.map(|event| event.id.clone()).collect::<Vec<_>>();
        assert_eq!(ids(&mut told.iter().skip(1)), ids(&mut expected.iter().copied()), "follower {index}");
        assert!(told.iter().skip(1).eq(expected), "follower {index}");
    }
    for api in [&first, &second] {
        api.wait_until("it is over there", || api.admin().get(&path).expect(200)["status"] == "finished");
        assert_eq!(&api.admin().get(&path).expect(200), document);
        // Over: what came of it, and for who has seen that nothing more.
        let told = api.admin().stream("GET", &events, &Value::Null, &[EVENTS]).events();
        assert_eq!(told[1..], rest[5..]);
        assert_eq!(api.admin().stream("GET", &events, &Value::Null, &[EVENTS, ("last-event-id", "end")]).status, 204);
        let wrong = api.admin().stream("GET", &events, &Value::Null, &[EVENTS, ("last-event-id", "7")]).rest();
        assert!(wrong.contains("header Last-Event-ID: must be the id of an event as it was sent"), "{wrong}");
    }
}

#[test]
fn what_a_tool_prints_is_printed_as_it_comes_and_by_a_url() {
    let (_fabric, api) = one_node();
    let admin = api.admin();
    let mut printed = admin.stream("POST", "/v1/jobs", &ping(3), &[TEXT]);
    assert_eq!((printed.status, printed.header("content-type")), (200, Some("text/plain; charset=utf-8")));
    let path = printed.header("location").unwrap().to_owned();
    let first = printed.line();
    assert!(first.starts_with("PING 127.0.0.1"), "{first}");
    assert_eq!(admin.get(&path).expect(200)["status"], "running");
    let whole = first + &printed.rest();
    api.wait_until("it is over", || admin.get(&path).expect(200)["status"] == "finished");
    assert_eq!(whole, admin.get(&path).expect(200)["results"][0]["output"].as_str().unwrap());
    assert_eq!(admin.stream("GET", &format!("{path}/events"), &Value::Null, &[TEXT]).rest(), whole);

    let by_url = admin.get("/v1/run/ping?target=127.0.0.1&from=eu&count=2&interval_ms=200").expect(200);
    assert_eq!((&by_url["parameters"]["count"], &by_url["results"][0]["report"]["stats"]["received"]), (&json!(2), &json!(2)), "{by_url}");
    let browser = ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8");
    let shown = admin.stream("GET", "/v1/run/echo?from=eu&from=node%3Al-1&target=x", &Value::Null, &[browser]).rest();
    assert!(shown.lines().count() >= 2 && shown.lines().all(|line| line.starts_with("l-1 | ")), "{shown}");
    for (query, wrong) in [
        ("target=127.0.0.1&from=eu&count=x", "?count: must be a whole number from 1 to 100, not the string \"x\""),
        ("from=eu", "?target: "),
        ("target=a", "?from: `from` is missing"),
        ("target=a&from=eu&cuont=1", "did you mean `count`?"),
    ] {
        let problem = admin.get(&format!("/v1/run/ping?{query}")).expect(400);
        assert!(problem["detail"].as_str().unwrap().contains(wrong), "{problem}");
    }
}

#[test]
fn a_caller_says_how_long_it_waits() {
    let (_fabric, api) = one_node();
    let (admin, silent) = (api.admin(), Silent::start());
    let ask = |prefer: &str| {
        let body = waiting(&silent, "eu").to_string();
        admin.post_raw("/v1/jobs", "application/json", body.as_bytes(), &[("prefer", prefer)])
    };
    let answer = ask("respond-async");
    assert_eq!((answer.status, answer.header("preference-applied"), answer.header("retry-after")), (202, Some("respond-async"), Some("1")));
    let path = answer.header("location").unwrap().to_owned();
    assert_eq!((&answer.body["status"], &answer.body["results"]), (&json!("running"), &json!([])));
    silent.connected().write_all(b"hello\r\n").unwrap();
    api.wait_until("it is over", || admin.get(&path).expect(200)["status"] == "finished");
    assert_eq!(admin.get(&path).expect(200)["results"][0]["status"], "success");

    let begun = Instant::now();
    let answer = ask("wait=1");
    assert_eq!((answer.status, answer.header("preference-applied")), (202, Some("wait=1")));
    assert!(begun.elapsed() >= Duration::from_secs(1));
    drop(silent.connected());
    let quick = admin.post_raw("/v1/jobs", "application/json", ping(1).to_string().as_bytes(), &[("prefer", "wait=30")]);
    assert_eq!((quick.status, quick.body["results"][0]["status"].as_str()), (200, Some("success")), "{}", quick.text);
    assert!(ask("wait=soon").expect(422)["detail"].as_str().unwrap().contains("header Prefer: `wait` must be a whole number"));
}

#[test]
fn a_job_is_ended_before_its_time_from_any_replica() {
    let fabric = Fabric::start();
    let (first, second) = (fabric.api(), fabric.api());
    fabric.agent_with("l-1", "eu", &AgentOptions { slots_probe: Some(1), ..AgentOptions::default() });
    first.wait_for_nodes(1);
    second.wait_for_nodes(1);
    let silent = Silent::start();
    for canceller in [&first, &second] {
        let asked = first.admin().post_raw(
            "/v1/jobs",
            "application/json",
            waiting(&silent, "eu").to_string().as_bytes(),
            &[("prefer", "respond-async")],
        );
        let path = asked.header("location").unwrap().to_owned();
        let held = silent.connected();
        let cancelled = canceller.admin().delete(&path).expect(200);
        assert_eq!(cancelled["status"], "cancelled", "{cancelled}");
        let outcome = &cancelled["results"][0];
        assert_eq!((&outcome["failure"]["kind"], &outcome["node"]["id"]), (&json!("cancelled"), &json!("l-1")), "{outcome}");
        // What was found until then is kept.
        assert_eq!(outcome["report"]["ports"][0]["state"], "open", "{outcome}");
        // The only slot is free.
        let begun = Instant::now();
        assert_eq!(first.admin().job("ping", "127.0.0.1", "eu", &json!({"count": 1})).outcome()["status"], "success");
        assert!(begun.elapsed() < Duration::from_secs(5));
        drop(held);
        for api in [&first, &second] {
            api.wait_until("it is over there", || api.admin().get(&path).expect(200)["status"] == "cancelled");
            assert_eq!(api.admin().get(&path).expect(200), cancelled);
            let again = api.admin().delete(&path).expect(409);
            assert!(again["detail"].as_str().unwrap().ends_with("is cancelled already"), "{again}");
        }
    }
    let missing = first.admin().delete("/v1/jobs/01927f6e-0000-7000-8000-000000000000").expect(404);
    assert_eq!(missing["code"], "not_found");
}

#[test]
fn a_job_that_is_only_watched_ends_with_its_last_watcher_if_asked_so() {
    let (_fabric, api) = one_node();
    let (admin, silent) = (api.admin(), Silent::start());
    let mut body = waiting(&silent, "eu");
    body["cancel_on_disconnect"] = json!(true);
    let mut live = admin.stream("POST", "/v1/jobs", &body, &[EVENTS]);
    let path = live.header("location").unwrap().to_owned();
    assert_eq!(words(&[live.event().unwrap(), live.event().unwrap()]), ["job", "accepted"]);
    drop(live);
    api.wait_until("it is cancelled", || admin.get(&path).expect(200)["status"] == "cancelled");
    let refused = admin.post("/v1/jobs", &body).expect(422);
    assert!(refused["detail"].as_str().unwrap().starts_with("/cancel_on_disconnect: needs an answer that is streamed"), "{refused}");
    // Otherwise it goes on.
    let mut live = admin.stream("POST", "/v1/jobs", &waiting(&silent, "eu"), &[EVENTS]);
    let path = live.header("location").unwrap().to_owned();
    assert_eq!(words(&[live.event().unwrap(), live.event().unwrap()]), ["job", "accepted"]);
    drop((live, silent.connected()));
    silent.connected().write_all(b"still here\r\n").unwrap();
    api.wait_until("it is over", || admin.get(&path).expect(200)["status"] == "finished");
    assert_eq!(admin.get(&path).expect(200)["results"][0]["status"], "success");
}

#[test]
fn a_connection_with_nothing_to_say_is_kept_alive() {
    let (_fabric, api) = one_node();
    let silent = Silent::start();
    let url = format!("http://127.0.0.1:{}/", silent.port());
    let body = json!({"tool": "http", "target": url, "from": "eu", "parameters": {"timeout": 30}});
    let mut live = api.admin().stream("POST", "/v1/jobs", &body, &[EVENTS]);
    let mut seen = Vec::new();
    while seen.last().is_none_or(|event: &Event| event.data != "heartbeat") {
        seen.push(live.event().unwrap());
    }
    silent.connected().write_all(b"HTTP/1.1 204 At Last\r\n\r\n").unwrap();
    assert_eq!(words(&live.events()).last(), Some(&"job"));
}
