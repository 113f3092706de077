//! An owned duplicate of a socket that a crate shows only as a number.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rustix::net::{AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType};

/// Duplicates the socket `number`, which must be open. The options of the two are one; closing them is not.
///
/// Only `unsafe` code may claim that a number is an open file. Sending it to ourselves asks the system instead, which duplicates it on the way.
pub(super) fn of(number: RawFd) -> io::Result<OwnedFd> {
    let (here, there) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    sendmsg::<()>(here.as_raw_fd(), &[IoSlice::new(&[0])], &[ControlMessage::ScmRights(&[number])], MsgFlags::empty(), None)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut received = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(&there, &mut [IoSliceMut::new(&mut [0])], &mut received, RecvFlags::CMSG_CLOEXEC)?;
    let duplicate = received.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    duplicate.ok_or_else(|| io::Error::other("the system did not duplicate the socket"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_duplicate_is_the_same_socket_under_another_number() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let duplicate = of(socket.as_raw_fd()).unwrap();
        assert_ne!(duplicate.as_raw_fd(), socket.as_raw_fd());
        let address = socket.local_addr().unwrap();
        drop(socket);
        assert_eq!(std::net::UdpSocket::from(duplicate).local_addr().unwrap(), address);
        assert!(of(-1).is_err());
    }
}
