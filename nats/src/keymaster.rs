//! The keymaster: the only process that has the signing keys while everything runs.
//!
//! Replicas of the API ask it for credentials of nodes and services, and to take credentials back (`desk`). The broker attests who asks, and it
//! signs what nodes and services may have, and nothing that is the control plane's own. `fleet` keeps every server of the broker at the claims
//! of the accounts as they are on disk, whoever changed them: a server that starts, or comes back, is told within a second. [`push`] is the
//! same, once, for commands and provisioning.

mod desk;
mod fleet;
pub(crate) mod health;
mod telling;

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use async_nats::Client;
use futures_util::future::try_join_all;
use probeops_shared::subjects::{self, AUDIT_KEYMASTER};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use self::health::check_health;
pub use self::telling::{Pushed, push};
use crate::connect::{Link, LinkError, LinkEvent, backoff, connect_in_turn};
use crate::keymaster::desk::{Clerk, Desk};
use crate::keymaster::fleet::Fleet;
use crate::keymaster::health::Health;
use crate::layout::Layout;
use crate::permissions::Role;
use crate::trail::Writer;
use crate::vault::{CREDENTIAL_LIFETIME, Vault};

/// How often it renews its own two credentials: each is used at the next reconnect.
const RENEW_EVERY: Duration = Duration::from_hours(24);
/// How often it looks which revocations are no longer needed.
const TIDY_EVERY: Duration = Duration::from_hours(1);
/// How many revocations wait to be signed and pushed together; more are refused.
const REVOCATIONS_WAITING_MAX: usize = 1024;
/// How long what is under way may take to be answered once the keymaster is told to stop.
const LAST_ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// How long the last records and answers may take to go out then.
const LAST_RECORDS_WITHIN: Duration = Duration::from_secs(2);

/// What a keymaster is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the keys are.
    pub layout: Layout,
    /// The broker's addresses.
    pub servers: Vec<String>,
    /// The authority that signed its certificate; the system's own when absent.
    pub ca: Option<PathBuf>,
    /// How many credentials one API may ask for.
    pub mints: MintsPerMinute,
    /// Where it says that it is well; see [`check_health`].
    pub health_file: Option<PathBuf>,
}

/// So many credentials a minute; as many at once, and no more until a part of the minute has gone by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MintsPerMinute(pub NonZeroU32);

impl Default for MintsPerMinute {
    /// Nodes renew twice a day: 10,000 of them ask for 14 a minute, and are all back within ten after an outage.
    fn default() -> Self {
        Self(NonZeroU32::new(1200).expect("not zero"))
    }
}

/// Runs until `stop` is cancelled: then it takes no more requests, answers those that it has and has them recorded. The broker may be away for as
/// long as it likes, also at the beginning.
pub async fn run(settings: Settings, stop: CancellationToken) -> Result<()> {
    let Settings { layout, servers, ca, mints, health_file } = settings;
    let health = Health::begin(health_file)?;
    let vault = Arc::new(Vault::open(&layout)?);
    let home = Home { layout, vault: Arc::clone(&vault), servers, ca };
    home.mint()?;
    let Some(connected) = stop.run_until_cancelled(Box::pin(home.connect(&SYSTEM, &home.servers))).await else { return Ok(()) };
    let (system, system_events) = connected?;
    let mut fleet = Fleet::new(system, Arc::clone(&vault), health);
    // Servers that know the application's account from nobody else know it now, and let the desks in.
    if let Err(error) = fleet.look().await {
        tracing::warn!("the servers of the broker could not be looked after and will be: {error:#}");
    }
    let (revoking, wanted) = mpsc::channel(REVOCATIONS_WAITING_MAX);
    let clerk = Clerk::new(Arc::clone(&vault), revoking, mints);
    // One at each server: whoever asks is heard at his own, whichever other hangs.
    let desks = try_join_all(home.servers.iter().map(|server| home.desk(server, &clerk, &stop)));
    tokio::select! {
        ended = desks => drop(ended?),
        () = fleet.keep(wanted, system_events) => {}
        renewed = home.renew() => renewed?,
        () = tidy(vault) => {}
    }
    Ok(())
}

/// Has revocations dropped that are no longer needed, now and then.
async fn tidy(vault: Arc<Vault>) {
    loop {
        let tidying = Arc::clone(&vault);
        match tokio::task::spawn_blocking(move || tidying.tidy()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!("revocations that have ended could not be dropped: {error:#}"),
            Err(error) => tracing::error!("revocations that have ended could not be dropped: {error}"),
        }
        tokio::time::sleep(TIDY_EVERY).await;
    }
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

    /// Answers requests at one server until told to stop; then those that it has.
    async fn desk(&self, server: &String, clerk: &Clerk, stop: &CancellationToken) -> Result<()> {
        let Some(connected) = stop.run_until_cancelled(Box::pin(self.connect(&DESK, std::slice::from_ref(server)))).await else {
            return Ok(());
        };
        let (client, events) = connected?;
        let name = DESK.name();
        let trail = Writer::start(client.clone(), subjects::audit(AUDIT_KEYMASTER, &name), name);
        let desk = Desk::open(client.clone(), clerk.clone(), trail.pen()).await?;
        tracing::info!(server, "the keymaster is ready");
        let late = async {
            stop.cancelled().await;
            tokio::time::sleep(LAST_ANSWERS_WITHIN).await;
        };
        tokio::select! {
            () = desk.serve(stop) => if !stop.is_cancelled() {
                bail!("the connection to {server} has ended");
            },
            () = log_events(events) => {}
            () = late => tracing::error!(server, "requests are left unanswered: they take longer than the keymaster may to stop"),
        }
        // The last records and answers go out, if the broker is there.
        if tokio::time::timeout(LAST_RECORDS_WITHIN, trail.end()).await.is_err() {
            tracing::error!(server, "what was done last is not in the trail: the broker did not keep it in time; it is in this log");
        }
        if let Ok(Err(error)) = tokio::time::timeout(LAST_RECORDS_WITHIN, client.drain()).await {
            tracing::debug!("the connection to the broker does not close: {error}");
        }
        Ok(())
    }

    /// Connects, however long it takes: also to a server that does not know the account yet, which it will be told.
    async fn connect(&self, role: &Role, servers: &[String]) -> Result<(Client, mpsc::Receiver<LinkEvent>)> {
        let link = Link { servers: servers.to_vec(), ca: self.ca.clone(), creds: self.creds(role) };
        let mut attempt = 1;
        loop {
            match connect_in_turn(&link, &role.name(), &role.inbox_prefix()).await {
                Err(LinkError::Unreachable(why) | LinkError::Refused(why)) => {
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
            tracing::error!("the broker does not accept the keymaster (was it provisioned from this folder?): {text}");
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
