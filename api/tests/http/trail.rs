//! The audit trail, over HTTP.

use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::fixture::{Answer, Fabric};
use crate::node::{Ears, Node};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_and_what_is_changed_is_in_the_trail() {
    let fabric = Fabric::start().await;
    let api = fabric.api(|_| {}).await;
    let body = json!({"name": "reader", "scopes": ["jobs:write"]}).to_string();
    let made = api.post(&fabric.admin, "/v1/keys", &body).await;
    let (key, id) = (made.body["key"].as_str().unwrap(), made.body["id"].as_str().unwrap());
    let refused = api.post(key, "/v1/jobs", r#"{"tool":"echo","target":"x","from":"us-east"}"#).await;
    assert_eq!(refused.status, 404);
    assert_eq!(api.get(key, "/v1/audit").await.status, 403);
    assert_eq!(api.get("", "/v1/nodes").await.status, 401);

    let trail = |query: &str, count: usize| {
        let path = format!("/v1/audit?{query}");
        let (api, admin) = (&api, fabric.admin.clone());
        async move {
            let all =
                api.until_as(&admin, &path, |answer| answer.body["records"].as_array().is_some_and(|records| records.len() == count)).await;
            all.body["records"].as_array().unwrap().clone()
        }
    };
    let changed = trail("verdict=changed", 1).await;
    assert_eq!(
        (changed[0]["target"].as_str().unwrap(), &changed[0]["detail"]),
        (format!("key:{id}").as_str(), &"key made: reader, jobs:write".into())
    );
    assert_eq!(changed[0]["request_id"].as_str(), made.headers["x-request-id"].to_str().ok());
    let mine = trail(&format!("principal=key:{id}"), 2).await;
    assert!(mine[0]["detail"].as_str().unwrap().starts_with("forbidden: this needs the scope `audit:read`"), "{mine:?}");
    assert_eq!((&mine[1]["tool"], &mine[1]["target"], &mine[1]["verdict"]), (&"echo".into(), &"x".into(), &"refused".into()));
    assert_eq!(mine[1]["request_id"], refused.body["request_id"]);
    let nobody = trail("principal=-", 1).await;
    assert!(nobody[0]["detail"].as_str().unwrap().ends_with("(GET /v1/nodes)"), "{nobody:?}");

    let page = api.get(&fabric.admin, "/v1/audit?limit=3").await;
    let next = page.body["next"].as_str().unwrap();
    let rest = api.get(&fabric.admin, &format!("/v1/audit?limit=3&cursor={next}")).await;
    assert_eq!((rest.body["records"].as_array().unwrap().len(), rest.body.get("next")), (1, None), "{rest:?}");
    api.stop().await;
    fabric.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_tells_of_its_own_runs_only_and_what_it_repeats_is_kept_once() {
    let fabric = Fabric::start().await;
    let api = fabric.api(|_| {}).await;
    let node = Node::start(&fabric, &api, "n-1", (Ears::None, 8)).await;
    let record = |verdict: &str, node: &str, region: &str| {
        json!([{"time": "2026-01-31T12:00:00Z", "verdict": verdict, "principal": "key:x", "node": node, "region": region, "tool": "echo",
                "target": verdict, "request_id": format!("{verdict}-{node}-{region}")}])
    };
    for (verdict, of, region) in [
        ("changed", "n-1", "lab"),
        ("accepted", "n-1", "lab"),
        ("refused", "n-1", "lab"),
        ("finished", "n-2", "lab"),
        ("finished", "n-1", "elsewhere"),
        ("finished", "n-1", "lab"),
        ("finished", "n-1", "lab"),
        // The last, so that all before it have been read when it is there.
        ("denied", "n-1", "lab"),
    ] {
        node.records(&record(verdict, of, region)).await;
    }
    let kept = |answer: &Answer| answer.body["records"].as_array().is_some_and(|records| !records.is_empty());
    api.until_as(&fabric.admin, "/v1/audit?request_id=denied-n-1-lab", kept).await;
    let page = api.get(&fabric.admin, "/v1/audit?principal=key:x&limit=100").await;
    let ids: Vec<&str> = page.body["records"].as_array().unwrap().iter().map(|record| record["request_id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["denied-n-1-lab", "finished-n-1-lab"]);
    drop(node);
    api.stop().await;
    fabric.stop().await;
}

/// More than are kept of one node in the time that it takes to say them.
const FLOOD: usize = 5_000;
/// The most that one page of the trail holds.
const PAGE_MAX: usize = 1_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_floods_the_collector_keeps_no_other_node_waiting() {
    let fabric = Fabric::start().await;
    let api = fabric.api(|_| {}).await;
    let flooding = Node::start(&fabric, &api, "n-1", (Ears::None, 8)).await;
    for number in 0..FLOOD {
        let record = json!([{"time": "2026-01-31T12:00:00Z", "verdict": "finished", "principal": "key:flood", "node": "n-1", "region": "lab",
                             "tool": "echo", "target": "x", "request_id": format!("flood-{number}")}]);
        flooding.records(&record).await;
    }
    // It is in the roster once its first word was kept, which came after all of the flood.
    let other = Node::start(&fabric, &api, "n-2", (Ears::None, 8)).await;
    let page = api.get(&fabric.admin, &format!("/v1/audit?principal=key:flood&limit={PAGE_MAX}")).await;
    let kept = page.body["records"].as_array().unwrap().len();
    assert!(kept > 0 && kept < PAGE_MAX, "{kept} of {FLOOD} were kept");
    drop((flooding, other));
    api.stop().await;
    fabric.stop().await;
}

/// More than are recorded one by one.
const STRANGERS: u64 = 400;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_recorded_and_cannot_crowd_out_the_trail() {
    let fabric = Fabric::start().await;
    let api = fabric.api(|_| {}).await;
    let asks = (0..STRANGERS).map(|_| api.get("", "/v1/nodes"));
    let answers = futures_util::stream::iter(asks).buffer_unordered(16).collect::<Vec<_>>().await;
    assert!(answers.iter().all(|answer| answer.status == 401));
    let told = |records: &[Value]| -> u64 {
        let more =
            records.iter().filter_map(|record| record["detail"].as_str()?.rsplit_once("; ")?.1.split_once(' ')?.0.parse::<u64>().ok());
        more.sum::<u64>() + records.len() as u64
    };
    // What was only counted is told with the next that is recorded: so many a second are, so wait for the next second.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(api.get("", "/v1/nodes").await.status, 401);
    let asked = STRANGERS + 1;
    let all = |answer: &Answer| told(answer.body["records"].as_array().unwrap()) == asked;
    let page = api.until_as(&fabric.admin, "/v1/audit?principal=-&limit=1000", all).await;
    let records = page.body["records"].as_array().unwrap();
    assert!(records.len() < usize::try_from(STRANGERS).unwrap(), "{} records of {asked} strangers", records.len());
    api.stop().await;
    fabric.stop().await;
}
