//! Answers to callers.
//!
//! What is finished while the broker is away is kept, bounded, and sent after the reconnect unless it has become useless. A link that is cut is
//! noticed only after a while, and what was sent over it until then is lost; so an outcome is kept until the broker has surely had it, which is
//! when something sent after it over the same connection was acknowledged. Whoever gets it twice has the same number twice.
//!
//! All of it is bounded in bytes, too, wherever it waits: what finds no room stays in its run, which keeps its slot. What is lost is said.
//!
//! What is ready at the same moment leaves together: to write each by itself costs the agent and the broker more than to make it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use async_nats::connection::State;
use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use probeops_shared::ids::RequestId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// How many outcomes are kept, and how many bytes of them.
const KEPT_MAX: usize = 1024;
const KEPT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The number of what is just being sent: nothing confirms it.
const UNDER_WAY: u64 = u64::MAX;

/// How many bytes of answers there are between their runs and the wire: kept, waiting to leave, or in the client's own queue. What is kept
/// leaves room for as much again.
const HELD_BYTES_MAX: usize = 2 * KEPT_BYTES_MAX;

/// How many wait to leave; whoever has more waits for them.
const LEAVING_MAX: usize = 64;

/// One answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// Where to.
    pub(crate) subject: String,
    /// Which event it is.
    pub(crate) headers: HeaderMap,
    /// The body.
    pub(crate) payload: Bytes,
}

/// The answer that ends a run.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The job.
    pub(crate) request_id: RequestId,
    /// Its tool.
    pub(crate) tool: String,
    /// What to send.
    pub(crate) answer: Answer,
    /// When nobody waits for it any more.
    pub(crate) useless_at: Instant,
}

/// The way out.
#[derive(Debug)]
pub(crate) struct Outbox {
    client: Client,
    next: AtomicU64,
    kept: Mutex<Kept>,
    leaving: mpsc::Sender<Leaving>,
    /// What is left of the bytes.
    bytes: Arc<Semaphore>,
}

/// Room for an answer.
#[derive(Debug)]
pub(crate) struct Room<'a> {
    place: mpsc::Permit<'a, Leaving>,
    bytes: OwnedSemaphorePermit,
}

/// A body; it takes its room until the last copy of it is gone.
struct Held {
    body: Vec<u8>,
    _bytes: OwnedSemaphorePermit,
}

/// What waits to be sent.
#[derive(Debug)]
pub(crate) enum Leaving {
    /// An event that is worth nothing later.
    Event(Answer),
    /// An outcome.
    Outcome(Outcome),
    /// Somebody who wants to know when all before it has left.
    Mark(oneshot::Sender<()>),
}

/// Outcomes that may have to be sent (again).
#[derive(Debug, Default)]
struct Kept {
    outcomes: VecDeque<Entry>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    outcome: Outcome,
    /// When it was last sent; never, if there was no connection.
    sent: Option<Sent>,
}

/// A place in what was sent: over which connection, and after how many outcomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    connection: u64,
    number: u64,
}

impl Outbox {
    /// Answers go out over this connection, when somebody carries what is leaving.
    pub(crate) fn new(client: Client) -> (Self, mpsc::Receiver<Leaving>) {
        let (leaving, to_carry) = mpsc::channel(LEAVING_MAX);
        let bytes = Arc::new(Semaphore::new(HELD_BYTES_MAX));
        (Self { client, next: AtomicU64::new(0), kept: Mutex::default(), leaving, bytes }, to_carry)
    }

    /// Carries what is leaving to the connection, until told to end. What has not left then is lost, and said to be.
    pub(crate) async fn carry(&self, mut to_carry: mpsc::Receiver<Leaving>, end: &CancellationToken) {
        let mut batch = VecDeque::new();
        tokio::select! {
            () = self.carry_on(&mut to_carry, &mut batch) => {}
            () = end.cancelled() => {}
        }
        // Whoever waits for room learns that there will be none.
        to_carry.close();
        while let Ok(leaving) = to_carry.try_recv() {
            batch.push_back(leaving);
        }
        for leaving in batch {
            if let Leaving::Outcome(outcome) = leaving {
                lost(&outcome.request_id, &outcome.tool, "it had not left when the agent stopped");
            }
        }
        for Entry { outcome, sent } in self.kept().outcomes.drain(..) {
            match sent {
                None => lost(&outcome.request_id, &outcome.tool, "the broker was away until the agent stopped"),
                Some(_) => maybe_lost(&outcome, "the broker had not confirmed it when the agent stopped"),
            }
        }
    }

