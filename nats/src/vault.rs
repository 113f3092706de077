//! Keys and signed claims: the operator, its accounts, and the credentials they sign.
//!
//! Whoever reads the keys folder can sign anything. It is read by the programs that mint and revoke, and by no node.

pub mod accounts;
pub mod credentials;
pub mod ledger;

use std::collections::BTreeSet;
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
use crate::vault::ledger::{CLOCK_MARGIN, Kind, Ledger, Signed};

/// How long a credential lasts unless told otherwise, and at most.
pub const CREDENTIAL_LIFETIME: Duration = Duration::from_hours(30 * 24);
/// The name of the operator in its own claims.
const OPERATOR: &str = "operator";
/// The largest credential, in bytes: with the rest of a client's greeting it must fit the broker's longest line (16 KB).
const USER_JWT_BYTES_MAX: usize = 12 * 1024;
/// The most revocations at once: with more the account's claims would outgrow the broker's largest message.
const REVOCATIONS_MAX: usize = 8000;
/// How many of them APIs may ask for: one that is taken over does not keep the sentry and the operator from revoking.
const REVOCATIONS_OF_APIS_MAX: usize = 7000;

/// Why a credential is not signed.
#[derive(Debug, thiserror::Error)]
pub enum Unsigned {
    /// A key that was taken back has no second life: a newer credential of it would be accepted.
    #[error("the key {0} was revoked; whoever comes back makes a new one")]
    Revoked(String),
    /// The key is for something else.
    #[error("the key {key} is one of {held}, and cannot be one of {wanted} too; make another")]
    OfAnother {
        /// Its public half.
        key: String,
        /// What it is for.
        held: Kind,
        /// What it was to be for.
        wanted: Kind,
    },
    /// What was asked for cannot be.
    #[error("{0:#}")]
    Wrong(anyhow::Error),
    /// The signing keys, or what was signed with them, cannot be used.
    #[error("the signing keys cannot be used: {0:#}")]
    Unusable(anyhow::Error),
}

/// The signing keys of one data folder.
#[derive(Debug)]
pub struct Vault {
    layout: Layout,
    ledger: Ledger,
    operator_signing: KeyPair,
    system: AccountKeys,
    application: AccountKeys,
    store: AccountKeys,
    keepers: AccountKeys,
    commands: AccountKeys,
    audit: AccountKeys,
    readers: AccountKeys,
    collectors: AccountKeys,
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
            ledger: Ledger(layout.ledger_dir()),
            operator_signing,
            system: account(AccountName::System)?,
            application: account(AccountName::Application)?,
            store: account(AccountName::Store)?,
            keepers: account(AccountName::Keepers)?,
            commands: account(AccountName::Commands)?,
            audit: account(AccountName::Audit)?,
            readers: account(AccountName::Readers)?,
            collectors: account(AccountName::Collectors)?,
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

    /// Declares every credential of `public_key` void, in the account that they are of; one of which nothing is known counts as a node's or a
    /// service's. Servers learn it by [`crate::keymaster::push`] of the claims this returns.
    pub fn revoke(&self, public_key: &str) -> Result<String> {
        let account = self.signed(public_key)?.map_or(AccountName::Application, |signed| signed.account);
        if account == AccountName::System {
            bail!(
                "{public_key} is of the servers' own account, whose claims are in their configuration: it ends with its credential, or with a new \
                 data folder"
            );
        }
        self.revoke_in(account, &[public_key.to_owned()]).map(|(claims, _)| claims)
    }

    /// The same, and of a key of which nothing is known in every account that it could be of.
    pub fn revoke_anywhere(&self, public_key: &str) -> Result<Vec<String>> {
        if self.signed(public_key)?.is_some() {
            return Ok(vec![self.revoke(public_key)?]);
        }
        AccountName::PUSHED.into_iter().map(|name| Ok(self.revoke_in(name, &[public_key.to_owned()])?.0)).collect()
    }

    /// The same of several keys of nodes and services; and which of them were not revoked before.
    pub fn revoke_all(&self, public_keys: &[String]) -> Result<(String, BTreeSet<String>)> {
        self.revoke_in(AccountName::Application, public_keys)
    }

