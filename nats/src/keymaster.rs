//! The keymaster: the only process that has the signing keys while everything runs.
//!
//! Replicas of the API ask it for credentials of nodes and services, and to take credentials back (`desk`). The broker attests who asks, and it
//! signs what nodes and services may have, and nothing that is the control plane's own. `fleet` keeps every server of the broker at the claims
//! of the accounts as they are on disk, whoever changed them: a server that starts, or comes back, is told within a second. [`push`] is the
//! same, once, for commands and provisioning.

mod desk;
mod fleet;
mod health;
mod telling;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use async_nats::Client;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use self::health::check_health;
pub use self::telling::{Pushed, push};
use crate::connect::{Link, LinkError, LinkEvent, backoff, connect};
use crate::keymaster::desk::Desk;
use crate::keymaster::fleet::Fleet;
use crate::keymaster::health::Health;
use crate::layout::Layout;
use crate::permissions::Role;
use crate::vault::{CREDENTIAL_LIFETIME, Vault};

/// How often it renews its own two credentials: each is used at the next reconnect.
const RENEW_EVERY: Duration = Duration::from_hours(24);
/// How many revocations wait to be signed and pushed together; more are refused.
const REVOCATIONS_WAITING_MAX: usize = 1024;

/// What a keymaster is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the keys are.
    pub layout: Layout,
    /// The broker's addresses.
    pub servers: Vec<String>,
    /// The authority that signed its certificate; the system's own when absent.
    pub ca: Option<PathBuf>,
    /// Where it says that it is well; see [`check_health`].
    pub health_file: Option<PathBuf>,
}

/// Runs until `stop` is cancelled. The broker may be away for as long as it likes, also at the beginning.
pub async fn run(settings: Settings, stop: CancellationToken) -> Result<()> {
    let Settings { layout, servers, ca, health_file } = settings;
    let health = Health::begin(health_file)?;
    let vault = Arc::new(Vault::open(&layout)?);
    let home = Home { layout, vault: Arc::clone(&vault), servers, ca };
    home.mint()?;
    let Some(connected) = stop.run_until_cancelled(async { tokio::try_join!(home.connect(&SYSTEM), home.connect(&DESK)) }).await else {
        return Ok(());
    };
    let ((system, system_events), (client, desk_events)) = connected?;
    let (revoking, wanted) = mpsc::channel(REVOCATIONS_WAITING_MAX);
    let desk = Desk::open(client.clone(), Arc::clone(&vault), revoking).await?;
    let fleet = Fleet::new(system.clone(), vault, health);
    tracing::info!(servers = home.servers.join(","), "the keymaster is ready");
    tokio::select! {
        () = desk.serve() => {}
        () = fleet.keep(wanted, system_events) => {}
        () = log_events(desk_events) => {}
        renewed = home.renew() => renewed?,
        () = stop.cancelled() => {}
    }
    for client in [client, system] {
        client.drain().await.context("a connection to the broker does not close")?;
    }
    Ok(())
}

const SYSTEM: Role = Role::Keymaster;
const DESK: Role = Role::KeymasterDesk;

/// Where the keys are and where the broker is.
struct Home {
    layout: Layout,
    vault: Arc<Vault>,
    servers: Vec<String>,
    ca: Option<PathBuf>,
}

impl Home {
    /// Where the credential of one of its two roles lies: with the keys, where nobody else looks.
    fn creds(&self, role: &Role) -> PathBuf {
        self.layout.keys_dir().join(format!("{}.creds", role.name()))
    }

    fn mint(&self) -> Result<()> {
        for role in [&SYSTEM, &DESK] {
            self.vault.mint_to(&self.creds(role), role, CREDENTIAL_LIFETIME)?;
        }
        Ok(())
    }

    async fn renew(&self) -> Result<()> {
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            self.mint()?;
        }
    }

    /// Connects, however long it takes.
    async fn connect(&self, role: &Role) -> Result<(Client, mpsc::Receiver<LinkEvent>)> {
        let link = Link { servers: self.servers.clone(), ca: self.ca.clone(), creds: self.creds(role) };
        let mut attempt = 1;
        loop {
            match connect(&link, &role.name(), &role.inbox_prefix()).await {
                Err(LinkError::Unreachable(why)) => {
                    let wait = backoff(attempt);
                    tracing::warn!(attempt, wait_ms = wait.as_millis(), "{why}");
                    tokio::time::sleep(wait).await;
                    attempt += 1;
                }
                done => return Ok(done?),
            }
        }
    }
}

fn log_event(event: &LinkEvent) {
    match event {
        LinkEvent::Connected => tracing::info!("connected to the broker"),
        LinkEvent::Disconnected => tracing::warn!("the connection to the broker is gone; trying to get it back"),
        LinkEvent::Refused(text) => {
            tracing::error!("the broker does not accept the keymaster: {text}; was it provisioned from this data folder?")
        }
        LinkEvent::Violation(text) => tracing::error!("the broker forbade something: {text}"),
        LinkEvent::SlowConsumer => tracing::error!("requests came faster than they could be read; some were lost"),
        LinkEvent::LameDuck | LinkEvent::Other(_) => tracing::debug!("the connection says: {event:?}"),
    }
}

async fn log_events(mut events: mpsc::Receiver<LinkEvent>) {
    while let Some(event) = events.recv().await {
        log_event(&event);
    }
}
