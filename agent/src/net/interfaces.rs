//! The node's own addresses.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::SockaddrStorage;

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
        // On a point-to-point link the same field is the other end's address, which is a host like any other.
        if entry.flags.contains(InterfaceFlags::IFF_BROADCAST) {
            interfaces.broadcasts.extend(entry.broadcast.as_ref().and_then(ip).filter(|address| !address.is_unspecified()));
        }
    }
    Ok(interfaces)
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(Ipv4Addr::from(address.ip())));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::from(Ipv6Addr::from(address.ip()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_loopback_address() {
        assert!(read().unwrap().addresses.contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }
}
