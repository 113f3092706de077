//! What the operator of an API may set.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use probeops_nats::process::LogFormat;
use probeops_shared::access::TargetPattern;
use probeops_shared::http_url::{HttpUrl, Scheme};
use probeops_shared::registry::ValidFor;
use serde::{Deserialize, Serialize};

use crate::audit::AuditMode;
use crate::broker::Links;
use crate::enroll::NodeSettings;
use crate::trace::settings::TraceSettings;

/// Where the API listens, unless told.
const HTTP_DEFAULT: &str = "127.0.0.1:8080";
/// How many connections are served at once, unless told.
const CONNECTIONS_DEFAULT: usize = 4_096;
/// No operator can want more connections than this.
const CONNECTIONS_MAX: usize = 1_000_000;
/// The audience that JWTs must name, unless told.
const AUDIENCE_DEFAULT: &str = "probeops";
/// How long the credentials of nodes last, unless told.
const NODE_VALID_FOR_DEFAULT: Duration = Duration::from_hours(24);
/// How long an ephemeral node may be away, unless told.
const EPHEMERAL_AFTER_DEFAULT: Duration = Duration::from_mins(10);

/// The API's settings as given: flags, then environment, then the file; what is absent has a default.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::doc_markdown, reason = "the comments of the fields are the text of --help")]
pub struct Given {
    /// Where to listen: IP address and port [default: 127.0.0.1:8080]
    #[arg(long, env = "PROBEOPS_HTTP", value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// The certificate chain for HTTPS (PEM); needs --tls-key
    #[arg(long, env = "PROBEOPS_TLS_CERT", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, env = "PROBEOPS_TLS_KEY", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// Allow clear text on an address that others can reach, because a proxy in front does HTTPS
    #[arg(long, env = "PROBEOPS_BEHIND_PROXY", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub behind_proxy: Option<bool>,
    /// The broker's addresses: tls://HOST:4222 or wss://HOST/PATH, several with commas
    #[arg(long, env = "PROBEOPS_SERVERS", value_delimiter = ',', value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub servers: Option<Vec<String>>,
    /// The authority that signed the broker's certificate (PEM); the system's own unless given
    #[arg(long, env = "PROBEOPS_CA", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// The folder with api.creds, store.creds, collector.creds, acknowledger.creds, frontdoor.creds and auditor.creds
    #[arg(long, env = "PROBEOPS_CREDS", value_name = "FOLDER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creds: Option<PathBuf>,
    /// The broker's addresses as nodes that enrol reach them: tls://HOST:4222 or wss://HOST/PATH, several with commas [default: those of --servers]
    #[arg(long, env = "PROBEOPS_NODE_SERVERS", value_delimiter = ',', value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_servers: Option<Vec<String>>,
    /// How long the credentials of nodes that enrolled last, more or less a tenth; they renew them at half of it: 90m, 12h, 7d [default: 24h]
    #[arg(long, env = "PROBEOPS_NODE_VALID_FOR", value_name = "TIME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_valid_for: Option<ValidFor>,
    /// How long a node that enrolled with an ephemeral token may be away before it is forgotten [default: 10m]
    #[arg(long, env = "PROBEOPS_EPHEMERAL_AFTER", value_name = "TIME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ephemeral_after: Option<ValidFor>,
    /// The public keys that check JWTs (a JWKS file; EdDSA, ES256, RS256); read again when it changes
    #[arg(long, env = "PROBEOPS_JWKS", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks: Option<PathBuf>,
    /// Where the public keys that check JWTs are published (a JWKS; https), instead of a file; fetched every five minutes and for unknown keys. The authorities are the system's, and --ca
    #[arg(long, env = "PROBEOPS_JWKS_URL", value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks_url: Option<String>,
    /// A file that keeps the keys of --jwks-url, for a start while they cannot be fetched; they are used for a day at most
    #[arg(long, env = "PROBEOPS_JWKS_CACHE", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks_cache: Option<PathBuf>,
    /// Who must have issued JWTs (claim iss)
    #[arg(long, env = "PROBEOPS_JWT_ISSUER", value_name = "ISSUER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt_issuer: Option<String>,
    /// For whom JWTs must be issued (claim aud) [default: probeops]
    #[arg(long, env = "PROBEOPS_JWT_AUDIENCE", value_name = "AUDIENCE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt_audience: Option<String>,
    /// A file with a shared secret of at least 32 bytes, for JWTs with HS256 instead of a JWKS
    #[arg(long, env = "PROBEOPS_JWT_HS256_SECRET_FILE", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt_hs256_secret_file: Option<PathBuf>,
    /// Where callbacks may go beyond the public internet, and in clear text: networks in CIDR form, addresses, names, *.NAME for all below; several with commas
    #[arg(long, env = "PROBEOPS_CALLBACK_ALLOW", value_delimiter = ',', value_name = "PLACE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub callback_allow: Option<Vec<TargetPattern>>,
    /// The collector that spans are sent to by OTLP over HTTP (protobuf), such as http://127.0.0.1:4318; none are sent unless given
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<String>,
    /// A file with the headers that the collector wants, `name: value`, one a line
    #[arg(long, env = "PROBEOPS_OTLP_HEADERS_FILE", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_headers_file: Option<PathBuf>,
    /// As which service spans are sent [default: probeops-api]
    #[arg(long, env = "OTEL_SERVICE_NAME", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_service_name: Option<String>,
    /// The share of traces that is kept, from 0 to 1, where the caller's `traceparent` does not say [default: 1]
    #[arg(long, env = "OTEL_TRACES_SAMPLER_ARG", value_name = "SHARE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_ratio: Option<f64>,
    /// Whether a job may run of which the audit trail has no record. With `required` none is dispatched before its record is stored; where the trail takes none, jobs are answered 503. With `best_effort` they do not wait: a trail that is full or away, or an API that is killed, leaves jobs that ran and are in no trail [default: required]
    #[arg(long, env = "PROBEOPS_AUDIT", value_name = "MODE", value_enum, hide_possible_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditMode>,
    /// How many connections at once; more wait [default: 4096]
    #[arg(long, env = "PROBEOPS_CONNECTIONS_MAX", value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_max: Option<usize>,
    /// How log lines look: text or json [default: text on a terminal, else json]
    #[arg(long, env = "PROBEOPS_LOG_FORMAT", value_name = "FORMAT", value_parser = log_format)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_format: Option<LogFormat>,
}

