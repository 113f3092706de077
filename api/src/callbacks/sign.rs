//! Signatures by Standard Webhooks 1.0.0, symmetric: `v1,` and HMAC-SHA256 of `<id>.<timestamp>.<body>` in base 64.

use data_encoding::BASE64;
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// What a secret begins with.
const PREFIX: &str = "whsec_";
/// So many random bytes make a secret; the standard wants 24 to 64.
const SECRET_BYTES: usize = 32;

/// A new secret.
pub(super) fn new_secret() -> String {
    format!("{PREFIX}{}", BASE64.encode(&rand::random::<[u8; SECRET_BYTES]>()))
}

/// The value of `webhook-signature`: one signature for each secret.
pub(super) fn signature<'a>(secrets: impl IntoIterator<Item = &'a str>, id: &str, timestamp_s: i64, body: &[u8]) -> Option<String> {
    let signatures: Vec<String> = secrets.into_iter().filter_map(|secret| one(secret, id, timestamp_s, body)).collect();
    (!signatures.is_empty()).then(|| signatures.join(" "))
}

fn one(secret: &str, id: &str, timestamp_s: i64, body: &[u8]) -> Option<String> {
    let key = BASE64.decode(secret.strip_prefix(PREFIX).unwrap_or(secret).as_bytes()).ok()?;
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).ok()?;
    mac.update(format!("{id}.{timestamp_s}.").as_bytes());
    mac.update(body);
    Some(format!("v1,{}", BASE64.encode(&mac.finalize().into_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_that_of_the_standards_own_libraries() {
        // The vector that the reference libraries of Standard Webhooks test themselves with.
        let (id, at, body) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        let expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        for secret in ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"] {
            assert_eq!(signature([secret], id, at, body).as_deref(), Some(expected));
        }
        let other = new_secret();
        let both = signature([other.as_str(), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], id, at, body).unwrap();
        assert!(both.split(' ').count() == 2 && both.ends_with(expected), "{both}");
        assert_eq!(signature([], id, at, body), None);
    }
}
