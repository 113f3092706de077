//! Names that become tokens of a subject, and the ids of jobs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::bounded::shown;
use crate::text::{as_text, inline_schema};
use crate::timestamp::Timestamp;

const TOKEN_PATTERN: &str = "^[a-z0-9][a-z0-9-]{0,62}$";
const REQUEST_ID_PATTERN: &str = "^[A-Za-z0-9._-]{1,64}$";
const LABEL_PATTERN: &str = "^[a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?$";

/// Callers with this prefix are replicas of the API; only they are believed about principals.
pub const API_CALLER_PREFIX: &str = "api-";

/// Whoever looks at NATS services has this name; no service has it.
pub const OBSERVER: &str = "observer";

/// Names of ours on the broker; no node and no service has one.
const OURS: [&str; 12] = [
    OBSERVER,
    "acknowledger",
    "audit-provisioner",
    "auditor",
    "collector",
    "frontdoor",
    "keymaster",
    "keymaster-desk",
    "presence",
    "provisioner",
    "reloader",
    crate::subjects::SENTRY,
];
/// Names that begin so are ours, too.
const PREFIXES_OF_OURS: [&str; 3] = [API_CALLER_PREFIX, "collector-", "command-"];

fn is_token(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.first().is_some_and(|first| plain(*first))
        && bytes.iter().all(|byte| plain(*byte) || *byte == b'-')
}

fn is_label(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && [bytes.first(), bytes.last()].into_iter().flatten().all(|end| plain(*end))
        && bytes.iter().all(|byte| plain(*byte) || b"._/-".contains(byte))
}

/// Makes a newtype over a checked string: parse, print, JSON, schema.
macro_rules! checked_string {
    ($(#[$doc:meta])* $name:ident, $valid:expr, $pattern:expr, $wants:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                if $valid(text) {
                    return Ok(Self(text.to_owned()));
                }
                Err(format!("{} must be {}, not {}", $wants.0, $wants.1, shown(&text.into())))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        as_text!($name, {"type": "string", "pattern": $pattern});
    };
}

pub(crate) use checked_string;

const LABEL_WANTS: &str = "1 to 63 of a-z, 0-9, `.`, `_`, `/` and `-`, beginning and ending with a letter or a digit";
const TOKEN_WANTS: &str = "1 to 63 of a-z, 0-9 and `-`, not starting with `-`";

checked_string!(
    /// A region: one place, or one network, that nodes belong to.
    Region, is_token, TOKEN_PATTERN, ("a region", TOKEN_WANTS)
);
checked_string!(
    /// A node: one machine with an agent.
    NodeId, is_token, TOKEN_PATTERN, ("a node id", TOKEN_WANTS)
);
checked_string!(
    /// Who publishes a job: a replica of the API (`api-…`) or a service. The broker attests it.
    Caller, is_token, TOKEN_PATTERN, ("a caller", TOKEN_WANTS)
);
checked_string!(
    /// The name of a label of nodes, such as `site`.
    LabelKey, is_label, LABEL_PATTERN, ("the name of a label", LABEL_WANTS)
);
checked_string!(
    /// The value of a label, such as `fra`.
    LabelValue, is_label, LABEL_PATTERN, ("the value of a label", LABEL_WANTS)
);
checked_string!(
    /// The id of a request, unique for its caller.
    RequestId, |text: &str| (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)),
    REQUEST_ID_PATTERN, ("a request id", "1 to 64 of A-Z, a-z, 0-9, `.`, `_` and `-`")
);

impl Caller {
    /// A new replica of the API.
    pub fn new_api() -> Self {
        Self(format!("{API_CALLER_PREFIX}{:08x}", rand::random::<u32>()))
    }

    /// Whether this is a replica of the API.
    pub fn is_api(&self) -> bool {
        self.0.starts_with(API_CALLER_PREFIX)
    }

    /// Refuses a name that no service can have.
    pub fn check_service(&self) -> Result<(), String> {
        check_not_ours("service", &self.0)
    }
}

impl NodeId {
    /// Refuses an id that no node can have: in the log and in the trail it would pass for a part of ours.
    pub fn check_node(&self) -> Result<(), String> {
        check_not_ours("node", &self.0)
    }
}

fn check_not_ours(kind: &str, name: &str) -> Result<(), String> {
    if name.starts_with(API_CALLER_PREFIX) {
        return Err(format!("a {kind} cannot be called `{name}`: names that begin with {API_CALLER_PREFIX} are those of the API"));
    }
    if name == OBSERVER {
        return Err(format!("a {kind} cannot be called `{name}`: it is the name of whoever looks at services"));
    }
    if OURS.contains(&name) || PREFIXES_OF_OURS.iter().any(|prefix| name.starts_with(prefix)) {
        return Err(format!("a {kind} cannot be called `{name}`: it is a name of the control plane's own"));
    }
    Ok(())
}

