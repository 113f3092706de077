//! `http`: one request and what came of it, phase by phase; redirects too.

pub mod assertion;
mod output;
pub mod parts;
pub mod report;

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::bounded::{Bounded, Seconds};
use crate::host::Host;
use crate::http_url::{HttpUrl, Scheme};
use crate::invalid::Invalid;
use crate::tls::TlsVersion;
use crate::tls::pem::{CertificatesPem, PrivateKeyPem};
use crate::tools::choice::choice;
use crate::tools::network::{BUDGET_SLACK, FamilyChoice, RESOLUTION_MAX};
use crate::tools::{Class, Tool, tls};

use assertion::Assertions;
use parts::{BasicAuth, HeaderLines, Method, Token};
use report::{HttpProgress, HttpReport};

/// The most that is sent as a body.
pub const BODY_SENT_MAX: usize = 32 * 1024;

/// Ask a web server, and see each phase, every header, the certificate and the body.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Which method, such as `GET`, `HEAD` or `POST`; any but CONNECT.
    pub method: Method,
    /// Header lines to send, such as `Accept: text/html`; at most 128. Of Authorization, Cookie, X-Api-Key, Api-Key and X-Auth-Token the
    /// value is a secret: never shown again, and not sent where redirects lead to another origin. Everything else is shown, as are URL and
    /// body.
    pub headers: HeaderLines,
    /// What to send as the body, text of at most 32 KiB; the whole job is at most 64 KiB long.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32_768))]
    pub body: Option<String>,
    /// Which version of HTTP to speak. `auto` takes what the server prefers of 2 and 1.1 over TLS, and 1.1 in clear. There is no HTTP/3:
    /// the only client in Rust (h3 0.0.x) is declared experimental.
    pub http_version: HttpVersion,
    /// How many redirects to follow; 0 shows the first answer.
    pub redirects_max: Bounded<0, 10, 0>,
    /// Whether a redirect may lead from https to http.
    pub redirect_to_clear: bool,
    /// Which name server finds the addresses of names, that of the target and those that redirects lead to; the node's own unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolver: Option<Host>,
    /// Whom to connect to instead of the host of the URL, an address or a name; its port stays. Only for the host of the target, not for
    /// others that redirects lead to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolve: Option<Host>,
    /// What to send as `Host`, unless that of the URL; on other hosts that redirects lead to it is theirs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_header: Option<String>,
    /// The name to ask for in TLS (SNI) and to look for in the certificate, unless that of the URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<Host>,
    /// Which kind of address to use where the name has both.
    pub family: FamilyChoice,
    /// User and password, as in `user:password`. Secret: never shown again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub basic_auth: Option<BasicAuth>,
    /// A token to send as `Authorization: Bearer`. Secret: never shown again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bearer_token: Option<Token>,
    /// A proxy to go through, as in `http://proxy.example:3128`. A URL with a name is asked for by a tunnel (CONNECT) to the address that
    /// the node found for it, so that its policy holds; one of scheme http with an address is handed over whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<HttpUrl>,
    /// User and password for the proxy. Secret: never shown again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_auth: Option<BasicAuth>,
    /// Header lines for the proxy, with CONNECT or a request that it is handed over, such as `X-Route: 2`; at most 128. The server behind a
    /// tunnel does not get them. Secret are the same as of `headers`.
    pub proxy_headers: HeaderLines,
    /// Whether to give up when the certificate is not trusted; if not, the report says why it is not.
    pub verify: bool,
    /// The oldest version of TLS to offer; what is older than 1.2 can only be looked at, with the tool `tls`.
    pub tls_min_version: MinTls,
    /// The newest version of TLS to offer.
    pub tls_max_version: MaxTls,
    /// Authorities to trust besides those of the node, PEM; a server's own certificate may be among them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_certificates: Option<CertificatesPem>,
    /// What to show a server that asks who we are, PEM: a certificate, and those that link it to an authority.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<CertificatesPem>,
    /// The key of `client_certificate`, PEM without a passphrase. Secret: never shown again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<PrivateKeyPem>,
    /// Whether to ask for a compressed body (gzip, deflate) and to decompress it.
    pub compression: bool,
    /// How many bytes of the body to report.
    pub body_bytes: Bounded<0, 100_000, 10_000>,
    /// How many bytes of the body to read; they are hashed, and assertions look at them. After decompression it may be as many again.
    pub read_bytes_max: Bounded<0, 16_777_216, 1_048_576>,
    /// How long each request may take after its name is resolved, in seconds.
    pub timeout: Seconds<100, 60_000, 10_000>,
    /// What the answer has to be like, at most 20, such as `{"type": "status", "one_of": ["2xx"]}` or
    /// `{"type": "phase", "phase": "first_byte", "max_ms": 500}`; the other types are `header`, `body`, `json`, `tls`,
    /// `certificate_days_left` and `protocol`. One that does not hold is a finding: the run itself has succeeded.
    pub assertions: Assertions,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            method: Method::default(),
            headers: HeaderLines::default(),
            body: None,
            http_version: HttpVersion::default(),
            redirects_max: Bounded::default(),
            redirect_to_clear: false,
            resolver: None,
            resolve: None,
            host_header: None,
            server_name: None,
            family: FamilyChoice::default(),
            basic_auth: None,
            bearer_token: None,
            proxy: None,
            proxy_auth: None,
            proxy_headers: HeaderLines::default(),
            verify: true,
            tls_min_version: MinTls::default(),
            tls_max_version: MaxTls::default(),
            ca_certificates: None,
            client_certificate: None,
            client_key: None,
            compression: false,
            body_bytes: Bounded::default(),
            read_bytes_max: Bounded::default(),
            timeout: Seconds::default(),
            assertions: Assertions::default(),
        }
    }
}

