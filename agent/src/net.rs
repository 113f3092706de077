//! The operating system and the wire, thinly wrapped.

pub(crate) mod arrival;
pub(crate) mod beat;
pub(crate) mod dns;
pub(crate) mod dnssec;
mod drive;
pub(crate) mod error_queue;
pub(crate) mod get;
pub(crate) mod http;
pub(crate) mod icmp;
pub(crate) mod interfaces;
pub(crate) mod pacer;
pub(crate) mod pmtu;
pub(crate) mod starttls;
pub(crate) mod syn;
pub(crate) mod tcp;
pub(crate) mod tls;
pub(crate) mod trace;

use std::io;
use std::net::IpAddr;

use nix::errno::Errno;
use nix::sys::socket::SockaddrStorage;
use tokio::io::{AsyncRead, AsyncWrite};

/// What is said of ourselves to web servers and registries.
pub(crate) const USER_AGENT: &str = concat!("ProbeOps/", env!("CARGO_PKG_VERSION"));

/// A connection, over TLS or not.
pub(crate) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Connection for S {}

/// An error in the system's words, without its number.
pub(crate) fn words(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |number| Errno::from_raw(number).desc().to_owned())
}

/// The address in an address of a socket, if it is one of IP.
pub(crate) fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))
}
