//! The audit trail, over HTTP.

use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use probeops_api::audit::AuditMode;
use probeops_shared::audit::chain::{Batch, Chain, Link};
use probeops_shared::audit::closing::Closer;
use probeops_shared::audit::verify::{Verified, Verifier};
use probeops_shared::audit::{Record, Verdict};
use probeops_shared::timestamp::Timestamp;
use serde_json::value::to_raw_value;
use serde_json::{Value, json};

use crate::fixture::{Answer, Ask, Fabric};
use crate::node::{Ears, Node, request_id};

const IN_LAB: &str = r#"{"tool":"echo","target":"x","from":"lab"}"#;

/// With the closing line of an export of these.
fn closed(mut lines: Vec<String>) -> Vec<String> {
    let mut closer = Closer::default();
    for line in &lines {
        closer.record(&serde_json::from_str(line).unwrap()).unwrap();
    }
    lines.push(closer.close(None, None).unwrap().0);
    lines
}

fn verified(lines: &[String]) -> Verified {
    let mut reading = Verifier::default();
    for line in lines {
        reading.line(line);
    }
    reading.end()
}

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
    let read = trail("verdict=read&target=audit", 5).await;
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
async fn a_job_that_is_refused_by_a_url_is_in_the_trail_as_one_in_a_body_is() {
    let fabric = Fabric::start().await;
    let api = fabric.api(|_| {}).await;
    let made = api.post(&fabric.admin, "/v1/keys", r#"{"name":"runner","scopes":["jobs:write"]}"#).await;
    let (key, id) = (made.body["key"].as_str().unwrap(), made.body["id"].as_str().unwrap());
    let mut asked = Vec::new();
    let bodies = [
        r#"{"tool":"ping","target":"a.example","from":"lab","parameters":{"cuont":1}}"#,
        r#"{"tool":"ping","target":"a.example","from":"lab","parameters":{"count":0}}"#,
        r#"{"tool":"ping","target":"a.example"}"#,
    ];
    for body in bodies {
        asked.push(api.post(key, "/v1/jobs", body).await);
    }
    // An unknown parameter, one that is given twice, values that cannot be, a place that is missing, and an explanation of what cannot be.
    for query in ["from=lab&cuont=1", "from=lab&count=1&count=2", "from=lab&count=0", "from=lab&count=x", "count=1", "explain=true&count=1"]
    {
        asked.push(api.get(key, &format!("/v1/run/ping?target=a.example&{query}")).await);
    }
    let statuses: Vec<u16> = asked.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, vec![400; asked.len()], "{asked:?}");
    // What is only read stays out of it.
    assert_eq!(api.get(key, "/v1/tools?cuont=1").await.status, 400);

    let path = format!("/v1/audit?principal=key:{id}&limit=100");
    let told = |answer: &Answer| answer.body["records"].as_array().is_some_and(|records| records.len() >= asked.len());
    let page = api.until_as(&fabric.admin, &path, told).await;
    let records: Vec<&Value> = page.body["records"].as_array().unwrap().iter().rev().collect();
    assert_eq!(records.len(), asked.len(), "{records:#?}");
    for (record, answer) in records.into_iter().zip(&asked) {
        let said = (&record["verdict"], &record["tool"], &record["target"], &record["request_id"]);
        assert_eq!(said, (&json!("refused"), &json!("ping"), &json!("a.example"), &answer.body["request_id"]), "{record}");
        let (detail, why) = (record["detail"].as_str().unwrap(), answer.body["detail"].as_str().unwrap());
        assert!(detail.starts_with("invalid: ") && detail.contains(&why[..why.len().min(60)]), "{detail}");
    }
    api.stop().await;
    fabric.stop().await;
}

fn of_node(name: &str) -> Record {
    let (node, region) = (Some("n-1".parse().unwrap()), Some("lab".parse().unwrap()));
    Record { node, region, request_id: name.to_owned(), ..Record::new(Verdict::Finished, "key:x") }
}