choice! {
    /// A version of HTTP, or whichever the server prefers.
    HttpVersion {
        /// The server's choice over TLS, 1.1 in clear.
        #[default]
        Auto = "auto",
        /// RFC 1945, with a `Host` line all the same; over TLS without ALPN.
        V1_0 = "1.0",
        /// RFC 9112.
        V1_1 = "1.1",
        /// RFC 9113; in clear without asking first.
        V2 = "2",
    }
}

choice! {
    /// A version of TLS that can be spoken.
    MinTls {
        /// RFC 5246.
        #[default]
        V1_2 = "1.2",
        /// RFC 8446.
        V1_3 = "1.3",
    }
}

choice! {
    /// A version of TLS that can be spoken.
    MaxTls {
        /// RFC 5246.
        V1_2 = "1.2",
        /// RFC 8446.
        #[default]
        V1_3 = "1.3",
    }
}

impl MaxTls {
    /// The version.
    pub const fn version(self) -> TlsVersion {
        match self {
            Self::V1_2 => TlsVersion::V1_2,
            Self::V1_3 => TlsVersion::V1_3,
        }
    }
}

impl MinTls {
    /// The version.
    pub const fn version(self) -> TlsVersion {
        match self {
            Self::V1_2 => TlsVersion::V1_2,
            Self::V1_3 => TlsVersion::V1_3,
        }
    }
}

impl Http {
    fn check_tls(&self, target: &HttpUrl) -> Result<(), Invalid> {
        tls::check_client(self.client_certificate.as_ref(), self.client_key.as_ref())?;
        if self.tls_min_version.version().number() > self.tls_max_version.version().number() {
            let detail = format!("{} is newer than `tls_max_version`, which is {}", self.tls_min_version, self.tls_max_version);
            return Err(Invalid::new("/parameters/tls_min_version", detail));
        }
        if self.server_name.is_some() && target.scheme() == Scheme::Http && self.redirects_max.get() == 0 {
            return Err(Invalid::new("/parameters/server_name", "it is for https; the target is a URL of scheme http"));
        }
        Ok(())
    }

