//! The audit trail, over HTTP.

use serde_json::json;

use crate::fixture::Fabric;

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
