//! The sentry: sees what the broker refuses and who is not let in, says so in the trail, and cuts clones and floods.
//!
//! # What it goes by
//! - The log of each server ([`log`]) is the only place where the broker says *which connection* broke its permissions or limits, and how.
//! - Events of the system account say who came, with the credential that the broker has accepted, who went and why, and who was not let in.
//! - A listing of the connections, now and then, says what each has published.
//!
//! # Layout
//! `log` reads lines, `tail` follows files, `events` reads what the system account says, `watch` judges (no input or output), `report`
//! writes records in bounded number, `act` cuts and has keys revoked. [`run`] puts them together.

mod act;
mod events;
pub mod log;
mod report;
mod tail;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, Message, Subscriber};
use futures_util::StreamExt;
use futures_util::stream::{SelectAll, select_all};
use probeops_shared::subjects::broker;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::connect::{Credential, Link, LinkError, LinkEvent, backoff, connect};
use crate::keymaster::health::Health;
use crate::layout::Layout;
use crate::permissions::{AccountName, Role};
use crate::sentry::act::Actor;
use crate::sentry::report::Reporter;
use crate::sentry::watch::{Act, Watch};
use crate::vault::Vault;

pub use crate::sentry::watch::Bounds;

/// How often connections are listed while nothing is suspicious.
const LISTED_EVERY: Duration = Duration::from_secs(5);
/// How often while one key has two connections.
const LISTED_EVERY_SUSPECT: Duration = Duration::from_secs(1);
/// How often what was seen is written.
const WRITTEN_EVERY: Duration = Duration::from_millis(500);
/// How many lines wait to be judged; the file waits beyond that.
const LINES_MAX: usize = 4096;
/// How long writing what is left may take when the sentry is told to stop.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(2);

/// What a sentry is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The broker's addresses.
    pub servers: Vec<String>,
    /// The authority that signed its certificate.
    pub ca: Option<PathBuf>,
    /// The folder with `presence.creds` and `sentry.creds`.
    pub creds: PathBuf,
    /// The log of each server of the broker. Without one, violations of permissions are not seen.
    pub logs: Vec<PathBuf>,
    /// What is too much.
    pub bounds: Bounds,
    /// Where it says that it sees the broker's connections; see [`crate::keymaster::check_health`].
    pub health_file: Option<PathBuf>,
}

/// The roles of its two connections; each credential is in the file of its name.
pub fn roles(vault: &Vault) -> [Role; 2] {
    let accounts = AccountName::ALL.map(|name| vault.account_key(name).to_owned());
    [Role::Presence { accounts: accounts.to_vec() }, Role::Sentry]
}

/// Makes or renews its credentials where [`Settings::creds`] of a data folder is.
pub fn mint(layout: &Layout, vault: &Vault, lifetime: Duration) -> anyhow::Result<()> {
    for role in roles(vault) {
        vault.mint_to(&layout.sentry_dir().join(format!("{}.creds", role.name())), &role, lifetime)?;
    }
    Ok(())
}

/// Watches until told to stop; says when it has begun.
pub async fn run(settings: Settings, ready: oneshot::Sender<()>, stop: CancellationToken) -> Result<(), String> {
    let mut health = Health::begin(settings.health_file.clone()).map_err(|error| format!("{error:#}"))?;
    let accounts: Arc<[String]> = accounts(&settings)?.into();
    let presence = Role::Presence { accounts: accounts.to_vec() };
    let Some((system, system_events)) = connected(&settings, &presence, &stop).await? else { return Ok(()) };
    let Some((client, client_events)) = connected(&settings, &Role::Sentry, &stop).await? else { return Ok(()) };
    for (name, events) in [("presence", system_events), ("sentry", client_events)] {
        drop(tokio::spawn(log_events(name, events)));
    }
    let mut events = subscribe(&system, &accounts).await?;
    let (lines, mut seen) = mpsc::channel(LINES_MAX);
    for log in settings.logs.clone() {
        tail::follow(log, lines.clone());
    }
    drop(lines);
    let actor = Actor::new(system.clone(), client.clone());
    let mut reporter = Reporter::new(client.clone());
    let mut watch = Watch::new(settings.bounds);
    watch.list(&actor.list(&accounts, true).await?, Instant::now());
    health.well();
    let (listings, mut listed) = mpsc::channel(1);
    let mut listing = false;
    tracing::info!(connections = watch.connections(), logs = settings.logs.len(), "the sentry is ready");
    // Nobody may wait for it.
    let _ = ready.send(());
    let mut looked_at = Instant::now();
    let mut look = interval(LISTED_EVERY_SUSPECT);
    let mut write = interval(WRITTEN_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    write.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let acts = tokio::select! {
            Some(line) = seen.recv() => {
                if !watch.knows(&line) {
                    // Its coming was not heard: its credential is looked up.
                    watch.learn(&actor.find(&accounts, line.cid).await, Instant::now());
                }
                watch.violation(&line, Instant::now())
            }
            event = events.next() => match event {
                Some(event) => events::read(&event).map_or_else(Vec::new, |event| watch.event(event, Instant::now())),
                None => return Err("the connection to the broker ended for good".to_owned()),
            },
            _ = look.tick() => {
                let every = if watch.suspects() || watch.lacks_names() { LISTED_EVERY_SUSPECT } else { LISTED_EVERY };
                if !listing && looked_at.elapsed() >= every {
                    (listing, looked_at) = (true, Instant::now());
                    let (actor, accounts, listings, names) = (actor.clone(), Arc::clone(&accounts), listings.clone(), watch.lacks_names());
                    drop(tokio::spawn(async move { drop(listings.send(actor.list(&accounts, names).await).await) }));
                }
                continue;
            }
            Some(found) = listed.recv() => {
                listing = false;
                match found {
                    Ok(found) => {
                        health.well();
                        watch.list(&found, Instant::now())
                    }
                    Err(why) => {
                        tracing::warn!("the connections could not be listed: {why}");
                        continue;
                    }
                }
            }
            _ = write.tick() => {
                reporter.write();
                continue;
            }
            () = stop.cancelled() => break,
        };
        for act in acts {
            perform(act, &actor, &mut reporter);
        }
    }
    reporter.write();
    if tokio::time::timeout(LAST_WORDS_WITHIN, reporter.end()).await.is_err() {
        tracing::error!("what was seen last is not in the trail: the broker did not keep it in time");
    }
    Ok(())
}

