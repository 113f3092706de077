//! Not everything that may come again and again is recorded one by one: what is not is counted, and told with the next that is, or before long.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

/// How many are told apart at once; beyond, all others are one.
const KNOWN_MAX: usize = 4_096;

/// For those who are not told apart.
struct Brake {
    limiter: DefaultDirectRateLimiter,
    passed_over: AtomicU64,
}

/// One for each of those who are.
pub(super) struct Brakes<K> {
    quota: Quota,
    known: Mutex<HashMap<K, Arc<Brake>>>,
    /// What all are who are too many to be told apart.
    others: (K, Arc<Brake>),
}

impl Brake {
    fn new(quota: Quota) -> Self {
        Self { limiter: RateLimiter::direct(quota), passed_over: AtomicU64::new(0) }
    }

    fn may(&self) -> bool {
        self.limiter.check().is_ok()
    }

    fn count(&self, more: u64) {
        self.passed_over.fetch_add(more, Ordering::Relaxed);
    }

    fn has_count(&self) -> bool {
        self.passed_over.load(Ordering::Relaxed) > 0
    }

    fn take_count(&self) -> u64 {
        self.passed_over.swap(0, Ordering::Relaxed)
    }
}

impl<K: Clone + Eq + Hash> Brakes<K> {
    /// So many are recorded of each; `others` stands for those who are too many.
    pub(super) fn new(quota: Quota, others: K) -> Self {
        Self { quota, known: Mutex::default(), others: (others, Arc::new(Brake::new(quota))) }
    }

    /// How many of the same before this one were not recorded, if this one is to be.
    pub(super) fn pass(&self, of: &K) -> Option<u64> {
        let brake = self.brake(of);
        if brake.may() {
            return Some(brake.take_count());
        }
        brake.count(1);
        None
    }

    /// Counts so many that could not be recorded after all.
    pub(super) fn pass_over(&self, of: &K, count: u64) {
        self.brake(of).count(count);
    }

    /// What was not recorded and may be told by now: how many of whom.
    pub(super) fn untold(&self) -> Vec<(K, u64)> {
        self.told_if(Brake::may)
    }

    /// All that was not recorded.
    pub(super) fn all_untold(&self) -> Vec<(K, u64)> {
        self.told_if(|_| true)
    }

    fn told_if(&self, may: impl Fn(&Brake) -> bool) -> Vec<(K, u64)> {
        let known = self.known();
        let all = known.iter().chain([(&self.others.0, &self.others.1)]);
        all.filter(|(_, brake)| brake.has_count() && may(brake)).map(|(of, brake)| (of.clone(), brake.take_count())).collect()
    }

    fn brake(&self, of: &K) -> Arc<Brake> {
        let mut known = self.known();
        if let Some(brake) = known.get(of) {
            return Arc::clone(brake);
        }
        if known.len() >= KNOWN_MAX {
            known.retain(|_, brake| brake.has_count());
        }
        if known.len() >= KNOWN_MAX {
            return Arc::clone(&self.others.1);
        }
        Arc::clone(known.entry(of.clone()).or_insert_with(|| Arc::new(Brake::new(self.quota))))
    }

    fn known(&self) -> MutexGuard<'_, HashMap<K, Arc<Brake>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn brakes(per_hour: u32) -> Brakes<String> {
        Brakes::new(Quota::per_hour(NonZeroU32::new(per_hour).unwrap()), "others".to_owned())
    }

    #[test]
    fn what_is_not_recorded_is_told_with_the_next_that_is_and_by_each_for_itself() {
        let brakes = brakes(2);
        let [a, b] = ["a", "b"].map(str::to_owned);
        assert_eq!([brakes.pass(&a), brakes.pass(&a), brakes.pass(&a)], [Some(0), Some(0), None]);
        assert_eq!(brakes.pass(&b), Some(0));
        brakes.pass_over(&b, 3);
        assert_eq!(brakes.pass(&b), Some(3));
        brakes.pass_over(&b, 2);
        assert_eq!(brakes.untold(), [], "none of them may be recorded for an hour");
        let mut all = brakes.all_untold();
        all.sort();
        assert_eq!((all, brakes.all_untold()), (vec![(a, 1), (b, 2)], Vec::new()));
    }

    #[test]
    fn those_who_are_too_many_are_one_and_nobody_is_forgotten_of_whom_something_is_to_be_told() {
        let brakes = brakes(1);
        for number in 0..KNOWN_MAX {
            assert_eq!(brakes.pass(&number.to_string()), Some(0));
            assert_eq!(brakes.pass(&number.to_string()), None);
        }
        assert_eq!([brakes.pass(&"x".to_owned()), brakes.pass(&"y".to_owned())], [Some(0), None]);
        let all = brakes.all_untold();
        assert_eq!((all.len(), all.contains(&("others".to_owned(), 1))), (KNOWN_MAX + 1, true));
        // Of whom all is told may go.
        assert_eq!(brakes.pass(&"y".to_owned()), Some(0));
    }
}
