//! What the sentry does to others: lists their connections, cuts them, and has their keys revoked.

use std::time::Duration;

use async_nats::{Client, jetstream};
use futures_util::StreamExt;
use futures_util::future::join_all;
use probeops_shared::keymaster::{Answer, Refusal, Revoke, Revoked, Verb};
use probeops_shared::registry::RevokedKey;
use probeops_shared::subjects::{self, broker, storage};
use probeops_shared::timestamp::Timestamp;
use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::permissions::Role;
use crate::sentry::parsed;
use crate::sentry::report::Handle;
use crate::sentry::watch::{Cloned, Cut, Finding, Kind, Listed, Listing, Who};

/// How long servers may take to answer at all.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// How long after the last server's answer no other is expected.
const QUIET: Duration = Duration::from_millis(250);
/// How many connections a page has. With their credentials, some 1.6 kB each.
const PAGE: usize = 512;
/// The most connections of an account that are listed.
const LISTED_MAX: usize = 100_000;
/// How long what a node is told takes to leave, at most, before its connection ends.
const TOLD_WITHIN: Duration = Duration::from_millis(50);
/// How long the keymaster may take: it waits for the slowest server.
const REVOKED_WITHIN: Duration = Duration::from_secs(10);

/// How often it is tried to have a revocation said in the register of nodes.
const SAID_TRIES_MAX: u32 = 120;
/// The wait between two tries.
const SAID_RETRY_AFTER: Duration = Duration::from_millis(500);

/// The two connections with which it acts.
#[derive(Clone, Debug)]
pub(super) struct Actor {
    system: Client,
    client: Client,
}

#[derive(Deserialize)]
struct Page {
    server: Server,
    #[serde(default)]
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Server {
    id: String,
}

#[derive(Deserialize)]
struct Data {
    total: usize,
    #[serde(default)]
    connections: Vec<Connection>,
}

#[derive(Deserialize)]
struct Connection {
    cid: u64,
    #[serde(default)]
    ip: String,
    #[serde(default)]
    in_msgs: u64,
    #[serde(default)]
    in_bytes: u64,
    #[serde(default)]
    authorized_user: String,
    #[serde(default)]
    jwt: String,
    #[serde(default)]
    name_tag: String,
}

impl Connection {
    fn listed(self, server: &str) -> Listed {
        let who = (!self.authorized_user.is_empty()).then(|| Who::read(&self.authorized_user, &self.jwt, &self.name_tag));
        Listed { server: server.to_owned(), cid: self.cid, who, host: self.ip, messages: self.in_msgs, bytes: self.in_bytes }
    }
}

impl Actor {
    pub(super) fn new(system: Client, client: Client) -> Self {
        Self { system, client }
    }

    /// All connections of these accounts; who they are only where `names` are wanted.
    pub(super) async fn list(&self, accounts: &[String], names: bool) -> Result<Listing, String> {
        let asked_at = Instant::now();
        let mut listing = Listing { asked_at, servers: Vec::new(), connections: Vec::new() };
        for account in join_all(accounts.iter().map(|account| self.list_account(account, names))).await {
            let (servers, connections) = account?;
            // One that has not said all of them cannot be asked who has gone.
            listing.servers.retain(|server| servers.contains(server));
            if listing.servers.is_empty() {
                listing.servers = servers;
            }
            listing.connections.extend(connections);
        }
        Ok(listing)
    }

    async fn list_account(&self, account: &str, names: bool) -> Result<(Vec<String>, Vec<Listed>), String> {
        let (mut servers, mut listed) = (Vec::new(), Vec::new());
        for offset in (0..LISTED_MAX).step_by(PAGE) {
            let pages = self.ask(account, &json!({"auth": names, "limit": PAGE, "offset": offset}), |_| false).await?;
            let more = pages.iter().any(|page| page.data.as_ref().is_some_and(|data| data.total > offset + PAGE));
            if offset == 0 {
                servers = pages.iter().map(|page| page.server.id.clone()).collect();
            }
            for Page { server, data } in pages {
                listed.extend(data.into_iter().flat_map(|data| data.connections).map(|connection| connection.listed(&server.id)));
            }
            if !more {
                break;
            }
        }
        Ok((servers, listed))
    }

    /// Who has this number, at whichever server.
    pub(super) async fn find(&self, accounts: &[String], cid: u64) -> Listing {
        let mut listing = Listing { asked_at: Instant::now(), servers: Vec::new(), connections: Vec::new() };
        let has = |page: &Page| page.data.as_ref().is_some_and(|data| !data.connections.is_empty());
        for account in accounts {
            for Page { server, data } in self.ask(account, &json!({"auth": true, "cid": cid}), has).await.unwrap_or_default() {
                let found = data.into_iter().flat_map(|data| data.connections).filter(|connection| connection.cid == cid);
                listing.connections.extend(found.map(|connection| connection.listed(&server.id)));
            }
            if !listing.connections.is_empty() {
                break;
            }
        }
        listing
    }

