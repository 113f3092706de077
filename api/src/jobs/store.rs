//! Stream JOBS: every job, for any replica to read.
//!
//! A job that its caller waits for is written once, at its end, through a bounded queue: the answer does not wait for the disk. Of any other its
//! state is there before its first run is dispatched, and each outcome beside it as soon as it is known. Writes go out without asking for an
//! acknowledgement each; the last of every batch asks, and since the broker stores one connection's messages in their order, its acknowledgement
//! says that the broker was there for the rest.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::header::{HeaderMap, HeaderValue, NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_TTL};
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::push::{Ordered, OrderedConfig};
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use data_encoding::HEXLOWER;
use probeops_shared::ids::{Caller, JobId};
use probeops_shared::outcome::Outcome;
use probeops_shared::subjects::{self, ANY, OfJob, storage};
use probeops_shared::timestamp::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{JobDocument, JobStatus};
use crate::broker::backwards::Backwards;
use crate::broker::last::{Last, last_of_each, next_of};
use crate::callbacks::Callback;

/// How many documents wait to be written; more are dropped and counted.
const QUEUE_MAX: usize = 8_192;
/// What they may take together, in bytes.
const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How many are written before one asks for its acknowledgement.
const BATCH_MAX: usize = 256;
/// How long the first document of a batch waits for company: many small writes cost the broker far more than a few large ones.
const BATCH_WITHIN: Duration = Duration::from_millis(20);
/// How long an API that stops goes on writing a batch that is not acknowledged.
const WRITTEN_WITHIN: Duration = Duration::from_secs(10);
/// What headers may add to a message, in bytes.
const HEADERS_BYTES_MAX: usize = 1024;
/// When to write it again.
const WRITE_AGAIN_AFTER: Duration = Duration::from_millis(250);
/// A document this young may still be on its way to the stream.
const ON_ITS_WAY: Duration = Duration::from_secs(2);
/// When to look for one again; twice as long after each time, for an id may also be made up.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// How long after its job's last moment it is kept that the job goes on: an API that was away for less ends what it left.
const OPEN_KEPT: Duration = Duration::from_hours(1);
/// How many jobs that go on are asked for at once.
const OPEN_AT_ONCE: usize = 500;

/// A message for the stream.
#[derive(Debug)]
struct Entry {
    subject: String,
    payload: Bytes,
    /// It is only stored after this message of its subject, or as its first (0).
    after: Option<u64>,
    /// Told whether it was stored, or something else came before.
    stored: Option<oneshot::Sender<bool>>,
    /// What the broker has said of that.
    told: Option<bool>,
    /// Its part of what waits.
    room: Option<OwnedSemaphorePermit>,
}

impl Entry {
    fn new(subject: String, payload: Bytes) -> Self {
        Self { subject, payload, after: None, stored: None, told: None, room: None }
    }

    fn message(&self) -> PublishMessage {
        let message = PublishMessage::build().payload(self.payload.clone());
        self.after.map_or(message.clone(), |after| message.expected_last_subject_sequence(after))
    }
}

/// That a job goes on at a replica.
#[derive(Clone, Debug)]
pub(crate) struct Open {
    /// Which job.
    pub(crate) id: JobId,
    /// Where.
    pub(crate) replica: Caller,
    /// Since when.
    pub(crate) begun_at: Timestamp,
    /// When it is over at the latest.
    pub(crate) ends_by: Timestamp,
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
    /// How often it was written again while it waited, which the stream would otherwise have forgotten.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) refreshed: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(count: &u32) -> bool {
    *count == 0
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
    room: Arc<Semaphore>,
    dropped: Arc<AtomicU64>,
}

impl Store {
    /// The store; its writer goes on until `stop`, and then writes what is left.
    pub(crate) fn start(jetstream: Context, tasks: &TaskTracker, stop: &CancellationToken) -> Self {
        let (queue, entries) = mpsc::channel(QUEUE_MAX);
        drop(tasks.spawn(write(jetstream.clone(), entries, stop.clone())));
        Self { jetstream, queue, room: Arc::new(Semaphore::new(QUEUE_BYTES_MAX)), dropped: Arc::default() }
    }

