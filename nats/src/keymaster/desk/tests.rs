use probeops_shared::ids::NodeId;
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
    office_that_signs(MintsPerMinute::default())
}

fn office_that_signs(mints: MintsPerMinute) -> Office {
    let scratch = Scratch::new();
    let vault = Arc::new(Vault::open_or_create(&Layout::new(scratch.path().join("data"))).unwrap());
    let (revoking, wanted) = mpsc::channel(1);
    Office { _scratch: scratch, clerk: Clerk::new(vault, revoking, mints), wanted }
}

impl Office {
    async fn ask(&self, verb: Verb, caller: &str, request: &Value) -> Value {
        let said = self.clerk.work(verb, &caller.parse().unwrap(), &serde_json::to_vec(request).unwrap()).await.0;
        serde_json::to_value(said).unwrap()
    }

    /// Revokes a key for this caller where the servers say this of it: the answer, and what the trail is told.
    async fn revoked(&mut self, caller: &str, key: &str, signed: Signed) -> (Value, Option<Noted>) {
        let (clerk, caller, request) = (self.clerk.clone(), caller.parse().unwrap(), json!({"public_key": key}).to_string());
        let working = tokio::spawn(async move { clerk.work(Verb::Revoke, &caller, request.as_bytes()).await });
        let (taken, asker) = self.wanted.recv().await.unwrap();
        assert_eq!(taken, key);
        asker.send(Ok(signed)).unwrap();
        let (said, noted) = working.await.unwrap();
        (serde_json::to_value(said).unwrap(), noted)
    }

    async fn refuses(&self, verb: Verb, request: &Value, code: &str, part: &str) {
        self.refuses_to("api-1", verb, request, code, part).await;
    }

    async fn refuses_to(&self, caller: &str, verb: Verb, request: &Value, code: &str, part: &str) {
        let answer = self.ask(verb, caller, request).await;
        assert_eq!(answer["problem"]["code"], code, "{request}: {answer}");
        assert!(answer["problem"]["detail"].as_str().unwrap().contains(part), "{request}: {answer}");
    }
}

/// What is signed is known to these, and not yet to those.
fn told(anew: bool, servers: &[&str], waiting: &[&str]) -> Signed {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Signed { anew, told: Ok(Revoked { servers: names(servers), waiting: names(waiting), unrecorded: false }) }
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
        (node(&json!({"node": "N1"})), "cannot be understood"),
        (node(&json!({"node": "n 1"})), "cannot be understood"),
        (node(&json!({"node": "x".repeat(64)})), "cannot be understood"),
        (node(&json!({"region": "eu.us"})), "cannot be understood"),
        (node(&json!({"region": "-"})), "cannot be understood"),
        (node(&json!({"region": null})), "cannot be understood"),
        (node(&json!({"tools": ["ECHO"]})), "cannot be understood"),
        (node(&json!({"tools": ["echo w"]})), "cannot be understood"),
        (node(&json!({"tools": "echo"})), "cannot be understood"),
        (node(&json!({"lifetime_s": -1})), "cannot be understood"),
        (node(&json!({"lifetime_s": u64::MAX})), "from 1 second to 30 days"),
    ] {
        office.refuses(Verb::MintNode, &request, "invalid", part).await;
    }
    for (request, part) in [
        (service(&json!({"tools": []})), "at least one tool"),
        (service(&json!({"regions": [], "nodes": []})), "at least one region or node"),
        (service(&json!({"regions": many})), "at most 100, not 101"),
        (service(&json!({"nodes": ["*"]})), "cannot be understood"),
        (service(&json!({"nodes": ["n1.job.echo.*"]})), "cannot be understood"),
        (service(&json!({"regions": ["eu", "eu"]})), "`eu` is there twice"),
        (service(&json!({"regions": [">"]})), "cannot be understood"),
        (service(&json!({"name": "_INBOX"})), "cannot be understood"),
        (service(&json!({"direct": "yes"})), "cannot be understood"),
    ] {
        office.refuses(Verb::MintService, &request, "invalid", part).await;
    }
    office.refuses(Verb::Revoke, &json!({"public_key": "*"}), "invalid", "not the public key of a user").await;
    office.refuses(Verb::Revoke, &json!(["x".repeat(REQUEST_BYTES_MAX)]), "invalid", "at most").await;
}

