//! Jobs that are followed live: how soon a packet is told, and what ten thousand open streams cost.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use probeops_shared::timestamp::Timestamp;
use probeops_tests::fabric::{Api, ApiOptions, Fabric};
use probeops_tests::silent::Silent;
use serde_json::{Value, json};

use crate::resident_mib;

/// How many streams are open at once.
const STREAMS: usize = 10_000;
/// How many jobs are followed, one after the other, to see how soon each packet is told.
const FOLLOWED: usize = 50;
/// How many packets each of them has.
const PACKETS: usize = 4;
/// How long to wait until what was opened is read.
const SETTLED: Duration = Duration::from_secs(2);
/// Only a hang takes this long.
const HANG: Duration = Duration::from_mins(1);

pub(crate) fn run() -> anyhow::Result<()> {
    let fabric = Fabric::start();
    let api = fabric.api_with(&ApiOptions { connections_max: Some(2 * STREAMS), ..ApiOptions::default() });
    let agent = fabric.agent("bench-1", "eu");
    api.wait_for_nodes(1);
    delays(&api)?;
    many(&api)?;
    drop(agent);
    Ok(())
}

/// From the moment at which a node had found something to the moment at which the client has read it.
fn delays(api: &Api) -> anyhow::Result<()> {
    let mut told_ms = Vec::new();
    let job = json!({"tool": "ping", "target": "127.0.0.1", "from": "eu", "parameters": {"count": PACKETS, "interval_ms": 100}});
    for _ in 0..FOLLOWED {
        let mut stream = opened(api, &post(api, &job))?;
        let mut seen = Vec::new();
        let outcome = loop {
            let (event, data) = next(&mut stream)?;
            let now_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64() * 1000.0;
            match event.as_str() {
                "progress" => seen.push((now_ms, data["elapsed_ms"].as_f64().context("when it was found")?)),
                "outcome" => break data,
                _ => {}
            }
        };
        let began = outcome["outcome"]["started_at"].as_str().and_then(Timestamp::parse).context("when it began")?;
        #[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 are below 2^52")]
        let began_ms = began.unix_ms() as f64;
        // What was found may be told before it is read; the clock is read to the millisecond.
        told_ms.extend(seen.into_iter().map(|(now_ms, elapsed_ms)| now_ms - began_ms - elapsed_ms));
    }
    ensure!(told_ms.len() >= FOLLOWED * PACKETS, "every packet is told: {} of {}", told_ms.len(), FOLLOWED * PACKETS);
    told_ms.sort_by(f64::total_cmp);
    let at = |share: usize| told_ms.get((told_ms.len() - 1) * share / 100).copied().unwrap_or_default();
    println!("live events, {} of {FOLLOWED} jobs on loopback, from found to read", told_ms.len());
    println!("  p50 {:.1} ms   p99 {:.1} ms   longest {:.1} ms (the node's clock is read to 1 ms)", at(50), at(99), at(100));
    Ok(())
}

/// Many who follow one job.
fn many(api: &Api) -> anyhow::Result<()> {
    let silent = Silent::start();
    let url = format!("http://127.0.0.1:{}/", silent.port());
    let job = json!({"tool": "http", "target": url, "from": "eu", "parameters": {"timeout": 60}});
    let mut first = opened(api, &post(api, &job))?;
    let id = next(&mut first)?.1["id"].as_str().context("the job's id")?.to_owned();
    let before = resident_mib(api.process_id())?;
    let request = format!("GET /v1/jobs/{id}/events HTTP/1.1\r\n{}\r\n", headers(api));
    let mut streams = Vec::with_capacity(STREAMS);
    for _ in 0..STREAMS {
        streams.push(opened(api, &request)?);
    }
    for stream in &mut streams {
        ensure!(next(stream)?.0 == "job", "the job comes first");
    }
    std::thread::sleep(SETTLED);
    let open = resident_mib(api.process_id())?;
    let mut answered = silent.connected();
    answered.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")?;
    let begun = std::time::Instant::now();
    for stream in &mut streams {
        while next(stream)?.1["status"] != "finished" {}
    }
    let all_ms = begun.elapsed().as_secs_f64() * 1000.0;
    #[expect(clippy::cast_precision_loss, reason = "a count of streams")]
    let each_kib = (open - before) * 1024.0 / STREAMS as f64;
    println!("{STREAMS} streams of one job, resident\n  API {open:.0} MiB with them, {before:.0} without, {each_kib:.1} KiB each");
    println!("  its end was read on every one of them within {all_ms:.0} ms, by one reader");
    Ok(())
}

fn headers(api: &Api) -> String {
    let host = api.url().trim_start_matches("http://");
    format!("Host: {host}\r\nAuthorization: Bearer {}\r\nAccept: text/event-stream\r\n", api.admin_key())
}

fn post(api: &Api, job: &Value) -> String {
    let body = job.to_string();
    let headers = headers(api);
    format!("POST /v1/jobs HTTP/1.1\r\n{headers}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn opened(api: &Api, request: &str) -> anyhow::Result<BufReader<TcpStream>> {
    let address: SocketAddr = api.url().trim_start_matches("http://").parse()?;
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(HANG))?;
    stream.write_all(request.as_bytes())?;
    // Small, so that ten thousand of them are not the benchmark's own weight.
    Ok(BufReader::with_capacity(1_024, stream))
}

/// The next event; what chunked transfer puts between the lines is not one.
fn next(stream: &mut BufReader<TcpStream>) -> anyhow::Result<(String, Value)> {
    let (mut event, mut data) = (String::new(), Value::Null);
    loop {
        let mut line = String::new();
        ensure!(stream.read_line(&mut line)? > 0, "the stream ended");
        match line.trim_end().split_once(": ") {
            Some(("event", word)) => word.clone_into(&mut event),
            Some(("data", text)) => data = serde_json::from_str(text)?,
            _ if line == "\n" && !event.is_empty() => return Ok((event, data)),
            _ => {}
        }
    }
}