    /// Writes a finished job that has its outcome inside soon; `written` is all of it as JSON.
    pub(crate) fn put_whole(&self, document: &JobDocument, written: &Bytes) {
        let subject = subjects::job_state(owner(&document.caller), document.id);
        self.put(Entry::new(subject, written.clone()));
    }

    /// Writes the end of a job whose outcomes lie beside it in place of its state at `after`, and waits until it is stored with them. They are
    /// written before it, so who reads `finished` finds every outcome. False when another replica has ended it.
    pub(crate) async fn put_end(&self, state: &State, after: u64) -> Result<bool, String> {
        let (sender, stored) = oneshot::channel();
        let (subject, payload) = state.message();
        self.put_in_turn(Entry { after: Some(after), stored: Some(sender), ..Entry::new(subject, payload) }).await;
        match stored.await {
            Ok(true) => Ok(true),
            // Its acknowledgement may have been lost, and then it stood in its own way.
            Ok(false) => {
                let now = self.read(state.document.id).await?;
                Ok(now.is_some_and(|now| now.state.message().1 == state.message().1))
            }
            // The writer has logged why.
            Err(_) => Err("it could not be stored".to_owned()),
        }
    }

    /// Waits until everything that was written of a job is stored.
    pub(crate) async fn settle(&self, document: &JobDocument) -> Result<(), String> {
        let (sender, stored) = oneshot::channel();
        // A batch without events: it is stored after all the others.
        let subject = subjects::job_events(owner(&document.caller), document.id, "end");
        self.put_in_turn(Entry { stored: Some(sender), ..Entry::new(subject, Bytes::new()) }).await;
        stored.await.map(drop).map_err(|_| "they could not be stored".to_owned())
    }

    /// Writes what came of one of a job's runs soon, beside its state; waits for room.
    pub(crate) async fn put_run(&self, document: &JobDocument, index: usize, end: &RunEnd) {
        let subject = subjects::job_run(owner(&document.caller), document.id, index);
        // The first counts: a replica whose job was ended for it may still come to one of its own.
        let payload = serde_json::to_vec(end).unwrap_or_default().into();
        self.put_in_turn(Entry { after: Some(0), ..Entry::new(subject, payload) }).await;
    }

    /// Writes an outcome that came after its run was over soon; which run, and which attempt of it.
    pub(crate) fn put_late(&self, (principal, id): (&str, JobId), (index, attempt): (usize, u32), outcome: &Outcome) {
        let subject = subjects::job_late(owner(principal), id, format_args!("{index}-{attempt}"));
        self.put(Entry::new(subject, serde_json::to_vec(outcome).unwrap_or_default().into()));
    }

    /// Writes what nodes have told soon.
    pub(crate) fn put_events(&self, document: &JobDocument, batch: u64, events: Bytes) {
        let subject = subjects::job_events(owner(&document.caller), document.id, batch);
        self.put(Entry::new(subject, events));
    }

    /// Waits for room: it must not be lost. Nothing is written any more once the API has stopped.
    async fn put_in_turn(&self, mut entry: Entry) {
        entry.room = Arc::clone(&self.room).acquire_many_owned(bytes_of(&entry)).await.ok();
        if self.queue.send(entry).await.is_err() {
            tracing::error!("an outcome could not be kept: the API has stopped");
        }
    }

    fn put(&self, mut entry: Entry) {
        entry.room = Arc::clone(&self.room).try_acquire_many_owned(bytes_of(&entry)).ok();
        if entry.room.is_none() || self.queue.try_send(entry).is_err() {
            let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            if dropped.is_power_of_two() {
                tracing::error!(dropped, "finished jobs could not be kept: the broker stores them more slowly than they finish");
            }
        }
    }

