//! Which replicas of the API are there: each says so again and again, and the broker forgets those that do not (bucket REPLICAS).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream::kv;
use probeops_nats::connect::BACKOFF_MAX;
use probeops_shared::ids::Caller;
use probeops_shared::presence::{REPLICA_BEAT, REPLICA_GONE_AFTER};
use probeops_shared::timestamp::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::LinkState;
use crate::watch::{Change, watch as watch_bucket};

/// A replica that was away only together with the broker is there again within this time: it connects, and says so at its next beat.
const BACK_WITHIN: Duration = BACKOFF_MAX.saturating_add(REPLICA_BEAT);
/// How many replicas that have gone wait to be looked after; the one more is found by the next look at all.
const GONE_MAX: usize = 64;

/// That this replica is there, as long as it says so.
#[derive(Clone, Debug)]
pub(crate) struct Lease(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bucket: kv::Store,
    caller: Caller,
    since: Timestamp,
    /// This process among those that had the same name before it.
    id: String,
    /// Until when the broker does not forget what it was told last.
    until: Mutex<Instant>,
    link: watch::Receiver<LinkState>,
    /// Since when this replica has been connected, by which connection, and has said so in time.
    steady: Mutex<(Instant, u64)>,
}

impl Lease {
    /// Says for the first time that this replica is there.
    pub(crate) async fn take(bucket: kv::Store, caller: Caller, link: watch::Receiver<LinkState>) -> Result<Self, String> {
        let now = Instant::now();
        let steady = Mutex::new((now, link.borrow().epoch));
        let since = Timestamp::now();
        let id = format!("{caller}@{}", since.unix_ms());
        let lease = Self(Arc::new(Inner { bucket, caller, since, id, until: Mutex::new(now), link, steady }));
        lease.renew().await.map(|()| lease)
    }

    /// When this process took it.
    pub(crate) fn since(&self) -> Timestamp {
        self.0.since
    }

    /// This process among all replicas, those that had its name before it included.
    pub(crate) fn id(&self) -> &str {
        &self.0.id
    }

    /// Whether a process is there that has this [id](Self::id), or may be: the broker has forgotten all while it was away.
    pub(crate) async fn stands(&self, id: &str) -> Result<bool, String> {
        let was_away = self.0.link.borrow().epoch > 1;
        if was_away && Instant::now() < self.steady_since() + BACK_WITHIN {
            return Ok(true);
        }
        let Some((name, _)) = id.split_once('@') else { return Ok(false) };
        let value = self.0.bucket.get(name).await.map_err(|error| error.to_string())?;
        Ok(value.is_some_and(|value| value == id.as_bytes()))
    }

    /// Whether nobody else can think that this replica is gone.
    pub(crate) fn is_held(&self) -> bool {
        *self.0.until.lock().unwrap_or_else(PoisonError::into_inner) > Instant::now()
    }

    /// Whether another replica is there.
    pub(crate) async fn is_there(&self, replica: &Caller) -> Result<bool, String> {
        self.0.bucket.get(replica.as_str()).await.map(|value| value.is_some()).map_err(|error| error.to_string())
    }

    /// Waits until who is not there is not away only for the reason that this replica was, too: the broker was.
    pub(crate) async fn steady(&self) {
        loop {
            let at = self.steady_since() + BACK_WITHIN;
            if at <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(at.into()).await;
        }
    }

    /// Says that this replica is there until `stop`.
    pub(crate) async fn keep(self, stop: CancellationToken) {
        let mut beat = tokio::time::interval(REPLICA_BEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(beat.tick()).await.is_some() {
            self.steady_since();
            if let Err(error) = self.renew().await {
                tracing::warn!(%error, "other replicas cannot be told that this one is there");
            }
        }
    }

    fn steady_since(&self) -> Instant {
        let (now, held) = (self.0.link.borrow().epoch, self.is_held());
        let mut steady = self.0.steady.lock().unwrap_or_else(PoisonError::into_inner);
        if steady.1 != now || !held {
            *steady = (Instant::now(), now);
        }
        steady.0
    }

    async fn renew(&self) -> Result<(), String> {
        // The broker counts from when it heard it, which is later.
        let asked = Instant::now();
        self.0.bucket.put(self.0.caller.as_str(), self.0.id.clone().into()).await.map_err(|error| error.to_string())?;
        *self.0.until.lock().unwrap_or_else(PoisonError::into_inner) = asked + REPLICA_GONE_AFTER;
        Ok(())
    }

    /// Tells of other replicas that the broker has forgotten, until `stop`; of nobody in particular when some may have gone unseen.
    pub(crate) fn gone(
        &self,
        link: watch::Receiver<LinkState>,
        stop: CancellationToken,
    ) -> (mpsc::Receiver<Option<Caller>>, impl Future<Output = ()> + use<>) {
        let (sender, gone) = mpsc::channel(GONE_MAX);
        let own = self.0.caller.clone();
        let watching = watch_bucket(self.0.bucket.clone(), link, stop, move |change| {
            let gone = match change {
                Change::Put(_) => None,
                // A broker that was away forgets without a word.
                Change::Restart => Some(None),
                Change::Gone(entry) => entry.key.parse().ok().filter(|replica| *replica != own).map(Some),
            };
            if let Some(gone) = gone {
                drop(sender.try_send(gone));
            }
        });
        (gone, watching)
    }
}
