//! Schedules: on time, by every clock, once each whatever ends or is away, and with what their owner may do then.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_nats::HeaderMap;
use probeops_api::access::keys::{KeyRecord, NewKey, mint};
use probeops_nats::permissions::Role;
use probeops_shared::access::{Limits, Scope};
use probeops_shared::ids::Caller as CallerName;
use probeops_shared::subjects::{self, storage};
use probeops_shared::timestamp::Timestamp;
use probeops_tests::fabric::{Api, ApiOptions, Fabric, program};
use probeops_tests::http::Caller;
use probeops_tests::needs;
use probeops_tests::receiver::{Receiver, Reply};
use serde_json::{Value, json};

/// A schedule of the simplest job, with these fields beside.
fn body(when: &Value) -> Value {
    let mut body = json!({"tool": "echo", "target": "hello", "from": "eu"});
    body.as_object_mut().unwrap().extend(when.as_object().unwrap().clone());
    body
}

#[track_caller]
fn made(caller: &Caller, when: &Value) -> String {
    let schedule = caller.post("/v1/schedules", &body(when)).expect(201);
    schedule["id"].as_str().unwrap().to_owned()
}

#[track_caller]
fn read(caller: &Caller, id: &str) -> Value {
    caller.get(&format!("/v1/schedules/{id}")).expect(200)
}

/// What became of its firings, the oldest first.
#[track_caller]
fn results(caller: &Caller, id: &str) -> Vec<Value> {
    let page = caller.get(&format!("/v1/schedules/{id}/results?limit=1000")).expect(200);
    page["results"].as_array().unwrap().iter().rev().cloned().collect()
}

/// The same, once there are so many that became a job that is over, or none.
#[track_caller]
fn wait_for(api: &Api, id: &str, count: usize) -> Vec<Value> {
    let over = |fired: &Value| fired["job"].is_null() || fired["job"]["status"] == "finished";
    api.wait_until(&format!("{id} has fired {count} times"), || {
        results(&api.admin(), id).iter().filter(|fired| over(fired)).count() >= count
    });
    results(&api.admin(), id)
}

fn time(of: &Value) -> Timestamp {
    Timestamp::parse(of.as_str().unwrap_or_else(|| panic!("no time: {of}"))).unwrap()
}

/// What the trail says of changes of a schedule, once there are so many.
#[track_caller]
fn changes(api: &Api, id: &str, count: usize) -> Vec<Value> {
    let of = |record: &Value| record["target"] == json!(format!("schedule:{id}"));
    let found = || api.audit("verdict=changed").into_iter().filter(of).collect::<Vec<_>>();
    api.wait_until(&format!("{count} changes of {id} are in the trail"), || found().len() >= count);
    found()
}

fn soon(ms: u64) -> Timestamp {
    Timestamp::now().plus(Duration::from_millis(ms))
}

fn late_ms(fired: &Value) -> i64 {
    time(&fired["fired_at"]).unix_ms() - time(&fired["due"]).unix_ms()
}

