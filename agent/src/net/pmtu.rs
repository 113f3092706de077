//! Packets that must not be fragmented, and what becomes of each.
//!
//! The socket ignores what the system remembers of the path (`IP_PMTUDISC_PROBE`): remembered, a limit would be told without being measured.
//! Neither kind of socket needs a privilege: echo requests go over a datagram ICMP socket, UDP datagrams over an ordinary one.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::{sock_extended_err, sockaddr_in6};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvfrom, recvmsg};
use probeops_shared::tools::network::{Family, IcmpMessage};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::time::{Instant as Deadline, timeout_at};

use crate::net::{error_queue, words};

/// The headers before what a probe carries: IP, and eight bytes of ICMP or UDP.
const HEADERS_V4_BYTES: usize = 20 + PROBE_HEADER_BYTES;
const HEADERS_V6_BYTES: usize = 40 + PROBE_HEADER_BYTES;
const PROBE_HEADER_BYTES: usize = 8;
/// An error about an earlier packet can surface at the next send, which then has not happened; a second one of the kind is real.
const SEND_ATTEMPTS: usize = 3;
/// `SO_EE_ORIGIN_LOCAL`, `SO_EE_ORIGIN_ICMP` and `SO_EE_ORIGIN_ICMP6` (linux/errqueue.h).
const ORIGIN_LOCAL: u8 = 1;
const ORIGIN_ICMP: u8 = 2;
const ORIGIN_ICMP6: u8 = 3;
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
    TooBig { icmp: IcmpMessage, mtu: Option<u16>, took: Duration },
    /// The node's own interface carries no more than this.
    NotSent { mtu: u16 },
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
}

/// What the socket has for us.
enum Heard {
    Answer { from: IpAddr, start: [u8; PROBE_HEADER_BYTES] },
    Error(Queued),
}

/// An entry of the error queue.
struct Queued {
    /// What came over the wire; `None` when this system itself is the origin.
    icmp: Option<IcmpMessage>,
    /// The MTU, where it is about a packet too big.
    mtu: Option<u16>,
    /// The beginning of the packet that it is about.
    packet: Vec<u8>,
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
        Ok(Self { socket, to, carrier, number: 0 })
    }

    /// Sends a packet of `size` bytes, headers included, and waits for what becomes of it. An error is one of this machine.
    pub(crate) async fn probe(&mut self, size: u16, patience: Duration) -> io::Result<Fate> {
        self.number = self.number.wrapping_add(1);
        while take(&self.socket)?.is_some() {}
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
                    while let Some(queued) = take(&self.socket)? {
                        if let Queued { icmp: None, mtu: Some(mtu), .. } = queued {
                            return Ok(Some(Fate::NotSent { mtu }));
                        }
                    }
                }
                // The system knows no way or forbids it, or an error about an earlier probe came just now.
                Some(errno) if is_of_the_path(errno) => while take(&self.socket)?.is_some() {},
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
            if let Some(queued) = take(&self.socket)? {
                return Ok(Heard::Error(queued));
            }
            let mut start = [0; PROBE_HEADER_BYTES];
            match recvfrom::<SockaddrStorage>(self.socket.as_raw_fd(), &mut start) {
                Ok((_, from)) => {
                    let from = from.as_ref().and_then(address).ok_or(io::ErrorKind::InvalidData)?;
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
            Heard::Error(Queued { icmp: None, .. }) => None,
            Heard::Error(Queued { icmp: Some(icmp), mtu, packet }) => {
                // An old router quotes so little that the number is missing.
                let [.., high, low] = packet.get(..PROBE_HEADER_BYTES).unwrap_or_default() else {
                    return Some(self.fate_of(icmp, mtu, took));
                };
                (u16::from_be_bytes([*high, *low]) == self.number).then(|| self.fate_of(icmp, mtu, took))
            }
        }
    }

    fn fate_of(&self, icmp: IcmpMessage, mtu: Option<u16>, took: Duration) -> Fate {
        let family = Family::of(self.to.ip());
        if is_too_big(family, &icmp) {
            return Fate::TooBig { icmp, mtu, took };
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

/// *Fragmentation needed* (RFC 792) or *packet too big* (RFC 4443).
fn is_too_big(family: Family, icmp: &IcmpMessage) -> bool {
    if family == Family::V6 { icmp.kind == 2 } else { (icmp.kind, icmp.code) == (3, 4) }
}

/// Takes the next error out of the queue; `None` when it is empty.
fn take(socket: &impl AsRawFd) -> io::Result<Option<Queued>> {
    let mut packet = [0; PROBE_HEADER_BYTES];
    let mut control = nix::cmsg_space!(sock_extended_err, sockaddr_in6);
    let mut slices = [IoSliceMut::new(&mut packet)];
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let (length, found) = match recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags) {
        Ok(message) => (message.bytes, message.cmsgs()?.find_map(|entry| read(&entry))),
        Err(Errno::EAGAIN) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let (icmp, mtu) = found.unwrap_or_default();
    Ok(Some(Queued { icmp, mtu, packet: packet.into_iter().take(length).collect() }))
}

/// The ICMP message of an entry, if that is what it is, and the MTU that it names.
fn read(entry: &ControlMessageOwned) -> Option<(Option<IcmpMessage>, Option<u16>)> {
    let (family, error, from) = match entry {
        ControlMessageOwned::Ipv4RecvErr(error, from) => {
            (Family::V4, error, from.as_ref().map(|from| IpAddr::from(Ipv4Addr::from(u32::from_be(from.sin_addr.s_addr)))))
        }
        ControlMessageOwned::Ipv6RecvErr(error, from) => {
            (Family::V6, error, from.as_ref().map(|from| IpAddr::from(Ipv6Addr::from(from.sin6_addr.s6_addr))))
        }
        _ => return None,
    };
    let mtu = u16::try_from(error.ee_info).ok().filter(|mtu| *mtu > 0);
    match error.ee_origin {
        ORIGIN_LOCAL => Some((None, mtu)),
        ORIGIN_ICMP | ORIGIN_ICMP6 => {
            let icmp = IcmpMessage::new(family, error.ee_type, error.ee_code, from);
            let mtu = mtu.filter(|_| is_too_big(family, &icmp));
            Some((Some(icmp), mtu))
        }
        _ => None,
    }
}

fn address(of: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = of.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| of.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}
