//! Keys, over HTTP, on two replicas.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use probeops_shared::access::Scope;
use serde_json::{Value, json};

use crate::fixture::{Answer, Api, Ask, Fabric};

/// What needs no scope: what tells whether the API is well and what it knows, what any credential may know of itself, and what machines ask that have
/// a key and no credential yet.
const OF_NO_SCOPE: [&str; 8] = [
    "GET /livez",
    "GET /openapi.json",
    "GET /readyz",
    "GET /v1/limits",
    "GET /v1/tools",
    "POST /v1/enroll",
    "POST /v1/enroll/challenge",
    "POST /v1/enroll/confirm",
];
/// What stands before an operation's scopes in its description.
const NEEDS: &str = "Needs the scope ";

/// Asks for an operation with nothing that it could do anything with: names of nothing, and a body without a field.
async fn tries(api: &Api, key: &str, method: &'static str, path: &str) -> Answer {
    let named: Vec<&str> = path.split('/').map(|part| if part.starts_with('{') { "nothing" } else { part }).collect();
    let (path, token) = (named.join("/"), Some(key.to_owned()));
    let (headers, body) = match method {
        // Whoever takes no body says so.
        "POST" => (vec![("content-type", "application/json".to_owned())], b"{}".to_vec()),
        _ => (Vec::new(), Vec::new()),
    };
    api.ask(Ask { method, path, token, headers, body }).await
}

