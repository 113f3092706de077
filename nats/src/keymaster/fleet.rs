//! Keeps every server of the broker at the claims of the accounts as they are on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use async_nats::Client;
use async_nats::connection::State;
use probeops_shared::keymaster::Revoked;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use crate::connect::LinkEvent;
use crate::keymaster::health::Health;
use crate::keymaster::log_event;
use crate::keymaster::telling::{Server, Told, present, tell};
use crate::permissions::AccountName;
use crate::vault::Vault;

/// How often it looks which servers there are, and what they should know: so long may a server that starts with an old disk let in who was revoked.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long one look may take.
const LOOK_WITHIN: Duration = Duration::from_secs(1);
/// How long servers may take to say that they have taken claims, before whoever asked is told that they have not.
const TAKE_WITHIN: Duration = Duration::from_millis(1500);
/// How long there may be no word from any server, before the one that was told counts as hanging and another is.
const HEARD_WITHIN: Duration = Duration::from_millis(400);
/// How long the connection to the broker may take to come back, before whoever asked is told that nobody could be told.
const RECONNECT_WITHIN: Duration = Duration::from_secs(4);
/// How often to look whether it has.
const RECONNECT_POLL: Duration = Duration::from_millis(10);
/// A server that was not heard of for so long is taken for gone for good, and not waited for any more; it is told when it comes back all the same.
const FORGET_AFTER: Duration = Duration::from_hours(1);
/// How many revocations are signed and pushed together.
const BATCH_MAX: usize = 256;

/// A key to be revoked, and whom to tell how far that has come, or why it is not.
pub(super) type Wanted = (String, oneshot::Sender<Result<Signed, String>>);

/// A revocation that is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Signed {
    /// Whether it was not before.
    pub(super) anew: bool,
    /// Who knows; or why nobody does who will be told.
    pub(super) told: Result<Revoked, String>,
}

/// The servers of the broker, and what each is known to have taken.
pub(super) struct Fleet {
    system: Client,
    vault: Arc<Vault>,
    servers: BTreeMap<String, Known>,
    health: Health,
}

/// A server, under its name.
struct Known {
    id: String,
    heard: Instant,
    /// The claims that it has said it has taken.
    taken: BTreeMap<AccountName, String>,
}

impl Fleet {
    pub(super) fn new(system: Client, vault: Arc<Vault>, health: Health) -> Self {
        Self { system, vault, servers: BTreeMap::new(), health }
    }

