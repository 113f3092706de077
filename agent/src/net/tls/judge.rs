//! Whether a chain is to be trusted, and if not, every reason why: a library stops at the first.

use std::sync::Arc;

use probeops_shared::tls::{CertificateProblem, OcspStaple, OcspStatus, ProblemCode, PublicKey};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, Error, RootCertStore};
use x509_parser::certificate::X509Certificate;

use super::certificate;

/// The shortest RSA key that is still trusted (CA/Browser Forum baseline requirements, 6.1.5).
const RSA_BITS_MIN: usize = 2048;
/// The shortest key on an elliptic curve.
const EC_BITS_MIN: usize = 256;

/// Whom to trust, and by which means.
#[derive(Clone, Debug)]
pub(super) struct Authorities {
    /// Those of the machine and those named.
    pub(super) roots: Arc<RootCertStore>,
    /// Those named by the caller; a server's own certificate may be among them.
    pub(super) named: Vec<CertificateDer<'static>>,
    /// Which signatures can be verified.
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

/// Every reason not to trust the chain for this name at this time; none when it is to be trusted.
pub(super) fn problems(
    chain: &[CertificateDer<'static>],
    name: &ServerName<'_>,
    staple: Option<&OcspStaple>,
    now: UnixTime,
    authorities: &Authorities,
) -> Vec<CertificateProblem> {
    let Some((own, others)) = chain.split_first() else {
        return vec![problem(ProblemCode::Unsupported, None, "the server sent no certificate".to_owned())];
    };
    let parsed: Vec<Option<X509Certificate<'_>>> = chain.iter().map(certificate::parse).collect();
    let case = Case { own, others, parsed, now: i64::try_from(now.as_secs()).unwrap_or(i64::MAX), authorities };
    let mut found = Vec::new();
    match ParsedCertificate::try_from(own) {
        Ok(end_entity) => {
            case.judge_path(&end_entity, &mut found);
            if let Err(error) = verify_server_name(&end_entity, name) {
                found.push(problem(ProblemCode::NameMismatch, Some(0), name_words(&error, name)));
            }
        }
        Err(error) => {
            found.extend(case.times(0..1));
            found.push(problem(ProblemCode::Unsupported, Some(0), unsupported_words(case.own_parsed(), &error)));
            found.extend(case.self_signed());
        }
    }
    found.extend(case.weak_key(0));
    if let Some(staple) = staple.filter(|staple| staple.status == OcspStatus::Revoked && staple.signature_valid != Some(false)) {
        let when = staple.revoked_at.map_or_else(String::new, |at| format!(" on {at}"));
        found.push(problem(ProblemCode::Revoked, Some(0), format!("its authority revoked it{when}, says the stapled OCSP answer")));
    }
    // In the order in which openssl looks, so that the last, which it prints, is the same.
    found.sort_by_key(|problem| rank(problem.code));
    found
}

fn rank(code: ProblemCode) -> u8 {
    match code {
        ProblemCode::Unsupported
        | ProblemCode::UnknownIssuer
        | ProblemCode::SelfSigned
        | ProblemCode::WrongPurpose
        | ProblemCode::NotAnAuthority
        | ProblemCode::NameConstraint => 0,
        ProblemCode::WeakKey | ProblemCode::WeakSignature => 1,
        ProblemCode::NameMismatch => 2,
        ProblemCode::Revoked => 3,
        ProblemCode::BadSignature => 4,
        ProblemCode::Expired | ProblemCode::NotYetValid => 5,
    }
}

fn problem(code: ProblemCode, certificate: Option<usize>, detail: String) -> CertificateProblem {
    CertificateProblem { code, certificate, detail }
}

/// A chain before the judge.
struct Case<'a> {
    own: &'a CertificateDer<'static>,
    others: &'a [CertificateDer<'static>],
    /// All of them; `None` what cannot be read.
    parsed: Vec<Option<X509Certificate<'a>>>,
    /// Seconds since the Unix epoch.
    now: i64,
    authorities: &'a Authorities,
}

impl<'a> Case<'a> {
    /// What stands between the server's certificate and an authority. Times are looked at apart, so that they hide nothing else.
    fn judge_path(&self, end_entity: &ParsedCertificate<'_>, found: &mut Vec<CertificateProblem>) {
        let timely: Vec<_> = self.times(0..1).collect();
        let trusted_itself = self.authorities.named.contains(self.own);
        let at_once = if trusted_itself { Ok(()) } else { self.path(end_entity, self.now) };
        if at_once.is_ok() {
            return found.extend(timely);
        }
        found.extend(timely);
        found.extend(self.times(1..self.parsed.len()));
        let Err(error) = self.path(end_entity, self.a_good_time()) else { return };
        let reasons = self.reasons(&error);
        // Nothing that we know of: then what the library says.
        if reasons.is_empty() && found.is_empty() {
            found.push(problem(ProblemCode::Unsupported, None, error.to_string()));
        }
        found.extend(reasons);
    }