    async fn carry_on(&self, to_carry: &mut mpsc::Receiver<Leaving>, batch: &mut VecDeque<Leaving>) {
        let mut fresh = Vec::new();
        while to_carry.recv_many(&mut fresh, LEAVING_MAX).await > 0 {
            batch.extend(fresh.drain(..));
            // Whatever else can go on just now may have something to send, too.
            tokio::task::yield_now().await;
            while batch.len() < LEAVING_MAX
                && let Ok(more) = to_carry.try_recv()
            {
                batch.push_back(more);
            }
            // Each stays in the batch until it has left: the agent may stop meanwhile.
            while let Some(leaving) = batch.front() {
                let connected = self.connection();
                let published = match leaving {
                    Leaving::Event(answer) | Leaving::Outcome(Outcome { answer, .. }) if connected.is_some() => self.publish(answer).await,
                    Leaving::Event(_) | Leaving::Outcome(_) | Leaving::Mark(_) => false,
                };
                match batch.pop_front() {
                    Some(Leaving::Outcome(outcome)) => {
                        // Numbered after it was given to the client, so that what is numbered later is sent later.
                        let sent = connected.filter(|_| published).map(|before| Sent { number: self.number(), ..before });
                        self.kept().keep(Entry { outcome, sent });
                    }
                    Some(Leaving::Mark(asker)) => drop(asker.send(())),
                    Some(Leaving::Event(_)) | None => {}
                }
            }
        }
    }

    /// Sends what is small and worth nothing later.
    pub(crate) async fn send(&self, answer: Answer) {
        self.leave(Leaving::Event(answer)).await;
    }

    /// Waits until all that was to be sent before has been given to the connection.
    pub(crate) async fn emptied(&self) {
        let (mark, left) = oneshot::channel();
        self.leave(Leaving::Mark(mark)).await;
        // Nobody carries any more: then nothing leaves.
        drop(left.await);
    }

