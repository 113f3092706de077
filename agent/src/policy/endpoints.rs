//! The node's own servers: what it is connected to is not what it probes.

use std::fmt;
use std::net::IpAddr;

use probeops_shared::host::Host;
use probeops_shared::http_url::HttpUrl;
use serde::{Deserialize, Deserializer, de};

/// A server that tools keep away from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Where.
    pub(crate) host: Host,
    /// On which port.
    pub(crate) port: u16,
    /// From where it is known.
    known_from: KnownFrom,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KnownFrom {
    /// It is the broker.
    Servers,
    /// It is the API that the node enrolled with.
    Api,
    /// It is on the way to the broker.
    Way,
    /// The owner's file names it.
    File,
}

impl Endpoint {
    /// The broker's address as in the settings: `tls://HOST:PORT`, `wss://HOST/PATH`, `HOST`.
    pub(crate) fn of_server(server: &str) -> Result<Self, String> {
        let (scheme, rest) = server.split_once("://").unwrap_or(("tls", server));
        let default_port = match scheme {
            "ws" => 80,
            "wss" => 443,
            _ => 4222,
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let (host, port) =
            host_and_port(authority, Some(default_port)).map_err(|detail| format!("the broker address `{server}`: {detail}"))?;
        Ok(Self { host, port, known_from: KnownFrom::Servers })
    }

    /// The API's address as the node enrolled with it: `https://HOST:PORT/PATH`.
    pub(crate) fn of_api(url: &str) -> Result<Self, String> {
        let url: HttpUrl = url.parse().map_err(|detail| format!("the API's address `{url}`: {detail}"))?;
        Ok(Self { host: url.host().clone(), port: url.port(), known_from: KnownFrom::Api })
    }

    /// `HOST:PORT` of a proxy that stands before the broker.
    pub(crate) fn of_proxy(authority: &str) -> Result<Self, String> {
        let (host, port) = host_and_port(authority, None)?;
        Ok(Self::of_way(host, port))
    }

    /// Something else on the way to the broker.
    pub(crate) fn of_way(host: Host, port: u16) -> Self {
        Self { host, port, known_from: KnownFrom::Way }
    }

    /// Why it is not probed.
    pub(crate) fn denial(&self) -> String {
        match self.known_from {
            KnownFrom::Servers => format!("the node's own broker {self} is always denied"),
            KnownFrom::Api => format!("the node's own API {self} is always denied"),
            KnownFrom::Way => format!("the node's own way to its broker, {self}, is always denied"),
            KnownFrom::File => format!("{self} is in deny.endpoints"),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (host, port) = host_and_port(&text, None).map_err(|detail| de::Error::custom(format!("`{text}`: {detail}")))?;
        Ok(Self { host, port, known_from: KnownFrom::File })
    }
}

fn host_and_port(text: &str, default_port: Option<u16>) -> Result<(Host, u16), String> {
    const WANTS: &str = "must be HOST:PORT, such as api.example:8443 or [2001:db8::1]:443";
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']').ok_or(WANTS)?,
        None => text.find(':').map_or((text, ""), |colon| text.split_at(colon)),
    };
    let port = match (port.strip_prefix(':'), default_port) {
        (Some(port), _) => port.parse().ok().filter(|port| *port > 0).ok_or_else(|| format!("{WANTS}; `{port}` is not a port"))?,
        (None, Some(default_port)) if port.is_empty() => default_port,
        (None, _) => return Err(WANTS.to_owned()),
    };
    Ok((host.parse::<Host>().map_err(|detail| format!("{WANTS}; {detail}"))?, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_apis_address_is_an_endpoint() {
        for (url, printed) in [
            ("https://api.example", "api.example:443"),
            ("http://10.0.0.1:8080/", "10.0.0.1:8080"),
            ("https://[2001:db8::1]:8443/probeops", "[2001:db8::1]:8443"),
        ] {
            let endpoint = Endpoint::of_api(url).unwrap();
            assert_eq!(endpoint.to_string(), printed);
            assert_eq!(endpoint.denial(), format!("the node's own API {printed} is always denied"));
        }
        assert!(Endpoint::of_api("ftp://api.example").unwrap_err().contains("the API's address `ftp://api.example`: "));
    }

    #[test]
    fn a_broker_address_in_any_form_is_an_endpoint() {
        for (server, printed) in [
            ("tls://broker.example:4222", "broker.example:4222"),
            ("wss://broker.example/nats", "broker.example:443"),
            ("ws://u:p@10.0.0.1", "10.0.0.1:80"),
            ("nats://[2001:db8::1]:4300", "[2001:db8::1]:4300"),
            ("broker.example", "broker.example:4222"),
        ] {
            assert_eq!(Endpoint::of_server(server).unwrap().to_string(), printed);
        }
        for server in ["tls://", "tls://h:0", "tls://h:x", "tls://[::1", "tls://a b:1"] {
            let detail = Endpoint::of_server(server).unwrap_err();
            assert!(detail.contains(server) && detail.contains("must be HOST:PORT"), "{detail}");
        }
    }
}
