//! Which replicas of the API are there: each says so again and again, and the broker forgets those that do not (bucket REPLICAS).
//!
//! A replica that is taken over can make the broker keep its own entry for ever (`Nats-TTL`) and drop those of all others (`Nats-Rollup`). So an
//! entry counts for what the broker says of when it came, and also while it is remembered here only.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream::kv::{self, Entry, Operation};
use bytes::Bytes;
use probeops_nats::connect::BACKOFF_MAX;
use probeops_shared::ids::Caller;
use probeops_shared::presence::{REPLICA_BEAT, REPLICA_GONE_AFTER};
use probeops_shared::timestamp::Timestamp;
use time::OffsetDateTime;
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
    /// What the broker was last heard to say of each, this one included, by name. Each can only speak for itself, so there are no more than
    /// replicas that have a credential.
    heard: Mutex<HashMap<String, Said>>,
}

/// That a replica is there.
#[derive(Clone, Debug)]
struct Said {
    /// When, by the broker's clock.
    at: OffsetDateTime,
    /// Which process of its name.
    id: Bytes,
    /// When that was heard here.
    heard: Instant,
}

impl From<Entry> for Said {
    fn from(Entry { created, value, .. }: Entry) -> Self {
        Self { at: created, id: value, heard: Instant::now() }
    }
}

impl Lease {
    /// Says for the first time that this replica is there.
    pub(crate) async fn take(bucket: kv::Store, caller: Caller, link: watch::Receiver<LinkState>) -> Result<Self, String> {
        let now = Instant::now();
        let steady = Mutex::new((now, link.borrow().epoch));
        let since = Timestamp::now();
        let id = format!("{caller}@{}", since.unix_ms());
        let (until, heard) = (Mutex::new(now), Mutex::default());
        let lease = Self(Arc::new(Inner { bucket, caller, since, id, until, link, steady, heard }));
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
        Ok(self.said(name).await?.is_some_and(|said| said.id == id.as_bytes()))
    }

    /// Whether nobody else can think that this replica is gone.
    pub(crate) fn is_held(&self) -> bool {
        *self.0.until.lock().unwrap_or_else(PoisonError::into_inner) > Instant::now()
    }

    /// Whether another replica is there.
    pub(crate) async fn is_there(&self, replica: &Caller) -> Result<bool, String> {
        Ok(self.said(replica.as_str()).await?.is_some())
    }

    /// What a replica has said within [`REPLICA_GONE_AFTER`]. The broker's time is known from when it last heard this one, and from how long ago
    /// that was told here: a clock that is off here makes nobody look gone.
    async fn said(&self, name: &str) -> Result<Option<Said>, String> {
        let entry = self.0.bucket.entry(name).await.map_err(|error| error.to_string())?;
        let stored = entry.filter(|entry| entry.operation == Operation::Put).map(Said::from);
        let heard = self.0.heard();
        let last = stored.into_iter().chain(heard.get(name).cloned()).max_by_key(|said| said.at);
        let own = heard.get(self.0.caller.as_str());
        Ok(last.filter(|said| own.is_none_or(|own| own.at + own.heard.elapsed() - said.at <= REPLICA_GONE_AFTER)))
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
        let lease = Arc::clone(&self.0);
        let watching = watch_bucket(self.0.bucket.clone(), link, stop, move |change| {
            let gone = match change {
                Change::Put(entry) => {
                    drop(lease.heard().insert(entry.key.clone(), entry.into()));
                    None
                }
                // A broker that was away forgets without a word.
                Change::Restart => Some(None),
                Change::Gone(entry) => {
                    drop(lease.heard().remove(&entry.key));
                    entry.key.parse().ok().filter(|replica| *replica != lease.caller).map(Some)
                }
            };
            if let Some(gone) = gone {
                drop(sender.try_send(gone));
            }
        });
        (gone, watching)
    }
}

impl Inner {
    fn heard(&self) -> MutexGuard<'_, HashMap<String, Said>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
