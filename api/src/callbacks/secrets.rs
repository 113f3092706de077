//! Secrets that sign callbacks, in bucket SECRETS. They must be usable, so they are kept in clear; only replicas of the API can read the bucket.

use std::fmt;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::kv;
use data_encoding::HEXLOWER;
use probeops_shared::problem::Code;
use probeops_shared::subjects::{broker, storage};
use probeops_shared::timestamp::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::sign;
use crate::broker::last::last_of_each;
use crate::jobs::owner;
use crate::problem::Problem;

/// How long the mark of a secret that was deleted is kept.
const DELETED_KEPT: Duration = Duration::from_mins(1);
/// How long a secret that was replaced still signs.
const OLD_SIGNS_FOR: Duration = Duration::from_hours(24);
/// How many secrets one id may have at once, old ones included.
const LIVE_MAX: usize = 4;
/// How many ids one principal may have.
const SECRETS_MAX: usize = 100;
/// How often a rotation tries again when somebody else wrote it in between.
const WRITES_MAX: usize = 3;

/// A secret, as it is kept.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct SecretRecord {
    pub(crate) id: String,
    pub(crate) name: String,
    /// The only scheme, host and port whose callbacks it signs.
    pub(crate) origin: String,
    pub(crate) created_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rotated_at: Option<Timestamp>,
    /// The newest first.
    secrets: Vec<Secret>,
}

impl fmt::Debug for SecretRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretRecord").field("id", &self.id).field("origin", &self.origin).finish_non_exhaustive()
    }
}

#[derive(Clone, Serialize, Deserialize)]
struct Secret {
    secret: String,
    /// Until when it signs; the newest has no end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
}

/// A secret as it is shown.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Secret")]
pub(crate) struct SecretView {
    /// Its id, for `callback.secret_id`.
    pub(crate) id: String,
    /// What it is for.
    pub(crate) name: String,
    /// The only scheme, host and port whose callbacks it signs.
    pub(crate) origin: String,
    /// When it was made.
    pub(crate) created_at: Timestamp,
    /// When it was last replaced; absent when never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rotated_at: Option<Timestamp>,
    /// Until when the ones before it still sign; absent when none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) old_until: Option<Timestamp>,
}

impl SecretRecord {
    /// As it is shown.
    pub(crate) fn view(&self) -> SecretView {
        let old_until = self.live().filter_map(|secret| secret.until).max();
        let Self { id, name, origin, created_at, rotated_at, secrets: _ } = self.clone();
        SecretView { id, name, origin, created_at, rotated_at, old_until }
    }

    /// The newest of it, to be shown once.
    pub(crate) fn newest(&self) -> &str {
        self.secrets.first().map_or("", |secret| secret.secret.as_str())
    }

    /// The value of `webhook-signature`.
    pub(super) fn sign(&self, id: &str, timestamp_s: i64, body: &[u8]) -> Option<String> {
        sign::signature(self.live().map(|secret| secret.secret.as_str()), id, timestamp_s, body)
    }

    fn live(&self) -> impl Iterator<Item = &Secret> {
        let now = Timestamp::now();
        self.secrets.iter().filter(move |secret| secret.until.is_none_or(|until| now < until))
    }

    fn rotate(&mut self) -> Result<(), Problem> {
        let mut live: Vec<Secret> = self.live().cloned().collect();
        if live.len() >= LIVE_MAX {
            let detail = format!(
                "secret `{}` was rotated {} times within 24 h, and the old ones still sign; wait until one ends",
                self.id,
                LIVE_MAX - 1
            );
            return Err(Problem::new(Code::Conflict, detail));
        }
        let now = Timestamp::now();
        if let Some(newest) = live.first_mut() {
            newest.until = Some(now.plus(OLD_SIGNS_FOR));
        }
        live.insert(0, Secret { secret: sign::new_secret(), until: None });
        self.secrets = live;
        self.rotated_at = Some(now);
        Ok(())
    }
}

/// The secrets of all principals; each sees his own.
#[derive(Clone, Debug)]
pub(crate) struct Secrets {
    client: Client,
    bucket: kv::Store,
}

impl Secrets {
    pub(super) fn new(client: Client, bucket: kv::Store) -> Self {
        Self { client, bucket }
    }

    /// One of a principal's.
    pub(crate) async fn find(&self, principal: &str, id: &str) -> Result<Option<SecretRecord>, Problem> {
        Ok(self.entry(principal, id).await?.map(|(record, _)| record))
    }

