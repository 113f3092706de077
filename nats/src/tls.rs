//! The broker's certificate: our own authority for a first run, or real files. [`rotation`] goes from one authority to the next.

pub mod rotation;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use async_nats::rustls::client::WebPkiServerVerifier;
use async_nats::rustls::client::danger::ServerCertVerifier;
use async_nats::rustls::pki_types::pem::PemObject;
use async_nats::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use async_nats::rustls::sign::CertifiedKey;
use async_nats::rustls::{self, RootCertStore};
use data_encoding::BASE64;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use time::OffsetDateTime;

use crate::layout::Layout;
use crate::layout::files::{self, Secrecy};

/// The names every broker of ours has, besides those it is given.
const OWN_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// What the authority is called.
const AUTHORITY: &str = "ProbeOps authority";
/// How long the authority lasts.
const AUTHORITY_LIFETIME: Duration = Duration::from_hours(20 * 365 * 24);
/// How long a certificate of the broker lasts.
const CERTIFICATE_LIFETIME: Duration = Duration::from_hours(397 * 24);
/// With less than this left it is made anew.
const RENEW_BEFORE: Duration = Duration::from_hours(60 * 24);
/// How far clocks of clients may be behind.
const CLOCK_SKEW: Duration = Duration::from_hours(24);

/// The files of a broker's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerCertificate {
    /// The certificate, and those between it and the authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authority clients have to trust; absent when their system already does.
    pub authority: Option<PathBuf>,
}

impl ServerCertificate {
    /// Certificates made elsewhere.
    pub fn from_files(certificate: &Path, key: &Path, authority: Option<&Path>) -> Result<Self> {
        certificates(certificate)?;
        let text = read(key)?;
        PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| anyhow!("{} holds no whole private key in PEM form", key.display()))?;
        if let Some(authority) = authority {
            certificates(authority)?;
        }
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), authority: authority.map(Path::to_owned) })
    }
}

/// The broker's certificate from our own authority, good for `names` (host names and addresses) besides this machine's own. Makes what is
/// missing, and makes the certificate anew when it lacks a name or will soon end.
pub fn ensure(layout: &Layout, names: &[String]) -> Result<ServerCertificate> {
    let names = all_names(names)?;
    files::make_dir(&layout.tls_dir())?;
    files::make_dir(&layout.server_tls_dir())?;
    files::make_dir(&layout.keys_dir())?;
    let (authority, issuer, _) = ensure_authority(layout)?;
    let made =
        ServerCertificate { certificate: layout.server_certificate(), key: layout.server_key(), authority: Some(layout.ca_certificate()) };
    let held = match (files::read_if_exists(&made.certificate)?, files::read_if_exists(&made.key)?) {
        (Some(certificate), Some(key)) => belong_together(&certificate, &key) && is_good(&authority, &certificate, &names),
        (None, _) | (_, None) => false,
    };
    if !held {
        let key = new_key()?;
        let certificate = server_params(&names)?.signed_by(&key, &issuer).context("cannot sign the broker's certificate")?.pem();
        if !is_good(&authority, &certificate, &names) {
            bail!("{} does not belong to {}; {}", layout.ca_key().display(), layout.ca_certificate().display(), cure(layout));
        }
        files::write(&made.key, key.serialize_pem().as_bytes(), Secrecy::Secret)?;
        files::write(&made.certificate, certificate.as_bytes(), Secrecy::Public)?;
    }
    Ok(made)
}

fn all_names(names: &[String]) -> Result<Vec<String>> {
    let mut all: Vec<String> = OWN_NAMES.map(str::to_owned).to_vec();
    for name in names {
        ServerName::try_from(name.as_str()).map_err(|_| {
            anyhow!("`{name}` cannot be in the broker's certificate; give a host name such as broker.example or an IP address")
        })?;
        if !all.contains(name) {
            all.push(name.clone());
        }
    }
    Ok(all)
}