#[tokio::test]
async fn only_keys_of_nodes_and_services_are_revoked_for_an_api() {
    let mut office = office();
    let revoke = |key: &str| json!({"public_key": key});
    let vault = Arc::clone(&office.clerk.vault);
    let hour = Duration::from_hours(1);
    for role in [Role::Keymaster, Role::KeymasterDesk, Role::Sentry, Role::Api { caller: "api-2".parse().unwrap() }, Role::Auditor] {
        let ours = vault.mint(&role, hour).unwrap().public_key;
        for asks in ["api-1", "sentry"] {
            office.refuses_to(asks, Verb::Revoke, &revoke(&ours), "forbidden", "one of the control plane").await;
        }
        // Nor does it become a node's by being asked for as one.
        let mint = node(&json!({"public_key": ours}));
        office.refuses(Verb::MintNode, &mint, "conflict", "is one of the control plane, and cannot be one of a node too").await;
        office.refuses_to("api-1", Verb::Revoke, &revoke(&ours), "forbidden", "one of the control plane").await;
    }
    for account in AccountName::ALL {
        office.refuses(Verb::Revoke, &revoke(vault.account_key(account)), "invalid", "not the public key of a user").await;
    }
    office.refuses(Verb::Revoke, &revoke(&UserKey::new().public_key()), "not_found", "nothing that is in force was signed for").await;

    let (of_node, of_service) = (node(&json!({})), service(&json!({})));
    office.ask(Verb::MintNode, "api-1", &of_node).await;
    office.ask(Verb::MintService, "api-1", &of_service).await;
    let key = |request: &Value| request["public_key"].as_str().unwrap().to_owned();
    office.refuses_to("sentry", Verb::Revoke, &revoke(&key(&of_service)), "forbidden", "may have only nodes revoked").await;
    for (asks, wanted) in [("api-2", key(&of_node)), ("api-1", key(&of_service)), ("sentry", key(&of_node))] {
        let (answer, noted) = office.revoked(asks, &wanted, told(true, &["a"], &[])).await;
        assert_eq!(answer, json!({"servers": ["a"], "waiting": []}));
        let Noted { record, is_done } = noted.unwrap();
        let of = if wanted == key(&of_node) { "node:n1" } else { "service:svc" };
        assert_eq!((record.verdict, record.principal, record.target.as_str()), (Verdict::Signed, format!("part:{asks}"), of));
        assert_eq!((record.detail, is_done), (format!("key {wanted} revoked on a"), true));
    }
}