    /// Writes a job that goes on after its state at this place (0: as its first), and waits until it is stored: its place in the stream; none when
    /// another is there already.
    pub(crate) async fn put_now(&self, state: &State, open: &Open, after: u64) -> Result<Option<u64>, String> {
        let ttl = open.ends_by.since(Timestamp::now()) + OPEN_KEPT;
        let headers = HeaderMap::from_iter([(NATS_MESSAGE_TTL, HeaderValue::from(ttl.as_secs()))]);
        let subject = subjects::job_open(&open.replica, open.id);
        let times = format!("{} {}", open.begun_at.unix_ms(), open.ends_by.unix_ms());
        let mut marker = PublishMessage::build().payload(times.into());
        for (name, values) in headers.iter() {
            marker = values.iter().fold(marker, |marker, value| marker.header(name.clone(), value.clone()));
        }
        let sent = self.jetstream.send_publish(subject, marker).await.map_err(|error| error.to_string())?;
        sent.await.map_err(|error| error.to_string())?;
        self.replace(state, after).await
    }

    /// Writes a state after the one at this place (0: as its job's first), and waits until it is stored: its own place; none when another is there.
    pub(crate) async fn replace(&self, state: &State, after: u64) -> Result<Option<u64>, String> {
        let (subject, payload) = state.message();
        let next = PublishMessage::build().payload(payload).expected_last_subject_sequence(after);
        let sent = self.jetstream.send_publish(subject, next).await.map_err(|error| error.to_string())?;
        match sent.await {
            Ok(stored) => Ok(Some(stored.sequence)),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Every job that goes on, or did until a little while ago.
    pub(crate) async fn open(&self) -> Result<Vec<Open>, String> {
        let subject = subjects::job_open(ANY, ANY);
        let (mut open, mut from) = (Vec::new(), 1);
        loop {
            let (messages, more) = next_of(&self.jetstream.client(), storage::JOBS, &subject, from, OPEN_AT_ONCE).await?;
            from = messages.last().map_or(from, |last| last.sequence + 1);
            open.extend(messages.iter().filter_map(|message| {
                let (replica, id, _) = subjects::parse_job(&message.subject)?;
                let (begun_at, ends_by) = std::str::from_utf8(&message.payload).ok()?.split_once(' ')?;
                let time = |unix_ms: &str| Timestamp::from_unix_ms(unix_ms.parse().ok()?);
                Some(Open { id, replica: replica.parse().ok()?, begun_at: time(begun_at)?, ends_by: time(ends_by)? })
            }));
            if messages.is_empty() || !more {
                return Ok(open);
            }
        }
    }

    /// Those of these jobs that go on by their state.
    pub(crate) async fn running(&self, ids: Vec<JobId>) -> Result<Vec<JobId>, String> {
        let mut running = Vec::new();
        for ids in ids.chunks(OPEN_AT_ONCE) {
            let subjects: Vec<String> = ids.iter().map(|id| subjects::job_state(ANY, id)).collect();
            let states = last_of_each(&self.jetstream.client(), storage::JOBS, &subjects).await?;
            let states = states.iter().filter_map(state_of).filter(|state| state.document.status == JobStatus::Running);
            running.extend(states.map(|state| state.document.id));
        }
        Ok(running)
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

    /// The states of the jobs of a principal, newest first, from the newest on or from the one at `newest`.
    pub(crate) async fn backwards(&self, principal: &str, newest: Option<u64>) -> Result<States, String> {
        let subject = subjects::job_state(owner(principal), ANY);
        Backwards::new(&self.jetstream, storage::JOBS, subject, newest).await.map(States)
    }

    /// These jobs as they are now.
    pub(crate) async fn now(&self, of: &[&State]) -> Result<HashMap<JobId, State>, String> {
        let subjects: Vec<String> = of.iter().map(|state| state.subject()).collect();
        if subjects.is_empty() {
            return Ok(HashMap::new());
        }
        let states = last_of_each(&self.jetstream.client(), storage::JOBS, &subjects).await?;
        Ok(states.iter().filter_map(state_of).map(|state| (state.document.id, state)).collect())
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
        let (mut state, mut sequence, mut runs, mut late) = (None, 0, Vec::new(), Vec::new());
        let mut messages = last_of_each(&self.jetstream.client(), storage::JOBS, &of_job).await?;
        // Apart, for together they may be more than one request reads; a job is known without them.
        match last_of_each(&self.jetstream.client(), storage::JOBS, &[subjects::job_late(ANY, id, ANY)]).await {
            Ok(found) => messages.extend(found),
            Err(error) => tracing::warn!(job.id = %id, %error, "what came too late cannot be read"),
        }
        for message in messages {
            match subjects::parse_job(&message.subject) {
                Some((_, _, OfJob::State)) => {
                    let read = serde_json::from_slice::<State>(&message.payload);
                    state = Some(read.map_err(|error| format!("the stored job cannot be read: {error}"))?);
                    sequence = message.sequence;
                }
                Some((_, _, OfJob::Run(index))) => {
                    let read = serde_json::from_slice::<RunEnd>(&message.payload);
                    runs.push((index, read.map_err(|error| format!("a stored outcome cannot be read: {error}"))?));
                }
                Some((_, _, OfJob::Late)) => {
                    let read = serde_json::from_slice::<Outcome>(&message.payload);
                    late.push(read.map_err(|error| format!("a stored outcome cannot be read: {error}"))?);
                }
                Some((_, _, OfJob::Events(_) | OfJob::Open)) | None => {}
            }
        }
        runs.sort_by_key(|(index, _)| *index);
        Ok(state.map(|state| Stored { state, sequence, runs, late }))
    }
}

/// States of jobs, newest first.
#[derive(Debug)]
pub(crate) struct States(Backwards);

impl States {
    /// The next states with their places in the stream, perhaps none; nothing when the beginning of the stream has been read.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<(u64, State)>>, String> {
        let messages = self.0.next().await?;
        Ok(messages.map(|messages| messages.iter().filter_map(|message| Some((message.sequence, state_of(message)?))).collect()))
    }

    /// The newest message that has not been read, if there is one.
    pub(crate) fn unread(&self) -> Option<u64> {
        self.0.unread()
    }
}

fn state_of(message: &Last) -> Option<State> {
    let read = serde_json::from_slice(&message.payload);
    read.inspect_err(|error| tracing::warn!(subject = %message.subject, %error, "a stored job cannot be read and is passed over")).ok()
}

/// A job as it was found in the stream.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    /// Its state.
    pub(crate) state: State,
    /// The place of its state in the stream.
    pub(crate) sequence: u64,
    /// The outcomes beside it, by the index of their runs.
    pub(crate) runs: Vec<(usize, RunEnd)>,
    /// Those that came late.
    pub(crate) late: Vec<Outcome>,
}

impl Stored {
    /// The job with what outcomes there are.
    pub(crate) fn into_document(self) -> JobDocument {
        let mut document = self.state.document;
        document.results.extend(self.runs.into_iter().map(|(_, end)| end.outcome));
        document.late.extend(self.late);
        document
    }
}

impl State {
    /// Whether it is the first of its job, or that written again.
    pub(crate) fn is_first(&self) -> bool {
        if self.document.expires_at.is_some() {
            return self.document.status == JobStatus::Queued;
        }
        self.runs.is_none() || self.document.status == JobStatus::Running
    }

