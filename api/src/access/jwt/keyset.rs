//! The keys that check JWTs: those of a JWKS, or one shared secret.

use std::path::Path;

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;

/// The largest key file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// The largest set of keys that is fetched, in bytes.
pub(super) const KEYS_BYTES_MAX: usize = 256 * 1024;
/// A shared secret must be at least as long as the hash.
const SECRET_BYTES_MIN: usize = 32;
/// An RSA modulus must have at least 2,048 bits.
const RSA_BYTES_MIN: usize = 256;

/// How much of what is said of a key that is passed over is kept.
const REASON_CHARACTERS_MAX: usize = 200;

/// The keys.
#[derive(Debug, Default)]
pub(super) struct KeySet {
    keys: Vec<Key>,
    /// What was said of those that cannot be used.
    passed_over: Vec<String>,
}

/// One key. It is for one algorithm.
pub(super) struct Key {
    id: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) decoding: DecodingKey,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("id", &self.id).field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

impl KeySet {
    /// How many.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// What they are called.
    pub(super) fn names(&self) -> Vec<String> {
        self.keys.iter().map(|key| key.id.clone().unwrap_or_default()).collect()
    }

    /// What was said of those that cannot be used.
    #[cfg(test)]
    pub(super) fn passed_over(&self) -> &[String] {
        &self.passed_over
    }

    /// Says in the log which keys were passed over, unless that was said of those there were before.
    pub(super) fn tell_passed_over(&self, before: Option<&Self>, place: &str) {
        if before.is_none_or(|before| before.passed_over != self.passed_over) {
            for why in &self.passed_over {
                tracing::warn!("a key of {place} is passed over: {why}");
            }
        }
    }

    /// Whether a token may be signed with one of them, by what the token calls it.
    pub(super) fn knows(&self, id: Option<&str>) -> bool {
        self.find(id).is_ok()
    }

    /// The key a token was signed with, by what the token calls it.
    pub(super) fn find(&self, id: Option<&str>) -> Result<&Key, String> {
        match (id, self.keys.as_slice()) {
            // A key without an id is used for all tokens when it is the only one.
            (_, [only]) if only.id.is_none() => Ok(only),
            (None, [only]) => Ok(only),
            (None, _) => Err("the JWT does not say which key it was signed with (kid), and there are several".to_owned()),
            (Some(id), keys) => {
                let named = keys.iter().find(|key| key.id.as_deref() == Some(id));
                let shown: String = id.chars().filter(|c| !c.is_control()).take(64).collect();
                named.ok_or_else(|| format!("the JWT was signed with a key (kid `{shown}`) that is not known here"))
            }
        }
    }
}

/// Reads a shared secret.
pub(super) fn read_secret(path: &Path) -> Result<KeySet, String> {
    let bytes = read(path)?;
    let secret = bytes.trim_ascii_end();
    if secret.len() < SECRET_BYTES_MIN {
        let (path, length) = (path.display(), secret.len());
        return Err(format!("the JWT secret in {path} has {length} bytes; HS256 needs at least {SECRET_BYTES_MIN}"));
    }
    let key = Key { id: None, algorithm: Algorithm::HS256, decoding: DecodingKey::from_secret(secret) };
    Ok(KeySet { keys: vec![key], passed_over: Vec::new() })
}

/// Reads a JWKS file.
pub(super) fn read_jwks(path: &Path) -> Result<KeySet, String> {
    parse_jwks(&read(path)?).map_err(|detail| format!("the JWKS file {} cannot be used: {detail}", path.display()))
}

