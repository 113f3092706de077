//! Which probe is due, and what is known of each: the part of following a path that needs no network.

use std::time::Duration;

use probeops_shared::tools::mtr::WATCHED_AT_ONCE;
use probeops_shared::tools::trace::{ProbeStatus, TraceProbe};
use probeops_shared::tools::traceroute::PROBES_AT_ONCE;
use tokio::time::Instant;

use crate::net::beat::BEAT;

/// How many probes of one run are under way at once; where hops are watched, those of several rounds are.
const UNDER_WAY_MAX_HASTY: usize = PROBES_AT_ONCE;
const UNDER_WAY_MAX_STEADY: usize = WATCHED_AT_ONCE;
/// How long an answer that has arrived may wait to be read, on a node that is busy, before its probe is given up.
const READ_WITHIN: Duration = Duration::from_millis(10);
/// An answer is given up after so many times as long as that of a hop behind took (traceroute(8) has ten), but never before this.
const TIMES_AS_LONG: u32 = 8;
const PATIENCE_MIN: Duration = Duration::from_millis(100);

/// How a path is followed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// The first hop to ask, and the last.
    pub(crate) first: u8,
    pub(crate) max: u8,
    /// How often each is asked.
    pub(crate) rounds: usize,
    /// How long after one round the next begins.
    pub(crate) gap: Duration,
    /// How many hops are asked behind the last that answered.
    pub(crate) silent_hops: u8,
    /// How long an answer may take.
    pub(crate) timeout: Duration,
    /// Whether each probe waits for what becomes of the one before.
    pub(crate) one_by_one: bool,
    /// Whether that is waited for to the end.
    pub(crate) pace: Pace,
}

impl Plan {
    /// How far a hop is from the first.
    fn hop(&self, ttl: u8) -> usize {
        usize::from(ttl.saturating_sub(self.first))
    }
}

/// What the rounds are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// To see the path: as soon as can be, the same for each hop.
    Hasty,
    /// To watch it: each hop once a round.
    Steady,
}

/// A hop and the round in which it was asked.
pub(crate) type Place = (u8, usize);

#[derive(Clone, Debug, PartialEq)]
enum Slot {
    Unsent,
    /// Not to be sent before.
    Later(Instant),
    /// Since.
    UnderWay(Instant),
    /// Boxed, because most never get that far.
    Ended(Box<TraceProbe>),
}

/// What is known of a path.
#[derive(Clone, Debug)]
pub(crate) struct Progression {
    plan: Plan,
    /// By distance from the first, those of a hop by round.
    slots: Vec<Slot>,
    /// The longest round trip of each hop, by distance from the first.
    rtts: Vec<Option<Duration>>,
    /// Each under its number.
    under_way: Vec<(u64, Place)>,
    round: usize,
    round_began: Option<Instant>,
    /// The nearest behind which there is nothing.
    last: Option<u8>,
    /// The farthest that has answered.
    farthest: Option<u8>,
}

impl Progression {
    /// Nothing is known yet.
    pub(crate) fn new(plan: Plan) -> Self {
        let hops = usize::from(plan.max.saturating_sub(plan.first)) + 1;
        let (slots, rtts) = (vec![Slot::Unsent; hops * plan.rounds], vec![None; hops]);
        Self { plan, slots, rtts, under_way: Vec::new(), round: 0, round_began: None, last: None, farthest: None }
    }

    /// The farthest hop that is asked as things stand.
    pub(crate) fn end(&self) -> u8 {
        let behind = self.farthest.unwrap_or(self.plan.first.saturating_sub(1)).saturating_add(self.plan.silent_hops);
        self.last.unwrap_or(behind).min(self.plan.max)
    }

    /// The hop behind which there is nothing.
    pub(crate) fn last(&self) -> Option<u8> {
        self.last
    }

    /// The farthest hop that has answered.
    pub(crate) fn farthest(&self) -> Option<u8> {
        self.farthest.map(|farthest| self.last.map_or(farthest, |last| last.min(farthest)))
    }

    /// How many rounds have begun.
    pub(crate) fn rounds(&self) -> usize {
        self.round + 1
    }

