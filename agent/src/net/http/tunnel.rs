//! A tunnel through a proxy (RFC 9110, 9.3.6).

use std::fmt;

use hyper::header::HeaderName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::title_case;
use crate::net::Connection;

/// The longest head of a proxy's answer.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Why there is no tunnel.
#[derive(Debug)]
pub(crate) enum NoTunnel {
    /// The proxy said so, with this status where it speaks HTTP.
    Refused {
        /// The status.
        status: Option<u16>,
        /// In words.
        detail: String,
    },
    /// It has not answered whole.
    Broken(String),
}

impl fmt::Display for NoTunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Refused { detail, .. } | Self::Broken(detail)) = self;
        f.write_str(detail)
    }
}

/// Asks the proxy at the other end for a tunnel to `HOST:PORT`, with these header lines. The caller bounds the wait.
pub(crate) async fn open(stream: &mut impl Connection, to: impl fmt::Display, lines: &[(HeaderName, String)]) -> Result<(), NoTunnel> {
    let lines: Vec<String> = lines.iter().map(|(name, value)| format!("{}: {value}\r\n", title_case(name.as_str()))).collect();
    let request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{}\r\n", lines.concat());
    stream.write_all(request.as_bytes()).await.map_err(|error| NoTunnel::Broken(crate::net::words(&error)))?;
    let mut head = Vec::new();
    // One by one: what follows the head belongs to whoever is at the end of the tunnel.
    while !head.ends_with(b"\r\n\r\n") {
        let byte = stream.read_u8().await;
        head.push(byte.map_err(|_| NoTunnel::Broken("the proxy ended the connection before it had answered".to_owned()))?);
        if head.len() > HEAD_BYTES_MAX {
            return Err(NoTunnel::Broken("the proxy's answer has no end".to_owned()));
        }
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let status = line.split(|byte| *byte == b' ').nth(1).and_then(|word| str::from_utf8(word).ok()?.parse::<u16>().ok());
    match status.filter(|_| line.starts_with(b"HTTP/")) {
        Some(200..=299) => Ok(()),
        status => Err(NoTunnel::Refused { status, detail: format!("the proxy answered CONNECT {to} with `{}`", line.escape_ascii()) }),
    }
}
