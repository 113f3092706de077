//! Taking a node's credential back, for an API that was given the keys.

use std::path::Path;

use probeops_nats::layout::Layout;

use crate::broker::Links;

/// Declares every credential of `public_key` void and cuts its connections.
pub(crate) async fn revoke(data: &Path, links: &Links, public_key: &str) -> Result<(), String> {
    let revoked = probeops_nats::revoke::revoke(&Layout::new(data), &links.servers, links.ca.clone(), public_key).await;
    revoked.map(drop).map_err(|error| format!("{error:#}"))
}
