//! A replica of the API that is gone, or held still so long that it is thought to be, leaves no job running for ever.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream;
use futures_util::TryStreamExt;
use probeops_nats::permissions::Role;
use probeops_shared::ids::Caller as CallerName;
use probeops_shared::subjects::{broker, storage};
use probeops_tests::fabric::{AgentOptions, Api, ApiOptions, Fabric};
use probeops_tests::silent::Silent;
use probeops_tests::wire::Wire;
use serde_json::{Value, json};

/// Within this time nothing of a replica that is gone is running.
const ENDED_WITHIN: Duration = Duration::from_secs(15);

struct Fanned {
    fabric: Fabric,
    owner: Api,
    other: Api,
    path: String,
    /// What keeps its runs going.
    _held: Vec<TcpStream>,
}

/// A job with three runs at `owner`, the first of which has found something.
fn fanned() -> Fanned {
    let fabric = Fabric::start();
    let (owner, other) = (fabric.api(), fabric.api());
    // As many slots as they have runs.
    for (id, region, slots) in [("t-1", "eu", 1), ("t-2", "us", 2)] {
        fabric.agent_with(id, region, &AgentOptions { slots_probe: Some(slots), ..AgentOptions::default() });
    }
    owner.wait_for_nodes(2);
    other.wait_for_nodes(2);
    let silent = Silent::start();
    let body = json!({"tool": "tcp", "target": "127.0.0.1", "from": ["eu", "us", "node:t-2"], "parameters": silent.parameters(10_000)});
    let answer = owner.admin().post_raw("/v1/jobs", "application/json", body.to_string().as_bytes(), &[("prefer", "respond-async")]);
    let path = answer.header("location").unwrap().to_owned();
    answer.expect(202);
    let mut held: Vec<TcpStream> = (0..3).map(|_| silent.connected()).collect();
    // What a replica knows of where it goes on is what it was told.
    let mut live = other.admin().stream("GET", &format!("{path}/events"), &Value::Null, &[("accept", "text/event-stream")]);
    let begun = std::iter::from_fn(|| live.event()).filter(|event| event.event == "accepted").take(3);
    assert_eq!(begun.count(), 3);
    held.remove(0).write_all(b"found\r\n").unwrap();
    other.wait_until("one run is over", || other.admin().get(&path).expect(200)["results"].as_array().unwrap().len() == 1);
    Fanned { fabric, owner, other, path, _held: held }
}

/// Waits until it is over on `other`, and checks what became of it.
fn ended(Fanned { other, path, .. }: &Fanned, since: Instant, watched: std::thread::JoinHandle<Vec<probeops_tests::http::Event>>) -> Value {
    other.wait_until("it is over", || other.admin().get(path).expect(200)["status"] != "running");
    assert!(since.elapsed() < ENDED_WITHIN, "{:?}", since.elapsed());
    let document = other.admin().get(path).expect(200);
    assert_eq!(document["status"], "finished", "{document}");
    let results = document["results"].as_array().unwrap();
    let kinds: Vec<&Value> = results.iter().map(|outcome| &outcome["failure"]["kind"]).collect();
    assert_eq!((kinds.len(), kinds.iter().filter(|kind| kind.is_null()).count()), (3, 1), "{document}");
    assert_eq!(kinds.iter().filter(|kind| **kind == "lost").count(), 2, "{document}");
    let lost = results.iter().find(|outcome| outcome["failure"]["kind"] == "lost").unwrap();
    assert!(lost["failure"]["detail"].as_str().unwrap().starts_with("the API's replica api-"), "{lost}");
    assert_eq!(other.admin().get("/v1/jobs?status=running").expect(200)["jobs"], json!([]));
    // Who watched there has seen all of it.
    let told = watched.join().unwrap();
    assert_eq!(told.iter().filter(|event| event.event == "outcome").count(), 3, "{told:?}");
    assert_eq!((told.last().unwrap().event.as_str(), &told.last().unwrap().data), ("job", &document));
    document
}

fn watching(Fanned { other, path, .. }: &Fanned) -> std::thread::JoinHandle<Vec<probeops_tests::http::Event>> {
    let mut live = other.admin().stream("GET", &format!("{path}/events"), &Value::Null, &[("accept", "text/event-stream")]);
    let first = live.event().unwrap();
    assert_eq!(first.event, "job");
    std::thread::spawn(move || live.events())
}

