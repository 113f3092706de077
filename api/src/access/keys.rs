//! API keys: `pk_<id>_<secret><checksum>`, of which only a hash is kept.
//!
//! The secret is 32 random bytes, so a plain SHA-256 cannot be searched; the checksum tells a mistyped key from an unknown one.

use data_encoding::{Encoding, HEXLOWER, Specification};
use probeops_shared::access::{Limits, Scope};
use probeops_shared::timestamp::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::sync::LazyLock;
use subtle::ConstantTimeEq;

use crate::access::crc::crc32;

const PREFIX: &str = "pk_";
/// An id has so many characters.
const ID_LENGTH: usize = 10;
/// So many random bytes make the secret.
const SECRET_BYTES: usize = 32;
/// A secret has so many characters.
const SECRET_LENGTH: usize = 52;
/// A checksum has so many characters.
const CHECKSUM_LENGTH: usize = 8;
/// A key's name may be so long.
pub const NAME_LENGTH_MAX: usize = 64;

/// Lower-case base 32 without padding: one word for whoever selects it by double click.
static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification = Specification::new();
    specification.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    specification.encoding().unwrap_or(data_encoding::BASE32_NOPAD)
});

/// What is kept of a key, in bucket KEYS under its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// Its id, the second part of the key.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// SHA-256 of the whole key, in hexadecimal.
    pub sha256: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// What narrows that.
    #[serde(default)]
    pub limits: Limits,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// When it ends; absent where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// When it was revoked; absent while it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
    /// The principal of whose allowance of changes its own are taken; absent where it has one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts_with: Option<String>,
}

/// A key as it is shown: without what could be used to check guesses.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Key")]
pub struct KeyView {
    /// Its id, the second part of the key; its principal is `key:` and this.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// What narrows that.
    pub limits: Limits,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// When it ends; absent where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// When it was revoked; absent while it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
}

impl KeyRecord {
    /// Whether it is neither revoked nor expired.
    pub fn is_in_force(&self) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|at| at > Timestamp::now())
    }
}

impl From<&KeyRecord> for KeyView {
    fn from(record: &KeyRecord) -> Self {
        let KeyRecord { id, name, sha256: _, scopes, limits, created_at, created_by, expires_at, revoked_at, counts_with: _ } =
            record.clone();
        Self { id, name, scopes, limits, created_at, created_by, expires_at, revoked_at }
    }
}

/// A new key. The text is shown once and kept nowhere.
#[derive(Clone)]
pub struct Minted {
    /// The key itself.
    pub key: String,
    /// What is kept of it.
    pub record: KeyRecord,
}

impl std::fmt::Debug for Minted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Minted").field("record", &self.record).finish_non_exhaustive()
    }
}

/// What a new key is to be.
#[derive(Clone, Debug, Default)]
pub struct NewKey {
    /// What it is for.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// What narrows that.
    pub limits: Limits,
    /// Who makes it.
    pub created_by: String,
    /// When it ends; it does not where this is absent.
    pub expires_at: Option<Timestamp>,
    /// The principal of whose allowance of changes its own are taken; it has its own where this is absent.
    pub counts_with: Option<String>,
}

/// A new id, and the text of a secret with it: prefix, id, `_`, secret and checksum.
pub(crate) fn new_text(prefix: &str) -> (String, String) {
    let id: String = BASE32.encode(&rand::random::<[u8; 8]>()).chars().take(ID_LENGTH).collect();
    let secret = BASE32.encode(&rand::random::<[u8; SECRET_BYTES]>());
    let unchecked = format!("{prefix}{id}_{secret}");
    let text = format!("{unchecked}{:08x}", crc32(unchecked.as_bytes()));
    (id, text)
}

/// What is wrong with the text of a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is too short, too long, or of another kind.
    Form,
    /// Its checksum does not fit.
    Checksum,
    /// Its id cannot be one.
    Id,
}

/// The id in the text of a secret that is whole.
pub(crate) fn id_in<'a>(text: &'a str, prefix: &str) -> Result<&'a str, Fault> {
    let whole = text.len() == prefix.len() + ID_LENGTH + 1 + SECRET_LENGTH + CHECKSUM_LENGTH;
    let id = text.strip_prefix(prefix).and_then(|rest| rest.split_once('_')).map(|(id, _)| id);
    let (true, Some(id)) = (whole && text.is_ascii(), id) else { return Err(Fault::Form) };
    let (unchecked, checksum) = text.split_at(text.len() - CHECKSUM_LENGTH);
    if checksum != format!("{:08x}", crc32(unchecked.as_bytes())) {
        return Err(Fault::Checksum);
    }
    if is_id(id) { Ok(id) } else { Err(Fault::Id) }
}

