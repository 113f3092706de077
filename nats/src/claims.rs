//! The claims of NATS: signed JSON that makes an operator, an account or a user (JWT version 2).
//!
//! Only what ProbeOps uses is modelled, and all of it is checked on the way in: what cannot be understood is refused.

use std::collections::BTreeMap;

use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD};
use nkeys::{KeyPair, KeyPairType};
use probeops_shared::timestamp::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

const HEADER: &str = r#"{"typ":"JWT","alg":"ed25519-nkey"}"#;
/// The largest token that is read: the broker takes no larger message.
const TOKEN_BYTES_MAX: usize = 1024 * 1024;
/// No limit, in the broker's words.
pub const UNLIMITED: i64 = -1;

/// Why a token is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimsError {
    /// It is not a NATS JWT of version 2.
    #[error("it is not a NATS JWT ({0})")]
    Malformed(String),
    /// It is not what its issuer signed.
    #[error("its signature is wrong")]
    Signature,
    /// Somebody else signed it.
    #[error("it was signed by {0}, who may not sign it")]
    Issuer(String),
    /// Its time is over.
    #[error("it expired at {0}")]
    Expired(Timestamp),
    /// It could not be signed.
    #[error("it cannot be signed ({0})")]
    Signing(String),
}

/// What is claimed, of whom, by whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The public key it speaks of.
    #[serde(rename = "sub")]
    pub subject: String,
    /// Its name.
    pub name: String,
    /// The public key that signed it.
    #[serde(rename = "iss", default)]
    pub issuer: String,
    /// When it was signed, in seconds since the Unix epoch.
    #[serde(rename = "iat", default)]
    pub issued_at_unix_s: i64,
    /// When it ends, in seconds since the Unix epoch; absent when never.
    #[serde(rename = "exp", default, skip_serializing_if = "Option::is_none")]
    pub expires_at_unix_s: Option<i64>,
    /// A digest of the rest.
    #[serde(rename = "jti", default)]
    pub id: String,
    /// What is claimed.
    #[serde(rename = "nats")]
    pub body: Versioned,
}

/// A body with the version of its form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versioned {
    version: u8,
    /// What is claimed.
    #[serde(flatten)]
    pub body: Body,
}

/// The kinds of claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Body {
    /// An operator: whom servers obey.
    Operator(Operator),
    /// An account: a space of subjects.
    Account(Box<Account>),
    /// A user: one credential.
    User(User),
}

/// Whom servers obey.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operator {
    /// The account of the servers themselves.
    pub system_account: String,
    /// Keys that may sign accounts.
    #[serde(default)]
    pub signing_keys: Vec<String>,
    /// Only those keys may.
    #[serde(default)]
    pub strict_signing_key_usage: bool,
}

/// A space of subjects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// What it may use.
    pub limits: AccountLimits,
    /// Keys that may sign users.
    #[serde(default)]
    pub signing_keys: Vec<String>,
    /// What it takes from other accounts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub imports: Vec<Import>,
    /// What it offers to other accounts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exports: Vec<Export>,
    /// Users by public key: what was signed at that second or before is void.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub revocations: BTreeMap<String, i64>,
}

/// What an account may use; [`UNLIMITED`] for no limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the words are those of the broker's documentation")]
pub struct AccountLimits {
    pub subs: i64,
    pub data: i64,
    pub payload: i64,
    pub imports: i64,
    pub exports: i64,
    pub wildcards: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disallow_bearer: bool,
    pub conn: i64,
    pub leaf: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mem_storage: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub disk_storage: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub streams: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub consumer: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// A service or messages offered by another account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// Its name.
    pub name: String,
    /// Its subject.
    pub subject: String,
    /// The account that offers it.
    pub account: String,
    /// The subject here; the same when empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub local_subject: String,
    /// `service` or `stream`.
    #[serde(rename = "type")]
    pub kind: String,
}

/// A service or messages offered to other accounts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// Its name.
    pub name: String,
    /// Its subject.
    pub subject: String,
    /// `service` or `stream`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `Singleton`: one answer for each request; `Stream`: any number; empty for messages.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub response_type: String,
    /// How long after the last answer there may be another, in nanoseconds; the broker's default when 0.
    #[serde(rename = "response_threshold", default, skip_serializing_if = "is_zero")]
    pub response_threshold_ns: i64,
}

/// One credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The account it belongs to: a signing key of it has signed.
    pub issuer_account: String,
    /// What it may publish. Never empty: for the broker an empty list means everything.
    #[serde(rename = "pub")]
    pub publish: Allow,
    /// What it may subscribe, `subject queue` for a queue group. Never empty either.
    #[serde(rename = "sub")]
    pub subscribe: Allow,
    /// How many subscriptions it may have.
    pub subs: i64,
    /// Always unlimited.
    pub data: i64,
    /// The largest message it may publish, in bytes.
    pub payload: i64,
    /// `STANDARD`, `WEBSOCKET`.
    pub allowed_connection_types: Vec<String>,
}

