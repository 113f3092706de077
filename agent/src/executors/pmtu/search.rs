//! Which size to try next, and what all that was learnt amounts to.

use std::net::IpAddr;

use probeops_shared::tools::pmtu::{HINTS_MAX, PmtuVerdict};

/// What a size was answered with.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    /// It arrived.
    Arrived,
    /// A hop said that it was too big, and perhaps what would not be.
    TooBig { from: Option<IpAddr>, mtu: Option<u16> },
    /// The node's own interface carries no more than this.
    Interface { mtu: u16 },
    /// Nobody said anything.
    Silence,
}

/// Between the largest size that arrived and the smallest that did not.
#[derive(Clone, Debug)]
pub(super) struct Search {
    floor: u16,
    ceiling: u16,
    arrived: Option<u16>,
    /// The smallest that is known not to arrive, and why.
    lost: Option<(u16, Why)>,
    /// Whether whoever lost it named the size below as the one that arrives.
    named: bool,
    hints: u32,
}

#[derive(Clone, Copy, Debug)]
enum Why {
    Interface,
    Hop(Option<IpAddr>),
    Silence,
}

impl Search {
    pub(super) fn new(floor: u16, ceiling: u16) -> Self {
        Self { floor, ceiling, arrived: None, lost: None, named: false, hints: HINTS_MAX }
    }

    /// The next size to try; `None` when there is nothing more to learn.
    pub(super) fn next(&self) -> Option<u16> {
        let Some((lost, _)) = self.lost else { return self.arrived.is_none().then_some(self.ceiling) };
        match self.arrived {
            _ if lost <= self.floor => None,
            None if self.named => Some(lost - 1),
            None => Some(self.floor),
            Some(arrived) if lost - arrived <= 1 => None,
            Some(_) if self.named => Some(lost - 1),
            Some(arrived) => Some(arrived + (lost - arrived) / 2),
        }
    }

    /// What `size` was answered with.
    pub(super) fn learn(&mut self, size: u16, answer: Answer) {
        match answer {
            Answer::Arrived => self.arrived = Some(self.arrived.map_or(size, |before| before.max(size))),
            Answer::TooBig { from, mtu } => match mtu.filter(|mtu| self.believes(*mtu, size)) {
                Some(mtu) => {
                    self.hints -= 1;
                    self.lose(mtu + 1, Why::Hop(from), true);
                }
                None => self.lose(size, Why::Hop(from), false),
            },
            Answer::Interface { mtu } if self.floor <= mtu && mtu < size => self.lose(mtu + 1, Why::Interface, true),
            Answer::Interface { .. } => self.lose(size, Why::Interface, false),
            Answer::Silence => self.lose(size, Why::Silence, false),
        }
    }

    /// A named size helps only if it is smaller than what it is about and larger than what has arrived.
    fn believes(&self, mtu: u16, size: u16) -> bool {
        self.hints > 0 && mtu < size && mtu >= self.floor && self.arrived.is_none_or(|arrived| mtu >= arrived)
    }

    fn lose(&mut self, size: u16, why: Why, named: bool) {
        if self.lost.is_none_or(|(lost, _)| size < lost) {
            self.lost = Some((size, why));
        }
        self.named = named;
    }