/// Reads how log lines are to look.
pub fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("must be text or json, not `{text}`")),
    }
}

/// The API's settings, complete.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The listener.
    pub listen: Listen,
    /// The broker.
    pub links: Links,
    /// What nodes that enrol are told.
    pub nodes: NodeSettings,
    /// JWTs; none are accepted where this is absent.
    pub jwt: Option<JwtSettings>,
    /// Where callbacks may go beyond the public internet.
    pub callback_allow: Vec<TargetPattern>,
    /// Whether jobs are run of which the trail has no record.
    pub audit: AuditMode,
    /// Where spans go; nowhere where this is absent.
    pub traces: Option<TraceSettings>,
    /// How log lines look.
    pub log_format: Option<LogFormat>,
    /// The same, as it was given, for `--print-config`.
    given: Given,
}

/// Where and how to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The address; port 0 means any free one.
    pub address: SocketAddr,
    /// What HTTPS needs; clear text where it is absent.
    pub tls: Option<TlsFiles>,
    /// How many connections at once.
    pub connections_max: usize,
}

/// Certificate and key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate chain (PEM).
    pub cert: PathBuf,
    /// Its private key (PEM).
    pub key: PathBuf,
}

/// What JWTs must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtSettings {
    /// What checks them.
    pub keys: JwtKeys,
    /// Their issuer.
    pub issuer: String,
    /// Their audience.
    pub audience: String,
}

/// What checks JWTs: never both, so that nobody can choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JwtKeys {
    /// Public keys.
    Jwks(PathBuf),
    /// Public keys, published at a URL.
    JwksUrl {
        /// Where.
        url: HttpUrl,
        /// What keeps them for the next start.
        cache: Option<PathBuf>,
    },
    /// A shared secret.
    Hs256SecretFile(PathBuf),
}

impl Given {
    /// What is set here, and where it is not, what is set there.
    #[must_use]
    pub fn or(self, file: Self) -> Self {
        Self {
            http: self.http.or(file.http),
            tls_cert: self.tls_cert.or(file.tls_cert),
            tls_key: self.tls_key.or(file.tls_key),
            behind_proxy: self.behind_proxy.or(file.behind_proxy),
            servers: self.servers.or(file.servers),
            ca: self.ca.or(file.ca),
            creds: self.creds.or(file.creds),
            node_servers: self.node_servers.or(file.node_servers),
            node_valid_for: self.node_valid_for.or(file.node_valid_for),
            ephemeral_after: self.ephemeral_after.or(file.ephemeral_after),
            jwks: self.jwks.or(file.jwks),
            jwks_url: self.jwks_url.or(file.jwks_url),
            jwks_cache: self.jwks_cache.or(file.jwks_cache),
            jwt_issuer: self.jwt_issuer.or(file.jwt_issuer),
            jwt_audience: self.jwt_audience.or(file.jwt_audience),
            jwt_hs256_secret_file: self.jwt_hs256_secret_file.or(file.jwt_hs256_secret_file),
            callback_allow: self.callback_allow.or(file.callback_allow),
            otlp_endpoint: self.otlp_endpoint.or(file.otlp_endpoint),
            otlp_headers_file: self.otlp_headers_file.or(file.otlp_headers_file),
            otlp_service_name: self.otlp_service_name.or(file.otlp_service_name),
            otlp_ratio: self.otlp_ratio.or(file.otlp_ratio),
            audit: self.audit.or(file.audit),
            connections_max: self.connections_max.or(file.connections_max),
            log_format: self.log_format.or(file.log_format),
        }
    }