async fn key(api: &Api, admin: &str, scopes: &[Scope]) -> String {
    let scopes: Vec<&str> = scopes.iter().map(|scope| scope.as_str()).collect();
    let made = api.post(admin, "/v1/keys", &json!({"name": "table", "scopes": scopes}).to_string()).await;
    assert_eq!(made.status, 201, "{made:?}");
    made.body["key"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_is_refused_without_its_scope_and_by_no_other_with_it() {
    let fabric = Fabric::start().await;
    let api = fabric.api(|_| {}).await;
    let document = api.get("", "/openapi.json").await.body;
    let (mut open, mut tried) = (Vec::new(), 0);
    let mut keys: BTreeMap<Vec<Scope>, String> = BTreeMap::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap().iter().filter(|(_, operation)| operation["operationId"].is_string()) {
            let method = ["GET", "POST", "DELETE"].into_iter().find(|known| known.eq_ignore_ascii_case(method)).unwrap();
            let Some((_, words)) = operation["description"].as_str().unwrap().rsplit_once(NEEDS) else {
                open.push(format!("{method} {path}"));
                continue;
            };
            let needed: Vec<Scope> =
                words.split('`').filter_map(|word| Scope::ALL.into_iter().find(|scope| scope.as_str() == word)).collect();
            assert!(!needed.is_empty() && words.matches('`').count() == 2 * needed.len(), "{method} {path}: {words}");
            // Whoever may everything has every scope.
            let others: Vec<Scope> = Scope::ALL.into_iter().filter(|scope| *scope != Scope::Admin && !needed.contains(scope)).collect();
            for scopes in needed.iter().map(|scope| vec![*scope]).chain([others.clone()]) {
                if let Entry::Vacant(missing) = keys.entry(scopes) {
                    let made = key(&api, &fabric.admin, missing.key()).await;
                    missing.insert(made);
                }
            }
            let refused = tries(&api, &keys[&others], method, path).await;
            let says = format!("this needs the scope `{}`; your credential has: ", needed[0].as_str());
            assert_eq!((refused.status, refused.body["code"].as_str()), (403, Some("forbidden")), "{method} {path}: {refused:?}");
            assert!(refused.body["detail"].as_str().unwrap().starts_with(&says), "{method} {path}: {refused:?}");
            let challenge = refused.headers["www-authenticate"].to_str().unwrap();
            assert!(challenge.ends_with(&format!("scope=\"{}\"", needed[0].as_str())), "{method} {path}: {challenge}");
            for scope in &needed {
                let allowed = tries(&api, &keys[&vec![*scope]], method, path).await;
                assert!(![0, 401, 403, 405, 429].contains(&allowed.status), "{method} {path} with {scope}: {allowed:?}");
            }
            tried += 1;
        }
    }
    open.sort_unstable();
    assert_eq!(open, OF_NO_SCOPE, "what needs no scope");
    let needing = |operation: &Value| operation["responses"]["403"].is_object() && operation["security"] != json!([]);
    let all = document["paths"].as_object().unwrap().values().flat_map(|path| path.as_object().unwrap().values());
    assert_eq!(all.filter(|operation| needing(operation)).count(), tried);
    api.stop().await;
    fabric.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_works_on_every_replica_until_it_is_revoked_on_one() {
    let fabric = Fabric::start().await;
    let (first, second) = (fabric.api(|_| {}).await, fabric.api(|_| {}).await);
    let body = json!({"name": "n8n", "scopes": ["nodes:read"], "limits": {"regions": ["us-*"]}}).to_string();
    let made = first.post(&fabric.admin, "/v1/keys", &body).await;
    assert_eq!(made.status, 201, "{made:?}");
    let (key, id) = (made.body["key"].as_str().unwrap(), made.body["id"].as_str().unwrap());
    assert_eq!(made.headers["location"].to_str().unwrap(), format!("/v1/keys/{id}"));
    // At once, and within its limits: it does not see the other region.
    let seen = second.get(key, "/v1/regions").await;
    assert_eq!((seen.status, &seen.body), (200, &json!({"regions": []})));
    let listed =
        second.until_as(&fabric.admin, "/v1/keys", |answer| answer.body["keys"].as_array().is_some_and(|keys| keys.len() == 2)).await;
    assert!(!listed.body.to_string().contains(&key[14..]) && !listed.body.to_string().contains("sha256"));

    let forbidden = first.post(key, "/v1/jobs", r#"{"tool":"echo","from":"us-east"}"#).await;
    assert_eq!((forbidden.status, forbidden.body["code"].as_str()), (403, Some("forbidden")));
    assert!(forbidden.headers["www-authenticate"].to_str().unwrap().contains("insufficient_scope"));

    let revoke = Ask { method: "DELETE", path: format!("/v1/keys/{id}"), token: Some(fabric.admin.clone()), ..Ask::default() };
    let revoked = first.ask(revoke.clone()).await;
    assert!(revoked.status == 200 && revoked.body["revoked_at"].is_string(), "{revoked:?}");
    assert_eq!(first.ask(revoke).await.status, 200, "revoking again changes nothing");
    let refused = second.until_as(key, "/v1/regions", |answer| answer.status == 401).await;
    assert!(refused.body["detail"].as_str().unwrap().contains("was revoked at"), "{refused:?}");
    first.stop().await;
    second.stop().await;
    fabric.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_has_expired_is_refused_and_makes_none_that_lasts_longer() {
    let fabric = Fabric::start().await;
    let api = fabric.api(|_| {}).await;
    let body = json!({"name": "short", "scopes": ["keys:write", "nodes:read"], "expires_in_ms": 5_000}).to_string();
    let made = api.post(&fabric.admin, "/v1/keys", &body).await;
    let (key, ends) = (made.body["key"].as_str().unwrap(), made.body["expires_at"].as_str().unwrap());
    let further = api.post(key, "/v1/keys", &json!({"name": "long", "scopes": ["nodes:read"]}).to_string()).await;
    assert_eq!((further.status, further.body["expires_at"].as_str()), (201, Some(ends)));
    for key in [key, further.body["key"].as_str().unwrap()] {
        let refused = api.until_as(key, "/v1/regions", |answer| answer.status == 401).await;
        assert!(refused.body["detail"].as_str().unwrap().contains("expired at"), "{refused:?}");
    }
    api.stop().await;
    fabric.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_that_are_none_are_told_apart() {
    let fabric = Fabric::start().await;
    let secret = fabric_secret();
    let api = fabric
        .api(|given| {
            given.jwt_hs256_secret_file = Some(secret.clone());
            given.jwt_issuer = Some("https://id.example".to_owned());
        })
        .await;
    let (rest, last) = fabric.admin.split_at(73);
    let mistyped = format!("{rest}{}", if last == "0" { "1" } else { "0" });
    let unsigned = "eyJhbGciOiJub25lIn0.e30.";
    for (token, part) in [
        ("", "there is no credential"),
        ("hello", "neither an API key"),
        (mistyped.as_str(), "mistyped: its checksum"),
        ("pk_abc", "cut off"),
        (unsigned, "not signed (alg none)"),
        ("a.b.c", "malformed"),
    ] {
        let answer = api.get(token, "/v1/tools").await;
        assert_eq!((answer.status, answer.body["code"].as_str()), (401, Some("unauthorized")), "{token}");
        assert!(answer.body["detail"].as_str().unwrap().contains(part), "{token}: {}", answer.body);
    }
    std::fs::remove_file(secret).unwrap();
    api.stop().await;
    fabric.stop().await;
}

fn fabric_secret() -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("probeops-secret-{:016x}", rand::random::<u64>()));
    std::fs::write(&path, "0123456789abcdef0123456789abcdef").unwrap();
    path
}