    /// The library's verdict at a time.
    fn path(&self, end_entity: &ParsedCertificate<'_>, at: i64) -> Result<(), Error> {
        let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(u64::try_from(at).unwrap_or_default()));
        let Authorities { roots, algorithms, .. } = self.authorities;
        verify_server_cert_signed_by_trust_anchor(end_entity, roots, self.others, at, algorithms.all)
    }

    /// A time at which all the certificates are valid; if there is none, one at which the server's own is.
    fn a_good_time(&self) -> i64 {
        let spans = || self.parsed.iter().flatten().map(|certificate| certificate.validity());
        let from = spans().map(|span| span.not_before.timestamp()).max().unwrap_or(self.now);
        let to = spans().map(|span| span.not_after.timestamp()).min().unwrap_or(self.now);
        let own = || self.own_parsed().map(|own| (own.validity().not_before.timestamp(), own.validity().not_after.timestamp()));
        let (from, to) = if from <= to { (from, to) } else { own().unwrap_or((self.now, self.now)) };
        self.now.clamp(from, to.max(from))
    }

    /// Those of these certificates that are not valid now.
    fn times(&self, range: std::ops::Range<usize>) -> impl Iterator<Item = CertificateProblem> {
        range.filter_map(|index| {
            let validity = self.parsed.get(index)?.as_ref()?.validity();
            let whose = whose(index);
            if self.now > validity.not_after.timestamp() {
                let ended = certificate::timestamp(validity.not_after).calendar();
                Some(problem(ProblemCode::Expired, Some(index), format!("{whose} expired on {ended}")))
            } else if self.now < validity.not_before.timestamp() {
                let begins = certificate::timestamp(validity.not_before).calendar();
                Some(problem(ProblemCode::NotYetValid, Some(index), format!("{whose} is not valid before {begins}")))
            } else {
                None
            }
        })
    }

    /// What a failed path means.
    fn reasons(&self, error: &Error) -> Vec<CertificateProblem> {
        if let Some(by_itself) = self.self_signed() {
            return vec![by_itself];
        }
        let mut found: Vec<_> = (1..self.parsed.len()).filter_map(|index| self.weak_key(index)).collect();
        found.extend((0..self.parsed.len()).filter_map(|index| self.signature(index)));
        let weak = !found.is_empty();
        let words = error.to_string();
        match error {
            Error::InvalidCertificate(CertificateError::BadSignature) if !weak => {
                found.push(problem(ProblemCode::BadSignature, None, "a signature in the chain is not right".to_owned()));
            }
            Error::InvalidCertificate(
                CertificateError::UnsupportedSignatureAlgorithmContext { .. }
                | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. },
            ) if !weak => {
                found.push(problem(ProblemCode::Unsupported, None, format!("a signature in the chain cannot be verified: {words}")));
            }
            Error::InvalidCertificate(CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. }) => {
                found.push(problem(ProblemCode::WrongPurpose, None, "a certificate of the chain is not for servers".to_owned()));
            }
            Error::InvalidCertificate(CertificateError::UnknownIssuer) if !weak => found.push(self.unknown_issuer()),
            _ if words.contains("NameConstraint") => {
                found.push(problem(ProblemCode::NameConstraint, None, "an authority of the chain may not certify this name".to_owned()));
            }
            _ if ["EndEntityUsedAsCa", "PathLenConstraintViolated"].iter().any(|name| words.contains(name)) => {
                found.push(problem(ProblemCode::NotAnAuthority, None, "a certificate of the chain signs another and may not".to_owned()));
            }
            _ if words.contains("CaUsedAsEndEntity") => {
                found.push(problem(ProblemCode::WrongPurpose, Some(0), "the server's certificate is that of an authority".to_owned()));
            }
            _ => {}
        }
        found
    }

    /// Signed by itself: so that nobody else vouches for it.
    fn self_signed(&self) -> Option<CertificateProblem> {
        let own = self.own_parsed().filter(|own| is_self_signed(own))?;
        Some(problem(ProblemCode::SelfSigned, Some(0), format!("the server's certificate ({}) is signed by itself", own.subject())))
    }

    /// A chain that ends with somebody whom the node does not know.
    fn unknown_issuer(&self) -> CertificateProblem {
        let last = self.links().last().copied().unwrap_or(0);
        let detail = match self.parsed.get(last).and_then(Option::as_ref) {
            Some(root) if is_self_signed(root) => {
                format!("the chain ends with an authority that the node does not trust: {}", root.subject())
            }
            Some(end) => {
                format!("{} is signed by `{}`, which the server did not send and the node does not know", whose(last), end.issuer())
            }
            None => "the chain does not lead to an authority that the node trusts".to_owned(),
        };
        problem(ProblemCode::UnknownIssuer, Some(last), detail)
    }

    /// From the server's certificate upwards, each followed by its issuer, as far as they were sent.
    fn links(&self) -> Vec<usize> {
        let mut links = vec![0];
        while let Some(next) = links.last().and_then(|last| self.issuer_of(*last)).filter(|next| !links.contains(next)) {
            links.push(next);
        }
        links
    }

    fn issuer_of(&self, index: usize) -> Option<usize> {
        let issuer = self.parsed.get(index)?.as_ref()?.issuer();
        (1..self.parsed.len())
            .find(|other| *other != index && self.parsed.get(*other).and_then(Option::as_ref).is_some_and(|it| it.subject() == issuer))
    }

    /// A signature that is not right, or forgeable.
    fn signature(&self, index: usize) -> Option<CertificateProblem> {
        let signed = self.parsed.get(index)?.as_ref()?;
        if is_self_signed(signed) {
            return None;
        }
        let algorithm = certificate::signature_algorithm(signed);
        if ["sha1", "SHA1", "md5", "md2"].iter().any(|weak| algorithm.contains(weak)) {
            return Some(problem(
                ProblemCode::WeakSignature,
                Some(index),
                format!("{} is signed with {algorithm}, which can be forged", whose(index)),
            ));
        }
        let issuer = self.parsed.get(self.issuer_of(index)?)?.as_ref()?;
        let verdict = signed.verify_signature(Some(issuer.public_key()));
        let wrong = verdict == Err(x509_parser::error::X509Error::SignatureVerificationError)
            && weakness(&certificate::key(issuer.public_key())).is_none();
        wrong.then(|| {
            problem(ProblemCode::BadSignature, Some(index), format!("{} is not signed by the key of {}", whose(index), issuer.subject()))
        })
    }

    fn weak_key(&self, index: usize) -> Option<CertificateProblem> {
        let weakness = weakness(&certificate::key(self.parsed.get(index)?.as_ref()?.public_key()))?;
        Some(problem(ProblemCode::WeakKey, Some(index), format!("{} has {weakness}", whose(index))))
    }

    fn own_parsed(&self) -> Option<&X509Certificate<'a>> {
        self.parsed.first().and_then(Option::as_ref)
    }
}

