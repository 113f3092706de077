//! The node's own inbox: acknowledgements of what it tells the control plane.
//!
//! The client library's `request()` keeps something for each call that is never answered, and beats go unanswered for as long as the API is
//! away; so the subscription is ours and forgets.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{Client, HeaderMap, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use probeops_shared::job::header;
use probeops_shared::subjects;
use probeops_shared::text::plain;
use tokio::sync::oneshot;

use crate::outbox::Outbox;

/// How long an acknowledgement may take.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(5);

/// How much of a reason is logged.
const WHY_CHARS_MAX: usize = 300;

/// Requests of the node that wait for their answer.
#[derive(Debug)]
pub(crate) struct Inbox {
    client: Client,
    outbox: Arc<Outbox>,
    prefix: String,
    /// Where it is told why its connection is about to be cut.
    cut: String,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Bytes>>>,
}

impl Inbox {
    /// The inbox and its subscription, which [`Self::deliver`] must be fed from.
    pub(crate) async fn open(
        client: Client,
        outbox: Arc<Outbox>,
        node: impl std::fmt::Display,
    ) -> Result<(Self, Subscriber), async_nats::SubscribeError> {
        let (cut, prefix) = (subjects::node_cut(&node), subjects::node_inbox(&node));
        let subscription = client.subscribe(format!("{prefix}.{}", subjects::REST)).await?;
        Ok((Self { client, outbox, prefix, cut, next: AtomicU64::new(0), waiting: Mutex::default() }, subscription))
    }

    /// Hands the answers out until the subscription ends.
    pub(crate) async fn deliver(&self, mut subscription: Subscriber) {
        while let Some(message) = subscription.next().await {
            // Only the sentry can publish it; that the broker answers there, as somebody wanted it, is no word of hers.
            if message.subject.as_str() == self.cut {
                if !message.reply.as_ref().is_some_and(|reply| subjects::is_sentrys_inbox(reply)) {
                    continue;
                }
                let why: String = String::from_utf8_lossy(&message.payload).chars().take(WHY_CHARS_MAX).collect();
                tracing::error!("the broker's sentry cuts this connection: {}", plain(&why));
                continue;
            }
            let number = message.subject.rsplit('.').next().and_then(|token| token.parse().ok());
            let waiting = number.and_then(|number: u64| self.waiting.lock().ok()?.remove(&number));
            // A status instead of an answer says that nobody listens; dropping the sender tells the asker.
            if let Some(waiting) = waiting.filter(|_| message.status.is_none()) {
                // The asker may have given up in this very moment.
                drop(waiting.send(message.payload));
            }
        }
    }

    /// Publishes, with the digest of the shares that are known where it says so, and waits for the answer; `None` when there is none in time or no connection to send it over.
    pub(crate) async fn ask(&self, subject: String, shares: Option<String>, payload: Bytes) -> Option<Bytes> {
        // The client would keep it and send it when it is stale.
        let sent = self.outbox.connection()?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.waiting.lock().ok()?.insert(number, sender);
        let mut headers = HeaderMap::new();
        if let Some(shares) = shares {
            headers.insert(header::SHARES, shares);
        }
        let _forget = Forget { inbox: self, number };
        self.client.publish_with_reply_and_headers(subject, format!("{}.{number}", self.prefix), headers, payload).await.ok()?;
        let answer = tokio::time::timeout(ACKNOWLEDGED_WITHIN, answer).await.ok()?.ok()?;
        self.outbox.confirm(sent);
        Some(answer)
    }
}

struct Forget<'a> {
    inbox: &'a Inbox,
    number: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Ok(mut waiting) = self.inbox.waiting.lock() {
            waiting.remove(&self.number);
        }
    }
}
