//! When a callback is tried again.

use std::time::Duration;

use probeops_shared::timestamp::Timestamp;
use time::PrimitiveDateTime;
use time::macros::format_description;

/// How long to wait after each attempt; after the last of these as long again.
const DELAYS: [Duration; 8] = [
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(4),
    Duration::from_secs(15),
    Duration::from_mins(1),
    Duration::from_mins(5),
    Duration::from_mins(30),
    Duration::from_hours(2),
];
/// By how much of itself a delay is longer or shorter, so that those who fail together do not come back together.
const JITTER: f64 = 0.2;
/// A receiver that is not ready for the answer yet says 409; within this time of the job's end it is asked again quickly.
const CONFLICT_PASSES_WITHIN: Duration = Duration::from_mins(2);
/// How quickly.
const CONFLICT_DELAY_MAX: Duration = Duration::from_secs(4);
/// The longest that a receiver's `Retry-After` is heeded.
const RETRY_AFTER_MAX: Duration = Duration::from_hours(2);

/// What a receiver answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answered {
    /// The status.
    pub(super) status: u16,
    /// When it wants to be asked again.
    pub(super) retry_after: Option<Duration>,
}

/// What to do after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It was taken.
    Done,
    /// Nobody wants it any more.
    Gone,
    /// Try again after this long.
    Again(Duration),
}

/// What to do after attempt `number` (from 1), this long after the job's end; `random` is from 0 to 1. No answer at all is none.
pub(super) fn next(answer: Option<Answered>, number: u32, age: Duration, random: f64) -> Next {
    let index = usize::try_from(number.saturating_sub(1)).unwrap_or(usize::MAX).min(DELAYS.len() - 1);
    let delay = DELAYS.get(index).copied().unwrap_or_default();
    let jittered = |delay: Duration| delay.mul_f64(1.0 + JITTER * (2.0 * random.clamp(0.0, 1.0) - 1.0));
    let Some(Answered { status, retry_after }) = answer else { return Next::Again(jittered(delay)) };
    match status {
        200..=299 => Next::Done,
        410 => Next::Gone,
        409 if age < CONFLICT_PASSES_WITHIN => Next::Again(jittered(delay.min(CONFLICT_DELAY_MAX)).min(CONFLICT_DELAY_MAX)),
        _ => Next::Again(jittered(delay).max(retry_after.unwrap_or_default().min(RETRY_AFTER_MAX))),
    }
}

/// Reads `Retry-After` (RFC 9110, 10.2.3): seconds, or a date.
pub(super) fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit are longer than anybody waits.
        return Some(value.parse().map_or(RETRY_AFTER_MAX, Duration::from_secs).min(RETRY_AFTER_MAX));
    }
    let form = format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");
    let at = PrimitiveDateTime::parse(value, &form).ok()?.assume_utc().unix_timestamp();
    Some(Timestamp::from_unix_ms(at.checked_mul(1_000)?)?.since(now).min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn again(status: u16, retry_after: Option<u64>, number: u32, age: Duration) -> Duration {
        let answer = Answered { status, retry_after: retry_after.map(Duration::from_secs) };
        match next(Some(answer), number, age, 0.5) {
            Next::Again(delay) => delay,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn delays_grow_and_are_spread() {
        for (number, delay) in (1..).zip(DELAYS) {
            assert_eq!(next(None, number, Duration::ZERO, 0.5), Next::Again(delay));
            assert_eq!(next(None, number, Duration::ZERO, 0.0), Next::Again(delay.mul_f64(0.8)));
            assert_eq!(next(None, number, Duration::ZERO, 1.0), Next::Again(delay.mul_f64(1.2)));
        }
        for number in [9, 100, u32::MAX] {
            assert_eq!(next(None, number, Duration::ZERO, 0.5), Next::Again(Duration::from_hours(2)));
        }
    }

    #[test]
    fn an_answer_says_what_is_next() {
        let answered = |status| next(Some(Answered { status, retry_after: None }), 1, Duration::ZERO, 0.5);
        assert_eq!([answered(200), answered(204), answered(299), answered(410)], [Next::Done, Next::Done, Next::Done, Next::Gone]);
        for status in [199, 300, 302, 307, 400, 404, 429, 500, 503] {
            assert_eq!(again(status, None, 2, Duration::ZERO), Duration::from_secs(1), "{status}");
        }
        let (young, old) = (Duration::from_secs(119), Duration::from_secs(120));
        assert_eq!((again(409, None, 8, young), again(409, None, 1, young)), (Duration::from_secs(4), Duration::from_millis(250)));
        assert_eq!(again(409, None, 8, old), Duration::from_hours(2));
        assert_eq!(again(503, Some(7), 1, young), Duration::from_secs(7));
        assert_eq!(again(503, Some(1), 4, young), Duration::from_secs(15));
        assert_eq!(again(503, Some(1_000_000), 1, young), Duration::from_hours(2));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = Timestamp::parse("2015-10-21T07:27:30Z").unwrap();
        assert_eq!(retry_after("120", now), Some(Duration::from_mins(2)));
        assert_eq!(retry_after("99999999999999999999999", now), Some(RETRY_AFTER_MAX));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:28:00 GMT", now), Some(Duration::from_secs(30)));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:27:00 GMT", now), Some(Duration::ZERO));
        for bad in ["", "-1", "1.5", "soon", "21 Oct 2015"] {
            assert_eq!(retry_after(bad, now), None, "{bad}");
        }
    }
}
