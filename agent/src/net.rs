//! The operating system and the wire, thinly wrapped.

pub(crate) mod arrival;
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

use nix::errno::Errno;

/// An error in the system's words, without its number.
pub(crate) fn words(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |number| Errno::from_raw(number).desc().to_owned())
}
