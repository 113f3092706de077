//! How full a stream of work to be done is.

use async_nats::Client;
use probeops_shared::subjects::broker;
use serde::Deserialize;
use serde_json::json;

/// What the broker says of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Filled {
    /// How many subjects match the filter.
    pub(crate) subjects: u64,
    /// What all of it takes, in percent of what it may.
    pub(crate) percent: u64,
}

#[derive(Deserialize)]
struct Info {
    config: Config,
    state: State,
    /// How many subjects match the filter.
    #[serde(default)]
    total: u64,
}

#[derive(Deserialize)]
struct Config {
    max_bytes: u64,
}

#[derive(Deserialize)]
struct State {
    bytes: u64,
}

/// How many subjects of a stream match this filter, and how full it is.
pub(crate) async fn filled(client: &Client, stream: &str, filter: &str) -> Result<Filled, String> {
    // Beyond the last of them: how many there are is told all the same.
    let request = json!({"subjects_filter": filter, "offset": u32::MAX}).to_string();
    let asked = client.request(broker::lent(&broker::stream_info(stream)), request.into()).await.map_err(|error| error.to_string())?;
    let Info { config, state, total } = serde_json::from_slice(&asked.payload).map_err(|error| error.to_string())?;
    Ok(Filled { subjects: total, percent: state.bytes.saturating_mul(100) / config.max_bytes.max(1) })
}
