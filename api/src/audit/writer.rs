//! Writes records in groups: those that wait when the last acknowledgement arrives, and those of the next moment, go as one message. So one
//! message is on its way at a time, and the busier it gets, the larger they are.

use std::time::Duration;

use async_nats::jetstream::message::PublishMessage;
use probeops_shared::audit::{BATCH_MAX, Record};
use probeops_shared::subjects;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::audit::message_id;
use crate::broker::Broker;

/// The category of what the API itself writes.
const CATEGORY: &str = "api";
/// How long the first record of a batch waits for company.
const BATCH_WITHIN: Duration = Duration::from_millis(20);
/// How often a message that the connected broker does not keep is tried.
const TRIES_MAX: u32 = 10;
/// The wait between two tries.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// How long writing what is left may take at the end.
const FLUSH_WITHIN: Duration = Duration::from_secs(5);

/// Writes until told to stop, and then what is left.
pub(super) async fn write(broker: Broker, mut records: mpsc::Receiver<Record>, stop: CancellationToken) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    let until_stopped = async {
        while records.recv_many(&mut batch, BATCH_MAX).await > 0 {
            drop(tokio::time::timeout(BATCH_WITHIN, fill(&mut records, &mut batch)).await);
            keep(&broker, &batch).await;
            batch.clear();
        }
    };
    tokio::select! {
        () = until_stopped => return,
        () = stop.cancelled() => {}
    }
    records.close();
    let rest = async {
        // First the batch that stop interrupted: kept twice, it is stored once, because it says the same id.
        while !batch.is_empty() || records.recv_many(&mut batch, BATCH_MAX).await > 0 {
            keep(&broker, &batch).await;
            batch.clear();
        }
    };
    if tokio::time::timeout(FLUSH_WITHIN, rest).await.is_err() {
        tracing::error!("audit records are lost: the broker did not keep what was left within {} s", FLUSH_WITHIN.as_secs());
    }
}

/// Adds what comes until the batch is full.
async fn fill(records: &mut mpsc::Receiver<Record>, batch: &mut Vec<Record>) {
    while batch.len() < BATCH_MAX {
        let room = BATCH_MAX - batch.len();
        if records.recv_many(batch, room).await == 0 {
            return;
        }
    }
}

/// Writes a batch. While the broker is away it waits, and records gather in the queue; a batch that a connected broker will not have is given up.
async fn keep(broker: &Broker, batch: &[Record]) {
    let payload = match serde_json::to_vec(batch) {
        Ok(payload) => bytes::Bytes::from(payload),
        Err(error) => {
            tracing::error!(records = batch.len(), %error, "audit records are lost: they cannot be written as JSON");
            return;
        }
    };
    let subject = subjects::audit(CATEGORY, broker.caller());
    let id = message_id(broker.caller(), &payload);
    let mut link = broker.link();
    for attempt in 1..=TRIES_MAX {
        if link.wait_for(|state| state.connected).await.is_err() {
            return;
        }
        let message = PublishMessage::build().payload(payload.clone()).message_id(&id);
        let kept = match broker.jetstream().send_publish(subject.clone(), message).await {
            Ok(sent) => sent.await.map(drop),
            Err(error) => Err(error),
        };
        match kept {
            Ok(()) => return,
            Err(error) => tracing::warn!(attempt, %error, "audit records were not kept; trying again"),
        }
        tokio::time::sleep(RETRY_AFTER).await;
    }
    tracing::error!(records = batch.len(), "audit records are lost: the broker did not keep them in {TRIES_MAX} attempts");
}
