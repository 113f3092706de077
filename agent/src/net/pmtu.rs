//! Packets that must not be fragmented, and what becomes of each.
//!
//! The socket ignores what the system remembers of the path (`IP_PMTUDISC_PROBE`): remembered, a limit would be told without being measured.
//! Neither kind of socket needs a privilege: echo requests go over a datagram ICMP socket, UDP datagrams over an ordinary one.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{SockaddrStorage, recvfrom};
use probeops_shared::tools::network::{Family, IcmpMessage};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::time::{Instant as Deadline, timeout_at};

use crate::net::error_queue::{self, QueuedError};
use crate::net::{ip, words};

/// The headers before what a probe carries: IP, and eight bytes of ICMP or UDP.
const HEADERS_V4_BYTES: usize = 20 + PROBE_HEADER_BYTES;
const HEADERS_V6_BYTES: usize = 40 + PROBE_HEADER_BYTES;
const PROBE_HEADER_BYTES: usize = 8;
/// An error about an earlier packet can surface at the next send, which then has not happened; a second one of the kind is real.
const SEND_ATTEMPTS: usize = 3;
/// ICMP types of a request and its reply (RFC 792, RFC 4443).
const ECHO_V4: [u8; 2] = [8, 0];
const ECHO_V6: [u8; 2] = [128, 129];

/// What carries a probe.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Carrier {
    /// An ICMP echo request.
    Icmp,
    /// A UDP datagram.
    Udp {
        /// To which port.
        port: u16,
    },
}

/// What became of a probe.
#[derive(Debug)]
pub(crate) enum Fate {
    /// The target answered it.
    Arrived { took: Duration },
    /// A hop could not pass it on in one piece, and perhaps said what it could.
    TooBig { icmp: IcmpMessage, took: Duration },
    /// The node's own interface carries no more than this.
    NotSent { mtu: u32 },
    /// It died where it was to die, and that hop said so.
    Expired { icmp: IcmpMessage, took: Duration },
    /// Somebody, or this system itself, said that the target cannot be reached.
    Unreachable { icmp: Option<IcmpMessage>, reason: String },
    /// Nobody said anything in time.
    Silent,
}

/// A socket that sends one probe after the other.
#[derive(Debug)]
pub(crate) struct Prober {
    socket: UdpSocket,
    to: SocketAddr,
    carrier: Carrier,
    number: u16,
    /// Whether probes are to die on the way.
    limited: bool,
}

/// What the socket has for us.
enum Heard {
    Answer { from: IpAddr, start: [u8; PROBE_HEADER_BYTES] },
    Error(QueuedError),
}

