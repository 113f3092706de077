//! Stream JOBS: every job, for any replica to read.
//!
//! A job that its caller waits for is written once, at its end, through a bounded queue: the answer does not wait for the disk. Of any other its
//! state is there before its first run is dispatched, and each outcome beside it as soon as it is known. Writes go out without asking for an
//! acknowledgement each; the last of every batch asks, and since the broker stores one connection's messages in their order, its acknowledgement
//! says that the broker was there for the rest.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::push::{Ordered, OrderedConfig};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use probeops_shared::ids::{Caller, JobId};
use probeops_shared::outcome::Outcome;
use probeops_shared::subjects::{self, ANY, OfJob, storage};
use probeops_shared::timestamp::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::JobDocument;
use crate::broker::last::last_of_each;
use crate::callbacks::Callback;

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

/// A message for the stream.
#[derive(Debug)]
struct Entry {
    subject: String,
    payload: Bytes,
    /// Told when it is stored.
    stored: Option<oneshot::Sender<()>>,
}

/// A job as it lies in the stream.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    /// What is told of it.
    #[serde(flatten)]
    pub(crate) document: JobDocument,
    /// How many outcomes it will have, beside it: together they may exceed one message. Absent where the only one is inside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) runs: Option<usize>,
    /// The replica at which it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) replica: Option<Caller>,
    /// Whom to tell its end, with what is not told of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) deliver: Option<Callback>,
}

/// An outcome as it lies in the stream.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RunEnd {
    /// Which dispatch of the run brought it.
    pub(crate) attempt: u32,
    /// Its number among that dispatch's events.
    pub(crate) seq: u64,
    /// The outcome.
    pub(crate) outcome: Outcome,
}

/// The token of a principal in subjects of the stream: its name may be anything, and a hash of it says nothing to those who only see subjects.
pub(crate) fn owner(principal: &str) -> String {
    let hash = Sha256::digest(principal);
    HEXLOWER.encode(hash.get(..8).unwrap_or_default())
}

/// The stream, for writing and reading.
#[derive(Debug)]
pub(crate) struct Store {
    jetstream: Context,
    queue: mpsc::Sender<Entry>,
    dropped: Arc<AtomicU64>,
}

impl Store {
    /// The store; its writer goes on until `stop`, and then writes what is left.
    pub(crate) fn start(jetstream: Context, tasks: &TaskTracker, stop: &CancellationToken) -> Self {
        let (queue, entries) = mpsc::channel(QUEUE_MAX);
        drop(tasks.spawn(write(jetstream.clone(), entries, stop.clone())));
        Self { jetstream, queue, dropped: Arc::default() }
    }

    /// Writes a finished job that has its outcome inside soon; `written` is all of it as JSON.
    pub(crate) fn put_whole(&self, document: &JobDocument, written: &Bytes) {
        let subject = subjects::job_state(owner(&document.caller), document.id);
        self.put(Entry { subject, payload: written.clone(), stored: None });
    }

    /// Writes the end of a job whose outcomes lie beside it, and waits until it is stored with them. They are written before it, so who reads
    /// `finished` finds every outcome.
    pub(crate) async fn put_end(&self, state: &State) {
        let (sender, stored) = oneshot::channel();
        let (subject, payload) = state.message();
        self.put(Entry { subject, payload, stored: Some(sender) });
        // The writer logs what it could not store.
        drop(stored.await);
    }

    /// Writes what came of one of a job's runs soon, beside its state.
    pub(crate) fn put_run(&self, document: &JobDocument, index: usize, end: &RunEnd) {
        let subject = subjects::job_run(owner(&document.caller), document.id, index);
        self.put(Entry { subject, payload: serde_json::to_vec(end).unwrap_or_default().into(), stored: None });
    }

    /// Writes what nodes have told soon.
    pub(crate) fn put_events(&self, document: &JobDocument, batch: u64, events: Bytes) {
        let subject = subjects::job_events(owner(&document.caller), document.id, batch);
        self.put(Entry { subject, payload: events, stored: None });
    }

    fn put(&self, entry: Entry) {
        if self.queue.try_send(entry).is_err() {
            let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            if dropped.is_power_of_two() {
                tracing::error!(dropped, "finished jobs could not be kept: the broker stores them more slowly than they finish");
            }
        }
    }

