//! What the broker says, and what its credentials and the requests for them are.

use std::fmt;

use probeops_nats::claims::Claims;
use probeops_nats::sentry::log;
use probeops_nats::vault::credentials::Credentials;
use probeops_shared::keymaster::{Mint, NodeRights, Revoke, ServiceRights};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::chosen;

/// A refusal repeats little of what was sent.
const DETAIL_LENGTH_MAX: usize = 4_096;
/// What a server writes before what a client chose.
const HEAD: &str = "[1065] 2026/11/29 00:19:32.700582 [ERR] 127.0.0.1:54040 - cid:59 - ";
/// Claims of an account, signed with a key that is kept nowhere.
const SIGNED: &str = include_str!("../account.jwt");

/// The first byte chooses: a line of a server's log, two texts in one, a credential's file, claims, or a request to the keymaster.
pub(crate) fn broker(input: &[u8]) {
    let (which, rest) = chosen(input);
    let Ok(text) = str::from_utf8(rest) else { return };
    match which % 7 {
        0 => {
            if let Some(line) = log::read(text) {
                assert!(line.what.said().len() <= text.len() + 64 && line.what.subject().len() <= text.len());
            }
        }
        1 => in_the_log(text),
        2 => {
            let refused = Credentials::parse(text).map_err(|error| error.to_string());
            assert!(refused.is_err_and(|why| !why.is_empty() && why.len() <= DETAIL_LENGTH_MAX), "nobody has a key of these");
        }
        3 => claims(text),
        4 => drop(again::<Mint<NodeRights>>(text)),
        5 => drop(again::<Mint<ServiceRights>>(text)),
        _ => drop(again::<Revoke>(text)),
    }
}

/// Whatever a client calls itself and asks for, its line is about itself.
fn in_the_log(text: &str) {
    let (name, subject) = text.split_once('\n').unwrap_or((text, "a.b"));
    let written = format!("{HEAD}{name:?} - \"ADX/APP/jwt:UDPP\" - Publish Violation - Subject {subject:?}");
    let line = log::read(&written).unwrap_or_else(|| panic!("no line: {written}"));
    assert_eq!((line.cid, line.account.as_str(), line.user.as_str(), line.host.as_str()), (59, "APP", "UDPP", "127.0.0.1"), "{written}");
    assert!(matches!(line.what, log::What::Publish(_)), "{written}");
}

/// Nobody has the key: what is not as it was signed is refused.
fn claims(text: &str) {
    match Claims::read(text) {
        Ok(_) => assert_eq!(text, SIGNED.trim(), "claims that nobody has signed are believed"),
        Err(why) => assert!((1..=DETAIL_LENGTH_MAX).contains(&why.to_string().len()), "{why}"),
    }
}

/// What is read of JSON, if it can be read: written, it is read as the same again.
fn again<T: DeserializeOwned + Serialize + PartialEq + fmt::Debug>(text: &str) -> Option<T> {
    let read: T = serde_json::from_str(text).ok()?;
    let written = serde_json::to_string(&read).expect("JSON");
    assert_eq!(serde_json::from_str::<T>(&written).expect("what was written is read"), read, "{written}");
    Some(read)
}
