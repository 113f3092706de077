//! Stream JOBS: every job's document, for any replica to read.
//!
//! A job that its caller waits for is written once, at its end, through a bounded queue: the answer does not wait for the disk. Such writes go
//! out without asking for an acknowledgement each; the last of every batch asks, and since the broker stores one connection's messages in
//! their order, its acknowledgement says that the broker was there for the rest.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::stream::{DirectGetErrorKind, Stream};
use bytes::Bytes;
use probeops_shared::ids::JobId;
use probeops_shared::outcome::Outcome;
use probeops_shared::subjects::{self, storage};
use probeops_shared::timestamp::Timestamp;
use tokio::sync::{OnceCell, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::JobDocument;

/// How many documents wait to be written; more are dropped and counted.
const QUEUE_MAX: usize = 8_192;
/// How many are written before one asks for its acknowledgement.
const BATCH_MAX: usize = 256;
/// How long the first document of a batch waits for company: many small writes cost the broker far more than a few large ones.
const BATCH_WITHIN: Duration = Duration::from_millis(20);
/// How often a batch whose last write was not acknowledged asks again.
const TRIES_MAX: u32 = 3;
/// A document this young may still be on its way to the stream.
const ON_ITS_WAY: Duration = Duration::from_secs(2);
/// When to look for one again; twice as long after each time, for an id may also be made up.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);

type Entry = (String, Bytes);

/// The stream, for writing and reading.
#[derive(Debug)]
pub(crate) struct Store {
    jetstream: Context,
    stream: OnceCell<Stream<()>>,
    queue: mpsc::Sender<Entry>,
    dropped: Arc<AtomicU64>,
}

impl Store {
    /// The store; its writer goes on until `stop`, and then writes what is left.
    pub(crate) fn start(jetstream: Context, tasks: &TaskTracker, stop: &CancellationToken) -> Self {
        let (queue, entries) = mpsc::channel(QUEUE_MAX);
        drop(tasks.spawn(write(jetstream.clone(), entries, stop.clone())));
        Self { jetstream, stream: OnceCell::new(), queue, dropped: Arc::default() }
    }

    /// Writes a finished job soon; `written` is all of it as JSON.
    pub(crate) fn put(&self, document: &JobDocument, written: &Bytes) {
        self.put_entry(state(document, || written.clone()));
    }

    /// Writes what came of one of a job's runs soon. A job with one run has it inside its state, at its end.
    pub(crate) fn put_outcome(&self, document: &JobDocument, index: usize, outcome: &Outcome) {
        if document.from.len() > 1 {
            self.put_entry((subjects::job_run(document.id, index), serde_json::to_vec(outcome).unwrap_or_default().into()));
        }
    }

    fn put_entry(&self, entry: Entry) {
        if self.queue.try_send(entry).is_err() {
            let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            if dropped.is_power_of_two() {
                tracing::error!(dropped, "finished jobs could not be kept: the broker stores them more slowly than they finish");
            }
        }
    }

    /// Writes a job and waits until it is stored.
    pub(crate) async fn put_now(&self, document: &JobDocument) -> Result<(), String> {
        let (subject, payload) = state(document, || document.to_bytes());
        let sent = self.jetstream.publish(subject, payload).await.map_err(|error| error.to_string())?;
        sent.await.map(drop).map_err(|error| error.to_string())
    }

    /// Reads a job. One that was just accepted elsewhere is waited for, a little.
    pub(crate) async fn get(&self, id: JobId) -> Result<Option<JobDocument>, String> {
        let mut look_again_after = LOOK_AGAIN_AFTER;
        loop {
            if let Some(document) = self.read(id).await? {
                return Ok(Some(document));
            }
            let made = id.unix_ms().and_then(Timestamp::from_unix_ms);
            let young = made.is_some_and(|made| made <= Timestamp::now() && Timestamp::now().since(made) < ON_ITS_WAY);
            if !young {
                return Ok(None);
            }
            tokio::time::sleep(look_again_after).await;
            look_again_after *= 2;
        }
    }

    async fn read(&self, id: JobId) -> Result<Option<JobDocument>, String> {
        let Some(state) = self.last(subjects::job_state(id)).await? else { return Ok(None) };
        let mut document: JobDocument =
            serde_json::from_slice(&state).map_err(|error| format!("the stored job cannot be read: {error}"))?;
        if document.from.len() > 1 {
            for index in 0..document.from.len() {
                if let Some(run) = self.last(subjects::job_run(id, index)).await? {
                    document.results.push(
                        serde_json::from_slice::<Outcome>(&run).map_err(|error| format!("a stored outcome cannot be read: {error}"))?,
                    );
                }
            }
        }
        Ok(Some(document))
    }

    async fn last(&self, subject: String) -> Result<Option<Bytes>, String> {
        let stream =
            self.stream.get_or_try_init(|| self.jetstream.get_stream_no_info(storage::JOBS)).await.map_err(|error| error.to_string())?;
        match stream.direct_get_last_for_subject(subject).await {
            Ok(message) => Ok(Some(message.payload)),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A document as it lies in the stream: one run's outcome inside it, several beside it, because together they may exceed one message. They are
/// written before it, so who reads `finished` finds every outcome.
fn state(document: &JobDocument, written: impl FnOnce() -> Bytes) -> Entry {
    let whole = document.from.len() == 1;
    let payload = if whole { written() } else { JobDocument { results: Vec::new(), ..document.clone() }.to_bytes() };
    (subjects::job_state(document.id), payload)
}

async fn write(jetstream: Context, mut entries: mpsc::Receiver<Entry>, stop: CancellationToken) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    loop {
        let received = tokio::select! {
            biased;
            received = entries.recv_many(&mut batch, BATCH_MAX) => received,
            () = stop.cancelled() => 0,
        };
        if received == 0 {
            return;
        }
        tokio::select! {
            () = fill(&mut entries, &mut batch) => {}
            () = tokio::time::sleep(BATCH_WITHIN) => {}
            () = stop.cancelled() => {}
        }
        if let Err(error) = write_batch(&jetstream, &batch).await {
            tracing::error!(jobs = batch.len(), %error, "finished jobs could not be kept");
        }
        batch.clear();
    }
}

/// Adds what comes until the batch is full.
async fn fill(entries: &mut mpsc::Receiver<Entry>, batch: &mut Vec<Entry>) {
    while batch.len() < BATCH_MAX {
        let room = BATCH_MAX - batch.len();
        if entries.recv_many(batch, room).await == 0 {
            return;
        }
    }
}

/// Writes a batch, again as a whole when its end is not acknowledged: the last message of a subject is the one that counts.
async fn write_batch(jetstream: &Context, batch: &[Entry]) -> Result<(), String> {
    let Some(((subject, payload), rest)) = batch.split_last() else { return Ok(()) };
    let mut failed = String::new();
    for _ in 0..TRIES_MAX {
        for (subject, payload) in rest {
            jetstream.client().publish(subject.clone(), payload.clone()).await.map_err(|error| error.to_string())?;
        }
        let stored = match jetstream.publish(subject.clone(), payload.clone()).await {
            Ok(sent) => sent.await.map(drop),
            Err(error) => Err(error),
        };
        match stored {
            Ok(()) => return Ok(()),
            Err(error) => failed = error.to_string(),
        }
    }
    Err(failed)
}
