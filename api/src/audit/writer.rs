//! Writes records in groups: those that wait when the last acknowledgement arrives go as one message. So one message is on its way at a time, and
//! the busier it gets, the larger they are. Only records that nobody waits for wait a moment for company.
//!
//! A message whose acknowledgement did not come may be in the trail all the same, so it is sent again as it was, and the broker keeps it once. One
//! that the broker refused is in no trail: its records get other numbers, and those that a job waited for are forgotten with it.

use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use probeops_shared::audit::chain::Chain;
use probeops_shared::audit::{BATCH_MAX, Record, Verdict};
use probeops_shared::subjects;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::taking::Taking;
use super::{Entry, message_id};
use crate::broker::Broker;

/// The category of what the API itself writes.
const CATEGORY: &str = "api";
/// The largest message, in bytes: half of what a broker takes unless told otherwise.
const BATCH_BYTES_MAX: usize = 512 * 1024;
/// How long the first record of a message waits for company, if nobody waits for it.
const BATCH_WITHIN: Duration = Duration::from_millis(20);
/// How long the acknowledgement of a message may take.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(1);
/// The wait between two tries, first and longest.
const RETRY_AFTER: Duration = Duration::from_millis(25);
const RETRY_AFTER_MAX: Duration = Duration::from_millis(500);
/// How long a message may be on its way before the trail is said to take none.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long writing what is left may take at the end.
const FLUSH_WITHIN: Duration = Duration::from_secs(5);
/// The broker's code for a JetStream that has no leader at the moment.
const TEMPORARILY_UNAVAILABLE: u64 = 10008;

/// Writes until told to stop, and then what is left.
pub(super) async fn write(broker: Broker, mut entries: mpsc::Receiver<Entry>, taking: Taking, stop: CancellationToken) {
    let chain = Chain::begin(broker.caller());
    let mut writer =
        Writer { subject: subjects::audit(CATEGORY, broker.caller()), broker, chain, taking, pending: Vec::new(), message: None };
    tokio::select! {
        () = writer.write(&mut entries) => return,
        () = stop.cancelled() => {}
    }
    entries.close();
    if tokio::time::timeout(FLUSH_WITHIN, writer.write(&mut entries)).await.is_err() {
        tracing::error!("audit records are lost: the broker did not keep what was left within {} s", FLUSH_WITHIN.as_secs());
    }
}

struct Writer {
    broker: Broker,
    subject: String,
    chain: Chain,
    taking: Taking,
    /// What is not acknowledged, oldest first; what is on its way is the beginning of it.
    pending: Vec<Entry>,
    message: Option<Message>,
}

/// A message on its way.
struct Message {
    payload: Bytes,
    id: String,
    /// How many of those that are pending it has.
    count: usize,
    /// The chain as it was before it, as long as it is sure that the trail does not have it.
    before: Option<Chain>,
    since: Instant,
}

/// Why a message is not known to be in the trail.
enum Failed {
    /// The broker does not take it.
    Refused(String),
    /// It may be there.
    Unsure(String),
}

impl Writer {
    /// Writes until nobody records any more.
    async fn write(&mut self, entries: &mut mpsc::Receiver<Entry>) {
        let mut retry_after = RETRY_AFTER;
        while self.message.is_some() || self.gather(entries).await {
            self.compose();
            let sent = match &self.message {
                Some(message) => self.send(message).await,
                None => continue,
            };
            match sent {
                Ok(()) => {
                    retry_after = RETRY_AFTER;
                    self.taking.takes();
                    let count = self.message.take().map_or(0, |message| message.count);
                    for stored in self.pending.drain(..count).filter_map(|entry| entry.stored) {
                        // A job that has given up meanwhile does not run.
                        stored.send(()).ok();
                    }
                }
                Err(failed) => {
                    self.failed(failed);
                    tokio::time::sleep(retry_after).await;
                    retry_after = (retry_after * 2).min(RETRY_AFTER_MAX);
                }
            }
        }
    }

