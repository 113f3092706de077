//! One query to a name server and its answer, over UDP or TCP (RFC 1035, 4.2), TLS (RFC 7858) or HTTPS (RFC 8484).

mod edns;
mod https;
pub(crate) mod message;
mod rdata;
pub(crate) mod root;

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use probeops_shared::tls::TlsSession;
use probeops_shared::tools::dns::Transport;
use probeops_shared::tools::dns::report::AttemptResult;
use rustix::net::RecvFlags;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout_at;
use tokio_rustls::client::TlsStream;

use crate::net::tls::{self, Refused, Terms};
use crate::net::words;

/// The largest message (a length of 16 bits over TCP, the largest datagram over UDP).
const MESSAGE_BYTES_MAX: usize = 65_535;

/// What carries a query.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    /// Datagrams.
    Udp,
    /// A connection.
    Tcp,
    /// A connection that nobody can listen in on.
    Tls(Arc<Terms>),
    /// A request, on such a connection, to this address of a web server.
    Https(Arc<Terms>, String),
}

impl Way {
    /// What it is called.
    pub(crate) fn transport(&self) -> Transport {
        match self {
            Self::Udp => Transport::Udp,
            Self::Tcp => Transport::Tcp,
            Self::Tls(_) => Transport::Tls,
            Self::Https(..) => Transport::Https,
        }
    }
}

/// An answer.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// The message.
    pub(crate) bytes: Vec<u8>,
    /// From the query to its answer.
    pub(crate) took: Duration,
    /// What came before.
    pub(crate) connection: Connection,
}

/// A connection, as far as there was one.
#[derive(Debug, Default)]
pub(crate) struct Connection {
    /// How long connecting took.
    pub(crate) connect: Option<Duration>,
    /// How long the TLS handshake took.
    pub(crate) tls: Option<Duration>,
    /// What was agreed in it, or why not.
    pub(crate) session: Option<Box<TlsSession>>,
}

/// Why there is none.
#[derive(Debug)]
pub(crate) struct NoAnswer {
    /// What became of the query.
    pub(crate) result: AttemptResult,
    /// More about it, where there is more.
    pub(crate) detail: Option<String>,
    /// What came before.
    pub(crate) connection: Connection,
}

impl NoAnswer {
    fn new(result: AttemptResult, detail: Option<String>) -> Self {
        Self { result, detail, connection: Connection::default() }
    }
}

impl From<io::Error> for NoAnswer {
    fn from(error: io::Error) -> Self {
        let (result, detail) = match error.kind() {
            ErrorKind::ConnectionRefused => (AttemptResult::Refused, None),
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => (AttemptResult::Closed, None),
            ErrorKind::TimedOut => (AttemptResult::Timeout, None),
            _ => (AttemptResult::Unreachable, Some(words(&error))),
        };
        Self::new(result, detail)
    }
}

/// Sends `query` to a server, from an address of this machine if one is given, and waits for a message that `is_answer` takes for its answer.
pub(crate) async fn ask(
    (from, server): (Option<IpAddr>, SocketAddr),
    way: &Way,
    query: &[u8],
    is_answer: impl Fn(&[u8]) -> bool,
    patience: Duration,
) -> Result<Answer, NoAnswer> {
    let deadline = tokio::time::Instant::now() + patience;
    if matches!(way, Way::Udp) {
        return timeout_at(deadline, by_datagram((from, server), query, is_answer)).await.unwrap_or_else(|_| Err(silent()));
    }
    let mut connection = Connection::default();
    let asked =
        timeout_at(deadline, connected((from, server), way, query, is_answer, &mut connection)).await.unwrap_or_else(|_| Err(silent()));
    match asked {
        Ok(answer) => Ok(Answer { connection, ..answer }),
        Err(none) => Err(NoAnswer { connection, ..none }),
    }
}

fn silent() -> NoAnswer {
    NoAnswer::new(AttemptResult::Timeout, None)
}

/// Asks over a connection of its own. How far it came is in `connection`, also when the wait is cut short.
async fn connected(
    (from, server): (Option<IpAddr>, SocketAddr),
    way: &Way,
    query: &[u8],
    is_answer: impl Fn(&[u8]) -> bool,
    connection: &mut Connection,
) -> Result<Answer, NoAnswer> {
    let started = Instant::now();
    let socket = if server.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() }?;
    if let Some(from) = from {
        socket.bind(SocketAddr::new(from, 0))?;
    }
    let stream = socket.connect(server).await?;
    connection.connect = Some(started.elapsed());
    match way {
        Way::Udp | Way::Tcp => by_connection(stream, query, is_answer).await,
        // Boxed, so that every other query is not as large as these.
        Way::Tls(terms) => Box::pin(async { by_connection(greeted(stream, terms, connection).await?, query, is_answer).await }).await,
        Way::Https(terms, uri) => {
            Box::pin(async { https::ask(greeted(stream, terms, connection).await?, uri, query, is_answer).await }).await
        }
    }
}

/// Goes over to TLS.
async fn greeted(stream: TcpStream, terms: &Terms, connection: &mut Connection) -> Result<TlsStream<TcpStream>, NoAnswer> {
    let started = Instant::now();
    match tls::connect(stream, terms).await {
        Ok((stream, session)) => {
            (connection.tls, connection.session) = (Some(started.elapsed()), Some(Box::new(session)));
            Ok(stream)
        }
        Err(Refused { failure, session }) => {
            connection.session = Some(session);
            Err(NoAnswer::new(AttemptResult::TlsFailed, Some(failure.to_string())))
        }
    }
}

/// A socket of its own for each query: a random port, and nothing arrives but from the server (RFC 5452).
async fn by_datagram(
    (from, server): (Option<IpAddr>, SocketAddr),
    query: &[u8],
    is_answer: impl Fn(&[u8]) -> bool,
) -> Result<Answer, NoAnswer> {
    let socket = Socket::new(Domain::for_address(server), Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
    if let Some(from) = from {
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    socket.connect(&server.into())?;
    let started = Instant::now();
    // Before the runtime knows of it, which would first wait to be told that there is room: in a new socket there always is.
    socket.send(query)?;
    let socket = UdpSocket::from_std(socket.into())?;
    loop {
        let bytes = socket.async_io(Interest::READABLE | Interest::ERROR, || receive(&socket)).await?;
        let took = started.elapsed();
        // Whatever else arrives may be forged or late, and does not end the wait.
        if is_answer(&bytes) {
            return Ok(Answer { bytes, took, ..Answer::default() });
        }
    }
}

/// A message that is there. Room for the largest is taken only for as long as it is read: an answer is a hundredth of it.
fn receive(socket: &UdpSocket) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(MESSAGE_BYTES_MAX);
    rustix::net::recv(socket, rustix::buffer::spare_capacity(&mut bytes), RecvFlags::empty())?;
    bytes.shrink_to_fit();
    Ok(bytes)
}

async fn by_connection<S>(mut stream: S, query: &[u8], is_answer: impl Fn(&[u8]) -> bool) -> Result<Answer, NoAnswer>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let length = u16::try_from(query.len()).map_err(|_| io::Error::other("the query does not fit a message"))?;
    let started = Instant::now();
    // In one write: some servers do not put a message together from two segments.
    stream.write_all(&[&length.to_be_bytes(), query].concat()).await?;
    stream.flush().await?;
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await?;
    let took = started.elapsed();
    if !is_answer(&bytes) {
        return Err(NoAnswer::new(AttemptResult::Malformed, Some("it is not an answer to the question".to_owned())));
    }
    Ok(Answer { bytes, took, ..Answer::default() })
}
