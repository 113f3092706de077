//! Keys and signed claims: the operator, its accounts, and the credentials they sign.
//!
//! Whoever reads the keys folder can sign anything. It is read by the programs that mint and revoke, and by no node.

pub mod accounts;
pub mod credentials;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nkeys::{KeyPair, KeyPairType};
use probeops_shared::timestamp::Timestamp;

use crate::claims::{Account, Allow, Body, Claims, Operator, UNLIMITED, User};
use crate::layout::Layout;
use crate::layout::files::{self, Secrecy};
use crate::permissions::{AccountName, Role, Transport};
use crate::vault::credentials::Credentials;

/// How long a credential lasts unless told otherwise, and at most: revocations are remembered for as long.
pub const CREDENTIAL_LIFETIME: Duration = Duration::from_hours(30 * 24);
/// The name of the operator in its own claims.
const OPERATOR: &str = "operator";
/// The largest credential, in bytes: with the rest of a client's greeting it must fit the broker's longest line (16 KB).
const USER_JWT_BYTES_MAX: usize = 12 * 1024;
/// The most revocations at once: with more the account's claims would outgrow the broker's largest message.
const REVOCATIONS_MAX: usize = 8000;

/// The signing keys of one data folder.
#[derive(Debug)]
pub struct Vault {
    layout: Layout,
    operator_signing: KeyPair,
    system: AccountKeys,
    application: AccountKeys,
    audit: AccountKeys,
}

#[derive(Debug)]
struct AccountKeys {
    public_key: String,
    signing: KeyPair,
}

impl Vault {
    /// Opens the keys of a data folder, or makes them where there are none.
    pub fn open_or_create(layout: &Layout) -> Result<Self> {
        layout.create()?;
        let _lock = layout.lock_vault()?;
        // Written last: where it is, the rest was whole once, and what is missing now was lost.
        let complete = files::read_if_exists(&layout.jwt(OPERATOR))?;
        let missing = if complete.is_some() { Missing::IsDamage } else { Missing::IsMade };
        let key = |name: &str, kind: KeyPairType| load_key(layout, name, kind, missing);
        let operator = key(OPERATOR, KeyPairType::Operator)?;
        let operator_signing = key("operator-signing", KeyPairType::Operator)?;
        let account = |name: AccountName| -> Result<AccountKeys> {
            let identity = key(name.as_str(), KeyPairType::Account)?;
            let signing = key(&format!("{}-signing", name.as_str()), KeyPairType::Account)?;
            Ok(AccountKeys { public_key: identity.public_key(), signing })
        };
        let vault = Self {
            layout: layout.clone(),
            operator_signing,
            system: account(AccountName::System)?,
            application: account(AccountName::Application)?,
            audit: account(AccountName::Audit)?,
        };
        for name in AccountName::ALL {
            vault.refresh_account(name, missing)?;
        }
        vault.refresh_operator(&operator, complete)?;
        Ok(vault)
    }

    /// Opens the keys of a data folder that has some.
    pub fn open(layout: &Layout) -> Result<Self> {
        if !layout.jwt(OPERATOR).exists() {
            bail!(
                "there are no keys in the data folder {}; start the broker with it first (`probeops up`), or name its folder with --data",
                layout.root().display()
            );
        }
        Self::open_or_create(layout)
    }

    /// The public key of an account.
    pub fn account_key(&self, name: AccountName) -> &str {
        &self.keys(name).public_key
    }

    /// The operator's claims, as servers are configured with them.
    pub fn operator_jwt(&self) -> Result<String> {
        self.read_jwt(OPERATOR)
    }

    /// An account's claims as they are now, whoever changed them last.
    pub fn account_jwt(&self, name: AccountName) -> Result<String> {
        self.read_jwt(name.as_str())
    }

    /// Makes a credential with a new key.
    pub fn mint(&self, role: &Role, lifetime: Duration) -> Result<Credentials> {
        self.sign_user(role, lifetime, &KeyPair::new_user())
    }

    /// Makes a credential and writes it to `path`. A key that the file already holds, and that was not revoked, is kept.
    pub fn mint_to(&self, path: &Path, role: &Role, lifetime: Duration) -> Result<Credentials> {
        let minted = match Credentials::read_if_exists(path)? {
            Some(held) if !self.is_revoked(role.account(), &held.public_key)? => self.sign_user(role, lifetime, &held.key()?)?,
            Some(_) | None => self.mint(role, lifetime)?,
        };
        files::write(path, minted.to_creds_file().as_bytes(), Secrecy::Secret)?;
        Ok(minted)
    }

