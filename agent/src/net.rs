//! The operating system and the wire, thinly wrapped.

pub(crate) mod dns;
pub(crate) mod error_queue;
pub(crate) mod get;
pub(crate) mod http;
pub(crate) mod icmp;
pub(crate) mod interfaces;
pub(crate) mod pmtu;
pub(crate) mod starttls;
pub(crate) mod tcp;
pub(crate) mod tls;

use std::io;

use nix::errno::Errno;

/// An error in the system's words, without its number.
pub(crate) fn words(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |number| Errno::from_raw(number).desc().to_owned())
}