#[tokio::test]
async fn what_was_signed_and_what_was_refused_is_told_to_the_trail_with_who_asked() {
    let office = office();
    let tell = async |verb: Verb, request: &Value| {
        office.clerk.work(verb, &"api-1".parse().unwrap(), &serde_json::to_vec(request).unwrap()).await.1.map(|noted| noted.record)
    };
    let (of_node, of_service) = (node(&json!({})), service(&json!({})));
    for (verb, request, target, node) in
        [(Verb::MintNode, &of_node, "node:n1", Some("n1")), (Verb::MintService, &of_service, "service:svc", None)]
    {
        let record = tell(verb, request).await.unwrap();
        assert_eq!((record.verdict, record.principal.as_str(), record.target.as_str()), (Verdict::Signed, "part:api-1", target));
        assert_eq!((record.caller.as_deref(), record.node.as_ref().map(NodeId::as_str)), (Some("api-1"), node));
        let begins = format!("credential signed for key {}, until 2", request["public_key"].as_str().unwrap());
        assert!(record.detail.starts_with(&begins), "{}", record.detail);
    }
    let record = tell(Verb::MintNode, &json!({})).await.unwrap();
    assert_eq!((record.verdict, record.caller.as_deref()), (Verdict::Refused, Some("api-1")));
    assert!(record.detail.starts_with("mint_node: invalid: the request cannot be understood"), "{}", record.detail);
    // With the key that it was about; and one who goes on and on is told of in a number.
    let unknown = json!({"public_key": UserKey::new().public_key()});
    let record = tell(Verb::Revoke, &unknown).await.unwrap();
    assert!(record.detail.starts_with(&format!("revoke for key {}: not_found: ", unknown["public_key"].as_str().unwrap())));
    let mut recorded = 2;
    for _ in 0..100 {
        recorded += u32::from(tell(Verb::Revoke, &unknown).await.is_some());
    }
    assert!((REFUSALS_PER_MINUTE.get()..REFUSALS_PER_MINUTE.get() + 5).contains(&recorded), "{recorded}");
    office.clerk.refusals.limiter.retain_recent();
    let other = office.clerk.work(Verb::Revoke, &"api-2".parse().unwrap(), &serde_json::to_vec(&unknown).unwrap()).await.1.unwrap().record;
    assert!(other.detail.ends_with(" more before were not recorded one by one"), "{}", other.detail);
}

#[tokio::test]
async fn a_revocation_that_is_signed_and_told_to_nobody_yet_is_in_the_trail_as_such() {
    let mut office = office();
    let of_node = node(&json!({}));
    office.ask(Verb::MintNode, "api-1", &of_node).await;
    let (key, untold) = (of_node["public_key"].as_str().unwrap(), |anew| Signed { anew, told: Err("no server".to_owned()) });
    let (answer, noted) = office.revoked("api-1", key, untold(true)).await;
    let Noted { record, is_done } = noted.unwrap();
    assert_eq!((&answer["problem"]["code"], record.verdict, record.target.as_str()), (&json!("unavailable"), Verdict::Signed, "node:n1"));
    assert!(is_done && record.detail.ends_with(" revoked and not yet known to any server"), "{}", record.detail);
    // Asked for again it changes nothing, and is not done: one of the refusals, of which so many are recorded.
    let Noted { record, is_done } = office.revoked("api-1", key, untold(false)).await.1.unwrap();
    assert_eq!((record.verdict, is_done), (Verdict::Refused, false));
}

#[tokio::test]
async fn one_api_does_not_ask_for_more_credentials_than_it_may() {
    let office = office_that_signs(MintsPerMinute(3.try_into().unwrap()));
    for verb in [Verb::MintNode, Verb::MintService, Verb::MintNode] {
        let request = if verb == Verb::MintNode { node(&json!({})) } else { service(&json!({})) };
        assert!(office.ask(verb, "api-1", &request).await["jwt"].is_string());
    }
    for (verb, request) in [(Verb::MintNode, node(&json!({}))), (Verb::MintService, service(&json!({}))), (Verb::MintNode, json!({}))] {
        office.refuses(verb, &request, "rate_limited", "`api-1` has asked for more than 3 credentials a minute").await;
    }
    let wait_ms = office.ask(Verb::MintNode, "api-1", &node(&json!({}))).await["problem"]["retry_after_ms"].as_u64().unwrap();
    assert!((1..=20_000).contains(&wait_ms), "{wait_ms}");
    assert!(office.ask(Verb::MintNode, "api-2", &node(&json!({}))).await["jwt"].is_string(), "another has its own");
}

