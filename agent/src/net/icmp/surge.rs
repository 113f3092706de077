//! The other engine: ICMP echo on the surge-ping crate, which knows more systems than ours does.
//!
//! What is added here, because the crate does not do it:
//! - a receive buffer that holds a burst of replies;
//! - ICMP errors from the system's error queue, on datagram and raw sockets alike;
//! - on a raw socket, the filter against all the ICMP of this machine that is none of ours;
//! - a thread of its own to receive on ([`Stopwatch`](super::stopwatch::Stopwatch));
//! - sequence numbers that are not used again while a late reply could still come.
//!
//! It cannot see duplicates, nor the time to live of a reply on a datagram socket, nor whether a reply carries what was sent. Its packets are
//! all sent alike: time to live is the socket's, and the rest the system's own choice.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use futures_util::FutureExt;
use probeops_shared::tools::network::Family;
use probeops_shared::tools::ping::report::PingMethod;
use socket2::{SockRef, Type};
use surge_ping::{Client, Config, ICMP, IcmpPacket, PingIdentifier, PingSequence, SurgeError};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::coop::unconstrained;
use tokio_util::task::AbortOnDropHandle;

use super::sequence::{REUSED_AFTER, Sequence};
use super::{Answer, EchoSocket, Heard, RECEIVE_BUFFER_BYTES, Request, SEND_ATTEMPTS, duplicate, filter, packet};
use crate::net::error_queue;

/// The most that a request may carry: the crate reads no more than 2048 bytes of a reply, which a raw IPv4 socket shows with its headers.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 2048 - packet::HEADER_BYTES - packet::IPV4_HEADER_BYTES_MAX;

/// What is one for all packets of a socket: their family and time to live.
pub(super) type Kind = (Family, Option<u8>);

