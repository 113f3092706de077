//! The operating system and the wire, thinly wrapped.

pub(crate) mod dns;
pub(crate) mod error_queue;
pub(crate) mod icmp;
pub(crate) mod interfaces;
pub(crate) mod tcp;
