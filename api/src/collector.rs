//! Listens to what nodes say: beats into bucket PRESENCE, audit records into the trail; each is acknowledged with the control plane's time.
//!
//! Two credentials do it. The collector hears nodes and may write those two things. The acknowledger can publish to nodes' inboxes and to
//! nothing else, so that no node can make us publish elsewhere by choosing a reply subject.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::context::KeyValueError;
use async_nats::jetstream::kv::{self, UpdateErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::{Client, Message, Subscriber, jetstream};
use futures_util::StreamExt;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use probeops_shared::audit::chain::{Batch, Link, node_writer};
use probeops_shared::audit::{BATCH_MAX, Verdict};
use probeops_shared::ids::{NodeId, Region};
use probeops_shared::job::header;
use probeops_shared::presence::{Beat, EventAck, EventKind};
use probeops_shared::subjects::{self, storage};
use probeops_shared::timestamp::Timestamp;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::audit::message_id;
use crate::broker::Told;

/// How long the broker may take to keep something.
const KEPT_WITHIN: Duration = Duration::from_secs(5);
/// How many events of one node wait for the one in work. A node says its next only when the last was acknowledged, of beats and of records.
const EVENTS_WAITING_MAX: usize = 16;
/// How many events of one node are kept in a second; as many batches of the trail as 20,000 runs a second make.
const EVENTS_PER_S_MAX: NonZeroU32 = NonZeroU32::new(200).unwrap();
/// How many bytes of records of one node are kept in a second in the long run, and at once: one node does not fill the trail. What comes faster
/// waits at the node.
const RECORD_BYTES_PER_S_MAX: NonZeroU32 = NonZeroU32::new(64 * 1024).unwrap();
const RECORD_BYTES_AT_ONCE_MAX: NonZeroU32 = NonZeroU32::new(16 * 1024 * 1024).unwrap();
/// The largest batch that an agent sends, with room for what is around its records.
const BATCH_BYTES_MAX: usize = 160 * 1024;
/// How long a node is remembered after its last event.
const REMEMBERED_FOR: Duration = Duration::from_mins(1);
/// How many nodes are heard before those that ended are looked for.
const HEARD_MIN: usize = 64;

/// What hears nodes: each by itself, so that one that floods us makes nobody else wait.
#[derive(Debug)]
pub(crate) struct Collector {
    client: Client,
    keeper: Arc<Keeper>,
}

/// What keeps and acknowledges the events of any node.
#[derive(Debug)]
struct Keeper {
    name: String,
    jetstream: jetstream::Context,
    presence: kv::Store,
    acknowledger: Client,
    told: Told,
}

/// One node, as far as it was heard.
struct Heard {
    keeper: Arc<Keeper>,
    region: Region,
    node: NodeId,
    allowance: DefaultDirectRateLimiter,
    record_bytes: DefaultDirectRateLimiter,
    /// The last beat written: the start it belongs to, its number, and the entry's revision.
    written: Option<Written>,
}

type Written = (Timestamp, u64, u64);

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
        let nodes_do = matches!(self.verdict, Verdict::Started | Verdict::Finished | Verdict::Denied | Verdict::Lost);
        nodes_do && self.node == node.as_str() && self.region == region.as_str()
    }
}

impl Collector {
    /// A collector with its two connections.
    pub(crate) async fn new(client: Client, name: String, acknowledger: Client, told: Told) -> Result<Self, KeyValueError> {
        let mut jetstream = jetstream::new(client.clone());
        jetstream.set_timeout(KEPT_WITHIN);
        let presence = jetstream.get_key_value(storage::PRESENCE).await?;
        Ok(Self { client, keeper: Arc::new(Keeper { name, jetstream, presence, acknowledger, told }) })
    }

    /// Joins the collectors' group.
    pub(crate) async fn subscribe(&self) -> Result<Subscriber, async_nats::SubscribeError> {
        self.client.queue_subscribe(subjects::events(), subjects::COLLECTOR_QUEUE.to_owned()).await
    }

    /// Hears nodes until the subscription ends.
    pub(crate) async fn collect(self, mut events: Subscriber) {
        let mut nodes: HashMap<String, mpsc::Sender<Message>> = HashMap::new();
        let mut tidied_at = HEARD_MIN;
        while let Some(message) = events.next().await {
            let Some((region, node, _)) = subjects::parse_event(&message.subject) else { continue };
            let key = subjects::presence_key(&region, &node);
            let message = match nodes.get(&key) {
                Some(heard) => match heard.try_send(message) {
                    Err(TrySendError::Closed(message)) => message,
                    Ok(()) => continue,
                    Err(TrySendError::Full(_)) => {
                        tracing::debug!(%node, "an event of a node was not kept: the node does not wait for the acknowledgement of its last ones");
                        continue;
                    }
                },
                None => message,
            };
            if nodes.len() >= tidied_at {
                nodes.retain(|_, heard| !heard.is_closed());
                tidied_at = HEARD_MIN.max(nodes.len() * 2);
            }
            let (heard, waiting) = mpsc::channel(EVENTS_WAITING_MAX);
            // There is room for the first.
            drop(heard.try_send(message));
            drop(nodes.insert(key, heard));
            drop(tokio::spawn(Heard::new(Arc::clone(&self.keeper), region, node).keep(waiting)));
        }
    }
}

impl Heard {
    fn new(keeper: Arc<Keeper>, region: Region, node: NodeId) -> Self {
        Self {
            keeper,
            region,
            node,
            allowance: RateLimiter::direct(Quota::per_second(EVENTS_PER_S_MAX)),
            record_bytes: RateLimiter::direct(Quota::per_second(RECORD_BYTES_PER_S_MAX).allow_burst(RECORD_BYTES_AT_ONCE_MAX)),
            written: None,
        }
    }

