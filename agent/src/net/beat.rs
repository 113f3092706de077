//! Moments at which all wake up together that need no moment of their own: to be woken costs more than what is mostly done then.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// From one to the next: shorter than an answer may wait to be read, and than what routers take for a burst.
pub(crate) const BEAT: Duration = Duration::from_millis(5);

/// The first.
static FIRST: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The first beat that is not earlier.
pub(crate) fn at_or_after(at: Instant) -> Instant {
    let over = at.saturating_duration_since(*FIRST).as_nanos() % BEAT.as_nanos();
    let wait = BEAT.as_nanos().saturating_sub(over) % BEAT.as_nanos();
    at + Duration::from_nanos_u128(wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beat_is_never_early_nor_later_than_the_next() {
        let now = Instant::now();
        for micros in (0..50_000).step_by(777) {
            let at = now + Duration::from_micros(micros);
            let beat = at_or_after(at);
            assert!(beat >= at && beat < at + BEAT);
            assert_eq!(at_or_after(beat), beat);
            assert_eq!(at_or_after(beat + Duration::from_nanos(1)), beat + BEAT);
        }
    }
}
