//! One query to a name server and its answer, over UDP or TCP (RFC 1035, 4.2).

mod edns;
pub(crate) mod message;
mod rdata;
pub(crate) mod root;

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use probeops_shared::tools::dns::Transport;
use probeops_shared::tools::dns::report::AttemptResult;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout_at;

use crate::net::words;

/// The largest message (a length of 16 bits over TCP, the largest datagram over UDP).
const MESSAGE_BYTES_MAX: usize = 65_535;

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The message.
    pub(crate) bytes: Vec<u8>,
    /// How long connecting took, over TCP.
    pub(crate) connect: Option<Duration>,
    /// From the query to its answer.
    pub(crate) took: Duration,
}

/// Why there is none.
#[derive(Debug)]
pub(crate) struct NoAnswer {
    /// What became of the query.
    pub(crate) result: AttemptResult,
    /// More about it, where there is more.
    pub(crate) detail: Option<String>,
    /// How long connecting took, where there was a connection.
    pub(crate) connect: Option<Duration>,
}

impl From<io::Error> for NoAnswer {
    fn from(error: io::Error) -> Self {
        let (result, detail) = match error.kind() {
            ErrorKind::ConnectionRefused => (AttemptResult::Refused, None),
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => (AttemptResult::Closed, None),
            ErrorKind::TimedOut => (AttemptResult::Timeout, None),
            _ => (AttemptResult::Unreachable, Some(words(&error))),
        };
        Self { result, detail, connect: None }
    }
}

/// Sends `query` and waits for a message that `is_answer` takes for its answer.
pub(crate) async fn ask(
    server: SocketAddr,
    transport: Transport,
    query: &[u8],
    is_answer: impl Fn(&[u8]) -> bool,
    patience: Duration,
) -> Result<Answer, NoAnswer> {
    let silent = |connect| NoAnswer { result: AttemptResult::Timeout, detail: None, connect };
    let deadline = tokio::time::Instant::now() + patience;
    match transport {
        Transport::Udp => timeout_at(deadline, by_datagram(server, query, is_answer)).await.unwrap_or_else(|_| Err(silent(None))),
        Transport::Tcp => {
            let started = Instant::now();
            let stream = timeout_at(deadline, TcpStream::connect(server)).await.map_err(|_| silent(None))??;
            let connect = Some(started.elapsed());
            let asked = timeout_at(deadline, by_connection(stream, query, is_answer)).await.unwrap_or_else(|_| Err(silent(connect)));
            asked.map(|answer| Answer { connect, ..answer }).map_err(|none| NoAnswer { connect, ..none })
        }
    }
}

/// A socket of its own for each query: a random port, and nothing arrives but from the server (RFC 5452).
async fn by_datagram(server: SocketAddr, query: &[u8], is_answer: impl Fn(&[u8]) -> bool) -> Result<Answer, NoAnswer> {
    let any: SocketAddr = if server.is_ipv6() { (Ipv6Addr::UNSPECIFIED, 0).into() } else { (Ipv4Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    let started = Instant::now();
    socket.send(query).await?;
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    loop {
        let length = socket.recv(&mut bytes).await?;
        let took = started.elapsed();
        // Whatever else arrives may be forged or late, and does not end the wait.
        if bytes.get(..length).is_some_and(&is_answer) {
            bytes.truncate(length);
            return Ok(Answer { bytes, connect: None, took });
        }
    }
}

async fn by_connection(mut stream: TcpStream, query: &[u8], is_answer: impl Fn(&[u8]) -> bool) -> Result<Answer, NoAnswer> {
    let length = u16::try_from(query.len()).map_err(|_| io::Error::other("the query does not fit a message"))?;
    let started = Instant::now();
    // In one write: some servers do not put a message together from two segments.
    stream.write_all(&[&length.to_be_bytes(), query].concat()).await?;
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await?;
    let took = started.elapsed();
    if !is_answer(&bytes) {
        let detail = Some("it is not an answer to the question".to_owned());
        return Err(NoAnswer { result: AttemptResult::Malformed, detail, connect: None });
    }
    Ok(Answer { bytes, connect: None, took })
}