    fn check_request(&self) -> Result<(), Invalid> {
        if let Some(body) = self.body.as_ref().filter(|body| body.len() > BODY_SENT_MAX) {
            return Err(Invalid::new("/parameters/body", format!("must be at most {BODY_SENT_MAX} bytes long, this has {}", body.len())));
        }
        if let Some(host) = self.host_header.as_ref().filter(|host| !parts::is_host_header(host)) {
            let detail = format!(
                "must be a host, and a port if need be, such as example.com:8080, not {}",
                crate::bounded::shown(&host.as_str().into())
            );
            return Err(Invalid::new("/parameters/host_header", detail));
        }
        match (&self.basic_auth, &self.bearer_token) {
            (Some(_), Some(_)) => {
                return Err(Invalid::new("/parameters/bearer_token", "there can be only one of `basic_auth` and `bearer_token`"));
            }
            (Some(_), None) | (None, Some(_)) if self.headers.has("authorization") => {
                return Err(Invalid::new(
                    "/parameters/headers",
                    "there is an Authorization line already, from `basic_auth` or `bearer_token`",
                ));
            }
            (_, _) => {}
        }
        if self.compression && self.headers.has("accept-encoding") {
            return Err(Invalid::new("/parameters/headers", "`compression` sends an Accept-Encoding line of its own"));
        }
        Ok(())
    }

    fn check_proxy(&self) -> Result<(), Invalid> {
        match &self.proxy {
            None if self.proxy_headers.pairs().next().is_some() => {
                Err(Invalid::new("/parameters/proxy_headers", "they are of no use without `proxy`"))
            }
            Some(_) if self.proxy_auth.is_some() && self.proxy_headers.has("proxy-authorization") => {
                Err(Invalid::new("/parameters/proxy_headers", "there is a Proxy-Authorization line already, from `proxy_auth`"))
            }
            None if self.proxy_auth.is_some() => Err(Invalid::new("/parameters/proxy_auth", "it is of no use without `proxy`")),
            Some(proxy) if proxy.scheme() == Scheme::Https => {
                Err(Invalid::new("/parameters/proxy", "proxies are spoken to in clear; give one of scheme http"))
            }
            Some(proxy) if proxy.path_and_query() != "/" => {
                Err(Invalid::new("/parameters/proxy", "a proxy has no path; give its host and port"))
            }
            Some(_) | None => Ok(()),
        }
    }
}

impl Tool for Http {
    const SUMMARY: &'static str = "Ask a web server: every phase, redirect, header, certificate and the body, with assertions";
    const CLASS: Class = Class::Probe;
    const EXAMPLE_TARGET: &'static str = "https://example.com/";
    type Target = HttpUrl;
    type Report = HttpReport;
    type Progress = HttpProgress;

    fn check(&self, target: &HttpUrl) -> Result<(), Invalid> {
        self.family.check(self.resolve.as_ref().unwrap_or(target.host()))?;
        self.check_tls(target)?;
        self.check_request()?;
        self.check_proxy()
    }

    fn conceal(parameters: &mut Map<String, Value>) {
        for name in ["basic_auth", "bearer_token", "proxy_auth", "client_key"] {
            if let Some(secret) = parameters.get_mut(name) {
                *secret = parts::CONCEALED.into();
            }
        }
        for name in ["headers", "proxy_headers"] {
            for line in parameters.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(concealed) = line.as_str().and_then(parts::conceal_line) {
                    *line = concealed.into();
                }
            }
        }
    }

    fn budget(&self) -> Duration {
        let hops = u32::try_from(self.redirects_max.get()).unwrap_or(u32::MAX).saturating_add(1);
        let names = 1 + u32::from(self.proxy.is_some()) + u32::from(self.resolver.is_some());
        (RESOLUTION_MAX * names + self.timeout.duration()) * hops + BUDGET_SLACK
    }

    fn output(&self, _target: &HttpUrl, report: &HttpReport) -> String {
        output::whole(report)
    }

    fn progress_output(&self, _target: &HttpUrl, progress: &HttpProgress) -> String {
        output::of_progress(progress)
    }

    /// There is no whole answer, or an assertion does not hold.
    fn is_bad(&self, report: &HttpReport) -> bool {
        report.failure.is_some() || report.assertions.iter().any(|verdict| !verdict.passed)
    }
}

#[cfg(test)]
mod tests;
