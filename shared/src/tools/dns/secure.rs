//! What is special to queries over TLS and HTTPS.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::bounded::shown;
use crate::text::inline_schema;

/// The port of DNS over TLS (RFC 7858, 3.1).
pub const TLS_PORT: u16 = 853;
/// The port of HTTPS.
pub const HTTPS_PORT: u16 = 443;
/// Longer than any path that a resolver has.
const PATH_LENGTH_MAX: usize = 256;
const PATH_DEFAULT: &str = "/dns-query";

/// Where on a web server its resolver is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpPath(String);

impl HttpPath {
    /// The path, from the first slash on.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for HttpPath {
    fn default() -> Self {
        Self(PATH_DEFAULT.to_owned())
    }
}

impl FromStr for HttpPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |byte: u8| byte.is_ascii_graphic() && !b"#{}\"<>\\^`|".contains(&byte);
        match text {
            _ if text.len() > PATH_LENGTH_MAX => Err(format!("must be at most {PATH_LENGTH_MAX} characters long, this has {}", text.len())),
            _ if text.starts_with('/') && text.bytes().all(plain) => Ok(Self(text.to_owned())),
            _ => Err(format!("must be a path such as {PATH_DEFAULT}, without a host and without `{{?dns}}`, not {}", shown(&text.into()))),
        }
    }
}

impl fmt::Display for HttpPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for HttpPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for HttpPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let text =
            value.as_str().ok_or_else(|| de::Error::custom(format!("must be a path such as {PATH_DEFAULT}, not {}", shown(&value))))?;
        text.parse().map_err(de::Error::custom)
    }
}

inline_schema!(HttpPath, {"type": "string", "maxLength": PATH_LENGTH_MAX, "default": PATH_DEFAULT});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_only_a_path() {
        for text in ["/dns-query", "/", "/a/b?c=%20"] {
            assert_eq!(text.parse::<HttpPath>().unwrap().as_str(), text);
        }
        for text in ["", "dns-query", "https://dns.example/dns-query", "/dns-query{?dns}", "/a b", "/a\r\nHost: b", "/\u{e9}", "/a#b"] {
            assert!(text.parse::<HttpPath>().unwrap_err().starts_with("must be a path such as /dns-query"), "{text}");
        }
        assert!(format!("/{}", "a".repeat(256)).parse::<HttpPath>().unwrap_err().contains("at most 256"));
    }
}
