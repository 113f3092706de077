//! The requests of one run and what comes back on them.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::{EchoSocket, Heard, Request};

/// How many answers wait for a run that is busy: more than the packets it can have under way.
const HEARD_MAX: usize = 256;
/// How long to wait, and how often, where the system has no room for a packet.
const ROOM_AFTER: Duration = Duration::from_millis(1);
const ROOM_WAITS_MAX: usize = 100;

/// What a run has sent. It hears of all its requests, duplicates and late replies too, until it forgets them or is dropped.
#[derive(Debug)]
pub(crate) struct Conversation {
    tell: mpsc::Sender<Heard>,
    heard: mpsc::Receiver<Heard>,
    requests: HashMap<u64, (Arc<dyn EchoSocket>, u16)>,
}

impl Conversation {
    /// Nothing sent yet.
    pub(crate) fn new() -> Self {
        let (tell, heard) = mpsc::channel(HEARD_MAX);
        Self { tell, heard, requests: HashMap::new() }
    }

    /// Sends a request under a number of the caller's own; when it left.
    pub(crate) async fn send(&mut self, socket: &Arc<dyn EchoSocket>, tag: u64, request: &Request) -> io::Result<Instant> {
        let mut waits = 0;
        loop {
            match socket.send(request, tag, &self.tell) {
                Ok((number, at)) => {
                    self.requests.insert(tag, (Arc::clone(socket), number));
                    return Ok(at);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && waits < ROOM_WAITS_MAX => waits += 1,
                Err(error) => return Err(error),
            }
            tokio::time::sleep(ROOM_AFTER).await;
        }
    }

    /// The next answer to any of them; waits for ever where none comes.
    pub(crate) async fn next(&mut self) -> Heard {
        match self.heard.recv().await {
            Some(heard) => heard,
            // Not while we hold a sender ourselves.
            None => std::future::pending().await,
        }
    }

    /// Waits no longer for answers to this one.
    pub(crate) fn forget(&mut self, tag: u64) {
        if let Some((socket, number)) = self.requests.remove(&tag) {
            socket.forget(number);
        }
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        for (socket, number) in self.requests.values() {
            socket.forget(*number);
        }
    }
}
