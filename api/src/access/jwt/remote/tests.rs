//! A provider that speaks HTTPS for real, with a certificate made here.

use std::sync::atomic::{AtomicUsize, Ordering};

use jsonwebtoken::get_current_timestamp;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::access::jwt::tests::{AUDIENCE, EDDSA, ES256, ISSUER, Signer, signed_as};
use crate::access::jwt::{Keys, Verifier};

/// What the provider answers with.
type Answer = Arc<RwLock<String>>;

struct Provider {
    url: HttpUrl,
    folder: PathBuf,
    answer: Answer,
    asked: Arc<AtomicUsize>,
    _serving: AbortOnDropHandle<()>,
}

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn jwks(keys: &[&Signer]) -> String {
    json!({"keys": keys.iter().map(|signer| &signer.public).collect::<Vec<_>>()}).to_string()
}

impl Verifier {
    fn of_remote(remote: Remote, issuer: &str, audience: &str) -> Self {
        Self { keys: Keys::Fetched(Arc::new(remote)), issuer: issuer.into(), audience: audience.into() }
    }

    /// What became of the last fetch.
    fn failed(&self) -> String {
        let Keys::Fetched(remote) = &self.keys else { panic!() };
        remote.now.read().unwrap().failed.clone().unwrap()
    }

    fn metrics_text(&self) -> String {
        let Keys::Fetched(remote) = &self.keys else { panic!() };
        remote.metrics.text(&[], true).unwrap()
    }
}

impl Provider {
    async fn start(document: &str) -> Self {
        drop(rustls::crypto::ring::default_provider().install_default());
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let folder = std::env::temp_dir().join(format!("probeops-jwks-{:032x}", rand::random::<u128>()));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("ca.pem"), made.cert.pem()).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}/keys", listener.local_addr().unwrap().port()).parse().unwrap();
        let (said, asked): (Answer, Arc<AtomicUsize>) = (Arc::new(RwLock::new(answer("200 OK", document))), Arc::default());
        let (acceptor, saying, counting) = (TlsAcceptor::from(Arc::new(config)), Arc::clone(&said), Arc::clone(&asked));
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut head = vec![0; 4096];
                let Ok(read) = stream.read(&mut head).await else { continue };
                assert!(String::from_utf8_lossy(&head[..read]).starts_with("GET /keys HTTP/1.1\r\n"));
                counting.fetch_add(1, Ordering::Relaxed);
                let answer = saying.read().unwrap().clone();
                drop(stream.write_all(answer.as_bytes()).await);
                drop(stream.shutdown().await);
            }
        });
        Self { url, folder, answer: said, asked, _serving: AbortOnDropHandle::new(serving) }
    }

    fn says(&self, status: &str, document: &str) {
        *self.answer.write().unwrap() = answer(status, document);
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    fn remote(&self, timing: Timing) -> Remote {
        let place = (self.url.clone(), Some(self.folder.join("cache.json")));
        Remote::open(place, Some(&self.folder.join("ca.pem")), &Metrics::new().unwrap(), timing).unwrap()
    }

    fn verifier(&self, timing: Timing) -> Verifier {
        Verifier::of_remote(self.remote(timing), ISSUER, AUDIENCE)
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.folder).unwrap();
    }
}

fn token(signer: &Signer, kid: &str) -> String {
    let claims: Value = json!({"iss": ISSUER, "aud": AUDIENCE, "sub": "s", "exp": get_current_timestamp() + 60, "scope": "jobs:write"});
    signed_as(signer, Some(kid), &claims)
}

const NEVER_APART: Timing = Timing { apart: Duration::ZERO, ..TIMING };

async fn refused(verifier: &Verifier, token: &str) -> String {
    verifier.identify(token).await.unwrap_err().detail().to_owned()
}

#[tokio::test]
async fn keys_are_fetched_when_they_are_wanted_and_rotated() {
    let provider = Provider::start(&jwks(&[&EDDSA])).await;
    let verifier = provider.verifier(NEVER_APART);
    let (old, new) = (token(&EDDSA, "ed"), token(&ES256, "ec"));
    assert_eq!(verifier.identify(&old).await.unwrap().name, "jwt:s", "fetched for the first token");
    assert!(verifier.identify(&old).await.is_ok());
    assert_eq!(provider.asked(), 1, "and not for the next");
    provider.says("200 OK", &jwks(&[&EDDSA, &ES256]));
    assert!(verifier.identify(&new).await.is_ok(), "a key that is not known yet is looked for");
    provider.says("200 OK", &jwks(&[&ES256]));
    assert!(refused(&verifier, &token(&ES256, "zz")).await.contains("kid `zz`) that is not known"));
    assert!(refused(&verifier, &old).await.contains("kid `ed`) that is not known"), "one that was taken away is not accepted");
    // The algorithm is the key's.
    assert!(refused(&verifier, &token(&EDDSA, "ec")).await.contains("signed with EdDSA, but its key is for ES256"));
}

