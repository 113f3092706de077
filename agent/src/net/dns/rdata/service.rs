//! Service bindings: SVCB and HTTPS records (RFC 9460).

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use data_encoding::BASE64;

use super::reader::Data;
use super::text::{escaped, quoted};

/// Priority, name and parameters.
pub(super) fn service(data: &mut Data<'_>) -> Option<String> {
    let mut text = format!("{} {}", data.u16()?, data.name()?);
    while data.left() > 0 {
        let key = data.u16()?;
        let length = usize::from(data.u16()?);
        let value = data.bytes(length)?;
        let _ = write!(text, " {}", parameter(key, &value)?);
    }
    Some(text)
}

/// A service parameter (RFC 9460, 14.3.2; RFC 9461).
fn parameter(key: u16, value: &[u8]) -> Option<String> {
    let listed = |name: &str, items: Vec<String>| format!("{name}={}", items.join(","));
    Some(match key {
        0 => listed("mandatory", value.chunks_exact(2).map(|pair| parameter_name(u16::from_be_bytes([pair[0], pair[1]]))).collect()),
        1 => {
            let mut protocols = Vec::new();
            let mut rest = value;
            while let Some((length, after)) = rest.split_first() {
                let (protocol, next) = after.split_at_checked(usize::from(*length))?;
                // A comma inside a protocol's name is told from one between two (RFC 9460, A.1).
                protocols.push(escaped(protocol).replace('\\', "\\\\").replace(',', "\\\\,"));
                rest = next;
            }
            format!("alpn=\"{}\"", protocols.join(","))
        }
        2 if value.is_empty() => "no-default-alpn".to_owned(),
        3 => format!("port={}", u16::from_be_bytes(value.try_into().ok()?)),
        4 if value.len().is_multiple_of(4) => listed(
            "ipv4hint",
            value.chunks_exact(4).filter_map(|four| <[u8; 4]>::try_from(four).ok()).map(|four| Ipv4Addr::from(four).to_string()).collect(),
        ),
        5 => format!("ech={}", BASE64.encode(value)),
        6 if value.len().is_multiple_of(16) => listed(
            "ipv6hint",
            value
                .chunks_exact(16)
                .filter_map(|bytes| <[u8; 16]>::try_from(bytes).ok())
                .map(|bytes| Ipv6Addr::from(bytes).to_string())
                .collect(),
        ),
        _ if value.is_empty() => parameter_name(key),
        _ => format!("{}={}", parameter_name(key), quoted(value)),
    })
}

fn parameter_name(key: u16) -> String {
    const NAMES: [&str; 8] = ["mandatory", "alpn", "no-default-alpn", "port", "ipv4hint", "ech", "ipv6hint", "dohpath"];
    NAMES.get(usize::from(key)).map_or_else(|| format!("key{key}"), |name| (*name).to_owned())
}