#[test]
fn a_job_runs_at_its_time_again_and_again_and_by_a_clock() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("s-1", "eu");
    api.wait_for_nodes(1);
    let admin = api.admin();
    let at = soon(2_000);
    let once = made(&admin, &json!({"at": at}));
    let every = made(&admin, &json!({"every": "2s"}));
    let cron = made(&admin, &json!({"cron": "*/3 * * * * *", "time_zone": "Europe/Berlin"}));
    assert_eq!(time(&read(&admin, &once)["next_due"]).unix_ms(), at.unix_ms());
    let fired = wait_for(&api, &once, 1);
    let job = &fired[0]["job"];
    assert_eq!((&job["schedule"], &job["results"][0]["status"]), (&json!(once), &json!("success")), "{job}");
    assert!((0..2_000).contains(&late_ms(&fired[0])), "{fired:?}");
    assert_eq!(admin.get(&format!("/v1/jobs/{}", job["id"].as_str().unwrap())).expect(200), *job);
    let over = read(&admin, &once);
    assert!(over["next_due"].is_null() && over["last"]["job"] == job["id"], "{over}");
    for (id, step_ms) in [(&every, 2_000), (&cron, 3_000)] {
        let dues: Vec<i64> = wait_for(&api, id, 3).iter().map(|fired| time(&fired["due"]).unix_ms()).collect();
        assert!(dues.windows(2).all(|pair| pair[1] - pair[0] == step_ms), "{id}: {dues:?}");
    }
    assert!(results(&admin, &cron).iter().all(|fired| time(&fired["due"]).unix_ms() % 3_000 == 0));
    let first = admin.get(&format!("/v1/schedules/{every}/results?limit=1")).expect(200);
    let next = first["next"].as_str().unwrap();
    let second = admin.get(&format!("/v1/schedules/{every}/results?limit=1&cursor={next}")).expect(200);
    assert!(time(&second["results"][0]["due"]) < time(&first["results"][0]["due"]), "newest first, page by page");
}

#[test]
fn what_cannot_be_scheduled_is_refused_by_name_and_others_see_nothing() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("s-1", "eu");
    api.wait_for_nodes(1);
    let admin = api.admin();
    for (when, pointer) in [
        (json!({}), ""),
        (json!({"at": "2020-01-01T00:00:00Z"}), "/at"),
        (json!({"every": "1m", "cron": "* * * * * *"}), "/cron"),
        (json!({"every": "0s"}), "/every"),
        (json!({"cron": "* * * * *"}), "/cron"),
        (json!({"cron": "0 0 0 31 2 *"}), "/cron"),
        (json!({"cron": "0 0 0 * * *", "time_zone": "Mars/Base"}), "/time_zone"),
        (json!({"every": "1m", "time_zone": "UTC"}), "/time_zone"),
        (json!({"every": "1m", "jitter_ms": 60_001}), "/jitter_ms"),
        (json!({"every": "1m", "jitter_ms": -1}), "/jitter_ms"),
        (json!({"every": "1m", "overdue": "never"}), "/overdue"),
        (json!({"every": "1m", "overdue_after_ms": 1.5}), "/overdue_after_ms"),
        (json!({"every": "1m", "paused": "no"}), "/paused"),
        (json!({"every": "1m", "timeout_ms": 0}), "/timeout_ms"),
        (json!({"every": "1m", "parameters": {"nothing": 1}}), "/parameters/nothing"),
        (json!({"every": "1m", "idempotency_key": "x"}), "/idempotency_key"),
    ] {
        let refused = admin.post("/v1/schedules", &body(&when));
        // 422 where only what it means is wrong, and not what it looks like.
        assert!([400, 422].contains(&refused.status), "{when}: {refused:?}");
        let refused = refused.body;
        assert_eq!(refused["errors"][0]["pointer"], pointer, "{when}: {refused}");
    }
    admin.post("/v1/schedules", &body(&json!({"every": "1m", "from": "mars"}))).expect(404);
    let narrow = api.caller(&api.key(&json!({"name": "n", "scopes": ["jobs:write"], "limits": {"tools": ["ping"]}})));
    narrow.post("/v1/schedules", &body(&json!({"every": "1m"}))).expect(403);
    let reader = api.caller(&api.key(&json!({"name": "r", "scopes": ["jobs:read"]})));
    reader.post("/v1/schedules", &body(&json!({"every": "1m"}))).expect(403);

    let callback = json!({"url": "https://n8n.example/x?TOPSECRET", "header": {"name": "X-Token", "value": "TOPSECRET"}});
    let owner = api.caller(&api.key(&json!({"name": "o", "scopes": ["jobs:write"]})));
    let id = made(&owner, &json!({"every": "1h", "callback": callback}));
    let shown = read(&owner, &id);
    assert_eq!((&shown["callback"]["url"], &shown["every"]), (&json!("https://n8n.example/x"), &json!("1h")));
    let trail = json!(changes(&api, &id, 1)).to_string();
    assert!(!format!("{shown}{trail}{}", api.log()).contains("TOPSECRET"));
    for stranger in [&narrow, &reader] {
        for path in [format!("/v1/schedules/{id}"), format!("/v1/schedules/{id}/results"), "/v1/schedules/x".to_owned()] {
            stranger.get(&path).expect(404);
        }
        assert_eq!(stranger.get("/v1/schedules").expect(200)["schedules"], json!([]));
    }
    narrow.delete(&format!("/v1/schedules/{id}")).expect(404);
    assert_eq!(read(&admin, &id)["id"], json!(id), "an admin sees it");
    for _ in 1..100 {
        made(&owner, &json!({"every": "1h", "paused": true}));
    }
    let refused = owner.post("/v1/schedules", &body(&json!({"every": "1h"}))).expect(409);
    assert!(refused["detail"].as_str().unwrap().contains("100 schedules"), "{refused}");
    let (mut found, mut cursor) = (BTreeSet::new(), String::new());
    loop {
        let page = owner.get(&format!("/v1/schedules?limit=30{cursor}")).expect(200);
        found.extend(page["schedules"].as_array().unwrap().iter().map(|schedule| schedule["id"].to_string()));
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(found.len(), 100, "page by page");
}