/// The accounts that the credential lets it watch.
fn accounts(settings: &Settings) -> Result<Vec<String>, String> {
    let path = settings.creds.join(format!("{}.creds", Role::Presence { accounts: Vec::new() }.name()));
    let credential = Credential::read(&path).map_err(|error| error.to_string())?;
    let accounts: Vec<String> = credential.subscribe.iter().filter_map(|subject| broker::parse_account_connect(subject)).collect();
    if accounts.is_empty() {
        return Err(format!("{} lets nobody watch any account; have it written again by `probeops provision`", path.display()));
    }
    Ok(accounts)
}

fn perform(act: Act, actor: &Actor, reporter: &mut Reporter) {
    match act {
        Act::Report(finding) => reporter.report(finding),
        Act::Cut(cut) => {
            reporter.report(cut.finding());
            drop(tokio::spawn(actor.clone().cut(cut)));
        }
        Act::Revoke(cloned) => {
            reporter.report(cloned.finding());
            drop(tokio::spawn(actor.clone().revoke(cloned, reporter.handle())));
        }
    }
}

async fn connected(
    settings: &Settings,
    role: &Role,
    stop: &CancellationToken,
) -> Result<Option<(Client, mpsc::Receiver<LinkEvent>)>, String> {
    let creds = settings.creds.join(format!("{}.creds", role.name()));
    let link = Link { servers: settings.servers.clone(), ca: settings.ca.clone(), creds };
    let mut attempt = 1;
    loop {
        match connect(&link, &role.name(), &role.inbox_prefix()).await {
            Ok(connection) => return Ok(Some(connection)),
            Err(LinkError::Unreachable(why)) => {
                let wait = backoff(attempt);
                tracing::warn!(attempt, wait_ms = wait.as_millis(), "{why}");
                if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                    return Ok(None);
                }
                attempt += 1;
            }
            Err(error) => return Err(format!("{}: {error}", role.name())),
        }
    }
}

async fn subscribe(system: &Client, accounts: &[String]) -> Result<SelectAll<Subscriber>, String> {
    let mut subjects = vec![broker::AUTHENTICATION_ERRORS.to_owned(), broker::STRANGER_DISCONNECT.to_owned()];
    subjects.extend(accounts.iter().flat_map(|account| [broker::account_connect(account), broker::account_disconnect(account)]));
    let mut subscriptions = Vec::new();
    for subject in subjects {
        let subscription = system.subscribe(subject.clone()).await;
        subscriptions.push(subscription.map_err(|error| format!("cannot subscribe {subject}: {error}"))?);
    }
    Ok(select_all(subscriptions))
}

async fn log_events(connection: &'static str, mut events: mpsc::Receiver<LinkEvent>) {
    while let Some(event) = events.recv().await {
        match event {
            LinkEvent::Connected => tracing::info!(connection, "connected to the broker"),
            LinkEvent::Disconnected => tracing::warn!(connection, "the connection to the broker is gone; trying to get it back"),
            LinkEvent::LameDuck => tracing::info!(connection, "the broker is about to stop"),
            LinkEvent::Refused(text) => tracing::error!(connection, "the broker does not accept the credential: {text}"),
            LinkEvent::Violation(text) => tracing::error!(connection, "the broker forbade something: {text}"),
            LinkEvent::SlowConsumer => tracing::error!(connection, "events arrived faster than they could be read; some were lost"),
            LinkEvent::Other(text) => tracing::warn!(connection, "the connection says: {text}"),
        }
    }
}

/// What a message's body says, if it is JSON of that form.
fn parsed<T: serde::de::DeserializeOwned>(message: &Message) -> Option<T> {
    serde_json::from_slice(&message.payload).inspect_err(|error| tracing::debug!(subject = %message.subject, %error, "not understood")).ok()
}
