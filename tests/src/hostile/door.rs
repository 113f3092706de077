//! The listeners of the fabric as a stranger finds them, byte by byte.

use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use data_encoding::BASE64URL_NOPAD;
use nkeys::KeyPair;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// After so much silence an answer is taken for complete.
const SILENT_FOR: Duration = Duration::from_secs(2);
/// Of an answer no more is kept, or waited for.
const HEARD_MAX: usize = 1024 * 1024;
/// How often a slow one says one byte more.
const TRICKLE_EVERY: Duration = Duration::from_millis(500);
/// The wait before a way in is tried again.
const AGAIN_AFTER: Duration = Duration::from_millis(250);
/// Whoever has not closed a connection by then never will.
const CLOSED_WITHIN: Duration = Duration::from_secs(60);

/// So many enter at once: each is to be in before the other side has enough of waiting for those who come with it.
static ENTERING: Semaphore = Semaphore::const_new(8);

/// A connection of any kind.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A way into a listener.
#[derive(Clone)]
pub struct Door {
    address: SocketAddr,
    steps: &'static [Step],
    tls: Option<TlsConnector>,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door").field("address", &self.address).field("steps", &self.steps).finish_non_exhaustive()
    }
}

/// What is done in order before a stranger has the word.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The broker says who it is.
    Greeting,
    Tls,
    /// HTTP becomes a WebSocket.
    Upgrade,
}

impl Door {
    /// The bare connection.
    pub fn bare(address: SocketAddr) -> Self {
        Self { address, steps: &[], tls: None }
    }

    /// Over TLS, after a whole handshake.
    pub fn tls(address: SocketAddr, ca: &Path) -> Self {
        Self { address, steps: &[Step::Tls], tls: Some(connector(ca, &[])) }
    }

    /// Over TLS, in which HTTP/2 was agreed on.
    pub fn http2(address: SocketAddr, ca: &Path) -> Self {
        Self { address, steps: &[Step::Tls], tls: Some(connector(ca, &[b"h2"])) }
    }

    /// The broker's, after greeting and TLS.
    pub fn nats(address: SocketAddr, ca: &Path) -> Self {
        Self { address, steps: &[Step::Greeting, Step::Tls], tls: Some(connector(ca, &[])) }
    }

    /// The broker's over WebSocket, after the upgrade; the greeting is still to come.
    pub fn websocket(address: SocketAddr, ca: &Path) -> Self {
        Self { address, steps: &[Step::Tls, Step::Upgrade], tls: Some(connector(ca, &[])) }
    }

    /// Enters.
    pub async fn enter(&self) -> Result<Box<dyn Stream>> {
        let _turn = ENTERING.acquire().await.map_err(Error::other)?;
        let mut stream: Box<dyn Stream> = Box::new(TcpStream::connect(self.address).await?);
        for step in self.steps {
            match step {
                Step::Greeting => drop(read_to(&mut stream, b"\r\n").await?),
                Step::Tls => {
                    let name = ServerName::IpAddress(self.address.ip().into());
                    stream = Box::new(self.tls.as_ref().ok_or(ErrorKind::Unsupported)?.connect(name, stream).await?);
                }
                Step::Upgrade => {
                    let asked = "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
                    stream.write_all(asked.as_bytes()).await?;
                    let answer = read_to(&mut stream, b"\r\n\r\n").await?;
                    if !answer.starts_with(b"HTTP/1.1 101") {
                        return Err(Error::other(String::from_utf8_lossy(&answer).into_owned()));
                    }
                }
            }
        }
        Ok(stream)
    }

    /// Enters, however often that takes: on a busy machine the other side may have had enough before we were through, and whoever means harm comes
    /// again.
    pub async fn enter_at_last(&self) -> Result<Box<dyn Stream>> {
        loop {
            match self.enter().await {
                Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
                entered => return entered,
            }
        }
    }

    /// Says this on a connection of its own and hears the answer, until it ends or nothing comes for a while.
    pub async fn said(&self, words: &[u8]) -> Vec<u8> {
        let Ok(stream) = self.enter().await else { return Vec::new() };
        let (mut from, mut to) = tokio::io::split(stream);
        let mut heard = Vec::new();
        let hear = async {
            while let Ok(Ok(length)) = tokio::time::timeout(SILENT_FOR, from.read_buf(&mut heard)).await {
                if length == 0 || heard.len() > HEARD_MAX {
                    break;
                }
            }
        };
        // It may be cut off in the middle, which is an answer, too. What is heard meanwhile is not lost in its end.
        let say = async {
            drop(to.write_all(words).await);
            drop(to.flush().await);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = hear => {}
            () = say => {}
        }
        heard
    }

