//! Tokens of every kind, made here with keys made here.

use std::sync::LazyLock;

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::{EncodingKey, encode, get_current_timestamp};
use probeops_shared::access::Scope;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PublicKeyData};
use rsa::pkcs1::EncodeRsaPrivateKey;
use rsa::traits::PublicKeyParts;
use serde_json::{Value, json};

use super::*;

pub(super) const ISSUER: &str = "https://id.example";
pub(super) const AUDIENCE: &str = "probeops";
const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

pub(super) struct Signer {
    algorithm: Algorithm,
    private: EncodingKey,
    pub(super) public: Value,
}

fn base64(bytes: &[u8]) -> String {
    BASE64URL_NOPAD.encode(bytes)
}

pub(super) static EDDSA: LazyLock<Signer> = LazyLock::new(|| {
    let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let public = json!({"kty": "OKP", "crv": "Ed25519", "kid": "ed", "alg": "EdDSA", "use": "sig", "x": base64(pair.der_bytes())});
    Signer { algorithm: Algorithm::EdDSA, private: EncodingKey::from_ed_der(&pair.serialize_der()), public }
});

pub(super) static ES256: LazyLock<Signer> = LazyLock::new(|| {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let point = pair.der_bytes();
    let public = json!({"kty": "EC", "crv": "P-256", "kid": "ec", "x": base64(&point[1..33]), "y": base64(&point[33..])});
    Signer { algorithm: Algorithm::ES256, private: EncodingKey::from_ec_der(&pair.serialize_der()), public }
});

static RS256: LazyLock<Signer> = LazyLock::new(|| {
    let pair = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).unwrap();
    let public = json!({
        "kty": "RSA", "kid": "rsa", "alg": "RS256", "n": base64(&pair.n().to_bytes_be()), "e": base64(&pair.e().to_bytes_be()),
    });
    Signer { algorithm: Algorithm::RS256, private: EncodingKey::from_rsa_der(pair.to_pkcs1_der().unwrap().as_bytes()), public }
});

fn verifier() -> Verifier {
    let jwks = json!({"keys": [EDDSA.public, ES256.public, RS256.public]});
    Verifier::new(keyset::parse_jwks(jwks.to_string().as_bytes()).unwrap(), ISSUER, AUDIENCE)
}

