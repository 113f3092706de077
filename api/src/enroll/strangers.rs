//! How much those may ask whose key nobody knows: each address so much, and all together no more than the API and the broker bear.

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};
use probeops_shared::problem::Code;

use crate::problem::Problem;

/// How many addresses are told apart at once; while there are more, only the bound for all holds.
const ADDRESSES_MAX: usize = 65_536;
/// After so many questions the addresses that have asked nothing lately are forgotten.
const FORGET_EVERY: usize = 16_384;
/// The part of an IPv6 address that is one network's; its hosts choose the rest as they like.
const NETWORK_BITS: u32 = 64;

/// Counts the questions of strangers.
pub(super) struct Strangers {
    by_address: DefaultKeyedRateLimiter<IpAddr>,
    all: DefaultDirectRateLimiter,
    one_per_second: NonZeroU32,
    all_per_second: NonZeroU32,
    asked: AtomicUsize,
}

impl Strangers {
    /// So many in a second from one address, and so many from all.
    pub(super) fn new(one_per_second: NonZeroU32, all_per_second: NonZeroU32) -> Self {
        Self {
            by_address: RateLimiter::keyed(Quota::per_second(one_per_second)),
            all: RateLimiter::direct(Quota::per_second(all_per_second)),
            one_per_second,
            all_per_second,
            asked: AtomicUsize::new(0),
        }
    }

    /// Refuses one question too many. What an address is refused counts for nobody else; of an address that is not known only the bound for all
    /// holds.
    pub(super) fn check(&self, from: Option<IpAddr>) -> Result<(), Problem> {
        let too_many = |who: &str, per_second: NonZeroU32| {
            let detail = format!("more than {per_second} requests a second to enrol come from {who}; try again");
            Problem::new(Code::RateLimited, detail).retry_after(Duration::from_secs(1))
        };
        if let Some(from) = from.map(network) {
            if self.asked.fetch_add(1, Ordering::Relaxed) % FORGET_EVERY == FORGET_EVERY - 1 {
                self.by_address.retain_recent();
            }
            if self.by_address.len() < ADDRESSES_MAX {
                self.by_address.check_key(&from).map_err(|_| too_many("this address", self.one_per_second))?;
            }
        }
        self.all.check().map_err(|_| too_many("all addresses", self.all_per_second))
    }
}

/// Who one is: an IPv4 address, or the network of an IPv6 one.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> NETWORK_BITS << NETWORK_BITS)),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strangers(one: u32, all: u32) -> Strangers {
        Strangers::new(NonZeroU32::new(one).unwrap(), NonZeroU32::new(all).unwrap())
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_network_asks_too_much_and_others_do_not_notice() {
        let strangers = strangers(2, 1_000);
        for flood in ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "2001:db8::ffff:1"] {
            strangers.check(Some(address(flood))).unwrap();
        }
        for flood in ["192.0.2.1", "2001:db8::2"] {
            let refused = strangers.check(Some(address(flood))).unwrap_err();
            assert!(refused.detail().contains("more than 2 requests a second to enrol come from this address"), "{refused}");
        }
        for other in ["192.0.2.2", "2001:db8:0:1::1"] {
            strangers.check(Some(address(other))).unwrap();
        }
    }

    #[test]
    fn many_addresses_meet_the_bound_for_all_and_take_bounded_memory() {
        let strangers = strangers(1, 4_000_000);
        for number in 0..2 * u32::try_from(ADDRESSES_MAX).unwrap() {
            strangers.check(Some(IpAddr::from(number.to_be_bytes()))).unwrap();
        }
        assert!(strangers.by_address.len() <= ADDRESSES_MAX);
        let few = self::strangers(10, 3);
        let refused: Vec<bool> = (0..4_u8).map(|last| few.check(Some(IpAddr::from([192, 0, 2, last]))).is_err()).collect();
        assert_eq!(refused, [false, false, false, true]);
        assert!(few.check(None).unwrap_err().detail().contains("all addresses"));
    }
}
