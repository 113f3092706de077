//! Writes records in groups: those that wait when the last acknowledgement arrives go as one message. So one message is on its way at a time, and
//! the busier it gets, the larger they are. Only records that nobody waits for wait a moment for company.
//!
//! What is done goes before what was only asked: jobs and changes are not behind any number of refusals, which have a part of each message.
//!
//! A message whose acknowledgement did not come may be in the trail all the same, so it is sent again as it was, and the broker keeps it once. One
//! that the broker refused is in no trail: its records get other numbers, and those that a job waited for are forgotten with it. Where a job has
//! given up whose record is in the trail or may be, another record says that it did not begin.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use probeops_shared::audit::chain::Chain;
use probeops_shared::audit::{BATCH_MAX, Record, Verdict};
use probeops_shared::subjects;
use tokio::sync::mpsc;
use tokio::time::{Interval, interval};
use tokio_util::sync::CancellationToken;

use super::taking::Taking;
use super::{Counted, Entry, message_id, undone};
use crate::broker::Broker;

/// The largest message, in bytes: half of what a broker takes unless told otherwise. No record alone is as large.
const BATCH_BYTES_MAX: usize = 512 * 1024;
/// How many records of a message are for what was asked, where as many wait.
const ASKED_MIN: usize = BATCH_MAX / 5;
/// How long the first record of a message waits for company, if nobody waits for it.
const BATCH_WITHIN: Duration = Duration::from_millis(20);
/// How long the acknowledgement of a message may take.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(1);
/// The wait between two tries, first and longest.
const RETRY_AFTER: Duration = Duration::from_millis(25);
const RETRY_AFTER_MAX: Duration = Duration::from_millis(500);
/// How long a message may be on its way before the trail is said to take none.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often it is told how much was not recorded one by one.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// How long writing what is left may take at the end.
const FLUSH_WITHIN: Duration = Duration::from_secs(5);
/// The broker's code for a JetStream that has no leader at the moment.
const TEMPORARILY_UNAVAILABLE: u64 = 10008;

/// Where records come from.
pub(super) struct Sources {
    /// Of what is done: jobs, changes.
    pub(super) done: mpsc::Receiver<Entry>,
    /// Of what was only asked: refusals, reading.
    pub(super) asked: mpsc::Receiver<Record>,
    /// What is not recorded one by one.
    pub(super) counted: Arc<Counted>,
}

/// Writes until told to stop, and then what is left.
pub(super) async fn write(broker: Broker, mut sources: Sources, taking: Taking, stop: CancellationToken) {
    let chain = Chain::begin(broker.caller());
    let subject = subjects::audit(subjects::AUDIT_API, broker.caller());
    let tell = Some(interval(TELL_EVERY));
    let mut writer =
        Writer { subject, broker, chain, taking, done: Vec::new(), asked: Vec::new(), message: None, tell, secret: rand::random() };
    tokio::select! {
        () = writer.write(&mut sources) => return,
        () = stop.cancelled() => {}
    }
    sources.done.close();
    sources.asked.close();
    writer.tell = None;
    writer.asked.extend(sources.counted.all_untold());
    if tokio::time::timeout(FLUSH_WITHIN, writer.write(&mut sources)).await.is_err() {
        tracing::error!("audit records are lost: the broker did not keep what was left within {} s", FLUSH_WITHIN.as_secs());
    }
}

struct Writer {
    broker: Broker,
    subject: String,
    chain: Chain,
    taking: Taking,
    /// What is not acknowledged, oldest first; what is on its way is the beginning of each.
    done: Vec<Entry>,
    asked: Vec<Record>,
    message: Option<Message>,
    /// When it is next told what was not recorded one by one.
    tell: Option<Interval>,
    /// In the ids of its messages, and nowhere else.
    secret: u128,
}

