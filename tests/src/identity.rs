//! An identity provider in a few lines: an Ed25519 key, its JWKS, and tokens signed with it.

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{KeyPair, PKCS_ED25519};
use serde_json::{Value, json};

/// Somebody who signs tokens.
#[derive(Debug)]
pub struct Issuer {
    pair: KeyPair,
    kid: String,
}

impl Issuer {
    /// One with a new key.
    pub fn new() -> Self {
        let kid = format!("{:016x}", rand::random::<u64>());
        Self { pair: KeyPair::generate_for(&PKCS_ED25519).expect("a key"), kid }
    }

    /// The id of its key.
    pub fn kid(&self) -> String {
        self.kid.clone()
    }

    /// The public half, raw.
    pub fn public_bytes(&self) -> Vec<u8> {
        self.pair.public_key_raw().to_vec()
    }

    /// The public half as a key set (RFC 7517, RFC 8037).
    pub fn jwks(&self) -> Value {
        let x = base64url(&self.public_bytes());
        json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": self.kid, "x": x}]})
    }

    /// A token with these claims.
    pub fn sign(&self, claims: &Value) -> String {
        self.sign_with_kid(claims, &self.kid)
    }

    /// A token that names another key than it is signed with.
    pub fn sign_with_kid(&self, claims: &Value, kid: &str) -> String {
        let header = Header { kid: Some(kid.to_owned()), ..Header::new(Algorithm::EdDSA) };
        encode(&header, claims, &EncodingKey::from_ed_der(self.pair.serialized_der())).expect("a token")
    }
}

impl Default for Issuer {
    fn default() -> Self {
        Self::new()
    }
}

/// Base64url without padding (RFC 4648, 5).
pub fn base64url(bytes: &[u8]) -> String {
    data_encoding::BASE64URL_NOPAD.encode(bytes)
}
