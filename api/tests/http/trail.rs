//! The audit trail, over HTTP.

use std::time::Duration;

use futures_util::StreamExt;
use probeops_api::audit::AuditMode;
use probeops_shared::audit::verify::Verifier;
use serde_json::{Value, json};

use crate::fixture::{Answer, Ask, Fabric};
use crate::node::{Ears, Node, request_id};

const IN_LAB: &str = r#"{"tool":"echo","target":"x","from":"lab"}"#;

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

    let target = format!("key:{id}");
    assert_eq!(trail(&format!("target={target}"), 1).await, changed);
    // Whoever reads the trail is in it, once however often he asks for the same.
    let read = trail("verdict=read&target=audit", 6).await;
    let details: std::collections::BTreeSet<&str> = read.iter().map(|record| record["detail"].as_str().unwrap()).collect();
    assert_eq!(details.len(), read.len(), "{details:?}");
    assert!(details.contains(format!("read: target={target}").as_str()), "{details:?}");

    let page = api.get(&fabric.admin, "/v1/audit?verdict=refused&limit=2").await;
    let next = page.body["next"].as_str().unwrap();
    let rest = api.get(&fabric.admin, &format!("/v1/audit?verdict=refused&limit=2&cursor={next}")).await;
    assert_eq!(rest.body["records"].as_array().unwrap().len(), 1, "{rest:?}");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_exported_is_whole_page_by_page() {
    let fabric = Fabric::start().await;
    let api = fabric.api(|_| {}).await;
    let mut node = Node::start(&fabric, &api, "n-1", (Ears::Group, 8)).await;
    for _ in 0..3 {
        let script = async {
            let job = node.hears().await;
            node.succeeds(&job).await;
        };
        let (answer, ()) = tokio::join!(api.post(&fabric.admin, "/v1/jobs", IN_LAB), script);
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let accepted = |answer: &Answer| answer.body["records"].as_array().is_some_and(|records| records.len() == 3);
    api.until_as(&fabric.admin, "/v1/audit?verdict=accepted", accepted).await;
    let (mut lines, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = api.get(&fabric.admin, &format!("/v1/audit/export?limit=2{cursor}")).await;
        lines.extend(page.body["records"].as_array().unwrap().iter().map(ToString::to_string));
        cursor = format!("&cursor={}", page.body["next"].as_str().unwrap());
        if page.body["end"] == true {
            break;
        }
    }
    let verified = |lines: &[String]| {
        let mut reading = Verifier::default();
        for line in lines {
            reading.line(line);
        }
        reading.end()
    };
    let whole = verified(&lines);
    assert!(whole.records >= 3 && whole.findings.is_empty(), "{whole:#?}");
    assert!(lines.iter().any(|line| line.contains("\"verdict\":\"accepted\"")), "{lines:#?}");
    lines.remove(1);
    assert!(verified(&lines).findings.iter().any(|finding| finding.detail.starts_with("record 2 of ")), "{lines:#?}");
    // Asked again at the end, it goes on with what came since; and from a time on, with what was stored then.
    let since = api.get(&fabric.admin, "/v1/audit/export?since=2100-01-01T00:00:00Z").await;
    assert_eq!((since.body["records"].as_array().map(Vec::len), &since.body["end"]), (Some(0), &true.into()), "{since:?}");
    let since = api.get(&fabric.admin, "/v1/audit/export?since=2000-01-01T00:00:00Z&limit=1").await;
    assert_eq!(since.body["records"][0]["sequence"], 1, "{since:?}");
    drop(node);
    api.stop().await;
    fabric.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_job_runs_of_which_the_trail_has_no_record() {
    let fabric = Fabric::start().await;
    let api = fabric.api(|_| {}).await;
    let mut node = Node::start(&fabric, &api, "n-1", (Ears::Group, 8)).await;
    // It holds no message of that size any more.
    let before = fabric.bound_the_trail(1).await;
    let refused = |answer: &Answer| {
        assert_eq!((answer.status, &answer.body["code"]), (503, &"unavailable".into()), "{answer:?}");
        assert!(answer.body["detail"].as_str().unwrap().starts_with("the audit trail does not take the record of this job"), "{answer:?}");
    };
    let answer = api.post(&fabric.admin, "/v1/jobs", IN_LAB).await;
    refused(&answer);
    assert_eq!(answer.headers["retry-after"], "2");
    let ask = |prefer: &str, body: &str| Ask {
        method: "POST",
        path: "/v1/jobs".to_owned(),
        token: Some(fabric.admin.clone()),
        headers: vec![("content-type", "application/json".to_owned()), ("prefer", prefer.to_owned())],
        body: body.as_bytes().to_vec(),
    };
    refused(&api.ask(ask("respond-async", IN_LAB)).await);
    refused(&api.ask(ask("respond-async", r#"{"tool":"echo","target":"x","from":"lab","when":"online"}"#)).await);
    refused(&api.get(&fabric.admin, "/v1/run/echo?target=x&from=lab").await);
    let batch = api.post(&fabric.admin, "/v1/jobs/batch", &format!(r#"{{"jobs":[{IN_LAB},{IN_LAB}]}}"#)).await;
    let codes: Vec<&Value> = batch.body["results"].as_array().unwrap().iter().map(|result| &result["problem"]["code"]).collect();
    assert_eq!(codes, ["unavailable", "unavailable"], "{batch:?}");
    let ready = api.until("/readyz", |answer| answer.status == 503).await;
    assert!(ready.body["detail"].as_str().unwrap().starts_with("the audit trail takes no records: "), "{ready:?}");
    let metrics = api.get(&fabric.admin, "/metrics").await;
    assert!(metrics.body.as_str().unwrap().contains("\nprobeops_audit_recording 0\n"), "{metrics:?}");

    // Whoever does without records runs jobs all the same; it is the first that the node hears of.
    let loose = fabric.api(|given| given.audit = Some(AuditMode::BestEffort)).await;
    let script = async {
        let job = node.hears().await;
        node.succeeds(&job).await;
        job
    };
    let (answer, heard) = tokio::join!(loose.post(&fabric.admin, "/v1/jobs", IN_LAB), script);
    assert_eq!((answer.status, answer.body["id"].as_str()), (200, Some(request_id(&heard).as_str())), "{answer:?}");

    // With room again it goes on by itself, and what was refused is told.
    fabric.bound_the_trail(before).await;
    api.until("/readyz", |answer| answer.status == 200).await;
    let script = async {
        let job = node.hears().await;
        node.succeeds(&job).await;
    };
    let (answer, ()) = tokio::join!(api.post(&fabric.admin, "/v1/jobs", IN_LAB), script);
    assert_eq!(answer.status, 200, "{answer:?}");
    let told = |answer: &Answer| answer.body["records"].as_array().is_some_and(|records| records.len() >= 5);
    api.until_as(&fabric.admin, "/v1/audit?verdict=refused", told).await;
    // Of those that did not run the trail does not say that they were accepted.
    let path = "/v1/audit?verdict=accepted";
    let ran = api.until_as(&fabric.admin, path, |answer| answer.body["records"].as_array().is_some_and(|records| records.len() >= 2)).await;
    assert_eq!(ran.body["records"].as_array().unwrap().len(), 2, "{ran:?}");
    drop(node);
    loose.stop().await;
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
