//! Points in time: RFC 3339 UTC in JSON, Unix milliseconds in headers.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

use crate::text::inline_schema;

/// A point in time, UTC, printed with microseconds (RFC 3339).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(OffsetDateTime);

impl Timestamp {
    /// The time on this machine's clock.
    pub fn now() -> Self {
        Self(OffsetDateTime::now_utc())
    }

    /// From milliseconds since the Unix epoch; `None` beyond the year 9999.
    pub fn from_unix_ms(unix_ms: i64) -> Option<Self> {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000).ok().map(Self)
    }

    /// Milliseconds since the Unix epoch.
    pub fn unix_ms(self) -> i64 {
        i64::try_from(self.0.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
    }

    /// Microseconds since the Unix epoch; 0 before it.
    pub fn unix_us(self) -> u64 {
        u64::try_from(self.0.unix_timestamp_nanos() / 1_000).unwrap_or_default()
    }

    /// Seconds since the Unix epoch.
    pub fn unix_s(self) -> i64 {
        self.0.unix_timestamp()
    }

    /// This much later.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(time::Duration::try_from(duration).unwrap_or(time::Duration::MAX)))
    }

    /// How long after `earlier`; zero if it is not after.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::try_from(self.0 - earlier.0).unwrap_or_default()
    }

    /// As date(1) prints it: `Thu Nov 05 09:08:07 UTC 2026`.
    pub fn calendar(self) -> String {
        let form = format_description!("[weekday repr:short] [month repr:short] [day] [hour]:[minute]:[second] UTC [year]");
        self.0.format(&form).unwrap_or_else(|_| self.to_string())
    }

    /// As openssl prints it: `Nov  5 09:08:07 2026 GMT`.
    pub fn calendar_gmt(self) -> String {
        let form = format_description!("[month repr:short] [day padding:space] [hour]:[minute]:[second] [year] GMT");
        self.0.format(&form).unwrap_or_else(|_| self.to_string())
    }

    /// Parses RFC 3339.
    pub fn parse(text: &str) -> Option<Self> {
        OffsetDateTime::parse(text, &Rfc3339).ok().map(|at| Self(at.to_offset(time::UtcOffset::UTC)))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
        f.write_str(&self.0.format(&form).map_err(|_| fmt::Error)?)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom(format!("`{text}` is not an RFC 3339 time such as 2026-01-31T12:00:00Z")))
    }
}

inline_schema!(Timestamp, {"type": "string", "format": "date-time"});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_keeps_its_microseconds_through_json() {
        let text = "\"2026-01-31T12:00:00.123456Z\"";
        let at: Timestamp = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&at).unwrap(), text);
        assert_eq!(at.unix_ms(), 1_769_860_800_123);
    }

    #[test]
    fn another_offset_is_read_as_utc() {
        assert_eq!(Timestamp::parse("2026-01-31T13:00:00+01:00"), Timestamp::parse("2026-01-31T12:00:00Z"));
        assert_eq!(Timestamp::parse("yesterday"), None);
    }
}
