//! Taking credentials of services back: on every server of the broker by the keymaster, and in the register, where every replica sees it. Those of
//! nodes are taken back by `enroll`, which changes them, too.

use futures_util::future::join_all;
use probeops_shared::ids::Caller;
use probeops_shared::keymaster::Revoked;
use probeops_shared::problem::Code;
use probeops_shared::registry::ServiceGrant;
use probeops_shared::timestamp::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use crate::App;
use crate::access::services::Stored;
use crate::problem::Problem;

/// How far a revocation has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct Told {
    /// The servers of the broker that have taken it, by name: whoever used the credential there is cut off.
    pub(crate) servers: Vec<String>,
    /// Those that did not say so in time. They are told again until they have.
    pub(crate) waiting: Vec<String>,
    /// What to do about those; absent where there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) advice: Option<String>,
}

impl From<Revoked> for Told {
    fn from(revoked: Revoked) -> Self {
        let Revoked { servers, waiting, .. } = revoked;
        let advice = (!waiting.is_empty()).then(|| {
            format!(
                "{} did not say that it has taken this, and whoever is connected to it may go on until it has. The keymaster tells it again until \
                 then. Look whether it runs and reaches the other servers; if in doubt stop it: a server that starts is told before anything else. \
                 Ask for this again to see that it has it",
                waiting.join(", ")
            )
        });
        Self { servers, waiting, advice }
    }
}

impl Told {
    /// Whether every server has it.
    pub(crate) fn everywhere(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The same of two revocations: a server has both or not.
    pub(crate) fn and(self, other: Self) -> Self {
        let mut waiting = self.waiting;
        waiting.extend(other.waiting);
        waiting.sort();
        waiting.dedup();
        let mut servers = self.servers;
        servers.extend(other.servers);
        servers.retain(|server| !waiting.contains(server));
        servers.sort();
        servers.dedup();
        Revoked { servers, waiting, ..Revoked::default() }.into()
    }

    /// How it is said in the audit trail.
    pub(crate) fn said(&self) -> String {
        if self.servers.is_empty() && self.waiting.is_empty() {
            return "no credential of it was in force".to_owned();
        }
        let servers = format!("taken by {}", self.servers.join(", "));
        if self.everywhere() { servers } else { format!("{servers}; not yet by {}", self.waiting.join(", ")) }
    }
}

/// Revokes a service's credential on every server and marks it so.
pub(crate) async fn revoke_service(app: &App, held: &Stored) -> Result<(ServiceGrant, Told), Problem> {
    let told: Told = match app.keymaster.revoke(&held.grant.public_key).await {
        Ok(revoked) => revoked.into(),
        // All that it had has ended long ago.
        Err(problem) if problem.code() == Code::NotFound && held.grant.expires_at <= Timestamp::now() => Told::default(),
        Err(problem) => return Err(problem),
    };
    if held.grant.revoked_at.is_some() {
        return Ok((held.grant.clone(), told));
    }
    let grant = ServiceGrant { revoked_at: Some(Timestamp::now()), ..held.grant.clone() };
    app.access.services().keep(&grant, Some(held)).await?;
    Ok((grant, told))
}

/// Revokes every service that a principal has made; their names, and how far that has come.
pub(crate) async fn revoke_made_by(app: &App, principal: &str) -> Result<(Vec<Caller>, Told), Problem> {
    let services = app.access.services();
    let made: Vec<Caller> = services.list().into_iter().filter(|grant| grant.created_by == principal).map(|grant| grant.name).collect();
    let revoke = async |name: Caller| -> Result<Option<(Caller, Told)>, Problem> {
        let Some(held) = services.find(&name).await?.filter(|held| held.grant.created_by == principal) else { return Ok(None) };
        let already = held.grant.revoked_at.is_some();
        let (_, told) = revoke_service(app, &held).await.map_err(|problem| problem.of(&format!("service {name}")))?;
        Ok(Some((name, told)).filter(|(_, told)| !already || !told.everywhere()))
    };
    let mut names = Vec::new();
    let mut all = Told::default();
    for revoked in join_all(made.into_iter().map(revoke)).await {
        if let Some((name, told)) = revoked? {
            names.push(name);
            all = all.and(told);
        }
    }
    Ok((names, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(servers: &[&str], waiting: &[&str]) -> Told {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Revoked { servers: names(servers), waiting: names(waiting), ..Revoked::default() }.into()
    }

    #[test]
    fn a_server_that_lacks_one_of_two_revocations_is_named() {
        let both = told(&["a", "b"], &[]).and(told(&["a"], &["b"]));
        assert_eq!((both.servers.as_slice(), both.waiting.as_slice()), (&["a".to_owned()][..], &["b".to_owned()][..]));
        assert!(!both.everywhere() && both.advice.as_deref().is_some_and(|advice| advice.starts_with("b did not say")));
        assert_eq!(both.said(), "taken by a; not yet by b");
        assert_eq!(Told::default().said(), "no credential of it was in force");
        assert!(told(&["a"], &[]).everywhere() && told(&["a"], &[]).advice.is_none());
    }
}
