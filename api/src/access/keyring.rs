//! All API keys, held in memory by watching bucket KEYS: a key that is revoked anywhere is refused by every replica at once.

use std::collections::{BTreeMap, HashSet};
use std::num::NonZeroU32;
use std::sync::{Arc, PoisonError, RwLock};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use probeops_shared::problem::Code;
use probeops_shared::timestamp::Timestamp;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::keys::{self, KeyRecord};
use crate::access::principal::Identity;
use crate::broker::Broker;
use crate::problem::Problem;
use crate::watch::{Change, watch};

/// How many keys are held.
const KEYS_MAX: usize = 100_000;
/// How many of them one has made, with the keys that he has made.
const KEYS_OF_ONE_MAX: usize = 10_000;
/// How many keys that the watch has not told of (yet) are looked up in a second.
const LOOKUPS_PER_SECOND: NonZeroU32 = NonZeroU32::new(50).expect("not zero");
/// How often a revocation tries again when somebody else wrote the key in between.
const WRITES_MAX: usize = 3;

/// All API keys.
#[derive(Clone, Debug)]
pub struct Keyring(Arc<Inner>);

struct Inner {
    known: RwLock<Known>,
    lookups: DefaultDirectRateLimiter,
    broker: Broker,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("known", &self.known).finish_non_exhaustive()
    }
}

impl Keyring {
    /// Begins to watch; ends with `stop`.
    pub(super) fn start(broker: Broker, tasks: &TaskTracker, stop: &CancellationToken) -> Self {
        let lookups = RateLimiter::direct(Quota::per_second(LOOKUPS_PER_SECOND));
        let (bucket, link) = (broker.keys(), broker.store_link());
        let keyring = Self(Arc::new(Inner { known: RwLock::default(), lookups, broker }));
        let learning = keyring.clone();
        drop(tasks.spawn(watch(bucket, link, stop.clone(), move |change| learning.learn(change))));
        keyring
    }

    /// Whom a key names.
    pub(super) async fn identify(&self, key: &str) -> Result<Arc<Identity>, Problem> {
        let id = keys::id_of(key).map_err(Problem::bad_credential)?;
        if let Some(answer) = self.read(|known| known.check(id, key)) {
            return answer;
        }
        self.look_up(id).await?;
        self.read(|known| known.check(id, key)).unwrap_or_else(|| Err(unknown()))
    }

    /// Whom the key with this id names now, by what is in the bucket and not only by what was told of it; none when it may nothing any more.
    pub(crate) async fn present(&self, id: &str) -> Result<Option<Arc<Identity>>, String> {
        let value = self.0.broker.keys().get(id).await.map_err(|error| format!("API keys cannot be checked now: {error}"))?;
        let Some(record) = value.and_then(|value| read(id, &value)) else { return Ok(None) };
        // What was told of it may be newer than the copy of the bucket that has answered.
        let revoked = self.read(|known| known.keys.get(id).is_some_and(|key| key.record.revoked_at.is_some()));
        Ok((record.is_in_force() && !revoked).then(|| Arc::new(identity(&record))))
    }

    /// Every key, by id.
    pub fn list(&self) -> Vec<KeyRecord> {
        self.read(|known| known.keys.values().map(|key| key.record.clone()).collect())
    }

    /// The principal of whose allowance of changes those of a key are taken, where it has none of its own.
    pub(crate) fn counts_with(&self, id: &str) -> Option<String> {
        self.read(|known| known.keys.get(id).and_then(|key| key.record.counts_with.clone()))
    }

    /// One key.
    pub async fn find(&self, id: &str) -> Result<Option<KeyRecord>, Problem> {
        let find = || self.read(|known| known.keys.get(id).map(|key| key.record.clone()));
        match find() {
            Some(record) => Ok(Some(record)),
            None if keys::is_id(id) => {
                self.look_up(id).await?;
                Ok(find())
            }
            None => Ok(None),
        }
    }

    /// Keeps a new key.
    pub async fn add(&self, record: &KeyRecord) -> Result<(), Problem> {
        self.read(|known| known.check_room(record))?;
        let value = serde_json::to_vec(record).map_err(|error| unavailable(&error))?;
        self.0.broker.keys().create(&record.id, value.into()).await.map_err(|error| unavailable(&error))?;
        self.write(|known| known.learn(record.clone()));
        Ok(())
    }

