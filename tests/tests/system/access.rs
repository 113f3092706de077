//! Who may ask: keys, tokens, scopes, limits.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use probeops_tests::fabric::{ApiOptions, Fabric};
use probeops_tests::identity::Issuer;
use serde_json::{Value, json};

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn claims() -> Value {
    json!({"iss": "https://id.example", "aud": "probeops", "sub": "anna", "exp": now() + 600, "scope": "jobs:write jobs:read"})
}

#[test]
fn tokens_of_the_configured_issuer_are_accepted_and_nothing_else() {
    let fabric = Fabric::start();
    let issuer = Issuer::new();
    let jwks = fabric.file("jwks.json", &issuer.jwks().to_string());
    let options =
        ApiOptions { jwks: Some(jwks), jwt_issuer: Some("https://id.example".to_owned()), jwt_audience: Some("probeops".to_owned()) };
    let api = fabric.api_with(&options);
    fabric.agent("j-1", "eu");
    api.wait_for_nodes(1);
    let good = api.caller(&issuer.sign(&claims())).job("echo", "jwt", "eu", &json!({})).expect(200);
    assert_eq!(good["caller"], "jwt:anna");
    let with = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        issuer.sign(&claims)
    };
    let none = {
        let header = data_encoding(r#"{"alg":"none","typ":"JWT"}"#);
        format!("{header}.{}.", data_encoding(&claims().to_string()))
    };
    let by_public_key = encode(
        &Header { kid: Some(issuer.kid()), ..Header::new(Algorithm::HS256) },
        &claims(),
        &EncodingKey::from_secret(&issuer.public_bytes()),
    )
    .unwrap();
    let table = [
        ("nonsense", "neither an api key"),
        ("a.b.c", "jwt"),
        (&with("exp", json!(now() - 3600)), "expired"),
        (&with("aud", json!("others")), "audience"),
        (&with("iss", json!("https://evil.example")), "issuer"),
        (&none, "alg"),
        (&by_public_key, "its key is for eddsa"),
        (&issuer.sign_with_kid(&claims(), "unknown"), "kid"),
        (&Issuer::new().sign_with_kid(&claims(), &issuer.kid()), "signature"),
        (&with("probeops", json!({"tools": ["pnig"]})), "probeops"),
        (&with("probeops", json!({"tool": ["ping"]})), "probeops"),
        ("pk_0000_nonsense", "key"),
    ];
    for (token, words) in table {
        let answer = api.caller(token).job("echo", "jwt", "eu", &json!({}));
        let text = answer.text.clone();
        assert_eq!(answer.status, 401, "{words}: {text}");
        assert!(answer.header("www-authenticate").is_some_and(|challenge| challenge.starts_with("Bearer")), "{words}");
        assert!(text.to_lowercase().contains(words), "`{words}` is not in {text}");
    }
    let missing = api.admin().without_token().job("echo", "x", "eu", &json!({}));
    assert_eq!(missing.status, 401);
    assert!(missing.header("www-authenticate").is_some());
}

fn data_encoding(text: &str) -> String {
    probeops_tests::identity::base64url(text.as_bytes())
}

#[test]
fn limits_narrow_what_a_key_may_do() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("l-1", "eu");
    fabric.agent("l-2", "us");
    api.wait_for_nodes(2);
    let limits = json!({"tools": ["echo", "tcp"], "regions": ["e*"], "targets": ["127.0.0.0/8", "*.example.com"]});
    let key = api.key(&json!({"name": "narrow", "scopes": ["jobs:write"], "limits": limits}));
    let caller = api.caller(&key);
    assert_eq!(caller.job("tcp", "127.0.0.1", "eu", &json!({})).outcome()["status"], "success");
    for (tool, target, from, words) in [
        ("dns", "a.example.com", "eu", "dns"),
        ("tcp", "127.0.0.1", "us", "us"),
        ("tcp", "127.0.0.1", "node:l-2", "us"),
        ("tcp", "192.0.2.1", "eu", "targets"),
        ("tcp", "example.com", "eu", "targets"),
    ] {
        let answer = caller.job(tool, target, from, &json!({}));
        assert_eq!((answer.status, &answer.body["code"]), (403, &json!("forbidden")), "{}", answer.text);
        assert!(answer.text.contains(words), "`{words}` is not in {}", answer.text);
    }
    let scoped = caller.get("/v1/nodes").expect(403);
    assert!(scoped["detail"].as_str().unwrap().contains("nodes:read"), "{scoped}");
}

#[test]
fn a_rate_is_held_and_says_when_to_come_back() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("l-1", "eu");
    api.wait_for_nodes(1);
    let key = api.key(&json!({"name": "slow", "scopes": ["jobs:write"], "limits": {"rate": "3/h"}}));
    let caller = api.caller(&key);
    for _ in 0..3 {
        caller.job("echo", "x", "eu", &json!({})).expect(200);
    }
    let refused = caller.job("echo", "x", "eu", &json!({}));
    assert_eq!((refused.status, &refused.body["code"]), (429, &json!("rate_limited")), "{}", refused.text);
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=3600).contains(&seconds), "{seconds}");
}
