//! The tools beside the programs that everybody knows, on one network of our own: the same sets, order and counts. Run as root:
//! `cargo test -p probeops-tests --features testnet --test testnet`.

use std::process::ExitCode;
use std::time::Duration;

use probeops_tests::testnet::compare::COMPARISONS;
use probeops_tests::testnet::run::run;

/// It takes half of it on two cores that others use, too.
const MOST: Duration = Duration::from_mins(3);

fn main() -> ExitCode {
    run(MOST, &COMPARISONS)
}
