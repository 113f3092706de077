//! One socket and whoever waits for what arrives on it.

use std::collections::HashMap;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use probeops_shared::tools::network::Family;
use probeops_shared::tools::ping::report::PingMethod;
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover};
use socket2::{Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::packet::{self, HEADERS_BYTES_MAX, Nonce};
use super::sequence::Sequence;
use super::{Answer, EchoSocket, Fragments, Heard, Kind, PAYLOAD_BYTES, RECEIVE_BUFFER_BYTES, Request, SEND_ATTEMPTS, filter, open};
use crate::net::beat::{self, BEAT};
use crate::net::{arrival, error_queue};

/// How many packets are read at once before others have their turn.
const BATCH: usize = 64;
/// Where packets come closer one after another than by a beat, the reader looks for them by beats: to be woken for each costs more than to read
/// it, and its time is the kernel's. More often, where the system does not have the room for as many as may come meanwhile.
const PAUSE_SHORT: Duration = Duration::from_millis(1);

/// A socket of our own.
#[derive(Debug)]
pub(super) struct IcmpSocket {
    wire: Arc<Wire>,
    /// It ends with the socket.
    _reader: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Wire {
    socket: Socket,
    kind: Kind,
    method: PingMethod,
    /// On a raw socket; the system chooses that of a datagram socket.
    identifier: u16,
    /// The largest packet that can be for us.
    largest: AtomicUsize,
    waiting: Mutex<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    sequence: Sequence,
    requests: HashMap<u16, Sent>,
    set: Set,
}

/// What an IPv6 socket is set to. Until Linux 5.18 a datagram socket does not heed what is said with a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Set {
    ttl: Option<i32>,
    class: Option<u8>,
}

impl Set {
    /// Sets the socket, unless it is so already.
    fn put(&mut self, socket: &Socket, wanted: Self) -> Result<(), Errno> {
        if *self != wanted {
            // The system's own choice is -1.
            setsockopt(socket, sockopt::Ipv6Ttl, &wanted.ttl.unwrap_or(-1))?;
            setsockopt(socket, sockopt::Ipv6TClass, &wanted.class.map_or(-1, i32::from))?;
            *self = wanted;
        }
        Ok(())
    }
}

/// A request whose answers somebody waits for.
#[derive(Debug)]
struct Sent {
    tag: u64,
    nonce: Nonce,
    payload_bytes: usize,
    at: Instant,
    tell: mpsc::Sender<Heard>,
}

impl IcmpSocket {
    pub(super) fn open(kind: Kind) -> io::Result<Self> {
        let (socket, of_type) = open(kind.family)?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        error_queue::enable(&socket, kind.family)?;
        match kind.family {
            Family::V6 => setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?,
            Family::V4 => setsockopt(&socket, sockopt::Ipv4RecvTtl, &true)?,
        }
        match (kind.fragments, kind.family) {
            (Fragments::Allowed, _) => {}
            (Fragments::Forbidden, Family::V6) => set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)?,
            (Fragments::Forbidden, Family::V4) => set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?,
        }
        // Not with each packet: an IPv6 datagram socket does not heed that.
        kind.source.map_or(Ok(()), |source| socket.bind(&SocketAddr::new(source, 0).into()))?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
        // By chance, so that other programs and sockets we have closed hardly have the same.
        let (identifier, sequence) = (rand::random(), Sequence::starting_at(rand::random()));
        let method = if of_type == Type::RAW { PingMethod::IcmpRaw } else { PingMethod::IcmpDatagram };
        if method == PingMethod::IcmpRaw {
            filter::attach(&socket, kind.family, identifier)?;
        }
        let waiting = Mutex::new(Waiting { sequence, requests: HashMap::new(), set: Set::default() });
        // What is granted is told twice as large (socket(7)).
        let pause = if socket.recv_buffer_size()? < 2 * RECEIVE_BUFFER_BYTES { Some(PAUSE_SHORT) } else { None };
        let wire =
            Arc::new(Wire { socket, kind, method, identifier, largest: AtomicUsize::new(PAYLOAD_BYTES + HEADERS_BYTES_MAX), waiting });
        // To the runtime every datagram socket is one of UDP.
        let waited_for = UdpSocket::from_std(wire.socket.try_clone()?.into())?;
        let reader = AbortOnDropHandle::new(tokio::spawn(listen(Arc::clone(&wire), waited_for, pause)));
        Ok(Self { wire, _reader: reader })
    }
}