    /// What became of the probes to a hop whose end is known, by round.
    pub(crate) fn ended_of(&self, ttl: u8) -> impl Iterator<Item = (usize, &TraceProbe)> {
        let slots = self.slots(ttl).iter().enumerate();
        slots.filter_map(|(round, slot)| if let Slot::Ended(probe) = slot { Some((round, &**probe)) } else { None })
    }

    /// Whether nothing more is to be learnt of a hop.
    pub(crate) fn is_settled(&self, ttl: u8) -> bool {
        self.slots(ttl).iter().all(|slot| matches!(slot, Slot::Ended(_)))
    }

    /// How many of the first to send now may leave together: those that are sent whatever is heard of the others. At least one.
    pub(crate) fn together(&self, due: &[Place]) -> usize {
        let sure_end = self.farthest.map_or(u8::MAX, |_| self.sure_end());
        due.iter().take_while(|(ttl, _)| *ttl <= sure_end).count().max(1)
    }

    /// The probes to send now, round by round, so that those which leave together go to different hops.
    pub(crate) fn due(&self, now: Instant) -> impl Iterator<Item = Place> {
        let most = match self.plan.pace {
            _ if self.plan.one_by_one => 1,
            Pace::Hasty => UNDER_WAY_MAX_HASTY,
            Pace::Steady => UNDER_WAY_MAX_STEADY,
        };
        let is_due = move |slot: &Slot| match slot {
            Slot::Unsent => true,
            Slot::Later(at) => *at <= now,
            Slot::UnderWay(_) | Slot::Ended(_) => false,
        };
        let (end, sure_end) = (self.end(), self.sure_end());
        let rounds = if self.plan.pace == Pace::Hasty { 0..=self.round } else { self.round..=self.round };
        let places = rounds.flat_map(move |round| {
            // The first packet finds out whether there is such a hop at all.
            let end = if self.plan.pace == Pace::Hasty && round > 0 { sure_end.min(end) } else { end };
            (self.plan.first..=end).map(move |ttl| (ttl, round))
        });
        let due = places.filter(move |(ttl, round)| self.slots(*ttl).get(*round).is_some_and(is_due));
        due.take(most.saturating_sub(self.under_way.len()))
    }

    /// The farthest hop that is known to be on the path, or to be asked in any case.
    fn sure_end(&self) -> u8 {
        let has_ended = |ttl| matches!(self.slots(ttl).first(), Some(Slot::Ended(_)));
        let all_have = (self.plan.first..=self.end()).all(has_ended);
        if all_have { self.end() } else { self.last.or(self.farthest).unwrap_or_default() }
    }

    /// A probe has left.
    pub(crate) fn sent(&mut self, place: Place, tag: u64, at: Instant) {
        self.round_began.get_or_insert(at);
        self.under_way.push((tag, place));
        self.put(place, Slot::UnderWay(at));
    }

    /// Which probe is under way under this number.
    pub(crate) fn place(&self, tag: u64) -> Option<Place> {
        self.under_way.iter().find(|(of, _)| *of == tag).map(|(_, place)| *place)
    }

    /// What became of a probe; `is_last` if nothing lies behind its hop.
    pub(crate) fn ended(&mut self, (ttl, round): Place, probe: TraceProbe, is_last: bool) {
        self.under_way.retain(|(_, place)| *place != (ttl, round));
        if probe.status == ProbeStatus::Answered {
            self.farthest = self.farthest.max(Some(ttl));
        }
        if is_last {
            self.last = Some(self.last.map_or(ttl, |last| last.min(ttl)));
        }
        if let (Some(longest), Some(rtt_ms)) = (self.rtts.get_mut(self.plan.hop(ttl)), probe.rtt_ms) {
            *longest = (*longest).max(Some(Duration::from_secs_f64(rtt_ms / 1000.0)));
        }
        self.put((ttl, round), Slot::Ended(Box::new(probe)));
    }

    /// Begins the next round if it is time; whether it did.
    pub(crate) fn begin_round(&mut self, now: Instant) -> bool {
        let Some(due) = self.round_due().filter(|due| *due <= now) else { return false };
        self.round += 1;
        // What is sent by beats is a little late, but no round later than the one before.
        self.round_began = Some(due.max(now - BEAT));
        true
    }

