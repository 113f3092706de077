//! Our tools beside the programs that everybody knows, on the same path at the same time.

mod dns;
mod loss;
mod mtu;
mod ports;
mod registry;
mod tls;
mod trace;
mod web;

use serde_json::Value;

use super::table::Row;
use super::{Asker, Testnet};

/// A host at the end of the path.
const HOST: &str = "10.77.100.80";
/// The same over IPv6.
const HOST_V6: &str = "fd77:100::80";

/// Compares something.
pub type Comparison = fn(&Testnet, &Asker) -> Row;

/// Everything that is compared, in order.
pub const COMPARISONS: [Comparison; 14] = [
    trace::hops,
    trace::equal_paths,
    trace::watched_hops,
    trace::limited,
    loss::packets,
    loss::hops,
    dns::answers,
    dns::proofs,
    dns::delegations,
    tls::chains,
    web::answers,
    ports::states,
    mtu::paths,
    registry::records,
];

/// The entries of an array in a report.
fn entries(report: &Value, field: &str) -> Vec<Value> {
    report[field].as_array().cloned().unwrap_or_default()
}

/// A text of a report; empty where there is none.
fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
