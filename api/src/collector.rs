//! Listens to what nodes say: beats into bucket PRESENCE, audit records into the trail; each is acknowledged with the control plane's time.
//!
//! What the broker lets a node say and is not true is not kept: the node is told so, and it is a violation of that node in the log and the trail.
//! `records`: what is checked of audit records.
//!
//! Two credentials do it. The collector hears nodes and may write those two things. The acknowledger can publish to nodes' inboxes and to
//! nothing else, so that no node can make us publish elsewhere by choosing a reply subject.

mod records;

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::context::{KeyValueError, PublishErrorKind};
use async_nats::jetstream::kv::{self, UpdateErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::{Client, Message, Subscriber, jetstream};
use futures_util::StreamExt;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use probeops_shared::audit::chain::node_writer;
use probeops_shared::audit::{Record, Verdict};
use probeops_shared::ids::{NodeId, Region};
use probeops_shared::job::header;
use probeops_shared::presence::{Beat, EventAck, EventKind, Refusal};
use probeops_shared::subjects::{self, storage};
use probeops_shared::timestamp::Timestamp;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use self::records::{End, Records};
use crate::audit::Audit;
use crate::broker::Told;
use crate::broker::last::last_of_each;
use crate::metrics::Metrics;

/// How long the broker may take to keep something.
const KEPT_WITHIN: Duration = Duration::from_secs(5);
/// How many events of one node wait for the one in work. A node says its next only when the last was acknowledged, of beats and of records.
const EVENTS_WAITING_MAX: usize = 16;
/// How many events of one node are kept in a second; as many batches of the trail as 20,000 runs a second make.
const EVENTS_PER_S_MAX: NonZeroU32 = NonZeroU32::new(200).unwrap();
/// How many bytes of records of one node are kept in a second in the long run, and at once: what some 10,000 runs a second make. What comes faster
/// waits at the node.
const RECORD_BYTES_PER_S_MAX: NonZeroU32 = NonZeroU32::new(6 * 1024 * 1024).unwrap();
const RECORD_BYTES_AT_ONCE_MAX: NonZeroU32 = NonZeroU32::new(32 * 1024 * 1024).unwrap();
/// The same where the trail is more than half full: one node does not fill it.
const RESERVED_FROM_PERCENT: i64 = 50;
const RESERVED_BYTES_PER_S_MAX: NonZeroU32 = NonZeroU32::new(64 * 1024).unwrap();
const RESERVED_BYTES_AT_ONCE_MAX: NonZeroU32 = NonZeroU32::new(16 * 1024 * 1024).unwrap();
/// So many lies of one node are recorded one by one in a minute; more are counted, and told with the next that is.
const LIES_PER_MINUTE: NonZeroU32 = NonZeroU32::new(6).unwrap();
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
    jetstream: jetstream::Context,
    presence: kv::Store,
    acknowledger: Client,
    told: Told,
    /// Reads the trail.
    auditor: Client,
    audit: Audit,
    metrics: Metrics,
}

/// What a collector works with besides its own connections.
#[derive(Clone, Debug)]
pub(crate) struct Desk {
    /// What nodes know of the limits of services.
    pub(crate) told: Told,
    /// Reads the trail.
    pub(crate) auditor: Client,
    /// Records lies.
    pub(crate) audit: Audit,
    /// Counts them.
    pub(crate) metrics: Metrics,
}

/// One node, as far as it was heard.
struct Heard {
    keeper: Arc<Keeper>,
    region: Region,
    node: NodeId,
    allowance: DefaultDirectRateLimiter,
    record_bytes: DefaultDirectRateLimiter,
    reserved_bytes: DefaultDirectRateLimiter,
    /// The last beat written: the start it belongs to, its number, and the entry's revision.
    written: Option<Written>,
    /// The end of what the trail has of it, as far as it was looked up.
    end: Option<End>,
    lies: DefaultDirectRateLimiter,
    /// How many lies were not recorded since one was.
    unrecorded: u64,
}

type Written = (Timestamp, u64, u64);

/// Why an event was not kept.
enum Unkept {
    /// It could not be; the node says it again.
    Now(String),
    /// It is not believed.
    Ever(Refusal),
}

