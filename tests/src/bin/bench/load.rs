//! A load of HTTP requests: so many connections, each asking again as soon as it is answered.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// What is asked, again and again.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    /// Whom.
    pub(crate) address: SocketAddr,
    /// The path.
    pub(crate) path: &'static str,
    /// The body.
    pub(crate) body: Bytes,
    /// The bearer token.
    pub(crate) token: Option<String>,
    /// Text that every answer must contain, so that errors are not counted as speed.
    pub(crate) expect: &'static str,
}

/// What came of it.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// All answers, those of the warm-up too.
    pub(crate) answers: usize,
    /// Answers for each second.
    pub(crate) per_second: f64,
    /// The median answer took this long, in milliseconds.
    pub(crate) p50_ms: f64,
    /// 99 of 100 answers took at most this long, in milliseconds.
    pub(crate) p99_ms: f64,
}

/// Asks over `connections` for `duration` (after a tenth of it to warm up).
pub(crate) async fn run(question: &Question, connections: usize, duration: Duration) -> anyhow::Result<Measured> {
    let counted_from = Instant::now() + duration / 10;
    let ends = counted_from + duration;
    let mut askers = JoinSet::new();
    for _ in 0..connections {
        askers.spawn(ask(question.clone(), counted_from, ends));
    }
    let (mut latencies, mut answers) = (Vec::new(), 0);
    while let Some(asker) = askers.join_next().await {
        let (of_asker, warm_up) = asker??;
        answers += of_asker.len() + warm_up;
        latencies.extend(of_asker);
    }
    ensure!(!latencies.is_empty(), "not one answer in {duration:?}");
    latencies.sort_unstable();
    let at = |share: f64| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "an index of a vector")]
        let index = ((latencies.len() - 1) as f64 * share) as usize;
        latencies[index].as_secs_f64() * 1000.0
    };
    #[expect(clippy::cast_precision_loss, reason = "a count of answers")]
    let per_second = latencies.len() as f64 / duration.as_secs_f64();
    Ok(Measured { answers, per_second, p50_ms: at(0.5), p99_ms: at(0.99) })
}

/// The latencies that count, and how many answers came before.
async fn ask(question: Question, counted_from: Instant, ends: Instant) -> anyhow::Result<(Vec<Duration>, usize)> {
    let stream = TcpStream::connect(question.address).await.context("cannot connect")?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut driving = JoinSet::new();
    driving.spawn(connection);
    let (mut latencies, mut warm_up) = (Vec::new(), 0);
    loop {
        let started = Instant::now();
        if started >= ends {
            return Ok((latencies, warm_up));
        }
        let mut request = Request::post(question.path).header("host", "bench").header("content-type", "application/json");
        if let Some(token) = &question.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        sender.ready().await?;
        let response = sender.send_request(request.body(Full::new(question.body.clone()))?).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        let text = String::from_utf8_lossy(&body);
        ensure!(status == StatusCode::OK && text.contains(question.expect), "answered {status}: {text}");
        if started >= counted_from {
            latencies.push(started.elapsed());
        } else {
            warm_up += 1;
        }
    }
}
