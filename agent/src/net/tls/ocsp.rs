//! The answer about revocation that a server staples to its chain (RFC 6960).

use probeops_shared::timestamp::Timestamp;
use probeops_shared::tls::{OcspStaple, OcspStatus};
use rustls::pki_types::CertificateDer;
use x509_parser::asn1_rs::BitString;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::verify::verify_signature;
use x509_parser::x509::{AlgorithmIdentifier, SubjectPublicKeyInfo};

use super::certificate;
use super::der::{ENUMERATED, INTEGER, Item, OCTETS, OID, SEQUENCE, TIME, item, items, tagged};

/// `id-pkix-ocsp-basic` (RFC 6960, 4.2.1).
const BASIC_RESPONSE: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x01];
/// Context tags, constructed and primitive.
const CONTEXT_0: u8 = 0xa0;
const CONTEXT_1: u8 = 0xa1;
const GOOD: u8 = 0x80;
const UNKNOWN: u8 = 0x82;

/// What the staple says of the first certificate of `chain`.
pub(crate) fn read(staple: &[u8], chain: &[CertificateDer<'_>]) -> OcspStaple {
    let nothing = OcspStaple { size_bytes: staple.len(), ..OcspStaple::default() };
    let Some(response) = tagged(staple, SEQUENCE) else { return nothing };
    let Some(status) = tagged(response.content, ENUMERATED) else { return nothing };
    if status.content != [0] {
        return OcspStaple { status: OcspStatus::Refused, ..nothing };
    }
    answered(status.rest, chain).map_or(nothing, |answer| OcspStaple { size_bytes: staple.len(), ..answer })
}

/// A basic response in its wrappings.
fn answered(wrapped: &[u8], chain: &[CertificateDer<'_>]) -> Option<OcspStaple> {
    let response = tagged(tagged(wrapped, CONTEXT_0)?.content, SEQUENCE)?;
    let kind = tagged(response.content, OID)?;
    let basic = tagged(tagged(kind.rest, OCTETS).filter(|_| kind.content == BASIC_RESPONSE)?.content, SEQUENCE)?;
    let data = tagged(basic.content, SEQUENCE)?;
    let own = chain.first().and_then(certificate::parse)?;
    let single = singles(data)?.find(|single| serial(single.content) == Some(own.tbs_certificate.raw_serial()));
    let signature_valid = signed(data, chain);
    let Some(single) = single else {
        return Some(OcspStaple { status: OcspStatus::OtherCertificate, signature_valid, ..OcspStaple::default() });
    };
    let status = item(tagged(single.content, SEQUENCE)?.rest)?;
    let this_update = tagged(status.rest, TIME)?;
    let next_update = tagged(this_update.rest, CONTEXT_0).and_then(|next| tagged(next.content, TIME));
    let (status, revoked_at) = match status.tag {
        GOOD => (OcspStatus::Good, None),
        CONTEXT_1 => (OcspStatus::Revoked, tagged(status.content, TIME).and_then(time)),
        UNKNOWN => (OcspStatus::Unknown, None),
        _ => return None,
    };
    Some(OcspStaple {
        status,
        signature_valid,
        this_update: time(this_update),
        next_update: next_update.and_then(time),
        revoked_at,
        ..OcspStaple::default()
    })
}

/// The single responses of a `ResponseData`.
fn singles(data: Item<'_>) -> Option<impl Iterator<Item = Item<'_>>> {
    let first = item(data.content)?;
    // The version has a default, so it is mostly absent; then come who responds and when.
    let responder = if first.tag == CONTEXT_0 { item(first.rest)? } else { first };
    let produced = tagged(responder.rest, TIME)?;
    Some(items(tagged(produced.rest, SEQUENCE)?.content))
}

/// The serial number of a `SingleResponse`'s `CertID`.
fn serial(single: &[u8]) -> Option<&[u8]> {
    let identifier = tagged(single, SEQUENCE)?;
    let number = items(identifier.content).nth(3)?;
    (number.tag == INTEGER).then_some(number.content)
}

/// `YYYYMMDDHHMMSSZ`, the only form that DER and RFC 6960 allow.
fn time(item: Item<'_>) -> Option<Timestamp> {
    let text = str::from_utf8(item.content).ok().filter(|text| text.len() == 15 && text.is_ascii() && text.ends_with('Z'))?;
    let part = |from: usize, to: usize| text.get(from..to).unwrap_or_default();
    let (date, clock) = ([part(0, 4), part(4, 6), part(6, 8)].join("-"), [part(8, 10), part(10, 12), part(12, 14)].join(":"));
    Timestamp::parse(&format!("{date}T{clock}Z"))
}

/// Whether the issuer of the server's certificate signed the data, or whom it certified for that; `None` when that cannot be told.
fn signed(data: Item<'_>, chain: &[CertificateDer<'_>]) -> Option<bool> {
    let (after, algorithm) = AlgorithmIdentifier::from_der(data.rest).ok()?;
    let (after, signature) = BitString::from_der(after).ok()?;
    let own = chain.first().and_then(certificate::parse)?;
    let issuer = chain.iter().skip(1).filter_map(certificate::parse).find(|issuer| issuer.subject() == own.issuer())?;
    let by = |key: &SubjectPublicKeyInfo<'_>| verify_signature(key, &algorithm, &signature, data.whole).is_ok();
    if by(issuer.public_key()) {
        return Some(true);
    }
    let enclosed = tagged(after, CONTEXT_0).and_then(|certificates| tagged(certificates.content, SEQUENCE));
    let delegates = enclosed.into_iter().flat_map(|list| items(list.content));
    Some(delegates.filter_map(|der| X509Certificate::from_der(der.whole).ok()).any(|(_, delegate)| {
        is_delegate(&delegate) && delegate.verify_signature(Some(issuer.public_key())).is_ok() && by(delegate.public_key())
    }))
}

/// Whether a certificate is for signing such answers (RFC 6960, 4.2.2.2).
fn is_delegate(certificate: &X509Certificate<'_>) -> bool {
    certificate.extended_key_usage().ok().flatten().is_some_and(|usage| usage.value.ocsp_signing)
}
