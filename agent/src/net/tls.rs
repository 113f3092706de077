//! TLS to a server, and all that it shows of itself, whether it is to be trusted or not.
//!
//! ```text
//! let terms = Terms::new(&host);                       // strict, TLS 1.2 and 1.3, the authorities that the machine trusts
//! let (stream, session) = tls::connect(tcp, &terms).await?;
//! ```
//!
//! Whoever speaks TLS does it here: the chain is judged in one place ([`judge`]), the caller bounds the wait, and dropping the future closes
//! the connection. Nothing is resolved or connected here, so policy is the caller's.

pub(crate) mod certificate;
mod der;
pub(crate) mod hello;
mod judge;
pub(crate) mod ocsp;
mod roots;
mod verifier;

use std::io;
use std::sync::Arc;

use probeops_shared::host::Host;
use probeops_shared::tls::pem::{CertificatesPem, PrivateKeyPem};
use probeops_shared::tls::{TlsFailure, TlsFailureCode, TlsSession, TlsVersion};
use rustls::client::ResolvesClientCert;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ProtocolVersion, SupportedProtocolVersion};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use verifier::{ClientIdentity, Witness};

/// What becomes of a connection whose chain is not trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// It fails, with an alert to the server.
    Strict,
    /// It goes on; the session says what is wrong.
    Inspect,
}

/// Whose word counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Anchors {
    /// That of the authorities of this machine, and of those named.
    Machine,
    /// That of those named, and of nobody else.
    Named,
}

/// What a handshake is to be like.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    /// Whom the certificate must be for. A name is sent in clear (SNI), an address is not.
    pub(crate) name: Host,
    /// Whether to go on with whom one cannot trust.
    pub(crate) trust: Trust,
    /// The application protocols to offer, best first; none to say nothing of it.
    pub(crate) alpn: Vec<String>,
    /// The oldest version to offer; 1.2 where it is an older one.
    pub(crate) min: TlsVersion,
    /// The newest; with one older than 1.2 there is nothing to offer, and [`hello`] is what is wanted.
    pub(crate) max: TlsVersion,
    /// Whether the machine's authorities are trusted.
    pub(crate) anchors: Anchors,
    /// Authorities that are named; a server's own certificate may be among them.
    pub(crate) authorities: Vec<CertificateDer<'static>>,
    /// What to show a server that asks who we are.
    pub(crate) identity: Option<Arc<CertifiedKey>>,
    /// Whether the session carries the certificates themselves.
    pub(crate) pem: bool,
}

impl Terms {
    /// Strict, with every version there is, and no protocol named.
    pub(crate) fn new(name: &Host) -> Self {
        Self {
            name: name.clone(),
            trust: Trust::Strict,
            alpn: Vec::new(),
            min: TlsVersion::V1_2,
            max: TlsVersion::V1_3,
            anchors: Anchors::Machine,
            authorities: Vec::new(),
            identity: None,
            pem: false,
        }
    }
}

/// A handshake that failed: why, and what the server showed until then.
#[derive(Debug)]
pub(crate) struct Refused {
    /// Why.
    pub(crate) failure: TlsFailure,
    /// What there was; its chain is empty when the server sent none.
    pub(crate) session: Box<TlsSession>,
}

/// Greets the server on the other side of `stream`. The caller bounds the wait.
pub(crate) async fn connect<S>(stream: S, terms: &Terms) -> Result<(TlsStream<S>, TlsSession), Refused>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let refused = |code, detail: String| Refused { failure: TlsFailure { code, detail }, session: Box::new(first_words(terms)) };
    let name = server_name(&terms.name).map_err(|detail| refused(TlsFailureCode::Protocol, detail))?;
    let provider = Arc::new(ring::default_provider());
    let witness = Arc::new(Witness::new(terms, roots::of(terms).await, provider.signature_verification_algorithms));
    let identity = Arc::new(ClientIdentity::new(terms.identity.clone()));
    let config = config(provider, terms, &witness, &identity).map_err(|error| refused(TlsFailureCode::Incompatible, error.to_string()))?;
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let mut session = first_words(terms);
    witness.tell(&mut session, terms.pem);
    match connected {
        Ok(stream) => {
            tell_agreed(&stream, &mut session);
            session.client_certificate_requested = Some(identity.was_asked());
            Ok((stream, session))
        }
        Err(error) => {
            session.client_certificate_requested = identity.was_asked().then_some(true);
            Err(Refused { failure: failure(&error, &session), session: Box::new(session) })
        }
    }
}

