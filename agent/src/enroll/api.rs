//! The API, as a node asks it for credentials: HTTPS, by the system's authorities or a given one.

use std::path::Path;
use std::time::Duration;

use hyper::Uri;
use probeops_shared::enroll::{Challenge, ChallengeRequest, ConfirmRequest, EnrollRequest, NodeCredential, PublicKey};
use probeops_shared::host::Host;
use probeops_shared::problem::Code;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};

use super::EnrollError;
use crate::policy::Endpoint;
use crate::way::dial::proxy_cure;
use crate::way::proxy::{Proxies, Proxy, without_login};

/// How long connecting may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// How long a request may take: the API waits for the keymaster, and it for every server of the broker.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// The largest answer, in bytes.
const ANSWER_BYTES_MAX: u64 = 256 * 1024;
/// How much of an answer that is none of ours is shown.
const FOREIGN_CHARS_MAX: usize = 200;

/// An API.
#[derive(Clone, Debug)]
pub struct Api {
    agent: ureq::Agent,
    url: String,
    at: Endpoint,
    proxy: Option<Proxy>,
}

#[derive(Deserialize)]
struct Problem {
    code: Code,
    detail: String,
}

impl Api {
    /// At this address, with a certificate of this authority; of the system's when absent. Clear text is for this machine's own API only, and
    /// goes by no proxy: a token would cross the network.
    pub(crate) fn new(url: &str, ca: Option<&Path>, proxies: &Proxies) -> Result<Self, EnrollError> {
        let url = url.trim_end_matches('/').to_owned();
        let at = check_url(&url)?;
        let mut tls = TlsConfig::builder();
        let mut proxy = None;
        if url.starts_with("https://") {
            tls = tls.root_certs(roots(ca)?);
            proxy = proxies.of(&at);
        }
        let through = proxy.as_ref().map(Proxy::for_https).transpose();
        let through = through.map_err(|detail| EnrollError::Here(format!("the password for the proxy cannot be read: {detail}")))?;
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_WITHIN))
            .timeout_global(Some(ANSWER_WITHIN))
            // A redirect would take the token elsewhere.
            .max_redirects(0)
            // Not what the client would make of the environment by itself.
            .proxy(through)
            .user_agent(format!("probeops-agent/{}", probeops_shared::VERSION))
            .tls_config(tls.build());
        Ok(Self { agent: config.build().new_agent(), url, at, proxy })
    }

    /// Its address.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// By which proxy it is reached.
    pub(crate) fn proxy(&self) -> Option<&Proxy> {
        self.proxy.as_ref()
    }

    /// Whether it answers, and is ready.
    pub(crate) async fn is_ready(&self) -> Result<(), EnrollError> {
        let api = self.clone();
        let asked = tokio::task::spawn_blocking(move || {
            let response = api.agent.get(format!("{}/readyz", api.url)).call().map_err(|error| api.unreachable(&error))?;
            match response.status().as_u16() {
                200..300 => Ok(()),
                status => Err(EnrollError::Later(format!("{} is not ready (status {status})", api.url))),
            }
        });
        asked.await.map_err(EnrollError::here)?
    }

    pub(super) async fn challenge(&self, public_key: &PublicKey) -> Result<Challenge, EnrollError> {
        self.post("/v1/enroll/challenge", &ChallengeRequest { public_key: public_key.clone() }).await
    }

    pub(super) async fn enroll(&self, request: &EnrollRequest) -> Result<NodeCredential, EnrollError> {
        self.post("/v1/enroll", request).await
    }

    pub(super) async fn confirm(&self, request: &ConfirmRequest) -> Result<NodeCredential, EnrollError> {
        self.post("/v1/enroll/confirm", request).await
    }

    async fn post<T: DeserializeOwned + Send + 'static>(&self, path: &str, request: &impl Serialize) -> Result<T, EnrollError> {
        let (api, path) = (self.clone(), path.to_owned());
        let body = serde_json::to_string(request).map_err(EnrollError::here)?;
        let asked = tokio::task::spawn_blocking(move || api.ask(&path, body));
        asked.await.map_err(EnrollError::here)?
    }

    fn ask<T: DeserializeOwned>(&self, path: &str, body: String) -> Result<T, EnrollError> {
        let unreachable = |error: ureq::Error| self.unreachable(&error);
        let request = self.agent.post(format!("{}{path}", self.url)).header("content-type", "application/json");
        let mut response = request.send(body).map_err(unreachable)?;
        let status = response.status().as_u16();
        let may_change = response.headers().contains_key("retry-after");
        let bytes = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec().map_err(unreachable)?;
        read(&self.url, status, &bytes).map_err(|error| match error {
            EnrollError::Refused(why) if may_change => EnrollError::Later(why),
            error => error,
        })
    }

    fn unreachable(&self, error: &ureq::Error) -> EnrollError {
        let through = self.proxy.as_ref().map(|proxy| format!(" through the proxy {proxy} of {}", proxy.known_from())).unwrap_or_default();
        let cure = match (error, &self.proxy) {
            (ureq::Error::ConnectProxyFailed(reason), Some(proxy)) => {
                format!("; to mend it: {}", proxy_cure(status_of(reason), proxy, &self.at))
            }
            _ => String::new(),
        };
        EnrollError::Later(format!("cannot reach the API at {}{through}: {error}{cure}", self.url))
    }
}

/// The status in what the client says of a proxy.
fn status_of(reason: &str) -> Option<u16> {
    reason.split(|letter: char| !letter.is_ascii_digit()).find_map(|word| word.parse().ok())
}

