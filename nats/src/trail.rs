//! Puts into the audit trail what a part of ours has done or seen, one after the other, and tries for a while where the broker does not keep it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::jetstream::message::PublishMessage;
use async_nats::{Client, jetstream};
use probeops_shared::audit::chain::Chain;
use probeops_shared::audit::{BATCH_MAX, Record, Verdict};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// How many records wait to be kept by the broker; more are lost, and counted.
const WAITING_MAX: usize = 4096;
/// The most bytes of one message.
const BATCH_BYTES_MAX: usize = 256 * 1024;
/// How often a batch is tried.
const TRIES_MAX: u32 = 20;
/// The wait between two tries.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Longer texts are cut: whoever is written about may choose them, such as the subject of a violation.
const TEXT_CHARS_MAX: usize = 512;

/// Writes a chain of its own over one connection.
#[derive(Debug)]
pub(crate) struct Writer {
    pen: Pen,
    running: JoinHandle<()>,
}

/// What is given to it goes into the trail.
#[derive(Clone, Debug)]
pub(crate) struct Pen {
    records: mpsc::Sender<Entry>,
    lost: Arc<AtomicU64>,
}

/// A record, and who waits until it is kept.
#[derive(Debug)]
struct Entry {
    record: Record,
    kept: Option<oneshot::Sender<()>>,
}

impl Writer {
    /// One that publishes on this subject, in the name of whoever may do that.
    pub(crate) fn start(client: Client, subject: String, name: String) -> Self {
        let ((records, waiting), lost) = (mpsc::channel(WAITING_MAX), Arc::default());
        let running = tokio::spawn(write(jetstream::new(client), (subject, name), waiting, Arc::clone(&lost)));
        Self { pen: Pen { records, lost }, running }
    }

    pub(crate) fn pen(&self) -> Pen {
        self.pen.clone()
    }

    /// Waits until what was put is kept, once every other pen is gone.
    pub(crate) async fn end(self) {
        drop(self.pen);
        drop(self.running.await);
    }
}

impl Pen {
    /// Has it kept, if there is room.
    pub(crate) fn put(&self, record: Record) {
        self.send(record, None);
    }

    /// Has it kept within so long, or says that it is not known to be.
    pub(crate) async fn keep(&self, record: Record, within: Duration) -> Result<(), NotKept> {
        let (kept, is_kept) = oneshot::channel();
        self.send(record, Some(kept));
        timeout(within, is_kept).await.ok().and_then(Result::ok).ok_or(NotKept)
    }

    fn send(&self, record: Record, kept: Option<oneshot::Sender<()>>) {
        let record = Record { target: short(&record.target), detail: short(&record.detail), ..record };
        if self.records.try_send(Entry { record, kept }).is_err() {
            lose(&self.lost, 1);
        }
    }
}

/// The trail is not known to have a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotKept;

fn lose(lost: &AtomicU64, records: usize) {
    let records = u64::try_from(records).unwrap_or(u64::MAX);
    let lost = lost.fetch_add(records, Ordering::Relaxed).saturating_add(records);
    tracing::error!(lost, "audit records are lost: the broker does not keep them");
}

fn short(text: &str) -> String {
    let mut short: String = text.chars().take(TEXT_CHARS_MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// Writes records until there are no more, in batches. How many were lost before is the first that is kept again.
async fn write(jetstream: jetstream::Context, (subject, name): (String, String), mut records: mpsc::Receiver<Entry>, lost: Arc<AtomicU64>) {
    let (mut chain, secret) = (Chain::begin(&name), rand::random::<u128>());
    let mut waiting = Vec::with_capacity(BATCH_MAX);
    while !waiting.is_empty() || records.recv_many(&mut waiting, BATCH_MAX).await > 0 {
        let before = lost.swap(0, Ordering::Relaxed);
        if before > 0 {
            let detail = format!("{before} records of {name} are lost: the broker did not keep them");
            waiting.insert(0, Entry { record: Record { detail, ..Record::new(Verdict::Lost, &name) }, kept: None });
        }
        let Some((payload, count)) = chain.batch(waiting.iter().map(|entry| &entry.record), BATCH_BYTES_MAX) else {
            waiting.clear();
            continue;
        };
        // Whoever could guess it could publish it first, and have the broker take ours for the same.
        let id = format!("{name}.{secret:032x}.{}", chain.sequence());
        let kept = keep(&jetstream, (&subject, id), payload.into()).await;
        if !kept {
            lose(&lost, count);
        }
        for waits in waiting.drain(..count).filter_map(|entry| entry.kept).filter(|_| kept) {
            // Who does not wait any more does not want to know.
            let _ = waits.send(());
        }
    }
}

/// Whether the broker has kept it.
async fn keep(jetstream: &jetstream::Context, (subject, id): (&str, String), payload: bytes::Bytes) -> bool {
    for attempt in 1..=TRIES_MAX {
        let message = PublishMessage::build().payload(payload.clone()).message_id(&id);
        let kept = match jetstream.send_publish(subject.to_owned(), message).await {
            Ok(sent) => sent.await.map(drop),
            Err(error) => Err(error),
        };
        match kept {
            Ok(()) => return true,
            Err(error) => tracing::warn!(attempt, %error, "audit records were not kept; trying again"),
        }
        sleep(RETRY_AFTER).await;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_choose_is_cut_and_seen_to_be() {
        assert_eq!(short("audit.v1.x"), "audit.v1.x");
        let cut = short(&"ü".repeat(TEXT_CHARS_MAX + 1));
        assert!(cut.ends_with("ü…") && cut.chars().count() == TEXT_CHARS_MAX + 1);
    }

    #[tokio::test]
    async fn where_nobody_writes_a_record_is_lost_and_counted_and_nobody_is_told_that_it_is_kept() {
        let (records, waiting) = mpsc::channel(1);
        let pen = Pen { records, lost: Arc::default() };
        drop(waiting);
        assert_eq!(pen.keep(Record::new(Verdict::Signed, "part:api-1"), Duration::from_secs(60)).await, Err(NotKept));
        pen.put(Record::new(Verdict::Refused, "part:api-1"));
        assert_eq!(pen.lost.load(Ordering::Relaxed), 2);
    }
}
