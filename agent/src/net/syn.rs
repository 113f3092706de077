//! A TCP handshake as a probe: how the other side, or a router on the way, answers a SYN. The connection is reset at once.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use probeops_shared::tools::network::{Family, IcmpMessage, MplsLabel};
use probeops_shared::tools::ping::report::TcpReply;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::TcpStream;

use crate::net::{error_queue, tcp, words};

/// How often a handshake is tried, a millisecond apart, while the one before it from the same port has not quite gone: a program that is just being
/// started has a copy of its socket for a moment.
const KEPT_PORT_TRIES: u32 = 50;

/// Whom to ask, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Syn {
    /// Whom.
    pub(crate) to: SocketAddr,
    /// From which address of this machine; with a port, one that is kept.
    pub(crate) from: Option<SocketAddr>,
    /// After how many routers it is dropped.
    pub(crate) ttl: Option<u8>,
    /// Its differentiated services code point.
    pub(crate) dscp: Option<u8>,
}

/// What became of it.
#[derive(Clone, Debug)]
pub(crate) enum Handshake {
    /// The host answered.
    Answered(TcpReply),
    /// ICMP did.
    Error {
        /// What it says and who says it.
        icmp: IcmpMessage,
        /// The labels that the SYN bore where it was dropped.
        mpls: Vec<MplsLabel>,
    },
    /// The system gave up, or did not even send it, in its own words.
    Failed(String),
}

/// Keeps a port for handshakes with this host, one after the other, as long as the socket lives; and the address with it.
pub(crate) fn keep_port(to: IpAddr, from: Option<IpAddr>) -> io::Result<(Socket, SocketAddr)> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let from = SocketAddr::new(from.unwrap_or(any), 0);
    let socket = Socket::new(Domain::for_address(from), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
    // So that others may have it too.
    socket.set_reuse_address(true)?;
    socket.bind(&from.into())?;
    let address = socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("the socket has no address"))?;
    Ok((socket, address))
}

impl Syn {
    /// Opens a connection and waits for what becomes of it, and how long that took; for ever, where nobody answers.
    pub(crate) async fn ask(self) -> (Duration, Handshake) {
        let started = Instant::now();
        let asked = match self.socket() {
            Ok(socket) => self.connect(socket).await,
            Err(error) => Err(error),
        };
        asked.unwrap_or_else(|error| (started.elapsed(), Handshake::Failed(words(&error))))
    }

    fn socket(self) -> io::Result<Socket> {
        let Self { to, from, ttl, dscp } = self;
        let family = Family::of(to.ip());
        let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
        error_queue::enable(&socket, family)?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        // With it, closing resets: thousands of probes leave no connections behind that the system remembers for a minute.
        socket.set_linger(Some(Duration::ZERO))?;
        let (ttl, class) = (ttl.map(u32::from), dscp.map(|dscp| u32::from(dscp) << 2));
        if family == Family::V6 {
            ttl.map_or(Ok(()), |ttl| socket.set_unicast_hops_v6(ttl))?;
            class.map_or(Ok(()), |class| socket.set_tclass_v6(class))?;
        } else {
            ttl.map_or(Ok(()), |ttl| socket.set_ttl_v4(ttl))?;
            class.map_or(Ok(()), |class| socket.set_tos_v4(class))?;
        }
        if let Some(from) = from {
            socket.set_reuse_address(from.port() > 0)?;
            socket.bind(&from.into())?;
        }
        Ok(socket)
    }

    async fn connect(self, socket: Socket) -> io::Result<(Duration, Handshake)> {
        let mut tries_left = if self.from.is_some_and(|from| from.port() > 0) { KEPT_PORT_TRIES } else { 0 };
        let (started, connecting) = loop {
            let started = Instant::now();
            let connecting = socket.connect(&SockAddr::from(self.to));
            let is_busy = |error: &io::Error| error.raw_os_error() == Some(Errno::EADDRNOTAVAIL as i32);
            if tries_left == 0 || !connecting.as_ref().is_err_and(is_busy) {
                break (started, connecting);
            }
            tries_left -= 1;
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        match connecting {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => {}
            // The system's own refusal of a port on this machine comes at once.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return Ok((started.elapsed(), Handshake::Answered(TcpReply::Refused)));
            }
            Err(error) => return Err(error),
        }
        let stream = TcpStream::from_std(socket.into())?;
        let refused = tcp::refused(&stream).await?;
        let took = started.elapsed();
        let Some(error) = refused else { return Ok((took, Handshake::Answered(TcpReply::Open))) };
        if let Some(queued) = error_queue::take(&stream)?
            && let Some(icmp) = queued.icmp
        {
            return Ok((queued.at.saturating_duration_since(started), Handshake::Error { icmp, mpls: queued.mpls }));
        }
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ECONNREFUSED | Errno::ECONNRESET) => Ok((took, Handshake::Answered(TcpReply::Refused))),
            // Nobody answered for longer than the system itself waits.
            Some(Errno::ETIMEDOUT) => std::future::pending().await,
            Some(_) | None => Ok((took, Handshake::Failed(words(&error)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(to: SocketAddr) -> Handshake {
        Syn { to, from: None, ttl: Some(5), dscp: Some(46) }.ask().await.1
    }

    #[tokio::test]
    async fn handshakes_one_after_the_other_are_from_the_port_that_is_kept() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let (_kept, from) = keep_port(to.ip(), None).unwrap();
        for _ in 0..20 {
            assert!(matches!(Syn { to, from: Some(from), ttl: None, dscp: None }.ask().await.1, Handshake::Answered(TcpReply::Open)));
            assert_eq!(listener.accept().unwrap().1.port(), from.port());
        }
    }

    #[tokio::test]
    async fn this_machine_says_yes_or_no() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = std::net::TcpListener::bind(address).unwrap();
            let to = listener.local_addr().unwrap();
            assert!(matches!(ask(to).await, Handshake::Answered(TcpReply::Open)));
            drop(listener);
            assert!(matches!(ask(to).await, Handshake::Answered(TcpReply::Refused)));
        }
    }
}
