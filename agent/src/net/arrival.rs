//! When a packet arrived, by the kernel's own stamp: a task that reads it later, because others are busy, does not make the round trip longer.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::time::TimeSpec;

/// A stamp that is older is no stamp: the wall clock was set in between.
const OLDEST: Duration = Duration::from_secs(10);

/// The moment of a stamp on the clock that nobody sets; now, where there is no stamp.
pub(crate) fn at(stamp: Option<TimeSpec>) -> Instant {
    let now = Instant::now();
    let stamp = stamp.and_then(|stamp| UNIX_EPOCH.checked_add(Duration::from(stamp)));
    let age = stamp.and_then(|stamp| SystemTime::now().duration_since(stamp).ok()).filter(|age| *age < OLDEST);
    now.checked_sub(age.unwrap_or_default()).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_carried_over_to_the_other_clock_unless_the_wall_clock_was_set() {
        let ago = |age| TimeSpec::from_duration(SystemTime::now().checked_sub(age).unwrap().duration_since(UNIX_EPOCH).unwrap());
        let second = Duration::from_secs(1);
        assert!(at(Some(ago(second))).elapsed() >= second);
        assert!(at(Some(ago(OLDEST * 2))).elapsed() < second && at(None).elapsed() < second);
    }
}
