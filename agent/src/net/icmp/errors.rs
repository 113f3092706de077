//! ICMP errors on a datagram socket: read from the system's queue, given to whoever waits for the packet they are about.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use probeops_shared::tools::network::{Family, IcmpMessage};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use crate::net::error_queue;

/// The watch on a socket's errors; it ends with this value.
#[derive(Debug)]
pub(super) struct Errors {
    waiting: Arc<Waiting>,
    _reader: AbortOnDropHandle<()>,
}

/// Who waits, by sequence number. As many as there are packets under way.
#[derive(Debug, Default)]
struct Waiting(Mutex<HashMap<u16, oneshot::Sender<IcmpMessage>>>);

/// Stops waiting when it is dropped.
struct Turn<'a> {
    waiting: &'a Waiting,
    number: u16,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        drop(self.waiting.take(self.number));
    }
}

impl Waiting {
    fn take(&self, number: u16) -> Option<oneshot::Sender<IcmpMessage>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&number)
    }
}

impl Errors {
    /// Makes the system queue errors, and reads them.
    pub(super) fn watch(socket: OwnedFd, family: Family) -> io::Result<Self> {
        error_queue::enable(&socket, family)?;
        // Only for its readiness: to the runtime every datagram socket is one of UDP.
        let socket = UdpSocket::from_std(socket.into())?;
        let waiting = Arc::new(Waiting::default());
        let reader = AbortOnDropHandle::new(tokio::spawn(read(socket, Arc::clone(&waiting))));
        Ok(Self { waiting, _reader: reader })
    }

    /// Waits for an error about this packet; begins to when first polled.
    pub(super) async fn about(&self, number: u16) -> IcmpMessage {
        let (tell, told) = oneshot::channel();
        self.waiting.0.lock().unwrap_or_else(PoisonError::into_inner).insert(number, tell);
        let _turn = Turn { waiting: &self.waiting, number };
        match told.await {
            Ok(message) => message,
            // The reader has gone: no error will come.
            Err(_) => std::future::pending().await,
        }
    }
}

async fn read(socket: UdpSocket, waiting: Arc<Waiting>) {
    let next = || error_queue::take(&socket).and_then(|error| error.ok_or_else(|| io::ErrorKind::WouldBlock.into()));
    loop {
        let error = match socket.async_io(Interest::ERROR, next).await {
            Ok(error) => error,
            Err(error) => {
                tracing::warn!(%error, "could not read the ICMP errors of a socket; they will look like silence");
                return;
            }
        };
        // The queued packet begins with the echo header: type, code, checksum, identifier, sequence number.
        let [.., high, low] = error.packet.as_slice() else { continue };
        if let (Some(message), Some(tell)) = (error.icmp, waiting.take(u16::from_be_bytes([*high, *low]))) {
            // Whoever waited may just have gone.
            drop(tell.send(message));
        }
    }
}