    /// Room for one more of so many bytes; none when nobody carries any more.
    pub(crate) async fn room(&self, bytes: usize) -> Option<Room<'_>> {
        let bytes = u32::try_from(bytes.min(HELD_BYTES_MAX)).unwrap_or(u32::MAX);
        tokio::select! {
            room = async {
                let bytes = Arc::clone(&self.bytes).acquire_many_owned(bytes).await.ok()?;
                Some(Room { place: self.leaving.reserve().await.ok()?, bytes })
            } => room,
            () = self.leaving.closed() => None,
        }
    }

    async fn leave(&self, leaving: Leaving) {
        if self.leaving.send(leaving).await.is_err() {
            tracing::warn!("an answer could not leave: nobody carries it any more");
        }
    }

    /// Sends what the broker may not have; call it at every (re)connect.
    pub(crate) async fn flush(&self) {
        let Some(sent) = self.connection() else { return };
        let answers = self.kept().due_over(sent.connection, Instant::now());
        for answer in answers {
            self.publish(&answer).await;
        }
        self.kept().settle(Sent { number: self.number(), ..sent });
    }

    /// This moment, if there is a connection.
    pub(crate) fn connection(&self) -> Option<Sent> {
        let connected = self.client.connection_state() == State::Connected;
        let connection = self.client.statistics().connects.load(Ordering::Relaxed);
        connected.then(|| Sent { connection, number: self.number() })
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The broker has all that was sent over that connection until then.
    pub(crate) fn confirm(&self, sent: Sent) {
        self.kept().confirm(sent);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the client took it.
    async fn publish(&self, answer: &Answer) -> bool {
        let Answer { subject, headers, payload } = answer.clone();
        let published = self.client.publish_with_headers(subject, headers, payload).await;
        published.inspect_err(|error| tracing::warn!(%error, subject = answer.subject, "an answer could not be published")).is_ok()
    }
}

impl Room<'_> {
    /// Lets what is made of a body leave.
    pub(crate) fn fill(self, body: Vec<u8>, made: impl FnOnce(Bytes) -> Leaving) {
        self.place.send(made(Bytes::from_owner(Held { body, _bytes: self.bytes })));
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

/// Says that nobody will hear of a run.
pub(crate) fn lost(request_id: &RequestId, tool: &str, why: &str) {
    tracing::error!(job.id = %request_id, tool, "an outcome is lost: {why}");
}

fn maybe_lost(outcome: &Outcome, why: &str) {
    tracing::warn!(job.id = %outcome.request_id, tool = outcome.tool, "an outcome may not have arrived: {why}");
}

impl Kept {
    /// Keeps one more, and no more than the bounds.
    fn keep(&mut self, entry: Entry) {
        self.bytes += entry.bytes();
        self.outcomes.push_back(entry);
        while self.outcomes.len() > KEPT_MAX || self.bytes > KEPT_BYTES_MAX {
            let Some(oldest) = self.outcomes.pop_front() else { return };
            self.bytes -= oldest.bytes();
            let Outcome { request_id, tool, .. } = &oldest.outcome;
            match oldest.sent {
                None => lost(request_id, tool, "too many are kept for a broker that is away, and it is the oldest"),
                Some(_) => {
                    tracing::debug!(job.id = %request_id, tool, "an outcome that was sent is not kept until it is confirmed: there are too many");
                }
            }
        }
    }

    /// Those to send over this connection: neither useless nor sent over it already.
    fn due_over(&mut self, connection: u64, now: Instant) -> Vec<Answer> {
        for Entry { outcome, sent } in self.forget(|entry| entry.outcome.useless_at <= now) {
            match sent {
                None => lost(&outcome.request_id, &outcome.tool, "the broker was away for longer than anybody waits for it"),
                Some(_) => maybe_lost(&outcome, "its connection broke, and nobody waits for it any more"),
            }
        }
        let waiting = self.outcomes.iter_mut().filter(|entry| entry.sent.is_none_or(|before| before.connection != connection));
        let mut answers = Vec::new();
        for entry in waiting {
            entry.sent = Some(Sent { connection, number: UNDER_WAY });
            answers.push(entry.outcome.answer.clone());
        }
        answers
    }

    /// Those have been given to the client.
    fn settle(&mut self, now: Sent) {
        let under_way = Sent { number: UNDER_WAY, ..now };
        self.outcomes.iter_mut().filter(|outcome| outcome.sent == Some(under_way)).for_each(|outcome| outcome.sent = Some(now));
    }

    fn confirm(&mut self, until: Sent) {
        drop(self.forget(|entry| entry.sent.is_some_and(|sent| sent.connection == until.connection && sent.number < until.number)));
    }

    fn forget(&mut self, whether: impl Fn(&Entry) -> bool) -> VecDeque<Entry> {
        let (forgotten, kept) = self.outcomes.drain(..).partition(|entry| whether(entry));
        self.outcomes = kept;
        self.bytes = self.outcomes.iter().map(Entry::bytes).sum();
        forgotten
    }
}

impl Entry {
    fn bytes(&self) -> usize {
        self.outcome.answer.payload.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use async_nats::ConnectOptions;
    use serde_json::json;
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
    use tokio::net::TcpListener;

    use super::*;

    fn outcome(name: &str, sent: Option<Sent>) -> Entry {
        let useless_at = Instant::now() + Duration::from_secs(60);
        let answer = Answer { subject: name.to_owned(), headers: HeaderMap::new(), payload: Bytes::from_static(b"{}") };
        Entry { outcome: Outcome { request_id: RequestId::new(), tool: "echo".to_owned(), answer, useless_at }, sent }
    }

    fn subjects(answers: &[Answer]) -> Vec<&str> {
        answers.iter().map(|answer| answer.subject.as_str()).collect()
    }

    const fn at(connection: u64, number: u64) -> Sent {
        Sent { connection, number }
    }

    #[test]
    fn what_was_not_confirmed_is_sent_over_the_next_connection_and_once_only() {
        let mut kept = Kept::default();
        for (name, sent) in [("confirmed", Some(at(1, 0))), ("lost", Some(at(1, 2))), ("unsent", None)] {
            kept.keep(outcome(name, sent));
        }
        kept.confirm(at(1, 1));
        // An acknowledgement over a new connection tells nothing of the old one.
        kept.confirm(at(2, 9));
        let now = Instant::now();
        assert_eq!(subjects(&kept.due_over(2, now)), ["lost", "unsent"]);
        assert!(kept.due_over(2, now).is_empty());
        kept.confirm(at(2, 10));
        assert_eq!(kept.outcomes.len(), 2, "what is still being sent is not confirmed");
        kept.settle(at(2, 11));
        kept.confirm(at(2, 12));
        assert_eq!((kept.outcomes.len(), kept.bytes), (0, 0));
    }

    #[test]
    fn what_nobody_waits_for_is_not_sent_and_the_oldest_makes_room() {
        let mut kept = Kept::default();
        kept.keep(outcome("stale", None));
        let later = Instant::now() + Duration::from_secs(61);
        assert!(kept.due_over(1, later).is_empty() && kept.outcomes.is_empty());
        for number in 0..=KEPT_MAX {
            kept.keep(outcome(&number.to_string(), None));
        }
        let first = kept.outcomes.front().unwrap();
        assert_eq!((kept.outcomes.len(), first.outcome.answer.subject.as_str()), (KEPT_MAX, "1"));
    }

    /// A broker that takes a connection, answers to it, and then does not read until told to; it counts what arrives.
    async fn slow_broker(read: CancellationToken) -> (Client, mpsc::UnboundedReceiver<usize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (arrived, arrivals) = mpsc::unbounded_channel();
        drop(tokio::spawn(async move {
            let mut stream = BufReader::new(listener.accept().await.unwrap().0);
            let info = json!({"server_id": "s", "version": "2.15.1", "max_payload": 1_048_576, "headers": true, "proto": 1});
            stream.write_all(format!("INFO {info}\r\n").as_bytes()).await.unwrap();
            let mut line = String::new();
            while stream.read_line(&mut line).await.unwrap() > 0 {
                if line.starts_with("PING") {
                    stream.write_all(b"PONG\r\n").await.unwrap();
                    read.cancelled().await;
                } else if line.starts_with("HPUB") {
                    let length: usize = line.split_whitespace().last().unwrap().parse().unwrap();
                    stream.read_exact(&mut vec![0; length + 2]).await.unwrap();
                    arrived.send(length).unwrap();
                }
                line.clear();
            }
        }));
        (async_nats::connect(address.to_string()).await.unwrap(), arrivals)
    }

    const LARGE: usize = 256 * 1024;

    fn large(number: usize) -> impl FnOnce(Bytes) -> Leaving {
        move |payload| {
            let mut entry = outcome(&format!("o.{number}"), None).outcome;
            entry.answer.headers.insert("Probe-Event", "outcome");
            entry.answer.payload = payload;
            Leaving::Outcome(entry)
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_thousand_large_outcomes_wait_for_a_slow_broker_in_their_runs_and_all_arrive() {
        const OUTCOMES: usize = 1_000;
        let (read, end) = (CancellationToken::new(), CancellationToken::new());
        let (client, mut arrivals) = slow_broker(read.clone()).await;
        let (outbox, to_carry) = Outbox::new(client);
        let outbox = Arc::new(outbox);
        let (carrying, ended) = (Arc::clone(&outbox), end.clone());
        let carried = tokio::spawn(async move { carrying.carry(to_carry, &ended).await });
        let offering = Arc::clone(&outbox);
        let (offered, mut offers) = mpsc::unbounded_channel();
        drop(tokio::spawn(async move {
            for number in 0..OUTCOMES {
                offering.room(LARGE).await.unwrap().fill(vec![b'x'; LARGE], large(number));
                offered.send(()).unwrap();
            }
        }));
        // What the system takes from the client before the other side reads is small, so there is an end soon.
        let mut taken = 0;
        while tokio::time::timeout(Duration::from_millis(500), offers.recv()).await.is_ok() {
            taken += 1;
        }
        assert!((8..OUTCOMES / 4).contains(&taken), "{taken}");
        assert!(outbox.kept().bytes <= KEPT_BYTES_MAX && outbox.bytes.available_permits() < LARGE);
        read.cancel();
        for number in 0..OUTCOMES {
            let length = tokio::time::timeout(Duration::from_secs(30), arrivals.recv()).await.unwrap().unwrap();
            assert!(length > LARGE, "{number}: {length}");
        }
        // Nobody waits for room in vain when it ends.
        end.cancel();
        carried.await.unwrap();
        assert!(outbox.room(1).await.is_none());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn large_outcomes_for_a_broker_that_is_away_are_kept_as_far_as_the_bound_goes() {
        // Nobody listens there.
        let client = ConnectOptions::new().retry_on_initial_connect().connect("127.0.0.1:1").await.unwrap();
        let (outbox, to_carry) = Outbox::new(client);
        let (outbox, end) = (Arc::new(outbox), CancellationToken::new());
        let (carrying, ended) = (Arc::clone(&outbox), end.clone());
        let carried = tokio::spawn(async move { carrying.carry(to_carry, &ended).await });
        for number in 0..100 {
            outbox.room(LARGE).await.unwrap().fill(vec![b'x'; LARGE], large(number));
        }
        outbox.emptied().await;
        let subjects: Vec<String> = outbox.kept().outcomes.iter().map(|entry| entry.outcome.answer.subject.clone()).collect();
        let newest = KEPT_BYTES_MAX / LARGE;
        assert_eq!(subjects, (100 - newest..100).map(|number| format!("o.{number}")).collect::<Vec<_>>());
        assert_eq!(outbox.bytes.available_permits(), HELD_BYTES_MAX - KEPT_BYTES_MAX);
        end.cancel();
        carried.await.unwrap();
        assert_eq!(outbox.bytes.available_permits(), HELD_BYTES_MAX, "what is lost is not held");
    }
}
