//! A steady stream of jobs while one node is killed and another is held still: what is lost, and how long those take that met it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use probeops_tests::fabric::Fabric;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::runtime;

/// How many jobs come in each second, whether or not those before are answered.
const PER_SECOND: u32 = 500;
/// How long they come in, and when the first node is killed and the second held still.
const LASTS: Duration = Duration::from_secs(15);
const KILLED_AT: Duration = Duration::from_secs(4);
const STOPPED_AT: Duration = Duration::from_secs(8);
/// A job that takes longer than this has met one of them.
const UNAFFECTED_MS: f64 = 100.0;

/// Connections that nobody uses now.
type Idle = Arc<Mutex<Vec<SendRequest<Full<Bytes>>>>>;

/// Asks, and breaks two nodes meanwhile.
pub(crate) fn run() -> anyhow::Result<()> {
    let fabric = Fabric::start();
    let api = fabric.api();
    let agents: Vec<_> = ["f-1", "f-2", "f-3"].into_iter().map(|id| fabric.agent(id, "eu")).collect();
    api.wait_for_nodes(agents.len());
    let address: SocketAddr = api.url().trim_start_matches("http://").parse()?;
    let token = format!("Bearer {}", api.admin_key());
    let took_ms = runtime()?.block_on(async {
        let (idle, mut jobs) = (Idle::default(), JoinSet::new());
        let (started, mut ticks) = (Instant::now(), tokio::time::interval(Duration::from_secs(1) / PER_SECOND));
        let (mut to_kill, mut to_stop) = (agents.first(), agents.get(1));
        while started.elapsed() < LASTS {
            ticks.tick().await;
            if started.elapsed() >= KILLED_AT
                && let Some(agent) = to_kill.take()
            {
                agent.kill();
            }
            if started.elapsed() >= STOPPED_AT
                && let Some(agent) = to_stop.take()
            {
                agent.pause();
            }
            jobs.spawn(ask(address, token.clone(), Arc::clone(&idle), Instant::now()));
        }
        let mut took_ms = Vec::new();
        let mut lost = Vec::new();
        while let Some(job) = jobs.join_next().await {
            match job? {
                Ok(took) => took_ms.push(took.as_secs_f64() * 1000.0),
                Err(error) => lost.push(error),
            }
        }
        ensure!(lost.is_empty(), "{} of {} jobs were lost, the first: {:#}", lost.len(), lost.len() + took_ms.len(), lost[0]);
        Ok(took_ms)
    })?;
    if let Some(agent) = agents.get(1) {
        agent.resume();
    }
    let sorted = |mut all: Vec<f64>| {
        all.sort_by(f64::total_cmp);
        all
    };
    let at = |all: &[f64], share: usize| all.get(all.len().saturating_sub(1) * share / 100).copied().unwrap_or_default();
    let affected = sorted(took_ms.iter().copied().filter(|took_ms| *took_ms > UNAFFECTED_MS).collect());
    let all = sorted(took_ms);
    println!("failover, {PER_SECOND} jobs/s for {} s on 3 nodes, one killed, one held still", LASTS.as_secs());
    println!("  {} jobs, 0 lost   p50 {:.1} ms   p99 {:.1} ms", all.len(), at(&all, 50), at(&all, 99));
    println!(
        "  {} took more than {UNAFFECTED_MS} ms: p50 {:.0} ms   p99 {:.0} ms   longest {:.0} ms",
        affected.len(),
        at(&affected, 50),
        at(&affected, 99),
        at(&affected, 100)
    );
    Ok(())
}

/// One job, on a connection that is free or a new one.
async fn ask(address: SocketAddr, token: String, idle: Idle, due: Instant) -> anyhow::Result<Duration> {
    let free = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let mut sender = match free {
        Some(sender) => sender,
        None => connected(address).await?,
    };
    let body = Bytes::from_static(br#"{"tool":"echo","target":"bench","from":"eu"}"#);
    let request = Request::post("/v1/jobs").header("host", "bench").header("content-type", "application/json");
    sender.ready().await?;
    let response = sender.send_request(request.header("authorization", token).body(Full::new(body))?).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    let text = String::from_utf8_lossy(&body);
    ensure!(status == 200 && text.contains("\"status\":\"success\""), "answered {status}: {text}");
    idle.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
    Ok(due.elapsed())
}

async fn connected(address: SocketAddr) -> anyhow::Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(address).await.context("cannot connect")?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It ends with its sender, which is the benchmark's.
    drop(tokio::spawn(connection));
    Ok(sender)
}