    /// Keeps what the node says, one after the other, until it has said nothing for long.
    async fn keep(mut self, mut waiting: mpsc::Receiver<Message>) {
        while let Ok(Some(message)) = tokio::time::timeout(REMEMBERED_FOR, waiting.recv()).await {
            self.allowance.until_ready().await;
            let kind = subjects::parse_event(&message.subject).map_or("", |(_, _, kind)| kind);
            let kept = match EventKind::parse(kind) {
                Some(EventKind::Hello | EventKind::Beat) => self.keep_beat(&message).await,
                Some(EventKind::Bye) => self.forget().await,
                Some(EventKind::Audit) => self.keep_records(&message).await,
                Some(EventKind::Time) => Ok(()),
                None => Err(format!("unknown kind `{kind}`")),
            };
            match kept {
                Ok(()) => self.acknowledge(&message, EventKind::parse(kind)).await,
                Err(error) => tracing::warn!(node = %self.node, kind, error, "an event of a node was not kept; it will say it again"),
            }
        }
    }

    async fn keep_beat(&mut self, message: &Message) -> Result<(), String> {
        let beat: Beat = serde_json::from_slice(&message.payload).map_err(|error| format!("not a beat: {error}"))?;
        if beat.node != self.node || beat.region != self.region {
            return Err("it speaks in another node's name".to_owned());
        }
        let key = self.key();
        let order = (beat.started_at, beat.counter);
        for _ in 0..2 {
            let known = match self.written {
                Some(known) => Some(known),
                None => self.look_up(&key).await?,
            };
            if known.is_some_and(|(started_at, counter, _)| (started_at, counter) > order) {
                return Ok(());
            }
            let revision = known.map_or(0, |(_, _, revision)| revision);
            match self.keeper.presence.update(&key, message.payload.clone(), revision).await {
                Ok(revision) => {
                    self.written = Some((order.0, order.1, revision));
                    return Ok(());
                }
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => self.written = None,
                Err(error) => return Err(error.to_string()),
            }
        }
        Err("another collector writes the same node's entry at the same time".to_owned())
    }

    /// The entry as it is now. A deleted or expired one still has a revision to update from.
    async fn look_up(&self, key: &str) -> Result<Option<Written>, String> {
        let entry = self.keeper.presence.entry(key).await.map_err(|error| error.to_string())?;
        Ok(entry.map(|entry| {
            let beat = serde_json::from_slice::<Beat>(&entry.value).ok();
            let oldest = Timestamp::from_unix_ms(0).unwrap_or_else(Timestamp::now);
            beat.map_or((oldest, 0, entry.revision), |beat| (beat.started_at, beat.counter, entry.revision))
        }))
    }

    async fn forget(&mut self) -> Result<(), String> {
        self.written = None;
        self.keeper.presence.delete(self.key()).await.map_err(|error| error.to_string())
    }

    async fn keep_records(&self, message: &Message) -> Result<(), String> {
        let bytes = message.payload.len();
        if bytes > BATCH_BYTES_MAX {
            return Err(format!("its audit records have {bytes} bytes, not at most {BATCH_BYTES_MAX}"));
        }
        let batch: Batch<OfNode<'_>> = serde_json::from_slice(&message.payload).map_err(|error| format!("not audit records: {error}"))?;
        if batch.records.is_empty() || batch.records.len() > BATCH_MAX {
            return Err(format!("it sends {} audit records at once, not 1 to {BATCH_MAX}", batch.records.len()));
        }
        let own = |link: &Link<OfNode<'_>>| link.record.is_of(&self.region, &self.node);
        if batch.writer != node_writer(&self.node) || !batch.records.iter().all(own) {
            return Err("its audit records are not its own".to_owned());
        }
        let due = NonZeroU32::new(u32::try_from(bytes).unwrap_or(u32::MAX)).unwrap_or(NonZeroU32::MIN);
        if self.record_bytes.check_n(due).is_ok_and(|room| room.is_err()) {
            return Err("it sends more records than the trail takes of one node; it has to wait".to_owned());
        }
        let subject = subjects::audit(subjects::AUDIT_NODE, &self.keeper.name);
        // A node that has not heard our acknowledgement sends the same again.
        let kept = PublishMessage::build().payload(message.payload.clone()).message_id(message_id(&self.node, &message.payload));
        let sent = self.keeper.jetstream.send_publish(subject, kept).await.map_err(|error| error.to_string())?;
        sent.await.map(drop).map_err(|error| error.to_string())
    }

    async fn acknowledge(&self, message: &Message, kind: Option<EventKind>) {
        let Some(reply) = &message.reply else { return };
        let node = &self.node;
        if !reply.starts_with(&format!("{}.", subjects::node_inbox(node))) {
            tracing::warn!(%node, %reply, "an event asks to be acknowledged in somebody else's inbox; it is not");
            return;
        }
        let beats = matches!(kind, Some(EventKind::Hello | EventKind::Beat));
        let known = message.headers.as_ref().and_then(|headers| headers.get(header::SHARES)).map_or("", |known| known.as_str());
        let shares = if beats { self.keeper.told.news(node, known) } else { None };
        let ack = serde_json::to_vec(&EventAck { time_unix_ms: Timestamp::now().unix_ms(), shares }).unwrap_or_default();
        if let Err(error) = self.keeper.acknowledger.publish(reply.clone(), ack.into()).await {
            tracing::warn!(%node, %error, "an event could not be acknowledged");
        }
    }

    fn key(&self) -> String {
        subjects::presence_key(&self.region, &self.node)
    }
}
