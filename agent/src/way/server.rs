//! An address of the broker, taken apart.

use std::fmt;
use std::str::FromStr;

use crate::policy::Endpoint;

/// How the broker is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// NATS, which goes over to TLS after the broker's first line.
    Tls,
    /// NATS in WebSocket frames (RFC 6455), over TLS from the first byte.
    Wss,
}

/// One address of the broker.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    text: String,
    /// How it is spoken to.
    pub(crate) scheme: Scheme,
    /// Where it is.
    pub(crate) endpoint: Endpoint,
    /// The path of a WebSocket; `/` where there is none.
    pub(crate) path: String,
}

impl FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, rest) = match text.split_once("://") {
            Some(("tls", rest)) => (Scheme::Tls, rest),
            Some(("wss", rest)) => (Scheme::Wss, rest),
            Some(_) | None => return Err(format!("`{text}` is not an address of a broker; it begins with tls:// or wss://")),
        };
        let endpoint = Endpoint::of_server(text)?;
        let path = rest.find('/').and_then(|slash| rest.get(slash..)).filter(|_| scheme == Scheme::Wss).unwrap_or("/");
        Ok(Self { text: text.to_owned(), scheme, endpoint, path: path.to_owned() })
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
