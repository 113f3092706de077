//! Puts into the audit trail what a part of ours has done or seen, one after the other. Where the broker does not keep it, it waits and is tried until
//! it is kept; only what finds no room to wait is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::jetstream::message::PublishMessage;
use async_nats::{Client, jetstream};
use probeops_shared::audit::chain::Chain;
use probeops_shared::audit::{BATCH_MAX, Record, Verdict};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How many records wait to be kept by the broker; more are lost, and counted.
const WAITING_MAX: usize = 4096;
/// So many more wait of what is done for good: more than keys can be revoked.
const DONE_WAITING_MAX: usize = 8192;
/// The most bytes of one message.
const BATCH_BYTES_MAX: usize = 256 * 1024;
/// The wait between two tries.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Longer texts are cut: whoever is written about may choose them, such as the subject of a violation.
const TEXT_CHARS_MAX: usize = 512;

/// Writes a chain of its own over one connection.
#[derive(Debug)]
pub(crate) struct Writer {
    pen: Pen,
    running: JoinHandle<()>,
    ending: CancellationToken,
}

/// What is given to it goes into the trail.
#[derive(Clone, Debug)]
pub(crate) struct Pen {
    records: mpsc::Sender<Entry>,
    lost: Arc<AtomicU64>,
    /// Whether the last try to have something kept has failed.
    failing: watch::Receiver<bool>,
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
        let (records, waiting) = mpsc::channel(WAITING_MAX + DONE_WAITING_MAX);
        let (fails, failing) = watch::channel(false);
        let pen = Pen { records, lost: Arc::default(), failing };
        let (ending, lost) = (CancellationToken::new(), Arc::clone(&pen.lost));
        let running = tokio::spawn(write(jetstream::new(client), (subject, name), (waiting, ending.clone()), (lost, fails)));
        Self { pen, running, ending }
    }

    pub(crate) fn pen(&self) -> Pen {
        self.pen.clone()
    }

    /// Takes nothing more, and waits until what was put is kept.
    pub(crate) async fn end(self) {
        self.ending.cancel();
        drop(self.running.await);
    }
}

impl Pen {
    /// Has it kept, if there is room.
    pub(crate) fn put(&self, record: Record) {
        self.send((record, None), DONE_WAITING_MAX);
    }

    /// Has it kept within so long, or says that it is not known to be; it may be later.
    pub(crate) async fn keep(&self, record: Record, within: Duration) -> Result<(), NotKept> {
        let (kept, is_kept) = oneshot::channel();
        self.send((record, Some(kept)), DONE_WAITING_MAX);
        timeout(within, is_kept).await.ok().and_then(Result::ok).ok_or(NotKept)
    }

    /// The same of what is done already: it is waited for no longer than until it is known that the trail takes nothing now. What `must_stay` has room
    /// where nothing else has any.
    pub(crate) async fn keep_done(&self, record: Record, must_stay: bool, within: Duration) -> Result<(), NotKept> {
        let (kept, is_kept) = oneshot::channel();
        self.send((record, Some(kept)), if must_stay { 0 } else { DONE_WAITING_MAX });
        let mut failing = self.failing.clone();
        tokio::select! {
            biased;
            kept = is_kept => kept.map_err(|_| NotKept),
            _ = failing.wait_for(|failing| *failing) => Err(NotKept),
            () = sleep(within) => Err(NotKept),
        }
    }

    /// Has it wait where so much room is left for others.
    fn send(&self, (record, kept): (Record, Option<oneshot::Sender<()>>), left: usize) {
        let record = Record { target: short(&record.target), detail: short(&record.detail), ..record };
        if self.records.capacity() <= left || self.records.try_send(Entry { record, kept }).is_err() {
            let lost = self.lost.fetch_add(1, Ordering::Relaxed) + 1;
            tracing::error!(lost, "audit records are lost: more wait to be kept by the broker than there is room for");
        }
    }
}

/// The trail is not known to have a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotKept;

