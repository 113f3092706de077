//! JWTs of an identity provider.
//!
//! The key decides with which algorithm a token must be signed; what the token's header says must agree and decides nothing. Every refusal says
//! why, because a token is the caller's own: it tells him nothing he could not read in it.

mod claims;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod keyset;
mod remote;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation, decode};
use probeops_shared::problem::Code;
use probeops_shared::settings::Stamp;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::jwt::keyset::KeySet;
use crate::access::jwt::remote::Remote;
use crate::access::principal::Identity;
use crate::config::{JwtKeys, JwtSettings};
use crate::metrics::Metrics;
use crate::problem::Problem;

/// How far the clocks of issuer and API may differ, in seconds.
const LEEWAY_S: u64 = 30;
/// When keys may be there that could not be fetched.
const FETCHED_AGAIN_AFTER: Duration = Duration::from_secs(10);
/// How often the key file is looked at for changes.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Checks JWTs.
#[derive(Clone, Debug)]
pub(super) struct Verifier {
    keys: Keys,
    issuer: Arc<str>,
    audience: Arc<str>,
}

/// Where the keys are.
#[derive(Clone, Debug)]
enum Keys {
    /// Here.
    Held(Arc<RwLock<Arc<KeySet>>>),
    /// Here, as they were last at a URL.
    Fetched(Arc<Remote>),
}

/// What is read of a token before its signature is checked.
#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    crit: Option<serde_json::Value>,
}

impl Verifier {
    /// Reads the keys, and reads the JWKS file again whenever it changes.
    /// Those of a URL are fetched again and again; `authority` is trusted beside the system's there.
    pub(super) fn start(
        settings: &JwtSettings,
        (authority, metrics): (Option<&Path>, &Metrics),
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Self, String> {
        match &settings.keys {
            JwtKeys::Hs256SecretFile(path) => Ok(Self::new(keyset::read_secret(path)?, &settings.issuer, &settings.audience)),
            JwtKeys::Jwks(path) => {
                // Before reading: a change while we read is then a change still to be seen.
                let stamp = Stamp::of(path);
                let keys = keyset::read_jwks(path)?;
                keys.tell_passed_over(None, &path.display().to_string());
                let verifier = Self::new(keys, &settings.issuer, &settings.audience);
                if let Keys::Held(keys) = &verifier.keys {
                    let following = follow(Arc::clone(keys), path.clone(), stamp);
                    drop(tasks.spawn(stop.clone().run_until_cancelled_owned(following)));
                }
                Ok(verifier)
            }
            JwtKeys::JwksUrl { url, cache } => {
                let remote = Arc::new(Remote::open((url.clone(), cache.clone()), authority, metrics, remote::TIMING)?);
                let following = Arc::clone(&remote);
                drop(tasks.spawn(stop.clone().run_until_cancelled_owned(async move { following.follow().await })));
                Ok(Self {
                    keys: Keys::Fetched(remote),
                    issuer: settings.issuer.as_str().into(),
                    audience: settings.audience.as_str().into(),
                })
            }
        }
    }

    fn new(keys: KeySet, issuer: &str, audience: &str) -> Self {
        Self { keys: Keys::Held(Arc::new(RwLock::new(Arc::new(keys)))), issuer: issuer.into(), audience: audience.into() }
    }

    /// Whom a token names.
    pub(super) async fn identify(&self, token: &str) -> Result<Identity, Problem> {
        let header = header(token).map_err(Problem::bad_credential)?;
        let keys = match &self.keys {
            Keys::Held(keys) => Arc::clone(&keys.read().unwrap_or_else(PoisonError::into_inner)),
            Keys::Fetched(remote) => {
                let known = remote.keys().is_ok_and(|keys| keys.knows(header.kid.as_deref()));
                if !known {
                    remote.fetch_for_unknown().await;
                }
                remote.keys().map_err(|why| Problem::new(Code::Unavailable, why).retry_after(FETCHED_AGAIN_AFTER))?
            }
        };
        self.check(token, &header, &keys).map_err(Problem::bad_credential)
    }

    fn check(&self, token: &str, header: &Header, keys: &KeySet) -> Result<Identity, String> {
        if header.alg.eq_ignore_ascii_case("none") {
            return Err("the JWT is not signed (alg none); only signed ones are accepted".to_owned());
        }
        if header.crit.is_some() {
            return Err("the JWT demands extensions (crit) that are not known here".to_owned());
        }
        let key = keys.find(header.kid.as_deref())?;
        if header.alg != name(key.algorithm) {
            let given: String = header.alg.chars().take(20).collect();
            return Err(format!("the JWT says it is signed with {given}, but its key is for {}", name(key.algorithm)));
        }
        let mut validation = Validation::new(key.algorithm);
        validation.leeway = LEEWAY_S;
        validation.validate_nbf = true;
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[&self.audience]);
        validation.set_required_spec_claims(&["iss", "aud", "exp", "sub"]);
        decode::<serde::de::IgnoredAny>(token, &key.decoding, &validation).map_err(|error| self.refusal(error.kind()))?;
        // The signature holds, so the payload is the issuer's; read it once more, strictly, for what is ours.
        claims::identity(token.split('.').nth(1).unwrap_or_default())
    }