impl EchoSocket for IcmpSocket {
    fn method(&self) -> PingMethod {
        self.wire.method
    }

    fn send(&self, request: &Request, tag: u64, tell: &mpsc::Sender<Heard>) -> io::Result<(u16, Instant)> {
        self.wire.send(request, tag, tell)
    }

    fn forget(&self, number: u16) {
        self.wire.waiting().requests.remove(&number);
    }

    #[cfg(test)]
    fn waiting(&self) -> usize {
        self.wire.waiting().requests.len()
    }
}

impl Wire {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, request: &Request, tag: u64, tell: &mpsc::Sender<Heard>) -> io::Result<(u16, Instant)> {
        // Held while sending: the answer may be here before the system returns.
        let mut waiting = self.waiting();
        let Waiting { sequence, requests, set } = &mut *waiting;
        let number = sequence.unused(|number| requests.contains_key(&number))?;
        let nonce = rand::random();
        let bytes = packet::request(self.kind.family, self.identifier, number, nonce, request.payload_bytes);
        self.largest.fetch_max(request.payload_bytes + HEADERS_BYTES_MAX, Ordering::Relaxed);
        let mut attempts = 0;
        let at = loop {
            match self.put(request, &bytes, set) {
                Ok(at) => break at,
                Err(errno) if attempts == SEND_ATTEMPTS || errno == Errno::EAGAIN => return Err(errno.into()),
                Err(_) => attempts += 1,
            }
        };
        requests.insert(number, Sent { tag, nonce, payload_bytes: request.payload_bytes, at, tell: tell.clone() });
        Ok((number, at))
    }

    /// Gives it to the system; the last moment before.
    fn put(&self, request: &Request, bytes: &[u8], set: &mut Set) -> Result<Instant, Errno> {
        let to = SockaddrStorage::from(SocketAddr::new(request.to, 0));
        let send = |control: &[ControlMessage<'_>]| {
            let at = Instant::now();
            sendmsg(self.socket.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_DONTWAIT, Some(&to)).map(|_| at)
        };
        let (ttl, class) = (request.ttl.map(i32::from), request.dscp.map(|dscp| dscp << 2));
        if self.kind.family == Family::V6 {
            set.put(&self.socket, Set { ttl, class })?;
            return send(&[]);
        }
        let (ttl, class) = (ttl.as_ref().map(ControlMessage::Ipv4Ttl), class.as_ref().map(ControlMessage::Ipv4Tos));
        send(&ttl.into_iter().chain(class).collect::<Vec<_>>())
    }

    /// Reads what is there, errors first, of each at most [`BATCH`]; how many there were, and whether that was all.
    fn drain(&self, buffer: &mut Vec<u8>) -> io::Result<(usize, bool)> {
        let mut errors = 0;
        while errors < BATCH
            && let Some(error) = error_queue::take(&self.socket)?
        {
            errors += 1;
            let Some(icmp) = error.icmp else { continue };
            let Some(echo) = packet::read(&error.packet) else { continue };
            // A raw socket gets the errors about all ICMP that this machine has sent.
            let ours = self.method == PingMethod::IcmpDatagram || echo.identifier == self.identifier;
            if ours && echo.kind == packet::types(self.kind.family).0 {
                self.pass_on(echo.number, echo.payload, error.at, Answer::Error { icmp, mpls: error.mpls });
            }
        }
        for replies in 0..BATCH {
            match self.receive(buffer) {
                Ok(()) => {}
                Err(Errno::EAGAIN) => return Ok((errors + replies, errors < BATCH)),
                Err(errno) if is_about_a_packet(errno) => return Ok((errors + replies, false)),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok((errors + BATCH, false))
    }

    fn receive(&self, buffer: &mut Vec<u8>) -> Result<(), Errno> {
        let largest = self.largest.load(Ordering::Relaxed);
        if buffer.len() < largest {
            buffer.resize(largest, 0);
        }
        let mut control = nix::cmsg_space!(TimeSpec, i32);
        let mut slices = [IoSliceMut::new(buffer)];
        let message = recvmsg::<SockaddrStorage>(self.socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
        let (mut stamp, mut ttl) = (None, None);
        for entry in message.cmsgs()? {
            match entry {
                ControlMessageOwned::ScmTimestampns(time) => stamp = Some(time),
                ControlMessageOwned::Ipv4Ttl(hops) | ControlMessageOwned::Ipv6HopLimit(hops) => ttl = u8::try_from(hops).ok(),
                _ => {}
            }
        }
        let (length, from) = (message.bytes, message.address.as_ref().and_then(crate::net::ip));
        let whole = buffer.get(..length).unwrap_or_default();
        let shows_header = self.method == PingMethod::IcmpRaw && self.kind.family == Family::V4;
        let bytes = if shows_header { packet::without_header(whole) } else { whole };
        if let (Some(echo), Some(from)) = (packet::read(bytes), from)
            && echo.kind == packet::types(self.kind.family).1
        {
            self.pass_on(echo.number, echo.payload, arrival::at(stamp), Answer::Reply { ttl, bytes: bytes.len(), from });
        }
        Ok(())
    }

    /// Gives an answer to whoever waits for it.
    fn pass_on(&self, number: u16, payload: &[u8], at: Instant, answer: Answer) {
        let waiting = self.waiting();
        let Some(sent) = waiting.requests.get(&number) else { return };
        // A reply carries all that its request did; how much of that an error quotes is up to its router.
        let is_whole = matches!(answer, Answer::Error { .. }) || payload.len() >= sent.payload_bytes;
        if !is_whole || !packet::carries(payload, sent.nonce) {
            return;
        }
        let heard = Heard { tag: sent.tag, rtt: at.saturating_duration_since(sent.at), answer };
        // Somebody who floods us with duplicates is not heard beyond what the run has room for.
        drop(sent.tell.try_send(heard));
    }
}

async fn listen(wire: Arc<Wire>, waited_for: UdpSocket, pause: Option<Duration>) {
    if let Err(error) = read(&wire, waited_for, pause).await {
        tracing::warn!(%error, "could not read from an ICMP socket; its replies will look like loss");
    }
}

async fn read(wire: &Wire, mut waited_for: UdpSocket, pause: Option<Duration>) -> io::Result<()> {
    let mut buffer = Vec::new();
    let interest = Interest::READABLE | Interest::ERROR;
    loop {
        let mut before: Option<Instant> = None;
        // They come seldom: each wakes us.
        loop {
            waited_for.ready(interest).await?;
            match waited_for.try_io(interest, || if wire.drain(&mut buffer)?.1 { Err(ErrorKind::WouldBlock.into()) } else { Ok(()) }) {
                Ok(()) => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            let now = Instant::now();
            if before.replace(now).is_some_and(|before| now.saturating_duration_since(before) < pause.unwrap_or(BEAT)) {
                break;
            }
        }
        // The system is not to say when there is another.
        let mut socket = Some(waited_for.into_std()?);
        waited_for = loop {
            let now = Instant::now();
            tokio::time::sleep_until(pause.map_or_else(|| beat::at_or_after(now), |pause| now + pause).into()).await;
            let mut found = false;
            loop {
                let (count, is_all) = wire.drain(&mut buffer)?;
                found |= count > 0;
                if is_all {
                    break;
                }
                tokio::task::yield_now().await;
            }
            if found {
                continue;
            }
            // While the system has no room for it, it is read as before.
            let again = socket.take().map_or_else(|| wire.socket.try_clone().map(Into::into), Ok).and_then(UdpSocket::from_std);
            if let Ok(again) = again {
                break again;
            }
        };
    }
}

/// An ICMP error surfaces at whatever is asked of the socket next, too (icmp(7)); it is told from the queue.
fn is_about_a_packet(errno: Errno) -> bool {
    let network = matches!(errno, Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EHOSTDOWN | Errno::ENONET | Errno::EACCES);
    network || matches!(errno, Errno::ECONNREFUSED | Errno::EMSGSIZE | Errno::ENOPROTOOPT | Errno::EOPNOTSUPP | Errno::EPROTO)
}
