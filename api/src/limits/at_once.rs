//! How many runs go on at once, over all replicas: each says in the bucket how many it may have, and that counts as long as it is there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream::kv::{Store, UpdateErrorKind};
use probeops_shared::presence::REPLICA_BEAT;

use crate::broker::Lease;

/// How often an entry is tried that other replicas change at the same time.
const TRIES_MAX: u32 = 16;
/// The wait after a try grows by up to so much with each.
const TRY_AGAIN_WITHIN: Duration = Duration::from_millis(2);
/// A replica keeps one in so many ready, so that not every run is a question to the bucket.
const SPARE: u32 = 20;
/// How soon what is not needed any more is given back.
const GIVE_BACK_AFTER: Duration = Duration::from_millis(20);
/// How soon it is tried again if it cannot be.
const GIVE_BACK_RETRY: Duration = Duration::from_secs(1);
/// For so long nobody looks again whether others gave back.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// What was written so long ago is written again before it is relied upon: others drop what a replica had that was away.
const RELIED_UPON: Duration = REPLICA_BEAT;

/// What is known here of one limit.
#[derive(Debug)]
pub(super) struct Shared {
    key: String,
    bucket: Store,
    lease: Lease,
    counts: Mutex<Counts>,
    /// The entry as it was last seen, and its revision; held by whoever changes it.
    entry: tokio::sync::Mutex<Option<(Entry, u64)>>,
}

/// How many each replica may have.
type Entry = BTreeMap<String, u32>;

#[derive(Debug, Default)]
struct Counts {
    running: u32,
    leased: u32,
    written: Option<Instant>,
    short_until: Option<Instant>,
    gives_back: bool,
}

/// Runs that count; dropped when they are over.
#[derive(Debug)]
pub(crate) struct Held {
    of: Arc<Shared>,
    runs: u32,
}

/// What came of taking of what is leased.
enum Leased {
    /// They may run.
    Taken(Held),
    /// As many run as may.
    Full,
    /// The bucket must be asked for more.
    TooFew,
}

impl Shared {
    pub(super) fn new(key: String, bucket: Store, lease: Lease) -> Self {
        Self { key, bucket, lease, counts: Mutex::default(), entry: tokio::sync::Mutex::default() }
    }

    /// Lets so many run, if as many may; none where too many do. An error means that the bucket cannot be asked.
    pub(super) async fn take(self: &Arc<Self>, limit: u32, runs: u32) -> Result<Option<Held>, String> {
        match self.take_leased(runs) {
            Leased::Taken(held) => return Ok(Some(held)),
            Leased::Full => return Ok(None),
            Leased::TooFew => {}
        }
        // A caller that hangs up meanwhile leaves nothing behind: what is taken for him is dropped, and given back.
        let taking = Arc::clone(self);
        let taken = tokio::spawn(async move { taking.lease(limit, runs).await }).await;
        taken.unwrap_or_else(|_| Err("it met a fault of this API".to_owned())).inspect_err(|_| self.give_back_soon())
    }

    async fn lease(self: &Arc<Self>, limit: u32, runs: u32) -> Result<Option<Held>, String> {
        let mut entry = self.entry.lock().await;
        for number in 0..TRIES_MAX {
            match self.take_leased(runs) {
                Leased::Taken(held) => return Ok(Some(held)),
                Leased::Full => return Ok(None),
                Leased::TooFew => {}
            }
            let seen = entry.is_some();
            if entry.is_none() {
                *entry = Some(self.look_up().await?);
            }
            let Some((known, revision)) = entry.clone() else { continue };
            let mut others = known.clone();
            others.remove(self.lease.id());
            let (running, leased) = {
                let counts = self.counts();
                (counts.running, counts.leased)
            };
            let wanted = running.saturating_add(runs);
            if sum(&others).saturating_add(wanted) > limit {
                if seen {
                    *entry = None;
                    continue;
                }
                self.drop_gone(&mut others).await?;
                if sum(&others).saturating_add(wanted) > limit {
                    self.counts().short_until = Some(Instant::now() + LOOK_AGAIN);
                    return Ok(None);
                }
            }
            let room = limit.saturating_sub(sum(&others));
            let wanted = room.min(wanted + limit / SPARE).max(leased.min(room));
            others.insert(self.lease.id().to_owned(), wanted);
            let Some(revision) = self.write(&others, revision).await? else {
                *entry = None;
                tokio::time::sleep((TRY_AGAIN_WITHIN * number).mul_f64(rand::random())).await;
                continue;
            };
            *entry = Some((others, revision));
            let mut counts = self.counts();
            (counts.leased, counts.written, counts.short_until) = (wanted, Some(Instant::now()), None);
            if counts.running.saturating_add(runs) <= wanted {
                counts.running += runs;
                return Ok(Some(Held { of: Arc::clone(self), runs }));
            }
        }
        Err("too many replicas change it at the same time".to_owned())
    }

