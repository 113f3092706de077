//! The ICMP errors that Linux keeps for a socket with `IP_RECVERR`.

pub(crate) mod extensions;

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::libc::{sock_extended_err, sockaddr_in, sockaddr_in6};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use probeops_shared::tools::network::{Family, IcmpMessage, MplsLabel};

use crate::net::arrival;

/// How much of the packet that an error is about is of interest: all that an IPv4 router quotes (RFC 1812, 4.3.2.3), with what it appends.
const PACKET_BYTES: usize = 768;
/// `SO_EE_ORIGIN_LOCAL`, `SO_EE_ORIGIN_ICMP` and `SO_EE_ORIGIN_ICMP6` (linux/errqueue.h).
const ORIGIN_LOCAL: u8 = 1;
const ORIGIN_ICMP: u8 = 2;
const ORIGIN_ICMP6: u8 = 3;

/// An entry of the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct QueuedError {
    /// What came over the wire; `None` when this machine itself is the origin.
    pub(crate) icmp: Option<IcmpMessage>,
    /// What this machine itself sends at the most, in bytes, where that was too little for the packet.
    pub(crate) own_mtu_bytes: Option<u32>,
    /// The labels that the packet bore where it died, if its router says so.
    pub(crate) mpls: Vec<MplsLabel>,
    /// When it arrived; the kernel's time if the socket has `SO_TIMESTAMPNS`.
    pub(crate) at: Instant,
    /// The beginning of the packet that it is about: from the header of ICMP, from the data of UDP.
    pub(crate) packet: Vec<u8>,
}

/// Makes the system keep ICMP errors for this socket.
pub(crate) fn enable(socket: &impl AsFd, family: Family) -> io::Result<()> {
    match family {
        Family::V6 => setsockopt(socket, sockopt::Ipv6RecvErr, &true)?,
        Family::V4 => setsockopt(socket, sockopt::Ipv4RecvErr, &true)?,
    }
    Ok(())
}

/// Takes the next error out of the queue; `None` when it is empty.
pub(crate) fn take(socket: &impl AsRawFd) -> io::Result<Option<QueuedError>> {
    let mut packet = [0; PACKET_BYTES];
    // Room for what any of our sockets asks for: stamp, time to live, the error and its sender.
    let mut control = nix::cmsg_space!(TimeSpec, i32, sock_extended_err, sockaddr_in6);
    let mut slices = [IoSliceMut::new(&mut packet)];
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let (length, found, stamp) = match recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags) {
        Ok(message) => {
            let (mut found, mut stamp) = (None, None);
            for entry in message.cmsgs()? {
                match &entry {
                    ControlMessageOwned::ScmTimestampns(time) => stamp = Some(*time),
                    other => found = found.or_else(|| read(other)),
                }
            }
            (message.bytes, found, stamp)
        }
        Err(Errno::EAGAIN) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let packet = packet.get(..length).unwrap_or_default().to_vec();
    let (icmp, own_mtu_bytes) = found.unwrap_or_default();
    Ok(Some(QueuedError { icmp, own_mtu_bytes, mpls: extensions::labels(&packet), at: arrival::at(stamp), packet }))
}

/// The ICMP message of an entry, or the MTU that this machine itself tells.
fn read(entry: &ControlMessageOwned) -> Option<(Option<IcmpMessage>, Option<u32>)> {
    let (family, error, from) = match entry {
        ControlMessageOwned::Ipv4RecvErr(error, from) => (Family::V4, error, from.as_ref().map(v4)),
        ControlMessageOwned::Ipv6RecvErr(error, from) => (Family::V6, error, from.as_ref().map(v6)),
        _ => return None,
    };
    let mtu_bytes = Some(error.ee_info).filter(|mtu_bytes| *mtu_bytes > 0);
    match (family, error.ee_origin) {
        (_, ORIGIN_LOCAL) => Some((None, mtu_bytes)),
        (Family::V4, ORIGIN_ICMP) | (Family::V6, ORIGIN_ICMP6) => {
            let message = IcmpMessage::new(family, error.ee_type, error.ee_code, from);
            let message = match mtu_bytes {
                Some(mtu_bytes) if message.is_too_big(family) => message.with_mtu(mtu_bytes),
                _ => message,
            };
            Some((Some(message), None))
        }
        _ => None,
    }
}

fn v4(address: &sockaddr_in) -> IpAddr {
    Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)).into()
}

fn v6(address: &sockaddr_in6) -> IpAddr {
    Ipv6Addr::from(address.sin6_addr.s6_addr).into()
}
