//! What was signed for which key: whose it is, and when the last credential of it ends. A file for each key, below those that sign.
//!
//! By it the keymaster knows a key that an API may have revoked from one of the control plane's own, and how long a revocation has to be
//! remembered by the broker.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use probeops_shared::timestamp::Timestamp;
use serde::{Deserialize, Serialize};

use crate::layout::files::{self, Secrecy};
use crate::permissions::{AccountName, Role};
use crate::vault::CREDENTIAL_LIFETIME;

/// How far the clocks of the broker's servers may be behind ours: so much longer a credential is taken for one that is in force.
pub(super) const CLOCK_MARGIN: Duration = Duration::from_hours(1);
/// How long a key is known after its last credential has ended.
const KNOWN_FOR: Duration = CREDENTIAL_LIFETIME;

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A node.
    Node,
    /// A service.
    Service,
    /// The control plane itself: an API, the keymaster, a command.
    Part,
}

impl Kind {
    /// The kind of a role.
    pub(super) fn of(role: &Role) -> Self {
        match role {
            Role::Node { .. } => Self::Node,
            Role::Service { .. } => Self::Service,
            Role::Api { .. }
            | Role::Store { .. }
            | Role::FrontDoor
            | Role::Observer
            | Role::Registrar { .. }
            | Role::Recorder { .. }
            | Role::Collector { .. }
            | Role::Acknowledger
            | Role::Presence { .. }
            | Role::Sentry
            | Role::Keymaster
            | Role::Reloader
            | Role::KeymasterDesk
            | Role::Auditor
            | Role::Mirror
            | Role::Provisioner
            | Role::AuditProvisioner => Self::Part,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "a node",
            Self::Service => "a service",
            Self::Part => "the control plane",
        })
    }
}

/// What is known of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signed {
    /// What it is for.
    pub kind: Kind,
    /// The name in its newest credential.
    pub name: String,
    /// The account that is of.
    pub account: AccountName,
    /// When that was signed.
    pub signed_at: Timestamp,
    /// When the last of its credentials ends.
    pub expires_at: Timestamp,
    /// Whether it was revoked and is signed nothing more, though the broker need not know of it any more.
    #[serde(default)]
    pub revoked: bool,
}

impl Signed {
    /// Whether a server of the broker may still take a credential of it for one that is in force.
    pub(super) fn may_be_in_force(&self, now: Timestamp) -> bool {
        now < self.expires_at.plus(CLOCK_MARGIN)
    }

    /// The same key with one credential more.
    pub(super) fn and(held: Option<&Self>, role: &Role, [signed_at, expires_at]: [Timestamp; 2]) -> Self {
        // Set back, the clock would have it that an older credential ends later, or was signed earlier.
        let latest = |now: Timestamp, before: fn(&Self) -> Timestamp| held.map_or(now, |held| before(held).max(now));
        Self {
            kind: Kind::of(role),
            name: role.name(),
            account: role.account(),
            signed_at: latest(signed_at, |held| held.signed_at),
            expires_at: latest(expires_at, |held| held.expires_at),
            revoked: false,
        }
    }
}

/// The files. Whoever writes holds the lock of the keys.
#[derive(Clone, Debug)]
pub(super) struct Ledger(pub(super) PathBuf);

impl Ledger {
    /// What is known of a key, which must be one: it is a file's name.
    pub(super) fn read(&self, public_key: &str) -> Result<Option<Signed>> {
        let path = self.0.join(public_key);
        let Some(text) = files::read_if_exists(&path)? else { return Ok(None) };
        let read = serde_json::from_str(&text);
        read.map(Some).map_err(|error| anyhow!("{} is damaged: {error}; restore it from a backup, or remove it", path.display()))
    }

    pub(super) fn write(&self, public_key: &str, signed: &Signed) -> Result<()> {
        let text = serde_json::to_string(signed).context("what was signed cannot be written down")?;
        files::write(&self.0.join(public_key), text.as_bytes(), Secrecy::Secret)
    }

    /// Forgets keys of which nothing has been in force for long; how many.
    pub(super) fn forget(&self, now: Timestamp) -> Result<usize> {
        let failed = || format!("cannot look through {}", self.0.display());
        let mut forgotten = 0;
        for entry in std::fs::read_dir(&self.0).with_context(failed)? {
            let name = entry.with_context(failed)?.file_name();
            // What is damaged is said when it is asked for; what is being written aside is no key.
            let known = name.to_str().filter(|name| !name.starts_with('.')).and_then(|name| self.read(name).ok().flatten());
            if known.is_some_and(|signed| now >= signed.expires_at.plus(KNOWN_FOR)) {
                std::fs::remove_file(self.0.join(&name)).with_context(failed)?;
                forgotten += 1;
            }
        }
        Ok(forgotten)
    }
}
