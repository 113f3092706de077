//! Authorities, certificates and servers for tests, all made on the spot.

use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Who signs certificates.
pub(crate) struct Authority {
    /// Its own certificate.
    pub(crate) certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key.
pub(crate) struct Identity {
    /// The certificate.
    pub(crate) certificate: rcgen::Certificate,
    /// Its key.
    pub(crate) key: KeyPair,
}

impl Identity {
    /// The key as rustls takes it.
    pub(crate) fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key.serialize_der()).unwrap()
    }

    /// Its certificate followed by others.
    pub(crate) fn chain(&self, others: &[&Authority]) -> Vec<CertificateDer<'static>> {
        let others = others.iter().map(|authority| authority.certificate.der().clone());
        std::iter::once(self.certificate.der().clone()).chain(others).collect()
    }
}

impl Authority {
    /// One that signs itself.
    pub(crate) fn root(name: &str) -> Self {
        let (params, key) = (authority_params(name), KeyPair::generate().unwrap());
        Self { certificate: params.self_signed(&key).unwrap(), issuer: Issuer::new(params, key) }
    }

    /// One below this.
    pub(crate) fn below(&self, name: &str) -> Self {
        let (params, key) = (authority_params(name), KeyPair::generate().unwrap());
        Self { certificate: params.signed_by(&key, &self.issuer).unwrap(), issuer: Issuer::new(params, key) }
    }

    /// Its key, PEM.
    pub(crate) fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A server's certificate for these names.
    pub(crate) fn certify(&self, names: &[&str]) -> Identity {
        self.certify_with(names, |_| {})
    }

    /// The same, changed.
    pub(crate) fn certify_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let (params, key) = (params(names, change), KeyPair::generate().unwrap());
        Identity { certificate: params.signed_by(&key, &self.issuer).unwrap(), key }
    }
}

/// A server's certificate that nobody vouches for.
pub(crate) fn self_signed(names: &[&str]) -> Identity {
    let key = KeyPair::generate().unwrap();
    Identity { certificate: params(names, |_| {}).self_signed(&key).unwrap(), key }
}

/// Makes the validity begin and end this many days from now, and an hour, so that a day is never half over.
pub(crate) fn valid(params: &mut CertificateParams, from_days: i64, to_days: i64) {
    let now = OffsetDateTime::now_utc();
    (params.not_before, params.not_after) =
        (now + time::Duration::days(from_days), now + time::Duration::days(to_days) + time::Duration::HOUR);
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid(&mut params, -10, 1000);
    params
}

fn params(names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, names.first().copied().unwrap_or("nobody"));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    valid(&mut params, -1, 90);
    change(&mut params);
    params
}

/// What a server needs to speak TLS with this chain.
pub(crate) fn server_config(identity: &Identity, others: &[&Authority]) -> ServerConfig {
    ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(identity.chain(others), identity.key_der())
        .unwrap()
}

/// A server that greets whoever comes, keeps the connection until the other side ends it, and goes with the test's runtime.
pub(crate) async fn serve(config: ServerConfig) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    drop(tokio::io::copy(&mut stream, &mut tokio::io::sink()).await);
                }
            });
        }
    });
    address
}

/// A fresh folder that goes with its owner.
pub(crate) struct Scratch(std::path::PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        let path = std::env::temp_dir().join(format!("probeops-agent-{}-{:016x}", std::process::id(), rand::random::<u64>()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}
