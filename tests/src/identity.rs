//! An identity provider in a few lines: a key, its JWKS, and tokens signed with it.

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use rsa::pkcs1::EncodeRsaPrivateKey;
use rsa::traits::PublicKeyParts;
use serde_json::{Value, json};

/// Somebody who signs tokens.
pub struct Issuer {
    algorithm: Algorithm,
    private: EncodingKey,
    public: Value,
    kid: String,
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuer").field("algorithm", &self.algorithm).field("kid", &self.kid).finish_non_exhaustive()
    }
}

impl Issuer {
    /// One with a new Ed25519 key.
    pub fn new() -> Self {
        let pair = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
        let public = json!({"kty": "OKP", "crv": "Ed25519", "x": base64url(pair.public_key_raw())});
        Self::of(Algorithm::EdDSA, EncodingKey::from_ed_der(pair.serialized_der()), public)
    }

    /// One with a new key for ES256.
    pub fn es256() -> Self {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        let (x, y) = pair.public_key_raw().get(1..).expect("a point").split_at(32);
        let public = json!({"kty": "EC", "crv": "P-256", "x": base64url(x), "y": base64url(y)});
        Self::of(Algorithm::ES256, EncodingKey::from_ec_der(pair.serialized_der()), public)
    }

    /// One with a new key for RS256.
    pub fn rs256() -> Self {
        let pair = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).expect("a key");
        let public = json!({"kty": "RSA", "n": base64url(&pair.n().to_bytes_be()), "e": base64url(&pair.e().to_bytes_be())});
        let private = EncodingKey::from_rsa_der(pair.to_pkcs1_der().expect("DER").as_bytes());
        Self::of(Algorithm::RS256, private, public)
    }

    fn of(algorithm: Algorithm, private: EncodingKey, mut public: Value) -> Self {
        let kid = format!("{:016x}", rand::random::<u64>());
        public["kid"] = json!(kid);
        public["use"] = json!("sig");
        Self { algorithm, private, public, kid }
    }

    /// The id of its key.
    pub fn kid(&self) -> String {
        self.kid.clone()
    }

    /// The public half as a JWK (RFC 7517).
    pub fn jwk(&self) -> Value {
        self.public.clone()
    }

    /// The public halves of several as a key set.
    pub fn jwks(issuers: &[&Self]) -> Value {
        let keys: Vec<Value> = issuers.iter().map(|issuer| issuer.jwk()).collect();
        json!({"keys": keys})
    }

    /// A token with these claims.
    pub fn sign(&self, claims: &Value) -> String {
        self.sign_with_kid(claims, &self.kid)
    }

    /// A token that names another key than it is signed with.
    pub fn sign_with_kid(&self, claims: &Value, kid: &str) -> String {
        let header = Header { kid: Some(kid.to_owned()), ..Header::new(self.algorithm) };
        encode(&header, claims, &self.private).expect("a token")
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
