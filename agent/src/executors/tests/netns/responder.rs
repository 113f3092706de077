//! A host that answers echo requests as a test tells it to, beside its own system or in its place.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::network::Network;

/// How often it looks whether it is to end, and what is due.
const TURN: Duration = Duration::from_millis(1);

/// When to send, to whom, what; the earliest first.
type Due = Reverse<(Instant, [u8; 4], Vec<u8>)>;

/// Ends when it is dropped.
pub(super) struct Responder {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Responder {
    /// Starts one on the network's host. `answers` makes of the right reply those that are sent, and how much later.
    pub(super) fn start(network: &Network, answers: impl Fn(Vec<u8>) -> Vec<(Duration, Vec<u8>)> + Send + 'static) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&over);
        let socket = network.in_host(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).unwrap());
        socket.set_read_timeout(Some(TURN)).unwrap();
        let thread = std::thread::spawn(move || respond(socket, &until, answers));
        Self { over, thread: Some(thread) }
    }
}

fn respond(mut socket: Socket, until: &AtomicBool, answers: impl Fn(Vec<u8>) -> Vec<(Duration, Vec<u8>)>) {
    let mut due: BinaryHeap<Due> = BinaryHeap::new();
    let mut packet = [0; 2048];
    while !until.load(Ordering::Relaxed) {
        // With its IPv4 header, which has no options; the address it is from comes at the twelfth byte.
        if let Ok(length) = socket.read(&mut packet)
            && packet[20] == 8
        {
            let mut reply = packet[20..length].to_vec();
            reply[0] = 0;
            // The type was 8 and is 0: the checksum grows by that.
            let (sum, carry) = u16::from_be_bytes([reply[2], reply[3]]).overflowing_add(0x0800);
            reply[2..4].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
            let from = packet[12..16].try_into().unwrap();
            due.extend(answers(reply).into_iter().map(|(delay, reply)| Reverse((Instant::now() + delay, from, reply))));
        }
        while due.peek().is_some_and(|Reverse((at, _, _))| *at <= Instant::now()) {
            let Some(Reverse((_, to, reply))) = due.pop() else { break };
            socket.send_to(&reply, &SocketAddr::from((to, 0)).into()).unwrap();
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
