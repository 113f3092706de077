//! The tools beside the programs that everybody knows, on one network of our own: the same sets, order and counts. Run as root:
//! `cargo test -p probeops-tests --features testnet --test testnet`.

use std::process::ExitCode;
use std::time::Duration;

use probeops_tests::testnet::breakages::noticed;
use probeops_tests::testnet::compare::{COMPARISONS, Comparison};
use probeops_tests::testnet::run::run;

/// It takes half of it on two cores that others use, too.
const MOST: Duration = Duration::from_mins(4);

fn main() -> ExitCode {
    let comparisons: Vec<Comparison> = COMPARISONS.into_iter().chain([noticed as Comparison]).collect();
    run(MOST, &comparisons)
}
