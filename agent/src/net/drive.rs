//! HTTP over a connection that is there already, inside the future of its user: the library spawns nothing, so nothing outlives it.

use std::error::Error as _;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What HTTP/2 wants to be run beside the connection.
#[derive(Clone, Default)]
pub(crate) struct Tasks(Arc<Mutex<Vec<Task>>>);

impl Tasks {
    fn take(&self) -> Vec<Task> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tasks")
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Box::pin(task));
    }
}

/// Runs the connection and its tasks until the exchange is over.
pub(crate) async fn drive<T>(
    mut connection: Pin<&mut impl Future<Output = hyper::Result<()>>>,
    tasks: &Tasks,
    mut exchange: Pin<&mut impl Future<Output = T>>,
) -> T {
    let (mut connected, mut running) = (true, FuturesUnordered::new());
    poll_fn(|context| {
        loop {
            if let Poll::Ready(result) = exchange.as_mut().poll(context) {
                return Poll::Ready(result);
            }
            // When the connection ends, the exchange hears of it by itself; what was received is still read.
            let ended = connected && connection.as_mut().poll(context).is_ready();
            connected &= !ended;
            let new = tasks.take();
            let more = ended || !new.is_empty();
            running.extend(new);
            while let Poll::Ready(Some(())) = running.poll_next_unpin(context) {}
            if !more {
                return Poll::Pending;
            }
        }
    })
    .await
}

/// An error with its cause, which hyper leaves out.
pub(crate) fn words(error: &hyper::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}
