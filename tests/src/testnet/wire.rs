//! Links with delay, jitter and loss: netem(8) for kernels that have none, and with the same behaviour on all of them.
//!
//! Each link is a TUN device in each of two namespaces, and one thread carries the packets of all links from one to the other.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::prctl::set_timerslack;
use nix::sys::time::TimeSpec;
use rustix::process::setpriority_process;
use tappers::{Interface, Tun};

use super::place::Place;

/// How often it looks whether it is to end.
const TURN: Duration = Duration::from_millis(100);
/// How many packets of one device are read before the others have their turn.
const READS_AT_ONCE: usize = 64;
/// The largest packet.
const PACKET_BYTES_MAX: usize = 65_536;
/// Before everybody else: a wire is not late because a machine is busy.
const PRIORITY: i32 = -20;

/// What happens to each packet of a link, in each direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Impairment {
    /// How long it is under way.
    pub delay: Duration,
    /// How much longer at most, each time anew.
    pub jitter: Duration,
    /// How likely it is lost: 0.2 is one of five.
    pub loss: f64,
}

/// What a link does, and what it has done.
#[derive(Debug, Default)]
struct State {
    impairment: Impairment,
    lost: u64,
}

/// A link, as long as its wire.
#[derive(Clone, Debug)]
pub struct Link(Arc<Mutex<State>>);

impl Link {
    /// Changes what happens to packets that enter it from now on.
    pub fn impair(&self, impairment: Impairment) {
        self.with(|state| state.impairment = impairment);
    }

    /// How many packets it has lost.
    pub fn lost(&self) -> u64 {
        self.with(|state| state.lost)
    }

    /// When a packet that enters now leaves; nothing, if it is lost.
    fn carry(&self, now: Instant) -> Option<Instant> {
        self.with(|state| {
            let Impairment { delay, jitter, loss } = state.impairment;
            if loss > 0.0 && rand::random_bool(loss) {
                state.lost += 1;
                return None;
            }
            Some(now + delay + jitter.mul_f64(rand::random()))
        })
    }

    fn with<T>(&self, run: impl FnOnce(&mut State) -> T) -> T {
        run(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One end of a link: the device, whose packets leave at the port of that number.
struct Port {
    device: Tun,
    peer: usize,
    link: Link,
}

/// A packet under way: when it arrives, its number (they keep their order), at which port, the bytes. The earliest comes first.
type Due = Reverse<(Instant, u64, usize, Vec<u8>)>;

/// All links of a network; they go with it.
#[derive(Debug)]
pub(super) struct Wire {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Links that are made, and carry nothing yet.
#[derive(Default)]
pub(super) struct Laying {
    ports: Vec<Port>,
}

impl Laying {
    /// Makes a link between a device of one place and one of another.
    pub(super) fn link(&mut self, ends: [(&Place, &str); 2], impairment: Impairment) -> Link {
        let link = Link(Arc::new(Mutex::new(State { impairment, lost: 0 })));
        let first = self.ports.len();
        for ((place, name), peer) in ends.into_iter().zip([first + 1, first]) {
            let made = place.within(|| {
                let mut device = Tun::new_named(Interface::new(name)?)?;
                device.set_nonblocking(true)?;
                Ok::<_, std::io::Error>(device)
            });
            let device = made.unwrap_or_else(|error| panic!("{place}, {name}: {error}; the kernel needs /dev/net/tun"));
            self.ports.push(Port { device, peer, link: link.clone() });
        }
        link
    }

    /// Begins to carry.
    pub(super) fn start(self) -> Wire {
        let over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&over);
        let thread = std::thread::spawn(move || carry(&self.ports, &until));
        Wire { over, thread: Some(thread) }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

fn carry(ports: &[Port], until: &AtomicBool) {
    // Of this thread alone, and only to be more exact.
    set_timerslack(1).expect("a setting of our own");
    setpriority_process(None, PRIORITY).expect("a setting that root may change");
    let mut under_way: BinaryHeap<Due> = BinaryHeap::new();
    let mut entered = 0;
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    let mut readable: Vec<PollFd<'_>> = ports.iter().map(|port| PollFd::new(port.device.as_fd(), PollFlags::POLLIN)).collect();
    while !until.load(Ordering::Relaxed) {
        while under_way.peek().is_some_and(|Reverse((at, ..))| *at <= Instant::now()) {
            let Some(Reverse((_, _, port, packet))) = under_way.pop() else { break };
            // A device that is down takes nothing, like an interface without a cable.
            drop(ports[port].device.send(&packet));
        }
        let wait = under_way.peek().map_or(TURN, |Reverse((at, ..))| at.saturating_duration_since(Instant::now()).min(TURN));
        if ppoll(&mut readable, Some(TimeSpec::from_duration(wait)), None).is_err() {
            continue;
        }
        for (port, _) in ports.iter().zip(&readable).filter(|(_, readable)| readable.any() == Some(true)) {
            for _ in 0..READS_AT_ONCE {
                let Ok(length) = port.device.recv(&mut buffer) else { break };
                if let Some(at) = port.link.carry(Instant::now()) {
                    entered += 1;
                    under_way.push(Reverse((at, entered, port.peer, buffer[..length].to_vec())));
                }
            }
        }
    }
}
