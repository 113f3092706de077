//! Taking a credential back: on every server, at once.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::connect::{Link, connect};
use crate::keymaster::{self, Pushed};
use crate::layout::Layout;
use crate::permissions::Role;
use crate::vault::Vault;

/// How long the credential lasts with which the servers are told.
const KEYMASTER_LIFETIME: Duration = Duration::from_mins(10);

/// Declares every credential of `public_key` void and tells every running server, which cuts its connections. Whoever is told later, because it
/// was away, hears it from the others.
pub async fn revoke(layout: &Layout, servers: &[String], ca: Option<PathBuf>, public_key: &str) -> Result<Pushed> {
    let vault = Vault::open(layout)?;
    // A file of its own: two revocations at the same time do not share it.
    let creds = layout.creds(&format!("keymaster-{:016x}", rand::random::<u64>()));
    vault.mint_to(&creds, &Role::Keymaster, KEYMASTER_LIFETIME)?;
    let link = Link { servers: servers.to_vec(), ca, creds: creds.clone() };
    let told = async {
        let (system, _events) = connect(&link, "keymaster", &Role::Keymaster.inbox_prefix()).await?;
        let pushed = keymaster::push(&system, &vault.revoke(public_key)?).await;
        system.drain().await.context("the connection to the broker does not close")?;
        pushed
    };
    let pushed = told.await;
    std::fs::remove_file(&creds).with_context(|| format!("cannot remove {}", creds.display()))?;
    pushed
}
