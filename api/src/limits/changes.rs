//! How many changes one makes: each is a record of the trail, which has room for so many.
//!
//! What runs jobs is bounded by `rate` and `at_once` and does not count here. Kept in memory, by each replica for itself.

use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};
use probeops_shared::access::Limits;
use probeops_shared::problem::Code;

use crate::access::Identity;
use crate::access::keyring::Keyring;
use crate::problem::Problem;

/// How many are told apart at once; beyond, all others are one.
const KNOWN_MAX: usize = 65_536;
/// After so many questions those who have their whole allowance are forgotten.
const FORGET_EVERY: usize = 16_384;
/// How many changes one makes at once, and after them one in each second.
const CHANGES: (NonZeroU32, Duration) = (NonZeroU32::new(120).expect("not zero"), Duration::from_secs(1));

/// So many at once and then one in so long, for each of those who are told apart.
pub(crate) struct Allowances<K: Clone + Eq + Hash> {
    each: DefaultKeyedRateLimiter<K>,
    others: DefaultDirectRateLimiter,
    asked: AtomicUsize,
}

impl<K: Clone + Eq + Hash> Allowances<K> {
    /// So many at once and then one in so long, which is at least a nanosecond.
    pub(crate) fn new((at_once, then_each): (NonZeroU32, Duration)) -> Self {
        let quota = Quota::with_period(then_each).unwrap_or(Quota::per_second(NonZeroU32::MIN)).allow_burst(at_once);
        Self { each: RateLimiter::keyed(quota), others: RateLimiter::direct(quota), asked: AtomicUsize::new(0) }
    }

    /// Takes one; says when there is one again if there is none.
    pub(crate) fn take(&self, of: &K) -> Result<(), Duration> {
        if self.asked.fetch_add(1, Ordering::Relaxed) % FORGET_EVERY == FORGET_EVERY - 1 {
            self.each.retain_recent();
        }
        let taken = if self.each.len() < KNOWN_MAX { self.each.check_key(of) } else { self.others.check() };
        taken.map_err(|not_until| not_until.wait_time_from(DefaultClock::default().now()))
    }
}

/// Bounds the changes of each principal.
#[derive(Clone)]
pub(crate) struct Changes(Arc<Allowances<String>>);

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Changes").finish_non_exhaustive()
    }
}

impl Changes {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Allowances::new(CHANGES)))
    }

    /// Refuses one change too many, before it is made.
    pub(crate) fn check(&self, who: &Identity, keyring: &Keyring) -> Result<(), Problem> {
        counted_as(who, keyring).map_or(Ok(()), |payer| self.take(&payer))
    }

    fn take(&self, payer: &String) -> Result<(), Problem> {
        self.0.take(payer).map_err(|after| {
            let (at_once, then_each) = CHANGES;
            let detail = format!(
                "more changes than you may make: {at_once} at once, and then one every {} s, which the keys that you have made share with you",
                then_each.as_secs()
            );
            Problem::new(Code::RateLimited, detail).retry_after(after)
        })
    }
}

/// On whom is counted what a principal makes and changes: himself, or, so that keys do not multiply what he may, who made his key. Nobody for an
/// admin without limits: he could run any number of jobs, which are recorded, too.
pub(crate) fn counted_as(who: &Identity, keyring: &Keyring) -> Option<String> {
    if who.is_admin() && who.limits == Limits::default() {
        return None;
    }
    Some(counted_by_name(&who.name, keyring))
}

/// The same of somebody of whom only the name is known.
pub(crate) fn counted_by_name(name: &str, keyring: &Keyring) -> String {
    let shared = name.strip_prefix("key:").and_then(|id| keyring.counts_with(id));
    shared.unwrap_or_else(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_his_own_allowance_and_it_comes_back_one_by_one() {
        let changes = Changes::new();
        let take = |payer: &str| changes.take(&payer.to_owned());
        for _ in 0..CHANGES.0.get() {
            take("key:a").unwrap();
        }
        let refused = take("key:a").unwrap_err();
        assert!(refused.code() == Code::RateLimited && refused.detail().contains("120 at once"), "{refused}");
        take("key:b").unwrap();
        let after = changes.0.take(&"key:a".to_owned()).unwrap_err();
        assert!(after <= CHANGES.1, "{after:?}");
    }

    #[test]
    fn many_take_bounded_memory_and_are_bounded_together() {
        let allowances = Allowances::new((NonZeroU32::MIN, Duration::from_hours(1)));
        for number in 0..KNOWN_MAX {
            allowances.take(&number).unwrap();
        }
        allowances.take(&KNOWN_MAX).unwrap();
        assert!(allowances.take(&(KNOWN_MAX + 1)).is_err());
        assert_eq!(allowances.each.len(), KNOWN_MAX);
    }
}
