//! The operating system and the wire, thinly wrapped.

pub(crate) mod dns;
pub(crate) mod error_queue;
pub(crate) mod get;
pub(crate) mod icmp;
pub(crate) mod interfaces;
pub(crate) mod pmtu;
pub(crate) mod tcp;
#[cfg_attr(not(test), expect(dead_code, reason = "the first tool to use it comes next"))]
pub(crate) mod tls;

use std::io;

use nix::errno::Errno;

/// An error in the system's words, without its number.
pub(crate) fn words(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |number| Errno::from_raw(number).desc().to_owned())
}