    fn revoke_in(&self, name: AccountName, public_keys: &[String]) -> Result<(String, BTreeSet<String>)> {
        public_keys.iter().try_for_each(|key| check_user(key))?;
        let _lock = self.layout.lock_vault()?;
        let held = self.account_jwt(name)?;
        let mut account = self.read_account(name, &held)?;
        let now = Timestamp::now();
        let (before, mut anew) = (account.revocations.len(), BTreeSet::new());
        for key in public_keys {
            // One that is revoked is made no other credential: said again, it changes nothing.
            if account.revocations.contains_key(key) {
                continue;
            }
            match self.ledger.read(key)? {
                Some(signed) if signed.revoked && !signed.may_be_in_force(now) => continue,
                Some(signed) if !signed.may_be_in_force(now) => self.ledger.write(key, &Signed { revoked: true, ..signed })?,
                signed => {
                    // Of a clock that was set back: what was signed later by it is void, too.
                    let until = signed.map_or(now, |signed| signed.signed_at.max(now));
                    account.revocations.insert(key.clone(), until.unix_s());
                }
            }
            anew.insert(key.clone());
        }
        if account.revocations.len() == before {
            return Ok((held, anew));
        }
        if account.revocations.len() > REVOCATIONS_MAX {
            self.drop_ended(&mut account, now)?;
        }
        if account.revocations.len() > REVOCATIONS_MAX {
            bail!("{REVOCATIONS_MAX} credentials are revoked already, which is as many as the broker can be told; wait until some expire");
        }
        Ok((self.write_account(name, account)?, anew))
    }

    /// Has the broker told no more of keys of which every credential has ended, and forgets those of which all did so long ago.
    pub fn tidy(&self) -> Result<()> {
        let _lock = self.layout.lock_vault()?;
        let now = Timestamp::now();
        let (mut ended, mut left) = (0, 0);
        for name in AccountName::PUSHED {
            let mut account = self.read_account(name, &self.account_jwt(name)?)?;
            let before = account.revocations.len();
            self.drop_ended(&mut account, now)?;
            left += account.revocations.len();
            if account.revocations.len() < before {
                ended += before - account.revocations.len();
                self.write_account(name, account).map(drop)?;
            }
        }
        let forgotten = self.ledger.forget(now)?;
        tracing::info!(ended, left, forgotten, "revocations of credentials that have all ended are not kept any longer");
        Ok(())
    }

    /// Drops revocations of keys of which no credential can be in force. The ledger still has it that they are signed nothing more.
    fn drop_ended(&self, account: &mut Account, now: Timestamp) -> Result<()> {
        for (key, revoked_unix_s) in std::mem::take(&mut account.revocations) {
            let signed = self.ledger.read(&key)?;
            let in_force = match &signed {
                Some(signed) => signed.may_be_in_force(now),
                // Nobody knows what was signed for it.
                None => now.unix_s() < revoked_unix_s.saturating_add_unsigned((CREDENTIAL_LIFETIME + CLOCK_MARGIN).as_secs()),
            };
            if in_force {
                account.revocations.insert(key, revoked_unix_s);
            } else if let Some(signed) = signed {
                self.ledger.write(&key, &Signed { revoked: true, ..signed })?;
            }
        }
        Ok(())
    }

    /// Whether every credential of `public_key` made so far is void, and no other is made.
    pub fn is_revoked(&self, account: AccountName, public_key: &str) -> Result<bool> {
        let told = self.read_account(account, &self.account_jwt(account)?)?.revocations.contains_key(public_key);
        Ok(told || self.signed(public_key)?.is_some_and(|signed| signed.revoked))
    }

    /// Whether an API may have one more key revoked.
    pub fn has_room_for_apis(&self) -> Result<bool> {
        let name = AccountName::Application;
        Ok(self.read_account(name, &self.account_jwt(name)?)?.revocations.len() < REVOCATIONS_OF_APIS_MAX)
    }

    /// What was signed for a key; none where nothing was, or nothing has been in force for as long as a credential may last.
    pub fn signed(&self, public_key: &str) -> Result<Option<Signed>> {
        check_user(public_key)?;
        self.ledger.read(public_key)
    }