fn batch(chain: &mut Chain, records: &[Record]) -> Vec<u8> {
    chain.batch(records, 64 * 1024).unwrap().0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_tells_of_its_own_runs_only_and_what_it_repeats_is_kept_once() {
    let fabric = Fabric::start().await;
    let api = fabric.api(|_| {}).await;
    let node = Node::start(&fabric, &api, "n-1", (Ears::None, 8)).await;
    let mut chain = Chain::of_node("n-1");
    let elsewhere = Record { region: Some("elsewhere".parse().unwrap()), ..of_node("lie") };
    let other = Record { node: Some("n-2".parse().unwrap()), ..of_node("lie") };
    let spoken = |verdict| Record { verdict, ..of_node("lie") };
    for lie in [spoken(Verdict::Changed), spoken(Verdict::Accepted), spoken(Verdict::Refused), spoken(Verdict::Violation), other, elsewhere]
    {
        let why = node.tells(&batch(&mut chain.clone(), &[lie])).await.unwrap();
        assert!(why.contains("not a node's to say") || why.contains("is of another node"), "{why}");
    }
    assert!(node.tells(&batch(&mut Chain::of_node("n-2"), &[of_node("lie")])).await.unwrap().contains("another writer"));
    let begun = chain.clone();
    let first = batch(&mut chain, &[of_node("a"), of_node("b")]);
    assert_eq!([node.tells(&first).await, node.tells(&first).await], [None, None]);
    // What was sent again with more, since the answer was lost: as a node that was killed does.
    let records: Vec<Link> = serde_json::from_slice::<Batch>(&first).unwrap().records;
    let more = chain.link(to_raw_value(&of_node("c")).unwrap());
    let (longer, _) = begun.message(records.iter().chain([&more]), 64 * 1024).unwrap();
    assert_eq!(node.tells(&longer).await, None);
    // Changed, left out, in another order; each would make the trail look as if somebody had been at it.
    let next = batch(&mut chain.clone(), &[of_node("d"), of_node("e")]);
    let text = String::from_utf8(next.clone()).unwrap();
    assert!(node.tells(text.replace("\"d\"", "\"x\"").as_bytes()).await.unwrap().contains("a hash that is not its own"));
    let mut ahead = chain.clone();
    drop(batch(&mut ahead, &[of_node("d")]));
    assert!(node.tells(&batch(&mut ahead, &[of_node("e")])).await.unwrap().contains("those between are missing"));
    let mut fork = begun.clone();
    drop(batch(&mut fork, &[of_node("a"), of_node("b"), of_node("x")]));
    assert!(node.tells(&batch(&mut fork, &[of_node("y")])).await.unwrap().contains("record 3 is another"));
    assert_eq!(node.tells(&next).await, None);
    // A node that was installed anew begins anew, and nobody goes back to an older chain.
    let mut new = Chain::of_node("n-1");
    assert_eq!(node.tells(&batch(&mut new, &[of_node("f")])).await, None);
    assert!(node.tells(&first).await.unwrap().contains("began no later"));

    let kept = |answer: &Answer| answer.body["records"].as_array().is_some_and(|records| !records.is_empty());
    let page = api.until_as(&fabric.admin, "/v1/audit?principal=key:x&limit=100", kept).await;
    let ids: Vec<&str> = page.body["records"].as_array().unwrap().iter().map(|record| record["request_id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["f", "e", "d", "c", "b", "a"]);
    let page = api.get(&fabric.admin, "/v1/audit/export?limit=1000").await;
    let verified = verified(&closed(page.body["records"].as_array().unwrap().iter().map(ToString::to_string).collect()));
    assert!(verified.findings.is_empty() && verified.repeated == 0, "{verified:#?}");
    // Each lie is a violation of this node: counted, and in the trail as far as there is room for one's lies.
    let told = |answer: &Answer| answer.body["records"].as_array().is_some_and(|records| records.len() >= 6);
    let page = api.until_as(&fabric.admin, "/v1/audit?verdict=violation&node=n-1", told).await;
    let violation = &page.body["records"][0];
    assert_eq!((&violation["principal"], &violation["target"]), (&json!("node:n-1"), &json!("ev.v1.lab.n-1.audit")));
    assert!(violation["detail"].as_str().unwrap().starts_with("what it says is not believed: "), "{violation}");
    let metrics = api.get(&fabric.admin, "/metrics").await;
    assert!(metrics.body.as_str().unwrap().contains("\nprobeops_node_violations_total 11\n"), "{metrics:?}");
    drop(node);
    api.stop().await;
    fabric.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_node_has_another_answered_in_its_place() {
    let fabric = Fabric::start().await;
    let api = fabric.api(|_| {}).await;
    let lying = Node::start(&fabric, &api, "n-1", (Ears::None, 8)).await;
    let mut other = Node::start(&fabric, &api, "n-2", (Ears::Name, 8)).await;
    let mut inbox = other.listens("x").await;
    let elsewhere = [
        "_INBOX_n.n-2.x",
        "_INBOX_n.n-2",
        "_INBOX_n.n-1",
        "_INBOX_n.n-11.x",
        "node.v1.n-2.ctl.drain.x",
        "_INBOX.svc.t.n-1",
        "key.v1.revoke.x",
    ];
    for reply in elsewhere {
        lying.wants_an_answer_at(reply).await;
    }
    // Each is a violation of the one that wanted it: counted, and in the trail by the subject that it named.
    let told = |answer: &Answer| answer.body["records"].as_array().is_some_and(|records| records.len() >= 6);
    let page = api.until_as(&fabric.admin, "/v1/audit?verdict=violation&node=n-1", told).await;
    for (record, reply) in page.body["records"].as_array().unwrap().iter().rev().zip(elsewhere) {
        assert_eq!((&record["principal"], &record["target"]), (&json!("node:n-1"), &json!("ev.v1.lab.n-1.time")));
        let detail = format!("what it says is not believed: it asks to be answered in somebody else's inbox, {reply}");
        assert_eq!(record["detail"], detail.as_str());
    }
    let metrics = api.get(&fabric.admin, "/metrics").await;
    assert!(metrics.body.as_str().unwrap().contains(&format!("\nprobeops_node_violations_total {}\n", elsewhere.len())), "{metrics:?}");
    // All of it was read by now; its own inbox is answered, and the other has heard nothing.
    let mut own = lying.listens("x").await;
    lying.wants_an_answer_at("_INBOX_n.n-1.x").await;
    assert!(tokio::time::timeout(crate::fixture::PATIENCE, own.next()).await.unwrap().is_some());
    assert!(other.has_heard().await.is_none());
    assert!(inbox.next().now_or_never().is_none());
    drop((lying, other));
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
    let mut chain = Chain::of_node("n-1");
    for _ in 0..FLOOD {
        flooding.shouts(batch(&mut chain, &[Record { principal: "key:flood".to_owned(), ..of_node("flood") }])).await;
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
    let mut lines = closed(lines);
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

/// How long one of the two jobs that wait may do so, and how late a firing may be made a job; both are over while the trail is full.
const PATIENT_MS: u64 = 3_000;
const OVERDUE_AFTER_MS: u64 = 1_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_accepted_before_the_trail_was_full_does_not_run_either() {
    let fabric = Fabric::start().await;
    let api = fabric.api(|_| {}).await;
    fabric.grant("n-1", "lab").await;
    api.until_as(&fabric.admin, "/v1/nodes/n-1", |answer| answer.status == 200).await;
    let mut waiting = Vec::new();
    for expires_in_ms in [PATIENT_MS, 3_600_000] {
        let body = json!({"tool": "echo", "target": "x", "from": "lab", "when": "online", "expires_in_ms": expires_in_ms}).to_string();
        let queued = api.post(&fabric.admin, "/v1/jobs", &body).await;
        assert_eq!((queued.status, &queued.body["status"]), (202, &"queued".into()), "{queued:?}");
        waiting.push(queued.body["id"].as_str().unwrap().to_owned());
    }
    let at = Timestamp::now().plus(Duration::from_secs(1));
    let body = json!({"tool": "echo", "target": "due", "from": "lab", "at": at, "overdue_after_ms": OVERDUE_AFTER_MS}).to_string();
    let schedule = api.post(&fabric.admin, "/v1/schedules", &body).await;
    assert_eq!(schedule.status, 201, "{schedule:?}");
    let before = fabric.bound_the_trail(1).await;
    let mut node = Node::start(&fabric, &api, "n-1", (Ears::Group, 8)).await;

    // The node is there, and hears of none of them until they are over.
    let over = |answer: &Answer| answer.body["status"] == "expired";
    let expired = api.until_as(&fabric.admin, &format!("/v1/jobs/{}", waiting[0]), over).await;
    assert_eq!(expired.body["results"], json!([]), "{expired:?}");
    let results = format!("/v1/schedules/{}/results", schedule.body["id"].as_str().unwrap());
    let fired = |answer: &Answer| answer.body["results"].as_array().is_some_and(|results| !results.is_empty());
    let fired = api.until_as(&fabric.admin, &results, fired).await;
    let refused = &fired.body["results"][0]["refused"];
    assert_eq!(refused["code"], "unavailable", "{fired:?}");
    assert!(refused["detail"].as_str().unwrap().starts_with("the audit trail does not take the record of this job"), "{refused}");
    assert_eq!(node.has_heard().await.map(|job| request_id(&job)), None);

    // With room again the one that still waits begins, once the trail has that it does.
    fabric.bound_the_trail(before).await;
    let job = node.hears().await;
    let begun = api.get(&fabric.admin, "/v1/audit?verdict=started").await;
    let records: Vec<&Value> = begun.body["records"].as_array().unwrap().iter().map(|record| &record["request_id"]).collect();
    assert_eq!(records, [waiting[1].as_str()], "{begun:?}");
    node.succeeds(&job).await;
    let over = |answer: &Answer| answer.body["status"] == "finished";
    let finished = api.until_as(&fabric.admin, &format!("/v1/jobs/{}", waiting[1]), over).await;
    assert_eq!(finished.body["results"][0]["status"], "success", "{finished:?}");
    drop(node);
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
        let more = |record: &Value| record["detail"].as_str()?.split_once(" more ")?.0.rsplit(' ').next()?.parse::<u64>().ok();
        // One that only tells how many is of no request.
        records.iter().map(|record| more(record).unwrap_or(0) + u64::from(record["request_id"] != "")).sum()
    };
    // What was only counted is told before long.
    let all = |answer: &Answer| told(answer.body["records"].as_array().unwrap()) == STRANGERS;
    let page = api.until_as(&fabric.admin, "/v1/audit?principal=-&limit=1000", all).await;
    let records = page.body["records"].as_array().unwrap();
    assert!(records.len() < usize::try_from(STRANGERS).unwrap(), "{} records of {STRANGERS} strangers", records.len());
    api.stop().await;
    fabric.stop().await;
}