#[test]
fn jobs_of_a_killed_replica_end_with_what_there_is() {
    let fanned = fanned();
    let watched = watching(&fanned);
    fanned.owner.kill();
    let document = ended(&fanned, Instant::now(), watched);
    let third = fanned.fabric.api();
    assert_eq!(third.admin().get(&fanned.path).expect(200), document);
}

#[test]
fn a_replica_that_was_held_still_changes_nothing_of_what_was_ended_for_it() {
    let fanned = fanned();
    let watched = watching(&fanned);
    fanned.owner.pause();
    let document = ended(&fanned, Instant::now(), watched);
    fanned.owner.resume();
    fanned
        .owner
        .wait_until("it finds that the job is not its own any more", || fanned.owner.log().contains("another replica has ended the job"));
    for api in [&fanned.other, &fanned.owner] {
        api.wait_until("it is over there", || api.admin().get(&fanned.path).expect(200)["status"] == "finished");
        let mut now = api.admin().get(&fanned.path).expect(200);
        // Its nodes have ended their runs meanwhile: what one found stands beside what counts, where the owner had given it up as it read it.
        for late in now.as_object_mut().unwrap().remove("late").unwrap_or_default().as_array().into_iter().flatten() {
            let lost = document["results"].as_array().unwrap().iter().filter(|outcome| outcome["failure"]["kind"] == "lost");
            assert_eq!(lost.filter(|outcome| outcome["request_id"] == late["request_id"]).count(), 1, "{late}");
        }
        assert_eq!(now, document);
    }
    // It goes on as one of them: a job of its own is its own.
    fanned.owner.wait_for_nodes(2);
    assert_eq!(fanned.owner.admin().job("echo", "x", "us", &json!({})).outcome()["status"], "success");
}

#[test]
fn a_job_whose_replica_is_gone_can_be_cancelled() {
    let fanned = fanned();
    fanned.owner.kill();
    let begun = Instant::now();
    let cancelled = fanned.other.admin().delete(&fanned.path).expect(200);
    assert!(begun.elapsed() < ENDED_WITHIN, "{:?}", begun.elapsed());
    assert_eq!(cancelled["status"], "cancelled", "{cancelled}");
    assert_eq!(cancelled["results"].as_array().unwrap().len(), 3, "{cancelled}");
    assert_eq!(fanned.other.admin().get(&fanned.path).expect(200), cancelled);
    // The nodes were told: all slots of a node whose runs had not ended are free long before they would have ended by themselves.
    let ended = cancelled["results"].as_array().unwrap().iter().find(|outcome| outcome["status"] == "success").unwrap();
    let region = if ended["node"]["id"] == "t-1" { "us" } else { "eu" };
    let asked = Instant::now();
    let freed = fanned.other.admin().job("ping", "127.0.0.1", region, &json!({"count": 1})).outcome();
    assert_eq!(freed["status"], "success", "{freed}");
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
}

#[test]
fn a_broker_that_was_away_does_not_make_replicas_end_each_others_jobs() {
    let mut fabric = Fabric::start();
    let wire = Wire::to(fabric.listen());
    let owner = fabric.api_with(&ApiOptions { server: Some(format!("tls://{}", wire.address())), ..ApiOptions::default() });
    let other = fabric.api();
    fabric.agent("t-1", "eu");
    owner.wait_for_nodes(1);
    let silent = Silent::start();
    let url = format!("http://127.0.0.1:{}/", silent.port());
    let body = json!({"tool": "http", "target": url, "from": "eu", "parameters": {"timeout": 60}});
    let answer = owner.admin().post_raw("/v1/jobs", "application/json", body.to_string().as_bytes(), &[("prefer", "respond-async")]);
    let path = answer.header("location").unwrap().to_owned();
    answer.expect(202);
    let mut held = silent.connected();
    let mut live = other.admin().stream("GET", &format!("{path}/events"), &Value::Null, &[("accept", "text/event-stream")]);
    assert!(std::iter::from_fn(|| live.event()).any(|event| event.event == "accepted"));
    // Longer than the broker remembers replicas; and one comes back later than the other.
    wire.break_off();
    fabric.restart_broker_after(Duration::from_secs(7));
    other.wait_until("it is back", || other.nobody().get("/readyz").status == 200);
    wire.mend();
    // Longer than one waits for the other.
    std::thread::sleep(Duration::from_secs(14));
    let document = other.admin().get(&path).expect(200);
    assert_eq!(document["status"], "running", "{document}");
    held.write_all(b"HTTP/1.1 204 At Last\r\n\r\n").unwrap();
    other.wait_until("it is over", || other.admin().get(&path).expect(200)["status"] == "finished");
    assert_eq!(other.admin().get(&path).expect(200)["results"][0]["report"]["status"], 204);
}

