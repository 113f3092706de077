//! Everything is killed, one after the other, while callbacks wait to be delivered.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::fabric::{Api, ApiOptions, Fabric};
use crate::process::LOOK_EVERY;
use crate::receiver::{Receiver, Reply};

/// How long a callback that was in the hands of a killed replica may take: until the broker gives it to another, and some attempts more.
const AFTER_KILLS: Duration = Duration::from_mins(3);
/// How long the receiver takes for each, so that there are some on their way at any time.
const ANSWERED_AFTER: Duration = Duration::from_millis(100);
/// How long each kill lets the others work.
const BETWEEN_KILLS: Duration = Duration::from_secs(1);

/// What came of so many jobs with a callback each.
#[derive(Clone, Copy, Debug)]
pub struct Survived {
    /// How many callbacks were delivered at least once, each under the id of its job.
    pub delivered: usize,
    /// How many ids there were at all attempts.
    pub ids: usize,
    /// How many are told to be delivered.
    pub told: usize,
    /// How many requests the receiver got.
    pub requests: usize,
    /// How long it took from the first kill.
    pub took: Duration,
}

/// Runs so many jobs on two replicas and kills with SIGKILL a replica, the agent, the broker and the other replicas, while a receiver refuses each
/// callback at first.
pub fn callbacks(count: usize) -> Survived {
    let mut fabric = Fabric::start();
    let options = ApiOptions { callback_allow: Some("127.0.0.0/8".to_owned()), ..ApiOptions::default() };
    let (first, second) = (fabric.api_with(&options), fabric.api_with(&options));
    let agent = fabric.agent("c-1", "eu");
    first.wait_for_nodes(1);
    second.wait_for_nodes(1);
    let opened = Arc::new(AtomicBool::new(false));
    let is_open = Arc::clone(&opened);
    let receiver = Receiver::start(move |before, _| {
        let status = if is_open.load(Ordering::Relaxed) && before > 0 { 200 } else { 503 };
        Reply::status(status).after(ANSWERED_AFTER)
    });
    let expected: BTreeSet<String> = (0..count)
        .map(|index| {
            let api = if index % 2 == 0 { &first } else { &second };
            let callback = json!({"url": receiver.url(&format!("/{index}?q"))});
            let body = json!({"tool": "echo", "target": "hello", "from": "eu", "callback": callback}).to_string();
            let answer = api.admin().post_raw("/v1/jobs", "application/json", body.as_bytes(), &[("prefer", "respond-async")]);
            // One that was over at once is told at once.
            assert!([200, 202].contains(&answer.status), "{}", answer.text);
            format!("msg_{}", answer.body["id"].as_str().expect("an id"))
        })
        .collect();
    first.wait_until("every callback is in the queue", || deliveries(&first, "") == count);
    let started = Instant::now();
    first.kill();
    agent.kill();
    opened.store(true, Ordering::Relaxed);
    let third = fabric.api_with(&options);
    std::thread::sleep(BETWEEN_KILLS);
    fabric.restart_broker();
    second.kill();
    std::thread::sleep(BETWEEN_KILLS);
    third.kill();
    let last = fabric.api_with(&options);
    let taken = || -> BTreeSet<String> {
        let accepted = receiver.received().into_iter().filter(|received| received.status == 200);
        accepted.filter_map(|received| received.header("webhook-id").map(str::to_owned)).collect()
    };
    while taken().len() < count && started.elapsed() < AFTER_KILLS {
        std::thread::sleep(LOOK_EVERY);
    }
    let took = started.elapsed();
    last.wait_until("every delivery is told of", || deliveries(&last, "status=delivered&") == taken().len());
    let all = receiver.received();
    let ids: BTreeSet<(&str, Option<&str>)> =
        all.iter().map(|received| (received.target.as_str(), received.header("webhook-id"))).collect();
    let delivered = taken().intersection(&expected).count();
    Survived { delivered, ids: ids.len(), told: deliveries(&last, "status=delivered&"), requests: all.len(), took }
}

/// How many deliveries there are for a filter.
fn deliveries(api: &Api, filter: &str) -> usize {
    let (mut count, mut cursor) = (0, String::new());
    loop {
        let page = api.admin().get(&format!("/v1/deliveries?{filter}limit=1000{cursor}")).expect(200);
        count += page["deliveries"].as_array().map_or(0, Vec::len);
        let Some(next) = page["next"].as_str() else { return count };
        cursor = format!("&cursor={next}");
    }
}
