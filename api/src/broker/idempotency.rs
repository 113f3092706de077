//! Which job was asked for by which key (bucket IDEMPOTENCY): whoever writes an entry first decides.

use async_nats::jetstream::kv::{CreateErrorKind, Operation, Store};
use probeops_shared::ids::JobId;
use serde::{Deserialize, Serialize};

/// How often to look again at an entry that changes while it is looked at.
const TRIES_MAX: usize = 5;

/// A key as it was used first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Used {
    /// A hash of what was asked for.
    pub(crate) fingerprint: String,
    /// The job that it became.
    pub(crate) job: JobId,
}

/// The keys of the last 24 hours.
#[derive(Clone, Debug)]
pub(crate) struct Keys(Store);

impl Keys {
    /// Those of this bucket.
    pub(crate) fn new(bucket: Store) -> Self {
        Self(bucket)
    }

    /// Uses a key, unless it was used before: then how it was.
    pub(crate) async fn use_or_read(&self, key: &str, used: &Used) -> Result<Option<Used>, String> {
        let value = serde_json::to_vec(used).map_err(|error| error.to_string())?;
        for _ in 0..TRIES_MAX {
            match self.0.create(key, value.clone().into()).await {
                Ok(_) => return Ok(None),
                Err(error) if error.kind() == CreateErrorKind::AlreadyExists => {}
                Err(error) => return Err(error.to_string()),
            }
            let entry = self.0.entry(key).await.map_err(|error| error.to_string())?;
            if let Some(entry) = entry.filter(|entry| entry.operation == Operation::Put) {
                return serde_json::from_slice(&entry.value).map(Some).map_err(|error| format!("an entry cannot be read: {error}"));
            }
        }
        Err("an entry comes and goes".to_owned())
    }

    /// Forgets a key whose job was refused.
    pub(crate) async fn forget(&self, key: &str) -> Result<(), String> {
        self.0.delete(key).await.map_err(|error| error.to_string())
    }
}
