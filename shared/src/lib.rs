//! The words every part of ProbeOps speaks: no runtime, no sockets, no broker.
//!
//! # Layout
//! - [`tools`]: the catalogue. A tool's options, bounds, defaults, class, budget and report, written once.
//! - [`job`]: the message that asks, as published on the broker and as posted over HTTP.
//! - [`outcome`]: the message that answers.
//! - [`subjects`]: every subject of the broker, spelled here and nowhere else.
//! - [`ids`], [`host`], [`http_url`], [`bounded`], [`timestamp`]: strings and numbers with rules.
//! - [`json`], [`invalid`]: strict JSON, and what is wrong with it.
//! - [`selector`]: from where a job is to run.
//! - [`keymaster`]: how credentials are asked for.
//! - [`registry`]: what was granted to nodes and services. [`enroll`]: how a node asks for it.
//! - [`reserved`]: addresses that are not to be touched unless somebody says otherwise.
//! - [`presence`], [`audit`], [`access`]: what nodes announce, what the trail records, what a principal may do.
//! - [`window`]: how much of a rate is used.
//! - [`problem`]: the closed set of HTTP problem codes.
//! - [`settings`]: configuration files.
//! - [`tls`]: what the tools that speak TLS tell of it.
//! - [`traceparent`]: where in a trace something is.
//! - [`planted`](mod@planted): bugs that only fuzzing has compiled in, to be found by it.

pub mod access;
pub mod audit;
pub mod bounded;
pub mod enroll;
pub mod host;
pub mod http_url;
pub mod ids;
pub mod invalid;
pub mod job;
pub mod json;
pub mod keymaster;
pub mod outcome;
pub mod planted;
pub mod presence;
pub mod problem;
pub mod registry;
pub mod reserved;
pub mod selector;
pub mod settings;
pub mod subjects;
pub mod text;
pub mod timestamp;
pub mod tls;
pub mod tools;
pub mod traceparent;
pub mod window;

/// The version all parts of this build share.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