    /// Revokes a key; revoking it again changes nothing. None when there is no such key.
    pub async fn revoke(&self, id: &str) -> Result<Option<KeyRecord>, Problem> {
        let mut failed = None;
        for _ in 0..WRITES_MAX {
            let entry = self.0.broker.keys().entry(id).await.map_err(|error| unavailable(&error))?;
            let Some(entry) = entry else { return Ok(None) };
            let Ok(mut record) = serde_json::from_slice::<KeyRecord>(&entry.value) else { return Ok(None) };
            if record.revoked_at.is_none() {
                record.revoked_at = Some(Timestamp::now());
                let value = serde_json::to_vec(&record).map_err(|error| unavailable(&error))?;
                if let Err(error) = self.0.broker.keys().update(id, value.into(), entry.revision).await {
                    failed = Some(unavailable(&error));
                    continue;
                }
            }
            self.write(|known| known.learn(record.clone()));
            return Ok(Some(record));
        }
        Err(failed.unwrap_or_else(|| unavailable(&"somebody else changes it all the time")))
    }

    /// Learns a key that the watch has not told of: made a moment ago on another replica, or before the first words of the watch. So few a
    /// second that guessing does not burden the broker.
    async fn look_up(&self, id: &str) -> Result<(), Problem> {
        if self.0.lookups.check().is_err() {
            return Ok(());
        }
        let value = self.0.broker.keys().get(id).await;
        let value = value.map_err(|error| Problem::new(Code::Unavailable, format!("API keys cannot be checked now: {error}")))?;
        if let Some(record) = value.and_then(|value| read(id, &value)) {
            self.write(|known| known.learn(record));
        }
        Ok(())
    }

    fn learn(&self, change: Change) {
        self.write(|known| match change {
            Change::Restart => known.told = Some(HashSet::new()),
            Change::Put(entry) => {
                let record = read(&entry.key, &entry.value);
                known.hear(&entry.key, record, entry.seen_current);
            }
            Change::Gone(entry) => known.hear(&entry.key, None, entry.seen_current),
        });
    }

