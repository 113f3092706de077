//! Where replicas of the API ask.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use async_nats::{Client, Message, Subscriber};
use futures_util::StreamExt;
use nkeys::{KeyPair, KeyPairType};
use probeops_shared::ids::Caller;
use probeops_shared::keymaster::{Answer, Mint, Minted, NodeRights, REQUEST_BYTES_MAX, Refusal, Revoke, Revoked, ServiceRights, Verb};
use probeops_shared::problem::Code;
use probeops_shared::subjects::{self, KEYMASTER_QUEUE};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use crate::keymaster::fleet::Wanted;
use crate::permissions::{AccountName, Role};
use crate::vault::Vault;

/// How many requests are worked on at once; more wait.
const REQUESTS_AT_ONCE: usize = 64;
/// How many regions or nodes a service may have.
const ENTRIES_MAX: usize = 100;

/// Where replicas of the API ask.
pub(super) struct Desk {
    client: Client,
    requests: Subscriber,
    clerk: Clerk,
}

impl Desk {
    pub(super) async fn open(client: Client, clerk: Clerk) -> Result<Self> {
        let requests = client.queue_subscribe(subjects::keymaster_all(), KEYMASTER_QUEUE.to_owned()).await;
        Ok(Self { client, requests: requests.context("cannot subscribe to requests")?, clerk })
    }

    /// Answers requests until the connection ends.
    pub(super) async fn serve(self) {
        let Self { client, requests, clerk } = self;
        requests.for_each_concurrent(REQUESTS_AT_ONCE, |message| answer(&client, &clerk, message)).await;
    }
}

