//! Who announces an address, as the DNS has it since Team Cymru's "IP to ASN mapping": text such as `64500 | 192.0.2.0/24 | ZZ | arin | 2026-01-01`
//! at the reversed address below `origin.` or `origin6.` of a zone. mtr(8) asks the same.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use probeops_shared::tools::dns::report::DnsRecord;

/// The zone that is asked where the operator has set none.
const PUBLIC_ZONE: &str = "asn.cymru.com";
/// How many origins of an address are told. A prefix with more than three is rare.
const ORIGINS_MAX: usize = 16;

/// Where to ask. A public zone knows nothing of an address that is not public, and is not to learn of it.
pub(super) fn name(address: IpAddr, zone: Option<&str>) -> Option<String> {
    let address = address.to_canonical();
    let zone = zone.or_else(|| is_public(address).then_some(PUBLIC_ZONE))?;
    Some(match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("{d}.{c}.{b}.{a}.origin.{zone}")
        }
        IpAddr::V6(v6) => {
            // As mtr(8) does: nobody announces less than a network, and the rest tells of a host.
            let nibbles: String = format!("{:016x}", v6.to_bits() >> 64).chars().rev().flat_map(|nibble| [nibble, '.']).collect();
            format!("{nibbles}origin6.{zone}")
        }
    })
}

/// The origins of the longest prefix that the address is in, for by that it is routed; each once.
pub(crate) fn read(address: IpAddr, records: &[DnsRecord]) -> Vec<u32> {
    let address = address.to_canonical();
    let mut known: Vec<(IpNet, Vec<u32>)> = records.iter().filter(|record| record.kind == "TXT").filter_map(origins).collect();
    known.retain(|(network, _)| network.contains(&address));
    let longest = known.iter().map(|(network, _)| network.prefix_len()).max();
    let mut asn: Vec<u32> = Vec::new();
    for number in known.into_iter().filter(|(network, _)| Some(network.prefix_len()) == longest).flat_map(|(_, numbers)| numbers) {
        if !asn.contains(&number) && asn.len() < ORIGINS_MAX {
            asn.push(number);
        }
    }
    asn
}

/// The prefix and the numbers in a record; none where it has another form.
fn origins(record: &DnsRecord) -> Option<(IpNet, Vec<u32>)> {
    let mut fields = record.value.trim_matches('"').split('|').map(str::trim);
    let (numbers, network) = (fields.next()?, fields.next()?.parse().ok()?);
    Some((network, numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect()))
}

/// Whether an address may be that of anybody on the Internet (IANA's registries of special-purpose addresses, RFC 6890).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let octets = address.octets();
    // This network, private, loopback, multicast, reserved; shared by carriers; of a link.
    let is_local =
        matches!(octets, [0 | 10 | 127 | 224..=255, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] | [169, 254, ..]);
    // Protocols, benchmarks, documentation.
    !is_local && !matches!(octets, [192, 0, 0 | 2, _] | [198, 18 | 19, ..] | [198, 51, 100, _] | [203, 0, 113, _])
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    match address.segments() {
        // Teredo, other protocols, benchmarks; documentation; 6to4; documentation.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x2002, ..] | [0x3fff, 0..=0xfff, ..] => false,
        [first, ..] => (0x2000..=0x3fff).contains(&first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn txt(value: &str) -> DnsRecord {
        DnsRecord { name: "x.".to_owned(), ttl_s: 60, class: "IN".to_owned(), kind: "TXT".to_owned(), value: format!("\"{value}\"") }
    }

    #[test]
    fn an_address_is_asked_for_by_its_reverse() {
        let of = |address: &str, zone| name(address.parse().unwrap(), zone);
        assert_eq!(of("8.8.4.1", None).as_deref(), Some("1.4.8.8.origin.asn.cymru.com"));
        assert_eq!(of("::ffff:8.8.4.1", None).as_deref(), Some("1.4.8.8.origin.asn.cymru.com"));
        assert_eq!(of("2a00:1450:4009:8::9", None).as_deref(), Some("8.0.0.0.9.0.0.4.0.5.4.1.0.0.a.2.origin6.asn.cymru.com"));
        assert_eq!(of("10.0.0.1", Some("asn.corp.example")).as_deref(), Some("1.0.0.10.origin.asn.corp.example"));
    }

    #[test]
    fn strangers_are_not_asked_about_addresses_that_are_not_public() {
        for address in [
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.0.1",
            "127.0.0.1",
            "169.254.1.1",
            "172.31.0.1",
            "192.0.0.8",
            "192.0.2.1",
            "192.168.0.1",
            "198.19.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "fd00::1",
            "fe80::1",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
            "2002:a00::1",
            "3fff::1",
            "64:ff9b::a00:1",
            "::ffff:10.0.0.1",
        ] {
            assert_eq!(name(address.parse().unwrap(), None), None, "{address}");
        }
        for address in ["1.1.1.1", "100.63.0.1", "100.128.0.1", "172.32.0.1", "198.20.0.1", "2001:200::1", "2606:4700::1", "2a00::1"] {
            assert!(name(address.parse().unwrap(), None).is_some(), "{address}");
        }
    }

    #[test]
    fn the_origins_of_the_longest_prefix_are_told_once() {
        let of = |values: &[&str]| read("10.1.2.3".parse().unwrap(), &values.iter().map(|value| txt(value)).collect::<Vec<_>>());
        assert_eq!(of(&["64500 | 10.0.0.0/8 | ZZ | other | 2026-01-01"]), [64500]);
        assert_eq!(
            of(&["64500 | 10.0.0.0/8", "64502 64501 | 10.1.0.0/16", "64501 4200000001 | 10.1.0.0/16"]),
            [64502, 64501, 4_200_000_001]
        );
        assert_eq!(of(&["64500 | 10.2.0.0/16 | of another", "NA | 10.1.0.0/16", "64500", "64500 | x", ""]), Vec::<u32>::new());
        let many = format!("{} | 10.0.0.0/8", (1..=100).map(|number: u32| number.to_string()).collect::<Vec<_>>().join(" "));
        assert_eq!(of(&[&many]).len(), ORIGINS_MAX);
    }
}
