//! Probes over UDP that are alike in all that routers go by: one connected socket, whose port is theirs, and a number in what they carry.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg, setsockopt, sockopt};
use probeops_shared::tools::network::Family;
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::{Course, Heard, Sign};
use crate::net::error_queue;
use crate::net::icmp::Fragments;

/// What a probe carries first, by chance.
const NONCE_BYTES: usize = 8;
/// An error about an earlier probe can surface at the next send, which then has not happened; one that comes as often as this is real.
const SEND_ATTEMPTS: usize = 8;
/// More than a probe carries; what is longer is no echo of one.
const REPLY_BYTES_MAX: usize = 9_000;

/// A flow.
#[derive(Debug)]
pub(super) struct UdpFlow {
    wire: Arc<Wire>,
    /// It ends with the flow.
    _reader: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Wire {
    socket: UdpSocket,
    family: Family,
    class: Option<u8>,
    payload_bytes: usize,
    waiting: Mutex<Waiting>,
    tell: mpsc::Sender<Heard>,
}

#[derive(Debug, Default)]
struct Waiting {
    probes: HashMap<[u8; NONCE_BYTES], Sent>,
    /// Whether one was given up, whose answer may still come.
    given_up: bool,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    tag: u64,
    at: Instant,
}

impl UdpFlow {
    pub(super) fn open(course: &Course, port: u16, tell: &mpsc::Sender<Heard>) -> io::Result<Self> {
        let family = Family::of(course.to);
        let socket = Socket::new(Domain::for_address((course.to, port).into()), Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
        error_queue::enable(&socket, family)?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        match (course.fragments, family) {
            (Fragments::Allowed, _) => {}
            (Fragments::Forbidden, Family::V6) => set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)?,
            (Fragments::Forbidden, Family::V4) => set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?,
        }
        let any = if family == Family::V6 { IpAddr::from(Ipv6Addr::UNSPECIFIED) } else { IpAddr::from(Ipv4Addr::UNSPECIFIED) };
        socket.bind(&SocketAddr::new(course.source.unwrap_or(any), 0).into())?;
        socket.connect(&SocketAddr::new(course.to, port).into())?;
        let socket = UdpSocket::from_std(socket.into())?;
        let class = course.dscp.map(|dscp| dscp << 2);
        let (waiting, tell) = (Mutex::default(), tell.clone());
        let wire = Arc::new(Wire { socket, family, class, payload_bytes: course.payload_bytes, waiting, tell });
        let reader = AbortOnDropHandle::new(tokio::spawn(listen(Arc::clone(&wire))));
        Ok(Self { wire, _reader: reader })
    }

    /// Sends a probe; when it left.
    pub(super) fn send(&self, tag: u64, ttl: u8) -> io::Result<Instant> {
        self.wire.send(tag, ttl)
    }

    /// Listens no longer for this one.
    pub(super) fn forget(&self, tag: u64) {
        let mut waiting = self.wire.waiting();
        let before = waiting.probes.len();
        waiting.probes.retain(|_, sent| sent.tag != tag);
        waiting.given_up |= waiting.probes.len() < before;
    }
}

impl Wire {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, tag: u64, ttl: u8) -> io::Result<Instant> {
        // Held while sending: the answer may be here before the system returns.
        let mut waiting = self.waiting();
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let filling = (NONCE_BYTES..).map(|index| index.to_le_bytes().first().copied().unwrap_or_default());
        let bytes: Vec<u8> = nonce.into_iter().chain(filling).take(self.payload_bytes).collect();
        let mut attempts = 0;
        let at = loop {
            let at = Instant::now();
            match self.put(&bytes, ttl) {
                Ok(()) => break at,
                Err(errno) if attempts == SEND_ATTEMPTS => return Err(errno.into()),
                Err(_) => attempts += 1,
            }
        };
        waiting.probes.insert(nonce, Sent { tag, at });
        Ok(at)
    }

    fn put(&self, bytes: &[u8], ttl: u8) -> Result<(), Errno> {
        let (ttl, class_v6) = (i32::from(ttl), self.class.map(i32::from));
        let control: Vec<ControlMessage<'_>> = match self.family {
            Family::V6 => {
                [ControlMessage::Ipv6HopLimit(&ttl)].into_iter().chain(class_v6.as_ref().map(ControlMessage::Ipv6TClass)).collect()
            }
            Family::V4 => [ControlMessage::Ipv4Ttl(&ttl)].into_iter().chain(self.class.as_ref().map(ControlMessage::Ipv4Tos)).collect(),
        };
        sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(bytes)], &control, MsgFlags::MSG_DONTWAIT, None).map(drop)
    }

    /// Reads an error or a reply; `WouldBlock` when there is none.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<()> {
        if let Some(error) = error_queue::take(&self.socket)? {
            if let Some(icmp) = error.icmp {
                self.pass_on(&error.packet, error.at, Sign::Icmp { icmp, mpls: error.mpls });
            }
            return Ok(());
        }
        match self.socket.try_recv(buffer) {
            Ok(length) => {
                self.pass_on(buffer.get(..length).unwrap_or_default(), Instant::now(), Sign::Reply(None));
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            // An error about a probe, which is told from the queue.
            Err(_) => Ok(()),
        }
    }

    /// Tells of an answer to the probe that it quotes; where it quotes too little, it is about the only one that waits.
    fn pass_on(&self, quoted: &[u8], at: Instant, sign: Sign) {
        let mut waiting = self.waiting();
        let named = quoted.first_chunk::<NONCE_BYTES>().and_then(|nonce| waiting.probes.remove(nonce));
        let quotes_another = quoted.len() >= NONCE_BYTES && matches!(sign, Sign::Icmp { .. });
        let only = (waiting.probes.len() == 1 && !waiting.given_up).then(|| waiting.probes.keys().next().copied()).flatten();
        let (sent, sign) = match (named, only) {
            (Some(sent), _) => (sent, sign),
            // It was given up, or is none of ours.
            (None, _) if quotes_another || waiting.probes.is_empty() => return,
            (None, Some(nonce)) => match waiting.probes.remove(&nonce) {
                Some(sent) => (sent, sign),
                None => return,
            },
            (None, None) => (Sent { tag: u64::MAX, at }, Sign::Nameless),
        };
        drop(self.tell.try_send(Heard { tag: sent.tag, rtt: at.saturating_duration_since(sent.at), sign }));
    }
}

async fn listen(wire: Arc<Wire>) {
    let mut buffer = vec![0; REPLY_BYTES_MAX];
    loop {
        if let Err(error) = wire.socket.async_io(Interest::READABLE | Interest::ERROR, || wire.receive(&mut buffer)).await {
            tracing::warn!(%error, "could not read from a UDP socket; the answers to its probes will look like silence");
            return;
        }
    }
}