    /// Completes the settings with defaults and checks them.
    pub fn complete(self) -> Result<Settings, String> {
        let jwt = self.jwt()?;
        let given = Self {
            http: self.http.or_else(|| Some(HTTP_DEFAULT.to_owned())),
            behind_proxy: Some(self.behind_proxy.unwrap_or(false)),
            jwt_audience: jwt.as_ref().map(|jwt| jwt.audience.clone()),
            audit: Some(self.audit.unwrap_or_default()),
            connections_max: self.connections_max.or(Some(CONNECTIONS_DEFAULT)),
            ..self
        };
        let links = Links {
            servers: given
                .servers
                .clone()
                .ok_or("no broker is given: set --servers (PROBEOPS_SERVERS, `servers` in the file), such as tls://broker.example:4222")?,
            ca: given.ca.clone(),
            creds: given.creds.clone().ok_or(
                "no credentials are given: set --creds (PROBEOPS_CREDS, `creds` in the file) to the folder with api.creds and the others",
            )?,
        };
        let nodes = NodeSettings {
            servers: given.node_servers.clone().unwrap_or_else(|| links.servers.clone()),
            lifetime: given.node_valid_for.map_or(NODE_VALID_FOR_DEFAULT, ValidFor::duration),
            ephemeral_after: given.ephemeral_after.map_or(EPHEMERAL_AFTER_DEFAULT, ValidFor::duration),
        };
        let callback_allow = given.callback_allow.clone().unwrap_or_default();
        let traces = TraceSettings::read(
            given.otlp_endpoint.as_deref(),
            given.otlp_headers_file.as_deref(),
            given.otlp_service_name.as_deref(),
            given.otlp_ratio,
        )?;
        let (audit, log_format) = (given.audit.unwrap_or_default(), given.log_format);
        Ok(Settings { listen: given.listen()?, links, nodes, jwt, callback_allow, audit, traces, log_format, given })
    }

    fn listen(&self) -> Result<Listen, String> {
        let http = self.http.as_deref().unwrap_or(HTTP_DEFAULT);
        let address: SocketAddr =
            http.parse().map_err(|_| format!("http: `{http}` is not an IP address and a port, such as 127.0.0.1:8080 or [::]:443"))?;
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Some(TlsFiles { cert: cert.clone(), key: key.clone() }),
            (None, None) => None,
            (Some(_), None) => return Err("tls_cert is given without tls_key; HTTPS needs both".to_owned()),
            (None, Some(_)) => return Err("tls_key is given without tls_cert; HTTPS needs both".to_owned()),
        };
        if tls.is_none() && !address.ip().to_canonical().is_loopback() && self.behind_proxy != Some(true) {
            return Err(format!(
                "http: {address} can be reached by others, and keys would cross the network in clear text; \
                 set --tls-cert and --tls-key for HTTPS, or --behind-proxy if a proxy in front does it, or listen on 127.0.0.1"
            ));
        }
        let connections_max = self.connections_max.unwrap_or(CONNECTIONS_DEFAULT);
        if !(1..=CONNECTIONS_MAX).contains(&connections_max) {
            return Err(format!("connections_max must be from 1 to {CONNECTIONS_MAX}, not {connections_max}"));
        }
        Ok(Listen { address, tls, connections_max })
    }

    fn jwt(&self) -> Result<Option<JwtSettings>, String> {
        if self.jwks_cache.is_some() && self.jwks_url.is_none() {
            return Err("jwks_cache is given without jwks_url, whose keys it keeps".to_owned());
        }
        let keys = match (&self.jwks, &self.jwks_url, &self.jwt_hs256_secret_file) {
            (Some(path), None, None) => JwtKeys::Jwks(path.clone()),
            (None, Some(url), None) => JwtKeys::JwksUrl { url: https(url)?, cache: self.jwks_cache.clone() },
            (None, None, Some(path)) => JwtKeys::Hs256SecretFile(path.clone()),
            (None, None, None) if self.jwt_issuer.is_some() || self.jwt_audience.is_some() => {
                return Err(
                    "jwt_issuer or jwt_audience is given, but nothing to check JWTs with: set jwks_url or jwks (or jwt_hs256_secret_file)"
                        .to_owned(),
                );
            }
            (None, None, None) => return Ok(None),
            (jwks, url, secret) => {
                let given = [("jwks", jwks.is_some()), ("jwks_url", url.is_some()), ("jwt_hs256_secret_file", secret.is_some())];
                let given: Vec<&str> = given.into_iter().filter_map(|(name, given)| given.then_some(name)).collect();
                return Err(format!(
                    "{} are given together; JWTs are checked by the public keys of one place or by a secret, never by both",
                    given.join(" and ")
                ));
            }
        };
        let set = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
        let issuer = set(&self.jwt_issuer).ok_or("JWTs are to be checked, but not whose: set jwt_issuer to what their claim iss says")?;
        Ok(Some(JwtSettings { keys, issuer, audience: set(&self.jwt_audience).unwrap_or_else(|| AUDIENCE_DEFAULT.to_owned()) }))
    }
}

