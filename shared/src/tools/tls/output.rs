//! What `openssl s_client -brief` would print, and the chain as `openssl s_client` prints it.

use std::fmt::Write as _;

use crate::host::Host;
use crate::tls::{Certificate, CertificateProblem, OcspStaple, ProblemCode, TlsSession};
use crate::tools::tcp::report::PortState;

use super::report::{Handshake, TlsProgress, TlsReport, VersionOffer};

/// The whole of a run.
pub(super) fn whole(target: &Host, report: &TlsReport) -> String {
    let mut text = handshake(target, report);
    for offer in report.versions.iter().flatten() {
        text += &version(offer);
    }
    if report.state == PortState::Open {
        text += "DONE\n";
    }
    text
}

/// What is printed as it happens.
pub(super) fn of_progress(target: &Host, progress: &TlsProgress) -> String {
    match progress {
        TlsProgress::Handshake(report) => handshake(target, report),
        TlsProgress::Version(offer) => version(offer),
        TlsProgress::Resolved(_) | TlsProgress::Connected { .. } | TlsProgress::StartedTls { .. } => String::new(),
    }
}

fn version(offer: &VersionOffer) -> String {
    let name = offer.version.printed();
    match (&offer.cipher, &offer.failure) {
        (Some(cipher), _) => format!("{name}: accepted, {}\n", openssl_cipher(cipher)),
        (None, Some(failure)) => format!("{name}: refused, {failure}\n"),
        (None, None) => format!("{name}: {}\n", if offer.accepted { "accepted" } else { "refused" }),
    }
}

fn handshake(target: &Host, report: &TlsReport) -> String {
    let mut text = String::new();
    if report.state != PortState::Open {
        let reason = report.reason.as_deref().unwrap_or(report.state.as_str());
        return format!("connect to {} port {} failed: {reason}\n", target.with_address(report.address), report.port);
    }
    for problem in &report.session.problems {
        let depth = problem.certificate.unwrap_or(0);
        let subject = report.session.chain.get(depth).map_or("?", |certificate| certificate.subject.as_str());
        let _ = writeln!(text, "depth={depth} {subject}\nverify error:{} ({})", openssl_words(problem), problem.detail);
    }
    match (report.handshake, &report.failure) {
        (Handshake::Completed, _) => text += "CONNECTION ESTABLISHED\n",
        (Handshake::Shown, _) => text += "CONNECTION NOT ESTABLISHED: the server chose what is too old to be spoken; it showed this\n",
        (Handshake::Failed, Some(failure)) => {
            let _ = writeln!(text, "CONNECTION NOT ESTABLISHED: {failure}");
        }
        (Handshake::Failed, None) => text += "CONNECTION NOT ESTABLISHED\n",
    }
    text + &session(&report.session)
}

/// What was agreed, and the chain.
pub(super) fn session(session: &TlsSession) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = writeln!(text, "{name}: {value}");
        }
    };
    line("Protocol version", session.version.map(|version| version.printed().to_owned()));
    line("Ciphersuite", session.cipher.as_deref().map(openssl_cipher));
    line("Requested client certificate", (session.client_certificate_requested == Some(true)).then(|| "yes".to_owned()));
    line("Peer certificate", session.chain.first().map(|own| own.subject.clone()));
    let signature = session.signature_scheme.as_deref().map(signature);
    line("Hash used", signature.as_ref().map(|(hash, _)| hash.clone()));
    line("Signature type", signature.map(|(_, kind)| kind));
    match (session.verified, session.problems.last()) {
        (Some(true), _) => {
            line("Verification", Some("OK".to_owned()));
            line("Verified peername", Some(session.server_name.clone()));
        }
        (Some(false), problem) => line("Verification error", Some(problem.map_or("not trusted", without_number).to_owned())),
        (None, _) => {}
    }
    line("Server Temp Key", session.group.as_deref().map(temporary_key));
    line("ALPN protocol", session.alpn.clone());
    line("OCSP response", session.ocsp.as_ref().map(ocsp));
    line("Days left", session.days_left.map(|days| days.to_string()));
    if !session.chain.is_empty() {
        text += "---\nCertificate chain\n";
    }
    for (index, certificate) in session.chain.iter().enumerate() {
        text += &link(index, certificate);
    }
    if !session.chain.is_empty() {
        text += "---\n";
    }
    text
}