    fn refusal(&self, kind: &ErrorKind) -> String {
        match kind {
            ErrorKind::InvalidSignature => "the JWT's signature does not fit: it was changed, or signed with another key".to_owned(),
            ErrorKind::MissingRequiredClaim(claim) => format!("the JWT has no usable claim `{claim}`; iss, aud, exp and sub are required"),
            ErrorKind::InvalidClaimFormat(claim) => format!("the JWT's claim `{claim}` is not of its proper type"),
            ErrorKind::ExpiredSignature => "the JWT has expired; get a new one from its issuer".to_owned(),
            ErrorKind::ImmatureSignature => "the JWT is not valid yet (nbf lies in the future)".to_owned(),
            ErrorKind::InvalidIssuer => format!("the JWT is from another issuer; this API accepts those of `{}`", self.issuer),
            ErrorKind::InvalidAudience => format!("the JWT is for another audience; for this API it must be `{}`", self.audience),
            ErrorKind::Json(_) | ErrorKind::Base64(_) | ErrorKind::Utf8(_) | ErrorKind::InvalidToken => {
                malformed("its payload cannot be read")
            }
            other => {
                tracing::debug!(?other, "a JWT was refused");
                malformed("it cannot be checked")
            }
        }
    }
}

/// Looks at the file again and again.
async fn follow(keys: Arc<RwLock<Arc<KeySet>>>, path: PathBuf, mut seen: Stamp) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        read_if_changed(&keys, &path, &mut seen);
    }
}

/// Reads the file again if it has changed; one that cannot be used leaves the keys as they are.
fn read_if_changed(held: &RwLock<Arc<KeySet>>, path: &Path, seen: &mut Stamp) {
    let now = Stamp::of(path);
    if now == *seen {
        return;
    }
    *seen = now;
    match keyset::read_jwks(path) {
        Ok(keys) => {
            tracing::info!(keys = keys.len(), file = %path.display(), "the keys that check JWTs were read again");
            let mut held = held.write().unwrap_or_else(PoisonError::into_inner);
            keys.tell_passed_over(Some(&held), &path.display().to_string());
            *held = Arc::new(keys);
        }
        Err(error) => tracing::error!("{error}; the keys read before stay in use"),
    }
}

fn header(token: &str) -> Result<Header, String> {
    let encoded = token.split('.').next().unwrap_or_default();
    let bytes = BASE64URL_NOPAD.decode(encoded.as_bytes()).map_err(|_| malformed("its header is not base64url"))?;
    serde_json::from_slice(&bytes).map_err(|_| malformed("its header is not a JSON object with `alg`"))
}

fn malformed(what: &str) -> String {
    format!("the JWT is malformed: {what}")
}

/// The algorithms that are accepted, by name.
fn name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::EdDSA => "EdDSA",
        Algorithm::ES256 => "ES256",
        Algorithm::RS256 => "RS256",
        Algorithm::HS256 => "HS256",
        _ => "another algorithm",
    }
}

/// Whom the payload of a token names.
#[cfg(test)]
pub(super) fn identity(payload: &str) -> Result<Identity, String> {
    claims::identity(payload)
}

#[cfg(test)]
mod tests;
