//! The options of EDNS (RFC 6891, 6.1.2), as dig prints them.

use std::net::{Ipv4Addr, Ipv6Addr};

use probeops_shared::tools::dns::report::DnsOption;

/// Option codes (IANA "DNS EDNS0 Option Codes").
pub(super) const NSID: u16 = 3;
const CLIENT_SUBNET: u16 = 8;
const COOKIE: u16 = 10;
const EXTENDED_ERROR: u16 = 15;

/// RFC 8914, 5.2.
const EXTENDED_ERRORS: [&str; 25] = [
    "Other",
    "Unsupported DNSKEY Algorithm",
    "Unsupported DS Digest Type",
    "Stale Answer",
    "Forged Answer",
    "DNSSEC Indeterminate",
    "DNSSEC Bogus",
    "Signature Expired",
    "Signature Not Yet Valid",
    "DNSKEY Missing",
    "RRSIGs Missing",
    "No Zone Key Bit Set",
    "NSEC Missing",
    "Cached Error",
    "Not Ready",
    "Blocked",
    "Censored",
    "Filtered",
    "Prohibited",
    "Stale NXDOMAIN Answer",
    "Not Authoritative",
    "Not Supported",
    "No Reachable Authority",
    "Network Error",
    "Invalid Data",
];

/// Reads them; ends where they cannot be read.
pub(super) fn options(mut data: &[u8]) -> Vec<DnsOption> {
    let mut options = Vec::new();
    while let [code_upper, code_lower, length_upper, length_lower, rest @ ..] = data {
        let code = u16::from_be_bytes([*code_upper, *code_lower]);
        let Some((value, next)) = rest.split_at_checked(usize::from(u16::from_be_bytes([*length_upper, *length_lower]))) else { break };
        options.push(option(code, value));
        data = next;
    }
    options
}

fn option(code: u16, value: &[u8]) -> DnsOption {
    let known = match code {
        NSID => Some(("NSID", format!("{} (\"{}\")", hex(value, " "), printable(value)))),
        CLIENT_SUBNET => client_subnet(value).map(|subnet| ("CLIENT-SUBNET", subnet)),
        COOKIE => Some(("COOKIE", hex(value, ""))),
        EXTENDED_ERROR => extended_error(value).map(|error| ("EDE", error)),
        _ => None,
    };
    let (name, value) = known.map_or_else(|| (format!("OPT={code}"), hex(value, " ")), |(name, value)| (name.to_owned(), value));
    DnsOption { code, name, value }
}

fn extended_error(value: &[u8]) -> Option<String> {
    let [upper, lower, text @ ..] = value else { return None };
    let code = u16::from_be_bytes([*upper, *lower]);
    let name = EXTENDED_ERRORS.get(usize::from(code)).map_or_else(String::new, |name| format!(" ({name})"));
    let text = if text.is_empty() { String::new() } else { format!(": ({})", String::from_utf8_lossy(text).escape_debug()) };
    Some(format!("{code}{name}{text}"))
}

/// RFC 7871, 6.
fn client_subnet(value: &[u8]) -> Option<String> {
    let [0, family, source, scope, address @ ..] = value else { return None };
    let mut octets = [0; 16];
    octets.get_mut(..address.len())?.copy_from_slice(address);
    let [a, b, c, d, ..] = octets;
    match (family, address.len()) {
        (1, 0..=4) => Some(format!("{}/{source}/{scope}", Ipv4Addr::new(a, b, c, d))),
        (2, _) => Some(format!("{}/{source}/{scope}", Ipv6Addr::from(octets))),
        _ => None,
    }
}

fn hex(bytes: &[u8], between: &str) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(between)
}

fn printable(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_print_as_dig_prints_them() {
        let bytes = [
            &[0, 3, 0, 3][..],
            b"ns1",
            &[0, 15, 0, 4, 0, 22],
            b"no",
            &[0, 8, 0, 7, 0, 1, 24, 0, 192, 0, 2],
            &[0, 10, 0, 2, 0xab, 0xcd],
            &[0, 99, 0, 1, 7],
            &[0, 99, 0, 9, 7],
        ]
        .concat();
        let printed: Vec<String> = options(&bytes).iter().map(|option| format!("{}: {}", option.name, option.value)).collect();
        assert_eq!(
            printed,
            [
                "NSID: 6e 73 31 (\"ns1\")",
                "EDE: 22 (No Reachable Authority): (no)",
                "CLIENT-SUBNET: 192.0.2.0/24/0",
                "COOKIE: abcd",
                "OPT=99: 07"
            ]
        );
    }
}
