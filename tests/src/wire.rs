//! A stretch of network that can be cut without either end being told.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Forwards connections to another address, until cut.
#[derive(Debug)]
pub struct Wire {
    address: SocketAddr,
    cuts: Arc<AtomicU64>,
    broken: Arc<AtomicBool>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl Wire {
    /// A wire to `to`.
    pub fn to(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let cuts = Arc::new(AtomicU64::new(0));
        let (broken, connections) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (counted, closed, made) = (Arc::clone(&cuts), Arc::clone(&broken), Arc::clone(&connections));
        // Ends with the test's process; every connection holds two threads.
        std::thread::spawn(move || {
            for here in listener.incoming().flatten().filter(|_| !closed.load(Ordering::SeqCst)) {
                let Ok(there) = TcpStream::connect(to) else { continue };
                made.lock().unwrap_or_else(PoisonError::into_inner).push(here.try_clone().expect("a socket"));
                let made_at = counted.load(Ordering::SeqCst);
                for (from, to) in [(here.try_clone(), there.try_clone()), (Ok(there), Ok(here))] {
                    let (from, to) = (from.expect("a socket"), to.expect("a socket"));
                    let counted = Arc::clone(&counted);
                    std::thread::spawn(move || forward(from, to, || counted.load(Ordering::SeqCst) == made_at));
                }
            }
        });
        Self { address, cuts, broken, connections }
    }

    /// Where it begins.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on nothing passes over the connections there are: no bytes, no end. New connections pass.
    pub fn cut(&self) {
        self.cuts.fetch_add(1, Ordering::SeqCst);
    }

    /// Ends the connections there are, with a word to both ends, and makes no new ones until mended.
    pub fn break_off(&self) {
        self.broken.store(true, Ordering::SeqCst);
        for connection in self.connections.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // It may have ended already.
            drop(connection.shutdown(std::net::Shutdown::Both));
        }
    }

    /// Makes new connections again.
    pub fn mend(&self) {
        self.broken.store(false, Ordering::SeqCst);
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, whole: impl Fn() -> bool) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if whole() && to.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
    if whole() {
        // Either end may be gone already.
        drop(to.shutdown(std::net::Shutdown::Both));
    } else {
        // The other end must not see this one close.
        std::mem::forget(to);
    }
}
