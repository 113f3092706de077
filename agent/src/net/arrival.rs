//! When a packet arrived, by the kernel's own stamp: a task that reads it later, because others are busy, does not make the round trip longer.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeSpec;

/// A stamp that is older is no stamp: the wall clock was set in between.
const OLDEST: Duration = Duration::from_secs(10);

/// Has packets stamped as they arrive, for as long as the socket lives. Linux does that only while some socket wants it, and begins a while after
/// the first does (`net_enable_timestamp`): until then a packet bears the moment at which it was read.
pub(crate) fn stamping() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
    Ok(socket)
}

/// The moment of a stamp on the clock that nobody sets; now, where there is no stamp.
pub(crate) fn at(stamp: Option<TimeSpec>) -> Instant {
    let now = Instant::now();
    let stamp = stamp.and_then(|stamp| UNIX_EPOCH.checked_add(Duration::from(stamp)));
    let age = stamp.and_then(|stamp| SystemTime::now().duration_since(stamp).ok()).filter(|age| *age < OLDEST);
    now.checked_sub(age.unwrap_or_default()).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_stamped_before_they_are_read_from_the_beginning() {
        assert!(nix::sys::socket::getsockopt(&stamping().unwrap(), sockopt::ReceiveTimestampns).unwrap());
    }

    #[test]
    fn a_stamp_is_carried_over_to_the_other_clock_unless_the_wall_clock_was_set() {
        let ago = |age| TimeSpec::from_duration(SystemTime::now().checked_sub(age).unwrap().duration_since(UNIX_EPOCH).unwrap());
        let second = Duration::from_secs(1);
        assert!(at(Some(ago(second))).elapsed() >= second);
        assert!(at(Some(ago(OLDEST * 2))).elapsed() < second && at(None).elapsed() < second);
    }
}
