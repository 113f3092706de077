//! Tokens and keys, as `tests/fuzz` calls their readers.

use data_encoding::BASE64URL_NOPAD;
use probeops_shared::access::Limits;

use super::keyset::KeySet;
use super::{Verifier, claims, keyset};

/// What checks tokens with the keys of a JWKS; how many they are.
#[derive(Debug)]
pub struct Checker(Verifier, KeySet);

impl Checker {
    /// Reads the keys.
    pub fn new(jwks: &[u8], issuer: &str, audience: &str) -> Result<Self, String> {
        let keys = keyset::parse_jwks(jwks)?;
        Ok(Self(Verifier::new(KeySet::default(), issuer, audience), keys))
    }

    /// How many keys there are.
    pub fn keys(&self) -> usize {
        self.1.len()
    }

    /// Whom a token names.
    pub fn check(&self, token: &str) -> Result<String, String> {
        self.0.check(token, &super::header(token)?, &self.1).map(|identity| identity.name)
    }
}

/// Whom the payload of a token names whose signature holds: name, number of scopes, limits.
pub fn claimed(payload: &[u8]) -> Result<(String, usize, Limits), String> {
    let identity = claims::identity(&BASE64URL_NOPAD.encode(payload))?;
    Ok((identity.name, identity.scopes.len(), identity.limits))
}
