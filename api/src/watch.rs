//! A bucket, held in memory by watching it; the watch is built anew whenever it ends, as it does at a reconnect.

use std::time::Duration;

use async_nats::jetstream::kv::{Entry, Operation, Store};
use futures_util::StreamExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::broker::LinkState;

/// How long to wait before building a watch again that could not be built.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// What happened to a key.
#[derive(Debug)]
pub(crate) enum Change {
    /// It has this value.
    Put(Entry),
    /// It is gone.
    Gone(Entry),
    /// Everything is about to be told again, also what has gone meanwhile: the mark of its end is the last entry of its key.
    Restart,
}

impl Change {
    /// Whether everything that was there has been told with it.
    pub(crate) fn is_last(&self) -> bool {
        match self {
            Self::Put(entry) | Self::Gone(entry) => entry.seen_current,
            Self::Restart => false,
        }
    }
}

/// Tells `apply` of every key of the bucket and of every change, until told to stop.
pub(crate) async fn watch(bucket: Store, mut link: watch::Receiver<LinkState>, stop: CancellationToken, apply: impl Fn(Change)) {
    while !stop.is_cancelled() {
        let epoch = link.borrow_and_update().epoch;
        let mut entries = match bucket.watch_with_history(">").await {
            Ok(entries) => entries,
            Err(error) => {
                tracing::warn!(bucket = bucket.name, %error, "a bucket cannot be watched; trying again");
                tokio::select! {
                    () = tokio::time::sleep(RETRY_AFTER) => continue,
                    () = stop.cancelled() => return,
                }
            }
        };
        apply(Change::Restart);
        loop {
            let entry = tokio::select! {
                entry = entries.next() => entry,
                changed = link.changed() => {
                    // Watches do not survive every kind of reconnect: a new connection gets a new watch.
                    if changed.is_err() || link.borrow().epoch != epoch {
                        break;
                    }
                    continue;
                }
                () = stop.cancelled() => return,
            };
            match entry {
                Some(Ok(entry)) if entry.operation == Operation::Put => apply(Change::Put(entry)),
                Some(Ok(entry)) => apply(Change::Gone(entry)),
                Some(Err(error)) => {
                    tracing::warn!(bucket = bucket.name, %error, "the watch of a bucket stumbled; building it anew");
                    break;
                }
                None => break,
            }
        }
    }
}
