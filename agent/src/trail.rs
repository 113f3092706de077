//! Audit records of this node, kept until the control plane has acknowledged them.
//!
//! They are kept in memory: an agent writes nothing to the disk of the machine that it is on, and needs no folder that it may write to. So what was not
//! acknowledged when an agent is killed is in no trail, a second's worth where the control plane is there. Nothing is dropped to make room: a run begins
//! only when there is room for what is to be said of it, and where there is none its caller is told `busy`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use probeops_shared::audit::chain::Chain;
use probeops_shared::audit::{BATCH_MAX, Record, Verdict};
use probeops_shared::presence::EventKind;
use probeops_shared::{outcome::NodeRef, subjects};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::inbox::Inbox;

/// How many records wait at most, those that runs going on will make included.
const WAITING_MAX: usize = 50_000;
/// Up to how many waiting records those of what was refused are added: whoever is refused again and again takes no room from those who are not.
const REFUSED_MAX: usize = WAITING_MAX / 2;
/// The most bytes that one message carries, well below what the broker takes from a node: records repeat what callers wrote.
const BATCH_BYTES_MAX: usize = 128 * 1024;
/// The most characters of a record's detail that are kept.
const DETAIL_CHARS_MAX: usize = 500;
/// How long a record waits for company.
const BATCH_WITHIN: Duration = Duration::from_secs(1);
/// How long to wait when a batch was not acknowledged.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The records that wait.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trail(Arc<Spool>);

#[derive(Debug, Default)]
struct Spool {
    waiting: Mutex<Waiting>,
    full_batch: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    records: VecDeque<Record>,
    /// For how many more there must be room.
    promised: usize,
    /// How many refusals were left out for want of it.
    lost: u64,
}

/// Room for the record of a run's end.
#[derive(Debug)]
pub(crate) struct Promise(Trail);

impl Trail {
    /// Room for the record of a run's end, where that is all that will be said of it.
    pub(crate) fn promise(&self) -> Option<Promise> {
        self.take_room(1, None)
    }

    /// Adds the record of a run that is about to begin, and keeps room for that of its end; none if there is no room for both.
    pub(crate) fn begin(&self, started: Record) -> Option<Promise> {
        self.take_room(2, Some(started))
    }

    fn take_room(&self, room: usize, record: Option<Record>) -> Option<Promise> {
        let mut waiting = self.0.waiting();
        if waiting.records.len() + waiting.promised + room > WAITING_MAX {
            return None;
        }
        waiting.promised += 1;
        if let Some(record) = record {
            self.0.push(&mut waiting, record);
        }
        drop(waiting);
        Some(Promise(self.clone()))
    }

    /// Adds the record of something that was not run, if there is room; where there is none, that is counted, and told when there is.
    pub(crate) fn record(&self, record: Record) {
        let mut waiting = self.0.waiting();
        if waiting.records.len() + waiting.promised < REFUSED_MAX {
            return self.0.push(&mut waiting, record);
        }
        waiting.lost += 1;
        if waiting.lost.is_power_of_two() {
            tracing::error!(
                lost = waiting.lost,
                "refusals are not in the audit trail: the control plane has not acknowledged any for long"
            );
        }
    }

    /// Sends batches until told to stop, and then what is left, once.
    pub(crate) async fn send(&self, inbox: &Inbox, node: &NodeRef, stop: &CancellationToken) {
        let mut chain = Chain::of_node(&node.id);
        loop {
            tokio::select! {
                () = self.0.full_batch.notified() => {}
                () = tokio::time::sleep(BATCH_WITHIN) => {}
                () = stop.cancelled() => break,
            }
            while let Some((payload, count)) = self.batch(&mut chain, node) {
                // The same again until it is acknowledged: what was kept and not acknowledged is then known for a repetition.
                while !send_batch(inbox, node, &payload).await {
                    if stop.run_until_cancelled(tokio::time::sleep(RETRY_AFTER)).await.is_some() {
                        continue;
                    }
                    if send_batch(inbox, node, &payload).await {
                        break;
                    }
                    return self.give_up();
                }
                drop(self.0.waiting().records.drain(..count));
            }
        }
        while let Some((payload, count)) = self.batch(&mut chain, node) {
            if !send_batch(inbox, node, &payload).await {
                return self.give_up();
            }
            drop(self.0.waiting().records.drain(..count));
        }
    }

