//! Revoking nodes. First the register says so, and from then on nothing that a node asks for at the same time gives it another key or takes one out
//! of the register; then the keymaster voids the keys that it has. Where the register cannot be written for a while, the keys that are known go
//! first. What the keymaster could not be asked is asked again until it has answered, by every
//! replica, and so is what the sentry has written down of keys that it had revoked.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream::kv;
use probeops_shared::ids::NodeId;
use probeops_shared::problem::Code;
use probeops_shared::registry::{NodeGrant, RevokedKey};
use probeops_shared::timestamp::Timestamp;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{AGAIN_AFTER, Enroll, WRITES_MAX, target, unavailable};
use crate::problem::Problem;
use crate::revocation::Told;
use crate::watch::{Change, watch};

/// How often it is looked what is owed, besides at once when the sentry says something.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long the register may take to be written, before keys are voided that are known without it.
const MARK_WITHIN: Duration = Duration::from_millis(250);
/// For how long it is tried: where the server hangs that leads it, the others have another leader some seconds later.
const MARK_TRIED_FOR: Duration = Duration::from_secs(20);

/// What the sentry has written down and is not in the register yet.
#[derive(Debug, Default)]
struct Words {
    unread: Mutex<BTreeMap<String, RevokedKey>>,
    told: Notify,
}

impl Words {
    fn learn(&self, change: Change) {
        let Change::Put(entry) = change else { return };
        match serde_json::from_slice::<RevokedKey>(&entry.value) {
            Ok(revoked) => {
                drop(self.unread.lock().unwrap_or_else(PoisonError::into_inner).insert(entry.key, revoked));
                self.told.notify_one();
            }
            Err(error) => tracing::warn!(key = entry.key, %error, "an entry of bucket REVOKED cannot be read and is passed over"),
        }
    }

