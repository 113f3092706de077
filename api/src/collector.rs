//! Listens to what nodes say: beats into bucket PRESENCE, audit records into the trail; each is acknowledged with the control plane's time.
//!
//! Two credentials do it. The collector hears nodes and may write those two things. The acknowledger can publish to nodes' inboxes and to
//! nothing else, so that no node can make us publish elsewhere by choosing a reply subject.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::context::KeyValueError;
use async_nats::jetstream::kv::{self, UpdateErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::{Client, Message, Subscriber, jetstream};
use futures_util::StreamExt;
use probeops_shared::audit::Verdict;
use probeops_shared::ids::{NodeId, Region};
use probeops_shared::presence::{Beat, EventAck, EventKind};
use probeops_shared::subjects::{self, storage};
use probeops_shared::timestamp::Timestamp;
use serde::Deserialize;

use crate::audit::message_id;

/// How long the broker may take to keep something.
const KEPT_WITHIN: Duration = Duration::from_secs(5);
/// How many nodes' revisions are remembered; more are looked up again.
const REVISIONS_MAX: usize = 100_000;

/// What hears nodes.
#[derive(Debug)]
pub(crate) struct Collector {
    client: Client,
    name: String,
    jetstream: jetstream::Context,
    presence: kv::Store,
    acknowledger: Client,
    /// The last beat written for each node: the start it belongs to, its number, and the entry's revision.
    written: HashMap<String, (Timestamp, u64, u64)>,
}

/// What an audit record of a node says of whose it is and what happened; the rest of it is passed on as it came.
#[derive(Deserialize)]
struct OfNode<'a> {
    #[serde(borrow)]
    node: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    region: std::borrow::Cow<'a, str>,
    verdict: Verdict,
}

impl OfNode<'_> {
    /// Whether that node may say it: of itself, and only what nodes do.
    fn is_of(&self, region: &Region, node: &NodeId) -> bool {
        self.node == node.as_str() && self.region == region.as_str() && matches!(self.verdict, Verdict::Finished | Verdict::Denied)
    }
}

impl Collector {
    /// A collector with its two connections.
    pub(crate) async fn new(client: Client, name: String, acknowledger: Client) -> Result<Self, KeyValueError> {
        let mut jetstream = jetstream::new(client.clone());
        jetstream.set_timeout(KEPT_WITHIN);
        let presence = jetstream.get_key_value(storage::PRESENCE).await?;
        Ok(Self { client, name, jetstream, presence, acknowledger, written: HashMap::new() })
    }

    /// Joins the collectors' group.
    pub(crate) async fn subscribe(&self) -> Result<Subscriber, async_nats::SubscribeError> {
        self.client.queue_subscribe(subjects::events(), subjects::COLLECTOR_QUEUE.to_owned()).await
    }

    /// Hears nodes until the subscription ends.
    pub(crate) async fn collect(mut self, mut events: Subscriber) {
        while let Some(message) = events.next().await {
            let Some((region, node, kind)) = subjects::parse_event(&message.subject) else { continue };
            let kept = match EventKind::parse(kind) {
                Some(EventKind::Hello | EventKind::Beat) => self.keep_beat(&region, &node, &message).await,
                Some(EventKind::Bye) => self.forget(&region, &node).await,
                Some(EventKind::Audit) => self.keep_records(&region, &node, &message).await,
                None => Err(format!("unknown kind `{kind}`")),
            };
            match kept {
                Ok(()) => self.acknowledge(&node, &message).await,
                Err(error) => tracing::warn!(%node, kind, error, "an event of a node was not kept; it will say it again"),
            }
        }
    }

    async fn keep_beat(&mut self, region: &Region, node: &NodeId, message: &Message) -> Result<(), String> {
        let beat: Beat = serde_json::from_slice(&message.payload).map_err(|error| format!("not a beat: {error}"))?;
        if beat.node != *node || beat.region != *region {
            return Err("it speaks in another node's name".to_owned());
        }
        let key = subjects::presence_key(region, node);
        let order = (beat.started_at, beat.counter);
        let value = message.payload.clone();
        for _ in 0..2 {
            let known = match self.written.get(&key) {
                Some(known) => Some(*known),
                None => self.look_up(&key).await?,
            };
            if known.is_some_and(|(started_at, counter, _)| (started_at, counter) > order) {
                return Ok(());
            }
            let revision = known.map_or(0, |(_, _, revision)| revision);
            match self.presence.update(&key, value.clone(), revision).await {
                Ok(revision) => {
                    if self.written.len() >= REVISIONS_MAX {
                        self.written.clear();
                    }
                    self.written.insert(key, (order.0, order.1, revision));
                    return Ok(());
                }
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => drop(self.written.remove(&key)),
                Err(error) => return Err(error.to_string()),
            }
        }
        Err("another collector writes the same node's entry at the same time".to_owned())
    }

    /// The entry as it is now. A deleted or expired one still has a revision to update from.
    async fn look_up(&self, key: &str) -> Result<Option<(Timestamp, u64, u64)>, String> {
        let entry = self.presence.entry(key).await.map_err(|error| error.to_string())?;
        Ok(entry.map(|entry| {
            let beat = serde_json::from_slice::<Beat>(&entry.value).ok();
            let oldest = Timestamp::from_unix_ms(0).unwrap_or_else(Timestamp::now);
            beat.map_or((oldest, 0, entry.revision), |beat| (beat.started_at, beat.counter, entry.revision))
        }))
    }

    async fn forget(&mut self, region: &Region, node: &NodeId) -> Result<(), String> {
        let key = subjects::presence_key(region, node);
        self.written.remove(&key);
        self.presence.delete(key).await.map_err(|error| error.to_string())
    }

    async fn keep_records(&self, region: &Region, node: &NodeId, message: &Message) -> Result<(), String> {
        let records: Vec<OfNode<'_>> = serde_json::from_slice(&message.payload).map_err(|error| format!("not audit records: {error}"))?;
        if !records.iter().all(|record| record.is_of(region, node)) {
            return Err("its audit records are not its own".to_owned());
        }
        let subject = subjects::audit(subjects::AUDIT_NODE, &self.name);
        // A node that has not heard our acknowledgement sends the same again.
        let kept = PublishMessage::build().payload(message.payload.clone()).message_id(message_id(node, &message.payload));
        let sent = self.jetstream.send_publish(subject, kept).await.map_err(|error| error.to_string())?;
        sent.await.map(drop).map_err(|error| error.to_string())
    }

    async fn acknowledge(&self, node: &NodeId, message: &Message) {
        let Some(reply) = &message.reply else { return };
        if !reply.starts_with(&format!("{}.", subjects::node_inbox(node))) {
            tracing::warn!(%node, %reply, "an event asks to be acknowledged in somebody else's inbox; it is not");
            return;
        }
        let ack = serde_json::to_vec(&EventAck { time_unix_ms: Timestamp::now().unix_ms() }).unwrap_or_default();
        if let Err(error) = self.acknowledger.publish(reply.clone(), ack.into()).await {
            tracing::warn!(%node, %error, "an event could not be acknowledged");
        }
    }
}