async fn answer(client: &Client, clerk: &Clerk, message: Message) {
    let Some((verb, caller)) = subjects::parse_keymaster(&message.subject) else {
        tracing::warn!(subject = %message.subject, "a request for something that is not known is refused");
        return;
    };
    // The broker does not check where a request wants its answer, and would let this credential publish it in anybody's inbox.
    let Some(reply) = message.reply.filter(|reply| subjects::is_own_client_inbox(reply, &caller)) else {
        tracing::warn!(%verb, %caller, "a request that wants its answer elsewhere than in the asker's own inbox is refused");
        return;
    };
    let body = clerk.work(verb, &caller, &message.payload).await;
    let sent = match body {
        Ok(body) => client.publish(reply, body.into()).await.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = sent {
        tracing::error!(%verb, %caller, "an answer could not be sent: {error}");
    }
}

/// Whoever does what is asked.
#[derive(Clone, Debug)]
pub(super) struct Clerk {
    pub(super) vault: Arc<Vault>,
    pub(super) revoking: mpsc::Sender<Wanted>,
}

impl Clerk {
    async fn work(&self, verb: Verb, caller: &Caller, payload: &[u8]) -> serde_json::Result<Vec<u8>> {
        // The sentry takes away, and gives nobody anything; the broker lets it ask nothing else, either.
        if !(caller.is_api() || verb == Verb::Revoke && caller.as_str() == Role::Sentry.name()) {
            let refusal = Refusal { code: Code::Forbidden, detail: format!("only replicas of the API may ask, and `{caller}` is none") };
            return answered::<Minted>(verb, caller, Err(refusal));
        }
        match verb {
            Verb::MintNode => answered(verb, caller, async { self.mint_node(caller, read(payload)?).await }.await),
            Verb::MintService => answered(verb, caller, async { self.mint_service(caller, read(payload)?).await }.await),
            Verb::Revoke => answered(verb, caller, async { self.revoke(caller, read(payload)?).await }.await),
        }
    }

    async fn mint_node(&self, caller: &Caller, wanted: Mint<NodeRights>) -> Result<Minted, Refusal> {
        let Mint { public_key, rights: NodeRights { node, region, tools }, lifetime_s } = wanted;
        node.check_node().map_err(forbidden)?;
        if tools.is_empty() {
            return Err(invalid(format!("node `{node}` needs at least one tool")));
        }
        check_each_once("tools", &tools)?;
        self.mint(caller, Role::Node { node, region, tools }, public_key, lifetime_s).await
    }

    async fn mint_service(&self, caller: &Caller, wanted: Mint<ServiceRights>) -> Result<Minted, Refusal> {
        let Mint { public_key, rights: ServiceRights { name, regions, tools, nodes, direct }, lifetime_s } = wanted;
        name.check_service().map_err(forbidden)?;
        check_each_once("tools", &tools)?;
        check_each_once("regions", &regions)?;
        check_each_once("nodes", &nodes)?;
        self.mint(caller, Role::Service { name, regions, tools, nodes, direct }, public_key, lifetime_s).await
    }

    async fn mint(&self, caller: &Caller, role: Role, public_key: String, lifetime_s: u64) -> Result<Minted, Refusal> {
        check_key(&public_key)?;
        let (name, vault) = (role.name(), Arc::clone(&self.vault));
        let key = public_key.clone();
        let signed = blocking(move || {
            // A key that was taken back has no second life: a newer credential of it would be accepted.
            match vault.is_revoked(AccountName::Application, &key) {
                Ok(false) => {}
                Ok(true) => {
                    let detail = format!("the key {key} was revoked; whoever comes back makes a new one");
                    return Err(Refusal { code: Code::Conflict, detail });
                }
                Err(error) => return Err(unavailable(format!("the signing keys cannot be used: {error:#}"))),
            }
            vault.sign(&role, Duration::from_secs(lifetime_s), &key).map_err(|error| invalid(format!("{error:#}")))
        });
        let (jwt, expires_at) = signed.await?;
        tracing::info!(%caller, name, public_key, %expires_at, "credential signed");
        Ok(Minted { jwt, expires_at })
    }

    async fn revoke(&self, caller: &Caller, wanted: Revoke) -> Result<Revoked, Refusal> {
        let Revoke { public_key } = wanted;
        check_key(&public_key)?;
        let (asker, done) = oneshot::channel();
        let crowded = |_| unavailable("too many revocations wait already; try again".to_owned());
        self.revoking.try_send((public_key.clone(), asker)).map_err(crowded)?;
        let revoked = done.await.map_err(|_| unavailable("the keymaster is stopping".to_owned()))?.map_err(unavailable)?;
        let (servers, waiting) = (revoked.servers.join(","), revoked.waiting.join(","));
        tracing::info!(%caller, public_key, servers, waiting, "key revoked");
        Ok(revoked)
    }
}

fn read<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Refusal> {
    if payload.len() > REQUEST_BYTES_MAX {
        return Err(invalid(format!("a request has at most {REQUEST_BYTES_MAX} bytes, not {}", payload.len())));
    }
    serde_json::from_slice(payload).map_err(|error| invalid(format!("the request cannot be understood: {error}")))
}

fn answered<T: Serialize>(verb: Verb, caller: &Caller, done: Result<T, Refusal>) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&match done {
        Ok(done) => Answer::Done(done),
        Err(problem) => {
            tracing::warn!(%verb, %caller, code = problem.code.as_str(), "refused: {}", problem.detail);
            Answer::Refused { problem }
        }
    })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Refusal> + Send + 'static) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(|error| unavailable(format!("the keymaster failed: {error}")))?
}

fn check_key(public_key: &str) -> Result<(), Refusal> {
    let is_user = KeyPair::from_public_key(public_key).is_ok_and(|key| key.key_pair_type() == KeyPairType::User);
    let shown = || public_key.chars().take(64).collect::<String>();
    is_user.then_some(()).ok_or_else(|| invalid(format!("`{}` is not the public key of a user (an nkey, U…)", shown())))
}

fn check_each_once<T: PartialEq + std::fmt::Display>(what: &str, items: &[T]) -> Result<(), Refusal> {
    if items.len() > ENTRIES_MAX {
        return Err(invalid(format!("{what}: at most {ENTRIES_MAX}, not {}", items.len())));
    }
    match items.iter().enumerate().find(|(index, item)| items.iter().take(*index).any(|before| before == *item)) {
        Some((_, twice)) => Err(invalid(format!("{what}: `{twice}` is there twice"))),
        None => Ok(()),
    }
}

fn invalid(detail: String) -> Refusal {
    Refusal { code: Code::Invalid, detail }
}

fn forbidden(detail: String) -> Refusal {
    Refusal { code: Code::Forbidden, detail }
}

fn unavailable(detail: String) -> Refusal {
    Refusal { code: Code::Unavailable, detail }
}

#[cfg(test)]
mod tests;