    /// How many run on all replicas, as the bucket has it now: what is kept ready counts.
    pub(super) async fn look(&self) -> Result<u32, String> {
        let mut entry = self.entry.lock().await;
        let (known, revision) = self.look_up().await?;
        let used = known.iter().filter(|(replica, _)| replica.as_str() != self.lease.id()).map(|(_, held)| *held);
        let used = used.fold(self.counts().running, u32::saturating_add);
        *entry = Some((known, revision));
        Ok(used)
    }

    /// Whether nothing would be lost if it were forgotten here.
    pub(super) fn is_idle(&self) -> bool {
        let counts = self.counts();
        counts.running == 0 && counts.leased == 0 && !counts.gives_back
    }

    /// Takes of what is leased.
    fn take_leased(self: &Arc<Self>, runs: u32) -> Leased {
        let mut counts = self.counts();
        let now = Instant::now();
        let relied_upon = counts.written.is_some_and(|written| now < written + RELIED_UPON);
        if relied_upon && counts.running.saturating_add(runs) <= counts.leased {
            counts.running += runs;
            return Leased::Taken(Held { of: Arc::clone(self), runs });
        }
        if counts.short_until.is_some_and(|until| now < until) { Leased::Full } else { Leased::TooFew }
    }

    /// Forgets replicas that are not there any more.
    async fn drop_gone(&self, others: &mut Entry) -> Result<(), String> {
        for replica in others.keys().cloned().collect::<Vec<_>>() {
            if !self.lease.stands(&replica).await? {
                others.remove(&replica);
            }
        }
        Ok(())
    }

    /// Sees to it that the bucket says no more than what runs.
    fn give_back_soon(self: &Arc<Self>) {
        // Without a runtime the process ends, and others drop what it had.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if !std::mem::replace(&mut self.counts().gives_back, true) {
            drop(runtime.spawn(Arc::clone(self).give_back()));
        }
    }

    async fn give_back(self: Arc<Self>) {
        let mut wait = GIVE_BACK_AFTER;
        loop {
            tokio::time::sleep(wait).await;
            let mut entry = self.entry.lock().await;
            let leased = {
                let mut counts = self.counts();
                // Nobody takes what is about to be given back.
                counts.leased = counts.leased.min(counts.running);
                counts.leased
            };
            let told = match entry.take() {
                Some(known) => Ok(known),
                None => self.look_up().await,
            };
            let written = match told {
                Err(error) => Err(error),
                Ok((mut known, revision)) => {
                    if leased == 0 {
                        known.remove(self.lease.id());
                    } else {
                        known.insert(self.lease.id().to_owned(), leased);
                    }
                    self.write(&known, revision).await.map(|revision| revision.map(|revision| (known, revision)))
                }
            };
            match written {
                Ok(Some(known)) => {
                    *entry = Some(known);
                    let mut counts = self.counts();
                    (counts.written, counts.short_until) = (Some(Instant::now()), None);
                    if counts.running >= counts.leased {
                        counts.gives_back = false;
                        return;
                    }
                    wait = GIVE_BACK_AFTER;
                }
                Ok(None) => wait = GIVE_BACK_AFTER,
                Err(error) => {
                    tracing::warn!(limit = self.key, %error, "what is not used of a limit could not be given back; trying again");
                    wait = GIVE_BACK_RETRY;
                }
            }
        }
    }

    async fn look_up(&self) -> Result<(Entry, u64), String> {
        let Some(entry) = self.bucket.entry(&self.key).await.map_err(|error| error.to_string())? else { return Ok((Entry::new(), 0)) };
        let known = serde_json::from_slice(&entry.value).map_err(|error| format!("entry {} cannot be read: {error}", self.key))?;
        Ok((known, entry.revision))
    }

    /// The new revision; none where somebody else was faster.
    async fn write(&self, entry: &Entry, revision: u64) -> Result<Option<u64>, String> {
        let value = serde_json::to_vec(entry).map_err(|error| error.to_string())?;
        match self.bucket.update(&self.key, value.into(), revision).await {
            Ok(revision) => Ok(Some(revision)),
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sum(entry: &Entry) -> u32 {
    entry.values().fold(0, |sum, held| sum.saturating_add(*held))
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut counts = self.of.counts();
        counts.running = counts.running.saturating_sub(self.runs);
        let unused = counts.running < counts.leased;
        drop(counts);
        if unused {
            self.of.give_back_soon();
        }
    }
}
