//! A credential: signed claims and the private key they speak of, as one `.creds` file.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use nkeys::{KeyPair, KeyPairType};
use probeops_shared::timestamp::Timestamp;

use crate::claims::{Body, Claims};
use crate::layout::files;

/// What a program shows the broker.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The signed claims.
    pub jwt: String,
    /// The private key.
    pub seed: String,
    /// Its public half.
    pub public_key: String,
    /// Whom it names: a node, a caller, a service, or what it is for.
    pub name: String,
    /// When it ends.
    pub expires_at: Timestamp,
}

/// A key of a credential that somebody else signs.
pub struct UserKey(KeyPair);

impl fmt::Debug for UserKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UserKey").field(&self.public_key()).finish()
    }
}

impl UserKey {
    /// A new one.
    #[expect(clippy::new_without_default, reason = "no two are the same")]
    pub fn new() -> Self {
        Self(KeyPair::new_user())
    }

    /// Its public half, which is signed.
    pub fn public_key(&self) -> String {
        self.0.public_key()
    }

    /// The credential, with the claims that were signed for this key.
    pub fn credentials(&self, jwt: String) -> Result<Credentials> {
        let claims = Claims::read(&jwt)?;
        if claims.subject != self.public_key() {
            bail!("the claims speak of another key");
        }
        let expires_at = claims.expires_at().context("the claims never end")?;
        Credentials::new(jwt, &self.0, claims.name, expires_at)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Credentials");
        shown.field("name", &self.name).field("public_key", &self.public_key).field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

impl Credentials {
    pub(super) fn new(jwt: String, key: &KeyPair, name: String, expires_at: Timestamp) -> Result<Self> {
        let seed = key.seed().map_err(|error| anyhow!("cannot write the key of `{name}`: {error}"))?;
        Ok(Self { jwt, seed, public_key: key.public_key(), name, expires_at })
    }

    /// The standard form that every NATS client reads.
    pub fn to_creds_file(&self) -> String {
        format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
             ************************* IMPORTANT *************************\n\
             The seed below is the private key of this credential: whoever has it is `{}`.\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n\n\
             *************************************************************\n",
            self.jwt, self.name, self.seed
        )
    }

    /// Reads a `.creds` file, if there is one. Who signed it is for the broker to judge.
    pub fn read_if_exists(path: &Path) -> Result<Option<Self>> {
        let Some(text) = files::read_if_exists(path)? else { return Ok(None) };
        let read = Self::parse(&text);
        let unusable =
            |error| anyhow!("{} is not a usable credential: {error:#}; remove it and start again, which writes a new one", path.display());
        read.map(Some).map_err(unusable)
    }

    /// Reads the text of a `.creds` file.
    pub fn parse(text: &str) -> Result<Self> {
        let jwt = section(text, "NATS USER JWT").context("it has no part `NATS USER JWT`")?;
        let seed = section(text, "USER NKEY SEED").context("it has no part `USER NKEY SEED`")?;
        let key = KeyPair::from_seed(seed).map_err(|_| anyhow!("its seed is damaged"))?;
        let claims = Claims::read(jwt)?;
        if key.key_pair_type() != KeyPairType::User || claims.subject != key.public_key() || !matches!(claims.body.body, Body::User(_)) {
            bail!("its seed is not the key its claims speak of");
        }
        let expires_at = claims.expires_at().context("it never ends, so it is not one of ours")?;
        Ok(Self { jwt: jwt.to_owned(), seed: seed.to_owned(), public_key: claims.subject, name: claims.name, expires_at })
    }

    pub(super) fn key(&self) -> Result<KeyPair> {
        KeyPair::from_seed(&self.seed).map_err(|_| anyhow!("the seed of `{}` is damaged", self.name))
    }
}

fn section<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let after = text.split_once(&format!("-----BEGIN {name}-----"))?.1;
    let body = after.split_once("------END")?.0.trim();
    (!body.is_empty()).then_some(body)
}
