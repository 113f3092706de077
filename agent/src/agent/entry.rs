//! Who the agent is, and how it gets in.

use std::time::{Duration, Instant};

use async_nats::Client;
use probeops_nats::connect::{Credential, Link, LinkError, LinkEvent, backoff};
use probeops_shared::ids::{NodeId, Region};
use probeops_shared::outcome::NodeRef;
use probeops_shared::subjects;
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::ToolName;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::AgentError;
use crate::enroll::{EnrollError, Renewal};
use crate::way::Way;

/// How many credentials in a row that the API gave may be refused by the broker.
const REFUSALS_MAX: usize = 12;

/// How long the broker may refuse one that nobody renews: a server that came back without the account's claims refuses everybody until the
/// keymaster has told it, which takes it a second.
const REFUSED_MAX: Duration = Duration::from_secs(5);

/// Who we are is what the broker will hold us to: the credential's own claims.
pub(crate) fn identity(credential: &Credential) -> Result<(NodeRef, Vec<ToolName>), String> {
    let id: NodeId = credential.name.parse()?;
    let mut region: Option<Region> = None;
    let mut granted = Vec::new();
    for entry in &credential.subscribe {
        let subject = entry.split(' ').next().unwrap_or_default();
        if let ["job", "v1", of, tool, subjects::ANY] = subject.split('.').collect::<Vec<_>>().as_slice() {
            region = Some(of.parse()?);
            // A tool of a newer version is not ours to run.
            granted.extend(tool.parse::<ToolName>().ok());
        }
    }
    let region = region.ok_or_else(|| format!("the credential of `{id}` is not a node's: it grants no tool in any region"))?;
    Ok((NodeRef { id, region }, granted))
}

/// Connects, however long it takes; `None` when told to stop before.
pub(super) async fn connected(
    way: &Way,
    node: &NodeRef,
    renewal: Option<&Renewal>,
    stop: &CancellationToken,
) -> Result<Option<(Client, mpsc::Receiver<LinkEvent>)>, AgentError> {
    let name = format!("agent {}", node.id);
    let inbox = subjects::node_inbox(&node.id);
    let mut attempt = 1;
    let mut access = Access::new(way.link().clone(), renewal.cloned());
    loop {
        let attempted = tokio::select! {
            attempted = way.connect(&name, &inbox) => attempted,
            () = stop.cancelled() => return Ok(None),
        };
        match attempted {
            Ok(connection) => return Ok(Some(connection)),
            Err(LinkError::Refused(why)) => {
                access.again(&why).await?;
                attempt += 1;
                if stop.run_until_cancelled(tokio::time::sleep(backoff(attempt))).await.is_none() {
                    return Ok(None);
                }
            }
            Err(error @ (LinkError::Invalid(_) | LinkError::Credential(_))) => return Err(AgentError::Start(error.to_string())),
            Err(LinkError::Unreachable(why)) => {
                let wait = backoff(attempt);
                tracing::warn!(attempt, wait_ms = wait.as_millis(), "{why}");
                tokio::select! {
                    () = tokio::time::sleep(wait) => attempt += 1,
                    () = stop.cancelled() => return Ok(None),
                }
            }
        }
    }
}

/// What the broker thinks of the credential.
pub(super) struct Access {
    link: Link,
    renewal: Option<Renewal>,
    /// The credential that it refused, or took, last.
    known: Option<Credential>,
    /// How often it refused one since it took one.
    refusals: usize,
    /// Since when it has refused one that nobody renews.
    refused_since: Option<Instant>,
}

impl Access {
    pub(super) fn new(link: Link, renewal: Option<Renewal>) -> Self {
        let known = Credential::read(&link.creds).ok();
        Self { link, renewal, known, refusals: 0, refused_since: None }
    }

    /// What there is to say of the credential that is there now.
    pub(super) fn held(&self) -> String {
        match Credential::read(&self.link.creds) {
            Ok(Credential { public_key, expires_at, .. }) => {
                let until = expires_at.map_or_else(|| "without end".to_owned(), |expires_at| format!("until {expires_at}"));
                let same = self.known.as_ref().is_some_and(|known| known.public_key == public_key);
                format!("another credential of {} key {public_key}, {until}", if same { "the same" } else { "a new" })
            }
            Err(error) => error.to_string(),
        }
    }

    /// It took the credential.
    pub(super) fn granted(&mut self) {
        (self.known, self.refusals, self.refused_since) = (Credential::read(&self.link.creds).ok(), 0, None);
    }

    /// It refuses the credential. An error if that is for good: no other is there and none can be got. The client reads the file again when it
    /// connects the next time.
    pub(super) async fn again(&mut self, why: &str) -> Result<(), AgentError> {
        let held = Credential::read(&self.link.creds).ok();
        let expired = held.as_ref().and_then(|held| held.expires_at).is_some_and(|expiry| expiry <= Timestamp::now());
        if held != self.known && !expired {
            tracing::info!("the credential was renewed while the old one ran out; connecting with the new one");
            self.known = held;
            return Ok(());
        }
        let ran_out = why.to_ascii_lowercase().contains("authentication expired") || expired;
        let Some(renewal) = self.renewal.as_ref().filter(|_| self.refusals < REFUSALS_MAX || ran_out) else {
            // A file that was replaced since is read the next time.
            if ran_out && !expired {
                return Ok(());
            }
            let taken_back = expired || why.to_ascii_lowercase().contains("authentication revoked");
            if taken_back || self.renewal.is_some() || self.refused_since.get_or_insert_with(Instant::now).elapsed() >= REFUSED_MAX {
                return Err(AgentError::Revoked(refused(&self.link, why)));
            }
            tracing::warn!("the broker does not accept the credential; trying again: {why}");
            return Ok(());
        };
        self.refusals += 1;
        match renewal.now().await {
            Ok(()) => {
                self.known = Credential::read(&self.link.creds).ok();
                Ok(())
            }
            Err(EnrollError::Refused(detail)) => Err(AgentError::Revoked(format!("{}. The API says: {detail}", refused(&self.link, why)))),
            Err(error) if ran_out => {
                tracing::warn!("the credential has run out and cannot be renewed now: {error}");
                Ok(())
            }
            // A server that came back without the account's claims refuses everybody until the keymaster has told it, and the API may be away
            // with it: only what the API says is for good.
            Err(EnrollError::Later(later)) => {
                tracing::warn!("the broker does not accept the credential ({why}), and the API cannot be asked for another now: {later}");
                Ok(())
            }
            Err(error) => Err(AgentError::Revoked(format!("{}; asking the API for another: {error}", refused(&self.link, why)))),
        }
    }
}

/// What to tell the owner of a node that is not let in.
pub(super) fn refused(link: &Link, why: &str) -> String {
    let file = link.creds.display();
    match Credential::read(&link.creds).ok().and_then(|credential| credential.expires_at) {
        Some(expired) if expired <= Timestamp::now() => {
            format!(
                "the credential {file} expired at {expired}; ask the operator for a new one (`probeops nodes add … --renew`, or a token to enrol with). The broker says: {why}"
            )
        }
        _ => format!(
            "the broker does not accept the credential {file}: it has been revoked, or belongs to another broker. The broker says: {why}"
        ),
    }
}
