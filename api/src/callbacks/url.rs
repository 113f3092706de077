//! Where a callback goes: a URL that is kept byte for byte.

use std::fmt;
use std::str::FromStr;

use axum::http::uri::PathAndQuery;
use probeops_shared::host::Host;
use probeops_shared::http_url::{HttpUrl, Scheme};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The longest URL.
pub(super) const URL_LENGTH_MAX: usize = 4_096;

/// A URL of scheme http or https. What is asked of its host is sent as it was given; its query is what a receiver may know the caller by, so what
/// is shown and logged ends before it.
#[derive(Clone, PartialEq, Eq)]
pub struct CallbackUrl {
    text: String,
    /// Scheme, host and port.
    place: HttpUrl,
    /// Where in the text the path begins.
    target_at: usize,
}

impl CallbackUrl {
    /// How to speak to the host.
    pub(crate) fn scheme(&self) -> Scheme {
        self.place.scheme()
    }

    /// The host.
    pub(crate) fn host(&self) -> &Host {
        self.place.host()
    }

    /// The port.
    pub(crate) fn port(&self) -> u16 {
        self.place.port()
    }

    /// Scheme, host and port, without the port where it is the scheme's own (RFC 6454).
    pub(crate) fn origin(&self) -> String {
        format!("{}://{}", self.place.scheme().as_str(), self.place.authority())
    }

    /// The value of `Host` (RFC 9110, 7.2).
    pub(super) fn authority(&self) -> String {
        self.place.authority()
    }

    /// What is asked of the host: path and query as they were given.
    pub(super) fn target(&self) -> String {
        let given = self.text.get(self.target_at..).unwrap_or_default();
        if given.starts_with('/') { given.to_owned() } else { format!("/{given}") }
    }
}

impl FromStr for CallbackUrl {
    type Err = String;

    /// The errors never have the text in them.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() > URL_LENGTH_MAX {
            return Err(format!("a callback's URL is at most {URL_LENGTH_MAX} bytes long, this one has {}", text.len()));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) || text.contains('\\') {
            return Err("has spaces, control characters, backslashes or letters beyond ASCII in it; percent-encode them".to_owned());
        }
        if text.contains('#') {
            return Err("has a fragment (what follows `#`), which is never sent; leave it out".to_owned());
        }
        let (scheme, rest) = text.split_once("://").ok_or("must be a whole URL such as https://n8n.example/webhook/1")?;
        let authority_end = rest.find(['/', '?']).unwrap_or(rest.len());
        let authority = rest.get(..authority_end).unwrap_or_default();
        if authority.is_empty() {
            return Err("has no host".to_owned());
        }
        if authority.contains('@') {
            return Err("has a user or password in it; give `header` for what the receiver is to know you by".to_owned());
        }
        let scheme: String = scheme.chars().take(16).collect();
        let place: HttpUrl = format!("{scheme}://{authority}/").parse()?;
        let target_at = text.len() - rest.len() + authority_end;
        let url = Self { text: text.to_owned(), place, target_at };
        match PathAndQuery::try_from(url.target()) {
            Ok(target) if target.as_str() == url.target() => Ok(url),
            Ok(_) | Err(_) => Err("has characters in its path or query that must be percent-encoded".to_owned()),
        }
    }
}

impl fmt::Display for CallbackUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text.split('?').next().unwrap_or_default())
    }
}

impl fmt::Debug for CallbackUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The whole of it: what is stored is what is sent.
impl Serialize for CallbackUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for CallbackUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Scheme, host and port of a URL as it is shown: what may be logged of it, for the path of a webhook is often its secret.
pub(crate) fn origin_of(shown: &str) -> String {
    shown.split('/').take(3).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_of_the_host_is_what_was_given() {
        for (text, target, shown, origin) in [
            ("https://n8n.example/w/1?signature=aB%2f+/?x", "/w/1?signature=aB%2f+/?x", "https://n8n.example/w/1", "https://n8n.example"),
            ("https://H.example:443?a=%7e", "/?a=%7e", "https://H.example:443", "https://h.example"),
            ("http://0x7f.1:81", "/", "http://0x7f.1:81", "http://127.0.0.1:81"),
            ("https://a.example/a/../b/%2e%2e", "/a/../b/%2e%2e", "https://a.example/a/../b/%2e%2e", "https://a.example"),
        ] {
            let url: CallbackUrl = text.parse().unwrap();
            assert_eq!((url.target().as_str(), url.to_string().as_str(), url.origin().as_str()), (target, shown, origin));
            assert_eq!(serde_json::to_value(&url).unwrap(), text);
            assert!(!format!("{url:?}").contains('?'));
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused_and_not_repeated() {
        for text in [
            "n8n.example/x?token",
            "ftp://n8n.example/?token",
            "https:///x?token",
            "https://u:p@n8n.example/?token",
            "https://n8n.example\\@evil/?token",
            "https://n8n.example/?token#f",
            "https://n8n.example/ x?token",
            "https://n8n.example/?token=<x>",
            "https://n8n.example:0/?token",
            "https://ü.example/?token",
        ] {
            let error = text.parse::<CallbackUrl>().unwrap_err();
            assert!(!error.contains("token"), "{text}: {error}");
        }
    }
}
