//! A TCP handshake, and the truth about why it failed.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use probeops_shared::tools::network::{Family, IcmpMessage};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant as Deadline, timeout_at};

use crate::net::error_queue;

/// A server that has begun to speak has finished when it is silent for this long.
const REPLY_PAUSE: Duration = Duration::from_millis(200);

/// How soon a handshake is looked at again that the system has said something of and has not decided.
const UNDECIDED_PAUSE: Duration = Duration::from_millis(1);

/// What became of a handshake.
#[derive(Debug)]
pub(crate) enum Handshake {
    /// It was completed.
    Open {
        /// The connection.
        stream: TcpStream,
        /// How long it took.
        took: Duration,
    },
    /// The host said no, or ICMP did.
    Failed {
        /// The system's word for it.
        errno: Errno,
        /// What ICMP said, if it was ICMP.
        icmp: Option<IcmpMessage>,
        /// After how long.
        took: Duration,
    },
    /// Nobody answered in time.
    Silent,
}

/// Connects, from an address of this machine if one is given. An error is one of this machine: no socket, no port left.
pub(crate) async fn connect(from: Option<IpAddr>, to: SocketAddr, patience: Duration) -> io::Result<Handshake> {
    let family = Family::of(to.ip());
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    // Without it the system tells a firewall's ICMP answer only as an errno, and a rejected port looks closed.
    error_queue::enable(&socket, family)?;
    if let Some(from) = from {
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    let deadline = Deadline::now() + patience;
    let started = Instant::now();
    match socket.connect(&SockAddr::from(to)) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => {}
        Err(error) => return failed(&error, None, started.elapsed()),
    }
    let stream = TcpStream::from_std(socket.into())?;
    let Ok(refused) = timeout_at(deadline, refused(&stream)).await else { return Ok(Handshake::Silent) };
    let took = started.elapsed();
    if let Some(error) = refused? {
        let icmp = error_queue::take(&stream)?.and_then(|queued| queued.icmp);
        return failed(&error, icmp, took);
    }
    Ok(Handshake::Open { stream, took })
}

/// Waits until a handshake is over: why there is no connection, if there is none.
pub(crate) async fn refused(stream: &TcpStream) -> io::Result<Option<io::Error>> {
    loop {
        stream.writable().await?;
        if let Some(error) = stream.take_error()? {
            return Ok(Some(error));
        }
        match stream.peer_addr() {
            // A port of our own range can be met by ourselves (simultaneous open): then nobody listens there.
            Ok(peer) => return Ok((stream.local_addr()? == peer).then(|| Errno::ECONNREFUSED.into())),
            // An ICMP message wakes us before it ends the handshake, or does not end it, and the SYN is sent once more (`tcp_v4_err`).
            Err(error) if error.kind() == io::ErrorKind::NotConnected => tokio::time::sleep(UNDECIDED_PAUSE).await,
            Err(error) => return Err(error),
        }
    }
}

fn failed(error: &io::Error, icmp: Option<IcmpMessage>, took: Duration) -> io::Result<Handshake> {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ETIMEDOUT) => Ok(Handshake::Silent),
        Some(
            errno @ (Errno::ECONNREFUSED
            | Errno::ECONNRESET
            | Errno::EHOSTUNREACH
            | Errno::ENETUNREACH
            | Errno::EHOSTDOWN
            | Errno::ENETDOWN
            | Errno::ENOPROTOOPT
            | Errno::EOPNOTSUPP
            | Errno::EMSGSIZE
            | Errno::EPROTO
            | Errno::EACCES
            | Errno::EPERM
            | Errno::EADDRNOTAVAIL),
        ) => Ok(Handshake::Failed { errno, icmp, took }),
        Some(_) | None => Err(io::Error::new(error.kind(), format!("cannot connect: {error}"))),
    }
}

/// When what the other side says is all that is wanted.
pub(crate) enum Until<'a> {
    /// It pauses.
    Pause,
    /// This holds of what was heard.
    Heard(&'a (dyn Fn(&[u8]) -> bool + Sync)),
}

/// Reads what the other side says: until it is all that is wanted, it ends, `bytes_max` are read, or `patience` is over.
pub(crate) async fn listen(stream: &mut (impl AsyncRead + Unpin), until: Until<'_>, bytes_max: usize, patience: Duration) -> Vec<u8> {
    let deadline = Deadline::now() + patience;
    let mut heard = vec![0; bytes_max];
    let mut length = 0;
    while let Some(free) = heard.get_mut(length..).filter(|free| !free.is_empty()) {
        let turn = match until {
            Until::Pause if length > 0 => deadline.min(Deadline::now() + REPLY_PAUSE),
            Until::Pause | Until::Heard(_) => deadline,
        };
        match timeout_at(turn, stream.read(free)).await {
            Ok(Ok(more)) if more > 0 => length += more,
            // It has ended, was reset, or is silent: what was heard until then is the answer.
            Ok(Ok(_) | Err(_)) | Err(_) => break,
        }
        if let (Until::Heard(enough), Some(so_far)) = (&until, heard.get(..length))
            && enough(so_far)
        {
            break;
        }
    }
    heard.truncate(length);
    heard
}

/// Says something, and how many bytes of it were taken within `patience`.
pub(crate) async fn say(stream: &mut (impl AsyncWrite + Unpin), text: &[u8], patience: Duration) -> usize {
    let deadline = Deadline::now() + patience;
    let mut said = 0;
    while let Some(rest) = text.get(said..).filter(|rest| !rest.is_empty()) {
        match timeout_at(deadline, stream.write(rest)).await {
            Ok(Ok(more)) if more > 0 => said += more,
            Ok(Ok(_) | Err(_)) | Err(_) => break,
        }
    }
    // What lies in the buffers of TLS has not been said; an error shows in the reply that does not come.
    let _flushed = timeout_at(deadline, stream.flush()).await;
    said
}
