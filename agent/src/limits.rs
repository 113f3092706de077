//! How much callers that publish straight to the broker may ask this node for. Each has a share of his limits here, which the control plane
//! tells; who was not told of may a little. Replicas of the API keep to limits themselves and are not limited here.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use probeops_shared::access::Rate;
use probeops_shared::ids::Caller;
use probeops_shared::outcome::{Failure, FailureKind};
use probeops_shared::presence::{Share, ShareRate, Shares};
use probeops_shared::window::Window;

/// What a caller may that the control plane has not told of: five in five seconds.
const UNTOLD: Rate = Rate { count: 5, window: Duration::from_secs(5) };
/// How many callers are counted; beyond it nobody new is served until others are fresh again.
const CALLERS_MAX: usize = 4_096;
/// When a run of the caller may have ended.
const ENDED_RETRY_AFTER: Duration = Duration::from_millis(500);

/// What callers may, and what they have used of it.
#[derive(Debug, Default)]
pub(crate) struct Limits(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    digest: String,
    shares: BTreeMap<Caller, Share>,
    used: HashMap<Caller, Window>,
    running: HashMap<Caller, u32>,
}

/// A run that is within its caller's limits; dropped when it is over.
#[derive(Debug)]
pub(crate) struct Pass {
    limits: Arc<Limits>,
    /// None for a replica of the API.
    caller: Option<Caller>,
}

impl Limits {
    /// Learns what the control plane says, if it is new; what was used stays used.
    pub(crate) fn learn(&self, shares: Shares) -> bool {
        let mut state = self.state();
        let new = state.digest != shares.digest;
        if new {
            tracing::debug!(callers = shares.callers.len(), "told what callers may ask for");
            (state.digest, state.shares) = (shares.digest, shares.callers);
        }
        new
    }

    /// What is known, as the control plane calls it.
    pub(crate) fn digest(&self) -> String {
        self.state().digest.clone()
    }