#[test]
fn one_that_is_paused_or_deleted_makes_no_jobs() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("s-1", "eu");
    api.wait_for_nodes(1);
    let says = |arguments: &[&str]| {
        let mut command = program();
        command.arg("schedules").args(arguments).env("PROBEOPS_URL", api.url()).env("PROBEOPS_TOKEN", api.admin_key());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let made: Value = serde_json::from_str(&says(&["add", "echo", "hello", "--from", "eu", "--every", "1s", "-o", "json"])).unwrap();
    let id = made["id"].as_str().unwrap();
    wait_for(&api, id, 2);
    assert!(says(&["results", id]).contains("finished success") && says(&["list"]).contains("active"));
    assert!(says(&["pause", id]).contains("paused"));
    // One that was taken before it was paused may still come.
    std::thread::sleep(Duration::from_millis(500));
    let before = results(&api.admin(), id).len();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(results(&api.admin(), id).len(), before);
    assert!(says(&["resume", id]).contains("active") && says(&["show", id]).contains("active"));
    let after = wait_for(&api, id, before + 1);
    let (paused, resumed) = (&after[before - 1], &after[before]);
    assert!(time(&resumed["due"]).since(time(&paused["due"])) >= Duration::from_secs(3), "nothing is made up for: {after:?}");
    assert!(says(&["delete", id]).contains(id));
    api.admin().get(&format!("/v1/schedules/{id}")).expect(404);
    std::thread::sleep(Duration::from_secs(1));
    let jobs = || api.admin().get("/v1/jobs?limit=1000").expect(200)["jobs"].as_array().unwrap().len();
    let count = jobs();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(jobs(), count);
    let records = changes(&api, id, 4);
    let details: Vec<&str> = records.iter().map(|record| record["detail"].as_str().unwrap()).collect();
    for word in ["made", "paused", "resumed", "deleted"] {
        assert!(details.iter().any(|detail| detail.contains(&format!("schedule {word}"))), "{details:?}");
    }
}