/// A socket of surge-ping's.
pub(super) struct SurgeSocket {
    client: Client,
    method: PingMethod,
    identifier: u16,
    waiting: Arc<Mutex<Waiting>>,
    /// It ends with the socket.
    _errors: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Waiting {
    sequence: Sequence,
    requests: HashMap<u16, Sent>,
}

/// A request whose answers somebody waits for.
#[derive(Debug)]
struct Sent {
    tag: u64,
    at: Instant,
    tell: mpsc::Sender<Heard>,
    /// Waits for the reply, until this is dropped.
    _pinging: AbortOnDropHandle<()>,
}

impl std::fmt::Debug for SurgeSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SurgeSocket").field("method", &self.method).field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

impl SurgeSocket {
    /// Opens one that is read on this thread.
    pub(super) fn open(thread: &Handle, (family, ttl): Kind) -> io::Result<Self> {
        // The tasks that read from the socket belong to the thread that is current when it is opened.
        let _current = thread.enter();
        let kind = if family == Family::V6 { ICMP::V6 } else { ICMP::V4 };
        // Where this is not permitted the crate gives advice of its own in place of the system's error; that one says what is missing.
        drop(super::open(family)?);
        let client = Client::new(&Config { kind, ttl: ttl.map(u32::from), ..Config::default() })?;
        let socket = duplicate::of(client.get_socket().get_native_sock())?;
        SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
        error_queue::enable(&socket, family)?;
        // By chance, so that other programs and sockets we have closed hardly have the same.
        let (identifier, sequence) = (rand::random(), Sequence::starting_at(rand::random()));
        let method = if client.get_socket().get_type() == Type::RAW { PingMethod::IcmpRaw } else { PingMethod::IcmpDatagram };
        if method == PingMethod::IcmpRaw {
            filter::attach(&socket, family, identifier)?;
        }
        let waiting = Arc::new(Mutex::new(Waiting { sequence, requests: HashMap::new() }));
        let ours = (method == PingMethod::IcmpRaw).then_some(identifier);
        let errors = AbortOnDropHandle::new(tokio::spawn(listen(UdpSocket::from_std(socket.into())?, family, ours, Arc::clone(&waiting))));
        Ok(Self { client, method, identifier, waiting, _errors: errors })
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EchoSocket for SurgeSocket {
    fn method(&self) -> PingMethod {
        self.method
    }

    fn send(&self, request: &Request, tag: u64, tell: &mpsc::Sender<Heard>) -> io::Result<(u16, Instant)> {
        let (to, payload_bytes) = (request.to, request.payload_bytes);
        // Held while sending: the answer may be here before the system returns.
        let mut waiting = self.waiting();
        let Waiting { sequence, requests } = &mut *waiting;
        let number = sequence.unused(|number| requests.contains_key(&number))?;
        let mut attempts = 0;
        let (at, sending, answered, pinging) = loop {
            let (client, identifier) = (self.client.clone(), PingIdentifier(self.identifier));
            // Not put off where the run has had its share of the runtime: an error of a send that comes later would go unheard.
            let mut pinging = Box::pin(unconstrained(async move {
                let payload: Vec<u8> = (0..=u8::MAX).cycle().take(payload_bytes).collect();
                client.pinger(to, identifier).await.timeout(REUSED_AFTER).ping(PingSequence(number), &payload).await
            }));
            let at = Instant::now();
            // Polled for the first time it sends.
            match pinging.as_mut().now_or_never() {
                Some(Err(SurgeError::IOError(_))) if attempts < SEND_ATTEMPTS => attempts += 1,
                Some(Err(SurgeError::IOError(error))) => return Err(error),
                Some(Err(other)) => return Err(io::Error::other(other)),
                answered => break (at, at.elapsed(), answered, pinging),
            }
        };
        let told = tell.clone();
        let pinging = AbortOnDropHandle::new(tokio::spawn(async move {
            let answer = match answered {
                Some(answer) => answer,
                None => pinging.await,
            };
            // The crate starts its clock when the packet has left; what that takes belongs to the round trip, as ping(8) takes it.
            if let Ok((packet, rtt)) = answer {
                drop(told.try_send(Heard { tag, rtt: rtt + sending, answer: reply(&packet) }));
            }
        }));
        requests.insert(number, Sent { tag, at, tell: tell.clone(), _pinging: pinging });
        Ok((number, at))
    }

    fn forget(&self, number: u16) {
        self.waiting().requests.remove(&number);
    }

    #[cfg(test)]
    fn waiting(&self) -> usize {
        self.waiting().requests.len()
    }
}

/// The crate hands on nothing but replies here: errors are read from the queue, and are not let through to it as packets.
fn reply(packet: &IcmpPacket) -> Answer {
    match packet {
        IcmpPacket::V4(packet) => Answer::Reply { ttl: packet.get_ttl(), bytes: packet.get_size(), from: packet.get_source().into() },
        // The hop limit of an IPv6 reply is not known to the crate; it says 0.
        IcmpPacket::V6(packet) => Answer::Reply { ttl: None, bytes: packet.get_size(), from: packet.get_source().into() },
    }
}

/// Reads errors from the queue and gives them to whoever waits; `ours` is the identifier where the socket hears of others too.
async fn listen(socket: UdpSocket, family: Family, ours: Option<u16>, waiting: Arc<Mutex<Waiting>>) {
    let next = || error_queue::take(&socket).and_then(|error| error.ok_or_else(|| io::ErrorKind::WouldBlock.into()));
    loop {
        let error = match socket.async_io(Interest::ERROR, next).await {
            Ok(error) => error,
            Err(error) => {
                tracing::warn!(%error, "could not read the ICMP errors of a socket; they will look like silence");
                return;
            }
        };
        let (Some(icmp), Some(echo)) = (error.icmp, packet::read(&error.packet)) else { continue };
        if echo.kind != packet::types(family).0 || ours.is_some_and(|ours| ours != echo.identifier) {
            continue;
        }
        let waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sent) = waiting.requests.get(&echo.number) {
            let rtt = error.at.saturating_duration_since(sent.at);
            drop(sent.tell.try_send(Heard { tag: sent.tag, rtt, answer: Answer::Error { icmp, mpls: error.mpls } }));
        }
    }
}
