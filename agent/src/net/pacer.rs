//! When the traces of a node may send: packets that are meant to die on the way cost routers more than others, and routers limit how often
//! they tell of them. One pacer serves all traces, because to a router they all are one sender.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use probeops_shared::tools::network::Family;
use probeops_shared::tools::traceroute::PROBES_PER_SECOND;

use crate::net::beat;

/// How many may leave without a pause after a silence: Linux answers no more than fifty at once, whoever asks, and then one a millisecond.
const BURST: u32 = 40;
/// How often a hop is asked again that seems to limit its answers: Linux, the strictest, answers a sender once a second.
const AGAIN_AFTER: Duration = Duration::from_millis(1_100);
/// How long a hop is remembered to have answered.
const REMEMBERED_FOR: Duration = Duration::from_mins(1);

/// Shared by all traces.
#[derive(Debug, Default)]
pub(crate) struct Pacer(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// When the next would leave if they left evenly.
    even: Option<Instant>,
    /// By family and distance: near hops are the same for all traces.
    hops: HashMap<(Family, u8), Hop>,
}

#[derive(Debug, Default)]
struct Hop {
    answered: Option<Instant>,
    /// When it may be asked again.
    again: Option<Instant>,
}

impl Pacer {
    /// When so many packets may leave together. The turns are the caller's: nobody else has them.
    pub(crate) fn turns(&self, now: Instant, packets: usize) -> Instant {
        self.state().turns(now, packets)
    }

    /// Somebody at this distance answered.
    pub(crate) fn answered(&self, family: Family, ttl: u8) {
        self.state().hops.entry((family, ttl)).or_default().answered = Some(Instant::now());
    }

    /// Whether somebody at this distance has answered lately, whoever asked.
    pub(crate) fn answers(&self, family: Family, ttl: u8) -> bool {
        let answered = self.state().hops.get(&(family, ttl)).and_then(|hop| hop.answered);
        answered.is_some_and(|answered| answered.elapsed() < REMEMBERED_FOR)
    }

    /// When a hop that seems to limit its answers may be asked once more; `None` if not before `until`.
    pub(crate) fn again(&self, family: Family, ttl: u8, until: Instant) -> Option<Instant> {
        let mut state = self.state();
        let hop = state.hops.entry((family, ttl)).or_default();
        let now = Instant::now();
        let at = hop.again.map_or(now + AGAIN_AFTER, |again| again.max(now));
        (at <= until).then(|| {
            hop.again = Some(at + AGAIN_AFTER);
            at
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// When so many packets may leave: when the last of them may. Those that have to wait leave by beats.
    fn turns(&mut self, now: Instant, packets: usize) -> Instant {
        let gap = Duration::from_secs(1) / u32::try_from(PROBES_PER_SECOND).unwrap_or(u32::MAX);
        let even = self.even.map_or(now, |even| even.max(now)) + gap * u32::try_from(packets.saturating_sub(1)).unwrap_or(u32::MAX);
        self.even = Some(even + gap);
        even.checked_sub(gap * BURST).filter(|at| *at > now).map_or(now, beat::at_or_after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_leaves_at_once_and_more_only_evenly() {
        let (mut state, now) = (State::default(), beat::at_or_after(Instant::now()));
        let turns: Vec<Instant> = (0..BURST + 11).map(|_| state.turns(now, 1)).collect();
        assert_eq!(turns.iter().filter(|turn| **turn == now).count(), usize::try_from(BURST).unwrap() + 1);
        assert_eq!(turns.last(), Some(&(now + Duration::from_millis(10))));
        assert_eq!(state.turns(now, 5), now + Duration::from_millis(15), "as the last of them would");
        let later = now + Duration::from_secs(1);
        assert_eq!(state.turns(later, 5), later);
        // A node that runs for a year paces as on its first day.
        let later = beat::at_or_after(now + Duration::from_secs(366 * 24 * 3600));
        let turns: Vec<Instant> = (0..BURST + 11).map(|_| state.turns(later, 1)).collect();
        assert_eq!(turns.last(), Some(&(later + Duration::from_millis(10))));
    }

    #[test]
    fn a_hop_that_limits_its_answers_is_asked_again_once_a_second_by_all_together() {
        let (pacer, start) = (Pacer::default(), Instant::now());
        let again = || pacer.again(Family::V4, 3, start + AGAIN_AFTER * 3);
        let turns: Vec<Instant> = std::iter::from_fn(again).collect();
        assert_eq!(turns.len(), 2, "and then not in time");
        assert!(turns.windows(2).all(|pair| pair[1] - pair[0] == AGAIN_AFTER));
        pacer.answered(Family::V4, 3);
        assert!(pacer.answers(Family::V4, 3) && !pacer.answers(Family::V6, 3) && !pacer.answers(Family::V4, 4));
    }
}