    /// All of a principal's, by id.
    pub(crate) async fn list(&self, principal: &str) -> Result<Vec<SecretRecord>, Problem> {
        let own = broker::bucket_key(storage::SECRETS, format!("{}.*", owner(principal)));
        let found = last_of_each(&self.client, &broker::bucket_stream(storage::SECRETS), &[own]).await;
        let found = found.map_err(|error| unavailable(&error))?;
        // A mark that one was deleted says nothing.
        let mut records: Vec<SecretRecord> = found.iter().filter_map(|last| serde_json::from_slice(&last.payload).ok()).collect();
        records.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(records)
    }

    /// Makes one.
    pub(crate) async fn create(&self, principal: &str, name: String, origin: String) -> Result<SecretRecord, Problem> {
        if self.list(principal).await?.len() >= SECRETS_MAX {
            return Err(Problem::new(Code::Conflict, format!("you have {SECRETS_MAX} secrets already; delete one that is not used")));
        }
        let id = format!("sec_{}", HEXLOWER.encode(&rand::random::<[u8; 10]>()));
        let secrets = vec![Secret { secret: sign::new_secret(), until: None }];
        let record = SecretRecord { id, name, origin, created_at: Timestamp::now(), rotated_at: None, secrets };
        let value = serde_json::to_vec(&record).map_err(|error| unavailable(&error))?;
        self.bucket.create(key(principal, &record.id), value.into()).await.map_err(|error| unavailable(&error))?;
        Ok(record)
    }

    /// Replaces one; the old one signs for a while beside it. None when there is no such one.
    pub(crate) async fn rotate(&self, principal: &str, id: &str) -> Result<Option<SecretRecord>, Problem> {
        let mut failed = None;
        for _ in 0..WRITES_MAX {
            let Some((mut record, revision)) = self.entry(principal, id).await? else { return Ok(None) };
            record.rotate()?;
            let value = serde_json::to_vec(&record).map_err(|error| unavailable(&error))?;
            match self.bucket.update(key(principal, id), value.into(), revision).await {
                Ok(_) => return Ok(Some(record)),
                Err(error) => failed = Some(unavailable(&error)),
            }
        }
        Err(failed.unwrap_or_else(|| unavailable(&"somebody else changes it all the time")))
    }

    /// Deletes one; callbacks that it was to sign are not sent any more. None when there is no such one.
    pub(crate) async fn delete(&self, principal: &str, id: &str) -> Result<Option<SecretRecord>, Problem> {
        let Some((record, _)) = self.entry(principal, id).await? else { return Ok(None) };
        self.bucket.purge_with_ttl(key(principal, id), DELETED_KEPT).await.map_err(|error| unavailable(&error))?;
        Ok(Some(record))
    }

    async fn entry(&self, principal: &str, id: &str) -> Result<Option<(SecretRecord, u64)>, Problem> {
        if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Ok(None);
        }
        let entry = self.bucket.entry(key(principal, id)).await.map_err(|error| unavailable(&error))?;
        Ok(entry.and_then(|entry| Some((serde_json::from_slice(&entry.value).ok()?, entry.revision))))
    }
}

fn key(principal: &str, id: &str) -> String {
    format!("{}.{id}", owner(principal))
}

fn unavailable(error: &dyn fmt::Display) -> Problem {
    Problem::new(Code::Unavailable, format!("secrets cannot be used now: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_is_replaced_signs_beside_the_new_one_for_a_while() {
        let secrets = vec![Secret { secret: sign::new_secret(), until: None }];
        let (id, name, origin) = ("sec_1".to_owned(), "n8n".to_owned(), "https://a.example".to_owned());
        let mut record = SecretRecord { id, name, origin, created_at: Timestamp::now(), rotated_at: None, secrets };
        let first = record.sign("msg_1", 1, b"{}").unwrap();
        record.rotate().unwrap();
        let both = record.sign("msg_1", 1, b"{}").unwrap();
        assert!(both.split(' ').count() == 2 && both.ends_with(&first) && !both.starts_with(&first), "{both}");
        assert!(record.view().old_until.unwrap() > Timestamp::now().plus(Duration::from_hours(23)));
        record.secrets[1].until = Some(Timestamp::now());
        assert_eq!(record.sign("msg_1", 1, b"{}").unwrap().split(' ').count(), 1, "its time is over");
        (1..LIVE_MAX).for_each(|_| record.rotate().unwrap());
        assert_eq!(record.rotate().unwrap_err().code(), Code::Conflict);
        let shown = format!("{record:?}{}", serde_json::to_string(&record.view()).unwrap());
        assert!(!shown.contains("whsec_") && !shown.contains(record.newest()), "{shown}");
    }
}
