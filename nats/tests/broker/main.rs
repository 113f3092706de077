//! Our configuration, credentials and streams on a real nats-server.
#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "tests")]

mod attacks;
mod cluster;
mod denied;
mod fixture;
mod granted;
mod lifecycle;
mod outside;
mod reflected;
