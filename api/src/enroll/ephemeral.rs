//! Nodes that are forgotten: those that never confirmed their first credential, once it has ended, and ephemeral ones, once they were away for a
//! while; their credential is revoked.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use probeops_shared::ids::NodeId;
use probeops_shared::timestamp::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{Enroll, target};

/// How often it is looked who is away, at most; shorter where nodes are forgotten sooner.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Forgets nodes until told to stop. Every replica does; what another has done already is done.
pub(super) async fn forget(enroll: Enroll, stop: CancellationToken) {
    let after = enroll.0.settings.ephemeral_after;
    let mut away: BTreeMap<NodeId, Instant> = BTreeMap::new();
    while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY.min(after / 4))).await.is_some() {
        // A replica that does not hear of nodes knows nothing of who is there.
        if enroll.0.broker.ready().is_err() {
            away.clear();
            continue;
        }
        for id in enroll.0.broker.roster().never_enrolled() {
            if let Err(error) = enroll.forget_failed(&id).await {
                tracing::warn!("node {id}, which has failed to enrol, could not be forgotten and is tried again: {error}");
            }
        }
        let missed = enroll.0.broker.roster().ephemeral_away();
        away.retain(|id, _| missed.contains(id));
        for id in missed {
            let since = *away.entry(id.clone()).or_insert_with(Instant::now);
            if since.elapsed() < after {
                continue;
            }
            match enroll.forget(&id).await {
                Ok(()) => drop(away.remove(&id)),
                Err(error) => tracing::warn!("the ephemeral node {id} could not be forgotten and is tried again: {error}"),
            }
        }
    }
}

impl Enroll {
    /// Removes a node whose first credential has ended before it was confirmed.
    async fn forget_failed(&self, id: &NodeId) -> Result<(), String> {
        let Some((grant, revision)) = self.node(id).await.map_err(|problem| problem.to_string())? else { return Ok(()) };
        if grant.has_failed_to_enroll(Timestamp::now()) {
            self.0.nodes.delete_expect_revision(id.as_str(), Some(revision)).await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    async fn forget(&self, id: &NodeId) -> Result<(), String> {
        let Some((grant, revision)) = self.node(id).await.map_err(|problem| problem.to_string())? else { return Ok(()) };
        if !grant.enrolled.as_ref().is_some_and(|enrolled| enrolled.ephemeral && !enrolled.pending) {
            return Ok(());
        }
        drop(self.void_keys(&grant).await.map_err(|problem| problem.to_string())?);
        let removed = self.0.nodes.delete_expect_revision(id.as_str(), Some(revision)).await;
        removed.map_err(|error| error.to_string())?;
        let after = self.0.settings.ephemeral_after.as_secs();
        self.0.audit.changed("ephemeral", "", target(id), format!("ephemeral node forgotten: away for {after} s"));
        Ok(())
    }
}
