//! Records that name a gateway by address or name: IPSECKEY (RFC 4025) and AMTRELAY (RFC 8777).

use std::net::{Ipv4Addr, Ipv6Addr};

use super::reader::Data;

/// Precedence, kind of gateway, algorithm, gateway, key.
pub(super) fn ipsec(data: &mut Data<'_>) -> Option<String> {
    let (precedence, kind, algorithm) = (data.u8()?, data.u8()?, data.u8()?);
    let gateway = gateway(data, kind)?;
    let gateway = if gateway.is_empty() { "." } else { &gateway };
    let key = if data.left() > 0 { format!(" {}", data.base64()?) } else { String::new() };
    Some(format!("{precedence} {kind} {algorithm} {gateway}{key}"))
}

/// Precedence, whether to discover first, kind of relay, relay.
pub(super) fn relay(data: &mut Data<'_>) -> Option<String> {
    let (precedence, upper) = (data.u8()?, data.u8()?);
    let (discovery, kind) = (upper >> 7, upper & 0x7f);
    let relay = gateway(data, kind)?;
    Some(format!("{precedence} {discovery} {kind} {relay}").trim_end().to_owned())
}

/// An address of either family, a name, or empty for none.
fn gateway(data: &mut Data<'_>, kind: u8) -> Option<String> {
    Some(match kind {
        0 => String::new(),
        1 => Ipv4Addr::from(<[u8; 4]>::try_from(data.bytes(4)?).ok()?).to_string(),
        2 => Ipv6Addr::from(<[u8; 16]>::try_from(data.bytes(16)?).ok()?).to_string(),
        3 => data.name()?,
        _ => return None,
    })
}
