//! What a caller says of a callback. No error repeats a value: the audit trail keeps errors.

use axum::http::{HeaderName, HeaderValue};
use probeops_shared::invalid::Invalid;
use probeops_shared::json;
use serde_json::{Map, Value, json};

use super::url::URL_LENGTH_MAX;
use super::{Callback, MAX_AGE, StaticHeader};

const FIELDS: [&str; 4] = ["url", "secret_id", "header", "max_age_ms"];
const HEADER_FIELDS: [&str; 2] = ["name", "value"];
/// The shortest that a callback may be tried.
const MAX_AGE_MS_MIN: u64 = 1_000;
/// The longest value of a header.
const HEADER_VALUE_LENGTH_MAX: usize = 4_096;
/// The longest id of a secret.
const SECRET_ID_LENGTH_MAX: usize = 64;
/// Headers that are ours or the connection's.
const OURS: [&str; 14] = [
    "host",
    "content-length",
    "content-type",
    "content-encoding",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "user-agent",
    "proxy-authorization",
    "proxy-connection",
];

impl Callback {
    /// Reads field `callback` of a job's request.
    pub(crate) fn parse(given: &Value) -> Result<Self, Invalid> {
        let Value::Object(fields) = given else {
            return Err(Invalid::new("/callback", format!("must be an object with {}", FIELDS.join(", "))));
        };
        json::refuse_unknown(fields, "field", &FIELDS).map_err(|invalid| invalid.under("/callback"))?;
        let at = |name: &str, detail: String| Invalid::new(format!("/callback/{name}"), detail);
        let url = fields.get("url").and_then(Value::as_str).ok_or_else(|| at("url", "must be a string with a URL".to_owned()))?;
        let url = url.parse().map_err(|detail| at("url", detail))?;
        let secret_id = match fields.get("secret_id") {
            None => None,
            Some(Value::String(id))
                if id.len() <= SECRET_ID_LENGTH_MAX && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') =>
            {
                Some(id.clone())
            }
            Some(_) => return Err(at("secret_id", "must be the id of a secret of yours; /v1/secrets lists them".to_owned())),
        };
        let longest_ms = u64::try_from(MAX_AGE.as_millis()).unwrap_or(u64::MAX);
        let max_age_ms = match fields.get("max_age_ms") {
            None => longest_ms,
            Some(given) => given
                .as_u64()
                .filter(|given| (MAX_AGE_MS_MIN..=longest_ms).contains(given))
                .ok_or_else(|| at("max_age_ms", format!("must be a whole number of milliseconds from {MAX_AGE_MS_MIN} to {longest_ms}")))?,
        };
        let header = fields.get("header").map(header).transpose().map_err(|invalid| invalid.under("/callback/header"))?;
        Ok(Self { url, secret_id, header, max_age_ms, traceparent: None })
    }
}

fn header(given: &Value) -> Result<StaticHeader, Invalid> {
    let object = given.as_object().ok_or_else(|| Invalid::new("", "must be an object with name and value"))?;
    json::refuse_unknown(object, "field", &HEADER_FIELDS)?;
    let text = |name: &str| {
        let text = object.get(name).and_then(Value::as_str);
        text.ok_or_else(|| Invalid::new(format!("/{name}"), "must be a string"))
    };
    let (name, value) = (text("name")?, text("value")?);
    let parsed = HeaderName::from_bytes(name.as_bytes());
    let parsed = parsed.map_err(|_invalid| Invalid::new("/name", "must be the name of a header, such as X-Token"))?;
    if OURS.contains(&parsed.as_str()) || parsed.as_str().starts_with("webhook-") {
        return Err(Invalid::new("/name", format!("`{parsed}` is not for you to set; choose another header")));
    }
    let visible = value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') && value.trim() == value;
    if !visible || value.len() > HEADER_VALUE_LENGTH_MAX || HeaderValue::from_str(value).is_err() {
        return Err(Invalid::new("/value", format!("must be at most {HEADER_VALUE_LENGTH_MAX} visible ASCII characters")));
    }
    Ok(StaticHeader { name: name.to_owned(), value: value.to_owned() })
}