/// A list of subjects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allow {
    /// The subjects.
    #[serde(default)]
    pub allow: Vec<String>,
}

impl Claims {
    /// Claims that are not signed yet.
    pub fn new(subject: String, name: impl Into<String>, body: Body) -> Self {
        Self {
            subject,
            name: name.into(),
            issuer: String::new(),
            issued_at_unix_s: 0,
            expires_at_unix_s: None,
            id: String::new(),
            body: Versioned { version: 2, body },
        }
    }

    /// Signs them, as of now.
    pub fn sign(mut self, signer: &KeyPair) -> Result<String, ClaimsError> {
        let failed = |error: &dyn std::error::Error| ClaimsError::Signing(error.to_string());
        self.issuer = signer.public_key();
        self.issued_at_unix_s = Timestamp::now().unix_s();
        self.id = String::new();
        let unsigned = serde_json::to_vec(&self).map_err(|error| failed(&error))?;
        self.id = BASE32_NOPAD.encode(&Sha256::digest(unsigned));
        let payload = serde_json::to_vec(&self).map_err(|error| failed(&error))?;
        let content = format!("{}.{}", BASE64URL_NOPAD.encode(HEADER.as_bytes()), BASE64URL_NOPAD.encode(&payload));
        let signature = signer.sign(content.as_bytes()).map_err(|error| failed(&error))?;
        Ok(format!("{content}.{}", BASE64URL_NOPAD.encode(&signature)))
    }

    /// Reads a token that one of `issuers` signed and that has not expired.
    pub fn verify(token: &str, issuers: &[String]) -> Result<Self, ClaimsError> {
        let claims = Self::read(token)?;
        if !issuers.contains(&claims.issuer) {
            return Err(ClaimsError::Issuer(claims.issuer));
        }
        match claims.expires_at() {
            Some(end) if end <= Timestamp::now() => Err(ClaimsError::Expired(end)),
            Some(_) | None => Ok(claims),
        }
    }

    /// Reads a token that its own issuer has signed, whoever that is, expired or not.
    pub fn read(token: &str) -> Result<Self, ClaimsError> {
        let malformed = |what: &str| ClaimsError::Malformed(what.to_owned());
        if token.len() > TOKEN_BYTES_MAX {
            return Err(malformed("too long"));
        }
        let parts: Vec<&str> = token.split('.').collect();
        let [header, payload, signature] = parts.as_slice() else { return Err(malformed("not three parts")) };
        if BASE64URL_NOPAD.decode(header.as_bytes()).ok().is_none_or(|header| !header_is_known(&header)) {
            return Err(malformed("unknown header"));
        }
        let signature = BASE64URL_NOPAD.decode(signature.as_bytes()).map_err(|_| malformed("damaged signature"))?;
        let json = BASE64URL_NOPAD.decode(payload.as_bytes()).map_err(|_| malformed("damaged payload"))?;
        let claims: Self = serde_json::from_slice(&json).map_err(|error| ClaimsError::Malformed(error.to_string()))?;
        if claims.body.version != 2 {
            return Err(malformed("not version 2"));
        }
        let issuer = KeyPair::from_public_key(&claims.issuer).map_err(|_| malformed("damaged issuer"))?;
        let subject = KeyPair::from_public_key(&claims.subject).map_err(|_| malformed("damaged subject"))?;
        if !claims.kinds_fit(&issuer.key_pair_type(), &subject.key_pair_type()) {
            return Err(malformed("a key of the wrong kind"));
        }
        issuer.verify(format!("{header}.{payload}").as_bytes(), &signature).map_err(|_| ClaimsError::Signature)?;
        Ok(claims)
    }

    /// When they end.
    pub fn expires_at(&self) -> Option<Timestamp> {
        Timestamp::from_unix_ms(self.expires_at_unix_s?.saturating_mul(1000))
    }

    fn kinds_fit(&self, issuer: &KeyPairType, subject: &KeyPairType) -> bool {
        let (wanted_issuer, wanted_subject) = match &self.body.body {
            Body::Operator(_) => (KeyPairType::Operator, KeyPairType::Operator),
            Body::Account(_) => (KeyPairType::Operator, KeyPairType::Account),
            Body::User(_) => (KeyPairType::Account, KeyPairType::User),
        };
        *issuer == wanted_issuer && *subject == wanted_subject
    }
}

fn header_is_known(header: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Header {
        typ: String,
        alg: String,
    }
    serde_json::from_slice::<Header>(header).is_ok_and(|header| header.typ == "JWT" && header.alg == "ed25519-nkey")
}

#[cfg(test)]
mod tests;
