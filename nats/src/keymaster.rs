//! Pushing account claims to every running server, and proof that each has taken them.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use async_nats::{Client, Subscriber};
use futures_util::StreamExt;
use probeops_shared::subjects::broker;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

/// How long after the last server's answer no other is expected.
const PING_QUIET: Duration = Duration::from_millis(250);
/// How long servers may take to answer at all.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// The most servers one broker has.
const SERVERS_MAX: usize = 64;

/// Which servers have taken the claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Their names.
    pub servers: Vec<String>,
}

/// Pushes an account's claims over a connection of the keymaster and waits until every server has acknowledged them.
pub async fn push(system: &Client, account_jwt: &str) -> Result<Pushed> {
    let servers = servers(system).await?;
    let mut answers = ask(system, broker::CLAIMS_UPDATE, account_jwt.to_owned()).await?;
    let deadline = Instant::now() + ANSWER_MAX;
    let mut waiting: BTreeSet<Server> = servers.iter().cloned().collect();
    while !waiting.is_empty() {
        let Ok(answer) = timeout_at(deadline, answers.next()).await else {
            let silent: Vec<&str> = waiting.iter().map(|server| server.name.as_str()).collect();
            bail!("{} of {} servers did not acknowledge the account's claims: {}", silent.len(), servers.len(), silent.join(", "));
        };
        let message = answer.context("the connection to the broker ended while the account's claims were pushed")?;
        let answer = read_answer(&message.payload)?;
        if let Some(error) = answer.error {
            bail!("server {} refused the account's claims: {} (code {})", answer.server.name, error.description, error.code);
        }
        waiting.remove(&answer.server);
    }
    Ok(Pushed { servers: servers.into_iter().map(|server| server.name).collect() })
}

/// The servers that are running now.
async fn servers(system: &Client) -> Result<BTreeSet<Server>> {
    let mut answers = ask(system, broker::SERVER_PING, String::new()).await?;
    let mut deadline = Instant::now() + ANSWER_MAX;
    let mut servers = BTreeSet::new();
    while servers.len() < SERVERS_MAX {
        match timeout_at(deadline, answers.next()).await {
            Ok(Some(message)) => {
                if message.status.is_some_and(|status| !status.is_success()) {
                    break;
                }
                servers.insert(read_answer(&message.payload)?.server);
                deadline = Instant::now() + PING_QUIET;
            }
            Ok(None) | Err(_) => break,
        }
    }
    if servers.is_empty() {
        bail!("no server of the broker answered within {} s; is this the credential of the keymaster?", ANSWER_MAX.as_secs());
    }
    Ok(servers)
}

async fn ask(system: &Client, subject: &str, body: String) -> Result<Subscriber> {
    let inbox = system.new_inbox();
    let answers = system.subscribe(inbox.clone()).await.with_context(|| format!("cannot subscribe the answers of {subject}"))?;
    system.publish_with_reply(subject.to_owned(), inbox, body.into()).await.with_context(|| format!("cannot publish to {subject}"))?;
    Ok(answers)
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
struct Server {
    id: String,
    name: String,
}

#[derive(Deserialize)]
struct Answer {
    server: Server,
    #[serde(default)]
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    code: i64,
    description: String,
}

fn read_answer(payload: &[u8]) -> Result<Answer> {
    serde_json::from_slice(payload).map_err(|error| anyhow!("a server's answer cannot be understood: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_servers_are_understood() {
        let taken =
            read_answer(br#"{"server":{"name":"s1","id":"NA"},"data":{"account":"A","code":200,"message":"jwt updated"}}"#).unwrap();
        assert!(taken.error.is_none() && taken.server.name == "s1");
        let refused = read_answer(br#"{"server":{"name":"s1","id":"NA"},"error":{"account":"A","code":500,"description":"no"}}"#).unwrap();
        assert_eq!(refused.error.unwrap().description, "no");
        assert!(read_answer(b"+OK").is_err());
    }
}
