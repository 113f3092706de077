//! The keys that an identity provider publishes at a URL.
//!
//! They are fetched at the start and by an interval, and when a token names a key that is not known; the last is bounded, so that tokens with
//! made-up names of keys cannot hammer the provider. What cannot be fetched or used changes nothing: the keys fetched last stay, in memory and in a
//! file for the next start, until they are a day old.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use axum::http::Request;
use axum::http::header::{ACCEPT, HOST, USER_AGENT};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use probeops_nats::layout::files::{self, Secrecy};
use probeops_shared::host::Host;
use probeops_shared::http_url::HttpUrl;
use probeops_shared::timestamp::Timestamp;
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use crate::access::jwt::keyset::{self, KEYS_BYTES_MAX, KeySet};
use crate::callbacks::tls_connector_trusting;
use crate::metrics::Metrics;

/// The largest head of an answer that is read.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// What a JWKS is served as (RFC 7517, 8.5), and what it is served as by others.
const TYPES: &str = "application/jwk-set+json, application/json";

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// How often keys are fetched.
    pub(super) every: Duration,
    /// How long after a failure for the first time; twice as long after each further one.
    pub(super) again_after: Duration,
    /// How far apart two fetches are at least that tokens with unknown keys lead to.
    pub(super) apart: Duration,
    /// How long a fetch may take.
    pub(super) within: Duration,
    /// How old keys may be that are used.
    pub(super) age_max: Duration,
}

/// As it is, but for tests.
pub(super) const TIMING: Timing = Timing {
    every: Duration::from_mins(5),
    again_after: Duration::from_secs(5),
    apart: Duration::from_secs(10),
    within: Duration::from_secs(10),
    age_max: Duration::from_hours(24),
};

/// Where keys come from.
#[derive(Debug)]
pub(super) struct Remote {
    url: HttpUrl,
    tls: Tls,
    cache: Option<PathBuf>,
    timing: Timing,
    metrics: Metrics,
    now: RwLock<Now>,
    /// One fetch at a time: when the last one began.
    fetching: Mutex<Option<Instant>>,
}

struct Tls(TlsConnector);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

/// The keys there are.
#[derive(Clone, Debug, Default)]
struct Now {
    keys: Option<(Arc<KeySet>, Timestamp)>,
    /// What became of the last fetch, where it failed.
    failed: Option<String>,
}

/// The file that the keys fetched last are kept in.
#[derive(Serialize, Deserialize)]
struct Kept<'a> {
    url: String,
    fetched_at: Timestamp,
    #[serde(borrow)]
    jwks: &'a RawValue,
}

impl Remote {
    /// Begins with what was kept, where there is something. `authority` is trusted beside those of the system.
    pub(super) fn open(
        (url, cache): (HttpUrl, Option<PathBuf>),
        authority: Option<&Path>,
        metrics: &Metrics,
        timing: Timing,
    ) -> Result<Self, String> {
        let tls = Tls(tls_connector_trusting(authority)?);
        let remote = Self { url, tls, cache, timing, metrics: metrics.clone(), now: RwLock::default(), fetching: Mutex::default() };
        remote.recall();
        Ok(remote)
    }

    /// The keys, or why there are none that may be used. What is wrong with the provider is for the log, and not for whoever comes with a token.
    pub(super) fn keys(&self) -> Result<Arc<KeySet>, String> {
        let now = self.now.read().unwrap_or_else(PoisonError::into_inner);
        match &now.keys {
            Some((keys, fetched_at)) if Timestamp::now().since(*fetched_at) < self.timing.age_max => Ok(Arc::clone(keys)),
            Some((_, fetched_at)) => Err(format!("the keys that check JWTs could not be fetched since {fetched_at}")),
            None => Err("the keys that check JWTs could not be fetched yet".to_owned()),
        }
    }

    /// Fetches again and again.
    pub(super) async fn follow(&self) {
        let mut failures = 0_u32;
        loop {
            failures = if self.fetch(Duration::ZERO).await { 0 } else { failures.saturating_add(1) };
            let wait = match failures {
                0 => self.timing.every,
                failures => self.timing.again_after.saturating_mul(1 << (failures - 1).min(16)).min(self.timing.every),
            };
            // Replicas that were started together do not come together.
            tokio::time::sleep(wait.mul_f64(0.9 + rand::random::<f64>() / 5.0)).await;
        }
    }

    /// Fetches because a token names a key that is not known, unless that was done a moment ago.
    pub(super) async fn fetch_for_unknown(self: &Arc<Self>) {
        // By itself: it goes on though the caller has hung up.
        let remote = Arc::clone(self);
        let fetching = tokio::spawn(async move { remote.fetch(remote.timing.apart).await });
        // Who waits for a provider that does not answer waits no longer than for one fetch.
        drop(timeout(self.timing.within, fetching).await);
    }

    /// Fetches, unless that began less than `apart` ago; whether the keys are fresh. One after the other: who waited finds them fresh.
    async fn fetch(&self, apart: Duration) -> bool {
        let mut began = self.fetching.lock().await;
        if began.is_some_and(|began| began.elapsed() < apart) {
            return self.now.read().unwrap_or_else(PoisonError::into_inner).failed.is_none();
        }
        *began = Some(Instant::now());
        let fetched = timeout(self.timing.within, self.document()).await;
        let fetched = fetched.unwrap_or_else(|_elapsed| Err(format!("no answer within {} ms", self.timing.within.as_millis())));
        let read = fetched.and_then(|bytes| Ok((keyset::parse_jwks(&bytes)?, bytes)));
        self.metrics.jwks_fetched(read.is_ok());
        let ok = read.is_ok();
        match read {
            Ok((keys, bytes)) => self.learn(keys, &bytes),
            Err(why) => self.fail(why),
        }
        ok
    }