#[test]
fn what_is_overdue_after_an_outage_is_dropped_or_run_once() {
    let mut fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("s-1", "eu");
    api.wait_for_nodes(1);
    let admin = api.admin();
    let (drop, run) = (json!({"overdue": "drop", "overdue_after_ms": 1_000}), json!({"overdue": "run_once", "overdue_after_ms": 1_000}));
    let of = |overdue: &Value, when: Value| {
        let mut when = when;
        when.as_object_mut().unwrap().extend(overdue.as_object().unwrap().clone());
        made(&admin, &when)
    };
    let at = soon(3_000);
    let (at_drop, at_run) = (of(&drop, json!({"at": at})), of(&run, json!({"at": at})));
    let (every_drop, every_run) = (of(&drop, json!({"every": "4s"})), of(&run, json!({"every": "4s"})));
    let (cron_drop, cron_run) = (of(&drop, json!({"cron": "*/4 * * * * *"})), of(&run, json!({"cron": "*/4 * * * * *"})));
    std::thread::sleep(Duration::from_millis(500));
    let down = Timestamp::now();
    fabric.restart_broker_after(Duration::from_secs(11));
    let up = Timestamp::now();
    // What is asked while the API comes back is not answered.
    api.wait_until("the API is back", || admin.get("/v1/schedules").status == 200);
    assert_eq!(wait_for(&api, &at_drop, 1)[0]["skipped"], "overdue");
    let ran = wait_for(&api, &at_run, 1);
    assert!(ran[0]["job"]["status"] == "finished" && late_ms(&ran[0]) > 5_000, "{ran:?}");
    for (id, jobs_max) in [(&every_drop, 0), (&every_run, 1), (&cron_drop, 0), (&cron_run, 1)] {
        api.wait_until("it goes on in time", || {
            results(&admin, id).iter().any(|fired| time(&fired["due"]) > up && fired["job"]["status"] == "finished")
        });
        let all = results(&admin, id);
        let dues: BTreeSet<i64> = all.iter().map(|fired| time(&fired["due"]).unix_ms()).collect();
        let whole: Vec<i64> = dues.iter().copied().collect();
        assert!(dues.len() == all.len() && whole.windows(2).all(|pair| pair[1] - pair[0] == 4_000), "each once, none forgotten: {all:?}");
        let late: Vec<&Value> = all.iter().filter(|fired| time(&fired["due"]) > down && late_ms(fired) > 1_000).collect();
        assert!(late.len() >= 2, "several were missed: {all:?}");
        let jobs = late.iter().filter(|fired| !fired["job"].is_null()).count();
        assert!(jobs <= jobs_max, "{jobs} of {late:?}");
    }
}

#[test]
fn a_firing_may_do_what_its_owner_may_then() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("s-1", "eu");
    api.wait_for_nodes(1);
    let admin = api.admin();
    let key = |limits: Limits| {
        let minted = mint(NewKey {
            name: "k".to_owned(),
            scopes: vec![Scope::JobsWrite],
            limits,
            created_by: "test".to_owned(),
            ..NewKey::default()
        });
        fabric.put(storage::KEYS, &minted.record.id, &json!(minted.record));
        minted
    };
    let (revoked, narrowed) = (key(Limits::default()), key(Limits::default()));
    let every = |key: &str| {
        let owner = api.caller(key);
        api.wait_until("the key is known", || owner.get("/v1/schedules").status == 200);
        made(&owner, &json!({"every": "1s"}))
    };
    let (of_revoked, of_narrowed) = (every(&revoked.key), every(&narrowed.key));
    wait_for(&api, &of_revoked, 1);
    wait_for(&api, &of_narrowed, 1);
    admin.delete(&format!("/v1/keys/{}", revoked.record.id)).expect(200);
    let limits: Limits = serde_json::from_value(json!({"tools": ["ping"]})).unwrap();
    fabric.put(storage::KEYS, &narrowed.record.id, &json!(KeyRecord { limits, ..narrowed.record.clone() }));

    api.wait_until("it is suspended", || !read(&admin, &of_revoked)["suspended"].is_null());
    let suspended = read(&admin, &of_revoked);
    assert!(suspended["suspended"].as_str().unwrap().contains("revoked") && suspended["next_due"].is_null(), "{suspended}");
    let last = results(&admin, &of_revoked).pop().unwrap();
    assert!(last["job"].is_null() && last["refused"]["code"] == "unauthorized", "{last}");
    changes(&api, &of_revoked, 2);

    api.wait_until("it is refused", || results(&admin, &of_narrowed).iter().any(|fired| !fired["refused"].is_null()));
    let refused = results(&admin, &of_narrowed).into_iter().find(|fired| !fired["refused"].is_null()).unwrap();
    assert_eq!(refused["refused"]["code"], "forbidden", "{refused}");
    let goes_on = read(&admin, &of_narrowed);
    assert!(goes_on["suspended"].is_null() && !goes_on["next_due"].is_null(), "{goes_on}");
    let records = api.wait_for_audit(&format!("principal=key:{}&verdict=refused", narrowed.record.id), 1);
    assert!(records[0]["detail"].as_str().unwrap().contains(&of_narrowed), "{records:?}");
}

