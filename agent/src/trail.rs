//! Audit records of this node, kept until the control plane has acknowledged them.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use probeops_shared::audit::{BATCH_MAX, Record};
use probeops_shared::presence::EventKind;
use probeops_shared::{outcome::NodeRef, subjects};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::inbox::Inbox;

/// How many records wait at most; beyond, the oldest are dropped and counted.
const WAITING_MAX: usize = 50_000;
/// The most bytes that one message carries, well below what the broker takes from a node: records repeat what callers wrote.
const BATCH_BYTES_MAX: usize = 128 * 1024;
/// The most characters of a record's detail that are kept.
const DETAIL_CHARS_MAX: usize = 500;
/// How long a record waits for company.
const BATCH_WITHIN: Duration = Duration::from_secs(1);
/// How long to wait when a batch was not acknowledged.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The records that wait.
#[derive(Debug, Default)]
pub(crate) struct Trail {
    waiting: Mutex<Waiting>,
    full_batch: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    records: VecDeque<Record>,
    dropped: u64,
}

/// The oldest records, on their way.
#[derive(Debug)]
struct Batch {
    records: Vec<Record>,
    /// How many had been dropped when it was taken.
    dropped_before: u64,
}

impl Trail {
    /// Adds a record.
    pub(crate) fn record(&self, mut record: Record) {
        if let Some((end, _)) = record.detail.char_indices().nth(DETAIL_CHARS_MAX) {
            record.detail.truncate(end);
            record.detail.push('…');
        }
        let Ok(mut waiting) = self.waiting.lock() else { return };
        if waiting.records.len() == WAITING_MAX {
            waiting.records.pop_front();
            waiting.dropped += 1;
            if waiting.dropped.is_power_of_two() {
                tracing::error!(
                    dropped = waiting.dropped,
                    "audit records are dropped: the control plane has not acknowledged any for long"
                );
            }
        }
        waiting.records.push_back(record);
        if waiting.records.len() >= BATCH_MAX {
            self.full_batch.notify_one();
        }
    }

    /// Sends batches until told to stop, and then what is left, once.
    pub(crate) async fn send(&self, inbox: &Inbox, node: &NodeRef, stop: &CancellationToken) {
        loop {
            tokio::select! {
                () = self.full_batch.notified() => {}
                () = tokio::time::sleep(BATCH_WITHIN) => {}
                () = stop.cancelled() => break,
            }
            while let Some(batch) = self.batch() {
                // The same again until it is acknowledged: what was kept and not acknowledged is then known for a repetition.
                while !self.send_batch(inbox, node, &batch).await {
                    tokio::select! {
                        () = tokio::time::sleep(RETRY_AFTER) => {}
                        () = stop.cancelled() => break,
                    }
                }
                if stop.is_cancelled() {
                    break;
                }
            }
        }
        while let Some(batch) = self.batch() {
            if !self.send_batch(inbox, node, &batch).await {
                let left = self.waiting.lock().map_or(0, |waiting| waiting.records.len());
                tracing::error!(records = left, "the agent stops with audit records that nobody acknowledged");
                return;
            }
        }
    }

    fn batch(&self) -> Option<Batch> {
        let waiting = self.waiting.lock().ok()?;
        let mut bytes = 0;
        let fits = |record: &&Record| {
            bytes += serde_json::to_vec(record).map_or(0, |record| record.len());
            bytes <= BATCH_BYTES_MAX
        };
        let records: Vec<Record> = waiting.records.iter().take(BATCH_MAX).take_while(fits).cloned().collect();
        (!records.is_empty()).then_some(Batch { records, dropped_before: waiting.dropped })
    }

    /// Sends a batch and, once it is acknowledged, forgets it.
    async fn send_batch(&self, inbox: &Inbox, node: &NodeRef, batch: &Batch) -> bool {
        let Ok(payload) = serde_json::to_vec(&batch.records) else { return false };
        let subject = subjects::event(&node.region, &node.id, EventKind::Audit);
        if inbox.ask(subject, None, payload.into()).await.is_none() {
            return false;
        }
        if let Ok(mut waiting) = self.waiting.lock() {
            // Those dropped meanwhile for want of room were the oldest: part of this batch.
            let dropped = usize::try_from(waiting.dropped - batch.dropped_before).unwrap_or(usize::MAX);
            let acknowledged = batch.records.len().saturating_sub(dropped).min(waiting.records.len());
            waiting.records.drain(..acknowledged);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use probeops_shared::audit::Verdict;
    use probeops_shared::timestamp::Timestamp;

    use super::*;

    #[test]
    fn a_batch_fits_a_message_whatever_callers_wrote() {
        let trail = Trail::default();
        let odd = "\u{1}".repeat(256);
        for _ in 0..BATCH_MAX {
            trail.record(Record {
                time: Timestamp::now(),
                verdict: Verdict::Denied,
                principal: "svc".to_owned(),
                caller: None,
                node: None,
                region: None,
                tool: odd.clone(),
                target: odd.clone(),
                request_id: "r".to_owned(),
                detail: "\u{1}".repeat(16_000),
                duration_ms: None,
            });
        }
        let batch = trail.batch().unwrap().records;
        assert!(batch.len() > 10 && batch.len() < BATCH_MAX, "{}", batch.len());
        assert!(serde_json::to_vec(&batch).unwrap().len() < BATCH_BYTES_MAX + 1024);
        assert_eq!(batch[0].detail.chars().count(), DETAIL_CHARS_MAX + 1);
    }
}
