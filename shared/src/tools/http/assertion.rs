//! What an answer has to be like, and whether it is.

pub mod values;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::parts::concealed_value;
use super::report::{HttpRequest, HttpTimings};
use crate::tools::choice::choice;
use crate::tools::list::{self, Typed, Written};

use values::{Path, Pattern, StatusPattern};

/// How many assertions one run takes.
const ASSERTIONS_MAX: usize = 20;
/// How much of a body assertions look at.
pub const BODY_ASSERTED_MAX: usize = 1024 * 1024;
/// What assertions there are.
pub(super) const TYPES: [&str; 8] = ["status", "header", "body", "json", "tls", "certificate_days_left", "phase", "protocol"];
/// How much of what was found a verdict shows.
const SHOWN_MAX: usize = 200;

/// A few assertions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct Assertions(#[schemars(length(max = 20))] Vec<Assertion>);

impl Assertions {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Judges them all.
    pub fn judge(&self, evidence: &Evidence<'_>) -> Vec<Verdict> {
        self.0.iter().enumerate().map(|(index, assertion)| assertion.judge(index, evidence)).collect()
    }
}

impl<'de> Deserialize<'de> for Assertions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let list = list::at_most::<_, Written<Assertion>>(deserializer, ASSERTIONS_MAX, "assertions")?;
        Ok(Self(list.into_iter().map(|written| written.0).collect()))
    }
}

impl Typed for Assertion {
    const TYPES: &'static [&'static str] = &TYPES;
}

/// One thing that an answer has to be like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[schemars(inline)]
pub enum Assertion {
    /// The status is one of these, such as `"200"` or `"2xx"`.
    Status {
        /// The statuses.
        one_of: Vec<StatusPattern>,
    },
    /// A header field is there, and is as said.
    Header {
        /// Its name.
        name: String,
        /// What one value has to match.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        matches: Option<Pattern>,
        /// What no value may match.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        not_matches: Option<Pattern>,
        /// Whether it must not be there at all.
        #[serde(default)]
        absent: bool,
        /// Whether it need not be there.
        #[serde(default)]
        optional: bool,
    },
    /// The body is as said.
    Body {
        /// What it has to match.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        matches: Option<Pattern>,
        /// What it may not match.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        not_matches: Option<Pattern>,
    },
    /// The body is JSON, and has something at this path.
    Json {
        /// A JSONPath (RFC 9535), such as `$.items[0].name`.
        path: Path,
        /// What one of the values there has to be.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        equals: Option<Value>,
        /// What one of the values there has to match.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        matches: Option<Pattern>,
        /// Whether there must be no such value.
        #[serde(default)]
        absent: bool,
    },
    /// The answer came over TLS, or did not.
    Tls {
        /// Whether it had to.
        used: bool,
    },
    /// The certificate is good for so long.
    CertificateDaysLeft {
        /// At least so many days.
        min: i64,
    },
    /// A phase was as quick as that.
    Phase {
        /// Which.
        phase: TimedPhase,
        /// At most so many milliseconds.
        max_ms: f64,
    },
    /// The answer came by one of these versions, such as `"HTTP/2"`.
    Protocol {
        /// The versions.
        one_of: Vec<String>,
    },
}

choice! {
    /// A phase with a limit.
    TimedPhase {
        /// Finding the address.
        Dns = "dns",
        /// Connecting.
        Connect = "connect",
        /// The TLS handshake.
        Tls = "tls",
        /// Waiting for the answer.
        FirstByte = "first_byte",
        /// Reading the body.
        Download = "download",
        /// All of it.
        #[default]
        Total = "total",
    }
}

/// What became of an assertion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Verdict {
    /// Which, from 0.
    pub assertion: usize,
    /// Of which type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it holds.
    pub passed: bool,
    /// What was found.
    pub detail: String,
}

/// What assertions look at: the last request, and what the report does not have of it.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// The request and its answer.
    pub request: &'a HttpRequest,
    /// Its header fields with their secret values.
    pub headers: &'a [(String, String)],
    /// The body as far as it was read.
    pub body: &'a [u8],
    /// The phases, those of all requests together in `total_ms`.
    pub timings: HttpTimings,
}

impl Assertion {
    fn judge(&self, index: usize, evidence: &Evidence<'_>) -> Verdict {
        let (kind, (passed, detail)) = match self {
            Self::Status { one_of } => ("status", status(one_of, evidence)),
            Self::Header { name, matches, not_matches, absent, optional } => {
                ("header", header(name, matches.as_ref(), not_matches.as_ref(), *absent, *optional, evidence))
            }
            Self::Body { matches, not_matches } => ("body", body(matches.as_ref(), not_matches.as_ref(), evidence)),
            Self::Json { path, equals, matches, absent } => ("json", json(path, equals.as_ref(), matches.as_ref(), *absent, evidence)),
            Self::Tls { used } => {
                let was_used = evidence.request.tls.is_some();
                ("tls", (was_used == *used, if was_used { "it came over TLS" } else { "it came in clear" }.to_owned()))
            }
            Self::CertificateDaysLeft { min } => ("certificate_days_left", days_left(*min, evidence)),
            Self::Phase { phase, max_ms } => ("phase", quick(*phase, *max_ms, evidence.timings)),
            Self::Protocol { one_of } => {
                let spoken = evidence.request.protocol.as_deref();
                let passed = spoken.is_some_and(|spoken| one_of.iter().any(|wanted| wanted == spoken));
                ("protocol", (passed, spoken.map_or_else(|| "there is no answer".to_owned(), str::to_owned)))
            }
        };
        Verdict { assertion: index, kind: kind.to_owned(), passed, detail }
    }
}

