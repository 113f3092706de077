//! The key of a call that may be made again (`Idempotency-Key`, draft-ietf-httpapi-idempotency-key-header-07).

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use probeops_shared::bounded::shown;
use probeops_shared::invalid::Invalid;
use probeops_shared::problem::Code;
use serde_json::{Map, Value};

use crate::problem::Problem;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Says that the job was made by an earlier call.
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// The longest key, in characters.
pub(crate) const KEY_CHARS_MAX: usize = 255;

/// The key in these headers, if there is one: a string in quotes (RFC 9651), or the bare characters.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut given = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = given.next() else { return Ok(None) };
    let refused = |detail: String| Problem::new(Code::Invalid, format!("header Idempotency-Key: {detail}"));
    if given.next().is_some() {
        return Err(refused("is given twice".to_owned()));
    }
    let text = value.to_str().map(str::trim).unwrap_or_default();
    let read = if text.starts_with('"') { unquoted(text) } else { Some(text.to_owned()) };
    let read = read.and_then(checked);
    let wants = format!("must be 1 to {KEY_CHARS_MAX} printable ASCII characters, in quotes or without, not {}", shown(&text.into()));
    read.map(Some).ok_or_else(|| refused(wants))
}

/// The key of a job: in the headers of its call, or among its fields, which it is taken from.
pub(super) fn of(headers: &HeaderMap, fields: &mut Map<String, Value>) -> Result<Option<String>, Problem> {
    let refused = |detail: String| Problem::invalid(Invalid::new("/idempotency_key", detail));
    match (key(headers)?, fields.remove("idempotency_key")) {
        (key, None) => Ok(key),
        (Some(_), Some(_)) => Err(refused("is given in the header Idempotency-Key, too".to_owned())),
        (None, Some(given)) => {
            let key = given.as_str().map(str::to_owned).and_then(checked);
            let wants = || format!("must be a string of 1 to {KEY_CHARS_MAX} printable ASCII characters, not {}", shown(&given));
            key.map(Some).ok_or_else(|| refused(wants()))
        }
    }
}

/// A key that is one.
fn checked(key: String) -> Option<String> {
    ((1..=KEY_CHARS_MAX).contains(&key.len()) && key.bytes().all(|byte| (b' '..=b'~').contains(&byte))).then_some(key)
}

fn unquoted(text: &str) -> Option<String> {
    let mut inner = text.strip_prefix('"')?.strip_suffix('"')?.chars();
    let mut key = String::new();
    while let Some(character) = inner.next() {
        match character {
            '\\' => key.push(inner.next().filter(|escaped| matches!(escaped, '"' | '\\'))?),
            '"' => return None,
            _ => key.push(character),
        }
    }
    Some(key)
}

/// The header that says so.
pub(crate) fn replayed() -> (HeaderName, HeaderValue) {
    (IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&str]) -> Result<Option<String>, Problem> {
        key(&values.iter().map(|value| (IDEMPOTENCY_KEY, HeaderValue::from_str(value).unwrap())).collect())
    }

    #[test]
    fn a_key_may_stand_in_quotes_or_without() {
        assert_eq!(read(&[]).unwrap(), None);
        for (given, wanted) in [("n8n-1-0", "n8n-1-0"), ("\"n8n-1-0\"", "n8n-1-0"), (r#""a \"b\" \\""#, r#"a "b" \"#), ("a b", "a b")] {
            assert_eq!(read(&[given]).unwrap().as_deref(), Some(wanted), "{given}");
        }
        assert_eq!(read(&[&"x".repeat(KEY_CHARS_MAX)]).unwrap().map(|key| key.len()), Some(KEY_CHARS_MAX));
        let long = "x".repeat(KEY_CHARS_MAX + 1);
        for bad in ["", "\"\"", "\"a", "\"a\"b\"", "\"", r#""a\n""#, &long] {
            let problem = read(&[bad]).unwrap_err();
            assert!(
                problem.detail().starts_with("header Idempotency-Key: must be 1 to 255 printable ASCII characters"),
                "{bad}: {problem}"
            );
        }
        assert_eq!(read(&["a", "b"]).unwrap_err().detail(), "header Idempotency-Key: is given twice");
    }
}
