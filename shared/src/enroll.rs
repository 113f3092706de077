//! How a node comes by its credential: what agents and the API say to each other, and what a node signs.
//!
//! A node proves its key by a signature (Ed25519, as nkeys write it) over a challenge and over everything else that it asks, so nothing of a
//! request can be exchanged on its way. A token, where there is one, stands in no signature in clear.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bounded::shown;
use crate::ids::{NodeId, Region, checked_string};
use crate::planted;
use crate::text::as_text;
use crate::timestamp::Timestamp;

/// What the texts that nodes sign begin with, so that none of them can be taken for something else.
const SIGNED_FOR: &str = "probeops-enroll-v1";

checked_string!(
    /// The public half of a node's key: an nkey of a user.
    PublicKey,
    |text: &str| text.len() == 56 && text.starts_with('U') && text.bytes().all(|byte| byte.is_ascii_uppercase() || (b'2'..=b'7').contains(&byte)),
    "^U[A-Z2-7]{55}$",
    ("the public key of a user", "U and 55 of A-Z and 2-7")
);
checked_string!(
    /// A signature by a node's key: 64 bytes in base64url without padding.
    Signature,
    |text: &str| text.len() == 86
        && (text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_') || planted!("enroll" if text.contains('='))),
    "^[A-Za-z0-9_-]{86}$",
    ("a signature", "64 bytes in base64url without padding")
);
checked_string!(
    /// A SHA-256, in hexadecimal.
    Digest,
    |text: &str| text.len() == 64 && is_hex(text),
    "^[0-9a-f]{64}$",
    ("a SHA-256", "64 of 0-9 and a-f")
);
checked_string!(
    /// What a node wrote down when it last got a credential: 16 random bytes in hexadecimal. A copy of the node has it too, until one of the two
    /// gets the next.
    Mark,
    |text: &str| text.len() == 32 && is_hex(text),
    "^[0-9a-f]{32}$",
    ("a mark", "32 of 0-9 and a-f")
);

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

impl Mark {
    /// A new one.
    pub fn new() -> Self {
        Self(format!("{:032x}", rand::random::<u128>()))
    }
}

impl Default for Mark {
    fn default() -> Self {
        Self::new()
    }
}

/// Asks for a challenge.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChallengeRequest {
    /// The key that will sign it.
    pub public_key: PublicKey,
}

/// What a node signs to show that it has the private half.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Challenge {
    /// The challenge, to be signed and sent back as it is.
    pub challenge: String,
    /// Until when it can be used.
    pub expires_at: Timestamp,
}

/// Asks for a credential: the first one with a token, or with a key that the operator registered; later ones by signature alone.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EnrollRequest {
    /// The enrolment token, the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The node's key, which signs this.
    pub public_key: PublicKey,
    /// The challenge that was got for this key.
    #[schemars(length(min = 1, max = 256))]
    pub challenge: String,
    /// The key's signature over the challenge and all that is asked.
    pub signature: Signature,
    /// The name that the node wants, or has. One that the token gives wins; where both leave it open, the node is named after its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// A digest of what identifies the machine; absent where nothing does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Digest>,
    /// What the node wrote down when it last got a credential; absent the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<Mark>,
    /// What it has written down now; sent again unchanged until an answer has come.
    pub next_mark: Mark,
    /// The key that is to take this one's place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_public_key: Option<PublicKey>,
    /// The new key's signature over the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_signature: Option<Signature>,
}

impl fmt::Debug for EnrollRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrollRequest").field("public_key", &self.public_key).field("node", &self.node).finish_non_exhaustive()
    }
}

impl EnrollRequest {
    /// What both keys sign; the token as its digest.
    pub fn statement(&self, token_digest: &str) -> String {
        let or_none = |text: Option<&str>| text.unwrap_or("-").to_owned();
        let fields = [
            "enroll".to_owned(),
            self.challenge.clone(),
            self.public_key.to_string(),
            token_digest.to_owned(),
            or_none(self.node.as_ref().map(NodeId::as_str)),
            or_none(self.machine.as_ref().map(Digest::as_str)),
            or_none(self.mark.as_ref().map(Mark::as_str)),
            self.next_mark.to_string(),
            or_none(self.new_public_key.as_ref().map(PublicKey::as_str)),
        ];
        signed(&fields)
    }
}