    fn take(&self) -> BTreeMap<String, RevokedKey> {
        std::mem::take(&mut *self.unread.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn put_back(&self, key: String, revoked: RevokedKey) {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_insert(revoked);
    }
}

/// Sees to what is owed until told to stop.
pub(super) async fn keep_up(enroll: Enroll, bucket: kv::Store, stop: CancellationToken) {
    let words = Arc::new(Words::default());
    let (learning, link) = (Arc::clone(&words), enroll.0.broker.store_link());
    let followed = watch(bucket, link, stop.clone(), move |change| learning.learn(change));
    let kept_up = Box::pin(async {
        loop {
            // Whether it is told or not.
            let _ = timeout(LOOK_EVERY, words.told.notified()).await;
            if enroll.0.broker.ready().is_ok() {
                enroll.see_to_what_is_owed(&words).await;
            }
        }
    });
    let _ = stop.run_until_cancelled(Box::pin(async { tokio::join!(followed, kept_up) })).await;
}

/// A node as it lies in the register, and in which revision.
type Held = (NodeGrant, u64);

/// Whether a node was marked as revoked.
enum Marked {
    Now(Held),
    Before(Held),
    /// There is no such node, or it has other keys.
    Not,
}

impl Enroll {
    /// Revokes a node's credentials on every server. Of one that is revoked already it says how far that has come.
    pub(crate) async fn revoke(&self, id: &NodeId, because: &str) -> Result<Told, Problem> {
        let mut marking = pin!(self.mark_in_time(id, because));
        let marked = if let Ok(marked) = timeout(MARK_WITHIN, &mut marking).await {
            marked?
        } else {
            // Nobody leads the register now. Who is to be cut off does not stay until somebody does.
            let (marked, voided) = tokio::join!(marking, self.void_known(id));
            marked.map_err(|problem| match voided {
                    Ok(Some(told)) => problem.of(&format!(
                        "the key of node `{id}` is void ({}), but the node is not marked as revoked, and could have another key; revoke it again",
                        told.said()
                    )),
                    Ok(None) | Err(_) => problem,
                })?
        };
        let (Marked::Now(held) | Marked::Before(held)) = marked else {
            return Err(Problem::new(Code::NoSuchNode, format!("there is no node `{id}`")));
        };
        self.void(id, Some(held)).await.map_err(|problem| {
            problem.of(&format!(
                "node `{id}` is marked as revoked and gets no more jobs, but its key is not void yet, which is tried again until it is"
            ))
        })
    }

    /// Has the register say that a node is revoked, also where it cannot be written for a while.
    async fn mark_in_time(&self, id: &NodeId, because: &str) -> Result<Marked, Problem> {
        let (at, begun) = (Timestamp::now(), Instant::now());
        loop {
            match self.mark(id, None, (at, because)).await {
                Err(problem) if begun.elapsed() < MARK_TRIED_FOR && self.0.broker.ready().is_ok() => {
                    tracing::warn!(node = %id, "a node cannot be marked as revoked yet; trying again: {problem}");
                    sleep(MARK_WITHIN).await;
                }
                done => return done,
            }
        }
    }

    /// Has the register say that a node is revoked; of the node that has this key, where one is named.
    async fn mark(&self, id: &NodeId, key: Option<&str>, (at, because): (Timestamp, &str)) -> Result<Marked, Problem> {
        for _ in 0..WRITES_MAX {
            let Some((mut grant, revision)) = self.node(id).await? else { return Ok(Marked::Not) };
            if key.is_some_and(|key| !grant.keys().iter().any(|its| its == key)) {
                return Ok(Marked::Not);
            }
            if !grant.mark_revoked(at, because) {
                return Ok(Marked::Before((grant, revision)));
            }
            if let Some(revision) = self.write(&grant, revision.into()).await? {
                return Ok(Marked::Now((grant, revision)));
            }
            sleep(AGAIN_AFTER).await;
        }
        Err(unavailable("somebody else changes the node all the time"))
    }

    /// Has the keymaster void the keys of a node that is marked as revoked: as it was when it was marked, where that is known. The server that is
    /// asked may have a copy of the register that is a moment older.
    pub(super) async fn void(&self, id: &NodeId, marked: Option<Held>) -> Result<Told, Problem> {
        let oldest = marked.as_ref().map_or(0, |(_, revision)| *revision);
        let mut known = marked;
        for _ in 0..WRITES_MAX {
            let found = match known.take() {
                Some(held) => Some(held),
                None => self.node(id).await?,
            };
            let older = found.as_ref().is_some_and(|(_, revision)| *revision < oldest);
            let found = found.filter(|(grant, _)| grant.revoked_at.is_some());
            match found {
                _ if older => {}
                Some((mut grant, revision)) => {
                    let told = self.void_keys(&grant).await?;
                    if !grant.revoking {
                        return Ok(told);
                    }
                    grant.revoking = false;
                    if self.write(&grant, revision.into()).await?.is_some() {
                        return Ok(told);
                    }
                }
                None => {
                    return Err(Problem::new(
                        Code::Conflict,
                        format!("node `{id}` was granted anew, or removed, at the same time; look at it"),
                    ));
                }
            }
            sleep(AGAIN_AFTER).await;
        }
        Err(unavailable("somebody else changes the node all the time"))
    }

    /// Voids the keys that a node has by what was last told of it.
    async fn void_known(&self, id: &NodeId) -> Result<Option<Told>, Problem> {
        let Some(grant) = self.0.broker.roster().grant(id) else { return Ok(None) };
        let voided = self.void_keys(&grant).await;
        match &voided {
            Ok(told) => tracing::warn!(node = %id, "the node's keys are void before it could be marked as revoked: {}", told.said()),
            Err(problem) => tracing::warn!(node = %id, "the node's keys could not be made void before it is marked as revoked: {problem}"),
        }
        voided.map(Some)
    }

    /// Voids every key of which a credential of a node may be in force.
    pub(super) async fn void_keys(&self, grant: &NodeGrant) -> Result<Told, Problem> {
        let mut told: Option<Told> = None;
        for key in grant.keys() {
            match self.0.keymaster.revoke(&key).await {
                Ok(revoked) => told = Some(told.map_or_else(|| revoked.clone().into(), |before| before.and(revoked.clone().into()))),
                // It never had a credential, or all have ended long ago.
                Err(problem) if problem.code() == Code::NotFound && grant.expires_at <= Timestamp::now() => {}
                Err(problem) => return Err(problem),
            }
        }
        Ok(told.unwrap_or_default())
    }

    async fn see_to_what_is_owed(&self, words: &Words) {
        for (key, revoked) in words.take() {
            if let Err(problem) = self.take_word(&key, &revoked).await {
                tracing::warn!(node = %revoked.node, "that the sentry had the node revoked could not be written down and is tried again: {problem}");
                words.put_back(key, revoked);
            }
        }
        let (revoking, owing) = self.0.broker.roster().owed();
        for id in revoking {
            if let Err(problem) = self.void(&id, None).await {
                tracing::warn!(node = %id, "the keys of a node that is revoked are not void yet; that is tried again: {problem}");
            }
        }
        for id in owing {
            if let Err(problem) = self.revoke_predecessor(&id, "").await {
                tracing::warn!(node = %id, "the key that a node had before is still accepted; that is tried again: {problem}");
            }
        }
    }

    /// Marks the node whose key the sentry had revoked.
    async fn take_word(&self, key: &str, revoked: &RevokedKey) -> Result<(), Problem> {
        let RevokedKey { node, at, because, .. } = revoked;
        if let Marked::Now(held) = self.mark(node, Some(key), (*at, because)).await? {
            self.0.audit.changed("sentry", "", target(node), format!("node revoked: {because}"));
            // The sentry asks the keymaster, too; whichever of them is there.
            if let Err(problem) = self.void(node, Some(held)).await {
                tracing::warn!(%node, "the keys of a node that the sentry had revoked are not void yet; that is tried again: {problem}");
            }
        }
        Ok(())
    }
}
