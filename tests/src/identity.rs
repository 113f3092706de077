//! An identity provider in a few lines: a key, its JWKS, who serves that over HTTPS, and tokens signed with the key.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use async_nats::rustls::crypto::ring::default_provider;
use async_nats::rustls::pki_types::pem::PemObject;
use async_nats::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use async_nats::rustls::{ServerConfig, ServerConnection, StreamOwned};
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

/// How long one who connects may be silent.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who serves a key set over HTTPS.
#[derive(Debug)]
pub struct KeyServer {
    address: SocketAddr,
    config: Arc<ServerConfig>,
    document: Arc<Mutex<String>>,
    stop: Arc<AtomicBool>,
    serving: Option<JoinHandle<()>>,
}

impl KeyServer {
    /// One with this certificate for `localhost` and its key.
    pub fn start(certificate: &Path, key: &Path, document: &Value) -> Self {
        let chain = CertificateDer::pem_file_iter(certificate).expect("a certificate").collect::<Result<_, _>>().expect("PEM");
        let key = PrivateKeyDer::from_pem_file(key).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()));
        let config = config.with_safe_default_protocol_versions().expect("TLS").with_no_client_auth().with_single_cert(chain, key);
        let mut server = Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            config: Arc::new(config.expect("a certificate and its key")),
            document: Arc::new(Mutex::new(document.to_string())),
            stop: Arc::default(),
            serving: None,
        };
        server.go_on();
        server
    }

    /// Where the keys are.
    pub fn url(&self) -> String {
        format!("https://localhost:{}/keys", self.address.port())
    }

    /// Serves these from now on.
    pub fn says(&self, document: &Value) {
        *self.document.lock().unwrap_or_else(PoisonError::into_inner) = document.to_string();
    }

    /// Listens no more.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Release);
        drop(TcpStream::connect(self.address));
        self.serving.take().map_or(Ok(()), JoinHandle::join).expect("it ends");
    }

    /// Listens again, at the same address.
    pub fn go_on(&mut self) {
        let listener = TcpListener::bind(self.address).expect("its port");
        self.address = listener.local_addr().expect("an address");
        self.stop.store(false, Ordering::Release);
        let (config, document, stop) = (Arc::clone(&self.config), Arc::clone(&self.document), Arc::clone(&self.stop));
        self.serving = Some(std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                let document = document.lock().unwrap_or_else(PoisonError::into_inner).clone();
                // One that hangs up gets nothing.
                drop(stream.and_then(|stream| answer(stream, &config, &document)));
            }
        }));
    }
}

impl Drop for KeyServer {
    fn drop(&mut self) {
        if self.serving.is_some() {
            self.stop();
        }
    }
}

fn answer(stream: TcpStream, config: &Arc<ServerConfig>, document: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let session = ServerConnection::new(Arc::clone(config)).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(session, stream);
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let status = if head.starts_with(b"GET /keys HTTP/1.1\r\n") { "200 OK" } else { "404 Not Found" };
    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{document}", document.len())?;
    stream.conn.send_close_notify();
    stream.flush()
}
