//! Audit records of this node, kept until the control plane has acknowledged them. `spool`: those that wait; `file`: the same on disk.
//!
//! An agent that has a state folder keeps them there, so that they outlive it however it ends; one that has none keeps them in memory. Nothing is
//! dropped to make room: a run begins only when there is room for what is to be said of it, and where there is none, or the file cannot be
//! written, its caller is told `busy`. A run of which nobody else has a record begins only when the file has one.

mod file;
mod spool;

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use probeops_shared::audit::chain::{Chain, node_writer};
use probeops_shared::audit::{BATCH_MAX, Record, Verdict};
use probeops_shared::presence::{EventAck, EventKind, Refusal};
use probeops_shared::timestamp::Timestamp;
use probeops_shared::{outcome::NodeRef, subjects};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::inbox::Inbox;
use spool::{REFUSED_SHARE, Waiting};

/// The most bytes that one message carries, well below what the broker takes from a node: records repeat what callers wrote.
const BATCH_BYTES_MAX: usize = 128 * 1024;
/// The most characters of a record's detail, and of each other text of it, that are kept.
const DETAIL_CHARS_MAX: usize = 500;
const TEXT_CHARS_MAX: usize = 512;
/// How long a record waits for company.
const BATCH_WITHIN: Duration = Duration::from_secs(1);
/// How long to wait when a batch was not acknowledged.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long the last of them may take to be written.
const CLOSED_WITHIN: Duration = Duration::from_secs(5);
/// How much later than another a chain begins that has to begin later.
const LATER: Duration = Duration::from_millis(1);
/// A clock that is off by more than this is put right in records.
const CLOCK_SLACK_MS: f64 = 1_000.0;

/// The records that wait.
#[derive(Clone, Debug)]
pub(crate) struct Trail(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    node: NodeRef,
    clock: Arc<Clock>,
    /// What is to be said of the chain at the start.
    origin: String,
    waiting: Mutex<Waiting>,
    full_batch: Notify,
    /// Wakes who writes the file.
    to_write: Condvar,
    /// Told whenever the file was written, or could not be.
    written: Notify,
    /// Says that nobody writes the file any more.
    unwritten: Mutex<Option<oneshot::Receiver<()>>>,
}

/// Room for the record of a run's end.
#[derive(Debug)]
pub(crate) struct Promise {
    trail: Trail,
    /// The place of the record of its beginning.
    begun: u64,
}

/// What became of a batch.
enum Answer {
    Kept,
    /// The control plane never takes it; its time.
    Refused(Refusal, Timestamp),
    None,
}

impl Trail {
    /// The records of a node, with those that an earlier start has left in this folder; so many bytes of them wait at most.
    pub(crate) fn open(node: NodeRef, clock: Arc<Clock>, folder: Option<&Path>, bytes_max: usize) -> Result<Self, String> {
        let writer = node_writer(&node.id);
        let Some(folder) = folder else {
            tracing::info!("there is no state folder: audit records wait in memory, and those that are not sent are lost with the agent");
            let origin = "without a state folder its records wait in memory, and a new chain of them begins".to_owned();
            return Ok(Self::new(node, clock, origin, Waiting::new(Chain::begin(writer), bytes_max)));
        };
        let file::Opened { file, found } = file::open(folder, &writer)?;
        let (chain, links, trouble) = found.unwrap_or_else(|| (Chain::begin(&writer), Vec::new(), None));
        let (left, begins) = (links.len(), chain.sequence() == 1 && links.is_empty());
        let waiting = Waiting::with_file(chain, links, bytes_max);
        let origin = if begins {
            "a new chain of its records begins: it has no file of an earlier one".to_owned()
        } else {
            format!("its records go on with number {}, and {left} of those before wait", waiting.next_sequence())
        };
        let trail = Self::new(node, clock, origin, waiting);
        trail.write_to(file)?;
        if let Some(trouble) = trouble {
            tracing::error!("{trouble}");
            trail.push(&trail.of_node(Verdict::Lost, "records", trouble));
        }
        Ok(trail)
    }

    fn new(node: NodeRef, clock: Arc<Clock>, origin: String, waiting: Waiting) -> Self {
        let (full_batch, to_write, written) = (Notify::new(), Condvar::new(), Notify::new());
        Self(Arc::new(Inner {
            node,
            clock,
            origin,
            waiting: Mutex::new(waiting),
            full_batch,
            to_write,
            written,
            unwritten: Mutex::default(),
        }))
    }

    /// Begins to write the file: on a thread of its own, since a disk may be slow.
    fn write_to(&self, file: file::SpoolFile) -> Result<(), String> {
        let (inner, (over, unwritten)) = (Arc::clone(&self.0), oneshot::channel());
        let write = move || {
            inner.write(file);
            drop(over);
        };
        let began = std::thread::Builder::new().name("audit".to_owned()).spawn(write);
        drop(began.map_err(|error| format!("cannot start a thread: {error}"))?);
        *self.0.unwritten.lock().unwrap_or_else(PoisonError::into_inner) = Some(unwritten);
        Ok(())
    }

