//! A node's key: made on the node, shown to nobody, and what it signs.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use nkeys::{KeyPair, KeyPairType};
use probeops_shared::enroll::{PublicKey, Signature};

/// The key of a node, with its private half.
pub struct NodeKey(KeyPair);

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NodeKey").field(&self.0.public_key()).finish()
    }
}

impl NodeKey {
    /// A new one.
    pub fn new() -> Self {
        Self(KeyPair::new_user())
    }

    /// The one with this seed.
    pub fn from_seed(seed: &str) -> Result<Self, String> {
        match KeyPair::from_seed(seed.trim()) {
            Ok(pair) if pair.key_pair_type() == KeyPairType::User => Ok(Self(pair)),
            Ok(_) => Err("it is the seed of a key of another kind".to_owned()),
            Err(_) => Err("it is not a seed".to_owned()),
        }
    }

    /// Its seed: whoever has it is the node.
    pub fn seed(&self) -> Result<String, String> {
        self.0.seed().map_err(|error| error.to_string())
    }

    /// Its public half.
    pub fn public_key(&self) -> Result<PublicKey, String> {
        self.0.public_key().parse()
    }

    /// Its signature over a text.
    pub fn sign(&self, statement: &str) -> Result<Signature, String> {
        let signature = self.0.sign(statement.as_bytes()).map_err(|error| error.to_string())?;
        BASE64URL_NOPAD.encode(&signature).parse()
    }

    /// A `.creds` file of claims that speak of this key.
    pub fn creds_file(&self, jwt: &str) -> Result<String, String> {
        Ok(format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n{}\n------END USER \
             NKEY SEED------\n",
            self.seed()?
        ))
    }
}

impl Default for NodeKey {
    fn default() -> Self {
        Self::new()
    }
}

/// Why a signature shows nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unproven {
    /// The key is none: its own checksum does not fit.
    Key,
    /// The key has not signed this.
    Signature,
}

/// Refuses what cannot be the public half of a node's key.
pub fn check(public_key: &str) -> Result<(), String> {
    let is_user = KeyPair::from_public_key(public_key).is_ok_and(|key| key.key_pair_type() == KeyPairType::User);
    if is_user {
        Ok(())
    } else {
        Err(format!("`{}` is not the public key of a node (U…): its own checksum does not fit", public_key.escape_debug()))
    }
}

/// Whether the private half of the key has signed the text.
pub fn verify(key: &PublicKey, statement: &str, signature: &Signature) -> Result<(), Unproven> {
    let pair = KeyPair::from_public_key(key.as_str()).map_err(|_| Unproven::Key)?;
    if pair.key_pair_type() != KeyPairType::User {
        return Err(Unproven::Key);
    }
    let signature = BASE64URL_NOPAD.decode(signature.as_str().as_bytes()).map_err(|_| Unproven::Signature)?;
    pair.verify(statement.as_bytes(), &signature).map_err(|_| Unproven::Signature)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::credentials::Credentials;

    #[test]
    fn a_key_signs_and_only_its_own_signature_over_that_text_counts() {
        let (key, other) = (NodeKey::new(), NodeKey::new());
        let public = key.public_key().unwrap();
        let signature = key.sign("text").unwrap();
        assert_eq!(verify(&public, "text", &signature), Ok(()));
        assert_eq!(verify(&public, "texts", &signature), Err(Unproven::Signature));
        assert_eq!(verify(&other.public_key().unwrap(), "text", &signature), Err(Unproven::Signature));
        assert_eq!(verify(&"U".repeat(56).parse().unwrap(), "text", &signature), Err(Unproven::Key));
        let again = NodeKey::from_seed(&format!("{}\n", key.seed().unwrap())).unwrap();
        assert_eq!(again.public_key().unwrap(), public);
        assert!(NodeKey::from_seed("SU").is_err() && NodeKey::from_seed(&KeyPair::new_account().seed().unwrap()).is_err());
        let shown = format!("{key:?}");
        assert!(shown.contains(public.as_str()) && !shown.contains(&key.seed().unwrap()));
        let unsigned = key.creds_file("a.b.c").unwrap();
        assert!(Credentials::parse(&unsigned).is_err(), "what it holds is judged when it is read");
    }
}