/// The schema of the field.
pub(crate) fn schema() -> Value {
    let mut properties = Map::new();
    let mut field = |name: &str, schema: Value| drop(properties.insert(name.to_owned(), schema));
    field(
        "url",
        json!({
            "description": "Where to: https, or what the operator allows. Its query is sent as it is and shown nowhere.",
            "type": "string", "format": "uri", "pattern": "^[Hh][Tt][Tt][Pp][Ss]?://", "maxLength": URL_LENGTH_MAX, "examples": ["https://n8n.example/webhook/1"],
        }),
    );
    field(
        "secret_id",
        json!({"description": "The secret that signs it (Standard Webhooks).", "type": "string", "maxLength": SECRET_ID_LENGTH_MAX, "pattern": "^[A-Za-z0-9_]*$"}),
    );
    field(
        "header",
        json!({
            "description": "A header that is sent with it; its value is shown nowhere.",
            "type": "object", "required": HEADER_FIELDS, "additionalProperties": false,
            "properties": {
                "name": {"type": "string", "pattern": "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"},
                "value": {"type": "string", "maxLength": HEADER_VALUE_LENGTH_MAX, "pattern": "^([!-~]([ -~]*[!-~])?)?$"},
            },
        }),
    );
    field(
        "max_age_ms",
        json!({
            "description": "How long it is tried.",
            "type": "integer", "minimum": MAX_AGE_MS_MIN, "maximum": u64::try_from(MAX_AGE.as_millis()).unwrap_or(u64::MAX),
        }),
    );
    json!({
        "description": "Whom to tell the end of the job (a POST of `{\"type\":\"job.completed\",\"timestamp\",\"data\":<the job>}`).",
        "type": "object", "required": ["url"], "additionalProperties": false, "properties": properties,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callback_is_read_with_its_defaults() {
        let callback =
            Callback::parse(&json!({"url": "https://n8n.example/1?sig", "header": {"name": "X-Token", "value": "se cret"}})).unwrap();
        assert_eq!((callback.max_age_ms, callback.secret_id.as_deref()), (86_400_000, None));
        let (shown, debug) = (serde_json::to_string(&callback.view(probeops_shared::ids::JobId::new())).unwrap(), format!("{callback:?}"));
        for secret in ["sig", "se cret"] {
            assert!(!shown.contains(secret) && !debug.contains(secret), "{shown} {debug}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_and_never_repeated() {
        for (given, pointer) in [
            (json!("https://n8n.example/?topsecret"), "/callback"),
            (json!({}), "/callback/url"),
            (json!({"url": 7}), "/callback/url"),
            (json!({"url": "n8n.example/?topsecret"}), "/callback/url"),
            (json!({"url": "https://a.example", "uri": 1}), "/callback/uri"),
            (json!({"url": "https://a.example", "secret_id": "a b"}), "/callback/secret_id"),
            (json!({"url": "https://a.example", "max_age_ms": 999}), "/callback/max_age_ms"),
            (json!({"url": "https://a.example", "max_age_ms": 86_400_001}), "/callback/max_age_ms"),
            (json!({"url": "https://a.example", "header": {"name": "X"}}), "/callback/header/value"),
            (json!({"url": "https://a.example", "header": {"name": "Host", "value": "topsecret"}}), "/callback/header/name"),
            (json!({"url": "https://a.example", "header": {"name": "Webhook-Id", "value": "topsecret"}}), "/callback/header/name"),
            (json!({"url": "https://a.example", "header": {"name": "X", "value": "topsecret\r\nY: 1"}}), "/callback/header/value"),
        ] {
            let invalid = Callback::parse(&given).unwrap_err();
            assert_eq!(invalid.pointer, pointer, "{given}");
            assert!(!invalid.detail.contains("topsecret"), "{}", invalid.detail);
        }
    }
}
