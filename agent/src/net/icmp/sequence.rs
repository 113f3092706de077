//! Sequence numbers that are not used again too soon.

use std::io;
use std::time::{Duration, Instant};

/// The longest that anybody waits for a reply (30 s), and ten more for one that is late: it must not be taken for the reply to another.
pub(super) const REUSED_AFTER: Duration = Duration::from_secs(40);
/// The numbers are remembered by blocks of this many.
const BLOCK: u16 = 1024;
const BLOCKS: usize = 64;
/// How many there are wherever it begins, as it does not come back into the block where it began: more requests than that need a socket, and so
/// an identifier, of their own.
pub(super) const NUMBERS: usize = 63 * 1024;

/// Counts from 0 to 65535 and again from 0.
#[derive(Debug)]
pub(super) struct Sequence {
    next: u16,
    /// When the last number of each block was given out.
    left: [Option<Instant>; BLOCKS],
}

impl Sequence {
    /// Begins anywhere.
    pub(super) fn starting_at(next: u16) -> Self {
        Self { next, left: [None; BLOCKS] }
    }

    /// The next number that is not taken.
    pub(super) fn unused(&mut self, taken: impl Fn(u16) -> bool) -> io::Result<u16> {
        let now = Instant::now();
        let unused = (0..=u16::MAX).map_while(|_| self.next(now)).find(|number| !taken(*number));
        unused.ok_or_else(|| io::Error::other("more echo requests are under way than there are numbers"))
    }

    /// The next number; `None` when all were used within [`REUSED_AFTER`].
    fn next(&mut self, now: Instant) -> Option<u16> {
        let number = self.next;
        let left = self.left.get_mut(usize::from(number / BLOCK))?;
        if number.is_multiple_of(BLOCK) && left.is_some_and(|left| now.saturating_duration_since(left) < REUSED_AFTER) {
            return None;
        }
        if number % BLOCK == BLOCK - 1 {
            *left = Some(now);
        }
        self.next = number.wrapping_add(1);
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_comes_again_only_when_no_late_reply_can() {
        let start = Instant::now();
        let mut sequence = Sequence::starting_at(0);
        let numbers: Vec<u16> = (0..65_536).map_while(|_| sequence.next(start)).collect();
        assert_eq!(numbers.len(), 65_536);
        assert_eq!(sequence.next(start), None);
        assert_eq!(sequence.next(start + REUSED_AFTER), Some(0));
        assert_eq!(sequence.next(start + REUSED_AFTER), Some(1));
    }

    #[test]
    fn wherever_it_begins_it_has_as_many_as_are_promised() {
        for first in [0, 1, 1023, 1024, 40_000, u16::MAX] {
            let mut sequence = Sequence::starting_at(first);
            let now = Instant::now();
            assert!((0..NUMBERS).all(|_| sequence.next(now).is_some()), "from {first}");
        }
    }
}
