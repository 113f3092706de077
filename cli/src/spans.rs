//! Lengths of time as people type them: `90s`, `15m`, `2h`, `30d`.

use std::time::Duration;

const DAY_S: u64 = 86_400;

/// Reads one.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let read = || {
        let (count, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let unit_s = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => DAY_S,
            _ => return None,
        };
        count.bytes().all(|byte| byte.is_ascii_digit()).then_some(())?;
        Some(Duration::from_secs(u64::from(count.parse::<u32>().ok()?).checked_mul(unit_s)?))
    };
    read().ok_or_else(|| format!("must be a number and its unit, such as 90s, 15m, 2h or 30d, not `{text}`"))
}

/// Writes one in the largest unit that divides it.
pub(crate) fn shown(span: Duration) -> String {
    let seconds = span.as_secs();
    let units = [(DAY_S, "d"), (3600, "h"), (60, "m")];
    let unit = units.into_iter().find(|(unit_s, _)| seconds > 0 && seconds.is_multiple_of(*unit_s));
    unit.map_or_else(|| format!("{seconds}s"), |(unit_s, unit)| format!("{}{unit}", seconds / unit_s))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_of_time_has_a_unit() {
        assert_eq!(parse("30d"), Ok(Duration::from_hours(720)));
        assert_eq!(shown(Duration::from_hours(720)), "30d");
        assert_eq!(shown(Duration::from_secs(90)), "90s");
        for bad in ["", "s", "30", "+3s", "-1h", "1w", "ü", "99999999999d"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
