//! The same limits for every kind of principal, as each is made for real: from the record of an API key, the claims of a JWT, and the grant of a
//! service.

use std::sync::Arc;

use data_encoding::BASE64URL_NOPAD;
use probeops_shared::access::Limits;
use probeops_shared::registry::ServiceGrant;
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::ToolName;
use serde_json::{Value, json};

use super::keys::KeyRecord;
use super::{Principal, jwt, keyring, services};

/// The kinds of principal.
pub(crate) const KINDS: [&str; 3] = ["key", "jwt", "service"];

/// A principal of a kind with these limits, as they are given with a key or in a JWT; a service has the same of `regions` (of those that are said
/// whole), and of all where none are said.
pub(crate) fn principal(kind: &str, limits: &Value, all_regions: &[&str]) -> Principal {
    let given: Limits = serde_json::from_value(limits.clone()).unwrap();
    let scopes = json!(["jobs:write", "jobs:read", "nodes:read"]);
    let (now, later) = (Timestamp::now(), Timestamp::now().plus(std::time::Duration::from_hours(1)));
    let identity = match kind {
        "key" => keyring::identity(
            &serde_json::from_value::<KeyRecord>(
                json!({"id": "k", "name": "n", "sha256": "", "scopes": scopes, "limits": limits, "created_at": now, "created_by": "c"}),
            )
            .unwrap(),
        ),
        "jwt" => {
            let claims = json!({"sub": "s", "scope": "jobs:write jobs:read nodes:read", "probeops": limits, "exp": later.unix_s()});
            jwt::identity(&BASE64URL_NOPAD.encode(claims.to_string().as_bytes())).unwrap()
        }
        "service" => {
            let regions: Vec<String> = match (&given.regions, &given.nodes) {
                (Some(regions), _) => regions.iter().map(ToString::to_string).collect(),
                // Its nodes are granted by id, and no region with them.
                (None, Some(_)) => Vec::new(),
                (None, None) => all_regions.iter().map(ToString::to_string).collect(),
            };
            services::identity(&ServiceGrant {
                name: "s".parse().unwrap(),
                regions: regions.iter().map(|region| region.parse().unwrap()).collect(),
                tools: given.tools.clone().unwrap_or_else(|| ToolName::ALL.to_vec()),
                nodes: given.nodes.clone().unwrap_or_default(),
                labels: given.labels.clone(),
                targets: given.targets.clone(),
                rate: given.rate,
                at_once: given.at_once,
                public_key: "U".to_owned(),
                created_at: now,
                created_by: "key:c".to_owned(),
                expires_at: later,
                revoked_at: None,
            })
        }
        other => panic!("{other}"),
    };
    Principal::of(Arc::new(identity))
}
