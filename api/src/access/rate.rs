//! How much of its rate each principal has left, in this process.
//!
//! A rate of 60/m means sixty at once, and then one more every second. Only principals with a rate take room here, and one that is fresh again
//! is forgotten.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use probeops_shared::access::Rate;

/// How many principals with the same rate are remembered; beyond it those that are fresh again go, and if that is less than half, all go.
const PRINCIPALS_MAX: usize = 20_000;
/// How many different rates are remembered, in the same way.
const RATES_MAX: usize = 1_000;

type Limiter = DefaultKeyedRateLimiter<String>;

/// What is left.
#[derive(Default)]
pub(super) struct Rates(Mutex<HashMap<(u32, Duration), Limiter>>);

impl std::fmt::Debug for Rates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rates")
    }
}

/// What became of an attempt to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// They are taken.
    Now,
    /// There are not enough until then; none is taken.
    Later(Duration),
    /// There will never be so many at once.
    Never,
}

impl Rates {
    /// Takes `runs` from what the principal has left.
    pub(super) fn take(&self, principal: &str, rate: Rate, runs: usize) -> Taken {
        let Some(runs) = u32::try_from(runs).ok().map(NonZeroU32::new) else { return Taken::Never };
        let Some(runs) = runs else { return Taken::Now };
        let mut limiters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if limiters.len() >= RATES_MAX {
            limiters.retain(|_, limiter| {
                limiter.retain_recent();
                !limiter.is_empty()
            });
            if limiters.len() > RATES_MAX / 2 {
                tracing::warn!(rates = limiters.len(), "too many different rates are in use at once; all start afresh");
                limiters.clear();
            }
        }
        let limiter = limiters.entry((rate.count, rate.window)).or_insert_with(|| RateLimiter::keyed(quota(rate)));
        if limiter.len() >= PRINCIPALS_MAX {
            limiter.retain_recent();
            if limiter.len() > PRINCIPALS_MAX / 2 {
                tracing::warn!(principals = limiter.len(), %rate, "too many principals draw on one rate at once; all start afresh");
                *limiter = RateLimiter::keyed(quota(rate));
            }
        }
        match limiter.check_key_n(&principal.to_owned(), runs) {
            Ok(Ok(())) => Taken::Now,
            Ok(Err(not_until)) => Taken::Later(not_until.wait_time_from(DefaultClock::default().now())),
            Err(_never) => Taken::Never,
        }
    }
}

fn quota(rate: Rate) -> Quota {
    let count = NonZeroU32::new(rate.count).unwrap_or(NonZeroU32::MIN);
    // The shortest period that a parsed rate can have is a microsecond.
    let each = Quota::with_period(rate.window / count.get()).unwrap_or(Quota::per_second(count));
    each.allow_burst(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_principal_gets_his_rate_at_once_and_then_waits() {
        let rates = Rates::default();
        let rate: Rate = "3/h".parse().unwrap();
        assert_eq!(rates.take("key:a", rate, 0), Taken::Now);
        assert_eq!(rates.take("key:a", rate, 2), Taken::Now);
        let Taken::Later(after) = rates.take("key:a", rate, 2) else { panic!("two of one") };
        assert!(after > Duration::from_mins(19) && after <= Duration::from_mins(20), "{after:?}");
        assert_eq!(rates.take("key:a", rate, 1), Taken::Now, "the refused attempt took nothing");
        assert_eq!(rates.take("key:b", rate, 3), Taken::Now, "each principal has his own");
        assert_eq!(rates.take("key:b", rate, 4), Taken::Never);
    }

    #[test]
    fn every_rate_that_can_be_written_has_a_quota() {
        for text in ["1/s", "1000000/s", "1/h", "1000000/h", "7/m"] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!(quota(rate).burst_size().get(), rate.count, "{text}");
            assert!(!quota(rate).replenish_interval().is_zero(), "{text}");
        }
    }

    #[test]
    fn no_more_principals_are_remembered_than_there_is_room_for() {
        let rates = Rates::default();
        let slow: Rate = "1/h".parse().unwrap();
        for number in 0..PRINCIPALS_MAX + 10 {
            rates.take(&format!("key:{number}"), slow, 1);
        }
        assert!(rates.0.lock().unwrap().values().next().unwrap().len() <= PRINCIPALS_MAX);
    }
}
