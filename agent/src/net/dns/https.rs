//! One query as a request to a web server (RFC 8484), over HTTP/2.

use std::pin::pin;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http2;
use hyper::header::{ACCEPT, CONTENT_TYPE};
use hyper::{Request, Response, StatusCode, body::Incoming};
use hyper_util::rt::TokioIo;
use probeops_shared::tools::dns::report::AttemptResult;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Answer, MESSAGE_BYTES_MAX, NoAnswer};
use crate::net::drive::{Tasks, drive, words};

/// The kind of body (RFC 8484, 6).
const MESSAGE: &str = "application/dns-message";

/// Asks on a connection that is ready for HTTP/2.
pub(super) async fn ask<S>(stream: S, uri: &str, query: &[u8], is_answer: impl Fn(&[u8]) -> bool) -> Result<Answer, NoAnswer>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let tasks = Tasks::default();
    let (mut sender, connection) = http2::handshake(tasks.clone(), TokioIo::new(stream)).await.map_err(|error| malformed(&error))?;
    let request = Request::post(uri).header(CONTENT_TYPE, MESSAGE).header(ACCEPT, MESSAGE);
    let request = request.body(Full::new(Bytes::copy_from_slice(query))).map_err(|error| no_http(&error.to_string()))?;
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
    drive(pin!(connection), &tasks, pin!(answer)).await
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

fn malformed(error: &hyper::Error) -> NoAnswer {
    no_http(&words(error))
}

fn no_http(why: &str) -> NoAnswer {
    none(format!("no HTTP/2: {why}"))
}

fn none(detail: String) -> NoAnswer {
    NoAnswer::new(AttemptResult::Malformed, Some(detail))
}