/// Reads a JWKS. A key that cannot be used is passed over, as RFC 7517 asks (section 5), whatever is odd about it; at least one must be left.
pub(super) fn parse_jwks(bytes: &[u8]) -> Result<KeySet, String> {
    let document: Value = serde_json::from_slice(bytes).map_err(|error| format!("it is not JSON: {error}"))?;
    let listed = document.get("keys").and_then(Value::as_array).ok_or("it has no list `keys`")?;
    let mut set = KeySet::default();
    let pass_over = |set: &mut KeySet, (index, value): (usize, &Value), why: &str| {
        let id = value.get("kid").and_then(Value::as_str).map_or_else(String::new, |id| format!(" (kid {id:?})"));
        set.passed_over.push(format!("key {index}{id} {why}").chars().take(REASON_CHARACTERS_MAX).collect());
    };
    let mut nameless = Vec::new();
    for (index, value) in listed.iter().enumerate() {
        match usable(value) {
            Err(why) => pass_over(&mut set, (index, value), &why),
            Ok(key) if key.id.is_none() => nameless.push((index, value, key)),
            Ok(key) if set.keys.iter().any(|other| other.id == key.id) => {
                pass_over(&mut set, (index, value), "has the same kid as one before it");
            }
            Ok(key) => set.keys.push(key),
        }
    }
    // A token cannot say that it means one without a name, unless there is no other.
    if set.keys.is_empty() && nameless.len() == 1 {
        set.keys.extend(nameless.drain(..).map(|(_, _, key)| key));
    }
    for (index, value, _) in nameless {
        pass_over(&mut set, (index, value), "has no kid, which it needs beside others");
    }
    if set.keys.is_empty() {
        let why = if set.passed_over.is_empty() { String::new() } else { format!(": {}", set.passed_over.join("; ")) };
        return Err(format!("it has no key for signatures with EdDSA (Ed25519), ES256 or RS256{why}"));
    }
    Ok(set)
}

/// The key, or why it is none of ours.
fn usable(value: &Value) -> Result<Key, String> {
    let jwk: Jwk = serde_json::from_value(value.clone()).map_err(|error| format!("cannot be read: {error}"))?;
    if jwk.common.public_key_use.as_ref().is_some_and(|purpose| *purpose != PublicKeyUse::Signature) {
        return Err("is not for signatures (use)".to_owned());
    }
    let decoded = |text: &str| BASE64URL_NOPAD.decode(text.as_bytes()).map(|bytes| bytes.len()).ok();
    let (algorithm, whole) = match &jwk.algorithm {
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => (Algorithm::EdDSA, decoded(&pair.x) == Some(32)),
        AlgorithmParameters::EllipticCurve(point) if point.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, decoded(&point.x) == Some(32) && decoded(&point.y) == Some(32))
        }
        AlgorithmParameters::RSA(rsa) => (Algorithm::RS256, decoded(&rsa.n).is_some_and(|bytes| bytes >= RSA_BYTES_MIN)),
        AlgorithmParameters::OctetKey(_) => {
            return Err("is a shared secret (kty oct), which does not belong among public keys and is never used".to_owned());
        }
        AlgorithmParameters::OctetKeyPair(_) | AlgorithmParameters::EllipticCurve(_) => {
            return Err("is of another curve than Ed25519 and P-256 (crv)".to_owned());
        }
        _ => return Err("is of a kind that is not known here (kty)".to_owned()),
    };
    if jwk.common.key_algorithm.is_some_and(|given| given != KeyAlgorithm::from(algorithm)) {
        return Err("is for another algorithm than EdDSA, ES256 and RS256 (alg)".to_owned());
    }
    if !whole {
        return Err("is damaged or too short (RSA needs 2048 bits)".to_owned());
    }
    let decoding = DecodingKey::from_jwk(&jwk).map_err(|error| format!("is damaged: {error}"))?;
    Ok(Key { id: jwk.common.key_id, algorithm, decoding })
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let unreadable = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let length = std::fs::metadata(path).map_err(unreadable)?.len();
    if length > FILE_BYTES_MAX {
        return Err(format!("{} has {length} bytes; at most {FILE_BYTES_MAX} are read", path.display()));
    }
    std::fs::read(path).map_err(unreadable)
}
