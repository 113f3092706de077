//! How much of its rate each principal has left, in this process.
//!
//! A rate of 60/m means sixty at once, and then one more every second. Only principals with a rate take room here, and one that is fresh again
//! is forgotten.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use probeops_shared::access::Rate;

/// How many principals with the same rate are remembered; beyond it those that are fresh again go, and if that is less than half, all go.
const PRINCIPALS_MAX: usize = 20_000;
/// How many different rates are remembered, in the same way.
const RATES_MAX: usize = 1_000;

/// What a rate allows, and what is left of it (draft-ietf-httpapi-ratelimit-headers).
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");

type Limiter = DefaultKeyedRateLimiter<String, StateInformationMiddleware>;

/// What is left.
#[derive(Default)]
pub(super) struct Rates(Mutex<HashMap<(u32, Duration), Limiter>>);

impl std::fmt::Debug for Rates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rates")
    }
}

/// What a principal has left of its rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    rate: Rate,
    left: u32,
}

impl Allowance {
    /// What is told of it: the rate, how many runs are left, and in how many seconds all are possible again.
    pub fn headers(&self) -> [(HeaderName, HeaderValue); 2] {
        let Self { rate, left } = self;
        let (each, spent) = (rate.window / rate.count.max(1), rate.count.saturating_sub(*left));
        let whole_in = each.saturating_mul(spent);
        let whole_in_s = whole_in.as_secs() + u64::from(whole_in.subsec_nanos() > 0);
        let policy = format!("\"runs\";q={};w={}", rate.count, rate.window.as_secs());
        let state = format!("\"runs\";r={left};t={whole_in_s}");
        // Digits, letters and quotes always make a header.
        let value = |text: String| HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""));
        [(RATE_LIMIT_POLICY, value(policy)), (RATE_LIMIT, value(state))]
    }
}

/// What became of an attempt to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// They are taken, and so much is left.
    Now(Allowance),
    /// There are not enough until then; none is taken.
    Later(Duration, Allowance),
    /// There will never be so many at once.
    Never,
}

impl Rates {
    /// Takes `runs` from what the principal has left.
    pub(super) fn take(&self, principal: &str, rate: Rate, runs: usize) -> Taken {
        let Some(runs) = u32::try_from(runs).ok().and_then(NonZeroU32::new) else { return Taken::Never };
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
        let limiter = limiters.entry((rate.count, rate.window)).or_insert_with(|| limiter_of(rate));
        if limiter.len() >= PRINCIPALS_MAX {
            limiter.retain_recent();
            if limiter.len() > PRINCIPALS_MAX / 2 {
                tracing::warn!(principals = limiter.len(), %rate, "too many principals draw on one rate at once; all start afresh");
                *limiter = limiter_of(rate);
            }
        }
        match limiter.check_key_n(&principal.to_owned(), runs) {
            Ok(Ok(state)) => Taken::Now(Allowance { rate, left: state.remaining_burst_capacity() }),
            Ok(Err(not_until)) => {
                let after = not_until.wait_time_from(DefaultClock::default().now());
                let each = quota(rate).replenish_interval();
                let lacking = after.as_nanos().div_ceil(each.as_nanos().max(1));
                let left = runs.get().saturating_sub(u32::try_from(lacking).unwrap_or(u32::MAX));
                Taken::Later(after, Allowance { rate, left })
            }
            Err(_never) => Taken::Never,
        }
    }
}

fn limiter_of(rate: Rate) -> Limiter {
    RateLimiter::keyed(quota(rate)).with_middleware()
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
        assert_eq!(rates.take("key:a", rate, 2), Taken::Now(Allowance { rate, left: 1 }));
        let Taken::Later(after, left) = rates.take("key:a", rate, 2) else { panic!("two of one") };
        assert!(after > Duration::from_mins(19) && after <= Duration::from_mins(20), "{after:?}");
        assert_eq!(left, Allowance { rate, left: 1 });
        assert_eq!(rates.take("key:a", rate, 1), Taken::Now(Allowance { rate, left: 0 }), "the refused attempt took nothing");
        assert_eq!(rates.take("key:b", rate, 3), Taken::Now(Allowance { rate, left: 0 }), "each principal has his own");
        assert_eq!(rates.take("key:b", rate, 4), Taken::Never);
    }

    #[test]
    fn what_is_left_is_told_in_two_headers() {
        let rate: Rate = "60/m".parse().unwrap();
        let told = |left: u32| Allowance { rate, left }.headers().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()));
        assert_eq!(told(60), ["ratelimit-policy: \"runs\";q=60;w=60", "ratelimit: \"runs\";r=60;t=0"]);
        assert_eq!(told(58)[1], "ratelimit: \"runs\";r=58;t=2");
        let slow = Allowance { rate: "7/s".parse().unwrap(), left: 0 };
        assert_eq!(slow.headers()[1].1, "\"runs\";r=0;t=1");
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
