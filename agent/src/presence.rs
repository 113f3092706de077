//! What the node says of itself: hello at every connect, a beat every ten seconds, bye at the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::Client;
use probeops_shared::presence::{BEAT_INTERVAL_MS, Beat, EventAck, EventKind};
use probeops_shared::subjects;
use probeops_shared::timestamp::Timestamp;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::health::Health;
use crate::inbox::Inbox;
use crate::worker::Worker;

/// How long to wait after a beat that nobody acknowledged: the control plane may just be starting.
const UNACKNOWLEDGED_RETRY: Duration = Duration::from_secs(2);

/// The node's voice.
#[derive(Debug)]
pub(crate) struct Presence {
    worker: Arc<Worker>,
    inbox: Arc<Inbox>,
    health: Health,
    boot_id: String,
    started_at: Timestamp,
    counter: AtomicU64,
    /// Asks for a hello now: there is a new connection, or something changed that the roster should know.
    pub(crate) say_hello: Notify,
}

impl Presence {
    /// A voice for this start of the agent.
    pub(crate) fn new(worker: Arc<Worker>, inbox: Arc<Inbox>, health: Health) -> Self {
        let boot_id = format!("{:016x}", rand::random::<u64>());
        Self { worker, inbox, health, boot_id, started_at: Timestamp::now(), counter: AtomicU64::new(0), say_hello: Notify::new() }
    }

    /// The first word; whether it was acknowledged. The broker has answered when it returns, so it knows of everything subscribed before.
    pub(crate) async fn hello(&self) -> bool {
        self.say(EventKind::Hello).await
    }

    /// Beats until told to stop; the last word was acknowledged or not.
    pub(crate) async fn beat(&self, mut acknowledged: bool, stop: &CancellationToken) {
        loop {
            let wait = if acknowledged { jittered(BEAT_INTERVAL_MS) } else { UNACKNOWLEDGED_RETRY };
            let kind = tokio::select! {
                () = self.say_hello.notified() => EventKind::Hello,
                () = tokio::time::sleep(wait) => EventKind::Beat,
                () = stop.cancelled() => return,
            };
            acknowledged = self.say(kind).await;
        }
    }

    /// Says it and waits for the acknowledgement, which carries the control plane's time.
    async fn say(&self, kind: EventKind) -> bool {
        let (subject, payload) = self.message(kind);
        let known = Some(self.worker.limits.digest()).filter(|known| !known.is_empty());
        let (sent, started) = (Timestamp::now(), Instant::now());
        let Some(answer) = self.inbox.ask(subject, known, payload.into()).await else { return false };
        let Ok(ack) = serde_json::from_slice::<EventAck>(&answer) else {
            tracing::warn!("an acknowledgement could not be read");
            return false;
        };
        self.worker.clock.learn(sent, started.elapsed(), ack.time_unix_ms);
        if let Some(shares) = ack.shares {
            self.worker.limits.learn(shares);
        }
        self.health.well();
        true
    }

    /// The last word; nobody waits for its answer.
    pub(crate) async fn bye(&self, client: &Client) {
        self.health.ended();
        let (subject, payload) = self.message(EventKind::Bye);
        if let Err(error) = client.publish(subject, payload.into()).await {
            tracing::warn!(%error, "could not say bye");
        }
    }

    fn message(&self, kind: EventKind) -> (String, Vec<u8>) {
        let worker = &self.worker;
        let measured = worker.clock.measured();
        let beat = Beat {
            node: worker.node.id.clone(),
            region: worker.node.region.clone(),
            boot_id: self.boot_id.clone(),
            started_at: self.started_at,
            counter: self.counter.fetch_add(1, Ordering::Relaxed),
            version: probeops_shared::VERSION.to_owned(),
            tools: worker.tools.clone(),
            unavailable: worker.unavailable.clone(),
            slots: worker.slots.announced(),
            draining: worker.draining.load(Ordering::Acquire),
            clock_offset_ms: measured.map(|measured| measured.offset_ms),
            rtt_ms: measured.map(|measured| measured.rtt_ms),
            policy: worker.context.policy().report(),
        };
        (subjects::event(&beat.region, &beat.node, kind), serde_json::to_vec(&beat).unwrap_or_default())
    }
}

/// The interval, a tenth more or less by chance.
fn jittered(interval_ms: u64) -> Duration {
    Duration::from_millis(interval_ms).mul_f64(0.9 + rand::random::<f64>() / 5.0)
}
