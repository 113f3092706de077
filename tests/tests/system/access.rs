//! Who may ask: keys, tokens, scopes, limits.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use probeops_tests::fabric::{Api, ApiOptions, Fabric, free_port};
use probeops_tests::http::Caller;
use probeops_tests::identity::{Issuer, KeyServer, base64url};
use serde_json::{Value, json};

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn claims() -> Value {
    json!({"iss": ISSUER, "aud": "probeops", "sub": "anna", "exp": now() + 600, "scope": "jobs:write jobs:read"})
}

const ISSUER: &str = "https://id.example";

fn jwt_options(jwks: Option<PathBuf>, jwt_secret: Option<PathBuf>) -> ApiOptions {
    let jwt_issuer = Some(ISSUER.to_owned());
    ApiOptions { jwks, jwt_secret, jwt_issuer, jwt_audience: Some("probeops".to_owned()), ..ApiOptions::default() }
}

#[test]
fn tokens_of_every_algorithm_are_accepted_by_the_key_they_are_for() {
    let fabric = Fabric::start();
    let (eddsa, es256, rs256) = (Issuer::new(), Issuer::es256(), Issuer::rs256());
    let jwks = fabric.file("jwks.json", &Issuer::jwks(&[&eddsa, &es256, &rs256]).to_string());
    let api = fabric.api_with(&jwt_options(Some(jwks.clone()), None));
    fabric.agent("j-1", "eu");
    api.wait_for_nodes(1);
    for issuer in [&eddsa, &es256, &rs256] {
        let done = api.caller(&issuer.sign(&claims())).job("echo", "jwt", "eu", &json!({})).expect(200);
        assert_eq!((&done["caller"], &done["results"][0]["status"]), (&json!("jwt:anna"), &json!("success")));
        for other in [&eddsa, &es256, &rs256].into_iter().filter(|other| other.kid() != issuer.kid()) {
            let refused = api.caller(&issuer.sign_with_kid(&claims(), &other.kid())).get("/v1/tools").expect(401);
            assert!(refused["detail"].as_str().unwrap().contains("but its key is for"), "{refused}");
        }
    }
    // A key taken out of the file is refused without a restart.
    let token = eddsa.sign(&claims());
    std::fs::write(&jwks, Issuer::jwks(&[&es256]).to_string()).unwrap();
    api.wait_until("the key is gone", || api.caller(&token).get("/v1/tools").status == 401);
    assert_eq!(api.caller(&es256.sign(&claims())).get("/v1/tools").status, 200);
}

#[test]
fn keys_at_a_url_are_followed_when_they_rotate_and_stay_when_their_server_is_away() {
    let fabric = Fabric::start();
    let (first, second, third) = (Issuer::new(), Issuer::es256(), Issuer::rs256());
    let (certificate, key) = fabric.certificate();
    let mut provider = KeyServer::start(&certificate, &key, &Issuer::jwks(&[&first]));
    let without_cache = ApiOptions { jwks_url: Some(provider.url()), ..jwt_options(None, None) };
    let options = ApiOptions { jwks_cache: Some(fabric.data().join("jwks-cache.json")), ..without_cache.clone() };
    let api = fabric.api_with(&options);
    fabric.agent("u-1", "eu");
    api.wait_for_nodes(1);
    let done = api.caller(&first.sign(&claims())).job("echo", "jwt", "eu", &json!({})).expect(200);
    assert_eq!((&done["caller"], &done["results"][0]["status"]), (&json!("jwt:anna"), &json!("success")));
    let status = |api: &Api, issuer: &Issuer| api.caller(&issuer.sign(&claims())).get("/v1/tools").status;
    // A new key beside the old one, and one of a kind that nobody knows yet.
    let odd = json!({"kty": "AKP", "alg": "ML-DSA-44", "kid": "odd", "pub": "AQAB"});
    provider.says(&json!({"keys": [odd, first.jwk(), second.jwk()]}));
    api.wait_until("the second key is fetched", || status(&api, &second) == 200);
    assert_eq!(status(&api, &first), 200);
    // The old one is withdrawn; what is signed with a third has the keys fetched again.
    provider.says(&json!({"keys": [odd, second.jwk(), third.jwk()]}));
    api.wait_until("the third key is fetched", || status(&api, &third) == 200);
    let refused = api.caller(&first.sign(&claims())).get("/v1/tools").expect(401);
    assert!(refused["detail"].as_str().unwrap().contains("that is not known here"), "{refused}");
    assert_eq!(status(&api, &second), 200);
    assert_eq!(api.log().matches("key 0 (kid \\\"odd\\\") is of a kind").count(), 1, "said once: {}", api.log());
    // Its server is away: the last good keys stay, for a new start, too.
    provider.stop();
    assert_eq!((status(&api, &Issuer::new()), status(&api, &second), status(&api, &first)), (401, 200, 401));
    api.kill();
    let api = fabric.api_with(&options);
    assert_eq!((status(&api, &second), status(&api, &third), status(&api, &first)), (200, 200, 401));
    // Where none were kept, no JWT is taken, and API keys are.
    let bare = fabric.api_with(&without_cache);
    let refused = bare.caller(&second.sign(&claims())).get("/v1/tools");
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("10")), "{}", refused.text);
    assert_eq!(bare.admin().get("/v1/tools").status, 200);
    // It is there again, without one of them.
    provider.says(&Issuer::jwks(&[&third]));
    provider.go_on();
    for api in [&api, &bare] {
        api.wait_until("its keys are fetched", || (status(api, &second), status(api, &third)) == (401, 200));
    }
}

