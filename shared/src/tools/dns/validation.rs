//! Whether an answer is proven by DNSSEC (RFC 4033, 5), and by which key that is trusted from the start.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE64, HEXLOWER_PERMISSIVE};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::time::Duration;

use crate::bounded::shown;
use crate::text::inline_schema;
use crate::tools::choice::choice;

/// How many different questions the proof of one answer may take.
pub const VALIDATION_QUERIES_MAX: u32 = 60;
/// How long the proof of one answer may take.
pub const VALIDATION_MAX: Duration = Duration::from_secs(20);

choice! {
    /// What is proven of an answer.
    ValidationState {
        /// It is signed, by a chain of keys that begins at the trust anchor.
        Secure = "secure",
        /// It is proven that it need not be signed.
        Insecure = "insecure",
        /// It should be signed, and is not, or not rightly.
        Bogus = "bogus",
        /// Nothing can be said: what the proof needs was not to be had.
        #[default]
        Indeterminate = "indeterminate",
    }
}

/// What is proven of an answer, by this node and not by the resolver.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DnsValidation {
    /// What this node has proven.
    pub state: ValidationState,
    /// Why it is not secure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether the proof is of there being no such name or no such records.
    pub negative: bool,
    /// What the resolver says for itself: that it has verified its answer (flag `ad`). It is not a proof.
    pub resolver_says_secure: bool,
    /// Where the proof begins.
    pub trust_anchors: Vec<String>,
    /// What the proof took, in order.
    pub queries: Vec<DnsValidationQuery>,
    /// How long it took, in milliseconds.
    pub elapsed_ms: f64,
}

/// A question that a proof needed an answer to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DnsValidationQuery {
    /// The name, with its final dot.
    pub name: String,
    /// The type.
    #[serde(rename = "type")]
    pub kind: String,
    /// What became of it: the name of a response code, or why there is no answer.
    pub result: String,
    /// How long it took, in milliseconds.
    pub elapsed_ms: f64,
}

/// What is printed of it, in the words of delv(1).
pub(super) fn line(validation: &DnsValidation) -> String {
    let reason = validation.reason.as_deref().unwrap_or("no reason is known");
    let negative = if validation.negative { "negative response, " } else { "" };
    match validation.state {
        ValidationState::Secure => format!("; {negative}fully validated\n"),
        ValidationState::Insecure => format!("; {negative}unsigned answer: {reason}\n"),
        ValidationState::Bogus | ValidationState::Indeterminate => format!(";; resolution failed: {}: {reason}\n", validation.state),
    }
}

/// A key of the root that is trusted from the start, or its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrustAnchor {
    /// A DS record (RFC 4034, 5).
    Digest {
        /// The tag of the key.
        key_tag: u16,
        /// The algorithm of the key.
        algorithm: u8,
        /// The kind of digest.
        digest_type: u8,
        /// The digest.
        digest: Vec<u8>,
    },
    /// A DNSKEY record (RFC 4034, 2).
    Key {
        /// 257, a key that signs keys.
        flags: u16,
        /// 3.
        protocol: u8,
        /// The algorithm.
        algorithm: u8,
        /// The key.
        key: Vec<u8>,
    },
}

const ANCHOR_WANTS: &str = "must be a DS or DNSKEY record of the root, such as `. IN DS 20326 8 2 E06D44B8…`";

impl FromStr for TrustAnchor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{ANCHOR_WANTS}, not {}", shown(&text.into()));
        let mut words = text.split_whitespace();
        let owner = words.next().ok_or_else(wrong)?;
        if owner != "." {
            return Err(format!("{}: a proof begins at the root, and its owner is `{owner}`", wrong()));
        }
        // TTL and class may be there or not.
        let kind =
            words.find(|word| !word.eq_ignore_ascii_case("IN") && !word.bytes().all(|byte| byte.is_ascii_digit())).ok_or_else(wrong)?;
        let mut number = || words.next().and_then(|word| word.parse::<u16>().ok()).ok_or_else(wrong);
        let (first, second, third) = (number()?, number()?, number()?);
        let (second, third) = (u8::try_from(second).map_err(|_| wrong())?, u8::try_from(third).map_err(|_| wrong())?);
        let data: String = words.collect();
        match kind.to_ascii_uppercase().as_str() {
            "DS" => {
                let digest = HEXLOWER_PERMISSIVE.decode(data.as_bytes()).ok().filter(|digest| !digest.is_empty()).ok_or_else(wrong)?;
                Ok(Self::Digest { key_tag: first, algorithm: second, digest_type: third, digest })
            }
            "DNSKEY" => {
                let key = BASE64.decode(data.as_bytes()).ok().filter(|key| !key.is_empty()).ok_or_else(wrong)?;
                Ok(Self::Key { flags: first, protocol: second, algorithm: third, key })
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for TrustAnchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Digest { key_tag, algorithm, digest_type, digest } => {
                write!(f, ". IN DS {key_tag} {algorithm} {digest_type} {}", data_encoding::HEXUPPER.encode(digest))
            }
            Self::Key { flags, protocol, algorithm, key } => {
                write!(f, ". IN DNSKEY {flags} {protocol} {algorithm} {}", BASE64.encode(key))
            }
        }
    }
}

impl Serialize for TrustAnchor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TrustAnchor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let text = value.as_str().ok_or_else(|| de::Error::custom(format!("{ANCHOR_WANTS}, not {}", shown(&value))))?;
        text.parse().map_err(de::Error::custom)
    }
}

inline_schema!(TrustAnchor, {"type": "string", "examples": [". IN DS 20326 8 2 E06D44B80B8F1D39A95C0B0D7C65D08458E880409BBC683457104237C7F8EC8D"]});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_anchor_is_read_as_zone_files_have_it() {
        for (text, normal) in [
            (".  172800 IN ds 20326 8 2 e06d44b8 0b8f", ". IN DS 20326 8 2 E06D44B80B8F"),
            (". DS 1 13 2 00", ". IN DS 1 13 2 00"),
            (". IN DNSKEY 257 3 13 AAAA BBBB", ". IN DNSKEY 257 3 13 AAAABBBB"),
        ] {
            assert_eq!(text.parse::<TrustAnchor>().unwrap().to_string(), normal);
            assert_eq!(normal.parse::<TrustAnchor>().unwrap().to_string(), normal);
        }
        for text in ["", ".", ". IN A 192.0.2.1", ". IN DS 1 2 3 xyz", ". IN DS 70000 8 2 00", ". IN DS 1 8 2", ". IN DNSKEY 257 3 13 A"] {
            let refusal = text.parse::<TrustAnchor>().unwrap_err();
            assert!(refusal.starts_with("must be a DS or DNSKEY record of the root"), "{refusal}");
        }
        assert!("test. IN DS 1 8 2 00".parse::<TrustAnchor>().unwrap_err().ends_with("begins at the root, and its owner is `test.`"));
    }
}
