//! Ports that a program started later can still have.

use std::collections::HashSet;
use std::io::{Error, ErrorKind, Result};
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Where Linux says which ports it gives to outgoing connections (ip(7), `ip_local_port_range`).
const EPHEMERAL_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// The first of them where nobody says (IANA's dynamic ports, RFC 6335 section 6).
const EPHEMERAL_START: u16 = 49_152;
/// Below it are the ports of well-known programs.
const LOWEST: u16 = 10_000;
/// How many ports are tried before there is said to be none.
const TRIES: usize = 1_000;

/// A TCP port of the loopback that is free, was not given by this process before, and that no outgoing connection takes until it is listened on.
///
/// # Errors
///
/// When none of many that were tried is free.
pub fn free_port() -> Result<u16> {
    static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    let ports = below_ephemeral(std::fs::read_to_string(EPHEMERAL_RANGE).ok().as_deref());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let given = given.get_or_insert_default();
    for _ in 0..TRIES {
        let port = rand::random_range(ports.clone());
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() && given.insert(port) {
            return Ok(port);
        }
    }
    Err(Error::new(ErrorKind::AddrInUse, format!("{TRIES} ports between {} and {} were tried", ports.start, ports.end)))
}

/// The ports below those of outgoing connections; all high ones where those leave none.
fn below_ephemeral(range: Option<&str>) -> Range<u16> {
    let start = range.and_then(|text| text.split_whitespace().next()?.parse().ok()).unwrap_or(EPHEMERAL_START);
    if start > LOWEST { LOWEST..start } else { LOWEST..u16::MAX }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_twice_nor_one_that_outgoing_connections_take() {
        let ports: HashSet<u16> = (0..100).map(|_| free_port().unwrap()).collect();
        assert_eq!(ports.len(), 100);
        assert_eq!(below_ephemeral(Some("32768\t60999\n")), 10_000..32_768);
        assert_eq!(below_ephemeral(Some("1024 65535")), 10_000..65_535);
        assert_eq!(below_ephemeral(None), 10_000..49_152);
    }
}
