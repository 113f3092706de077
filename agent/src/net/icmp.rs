//! ICMP echo on the surge-ping crate, which speaks it over a datagram socket where the system allows that, and over a raw one where not.
//!
//! What is added here, because the crate does not do it:
//! - a receive buffer that holds a burst of replies; the system's default drops them, which looks like loss on the path;
//! - ICMP errors on a datagram socket, from the system's error queue (`errors`);
//! - on a raw socket, a filter against all the ICMP of this machine that is none of ours (`filter`);
//! - a thread of its own (`stopwatch`): the crate takes the times of a packet when its tasks run, and beside busy ones that is too late;
//! - sequence numbers that are not used again while a late reply could still come (`sequence`).

mod duplicate;
mod errors;
mod filter;
mod sequence;
mod stopwatch;

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use probeops_shared::tools::network::{Family, IcmpMessage};
use probeops_shared::tools::ping::PingMethod;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use surge_ping::{Client, Config, ICMP, IcmpPacket, PingIdentifier, PingSequence, SurgeError};

use errors::Errors;
use sequence::Sequence;
use stopwatch::Stopwatch;
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use crate::net::words;

/// Room for the replies of a burst of 10,000 small packets, as far as the system lets us have it (`net.core.rmem_max`).
const RECEIVE_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// An error about an earlier packet can surface at the next send, which then has not happened; a second one of the kind is real.
const SEND_ATTEMPTS: usize = 3;
/// ICMP types of a reply (RFC 792, RFC 4443).
const ECHO_REPLY_V4: u8 = 0;
const ECHO_REPLY_V6: u8 = 129;

/// The ICMP sockets of this process: one for each family and time to live in use.
#[derive(Debug, Default)]
pub(crate) struct Icmp {
    stopwatch: Stopwatch,
    sockets: Mutex<HashMap<Kind, Weak<IcmpSocket>>>,
}

/// Which packets a socket sends: of which family, with which time to live.
type Kind = (Family, Option<u8>);

/// A socket to send echo requests from.
pub(crate) struct IcmpSocket {
    thread: Handle,
    client: Client,
    method: PingMethod,
    family: Family,
    identifier: PingIdentifier,
    sequence: Mutex<Sequence>,
    /// Errors from the queue; a raw socket gets them as packets.
    errors: Option<Errors>,
}

impl std::fmt::Debug for IcmpSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IcmpSocket").field("method", &self.method).field("family", &self.family).finish_non_exhaustive()
    }
}

/// What became of one request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Echo {
    /// The target replied.
    Reply {
        /// How long that took.
        rtt: Duration,
        /// The reply's time to live, where the system tells it.
        ttl: Option<u8>,
        /// Its size, ICMP header included.
        bytes: usize,
        /// Who sent it.
        from: IpAddr,
    },
    /// Somebody answered with an error.
    Error(IcmpMessage),
    /// Nobody answered in time.
    Silent,
    /// It did not leave this machine.
    NotSent(String),
}

/// Opens a socket of either kind, only to see whether this process may.
pub(crate) fn try_open() -> io::Result<()> {
    let open = |kind| Socket::new(Domain::IPV4, kind, Some(Protocol::ICMPV4)).map(drop);
    open(Type::DGRAM).or_else(|_| open(Type::RAW))
}

impl Icmp {
    /// The socket for an address, opened unless it is in use already. It is closed when the last run that holds it is over.
    pub(crate) fn socket(&self, address: IpAddr, ttl: Option<u8>) -> io::Result<Arc<IcmpSocket>> {
        let key = (Family::of(address), ttl);
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(socket) = sockets.get(&key).and_then(Weak::upgrade) {
            return Ok(socket);
        }
        sockets.retain(|_, socket| socket.strong_count() > 0);
        let socket = Arc::new(IcmpSocket::open(self.stopwatch.thread()?, key.0, ttl)?);
        sockets.insert(key, Arc::downgrade(&socket));
        Ok(socket)
    }
}