    /// Declares every credential of `public_key` in the application account void. Servers learn it by [`crate::keymaster::push`] of the
    /// claims this returns.
    pub fn revoke(&self, public_key: &str) -> Result<String> {
        self.revoke_all(&[public_key.to_owned()])
    }

    /// The same of several keys.
    pub fn revoke_all(&self, public_keys: &[String]) -> Result<String> {
        for public_key in public_keys {
            let key = KeyPair::from_public_key(public_key).ok().filter(|key| key.key_pair_type() == KeyPairType::User);
            key.ok_or_else(|| anyhow!("`{public_key}` is not the public key of a user (U…)"))?;
        }
        let name = AccountName::Application;
        let _lock = self.layout.lock_vault()?;
        let held = self.account_jwt(name)?;
        let mut account = self.read_account(name, &held)?;
        let now_unix_s = Timestamp::now().unix_s();
        // A credential older than this has expired by itself.
        let oldest_unix_s = now_unix_s.saturating_sub_unsigned(CREDENTIAL_LIFETIME.as_secs());
        account.revocations.retain(|_, revoked_unix_s| *revoked_unix_s >= oldest_unix_s);
        // One that is revoked is made no other credential: said again, it changes nothing.
        let fresh: Vec<&String> = public_keys.iter().filter(|key| !account.revocations.contains_key(*key)).collect();
        if fresh.is_empty() {
            return Ok(held);
        }
        account.revocations.extend(fresh.into_iter().map(|key| (key.clone(), now_unix_s)));
        if account.revocations.len() > REVOCATIONS_MAX {
            bail!("{REVOCATIONS_MAX} credentials are revoked already, which is as many as the broker can be told; wait until some expire");
        }
        self.write_account(name, account)
    }

    /// Whether every credential of `public_key` made so far is void.
    pub fn is_revoked(&self, account: AccountName, public_key: &str) -> Result<bool> {
        Ok(self.read_account(account, &self.account_jwt(account)?)?.revocations.contains_key(public_key))
    }

    /// Signs what `role` may for the public half of a key, which somebody else has; the claims and when they end.
    pub fn sign(&self, role: &Role, lifetime: Duration, public_key: &str) -> Result<(String, Timestamp)> {
        let name = role.name();
        if lifetime.is_zero() || lifetime > CREDENTIAL_LIFETIME {
            bail!("the lifetime of credential `{name}` must be from 1 second to {} days", CREDENTIAL_LIFETIME.as_secs() / 86400);
        }
        let permissions = role.permissions().map_err(|detail| anyhow!(detail))?;
        if permissions.publish.is_empty() || permissions.subscribe.is_empty() {
            bail!("credential `{name}` would allow everything; this is a fault of this program");
        }
        let keys = self.keys(role.account());
        let count = |limit: Option<usize>| limit.map_or(UNLIMITED, |limit| i64::try_from(limit).unwrap_or(i64::MAX));
        let user = User {
            issuer_account: keys.public_key.clone(),
            publish: Allow { allow: permissions.publish },
            subscribe: Allow { allow: permissions.subscribe },
            subs: count(permissions.max_subscriptions),
            data: UNLIMITED,
            payload: count(permissions.max_payload_bytes),
            allowed_connection_types: permissions.transports.iter().copied().map(Transport::as_str).map(str::to_owned).collect(),
        };
        let expires_at = Timestamp::now().plus(lifetime);
        let mut claims = Claims::new(public_key.to_owned(), &name, Body::User(user));
        claims.expires_at_unix_s = Some(expires_at.unix_s());
        let jwt = claims.sign(&keys.signing).with_context(|| format!("cannot sign credential `{name}`"))?;
        if jwt.len() > USER_JWT_BYTES_MAX {
            bail!(
                "credential `{name}` would have {} bytes, and the broker takes {USER_JWT_BYTES_MAX}; grant fewer regions, tools or nodes",
                jwt.len()
            );
        }
        Ok((jwt, expires_at))
    }

    fn sign_user(&self, role: &Role, lifetime: Duration, key: &KeyPair) -> Result<Credentials> {
        let (jwt, expires_at) = self.sign(role, lifetime, &key.public_key())?;
        Credentials::new(jwt, key, role.name(), expires_at)
    }

