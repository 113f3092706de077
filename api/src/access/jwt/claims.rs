//! From the claims of a JWT whose signature holds to an identity.

use data_encoding::BASE64URL_NOPAD;
use probeops_shared::access::{Limits, Scope};
use probeops_shared::invalid::Invalid;
use probeops_shared::json;
use probeops_shared::planted;
use probeops_shared::timestamp::Timestamp;
use serde_json::{Map, Value};

use crate::access::principal::Identity;

/// A subject may be so long.
const SUBJECT_LENGTH_MAX: usize = 128;

/// Whom the payload names, or why it is refused.
pub(super) fn identity(payload: &str) -> Result<Identity, String> {
    let bytes = BASE64URL_NOPAD.decode(payload.as_bytes()).map_err(|_| super::malformed("its payload is not base64url"))?;
    // Strict: a claim that stands twice could be read in two ways.
    let claims = json::parse(&bytes).and_then(json::object).map_err(|invalid| super::malformed(&format!("its payload: {invalid}")))?;
    let name = format!("jwt:{}", subject(&claims)?);
    Ok(Identity { name, scopes: scopes(&claims)?, limits: limits(&claims)?, nodes: Vec::new(), expires_at: expires_at(&claims) })
}

/// When it ends. That it does, and has not, was checked with the signature. Numbers are seconds, perhaps with a fraction (RFC 7519), which is cut.
fn expires_at(claims: &Map<String, Value>) -> Option<Timestamp> {
    let exp_s: i64 = claims.get("exp")?.to_string().split('.').next()?.parse().ok()?;
    Timestamp::from_unix_ms(exp_s.checked_mul(1_000)?)
}

/// The subject goes into headers and logs as it is, so it must be plain.
fn subject(claims: &Map<String, Value>) -> Result<&str, String> {
    let subject = claims.get("sub").and_then(Value::as_str).unwrap_or_default();
    let is_plain = |byte: u8| byte.is_ascii_graphic() || planted!("jwt" if byte == b' ' && subject.contains('@'));
    if (1..=SUBJECT_LENGTH_MAX).contains(&subject.len()) && subject.bytes().all(is_plain) {
        return Ok(subject);
    }
    Err(format!("the JWT's claim `sub` must be 1 to {SUBJECT_LENGTH_MAX} printable ASCII characters without spaces"))
}

/// The words of `scope` that are ours; identity providers put others beside them (`openid`), which grant nothing here.
fn scopes(claims: &Map<String, Value>) -> Result<Vec<Scope>, String> {
    match claims.get("scope") {
        None => Ok(Vec::new()),
        Some(Value::String(words)) => Ok(words.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect()),
        Some(_) => Err("the JWT's claim `scope` must be a string of words with spaces between them".to_owned()),
    }
}

/// Limits narrow, so those that cannot be understood refuse the token.
fn limits(claims: &Map<String, Value>) -> Result<Limits, String> {
    let Some(given) = claims.get("probeops") else { return Ok(Limits::default()) };
    let refused = |invalid: Invalid| format!("the JWT's claim `probeops` (limits) is refused: {invalid}");
    if !given.is_object() {
        return Err(refused(Invalid::new("", format!("must be an object with {}", Limits::NAMES.join(", ")))));
    }
    let limits: Limits = json::typed(given.clone()).map_err(refused)?;
    limits.check().map_err(refused)?;
    Ok(limits)
}