#[test]
fn a_shared_secret_checks_tokens_only_where_it_is_given_and_long_enough() {
    let fabric = Fabric::start();
    let secret = "0123456789abcdef0123456789abcdef";
    let file = fabric.file("secret", secret);
    let api = fabric.api_with(&jwt_options(None, Some(file)));
    let signed = |secret: &str| encode(&Header::new(Algorithm::HS256), &claims(), &EncodingKey::from_secret(secret.as_bytes())).unwrap();
    assert_eq!(api.caller(&signed(secret)).get("/v1/tools").status, 200);
    for other in ["0123456789abcdef0123456789abcdeg", "", "secret"] {
        let refused = api.caller(&signed(other)).get("/v1/tools").expect(401);
        assert!(refused["detail"].as_str().unwrap().contains("signature does not fit"), "{refused}");
    }
    let refused = api.caller(&Issuer::new().sign(&claims())).get("/v1/tools").expect(401);
    assert!(refused["detail"].as_str().unwrap().contains("signed with EdDSA, but its key is for HS256"), "{refused}");
    let short = fabric.file("short", &secret[..31]);
    refuses_to_start(&fabric, &jwt_options(None, Some(short)), "has 31 bytes; HS256 needs at least 32");
    let jwks = fabric.file("jwks.json", &Issuer::jwks(&[&Issuer::new()]).to_string());
    let both = jwt_options(Some(jwks), Some(fabric.file("secret", secret)));
    refuses_to_start(&fabric, &both, "never by both");
    let plain = fabric.api();
    let refused = plain.caller(&signed(secret)).get("/v1/tools").expect(401);
    assert!(refused["detail"].as_str().unwrap().contains("accepts no JWTs"), "{refused}");
}

/// Starts an API that must end by itself with this on its standard error.
#[track_caller]
fn refuses_to_start(fabric: &Fabric, options: &ApiOptions, words: &str) {
    refuses_at(fabric, free_port(), options, words);
}

#[track_caller]
fn refuses_at(fabric: &Fabric, address: SocketAddr, options: &ApiOptions, words: &str) {
    let ended = fabric.api_command(address, options).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains(words), "`{words}` is not in {said}");
}

#[test]
fn the_api_speaks_https_and_clear_text_only_to_its_own_machine() {
    let fabric = Fabric::start();
    let (cert, key) = fabric.certificate();
    let tls = |cert: &Path, key: &Path| ApiOptions { tls: Some((cert.to_owned(), key.to_owned())), ..ApiOptions::default() };
    let api = fabric.api_with(&tls(&cert, &key));
    assert!(api.url().starts_with("https://"));
    fabric.agent("s-1", "eu");
    api.wait_for_nodes(1);
    assert_eq!(api.admin().job("echo", "secret", "eu", &json!({})).outcome()["status"], "success");
    let untrusting = Caller::new(api.url(), None, None).try_get("/livez").unwrap_err();
    assert!(untrusting.to_string().to_lowercase().contains("certificate"), "{untrusting}");
    assert!(Caller::new(&api.url().replace("https", "http"), None, None).try_get("/livez").is_err(), "no clear text on the same port");
    let other = rcgen::KeyPair::generate().unwrap();
    let other = fabric.file("other.pem", &other.serialize_pem());
    refuses_to_start(&fabric, &tls(&cert, &other), "cannot be used together");
    refuses_to_start(&fabric, &tls(&cert, Path::new("absent.pem")), "no private key can be read from absent.pem");
    let everywhere = SocketAddr::from(([0, 0, 0, 0], free_port().port()));
    refuses_at(&fabric, everywhere, &ApiOptions::default(), "set --tls-cert and --tls-key for HTTPS, or --behind-proxy");
}

