//! The control plane's time, as far as the node knows it.

use std::sync::Mutex;
use std::time::Duration;

use probeops_shared::timestamp::Timestamp;

/// What the last acknowledged beat told of the clocks.
#[derive(Debug, Default)]
pub(crate) struct Clock(Mutex<Option<Measured>>);

/// One comparison of clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    /// This node's clock minus the control plane's, in milliseconds.
    pub(crate) offset_ms: f64,
    /// How long the exchange took, in milliseconds.
    pub(crate) rtt_ms: f64,
}

impl Clock {
    /// Learns from an exchange: sent and received by this node's clock, answered by the control plane's. The answer is taken to have been
    /// given half way (Cristian's algorithm).
    pub(crate) fn learn(&self, sent: Timestamp, rtt: Duration, answered_unix_ms: i64) {
        let rtt_ms = rtt.as_secs_f64() * 1000.0;
        #[expect(clippy::cast_precision_loss, reason = "a difference of clocks in milliseconds is far below 2^52")]
        let offset_ms = (sent.unix_ms() - answered_unix_ms) as f64 + rtt_ms / 2.0;
        // To the microsecond, like all that is measured.
        let rounded = |number: f64| (number * 1000.0).round() / 1000.0;
        if let Ok(mut measured) = self.0.lock() {
            *measured = Some(Measured { offset_ms: rounded(offset_ms), rtt_ms: rounded(rtt_ms) });
        }
    }

    /// The last comparison, if there has been one.
    pub(crate) fn measured(&self) -> Option<Measured> {
        self.0.lock().ok().and_then(|measured| *measured)
    }

    /// The control plane's time now; this node's own until it has been compared.
    pub(crate) fn now_unix_ms(&self) -> i64 {
        #[expect(clippy::cast_possible_truncation, reason = "a difference of clocks in milliseconds fits")]
        let offset_ms = self.measured().map_or(0, |measured| measured.offset_ms.round() as i64);
        Timestamp::now().unix_ms() - offset_ms
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
}