#[test]
fn firings_are_spread_by_chance() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("s-1", "eu");
    api.wait_for_nodes(1);
    let at = soon(3_000);
    let ids: Vec<String> = (0..20).map(|_| made(&api.admin(), &json!({"at": at, "jitter_ms": 4_000}))).collect();
    let late: Vec<i64> = ids.iter().map(|id| late_ms(&wait_for(&api, id, 1)[0])).collect();
    assert!(late.iter().all(|late| (0..6_000).contains(late)), "{late:?}");
    let (first, last) = (late.iter().min().unwrap(), late.iter().max().unwrap());
    assert!(last - first > 1_500, "twenty of them are not all close together: {late:?}");
}

#[test]
fn an_api_that_is_killed_between_a_firing_and_its_job_is_followed_by_another() {
    let fabric = Fabric::start();
    let first = fabric.api();
    fabric.agent("s-1", "eu");
    first.wait_for_nodes(1);
    let id = made(&first.admin(), &json!({"at": soon(2_500), "overdue": "run_once"}));
    std::thread::sleep(Duration::from_millis(1_000));
    // The broker gives it the firing, and it does nothing with it.
    first.pause();
    std::thread::sleep(Duration::from_millis(3_000));
    first.kill();
    let second = fabric.api();
    second.wait_for_nodes(1);
    let fired = wait_for(&second, &id, 1);
    assert!(fired.len() == 1 && fired[0]["job"]["results"][0]["status"] == "success", "{fired:?}");
    let records = second.wait_for_audit("verdict=accepted", 1);
    assert_eq!(records.len(), 1, "{records:?}");
}

#[test]
fn two_replicas_run_a_firing_once_and_tell_its_end() {
    let fabric = Fabric::start();
    let open = ApiOptions { callback_allow: Some("127.0.0.0/8".to_owned()), ..ApiOptions::default() };
    let (one, other) = (fabric.api_with(&open), fabric.api_with(&open));
    fabric.agent("s-1", "eu");
    one.wait_for_nodes(1);
    other.wait_for_nodes(1);
    let receiver = Receiver::start(|_, _| Reply::status(204));
    let id = made(&one.admin(), &json!({"every": "1s", "callback": {"url": receiver.url("/end")}}));
    wait_for(&other, &id, 6);
    one.admin().post(&format!("/v1/schedules/{id}/pause"), &json!({})).expect(200);
    std::thread::sleep(Duration::from_secs(2));
    let fired = results(&other.admin(), &id);
    let jobs: BTreeMap<String, i64> =
        fired.iter().map(|fired| (fired["job"]["id"].as_str().unwrap().to_owned(), time(&fired["due"]).unix_ms())).collect();
    assert_eq!(jobs.values().collect::<BTreeSet<_>>().len(), fired.len(), "{fired:?}");
    let accepted = one.wait_for_audit("verdict=accepted", fired.len());
    assert_eq!(accepted.len(), fired.len(), "one job a firing: {accepted:?}");
    let told = receiver.wait_for("/end", fired.len());
    let ids: BTreeSet<String> = told.iter().map(|told| told.header("webhook-id").unwrap().to_owned()).collect();
    assert_eq!(ids, jobs.keys().map(|job| format!("msg_{job}")).collect());
    assert!(told.iter().all(|told| told.json()["data"]["schedule"] == json!(id)));
}