fn read<T: DeserializeOwned>(url: &str, status: u16, bytes: &[u8]) -> Result<T, EnrollError> {
    let foreign = || {
        let text = String::from_utf8_lossy(bytes);
        let shown: String = probeops_shared::text::plain(text.trim()).chars().take(FOREIGN_CHARS_MAX).collect();
        // Something in front of the API may be out of order for a while.
        EnrollError::Later(format!("{url} does not answer as a ProbeOps API would (status {status}): {shown}"))
    };
    if (200..300).contains(&status) {
        return serde_json::from_slice(bytes).map_err(|_| foreign());
    }
    let Problem { code, detail } = serde_json::from_slice(bytes).map_err(|_| foreign())?;
    let detail = probeops_shared::text::plain(&detail);
    match code {
        Code::Unavailable | Code::Internal | Code::RateLimited | Code::RequestTimeout => Err(EnrollError::Later(detail)),
        _ => Err(EnrollError::Refused(detail)),
    }
}

fn check_url(url: &str) -> Result<Endpoint, EnrollError> {
    let wrong =
        || EnrollError::Here(format!("`{}` is not the address of an API, such as https://probeops.example.com", without_login(url)));
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(wrong)?;
    let default_port = match uri.scheme_str() {
        Some("https") => 443,
        Some("http") => 80,
        Some(_) | None => return Err(wrong()),
    };
    let at = Endpoint::of_proxy(&format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(default_port))).map_err(|_| wrong())?;
    let is_here = match &at.host {
        Host::Address(address) => address.to_canonical().is_loopback(),
        Host::Name(name) => name == "localhost",
    };
    if uri.scheme_str() == Some("http") && !is_here {
        return Err(EnrollError::Here(format!("`{url}` would send the token in clear text; use https://")));
    }
    Ok(at)
}

fn roots(ca: Option<&Path>) -> Result<RootCerts, EnrollError> {
    let Some(ca) = ca else {
        let found = rustls_native_certs::load_native_certs();
        if found.certs.is_empty() {
            let detail = "this system has no authorities for certificates (install ca-certificates), and no --ca is given";
            return Err(EnrollError::Here(detail.to_owned()));
        }
        let certificates: Vec<Certificate<'static>> =
            found.certs.iter().map(|der| Certificate::from_der(der.as_ref()).to_owned()).collect();
        return Ok(RootCerts::new_with_certs(&certificates));
    };
    roots_of(ca).map_err(EnrollError::Here)
}

/// The authorities of a file of certificates (PEM), and no others; an error names the file.
pub fn roots_of(ca: &Path) -> Result<RootCerts, String> {
    let unusable = |why: String| format!("cannot use the authority {}: {why}", ca.display());
    let pem = std::fs::read(ca).map_err(|error| unusable(error.to_string()))?;
    let mut certificates: Vec<Certificate<'static>> = Vec::new();
    for item in ureq::tls::parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|error| unusable(error.to_string()))? {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        return Err(unusable("it holds no PEM certificate".to_owned()));
    }
    Ok(RootCerts::new_with_certs(&certificates))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ProxySetting;
    use crate::testing::{Authority, Scratch};

    #[test]
    fn a_token_goes_in_clear_text_to_this_machine_only() {
        for good in ["https://a.example", "https://[2001:db8::1]:8443", "http://127.0.0.1:8080", "http://localhost", "http://[::1]:80/x"] {
            assert!(check_url(good).is_ok(), "{good}");
        }
        for bad in [
            "http://a.example",
            "http://127.0.0.1.example",
            "http://10.0.0.1",
            "a.example",
            "ftp://a",
            "https://",
            "",
            "http://127.0.0.1:80@a.example",
            "https://u:p@a.example",
        ] {
            assert!(check_url(bad).is_err_and(|error| !error.to_string().contains("u:p")), "{bad}");
        }
    }

    #[test]
    fn clear_text_and_a_way_without_proxy_are_by_no_proxy() {
        let setting = |proxy: &str| ProxySetting { proxy: Some(proxy.to_owned()), proxy_password_file: None };
        let by = |url: &str, proxy: &str| {
            let scratch = Scratch::new();
            let ca = scratch.path().join("ca.pem");
            std::fs::write(&ca, Authority::root("a").certificate.pem()).unwrap();
            Api::new(url, Some(&ca), &Proxies::new(&setting(proxy)).unwrap()).unwrap().proxy().map(ToString::to_string)
        };
        assert_eq!(by("https://a.example", "http://p.example:3128").as_deref(), Some("http://p.example:3128"));
        assert_eq!(by("https://a.example", "none"), None);
        assert_eq!(by("http://127.0.0.1:8080", "http://p.example:3128"), None);
    }

    #[test]
    fn what_passes_is_tried_again_and_what_is_refused_is_not() {
        let error = |status: u16, body: &str| read::<Challenge>("https://a", status, body.as_bytes()).unwrap_err();
        let problem = |code: &str| format!(r#"{{"code":"{code}","detail":"why","status":1}}"#);
        for code in ["forbidden", "conflict", "invalid", "unprocessable"] {
            assert_eq!(error(403, &problem(code)), EnrollError::Refused("why".to_owned()));
        }
        for code in ["unavailable", "rate_limited", "internal"] {
            assert_eq!(error(503, &problem(code)), EnrollError::Later("why".to_owned()));
        }
        assert!(matches!(error(502, "<html>Bad Gateway"), EnrollError::Later(text) if text.contains("status 502")));
    }
}