fn claims() -> Value {
    json!({"iss": ISSUER, "aud": AUDIENCE, "sub": "n8n@example.com", "exp": get_current_timestamp() + 60, "scope": "openid jobs:write"})
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

pub(super) fn signed_as(signer: &Signer, kid: Option<&str>, claims: &Value) -> String {
    let mut header = jsonwebtoken::Header::new(signer.algorithm);
    header.kid = kid.map(str::to_owned);
    encode(&header, claims, &signer.private).unwrap()
}

fn signed(claims: &Value) -> String {
    signed_as(&EDDSA, Some("ed"), claims)
}

/// A token with this header, and the signature of nobody.
fn unsigned(header: &Value) -> String {
    format!("{}.{}.", base64(header.to_string().as_bytes()), base64(claims().to_string().as_bytes()))
}

impl Verifier {
    /// Keys that are here are not waited for.
    fn identified(&self, token: &str) -> Result<Identity, Problem> {
        futures_util::FutureExt::now_or_never(self.identify(token)).unwrap()
    }
}

#[track_caller]
fn refuses(token: &str, part: &str) {
    let problem = verifier().identified(token).unwrap_err();
    assert_eq!(problem.code(), Code::Unauthorized);
    assert!(problem.detail().contains(part), "{problem}");
}

#[test]
fn tokens_of_every_accepted_algorithm_name_their_subject() {
    for (signer, kid) in [(&*EDDSA, "ed"), (&*ES256, "ec"), (&*RS256, "rsa")] {
        let identity = verifier().identified(&signed_as(signer, Some(kid), &claims())).unwrap();
        assert_eq!((identity.name.as_str(), identity.scopes.as_slice()), ("jwt:n8n@example.com", &[Scope::JobsWrite][..]), "{kid}");
    }
}

#[test]
fn what_is_no_token_is_called_malformed() {
    for token in ["a.b.c", "é.e.e", "e30=.e30.", "a b.e30."] {
        refuses(token, "malformed: its header is not base64url");
    }
    refuses("..", "not a JSON object with `alg`");
    refuses(&format!("{}.e30.", base64(b"{}")), "not a JSON object with `alg`");
    refuses(&format!("{}.e30.", base64(b"[]")), "not a JSON object with `alg`");
    let token = signed(&claims());
    let (message, signature) = token.rsplit_once('.').unwrap();
    refuses(&format!("{message}.{}", &signature[1..]), "");
}

#[test]
fn the_algorithm_is_the_keys_and_never_the_headers() {
    refuses(&unsigned(&json!({"alg": "none"})), "not signed (alg none)");
    refuses(&unsigned(&json!({"alg": "None", "kid": "ed"})), "not signed (alg none)");
    refuses(&unsigned(&json!({"alg": "HS256", "kid": "ed"})), "signed with HS256, but its key is for EdDSA");
    refuses(&unsigned(&json!({"alg": "EdDSA", "kid": "ed", "crit": ["b64"]})), "demands extensions (crit)");
    // The public key, used as a shared secret.
    let secret = Signer {
        algorithm: Algorithm::HS256,
        private: EncodingKey::from_secret(EDDSA.public["x"].as_str().unwrap().as_bytes()),
        public: Value::Null,
    };
    refuses(&signed_as(&secret, Some("ed"), &claims()), "signed with HS256, but its key is for EdDSA");
    refuses(&signed_as(&ES256, Some("ed"), &claims()), "signed with ES256, but its key is for EdDSA");
}

#[test]
fn the_key_is_the_one_the_token_names() {
    refuses(&signed_as(&EDDSA, Some("gone"), &claims()), "(kid `gone`) that is not known here");
    refuses(&signed_as(&EDDSA, None, &claims()), "does not say which key");
    let only = keyset::parse_jwks(json!({"keys": [EDDSA.public]}).to_string().as_bytes()).unwrap();
    assert!(Verifier::new(only, ISSUER, AUDIENCE).identified(&signed_as(&EDDSA, None, &claims())).is_ok());
    let mut stranger = KeyPair::generate_for(&PKCS_ED25519).unwrap().serialize_der();
    let stranger =
        Signer { algorithm: Algorithm::EdDSA, private: EncodingKey::from_ed_der(&std::mem::take(&mut stranger)), public: Value::Null };
    refuses(&signed_as(&stranger, Some("ed"), &claims()), "signature does not fit");
}

#[test]
fn a_changed_token_is_refused() {
    let token = signed(&claims());
    let mut parts: Vec<&str> = token.split('.').collect();
    let promoted = base64(with("scope", "admin".into()).to_string().as_bytes());
    parts[1] = &promoted;
    refuses(&parts.join("."), "signature does not fit");
}

#[test]
fn time_issuer_audience_and_subject_must_fit() {
    let now = get_current_timestamp();
    refuses(&signed(&with("exp", (now - 31).into())), "has expired");
    assert!(verifier().identified(&signed(&with("exp", (now - 20).into()))).is_ok(), "within the leeway");
    refuses(&signed(&with("nbf", (now + 60).into())), "not valid yet");
    refuses(&signed(&with("iss", "https://evil.example".into())), "from another issuer; this API accepts those of `https://id.example`");
    refuses(&signed(&with("aud", "other".into())), "for another audience; for this API it must be `probeops`");
    refuses(&signed(&with("aud", json!(["other", "more"]))), "for another audience");
    assert!(verifier().identified(&signed(&with("aud", json!(["other", AUDIENCE])))).is_ok());
    for claim in ["iss", "aud", "exp", "sub"] {
        refuses(&signed(&without(claim)), &format!("no usable claim `{claim}`"));
    }
    refuses(&signed(&with("exp", "soon".into())), "`exp`");
    refuses(&signed(&with("sub", "".into())), "`sub` must be");
    refuses(&signed(&with("sub", "a\r\nProbe-Targets: 0.0.0.0/0".into())), "`sub` must be");
}

#[test]
fn limits_that_cannot_be_understood_refuse_the_token() {
    let limited = with("probeops", json!({"tools": ["echo"], "regions": ["eu-*"], "targets": ["10.0.0.0/8"], "rate": "60/m"}));
    let identity = verifier().identified(&signed(&limited)).unwrap();
    assert_eq!(serde_json::to_value(&identity.limits).unwrap()["rate"], "60/m");
    for (limits, part) in [
        (json!({"speed": 1}), "unknown field `speed`"),
        (json!({"tools": ["teleport"]}), "/tools/0"),
        (json!({"targets": ["10.0.0.0/33"]}), "/targets"),
        (json!({"targets": []}), "empty list"),
        (json!({"rate": 60}), "/rate"),
        (json!([]), "must be an object"),
        (Value::Null, "must be an object"),
    ] {
        refuses(&signed(&with("probeops", limits)), part);
    }
    refuses(&signed(&with("scope", json!(["jobs:write"]))), "`scope` must be a string");
}

#[test]
fn a_claim_that_stands_twice_refuses_the_token() {
    let text = claims().to_string();
    let doubled = format!("{{\"sub\":\"other\",{}", &text[1..]);
    let message = format!("{}.{}", base64(br#"{"alg":"EdDSA","kid":"ed"}"#), base64(doubled.as_bytes()));
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &EDDSA.private, Algorithm::EdDSA).unwrap();
    refuses(&format!("{message}.{signature}"), "malformed");
}

#[test]
fn a_shared_secret_is_used_for_hs256_alone() {
    let folder = std::env::temp_dir().join(format!("probeops-jwt-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (long, short) = (folder.join("long"), folder.join("short"));
    std::fs::write(&long, [SECRET, b"\n"].concat()).unwrap();
    std::fs::write(&short, &SECRET[..31]).unwrap();
    let verifier = Verifier::new(keyset::read_secret(&long).unwrap(), ISSUER, AUDIENCE);
    let secret = Signer { algorithm: Algorithm::HS256, private: EncodingKey::from_secret(SECRET), public: Value::Null };
    assert!(verifier.identified(&signed_as(&secret, None, &claims())).is_ok());
    assert!(verifier.identified(&signed(&claims())).unwrap_err().detail().contains("signed with EdDSA, but its key is for HS256"));
    assert!(keyset::read_secret(&short).unwrap_err().contains("has 31 bytes; HS256 needs at least 32"));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_key_file_that_cannot_be_right_is_refused() {
    let refuses = |jwks: Value, part: &str| {
        let error = keyset::parse_jwks(jwks.to_string().as_bytes()).unwrap_err();
        assert!(error.contains(part), "{error}");
    };
    refuses(json!({}), "no list `keys`");
    refuses(json!({"keys": []}), "no key for signatures");
    refuses(json!({"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}), "shared secret (kty oct)");
    refuses(json!({"keys": [{"kty": "RSA", "n": "AQAB", "e": "AQAB"}]}), "too short");
    let mut encryption = RS256.public.clone();
    encryption["use"] = "enc".into();
    refuses(json!({"keys": [encryption]}), "no key for signatures");
    let mut other = RS256.public.clone();
    other["alg"] = "RS512".into();
    refuses(json!({"keys": [other]}), "key 0 (kid \"rsa\") is for another algorithm");
    let nameless = without_kid(&EDDSA.public);
    refuses(json!({"keys": [nameless, nameless]}), "key 1 has no kid, which it needs beside others");
}

fn without_kid(public: &Value) -> Value {
    let mut nameless = public.clone();
    nameless.as_object_mut().unwrap().remove("kid");
    nameless
}

#[test]
fn a_key_that_is_odd_is_passed_over_and_the_others_are_used() {
    let mut unknown_algorithm = RS256.public.clone();
    (unknown_algorithm["alg"], unknown_algorithm["kid"]) = ("ML-DSA-44".into(), "pq".into());
    let mut short = RS256.public.clone();
    (short["n"], short["kid"]) = ("AQAB".into(), "short".into());
    let mut again = ES256.public.clone();
    again["kid"] = "ed".into();
    let odd = [
        (
            json!({"kty": "AKP", "alg": "ML-DSA-44", "kid": "pq", "pub": "AQAB"}),
            "key 0 (kid \"pq\") is of a kind that is not known here (kty)",
        ),
        (json!({"kid": "none"}), "key 0 (kid \"none\") "),
        (json!("not a key"), "key 0 cannot be read: "),
        (unknown_algorithm, "key 0 (kid \"pq\") "),
        (json!({"kty": "OKP", "crv": "X25519", "x": "AQAB", "kid": "x"}), "key 0 (kid \"x\") "),
        (json!({"kty": "EC", "crv": "P-384", "x": "AQAB", "y": "AQAB", "kid": "p"}), "key 0 (kid \"p\") "),
        (json!({"kty": "oct", "k": "c2VjcmV0", "kid": "s"}), "key 0 (kid \"s\") is a shared secret (kty oct)"),
        (short, "key 0 (kid \"short\") is damaged or too short"),
        (without_kid(&ES256.public), "key 0 has no kid"),
    ];
    for (odd, words) in &odd {
        let set = keyset::parse_jwks(json!({"keys": [odd, EDDSA.public]}).to_string().as_bytes()).unwrap();
        let [said] = set.passed_over() else { panic!("{set:?}") };
        assert!(said.contains(words), "`{words}` is not in `{said}`");
        assert_eq!(set.names(), ["ed"]);
        assert!(Verifier::new(set, ISSUER, AUDIENCE).identified(&signed(&claims())).is_ok(), "{odd}");
    }
    // Of two with one name, the first is meant; what the other signed does not pass.
    let set = keyset::parse_jwks(json!({"keys": [EDDSA.public, again]}).to_string().as_bytes()).unwrap();
    assert_eq!(set.passed_over(), ["key 1 (kid \"ed\") has the same kid as one before it"]);
    let verifier = Verifier::new(set, ISSUER, AUDIENCE);
    assert!(verifier.identified(&signed(&claims())).is_ok());
    assert!(verifier.identified(&signed_as(&ES256, Some("ed"), &claims())).is_err());
    // All of them at once, and none that is usable.
    let all: Vec<&Value> = odd.iter().map(|(odd, _)| odd).take(8).collect();
    let none = keyset::parse_jwks(json!({"keys": all}).to_string().as_bytes()).unwrap_err();
    assert!(none.starts_with("it has no key for signatures") && none.contains("key 7 (kid \"short\")"), "{none}");
}

#[test]
fn a_key_file_is_read_again_when_it_changes_and_a_broken_one_changes_nothing() {
    let path = std::env::temp_dir().join(format!("probeops-jwks-{}", std::process::id()));
    let write = |jwks: &str| std::fs::write(&path, jwks).unwrap();
    write(&json!({"keys": [EDDSA.public]}).to_string());
    let verifier = Verifier::new(keyset::read_jwks(&path).unwrap(), ISSUER, AUDIENCE);
    let mut seen = Stamp::of(&path);
    let (old, new) = (signed(&claims()), signed_as(&ES256, Some("ec"), &claims()));
    assert!(verifier.identified(&old).is_ok() && verifier.identified(&new).is_err());
    write(&json!({"keys": [EDDSA.public, ES256.public]}).to_string());
    let Keys::Held(keys) = &verifier.keys else { panic!() };
    read_if_changed(keys, &path, &mut seen);
    assert!(verifier.identified(&old).is_ok() && verifier.identified(&new).is_ok());
    write("{");
    read_if_changed(keys, &path, &mut seen);
    assert!(verifier.identified(&old).is_ok() && verifier.identified(&new).is_ok());
    std::fs::remove_file(&path).unwrap();
}