#[tokio::test]
async fn made_up_names_of_keys_do_not_hammer_the_provider() {
    let provider = Provider::start(&jwks(&[&EDDSA])).await;
    let verifier = provider.verifier(TIMING);
    let good = token(&EDDSA, "ed");
    assert!(verifier.identify(&good).await.is_ok());
    let tokens: Vec<String> = (0..200).map(|index| token(&EDDSA, &format!("made-up-{index}"))).collect();
    let all = tokens.iter().map(|token| refused(&verifier, token));
    for why in futures_util::future::join_all(all).await {
        assert!(why.contains("that is not known here"), "{why}");
    }
    assert_eq!(provider.asked(), 1);
    assert!(verifier.identify(&good).await.is_ok());
}

#[tokio::test]
async fn what_cannot_be_fetched_or_used_leaves_the_last_keys_and_a_new_start_has_them() {
    let provider = Provider::start(&jwks(&[&EDDSA])).await;
    let verifier = provider.verifier(NEVER_APART);
    let good = token(&EDDSA, "ed");
    assert!(verifier.identify(&good).await.is_ok());
    let secret = json!({"keys": [EDDSA.public, {"kty": "oct", "kid": "hs", "alg": "HS256", "k": "c2VjcmV0"}]}).to_string();
    let long = format!("{}{}", jwks(&[&ES256]), " ".repeat(KEYS_BYTES_MAX));
    for (status, document) in [
        ("500 Internal Server Error", ""),
        ("302 Found", ""),
        ("200 OK", "<html>"),
        ("200 OK", r#"{"keys":[]}"#),
        ("200 OK", secret.as_str()),
        ("200 OK", long.as_str()),
    ] {
        provider.says(status, document);
        let asked = provider.asked();
        assert!(refused(&verifier, &token(&ES256, "ec")).await.contains("that is not known here"), "{status}");
        assert!(provider.asked() > asked && verifier.identify(&good).await.is_ok(), "{status}");
    }
    let restarted = provider.verifier(NEVER_APART);
    assert!(restarted.identify(&good).await.is_ok(), "from what was kept");
    let (counted, failed) = (restarted.metrics_text(), "probeops_jwks_fetches_total{result=\"failed\"} ");
    assert!(!counted.contains(failed), "{counted}");
    assert!(restarted.identify(&token(&ES256, "ec")).await.is_err() && restarted.metrics_text().contains(failed));
    // What was kept of another URL is nothing.
    let cache = provider.folder.join("cache.json");
    let kept = std::fs::read_to_string(&cache).unwrap();
    std::fs::write(&cache, kept.replace("/keys", "/other")).unwrap();
    let stranger = provider.verifier(NEVER_APART);
    let problem = stranger.identify(&good).await.unwrap_err();
    assert_eq!(problem.code(), probeops_shared::problem::Code::Unavailable);
    assert_eq!(problem.detail(), "the keys that check JWTs could not be fetched yet");
    assert!(stranger.failed().starts_with("its answer is longer than"), "{}", stranger.failed());
    std::fs::write(&cache, kept).unwrap();
    let old = provider.verifier(Timing { age_max: Duration::ZERO, ..NEVER_APART });
    assert!(refused(&old, &good).await.contains("could not be fetched since"), "keys that are too old are not used");
    std::fs::write(&cache, "{").unwrap();
    assert!(provider.verifier(NEVER_APART).identify(&good).await.is_err(), "a broken file is no key");
}

#[tokio::test]
async fn a_provider_that_is_not_who_it_should_be_or_says_nothing_is_not_believed() {
    let (provider, other) = (Provider::start(&jwks(&[&EDDSA])).await, Provider::start(&jwks(&[&EDDSA])).await);
    let place = (provider.url.clone(), None);
    let remote = Remote::open(place, Some(&other.folder.join("ca.pem")), &Metrics::new().unwrap(), NEVER_APART).unwrap();
    let verifier = Verifier::of_remote(remote, ISSUER, AUDIENCE);
    assert!(refused(&verifier, &token(&EDDSA, "ed")).await.contains("could not be fetched yet"));
    assert!(verifier.failed().starts_with("TLS: ") && provider.asked() == 0, "{}", verifier.failed());
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: HttpUrl = format!("https://127.0.0.1:{}/", silent.local_addr().unwrap().port()).parse().unwrap();
    let short = Timing { within: Duration::from_millis(100), ..NEVER_APART };
    let remote = Remote::open((url, None), None, &Metrics::new().unwrap(), short).unwrap();
    let why = refused(&Verifier::of_remote(remote, ISSUER, AUDIENCE), &token(&EDDSA, "ed")).await;
    assert!(why.contains("could not be fetched yet"), "{why}");
    assert!(Remote::open((provider.url.clone(), None), Some(Path::new("/nonexistent")), &Metrics::new().unwrap(), TIMING).is_err());
}

#[tokio::test]
async fn keys_are_fetched_by_the_clock_and_again_after_a_failure() {
    let provider = Provider::start("no keys").await;
    let short = Duration::from_millis(5);
    let remote = provider.remote(Timing { every: short, again_after: short, ..TIMING });
    let following = async { remote.follow().await };
    let watching = async {
        while provider.asked() < 2 {
            tokio::task::yield_now().await;
        }
        provider.says("200 OK", &jwks(&[&EDDSA]));
        while remote.keys().is_err() {
            tokio::task::yield_now().await;
        }
        provider.says("200 OK", &jwks(&[&ES256]));
        while remote.keys().is_ok_and(|keys| keys.names() != ["ec"]) {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! { () = following => {}, done = timeout(Duration::from_secs(20), watching) => done.unwrap() }
}
