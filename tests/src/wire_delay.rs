//! A wire that takes its time: what comes in at one device leaves at the other a while later, for kernels without `netem`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, socket};

/// The largest frame, with room for what the sender leaves to its device to cut.
const FRAME_BYTES_MAX: usize = 65_536 + 64;

/// How often what has come in is looked for. To be woken by it would cost its sender more than to send it, which no wire does.
const LOOK_EVERY: Duration = Duration::from_micros(200);

/// Carries frames between two devices of this network namespace for ever.
pub fn carry(left: &str, right: &str, delay: Duration) -> io::Result<()> {
    let (left, right) = (open(left)?, open(right)?);
    thread::scope(|scope| {
        for (from, to) in [(&left, &right), (&right, &left)] {
            let (tell, heard) = channel();
            scope.spawn(move || take_in(from, delay, &tell));
            scope.spawn(move || let_out(to, &heard));
        }
    });
    Err(io::Error::other("a device is gone"))
}

fn open(device: &str) -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    let mut addresses = getifaddrs()?.filter(|entry| entry.interface_name == device).filter_map(|entry| entry.address);
    let address = addresses.find_map(|address| address.as_link_addr().copied());
    bind(socket.as_raw_fd(), &address.ok_or_else(|| io::Error::other(format!("there is no device {device}")))?)?;
    Ok(socket)
}

fn take_in(from: &OwnedFd, delay: Duration, tell: &Sender<(Instant, Vec<u8>)>) {
    let mut frame = vec![0; FRAME_BYTES_MAX];
    loop {
        match recv(from.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => {
                let due = Instant::now() + delay;
                if tell.send((due, frame.get(..length).unwrap_or_default().to_vec())).is_err() {
                    return;
                }
            }
            Err(Errno::EAGAIN) => thread::sleep(LOOK_EVERY),
            Err(_) => return,
        }
    }
}

fn let_out(to: &OwnedFd, heard: &Receiver<(Instant, Vec<u8>)>) {
    while let Ok((due, frame)) = heard.recv() {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        // What the device has no room for is lost, as on any wire.
        let _lost = send(to.as_raw_fd(), &frame, MsgFlags::empty()).is_err();
    }
}
