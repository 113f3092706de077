//! Where `http` is pointed at: a URL of scheme http or https.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use url::Url;

use crate::bounded::shown;
use crate::host::Host;
use crate::text::inline_schema;

/// The longest URL: as long a path as any rival takes, and the name.
const URL_LENGTH_MAX: usize = 16 * 1024 + 512;

/// A URL of scheme http or https in its normal form (WHATWG URL): host in A-labels, path and query percent-encoded, no fragment, nobody's
/// name or password.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HttpUrl {
    scheme: Scheme,
    host: Host,
    port: u16,
    /// From the first `/` on.
    path_and_query: String,
}

/// How to speak to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// In clear.
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The port unless another is given.
    pub const fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl HttpUrl {
    /// How to speak to the host.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What is asked of the host: path and query.
    pub fn path_and_query(&self) -> &str {
        &self.path_and_query
    }

    /// Host, and port unless it is the scheme's own: the value of `Host` (RFC 9110, 7.2).
    pub fn authority(&self) -> String {
        let host = bracketed(&self.host);
        if self.port == self.scheme.port() { host } else { format!("{host}:{}", self.port) }
    }

    /// Host and port, both.
    pub fn host_and_port(&self) -> String {
        format!("{}:{}", bracketed(&self.host), self.port)
    }

    /// Whether the other is of the same scheme, host and port (RFC 6454).
    pub fn same_origin(&self, other: &Self) -> bool {
        (self.scheme, &self.host, self.port) == (other.scheme, &other.host, other.port)
    }

    /// Where a `Location` leads from here (RFC 9110, 10.2.2).
    pub fn join(&self, location: &str) -> Result<Self, String> {
        let base = Url::parse(&self.to_string()).map_err(|error| error.to_string())?;
        let joined = base.join(location).map_err(|error| format!("{} is no URL: {error}", shown(&location.into())))?;
        Self::try_from(joined)
    }
}

fn bracketed(host: &Host) -> String {
    match host {
        Host::Address(address) if address.is_ipv6() => format!("[{address}]"),
        Host::Address(_) | Host::Name(_) => host.to_string(),
    }
}

impl TryFrom<Url> for HttpUrl {
    type Error = String;

    fn try_from(url: Url) -> Result<Self, String> {
        let scheme = match url.scheme() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            other => {
                return Err(format!("the scheme `{}` is not spoken here, only http and https", other.chars().take(20).collect::<String>()));
            }
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err("a URL must not have a user or password in it, it is shown to many; give them in `basic_auth`".to_owned());
        }
        let host = match url.host() {
            Some(url::Host::Ipv4(address)) => Host::Address(address.into()),
            Some(url::Host::Ipv6(address)) => Host::Address(address.into()),
            Some(url::Host::Domain(name)) => name.parse()?,
            None => return Err("a URL must have a host".to_owned()),
        };
        let port = url.port().unwrap_or(scheme.port());
        if port == 0 {
            return Err("port 0 is no port to connect to".to_owned());
        }
        let path_and_query = url[url::Position::BeforePath..url::Position::AfterQuery].to_owned();
        Ok(Self { scheme, host, port, path_and_query })
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme.as_str(), self.authority(), self.path_and_query)
    }
}

impl FromStr for HttpUrl {
    type Err = String;

    /// Without a scheme it is http, as with curl(1).
    fn from_str(text: &str) -> Result<Self, String> {
        const WANTS: &str = "give a URL such as https://example.com/path";
        if text.is_empty() {
            return Err(format!("a target is required; {WANTS}"));
        }
        if text.len() > URL_LENGTH_MAX {
            return Err(format!("a URL is at most {URL_LENGTH_MAX} bytes long, this one has {}", text.len()));
        }
        // The standard would drop or encode them in silence.
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(format!("{} has spaces or control characters in it; write them as %20 and the like", shown(&text.into())));
        }
        let whole = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let url = Url::parse(&whole).map_err(|error| format!("{} is no URL: {error}; {WANTS}", shown(&text.into())))?;
        Self::try_from(url)
    }
}

impl Serialize for HttpUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HttpUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => text.parse().map_err(de::Error::custom),
            other => Err(de::Error::custom(format!("must be a string with a URL, not {}", shown(&other)))),
        }
    }
}

inline_schema!(HttpUrl, {
    "type": "string", "minLength": 1, "maxLength": URL_LENGTH_MAX,
    "description": "A URL of scheme http or https; http where there is no scheme."
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_one_form() {
        for (text, form) in [
            ("example.com", "http://example.com/"),
            ("HTTPS://Example.COM:443/a b?c#d".replace(' ', "%20").as_str(), "https://example.com/a%20b?c"),
            ("http://b\u{fc}cher.example:8080", "http://xn--bcher-kva.example:8080/"),
            ("http://[2001:DB8::1]/", "http://[2001:db8::1]/"),
            ("http://0x7f.1/", "http://127.0.0.1/"),
            ("http://2130706433/", "http://127.0.0.1/"),
            ("http://example.com./x", "http://example.com/x"),
        ] {
            assert_eq!(text.parse::<HttpUrl>().unwrap().to_string(), form);
        }
    }

    #[test]
    fn what_is_no_target_is_refused() {
        for (text, part) in [
            ("", "required"),
            ("ftp://example.com/", "only http and https"),
            ("file:///etc/passwd", "only http and https"),
            ("http://user:secret@example.com/", "basic_auth"),
            ("http://exa mple.com/", "spaces"),
            ("http://example.com:0/", "port 0"),
            ("http://example.com:99999/", "is no URL"),
            ("http://-a.example/", "starts with `-`"),
        ] {
            let detail = text.parse::<HttpUrl>().unwrap_err();
            assert!(detail.contains(part) && !detail.contains("secret"), "{text}: {detail}");
        }
    }

    #[test]
    fn a_location_leads_on() {
        let here: HttpUrl = "https://a.example/b/c?d".parse().unwrap();
        for (location, there) in [
            ("/x", "https://a.example/x"),
            ("../y", "https://a.example/y"),
            ("//b.example:8443", "https://b.example:8443/"),
            ("?q=1", "https://a.example/b/c?q=1"),
            ("http://c.example", "http://c.example/"),
        ] {
            assert_eq!(here.join(location).unwrap().to_string(), there);
        }
        assert!(here.join("javascript:alert(1)").is_err() && here.join("gopher://x/").is_err());
        assert!(here.same_origin(&here.join("/x").unwrap()) && !here.same_origin(&here.join("http://a.example/").unwrap()));
    }
}