/// A URL that keys may be fetched from: nobody on the way can change what it says.
fn https(text: &str) -> Result<HttpUrl, String> {
    let url: HttpUrl = text.parse().map_err(|detail| format!("jwks_url: {detail}"))?;
    if url.scheme() == Scheme::Https {
        return Ok(url);
    }
    Err(format!("jwks_url: `{text}` is not https; keys that anybody on the way could change check nothing"))
}

impl Settings {
    /// The settings with their defaults, for `--print-config`.
    pub fn given(&self) -> &Given {
        &self.given
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minimal() -> Given {
        Given { servers: Some(vec!["tls://b:4222".to_owned()]), creds: Some("creds".into()), ..Given::default() }
    }

    #[track_caller]
    fn refuses(given: Given, part: &str) {
        let error = given.complete().unwrap_err();
        assert!(error.contains(part), "{error}");
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let file = Given { http: Some("127.0.0.1:1".into()), connections_max: Some(7), ..Given::default() };
        let settings = Given { http: Some("127.0.0.1:2".into()), ..minimal() }.or(file).complete().unwrap();
        assert_eq!((settings.listen.address.port(), settings.listen.connections_max), (2, 7));
        let settings = minimal().complete().unwrap();
        assert_eq!(settings.listen.address.to_string(), HTTP_DEFAULT);
        assert_eq!(settings.given().http.as_deref(), Some(HTTP_DEFAULT));
        assert!(settings.jwt.is_none());
    }

    #[test]
    fn clear_text_stays_on_the_machine_unless_a_proxy_is_in_front() {
        for loopback in ["127.0.0.1:80", "127.9.9.9:80", "[::1]:80", "[::ffff:127.0.0.1]:80"] {
            assert!(Given { http: Some(loopback.into()), ..minimal() }.complete().is_ok(), "{loopback}");
        }
        for reachable in ["0.0.0.0:80", "[::]:80", "192.0.2.1:80", "[::ffff:192.0.2.1]:80"] {
            let given = Given { http: Some(reachable.into()), ..minimal() };
            refuses(given.clone(), "--behind-proxy");
            assert!(Given { behind_proxy: Some(true), ..given.clone() }.complete().is_ok(), "{reachable}");
            assert!(Given { tls_cert: Some("c".into()), tls_key: Some("k".into()), ..given }.complete().is_ok(), "{reachable}");
        }
    }

    #[test]
    fn what_is_missing_or_does_not_fit_is_named() {
        refuses(Given::default(), "--servers");
        refuses(Given { creds: None, ..minimal() }, "--creds");
        refuses(Given { http: Some("localhost".into()), ..minimal() }, "`localhost` is not an IP address and a port");
        refuses(Given { tls_cert: Some("c".into()), ..minimal() }, "without tls_key");
        refuses(Given { connections_max: Some(0), ..minimal() }, "connections_max must be from 1");
        let jwt = Given { jwks: Some("j".into()), ..minimal() };
        refuses(jwt.clone(), "set jwt_issuer");
        refuses(Given { jwt_hs256_secret_file: Some("s".into()), ..jwt.clone() }, "never by both");
        refuses(Given { jwt_issuer: Some("i".into()), ..minimal() }, "nothing to check JWTs with");
        let settings = Given { jwt_issuer: Some("i".into()), ..jwt }.complete().unwrap();
        assert_eq!(settings.jwt.unwrap().audience, "probeops");
    }
}
