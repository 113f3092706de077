//! Traces over six hops, beside traceroute.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::asker::Job;
use super::yard::{HOST, SILENT};
use super::{Site, executors, median, micros_each, timed};

/// How many queries each hop is sent.
const QUERIES: usize = 3;
/// How many hops there are, the host among them.
const HOPS: usize = 6;

pub(super) fn measure(site: &mut Site) -> anyhow::Result<()> {
    println!(
        "traceroute: the whole agent on one core, jobs over the broker; {HOPS} hops, the host 25 ms away, one hop silent, {QUERIES} queries each"
    );
    let (rounds, count) = site.scale.of((7, 100), (1, 10));
    let job = Job { tool: "traceroute", target: HOST.to_owned(), parameters: json!({"protocol": "icmp", "queries": QUERIES}) };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (said, took, _) = timed(Command::new("traceroute").args(["-I", "-n", "-q", &QUERIES.to_string(), HOST]))?;
        ensure!(said.lines().last().is_some_and(|line| line.contains(HOST)), "traceroute has not found the host: {said}");
        theirs.push(took.as_secs_f64() * 1000.0);
        let outcomes = site.fabric.block_on(site.asker.all(std::slice::from_ref(&job), Duration::ZERO))?;
        let outcome = outcomes.first().context("no outcome")?;
        ensure!(missing_of(outcome)? == 0, "hops are missing: {outcome}");
        ours.push(outcome["duration_ms"].as_f64().context("no duration")?);
    }
    let (ours, theirs) = (median(ours), median(theirs));
    println!("  one: {ours:.0} ms, traceroute -I {theirs:.0} ms, ratio {:.2}", ours / theirs);
    let (rounds, jobs) = (site.scale.of(3, 1), vec![job.clone(); count]);
    let (mut ours, mut alone) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let before = site.spent()?;
        let outcomes = site.fabric.block_on(site.asker.all(&jobs, Duration::ZERO))?;
        ours.push(micros_each(site.spent()?.saturating_sub(before), count) / 1000.0);
        let missing = outcomes.iter().map(missing_of).sum::<anyhow::Result<usize>>()?;
        ensure!(missing == 0, "{missing} of {} hops are missing", count * (HOPS - 1));
        // None is missing there, either.
        alone.push(executors::cost(&job, count, Duration::ZERO)? / 1000.0);
    }
    println!("  {count} at once, no hop missing: CPU {:.2} ms each, executor alone {:.2} ms", median(ours), median(alone));
    Ok(())
}

/// How many hops of a report have not answered though they do; none, if it is no report of a trace.
pub(super) fn missing(report: &Value) -> Option<usize> {
    let hops = report["hops"].as_array()?;
    let has_answered =
        |hop: &Value| hop["probes"].as_array().is_some_and(|probes| probes.iter().any(|probe| probe["status"] == "answered"));
    let answered = (1..=HOPS).filter(|ttl| *ttl != SILENT).filter(|ttl| hops.iter().any(|hop| hop["ttl"] == *ttl && has_answered(hop)));
    Some(HOPS - 1 - answered.count())
}

/// The same of an outcome.
fn missing_of(outcome: &Value) -> anyhow::Result<usize> {
    missing(&outcome["report"]).with_context(|| format!("no report: {outcome}"))
}
