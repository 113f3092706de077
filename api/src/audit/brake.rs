//! Not everything that may come again and again is recorded one by one: what is not is counted, and told with the next that is.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

/// How many are told apart at once; beyond, all begin anew.
const KNOWN_MAX: usize = 4_096;

/// For those who are not told apart.
pub(super) struct Brake {
    limiter: DefaultDirectRateLimiter,
    passed_over: AtomicU64,
}

/// One for each of those who are.
pub(super) struct Brakes {
    quota: Quota,
    of: Mutex<HashMap<String, Arc<Brake>>>,
}

impl Brake {
    pub(super) fn new(quota: Quota) -> Self {
        Self { limiter: RateLimiter::direct(quota), passed_over: AtomicU64::new(0) }
    }

    /// How many before this one were not recorded, if this one is to be.
    pub(super) fn pass(&self) -> Option<u64> {
        if self.limiter.check().is_err() {
            self.passed_over.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.passed_over.swap(0, Ordering::Relaxed))
    }
}

impl Brakes {
    pub(super) fn new(quota: Quota) -> Self {
        Self { quota, of: Mutex::default() }
    }

    /// How many of the same before this one were not recorded, if this one is to be.
    pub(super) fn pass(&self, of: &str) -> Option<u64> {
        let brake = {
            let mut known = self.of.lock().unwrap_or_else(PoisonError::into_inner);
            if known.len() >= KNOWN_MAX && !known.contains_key(of) {
                known.clear();
            }
            Arc::clone(known.entry(of.to_owned()).or_insert_with(|| Arc::new(Brake::new(self.quota))))
        };
        brake.pass()
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn what_is_not_recorded_is_told_with_the_next_that_is_and_by_each_for_itself() {
        let brakes = Brakes::new(Quota::per_hour(NonZeroU32::new(2).unwrap()));
        assert_eq!([brakes.pass("a"), brakes.pass("a"), brakes.pass("a")], [Some(0), Some(0), None]);
        assert_eq!(brakes.pass("b"), Some(0));
        let brake = Brake::new(Quota::per_hour(NonZeroU32::MIN));
        assert_eq!([brake.pass(), brake.pass(), brake.pass()], [Some(0), None, None]);
        assert_eq!(brake.passed_over.load(Ordering::Relaxed), 2);
    }
}
