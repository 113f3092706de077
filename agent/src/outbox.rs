//! Answers to callers. What is finished while the broker is away is kept, bounded, and sent after the reconnect unless it has become useless.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Instant;

use async_nats::connection::State;
use async_nats::{Client, HeaderMap};
use bytes::Bytes;

/// How many outcomes are kept while the broker is away.
const KEPT_MAX: usize = 256;

/// One answer.
#[derive(Debug)]
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
    kept: Mutex<VecDeque<Answer>>,
}

impl Outbox {
    /// Answers go out over this connection.
    pub(crate) fn new(client: Client) -> Self {
        Self { client, kept: Mutex::default() }
    }

    /// Sends an event that is worth nothing later.
    pub(crate) async fn send(&self, answer: Answer) {
        if self.connected() {
            self.publish(answer).await;
        }
    }

    /// Sends an outcome now, or after the reconnect.
    pub(crate) async fn send_or_keep(&self, answer: Answer) {
        if self.connected() {
            return self.publish(answer).await;
        }
        let Ok(mut kept) = self.kept.lock() else { return };
        if kept.len() == KEPT_MAX {
            tracing::warn!("{KEPT_MAX} outcomes are kept for a broker that is away; the oldest is dropped");
            kept.pop_front();
        }
        kept.push_back(answer);
    }

    /// Sends what was kept; call it at every (re)connect.
    pub(crate) async fn flush(&self) {
        let kept = self.kept.lock().map(|mut kept| std::mem::take(&mut *kept)).unwrap_or_default();
        let now = Instant::now();
        for answer in kept.into_iter().filter(|answer| answer.useless_at > now) {
            self.publish(answer).await;
        }
    }

    fn connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    async fn publish(&self, answer: Answer) {
        if let Err(error) = self.client.publish_with_headers(answer.subject, answer.headers, answer.payload).await {
            tracing::warn!(%error, "an answer could not be published");
        }
    }
}