/// The authority in use, among those that clients trust the one whose key we have: its certificate, what signs by it, and the certificate as text.
fn ensure_authority(layout: &Layout) -> Result<(CertificateDer<'static>, Issuer<'static, KeyPair>, String)> {
    let (certificate_path, key_path) = (layout.ca_certificate(), layout.ca_key());
    let params = authority_params();
    let key_text = match (files::read_if_exists(&certificate_path)?, files::read_if_exists(&key_path)?) {
        (Some(_), Some(key)) => key,
        (Some(_), None) => bail!("{} is missing, so the broker's certificate cannot be renewed; {}", key_path.display(), cure(layout)),
        // The certificate is written last: without it the first start was interrupted.
        (None, _) => {
            let key = new_key()?;
            let certificate = params.self_signed(&key).context("cannot make the authority")?.pem();
            let key_text = key.serialize_pem();
            files::write(&key_path, key_text.as_bytes(), Secrecy::Secret)?;
            files::write(&certificate_path, certificate.as_bytes(), Secrecy::Public)?;
            key_text
        }
    };
    let key = KeyPair::from_pem(&key_text)
        .map_err(|_| anyhow!("{} holds no whole private key in PEM form; {}", key_path.display(), cure(layout)))?;
    let trusted = certificates(&certificate_path).map_err(|error| anyhow!("{error}; {}", cure(layout)))?;
    let own = trusted.into_iter().find(|certificate| is_of(certificate, &key_text));
    let own = own.with_context(|| format!("{} does not belong to {}; {}", key_path.display(), certificate_path.display(), cure(layout)))?;
    let text = to_pem(&own);
    Ok((own, Issuer::new(params, key), text))
}

/// A certificate as text (RFC 7468).
fn to_pem(certificate: &CertificateDer<'_>) -> String {
    const LINE: usize = 64;
    let text = BASE64.encode(certificate);
    let lines: Vec<&str> = text.as_bytes().chunks(LINE).filter_map(|line| str::from_utf8(line).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

fn new_key() -> Result<KeyPair> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("cannot make a key")
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(AUTHORITY);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = OffsetDateTime::now_utc() - CLOCK_SKEW;
    params.not_after = OffsetDateTime::now_utc() + AUTHORITY_LIFETIME;
    params
}

fn server_params(names: &[String]) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(names.to_vec()).context("cannot put these names into a certificate")?;
    params.distinguished_name = named("ProbeOps broker");
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = OffsetDateTime::now_utc() - CLOCK_SKEW;
    params.not_after = OffsetDateTime::now_utc() + CERTIFICATE_LIFETIME;
    Ok(params)
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// Whether clients that trust `authority` would accept the certificate for all `names`, now and until it is time to renew it.
fn is_good(authority: &CertificateDer<'_>, certificate: &str, names: &[String]) -> bool {
    let Ok(certificate) = CertificateDer::from_pem_slice(certificate.as_bytes()) else { return false };
    let mut roots = RootCertStore::empty();
    if roots.add(authority.clone().into_owned()).is_err() {
        return false;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let Ok(verifier) = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build() else { return false };
    let now = UnixTime::now();
    [now, UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()) + RENEW_BEFORE)].into_iter().all(|at| {
        names.iter().all(|name| {
            ServerName::try_from(name.as_str()).is_ok_and(|name| verifier.verify_server_cert(&certificate, &[], &name, &[], at).is_ok())
        })
    })
}

/// Whether the key is that of the certificate.
fn is_of(certificate: &CertificateDer<'static>, key: &str) -> bool {
    let Ok(key) = PrivateKeyDer::from_pem_slice(key.as_bytes()) else { return false };
    CertifiedKey::from_der(vec![certificate.clone()], key, &rustls::crypto::ring::default_provider()).is_ok()
}

/// Whether the key is the certificate's own. It is not when a crash came between the writing of the two.
fn belong_together(certificate: &str, key: &str) -> bool {
    CertificateDer::from_pem_slice(certificate.as_bytes()).is_ok_and(|certificate| is_of(&certificate, key))
}

/// What mends a damaged authority.
fn cure(layout: &Layout) -> String {
    format!("restore it from a backup, or remove the folder {} (clients then need the new ca.pem)", layout.tls_dir().display())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = read(path)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match read {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        // The parser's own words are about bytes, and help nobody.
        Ok(_) | Err(_) => bail!("{} holds no whole certificate in PEM form", path.display()),
    }
}

fn read(path: &Path) -> Result<String> {
    files::read_if_exists(path)?.ok_or_else(|| anyhow!("there is no file {}", path.display()))
}

#[cfg(test)]
mod tests;