fn whose(index: usize) -> String {
    if index == 0 { "the server's certificate".to_owned() } else { format!("certificate {index} of the chain") }
}

/// Whether subject and issuer are the same and the signature is its own, as far as that can be verified.
fn is_self_signed(certificate: &X509Certificate<'_>) -> bool {
    certificate.subject() == certificate.issuer()
        && (certificate.verify_signature(None) != Err(x509_parser::error::X509Error::SignatureVerificationError)
            || weakness(&certificate::key(certificate.public_key())).is_some())
}

/// What is wrong with a key, in words that follow "has".
fn weakness(key: &PublicKey) -> Option<String> {
    let min = match key.kind.as_str() {
        "RSA" => RSA_BITS_MIN,
        "EC" => EC_BITS_MIN,
        _ => return None,
    };
    let bits = key.bits.filter(|bits| *bits < min)?;
    Some(format!("a key of {bits} bits ({}), at least {min} are needed", key.kind))
}

/// rustls repeats the name that was asked for; whose names there are is what helps.
fn name_words(error: &Error, name: &ServerName<'_>) -> String {
    let asked = name.to_str();
    match error {
        Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. }) if !presented.is_empty() => {
            format!("the server's certificate is not for {asked}, but for {}", listed(presented))
        }
        _ => format!("the server's certificate is not for {asked}, and names nobody (it has no subjectAltName)"),
    }
}

/// The names as they stand in the certificate, a few of them.
fn listed(presented: &[String]) -> String {
    const SHOWN_MAX: usize = 5;
    let plain = |name: &String| {
        let inner = name.split_once('(').map_or(name.as_str(), |(_, inner)| inner.trim_end_matches(')'));
        inner.trim_matches('"').to_owned()
    };
    let shown: Vec<String> = presented.iter().take(SHOWN_MAX).map(plain).collect();
    let more = presented.len().saturating_sub(SHOWN_MAX);
    if more > 0 { format!("{} and {more} more", shown.join(", ")) } else { shown.join(", ") }
}

fn unsupported_words(own: Option<&X509Certificate<'_>>, error: &Error) -> String {
    match own {
        Some(own) if own.version().0 != 2 => {
            format!(
                "the server's certificate is of X.509 version {}, which says nothing of its use; version 3 is needed",
                own.version().0 + 1
            )
        }
        Some(_) | None => format!("the server's certificate cannot be read: {error}"),
    }
}