impl Prober {
    /// Whether this process may open a datagram ICMP socket.
    pub(crate) fn may_use_icmp() -> bool {
        Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4)).is_ok()
    }

    /// A socket for probes to this address.
    pub(crate) fn open(address: IpAddr, carrier: Carrier) -> io::Result<Self> {
        let (port, protocol) = match (carrier, address) {
            (Carrier::Udp { port }, _) => (port, Protocol::UDP),
            (Carrier::Icmp, IpAddr::V4(_)) => (0, Protocol::ICMPV4),
            (Carrier::Icmp, IpAddr::V6(_)) => (0, Protocol::ICMPV6),
        };
        let to = SocketAddr::new(address, port);
        let socket = Socket::new(Domain::for_address(to), Type::DGRAM.nonblocking().cloexec(), Some(protocol))?;
        error_queue::enable(&socket, Family::of(address))?;
        match address {
            IpAddr::V4(_) => set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?,
            IpAddr::V6(_) => set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)?,
        }
        // To the runtime every datagram socket is one of UDP.
        let socket = UdpSocket::from_std(socket.into())?;
        Ok(Self { socket, to, carrier, number: 0, limited: false })
    }

    /// Has all further packets die after so many hops.
    pub(crate) fn limit(&mut self, ttl: u8) -> io::Result<()> {
        self.limited = true;
        let socket = SockRef::from(&self.socket);
        if self.to.is_ipv4() { socket.set_ttl_v4(ttl.into()) } else { socket.set_unicast_hops_v6(ttl.into()) }
    }

    /// Sends a packet of `size` bytes, headers included, and waits for what becomes of it. An error is one of this machine.
    pub(crate) async fn probe(&mut self, size: u16, patience: Duration) -> io::Result<Fate> {
        self.number = self.number.wrapping_add(1);
        while error_queue::take(&self.socket)?.is_some() {}
        let sent = Instant::now();
        if let Some(fate) = self.send(size)? {
            return Ok(fate);
        }
        let deadline = Deadline::from_std(sent + patience);
        loop {
            let next = self.socket.async_io(Interest::READABLE | Interest::ERROR, || self.hear());
            let Ok(heard) = timeout_at(deadline, next).await else { return Ok(Fate::Silent) };
            if let Some(fate) = self.understand(heard?, sent.elapsed()) {
                return Ok(fate);
            }
        }
    }

    /// Sends; a fate if the packet already has one.
    fn send(&self, size: u16) -> io::Result<Option<Fate>> {
        let packet = self.packet(size);
        let mut last = io::Error::from(io::ErrorKind::Other);
        for _ in 0..SEND_ATTEMPTS {
            let Err(error) = SockRef::from(&self.socket).send_to(&packet, &SockAddr::from(self.to)) else { return Ok(None) };
            match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EMSGSIZE) => {
                    while let Some(queued) = error_queue::take(&self.socket)? {
                        if let Some(mtu) = queued.own_mtu_bytes {
                            return Ok(Some(Fate::NotSent { mtu }));
                        }
                    }
                }
                // The system knows no way or forbids it, or an error about an earlier probe came just now.
                Some(errno) if is_of_the_path(errno) => while error_queue::take(&self.socket)?.is_some() {},
                Some(_) | None => return Err(error),
            }
            last = error;
        }
        match last.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EMSGSIZE) => Err(last),
            Some(_) | None => Ok(Some(Fate::Unreachable { icmp: None, reason: words(&last) })),
        }
    }

    /// Begins with a header of ICMP, or with the same eight bytes as data of UDP; the system fills checksum and identifier in.
    fn packet(&self, size: u16) -> Vec<u8> {
        let headers = if self.to.is_ipv4() { HEADERS_V4_BYTES } else { HEADERS_V6_BYTES };
        let [request, _] = if self.to.is_ipv4() { ECHO_V4 } else { ECHO_V6 };
        let [high, low] = self.number.to_be_bytes();
        let mut packet = vec![request, 0, 0, 0, 0, 0, high, low];
        let carried = usize::from(size).saturating_sub(headers);
        match self.carrier {
            Carrier::Icmp => packet.resize(PROBE_HEADER_BYTES + carried, 0xa5),
            Carrier::Udp { .. } => packet.resize(carried, 0xa5),
        }
        packet
    }

    /// What there is; `WouldBlock` if nothing.
    fn hear(&self) -> io::Result<Heard> {
        loop {
            if let Some(queued) = error_queue::take(&self.socket)? {
                return Ok(Heard::Error(queued));
            }
            let mut start = [0; PROBE_HEADER_BYTES];
            match recvfrom::<SockaddrStorage>(self.socket.as_raw_fd(), &mut start) {
                Ok((_, from)) => {
                    let from = from.as_ref().and_then(ip).ok_or(io::ErrorKind::InvalidData)?;
                    return Ok(Heard::Answer { from, start });
                }
                Err(Errno::EAGAIN) => return Err(io::ErrorKind::WouldBlock.into()),
                // The word for an entry of the queue that has just come.
                Err(errno) if errno == Errno::EMSGSIZE || is_of_the_path(errno) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// What was heard as the fate of the probe under way; `None` when it is about another.
    fn understand(&self, heard: Heard, took: Duration) -> Option<Fate> {
        match heard {
            Heard::Answer { from, start } => {
                let ours = match (self.carrier, self.to.is_ipv4()) {
                    // Somebody listens on the port after all.
                    (Carrier::Udp { .. }, _) => true,
                    (Carrier::Icmp, v4) => {
                        let [_, reply] = if v4 { ECHO_V4 } else { ECHO_V6 };
                        let [kind, .., high, low] = start;
                        kind == reply && u16::from_be_bytes([high, low]) == self.number
                    }
                };
                (ours && from == self.to.ip()).then_some(Fate::Arrived { took })
            }
            Heard::Error(QueuedError { icmp: None, .. }) => None,
            Heard::Error(QueuedError { icmp: Some(icmp), packet, .. }) => {
                // An old router quotes so little that the number is missing.
                let [.., high, low] = packet.get(..PROBE_HEADER_BYTES).unwrap_or_default() else {
                    return Some(self.fate_of(icmp, took));
                };
                (u16::from_be_bytes([*high, *low]) == self.number).then(|| self.fate_of(icmp, took))
            }
        }
    }

    fn fate_of(&self, icmp: IcmpMessage, took: Duration) -> Fate {
        let family = Family::of(self.to.ip());
        if icmp.is_too_big(family) {
            return Fate::TooBig { icmp, took };
        }
        // Where none is to, somebody sends packets round in circles.
        if self.limited && icmp.is_expired(family) {
            return Fate::Expired { icmp, took };
        }
        match self.carrier {
            Carrier::Udp { .. } if icmp.is_port_unreachable(family) && icmp.from == Some(self.to.ip()) => Fate::Arrived { took },
            Carrier::Udp { .. } | Carrier::Icmp => Fate::Unreachable { reason: icmp.meaning.clone(), icmp: Some(icmp) },
        }
    }
}

/// Whether it is one of the system's words for an ICMP error, or for having no way itself.
fn is_of_the_path(errno: Errno) -> bool {
    use Errno::{EACCES, ECONNREFUSED, EHOSTDOWN, EHOSTUNREACH, ENETDOWN, ENETUNREACH, ENONET, ENOPROTOOPT, EOPNOTSUPP, EPERM, EPROTO};
    let words = [EACCES, ECONNREFUSED, EHOSTDOWN, EHOSTUNREACH, ENETDOWN, ENETUNREACH, ENONET, ENOPROTOOPT, EOPNOTSUPP, EPERM, EPROTO];
    words.contains(&errno)
}