/// One certificate of the chain, as openssl prints it; the last two lines are ours.
fn link(index: usize, certificate: &Certificate) -> String {
    let Certificate { subject, issuer, key, signature_algorithm, san, sha256, spki_sha256, serial, .. } = certificate;
    let kind = match key.kind.as_str() {
        "RSA" => "rsaEncryption",
        "EC" => "id-ecPublicKey",
        other => other,
    };
    let bits = key.bits.map_or_else(String::new, |bits| format!(", {bits} (bit)"));
    let (from, to) = (certificate.not_before.calendar_gmt(), certificate.not_after.calendar_gmt());
    let mut text = format!("{index:2} s:{subject}\n   i:{issuer}\n   a:PKEY: {kind}{bits}; sigalg: {signature_algorithm}\n");
    let _ = writeln!(text, "   v:NotBefore: {from}; NotAfter: {to}");
    if !san.is_empty() {
        let _ = writeln!(text, "   n:{}", san.join(", "));
    }
    let _ = writeln!(text, "   f:serial {serial}; SHA-256 {sha256}; SPKI SHA-256 {spki_sha256}");
    text + certificate.pem.as_deref().unwrap_or_default()
}

fn ocsp(staple: &OcspStaple) -> String {
    let mut text = staple.status.to_string();
    if let Some(at) = staple.revoked_at {
        let _ = write!(text, " since {}", at.calendar_gmt());
    }
    if let Some(at) = staple.this_update {
        let _ = write!(text, ", this update {}", at.calendar_gmt());
    }
    if let Some(at) = staple.next_update {
        let _ = write!(text, ", next update {}", at.calendar_gmt());
    }
    let signed = match staple.signature_valid {
        Some(true) => ", signed by the authority",
        Some(false) => ", NOT signed by the authority",
        None => "",
    };
    text + signed
}

/// openssl's number and words for it (openssl-verification-options(1)), as far as it has any.
pub(super) fn openssl_words(problem: &CertificateProblem) -> &'static str {
    match problem.code {
        ProblemCode::Expired => "num=10:certificate has expired",
        ProblemCode::NotYetValid => "num=9:certificate is not yet valid",
        ProblemCode::NameMismatch => "num=62:hostname mismatch",
        ProblemCode::UnknownIssuer => "num=20:unable to get local issuer certificate",
        ProblemCode::SelfSigned => "num=18:self-signed certificate",
        ProblemCode::WeakKey => "num=66:EE certificate key too weak",
        ProblemCode::WeakSignature => "num=68:CA signature digest algorithm too weak",
        ProblemCode::BadSignature => "num=7:certificate signature failure",
        ProblemCode::Revoked => "num=23:certificate revoked",
        ProblemCode::WrongPurpose => "num=26:unsuitable certificate purpose",
        ProblemCode::NotAnAuthority => "num=79:invalid CA certificate",
        ProblemCode::NameConstraint => "num=47:permitted subtree violation",
        ProblemCode::Unsupported => "num=1:unspecified certificate verification error",
    }
}

fn without_number(problem: &CertificateProblem) -> &'static str {
    let words = openssl_words(problem);
    words.split_once(':').map_or(words, |(_, words)| words)
}

/// The name that openssl has for a cipher suite; those of TLS 1.3 have the same.
pub(crate) fn openssl_cipher(iana: &str) -> String {
    let Some((exchange, cipher)) = iana.strip_prefix("TLS_").and_then(|name| name.split_once("_WITH_")) else { return iana.to_owned() };
    let exchange = if exchange == "RSA" { String::new() } else { format!("{}-", exchange.replace('_', "-")) };
    let cipher = match cipher {
        "3DES_EDE_CBC_SHA" => "DES-CBC3-SHA".to_owned(),
        "CHACHA20_POLY1305_SHA256" => "CHACHA20-POLY1305".to_owned(),
        "RC4_128_SHA" => "RC4-SHA".to_owned(),
        "RC4_128_MD5" => "RC4-MD5".to_owned(),
        other => other.replace("_CBC_", "_").replace("AES_", "AES").replace("CAMELLIA_", "CAMELLIA").replace('_', "-"),
    };
    exchange + &cipher
}

/// Hash and kind of a signature scheme, in openssl's words.
fn signature(scheme: &str) -> (String, String) {
    let hash = scheme.rsplit('_').next().filter(|last| last.starts_with("SHA")).unwrap_or("UNDEF");
    let kind = match scheme {
        _ if scheme.starts_with("ECDSA") => "ECDSA",
        _ if scheme.starts_with("RSA_PSS") => "RSA-PSS",
        _ if scheme.starts_with("RSA") => "RSA",
        "ED25519" => "ed25519",
        other => other,
    };
    (hash.to_owned(), kind.to_owned())
}

fn temporary_key(group: &str) -> String {
    match group {
        "X25519" => "X25519, 253 bits".to_owned(),
        "secp256r1" => "ECDH, prime256v1, 256 bits".to_owned(),
        "secp384r1" => "ECDH, secp384r1, 384 bits".to_owned(),
        other => other.to_owned(),
    }
}