/// The store as a replica of this name has it.
fn store_of(fabric: &Fabric, caller: &CallerName) -> jetstream::Context {
    let role = Role::Store { caller: caller.clone() };
    let client = fabric.connect_in(&fabric.credential(&role), &role.inbox_prefix());
    fabric.block_on(async { jetstream::with_prefix(client, broker::LENT) })
}

/// Writes the entry of a replica as whoever has taken it over can.
fn say(fabric: &Fabric, (store, caller): (&jetstream::Context, &CallerName), headers: &[(&str, &str)]) {
    let mut all = HeaderMap::new();
    for (name, value) in headers {
        all.insert(*name, *value);
    }
    fabric.block_on(async {
        let said = store.publish_with_headers(broker::lent(&broker::bucket_key(storage::REPLICAS, caller)), all, "".into()).await.unwrap();
        said.await.unwrap();
    });
}

#[test]
fn a_replica_that_has_made_its_entry_stay_is_gone_all_the_same_when_it_says_no_more() {
    let fanned = fanned();
    let reader = store_of(&fanned.fabric, &CallerName::new_api());
    // Each says since when it is there, and the owner was first.
    let owner = fanned.fabric.block_on(async {
        let replicas = reader.get_key_value(storage::REPLICAS).await.unwrap();
        let mut there = Vec::new();
        for name in replicas.keys().await.unwrap().try_collect::<Vec<_>>().await.unwrap() {
            let id = String::from_utf8(replicas.get(&name).await.unwrap().unwrap().to_vec()).unwrap();
            there.push((id.rsplit('@').next().unwrap().parse::<i64>().unwrap(), name));
        }
        assert_eq!(there.len(), 2);
        there.into_iter().min().unwrap().1.parse::<CallerName>().unwrap()
    });
    fanned.owner.kill();
    say(&fanned.fabric, (&store_of(&fanned.fabric, &owner), &owner), &[("Nats-TTL", "never")]);
    let begun = Instant::now();
    let cancelled = fanned.other.admin().delete(&fanned.path).expect(200);
    assert!(begun.elapsed() < ENDED_WITHIN, "{:?}", begun.elapsed());
    assert_eq!(cancelled["status"], "cancelled", "{cancelled}");
}

#[test]
fn a_replica_that_sweeps_the_others_entries_away_ends_none_of_their_jobs_and_makes_no_room() {
    let fabric = Fabric::start();
    let (owner, other) = (fabric.api(), fabric.api());
    let started = Instant::now();
    fabric.agent("t-1", "eu");
    owner.wait_for_nodes(1);
    let silent = Silent::start();
    let url = format!("http://127.0.0.1:{}/", silent.port());
    let body = json!({"tool": "http", "target": url, "from": "eu", "parameters": {"timeout": 60}});
    let key = owner.key(&json!({"name": "one", "scopes": ["jobs:write", "jobs:read"], "limits": {"at_once": 1}}));
    for api in [&owner, &other] {
        api.wait_until("the key is known", || api.caller(&key).get("/v1/tools").status == 200);
    }
    let answer = owner.caller(&key).post_raw("/v1/jobs", "application/json", body.to_string().as_bytes(), &[("prefer", "respond-async")]);
    let path = answer.header("location").unwrap().to_owned();
    answer.expect(202);
    let mut held = silent.connected();
    let taken_over = CallerName::new_api();
    let store = store_of(&fabric, &taken_over);
    // For longer than the others wait, after their start, with what is left of replicas.
    while started.elapsed() < Duration::from_secs(16) {
        say(&fabric, (&store, &taken_over), &[]);
        // At once it is gone, so that the others look, and there is nobody.
        say(&fabric, (&store, &taken_over), &[("Nats-Rollup", "all"), ("KV-Operation", "DEL")]);
        other.caller(&key).job("echo", "x", "eu", &json!({})).expect(429);
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(other.log().contains("another replica is gone"));
    held.write_all(b"HTTP/1.1 204 At Last\r\n\r\n").unwrap();
    owner.wait_until("it is over", || owner.admin().get(&path).expect(200)["status"] == "finished");
    for api in [&owner, &other] {
        assert_eq!(api.admin().get(&path).expect(200)["results"][0]["report"]["status"], 204);
    }
}
