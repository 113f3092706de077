//! Having every running server read its configuration and its certificate again, which ends no connection.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_nats::Client;
use futures_util::StreamExt;
use probeops_shared::subjects::broker;
use serde::Deserialize;
use tokio::time::timeout;

use crate::connect::{Link, connect};
use crate::layout::Layout;
use crate::permissions::Role;
use crate::vault::Vault;

/// How long the credential lasts with which the servers are told.
const LIFETIME: Duration = Duration::from_mins(5);
/// After the last server's answer to a ping no other is expected for longer.
const PING_QUIET: Duration = Duration::from_millis(500);
/// How long a server may take to answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
struct Answer {
    server: Server,
    #[serde(default)]
    error: Option<Refusal>,
}

#[derive(Deserialize, PartialEq, Eq, PartialOrd, Ord)]
struct Server {
    name: String,
    id: String,
}

#[derive(Deserialize)]
struct Refusal {
    description: String,
}

/// Tells every server that runs now, and returns the names of those that have done it.
pub async fn reload(layout: &Layout, servers: &[String], ca: Option<PathBuf>) -> Result<Vec<String>> {
    let vault = Vault::open(layout)?;
    let creds = layout.creds(&format!("reloader-{:016x}", rand::random::<u64>()));
    vault.mint_to(&creds, &Role::Reloader, LIFETIME)?;
    let link = Link { servers: servers.to_vec(), ca, creds: creds.clone() };
    let connected = connect(&link, "reloader", &Role::Reloader.inbox_prefix()).await;
    // The connection has it; nobody else needs it.
    std::fs::remove_file(&creds).with_context(|| format!("cannot remove {}", creds.display()))?;
    let (system, _events) = connected?;
    let mut told = Vec::new();
    for server in running(&system).await? {
        let answer = system.request(broker::server_reload(&server.id), "".into()).await;
        let answer = answer.with_context(|| format!("server {} does not answer", server.name))?;
        if let Some(error) = parsed(&answer.payload)?.error {
            bail!("server {} cannot read its configuration again: {}", server.name, error.description);
        }
        told.push(server.name);
    }
    Ok(told)
}

async fn running(system: &Client) -> Result<BTreeSet<Server>> {
    let inbox = system.new_inbox();
    let mut answers = system.subscribe(inbox.clone()).await.context("cannot subscribe")?;
    system.publish_with_reply(broker::SERVER_PING, inbox, "".into()).await.context("cannot ask which servers there are")?;
    let (mut found, mut wait) = (BTreeSet::new(), ANSWERED_WITHIN);
    while let Ok(Some(answer)) = timeout(wait, answers.next()).await {
        found.insert(parsed(&answer.payload)?.server);
        wait = PING_QUIET;
    }
    if found.is_empty() {
        bail!("no server of the broker answered within {} s", ANSWERED_WITHIN.as_secs());
    }
    Ok(found)
}

fn parsed(payload: &[u8]) -> Result<Answer> {
    serde_json::from_slice(payload).context("a server's answer cannot be understood")
}
