//! Which job was asked for by which key (bucket IDEMPOTENCY): whoever writes an entry first decides.

use async_nats::jetstream::kv::{CreateErrorKind, Store};
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
        match self.0.create(key, value.into()).await {
            Ok(_) => Ok(None),
            Err(error) if error.kind() == CreateErrorKind::AlreadyExists => {
                self.read(key).await?.map(Some).ok_or_else(|| "an entry comes and goes".to_owned())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// How a key was used.
    pub(crate) async fn read(&self, key: &str) -> Result<Option<Used>, String> {
        let value = self.0.get(key).await.map_err(|error| error.to_string())?;
        value.map(|value| serde_json::from_slice(&value).map_err(|error| format!("an entry cannot be read: {error}"))).transpose()
    }
}
