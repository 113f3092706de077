//! Records that name a gateway by address or name: IPSECKEY (RFC 4025) and AMTRELAY (RFC 8777).

use std::net::{Ipv4Addr, Ipv6Addr};

use super::reader::Data;

/// Precedence, kind of gateway, algorithm, gateway, key.
pub(super) fn ipsec(data: &mut Data<'_>) -> Option<String> {
    let (precedence, kind, algorithm) = (data.u8()?, data.u8()?, data.u8()?);
    let gateway = gateway(data, kind)?.unwrap_or_else(|| ".".to_owned());
    let key = if data.left() > 0 { format!(" {}", data.base64()?) } else { String::new() };
    Some(format!("{precedence} {kind} {algorithm} {gateway}{key}"))
}

/// Precedence, whether to discover first, kind of relay, relay.
pub(super) fn relay(data: &mut Data<'_>) -> Option<String> {
    let (precedence, upper) = (data.u8()?, data.u8()?);
    let (discovery, kind) = (upper >> 7, upper & 0x7f);
    let relay = gateway(data, kind)?.map_or_else(String::new, |relay| format!(" {relay}"));
    Some(format!("{precedence} {discovery} {kind}{relay}"))
}

/// None, an address of either family, or a name.
fn gateway(data: &mut Data<'_>, kind: u8) -> Option<Option<String>> {
    Some(match kind {
        0 => None,
        1 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(data.bytes(4)?).ok()?).to_string()),
        2 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(data.bytes(16)?).ok()?).to_string()),
        3 => Some(data.name()?),
        _ => return None,
    })
}
