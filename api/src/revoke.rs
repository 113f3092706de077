//! Making and taking back credentials, for an API that was given the keys.

use std::path::Path;
use std::time::Duration;

use probeops_nats::layout::Layout;
use probeops_nats::permissions::Role;
use probeops_nats::vault::Vault;
use probeops_nats::vault::credentials::Credentials;
use probeops_shared::invalid::Invalid;
use probeops_shared::problem::Code;

use crate::broker::Links;
use crate::problem::Problem;

/// Declares every credential of `public_key` void and cuts its connections.
pub(crate) async fn revoke(data: &Path, links: &Links, public_key: &str) -> Result<(), String> {
    let revoked = probeops_nats::revoke::revoke(&Layout::new(data), &links.servers, links.ca.clone(), public_key).await;
    revoked.map(drop).map_err(|error| format!("{error:#}"))
}

/// The keys; an API that was not given them says what to do instead.
pub(crate) fn keys<'a>(links: &'a Links, instead: &str) -> Result<&'a Path, Problem> {
    let detail = || format!("this API was started without the signing keys (setting `vault`); run `{instead}` where they are");
    links.vault.as_deref().ok_or_else(|| Problem::new(Code::Unavailable, detail()))
}

/// Makes a credential with a new key.
pub(crate) async fn mint(data: &Path, role: Role, lifetime: Duration) -> Result<Credentials, Problem> {
    let layout = Layout::new(data);
    let minted = tokio::task::spawn_blocking(move || {
        let unusable = |error| Problem::new(Code::Unavailable, format!("the signing keys cannot be used: {error:#}"));
        let vault = Vault::open(&layout).map_err(unusable)?;
        // With keys in hand only what is asked for can be wrong: too much of it.
        vault.mint(&role, lifetime).map_err(|error| Problem::invalid(Invalid::new("", format!("{error:#}"))))
    });
    minted.await.map_err(|error| Problem::new(Code::Internal, format!("a credential could not be made: {error}")))?
}