/// Says that the broker has taken the credential.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfirmRequest {
    /// The key of the credential, which signs this.
    pub public_key: PublicKey,
    /// The challenge that was got for this key.
    #[schemars(length(min = 1, max = 256))]
    pub challenge: String,
    /// The key's signature over the challenge and the node.
    pub signature: Signature,
    /// The node.
    pub node: NodeId,
}

impl ConfirmRequest {
    /// What the key signs.
    pub fn statement(&self) -> String {
        signed(&["confirm".to_owned(), self.challenge.clone(), self.public_key.to_string(), self.node.to_string()])
    }
}

/// The fields one a line: none of them can hold the end of one.
fn signed(fields: &[String]) -> String {
    let lines: Vec<String> = fields.iter().map(|field| field.replace('\n', " ")).collect();
    format!("{SIGNED_FOR}\n{}", lines.join("\n"))
}

/// A credential for a node, without its private half, which the node alone has.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct NodeCredential {
    /// The node's id.
    pub node: NodeId,
    /// Its region.
    pub region: Region,
    /// The signed claims, to be shown to the broker with a signature by the node's key.
    pub jwt: String,
    /// When they end.
    pub expires_at: Timestamp,
    /// How long they last from now on, in milliseconds, whatever the node's clock says.
    pub valid_for_ms: u64,
    /// The broker's addresses.
    pub servers: Vec<String>,
    /// The authority that signed the broker's certificate (PEM); absent where it is one that systems know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// Whether this is for a few minutes only, until the node has confirmed that the broker takes it.
    pub to_confirm: bool,
}

impl fmt::Debug for NodeCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeCredential").field("node", &self.node).field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_another_form_are_refused_and_their_schema_says_the_same() {
        let key = format!("U{}", "A".repeat(55));
        assert!(key.parse::<PublicKey>().is_ok());
        for bad in [
            "",
            "U",
            &format!("A{}", "A".repeat(55)),
            &format!("U{}", "a".repeat(55)),
            &format!("{key}A"),
            &format!("U{}1", "A".repeat(54)),
        ] {
            assert!(bad.parse::<PublicKey>().is_err(), "{bad}");
        }
        assert!("-".repeat(86).parse::<Signature>().is_ok() && "=".repeat(86).parse::<Signature>().is_err());
        assert!(Mark::new().as_str().parse::<Mark>().is_ok() && "G".repeat(32).parse::<Mark>().is_err());
        assert_ne!(Mark::new(), Mark::new());
    }

    #[test]
    fn every_field_is_signed_and_no_line_can_be_smuggled_in() {
        let request = EnrollRequest {
            token: Some("pe_secret".to_owned()),
            public_key: format!("U{}", "A".repeat(55)).parse().unwrap(),
            challenge: "c".to_owned(),
            signature: "A".repeat(86).parse().unwrap(),
            node: None,
            machine: None,
            mark: None,
            next_mark: "0".repeat(32).parse().unwrap(),
            new_public_key: None,
            new_signature: None,
        };
        let plain = request.statement("d");
        assert!(!plain.contains("pe_secret") && !format!("{request:?}").contains("pe_secret"));
        let others = [
            EnrollRequest { challenge: "x".to_owned(), ..request.clone() },
            EnrollRequest { node: Some("n".parse().unwrap()), ..request.clone() },
            EnrollRequest { machine: Some("0".repeat(64).parse().unwrap()), ..request.clone() },
            EnrollRequest { mark: Some("1".repeat(32).parse().unwrap()), ..request.clone() },
            EnrollRequest { next_mark: "1".repeat(32).parse().unwrap(), ..request.clone() },
            EnrollRequest { new_public_key: Some(request.public_key.clone()), ..request.clone() },
        ];
        for other in others {
            assert_ne!(other.statement("d"), plain, "{other:?}");
        }
        assert_ne!(request.statement("e"), plain);
        let lines = plain.lines().count();
        assert_eq!(EnrollRequest { challenge: "a\nb".to_owned(), ..request }.statement("d").lines().count(), lines);
    }
}
