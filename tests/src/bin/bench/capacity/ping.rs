//! Many pings at once, beside fping.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::asker::{Job, address};
use super::{Site, accuracy, burst, median, micros_each, on_one_core, timed};

/// Packets each second where the cost of one is measured.
const RATE: usize = 6_000;
/// How many packets each of these jobs sends, one a second.
const PACKETS: usize = 5;

pub(super) fn measure(site: &mut Site) -> anyhow::Result<()> {
    println!("ping: the whole agent on one core, jobs over the broker");
    burst::measure(site)?;
    accuracy::measure(site)?;
    cost(site)?;
    crowd(site)
}

/// Processor time for a packet.
fn cost(site: &mut Site) -> anyhow::Result<()> {
    let (rate, rounds) = site.scale.of((RATE, 3), (RATE / 10, 1));
    let targets: Vec<String> = (0..rate).map(address).collect();
    let list = site.file("targets", &targets.join("\n"));
    let jobs = jobs(&targets, &json!({"count": PACKETS, "interval_ms": 1000, "timeout": 1}));
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (count, interval) = (PACKETS.to_string(), format!("{:.3}", 900.0 / f64::from(u32::try_from(rate)?)));
        let mut fping = on_one_core("fping");
        fping.args(["-q", "-s", "-c", &count, "-p", "1000", "-t", "1000", "-i", &interval, "-f", &list]);
        let (said, _, spent) = timed(&mut fping)?;
        let received = said.lines().find(|line| line.contains("ICMP Echo Replies received")).context(said.clone())?;
        ensure!(received.trim().starts_with(&(rate * PACKETS).to_string()), "fping: {received}");
        theirs.push(micros_each(spent, rate * PACKETS));
        let before = site.spent()?;
        let missing = lost(&site.fabric.block_on(site.asker.all(&jobs, Duration::from_secs(1)))?, PACKETS)?;
        ensure!(missing == 0, "{missing} of {} packets look lost", rate * PACKETS);
        ours.push(micros_each(site.spent()?.saturating_sub(before), rate * PACKETS));
    }
    let (ours, theirs) = (median(ours), median(theirs));
    println!("  {rate} packets/s in jobs of {PACKETS}: CPU {ours:.1} \u{b5}s a packet, fping {theirs:.1}, ratio {:.2}", ours / theirs);
    Ok(())
}

/// As many jobs as there are, all at once.
fn crowd(site: &mut Site) -> anyhow::Result<()> {
    const PACKETS: usize = 4;
    let (count, interval_ms, over) = site.scale.of((20_000, 2_000, Duration::from_secs(3)), (2_000, 500, Duration::from_secs(1)));
    let targets: Vec<String> = (0..count).map(address).collect();
    // Long enough that the first has not ended when the last begins.
    let jobs = jobs(&targets, &json!({"count": PACKETS, "interval_ms": interval_ms, "timeout": 2}));
    let (before, started) = (site.spent()?, Instant::now());
    site.fabric.block_on(site.asker.ask_all(&jobs, over))?;
    let asked = started.elapsed();
    let (mut lost, mut first, mut example) = (0, None, None);
    for _ in 0..count {
        let done = site.fabric.block_on(site.asker.next())?;
        first.get_or_insert_with(|| started.elapsed());
        let packets = done.outcome["report"]["packets"].as_array();
        example = example.or_else(|| packets?.iter().find(|packet| packet["status"] != "reply").cloned());
        lost += self::lost(&[done.outcome], PACKETS)?;
    }
    let spent = site.spent()?.saturating_sub(before);
    let at_once = first.is_some_and(|first| first > asked);
    println!(
        "  {count} jobs of {PACKETS} packets{}: {lost} of {} packets lost, CPU {:.1} \u{b5}s a packet",
        if at_once { " at once" } else { ", not all of them at once," },
        count * PACKETS,
        micros_each(spent, count * PACKETS)
    );
    ensure!(lost == 0, "{lost} packets look lost, such as {}", example.unwrap_or_default());
    Ok(())
}

/// A job for each target.
pub(super) fn jobs(targets: &[String], parameters: &Value) -> Vec<Job> {
    targets.iter().map(|target| Job { tool: "ping", target: target.clone(), parameters: parameters.clone() }).collect()
}

/// How many packets of these jobs were not replied to.
pub(super) fn lost(outcomes: &[Value], packets: usize) -> anyhow::Result<usize> {
    let mut received = 0;
    for outcome in outcomes {
        let count = outcome["report"]["stats"]["received"].as_u64().with_context(|| format!("no report: {outcome}"))?;
        received += usize::try_from(count)?;
    }
    Ok(outcomes.len() * packets - received)
}
