//! The API's part of the trail under pressure: what floods it, what it cannot take, and who may read what of it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use probeops_tests::fabric::{Api, Fabric};
use probeops_tests::hostile::Bystander;
use probeops_tests::http::Caller;
use probeops_tests::up::Home;
use serde_json::{Value, json};

/// How many flood, and with how many calls at once each.
const FLOODING: usize = 4;
const CALLS: usize = 2;
/// How many jobs of somebody else have to succeed meanwhile.
const JOBS: usize = 60;
/// How many jobs are asked for while the broker is held.
const HELD: usize = 24;

fn id_of(key: &str) -> &str {
    key.split('_').nth(1).expect("an id")
}

fn detail(record: &Value) -> &str {
    record["detail"].as_str().expect("a detail")
}

/// How many refusals these records tell of, those that were only counted included.
pub(crate) fn refusals_told(records: &[Value]) -> u64 {
    let counted = |text: &str| {
        let (before, after) = text.split_once(" more ")?;
        let count = before.rsplit(' ').next()?.parse::<u64>().ok()?;
        after.contains("not recorded one by one").then_some(count)
    };
    records.iter().map(|record| counted(detail(record)).unwrap_or(0) + u64::from(record["request_id"] != "")).sum()
}

#[test]
fn a_flood_of_refusals_delays_no_job_of_others_and_is_told_to_the_last() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("t-1", "eu");
    api.wait_for_nodes(1);
    let keys: Vec<String> = (0..FLOODING).map(|_| api.key(&json!({"name": "flood", "scopes": ["jobs:write"]}))).collect();
    let key = api.key(&json!({"name": "bystander", "scopes": ["jobs:write"]}));
    let (stop, refused) = (AtomicBool::new(false), [const { AtomicU64::new(0) }; FLOODING]);
    let succeeded = thread::scope(|scope| {
        for (key, refused) in keys.iter().zip(&refused).flat_map(|flood| [flood; CALLS]) {
            let (caller, stop) = (api.caller(key), &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Acquire) {
                    caller.job("echo", "x", "nowhere", &json!({})).expect(404);
                    refused.fetch_add(1, Ordering::AcqRel);
                }
            });
        }
        let bystander = Bystander::start(&api, &key, "eu");
        api.wait_until("others' jobs succeed", || bystander.succeeded() >= JOBS);
        let succeeded = bystander.finish().succeeded;
        stop.store(true, Ordering::Release);
        succeeded
    });
    let accepted = api.wait_for_audit(&format!("verdict=accepted&principal=key:{}", id_of(&key)), succeeded);
    assert_eq!(accepted.len(), succeeded);
    for (key, refused) in keys.iter().zip(refused) {
        let (filter, refused) = (format!("verdict=refused&principal=key:{}", id_of(key)), refused.into_inner());
        api.wait_until(&format!("{refused} refusals are told"), || refusals_told(&api.audit(&filter)) == refused);
        let records = api.audit(&filter).len() as u64;
        assert!(records < refused && records < 200, "{records} records of {refused} refusals");
    }
}

