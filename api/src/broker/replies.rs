//! Answers of nodes, handed to whoever waits for them.
//!
//! One subscription serves the whole process. The client library's own `request()` returns only the first answer and keeps a little for
//! every call that is never answered; this map forgets a token when its waiter is dropped.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use async_nats::{Client, Message, StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use probeops_shared::ids::{Caller, NodeId, ReplyToken, RequestId};
use probeops_shared::job::{Event, Verb, header};
use probeops_shared::subjects;
use probeops_shared::traceparent::Traceparent;
use tokio::sync::mpsc;

use super::late::{Late, LateAnswer};

/// Who waits for what.
#[derive(Debug)]
pub(crate) struct Replies {
    waiters: Mutex<HashMap<ReplyToken, Waiter>>,
    /// For whom nobody waits any more.
    pub(crate) late: Late,
}

#[derive(Clone, Debug)]
struct Waiter {
    attempt: u32,
    asked: Option<NodeId>,
    sender: mpsc::Sender<Box<Answer>>,
    listener: Option<Arc<dyn Listener>>,
}

/// Who wants to hear what a node tells while it is at a run. Called where all answers come in: it must be quick.
pub(crate) trait Listener: fmt::Debug + Send + Sync {
    /// A node has begun, or has found something.
    fn hear(&self, heard: &Heard<'_>);
}

/// What a node tells while it is at a run.
#[derive(Debug)]
pub(crate) struct Heard<'a> {
    /// Which dispatch of the run.
    pub(crate) attempt: u32,
    /// Its number in that dispatch, from 0.
    pub(crate) seq: u64,
    /// Which node, attested by the broker.
    pub(crate) node: &'a NodeId,
    /// The [`Progress`](probeops_shared::outcome::Progress) as the node wrote it; none when it has begun.
    pub(crate) progress: Option<&'a [u8]>,
}

/// One answer to an attempt. Boxed on its way: every job has a queue, and tokio makes one with room for 32 of what it carries.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Which attempt.
    pub(crate) attempt: u32,
    /// Which node, attested by the broker; none when the broker itself says that nobody listens.
    pub(crate) node: Option<NodeId>,
    /// What it is.
    pub(crate) event: Event,
    /// Its number in the attempt, from 0.
    pub(crate) seq: u64,
    /// Its body; of progress it is with the listener.
    pub(crate) payload: Bytes,
    /// The node's span, where it names one.
    pub(crate) span: Option<Traceparent>,
}

impl Replies {
    /// Nobody waits yet. What comes too late is read at the other end.
    pub(crate) fn new() -> (Self, mpsc::Receiver<LateAnswer>) {
        let (late, answers) = Late::new();
        (Self { waiters: Mutex::default(), late }, answers)
    }

    /// Waits for answers to an attempt until the returned guard is dropped. What the node tells until its outcome, `listener` hears. Where one node
    /// was `asked`, nobody else is heard.
    pub(crate) fn wait(
        &self,
        (attempt, asked): (u32, Option<NodeId>),
        sender: mpsc::Sender<Box<Answer>>,
        listener: Option<Arc<dyn Listener>>,
    ) -> Waiting<'_> {
        let token = ReplyToken::new();
        self.lock().insert(token, Waiter { attempt, asked, sender, listener });
        Waiting { replies: self, token }
    }

    /// Hands answers out until the subscription ends. Only dispatches: whatever is slow would make the client library drop messages.
    pub(crate) async fn deliver(&self, mut answers: Subscriber, caller: &Caller, client: &Client) {
        while let Some(message) = answers.next().await {
            let Some((token, responder)) = subjects::parse_reply(&message.subject, caller) else { continue };
            let Some((node, event)) = read(&message, responder) else { continue };
            let waiter = self.lock().get(&token).cloned();
            match (waiter, node) {
                (Some(waiter), node) => waiter.hand(node, event, message),
                (None, Some(node)) if event == Event::Accepted => cancel_late(client, caller, &node, &message).await,
                (None, Some(node))
                    if event == Event::Outcome && self.late.hear(token, node.clone(), message.payload.clone(), span(&message)) => {}
                (None, _) => tracing::debug!(subject = %message.subject, "an answer came after its job was over"),
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ReplyToken, Waiter>> {
        self.waiters.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Waiter {
    fn hand(&self, node: Option<NodeId>, event: Event, message: Message) {
        if let (Some(asked), Some(node)) = (&self.asked, &node)
            && asked != node
        {
            return tracing::warn!(%node, %asked, "a node answered what another was asked; it is not heard");
        }
        let seq = seq(&message);
        let (attempt, told) = (self.attempt, event == Event::Progress);
        if let (Some(node), Some(listener), Event::Accepted | Event::Progress) = (&node, &self.listener, event) {
            let progress = told.then_some(message.payload.as_ref());
            listener.hear(&Heard { attempt, seq, node, progress });
        }
        // Of progress whoever waits needs to know only that there is life, and only if nothing else says so: its place is for what must not be
        // lost. Full of the rest only when the waiter does not read: it has bounded patience and will end by itself.
        if told && self.sender.capacity() <= self.sender.max_capacity() / 2 {
            return;
        }
        let span = span(&message);
        let payload = if told { Bytes::new() } else { message.payload };
        drop(self.sender.try_send(Box::new(Answer { attempt, node, event, seq, payload, span })));
    }
}

/// A "no responders" is believed only where no node can publish, an event only from a node.
pub(super) fn read(message: &Message, responder: &str) -> Option<(Option<NodeId>, Event)> {
    if responder == subjects::NO_RESPONDERS {
        return (message.status == Some(StatusCode::NO_RESPONDERS)).then_some((None, Event::Outcome));
    }
    let name = message.headers.as_ref().and_then(|headers| headers.get(header::EVENT)).map(async_nats::HeaderValue::as_str);
    Some((Some(responder.parse().ok()?), Event::parse(name)?))
}

/// The number of an event in its attempt; 0 where none is said.
pub(super) fn seq(message: &Message) -> u64 {
    message.headers.as_ref().and_then(|headers| headers.get(header::SEQ)?.as_str().parse().ok()).unwrap_or(0)
}

/// The span of a node, which it names with its outcome.
pub(super) fn span(message: &Message) -> Option<Traceparent> {
    message.headers.as_ref()?.get(header::TRACEPARENT)?.as_str().parse().ok()
}

/// A node that took a job which is over already need not go on.
async fn cancel_late(client: &Client, caller: &Caller, node: &NodeId, message: &Message) {
    let named = serde_json::from_slice::<serde_json::Value>(&message.payload).ok();
    let request_id = named.and_then(|body| body.get("request_id")?.as_str()?.parse::<RequestId>().ok());
    if let Some(request_id) = request_id {
        cancel(client, caller, node, &request_id).await;
    }
}

/// Tells a node to stop a run.
pub(crate) async fn cancel(client: &Client, caller: &Caller, node: &NodeId, request_id: &RequestId) {
    let subject = subjects::node_control(node, Verb::Cancel.as_str(), caller);
    let body = serde_json::json!({"request_id": request_id}).to_string();
    if let Err(error) = client.publish(subject, body.into()).await {
        tracing::warn!(%node, %request_id, %error, "a run could not be cancelled");
    }
}

/// Waits for answers while it lives.
#[derive(Debug)]
pub(crate) struct Waiting<'a> {
    replies: &'a Replies,
    token: ReplyToken,
}

impl Waiting<'_> {
    /// The token of the reply subject.
    pub(crate) fn token(&self) -> ReplyToken {
        self.token
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.replies.lock().remove(&self.token);
    }
}