#[tokio::test]
async fn a_revoked_key_is_signed_nothing_more() {
    let mut office = office();
    let request = node(&json!({}));
    let key = request["public_key"].as_str().unwrap().to_owned();
    office.clerk.vault.revoke(&key).unwrap();
    office.refuses(Verb::MintNode, &request, "conflict", "was revoked").await;

    // Whoever revokes it again is told what the servers said, and the trail that it changed nothing.
    let (answer, noted) = office.revoked("api-1", &key, told(false, &["a"], &["b"])).await;
    assert_eq!(answer, json!({"servers": ["a"], "waiting": ["b"]}));
    let Noted { record, is_done } = noted.unwrap();
    assert_eq!((record.detail, is_done), (format!("key {key} was revoked before, and is on a, not yet on b"), false));
}

#[tokio::test]
async fn one_may_have_as_many_keys_revoked_as_there_are_and_a_revoked_one_again_so_often() {
    let mut office = office();
    let key = |request: &Value| request["public_key"].as_str().unwrap().to_owned();
    let [first, second, third] = [(); 3].map(|()| node(&json!({})));
    for request in [&first, &second, &third] {
        office.ask(Verb::MintNode, "api-1", request).await;
    }
    office.clerk.vault.revoke(&key(&first)).unwrap();
    // As many as an operator who goes through a whole fleet twice.
    let burst = NonZeroU32::new(REPEATS_AT_ONCE.get() - 1).unwrap();
    assert!(burst.get() > 8000 && office.clerk.repeats.limiter.check_key_n(&"api-1".parse().unwrap(), burst).is_ok_and(|all| all.is_ok()));
    assert_eq!(office.revoked("api-1", &key(&first), told(false, &["a"], &[])).await.0["servers"], json!(["a"]));
    while office.clerk.repeats.limiter.check_key(&"api-1".parse().unwrap()).is_ok() {}
    let answer = office.ask(Verb::Revoke, "api-1", &json!({"public_key": key(&first)})).await;
    let problem = &answer["problem"];
    assert_eq!(problem["code"], "rate_limited", "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("they stay revoked") && problem["retry_after_ms"].as_u64().unwrap() <= 1000);
    // What is not revoked yet is all the same, also where another was faster; and others have their own.
    let (answer, noted) = office.revoked("api-1", &key(&second), told(true, &["a"], &[])).await;
    assert!(answer["servers"] == json!(["a"]) && noted.unwrap().is_done);
    let (answer, noted) = office.revoked("api-1", &key(&third), told(false, &["a"], &[])).await;
    assert_eq!((&answer["problem"]["code"], noted.unwrap().record.verdict), (&json!("rate_limited"), Verdict::Refused), "{answer}");
    for other in ["api-2", "sentry"] {
        assert_eq!(office.revoked(other, &key(&first), told(false, &["a"], &[])).await.0["servers"], json!(["a"]));
    }
}

#[tokio::test]
async fn what_was_asked_for_lately_is_known_for_a_while_and_in_bounded_number() {
    let asked = |id: usize| ("api-1".parse().unwrap(), id.to_string(), "U".to_owned());
    let saying = |number: u64| {
        let problem = Refusal { retry_after_ms: Some(number), ..unavailable(String::new()) };
        std::future::ready(Said::Revoked(Answer::Refused { problem })).boxed().shared()
    };
    let said = |doing: Doing| match doing.now_or_never() {
        Some(Said::Revoked(Answer::Refused { problem })) => problem.retry_after_ms.unwrap(),
        other => panic!("{other:?}"),
    };
    let (mut lately, begun) = (Lately::default(), Instant::now());
    assert_eq!(said(lately.same(asked(0), begun, saying(1))), 1);
    assert_eq!(said(lately.same(asked(0), begun + LATELY, saying(2))), 1);
    assert_eq!(said(lately.same(asked(0), begun + LATELY + Duration::from_secs(1), saying(3))), 3);
    for id in 0..LATELY_MAX * 2 {
        drop(lately.same(asked(id), begun + LATELY, saying(4)));
    }
    assert_eq!((lately.doing.len(), lately.in_turn.len()), (LATELY_MAX, LATELY_MAX));
}
