//! One query as a request to a web server (RFC 8484), over HTTP/2.

use std::future::{Future, pending};
use std::pin::Pin;
use std::time::Instant;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http2;
use hyper::header::{ACCEPT, CONTENT_TYPE};
use hyper::{Request, Response, StatusCode, body::Incoming};
use hyper_util::rt::TokioIo;
use probeops_shared::tools::dns::report::AttemptResult;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::{Answer, MESSAGE_BYTES_MAX, NoAnswer};

/// The kind of body (RFC 8484, 6).
const MESSAGE: &str = "application/dns-message";

/// Asks on a connection that is ready for HTTP/2.
pub(super) async fn ask<S>(stream: S, uri: &str, query: &[u8], is_answer: impl Fn(&[u8]) -> bool) -> Result<Answer, NoAnswer>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (tasks, spawned) = mpsc::unbounded_channel();
    let exchange = async {
        let (mut sender, connection) = http2::handshake(Local(tasks), TokioIo::new(stream)).await.map_err(|error| malformed(&error))?;
        let request = Request::post(uri).header(CONTENT_TYPE, MESSAGE).header(ACCEPT, MESSAGE);
        let request = request.body(Full::new(Bytes::copy_from_slice(query))).map_err(|error| malformed(&error))?;
        let started = Instant::now();
        let answer = async {
            let bytes = read(sender.send_request(request).await.map_err(|error| malformed(&error))?).await?;
            let took = started.elapsed();
            if is_answer(&bytes) {
                Ok(Answer { bytes, took, ..Answer::default() })
            } else {
                Err(none("it is not an answer to the question".to_owned()))
            }
        };
        tokio::select! {
            answer = answer => answer,
            // When the connection ends, the request hears of it by itself; what was received is still read.
            never = async { drop(connection.await); pending().await } => never,
        }
    };
    tokio::select! {
        answer = exchange => answer,
        never = drive(spawned) => never,
    }
}

async fn read(response: Response<Incoming>) -> Result<Vec<u8>, NoAnswer> {
    let kind = response.headers().get(CONTENT_TYPE).map(|kind| String::from_utf8_lossy(kind.as_bytes()).into_owned()).unwrap_or_default();
    if response.status() != StatusCode::OK {
        return Err(none(format!("the web server answered {}", response.status())));
    }
    if kind.split(';').next().map(str::trim) != Some(MESSAGE) {
        return Err(none(format!("the web server answered with {}, not {MESSAGE}", kind.escape_debug())));
    }
    let body = Limited::new(response.into_body(), MESSAGE_BYTES_MAX).collect().await;
    body.map(|body| body.to_bytes().to_vec()).map_err(|error| none(format!("the body of the answer cannot be read: {error}")))
}

fn malformed(error: &dyn std::error::Error) -> NoAnswer {
    let why = error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
    none(format!("no HTTP/2: {why}"))
}

fn none(detail: String) -> NoAnswer {
    NoAnswer::new(AttemptResult::Malformed, Some(detail))
}

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Where the library's tasks go: they run within the query, and end with it.
#[derive(Clone)]
struct Local(mpsc::UnboundedSender<Task>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, task: F) {
        // When nobody drives it any more, the query is over.
        drop(self.0.send(Box::pin(task)));
    }
}

/// Runs what is spawned, for as long as it is polled.
async fn drive<T>(mut spawned: mpsc::UnboundedReceiver<Task>) -> T {
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(task) = spawned.recv() => running.push(task),
            Some(()) = running.next() => {}
            else => pending().await,
        }
    }
}
