//! The node's own addresses.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use crate::net::ip;

/// The addresses of this machine's network interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Interfaces {
    /// Its own.
    pub(crate) addresses: Vec<IpAddr>,
    /// Those that reach every host of a network it is in.
    pub(crate) broadcasts: Vec<IpAddr>,
}

/// Reads them.
pub(crate) fn read() -> io::Result<Interfaces> {
    let mut interfaces = Interfaces::default();
    for entry in getifaddrs()? {
        if let Some(address) = entry.address.as_ref().and_then(ip) {
            interfaces.addresses.push(address);
        }
        if entry.flags.contains(InterfaceFlags::IFF_BROADCAST) {
            // The system's own field may be unset, and on a point-to-point link it is the other end; the mask tells it too.
            interfaces.broadcasts.extend(entry.broadcast.as_ref().and_then(ip).filter(|address| !address.is_unspecified()));
            let masked = entry.address.as_ref().and_then(ip).zip(entry.netmask.as_ref().and_then(ip));
            interfaces.broadcasts.extend(masked.and_then(|(address, mask)| broadcast(address, mask)));
        }
    }
    Ok(interfaces)
}

/// The last address of an IPv4 network with more than two.
fn broadcast(address: IpAddr, mask: IpAddr) -> Option<IpAddr> {
    let (IpAddr::V4(address), IpAddr::V4(mask)) = (address, mask) else { return None };
    (mask.to_bits().count_ones() <= 30).then(|| Ipv4Addr::from_bits(address.to_bits() | !mask.to_bits()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_loopback_address() {
        assert!(read().unwrap().addresses.contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }

    #[test]
    fn the_broadcast_address_follows_from_the_mask() {
        let of = |address: &str, mask: &str| broadcast(address.parse().unwrap(), mask.parse().unwrap()).map(|address| address.to_string());
        assert_eq!(of("10.1.0.5", "255.255.255.0").as_deref(), Some("10.1.0.255"));
        assert_eq!(of("10.1.0.5", "255.255.255.254"), None);
        assert_eq!(of("2001:db8::1", "ffff:ffff::"), None);
    }
}