    /// Says this, then one byte more now and then if it `trickles`, until the other side ends the connection: what was heard until then, and how
    /// long that took. An error if it never does, or if there was no way in.
    pub async fn until_closed(&self, words: &[u8], trickles: bool) -> Result<(Vec<u8>, Duration)> {
        let stream = tokio::time::timeout(CLOSED_WITHIN, self.enter_at_last()).await??;
        let began = Instant::now();
        let (mut from, mut to) = tokio::io::split(stream);
        let mut heard = Vec::new();
        let hear = async {
            while from.read_buf(&mut heard).await.is_ok_and(|length| length > 0) {
                heard.truncate(HEARD_MAX);
            }
        };
        let say = async {
            let mut open = to.write_all(words).await.is_ok() && to.flush().await.is_ok();
            while open && trickles {
                tokio::time::sleep(TRICKLE_EVERY).await;
                open = to.write_all(b" ").await.is_ok() && to.flush().await.is_ok();
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            closed = tokio::time::timeout(CLOSED_WITHIN, hear) => closed?,
            () = say => {}
        }
        Ok((heard, began.elapsed()))
    }
}

fn connector(ca: &Path, protocols: &[&[u8]]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).expect("an authority") {
        roots.add(certificate.expect("a certificate")).expect("an authority");
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions();
    let mut config = config.expect("TLS").with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

async fn read_to(stream: &mut Box<dyn Stream>, end: &[u8]) -> Result<Vec<u8>> {
    let mut read = Vec::new();
    while !read.ends_with(end) {
        read.push(stream.read_u8().await?);
    }
    Ok(read)
}

/// The first `length` bytes of what a TLS client says first, of which there would be more.
pub fn cut_client_hello(length: usize) -> Vec<u8> {
    let mut hello = vec![22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
    hello.resize_with(length, rand::random);
    hello
}

/// A frame of a WebSocket client.
pub fn frame(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_be_bytes();
    // Masked with nothing.
    [&[0x82, 0x80 | 127][..], &length, &[0; 4], payload].concat()
}

/// How a node presents itself to the broker over TCP with a credential: a connection on which anything can be said.
pub async fn as_node(address: SocketAddr, ca: &Path, creds: &Path) -> Result<Box<dyn Stream>> {
    let text = std::fs::read_to_string(creds)?;
    let line = |start: &str| text.lines().find(|line| line.starts_with(start));
    let (Some(jwt), Some(seed)) = (line("eyJ"), line("SU")) else { return Err(Error::other("no credential")) };
    let key = KeyPair::from_seed(seed).map_err(Error::other)?;
    let mut stream: Box<dyn Stream> = Box::new(TcpStream::connect(address).await?);
    let greeting = read_to(&mut stream, b"\r\n").await?;
    let greeting: Value = serde_json::from_slice(greeting.strip_prefix(b"INFO ").unwrap_or_default())?;
    let nonce = greeting["nonce"].as_str().unwrap_or_default();
    let signature = BASE64URL_NOPAD.encode(&key.sign(nonce.as_bytes()).map_err(Error::other)?);
    let name = ServerName::IpAddress(address.ip().into());
    let mut stream: Box<dyn Stream> = Box::new(connector(ca, &[]).connect(name, stream).await?);
    let connect = json!({"verbose": false, "pedantic": false, "headers": true, "tls_required": true, "lang": "rust", "version": "0", "jwt": jwt, "sig": signature});
    stream.write_all(format!("CONNECT {connect}\r\nPING\r\n").as_bytes()).await?;
    stream.flush().await?;
    let answer = loop {
        let line = read_to(&mut stream, b"\r\n").await?;
        if !line.starts_with(b"INFO ") {
            break line;
        }
    };
    if answer == b"PONG\r\n" { Ok(stream) } else { Err(Error::other(String::from_utf8_lossy(&answer).into_owned())) }
}
