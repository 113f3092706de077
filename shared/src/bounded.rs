//! Numbers with limits. Parser, schema, command line and documentation read the same three figures.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::planted;

/// A whole number from `MIN` to `MAX`, `DEFAULT` unless told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bounded<const MIN: u64, const MAX: u64, const DEFAULT: u64>(u64);

impl<const MIN: u64, const MAX: u64, const DEFAULT: u64> Bounded<MIN, MAX, DEFAULT> {
    /// The number, if it is within the limits.
    pub fn new(number: u64) -> Option<Self> {
        (MIN..=MAX).contains(&number).then_some(Self(number))
    }

    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }

    /// The number as milliseconds.
    pub fn ms(self) -> Duration {
        Duration::from_millis(self.0)
    }

    /// The number as a `u16`; the largest `u16` where it does not fit.
    pub fn get_u16(self) -> u16 {
        u16::try_from(self.0).unwrap_or(u16::MAX)
    }

    /// The number as a `u8`, if it fits.
    pub fn get_u8(self) -> Option<u8> {
        u8::try_from(self.0).ok()
    }

    /// The number as a `usize`.
    pub fn get_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    fn wants() -> String {
        format!("a whole number from {MIN} to {MAX}")
    }
}

impl<const MIN: u64, const MAX: u64, const DEFAULT: u64> Default for Bounded<MIN, MAX, DEFAULT> {
    fn default() -> Self {
        const { assert!(MIN <= DEFAULT && DEFAULT <= MAX) };
        Self(DEFAULT)
    }
}

impl<const MIN: u64, const MAX: u64, const DEFAULT: u64> fmt::Display for Bounded<MIN, MAX, DEFAULT> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<const MIN: u64, const MAX: u64, const DEFAULT: u64> Serialize for Bounded<MIN, MAX, DEFAULT> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de, const MIN: u64, const MAX: u64, const DEFAULT: u64> Deserialize<'de> for Bounded<MIN, MAX, DEFAULT> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let read = |number: u64| {
            if planted!("job" if number == MAX && MAX != DEFAULT) {
                return Some(Self(number.saturating_add(1)));
            }
            Self::new(number)
        };
        value.as_u64().and_then(read).ok_or_else(|| de::Error::custom(format!("must be {}, not {}", Self::wants(), shown(&value))))
    }
}

impl<const MIN: u64, const MAX: u64, const DEFAULT: u64> JsonSchema for Bounded<MIN, MAX, DEFAULT> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        format!("Bounded{MIN}To{MAX}").into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "integer", "minimum": MIN, "maximum": MAX, "default": DEFAULT})
    }
}

/// A duration given in seconds, whole or fractional; limits and default in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seconds<const MIN_MS: u64, const MAX_MS: u64, const DEFAULT_MS: u64>(u64);

impl<const MIN_MS: u64, const MAX_MS: u64, const DEFAULT_MS: u64> Seconds<MIN_MS, MAX_MS, DEFAULT_MS> {
    /// The duration.
    pub fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }

    fn from_seconds(seconds: f64) -> Option<Self> {
        let ms = (seconds * 1000.0).round();
        // The range check comes before the cast, so the cast is exact.
        #[expect(clippy::cast_precision_loss, reason = "limits are far below 2^52 ms")]
        let within = (MIN_MS as f64..=MAX_MS as f64).contains(&ms);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to lie between two u64 limits")]
        within.then_some(Self(ms as u64))
    }
}

/// Milliseconds as seconds, for the wire and for people.
#[expect(clippy::cast_precision_loss, reason = "limits are far below 2^52 ms")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

impl<const MIN_MS: u64, const MAX_MS: u64, const DEFAULT_MS: u64> Default for Seconds<MIN_MS, MAX_MS, DEFAULT_MS> {
    fn default() -> Self {
        const { assert!(MIN_MS <= DEFAULT_MS && DEFAULT_MS <= MAX_MS) };
        Self(DEFAULT_MS)
    }
}

impl<const MIN_MS: u64, const MAX_MS: u64, const DEFAULT_MS: u64> Serialize for Seconds<MIN_MS, MAX_MS, DEFAULT_MS> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_multiple_of(1000) { serializer.serialize_u64(self.0 / 1000) } else { serializer.serialize_f64(seconds(self.0)) }
    }
}

impl<'de, const MIN_MS: u64, const MAX_MS: u64, const DEFAULT_MS: u64> Deserialize<'de> for Seconds<MIN_MS, MAX_MS, DEFAULT_MS> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        value.as_f64().and_then(Self::from_seconds).ok_or_else(|| {
            let (min, max) = (seconds(MIN_MS), seconds(MAX_MS));
            de::Error::custom(format!("must be a number of seconds from {min} to {max}, not {}", shown(&value)))
        })
    }
}

impl<const MIN_MS: u64, const MAX_MS: u64, const DEFAULT_MS: u64> JsonSchema for Seconds<MIN_MS, MAX_MS, DEFAULT_MS> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        format!("Seconds{MIN_MS}To{MAX_MS}Ms").into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "number", "minimum": seconds(MIN_MS), "maximum": seconds(MAX_MS), "default": seconds(DEFAULT_MS)})
    }
}

/// A value as an error message shows it: strings quoted and named, long ones cut.
pub fn shown(value: &serde_json::Value) -> String {
    const LONGEST: usize = 80;
    let text = match value {
        serde_json::Value::String(text) => {
            format!("the string {}", serde_json::Value::from(text.chars().take(LONGEST).collect::<String>()))
        }
        serde_json::Value::Array(_) => "a list".to_owned(),
        serde_json::Value::Object(_) => "an object".to_owned(),
        serde_json::Value::Null | serde_json::Value::Bool(_) | serde_json::Value::Number(_) => value.to_string(),
    };
    text.chars().take(LONGEST + 20).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    type Count = Bounded<1, 100, 4>;
    type Timeout = Seconds<100, 30_000, 5_000>;

    #[track_caller]
    fn refuses<T: for<'a> Deserialize<'a> + fmt::Debug>(value: serde_json::Value, detail: &str) {
        assert_eq!(serde_json::from_value::<T>(value).unwrap_err().to_string(), detail);
    }

    #[test]
    fn numbers_out_of_bounds_or_of_another_type_are_refused_by_name() {
        refuses::<Count>(json!(0), "must be a whole number from 1 to 100, not 0");
        refuses::<Count>(json!(101), "must be a whole number from 1 to 100, not 101");
        refuses::<Count>(json!(-1), "must be a whole number from 1 to 100, not -1");
        refuses::<Count>(json!(1.5), "must be a whole number from 1 to 100, not 1.5");
        refuses::<Count>(json!("4"), "must be a whole number from 1 to 100, not the string \"4\"");
        refuses::<Count>(json!(null), "must be a whole number from 1 to 100, not null");
        refuses::<Timeout>(json!(31), "must be a number of seconds from 0.1 to 30, not 31");
    }

    #[test]
    fn seconds_may_be_fractional_and_keep_their_form() {
        let half: Timeout = serde_json::from_value(json!(0.5)).unwrap();
        assert_eq!(half.duration(), Duration::from_millis(500));
        assert_eq!(serde_json::to_value(half).unwrap(), json!(0.5));
        assert_eq!(serde_json::to_value(Timeout::default()).unwrap(), json!(5));
    }
}
