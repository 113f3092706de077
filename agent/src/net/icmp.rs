//! ICMP echo: on datagram sockets where the system allows them (`net.ipv4.ping_group_range`), on raw ones where not, with the same behaviour.
//!
//! Sockets are of one of two engines. `surge` is for systems that ours does not know, and a second opinion on this one. Of ours:
//!
//! - One socket of a kind for all runs, as far as its numbers reach, with a receive buffer that holds a burst of replies: the system's default
//!   drops them, which looks like loss on the path.
//! - Time to live and traffic class are each packet's own.
//! - A reply's time is the kernel's, taken when it arrived, so that a busy node measures no longer round trips.
//! - ICMP errors and their senders come from the system's error queue.
//! - A number is not used again while a late reply could still come, and a reply must carry what its request carried: eight bytes by chance.

mod conversation;
mod duplicate;
mod filter;
pub(crate) mod packet;
mod sequence;
mod socket;
mod stopwatch;
pub(crate) mod surge;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use probeops_shared::tools::network::{Family, IcmpMessage, MplsLabel};
use probeops_shared::tools::ping::report::PingMethod;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::mpsc;

pub(crate) use conversation::Conversation;
use sequence::NUMBERS;
use socket::IcmpSocket;
use stopwatch::Stopwatch;
use surge::SurgeSocket;

/// How much there is room for at first: what a request carries that fits a jumbo frame (9000 bytes) over IPv4. More is made for those that
/// carry more, which are cut into fragments as a rule.
const PAYLOAD_BYTES: usize = 8_972;

/// Room for the replies of a burst of 10,000 small packets, as far as the system lets us have it (`net.core.rmem_max`).
const RECEIVE_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// An error about an earlier packet can surface at the next send, which then has not happened; one that comes as often as this is real.
const SEND_ATTEMPTS: usize = 8;

/// The ICMP sockets of this process.
#[derive(Debug, Default)]
pub(crate) struct Icmp {
    sockets: Mutex<HashMap<Engine, Open>>,
    stopwatch: Stopwatch,
}

/// The socket that further runs get.
#[derive(Debug)]
struct Open {
    socket: Weak<dyn EchoSocket>,
    /// How many requests the runs that got it may send.
    promised: usize,
}

/// Whose socket, and of which kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Engine {
    Own(Kind),
    Surge(surge::Kind),
}

/// A socket to send echo requests from.
pub(crate) trait EchoSocket: fmt::Debug + Send + Sync {
    /// With which kind of socket.
    fn method(&self) -> PingMethod;

    /// Sends a request; its number, and when it left. `WouldBlock` means that the system has no room at the moment.
    fn send(&self, request: &Request, tag: u64, tell: &mpsc::Sender<Heard>) -> io::Result<(u16, Instant)>;

    /// Waits no longer for answers to a request.
    fn forget(&self, number: u16);

    /// How many requests somebody waits for.
    #[cfg(test)]
    fn waiting(&self) -> usize;
}

/// What is one for all packets of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kind {
    /// Their family.
    pub(crate) family: Family,
    /// From which address of this machine; the system's choice if none.
    pub(crate) source: Option<IpAddr>,
    /// Whether routers may cut them.
    pub(crate) fragments: Fragments,
    /// Their identifier, by number: routers that share packets out over equal paths keep those of one identifier on one path. Zero is for those
    /// that are not paced.
    pub(crate) flow: u8,
}

/// Whether packets may be cut where they do not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fragments {
    /// As the system does it: cut here, where it knows that they do not fit.
    Allowed,
    /// Sent whole whatever the system remembers of the path, and marked "don't fragment".
    Forbidden,
}

/// A request to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    /// To whom.
    pub(crate) to: IpAddr,
    /// After how many routers it is dropped.
    pub(crate) ttl: Option<u8>,
    /// Its differentiated services code point.
    pub(crate) dscp: Option<u8>,
    /// How much it carries; at most what fits an IP packet.
    pub(crate) payload_bytes: usize,
}

/// What came back.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    /// The request's own number with whoever sent it.
    pub(crate) tag: u64,
    /// How long after it.
    pub(crate) rtt: Duration,
    /// What.
    pub(crate) answer: Answer,
}

/// An answer to a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    /// The reply; another one to the same request is a duplicate.
    Reply {
        /// Its time to live on arrival.
        ttl: Option<u8>,
        /// Its size, ICMP header included.
        bytes: usize,
        /// Who sent it.
        from: IpAddr,
    },
    /// An error.
    Error {
        /// What it says and who says it.
        icmp: IcmpMessage,
        /// The labels that the request bore where it was dropped.
        mpls: Vec<MplsLabel>,
    },
}

/// Opens a socket of either kind, only to see whether this process may.
pub(crate) fn try_open() -> io::Result<()> {
    open(Family::V4).map(drop)
}

/// Whether this process may open a datagram socket, and whether a raw one.
pub(crate) fn try_both(family: Family) -> [io::Result<()>; 2] {
    [Type::DGRAM, Type::RAW].map(|kind| open_of(family, kind).map(drop))
}

/// A datagram socket, else a raw one.
fn open(family: Family) -> io::Result<(Socket, Type)> {
    let open = |kind| open_of(family, kind).map(|socket| (socket, kind));
    open(Type::DGRAM).or_else(|_| open(Type::RAW))
}

fn open_of(family: Family, kind: Type) -> io::Result<Socket> {
    let (domain, protocol) = if family == Family::V6 { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
    Socket::new(domain, kind.nonblocking().cloexec(), Some(protocol))
}

impl Icmp {
    /// A socket of our own for so many requests.
    pub(crate) fn socket(&self, kind: Kind, requests: usize) -> io::Result<Arc<dyn EchoSocket>> {
        self.of(Engine::Own(kind), requests)
    }

    /// A socket of surge-ping's: for requests with this time to live, of at most [`surge::PAYLOAD_BYTES_MAX`], and with no wish but those.
    pub(crate) fn surge(&self, family: Family, ttl: Option<u8>, requests: usize) -> io::Result<Arc<dyn EchoSocket>> {
        self.of(Engine::Surge((family, ttl)), requests)
    }

    /// Opened unless one is in use already that has numbers left for so many requests. It is closed when the last run that holds it is over.
    fn of(&self, engine: Engine, requests: usize) -> io::Result<Arc<dyn EchoSocket>> {
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = sockets.get_mut(&engine).filter(|open| open.promised + requests <= NUMBERS)
            && let Some(socket) = open.socket.upgrade()
        {
            open.promised += requests;
            return Ok(socket);
        }
        sockets.retain(|_, open| open.socket.strong_count() > 0);
        let socket: Arc<dyn EchoSocket> = match engine {
            Engine::Own(kind) => Arc::new(IcmpSocket::open(kind)?),
            Engine::Surge(kind) => Arc::new(SurgeSocket::open(&self.stopwatch.thread()?, kind)?),
        };
        sockets.insert(engine, Open { socket: Arc::downgrade(&socket), promised: requests });
        Ok(socket)
    }
}

#[cfg(test)]
mod tests;
