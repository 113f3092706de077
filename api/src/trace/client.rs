//! The connection to a collector: OTLP over HTTP, protobuf, one request after the other.

use std::time::Duration;

use axum::http::header::{CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use axum::http::{HeaderMap, HeaderValue, Request};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use probeops_shared::host::Host;
use probeops_shared::http_url::{HttpUrl, Scheme};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use crate::callbacks::tls_connector;

/// How long a collector may take to answer (`OTEL_EXPORTER_OTLP_TIMEOUT` has the same default).
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);
/// How much of an answer is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// A collector.
pub(super) struct Collector {
    url: HttpUrl,
    headers: HeaderMap,
    tls: TlsConnector,
    connection: Option<Connection>,
}

/// What sends requests, and what drives it.
type Connection = (SendRequest<Full<Bytes>>, AbortOnDropHandle<hyper::Result<()>>);

/// What it answered.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) retry_after: Option<Duration>,
    pub(super) body: Bytes,
}

impl Collector {
    /// One that nobody has connected to yet.
    pub(super) fn new(url: HttpUrl, headers: HeaderMap) -> Self {
        Self { url, headers, tls: tls_connector(), connection: None }
    }

    /// Posts spans.
    pub(super) async fn post(&mut self, body: Bytes) -> Result<Answer, String> {
        match timeout(ANSWERED_WITHIN, self.exchange(body)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(why)) => {
                self.connection = None;
                Err(why)
            }
            Err(_elapsed) => {
                self.connection = None;
                Err(format!("no answer within {} s", ANSWERED_WITHIN.as_secs()))
            }
        }
    }

    async fn exchange(&mut self, body: Bytes) -> Result<Answer, String> {
        let broken = |error: hyper::Error| format!("no answer: {error}");
        let mut request = Request::post(self.url.path_and_query()).body(Full::new(body)).map_err(|error| error.to_string())?;
        let headers = request.headers_mut();
        headers.clone_from(&self.headers);
        drop(headers.insert(HOST, HeaderValue::try_from(self.url.authority()).map_err(|error| error.to_string())?));
        drop(headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf")));
        drop(headers.insert(USER_AGENT, HeaderValue::from_static(concat!("ProbeOps/", env!("CARGO_PKG_VERSION")))));
        let response = self.ready().await?.send_request(request).await.map_err(broken)?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok()).map(Duration::from_secs);
        let body =
            Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|error| format!("no whole answer: {error}"))?;
        Ok(Answer { status, retry_after, body: body.to_bytes() })
    }

    /// The connection, made anew where the collector has closed it.
    async fn ready(&mut self) -> Result<&mut SendRequest<Full<Bytes>>, String> {
        let open = match &mut self.connection {
            Some((sender, _)) => sender.ready().await.is_ok(),
            None => false,
        };
        if !open {
            let host = match self.url.host() {
                Host::Address(address) => address.to_string(),
                Host::Name(name) => name.clone(),
            };
            let stream = TcpStream::connect((host.as_str(), self.url.port())).await.map_err(|error| format!("cannot connect: {error}"))?;
            let connection = match self.url.scheme() {
                Scheme::Http => handshake(stream).await?,
                Scheme::Https => {
                    let name = ServerName::try_from(host).map_err(|_invalid| "its name can have no certificate".to_owned())?;
                    handshake(self.tls.connect(name, stream).await.map_err(|error| format!("TLS: {error}"))?).await?
                }
            };
            self.connection = Some(connection);
        }
        self.connection.as_mut().map(|(sender, _)| sender).ok_or_else(|| "no connection".to_owned())
    }
}

async fn handshake<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(stream: S) -> Result<Connection, String> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    Ok((sender, AbortOnDropHandle::new(tokio::spawn(connection))))
}
