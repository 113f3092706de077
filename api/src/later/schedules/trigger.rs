//! When a schedule is due.

use std::time::Duration;

use croner::Cron;
use croner::parser::{CronParser, Seconds};
use jiff::tz::TimeZone;
use probeops_shared::bounded::shown;
use probeops_shared::invalid::Invalid;
use probeops_shared::planted;
use probeops_shared::timestamp::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The shortest time between two firings.
const EVERY_MIN: Duration = Duration::from_secs(1);
/// The longest, and how far ahead a single firing may be.
const AHEAD_MAX: Duration = Duration::from_hours(366 * 24);
/// The digits of the longest, in seconds.
const EVERY_DIGITS_MAX: usize = 8;
/// The longest pattern and the longest name of a zone.
const TEXT_LENGTH_MAX: usize = 256;
/// How many fields a pattern has.
const CRON_FIELDS: usize = 6;
/// The zone of who names none.
const UTC: &str = "UTC";

/// When a schedule is due.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Trigger {
    /// Once.
    At(Timestamp),
    /// Again and again after this long, which is kept as it was given.
    Every(String),
    /// Whenever the clock of a zone matches six fields.
    Cron {
        /// Second, minute, hour, day of the month, month, day of the week.
        pattern: String,
        /// The zone, of the IANA database.
        time_zone: String,
    },
}

impl Trigger {
    /// Reads the one of `at`, `every` and `cron` that is given, and `time_zone`.
    pub(crate) fn parse(fields: &Map<String, Value>, now: Timestamp) -> Result<Self, Invalid> {
        let given: Vec<&str> = ["at", "every", "cron"].into_iter().filter(|name| fields.contains_key(*name)).collect();
        let [only] = given.as_slice() else {
            let what = if given.is_empty() { "none is".to_owned() } else { format!("{} are", given.join(" and ")) };
            let pointer = given.get(1).map_or_else(String::new, |name| format!("/{name}"));
            return Err(Invalid::new(pointer, format!("say when by exactly one of `at`, `every` and `cron`; {what} given")));
        };
        if *only != "cron" && fields.contains_key("time_zone") {
            return Err(Invalid::new("/time_zone", format!("goes only with `cron`; `{only}` means the same everywhere")));
        }
        let text = |name: &str| match fields.get(name) {
            Some(Value::String(text)) if text.len() <= TEXT_LENGTH_MAX => Ok(text.as_str()),
            Some(other) => {
                Err(Invalid::new(format!("/{name}"), format!("must be a string of at most {TEXT_LENGTH_MAX} bytes, not {}", shown(other))))
            }
            None => Ok(UTC),
        };
        match *only {
            "at" => at(text("at")?, now).map(Self::At).map_err(|detail| Invalid::new("/at", detail)),
            "every" => {
                let given = text("every")?;
                every(given).map_err(|detail| Invalid::new("/every", detail))?;
                Ok(Self::Every(given.to_owned()))
            }
            _ => {
                let (pattern, time_zone) = (text("cron")?, text("time_zone")?);
                let zone = zone(time_zone).map_err(|detail| Invalid::new("/time_zone", detail))?;
                let cron = cron(pattern).map_err(|detail| Invalid::new("/cron", detail))?;
                if next_of(&cron, zone, now).is_none() {
                    return Err(Invalid::new("/cron", format!("`{pattern}` never comes: no day is like that")));
                }
                Ok(Self::Cron { pattern: pattern.to_owned(), time_zone: time_zone.to_owned() })
            }
        }
    }

    /// When it is due for the first time after `after`; never again where that is nothing. What repeats after a while is counted from `anchor`.
    ///
    /// A wall-clock time that a zone passes over comes at the end of the gap, once. One that a zone has twice comes the first time only, unless
    /// its hour is `*` or a step: then it goes on as the time does.
    pub(crate) fn next_after(&self, after: Timestamp, anchor: Timestamp) -> Option<Timestamp> {
        match self {
            Self::At(at) => (*at > after).then_some(*at),
            Self::Every(text) => {
                let every_ms = i64::try_from(every(text).ok()?.as_millis()).ok()?;
                let passed = (after.unix_ms() - anchor.unix_ms()).max(0) / every_ms;
                Timestamp::from_unix_ms(anchor.unix_ms() + (passed + 1) * every_ms)
            }
            Self::Cron { pattern, time_zone } => next_of(&cron(pattern).ok()?, zone(time_zone).ok()?, after),
        }
    }

