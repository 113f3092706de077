//! The thread on which surge-ping receives.

use std::io;
use std::sync::OnceLock;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// A runtime on a thread of its own, started when it is first needed and ended with this value.
///
/// surge-ping takes the time of a reply when the task that reads it runs. On a thread that does nothing else that is late by microseconds;
/// among busy tasks a reply can seem to have come milliseconds late.
#[derive(Debug, Default)]
pub(super) struct Stopwatch(OnceLock<Running>);

#[derive(Debug)]
struct Running {
    handle: Handle,
    /// The thread ends when this is dropped.
    _until: oneshot::Sender<()>,
}

impl Stopwatch {
    /// The thread's runtime.
    pub(super) fn thread(&self) -> io::Result<Handle> {
        if let Some(running) = self.0.get() {
            return Ok(running.handle.clone());
        }
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (until, ended) = oneshot::channel::<()>();
        std::thread::Builder::new().name("icmp".to_owned()).spawn(move || drop(runtime.block_on(ended)))?;
        // If another caller was faster, this one's thread ends at once.
        Ok(self.0.get_or_init(|| Running { handle, _until: until }).handle.clone())
    }
}
