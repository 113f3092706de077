use serde_json::{Value, json};

use super::*;
use crate::claims::{Body, Claims};
use crate::layout::Layout;
use crate::testing::Scratch;
use crate::vault::credentials::UserKey;

struct Office {
    _scratch: Scratch,
    clerk: Clerk,
    wanted: mpsc::Receiver<Wanted>,
}

fn office() -> Office {
    let scratch = Scratch::new();
    let vault = Arc::new(Vault::open_or_create(&Layout::new(scratch.path().join("data"))).unwrap());
    let (revoking, wanted) = mpsc::channel(1);
    Office { _scratch: scratch, clerk: Clerk { vault, revoking }, wanted }
}

impl Office {
    async fn ask(&self, verb: Verb, caller: &str, request: &Value) -> Value {
        let answer = self.clerk.work(verb, &caller.parse().unwrap(), &serde_json::to_vec(request).unwrap()).await.unwrap();
        serde_json::from_slice(&answer).unwrap()
    }

    async fn refuses(&self, verb: Verb, request: &Value, code: &str, part: &str) {
        let answer = self.ask(verb, "api-1", request).await;
        assert_eq!(answer["problem"]["code"], code, "{request}: {answer}");
        assert!(answer["problem"]["detail"].as_str().unwrap().contains(part), "{request}: {answer}");
    }
}

fn node(changed: &Value) -> Value {
    request(json!({"node": "n1", "region": "eu", "tools": ["echo", "ping"]}), changed)
}

fn service(changed: &Value) -> Value {
    request(json!({"name": "svc", "regions": ["eu"], "tools": ["echo"], "nodes": ["n1"], "direct": true}), changed)
}

fn request(mut rights: Value, changed: &Value) -> Value {
    let mut request = json!({"public_key": UserKey::new().public_key(), "lifetime_s": 60});
    for (field, value) in changed.as_object().unwrap() {
        let place = if rights.get(field).is_some() { &mut rights } else { &mut request };
        place[field] = value.clone();
    }
    request["rights"] = rights;
    request
}

#[tokio::test]
async fn what_is_signed_is_for_the_key_that_was_sent_and_may_what_was_asked() {
    let office = office();
    for (verb, request, name, publishes) in
        [(Verb::MintNode, node(&json!({})), "n1", "ev.v1.eu.n1.>"), (Verb::MintService, service(&json!({})), "svc", "job.v1.eu.echo.svc")]
    {
        let answer = office.ask(verb, "api-1", &request).await;
        let claims = Claims::read(answer["jwt"].as_str().unwrap()).unwrap();
        assert_eq!((claims.subject.as_str(), claims.name.as_str()), (request["public_key"].as_str().unwrap(), name));
        let Body::User(user) = claims.body.body else { panic!("not a user") };
        assert!(user.publish.allow.contains(&publishes.to_owned()), "{user:?}");
        assert!(answer["expires_at"].is_string() && answer.get("seed").is_none());
    }
    let at_the_door = office.ask(Verb::MintService, "api-1", &service(&json!({"direct": false}))).await;
    let Body::User(user) = Claims::read(at_the_door["jwt"].as_str().unwrap()).unwrap().body.body else { panic!("not a user") };
    assert_eq!(user.publish.allow, ["api.v1.run.svc"]);
}

#[tokio::test]
async fn the_control_planes_own_names_are_signed_for_nobody() {
    let office = office();
    for name in ["api-1", "api-", "observer", "keymaster", "keymaster-desk", "collector-1", "command-1", "auditor", "provisioner", "sentry"]
    {
        let parses = name.parse::<Caller>().is_ok();
        assert!(parses, "{name}");
        office.refuses(Verb::MintNode, &node(&json!({"node": name})), "forbidden", "cannot be called").await;
        office.refuses(Verb::MintService, &service(&json!({"name": name})), "forbidden", "cannot be called").await;
    }
    let answer = office.ask(Verb::MintNode, "svc", &node(&json!({}))).await;
    assert_eq!(answer["problem"]["code"], "forbidden", "only replicas of the API may ask");
}

#[tokio::test]
async fn what_is_too_much_or_not_clear_is_refused() {
    let office = office();
    let many: Vec<String> = (0..101).map(|number| format!("r{number}")).collect();
    for (request, part) in [
        (node(&json!({"lifetime_s": 0})), "from 1 second to 30 days"),
        (node(&json!({"lifetime_s": 30 * 86_400 + 1})), "from 1 second to 30 days"),
        (node(&json!({"public_key": "U"})), "not the public key of a user"),
        (node(&json!({"public_key": KeyPair::new_account().public_key()})), "not the public key of a user"),
        (node(&json!({"tools": []})), "at least one tool"),
        (node(&json!({"tools": ["echo", "echo"]})), "`echo` is there twice"),
        (node(&json!({"tools": ["exec"]})), "cannot be understood"),
        (node(&json!({"region": "*"})), "cannot be understood"),
        (node(&json!({"node": "a.>"})), "cannot be understood"),
        (node(&json!({"permissions": [">"]})), "cannot be understood"),
    ] {
        office.refuses(Verb::MintNode, &request, "invalid", part).await;
    }
    for (request, part) in [
        (service(&json!({"tools": []})), "at least one tool"),
        (service(&json!({"regions": [], "nodes": []})), "at least one region or node"),
        (service(&json!({"regions": many})), "at most 100, not 101"),
        (service(&json!({"nodes": ["*"]})), "cannot be understood"),
    ] {
        office.refuses(Verb::MintService, &request, "invalid", part).await;
    }
    office.refuses(Verb::Revoke, &json!({"public_key": "*"}), "invalid", "not the public key of a user").await;
    office.refuses(Verb::Revoke, &json!(["x".repeat(REQUEST_BYTES_MAX)]), "invalid", "at most").await;
}

#[tokio::test]
async fn a_revoked_key_is_signed_nothing_more() {
    let mut office = office();
    let request = node(&json!({}));
    let key = request["public_key"].as_str().unwrap().to_owned();
    office.clerk.vault.revoke(&key).unwrap();
    office.refuses(Verb::MintNode, &request, "conflict", "was revoked").await;

    // Whoever revokes is told what the servers said.
    let clerk = office.clerk.clone();
    let working = tokio::spawn(async move {
        clerk.work(Verb::Revoke, &"api-1".parse().unwrap(), json!({"public_key": key}).to_string().as_bytes()).await
    });
    let (_, waiting) = office.wanted.recv().await.unwrap();
    waiting.send(Ok(Revoked { servers: vec!["a".to_owned()], waiting: vec!["b".to_owned()] })).unwrap();
    let answer: Value = serde_json::from_slice(&working.await.unwrap().unwrap()).unwrap();
    assert_eq!(answer, json!({"servers": ["a"], "waiting": ["b"]}));
}