    /// What is to be said of the chain at the start.
    pub(crate) fn origin(&self) -> &str {
        &self.0.origin
    }

    /// Room for the record of a run's end, where that is all that will be said of it; or why there is none.
    pub(crate) fn promise(&self) -> Result<Promise, String> {
        self.take_room(1, None)
    }

    /// Adds the record of a run that is about to begin, and keeps room for that of its end; or why there is none for both.
    pub(crate) fn begin(&self, started: Record) -> Result<Promise, String> {
        self.take_room(2, Some(started))
    }

    fn take_room(&self, room: usize, record: Option<Record>) -> Result<Promise, String> {
        let record = record.map(|record| self.0.fitted(record));
        let mut waiting = self.0.waiting();
        waiting.has_room(room)?;
        waiting.promised += 1;
        let begun = record.map_or(0, |record| self.0.push(&mut waiting, &record));
        drop(waiting);
        Ok(Promise { trail: self.clone(), begun })
    }

    /// Adds the record of something that was not run, if there is room; where there is none, that is counted, and told when there is.
    pub(crate) fn record(&self, record: Record) {
        self.push_within(REFUSED_SHARE, &self.0.fitted(record));
    }

    /// Adds what the node tells of itself, likewise.
    pub(crate) fn report(&self, target: &str, detail: impl Into<String>) {
        self.push_within(1, &self.of_node(Verdict::Reported, target, detail.into()));
    }

    fn push_within(&self, share: usize, record: &Record) {
        let mut waiting = self.0.waiting();
        if waiting.fits(1, share) {
            self.0.push(&mut waiting, record);
            return;
        }
        waiting.lost += 1;
        if waiting.lost.is_power_of_two() {
            tracing::error!(lost = waiting.lost, "not all that is refused is in the audit trail: there is no room for its records");
        }
    }

    fn of_node(&self, verdict: Verdict, target: &str, detail: String) -> Record {
        self.0.fitted(of_node(&self.0.node, verdict, target, detail))
    }

    fn push(&self, record: &Record) -> u64 {
        self.0.push(&mut self.0.waiting(), record)
    }

    /// Sends batches until told to stop, and then what is left, once.
    pub(crate) async fn send(&self, inbox: &Inbox, stop: &CancellationToken) {
        let mut stopping = false;
        while !stopping {
            tokio::select! {
                () = self.0.full_batch.notified() => {}
                () = tokio::time::sleep(BATCH_WITHIN) => {}
                () = stop.cancelled() => {
                    stopping = true;
                    // What the file does not take is sent from memory.
                    drop(self.all_stored().await);
                }
            }
            while let Some((payload, count)) = self.batch(stopping) {
                match self.send_batch(inbox, &payload).await {
                    Answer::Kept => self.0.acknowledged(count),
                    Answer::Refused(refusal, at) => {
                        tracing::error!(records = count, "the control plane does not take these audit records: {}", refusal.why);
                        self.0.refused(count, &refusal, at);
                        stopping |= stop.run_until_cancelled(tokio::time::sleep(RETRY_AFTER)).await.is_none();
                    }
                    Answer::None if stopping => return self.give_up(),
                    Answer::None => stopping = stop.run_until_cancelled(tokio::time::sleep(RETRY_AFTER)).await.is_none(),
                }
            }
        }
        self.give_up();
    }

    /// The next message, and how many records it has. They stay where they are until it is acknowledged.
    fn batch(&self, stopping: bool) -> Option<(Bytes, usize)> {
        let mut waiting = self.0.waiting();
        if waiting.lost > 0 && waiting.has_room(1).is_ok() {
            let detail = format!("{} records of what was not run were left out: there was no room for them", waiting.lost);
            waiting.lost = 0;
            self.0.push(&mut waiting, &self.of_node(Verdict::Lost, "records", detail));
        }
        waiting.batch(BATCH_BYTES_MAX, stopping).map(|(payload, count)| (payload.into(), count))
    }

    async fn send_batch(&self, inbox: &Inbox, payload: &Bytes) -> Answer {
        let subject = subjects::event(&self.0.node.region, &self.0.node.id, EventKind::Audit);
        let Some(answer) = inbox.ask(subject, None, payload.clone()).await else { return Answer::None };
        match serde_json::from_slice::<EventAck>(&answer) {
            Ok(EventAck { refused: None, .. }) => Answer::Kept,
            Ok(EventAck { refused: Some(refusal), time_unix_ms, .. }) => {
                Answer::Refused(refusal, Timestamp::from_unix_ms(time_unix_ms).unwrap_or_else(Timestamp::now))
            }
            Err(_) => Answer::None,
        }
    }

    /// Waits until everything said until now is in the file; or why it is not.
    async fn all_stored(&self) -> Result<(), String> {
        let said = self.0.waiting().said();
        self.stored(said).await
    }

