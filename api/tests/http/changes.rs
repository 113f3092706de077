//! How much of the trail one fills with what costs him no runs.

use probeops_nats::node_key::NodeKey;
use probeops_shared::enroll::{EnrollRequest, Mark};
use serde_json::{Value, json};

use crate::fixture::{Answer, Api, Ask, Fabric};

/// How many changes are refused to nobody at once, and many more than that with what comes back meanwhile.
const AT_ONCE: usize = 120;
const FAR_TOO_MANY: usize = 300;

async fn delete(api: &Api, token: &str, path: String) -> Answer {
    api.ask(Ask { method: "DELETE", path, token: Some(token.to_owned()), ..Ask::default() }).await
}

async fn made(api: &Api, token: &str, body: Value) -> String {
    let made = api.post(token, "/v1/keys", &body.to_string()).await;
    assert_eq!(made.status, 201, "{made:?}");
    made.body["key"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_changes_one_thing_again_and_again_is_held_up_and_nobody_else_is() {
    let fabric = Fabric::start().await;
    let api = fabric.api(|_| {}).await;
    let (key, other) =
        (json!({"name": "n", "scopes": ["jobs:write"], "limits": {"rate": "1/m"}}), json!({"name": "o", "scopes": ["jobs:write"]}));
    let (key, other) = (made(&api, &fabric.admin, key).await, made(&api, &fabric.admin, other).await);
    let secret = json!({"name": "s", "origin": "https://callback.example"}).to_string();
    let mut changes = 0;
    let refused = loop {
        let answer = api.post(&key, "/v1/secrets", &secret).await;
        if answer.status == 429 {
            break answer;
        }
        assert_eq!(answer.status, 201, "{answer:?}");
        let deleted = delete(&api, &key, format!("/v1/secrets/{}", answer.body["id"].as_str().unwrap())).await;
        changes += if deleted.status == 200 { 2 } else { 1 };
        if deleted.status == 429 {
            break deleted;
        }
        assert!(changes < FAR_TOO_MANY, "as many as one likes");
    };
    assert!(changes >= AT_ONCE, "{changes}");
    assert_eq!(refused.body["code"], "rate_limited");
    assert!(refused.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() <= 1, "{refused:?}");
    for token in [&other, &fabric.admin] {
        assert_eq!(api.post(token, "/v1/secrets", &secret).await.status, 201, "others do not notice");
    }
    for _ in 0..=AT_ONCE {
        assert_eq!(delete(&api, &fabric.admin, "/v1/secrets/none".to_owned()).await.status, 404, "an admin without limits is not bounded");
    }
    api.stop().await;
    fabric.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_makes_keys_makes_itself_no_further_allowance() {
    let fabric = Fabric::start().await;
    let api = fabric.api(|_| {}).await;
    let body = json!({"name": "n", "scopes": ["keys:write"]});
    let maker = made(&api, &fabric.admin, body.clone()).await;
    let child = made(&api, &maker, body.clone()).await;
    let keys = [maker, child.clone(), made(&api, &child, body).await];
    let mut asked = 0;
    while delete(&api, &keys[asked % keys.len()], "/v1/keys/none".to_owned()).await.status == 404 {
        asked += 1;
        assert!(asked < 2 * AT_ONCE, "each has an allowance of its own");
    }
    api.stop().await;
    fabric.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_renews_again_and_again_is_held_up() {
    let fabric = Fabric::start().await;
    let (key, other) = (NodeKey::new(), NodeKey::new());
    fabric.grant_to("fra-2", "eu-central", key.public_key().unwrap().as_str()).await;
    fabric.grant_to("fra-3", "eu-central", other.public_key().unwrap().as_str()).await;
    let api = fabric.api(|_| {}).await;
    // Nobody signs here: what is within the allowance gets as far as that.
    for _ in 0..20 {
        assert_eq!(renewed(&api, &key, "fra-2").await.status, 503);
    }
    let refused = renewed(&api, &key, "fra-2").await;
    assert_eq!((refused.status, refused.body["code"].as_str()), (429, Some("rate_limited")), "{refused:?}");
    assert!(refused.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 60, "{refused:?}");
    assert_eq!(renewed(&api, &other, "fra-3").await.status, 503, "another does not notice");
    api.stop().await;
    fabric.stop().await;
}

async fn renewed(api: &Api, key: &NodeKey, node: &str) -> Answer {
    let public_key = key.public_key().unwrap();
    let challenge = api.post("", "/v1/enroll/challenge", &json!({"public_key": public_key}).to_string()).await;
    let mut request: EnrollRequest = serde_json::from_value(json!({
        "public_key": public_key, "challenge": challenge.body["challenge"], "signature": "A".repeat(86), "node": node,
        "next_mark": Mark::new(),
    }))
    .unwrap();
    request.signature = key.sign(&request.statement("-")).unwrap();
    api.post("", "/v1/enroll", &serde_json::to_string(&request).unwrap()).await
}
