//! What an agent holds while it runs a thousand jobs of many kinds.

use std::time::Duration;

use anyhow::ensure;
use serde_json::json;

use super::Site;
use super::asker::{Job, address};
use super::web::{self, Scheme};
use crate::resident_mib;

/// Until everything has begun and nothing has ended.
const BEGUN_WITHIN: Duration = Duration::from_secs(3);

pub(super) fn measure(site: &mut Site) -> anyhow::Result<()> {
    let (http, https) = (web::serve(site, Scheme::Http)?, web::serve(site, Scheme::Https)?);
    let part = site.scale.of(1, 10);
    let silent = |index: usize| format!("10.77.{}.{}", index >> 8 & 255, index & 255);
    let pings =
        (0..300 / part).map(|index| Job { tool: "ping", target: address(index), parameters: json!({"count": 20, "interval_ms": 500}) });
    let traces = (0..50 / part).map(|index| Job {
        tool: "traceroute",
        target: silent(index),
        parameters: json!({"protocol": "icmp", "timeout": 8, "first_ttl": 2}),
    });
    let questions = (0..150 / part).map(|index| Job {
        tool: "dns",
        target: "www.probe.test".to_owned(),
        parameters: json!({"resolver": silent(index), "timeout": 8, "tries": 1}),
    });
    let ports = (0..100 / part).map(|index| Job { tool: "tcp", target: silent(index), parameters: json!({"port": 443, "timeout": 8}) });
    let plain = (0..200 / part).map(|index| http.check(&address(index), "/slow"));
    let secure = (0..200 / part).map(|index| https.check(&address(index), "/slow"));
    let jobs: Vec<Job> = pings.chain(traces).chain(questions).chain(ports).chain(plain).chain(secure).collect();

    let idle = resident_mib(site.agent.process_id())?;
    site.fabric.block_on(site.asker.ask_all(&jobs, Duration::from_secs(1)))?;
    let early = site.fabric.block_on(site.asker.next_within(BEGUN_WITHIN));
    ensure!(early.is_none(), "a job ended while all were to run: {early:?}");
    let running = resident_mib(site.agent.process_id())?;
    for _ in &jobs {
        let outcome = site.fabric.block_on(site.asker.next())?.outcome;
        ensure!(outcome["status"] == "success", "a job failed: {outcome}");
    }
    println!("memory, {} jobs running: 3 of 10 ping, 4 http and https, the rest dns, tcp and traceroute; resident", jobs.len());
    println!("  agent {running:.1} MiB (before them {idle:.1}, after them {:.1})", resident_mib(site.agent.process_id())?);
    Ok(())
}
