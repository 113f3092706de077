//! One request over a connection that is there, and its answer as it was sent.
//!
//! The library runs inside the caller's future and nowhere else: dropping it ends all of it and closes the connection.

mod body;
mod tap;
pub(crate) mod tunnel;

use std::error::Error as _;
use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::{Body, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use probeops_shared::tools::http::report::{HttpBody, HttpFailure, HttpFailureCode};
use tokio::time::{Instant, timeout_at};

use body::Reader;
use tap::Tap;

use crate::net::Connection;
use crate::net::drive::{Tasks, drive};

/// The most header fields that an answer may have.
const HEADERS_MAX: usize = 256;
/// The longest head of an answer.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Which version to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speech {
    /// HTTP/1.1.
    One,
    /// HTTP/2.
    Two,
}

/// How long to wait, how much of a body to read and to keep, and whether to decompress it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// When to give up.
    pub(crate) until: Instant,
    /// How much to read; after decompression, as much again.
    pub(crate) read: usize,
    /// How much to keep of it.
    pub(crate) keep: usize,
    /// Whether a compressed body is decompressed.
    pub(crate) decompress: bool,
}

/// What is known of an answer so far.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// As in `HTTP/1.1`.
    pub(crate) protocol: String,
    /// The status; 0 until there is one.
    pub(crate) status: u16,
    /// The words after it.
    pub(crate) reason: Option<String>,
    /// The header fields, as sent.
    pub(crate) headers: Vec<(String, String)>,
    /// The body as far as it was kept.
    pub(crate) kept: Vec<u8>,
    /// What is told of the body.
    pub(crate) body: Option<HttpBody>,
    /// From the request to the head of the answer.
    pub(crate) first_byte: Option<Duration>,
    /// From there to the end of the body.
    pub(crate) download: Option<Duration>,
}

/// Sends the request and reads the answer; `on_head` is called when its head is there. What is known when it fails, or is dropped, is in
/// `answer`.
pub(crate) async fn exchange(
    stream: Box<dyn Connection>,
    speech: Speech,
    request: Request<Full<Bytes>>,
    limits: Limits,
    answer: &mut Answer,
    on_head: impl FnOnce(&Answer),
) -> Result<(), HttpFailure> {
    let (tap, heard) = Tap::new(stream, HEAD_BYTES_MAX);
    let (io, tasks) = (TokioIo::new(tap), Tasks::default());
    let begun = Instant::now();
    match speech {
        Speech::One => {
            let builder = {
                let mut builder = http1::Builder::new();
                // A request is short: it is written whole.
                builder.writev(false).title_case_headers(true).max_headers(HEADERS_MAX).max_buf_size(HEAD_BYTES_MAX);
                builder
            };
            let (mut sender, connection) = within(limits, builder.handshake(io)).await?;
            let exchange = async {
                let response = within(limits, sender.send_request(request)).await?;
                note_head(&response, begun, answer);
                // The library lower-cases names and loses their order: what was heard on the wire has both.
                if let Some(head) = heard.head() {
                    (answer.reason, answer.headers) = (head.reason, head.headers);
                }
                on_head(answer);
                read(response.into_body(), limits, answer).await
            };
            drive(pin!(connection), &tasks, pin!(exchange)).await
        }
        Speech::Two => {
            let mut builder = http2::Builder::new(tasks.clone());
            let head_max = u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX);
            builder.max_header_list_size(head_max);
            // Boxed, so that those of the other version are not as large as this one.
            let (mut sender, connection) = within(limits, Box::pin(builder.handshake(io))).await?;
            let exchange = async {
                let response = within(limits, sender.send_request(request)).await?;
                note_head(&response, begun, answer);
                on_head(answer);
                read(response.into_body(), limits, answer).await
            };
            drive(Box::pin(connection).as_mut(), &tasks, Box::pin(exchange).as_mut()).await
        }
    }
}

/// A name of a header field as it is sent over HTTP/1.
pub(crate) fn title_case(name: &str) -> String {
    let part = |part: &str| {
        let mut letters = part.chars();
        letters.next().map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + letters.as_str())
    };
    name.split('-').map(part).collect::<Vec<_>>().join("-")
}

fn note_head(response: &hyper::Response<Incoming>, begun: Instant, answer: &mut Answer) {
    answer.first_byte = Some(begun.elapsed());
    let version = format!("{:?}", response.version());
    answer.protocol = version.strip_suffix(".0").filter(|short| *short == "HTTP/2").map_or(version.clone(), str::to_owned);
    answer.status = response.status().as_u16();
    let field = |(name, value): (&hyper::header::HeaderName, &hyper::header::HeaderValue)| (name.to_string(), tap::text(value.as_bytes()));
    answer.headers = response.headers().iter().map(field).collect();
}

/// A body that is being read: what there is of it is kept, however that ends.
struct Reading<'a> {
    reader: Reader,
    begun: Instant,
    answer: &'a mut Answer,
    is_over: bool,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let (kept, told) = self.reader.finish();
        self.answer.download = Some(self.begun.elapsed());
        (self.answer.kept, self.answer.body) = (kept, Some(HttpBody { truncated: told.truncated || !self.is_over, ..told }));
    }
}

async fn read(mut body: Incoming, limits: Limits, answer: &mut Answer) -> Result<(), HttpFailure> {
    let encoding = answer.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-encoding")).map(|(_, value)| value.as_str());
    let mut reading = Reading { reader: Reader::new(limits, encoding), begun: Instant::now(), answer, is_over: false };
    let reader = &mut reading.reader;
    let mut ended = Ok(());
    while !(reader.is_full() || body.is_end_stream()) {
        let Ok(frame) = timeout_at(limits.until, body.frame()).await else {
            ended = Err(late());
            break;
        };
        match frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref()
                    && let Err(detail) = reader.take(data)
                {
                    ended = Err(HttpFailure { code: HttpFailureCode::Compression, detail });
                    break;
                }
            }
            Some(Err(error)) => {
                ended = Err(failure(&error));
                break;
            }
            None => break,
        }
    }
    if ended.is_ok() {
        ended = reader.end().map_err(|detail| HttpFailure { code: HttpFailureCode::Compression, detail });
    }
    reading.is_over = true;
    ended
}

/// Waits no longer than allowed.
async fn within<T>(limits: Limits, doing: impl Future<Output = hyper::Result<T>>) -> Result<T, HttpFailure> {
    timeout_at(limits.until, doing).await.map_err(|_| late())?.map_err(|error| failure(&error))
}

fn late() -> HttpFailure {
    HttpFailure { code: HttpFailureCode::TimedOut, detail: "the answer was not complete within `timeout`".to_owned() }
}

/// What the library says, in one sentence.
fn failure(error: &hyper::Error) -> HttpFailure {
    let mut closed = error.is_incomplete_message() || error.is_closed();
    let mut detail = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        closed |= cause.downcast_ref::<io::Error>().is_some_and(|error| {
            matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
        });
        let words = cause.to_string();
        if !detail.contains(&words) {
            detail = format!("{detail}: {words}");
        }
        source = cause.source();
    }
    HttpFailure { code: if closed { HttpFailureCode::Closed } else { HttpFailureCode::Protocol }, detail }
}