/// Makes a key. To be of use, its record goes to bucket KEYS under its id.
pub fn mint(new: NewKey) -> Minted {
    let (id, key) = new_text(PREFIX);
    let NewKey { name, scopes, limits, created_by, expires_at, counts_with } = new;
    let (sha256, created_at) = (hash(&key), Timestamp::now());
    let record = KeyRecord { id, name, sha256, scopes, limits, created_at, created_by, expires_at, revoked_at: None, counts_with };
    Minted { key, record }
}

/// Refuses a key's name that is empty, long, or would spoil a listing.
pub fn check_name(name: &str) -> Result<(), String> {
    let length = name.chars().count();
    if length == 0 || length > NAME_LENGTH_MAX || name.trim() != name || name.chars().any(char::is_control) {
        return Err(format!(
            "a key's name must be 1 to {NAME_LENGTH_MAX} printable characters that say what it is for, without spaces at its ends"
        ));
    }
    Ok(())
}

/// Whether a credential is meant to be an API key.
pub(super) fn looks_like_key(credential: &str) -> bool {
    credential.starts_with(PREFIX)
}

/// The id of a key that is whole, or what is wrong with it.
pub fn id_of(key: &str) -> Result<&str, &'static str> {
    id_in(key, PREFIX).map_err(|fault| match fault {
        Fault::Form => "the API key is cut off or has something added: it is pk_, an id of 10 characters, _, and 60 more",
        Fault::Checksum => "the API key is mistyped: its checksum does not fit",
        Fault::Id => "the API key is mistyped: its id has other characters than a-z and 0-9",
    })
}

/// Whether a text can be a key's id.
pub fn is_id(text: &str) -> bool {
    text.len() == ID_LENGTH && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// Whether this is the key that the record was made with, in constant time.
pub fn is_key_of(key: &str, record: &KeyRecord) -> bool {
    is_hashed(key, &record.sha256)
}

/// Whether a secret has this hash, in constant time.
pub(crate) fn is_hashed(secret: &str, sha256: &str) -> bool {
    hash(secret).as_bytes().ct_eq(sha256.as_bytes()).into()
}

/// SHA-256 of a secret, in hexadecimal.
pub(crate) fn hash(key: &str) -> String {
    HEXLOWER.encode(&Sha256::digest(key.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minted() -> Minted {
        mint(NewKey { name: "n8n".to_owned(), scopes: vec![Scope::JobsWrite], ..NewKey::default() })
    }

    #[test]
    fn a_key_is_known_by_its_record_and_by_no_other() {
        let (mine, other) = (minted(), minted());
        assert_eq!(id_of(&mine.key), Ok(mine.record.id.as_str()));
        assert!(is_key_of(&mine.key, &mine.record) && !is_key_of(&mine.key, &other.record));
        let kept = serde_json::to_string(&mine.record).unwrap() + &serde_json::to_string(&KeyView::from(&mine.record)).unwrap();
        let secret = &mine.key[14..];
        assert!(!kept.contains(secret), "the secret is kept nowhere");
    }

    #[test]
    fn a_key_has_the_form_that_secret_scanners_look_for() {
        let key = minted().key;
        assert_eq!(key.len(), 74);
        assert!(key.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'), "{key}");
    }

    #[test]
    fn every_single_mistyped_character_is_noticed() {
        let key = minted().key;
        for at in 0..key.len() {
            let mut bytes = key.clone().into_bytes();
            bytes[at] = if bytes[at] == b'x' { b'y' } else { b'x' };
            assert!(id_of(std::str::from_utf8(&bytes).unwrap()).is_err(), "character {at}");
        }
        for broken in ["pk_", &key[..73], &format!("{key}0"), "pk_a_b", &format!("pk_{}", "ü".repeat(35))] {
            assert!(id_of(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn a_record_with_a_scope_or_limit_nobody_knows_is_no_record() {
        let record = serde_json::to_value(minted().record).unwrap();
        for (pointer, value) in [("/scopes/0", "jobs:all"), ("/limits", "")] {
            let mut record = record.clone();
            *record.pointer_mut(pointer).unwrap() = value.into();
            assert!(serde_json::from_value::<KeyRecord>(record).is_err(), "{pointer}");
        }
        let mut record = record.clone();
        record["limits"]["speed"] = 1.into();
        assert!(serde_json::from_value::<KeyRecord>(record).is_err());
    }

    #[test]
    fn names_that_would_spoil_a_listing_are_refused() {
        assert!(check_name("n8n production").is_ok());
        for bad in ["", " x", "a\nb", &"x".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