    fn subject(&self) -> String {
        subjects::job_state(owner(&self.document.caller), self.document.id)
    }

    fn message(&self) -> (String, Bytes) {
        (self.subject(), serde_json::to_vec(self).unwrap_or_default().into())
    }
}

/// What a message takes of the room.
fn bytes_of(entry: &Entry) -> u32 {
    let bytes = entry.subject.len() + entry.payload.len();
    u32::try_from(bytes.min(QUEUE_BYTES_MAX)).unwrap_or(u32::MAX)
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
        if let Err(error) = write_batch(&jetstream, &mut batch, &stop).await {
            tracing::error!(messages = batch.len(), %error, "finished jobs could not be kept");
        }
        batch.clear();
    }
}

/// Adds what comes until the batch is full, or somebody waits for it.
async fn fill(entries: &mut mpsc::Receiver<Entry>, batch: &mut Vec<Entry>) {
    while batch.len() < BATCH_MAX && batch.iter().all(|entry| entry.stored.is_none()) {
        let room = BATCH_MAX - batch.len();
        if entries.recv_many(batch, room).await == 0 {
            return;
        }
    }
}

/// Writes a batch, again as a whole until its end is acknowledged, for what comes after it may say that it is there: the last message of a subject
/// is the one that counts. Those that somebody waits for are acknowledged each, and once. An API that stops gives up after a while.
async fn write_batch(jetstream: &Context, batch: &mut Vec<Entry>, stop: &CancellationToken) -> Result<(), String> {
    let client = jetstream.client();
    let connections = || client.statistics().connects.load(Ordering::Relaxed);
    let (mut tries, mut gives_up) = (0_u32, None);
    loop {
        // Larger than the broker takes, one would hold up all others for ever; whoever waits for it is told by its end.
        batch.retain(|entry| {
            let fits = entry.payload.len() <= client.server_info().max_payload.saturating_sub(HEADERS_BYTES_MAX);
            if !fits {
                tracing::error!(subject = entry.subject, bytes = entry.payload.len(), "a document is larger than the broker takes");
            }
            fits
        });
        let connection = connections();
        let Some(failed) = write_once(jetstream, batch).await.err().or_else(|| {
            // What was written to a connection that was lost may be lost though what followed on the next was stored.
            (connections() != connection).then(|| "the connection to the broker was lost meanwhile".to_owned())
        }) else {
            for entry in batch {
                if let (Some(waiting), Some(told)) = (entry.stored.take(), entry.told) {
                    // Whoever has gone waits no more.
                    let _gone = waiting.send(told);
                }
            }
            return Ok(());
        };
        if stop.is_cancelled() && Instant::now() > *gives_up.get_or_insert_with(|| Instant::now() + WRITTEN_WITHIN) {
            return Err(failed);
        }
        tries += 1;
        if tries.is_power_of_two() {
            tracing::warn!(messages = batch.len(), tries, error = failed, "finished jobs could not be kept yet; trying again");
        }
        tokio::time::sleep(WRITE_AGAIN_AFTER).await;
    }
}

