//! On whose behalf something is done later, and what he may then.
//!
//! An API key is looked up again, in its bucket: one that was revoked or narrowed meanwhile counts as it is now. A JWT cannot be looked up; what it
//! said holds until it ends, and so nothing that goes on for longer is made with one.

use std::sync::Arc;

use probeops_shared::access::{Limits, Scope};
use probeops_shared::problem::Code;
use probeops_shared::timestamp::Timestamp;
use serde::{Deserialize, Serialize};

use crate::access::{Access, Identity, Principal};
use crate::problem::Problem;

/// How the names of principals begin that are API keys.
const KEY: &str = "key:";
/// And JWTs.
const JWT: &str = "jwt:";

/// On whose behalf something is done later.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PrincipalRef {
    /// The API key with this id.
    Key(String),
    /// Who a JWT named, with what it said.
    Jwt {
        /// Its principal's name.
        name: String,
        /// What it allowed.
        scopes: Vec<Scope>,
        /// What narrowed that.
        limits: Limits,
        /// When it ends.
        expires_at: Timestamp,
    },
}

/// Why nothing is done on somebody's behalf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// He may not any more, and will not again.
    Never(String),
    /// It cannot be found out now.
    Unknown(String),
}

impl PrincipalRef {
    /// A principal whose rights can be found out for a while: an API key, or a JWT until it ends.
    pub(crate) fn of(identity: &Identity) -> Result<Self, Problem> {
        if let Some(id) = identity.name.strip_prefix(KEY) {
            return Ok(Self::Key(id.to_owned()));
        }
        match identity.expires_at.filter(|_| identity.name.starts_with(JWT)) {
            Some(expires_at) => {
                let (name, scopes, limits) = (identity.name.clone(), identity.scopes.clone(), identity.limits.clone());
                Ok(Self::Jwt { name, scopes, limits, expires_at })
            }
            None => Err(use_a_key(&format!("what `{}` may later cannot be looked up", identity.name))),
        }
    }

    /// A principal whose rights can be found out at any time, which is an API key.
    pub(crate) fn lasting(identity: &Identity) -> Result<Self, Problem> {
        match Self::of(identity)? {
            key @ Self::Key(_) => Ok(key),
            Self::Jwt { .. } => Err(use_a_key("a JWT ends, and what its owner may afterwards cannot be looked up")),
        }
    }

    /// Until when something can be done on his behalf, where that is known.
    pub(crate) fn expires_at(&self) -> Option<Timestamp> {
        match self {
            Self::Key(_) => None,
            Self::Jwt { expires_at, .. } => Some(*expires_at),
        }
    }
}

fn use_a_key(why: &str) -> Problem {
    Problem::new(Code::Forbidden, format!("{why}; use an API key"))
}

/// Who this is now, read afresh, if he may still make jobs.
pub(crate) async fn present(access: &Access, who: &PrincipalRef) -> Result<Principal, Refused> {
    let identity = match who {
        PrincipalRef::Key(id) => {
            let present = access.keyring().present(id).await.map_err(Refused::Unknown)?;
            present.ok_or_else(|| Refused::Never(format!("the API key {id} was revoked, has expired or is no longer there")))?
        }
        PrincipalRef::Jwt { expires_at, .. } if *expires_at <= Timestamp::now() => {
            return Err(Refused::Never(format!("the JWT it was asked for with has ended at {expires_at}")));
        }
        PrincipalRef::Jwt { name, scopes, limits, expires_at } => {
            let (name, scopes, limits) = (name.clone(), scopes.clone(), limits.clone());
            Arc::new(Identity { name, scopes, limits, nodes: Vec::new(), expires_at: Some(*expires_at) })
        }
    };
    identity.check_scope(Scope::JobsWrite).map_err(|problem| Refused::Never(problem.detail().to_owned()))?;
    Ok(Principal::of(identity))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn identity(name: &str, expires_at: Option<Timestamp>) -> Identity {
        Identity { name: name.to_owned(), scopes: vec![Scope::JobsWrite], limits: Limits::default(), nodes: Vec::new(), expires_at }
    }

    #[test]
    fn a_key_can_be_looked_up_and_a_jwt_holds_until_it_ends() {
        assert_eq!(PrincipalRef::of(&identity("key:a", None)).unwrap(), PrincipalRef::Key("a".to_owned()));
        let ends = Timestamp::now().plus(Duration::from_mins(5));
        let jwt = PrincipalRef::of(&identity("jwt:a", Some(ends))).unwrap();
        assert_eq!(jwt.expires_at(), Some(ends));
        let written = serde_json::to_string(&jwt).unwrap();
        assert!(matches!(serde_json::from_str(&written).unwrap(), PrincipalRef::Jwt { name, .. } if name == "jwt:a"));
        for other in [identity("jwt:a", None), identity("service:a", None)] {
            let refused = PrincipalRef::of(&other).unwrap_err();
            assert!(refused.code() == Code::Forbidden && refused.detail().contains("use an API key"), "{refused}");
        }
        let refused = PrincipalRef::lasting(&identity("jwt:a", Some(ends))).unwrap_err();
        assert!(refused.code() == Code::Forbidden && refused.detail().contains("use an API key"), "{refused}");
    }
}