#[test]
fn of_what_did_not_begin_the_trail_does_not_say_that_it_ran() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("t-1", "eu");
    api.wait_for_nodes(1);
    let broker = Pid::from_raw(i32::try_from(fabric.broker_process_id()).unwrap());
    // Held, it has been sent records that it acknowledges too late.
    kill(broker, Signal::SIGSTOP).unwrap();
    let answers: Vec<u16> = thread::scope(|scope| {
        let ask = |number: usize| {
            let caller = api.admin();
            move || caller.job("echo", &format!("held-{number}"), "eu", &json!({})).status
        };
        let asked: Vec<_> = (0..HELD).map(|number| scope.spawn(ask(number))).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    kill(broker, Signal::SIGCONT).unwrap();
    assert!(answers.iter().all(|status| *status == 503), "{answers:?}");
    api.wait_until("jobs run again", || api.admin().job("echo", "after", "eu", &json!({})).status == 200);
    api.wait_until("each of them is told to have run, or not to have begun", || {
        let ended = [api.audit("verdict=finished"), api.audit("verdict=refused")].concat();
        let accepted = api.audit("verdict=accepted");
        let told = |record: &Value| ended.iter().any(|end| end["request_id"] == record["request_id"]);
        // One at least was on its way.
        let held = accepted.iter().filter(|record| record["target"].as_str().is_some_and(|target| target.starts_with("held")));
        held.count() > 0 && accepted.iter().all(told)
    });
    let not_begun: Vec<Value> =
        api.audit("verdict=refused").into_iter().filter(|record| detail(record).starts_with("it did not begin")).collect();
    assert!(!not_begun.is_empty() && not_begun.len() <= HELD, "{not_begun:?}");
    let begun = not_begun.iter().filter(|record| !record["target"].as_str().unwrap().starts_with("held"));
    assert_eq!(begun.count(), 0, "{not_begun:?}");
}

#[test]
fn who_is_limited_reads_of_nothing_beyond() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("t-1", "eu");
    fabric.agent("u-1", "us");
    api.wait_for_nodes(2);
    let reader = api.key(&json!({"name": "reader", "scopes": ["audit:read", "jobs:write"], "limits": {"regions": ["eu"]}}));
    let own = api.caller(&reader);
    for (caller, target, from) in [(&api.admin(), "here", "eu"), (&api.admin(), "there", "us"), (&own, "own", "eu")] {
        caller.job("echo", target, from, &json!({})).expect(200);
    }
    api.wait_for_audit("verdict=finished", 3);
    let read = |caller: &Caller| -> Vec<(String, String)> {
        let records = caller.get("/v1/audit?limit=1000").expect(200)["records"].as_array().unwrap().clone();
        records
            .iter()
            .map(|record| (record["verdict"].as_str().unwrap().to_owned(), record["target"].as_str().unwrap().to_owned()))
            .collect()
    };
    let seen = read(&own);
    let is = |verdict: &str, target: &str| seen.contains(&(verdict.to_owned(), target.to_owned()));
    assert!(is("finished", "here") && is("finished", "own") && is("accepted", "own"), "{seen:?}");
    assert!(!is("accepted", "here"), "it may have gone to other regions, too: {seen:?}");
    assert!(seen.iter().all(|(_, target)| target != "there" && !target.starts_with("key:")), "{seen:?}");
    assert_eq!(own.get("/v1/audit?target=there").expect(200)["records"], json!([]));
    assert_eq!(own.get("/v1/audit?node=u-1").expect(200)["records"], json!([]));
    verified_or_said_to_be_narrowed(&api, &reader);
}

/// Exported by one who is limited it says so, and is not taken for the whole.
fn verified_or_said_to_be_narrowed(api: &Api, reader: &str) {
    let home = Home::new();
    let probeops = |arguments: &[&str], token: &str| {
        let mut command = home.probeops(arguments);
        command.env("PROBEOPS_URL", api.url()).env("PROBEOPS_TOKEN", token);
        home.finish(command)
    };
    let exported = probeops(&["audit", "export"], reader);
    assert!(exported.code == Some(0) && exported.err.contains("this export cannot be verified as a whole"), "{exported:?}");
    assert!(
        exported.out.contains("\"here\"") && !exported.out.contains("\"there\"") && !exported.out.contains("\"node\":\"u-1\""),
        "{exported:?}"
    );
    let file = home.file("narrowed.jsonl", &exported.out);
    let verified = probeops(&["audit", "verify", file.to_str().unwrap()], reader);
    assert!(verified.code == Some(1) && verified.err.contains("is narrowed and cannot be verified"), "{verified:?}");
    let file = home.file("whole.jsonl", &probeops(&["audit", "export"], api.admin_key()).good());
    assert!(probeops(&["audit", "verify", file.to_str().unwrap()], reader).good().contains("whole: nothing was changed"));
}