    /// Writes a job and waits until it is stored.
    pub(crate) async fn put_now(&self, state: &State) -> Result<(), String> {
        let (subject, payload) = state.message();
        let sent = self.jetstream.publish(subject, payload).await.map_err(|error| error.to_string())?;
        sent.await.map(drop).map_err(|error| error.to_string())
    }

    /// Reads a job. One that was just accepted elsewhere is waited for, a little.
    pub(crate) async fn get(&self, id: JobId) -> Result<Option<Stored>, String> {
        let mut look_again_after = LOOK_AGAIN_AFTER;
        loop {
            if let Some(stored) = self.read(id).await? {
                return Ok(Some(stored));
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

    /// Everything of a job as it comes into the stream, from its beginning.
    pub(crate) async fn follow(&self, document: &JobDocument) -> Result<Ordered, String> {
        let filter_subject = subjects::job_all(owner(&document.caller), document.id);
        let deliver_subject = self.jetstream.client().new_inbox();
        let stream = self.jetstream.get_stream_no_info(storage::JOBS).await.map_err(|error| error.to_string())?;
        let config = OrderedConfig { deliver_subject, filter_subject, ..OrderedConfig::default() };
        let consumer = stream.create_consumer(config).await.map_err(|error| error.to_string())?;
        consumer.messages().await.map_err(|error| error.to_string())
    }

    /// Reads a job as it lies there now.
    pub(crate) async fn read(&self, id: JobId) -> Result<Option<Stored>, String> {
        let of_job = [subjects::job_state(ANY, id), subjects::job_run(ANY, id, ANY)];
        let (mut state, mut runs) = (None, Vec::new());
        for message in last_of_each(&self.jetstream.client(), storage::JOBS, &of_job).await? {
            match subjects::parse_job(&message.subject) {
                Some((_, _, OfJob::State)) => {
                    let read = serde_json::from_slice::<State>(&message.payload);
                    state = Some(read.map_err(|error| format!("the stored job cannot be read: {error}"))?);
                }
                Some((_, _, OfJob::Run(index))) => {
                    let read = serde_json::from_slice::<RunEnd>(&message.payload);
                    runs.push((index, read.map_err(|error| format!("a stored outcome cannot be read: {error}"))?));
                }
                Some((_, _, OfJob::Events(_))) | None => {}
            }
        }
        runs.sort_by_key(|(index, _)| *index);
        Ok(state.map(|state| Stored { state, runs }))
    }
}

/// A job as it was found in the stream.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    /// Its state.
    pub(crate) state: State,
    /// The outcomes beside it, by the index of their runs.
    pub(crate) runs: Vec<(usize, RunEnd)>,
}

impl Stored {
    /// The job with what outcomes there are.
    pub(crate) fn into_document(self) -> JobDocument {
        let mut document = self.state.document;
        document.results.extend(self.runs.into_iter().map(|(_, end)| end.outcome));
        document
    }
}

impl State {
    fn message(&self) -> (String, Bytes) {
        let payload = serde_json::to_vec(self).unwrap_or_default();
        (subjects::job_state(owner(&self.document.caller), self.document.id), payload.into())
    }
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
            tracing::error!(messages = batch.len(), %error, "finished jobs could not be kept");
        }
        for waiting in batch.drain(..).filter_map(|entry| entry.stored) {
            // Whoever has gone waits no more.
            let _gone = waiting.send(());
        }
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
    let Some((last, rest)) = batch.split_last() else { return Ok(()) };
    let mut failed = String::new();
    for _ in 0..TRIES_MAX {
        for entry in rest {
            jetstream.client().publish(entry.subject.clone(), entry.payload.clone()).await.map_err(|error| error.to_string())?;
        }
        let stored = match jetstream.publish(last.subject.clone(), last.payload.clone()).await {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_one_token_whatever_the_principal_is_called() {
        for principal in ["key:a", "jwt:someone@example.com *.>", ""] {
            let token = owner(principal);
            assert!(token.len() == 16 && token.bytes().all(|byte| byte.is_ascii_hexdigit()), "{token}");
        }
        assert_ne!(owner("key:a"), owner("key:b"));
    }
}
