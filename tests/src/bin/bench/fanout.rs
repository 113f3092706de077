//! A job for five hundred nodes, each on a TLS connection of its own with its own credential, beside a bare question that five hundred answer.

use std::io::{BufRead, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::StreamExt;
use probeops_agent::config::Given;
use probeops_tests::fabric::{Fabric, free_port};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::roster::wait_for_nodes;
use crate::{runtime, wait_for};

/// How many nodes.
const NODES: usize = 500;
/// How often both sides are asked, one after the other.
const ROUNDS: usize = 20;
/// What transport and we may add to the tool's own time.
const WITHIN_MS: f64 = 250.0;
/// What the bare side is asked.
const SUBJECT: &str = "fanout";

/// Asks both sides in turn.
pub(crate) fn run() -> anyhow::Result<()> {
    let fabric = Fabric::start();
    let api = fabric.api();
    let creds = fabric.enrol("fan", NODES, "eu");
    let mut nodes = Command::new(std::env::current_exe()?);
    nodes.args(["nodes", &fabric.url()]).arg(fabric.ca()).env("PROBEOPS_LOG", "warn").stdin(Stdio::piped());
    let mut nodes = Ended(nodes.spawn()?);
    let mut list = nodes.0.stdin.take().context("its input")?;
    for path in &creds {
        writeln!(list, "{}", path.display())?;
    }
    drop(list);
    let broker = free_port();
    let (address, port) = (format!("nats://{broker}"), broker.port().to_string());
    let _bare = Ended(Command::new(fabric.nats_server()).args(["-a", "127.0.0.1", "-p", &port, "-l", "/dev/null"]).spawn()?);
    wait_for(broker)?;
    let _answering = Ended(Command::new(std::env::current_exe()?).args(["respond-each", &address]).spawn()?);
    let runtime = runtime()?;
    let client = runtime.block_on(async_nats::connect(&address))?;
    while runtime.block_on(asked(&client))?.1 < NODES {}
    wait_for_nodes(&api, NODES);
    let caller = api.admin();
    let (mut ours_ms, mut bare_ms, mut spent_in_tool_ms) = (Vec::new(), Vec::new(), 0.0_f64);
    for _ in 0..ROUNDS {
        let (took, answers) = runtime.block_on(asked(&client))?;
        ensure!(answers == NODES, "{answers} of {NODES} answered the bare question");
        bare_ms.push(took.as_secs_f64() * 1000.0);
        let started = Instant::now();
        let answer = caller.post("/v1/jobs", &json!({"tool": "echo", "target": "bench", "from": "eu:all"}));
        let took_ms = started.elapsed().as_secs_f64() * 1000.0;
        let results = answer.body["results"].as_array().context("results")?;
        let done = results.iter().filter(|outcome| outcome["status"] == "success").count();
        ensure!(answer.status == 200 && done == NODES, "{done} of {NODES} nodes have done it: {}", answer.status);
        let longest_ms = results.iter().filter_map(|outcome| outcome["duration_ms"].as_f64()).fold(0.0, f64::max);
        ours_ms.push(took_ms);
        spent_in_tool_ms = spent_in_tool_ms.max(longest_ms);
    }
    ours_ms.sort_by(f64::total_cmp);
    bare_ms.sort_by(f64::total_cmp);
    let at = |all: &[f64], share: usize| all.get((all.len() - 1) * share / 100).copied().unwrap_or_default();
    println!("fan-out to {NODES} nodes over HTTP, {ROUNDS} times, beside a bare request that {NODES} subscribers answer");
    for (name, all) in [("ProbeOps", &ours_ms), ("bare", &bare_ms)] {
        println!("  {name:<8} p50 {:.1} ms   longest {:.1} ms", at(all, 50), at(all, 100));
    }
    let within = ours_ms.iter().filter(|took_ms| **took_ms <= WITHIN_MS + spent_in_tool_ms).count();
    println!("  ratio    {:.1}   the tool itself took at most {spent_in_tool_ms:.1} ms", at(&ours_ms, 50) / at(&bare_ms, 50));
    println!("  {within} of {ROUNDS} within {WITHIN_MS} ms and the tool's time");
    Ok(())
}

/// Five hundred agents in one process, each with its own connection; the paths of their credentials come line by line.
pub(crate) fn nodes(servers: &str, ca: &str) -> anyhow::Result<()> {
    probeops_nats::process::install_tls_provider();
    probeops_nats::process::start_log(None);
    let creds: Vec<String> = std::io::stdin().lock().lines().collect::<Result<_, _>>()?;
    runtime()?.block_on(async {
        let mut agents = JoinSet::new();
        for path in creds {
            let given = Given {
                servers: Some(vec![servers.to_owned()]),
                ca: Some(Path::new(ca).to_owned()),
                creds: Some(path.into()),
                ..Given::default()
            };
            let settings = given.complete().map_err(anyhow::Error::msg)?;
            agents.spawn(probeops_agent::agent::run(settings, CancellationToken::new()));
        }
        while let Some(ended) = agents.join_next().await {
            ended??;
        }
        Ok(())
    })
}

/// As many subscribers, each with a connection of its own, that answer every message with its own body.
pub(crate) async fn respond_each(broker: &str) -> anyhow::Result<()> {
    let mut answering = JoinSet::new();
    for _ in 0..NODES {
        let client = async_nats::connect(broker).await?;
        let mut messages = client.subscribe(SUBJECT).await?;
        answering.spawn(async move {
            while let Some(message) = messages.next().await {
                if let Some(reply) = message.reply {
                    client.publish(reply, message.payload).await?;
                }
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = answering.join_next().await {
        ended??;
    }
    Ok(())
}

/// How long until all have answered a bare question, and how many have.
async fn asked(client: &async_nats::Client) -> anyhow::Result<(Duration, usize)> {
    const PATIENCE: Duration = Duration::from_secs(1);
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await?;
    client.flush().await?;
    let (started, mut count) = (Instant::now(), 0);
    client.publish_with_reply(SUBJECT, inbox, json!({"tool": "echo"}).to_string().into()).await?;
    while count < NODES
        && let Ok(Some(answer)) = tokio::time::timeout(PATIENCE, answers.next()).await
    {
        // Nobody there is told by the broker.
        if answer.status.is_some() {
            tokio::time::sleep(PATIENCE / 10).await;
            break;
        }
        let _read: Value = serde_json::from_slice(&answer.payload)?;
        count += 1;
    }
    Ok((started.elapsed(), count))
}

/// A process of ours that ends with this.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Ours, by its own id; it may have ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
