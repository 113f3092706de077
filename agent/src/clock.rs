//! The control plane's time, as far as the node knows it.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use probeops_shared::timestamp::Timestamp;

/// How many comparisons are remembered: of the last few, the quickest exchange is the one to believe (the clock filter of NTP, RFC 5905
/// section 10).
const REMEMBERED_MAX: usize = 8;

/// What the last acknowledged beats told of the clocks.
#[derive(Debug, Default)]
pub(crate) struct Clock(Mutex<VecDeque<Measured>>);

/// One comparison of clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    /// This node's clock minus the control plane's, in milliseconds; wrong by at most half of `rtt_ms`.
    pub(crate) offset_ms: f64,
    /// How long the exchange took, in milliseconds.
    pub(crate) rtt_ms: f64,
}

impl Clock {
    /// Learns from an exchange: sent and received by this node's clock, answered by the control plane's. The answer is taken to have been
    /// given half way (Cristian's algorithm). An answer that lay unread, since the node was stopped or its link was slow, moves nothing that
    /// a quicker one has told; what the new one shows to be impossible, since a clock was set, is forgotten.
    pub(crate) fn learn(&self, sent: Timestamp, rtt: Duration, answered_unix_ms: i64) {
        let rtt_ms = rtt.as_secs_f64() * 1000.0;
        #[expect(clippy::cast_precision_loss, reason = "a difference of clocks in milliseconds is far below 2^52")]
        let offset_ms = sent.unix_ms().saturating_sub(answered_unix_ms) as f64 + rtt_ms / 2.0;
        // To the microsecond, like all that is measured.
        let rounded = |number: f64| (number * 1000.0).round() / 1000.0;
        let new = Measured { offset_ms: rounded(offset_ms), rtt_ms: rounded(rtt_ms) };
        if let Ok(mut remembered) = self.0.lock() {
            // Both times are read to the millisecond.
            remembered.retain(|old| (old.offset_ms - new.offset_ms).abs() <= f64::midpoint(old.rtt_ms, new.rtt_ms) + 2.0);
            remembered.truncate(REMEMBERED_MAX - 1);
            remembered.push_front(new);
        }
    }

    /// The comparison to believe, if there has been one.
    pub(crate) fn measured(&self) -> Option<Measured> {
        self.0.lock().ok()?.iter().copied().min_by(|one, other| one.rtt_ms.total_cmp(&other.rtt_ms))
    }

    /// The control plane's time now; this node's own as long as no comparison shows that it is another, since clocks that are kept right agree
    /// better than the way there and the way back.
    pub(crate) fn now_unix_ms(&self) -> i64 {
        // The answer's time is read to the millisecond.
        let differs = |measured: &Measured| measured.offset_ms.abs() > measured.rtt_ms / 2.0 + 1.0;
        #[expect(clippy::cast_possible_truncation, reason = "a difference of clocks in milliseconds fits")]
        let offset_ms = self.measured().filter(differs).map_or(0, |measured| measured.offset_ms.round() as i64);
        Timestamp::now().unix_ms().saturating_sub(offset_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_whose_clock_is_ahead_reads_the_control_planes_time() {
        let clock = Clock::default();
        assert!(clock.measured().is_none());
        let sent = Timestamp::now();
        clock.learn(sent, Duration::from_millis(20), sent.unix_ms() - 60_000 + 10);
        assert!((clock.measured().unwrap().offset_ms - 60_000.0).abs() < 1.0);
        assert!((Timestamp::now().unix_ms() - clock.now_unix_ms() - 60_000).abs() < 1_000);
    }

    #[test]
    fn a_clock_that_may_be_right_is_believed() {
        let behind_ms = |offset_ms: i64| {
            let (clock, sent) = (Clock::default(), Timestamp::now());
            clock.learn(sent, Duration::from_millis(200), sent.unix_ms() + 100 - offset_ms);
            Timestamp::now().unix_ms() - clock.now_unix_ms()
        };
        assert!(behind_ms(90) < 50, "the answer may have come at once, after a question that was slow");
        assert!(behind_ms(-90) > -50);
        assert!((behind_ms(150) - 150).abs() < 50);
        assert!((behind_ms(-150) + 150).abs() < 50);
    }

    #[test]
    fn an_answer_that_lay_unread_moves_nothing() {
        let (clock, now) = (Clock::default(), Timestamp::now());
        clock.learn(now, Duration::from_millis(2), now.unix_ms() + 1);
        clock.learn(now, Duration::from_secs(7), now.unix_ms() + 1);
        assert!(clock.measured().unwrap().offset_ms.abs() <= 1.0);
    }

    #[test]
    fn a_clock_that_was_set_is_believed_at_once() {
        let (clock, now) = (Clock::default(), Timestamp::now());
        clock.learn(now, Duration::from_millis(2), now.unix_ms() + 1);
        clock.learn(now, Duration::from_millis(30), now.unix_ms() + 15 - 60_000);
        assert!((clock.measured().unwrap().offset_ms - 60_000.0).abs() <= 1.0);
    }

    #[test]
    fn a_comparison_grows_old() {
        let (clock, now) = (Clock::default(), Timestamp::now());
        clock.learn(now, Duration::from_millis(2), now.unix_ms() + 1);
        for _ in 0..REMEMBERED_MAX {
            clock.learn(now, Duration::from_millis(10), now.unix_ms() + 8);
        }
        assert!((clock.measured().unwrap().offset_ms + 3.0).abs() <= 1.0);
    }
}
