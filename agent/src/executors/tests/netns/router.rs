//! A router that tells of a dropped IPv4 packet as a test tells it to, in place of its own system.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::path::Path;

/// How often it looks whether it is to end.
const TURN: Duration = Duration::from_millis(20);
/// Marks what it sends, which its own system must not.
const MARK: u32 = 7;
/// `ETH_P_IP` (`linux/if_ether.h`).
const IPV4: u16 = 0x0800;

/// Ends when it is dropped.
pub(super) struct Router {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Router {
    /// Takes the place of a router of the path. `tell` makes of the packet that is dropped what follows the first four bytes of *time exceeded*.
    pub(super) fn start(path: &Path, place: usize, tell: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> Self {
        path.filter(place, "output", &format!("icmp type time-exceeded meta mark != {MARK} drop"));
        let (seen, told) = path.at(place, || {
            let seen = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(i32::from(IPV4.to_be())))).unwrap();
            let told = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).unwrap();
            told.set_mark(MARK).unwrap();
            (seen, told)
        });
        seen.set_read_timeout(Some(TURN)).unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&over);
        let thread = std::thread::spawn(move || run(seen, &told, &until, tell));
        Self { over, thread: Some(thread) }
    }
}

fn run(mut seen: Socket, told: &Socket, until: &AtomicBool, tell: impl Fn(&[u8]) -> Vec<u8>) {
    let mut packet = [0; 2048];
    while !until.load(Ordering::Relaxed) {
        // The time to live is at the eighth byte, the address it is from at the twelfth. What the router itself sends has a longer one.
        let Ok(length) = seen.read(&mut packet) else { continue };
        if packet[8] != 1 {
            continue;
        }
        let mut message = vec![11, 0, 0, 0];
        message.extend(tell(&packet[..length]));
        let checksum = checksum(&message);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        let to: [u8; 4] = packet[12..16].try_into().unwrap();
        told.send_to(&message, &SocketAddr::from((to, 0)).into()).unwrap();
    }
}

/// A label stack behind a packet that is quoted as far as 128 bytes (RFC 4884, RFC 4950).
pub(super) fn with_labels(dropped: &[u8]) -> Vec<u8> {
    let mut quoted = dropped.to_vec();
    quoted.resize(128, 0);
    let mut extensions = vec![0x20, 0, 0, 0, 0, 12, 1, 1, 0x05, 0xdc, 0x12, 1, 0x06, 0x40, 0x01, 2];
    let checksum = checksum(&extensions);
    extensions[2..4].copy_from_slice(&checksum.to_be_bytes());
    [vec![0, 32, 0, 0], quoted, extensions].concat()
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])));
    let sum = words.sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap()
}

impl Drop for Router {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
