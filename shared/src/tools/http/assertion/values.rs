//! What assertions compare with: statuses, patterns, paths.

use std::fmt;
use std::str::FromStr;

use regex::bytes::{Regex, RegexBuilder};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;
use serde_json_path::JsonPath;

use crate::bounded::shown;
use crate::text::{as_text, inline_schema};

/// The longest pattern, and how large it may become when it is compiled: what bounds the time that it takes (regex is linear in the text).
const PATTERN_LENGTH_MAX: usize = 1024;
const PATTERN_BYTES_MAX: usize = 512 * 1024;
/// The longest path into JSON.
const PATH_LENGTH_MAX: usize = 512;

/// A status such as `200`, or a hundred of them such as `2xx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusPattern {
    from: u16,
    to: u16,
}

impl StatusPattern {
    /// Whether it is this.
    pub fn matches(self, status: u16) -> bool {
        (self.from..=self.to).contains(&status)
    }
}

impl fmt::Display for StatusPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.from == self.to { self.from.fmt(f) } else { write!(f, "{}xx", self.from / 100) }
    }
}

impl Serialize for StatusPattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StatusPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let hundred = text.strip_suffix("xx").and_then(|first| first.parse::<u16>().ok()).filter(|first| (1..=9).contains(first));
        let one = || text.parse().ok().filter(|status| (100..=999).contains(status));
        match (hundred, one()) {
            (Some(hundred), _) => Ok(Self { from: hundred * 100, to: hundred * 100 + 99 }),
            (None, Some(status)) => Ok(Self { from: status, to: status }),
            (None, None) => Err(de::Error::custom(format!("must be a status such as \"200\" or \"2xx\", not {}", shown(&value)))),
        }
    }
}

inline_schema!(StatusPattern, {"type": ["string", "integer"], "pattern": "^[1-9]([0-9][0-9]|xx)$", "minimum": 100, "maximum": 999});

/// A regular expression, in the syntax of the crate regex: no look-around and no back-references, so its time is linear.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl Pattern {
    /// Whether there is a match.
    pub fn is_match(&self, text: &[u8]) -> bool {
        self.0.is_match(text)
    }

    /// The first match.
    pub fn find<'a>(&self, text: &'a [u8]) -> Option<&'a [u8]> {
        self.0.find(text).map(|found| found.as_bytes())
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}

/// A JSONPath that takes linear time: at most one `..`, one `?`, and no second `$`.
#[derive(Clone, Debug, PartialEq)]
pub struct Path(JsonPath);

impl Path {
    /// What there is.
    pub fn query<'a>(&self, document: &'a Value) -> Vec<&'a Value> {
        self.0.query(document).all()
    }
}

impl FromStr for Pattern {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() > PATTERN_LENGTH_MAX {
            return Err(format!("must be at most {PATTERN_LENGTH_MAX} bytes long, this has {}", text.len()));
        }
        let compiled = RegexBuilder::new(text).size_limit(PATTERN_BYTES_MAX).dfa_size_limit(PATTERN_BYTES_MAX).build();
        compiled.map(Self).map_err(|error| format!("is no regular expression: {}", error.to_string().replace('\n', " ")))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl FromStr for Path {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() > PATH_LENGTH_MAX {
            return Err(format!("must be at most {PATH_LENGTH_MAX} bytes long, this has {}", text.len()));
        }
        for sign in ["..", "?", "$"] {
            if text.matches(sign).count() > 1 {
                return Err(format!("must have `{sign}` only once, so that it takes no longer than the document is long"));
            }
        }
        JsonPath::parse(text).map(Self).map_err(|error| format!("is no JSONPath such as $.items[0].name: {error}"))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

as_text!(Pattern, {"type": "string", "maxLength": PATTERN_LENGTH_MAX});
as_text!(Path, {"type": "string", "maxLength": PATH_LENGTH_MAX});