#[test]
fn tokens_of_the_configured_issuer_are_accepted_and_nothing_else() {
    let fabric = Fabric::start();
    let issuer = Issuer::new();
    let jwks = fabric.file("jwks.json", &Issuer::jwks(&[&issuer]).to_string());
    let api = fabric.api_with(&jwt_options(Some(jwks), None));
    let with = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        issuer.sign(&claims)
    };
    let none = {
        let header = data_encoding(r#"{"alg":"none","typ":"JWT"}"#);
        format!("{header}.{}.", data_encoding(&claims().to_string()))
    };
    let public = data_encoding::BASE64URL_NOPAD.decode(issuer.jwk()["x"].as_str().unwrap().as_bytes()).unwrap();
    let by_public_key =
        encode(&Header { kid: Some(issuer.kid()), ..Header::new(Algorithm::HS256) }, &claims(), &EncodingKey::from_secret(&public))
            .unwrap();
    let table = [
        ("", "there is no credential; send `Authorization: Bearer"),
        ("nonsense", "neither an API key (pk_…) nor a JWT"),
        ("a.b.c", "the JWT is malformed: its header is not base64url"),
        ("pk_0000_nonsense", "the API key is cut off"),
        (&with("exp", json!(now() - 3600)), "the JWT has expired; get a new one from its issuer"),
        (&with("nbf", json!(now() + 3600)), "the JWT is not valid yet"),
        (&with("aud", json!("others")), "for another audience; for this API it must be `probeops`"),
        (&with("iss", json!("https://evil.example")), "from another issuer; this API accepts those of `https://id.example`"),
        (&none, "the JWT is not signed (alg none)"),
        (&by_public_key, "signed with HS256, but its key is for EdDSA"),
        (&issuer.sign_with_kid(&claims(), "unknown"), "(kid `unknown`) that is not known here"),
        (&Issuer::new().sign_with_kid(&claims(), &issuer.kid()), "the JWT's signature does not fit"),
        (&with("probeops", json!({"tools": ["pnig"]})), "claim `probeops` (limits) is refused: /tools/0: unknown tool `pnig`"),
        (
            &with("probeops", json!({"tool": ["ping"]})),
            "claim `probeops` (limits) is refused: /tool: unknown field `tool`, expected one of `tools`, `regions`",
        ),
    ];
    for (token, words) in table {
        let caller = if token.is_empty() { api.nobody() } else { api.caller(token) };
        let answer = caller.job("echo", "jwt", "eu", &json!({}));
        assert_eq!((answer.status, &answer.body["code"], &answer.body["status"]), (401, &json!("unauthorized"), &json!(401)), "{words}");
        let challenge = if token.is_empty() { "Bearer realm=\"probeops\"" } else { "Bearer realm=\"probeops\", error=\"invalid_token\"" };
        assert_eq!(answer.header("www-authenticate"), Some(challenge), "{words}");
        assert_eq!(answer.body.get("errors"), None, "a credential has no place in the body: {words}");
        assert!(answer.body["detail"].as_str().unwrap().contains(words), "`{words}` is not in {}", answer.text);
    }
}

fn data_encoding(text: &str) -> String {
    base64url(text.as_bytes())
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
        ("dns", "a.example.com", "eu", ["/tool", "limited to the tools echo, tcp; `dns` is none of them"]),
        ("tcp", "127.0.0.1", "us", ["/from", "limited to the regions e*; `us` is none of them"]),
        ("tcp", "192.0.2.1", "eu", ["/target", "limited to the targets 127.0.0.0/8,*.example.com; `192.0.2.1` is none of them"]),
        ("tcp", "example.com", "eu", ["/target", "limited to the targets 127.0.0.0/8,*.example.com; `example.com` is none of them"]),
    ] {
        let answer = caller.job(tool, target, from, &json!({}));
        assert_eq!((answer.status, &answer.body["code"]), (403, &json!("forbidden")), "{}", answer.text);
        assert_eq!(answer.body["errors"][0]["pointer"], words[0], "{}", answer.text);
        assert!(answer.body["detail"].as_str().unwrap().contains(words[1]), "`{}` is not in {}", words[1], answer.text);
    }
    // Where a node is that he may not know of, he is not told.
    let unknown = caller.job("tcp", "127.0.0.1", "node:l-2", &json!({})).expect(404);
    assert_eq!((&unknown["code"], &unknown["detail"]), (&json!("no_such_node"), &json!("there is no node `l-2`; the nodes are: l-1")));
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
    // A window, and the twentieth of it in which the first was taken.
    assert!((3500..=3780).contains(&seconds), "{seconds}");
}
