//! What the system tests and the benchmarks share: the whole fabric as separate processes, and somebody who calls it.

#![expect(clippy::panic, reason = "a test that cannot go on must say so and stop")]

pub mod asker;
pub mod broker;
pub mod crash;
pub mod fabric;
pub mod hostile;
pub mod http;
pub mod identity;
pub mod needs;
pub mod otlp;
pub mod process;
pub mod receiver;
pub mod silent;
pub mod terminal;
pub mod testnet;
pub mod up;
pub mod wire;
pub mod wire_delay;
