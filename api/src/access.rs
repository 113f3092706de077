//! Who asks, and what he may.
//!
//! Two kinds of bearer credential, an API key ([`keys`]) and a JWT ([`jwt`]), become one [`Principal`], and so does a caller that the broker
//! attests ([`services`]). Limits only narrow, and what cannot be understood is refused.

mod crc;
pub mod jwt;
pub mod keyring;
pub mod keys;
#[cfg(test)]
pub(crate) mod kinds;
mod principal;
pub mod services;

use std::path::Path;
use std::sync::Arc;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use probeops_shared::ids::Caller;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::jwt::Verifier;
use crate::access::keyring::Keyring;
use crate::access::services::Services;
use crate::broker::Broker;
use crate::config::JwtSettings;
use crate::metrics::Metrics;
use crate::problem::Problem;

pub use principal::{Identity, Principal};

/// Longer credentials are not looked at.
const CREDENTIAL_BYTES_MAX: usize = 8 * 1024;

/// Turns credentials into principals.
#[derive(Clone, Debug)]
pub struct Access(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    keyring: Keyring,
    services: Services,
    verifier: Option<Verifier>,
}

impl Access {
    /// Reads the JWT settings and begins to hold buckets KEYS and SERVICES in memory; the tasks end with `stop`.
    pub fn start(
        broker: &Broker,
        (jwt, authority, metrics): (Option<&JwtSettings>, Option<&Path>, &Metrics),
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Self, String> {
        let verifier = jwt.map(|settings| Verifier::start(settings, (authority, metrics), tasks, stop)).transpose()?;
        let keyring = Keyring::start(broker.clone(), tasks, stop);
        let services = Services::start(broker.clone(), tasks, stop);
        Ok(Self(Arc::new(Inner { keyring, services, verifier })))
    }

    /// The API keys.
    pub fn keyring(&self) -> &Keyring {
        &self.0.keyring
    }

    /// The services.
    pub fn services(&self) -> &Services {
        &self.0.services
    }

    /// Who this caller is, that the broker has attested.
    pub async fn service(&self, caller: &Caller) -> Result<Principal, Problem> {
        Ok(Principal::of(self.0.services.identify(caller).await?))
    }

    /// Whether a principal was an API key that is revoked by now, whatever this replica has heard of it.
    pub(crate) async fn is_revoked(&self, principal: &Principal) -> Result<bool, Problem> {
        let Some(id) = principal.name.strip_prefix("key:") else { return Ok(false) };
        Ok(self.0.keyring.find(id).await?.is_none_or(|record| record.revoked_at.is_some()))
    }

    /// Who sent these headers.
    pub async fn principal(&self, headers: &HeaderMap) -> Result<Principal, Problem> {
        let credential = bearer(headers)?;
        let identity = if keys::looks_like_key(credential) {
            self.0.keyring.identify(credential).await?
        } else if credential.split('.').count() == 3 {
            let verifier = self.0.verifier.as_ref();
            let verifier = verifier
                .ok_or_else(|| Problem::bad_credential("this API accepts no JWTs (no key to check them is configured); send an API key"))?;
            Arc::new(verifier.identify(credential).await?)
        } else {
            return Err(Problem::bad_credential(
                "the bearer credential is neither an API key (pk_…) nor a JWT (three parts with dots between them)",
            ));
        };
        Ok(Principal::of(identity))
    }
}

/// The credential of an `Authorization` header.
fn bearer(headers: &HeaderMap) -> Result<&str, Problem> {
    let mut given = headers.get_all(AUTHORIZATION).iter();
    let (first, second) = (given.next(), given.next());
    let how = "send `Authorization: Bearer <API key or JWT>`";
    let Some(first) = first else { return Err(Problem::no_credential(format!("there is no credential; {how}"))) };
    if second.is_some() {
        return Err(Problem::bad_credential(format!("there are several Authorization headers; {how} once")));
    }
    let text =
        first.to_str().map_err(|_| Problem::bad_credential(format!("the Authorization header has bytes that no credential has; {how}")))?;
    let (scheme, credential) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    let credential = credential.trim();
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Problem::bad_credential(format!("the Authorization header is not of kind Bearer; {how}")));
    }
    if credential.is_empty() {
        return Err(Problem::bad_credential(format!("the Authorization header has no credential after `Bearer`; {how}")));
    }
    if credential.len() > CREDENTIAL_BYTES_MAX {
        return Err(Problem::bad_credential(format!("the credential is longer than {CREDENTIAL_BYTES_MAX} bytes")));
    }
    Ok(credential)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use probeops_shared::problem::Code;

    use super::*;

    #[track_caller]
    fn refuses(given: &[&[u8]], part: &str) {
        let mut headers = HeaderMap::new();
        for value in given {
            headers.append(AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
        }
        let problem = bearer(&headers).unwrap_err();
        assert_eq!(problem.code(), Code::Unauthorized);
        assert!(problem.detail().contains(part), "{problem}");
    }

    #[test]
    fn a_header_without_a_bearer_credential_is_refused_for_what_it_lacks() {
        refuses(&[], "there is no credential");
        refuses(&[b"Basic dTpw"], "not of kind Bearer");
        refuses(&[b"Bearer"], "no credential after");
        refuses(&[b"Bearer  "], "no credential after");
        refuses(&[b"Bearer a", b"Bearer b"], "several Authorization headers");
        refuses(&[b"Bearer \xff"], "bytes that no credential has");
        refuses(&["Bearer ".to_owned().as_bytes(), &[]], "several");
        let long = format!("Bearer {}", "x".repeat(CREDENTIAL_BYTES_MAX + 1));
        refuses(&[long.as_bytes()], "longer than 8192 bytes");
    }

    #[test]
    fn the_scheme_is_read_in_any_case() {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_static("bEARER  pk_x "));
        assert_eq!(bearer(&headers), Ok("pk_x"));
    }
}
