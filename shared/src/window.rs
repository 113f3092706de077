//! How much of a rate is used.
//!
//! A window slides by a twentieth of its length. Used is what was taken in the slot that goes on and in the twenty before it, which together are
//! longer than a window: in no stretch of time as long as a window is more taken than the rate allows.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::access::Rate;

/// A window has so many slots.
pub const SLOTS: u32 = 20;

/// What was taken in the last slots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    length_ms: u64,
    /// The newest slot, counted from 1970.
    slot: u64,
    /// What was taken in each, the newest first.
    used: Vec<u32>,
}

impl Window {
    /// Nothing taken yet.
    pub fn fresh(rate: Rate, now: Duration) -> Self {
        Self { length_ms: window_ms(rate), slot: slot(rate, now), used: vec![0] }
    }

    /// Moves on to the present. A slot never comes again, though another replica's clock be behind.
    pub fn advance(&mut self, rate: Rate, now: Duration) {
        let now = slot(rate, now);
        if self.length_ms != window_ms(rate) || self.used.len() > slots() + 1 {
            // The rate is another one since: what was used counts as used now.
            let used = u32::try_from(self.used()).unwrap_or(u32::MAX);
            *self = Self { length_ms: window_ms(rate), slot: now, used: vec![used] };
        }
        let passed = usize::try_from(now.saturating_sub(self.slot)).unwrap_or(usize::MAX).min(slots() + 1);
        self.used.splice(0..0, std::iter::repeat_n(0, passed));
        self.used.truncate(slots() + 1);
        self.slot = self.slot.max(now);
    }

    /// The slot that goes on.
    pub fn slot(&self) -> u64 {
        self.slot
    }

    /// What was taken of a window.
    pub fn used(&self) -> u64 {
        self.used.iter().map(|used| u64::from(*used)).sum()
    }

    /// What can be taken now.
    pub fn room(&self, rate: Rate) -> u32 {
        u64::from(rate.count).saturating_sub(self.used()).try_into().unwrap_or(u32::MAX)
    }

    /// Takes so many in the slot that goes on.
    pub fn take(&mut self, count: u32) {
        if let Some(newest) = self.used.first_mut() {
            *newest = newest.saturating_add(count);
        }
    }

    /// Gives back what was taken in a slot and not used.
    pub fn give_back(&mut self, slot: u64, count: u32) {
        let back = self.slot.checked_sub(slot).and_then(|back| usize::try_from(back).ok());
        if let Some(used) = back.and_then(|back| self.used.get_mut(back)) {
            *used = used.saturating_sub(count);
        }
    }

    /// In how long so many can be taken if nobody takes any meanwhile.
    pub fn room_in(&self, rate: Rate, count: u32, now: Duration) -> Duration {
        let mut room = u64::from(self.room(rate));
        if room >= u64::from(count) {
            return Duration::ZERO;
        }
        for (back, used) in self.used.iter().enumerate().rev() {
            room += u64::from(*used);
            if room >= u64::from(count) {
                return self.forgotten_in(rate, back, now);
            }
        }
        rate.window
    }

    /// In how long all can be taken if nobody takes any meanwhile.
    pub fn whole_in(&self, rate: Rate, now: Duration) -> Duration {
        let newest = self.used.iter().position(|used| *used > 0);
        newest.map_or(Duration::ZERO, |back| self.forgotten_in(rate, back, now))
    }

    /// In how long the slot that is so many before the newest does not count any more.
    fn forgotten_in(&self, rate: Rate, back: usize, now: Duration) -> Duration {
        let counted_until = self.slot.saturating_sub(u64::try_from(back).unwrap_or(0)) + u64::from(SLOTS) + 1;
        Duration::from_micros(counted_until.saturating_mul(slot_us(rate))).saturating_sub(now)
    }
}

/// How long a slot is.
pub fn slot_length(rate: Rate) -> Duration {
    Duration::from_micros(slot_us(rate))
}

/// The slot of a moment.
pub fn slot(rate: Rate, now: Duration) -> u64 {
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX) / slot_us(rate)
}

fn slot_us(rate: Rate) -> u64 {
    (window_ms(rate).saturating_mul(1_000) / u64::from(SLOTS)).max(1)
}

fn window_ms(rate: Rate) -> u64 {
    u64::try_from(rate.window.as_millis()).unwrap_or(u64::MAX)
}

const fn slots() -> usize {
    SLOTS as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_hours(500_000);

    /// Takes all it can at each of so many steps; how many were taken at which moment.
    fn flood(rate: Rate, step: Duration, steps: u32) -> Vec<(Duration, u32)> {
        let mut window = Window::fresh(rate, START);
        let taken = (0..steps).map(|number| {
            let now = START + step * number;
            window.advance(rate, now);
            let room = window.room(rate);
            window.take(room);
            (now, room)
        });
        taken.collect()
    }

    #[test]
    fn no_stretch_as_long_as_a_window_has_more_than_the_rate_and_nine_tenths_can_be_used() {
        for text in ["1/m", "3/m", "19/m", "60/m", "7/s", "1000/h"] {
            let rate: Rate = text.parse().unwrap();
            let taken = flood(rate, rate.window / 113, 1_130);
            for (index, (from, _)) in taken.iter().enumerate() {
                let within = taken.iter().skip(index).take_while(|(at, _)| *at < *from + rate.window);
                let sum: u32 = within.map(|(_, count)| count).sum();
                assert!(sum <= rate.count, "{text}: {sum} from {from:?}");
            }
            let all: u32 = taken.iter().map(|(_, count)| count).sum();
            // Ten windows, the last of them may not be whole.
            assert!(all >= rate.count * 9, "{text}: {all}");
        }
    }

    #[test]
    fn it_says_when_there_is_room_and_then_there_is() {
        let rate: Rate = "6/m".parse().unwrap();
        let mut window = Window::fresh(rate, START);
        assert_eq!((window.room(rate), window.whole_in(rate, START)), (6, Duration::ZERO));
        window.take(2);
        let later = START + Duration::from_secs(30);
        window.advance(rate, later);
        window.take(4);
        assert_eq!(window.room_in(rate, 1, later), Duration::from_secs(33), "what was taken first");
        assert_eq!(window.room_in(rate, 3, later), Duration::from_secs(63));
        assert_eq!(window.whole_in(rate, later), Duration::from_secs(63));
        window.advance(rate, later + Duration::from_millis(32_999));
        assert_eq!(window.room(rate), 0);
        window.advance(rate, later + Duration::from_secs(33));
        assert_eq!(window.room(rate), 2);
        window.give_back(slot(rate, later), 1);
        assert_eq!(window.room(rate), 3);
    }

    #[test]
    fn a_clock_that_is_behind_changes_nothing_and_another_window_forgets_nothing() {
        let rate: Rate = "6/m".parse().unwrap();
        let mut window = Window::fresh(rate, START);
        window.take(6);
        window.advance(rate, START.saturating_sub(Duration::from_mins(5)));
        assert_eq!(window.room(rate), 0);
        let slower: Rate = "6/h".parse().unwrap();
        window.advance(slower, START + Duration::from_secs(1));
        assert_eq!(window.room(slower), 0);
        window.advance(slower, START + Duration::from_hours(2));
        assert_eq!(window.room(slower), 6);
    }
}
