//! The parts of a request that have rules, and what of them is secret.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;

use crate::bounded::shown;
use crate::text::inline_schema;

/// What stands where a secret was.
pub const CONCEALED: &str = "***";
/// How many header lines may be given.
const LINES_MAX: usize = 128;
/// The longest value of one.
const VALUE_LENGTH_MAX: usize = 8192;
/// The longest method; there is no limit in RFC 9110, and no method is half as long.
const METHOD_LENGTH_MAX: usize = 32;
/// The longest secret.
const SECRET_LENGTH_MAX: usize = 8192;
/// Those that frame the message, or speak to the next hop: they are made here.
const OURS: [&str; 9] =
    ["host", "content-length", "transfer-encoding", "connection", "keep-alive", "upgrade", "te", "trailer", "proxy-connection"];
/// Those whose values are secret: the standard's own, and what is usual for keys.
const SECRET: [&str; 7] = ["authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key", "api-key", "x-auth-token"];

/// A method (RFC 9110, 9).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Method(String);

impl Method {
    /// The word.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Method {
    fn default() -> Self {
        Self("GET".to_owned())
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Method {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        match value.as_str().filter(|word| (1..=METHOD_LENGTH_MAX).contains(&word.len()) && word.bytes().all(is_token)) {
            Some(word) if word.eq_ignore_ascii_case("CONNECT") => Err(de::Error::custom("CONNECT is for proxies; give one in `proxy`")),
            Some(word) => Ok(Self(word.to_owned())),
            None => Err(de::Error::custom(format!("must be a method such as \"GET\", not {}", shown(&value)))),
        }
    }
}

inline_schema!(Method, {"type": "string", "minLength": 1, "maxLength": METHOD_LENGTH_MAX, "default": "GET"});

/// Header lines to send, in their order.
#[derive(Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct HeaderLines(Vec<String>);

impl HeaderLines {
    /// Names and values.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(|line| pair(line))
    }

    /// Whether there is one of this name.
    pub fn has(&self, wanted: &str) -> bool {
        self.pairs().any(|(name, _)| name.eq_ignore_ascii_case(wanted))
    }
}

impl fmt::Debug for HeaderLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|line| conceal_line(line).unwrap_or_else(|| line.clone()))).finish()
    }
}

fn pair(line: &str) -> Option<(&str, &str)> {
    line.split_once(':').map(|(name, value)| (name, value.trim_matches([' ', '\t'])))
}

impl<'de> Deserialize<'de> for HeaderLines {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let Some(lines) = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>()) else {
            return Err(de::Error::custom("must be a list of header lines such as [\"Accept: text/html\"]"));
        };
        if lines.len() > LINES_MAX {
            return Err(de::Error::custom(format!("must be at most {LINES_MAX} header lines, not {}", lines.len())));
        }
        match lines.iter().enumerate().find_map(|(index, line)| check_line(line).err().map(|wrong| format!("line {index} {wrong}"))) {
            Some(wrong) => Err(de::Error::custom(wrong)),
            None => Ok(Self(lines.into_iter().map(str::to_owned).collect())),
        }
    }
}

/// What is wrong with a line, never showing its value: it may be a secret.
fn check_line(line: &str) -> Result<(), String> {
    let Some((name, value)) = pair(line).filter(|(name, _)| !name.is_empty() && name.bytes().all(is_token)) else {
        return Err("is no header line; one is like \"Accept: text/html\"".to_owned());
    };
    if OURS.iter().any(|ours| name.eq_ignore_ascii_case(ours)) {
        let instead = if name.eq_ignore_ascii_case("host") { "; give it in `host_header`" } else { "" };
        return Err(format!("is {name}, which is made by the node{instead}"));
    }
    if value.len() > VALUE_LENGTH_MAX {
        return Err(format!("({name}) has a value of {} bytes, {VALUE_LENGTH_MAX} are the most", value.len()));
    }
    if value.chars().any(|c| c.is_control() && c != '\t') {
        return Err(format!("({name}) has control characters in its value"));
    }
    Ok(())
}

/// RFC 9110, 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

inline_schema!(HeaderLines, {"type": "array", "maxItems": LINES_MAX, "items": {"type": "string", "minLength": 2, "pattern": "^[^:]+:"}});

/// Whether the text can be the value of `Host`.
pub(super) fn is_host_header(text: &str) -> bool {
    (1..=300).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte))
}

/// Whether a header's value is a secret: not shown, and sent only to the origin that it was given for.
pub fn is_secret(name: &str) -> bool {
    SECRET.iter().any(|secret| name.eq_ignore_ascii_case(secret))
}

/// The value of a header as it may be shown: of secret ones only the scheme, or the cookies' names and attributes.
pub fn concealed_value(name: &str, value: &str) -> String {
    if !is_secret(name) {
        return value.to_owned();
    }
    let cookie = |cookie: &str| match cookie.split_once('=') {
        Some((name, _)) => format!("{name}={CONCEALED}"),
        None => CONCEALED.to_owned(),
    };
    if name.eq_ignore_ascii_case("cookie") {
        return value.split(';').map(cookie).collect::<Vec<_>>().join(";");
    }
    if name.eq_ignore_ascii_case("set-cookie") {
        let (first, attributes) = value.split_once(';').map_or((value, String::new()), |(first, rest)| (first, format!(";{rest}")));
        return cookie(first) + &attributes;
    }
    match value.split_once(' ') {
        Some((scheme, _)) if name.to_ascii_lowercase().ends_with("authorization") => format!("{scheme} {CONCEALED}"),
        Some(_) | None => CONCEALED.to_owned(),
    }
}

/// A header line as it may be shown, where that is not as it is.
pub(super) fn conceal_line(line: &str) -> Option<String> {
    let (name, value) = pair(line)?;
    let shown = concealed_value(name, value);
    (shown != value).then(|| format!("{name}: {shown}"))
}

/// Makes a text that is never printed.
macro_rules! secret {
    ($(#[$doc:meta])* $name:ident, $fits:expr, $wants:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn expose(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(CONCEALED)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let fits: fn(&str) -> bool = $fits;
                match Value::deserialize(deserializer)? {
                    Value::String(text) if text.len() <= SECRET_LENGTH_MAX && fits(&text) => Ok(Self(text)),
                    _ => Err(de::Error::custom($wants)),
                }
            }
        }

        inline_schema!($name, {"type": "string", "minLength": 1, "maxLength": SECRET_LENGTH_MAX, "writeOnly": true});
    };
}
secret!(
    /// User and password.
    BasicAuth,
    |text| text.contains(':') && !text.chars().any(char::is_control),
    "must be user and password with a colon between them, such as \"user:password\""
);
secret!(
    /// A token.
    Token,
    |text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()),
    "must be a token: letters, digits and signs without spaces"
);
