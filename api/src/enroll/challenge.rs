//! What a node signs to show that it has a key: a random text with its end, bound to the key by a MAC, so that nothing is kept of it.

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, Mac};
use probeops_shared::enroll::{Challenge, PublicKey};
use probeops_shared::problem::Code;
use probeops_shared::timestamp::Timestamp;
use sha2::Sha256;

use crate::problem::Problem;

/// How long a challenge can be used.
const VALID_FOR: Duration = Duration::from_mins(1);
/// Its parts: random bytes, when it ends (Unix milliseconds), and the MAC over both and the key.
const NONCE_BYTES: usize = 16;
const END_BYTES: usize = 8;
const MAC_BYTES: usize = 32;
/// How many bytes the key of the MAC has.
pub(super) const SECRET_BYTES: usize = 32;

/// Makes and checks challenges, on every replica alike.
#[derive(Clone)]
pub(super) struct Challenges(Hmac<Sha256>);

impl Challenges {
    /// With the key that all replicas share.
    pub(super) fn new(secret: &[u8]) -> Result<Self, String> {
        if secret.len() != SECRET_BYTES {
            return Err(format!("the key that signs challenges has {} bytes, not {SECRET_BYTES}", secret.len()));
        }
        Hmac::new_from_slice(secret).map(Self).map_err(|error| error.to_string())
    }

    /// A new one for a key.
    pub(super) fn make(&self, key: &PublicKey, now: Timestamp) -> Challenge {
        let expires_at = now.plus(VALID_FOR);
        let mut bytes = rand::random::<[u8; NONCE_BYTES]>().to_vec();
        bytes.extend(expires_at.unix_ms().to_be_bytes());
        let mac = self.mac(key, &bytes).finalize().into_bytes();
        bytes.extend(mac);
        Challenge { challenge: BASE64URL_NOPAD.encode(&bytes), expires_at }
    }

    /// Refuses one that was not made for this key, or has ended.
    pub(super) fn check(&self, key: &PublicKey, challenge: &str, now: Timestamp) -> Result<(), Problem> {
        let foreign = || {
            let detail = "the challenge was not made for this key, or belongs to another installation; ask /v1/enroll/challenge for one";
            Problem::new(Code::Forbidden, detail)
        };
        let bytes = BASE64URL_NOPAD.decode(challenge.as_bytes()).map_err(|_| foreign())?;
        let (message, mac) =
            bytes.split_at_checked(NONCE_BYTES + END_BYTES).filter(|(_, mac)| mac.len() == MAC_BYTES).ok_or_else(foreign)?;
        self.mac(key, message).verify_slice(mac).map_err(|_| foreign())?;
        let end = message.get(NONCE_BYTES..).and_then(|end| end.try_into().ok()).map(i64::from_be_bytes).ok_or_else(foreign)?;
        if end <= now.unix_ms() {
            let detail = format!("the challenge is older than {} s; ask /v1/enroll/challenge for another", VALID_FOR.as_secs());
            return Err(Problem::new(Code::Forbidden, detail).retry_after(Duration::from_secs(1)));
        }
        Ok(())
    }

    fn mac(&self, key: &PublicKey, message: &[u8]) -> Hmac<Sha256> {
        self.0.clone().chain_update(key.as_str()).chain_update(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_for_one_key_one_installation_and_a_minute() {
        let challenges = Challenges::new(&[1; SECRET_BYTES]).unwrap();
        let key = |letter: &str| format!("U{}", letter.repeat(55)).parse::<PublicKey>().unwrap();
        let now = Timestamp::now();
        let made = challenges.make(&key("A"), now).challenge;
        assert_ne!(made, challenges.make(&key("A"), now).challenge);
        challenges.check(&key("A"), &made, now.plus(Duration::from_secs(59))).unwrap();
        let refused = |result: Result<(), Problem>, why: &str| assert!(result.unwrap_err().detail().contains(why));
        refused(challenges.check(&key("A"), &made, now.plus(VALID_FOR)), "older than 60 s");
        refused(challenges.check(&key("B"), &made, now), "not made for this key");
        refused(Challenges::new(&[2; SECRET_BYTES]).unwrap().check(&key("A"), &made, now), "another installation");
        for broken in ["", "x", "ü", &made[1..], &made[..made.len() - 2], &format!("{made}AA")] {
            refused(challenges.check(&key("A"), broken, now), "not made for this key");
        }
        assert!(Challenges::new(b"short").is_err());
    }
}