    /// Waits for something to write, and takes what else is there; false when there will be nothing more.
    async fn gather(&mut self, entries: &mut mpsc::Receiver<Entry>) -> bool {
        if self.pending.is_empty() && entries.recv_many(&mut self.pending, BATCH_MAX).await == 0 {
            return false;
        }
        let company = async {
            while self.pending.len() < BATCH_MAX && !self.pending.iter().any(Entry::is_waited_for) {
                let room = BATCH_MAX - self.pending.len();
                if entries.recv_many(&mut self.pending, room).await == 0 {
                    return;
                }
            }
        };
        drop(tokio::time::timeout(BATCH_WITHIN, company).await);
        while self.pending.len() < BATCH_MAX
            && let Ok(entry) = entries.try_recv()
        {
            self.pending.push(entry);
        }
        true
    }

    /// Makes a message of what is pending, if none is on its way.
    fn compose(&mut self) {
        if self.message.is_some() {
            return;
        }
        // Whoever has given up does not run his job, and the trail does not say that he does.
        self.pending.retain(|entry| entry.stored.as_ref().is_none_or(|stored| !stored.is_closed()));
        let lost = self.taking.lost();
        if lost > 0 {
            let detail = format!("{lost} records were left out: more waited to be written than there is room for");
            self.pending
                .push(Entry { record: Record { detail, ..Record::new(Verdict::Lost, self.broker.caller().as_str()) }, stored: None });
        }
        let before = self.chain.clone();
        let batch = self.chain.batch(self.pending.iter().map(|entry| &entry.record), BATCH_BYTES_MAX);
        self.message = batch.map(|(payload, count)| {
            let id = message_id(self.broker.caller(), &payload);
            Message { payload: payload.into(), id, count, before: Some(before), since: Instant::now() }
        });
    }

    /// Sends the message on its way, and waits until the trail has it.
    async fn send(&self, message: &Message) -> Result<(), Failed> {
        let unsure = |error: &dyn std::fmt::Display| Failed::Unsure(error.to_string());
        let mut link = self.broker.link();
        let connected = tokio::time::timeout(ACKNOWLEDGED_WITHIN, link.wait_for(|state| state.connected)).await;
        let epoch = connected.ok().and_then(Result::ok).map(|state| state.epoch);
        let epoch = epoch.ok_or_else(|| Failed::Unsure("the broker cannot be reached".to_owned()))?;
        let publish = PublishMessage::build().payload(message.payload.clone()).message_id(&message.id);
        let sent = self.broker.jetstream().send_publish(self.subject.clone(), publish).await.map_err(|error| unsure(&error))?;
        tokio::select! {
            acknowledged = tokio::time::timeout(ACKNOWLEDGED_WITHIN, sent.into_future()) => match acknowledged {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(match refused(&error) {
                    Some(why) => Failed::Refused(why),
                    None => unsure(&error),
                }),
                Err(_) => Err(Failed::Unsure(format!("no acknowledgement within {} ms", ACKNOWLEDGED_WITHIN.as_millis()))),
            },
            // What was on its way over a connection that is gone is not acknowledged any more.
            _ = link.wait_for(|state| !state.connected || state.epoch != epoch) => Err(Failed::Unsure("the connection to the broker broke".to_owned())),
        }
    }

    fn failed(&mut self, failed: Failed) {
        let Some(message) = &mut self.message else { return };
        let why = match failed {
            Failed::Refused(why) => {
                if let Some(before) = message.before.take() {
                    self.chain = before;
                    self.message = None;
                    self.pending.retain(|entry| !entry.is_waited_for());
                    return self.taking.refuses(why);
                }
                why
            }
            Failed::Unsure(why) => {
                message.before = None;
                if message.since.elapsed() < PATIENCE {
                    tracing::debug!(why, "audit records were not acknowledged; trying again");
                    return;
                }
                why
            }
        };
        // The message is sent again as it is; those who wait for it do not wait so long.
        let given_up: Vec<oneshot::Sender<()>> = self.pending.iter_mut().filter_map(|entry| entry.stored.take()).collect();
        self.taking.refuses(why);
        drop(given_up);
    }
}

/// Why the broker does not take a message, if that is sure.
fn refused(error: &jetstream::context::PublishError) -> Option<String> {
    if error.kind() != PublishErrorKind::Other {
        return None;
    }
    let source = std::error::Error::source(error)?.downcast_ref::<jetstream::Error>()?;
    (source.error_code().0 != TEMPORARILY_UNAVAILABLE).then(|| source.to_string())
}
