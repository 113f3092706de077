//! Behind which hop packets vanish: one of the size that vanishes dies at each hop in turn, and where it is not answered one of the size that
//! arrives shows whether the hop ever answers.

use std::net::IpAddr;

use probeops_shared::tools::pmtu::{BlackHole, HOPS_MAX, PmtuHop, SILENT_HOPS_MAX};

/// The two sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    Vanishes,
    Arrives,
}

/// What was heard of a probe.
#[derive(Clone, Copy, Debug)]
pub(super) enum Heard {
    /// The hop where it died, or the target before.
    Answer(IpAddr),
    /// Nothing.
    Silence,
}

/// What is known so far.
#[derive(Clone, Debug)]
pub(super) struct Location {
    tries: u64,
    /// The hop that is asked.
    ttl: u8,
    /// How often in a row it did not answer the size that vanishes.
    missed: u64,
    /// Who answered the other size there.
    answers: Option<IpAddr>,
    silent_hops: u8,
    hole: BlackHole,
}

impl Location {
    /// A hop has to miss the size that vanishes so many times, and to answer the other, to lie behind the hole.
    pub(super) fn new(tries: u64) -> Self {
        Self { tries, ttl: 1, missed: 0, answers: None, silent_hops: 0, hole: BlackHole::default() }
    }

    /// Which size to send next, and how far; `None` when there is nothing more to learn.
    pub(super) fn next(&self) -> Option<(u8, Size)> {
        let over = self.hole.before.is_some() || self.ttl > HOPS_MAX || self.silent_hops >= SILENT_HOPS_MAX;
        let size = if self.missed > 0 && self.answers.is_none() { Size::Arrives } else { Size::Vanishes };
        (!over).then_some((self.ttl, size))
    }

    /// What was heard of that probe.
    pub(super) fn learn(&mut self, heard: Heard) {
        let Some((ttl, size)) = self.next() else { return };
        match (size, heard) {
            (Size::Vanishes, Heard::Answer(address)) => {
                self.hole.after = Some(PmtuHop { ttl, address });
                self.silent_hops = 0;
                self.go_on();
            }
            (Size::Vanishes, Heard::Silence) => self.missed += 1,
            (Size::Arrives, Heard::Answer(address)) => self.answers = Some(address),
            (Size::Arrives, Heard::Silence) => {
                self.silent_hops += 1;
                self.go_on();
            }
        }
        if self.missed >= self.tries {
            self.hole.before = self.answers.map(|address| PmtuHop { ttl, address });
        }
    }

    /// Where packets vanish, as far as it is known.
    pub(super) fn hole(&self) -> BlackHole {
        self.hole.clone()
    }

    fn go_on(&mut self) {
        (self.ttl, self.missed, self.answers) = (self.ttl + 1, 0, None);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const TARGET: u8 = 6;

    fn hop(ttl: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, ttl).into()
    }

    /// Looks on a path to `TARGET` whose hops answer like this; the last hops known before and behind the hole, and how many packets it took.
    fn locate(tries: u64, answers: impl Fn(u8, Size, usize) -> bool) -> (Option<u8>, Option<u8>, usize) {
        let (mut location, mut packets) = (Location::new(tries), 0);
        while let Some((ttl, size)) = location.next() {
            packets += 1;
            assert!(packets <= 200, "{location:?}");
            let place = ttl.min(TARGET);
            location.learn(if answers(place, size, packets) { Heard::Answer(hop(place)) } else { Heard::Silence });
        }
        let BlackHole { after, before } = location.hole();
        for known in [after, before].into_iter().flatten() {
            assert_eq!(known.address, hop(known.ttl.min(TARGET)));
        }
        (after.map(|hop| hop.ttl), before.map(|hop| hop.ttl), packets)
    }

    #[test]
    fn it_is_behind_the_last_that_answers_the_size_that_vanishes() {
        for last in 0..TARGET {
            let after = (last > 0).then_some(last);
            let packets = usize::from(last) + 4;
            assert_eq!(locate(3, |ttl, size, _| ttl <= last || size == Size::Arrives), (after, Some(last + 1), packets));
            assert_eq!(locate(1, |ttl, size, _| ttl <= last || size == Size::Arrives), (after, Some(last + 1), packets - 2));
        }
    }

    #[test]
    fn hops_that_never_answer_are_passed_over() {
        let silent = |silent: [u8; 2]| move |ttl, size, _| !silent.contains(&ttl) && (ttl <= 3 || size == Size::Arrives);
        assert_eq!(locate(2, silent([1, 2])), (Some(3), Some(4), 8));
        assert_eq!(locate(2, silent([3, 4])), (Some(2), Some(5), 9));
        assert_eq!(locate(2, |ttl, _, _| ttl == 1), (Some(1), None, 11), "five in a row are enough");
        assert_eq!(locate(2, |_, _, _| false), (None, None, 10));
    }

    #[test]
    fn a_packet_that_is_lost_for_another_reason_is_sent_again() {
        for lost in 1..=3 {
            let path = |ttl, size, packet| packet != lost && (ttl <= 3 || size == Size::Arrives);
            assert_eq!(locate(3, path), (Some(3), Some(4), 9), "{lost}");
        }
    }

    #[test]
    fn a_path_without_end_is_left() {
        assert_eq!(locate(3, |_, _, _| true), (Some(HOPS_MAX), None, usize::from(HOPS_MAX)));
    }
}