/// A message on its way.
struct Message {
    payload: Bytes,
    id: String,
    /// How many it has of what is done, and of what was asked.
    done: usize,
    asked: usize,
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
    async fn write(&mut self, sources: &mut Sources) {
        let mut retry_after = RETRY_AFTER;
        while self.message.is_some() || self.gather(sources).await {
            self.compose();
            let sent = match &self.message {
                Some(message) => self.send(message).await,
                None => continue,
            };
            match sent {
                Ok(()) => {
                    retry_after = RETRY_AFTER;
                    self.taking.takes();
                    self.stored();
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
    async fn gather(&mut self, sources: &mut Sources) -> bool {
        if self.done.is_empty() && self.asked.is_empty() && !self.wait(sources).await {
            return false;
        }
        let company = async {
            while self.done.len() + self.asked.len() < BATCH_MAX && !self.done.iter().any(Entry::is_waited_for) {
                if !self.wait(sources).await {
                    return;
                }
            }
        };
        drop(tokio::time::timeout(BATCH_WITHIN, company).await);
        while self.done.len() < BATCH_MAX
            && let Ok(entry) = sources.done.try_recv()
        {
            self.done.push(entry);
        }
        while self.asked.len() < BATCH_MAX
            && let Ok(record) = sources.asked.try_recv()
        {
            self.asked.push(record);
        }
        true
    }

    /// Waits for one record; false when there will be none.
    async fn wait(&mut self, sources: &mut Sources) -> bool {
        let told = async {
            match &mut self.tell {
                Some(tell) => tell.tick().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            Some(entry) = sources.done.recv() => self.done.push(entry),
            _ = told => self.asked.extend(sources.counted.untold()),
            Some(record) = sources.asked.recv() => self.asked.push(record),
            else => return false,
        }
        true
    }

    /// Makes a message of what is pending, if none is on its way.
    fn compose(&mut self) {
        if self.message.is_some() {
            return;
        }
        // Whoever has given up does not run his job, and the trail does not say that he does.
        self.done.retain(|entry| entry.stored.as_ref().is_none_or(|stored| !stored.is_closed()));
        let lost = self.taking.lost();
        if lost > 0 {
            let detail = format!("{lost} records were left out: more waited to be written than there is room for");
            self.done.push(Entry { record: Record { detail, ..Record::new(Verdict::Lost, self.broker.caller().as_str()) }, stored: None });
        }
        let done = done_of_message(self.done.len(), self.asked.len());
        let records = self.done.iter().take(done).map(|entry| &entry.record).chain(&self.asked);
        let before = self.chain.clone();
        let batch = self.chain.batch(records, BATCH_BYTES_MAX);
        self.message = batch.map(|(payload, count)| {
            let id = message_id(self.broker.caller(), self.secret, &payload);
            let done = done.min(count);
            Message { payload: payload.into(), id, done, asked: count - done, before: Some(before), since: Instant::now() }
        });
    }

    /// The trail has the message that was on its way.
    fn stored(&mut self) {
        let Some(Message { done, asked, .. }) = self.message.take() else { return };
        self.asked.drain(..asked);
        let mut given_up = Vec::new();
        for Entry { record, stored } in self.done.drain(..done) {
            if let Some(stored) = stored
                && stored.send(()).is_err()
            {
                given_up.push(did_not_begin(record));
            }
        }
        self.done.extend(given_up);
    }

    /// Sends the message on its way, and waits until the trail has it.
    async fn send(&self, message: &Message) -> Result<(), Failed> {
        let unsure = |error: &dyn std::fmt::Display| Failed::Unsure(error.to_string());
        let mut link = self.broker.link();
        let connected = tokio::time::timeout(ACKNOWLEDGED_WITHIN, link.wait_for(|state| state.connected)).await;
        let epoch = connected.ok().and_then(Result::ok).map(|state| state.epoch);
        let epoch = epoch.ok_or_else(|| Failed::Unsure("the broker cannot be reached".to_owned()))?;
        let publish = PublishMessage::build().payload(message.payload.clone()).message_id(&message.id);
        let sent = self.broker.audit_recorder().send_publish(self.subject.clone(), publish).await.map_err(|error| unsure(&error))?;
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
                    self.done.retain(|entry| !entry.is_waited_for());
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
        // Whoever asks next finds that none is taken.
        self.taking.refuses(why);
        give_up(&mut self.done, message.done);
    }
}

/// Nobody waits any longer. What is on its way, the first so many, is sent again as it is, and what did not begin of it is told after it; the rest
/// of what was waited for is in no trail, and never will be.
fn give_up(pending: &mut Vec<Entry>, on_its_way: usize) {
    let rest = pending.split_off(on_its_way.min(pending.len()));
    let given_up: Vec<Entry> =
        pending.iter_mut().filter_map(|entry| entry.stored.take().map(|_given_up| did_not_begin(entry.record.clone()))).collect();
    pending.extend(rest.into_iter().filter(|entry| !entry.is_waited_for()));
    pending.extend(given_up);
}

/// How many of what is done go with a message, of so many that wait beside so many that were only asked.
fn done_of_message(done: usize, asked: usize) -> usize {
    done.min(BATCH_MAX - asked.min(ASKED_MIN))
}

fn did_not_begin(record: Record) -> Entry {
    Entry { record: undone(record, "its record was not known to be stored in time"), stored: None }
}

/// Why the broker does not take a message, if that is sure.
fn refused(error: &jetstream::context::PublishError) -> Option<String> {
    if error.kind() != PublishErrorKind::Other {
        return None;
    }
    let source = std::error::Error::source(error)?.downcast_ref::<jetstream::Error>()?;
    (source.error_code().0 != TEMPORARILY_UNAVAILABLE).then(|| source.to_string())
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot::{Receiver, channel};

    use super::*;

    /// A record of this request, and who waits for it.
    fn waited_for(request_id: &str) -> (Entry, Receiver<()>) {
        let (stored, waits) = channel();
        let record = Record { request_id: request_id.to_owned(), ..Record::new(Verdict::Accepted, "key:a") };
        (Entry { record, stored: Some(stored) }, waits)
    }

    #[test]
    fn what_a_job_no_longer_waits_for_is_told_not_to_have_begun_or_is_not_told_at_all() {
        let (on_its_way, first) = waited_for("on its way");
        let (behind, second) = waited_for("behind");
        let changed = Entry { record: Record { request_id: "change".to_owned(), ..Record::new(Verdict::Changed, "key:a") }, stored: None };
        let mut pending = vec![on_its_way, behind, changed];
        give_up(&mut pending, 1);
        let told: Vec<(&str, Verdict)> = pending.iter().map(|entry| (entry.record.request_id.as_str(), entry.record.verdict)).collect();
        assert_eq!(told, [("on its way", Verdict::Accepted), ("change", Verdict::Changed), ("on its way", Verdict::Refused)]);
        assert!(first.blocking_recv().is_err() && second.blocking_recv().is_err(), "neither job begins");
        // What is sent again and again is told once.
        give_up(&mut pending, 1);
        assert_eq!(pending.len(), 3);
    }

    #[test]
    fn what_is_done_goes_first_and_what_was_asked_is_not_forgotten_over_it() {
        let shares = [(3, 1_000), (1_000, 1_000), (1_000, 7), (1_000, 0), (0, 5)].map(|(done, asked)| done_of_message(done, asked));
        assert_eq!(shares, [3, 80, 93, 100, 0]);
    }

    #[test]
    fn no_record_is_too_large_for_a_message_of_its_own() {
        let text = "\u{1}".repeat(64 * 1024);
        let region = "r".repeat(63);
        let record = Record {
            caller: Some(region.clone()),
            node: region.parse().ok(),
            region: region.parse().ok(),
            tool: text.clone(),
            target: text.clone(),
            request_id: text.clone(),
            detail: text.clone(),
            ..Record::new(Verdict::Accepted, text)
        };
        let written = serde_json::to_vec(&super::super::cut_all(record)).unwrap();
        assert!(written.len() * 4 < BATCH_BYTES_MAX, "{} bytes", written.len());
    }
}
