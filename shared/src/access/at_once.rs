//! How many runs may go on at once.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::bounded::shown;
use crate::text::inline_schema;

/// The most that can be allowed; more would be no limit.
const AT_ONCE_MAX: u32 = 1_000_000;

/// So many runs at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AtOnce(u32);

impl AtOnce {
    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }

    fn new(number: u64) -> Option<Self> {
        u32::try_from(number).ok().filter(|number| (1..=AT_ONCE_MAX).contains(number)).map(Self)
    }
}

fn wants(given: &serde_json::Value) -> String {
    format!("must be a whole number from 1 to {AT_ONCE_MAX}, not {}", shown(given))
}

impl FromStr for AtOnce {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().ok().and_then(Self::new).ok_or_else(|| wants(&text.into()))
    }
}

impl fmt::Display for AtOnce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for AtOnce {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.0)
    }
}

impl<'de> Deserialize<'de> for AtOnce {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let given = serde_json::Value::deserialize(deserializer)?;
        given.as_u64().and_then(Self::new).ok_or_else(|| de::Error::custom(wants(&given)))
    }
}

inline_schema!(AtOnce, {"type": "integer", "minimum": 1, "maximum": (AT_ONCE_MAX), "examples": [8]});