async fn write_once(jetstream: &Context, batch: &mut [Entry]) -> Result<(), String> {
    let Some(last) = batch.len().checked_sub(1) else { return Ok(()) };
    let mut asked = Vec::new();
    for (index, entry) in batch.iter().enumerate() {
        if index == last || (entry.stored.is_some() && entry.told.is_none()) {
            asked.push((index, jetstream.send_publish(entry.subject.clone(), entry.message()).await));
            continue;
        }
        let headers = entry.after.map(|after| HeaderMap::from_iter([(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, HeaderValue::from(after))]));
        let (subject, payload) = (entry.subject.clone(), entry.payload.clone());
        let sent = jetstream.client().publish_with_headers(subject, headers.unwrap_or_default(), payload).await;
        sent.map_err(|error| error.to_string())?;
    }
    let mut complete = Ok(());
    for (index, sent) in asked {
        let stored = match sent {
            Ok(sent) => sent.await.map(|_| true),
            Err(error) => Err(error),
        };
        let stored = stored.or_else(|error| if error.kind() == PublishErrorKind::WrongLastSequence { Ok(false) } else { Err(error) });
        match (stored, batch.get_mut(index)) {
            (Ok(stored), Some(entry)) => {
                entry.told.get_or_insert(stored);
            }
            (Ok(_), None) => {}
            (Err(error), _) => complete = Err(error.to_string()),
        }
    }
    complete
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
