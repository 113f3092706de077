//! Which job was asked for by which key (bucket IDEMPOTENCY): whoever writes an entry first decides, and whoever wrote it last may let it go.

use async_nats::jetstream::kv::{CreateErrorKind, Operation, Store, UpdateErrorKind};
use probeops_shared::ids::JobId;
use serde::{Deserialize, Serialize};

/// A key as it was used first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Used {
    /// A hash of what was asked for.
    pub(crate) fingerprint: String,
    /// The job that it became.
    pub(crate) job: JobId,
}

/// What came of using a key.
#[derive(Debug)]
pub(crate) enum Use {
    /// It is used now, with this revision.
    Now(u64),
    /// Somebody else has written how it is used, with this revision.
    Before(Used, u64),
}

/// The keys of the last 24 hours.
#[derive(Clone, Debug)]
pub(crate) struct Keys(Store);

impl Keys {
    /// Those of this bucket.
    pub(crate) fn new(bucket: Store) -> Self {
        Self(bucket)
    }

    /// Uses a key that was not used before, or whose use was last written with this revision; otherwise how it was used.
    pub(crate) async fn use_or_read(&self, key: &str, used: &Used, after: Option<u64>) -> Result<Use, String> {
        let value = serde_json::to_vec(used).map_err(|error| error.to_string())?.into();
        let written = match after {
            None => self.0.create(key, value).await.map(Some).or_else(|error| match error.kind() {
                CreateErrorKind::AlreadyExists => Ok(None),
                _ => Err(error.to_string()),
            }),
            Some(revision) => self.0.update(key, value, revision).await.map(Some).or_else(|error| match error.kind() {
                UpdateErrorKind::WrongLastRevision => Ok(None),
                _ => Err(error.to_string()),
            }),
        };
        match written? {
            Some(revision) => Ok(Use::Now(revision)),
            None => self.read(key).await?.map(|(used, by)| Use::Before(used, by)).ok_or_else(|| "an entry comes and goes".to_owned()),
        }
    }

    /// How a key was used, and the revision of that.
    pub(crate) async fn read(&self, key: &str) -> Result<Option<(Used, u64)>, String> {
        let entry = self.0.entry(key).await.map_err(|error| error.to_string())?.filter(|entry| entry.operation == Operation::Put);
        let used = |value: &[u8]| serde_json::from_slice(value).map_err(|error| format!("an entry cannot be read: {error}"));
        entry.map(|entry| Ok((used(&entry.value)?, entry.revision))).transpose()
    }

    /// Lets a key go whose use was last written with this revision, so that it is as if it had not been used. Nothing is done where somebody has
    /// written it since.
    pub(crate) async fn let_go(&self, key: &str, revision: u64) -> Result<(), String> {
        let Err(error) = self.0.delete_expect_revision(key, Some(revision)).await else { return Ok(()) };
        match self.read(key).await? {
            Some((_, found)) if found == revision => Err(error.to_string()),
            Some(_) | None => Ok(()),
        }
    }
}
