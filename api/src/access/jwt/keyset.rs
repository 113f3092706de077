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

/// The keys.
#[derive(Debug, Default)]
pub(super) struct KeySet(Vec<Key>);

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
        self.0.len()
    }

    /// What they are called.
    pub(super) fn names(&self) -> Vec<String> {
        self.0.iter().map(|key| key.id.clone().unwrap_or_default()).collect()
    }

    /// Whether a token may be signed with one of them, by what the token calls it.
    pub(super) fn knows(&self, id: Option<&str>) -> bool {
        self.find(id).is_ok()
    }

    /// The key a token was signed with, by what the token calls it.
    pub(super) fn find(&self, id: Option<&str>) -> Result<&Key, String> {
        match (id, self.0.as_slice()) {
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
    Ok(KeySet(vec![Key { id: None, algorithm: Algorithm::HS256, decoding: DecodingKey::from_secret(secret) }]))
}

/// Reads a JWKS file.
pub(super) fn read_jwks(path: &Path) -> Result<KeySet, String> {
    parse_jwks(&read(path)?).map_err(|detail| format!("the JWKS file {} cannot be used: {detail}", path.display()))
}

/// Reads a JWKS. Keys for other uses and algorithms are passed over, as RFC 7517 asks; at least one must be left.
pub(super) fn parse_jwks(bytes: &[u8]) -> Result<KeySet, String> {
    let document: Value = serde_json::from_slice(bytes).map_err(|error| format!("it is not JSON: {error}"))?;
    let listed = document.get("keys").and_then(Value::as_array).ok_or("it has no list `keys`")?;
    let mut keys: Vec<Key> = Vec::new();
    for (index, value) in listed.iter().enumerate() {
        let jwk: Jwk = match serde_json::from_value(value.clone()) {
            Ok(jwk) => jwk,
            Err(error) => {
                tracing::warn!(index, %error, "a key of the JWKS cannot be read and is passed over");
                continue;
            }
        };
        if matches!(jwk.algorithm, AlgorithmParameters::OctetKey(_)) {
            return Err(format!("key {index} is a shared secret (kty oct), which does not belong into a file of public keys"));
        }
        let Some(key) = usable(jwk).map_err(|detail| format!("key {index} {detail}"))? else {
            tracing::info!(index, "a key of the JWKS is not for signatures with EdDSA, ES256 or RS256 and is passed over");
            continue;
        };
        if keys.iter().any(|other| other.id == key.id) {
            let id = key.id.as_deref().unwrap_or("none");
            return Err(format!("key {index} has the same kid ({id}) as another one"));
        }
        keys.push(key);
    }
    if keys.is_empty() {
        return Err("it has no key for signatures with EdDSA (Ed25519), ES256 or RS256".to_owned());
    }
    Ok(KeySet(keys))
}

fn usable(jwk: Jwk) -> Result<Option<Key>, String> {
    if jwk.common.public_key_use.as_ref().is_some_and(|purpose| *purpose != PublicKeyUse::Signature) {
        return Ok(None);
    }
    let decoded = |text: &str| BASE64URL_NOPAD.decode(text.as_bytes()).map(|bytes| bytes.len()).ok();
    let (algorithm, whole) = match &jwk.algorithm {
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => (Algorithm::EdDSA, decoded(&pair.x) == Some(32)),
        AlgorithmParameters::EllipticCurve(point) if point.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, decoded(&point.x) == Some(32) && decoded(&point.y) == Some(32))
        }
        AlgorithmParameters::RSA(rsa) => (Algorithm::RS256, decoded(&rsa.n).is_some_and(|bytes| bytes >= RSA_BYTES_MIN)),
        _ => return Ok(None),
    };
    if jwk.common.key_algorithm.is_some_and(|given| given != KeyAlgorithm::from(algorithm)) {
        return Ok(None);
    }
    if !whole {
        return Err("is damaged or too short (RSA needs 2048 bits)".to_owned());
    }
    let decoding = DecodingKey::from_jwk(&jwk).map_err(|error| format!("is damaged: {error}"))?;
    Ok(Some(Key { id: jwk.common.key_id, algorithm, decoding }))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let unreadable = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let length = std::fs::metadata(path).map_err(unreadable)?.len();
    if length > FILE_BYTES_MAX {
        return Err(format!("{} has {length} bytes; at most {FILE_BYTES_MAX} are read", path.display()));
    }
    std::fs::read(path).map_err(unreadable)
}
