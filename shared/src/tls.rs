//! TLS as every tool tells it: what was agreed, the chain as served, and every reason not to trust it.

pub mod pem;

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::timestamp::Timestamp;
use crate::tools::choice::choice;

choice! {
    /// A version of TLS.
    TlsVersion {
        /// RFC 2246.
        V1_0 = "1.0",
        /// RFC 4346.
        V1_1 = "1.1",
        /// RFC 5246.
        V1_2 = "1.2",
        /// RFC 8446.
        #[default]
        V1_3 = "1.3",
    }
}

impl TlsVersion {
    /// The number on the wire.
    pub const fn number(self) -> u16 {
        match self {
            Self::V1_0 => 0x0301,
            Self::V1_1 => 0x0302,
            Self::V1_2 => 0x0303,
            Self::V1_3 => 0x0304,
        }
    }

    /// The name that openssl and curl print.
    pub const fn printed(self) -> &'static str {
        match self {
            Self::V1_0 => "TLSv1",
            Self::V1_1 => "TLSv1.1",
            Self::V1_2 => "TLSv1.2",
            Self::V1_3 => "TLSv1.3",
        }
    }
}

/// What a server and we agreed on, what it presented, and what is to be thought of it. Of a handshake that failed, what there was until then.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TlsSession {
    /// The version agreed; absent when none was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<TlsVersion>,
    /// The cipher suite, by its IANA name such as `TLS_AES_128_GCM_SHA256`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cipher: Option<String>,
    /// The group of the key exchange, such as `X25519`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// How the server signed the handshake, such as `ECDSA_NISTP256_SHA256`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature_scheme: Option<String>,
    /// The application protocol that the server chose of those offered (ALPN, RFC 7301).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpn: Option<String>,
    /// The name or address that the certificate had to be for.
    pub server_name: String,
    /// Whether the name was sent in clear (SNI, RFC 6066): it is for names, not for addresses.
    pub sni: bool,
    /// Whether the server asked for a certificate of ours; absent when the handshake did not get that far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate_requested: Option<bool>,
    /// Whether the chain leads to an authority that the node trusts, for this name, now; absent when no chain was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<bool>,
    /// Every reason why it is not verified.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<CertificateProblem>,
    /// Whole days until the server's own certificate ends; negative when it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub days_left: Option<i64>,
    /// The certificates as served: the server's own, then whatever it sent to link it to an authority.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chain: Vec<Certificate>,
    /// What the server brought of its authority about revocation (RFC 6960, RFC 6066 section 8); absent when nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ocsp: Option<OcspStaple>,
}

/// One reason not to trust a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CertificateProblem {
    /// Of which kind.
    pub code: ProblemCode,
    /// Which certificate of the chain it is about, from 0; absent when it is about the chain as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<usize>,
    /// In words.
    pub detail: String,
}

impl fmt::Display for CertificateProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

choice! {
    /// Why a chain is not trusted.
    ProblemCode {
        /// Its time is over.
        Expired = "expired",
        /// Its time has not begun.
        NotYetValid = "not_yet_valid",
        /// It is for other names.
        NameMismatch = "name_mismatch",
        /// It is signed by an authority that the node does not know, or a link of the chain was not sent.
        UnknownIssuer = "unknown_issuer",
        /// It is signed by itself, and is none that the node trusts.
        SelfSigned = "self_signed",
        /// Its key is too short.
        WeakKey = "weak_key",
        /// It is signed by a method that can be forged, such as SHA-1.
        WeakSignature = "weak_signature",
        /// Its signature, or that of the handshake, is not right.
        BadSignature = "bad_signature",
        /// Its authority has revoked it, says the stapled answer.
        Revoked = "revoked",
        /// It is not for servers.
        WrongPurpose = "wrong_purpose",
        /// It signs another certificate and may not.
        NotAnAuthority = "not_an_authority",
        /// It is for a name that an authority above it may not certify.
        NameConstraint = "name_constraint",
        /// It cannot be read, or is of a kind that is not verified any more, such as X.509 version 1.
        #[default]
        Unsupported = "unsupported",
    }
}

/// A certificate (RFC 5280).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Certificate {
    /// Whose it is, as in `C=US, O=Example, CN=example.com`.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// The names and addresses that it is for (subjectAltName): names as they are, others as `IP:192.0.2.1`, `email:`, `URI:`.
    pub san: Vec<String>,
    /// The number that its issuer gave it, in hexadecimal.
    pub serial: String,
    /// From when it is valid.
    pub not_before: Timestamp,
    /// Until when it is valid.
    pub not_after: Timestamp,
    /// Whole days until then; negative when it is over.
    pub days_left: i64,
    /// Its key.
    pub key: PublicKey,
    /// How it is signed, such as `ecdsa-with-SHA256`.
    pub signature_algorithm: String,
    /// Whether it may sign other certificates.
    pub is_ca: bool,
    /// The version of X.509, 3 in our days.
    pub version: u32,
    /// SHA-256 of the certificate, in hexadecimal.
    pub sha256: String,
    /// SHA-256 of its key with the key's kind (`SubjectPublicKeyInfo`), in hexadecimal: what stays when it is renewed with the same key.
    pub spki_sha256: String,
    /// The certificate itself; absent unless asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pem: Option<String>,
}

/// A certificate's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PublicKey {
    /// Of which kind: `RSA`, `EC`, `Ed25519` or another algorithm's name or number.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its length; absent where the kind is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<usize>,
    /// Its curve, for `EC`, such as `P-256`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub curve: Option<String>,
}

/// What an authority says about revocation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OcspStaple {
    /// What it says.
    pub status: OcspStatus,
    /// Whether the issuer of the certificate, or whom the issuer entrusted with it, signed the answer; absent when that cannot be told,
    /// because the issuer's certificate was not sent or the signature is of an unknown kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature_valid: Option<bool>,
    /// From when that is known to be right; absent when there is no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub this_update: Option<Timestamp>,
    /// When newer information is there; absent when it is there at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_update: Option<Timestamp>,
    /// When the certificate was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
    /// Its size.
    pub size_bytes: usize,
}

choice! {
    /// What an OCSP answer says.
    OcspStatus {
        /// Not revoked.
        Good = "good",
        /// Revoked.
        Revoked = "revoked",
        /// The responder does not know the certificate.
        Unknown = "unknown",
        /// The responder had no answer (its status is not `successful`).
        Refused = "refused",
        /// It speaks of another certificate.
        OtherCertificate = "other_certificate",
        /// It cannot be read.
        #[default]
        Malformed = "malformed",
    }
}

choice! {
    /// What went wrong in a handshake.
    TlsFailureCode {
        /// The server said so in an alert (RFC 8446, 6).
        Alert = "alert",
        /// The chain is not trusted.
        Certificate = "certificate",
        /// The server speaks something else than TLS.
        NotTls = "not_tls",
        /// There is no version or cipher that both can.
        Incompatible = "incompatible",
        /// The server ended the connection.
        Closed = "closed",
        /// It took too long.
        TimedOut = "timed_out",
        /// Any other breach of the protocol.
        #[default]
        Protocol = "protocol",
    }
}

/// Why a handshake failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TlsFailure {
    /// Of which kind.
    pub code: TlsFailureCode,
    /// In words.
    pub detail: String,
}

impl fmt::Display for TlsFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}
