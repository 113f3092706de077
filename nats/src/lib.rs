//! The broker: who may do what on it, how it is configured, started and filled, and how programs connect to it.
//!
//! # Layout
//! - [`layout`]: where everything lies below the data folder.
//! - [`vault`]: keys and signed claims: operator, accounts, credentials, revocation. [`claims`] is their form, [`permissions`] what they say.
//! - [`keymaster`]: the process that signs and revokes for the API, and keeps all servers at the account claims.
//! - [`revoke`]: the same for a command that has the keys. [`reload`]: has servers read their certificate again.
//! - [`sentry`]: sees violations, clones and floods, records and cuts them.
//! - [`tls`]: our own authority and the broker's certificate.
//! - [`config`]: what `server.conf` says.
//! - [`server`]: finds or fetches nats-server, starts it, stops it.
//! - [`streams`]: streams and buckets, and how they are made.
//! - [`connect`], [`process`]: what every program of ours does to be on the broker.

pub mod claims;
pub mod config;
pub mod connect;
pub mod keymaster;
pub mod layout;
pub mod node_key;
pub mod permissions;
pub mod process;
pub mod reload;
pub mod revoke;
pub mod sentry;
pub mod server;
pub mod streams;
#[cfg(test)]
mod testing;
pub mod tls;
mod trail;
pub mod vault;
