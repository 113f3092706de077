//! Addresses that are not to be touched unless somebody says otherwise, and the disguises in which an IPv4 address can come: what a node's
//! policy and the destinations of callbacks are judged by.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where clouds serve credentials to whoever asks from inside, beyond 169.254.0.0/16 and `fe80::/10` which are denied as a whole: Alibaba,
/// Azure, Oracle; Amazon (of machines, and of pods), Google, Linode, Oracle, Scaleway.
const METADATA_V4: [Ipv4Addr; 3] = [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];
const METADATA_V6: [Ipv6Addr; 6] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
    Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),
];

/// What an address is that stands for no host, or for one that nobody may be led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserved {
    /// No address yet.
    Unspecified,
    /// This machine.
    Loopback,
    /// This link only.
    LinkLocal,
    /// Where a cloud serves credentials.
    Metadata,
    /// A group.
    Multicast,
    /// Everybody on this link.
    Broadcast,
    /// Nobody yet.
    Future,
}

impl Reserved {
    /// What the address is, if it is reserved. Disguises are not looked into; see [`embedded`].
    pub fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => Self::of_v6(address),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Option<Self> {
        match address.octets() {
            [0, ..] => Some(Self::Unspecified),
            [127, ..] => Some(Self::Loopback),
            [169, 254, ..] => Some(Self::LinkLocal),
            [224..=239, ..] => Some(Self::Multicast),
            [255, 255, 255, 255] => Some(Self::Broadcast),
            [240..=255, ..] => Some(Self::Future),
            _ => METADATA_V4.contains(&address).then_some(Self::Metadata),
        }
    }

    fn of_v6(address: Ipv6Addr) -> Option<Self> {
        if address.is_unspecified() {
            return Some(Self::Unspecified);
        }
        if address.is_loopback() {
            return Some(Self::Loopback);
        }
        match address.segments() {
            [0xfe80..=0xfebf, ..] => Some(Self::LinkLocal),
            [0xff00..=0xffff, ..] => Some(Self::Multicast),
            _ => METADATA_V6.contains(&address).then_some(Self::Metadata),
        }
    }
}

impl fmt::Display for Reserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unspecified => "an unspecified address",
            Self::Loopback => "a loopback address",
            Self::LinkLocal => "a link-local address (where clouds serve their metadata)",
            Self::Metadata => "the address of a cloud's metadata service",
            Self::Multicast => "a multicast address",
            Self::Broadcast => "a broadcast address",
            Self::Future => "an address reserved for future use",
        })
    }
}

/// Every IPv4 address that an IPv6 address may really lead to, and by which mechanism.
pub fn embedded(address: IpAddr) -> Vec<(Ipv4Addr, &'static str)> {
    let IpAddr::V6(address) = address else { return Vec::new() };
    let [_, _, o2, o3, o4, o5, o6, o7, o8, o9, o10, o11, o12, o13, o14, o15] = address.octets();
    let last = Ipv4Addr::new(o12, o13, o14, o15);
    let mut found = Vec::new();
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, _, _] => found.push((last, "IPv4-mapped")),
        // `::` and `::1` are themselves.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => {}
        [0, 0, 0, 0, 0, 0, _, _] => found.push((last, "IPv4-compatible")),
        [0x64, 0xff9b, 0, 0, 0, 0, _, _] => found.push((last, "NAT64")),
        [0x64, 0xff9b, 1, ..] => {
            // RFC 8215 leaves the length of the prefix to the network; by RFC 6052 a shorter one puts the address elsewhere. Zeros at a place
            // mean that it is not there.
            let places = [(o12, o13, o14, o15), (o9, o10, o11, o12), (o7, o9, o10, o11), (o6, o7, o9, o10)];
            found.extend(places.into_iter().filter(|(first, ..)| *first != 0).map(|(a, b, c, d)| (Ipv4Addr::new(a, b, c, d), "NAT64")));
        }
        [0x2002, ..] => found.push((Ipv4Addr::new(o2, o3, o4, o5), "6to4")),
        [0x2001, 0, ..] => {
            found.push((Ipv4Addr::new(!o12, !o13, !o14, !o15), "Teredo client"));
            found.push((Ipv4Addr::new(o4, o5, o6, o7), "Teredo server"));
        }
        _ => {}
    }
    if matches!([o8 & 0xfd, o9, o10, o11], [0, 0, 0x5e, 0xfe]) {
        found.push((last, "ISATAP"));
    }
    found
}

/// What a network is that is not part of the public internet, beyond what is [`Reserved`]: private use (RFC 1918, RFC 4193), shared by
/// carriers (RFC 6598), protocol assignments, documentation, benchmarks. Disguises are not looked into.
pub fn unroutable(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => match address.octets() {
            [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Some("a private address"),
            [100, 64..=127, ..] => Some("an address that carriers share"),
            [192, 0, 0, _] => Some("an address of a protocol"),
            [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Some("an address of documentation"),
            [198, 18 | 19, ..] => Some("an address of benchmarks"),
            _ => None,
        },
        IpAddr::V6(address) => match address.segments() {
            [0xfc00..=0xfdff, ..] => Some("a private address"),
            [0xfec0..=0xfeff, ..] => Some("a site-local address"),
            [0x100, 0, 0, 0, ..] => Some("an address where everything is discarded"),
            [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Some("an address of documentation"),
            [0x2001, 2, 0, ..] => Some("an address of benchmarks"),
            _ => None,
        },
    }
}