impl IcmpSocket {
    fn open(thread: Handle, family: Family, ttl: Option<u8>) -> io::Result<Self> {
        // The tasks that read from the socket belong to the thread that is current when it is opened.
        let current = thread.enter();
        let kind = if family == Family::V6 { ICMP::V6 } else { ICMP::V4 };
        let config = Config { kind, ttl: ttl.map(u32::from), ..Config::default() };
        let client = Client::new(&config)?;
        let socket = duplicate::of(client.get_socket().get_native_sock())?;
        SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
        let (method, errors) = if client.get_socket().get_type() == Type::RAW {
            filter::attach(&socket, family)?;
            (PingMethod::IcmpRaw, None)
        } else {
            (PingMethod::IcmpDatagram, Some(Errors::watch(socket, family)?))
        };
        // By chance, so that other programs and sockets we have closed hardly have the same: a raw socket sees the replies to all of them.
        let (identifier, sequence) = (PingIdentifier(rand::random()), Mutex::new(Sequence::starting_at(rand::random())));
        drop(current);
        Ok(Self { thread, client, method, family, identifier, sequence, errors })
    }

    /// With which kind of socket.
    pub(crate) fn method(&self) -> PingMethod {
        self.method
    }

    /// Sends a request and waits for what becomes of it. Dropping the future forgets the request.
    pub(crate) async fn echo(self: &Arc<Self>, address: IpAddr, payload: &Arc<[u8]>, patience: Duration) -> Echo {
        let (socket, payload) = (Arc::clone(self), Arc::clone(payload));
        let timed = self.thread.spawn(async move { socket.send(address, &payload, patience).await });
        AbortOnDropHandle::new(timed).await.unwrap_or_else(|ended| Echo::NotSent(format!("the ICMP thread has ended: {ended}")))
    }

    async fn send(&self, address: IpAddr, payload: &[u8], patience: Duration) -> Echo {
        let mut last = String::new();
        for _ in 0..SEND_ATTEMPTS {
            match self.attempt(address, payload, patience).await {
                Ok(echo) => return echo,
                Err(error) => last = words(&error),
            }
        }
        Echo::NotSent(last)
    }

    async fn attempt(&self, address: IpAddr, payload: &[u8], patience: Duration) -> io::Result<Echo> {
        let number = self.sequence.lock().unwrap_or_else(PoisonError::into_inner).next(Instant::now());
        let Some(number) = number else {
            return Ok(Echo::NotSent("this node sends more echo requests than there are sequence numbers".to_owned()));
        };
        let error = async {
            match &self.errors {
                Some(errors) => errors.about(number).await,
                None => std::future::pending().await,
            }
        };
        let mut pinger = self.client.pinger(address, self.identifier).await;
        pinger.timeout(patience);
        let (mut pinging, mut sending) = (pin!(pinger.ping(PingSequence(number), payload)), None);
        // The crate starts its clock when the packet has left, and a near reply is there before. Polled for the first time it sends; what that
        // takes belongs to the round trip, as ping(8) takes it.
        let timed = poll_fn(|context| {
            let started = Instant::now();
            let polled = pinging.as_mut().poll(context);
            sending.get_or_insert_with(|| started.elapsed());
            polled
        });
        let answer = tokio::select! {
            // The watch on errors must be set up before the packet leaves.
            biased;
            message = error => return Ok(Echo::Error(message)),
            answer = timed => answer,
        };
        match answer {
            Ok((packet, rtt)) => Ok(self.read(&packet, rtt + sending.unwrap_or_default())),
            Err(SurgeError::Timeout { .. }) => Ok(Echo::Silent),
            Err(SurgeError::IOError(error)) => Err(error),
            Err(other) => Ok(Echo::NotSent(other.to_string())),
        }
    }

    /// A packet that the crate takes for an answer may be an error.
    fn read(&self, packet: &IcmpPacket, rtt: Duration) -> Echo {
        match packet {
            IcmpPacket::V4(packet) => match (packet.get_icmp_type().0, packet.get_icmp_code().0, packet.get_source().into()) {
                (ECHO_REPLY_V4, _, from) => Echo::Reply { rtt, ttl: packet.get_ttl(), bytes: packet.get_size(), from },
                (kind, code, from) => Echo::Error(IcmpMessage::new(self.family, kind, code, Some(from))),
            },
            IcmpPacket::V6(packet) => match (packet.get_icmpv6_type().0, packet.get_icmpv6_code().0, packet.get_source().into()) {
                // The hop limit of an IPv6 reply is not known to the crate; it says 0.
                (ECHO_REPLY_V6, _, from) => Echo::Reply { rtt, ttl: None, bytes: packet.get_size(), from },
                (kind, code, from) => Echo::Error(IcmpMessage::new(self.family, kind, code, Some(from))),
            },
        }
    }
}

#[cfg(test)]
mod tests;