    /// Signs what `role` may for the public half of a key, which somebody else has; the claims and when they end.
    pub fn sign(&self, role: &Role, lifetime: Duration, public_key: &str) -> Result<(String, Timestamp), Unsigned> {
        let user = self.user(role, lifetime).map_err(Unsigned::Wrong)?;
        check_user(public_key).map_err(Unsigned::Wrong)?;
        // A revocation comes before or after all of this: what is signed before it is void by it, and nothing is signed after it.
        let _lock = self.layout.lock_vault().map_err(Unsigned::Unusable)?;
        if self.is_revoked(role.account(), public_key).map_err(Unsigned::Unusable)? {
            return Err(Unsigned::Revoked(public_key.to_owned()));
        }
        let (held, wanted) = (self.ledger.read(public_key).map_err(Unsigned::Unusable)?, Kind::of(role));
        if let Some(held) = held.as_ref().map(|held| held.kind).filter(|held| *held != wanted) {
            return Err(Unsigned::OfAnother { key: public_key.to_owned(), held, wanted });
        }
        // A key is revoked in one account.
        if let Some(held) = held.as_ref().map(|held| held.account).filter(|held| *held != role.account()) {
            return Err(Unsigned::Wrong(anyhow!("the key {public_key} is of account {}; make another", held.as_str())));
        }
        let (name, expires_at) = (role.name(), Timestamp::now().plus(lifetime));
        let mut claims = Claims::new(public_key.to_owned(), &name, Body::User(user));
        claims.expires_at_unix_s = Some(expires_at.unix_s());
        let jwt = claims.sign(&self.keys(role.account()).signing).with_context(|| format!("cannot sign credential `{name}`"));
        let jwt = jwt.map_err(Unsigned::Unusable)?;
        if jwt.len() > USER_JWT_BYTES_MAX {
            return Err(Unsigned::Wrong(anyhow!(
                "credential `{name}` would have {} bytes, and the broker takes {USER_JWT_BYTES_MAX}; grant fewer regions, tools or nodes",
                jwt.len()
            )));
        }
        // Written down before anybody has it.
        let signed = Signed::and(held.as_ref(), role, [Timestamp::now(), expires_at]);
        self.ledger.write(public_key, &signed).map_err(Unsigned::Unusable)?;
        Ok((jwt, expires_at))
    }

    fn user(&self, role: &Role, lifetime: Duration) -> Result<User> {
        let name = role.name();
        if lifetime.is_zero() || lifetime > CREDENTIAL_LIFETIME {
            bail!("the lifetime of credential `{name}` must be from 1 second to {} days", CREDENTIAL_LIFETIME.as_secs() / 86400);
        }
        let permissions = role.permissions().map_err(|detail| anyhow!(detail))?;
        if permissions.publish.is_empty() || permissions.subscribe.is_empty() {
            bail!("credential `{name}` would allow everything; this is a fault of this program");
        }
        let count = |limit: Option<usize>| limit.map_or(UNLIMITED, |limit| i64::try_from(limit).unwrap_or(i64::MAX));
        Ok(User {
            issuer_account: self.account_key(role.account()).to_owned(),
            publish: Allow { allow: permissions.publish },
            subscribe: Allow { allow: permissions.subscribe },
            subs: count(permissions.max_subscriptions),
            data: UNLIMITED,
            payload: count(permissions.max_payload_bytes),
            allowed_connection_types: permissions.transports.iter().copied().map(Transport::as_str).map(str::to_owned).collect(),
        })
    }

    fn sign_user(&self, role: &Role, lifetime: Duration, key: &KeyPair) -> Result<Credentials> {
        let (jwt, expires_at) = self.sign(role, lifetime, &key.public_key())?;
        Credentials::new(jwt, key, role.name(), expires_at)
    }

    fn keys(&self, name: AccountName) -> &AccountKeys {
        match name {
            AccountName::System => &self.system,
            AccountName::Application => &self.application,
            AccountName::Store => &self.store,
            AccountName::Keepers => &self.keepers,
            AccountName::Commands => &self.commands,
            AccountName::Audit => &self.audit,
            AccountName::Readers => &self.readers,
            AccountName::Collectors => &self.collectors,
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
        let mut wanted = accounts::claims(name, &self.keys(name).signing.public_key(), |name| self.account_key(name));
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

fn check_user(public_key: &str) -> Result<()> {
    let key = KeyPair::from_public_key(public_key).ok().filter(|key| key.key_pair_type() == KeyPairType::User);
    key.map(drop).ok_or_else(|| anyhow!("`{public_key}` is not the public key of a user (U…)"))
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