#[test]
fn a_reminder_that_the_broker_lost_is_put_there_again() {
    let fabric = Fabric::start();
    let first = fabric.api();
    fabric.agent("s-1", "eu");
    first.wait_for_nodes(1);
    let id = made(&first.admin(), &json!({"at": soon(6_000)}));
    let client = fabric.connect(&fabric.credential(&Role::Store { caller: CallerName::new_api() }));
    fabric.block_on(async {
        // Another message takes its place, and goes.
        let headers = HeaderMap::from_iter([("Nats-TTL".parse().unwrap(), "1s".parse().unwrap())]);
        client.publish_with_headers(subjects::schedule(&id), headers, "".into()).await.unwrap();
        client.flush().await.unwrap();
    });
    std::thread::sleep(Duration::from_millis(1_500));
    // It looks at once.
    let second = fabric.api();
    second.wait_until("it has seen it", || second.log().contains("the broker has lost the reminder"));
    let fired = wait_for(&second, &id, 1);
    assert_eq!(fired[0]["job"]["results"][0]["status"], "success", "{fired:?}");
}

/// A moment in a time zone that is this much ahead of UTC, as a cron pattern that comes each day.
fn daily(at: Timestamp, ahead: Duration) -> String {
    let of_day_s = at.plus(ahead).unix_s().rem_euclid(86_400);
    format!("{} {} {} * * *", of_day_s % 60, of_day_s / 60 % 60, of_day_s / 3_600)
}

#[test]
fn when_the_clock_is_changed_each_time_comes_once() {
    const HOUR: Duration = Duration::from_hours(1);
    let fabric = Fabric::start();
    let change = Timestamp::from_unix_ms((Timestamp::now().unix_s() + 20) * 1_000).unwrap();
    let text = change.to_string();
    let (year, month, day, clock) = (&text[..4], &change.calendar()[4..7], &text[8..10], &text[11..19]);
    let until = format!("{year} {month} {day} {clock}u");
    let zones = format!("Zone Test/Forward 0:00 - AAA {until}\n 1:00 - BBB\nZone Test/Back 1:00 - AAA {until}\n 0:00 - BBB\n");
    let zoneinfo = needs::time_zones(fabric.data(), &zones);
    let api = fabric.api_with(&ApiOptions { zoneinfo: Some(zoneinfo), ..ApiOptions::default() });
    fabric.agent("s-1", "eu");
    api.wait_for_nodes(1);
    let of = |pattern: String, zone: &str| made(&api.admin(), &json!({"cron": pattern, "time_zone": zone}));
    let after = |seconds: u64| change.plus(Duration::from_secs(seconds));
    // Half an hour after the change by the old clock, which is never by the new one.
    let skipped = of(daily(after(1_800), Duration::ZERO), "Test/Forward");
    // Right after the change by the new clock.
    let there = of(daily(after(3), HOUR), "Test/Forward");
    // By the old clock a little before the change; by the new one again in an hour.
    let before = Timestamp::from_unix_ms(change.unix_ms() - 2_000).unwrap();
    let twice = of(daily(before, HOUR), "Test/Back");
    let minutely = of(format!("{} * * * * *", after(4).unix_s() % 60), "Test/Back");
    assert!(soon(2_500) < change, "this machine is too slow to make schedules in time");
    for (id, expected) in [(&twice, before), (&skipped, change), (&there, after(3)), (&minutely, after(4))] {
        let fired = wait_for(&api, id, 1);
        assert_eq!(time(&fired[0]["due"]), expected, "{fired:?}");
        assert!((0..3_000).contains(&late_ms(&fired[0])), "{fired:?}");
    }
    let next = |id: &str| time(&read(&api.admin(), id)["next_due"]).since(change).as_secs_f64() / 3_600.0;
    assert!((23.0..26.0).contains(&next(&twice)), "not again in an hour, but tomorrow: {}", next(&twice));
    assert!((22.0..25.0).contains(&next(&skipped)) && (22.0..25.0).contains(&next(&there)));
    assert!(next(&minutely) < 0.1, "what comes every minute goes on");
}