    /// Asks every server for connections of an account, until one says what is `enough`.
    async fn ask(&self, account: &str, options: &serde_json::Value, enough: impl Fn(&Page) -> bool) -> Result<Vec<Page>, String> {
        let subject = broker::account_connections(account);
        let inbox = self.system.new_inbox();
        let failed = |error: &dyn std::fmt::Display| format!("{subject}: {error}");
        let mut answers = self.system.subscribe(inbox.clone()).await.map_err(|error| failed(&error))?;
        let asked = self.system.publish_with_reply(subject.clone(), inbox, options.to_string().into()).await;
        asked.map_err(|error| failed(&error))?;
        let mut deadline = Instant::now() + ANSWER_MAX;
        let mut pages = Vec::new();
        while let Ok(Some(answer)) = timeout_at(deadline, answers.next()).await {
            let Some(page) = parsed::<Page>(&answer) else { continue };
            let done = enough(&page);
            pages.push(page);
            if done {
                return Ok(pages);
            }
            deadline = Instant::now() + QUIET;
        }
        if pages.is_empty() { Err(format!("{subject}: no server answered within {} s", ANSWER_MAX.as_secs())) } else { Ok(pages) }
    }

    /// Ends a connection; a node is told why.
    pub(super) async fn cut(self, cut: Cut) {
        tracing::warn!(
            principal = cut.who.principal(),
            cid = cut.cid,
            server = cut.server,
            host = cut.host,
            "a connection is cut: {}",
            cut.why
        );
        if let Kind::Node(node, _) = &cut.who.kind {
            // Where it would be answered tells the node who says so.
            drop(self.client.publish_with_reply(subjects::node_cut(node), self.client.new_inbox(), cut.why.clone().into()).await);
            drop(self.client.flush().await);
            sleep(TOLD_WITHIN).await;
        }
        let body = json!({"cid": cut.cid}).to_string();
        match timeout(ANSWER_MAX, self.system.request(broker::server_kick(&cut.server), body.into())).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::error!(cid = cut.cid, server = cut.server, %error, "a connection could not be cut"),
            Err(_) => tracing::error!(cid = cut.cid, server = cut.server, "a server did not say that it has cut a connection"),
        }
    }

    /// Has the register of nodes say that a key is revoked, and the keymaster revoke it. Neither waits for the other: an API that reads the one
    /// asks for the other, too.
    pub(super) async fn revoke(self, cloned: Cloned, handle: Handle) {
        let (said, ()) = tokio::join!(self.say_revoked(&cloned), self.have_revoked(&cloned, handle));
        if let Err(why) = said {
            tracing::error!(principal = cloned.who.principal(), "the register of nodes does not say that its key is revoked: {why}");
        }
    }

    /// Writes down a key that is to be revoked, for the register of nodes; whichever API is there, now or later, reads it.
    async fn say_revoked(&self, cloned: &Cloned) -> Result<(), String> {
        let Kind::Node(node, _) = &cloned.who.kind else { return Err("it is no node's".to_owned()) };
        let revoked = RevokedKey {
            node: node.clone(),
            public_key: cloned.who.key.parse()?,
            at: Timestamp::now(),
            because: format!("clone: its key was used by two connections at the same time, from {}", cloned.hosts.join(", ")),
        };
        let value = bytes::Bytes::from(serde_json::to_vec(&revoked).map_err(|error| error.to_string())?);
        let jetstream = jetstream::new(self.client.clone());
        let mut why = String::new();
        for _ in 0..SAID_TRIES_MAX {
            let sent = jetstream.publish(broker::lent(&broker::bucket_key(storage::REVOKED, &revoked.public_key)), value.clone()).await;
            match sent {
                Ok(kept) => match kept.await {
                    Ok(_) => return Ok(()),
                    Err(error) => why = error.to_string(),
                },
                Err(error) => why = error.to_string(),
            }
            sleep(SAID_RETRY_AFTER).await;
        }
        Err(why)
    }

    async fn have_revoked(&self, cloned: &Cloned, handle: Handle) {
        let principal = cloned.who.principal();
        let what = match self.ask_keymaster(&cloned.who.key).await {
            Ok(Revoked { servers, waiting, .. }) if waiting.is_empty() => {
                tracing::warn!(principal, "its key is revoked, on {}", servers.join(", "));
                format!("revoked: its key is void on {}; grant the node anew where it is meant to be", servers.join(", "))
            }
            Ok(Revoked { waiting, .. }) => {
                tracing::error!(principal, "its key is revoked, but not yet known to {}", waiting.join(", "));
                format!("revoked: its key is void, but {} did not say that they know", waiting.join(", "))
            }
            Err(why) => {
                tracing::error!(principal, "its key could not be revoked: {why}; both are cut as often as they come");
                format!("not revoked: {why}; both are cut as often as they come")
            }
        };
        handle.report(Finding { who: Some(cloned.who.clone()), what, subject: String::new(), host: cloned.hosts.join(", ") });
    }

    async fn ask_keymaster(&self, key: &str) -> Result<Revoked, String> {
        let body = serde_json::to_vec(&Revoke { public_key: key.to_owned() }).map_err(|error| error.to_string())?;
        let subject = subjects::keymaster(Verb::Revoke, Role::Sentry.name());
        let answer = timeout(REVOKED_WITHIN, self.client.request(subject, body.into())).await;
        let answer = answer.map_err(|_| "the keymaster did not answer".to_owned())?.map_err(|error| format!("no keymaster: {error}"))?;
        match serde_json::from_slice(&answer.payload) {
            Ok(Answer::Done(revoked)) => Ok(revoked),
            Ok(Answer::Refused { problem: Refusal { detail, .. } }) => Err(format!("the keymaster refuses: {detail}")),
            Err(error) => Err(format!("the keymaster's answer cannot be understood: {error}")),
        }
    }
}