    /// Revokes what is wanted, and sees to it that servers know what they should, until nobody can want anything any more.
    pub(super) async fn keep(mut self, mut wanted: mpsc::Receiver<Wanted>, mut events: mpsc::Receiver<LinkEvent>) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                biased;
                count = wanted.recv_many(&mut batch, BATCH_MAX) => match count {
                    0 => return,
                    _ => self.revoke(std::mem::take(&mut batch)).await,
                },
                Some(event) = events.recv() => {
                    // What was on its way when the connection broke may have arrived after what came later.
                    if event == LinkEvent::Connected {
                        self.servers.values_mut().for_each(|known| known.taken.clear());
                    }
                    log_event(&event);
                }
                _ = look.tick() => if let Err(error) = self.look().await {
                    tracing::warn!("the servers of the broker could not be looked after and will be: {error:#}");
                },
            }
        }
    }

    /// Signs these revocations and tells the servers, all in one.
    async fn revoke(&mut self, batch: Vec<Wanted>) {
        let (keys, askers): (Vec<String>, Vec<_>) = batch.into_iter().unzip();
        let (vault, wanted) = (Arc::clone(&self.vault), keys.clone());
        let signed = tokio::task::spawn_blocking(move || vault.revoke_all(&wanted)).await;
        let signed = signed.map_err(anyhow::Error::from).and_then(std::convert::identity);
        let mut told = match signed {
            Ok((jwt, anew)) => {
                let told = self.tell(AccountName::Application, jwt).await.map_err(|error| {
                    format!("it is signed, but no server of the broker could be told yet: {error:#}; they are told as soon as they can be")
                });
                Ok((told, anew))
            }
            Err(error) => Err(format!("it could not be signed: {error:#}")),
        };
        for (key, asker) in keys.into_iter().zip(askers) {
            // Of several who want the same key revoked, the first has done it.
            let signed = told.as_mut().map(|(told, anew)| Signed { anew: anew.remove(&key), told: told.clone() });
            // Who does not wait any more does not want to know.
            drop(asker.send(signed.map_err(|why| why.clone())));
        }
    }

    /// Tells all servers, and waits for those that are known.
    async fn tell(&mut self, account: AccountName, jwt: String) -> Result<Revoked> {
        self.connected().await;
        let expected: BTreeSet<Server> =
            self.servers.iter().map(|(name, known)| Server { name: name.clone(), id: known.id.clone() }).collect();
        let mut told = tell(&self.system, &jwt, expected.clone(), (HEARD_WITHIN, TAKE_WITHIN)).await?;
        if told.taken.is_empty() && told.refused.is_empty() {
            self.move_on().await;
            told = tell(&self.system, &jwt, expected, (TAKE_WITHIN, TAKE_WITHIN)).await?;
        }
        self.learn(account, &jwt, told);
        self.servers.retain(|_, known| known.heard.elapsed() < FORGET_AFTER);
        let (servers, waiting): (Vec<_>, Vec<_>) = self.servers.iter().partition(|(_, known)| known.taken.get(&account) == Some(&jwt));
        if servers.is_empty() && waiting.is_empty() {
            return Err(anyhow!("none has answered"));
        }
        let names = |servers: Vec<(&String, &Known)>| servers.into_iter().map(|(name, _)| name.clone()).collect();
        Ok(Revoked { servers: names(servers), waiting: names(waiting), unrecorded: false })
    }

    /// Waits a while for the connection: its own server may be the one that is away, and there are others.
    async fn connected(&self) {
        let begun = Instant::now();
        while self.system.connection_state() != State::Connected && begun.elapsed() < RECONNECT_WITHIN {
            tokio::time::sleep(RECONNECT_POLL).await;
        }
    }

    /// Connects to another server: this one says nothing any more.
    async fn move_on(&self) {
        tracing::warn!("the server that the keymaster is connected to does not answer; connecting to another");
        if let Err(error) = self.system.force_reconnect().await {
            tracing::error!("the connection to the broker cannot be made again: {error}");
        }
        // It takes a moment until it is gone.
        tokio::time::sleep(RECONNECT_POLL).await;
        self.connected().await;
    }

    /// Looks who is there, and tells those who do not have what is on disk: they were away, or somebody else has changed it.
    pub(super) async fn look(&mut self) -> Result<()> {
        // That it is away was said when it went.
        if self.system.connection_state() != State::Connected {
            return Ok(());
        }
        let mut there = present(&self.system, LOOK_WITHIN).await?;
        if there.is_empty() {
            self.move_on().await;
            return Ok(());
        }
        for server in &there {
            self.hear(server);
        }
        let mut everywhere = true;
        for account in AccountName::PUSHED {
            let vault = Arc::clone(&self.vault);
            let jwt = tokio::task::spawn_blocking(move || vault.account_jwt(account)).await??;
            let lacks = |server: &&Server| self.servers.get(&server.name).is_some_and(|known| known.taken.get(&account) != Some(&jwt));
            let lacking: BTreeSet<Server> = there.iter().filter(lacks).cloned().collect();
            if !lacking.is_empty() {
                let told = tell(&self.system, &jwt, lacking, (TAKE_WITHIN, TAKE_WITHIN)).await?;
                everywhere &= told.silent.is_empty() && told.refused.is_empty();
                // One that has gone silent meanwhile is waited for once: a revocation waits for the end of this.
                there.retain(|server| !told.silent.contains(server));
                self.learn(account, &jwt, told);
            }
        }
        if everywhere {
            self.health.well();
        }
        Ok(())
    }

    fn learn(&mut self, account: AccountName, jwt: &str, told: Told) {
        let Told { taken, silent, refused } = told;
        for server in taken {
            let known = self.hear(&server);
            if known.taken.insert(account, jwt.to_owned()).is_none() {
                tracing::info!(server = server.name, account = account.as_str(), "a server has taken the account's claims");
            }
        }
        for server in silent {
            tracing::warn!(
                server = server.name,
                account = account.as_str(),
                "a server has not said that it took the account's claims; it is told again"
            );
        }
        for (server, why) in refused {
            self.hear(&server);
            tracing::error!(
                server = server.name,
                account = account.as_str(),
                "a server refuses the account's claims; it is told again: {why}"
            );
        }
    }

    /// A server has said something. One that was started again knows nothing of what it was told before.
    fn hear(&mut self, server: &Server) -> &mut Known {
        let now = Instant::now();
        let fresh = || Known { id: server.id.clone(), heard: now, taken: BTreeMap::new() };
        let known = self.servers.entry(server.name.clone()).or_insert_with(fresh);
        if known.id != server.id {
            *known = fresh();
        }
        known.heard = now;
        known
    }
}
