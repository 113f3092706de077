//! A TCP server that accepts and says nothing of itself: a run of `tcp` that listens for its banner lasts as long as a test wants.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};

use serde_json::{Value, json};

use crate::process::HANG;

/// Holds every connection open until somebody takes it.
#[derive(Debug)]
pub struct Silent {
    port: u16,
    connections: Receiver<TcpStream>,
}

impl Silent {
    /// One on a port of its own; it ends with the test's process.
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let (connected, connections) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if connected.send(stream).is_err() {
                    return;
                }
            }
        });
        Self { port, connections }
    }

    /// What a run of `tcp` to it is asked, that listens for a banner so long.
    pub fn parameters(&self, wait_ms: u64) -> Value {
        json!({"port": self.port, "banner": true, "banner_wait_ms": wait_ms})
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The body of a job that is such a run.
    pub fn job(&self, request_id: &str, wait_ms: u64) -> Value {
        json!({"request_id": request_id, "tool": "tcp", "target": "127.0.0.1", "parameters": self.parameters(wait_ms)})
    }

    /// The next connection to it.
    pub fn connected(&self) -> TcpStream {
        self.connections.recv_timeout(HANG).expect("a connection within a minute")
    }
}
