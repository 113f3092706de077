//! The API over HTTP, on a real broker, without nodes.

mod access;
mod fixture;
mod requests;
mod trail;
