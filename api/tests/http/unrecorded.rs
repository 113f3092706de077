//! What the trail did not take has cost nothing.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use serde_json::json;

use crate::fixture::{Answer, Api, Ask, Fabric};
use crate::node::{Ears, Node};

const ASYNC: &str = "respond-async";

/// Asks for a job with a key, which waits for a node or not.
async fn ask(api: &Api, token: &str, (key, prefer, body): (&str, &str, &str)) -> Answer {
    let mut headers = vec![("content-type", "application/json".to_owned()), ("prefer", prefer.to_owned())];
    if !key.is_empty() {
        headers.push(("idempotency-key", key.to_owned()));
    }
    let (token, body) = (Some(token.to_owned()), body.as_bytes().to_vec());
    api.ask(Ask { method: "POST", path: "/v1/jobs".to_owned(), token, headers, body }).await
}

/// A key that may run one job in an hour.
async fn of_one_job(fabric: &Fabric, api: &Api) -> String {
    let body = json!({"name": "few", "scopes": ["jobs:write"], "limits": {"rate": "1/h"}}).to_string();
    api.post(&fabric.admin, "/v1/keys", &body).await.body["key"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_could_not_be_recorded_keeps_its_rate_and_its_key() {
    let fabric = Fabric::start().await;
    let api = fabric.api(|_| {}).await;
    let mut node = Node::start(&fabric, &api, "n-1", (Ears::Group, 8)).await;
    let waits = r#"{"tool":"echo","target":"x","from":"lab"}"#;
    let queued = r#"{"tool":"echo","target":"x","from":"lab","when":"online"}"#;
    // A caller each, for one job pays for all he may.
    let ways = [("", "wait=10", waits), ("", ASYNC, waits), ("k-1", "wait=10", waits), ("k-2", ASYNC, waits), ("k-3", ASYNC, queued)];
    let mut callers = Vec::new();
    for _ in ways {
        callers.push(of_one_job(&fabric, &api).await);
    }
    let before = fabric.bound_the_trail(1).await;
    for _ in 0..2 {
        for (caller, way) in callers.iter().zip(ways) {
            let answer = ask(&api, caller, way).await;
            assert_eq!((answer.status, &answer.body["code"]), (503, &json!("unavailable")), "{way:?}: {answer:?}");
        }
    }
    // It is looked at now and then.
    api.until("/readyz", |answer| answer.status == 503).await;
    fabric.bound_the_trail(before).await;
    api.until("/readyz", |answer| answer.status == 200).await;
    for (caller, way) in callers.iter().zip(ways) {
        let script = async {
            let job = node.hears().await;
            node.succeeds(&job).await;
        };
        let asked = async {
            let answer = ask(&api, caller, way).await;
            assert!([200, 202].contains(&answer.status), "{way:?}: {answer:?}");
            answer
        };
        let (answer, ()) = tokio::join!(asked, script);
        assert_eq!(answer.headers.get("idempotent-replayed"), None, "{way:?}: it is a new job");
        let id = answer.body["id"].as_str().unwrap();
        api.until_as(&fabric.admin, &format!("/v1/jobs/{id}"), |answer| answer.body["status"] == "finished").await;
        // It has paid now, and its key is its own.
        let again = ask(&api, caller, way).await;
        if way.0.is_empty() {
            assert_eq!((again.status, &again.body["code"]), (429, &json!("rate_limited")), "{again:?}");
        } else {
            assert_eq!(
                (again.body["id"].as_str(), &again.headers["idempotent-replayed"]),
                (Some(id), &"true".parse().unwrap()),
                "{again:?}"
            );
        }
    }
    drop(node);
    api.stop().await;
    fabric.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lets_somebody_do_more_is_recorded_first_and_what_takes_it_away_is_done_in_any_case() {
    let fabric = Fabric::start().await;
    let api = fabric.api(|_| {}).await;
    let key = |name: &str| json!({"name": name, "scopes": ["jobs:write"]}).to_string();
    let made = api.post(&fabric.admin, "/v1/keys", &key("kept")).await;
    let before = fabric.bound_the_trail(1).await;
    let token = json!({"region": "lab", "tools": ["echo"]}).to_string();
    for (path, body) in [("/v1/keys", key("unrecorded")), ("/v1/enroll-tokens", token)] {
        let answer = api.post(&fabric.admin, path, &body).await;
        assert_eq!((answer.status, &answer.body["code"]), (503, &json!("unavailable")), "{answer:?}");
        let detail = answer.body["detail"].as_str().unwrap();
        assert!(
            detail.starts_with("the audit trail does not take the record of this change now, and without one it is not made: "),
            "{detail}"
        );
    }
    assert_eq!(api.get(&fabric.admin, "/v1/enroll-tokens").await.body["enroll_tokens"], json!([]));
    let names = |answer: &Answer| -> Vec<String> {
        answer.body["keys"].as_array().unwrap().iter().map(|key| key["name"].as_str().unwrap().to_owned()).collect()
    };
    let listed = names(&api.get(&fabric.admin, "/v1/keys").await);
    assert!(listed.contains(&"kept".to_owned()) && !listed.contains(&"unrecorded".to_owned()), "{listed:?}");
    // Who fills the trail is not safe from being revoked.
    let path = format!("/v1/keys/{}", made.body["id"].as_str().unwrap());
    let revoked = api.ask(Ask { method: "DELETE", path, token: Some(fabric.admin.clone()), ..Ask::default() }).await;
    assert!(revoked.status < 300 || revoked.body["detail"].as_str().unwrap().starts_with("the key is revoked"), "{revoked:?}");
    let token = made.body["key"].as_str().unwrap().to_owned();
    api.until_as(&token, "/v1/tools", |answer| answer.status == 401).await;
    fabric.bound_the_trail(before).await;
    let told = |answer: &Answer| answer.body["records"].as_array().is_some_and(|records| records.len() == 2);
    let changed = api.until_as(&fabric.admin, "/v1/audit?verdict=changed", told).await;
    assert_eq!(changed.body["records"][0]["detail"], "key revoked: kept", "{changed:?}");
    api.stop().await;
    fabric.stop().await;
}

/// How many calls come at once.
const TWINS: usize = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_many_calls_used_at_once_without_a_record_is_free_and_becomes_one_job() {
    let fabric = Fabric::start().await;
    let api = fabric.api(|_| {}).await;
    let mut node = Node::start(&fabric, &api, "n-1", (Ears::Group, 8)).await;
    let way = ("twins", "wait=10", r#"{"tool":"echo","target":"x","from":"lab"}"#);
    let at_once = || join_all((0..TWINS).map(|_| ask(&api, &fabric.admin, way)));
    let before = fabric.bound_the_trail(1).await;
    for answer in at_once().await {
        assert_eq!(answer.status, 503, "{answer:?}");
    }
    api.until("/readyz", |answer| answer.status == 503).await;
    fabric.bound_the_trail(before).await;
    api.until("/readyz", |answer| answer.status == 200).await;
    let script = async {
        let job = node.hears().await;
        node.succeeds(&job).await;
    };
    let (answers, ()) = tokio::join!(at_once(), script);
    let ids: BTreeSet<&str> = answers.iter().map(|answer| answer.body["id"].as_str().unwrap_or("none")).collect();
    assert!(ids.len() == 1 && answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    drop(node);
    api.stop().await;
    fabric.stop().await;
}
