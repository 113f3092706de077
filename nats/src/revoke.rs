//! Taking a credential back: on every server, at once.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::future::join_all;

use crate::connect::{Link, connect};
use crate::keymaster::{self, Pushed};
use crate::layout::Layout;
use crate::permissions::Role;
use crate::vault::Vault;

/// How long the credential lasts with which the servers are told.
const KEYMASTER_LIFETIME: Duration = Duration::from_mins(10);

/// Tells every running server of claims by which credentials are void ([`Vault::revoke_anywhere`]), and has it cut their connections. Whoever is
/// told later, because it was away, hears it from the others.
pub async fn tell(layout: &Layout, servers: &[String], ca: Option<PathBuf>, claims: &[String]) -> Result<Pushed> {
    // A file of its own: two revocations at the same time do not share it.
    let creds = layout.creds(&format!("keymaster-{:016x}", rand::random::<u64>()));
    Vault::open(layout)?.mint_to(&creds, &Role::Keymaster, KEYMASTER_LIFETIME)?;
    let link = Link { servers: servers.to_vec(), ca, creds: creds.clone() };
    let told = async {
        let (system, _events) = connect(&link, "keymaster", &Role::Keymaster.inbox_prefix()).await?;
        // A server that hangs keeps none of them from the others.
        let pushed = join_all(claims.iter().map(|claims| keymaster::push(&system, claims))).await;
        system.drain().await.context("the connection to the broker does not close")?;
        pushed.into_iter().try_fold(Pushed::default(), |_, pushed| pushed)
    };
    let pushed = told.await;
    std::fs::remove_file(&creds).with_context(|| format!("cannot remove {}", creds.display()))?;
    pushed
}
