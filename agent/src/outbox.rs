//! Answers to callers.
//!
//! What is finished while the broker is away is kept, bounded, and sent after the reconnect unless it has become useless. A link that is cut is
//! noticed only after a while, and what was sent over it until then is lost; so an outcome is kept until the broker has surely had it, which is
//! when something sent after it over the same connection was acknowledged. Whoever gets it twice has the same number twice.
//!
//! What is ready at the same moment leaves together: to write each by itself costs the agent and the broker more than to make it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use async_nats::connection::State;
use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

/// How many outcomes are kept, and how many bytes of them.
const KEPT_MAX: usize = 1024;
const KEPT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The number of what is just being sent: nothing confirms it.
const UNDER_WAY: u64 = u64::MAX;

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
}

/// What waits to be sent.
#[derive(Debug)]
pub(crate) enum Leaving {
    /// An event that is worth nothing later.
    Event(Answer),
    /// An outcome.
    Outcome(Answer),
    /// Somebody who wants to know when all before it has left.
    Mark(oneshot::Sender<()>),
}

/// Outcomes that may have to be sent (again).
#[derive(Debug, Default)]
struct Kept {
    outcomes: VecDeque<Outcome>,
    bytes: usize,
}

#[derive(Debug)]
struct Outcome {
    answer: Answer,
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
        (Self { client, next: AtomicU64::new(0), kept: Mutex::default(), leaving }, to_carry)
    }

    /// Carries what is leaving to the connection, for as long as there is anything to come.
    pub(crate) async fn carry(&self, mut to_carry: mpsc::Receiver<Leaving>) {
        let mut batch = Vec::new();
        while to_carry.recv_many(&mut batch, LEAVING_MAX).await > 0 {
            // Whatever else can go on just now may have something to send, too.
            tokio::task::yield_now().await;
            while batch.len() < LEAVING_MAX
                && let Ok(more) = to_carry.try_recv()
            {
                batch.push(more);
            }
            for leaving in batch.drain(..) {
                match leaving {
                    Leaving::Event(answer) if self.connection().is_some() => self.publish(answer).await,
                    Leaving::Event(_) => {}
                    Leaving::Outcome(answer) => self.publish_or_keep(answer).await,
                    Leaving::Mark(asker) => drop(asker.send(())),
                }
            }
        }
    }

    /// Sends an event that is worth nothing later.
    pub(crate) async fn send(&self, answer: Answer) {
        self.leave(Leaving::Event(answer)).await;
    }

    /// Sends an outcome, now and if need be again, or after the reconnect.
    pub(crate) async fn send_or_keep(&self, answer: Answer) {
        self.leave(Leaving::Outcome(answer)).await;
    }

    /// Waits until all that was to be sent before has been given to the connection.
    pub(crate) async fn emptied(&self) {
        let (mark, left) = oneshot::channel();
        self.leave(Leaving::Mark(mark)).await;
        // Nobody carries any more: then nothing leaves.
        drop(left.await);
    }

    /// Room for one more; none when nobody carries any more.
    pub(crate) async fn room(&self) -> Option<mpsc::Permit<'_, Leaving>> {
        self.leaving.reserve().await.ok()
    }

    async fn leave(&self, leaving: Leaving) {
        if self.leaving.send(leaving).await.is_err() {
            tracing::warn!("an answer could not leave: nobody carries it any more");
        }
    }

    async fn publish_or_keep(&self, answer: Answer) {
        let connected = self.connection();
        if connected.is_some() {
            self.publish(answer.clone()).await;
        }
        // Numbered after it was given to the client, so that what is numbered later is sent later.
        let sent = connected.map(|before| Sent { number: self.number(), ..before });
        self.kept().keep(Outcome { answer, sent });
    }

    /// Sends what the broker may not have; call it at every (re)connect.
    pub(crate) async fn flush(&self) {
        let Some(sent) = self.connection() else { return };
        let answers = self.kept().due_over(sent.connection, Instant::now());
        for answer in answers {
            self.publish(answer).await;
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

    async fn publish(&self, answer: Answer) {
        if let Err(error) = self.client.publish_with_headers(answer.subject, answer.headers, answer.payload).await {
            tracing::warn!(%error, "an answer could not be published");
        }
    }
}

impl Kept {
    /// Keeps one more, and no more than the bounds.
    fn keep(&mut self, outcome: Outcome) {
        self.bytes += outcome.answer.payload.len();
        self.outcomes.push_back(outcome);
        while self.outcomes.len() > KEPT_MAX || self.bytes > KEPT_BYTES_MAX {
            let Some(oldest) = self.outcomes.pop_front() else { return };
            self.bytes -= oldest.answer.payload.len();
            if oldest.sent.is_none() {
                tracing::warn!("too many outcomes are kept for a broker that is away; the oldest is dropped");
            }
        }
    }

    /// Those to send over this connection: neither useless nor sent over it already.
    fn due_over(&mut self, connection: u64, now: Instant) -> Vec<Answer> {
        self.forget(|outcome| outcome.answer.useless_at <= now);
        let waiting = self.outcomes.iter_mut().filter(|outcome| outcome.sent.is_none_or(|before| before.connection != connection));
        let mut answers = Vec::new();
        for outcome in waiting {
            outcome.sent = Some(Sent { connection, number: UNDER_WAY });
            answers.push(outcome.answer.clone());
        }
        answers
    }

    /// Those have been given to the client.
    fn settle(&mut self, now: Sent) {
        let under_way = Sent { number: UNDER_WAY, ..now };
        self.outcomes.iter_mut().filter(|outcome| outcome.sent == Some(under_way)).for_each(|outcome| outcome.sent = Some(now));
    }

    fn confirm(&mut self, until: Sent) {
        self.forget(|outcome| outcome.sent.is_some_and(|sent| sent.connection == until.connection && sent.number < until.number));
    }

    fn forget(&mut self, whether: impl Fn(&Outcome) -> bool) {
        self.outcomes.retain(|outcome| !whether(outcome));
        self.bytes = self.outcomes.iter().map(|outcome| outcome.answer.payload.len()).sum();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn outcome(name: &str, sent: Option<Sent>) -> Outcome {
        let useless_at = Instant::now() + Duration::from_secs(60);
        let answer = Answer { subject: name.to_owned(), headers: HeaderMap::new(), payload: Bytes::from_static(b"{}"), useless_at };
        Outcome { answer, sent }
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
        assert_eq!((kept.outcomes.len(), first.answer.subject.as_str()), (KEPT_MAX, "1"));
    }
}