    fn learn(&self, keys: KeySet, bytes: &[u8]) {
        let fetched_at = Timestamp::now();
        let mut now = self.now.write().unwrap_or_else(PoisonError::into_inner);
        let before = now.keys.as_ref().map(|(keys, _)| keys.as_ref());
        keys.tell_passed_over(before, &self.url.to_string());
        if before.map(KeySet::names) != Some(keys.names()) || now.failed.is_some() {
            tracing::info!(keys = ?keys.names(), url = %self.url, "the keys that check JWTs were fetched");
        }
        *now = Now { keys: Some((Arc::new(keys), fetched_at)), failed: None };
        drop(now);
        let Some(cache) = &self.cache else { return };
        let kept = std::str::from_utf8(bytes).map_err(|error| error.to_string()).and_then(|text| {
            let jwks = serde_json::from_str(text).map_err(|error| error.to_string())?;
            let kept = serde_json::to_vec(&Kept { url: self.url.to_string(), fetched_at, jwks }).map_err(|error| error.to_string())?;
            files::write(cache, &kept, Secrecy::Public).map_err(|error| format!("{error:#}"))
        });
        if let Err(error) = kept {
            tracing::error!("jwks_cache: the keys that check JWTs could not be kept for the next start: {error}");
        }
    }

    fn fail(&self, why: String) {
        let mut now = self.now.write().unwrap_or_else(PoisonError::into_inner);
        let age = now.keys.as_ref().map(|(_, fetched_at)| Timestamp::now().since(*fetched_at));
        let (url, ends_s) = (&self.url, self.timing.age_max.as_secs());
        match age {
            Some(age) if age < self.timing.age_max => tracing::warn!(
                age_s = age.as_secs(),
                "{url} gives no keys: {why}; those fetched before stay in use until they are {ends_s} s old"
            ),
            Some(age) => tracing::error!(
                age_s = age.as_secs(),
                "{url} gives no keys: {why}; those fetched before are too old, and no JWT is accepted"
            ),
            None => tracing::error!("{url} gives no keys: {why}; no JWT is accepted until it does"),
        }
        now.failed = Some(why);
    }

    /// Takes the keys from the file of an earlier start.
    fn recall(&self) {
        let Some(cache) = &self.cache else { return };
        let bytes = match files::read_if_exists(cache) {
            Ok(Some(text)) if text.len() <= 2 * KEYS_BYTES_MAX => text,
            Ok(Some(_)) => return tracing::error!("jwks_cache: {} is too long to be what was kept there", cache.display()),
            Ok(None) => return,
            Err(error) => return tracing::error!("jwks_cache: {error:#}"),
        };
        let kept = serde_json::from_str::<Kept<'_>>(&bytes).map_err(|error| error.to_string());
        // Of another provider's keys nothing is to be known here.
        let keys = kept.and_then(|kept| {
            if kept.url != self.url.to_string() {
                return Ok(None);
            }
            let keys = keyset::parse_jwks(kept.jwks.get().as_bytes())?;
            keys.tell_passed_over(None, &kept.url);
            Ok(Some((Arc::new(keys), kept.fetched_at.min(Timestamp::now()))))
        });
        match keys {
            Ok(keys) => self.now.write().unwrap_or_else(PoisonError::into_inner).keys = keys,
            Err(error) => tracing::error!("jwks_cache: {} cannot be used: {error}", cache.display()),
        }
    }

    /// What is at the URL.
    async fn document(&self) -> Result<Vec<u8>, String> {
        let host = match self.url.host() {
            Host::Address(address) => address.to_string(),
            Host::Name(name) => name.clone(),
        };
        let stream = TcpStream::connect((host.as_str(), self.url.port())).await.map_err(|error| format!("cannot connect: {error}"))?;
        let name = ServerName::try_from(host).map_err(|_invalid| "its name can have no certificate".to_owned())?;
        let stream = self.tls.0.connect(name, stream).await.map_err(|error| format!("TLS: {error}"))?;
        let broken = |error: hyper::Error| format!("no answer: {error}");
        let mut builder = http1::Builder::new();
        builder.max_buf_size(HEAD_BYTES_MAX);
        let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
        let request = Request::get(self.url.path_and_query())
            .header(HOST, self.url.authority())
            .header(ACCEPT, TYPES)
            .header(USER_AGENT, concat!("ProbeOps/", env!("CARGO_PKG_VERSION")))
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status().as_u16();
        if status != 200 {
            return Err(format!("it answered with HTTP {status}; 200 is wanted, and redirects are not followed"));
        }
        let body = Limited::new(response.into_body(), KEYS_BYTES_MAX).collect().await;
        let body = body.map_err(|error| format!("its answer is longer than {KEYS_BYTES_MAX} bytes, or broke off: {error}"))?;
        Ok(body.to_bytes().to_vec())
    }
}

#[cfg(test)]
mod tests;
