//! The ICMP errors that Linux keeps for a socket with `IP_RECVERR`.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc::{sock_extended_err, sockaddr_in, sockaddr_in6};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use probeops_shared::tools::network::{Family, IcmpMessage};

/// How much of the packet that an error is about is of interest: an ICMP echo header.
const PACKET_BYTES: usize = 8;
/// `SO_EE_ORIGIN_ICMP` and `SO_EE_ORIGIN_ICMP6` (linux/errqueue.h).
const ORIGIN_ICMP: u8 = 2;
const ORIGIN_ICMP6: u8 = 3;

/// An entry of the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct QueuedError {
    /// What came over the wire; `None` when this machine itself is the origin.
    pub(crate) icmp: Option<IcmpMessage>,
    /// The beginning of the packet that it is about.
    pub(crate) packet: Vec<u8>,
}

/// Makes the system keep ICMP errors for this socket.
pub(crate) fn enable(socket: &impl AsFd, family: Family) -> io::Result<()> {
    match family {
        Family::V6 => setsockopt(socket, sockopt::Ipv6RecvErr, &true)?,
        Family::V4 | Family::Any => setsockopt(socket, sockopt::Ipv4RecvErr, &true)?,
    }
    Ok(())
}

/// Takes the next error out of the queue; `None` when it is empty.
pub(crate) fn take(socket: &impl AsRawFd) -> io::Result<Option<QueuedError>> {
    let mut packet = [0; PACKET_BYTES];
    let mut control = nix::cmsg_space!(sock_extended_err, sockaddr_in6);
    let mut slices = [IoSliceMut::new(&mut packet)];
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let (length, icmp) = match recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags) {
        Ok(message) => (message.bytes, message.cmsgs()?.find_map(|entry| icmp(&entry))),
        Err(Errno::EAGAIN) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    Ok(Some(QueuedError { icmp, packet: packet.into_iter().take(length).collect() }))
}

fn icmp(entry: &ControlMessageOwned) -> Option<IcmpMessage> {
    match entry {
        ControlMessageOwned::Ipv4RecvErr(error, from) if error.ee_origin == ORIGIN_ICMP => {
            Some(IcmpMessage::new(Family::V4, error.ee_type, error.ee_code, from.as_ref().map(v4)))
        }
        ControlMessageOwned::Ipv6RecvErr(error, from) if error.ee_origin == ORIGIN_ICMP6 => {
            Some(IcmpMessage::new(Family::V6, error.ee_type, error.ee_code, from.as_ref().map(v6)))
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
