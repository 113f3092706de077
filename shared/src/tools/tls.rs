//! `tls`: what a server shows of itself, whether it is to be trusted or not.

mod output;
pub mod report;

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::{Map, Value};

use crate::bounded::{Bounded, Seconds, shown};
use crate::host::Host;
use crate::invalid::Invalid;
use crate::text::inline_schema;
use crate::tls::TlsVersion;
use crate::tls::pem::{CertificatesPem, PrivateKeyPem};
use crate::tools::choice::choice;
use crate::tools::network::{BUDGET_SLACK, FamilyChoice, RESOLUTION_MAX, Source};
use crate::tools::tcp::report::PortState;
use crate::tools::{Class, Tool};

pub(crate) use output::openssl_cipher;
use report::{TlsProgress, TlsReport};

/// The port of HTTPS.
pub const TLS_PORT: u16 = 443;
/// How many application protocols may be offered.
const ALPN_MAX: usize = 8;
/// How many connections one run may open: for the handshake, for a second one where the first is refused, for each version, and for 1.2 twice.
const CONNECTIONS_MAX: u32 = 7;
/// The same when the versions are not tried.
const CONNECTIONS: u32 = 2;

/// Greet a server over TLS and show its certificates, trusted or not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// Which port; unless given 443, or with `starttls` the one of that protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<Bounded<1, 65_535, { TLS_PORT as u64 }>>,
    /// The name to ask for (SNI) and to look for in the certificate; the target unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<Host>,
    /// How to get to TLS in a protocol that begins in clear.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub starttls: Option<StartTls>,
    /// The application protocols to offer, best first, such as `h2` (ALPN).
    pub alpn: Alpn,
    /// The oldest version to offer. A server that knows only 1.0 or 1.1 shows its certificates, and no more is said to it.
    pub min_version: OldestVersion,
    /// The newest version to offer.
    pub max_version: TlsVersion,
    /// Whether to try each version from `min_version` to `max_version` by itself, over connections of their own.
    pub versions: bool,
    /// Authorities to trust besides those of the node, PEM; a server's own certificate may be among them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_certificates: Option<CertificatesPem>,
    /// What to show a server that asks who we are, PEM: a certificate, and those that link it to an authority.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<CertificatesPem>,
    /// The key of `client_certificate`, PEM without a passphrase. Secret: never shown again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<PrivateKeyPem>,
    /// Whether to report the certificates themselves, PEM.
    pub pem: bool,
    /// Which kind of address to use where the name has both.
    pub family: FamilyChoice,
    /// From which address of the node to connect; the system's choice unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// How long each of connecting, STARTTLS and handshake may take, in seconds.
    pub timeout: Seconds<100, 30_000, 5_000>,
}

choice! {
    /// A protocol that begins in clear and goes over to TLS when told.
    StartTls {
        /// Mail (RFC 3207).
        #[default]
        Smtp = "smtp",
        /// Mailboxes (RFC 9051, 6.2.1).
        Imap = "imap",
        /// Mailboxes (RFC 2595, 4).
        Pop3 = "pop3",
        /// Files (RFC 4217).
        Ftp = "ftp",
        /// PostgreSQL (its `SSLRequest`).
        Postgres = "postgres",
        /// MySQL and MariaDB (their SSL request).
        Mysql = "mysql",
    }
}

impl StartTls {
    /// Where such servers listen (IANA).
    pub const fn port(self) -> u16 {
        match self {
            Self::Smtp => 25,
            Self::Imap => 143,
            Self::Pop3 => 110,
            Self::Ftp => 21,
            Self::Postgres => 5432,
            Self::Mysql => 3306,
        }
    }
}

/// A version to begin with, 1.0 unless told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct OldestVersion(pub TlsVersion);

impl Default for OldestVersion {
    fn default() -> Self {
        Self(TlsVersion::V1_0)
    }
}

/// Application protocols, a few.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Alpn(Vec<String>);

impl Alpn {
    /// The protocols, best first.
    pub fn protocols(&self) -> &[String] {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Alpn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let names = value.as_array().map(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        let fits = |name: &&str| (1..=255).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic());
        match names {
            Some(Some(names)) if names.len() <= ALPN_MAX && names.iter().all(fits) => {
                Ok(Self(names.into_iter().map(str::to_owned).collect()))
            }
            Some(_) | None => Err(de::Error::custom(format!(
                "must be a list of at most {ALPN_MAX} names of protocols such as [\"h2\", \"http/1.1\"], not {}",
                shown(&value)
            ))),
        }
    }
}

inline_schema!(Alpn, {"type": "array", "maxItems": ALPN_MAX, "items": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"}});

impl fmt::Display for Alpn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

impl Tls {
    /// The port to connect to.
    pub fn port(&self) -> u16 {
        self.port.map_or_else(|| self.starttls.map_or(TLS_PORT, StartTls::port), Bounded::get_u16)
    }

    /// The versions to offer, newest first.
    pub fn offered(&self) -> impl Iterator<Item = TlsVersion> {
        let range = self.min_version.0.number()..=self.max_version.number();
        TlsVersion::ALL.iter().rev().copied().filter(move |version| range.contains(&version.number()))
    }
}

/// Refuses a certificate without its key, and a key without its certificate.
pub(crate) fn check_client(certificate: Option<&CertificatesPem>, key: Option<&PrivateKeyPem>) -> Result<(), Invalid> {
    match (certificate, key) {
        (Some(_), None) => Err(Invalid::new("/parameters/client_certificate", "a certificate is of no use without `client_key`, its key")),
        (None, Some(_)) => Err(Invalid::new("/parameters/client_key", "a key is of no use without `client_certificate`, whose key it is")),
        (Some(_), Some(_)) | (None, None) => Ok(()),
    }
}

impl Tool for Tls {
    const SUMMARY: &'static str = "Greet a server over TLS: its certificates, why they are trusted or not, versions, cipher, OCSP";
    const CLASS: Class = Class::Probe;
    const EXAMPLE_TARGET: &'static str = "example.com";
    type Target = Host;
    type Report = TlsReport;
    type Progress = TlsProgress;

    fn check(&self, target: &Host) -> Result<(), Invalid> {
        self.family.check(target)?;
        self.source.map_or(Ok(()), |source| source.check(self.family, target))?;
        check_client(self.client_certificate.as_ref(), self.client_key.as_ref())?;
        if self.offered().next().is_none() {
            let (min, max) = (self.min_version.0, self.max_version);
            return Err(Invalid::new("/parameters/min_version", format!("{min} is newer than `max_version`, which is {max}")));
        }
        Ok(())
    }

    fn conceal(parameters: &mut Map<String, Value>) {
        if let Some(key) = parameters.get_mut("client_key") {
            *key = "***".into();
        }
    }

    fn budget(&self) -> Duration {
        let connections = if self.versions { CONNECTIONS_MAX } else { CONNECTIONS };
        let waits = if self.starttls.is_some() { 3 } else { 2 };
        RESOLUTION_MAX + self.timeout.duration() * waits * connections + BUDGET_SLACK
    }

    fn output(&self, target: &Host, report: &TlsReport) -> String {
        output::whole(target, report)
    }

    fn progress_output(&self, target: &Host, progress: &TlsProgress) -> String {
        output::of_progress(target, progress)
    }

    /// The server cannot be spoken to, or is not to be trusted.
    fn is_bad(&self, report: &TlsReport) -> bool {
        report.state != PortState::Open || report.failure.is_some() || report.session.verified == Some(false)
    }
}

#[cfg(test)]
mod tests;
