//! The tools beside the programs that everybody knows, on one network of our own: the same sets, order and counts. It needs root and the Debian
//! packages that `.ci/run` names: `cargo test --workspace --test testnet -- --ignored`.

#![expect(clippy::print_stdout, reason = "as the harness of the other tests does")]

use std::process::ExitCode;
use std::time::Duration;

use probeops_tests::testnet::breakages::noticed;
use probeops_tests::testnet::compare::{COMPARISONS, Comparison};
use probeops_tests::testnet::run::run;

/// It takes half of it on two cores that others use, too.
const MOST: Duration = Duration::from_mins(4);

fn main() -> ExitCode {
    // As with every other test that is left out unless asked for.
    if !std::env::args().any(|argument| argument == "--ignored") {
        println!("the tools beside the programs that everybody knows ... ignored, needs root and Debian's packages");
        return ExitCode::SUCCESS;
    }
    let comparisons: Vec<Comparison> = COMPARISONS.into_iter().chain([noticed as Comparison]).collect();
    run(MOST, &comparisons)
}