    /// The next message, and how many records it has. They stay where they are until it is acknowledged.
    fn batch(&self, chain: &mut Chain, node: &NodeRef) -> Option<(Bytes, usize)> {
        let mut waiting = self.0.waiting();
        if waiting.lost > 0 && waiting.records.len() + waiting.promised < WAITING_MAX {
            let detail = format!("{} refusals were left out: the control plane had not acknowledged any record for long", waiting.lost);
            waiting.lost = 0;
            let (node, region) = (Some(node.id.clone()), Some(node.region.clone()));
            let lost = Record { node, region, detail, ..Record::new(Verdict::Lost, "-") };
            waiting.records.push_back(lost);
        }
        chain.batch(&waiting.records, BATCH_BYTES_MAX).map(|(payload, count)| (payload.into(), count))
    }

    fn give_up(&self) {
        let left = self.0.waiting().records.len();
        tracing::error!(records = left, "the agent stops with audit records that nobody acknowledged");
    }
}

/// Sends a batch; whether it was acknowledged.
async fn send_batch(inbox: &Inbox, node: &NodeRef, payload: &Bytes) -> bool {
    let subject = subjects::event(&node.region, &node.id, EventKind::Audit);
    inbox.ask(subject, None, payload.clone()).await.is_some()
}

impl Spool {
    fn push(&self, waiting: &mut Waiting, mut record: Record) {
        if let Some((end, _)) = record.detail.char_indices().nth(DETAIL_CHARS_MAX) {
            record.detail.truncate(end);
            record.detail.push('…');
        }
        waiting.records.push_back(record);
        if waiting.records.len() >= BATCH_MAX {
            self.full_batch.notify_one();
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Promise {
    /// Adds the record that there was room kept for.
    pub(crate) fn keep(self, record: Record) {
        self.0.0.push(&mut self.0.0.waiting(), record);
        // Dropping it gives the room back.
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.0.0.waiting().promised -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeRef {
        NodeRef { id: "a-1".parse().unwrap(), region: "eu".parse().unwrap() }
    }

    #[test]
    fn a_batch_fits_a_message_whatever_callers_wrote() {
        let trail = Trail::default();
        let odd = "\u{1}".repeat(256);
        for _ in 0..BATCH_MAX {
            let (tool, target, detail) = (odd.clone(), odd.clone(), "\u{1}".repeat(16_000));
            trail.record(Record { tool, target, detail, ..Record::new(Verdict::Denied, "svc") });
        }
        let (payload, count) = trail.batch(&mut Chain::of_node("a-1"), &node()).unwrap();
        assert!(count > 10 && count < BATCH_MAX, "{count}");
        assert!(payload.len() <= BATCH_BYTES_MAX);
        assert_eq!(trail.0.waiting().records[0].detail.chars().count(), DETAIL_CHARS_MAX + 1);
    }

    #[test]
    fn what_has_begun_has_room_for_its_end_and_nothing_begins_without() {
        let trail = Trail::default();
        let started = || Record::new(Verdict::Started, "svc");
        let first = trail.begin(started()).unwrap();
        while trail.0.waiting().records.len() < REFUSED_MAX - 1 {
            trail.record(Record::new(Verdict::Denied, "svc"));
        }
        for _ in REFUSED_MAX - 1..WAITING_MAX - 2 {
            trail.promise().unwrap().keep(Record::new(Verdict::Finished, "svc"));
        }
        assert!(trail.begin(started()).is_none(), "it would need two");
        let second = trail.promise().unwrap();
        assert!(trail.promise().is_none());
        trail.record(Record::new(Verdict::Denied, "svc"));
        first.keep(Record::new(Verdict::Finished, "svc"));
        let counts = {
            let waiting = trail.0.waiting();
            (waiting.records.len(), waiting.promised, waiting.lost)
        };
        assert_eq!(counts, (WAITING_MAX - 1, 1, 1));
        drop(second);
        // What was left out is told as soon as there is room.
        drop(trail.batch(&mut Chain::of_node("a-1"), &node()));
        let waiting = trail.0.waiting();
        let last = waiting.records.back().unwrap();
        assert_eq!((last.verdict, waiting.lost, last.detail.split(' ').next()), (Verdict::Lost, 0, Some("1")));
    }
}