    fn keys(&self, name: AccountName) -> &AccountKeys {
        match name {
            AccountName::System => &self.system,
            AccountName::Application => &self.application,
            AccountName::Audit => &self.audit,
        }
    }

    fn read_jwt(&self, name: &str) -> Result<String> {
        let path = self.layout.jwt(name);
        files::read_if_exists(&path)?.map(|jwt| jwt.trim().to_owned()).ok_or_else(|| damaged(&self.layout, &path, "it is missing"))
    }

    fn read_account(&self, name: AccountName, jwt: &str) -> Result<Account> {
        let broken = |what: &str| damaged(&self.layout, &self.layout.jwt(name.as_str()), what);
        let claims = Claims::verify(jwt, &[self.operator_signing.public_key()]).map_err(|error| broken(&error.to_string()))?;
        match claims.body.body {
            Body::Account(account) if claims.subject == self.keys(name).public_key => Ok(*account),
            Body::Account(_) | Body::Operator(_) | Body::User(_) => Err(broken("it speaks of another key")),
        }
    }

    fn write_account(&self, name: AccountName, account: Account) -> Result<String> {
        let claims = Claims::new(self.keys(name).public_key.clone(), name.as_str(), Body::Account(Box::new(account)));
        let jwt = claims.sign(&self.operator_signing).with_context(|| format!("cannot sign account {}", name.as_str()))?;
        files::write(&self.layout.jwt(name.as_str()), jwt.as_bytes(), Secrecy::Public)?;
        Ok(jwt)
    }

    /// Brings an account's claims to what this version wants of it, and keeps its revocations.
    fn refresh_account(&self, name: AccountName, missing: Missing) -> Result<()> {
        let mut wanted = accounts::claims(name, &self.keys(name).signing.public_key(), &self.audit.public_key);
        let path = self.layout.jwt(name.as_str());
        match (files::read_if_exists(&path)?, missing) {
            (Some(jwt), _) => {
                let held = self.read_account(name, jwt.trim())?;
                wanted.revocations.clone_from(&held.revocations);
                if held == wanted {
                    return Ok(());
                }
            }
            (None, Missing::IsMade) => {}
            (None, Missing::IsDamage) => return Err(damaged(&self.layout, &path, "it is missing")),
        }
        self.write_account(name, wanted).map(drop)
    }

    fn refresh_operator(&self, operator: &KeyPair, held: Option<String>) -> Result<()> {
        let path = self.layout.jwt(OPERATOR);
        let wanted = Body::Operator(Operator {
            system_account: self.system.public_key.clone(),
            signing_keys: vec![self.operator_signing.public_key()],
            strict_signing_key_usage: true,
        });
        if let Some(jwt) = held {
            let claims = Claims::verify(jwt.trim(), &[operator.public_key()]);
            let claims = claims.map_err(|error| damaged(&self.layout, &path, &error.to_string()))?;
            if claims.body.body == wanted {
                return Ok(());
            }
        }
        let jwt = Claims::new(operator.public_key(), "probeops", wanted).sign(operator).context("cannot sign the operator's claims")?;
        files::write(&path, jwt.as_bytes(), Secrecy::Public)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    IsMade,
    IsDamage,
}

fn load_key(layout: &Layout, name: &str, kind: KeyPairType, missing: Missing) -> Result<KeyPair> {
    let path = layout.key(name);
    match (files::read_if_exists(&path)?, missing) {
        (Some(seed), _) => {
            let key = KeyPair::from_seed(seed.trim()).map_err(|_| damaged(layout, &path, "it is not a seed"))?;
            if key.key_pair_type() != kind {
                return Err(damaged(layout, &path, "it is a key of another kind"));
            }
            Ok(key)
        }
        (None, Missing::IsMade) => {
            let key = KeyPair::new(kind);
            let seed = key.seed().map_err(|error| anyhow!("cannot make a key: {error}"))?;
            files::write(&path, seed.as_bytes(), Secrecy::Secret)?;
            Ok(key)
        }
        (None, Missing::IsDamage) => Err(damaged(layout, &path, "it is missing")),
    }
}

fn damaged(layout: &Layout, path: &Path, what: &str) -> anyhow::Error {
    anyhow!(
        "{} cannot be used: {what}; restore it from a backup, or remove the data folder {} to begin anew (all credentials then end)",
        path.display(),
        layout.root().display()
    )
}

#[cfg(test)]
mod tests;
