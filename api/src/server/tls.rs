//! What HTTPS needs. The only provider is ring.

use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::config::TlsFiles;

/// HTTP/2, as clients and servers name it while they agree.
pub(super) const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// Reads certificate and key.
pub(super) fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, String> {
    let (cert, key) = (files.cert.display(), files.key.display());
    let chain = certificates(&files.cert)?;
    let private =
        PrivateKeyDer::from_pem_file(&files.key).map_err(|error| format!("tls_key: no private key can be read from {key}: {error}"))?;
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| format!("TLS cannot be set up: {error}"))?.with_no_client_auth();
    let mut config = builder
        .with_single_cert(chain, private)
        .map_err(|error| format!("the certificate {cert} and the key {key} cannot be used together: {error}"))?;
    config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let unreadable = |error| format!("tls_cert: no certificate can be read from {}: {error}", path.display());
    let chain: Vec<_> = CertificateDer::pem_file_iter(path).map_err(unreadable)?.collect::<Result<_, _>>().map_err(unreadable)?;
    if chain.is_empty() {
        return Err(format!("tls_cert: {} has no certificate in it (it must be PEM)", path.display()));
    }
    Ok(chain)
}