    /// The time between two firings, where that is always the same.
    pub(crate) fn interval(&self) -> Option<Duration> {
        match self {
            Self::Every(text) => every(text).ok(),
            Self::At(_) | Self::Cron { .. } => None,
        }
    }
}

fn at(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let at = Timestamp::parse(text)
        .ok_or_else(|| format!("must be an RFC 3339 time such as 2026-12-01T10:00:00Z, not {}", shown(&text.into())))?;
    // Due times have whole milliseconds: they are part of subjects and ids.
    let at = Timestamp::from_unix_ms(at.unix_ms()).unwrap_or(at);
    if at <= now {
        return Err(format!("{at} is over: it is {now}"));
    }
    if at > now.plus(AHEAD_MAX) {
        return Err(format!("{at} is more than {} days ahead", AHEAD_MAX.as_secs() / 86_400));
    }
    Ok(at)
}

fn every(text: &str) -> Result<Duration, String> {
    let read = || {
        let (count, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let unit_s = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3_600,
            "d" => 86_400,
            _ => return None,
        };
        (count.len() <= EVERY_DIGITS_MAX && count.bytes().all(|byte| byte.is_ascii_digit())).then_some(())?;
        Some(Duration::from_secs(u64::from(count.parse::<u32>().ok()?).checked_mul(unit_s)?))
    };
    let every =
        read().ok_or_else(|| format!("must be a number and its unit (s, m, h, d), such as 90s, 15m or 1d, not {}", shown(&text.into())))?;
    if !((EVERY_MIN..=AHEAD_MAX).contains(&every) || planted!("schedule" if every.is_zero() && text.ends_with('d'))) {
        return Err(format!("must be from {} s to {} days, not `{text}`", EVERY_MIN.as_secs(), AHEAD_MAX.as_secs() / 86_400));
    }
    Ok(every)
}

fn cron(pattern: &str) -> Result<Cron, String> {
    let wants = "six fields: second, minute, hour, day of the month, month, day of the week, such as `0 30 2 * * *`";
    let count = pattern.split(' ').filter(|field| !field.is_empty()).count();
    if count != CRON_FIELDS {
        return Err(format!("must have {wants}; {} has {count}", shown(&pattern.into())));
    }
    if !pattern.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(format!("must have {wants}, in printable ASCII with spaces between them, not {}", shown(&pattern.into())));
    }
    let parsed = CronParser::builder().seconds(Seconds::Required).build().parse(pattern);
    parsed.map_err(|error| format!("must have {wants}; {}: {error}", shown(&pattern.into())))
}

fn zone(name: &str) -> Result<TimeZone, String> {
    TimeZone::get(name).map_err(|_unknown| {
        format!("must be a time zone of the IANA database such as Europe/Berlin that this API knows, not {}", shown(&name.into()))
    })
}

