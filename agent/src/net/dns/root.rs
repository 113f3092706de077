//! The servers of the Internet's root, as IANA lists them (`named.root` of 2024).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const V4: [[u8; 4]; 13] = [
    [198, 41, 0, 4],
    [170, 247, 170, 2],
    [192, 33, 4, 12],
    [199, 7, 91, 13],
    [192, 203, 230, 10],
    [192, 5, 5, 241],
    [192, 112, 36, 4],
    [198, 97, 190, 53],
    [192, 36, 148, 17],
    [192, 58, 128, 30],
    [193, 0, 14, 129],
    [199, 7, 83, 42],
    [202, 12, 27, 33],
];

const V6: [[u16; 8]; 13] = [
    [0x2001, 0x503, 0xba3e, 0, 0, 0, 2, 0x30],
    [0x2801, 0x1b8, 0x10, 0, 0, 0, 0, 0xb],
    [0x2001, 0x500, 2, 0, 0, 0, 0, 0xc],
    [0x2001, 0x500, 0x2d, 0, 0, 0, 0, 0xd],
    [0x2001, 0x500, 0xa8, 0, 0, 0, 0, 0xe],
    [0x2001, 0x500, 0x2f, 0, 0, 0, 0, 0xf],
    [0x2001, 0x500, 0x12, 0, 0, 0, 0, 0xd0d],
    [0x2001, 0x500, 1, 0, 0, 0, 0, 0x53],
    [0x2001, 0x7fe, 0, 0, 0, 0, 0, 0x53],
    [0x2001, 0x503, 0xc27, 0, 0, 0, 2, 0x30],
    [0x2001, 0x7fd, 0, 0, 0, 0, 0, 1],
    [0x2001, 0x500, 0x9f, 0, 0, 0, 0, 0x42],
    [0x2001, 0xdc3, 0, 0, 0, 0, 0, 0x35],
];

/// Their names, from `a.root-servers.net.` on, and addresses.
pub(crate) fn servers() -> impl Iterator<Item = (String, [IpAddr; 2])> {
    let addresses = V4.into_iter().map(Ipv4Addr::from).zip(V6.into_iter().map(Ipv6Addr::from));
    ('a'..='m').zip(addresses).map(|(letter, (v4, v6))| (format!("{letter}.root-servers.net."), [v4.into(), v6.into()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_thirteen_with_an_address_of_each_family() {
        let servers: Vec<_> = servers().collect();
        assert_eq!(servers.len(), 13);
        assert_eq!(servers[0], ("a.root-servers.net.".to_owned(), ["198.41.0.4".parse().unwrap(), "2001:503:ba3e::2:30".parse().unwrap()]));
        assert_eq!(servers[12], ("m.root-servers.net.".to_owned(), ["202.12.27.33".parse().unwrap(), "2001:dc3::35".parse().unwrap()]));
    }
}