fn status(one_of: &[StatusPattern], evidence: &Evidence<'_>) -> (bool, String) {
    match evidence.request.status {
        Some(status) => (one_of.iter().any(|pattern| pattern.matches(status)), format!("the status is {status}")),
        None => (false, "there is no answer".to_owned()),
    }
}

fn header(
    name: &str,
    matches: Option<&Pattern>,
    not_matches: Option<&Pattern>,
    absent: bool,
    optional: bool,
    evidence: &Evidence<'_>,
) -> (bool, String) {
    if evidence.request.status.is_none() {
        return (false, "there is no answer".to_owned());
    }
    let values: Vec<&str> =
        evidence.headers.iter().filter(|(given, _)| given.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str()).collect();
    if values.is_empty() {
        return (absent || optional, format!("there is no {name}"));
    }
    let any = |pattern: &Pattern| values.iter().any(|value| pattern.is_match(value.as_bytes()));
    let passed = !absent && matches.is_none_or(any) && !not_matches.is_some_and(any);
    let shown: Vec<String> = values.iter().map(|value| cut(&concealed_value(name, value))).collect();
    (passed, format!("{name} is {}", shown.join(", ")))
}

fn body(matches: Option<&Pattern>, not_matches: Option<&Pattern>, evidence: &Evidence<'_>) -> (bool, String) {
    if evidence.request.body.is_none() {
        return (false, "there is no body".to_owned());
    }
    let looked_at = evidence.body.get(..BODY_ASSERTED_MAX).unwrap_or(evidence.body);
    let found = |pattern: &Pattern| pattern.find(looked_at).map(|found| cut(&found.escape_ascii().to_string()));
    match (matches.map(found), not_matches.and_then(found)) {
        (Some(None), _) => (false, format!("no match in {} bytes", looked_at.len())),
        (_, Some(unwanted)) => (false, format!("there is `{unwanted}`")),
        (Some(Some(wanted)), None) => (true, format!("there is `{wanted}`")),
        (None, None) => (true, format!("no match in {} bytes", looked_at.len())),
    }
}

fn json(path: &Path, equals: Option<&Value>, matches: Option<&Pattern>, absent: bool, evidence: &Evidence<'_>) -> (bool, String) {
    if evidence.request.body.as_ref().is_some_and(|body| body.truncated || body.size_bytes > evidence.body.len()) {
        return (false, format!("the body was not read to its end, or is larger than {BODY_ASSERTED_MAX} bytes"));
    }
    let document: Value = match serde_json::from_slice(evidence.body) {
        Ok(document) => document,
        Err(error) => return (false, format!("the body is not JSON: {error}")),
    };
    let found = path.query(&document);
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let holds = |value: &&Value| {
        equals.is_none_or(|wanted| *value == wanted) && matches.is_none_or(|pattern| pattern.is_match(text(value).as_bytes()))
    };
    let passed = found.iter().any(holds) != absent;
    match found.as_slice() {
        [] => (absent, "there is nothing at the path".to_owned()),
        [first, rest @ ..] => {
            let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
            (passed, format!("there is {}{more}", cut(&first.to_string())))
        }
    }
}

fn days_left(min: i64, evidence: &Evidence<'_>) -> (bool, String) {
    match evidence.request.tls.as_ref().and_then(|tls| tls.days_left) {
        Some(days) => (days >= min, format!("the certificate has {days} days left")),
        None => (false, "there is no certificate".to_owned()),
    }
}

fn quick(phase: TimedPhase, max_ms: f64, timings: HttpTimings) -> (bool, String) {
    let took = match phase {
        TimedPhase::Dns => timings.dns_ms,
        TimedPhase::Connect => timings.connect_ms,
        TimedPhase::Tls => timings.tls_ms,
        TimedPhase::FirstByte => timings.first_byte_ms,
        TimedPhase::Download => timings.download_ms,
        TimedPhase::Total => timings.total_ms,
    };
    match took {
        Some(took) => (took <= max_ms, format!("{phase} took {took:.3} ms")),
        None => (false, format!("there was no phase {phase}")),
    }
}

fn cut(text: &str) -> String {
    if text.chars().count() <= SHOWN_MAX { text.to_owned() } else { text.chars().take(SHOWN_MAX).chain(['…']).collect() }
}