fn next_of(cron: &Cron, zone: TimeZone, after: Timestamp) -> Option<Timestamp> {
    let after = jiff::Timestamp::from_millisecond(after.unix_ms()).ok()?.to_zoned(zone);
    let next = cron.find_next_occurrence(&after, false).ok()?;
    Timestamp::from_unix_ms(next.timestamp().as_millisecond())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn time(text: &str) -> Timestamp {
        Timestamp::parse(text).unwrap()
    }

    fn parse(fields: &Value) -> Result<Trigger, Invalid> {
        Trigger::parse(fields.as_object().unwrap(), time("2026-11-28T12:00:00Z"))
    }

    #[track_caller]
    fn dues(trigger: &Value, from: &str, expected: &[&str]) {
        let trigger = Trigger::parse(trigger.as_object().unwrap(), time(from)).unwrap();
        let anchor = time(from);
        let dues = std::iter::successors(trigger.next_after(anchor, anchor), |due| trigger.next_after(*due, anchor));
        let expected: Vec<Timestamp> = expected.iter().map(|text| time(text)).collect();
        assert_eq!(dues.take(expected.len().max(2)).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn each_kind_comes_when_it_says() {
        dues(&json!({"at": "2026-12-01T11:00:00+01:00"}), "2026-11-28T12:00:00Z", &["2026-12-01T10:00:00Z"]);
        let every = ["2026-11-28T12:15:00.5Z", "2026-11-28T12:30:00.5Z"];
        dues(&json!({"every": "15m"}), "2026-11-28T12:00:00.5Z", &every);
        let cron = ["2026-11-30T08:00:00Z", "2026-12-01T08:00:00Z"];
        dues(&json!({"cron": "0 0 9 * * MON-FRI", "time_zone": "Europe/Berlin"}), "2026-11-28T12:00:00Z", &cron);
    }

    #[test]
    fn a_time_that_the_clock_passes_over_comes_at_the_end_of_the_gap_and_what_is_there_comes_too() {
        let berlin = |pattern: &str| json!({"cron": pattern, "time_zone": "Europe/Berlin"});
        dues(&berlin("0 30 2 * * *"), "2026-03-28T12:00:00Z", &["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]);
        dues(&berlin("0 15 3 * * *"), "2026-03-28T12:00:00Z", &["2026-03-29T01:15:00Z", "2026-03-30T01:15:00Z"]);
    }

    #[test]
    fn a_time_that_the_clock_has_twice_comes_once_unless_it_comes_every_hour() {
        let berlin = |pattern: &str| json!({"cron": pattern, "time_zone": "Europe/Berlin"});
        dues(&berlin("0 30 2 * * *"), "2026-10-24T12:00:00Z", &["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]);
        dues(&berlin("0 30 * * * *"), "2026-10-25T00:00:00Z", &["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:30:00Z"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (fields, pointer, part) in [
            (json!({}), "", "none is given"),
            (json!({"at": "2027-01-01T00:00:00Z", "every": "1m"}), "/every", "at and every are given"),
            (json!({"every": "1m", "time_zone": "UTC"}), "/time_zone", "only with `cron`"),
            (json!({"at": "tomorrow"}), "/at", "RFC 3339"),
            (json!({"at": 7}), "/at", "must be a string"),
            (json!({"at": "2026-11-28T12:00:00Z"}), "/at", "is over"),
            (json!({"at": "2028-01-01T00:00:00Z"}), "/at", "366 days ahead"),
            (json!({"every": "0s"}), "/every", "from 1 s to 366 days"),
            (json!({"every": "367d"}), "/every", "from 1 s to 366 days"),
            (json!({"every": "500ms"}), "/every", "a number and its unit"),
            (json!({"every": "5000000000d"}), "/every", "a number and its unit"),
            (json!({"every": "ü"}), "/every", "a number and its unit"),
            (json!({"cron": "* * * * *"}), "/cron", "has 5"),
            (json!({"cron": "0 0 0 1 1\t*"}), "/cron", "has 5"),
            (json!({"cron": "0\t0 0 0 1 1 *"}), "/cron", "printable ASCII"),
            (json!({"every": "000000015m"}), "/every", "such as 90s"),
            (json!({"cron": "@daily"}), "/cron", "six fields"),
            (json!({"cron": "0 61 * * * *"}), "/cron", "six fields"),
            (json!({"cron": "0 0 0 31 2 *"}), "/cron", "never comes"),
            (json!({"cron": "0 0 0 * * *", "time_zone": "Mars/Base"}), "/time_zone", "IANA"),
            (json!({"cron": "0 0 0 * * *", "time_zone": "../../etc/passwd"}), "/time_zone", "IANA"),
        ] {
            let invalid = parse(&fields).unwrap_err();
            assert!(invalid.pointer == pointer && invalid.detail.contains(part), "{fields}: {invalid:?}");
        }
    }
}