    /// Lets a caller run one more, or says when he may.
    pub(crate) fn enter(self: &Arc<Self>, caller: &Caller) -> Result<Pass, Failure> {
        if caller.is_api() {
            return Ok(Pass { limits: Arc::clone(self), caller: None });
        }
        let mut state = self.state();
        let told = state.shares.get(caller).copied();
        if let Some(at_once) = told.and_then(|share| share.at_once)
            && state.running.get(caller).copied().unwrap_or(0) >= at_once
        {
            let detail = format!("service {caller} has its {at_once} runs at once at this node");
            return Err(limited(detail, ENDED_RETRY_AFTER));
        }
        let rate = told.map_or(Some(UNTOLD), |share| share.rate.map(ShareRate::rate));
        if let Some(rate) = rate {
            state.spend(caller, rate, told.is_some(), now())?;
        }
        *state.running.entry(caller.clone()).or_default() += 1;
        Ok(Pass { limits: Arc::clone(self), caller: Some(caller.clone()) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn spend(&mut self, caller: &Caller, rate: Rate, told: bool, now: Duration) -> Result<(), Failure> {
        if self.used.len() >= CALLERS_MAX && !self.used.contains_key(caller) {
            let shares = &self.shares;
            self.used.retain(|caller, window| {
                let rate = shares.get(caller).and_then(|share| share.rate).map_or(UNTOLD, ShareRate::rate);
                window.advance(rate, now);
                window.used() > 0
            });
            if self.used.len() >= CALLERS_MAX {
                let detail = format!("this node counts the runs of {CALLERS_MAX} callers already");
                return Err(limited(detail, UNTOLD.window));
            }
        }
        let window = self.used.entry(caller.clone()).or_insert_with(|| Window::fresh(rate, now));
        window.advance(rate, now);
        if window.room(rate) > 0 {
            window.take(1);
            return Ok(());
        }
        let (count, window_ms) = (rate.count, rate.window.as_millis());
        let whose = if told {
            format!("service {caller} may run {count} in {window_ms} ms at this node, its share of its rate")
        } else {
            format!("this node was not told of service {caller}, so it may run {count} in {window_ms} ms")
        };
        Err(limited(whose, window.room_in(rate, 1, now)))
    }
}

impl Pass {
    /// Gives back what was taken for a run that does not begin.
    pub(crate) fn give_back(self) {
        let Some(caller) = &self.caller else { return };
        if let Some(window) = self.limits.state().used.get_mut(caller) {
            window.give_back(window.slot(), 1);
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let Some(caller) = &self.caller else { return };
        let mut state = self.limits.state();
        if let Some(running) = state.running.get_mut(caller) {
            *running -= 1;
            if *running == 0 {
                state.running.remove(caller);
            }
        }
    }
}

fn limited(detail: String, after: Duration) -> Failure {
    let after_ms = u64::try_from(after.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1);
    Failure { retry_after_ms: Some(after_ms), ..Failure::new(FailureKind::Limited, detail) }
}

/// The time since 1970.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(callers: &[(&str, Share)]) -> Arc<Limits> {
        let limits = Arc::new(Limits::default());
        let callers = callers.iter().map(|(name, share)| (name.parse().unwrap(), *share)).collect();
        limits.learn(Shares { digest: "d".to_owned(), callers });
        limits
    }

    fn admitted(limits: &Arc<Limits>, caller: &str, tries: usize) -> usize {
        let caller = caller.parse().unwrap();
        (0..tries).filter(|_| limits.enter(&caller).is_ok()).count()
    }

    #[test]
    fn a_caller_has_his_share_and_a_stranger_a_little_and_an_api_all() {
        let hourly = Some(ShareRate { count: 30, window_ms: 3_600_000 });
        let limits = told(&[("billing", Share { rate: hourly, at_once: None }), ("free", Share::default())]);
        for (caller, expected) in [("billing", 30), ("stranger", 5), ("free", 100), ("api-00000001", 100)] {
            assert_eq!(admitted(&limits, caller, 100), expected, "{caller}");
        }
        let failure = limits.enter(&"billing".parse().unwrap()).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Limited);
        assert!((3_500_000..=3_780_000).contains(&failure.retry_after_ms.unwrap()), "{failure:?}");
        assert_eq!(admitted(&Arc::default(), "billing", 100), 5, "before anybody has told");
    }

    #[test]
    fn a_new_share_forgets_nothing_and_what_did_not_begin_is_given_back() {
        let hourly = |count| Share { rate: Some(ShareRate { count, window_ms: 3_600_000 }), at_once: None };
        let limits = told(&[("billing", hourly(10))]);
        assert_eq!(admitted(&limits, "billing", 10), 10);
        limits.learn(Shares { digest: "e".to_owned(), callers: [("billing".parse().unwrap(), hourly(12))].into() });
        let caller = "billing".parse().unwrap();
        limits.enter(&caller).unwrap().give_back();
        assert_eq!(admitted(&limits, "billing", 10), 2);
    }

    #[test]
    fn so_many_run_at_once() {
        let limits = told(&[("billing", Share { rate: None, at_once: Some(2) })]);
        let caller: Caller = "billing".parse().unwrap();
        let (first, second) = (limits.enter(&caller).unwrap(), limits.enter(&caller).unwrap());
        assert_eq!(limits.enter(&caller).unwrap_err().kind, FailureKind::Limited);
        drop(first);
        drop(limits.enter(&caller).unwrap());
        drop(second);
        assert!(limits.state().running.is_empty());
    }

    #[test]
    fn callers_are_counted_up_to_a_bound() {
        let limits: Arc<Limits> = Arc::default();
        for number in 0..CALLERS_MAX {
            assert!(limits.enter(&format!("c{number}").parse().unwrap()).is_ok());
        }
        assert!(limits.enter(&"one-more".parse().unwrap()).unwrap_err().detail.contains("4096 callers"));
        assert!(limits.enter(&"c0".parse().unwrap()).is_ok());
    }
}