    /// The path MTU as far as it is known, what limits it, and the hop that said so.
    pub(super) fn verdict(&self) -> (Option<u16>, PmtuVerdict, Option<IpAddr>) {
        let (verdict, hop) = match (self.arrived, self.lost) {
            (None, Some((_, Why::Hop(hop)))) => (PmtuVerdict::Silent, hop),
            (None, _) => (PmtuVerdict::Silent, None),
            (Some(_), None) => (PmtuVerdict::Capped, None),
            (Some(_), Some((_, Why::Interface))) => (PmtuVerdict::Interface, None),
            (Some(_), Some((_, Why::Hop(hop)))) => (PmtuVerdict::Hop, hop),
            (Some(_), Some((_, Why::Silence))) => (PmtuVerdict::BlackHole, None),
        };
        (self.arrived, verdict, hop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOP: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)));

    /// Runs a search on a path that answers like this.
    fn search(path: impl Fn(u16) -> Answer) -> (Option<u16>, PmtuVerdict, Vec<u16>) {
        let (mut search, mut tried) = (Search::new(68, 65_535), Vec::new());
        while let Some(size) = search.next() {
            assert!(tried.len() < 30, "{tried:?}");
            tried.push(size);
            search.learn(size, path(size));
        }
        let (mtu, verdict, _) = search.verdict();
        (mtu, verdict, tried)
    }

    fn interface(size: u16) -> Option<Answer> {
        (size > 1500).then_some(Answer::Interface { mtu: 1500 })
    }

    #[test]
    fn a_path_like_the_interface_takes_one_packet() {
        let (mtu, verdict, tried) = search(|size| interface(size).unwrap_or(Answer::Arrived));
        assert_eq!((mtu, verdict, tried), (Some(1500), PmtuVerdict::Interface, vec![65_535, 1500]));
        assert_eq!(search(|_| Answer::Arrived), (Some(65_535), PmtuVerdict::Capped, vec![65_535]));
    }

    #[test]
    fn hops_that_name_their_mtu_are_followed() {
        let path = |size| match size {
            1501.. => Answer::Interface { mtu: 1500 },
            1481..=1500 => Answer::TooBig { from: HOP, mtu: Some(1480) },
            1401..=1480 => Answer::TooBig { from: HOP, mtu: Some(1400) },
            _ => Answer::Arrived,
        };
        assert_eq!(search(path), (Some(1400), PmtuVerdict::Hop, vec![65_535, 1500, 1480, 1400]));
    }

    #[test]
    fn a_black_hole_is_found_by_halves() {
        for wide in [68, 69, 576, 1279, 1400, 1499] {
            let path = |size| interface(size).unwrap_or(if size <= wide { Answer::Arrived } else { Answer::Silence });
            let (mtu, verdict, tried) = search(path);
            assert_eq!((mtu, verdict), (Some(wide), PmtuVerdict::BlackHole), "{tried:?}");
            assert!(tried.len() <= 14, "{tried:?}");
        }
    }

    #[test]
    fn a_black_hole_behind_a_hop_that_speaks_is_still_one() {
        let path = |size| match size {
            1401.. => Answer::TooBig { from: HOP, mtu: Some(1400) },
            1301..=1400 => Answer::Silence,
            _ => Answer::Arrived,
        };
        let (mtu, verdict, _) = search(path);
        assert_eq!((mtu, verdict), (Some(1300), PmtuVerdict::BlackHole));
    }

    #[test]
    fn a_hop_that_names_nothing_or_nonsense_is_searched() {
        for named in [None, Some(0), Some(20), Some(65_535)] {
            let path =
                |size| interface(size).unwrap_or(if size <= 1400 { Answer::Arrived } else { Answer::TooBig { from: HOP, mtu: named } });
            let (mtu, verdict, tried) = search(path);
            assert_eq!((mtu, verdict), (Some(1400), PmtuVerdict::Hop), "{named:?} {tried:?}");
        }
        // One that names ever smaller sizes is not followed for ever.
        let (mtu, verdict, _) =
            search(|size| if size <= 700 { Answer::Arrived } else { Answer::TooBig { from: HOP, mtu: Some(size - 1) } });
        assert_eq!((mtu, verdict), (Some(700), PmtuVerdict::Hop));
    }

    #[test]
    fn a_host_that_says_nothing_is_silent() {
        let (mtu, verdict, tried) = search(|size| interface(size).unwrap_or(Answer::Silence));
        assert_eq!((mtu, verdict, tried), (None, PmtuVerdict::Silent, vec![65_535, 1500, 68]));
    }
}
