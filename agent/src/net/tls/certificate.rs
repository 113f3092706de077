//! What a certificate says.

use data_encoding::{BASE64, HEXLOWER};
use probeops_shared::planted;
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tls::{Certificate, PublicKey};
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::objects::{oid_registry, oid2sn};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_PKCS1_RSAENCRYPTION, Oid,
};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey as ParsedKey;
use x509_parser::time::ASN1Time;
use x509_parser::x509::SubjectPublicKeyInfo;

/// One day.
const DAY_S: i64 = 24 * 60 * 60;
/// How long a line of PEM is (RFC 7468, 2).
const PEM_LINE: usize = 64;

/// Parses it; nothing may follow it.
pub(super) fn parse<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    X509Certificate::from_der(der).ok().filter(|(rest, _)| rest.is_empty()).map(|(_, parsed)| parsed)
}

/// Whether it can be read at all.
pub(super) fn is_readable(der: &CertificateDer<'_>) -> bool {
    parse(der).is_some()
}

/// Its facts at this time, and itself if `pem`; `None` when it cannot be read.
pub(crate) fn read(der: &CertificateDer<'_>, at_unix_s: i64, pem: bool) -> Option<Certificate> {
    let parsed = parse(der)?;
    let not_after = parsed.validity().not_after;
    Some(Certificate {
        subject: printable(&parsed.subject().to_string()),
        issuer: printable(&parsed.issuer().to_string()),
        san: names(&parsed),
        serial: HEXLOWER.encode(parsed.raw_serial()),
        not_before: timestamp(parsed.validity().not_before),
        not_after: timestamp(not_after),
        days_left: (not_after.timestamp() - at_unix_s).div_euclid(DAY_S),
        key: key(parsed.public_key()),
        signature_algorithm: signature_algorithm(&parsed),
        is_ca: parsed.is_ca(),
        version: parsed.version().0 + 1,
        sha256: HEXLOWER.encode(&Sha256::digest(der)),
        spki_sha256: HEXLOWER.encode(&Sha256::digest(parsed.public_key().raw)),
        pem: pem.then(|| to_pem(der)),
    })
}

/// A key's kind, length and curve.
pub(super) fn key(spki: &SubjectPublicKeyInfo<'_>) -> PublicKey {
    let algorithm = &spki.algorithm.algorithm;
    if *algorithm == OID_PKCS1_RSAENCRYPTION {
        let bits = match spki.parsed() {
            Ok(ParsedKey::RSA(rsa)) => Some(bit_length(rsa.modulus)),
            Ok(_) | Err(_) => None,
        };
        return PublicKey { kind: "RSA".to_owned(), bits, curve: None };
    }
    if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = spki.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        let known = curve.as_ref().and_then(|curve| {
            [(OID_EC_P256, "P-256", 256), (OID_NIST_EC_P384, "P-384", 384), (OID_NIST_EC_P521, "P-521", 521)]
                .into_iter()
                .find(|(oid, ..)| oid == curve)
        });
        let (name, bits) = match (known, curve) {
            (Some((_, name, bits)), _) => (Some(name.to_owned()), Some(bits)),
            (None, Some(other)) => (Some(name_of(&other)), None),
            (None, None) => (None, None),
        };
        return PublicKey { kind: "EC".to_owned(), bits, curve: name };
    }
    // RFC 8410, 3; they have no entry in the registry.
    let (kind, bits) = match algorithm.to_id_string().as_str() {
        "1.3.101.112" => ("Ed25519".to_owned(), Some(256)),
        "1.3.101.113" => ("Ed448".to_owned(), Some(456)),
        _ => (name_of(algorithm), None),
    };
    PublicKey { kind, bits, curve: None }
}

/// How it is signed.
pub(super) fn signature_algorithm(parsed: &X509Certificate<'_>) -> String {
    name_of(&parsed.signature_algorithm.algorithm)
}

/// Seconds since the Unix epoch as a point in time; what is beyond the year 9999 is its end.
pub(super) fn timestamp(time: ASN1Time) -> Timestamp {
    from_unix_s(time.timestamp())
}

/// The same, of a plain number.
pub(super) fn from_unix_s(unix_s: i64) -> Timestamp {
    unix_s.checked_mul(1000).and_then(Timestamp::from_unix_ms).unwrap_or_else(Timestamp::now)
}

fn bit_length(number: &[u8]) -> usize {
    let significant: Vec<u8> = number.iter().copied().skip_while(|byte| *byte == 0).collect();
    significant.first().map_or(0, |first| significant.len() * 8 - first.leading_zeros() as usize)
}

/// The name that openssl has for an object identifier; its numbers where there is none.
fn name_of(oid: &Oid<'_>) -> String {
    oid2sn(oid, oid_registry()).map_or_else(|_| oid.to_id_string(), str::to_owned)
}

fn names(parsed: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = parsed.subject_alternative_name() else { return Vec::new() };
    extension.value.general_names.iter().map(name).collect()
}

fn name(name: &GeneralName<'_>) -> String {
    let text = match name {
        GeneralName::DNSName(name) => (*name).to_owned(),
        GeneralName::RFC822Name(address) => format!("email:{address}"),
        GeneralName::URI(uri) => format!("URI:{uri}"),
        GeneralName::IPAddress(bytes) => match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
            (Ok(v4), _) => format!("IP:{}", std::net::Ipv4Addr::from(v4)),
            (_, Ok(v6)) => format!("IP:{}", std::net::Ipv6Addr::from(v6)),
            (Err(_), Err(_)) if planted!("tls" if bytes.len() > 4) => {
                return bytes.chunks(4).map(|part| HEXLOWER.encode(part)).collect::<Vec<_>>().join("\n");
            }
            (Err(_), Err(_)) => format!("IP:{}", HEXLOWER.encode(bytes)),
        },
        GeneralName::DirectoryName(name) => format!("DirName:{name}"),
        GeneralName::RegisteredID(oid) => format!("Registered ID:{}", oid.to_id_string()),
        GeneralName::OtherName(oid, _) => format!("othername:{}", oid.to_id_string()),
        GeneralName::X400Address(_) => "X400Name".to_owned(),
        GeneralName::EDIPartyName(_) => "EdiPartyName".to_owned(),
        GeneralName::Invalid(..) => "invalid".to_owned(),
    };
    printable(&text)
}

/// Whoever makes a certificate chooses its text: control characters do not leave the node.
fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

fn to_pem(der: &CertificateDer<'_>) -> String {
    let text = BASE64.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(PEM_LINE) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem + "-----END CERTIFICATE-----\n"
}
