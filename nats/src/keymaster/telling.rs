//! Telling every server of the broker an account's claims, and proof that each has taken them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use async_nats::connection::State;
use async_nats::{Client, Subscriber};
use futures_util::StreamExt;
use probeops_shared::subjects::broker;
use serde::Deserialize;
use tokio::time::{Instant, sleep_until};

/// How long after the last server's answer no other is expected, where the servers do not say how many they are.
const QUIET: Duration = Duration::from_millis(250);
/// How long servers may take to answer a command.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// The most servers one broker has.
const SERVERS_MAX: usize = 64;

/// Which servers have taken the claims.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pushed {
    /// Their names.
    pub servers: Vec<String>,
}

/// A server of the broker. One that is started again has another id, and its old name.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Server {
    pub(super) name: String,
    pub(super) id: String,
}

/// What the servers answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// They have taken the claims.
    pub(super) taken: BTreeSet<Server>,
    /// They did not answer in time.
    pub(super) silent: BTreeSet<Server>,
    /// They have not, and why.
    pub(super) refused: BTreeMap<Server, String>,
}

/// Pushes an account's claims over a connection of the keymaster and waits until every server has acknowledged them.
pub async fn push(system: &Client, account_jwt: &str) -> Result<Pushed> {
    let told = tell(system, account_jwt, BTreeSet::new(), (ANSWER_MAX, ANSWER_MAX)).await?;
    if let Some((server, why)) = told.refused.first_key_value() {
        bail!("server {} refused the account's claims: {why}", server.name);
    }
    if !told.silent.is_empty() {
        let silent: Vec<&str> = told.silent.iter().map(|server| server.name.as_str()).collect();
        let all = told.silent.len() + told.taken.len();
        bail!("{} of {all} servers did not acknowledge the account's claims: {}", silent.len(), silent.join(", "));
    }
    if told.taken.is_empty() {
        bail!("no server of the broker answered within {} s; is this the credential of the keymaster?", ANSWER_MAX.as_secs());
    }
    Ok(Pushed { servers: told.taken.into_iter().map(|server| server.name).collect() })
}

/// Tells everybody at once, and only then asks who there is: who is to be cut off is not kept for that. Waits for those that are `expected` and
/// those that say they are there: not beyond `heard_within` while none of them has said anything.
pub(super) async fn tell(
    system: &Client,
    account_jwt: &str,
    expected: BTreeSet<Server>,
    (heard_within, within): (Duration, Duration),
) -> Result<Told> {
    let deadline = Instant::now() + within;
    let heard_until = Instant::now() + heard_within;
    let mut answers = ask(system, broker::CLAIMS_UPDATE, account_jwt.to_owned()).await?;
    let mut roll = Roll::call(system, deadline).await?;
    let mut told = Told { silent: expected, ..Told::default() };
    while !(roll.is_complete() && told.silent.is_empty()) {
        tokio::select! {
            answer = answers.next() => {
                let message = answer.context("the connection to the broker ended while the account's claims were pushed")?;
                if message.status.is_some_and(|status| !status.is_success()) {
                    continue;
                }
                let Answer { server, error, .. } = read_answer(&message.payload)?;
                told.silent.remove(&server);
                match error {
                    None => drop(told.taken.insert(server)),
                    Some(Refusal { code, description }) => drop(told.refused.insert(server, format!("{description} (code {code})"))),
                }
            }
            heard = roll.next() => {
                let there = heard.into_iter().filter(|server| !told.taken.contains(server) && !told.refused.contains_key(server));
                told.silent.extend(there);
            }
            () = sleep_until(heard_until), if roll.present.is_empty() && told.taken.is_empty() && told.refused.is_empty() => break,
            () = sleep_until(deadline) => break,
        }
    }
    Ok(told)
}

/// The servers that are there now.
pub(super) async fn present(system: &Client, within: Duration) -> Result<BTreeSet<Server>> {
    let mut roll = Roll::call(system, Instant::now() + within).await?;
    while !roll.is_complete() {
        let _ = roll.next().await;
    }
    Ok(roll.present)
}

/// Who answers when all are asked whether they are there.
struct Roll {
    answers: Subscriber,
    present: BTreeSet<Server>,
    /// How many they say that they are.
    count: usize,
    /// When no more are expected.
    until: Instant,
    is_complete: bool,
}

impl Roll {
    async fn call(system: &Client, deadline: Instant) -> Result<Self> {
        let answers = ask(system, broker::SERVER_PING, String::new()).await?;
        Ok(Self { answers, present: BTreeSet::new(), count: 0, until: deadline, is_complete: false })
    }

    fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// The next that answers; none when nobody else is expected to. Waits for ever once that is so.
    async fn next(&mut self) -> Option<Server> {
        if self.is_complete {
            return std::future::pending().await;
        }
        let heard = tokio::select! {
            answer = self.answers.next() => answer,
            () = sleep_until(self.until) => None,
        };
        let heard = heard.filter(|message| message.status.is_none_or(|status| status.is_success()));
        let Some(Answer { server, statsz, .. }) = heard.and_then(|message| read_answer(&message.payload).ok()) else {
            self.is_complete = true;
            return None;
        };
        self.count = self.count.max(statsz.map_or(0, |statsz| statsz.active_servers));
        self.present.insert(server.clone());
        self.until = Instant::now() + QUIET;
        self.is_complete = self.present.len() >= SERVERS_MAX || (self.count > 0 && self.present.len() >= self.count);
        Some(server)
    }
}

async fn ask(system: &Client, subject: &str, body: String) -> Result<Subscriber> {
    // Kept by a client that is not connected, old claims would be pushed over newer ones.
    if system.connection_state() != State::Connected {
        bail!("the broker cannot be reached");
    }
    let inbox = system.new_inbox();
    let answers = system.subscribe(inbox.clone()).await.with_context(|| format!("cannot subscribe the answers of {subject}"))?;
    system.publish_with_reply(subject.to_owned(), inbox, body.into()).await.with_context(|| format!("cannot publish to {subject}"))?;
    Ok(answers)
}

#[derive(Deserialize)]
struct Answer {
    server: Server,
    #[serde(default)]
    error: Option<Refusal>,
    #[serde(default)]
    statsz: Option<Statsz>,
}

#[derive(Deserialize)]
struct Refusal {
    code: i64,
    description: String,
}

#[derive(Deserialize)]
struct Statsz {
    /// How many servers of the broker this one knows, itself included.
    #[serde(default)]
    active_servers: usize,
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
        let present = read_answer(br#"{"server":{"name":"s1","id":"NA"},"statsz":{"active_servers":3,"mem":1}}"#).unwrap();
        assert_eq!(present.statsz.unwrap().active_servers, 3);
        assert!(read_answer(b"+OK").is_err());
    }
}