impl RequestId {
    /// A new one: a `UUIDv7`.
    pub fn new() -> Self {
        Self(uuid::Uuid::now_v7().to_string())
    }

    /// The run `index` of a job that has several.
    pub fn of_run(job: JobId, index: usize) -> Self {
        Self(format!("{job}.{index}"))
    }

    /// Which run of which job it is, if it is one of ours.
    pub fn of_job(&self) -> Option<(JobId, usize)> {
        let (job, index) = self.0.split_once('.').unwrap_or((&self.0, "0"));
        Some((job.parse().ok()?, index.parse().ok()?))
    }
}

impl Default for RequestId {
    fn default() -> Self {
        Self::new()
    }
}

impl From<JobId> for RequestId {
    fn from(job: JobId) -> Self {
        Self(job.to_string())
    }
}

/// The id of a job: a `UUIDv7`, so ids sort by the time they were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(uuid::Uuid);

impl JobId {
    /// A new one.
    pub fn new() -> Self {
        Self(uuid::Uuid::now_v7())
    }

    /// One that is always the same for the same time and the same ten bytes.
    pub fn of(at: Timestamp, bytes: [u8; 10]) -> Self {
        let unix_ms = u64::try_from(at.unix_ms()).unwrap_or_default();
        Self(uuid::Builder::from_unix_timestamp_millis(unix_ms, &bytes).into_uuid())
    }

    /// Milliseconds since the Unix epoch at which it was made, if it says so.
    pub fn unix_ms(self) -> Option<i64> {
        let (seconds, nanos) = self.0.get_timestamp()?.to_unix();
        i64::try_from(seconds * 1000 + u64::from(nanos) / 1_000_000).ok()
    }
}

impl Default for JobId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for JobId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        uuid::Uuid::try_parse(text).map(Self).map_err(|_| format!("a job id must be a UUID, not {}", shown(&text.into())))
    }
}

inline_schema!(JobId, {"type": "string", "format": "uuid"});

/// 128 random bits that name one attempt in its reply subject; only who got the job knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReplyToken(u128);

impl ReplyToken {
    /// A new one.
    pub fn new() -> Self {
        Self(rand::random())
    }
}

impl Default for ReplyToken {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for ReplyToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for ReplyToken {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let own_form = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        let token = own_form.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        token.map(Self).ok_or_else(|| format!("`{text}` is not 32 hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_one_token_of_a_subject() {
        for good in ["eu-central", "1", "a", &"x".repeat(63)] {
            assert!(good.parse::<Region>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "eu.central", "*", ">", "eu central", "EU", "ü", &"x".repeat(64)] {
            assert!(bad.parse::<Region>().is_err(), "{bad}");
        }
        assert_eq!(
            "eu.*".parse::<Region>().unwrap_err(),
            "a region must be 1 to 63 of a-z, 0-9 and `-`, not starting with `-`, not the string \"eu.*\""
        );
    }

    #[test]
    fn labels_begin_and_end_with_a_letter_or_a_digit() {
        for good in ["a", "site", "example.com/rack_4", "0", &"x".repeat(63)] {
            assert!(good.parse::<LabelKey>().is_ok() && good.parse::<LabelValue>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "a/", "Site", "a b", "a=b", "a,b", "a:b", "a*", &"x".repeat(64)] {
            assert!(bad.parse::<LabelKey>().is_err(), "{bad}");
        }
        let detail = "the value of a label must be 1 to 63 of a-z, 0-9, `.`, `_`, `/` and `-`, beginning and ending with a letter or a digit, \
                      not the string \"Fra\"";
        assert_eq!("Fra".parse::<LabelValue>().unwrap_err(), detail);
    }

    #[test]
    fn a_job_that_is_made_of_a_time_has_it_and_is_always_the_same() {
        let at = Timestamp::parse("2026-11-28T12:00:00.123Z").unwrap();
        let job = JobId::of(at, [7; 10]);
        assert_eq!((job, job.unix_ms()), (JobId::of(at, [7; 10]), Some(at.unix_ms())));
        assert_ne!(job, JobId::of(at, [8; 10]));
    }

    #[test]
    fn a_reply_token_is_read_back_only_in_its_own_form() {
        let token = ReplyToken::new();
        assert_eq!(token.to_string().parse(), Ok(token));
        assert!("+f".repeat(16).parse::<ReplyToken>().is_err());
    }
}