    /// When the next round begins. Where each hop is asked once a round, all of this one must have left, and it must be known how far the path goes.
    fn round_due(&self) -> Option<Instant> {
        if self.round + 1 >= self.plan.rounds {
            return None;
        }
        if self.plan.pace == Pace::Hasty {
            return Some(self.round_began? + self.plan.gap);
        }
        let all_sent = (self.plan.first..=self.end()).all(|ttl| !matches!(self.slots(ttl).get(self.round), Some(Slot::Unsent)));
        let is_known = self.round > 0 || self.last.is_some() || self.under_way.is_empty();
        (all_sent && is_known).then_some(self.round_began? + self.plan.gap)
    }

    /// Whether something has been waited for long enough.
    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        self.under_way.iter().any(|(_, place)| self.deadline(*place).is_some_and(|at| at <= now))
    }

    /// Gives up what has been waited for long enough; the numbers of these.
    pub(crate) fn give_up(&mut self, now: Instant) -> Vec<u64> {
        let is_due = |(_, place): &&(u64, Place)| self.deadline(*place).is_some_and(|at| at <= now);
        let given_up: Vec<(u64, Place)> = self.under_way.iter().filter(is_due).copied().collect();
        given_up
            .into_iter()
            .map(|(tag, place)| {
                self.ended(place, TraceProbe::default(), false);
                tag
            })
            .collect()
    }

    /// Sends once more what is under way; the numbers under which it was.
    pub(crate) fn send_again(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.under_way)
            .into_iter()
            .map(|(tag, place)| {
                self.put(place, Slot::Unsent);
                tag
            })
            .collect()
    }

    /// Asks once more what was not answered, at that time.
    pub(crate) fn ask_again(&mut self, place: Place, at: Instant) {
        self.put(place, Slot::Later(at));
    }

    /// When something is to be done next, if nothing is heard before; `None` when all is over.
    pub(crate) fn wake(&self) -> Option<Instant> {
        let deadlines = self.under_way.iter().filter_map(|(_, place)| self.deadline(*place));
        let later = (self.plan.first..=self.end()).flat_map(|ttl| self.slots(ttl)).filter_map(|slot| match slot {
            Slot::Later(at) => Some(*at),
            Slot::Unsent | Slot::UnderWay(_) | Slot::Ended(_) => None,
        });
        // Nobody waits for probes behind the last hop.
        deadlines.chain(later).chain(self.round_due()).min()
    }

    /// When a probe is given up.
    fn deadline(&self, (ttl, round): Place) -> Option<Instant> {
        let Some(Slot::UnderWay(at)) = self.slots(ttl).get(round) else { return None };
        let patience = match (self.plan.pace, self.last) {
            // Nothing is told of it.
            (_, Some(last)) if ttl > last => Duration::ZERO,
            (Pace::Steady, _) => self.plan.timeout,
            (Pace::Hasty, _) => {
                self.rtt_at_or_behind(ttl).map_or(self.plan.timeout, |rtt| (rtt * TIMES_AS_LONG).max(PATIENCE_MIN).min(self.plan.timeout))
            }
        };
        Some(*at + patience + READ_WITHIN)
    }

    /// The longest round trip of the nearest hop that has answered, this one or one behind it.
    fn rtt_at_or_behind(&self, ttl: u8) -> Option<Duration> {
        (ttl..=self.end()).find_map(|ttl| self.rtts.get(self.plan.hop(ttl)).copied().flatten())
    }

    fn slots(&self, ttl: u8) -> &[Slot] {
        let first = self.plan.hop(ttl) * self.plan.rounds;
        self.slots.get(first..first + self.plan.rounds).unwrap_or_default()
    }

    fn put(&mut self, (ttl, round): Place, slot: Slot) {
        let place = self.plan.hop(ttl) * self.plan.rounds + round;
        if let Some(place) = self.slots.get_mut(place) {
            *place = slot;
        }
    }
}

#[cfg(test)]
mod tests;
