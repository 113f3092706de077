//! What stands between rustls and a chain: it looks, remembers, judges, and lets pass whom it is told to let pass.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use probeops_shared::tls::{CertificateProblem, OcspStaple, ProblemCode, TlsSession};
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::judge::{self, Authorities};
use super::{Terms, Trust, certificate, ocsp, roots, server_name};

/// Sees a handshake.
#[derive(Debug)]
pub(super) struct Witness {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
    /// Until it has judged, which is once: a connection may last, and a list of authorities is long.
    authorities: Mutex<Option<Authorities>>,
    seen: Mutex<Seen>,
}

/// What it saw.
#[derive(Debug, Default)]
struct Seen {
    chain: Vec<CertificateDer<'static>>,
    at_unix_s: i64,
    ocsp: Option<OcspStaple>,
    problems: Vec<CertificateProblem>,
    signature_scheme: Option<SignatureScheme>,
}

impl Witness {
    pub(super) fn new(terms: &Terms, roots: Arc<RootCertStore>, algorithms: WebPkiSupportedAlgorithms) -> Self {
        let authorities = Mutex::new(Some(Authorities { roots, named: terms.authorities.clone(), algorithms }));
        Self { trust: terms.trust, algorithms, authorities, seen: Mutex::default() }
    }

    /// Adds what was seen to a session, once.
    pub(super) fn tell(&self, session: &mut TlsSession, pem: bool) {
        let seen = std::mem::take(&mut *self.seen());
        session.signature_scheme = seen.signature_scheme.map(|scheme| scheme.as_str().map_or_else(|| format!("{scheme:?}"), str::to_owned));
        session.chain = seen.chain.iter().map_while(|der| certificate::read(der, seen.at_unix_s, pem)).collect();
        session.days_left = session.chain.first().map(|own| own.days_left);
        session.verified = (!seen.chain.is_empty()).then_some(seen.problems.is_empty());
        (session.ocsp, session.problems) = (seen.ocsp, seen.problems);
    }

    /// Judges a chain and keeps it; says whether it is to be trusted.
    fn look(&self, chain: Vec<CertificateDer<'static>>, name: &ServerName<'_>, staple: &[u8], now: UnixTime) -> bool {
        let Some(authorities) = self.authorities.lock().unwrap_or_else(PoisonError::into_inner).take() else { return false };
        let ocsp = (!staple.is_empty()).then(|| ocsp::read(staple, &chain));
        let problems = judge::problems(&chain, name, ocsp.as_ref(), now, &authorities);
        let trusted = problems.is_empty();
        let at_unix_s = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        *self.seen() = Seen { chain, at_unix_s, ocsp, problems, signature_scheme: None };
        trusted
    }

    /// Keeps a verdict on the handshake's signature, and says what rustls shall make of it.
    fn signed(&self, scheme: SignatureScheme, verdict: Result<HandshakeSignatureValid, Error>) -> Result<HandshakeSignatureValid, Error> {
        let mut seen = self.seen();
        seen.signature_scheme = Some(scheme);
        let Err(error) = verdict else { return Ok(HandshakeSignatureValid::assertion()) };
        // With a key or a certificate that has been told of already a signature is not even tried.
        let told = seen.problems.iter().filter(|problem| problem.certificate == Some(0));
        if !told.map(|problem| problem.code).any(|code| matches!(code, ProblemCode::WeakKey | ProblemCode::Unsupported)) {
            let (code, how) = match &error {
                Error::InvalidCertificate(CertificateError::BadSignature) => (ProblemCode::BadSignature, "is not by the certificate's key"),
                _ => (ProblemCode::Unsupported, "cannot be verified"),
            };
            seen.problems.push(CertificateProblem {
                code,
                certificate: Some(0),
                detail: format!("the handshake's signature {how}: {error}"),
            });
        }
        match self.trust {
            Trust::Strict => Err(error),
            Trust::Inspect => Ok(HandshakeSignatureValid::assertion()),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        staple: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = std::iter::once(end_entity).chain(intermediates).map(|der| der.clone().into_owned()).collect();
        let trusted = self.look(chain, name, staple, now);
        match self.trust {
            Trust::Strict if !trusted => Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)),
            Trust::Strict | Trust::Inspect => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed(signed.scheme, verify_tls12_signature(message, certificate, signed, &self.algorithms))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed(signed.scheme, verify_tls13_signature(message, certificate, signed, &self.algorithms))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Adds to a session a chain that was shown without a handshake, and what is to be thought of it.
pub(super) async fn judge_shown(terms: &Terms, chain: Vec<CertificateDer<'static>>, staple: &[u8], session: &mut TlsSession) {
    let Ok(name) = server_name(&terms.name) else { return };
    let algorithms = ring::default_provider().signature_verification_algorithms;
    let witness = Witness::new(terms, roots::of(terms).await, algorithms);
    witness.look(chain, &name, staple, UnixTime::now());
    witness.tell(session, terms.pem);
}

/// Who we are, if a server asks; and whether it did.
#[derive(Debug)]
pub(super) struct ClientIdentity {
    certified: Option<Arc<CertifiedKey>>,
    asked: AtomicBool,
}

impl ClientIdentity {
    pub(super) fn new(certified: Option<Arc<CertifiedKey>>) -> Self {
        Self { certified, asked: AtomicBool::new(false) }
    }

    pub(super) fn was_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }
}

impl ResolvesClientCert for ClientIdentity {
    fn resolve(&self, _authorities: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Ordering::Relaxed);
        self.certified.clone()
    }

    fn has_certs(&self) -> bool {
        self.certified.is_some()
    }
}