fn short(text: &str) -> String {
    let mut short: String = text.chars().take(TEXT_CHARS_MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// Writes records until there are no more, in batches. How many were lost before is the first that is kept again.
async fn write(
    jetstream: jetstream::Context,
    (subject, name): (String, String),
    (mut records, ending): (mpsc::Receiver<Entry>, CancellationToken),
    (lost, fails): (Arc<AtomicU64>, watch::Sender<bool>),
) {
    let (mut chain, secret) = (Chain::begin(&name), rand::random::<u128>());
    let mut waiting = Vec::with_capacity(BATCH_MAX);
    loop {
        if waiting.is_empty() {
            let received = tokio::select! {
                received = records.recv_many(&mut waiting, BATCH_MAX) => received,
                () = ending.cancelled(), if !records.is_closed() => {
                    records.close();
                    continue;
                }
            };
            if received == 0 {
                return;
            }
        }
        let before = lost.swap(0, Ordering::Relaxed);
        if before > 0 {
            let detail = format!("{before} records of {name} are lost: more waited to be kept by the broker than there is room for");
            waiting.insert(0, Entry { record: Record { detail, ..Record::new(Verdict::Lost, &name) }, kept: None });
        }
        let Some((payload, count)) = chain.batch(waiting.iter().map(|entry| &entry.record), BATCH_BYTES_MAX) else {
            waiting.clear();
            continue;
        };
        // Whoever could guess it could publish it first, and have the broker take ours for the same.
        let id = format!("{name}.{secret:032x}.{}", chain.sequence());
        keep(&jetstream, (&subject, id), payload.into(), &fails).await;
        for waits in waiting.drain(..count).filter_map(|entry| entry.kept) {
            // Who does not wait any more does not want to know.
            let _ = waits.send(());
        }
    }
}

/// Tries until the broker has kept it: the same each time, so that it is kept once.
async fn keep(jetstream: &jetstream::Context, (subject, id): (&str, String), payload: bytes::Bytes, fails: &watch::Sender<bool>) {
    for attempt in 1_u64.. {
        let message = PublishMessage::build().payload(payload.clone()).message_id(&id);
        let kept = match jetstream.send_publish(subject.to_owned(), message).await {
            Ok(sent) => sent.await.map(drop),
            Err(error) => Err(error),
        };
        fails.send_replace(kept.is_err());
        match kept {
            Ok(()) => return,
            Err(error) if attempt.is_power_of_two() => {
                tracing::warn!(attempt, %error, "audit records were not kept; trying again until they are");
            }
            Err(_) => {}
        }
        sleep(RETRY_AFTER).await;
    }
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

    /// One that has room for so many more than what is done for good has to itself, and what waits.
    fn pen(room: usize) -> (Pen, mpsc::Receiver<Entry>, watch::Sender<bool>) {
        let ((records, waiting), (fails, failing)) = (mpsc::channel(DONE_WAITING_MAX + room), watch::channel(false));
        (Pen { records, lost: Arc::default(), failing }, waiting, fails)
    }

    #[tokio::test]
    async fn where_nobody_writes_a_record_is_lost_and_counted_and_nobody_is_told_that_it_is_kept() {
        let (pen, waiting, _fails) = pen(1);
        drop(waiting);
        assert_eq!(pen.keep(Record::new(Verdict::Signed, "part:api-1"), Duration::from_secs(60)).await, Err(NotKept));
        pen.put(Record::new(Verdict::Refused, "part:api-1"));
        assert_eq!(pen.lost.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn what_is_done_for_good_has_room_where_others_have_filled_theirs_and_is_not_waited_for_where_nothing_is_kept() {
        let (pen, mut waiting, fails) = pen(3);
        for _ in 0..10 {
            pen.put(Record::new(Verdict::Refused, "part:api-1"));
        }
        assert_eq!(pen.lost.load(Ordering::Relaxed), 7);
        let first = tokio::spawn({
            let pen = pen.clone();
            async move { pen.keep_done(Record::new(Verdict::Signed, "part:api-1"), true, Duration::from_secs(60)).await }
        });
        fails.send_replace(true);
        assert_eq!(first.await.unwrap(), Err(NotKept));
        for _ in 1..DONE_WAITING_MAX {
            assert_eq!(pen.keep_done(Record::new(Verdict::Signed, "part:api-1"), true, Duration::from_secs(60)).await, Err(NotKept));
        }
        assert_eq!(pen.lost.load(Ordering::Relaxed), 7);
        waiting.close();
        let mut written = Vec::new();
        assert_eq!(waiting.recv_many(&mut written, usize::MAX).await, 3 + DONE_WAITING_MAX);
    }
}
