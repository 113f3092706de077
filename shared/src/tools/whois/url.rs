//! The address of an RDAP server or object.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::bounded::shown;
use crate::host::Host;
use crate::text::as_text;

/// The longest that is read.
const LENGTH_MAX: usize = 1024;

/// An `https` or `http` URL without user, query or fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RdapUrl {
    /// Whether TLS is spoken.
    pub tls: bool,
    /// The host.
    pub host: Host,
    /// The port.
    pub port: u16,
    /// The path, with the leading slash.
    pub path: String,
}

impl RdapUrl {
    /// The same server's object at `path` below this.
    #[must_use]
    pub fn below(&self, path: &str) -> Self {
        Self { path: format!("{}/{path}", self.path.trim_end_matches('/')), ..self.clone() }
    }

    /// Where a redirect leads to: a whole URL, or a path on the same server (RFC 9110, 10.2.2).
    pub fn redirected(&self, location: &str) -> Result<Self, String> {
        if let Some(rest) = location.strip_prefix("//") {
            return format!("{}://{rest}", self.scheme()).parse();
        }
        if location.starts_with('/') { Ok(Self { path: checked_path(location)?, ..self.clone() }) } else { location.parse() }
    }

    /// The server as the `Host` header names it.
    pub fn authority(&self) -> String {
        let host = match &self.host {
            Host::Address(IpAddr::V6(address)) => format!("[{address}]"),
            Host::Address(_) | Host::Name(_) => self.host.to_string(),
        };
        if self.port == default_port(self.tls) { host } else { format!("{host}:{}", self.port) }
    }

    fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }
}

fn default_port(tls: bool) -> u16 {
    if tls { 443 } else { 80 }
}

fn checked_path(path: &str) -> Result<String, String> {
    // A query or fragment names no other object of RDAP, and is not passed on.
    let path = path.split(['?', '#']).next().unwrap_or_default();
    match path.bytes().find(|byte| !byte.is_ascii_graphic()) {
        Some(_) => Err("its path has characters that a URL cannot have".to_owned()),
        None => Ok(path.to_owned()),
    }
}

impl FromStr for RdapUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let given = || shown(&text.into());
        let wrong = |why: &str| format!("{} is no address of an RDAP server: {why}; write such as https://rdap.example/", given());
        if text.len() > LENGTH_MAX {
            return Err(wrong("it is too long"));
        }
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("it has no https:// before the host"))?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err(wrong("only https and http are spoken")),
        };
        let (authority, path) = rest.find(['/', '?', '#']).map_or((rest, ""), |at| rest.split_at(at));
        if authority.contains('@') {
            return Err(wrong("it names a user"));
        }
        let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, port)) => (address, port.strip_prefix(':')),
            None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
        };
        let port = match port {
            None => default_port(tls),
            Some(port) => port.parse().ok().filter(|port| *port > 0).ok_or_else(|| wrong("its port is none"))?,
        };
        let host = host.parse().map_err(|why: String| wrong(&why))?;
        let path = checked_path(path).map_err(|why| wrong(&why))?;
        Ok(Self { tls, host, port, path: if path.starts_with('/') { path } else { format!("/{path}") } })
    }
}

impl fmt::Display for RdapUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme(), self.authority(), self.path)
    }
}

as_text!(RdapUrl, {"type": "string", "maxLength": LENGTH_MAX, "examples": ["https://rdap.example/"]});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_below_its_server() {
        let server: RdapUrl = "HTTPS://RDAP.example/v1/?x#y".parse().unwrap();
        assert_eq!((server.tls, server.port, server.to_string().as_str()), (true, 443, "https://rdap.example/v1/"));
        assert_eq!(server.below("ip/192.0.2.1").to_string(), "https://rdap.example/v1/ip/192.0.2.1");
        let plain: RdapUrl = "http://[2001:db8::1]:8080".parse().unwrap();
        assert_eq!(plain.below("autnum/1").to_string(), "http://[2001:db8::1]:8080/autnum/1");
    }

    #[test]
    fn redirects_lead_to_whole_urls_or_to_paths() {
        let at: RdapUrl = "https://rdap.example/domain/a.example".parse().unwrap();
        let to = |location: &str| at.redirected(location).map(|url| url.to_string());
        assert_eq!(to("https://rdap.other.example/x?y").unwrap(), "https://rdap.other.example/x");
        assert_eq!(to("/moved").unwrap(), "https://rdap.example/moved");
        assert_eq!(to("//rdap.other.example:8443/x").unwrap(), "https://rdap.other.example:8443/x");
        assert!(to("gopher://x/").is_err() && to("moved").is_err() && to("/a b").is_err());
    }

    #[test]
    fn what_is_no_url_is_refused_in_words() {
        let refused = |text: &str| text.parse::<RdapUrl>().unwrap_err();
        assert!(refused("rdap.example").contains("it has no https://"));
        assert!(refused("ftp://rdap.example/").contains("only https and http"));
        assert!(refused("https://user@rdap.example/").contains("it names a user"));
        assert!(refused("https://127.1/").contains("number form of an address"));
        assert!(refused("https://rdap.example:0/").contains("its port is none") && refused("https:///x").contains("is required"));
    }
}