    fn read<T>(&self, reader: impl FnOnce(&Known) -> T) -> T {
        reader(&self.0.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, writer: impl FnOnce(&mut Known)) {
        writer(&mut self.0.known.write().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A key and whom it names.
#[derive(Debug)]
struct Key {
    record: KeyRecord,
    identity: Arc<Identity>,
}

/// The keys that were heard of.
#[derive(Debug, Default)]
struct Known {
    keys: BTreeMap<String, Key>,
    /// What a watch that has just been built told of so far; the rest is forgotten when it has told all.
    told: Option<HashSet<String>>,
}

impl Known {
    /// The owner of a key, or why it is refused; none when it was not heard of.
    fn check(&self, id: &str, key: &str) -> Option<Result<Arc<Identity>, Problem>> {
        let known = self.keys.get(id)?;
        // That a key was revoked is said only to who has it: an id alone learns nothing.
        if !keys::is_key_of(key, &known.record) {
            return Some(Err(unknown()));
        }
        Some(match (known.record.revoked_at, known.record.expires_at) {
            (Some(at), _) => Err(Problem::bad_credential(format!("the API key {id} was revoked at {at}; get another one"))),
            (None, Some(at)) if at <= Timestamp::now() => {
                Err(Problem::bad_credential(format!("the API key {id} expired at {at}; get another one")))
            }
            (None, _) => Ok(Arc::clone(&known.identity)),
        })
    }

    /// Refuses one key too many, of all or of one who makes them.
    fn check_room(&self, record: &KeyRecord) -> Result<(), Problem> {
        if self.keys.len() >= KEYS_MAX {
            return Err(Problem::new(Code::Conflict, format!("there are {KEYS_MAX} keys already, and no more are possible")));
        }
        let of_one = |key: &&Key| record.counts_with.is_some() && key.record.counts_with == record.counts_with;
        if self.keys.values().filter(of_one).count() >= KEYS_OF_ONE_MAX {
            let detail = format!("you, and the keys that you have made, have made {KEYS_OF_ONE_MAX} keys, and no more are possible");
            return Err(Problem::new(Code::Conflict, detail));
        }
        Ok(())
    }

    fn learn(&mut self, record: KeyRecord) {
        // A revoked key stays revoked: a late echo of the watch does not bring it back.
        let revoked = self.keys.get(&record.id).is_some_and(|known| known.record.revoked_at.is_some());
        if revoked && record.revoked_at.is_none() {
            return;
        }
        if self.keys.len() >= KEYS_MAX && !self.keys.contains_key(&record.id) {
            tracing::error!(key.id = record.id, "there are more than {KEYS_MAX} API keys; this one is not accepted");
            return;
        }
        let identity = Arc::new(identity(&record));
        self.keys.insert(record.id.clone(), Key { record, identity });
    }

    /// What the watch says of a key; `all_told` once everything that was there has been told.
    fn hear(&mut self, id: &str, record: Option<KeyRecord>, all_told: bool) {
        match record {
            Some(record) => self.learn(record),
            None => drop(self.keys.remove(id)),
        }
        if let Some(told) = &mut self.told {
            told.insert(id.to_owned());
        }
        if all_told && let Some(told) = self.told.take() {
            self.keys.retain(|id, _| told.contains(id));
        }
    }
}

/// Whom a key names.
pub(super) fn identity(record: &KeyRecord) -> Identity {
    Identity {
        name: format!("key:{}", record.id),
        scopes: record.scopes.clone(),
        limits: record.limits.clone(),
        nodes: Vec::new(),
        expires_at: record.expires_at,
    }
}

/// A record that can be understood; any other is as good as none.
fn read(id: &str, value: &[u8]) -> Option<KeyRecord> {
    let record: Result<KeyRecord, String> = serde_json::from_slice(value).map_err(|error| error.to_string());
    let checked = record.and_then(|record| {
        record.limits.check().map_err(|invalid| invalid.to_string())?;
        if record.id == id { Ok(record) } else { Err("it says another id".to_owned()) }
    });
    checked
        .inspect_err(|error| tracing::error!(key.id = id, error, "an API key's record cannot be understood; the key is not accepted"))
        .ok()
}

fn unknown() -> Problem {
    Problem::bad_credential("the API key is not known here; it may belong to another installation")
}

fn unavailable(error: &dyn std::fmt::Display) -> Problem {
    Problem::new(Code::Unavailable, format!("the key could not be kept: {error}"))
}

#[cfg(test)]
mod tests {
    use probeops_shared::access::Scope;

    use super::*;
    use crate::access::keys::{NewKey, mint};

    fn new_key() -> NewKey {
        NewKey { name: "n".to_owned(), scopes: vec![Scope::JobsWrite], ..NewKey::default() }
    }

    #[track_caller]
    fn refused(known: &Known, key: &str) -> String {
        known.check(keys::id_of(key).unwrap(), key).unwrap().unwrap_err().detail().to_owned()
    }

    #[test]
    fn a_revoked_key_is_refused_and_stays_so() {
        let minted = mint(new_key());
        let id = minted.record.id.clone();
        let mut known = Known::default();
        assert!(known.check(&id, &minted.key).is_none());
        known.learn(minted.record.clone());
        assert_eq!(known.check(&id, &minted.key).unwrap().unwrap().name, format!("key:{id}"));
        known.learn(KeyRecord { revoked_at: Some(Timestamp::now()), ..minted.record.clone() });
        assert!(refused(&known, &minted.key).contains("was revoked at"));
        known.hear(&id, Some(minted.record), true);
        assert!(refused(&known, &minted.key).contains("was revoked at"), "an older state does not bring it back");
    }

    #[test]
    fn one_who_makes_too_many_keys_leaves_room_for_others() {
        let of = |payer: Option<&str>| mint(NewKey { counts_with: payer.map(str::to_owned), ..new_key() }).record;
        let (his, mut known) = (of(Some("key:a")), Known::default());
        for number in 0..KEYS_OF_ONE_MAX {
            known.check_room(&his).unwrap();
            known.learn(KeyRecord { id: number.to_string(), ..his.clone() });
        }
        let refused = known.check_room(&his).unwrap_err();
        assert!(refused.code() == Code::Conflict && refused.detail().contains("have made 10000 keys"), "{refused}");
        assert!(known.check_room(&of(Some("key:b"))).is_ok() && known.check_room(&of(None)).is_ok());
    }

    #[test]
    fn a_key_that_has_expired_is_refused_as_such() {
        let [past, future] = [Timestamp::now(), Timestamp::now().plus(std::time::Duration::from_mins(1))];
        let minted = mint(NewKey { expires_at: Some(future), ..new_key() });
        let mut known = Known::default();
        known.learn(minted.record.clone());
        assert_eq!(known.check(&minted.record.id, &minted.key).unwrap().unwrap().expires_at, Some(future));
        known.learn(KeyRecord { expires_at: Some(past), ..minted.record.clone() });
        assert!(refused(&known, &minted.key).contains("expired at"));
    }

    #[test]
    fn another_key_with_the_same_id_learns_nothing() {
        let (mine, other) = (mint(new_key()), mint(new_key()));
        let mut known = Known::default();
        known.learn(KeyRecord { id: other.record.id.clone(), revoked_at: Some(Timestamp::now()), ..mine.record });
        assert!(refused(&known, &other.key).contains("not known here"));
    }

    #[test]
    fn what_a_new_watch_does_not_tell_of_is_forgotten_when_it_has_told_all() {
        let (kept, gone) = (mint(new_key()), mint(new_key()));
        let mut known = Known::default();
        known.learn(kept.record.clone());
        known.learn(gone.record.clone());
        known.told = Some(HashSet::new());
        assert!(known.check(&gone.record.id, &gone.key).unwrap().is_ok(), "until then it counts");
        known.hear(&kept.record.id, Some(kept.record.clone()), true);
        assert!(known.check(&gone.record.id, &gone.key).is_none());
        assert!(known.check(&kept.record.id, &kept.key).unwrap().is_ok());
    }
}
