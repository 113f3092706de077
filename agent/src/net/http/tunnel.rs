//! A tunnel through a proxy (RFC 9110, 9.3.6).

use std::net::SocketAddr;

use hyper::header::HeaderName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::title_case;
use crate::net::Connection;

/// The longest head of a proxy's answer.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Asks the proxy at the other end for a tunnel to an address, with these header lines; in words why there is none. The caller bounds the wait.
pub(crate) async fn open(stream: &mut impl Connection, to: SocketAddr, lines: &[(HeaderName, String)]) -> Result<(), String> {
    let lines: Vec<String> = lines.iter().map(|(name, value)| format!("{}: {value}\r\n", title_case(name.as_str()))).collect();
    let request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{}\r\n", lines.concat());
    stream.write_all(request.as_bytes()).await.map_err(|error| crate::net::words(&error))?;
    let mut head = Vec::new();
    // One by one: what follows the head belongs to whoever is at the end of the tunnel.
    while !head.ends_with(b"\r\n\r\n") {
        let byte = stream.read_u8().await.map_err(|_| "the proxy ended the connection before it had answered".to_owned())?;
        head.push(byte);
        if head.len() > HEAD_BYTES_MAX {
            return Err("the proxy's answer has no end".to_owned());
        }
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let status = line.split(|byte| *byte == b' ').nth(1).and_then(|word| str::from_utf8(word).ok()?.parse::<u16>().ok());
    match status {
        Some(200..=299) if line.starts_with(b"HTTP/") => Ok(()),
        Some(_) | None => Err(format!("the proxy answered CONNECT {to} with `{}`", line.escape_ascii())),
    }
}
