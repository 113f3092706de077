//! The options of EDNS (RFC 6891, 6.1.2), as dig prints them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use probeops_shared::planted;
use probeops_shared::tools::dns::report::DnsOption;
use probeops_shared::tools::dns::subnet::Subnet;

/// Option codes (IANA "DNS EDNS0 Option Codes").
pub(super) const NSID: u16 = 3;
pub(super) const CLIENT_SUBNET: u16 = 8;
const EXPIRE: u16 = 9;
const COOKIE: u16 = 10;
const TCP_KEEPALIVE: u16 = 11;
const PADDING: u16 = 12;
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
        NSID => Some(("NSID", bytes_text(value))),
        CLIENT_SUBNET => client_subnet(value).map(|subnet| ("CLIENT-SUBNET", subnet)),
        COOKIE => Some(("COOKIE", hex(value, ""))),
        EXTENDED_ERROR => extended_error(value).map(|error| ("EDE", error)),
        TCP_KEEPALIVE => keepalive(value).map(|patience| ("TCP KEEPALIVE", patience)),
        PADDING if !value.is_empty() => Some(("PAD", format!("({} bytes)", value.len()))),
        EXPIRE => <[u8; 4]>::try_from(value).ok().map(|seconds| ("EXPIRE", u32::from_be_bytes(seconds).to_string())),
        _ => None,
    };
    let (name, value) = known.map_or_else(|| (format!("OPT={code}"), bytes_text(value)), |(name, value)| (name.to_owned(), value));
    DnsOption { code, name, value }
}

/// What is known of no option in particular: the bytes, and the same as text.
fn bytes_text(value: &[u8]) -> String {
    if value.is_empty() { String::new() } else { format!("{} (\"{}\")", hex(value, " "), printable(value)) }
}

/// RFC 7828, 3.1: tenths of a second.
fn keepalive(value: &[u8]) -> Option<String> {
    let tenths = u16::from_be_bytes(value.try_into().ok()?);
    Some(format!("{}.{} secs", tenths / 10, tenths % 10))
}

/// The option as a query carries it: only the octets that the prefix reaches into (RFC 7871, 6).
pub(super) fn client_subnet_asked(subnet: Subnet) -> Vec<u8> {
    let (family, octets) = match subnet.address() {
        IpAddr::V4(v4) => (1, v4.octets().to_vec()),
        IpAddr::V6(v6) => (2, v6.octets().to_vec()),
    };
    let length = subnet.prefix_length();
    let reached = octets.into_iter().take(usize::from(length.div_ceil(8)));
    [0, family, length, 0].into_iter().chain(reached).collect()
}

fn extended_error(value: &[u8]) -> Option<String> {
    let [upper, lower, text @ ..] = value else { return None };
    let code = u16::from_be_bytes([*upper, *lower]);
    let name = EXTENDED_ERRORS.get(usize::from(code)).map_or_else(String::new, |name| format!(" ({name})"));
    if planted!("dns" if name.is_empty() && text.iter().any(u8::is_ascii_control)) {
        return Some(format!("{code}: ({})", String::from_utf8_lossy(text)));
    }
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
            &[0, 11, 0, 2, 1, 44],
            &[0, 12, 0, 3, 0, 0, 0],
            &[0, 99, 0, 2, 7, b'x'],
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
                "TCP KEEPALIVE: 30.0 secs",
                "PAD: (3 bytes)",
                "OPT=99: 07 78 (\".x\")"
            ]
        );
    }

    #[test]
    fn a_subnet_is_asked_with_the_octets_that_its_prefix_reaches() {
        for (subnet, bytes) in [
            ("192.0.2.77/24", &[0, 1, 24, 0, 192, 0, 2][..]),
            ("10.128.0.0/9", &[0, 1, 9, 0, 10, 128]),
            ("0.0.0.0/0", &[0, 1, 0, 0]),
            ("2001:db8::/32", &[0, 2, 32, 0, 0x20, 0x01, 0x0d, 0xb8]),
        ] {
            assert_eq!(client_subnet_asked(subnet.parse().unwrap()), bytes);
        }
    }
}