impl From<String> for Unkept {
    fn from(why: String) -> Self {
        Self::Now(why)
    }
}

impl Unkept {
    fn lie(why: impl Into<String>) -> Self {
        Self::Ever(Refusal { why: why.into(), after: None })
    }
}

impl Collector {
    /// A collector with its two connections.
    pub(crate) async fn new(client: Client, acknowledger: Client, desk: Desk) -> Result<Self, KeyValueError> {
        let mut jetstream = jetstream::with_prefix(client.clone(), subjects::broker::LENT);
        jetstream.set_timeout(KEPT_WITHIN);
        let presence = jetstream.get_key_value(storage::PRESENCE).await?;
        let Desk { told, auditor, audit, metrics } = desk;
        Ok(Self { client, keeper: Arc::new(Keeper { jetstream, presence, acknowledger, told, auditor, audit, metrics }) })
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
            reserved_bytes: RateLimiter::direct(Quota::per_second(RESERVED_BYTES_PER_S_MAX).allow_burst(RESERVED_BYTES_AT_ONCE_MAX)),
            written: None,
            end: None,
            lies: RateLimiter::direct(Quota::per_minute(LIES_PER_MINUTE)),
            unrecorded: 0,
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
                None => Err(Unkept::lie(format!("there is no kind `{kind}` of event"))),
            };
            let refused = match kept {
                Ok(()) => None,
                Err(Unkept::Now(error)) => {
                    tracing::warn!(node = %self.node, kind, error, "an event of a node was not kept; it will say it again");
                    continue;
                }
                Err(Unkept::Ever(refusal)) => {
                    self.note_lie(&message.subject, &refusal.why);
                    Some(refusal)
                }
            };
            self.acknowledge(&message, EventKind::parse(kind), refused).await;
        }
    }

    /// A violation of this node: what it said is not so.
    fn note_lie(&mut self, subject: &str, why: &str) {
        self.keeper.metrics.node_lied();
        if self.lies.check().is_err() {
            self.unrecorded += 1;
            return;
        }
        let more = match std::mem::take(&mut self.unrecorded) {
            0 => String::new(),
            more => format!("; {more} more before were not recorded one by one"),
        };
        let detail = format!("what it says is not believed: {why}{more}");
        tracing::error!(node = %self.node, subject, "violation: {detail}");
        let (node, region) = (Some(self.node.clone()), Some(self.region.clone()));
        self.keeper.audit.record(Record {
            node,
            region,
            target: subject.to_owned(),
            detail,
            ..Record::new(Verdict::Violation, node_writer(&self.node))
        });
    }

    async fn keep_beat(&mut self, message: &Message) -> Result<(), Unkept> {
        let beat = read_beat(&message.payload, &self.region, &self.node).map_err(Unkept::lie)?;
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
                Err(error) => return Err(Unkept::Now(error.to_string())),
            }
        }
        Err(Unkept::Now("another collector writes the same node's entry at the same time".to_owned()))
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

    async fn forget(&mut self) -> Result<(), Unkept> {
        self.written = None;
        self.keeper.presence.delete(self.key()).await.map_err(|error| Unkept::Now(error.to_string()))
    }

    async fn keep_records(&mut self, message: &Message) -> Result<(), Unkept> {
        let bytes = u32::try_from(message.payload.len()).unwrap_or(u32::MAX);
        let due = NonZeroU32::new(bytes).unwrap_or(NonZeroU32::MIN);
        let room =
            if self.keeper.metrics.audit_filled_percent() < RESERVED_FROM_PERCENT { &self.record_bytes } else { &self.reserved_bytes };
        if room.check_n(due).is_ok_and(|room| room.is_err()) {
            return Err(Unkept::Now("it sends more records than the trail takes of one node; it has to wait".to_owned()));
        }
        let batch = records::read(&message.payload, &self.region, &self.node, Timestamp::now()).map_err(Unkept::lie)?;
        // What another collector has stored meanwhile is seen at the second look.
        for _ in 0..2 {
            let (end, is_fresh) = match self.end.take() {
                Some(end) => (end, false),
                None => (self.look_up_end().await?, true),
            };
            let known = match end.known_of(&batch) {
                Ok(known) => known,
                Err(refusal) if is_fresh => return Err(Unkept::Ever(refusal)),
                Err(_) => continue,
            };
            if known >= batch.records.len() {
                self.end = Some(end);
                return Ok(());
            }
            if let Some(stored) = self.store(&batch, (known, end.message), message).await? {
                self.end = Some(End::after(stored, &batch));
                return Ok(());
            }
        }
        Err(Unkept::Now("another collector stores records of the same node at the same time".to_owned()))
    }

    /// Stores records behind the last message that the trail has of this node, without those of them that it has; none if that is not the last any
    /// more.
    async fn store(&self, batch: &Records<'_>, (known, last): (usize, u64), message: &Message) -> Result<Option<u64>, Unkept> {
        let payload = if known == 0 {
            message.payload.clone()
        } else {
            serde_json::to_vec(&batch.clone().without(known)).map_err(|error| error.to_string())?.into()
        };
        let publish = PublishMessage::build().payload(payload).expected_last_subject_sequence(last);
        let subject = subjects::audit(subjects::AUDIT_NODE, &self.node);
        let sent = self.keeper.jetstream.send_publish(subject, publish).await.map_err(|error| error.to_string())?;
        match sent.await {
            Ok(stored) => Ok(Some(stored.sequence)),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(None),
            Err(error) => Err(Unkept::Now(error.to_string())),
        }
    }

    /// The end of what the trail has of this node.
    async fn look_up_end(&self) -> Result<End, String> {
        let subject = subjects::audit(subjects::AUDIT_NODE, &self.node);
        let found = last_of_each(&self.keeper.auditor, storage::AUDIT, &[subject]).await?;
        Ok(found.last().map_or_else(End::default, |last| End::stored(last.sequence, &last.payload)))
    }

    async fn acknowledge(&mut self, message: &Message, kind: Option<EventKind>, refused: Option<Refusal>) {
        let Some(reply) = &message.reply else { return };
        if !reply.starts_with(&format!("{}.", subjects::node_inbox(&self.node))) {
            return self.note_lie(&message.subject, &format!("it asks to be answered in somebody else's inbox, {reply}"));
        }
        let node = &self.node;
        let beats = matches!(kind, Some(EventKind::Hello | EventKind::Beat));
        let known = message.headers.as_ref().and_then(|headers| headers.get(header::SHARES)).map_or("", |known| known.as_str());
        let shares = if beats { self.keeper.told.news(node, known) } else { None };
        let ack = serde_json::to_vec(&EventAck { time_unix_ms: Timestamp::now().unix_ms(), shares, refused }).unwrap_or_default();
        if let Err(error) = self.keeper.acknowledger.publish(reply.clone(), ack.into()).await {
            tracing::warn!(%node, %error, "an event could not be acknowledged");
        }
    }

    fn key(&self) -> String {
        subjects::presence_key(&self.region, &self.node)
    }
}
/// Reads what a node announces of itself.
fn read_beat(payload: &[u8], region: &Region, node: &NodeId) -> Result<Beat, String> {
    let beat: Beat = serde_json::from_slice(payload).map_err(|error| format!("it is no beat: {error}"))?;
    if beat.node != *node || beat.region != *region {
        return Err("it speaks in another node's name".to_owned());
    }
    Ok(beat)
}

/// What nodes say, as `tests/fuzz` calls its readers.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    use probeops_shared::ids::{NodeId, Region};
    use probeops_shared::presence::Beat;
    use probeops_shared::timestamp::Timestamp;

    /// What a node announces of itself.
    pub fn beat(payload: &[u8], region: &Region, node: &NodeId) -> Result<Beat, String> {
        super::read_beat(payload, region, node)
    }

    /// A node's records, as they are stored.
    pub fn records(payload: &[u8], region: &Region, node: &NodeId, now: Timestamp) -> Result<Vec<String>, String> {
        let batch = super::records::read(payload, region, node, now)?;
        Ok(batch.records.iter().map(|link| link.record.get().to_owned()).collect())
    }
}
