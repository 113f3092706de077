//! Lists of address prefixes: APL records (RFC 3123).

use std::net::{Ipv4Addr, Ipv6Addr};

use super::reader::Data;

/// Each prefix as `[!]family:address/length`.
pub(super) fn prefixes(data: &mut Data<'_>) -> Option<String> {
    let mut items = Vec::new();
    while data.left() > 0 {
        let (family, length, size) = (data.u16()?, data.u8()?, data.u8()?);
        // The highest bit negates; trailing zeros of the address are left out.
        let negated = if size & 0x80 == 0 { "" } else { "!" };
        let bytes = data.bytes(usize::from(size & 0x7f))?;
        let mut octets = [0; 16];
        octets.get_mut(..bytes.len())?.copy_from_slice(&bytes);
        let [a, b, c, d, ..] = octets;
        let address = match (family, bytes.len(), length) {
            (1, 0..=4, 0..=32) => Ipv4Addr::new(a, b, c, d).to_string(),
            (2, 0..=16, 0..=128) => Ipv6Addr::from(octets).to_string(),
            _ => return None,
        };
        items.push(format!("{negated}{family}:{address}/{length}"));
    }
    Some(items.join(" "))
}