/// The certificates of a caller's text.
pub(crate) fn certificates(pem: &CertificatesPem) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_str().as_bytes()).collect();
    let certificates = read.ok().filter(|certificates| !certificates.is_empty()).ok_or("holds no whole certificate in PEM form")?;
    match certificates.iter().find(|certificate| !certificate::is_readable(certificate)) {
        Some(_) => Err("holds a certificate that cannot be read (X.509, DER in PEM)".to_owned()),
        None => Ok(certificates),
    }
}

/// The identity of a caller's texts: a chain and the key to its first certificate.
pub(crate) fn identity(chain: &CertificatesPem, key: &PrivateKeyPem) -> Result<Arc<CertifiedKey>, String> {
    let chain = certificates(chain)?;
    // The parser's own words could show a part of the key.
    let key = PrivateKeyDer::from_pem_slice(key.as_str().as_bytes()).map_err(|_| "the key holds no whole private key in PEM form")?;
    let certified = CertifiedKey::from_der(chain, key, &ring::default_provider());
    certified.map(Arc::new).map_err(|_| "the key is of an unknown kind, or not the certificate's".to_owned())
}

/// The name as rustls takes it.
fn server_name(host: &Host) -> Result<ServerName<'static>, String> {
    match host {
        Host::Address(address) => Ok(ServerName::IpAddress((*address).into())),
        Host::Name(name) => ServerName::try_from(name.clone()).map_err(|_| format!("`{name}` is no name that a certificate can be for")),
    }
}

fn config(
    provider: Arc<CryptoProvider>,
    terms: &Terms,
    witness: &Arc<Witness>,
    identity: &Arc<ClientIdentity>,
) -> Result<ClientConfig, rustls::Error> {
    let offered = |version: &TlsVersion| (terms.min.number()..=terms.max.number()).contains(&version.number());
    let known: [(TlsVersion, &SupportedProtocolVersion); 2] = [(TlsVersion::V1_3, &TLS13), (TlsVersion::V1_2, &TLS12)];
    let versions: Vec<_> = known.into_iter().filter(|(version, _)| offered(version)).map(|(_, version)| version).collect();
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(witness) as _)
        .with_client_cert_resolver(Arc::clone(identity) as Arc<dyn ResolvesClientCert>);
    config.alpn_protocols = terms.alpn.iter().map(|protocol| protocol.clone().into_bytes()).collect();
    // Every run greets as a stranger: what is measured is a whole handshake.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// What is known of a session before it begins.
fn first_words(terms: &Terms) -> TlsSession {
    TlsSession { server_name: terms.name.to_string(), sni: terms.name.address().is_none(), ..TlsSession::default() }
}

fn tell_agreed<S>(stream: &TlsStream<S>, session: &mut TlsSession) {
    let (_, connection) = stream.get_ref();
    session.version = connection.protocol_version().and_then(|version| match version {
        ProtocolVersion::TLSv1_2 => Some(TlsVersion::V1_2),
        ProtocolVersion::TLSv1_3 => Some(TlsVersion::V1_3),
        _ => None,
    });
    // rustls marks the suites of TLS 1.3; the registry of IANA does not.
    session.cipher =
        connection.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str().map(|name| name.replacen("TLS13_", "TLS_", 1)));
    session.group = connection
        .negotiated_key_exchange_group()
        .map(|group| group.name().as_str().map_or_else(|| format!("{:?}", group.name()), str::to_owned));
    session.alpn = connection.alpn_protocol().map(|protocol| String::from_utf8_lossy(protocol).into_owned());
}

/// Why a handshake failed, in our words and rustls' own.
fn failure(error: &io::Error, session: &TlsSession) -> TlsFailure {
    use rustls::Error;
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let (code, detail) = match inner {
        Some(Error::AlertReceived(alert)) => {
            (TlsFailureCode::Alert, format!("the server sent the alert {}", alert.as_str().unwrap_or("of an unknown number")))
        }
        Some(Error::InvalidCertificate(_)) if !session.problems.is_empty() => {
            let problems: Vec<String> = session.problems.iter().map(|problem| problem.detail.clone()).collect();
            (TlsFailureCode::Certificate, format!("the certificate is not trusted: {}", problems.join("; ")))
        }
        Some(error @ Error::InvalidCertificate(_)) => (TlsFailureCode::Certificate, error.to_string()),
        Some(Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) => {
            (TlsFailureCode::NotTls, "the server answers with something that is not TLS".to_owned())
        }
        Some(error @ Error::PeerIncompatible(_)) => (TlsFailureCode::Incompatible, error.to_string()),
        Some(error) => (TlsFailureCode::Protocol, error.to_string()),
        None if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
            (TlsFailureCode::Closed, "the server ended the connection during the handshake".to_owned())
        }
        None => (TlsFailureCode::Protocol, crate::net::words(error)),
    };
    TlsFailure { code, detail }
}

#[cfg(test)]
pub(crate) mod tests;
