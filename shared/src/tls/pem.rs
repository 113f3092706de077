//! Certificates and keys that a caller gives as text (RFC 7468).

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::bounded::shown;
use crate::text::inline_schema;

/// The most that a caller may give: a dozen certificates.
const PEM_BYTES_MAX: usize = 16 * 1024;

/// One or more certificates, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificatesPem(String);

/// A private key, PEM, without a passphrase.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKeyPem(String);

impl CertificatesPem {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl PrivateKeyPem {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PrivateKeyPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKeyPem(…)")
    }
}

/// Checks the frame; what is inside is read at the node, where the library for it is.
fn framed(value: &serde_json::Value, label: &str, example: &str) -> Result<String, String> {
    let Some(text) = value.as_str() else { return Err(format!("must be a string with a PEM {example}, not {}", shown(value))) };
    if text.len() > PEM_BYTES_MAX {
        return Err(format!("must be at most {PEM_BYTES_MAX} bytes long, this has {}", text.len()));
    }
    // A key is not shown again, not even in part.
    if !(text.contains("-----BEGIN ") && text.contains(label)) {
        return Err(format!("must be a {example} in PEM form (-----BEGIN …{label}), this is something else"));
    }
    if text.contains("ENCRYPTED") {
        return Err("must be without a passphrase; remove it with `openssl pkey`".to_owned());
    }
    Ok(text.to_owned())
}

macro_rules! pem {
    ($name:ident, $label:literal, $example:literal) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                framed(&serde_json::Value::deserialize(deserializer)?, $label, $example).map(Self).map_err(de::Error::custom)
            }
        }

        inline_schema!($name, {"type": "string", "minLength": 1, "maxLength": PEM_BYTES_MAX, "pattern": concat!("-----BEGIN [\\s\\S]*", $label), "contentMediaType": "application/x-pem-file"});
    };
}
pem!(CertificatesPem, "CERTIFICATE-----", "certificate");
pem!(PrivateKeyPem, "PRIVATE KEY-----", "private key");

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn refuses<T: for<'a> Deserialize<'a> + fmt::Debug>(value: serde_json::Value, part: &str) {
        let detail = serde_json::from_value::<T>(value).unwrap_err().to_string();
        assert!(detail.contains(part), "{detail}");
    }

    #[test]
    fn what_is_no_pem_is_refused_and_a_key_is_not_shown() {
        refuses::<CertificatesPem>(json!("MIIB"), "must be a certificate in PEM form");
        refuses::<CertificatesPem>(json!(7), "must be a string with a PEM certificate, not 7");
        refuses::<CertificatesPem>(json!("x".repeat(PEM_BYTES_MAX + 1)), "at most");
        refuses::<PrivateKeyPem>(json!("-----BEGIN ENCRYPTED PRIVATE KEY-----"), "without a passphrase");
        let key: PrivateKeyPem = serde_json::from_value(json!("-----BEGIN PRIVATE KEY-----\nsecret")).unwrap();
        assert!(!format!("{key:?}").contains("secret"));
        refuses::<PrivateKeyPem>(json!("secret"), "something else");
    }
}
