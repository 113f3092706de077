//! One object fetched over HTTP/1.1 from a connection that is there already, of any size up to a bound.

use std::pin::pin;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::client::conn::http1::handshake;
use hyper::header::{ACCEPT, CONNECTION, HOST, LOCATION, USER_AGENT};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::drive::{Tasks, drive, words};

/// What to fetch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// The host, with its port unless that is the usual one.
    pub(crate) authority: &'a str,
    /// The path.
    pub(crate) path: &'a str,
    /// The types that are understood.
    pub(crate) accept: &'a str,
    /// The most that is read.
    pub(crate) bytes_max: usize,
}

/// What came.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// The status.
    pub(crate) status: u16,
    /// Where it is instead.
    pub(crate) location: Option<String>,
    /// The body, as far as it was read.
    pub(crate) body: Vec<u8>,
    /// Whether there was more.
    pub(crate) truncated: bool,
}

/// Fetches it. The caller bounds the wait; dropping the future closes the connection.
pub(crate) async fn get(stream: impl AsyncRead + AsyncWrite + Unpin, wanted: Wanted<'_>) -> Result<Fetched, String> {
    let request = Request::get(wanted.path)
        .header(HOST, wanted.authority)
        .header(ACCEPT, wanted.accept)
        .header(USER_AGENT, super::USER_AGENT)
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| words(&error))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| words(&error))?;
        let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok()).map(str::to_owned);
        let status = response.status().as_u16();
        let (mut incoming, mut body, mut truncated) = (response.into_body(), Vec::new(), false);
        while let Some(frame) = incoming.frame().await {
            if let Ok(piece) = frame.map_err(|error| words(&error))?.into_data() {
                let room = wanted.bytes_max - body.len();
                body.extend(piece.iter().take(room));
                truncated = piece.len() > room;
                if truncated {
                    break;
                }
            }
        }
        Ok(Fetched { status, location, body, truncated })
    };
    drive(pin!(connection), &Tasks::default(), pin!(exchange)).await
}
