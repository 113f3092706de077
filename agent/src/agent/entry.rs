//! Who the agent is, and how it gets in.

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
use crate::way::Way;

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
    stop: &CancellationToken,
) -> Result<Option<(Client, mpsc::Receiver<LinkEvent>)>, AgentError> {
    let name = format!("agent {}", node.id);
    let inbox = subjects::node_inbox(&node.id);
    let mut attempt = 1;
    loop {
        let attempted = tokio::select! {
            attempted = way.connect(&name, &inbox) => attempted,
            () = stop.cancelled() => return Ok(None),
        };
        match attempted {
            Ok(connection) => return Ok(Some(connection)),
            Err(LinkError::Refused(why)) => return Err(AgentError::Revoked(refused(way.link(), &why))),
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

/// Whether the broker only says that a credential ran out whose file holds a newer one by now: the client reads it when it reconnects.
pub(super) fn was_renewed(link: &Link, why: &str) -> bool {
    let ran_out = why.to_ascii_lowercase().contains("authentication expired");
    ran_out && Credential::read(&link.creds).is_ok_and(|credential| credential.expires_at.is_none_or(|expiry| expiry > Timestamp::now()))
}

/// What to tell the owner of a node that is not let in.
pub(super) fn refused(link: &Link, why: &str) -> String {
    let file = link.creds.display();
    match Credential::read(&link.creds).ok().and_then(|credential| credential.expires_at) {
        Some(expired) if expired <= Timestamp::now() => {
            format!(
                "the credential {file} expired at {expired}; ask the operator for a new one (`probeops nodes add … --renew`). The broker says: {why}"
            )
        }
        _ => format!(
            "the broker does not accept the credential {file}: it has been revoked, or belongs to another broker. The broker says: {why}"
        ),
    }
}
