//! A whole run: the network, its checks, the comparisons, their table.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it prints the table of the comparison, and what differs")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::alone::alone;
use super::compare::Comparison;
use super::table::{Row, table};
use super::{Ours, Testnet, prepare, self_checks};

/// Makes these comparisons, in so long at most, and says whether everything agrees. Needs root, and the packages that `.ci/run` names.
pub fn run(most: Duration, comparisons: &[Comparison]) -> ExitCode {
    prepare();
    alone(most, || {
        let started = Instant::now();
        let net = Testnet::new();
        let failures = self_checks::failures(&net);
        for failure in &failures {
            eprintln!("the network is not as it should be: {failure}");
        }
        if !failures.is_empty() {
            return ExitCode::FAILURE;
        }
        println!("the network is built, and {} self-checks hold ({:.1} s)", self_checks::COUNT, started.elapsed().as_secs_f64());
        let ours = Ours::start();
        let asker = ours.asker();
        let compare = |comparison: &Comparison| {
            let started = Instant::now();
            // One that panics does not hide the others.
            let row = catch_unwind(AssertUnwindSafe(|| comparison(&net, &asker))).ok()?;
            println!("{} ({:.1} s)", row.what, started.elapsed().as_secs_f64());
            for difference in &row.differences {
                eprintln!("DIFFERENT: {difference}");
            }
            Some(row)
        };
        let rows: Vec<Row> = comparisons.iter().filter_map(compare).collect();
        println!("\n{}\n{:.0} s", table(&rows), started.elapsed().as_secs_f64());
        let good = rows.len() == comparisons.len() && rows.iter().all(|row| row.differences.is_empty());
        if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    })
}
