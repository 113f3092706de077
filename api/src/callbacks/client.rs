//! One attempt to deliver: a POST to an address that was judged, and as much of the answer as says what to do. No proxy, no redirect.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::http::header::{CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use axum::http::{HeaderMap, HeaderValue, Request, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use probeops_shared::host::Host;
use probeops_shared::http_url::Scheme;
use probeops_shared::timestamp::Timestamp;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::schedule::{self, Answered};
use super::url::CallbackUrl;

/// How long an attempt may take.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(15);
/// How long one address may take to be connected to, where there are others.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// How much of an answer is read; it is thrown away.
const ANSWER_BYTES_MAX: usize = 4 * 1024;
/// How long that may take.
const ANSWER_READ_WITHIN: Duration = Duration::from_secs(1);
/// How large the head of an answer may be.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// What makes attempts.
#[derive(Clone)]
pub(super) struct Client(TlsConnector);

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

impl Client {
    pub(super) fn new() -> Self {
        Self(tls_connector())
    }

    /// Posts a body to a URL whose host has these addresses.
    pub(super) async fn post(
        &self,
        url: &CallbackUrl,
        addresses: &[SocketAddr],
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Answered, String> {
        let deadline = Instant::now() + ATTEMPT_WITHIN;
        let answered = timeout_at(deadline, async {
            let stream = connected(addresses).await?;
            let request = request(url, headers, body)?;
            match url.scheme() {
                Scheme::Http => exchange(stream, request).await,
                Scheme::Https => {
                    let name = server_name(url.host())?;
                    let stream = self.0.connect(name, stream).await.map_err(|error| format!("TLS: {error}"))?;
                    exchange(stream, request).await
                }
            }
        });
        answered.await.map_err(|_elapsed| format!("no answer within {} s", ATTEMPT_WITHIN.as_secs()))?
    }
}

/// What speaks TLS to servers that are not ours: it trusts the authorities of the system (or of `SSL_CERT_FILE`), or Mozilla's where there are none.
pub(crate) fn tls_connector() -> TlsConnector {
    trusting(system_roots())
}

/// The same, that trusts one more authority, where it is given (PEM).
pub(crate) fn tls_connector_trusting(authority: Option<&Path>) -> Result<TlsConnector, String> {
    let mut roots = system_roots();
    if let Some(path) = authority {
        let unusable = |error: &dyn std::fmt::Display| format!("ca: {} cannot be used: {error}", path.display());
        let certificates = CertificateDer::pem_file_iter(path).map_err(|error| unusable(&error))?;
        for certificate in certificates {
            roots.add(certificate.map_err(|error| unusable(&error))?).map_err(|error| unusable(&error))?;
        }
    }
    Ok(trusting(roots))
}

fn system_roots() -> RootCertStore {
    let loaded = rustls_native_certs::load_native_certs();
    for error in &loaded.errors {
        tracing::warn!(%error, "an authority of this machine cannot be read");
    }
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(loaded.certs);
    if added == 0 {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

fn trusting(roots: RootCertStore) -> TlsConnector {
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    TlsConnector::from(Arc::new(config))
}

async fn connected(addresses: &[SocketAddr]) -> Result<TcpStream, String> {
    let mut failed = "its name has no address".to_owned();
    for address in addresses {
        match timeout(CONNECT_WITHIN, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => "the connection was refused".clone_into(&mut failed),
            Ok(Err(error)) => failed = format!("cannot connect: {}", error.kind()),
            Err(_elapsed) => failed = format!("no connection within {} s", CONNECT_WITHIN.as_secs()),
        }
    }
    Err(failed)
}

fn server_name(host: &Host) -> Result<ServerName<'static>, String> {
    match host {
        Host::Address(address) => Ok(ServerName::IpAddress((*address).into())),
        Host::Name(name) => ServerName::try_from(name.clone()).map_err(|_invalid| "its name can have no certificate".to_owned()),
    }
}

fn request(url: &CallbackUrl, headers: HeaderMap, body: Bytes) -> Result<Request<Full<Bytes>>, String> {
    let mut request = Request::post(url.target()).body(Full::new(body)).map_err(|_invalid| "its URL cannot be asked for".to_owned())?;
    let host = HeaderValue::try_from(url.authority()).map_err(|_invalid| "its host cannot be named".to_owned())?;
    *request.headers_mut() = headers;
    request.headers_mut().insert(HOST, host);
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(concat!("ProbeOps/", env!("CARGO_PKG_VERSION"))));
    Ok(request)
}

async fn exchange<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    stream: S,
    request: Request<Full<Bytes>>,
) -> Result<Answered, String> {
    let broken = |error: hyper::Error| format!("no answer: {error}");
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEAD_BYTES_MAX);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // It ends with this attempt.
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let response = sender.send_request(request).await.map_err(broken)?;
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| schedule::retry_after(value.to_str().ok()?, Timestamp::now()));
    let answered = Answered { status: response.status().as_u16(), retry_after };
    // The status is known; a receiver that is cut off while it still writes might not know that it was heard.
    drop(timeout(ANSWER_READ_WITHIN, read(response)).await);
    Ok(answered)
}

async fn read(response: Response<Incoming>) {
    let (mut body, mut bytes) = (response.into_body(), 0);
    while bytes < ANSWER_BYTES_MAX
        && let Some(Ok(frame)) = body.frame().await
    {
        bytes += frame.data_ref().map_or(0, Bytes::len);
    }
}

#[cfg(test)]
mod tests {
    use rustls::ServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// Answers one request over TLS, and returns what was asked.
    async fn served(listener: TcpListener, acceptor: TlsAcceptor, answer: &'static str) -> std::io::Result<String> {
        let (stream, _) = listener.accept().await?;
        let mut stream = acceptor.accept(stream).await?;
        let mut read = Vec::new();
        while !read.ends_with(b"{}") {
            let mut buffer = [0; 1024];
            let count = stream.read(&mut buffer).await?;
            read.extend_from_slice(&buffer[..count]);
        }
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        Ok(String::from_utf8_lossy(&read).into_owned())
    }

    async fn posted(name: &str, answer: &'static str) -> (Result<Answered, String>, std::io::Result<String>) {
        // Another test may have installed it.
        drop(rustls::crypto::ring::default_provider().install_default());
        let made = rcgen::generate_simple_self_signed(["receiver.example".to_owned()]).unwrap();
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate.clone()], key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(served(listener, TlsAcceptor::from(Arc::new(config)), answer));
        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        let url: CallbackUrl = format!("https://{name}:{}/a/../b?q=%2f", address.port()).parse().unwrap();
        let answered = Client(trusting(roots)).post(&url, &[address], HeaderMap::new(), Bytes::from_static(b"{}")).await;
        (answered, serving.await.unwrap())
    }

    #[tokio::test]
    async fn a_body_is_posted_over_tls_to_the_address_that_was_judged() {
        let answer = "HTTP/1.1 503 Busy\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n";
        let (answered, asked) = posted("receiver.example", answer).await;
        assert_eq!(answered, Ok(Answered { status: 503, retry_after: Some(Duration::from_secs(7)) }));
        let asked = asked.unwrap();
        assert!(asked.starts_with("POST /a/../b?q=%2f HTTP/1.1\r\n") && asked.contains("host: receiver.example:"), "{asked}");
    }

    #[tokio::test]
    async fn a_receiver_that_is_not_who_it_should_be_gets_nothing() {
        let (answered, asked) = posted("other.example", "HTTP/1.1 200 OK\r\n\r\n").await;
        assert!(answered.unwrap_err().starts_with("TLS: "));
        assert!(asked.is_err(), "{asked:?}");
    }
}