    /// Waits until a record is in the file, where there is one; or why it is not.
    pub(crate) async fn stored(&self, place: u64) -> Result<(), String> {
        loop {
            let told = self.0.written.notified();
            if let Some(stored) = self.0.waiting().is_stored(place) {
                return stored;
            }
            told.await;
        }
    }

    fn give_up(&self) {
        let (left, kept) = self.0.waiting().left();
        if left > 0 && kept {
            tracing::warn!(
                records = left,
                "the agent stops with audit records that nobody acknowledged, and sends them when it starts again"
            );
        } else if left > 0 {
            tracing::error!(records = left, "the agent stops with audit records that nobody acknowledged, and they are lost");
        }
    }

    /// Writes what is left, and ends.
    pub(crate) async fn close(&self) {
        self.0.waiting().end();
        self.0.to_write.notify_one();
        let unwritten = self.0.unwritten.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(unwritten) = unwritten
            && tokio::time::timeout(CLOSED_WITHIN, unwritten).await.is_err()
        {
            tracing::error!("the last audit records may not be in their file: it takes too long to write");
        }
    }
}

impl Inner {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a record; its place among all that were added.
    fn push(&self, waiting: &mut Waiting, record: &Record) -> u64 {
        waiting.push(record);
        if waiting.len() >= BATCH_MAX {
            self.full_batch.notify_one();
        }
        self.to_write.notify_one();
        waiting.said()
    }

    /// A record whose texts are not too long, and whose time is the control plane's, where this clock is known to be wrong.
    fn fitted(&self, mut record: Record) -> Record {
        cut(&mut record.detail, DETAIL_CHARS_MAX);
        for text in [&mut record.principal, &mut record.tool, &mut record.target, &mut record.request_id] {
            cut(text, TEXT_CHARS_MAX);
        }
        if let Some(measured) = self.clock.measured().filter(|measured| measured.offset_ms.abs() > CLOCK_SLACK_MS + measured.rtt_ms) {
            #[expect(clippy::cast_possible_truncation, reason = "a difference of clocks in milliseconds fits")]
            let corrected = record.time.unix_ms().saturating_sub(measured.offset_ms as i64);
            record.time = Timestamp::from_unix_ms(corrected).unwrap_or(record.time);
        }
        record
    }

    fn acknowledged(&self, count: usize) {
        self.waiting().acknowledged(count);
        self.to_write.notify_one();
    }

    /// What the control plane never takes as it is. A new chain, which says why, may be taken; what is not even then is left out.
    fn refused(&self, count: usize, Refusal { why, after }: &Refusal, now: Timestamp) {
        let mut waiting = self.waiting();
        let left_out = if waiting.is_at_its_beginning() { count } else { 0 };
        let (verdict, detail) = if left_out > 0 {
            (Verdict::Lost, format!("{left_out} records were left out, which the control plane does not take: {why}"))
        } else {
            (
                Verdict::Reported,
                format!("a new chain of its records begins, as the control plane does not take those of the one before: {why}"),
            )
        };
        let mut first = of_node(&self.node, verdict, "records", detail);
        cut(&mut first.detail, DETAIL_CHARS_MAX);
        let chain = Chain::begin_at(node_writer(&self.node.id), after.map_or(now, |after| now.max(after.plus(LATER))));
        waiting.begin_anew(chain, &first, left_out, now);
        drop(waiting);
        self.to_write.notify_one();
    }
}

/// What the file of waiting records says, of this writer: the number of the first and they, and what is wrong with what came after them.
#[cfg(feature = "fuzzing")]
pub(crate) fn waiting_in(path: &Path, text: &[u8], writer: &str) -> (u64, Vec<probeops_shared::audit::chain::Link>, Option<String>) {
    let (head, links, trouble) = file::parsed(path, text, writer);
    (head.sequence(), links, trouble)
}

/// What a node says of itself.
fn of_node(node: &NodeRef, verdict: Verdict, target: &str, detail: String) -> Record {
    let principal = node_writer(&node.id);
    let (target, node, region) = (target.to_owned(), Some(node.id.clone()), Some(node.region.clone()));
    Record { node, region, target, detail, ..Record::new(verdict, principal) }
}

fn cut(text: &mut String, chars_max: usize) {
    if let Some((end, _)) = text.char_indices().nth(chars_max) {
        text.truncate(end);
        text.push('…');
    }
}

impl Promise {
    /// Waits until the record of the run's beginning is in the file, where there is one; or why it is not.
    pub(crate) async fn begun(&self) -> Result<(), String> {
        self.trail.stored(self.begun).await
    }

    /// Adds the record that there was room kept for; its place.
    pub(crate) fn keep(self, record: Record) -> u64 {
        let record = self.trail.0.fitted(record);
        self.trail.push(&record)
        // Dropping it gives the room back.
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.trail.0.waiting().promised -= 1;
    }
}

#[cfg(test)]
mod tests;
