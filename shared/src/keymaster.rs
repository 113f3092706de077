//! What replicas of the API ask of the keymaster, which alone has the keys that sign, and what it answers: JSON on
//! [`crate::subjects::keymaster`], answered in the asker's own inbox.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{Caller, NodeId, Region};
use crate::problem::Code;
use crate::timestamp::Timestamp;
use crate::tools::ToolName;

/// The largest request that is read, in bytes.
pub const REQUEST_BYTES_MAX: usize = 64 * 1024;

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// The credential of a node: [`Mint`] of [`NodeRights`], answered with [`Minted`].
    MintNode,
    /// The credential of a service: [`Mint`] of [`ServiceRights`], answered with [`Minted`].
    MintService,
    /// That all credentials of a key are void: [`Revoke`], answered with [`Revoked`].
    Revoke,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::MintNode, Self::MintService, Self::Revoke];

    /// The token in the subject.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MintNode => "mint_node",
            Self::MintService => "mint_service",
            Self::Revoke => "revoke",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A credential to be signed. Whoever is to have it made the key, and keeps the private half.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mint<R> {
    /// The public half of its key (an nkey, `U…`).
    pub public_key: String,
    /// What it may.
    pub rights: R,
    /// How long it lasts, in seconds.
    pub lifetime_s: u64,
}

/// What a node may.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeRights {
    /// Its id.
    pub node: NodeId,
    /// Its region.
    pub region: Region,
    /// The tools it may serve.
    pub tools: Vec<ToolName>,
}

/// What a service may.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceRights {
    /// Its name.
    pub name: Caller,
    /// The regions it may ask.
    pub regions: Vec<Region>,
    /// The tools it may ask for.
    pub tools: Vec<ToolName>,
    /// The nodes it may ask by id.
    pub nodes: Vec<NodeId>,
    /// Whether it may publish jobs itself; else it has the front door and nothing else.
    pub direct: bool,
}

/// A credential that was signed. With the private half of its key it opens the broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Minted {
    /// The signed claims.
    pub jwt: String,
    /// When it ends.
    pub expires_at: Timestamp,
}

/// A key of which all credentials so far are to be void, on every server at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoke {
    /// Its public half (an nkey, `U…`).
    pub public_key: String,
}

/// How far a revocation has come. It is final in any case: what is signed says so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// The servers of the broker that have taken it, by name: whoever used the key there is cut off.
    pub servers: Vec<String>,
    /// Those that did not say so in time. The keymaster tells them again until they have it.
    #[serde(default)]
    pub waiting: Vec<String>,
    /// Whether the trail does not have the keymaster's record of it yet. That waits, and is kept as soon as the trail takes records.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unrecorded: bool,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Its kind: `invalid`, `forbidden`, `not_found`, `conflict`, `rate_limited` or `unavailable`.
    pub code: Code,
    /// What is wrong, and what would be right.
    pub detail: String,
    /// When to ask again, in milliseconds, where only that is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Answer<T> {
    /// It was refused.
    Refused {
        /// Why.
        problem: Refusal,
    },
    /// It was done.
    Done(T),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_what_the_wire_says() {
        let done: Answer<Revoked> = serde_json::from_str(r#"{"servers":["n1"]}"#).unwrap();
        assert_eq!(done, Answer::Done(Revoked { servers: vec!["n1".to_owned()], ..Revoked::default() }));
        assert_eq!(serde_json::to_string(&done).unwrap(), r#"{"servers":["n1"],"waiting":[]}"#);
        let refused: Answer<Revoked> = serde_json::from_str(r#"{"problem":{"code":"forbidden","detail":"no"}}"#).unwrap();
        assert_eq!(refused, Answer::Refused { problem: Refusal { code: Code::Forbidden, detail: "no".to_owned(), retry_after_ms: None } });
        assert!(serde_json::from_str::<Answer<Minted>>(r#"{"jwt":"x"}"#).is_err());
        assert!(serde_json::from_str::<Revoke>(r#"{"public_key":"U","all":true}"#).is_err(), "what is not known is refused");
    }
}
