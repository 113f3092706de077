//! Renewing the credential while the agent runs, at half of its lifetime, and noticing that another process has replaced it.
//!
//! When it is due is looked up every second by both clocks: the wall's goes on while the machine sleeps, the other is not set back by anybody.

use std::time::{Duration, Instant};

use probeops_nats::connect::backoff;
use probeops_shared::timestamp::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{EnrollError, Folder, Given};

/// How often it is looked whether the credential is due, or another.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The longest wait before a renewal that failed is tried again; never longer than a tenth of the credential's lifetime either.
const RETRY_MAX: Duration = Duration::from_mins(5);

/// Renews the credential of a node.
#[derive(Clone, Debug)]
pub(crate) struct Renewal {
    folder: Folder,
}

impl Renewal {
    pub(crate) fn new(folder: Folder) -> Self {
        Self { folder }
    }

    /// Renews at once, because the broker does not take the credential any more.
    pub(crate) async fn now(&self) -> Result<(), EnrollError> {
        super::renew(&self.folder).await.map(drop)
    }

    /// Renews whenever it is due, and says when there is another credential, until told to stop.
    pub(crate) async fn keep(self, replaced: mpsc::Sender<()>, stop: CancellationToken) {
        let (mut known, mut seen_at) = (self.given(), Instant::now());
        let (mut failures, mut not_before) = (0_usize, Instant::now());
        while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            let given = self.given();
            if given.is_some() && given != known {
                tracing::info!("there is another credential; connecting with it");
                (known, seen_at, failures) = (given, Instant::now(), 0);
                // What is already said need not be said twice.
                let _ = replaced.try_send(());
                continue;
            }
            let Some(given) = &known else { continue };
            if !is_due(given, Timestamp::now(), seen_at.elapsed()) || Instant::now() < not_before {
                continue;
            }
            if let Err(error) = super::renew(&self.folder).await {
                failures += 1;
                let wait = retry_after(failures, given);
                not_before = Instant::now() + wait;
                match error {
                    // What it has is good until it ends; the broker has the last word.
                    EnrollError::Refused(why) => {
                        tracing::error!(wait_ms = wait.as_millis(), "the API does not renew the credential: {why}");
                    }
                    EnrollError::Later(why) | EnrollError::Here(why) => {
                        tracing::warn!(wait_ms = wait.as_millis(), "the credential could not be renewed and is tried again: {why}");
                    }
                }
            }
        }
    }

    fn given(&self) -> Option<Given> {
        let read = self.folder.record();
        read.inspect_err(|error| tracing::error!("what is known of the enrolment cannot be read: {error}")).ok()??.given
    }
}

/// Whether a credential is at half of its lifetime by one of the clocks, or the wall's was set back to before it was got.
fn is_due(given: &Given, now: Timestamp, known_for: Duration) -> bool {
    let half = Duration::from_millis(given.valid_for_ms / 2);
    now >= given.obtained_at.plus(half) || now.plus(half) < given.obtained_at || known_for >= half
}

fn retry_after(failures: usize, given: &Given) -> Duration {
    let tenth = Duration::from_millis(given.valid_for_ms / 10);
    let doubled = backoff(failures).saturating_mul(1 << failures.min(10));
    doubled.min(RETRY_MAX).min(tenth.max(LOOK_EVERY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_due_at_half_by_either_clock_and_after_a_jump() {
        let obtained_at = Timestamp::now();
        let day = Duration::from_hours(24);
        let given = Given {
            node: "n".parse().unwrap(),
            region: "r".parse().unwrap(),
            servers: Vec::new(),
            expires_at: obtained_at.plus(day),
            obtained_at,
            valid_for_ms: 86_400_000,
            to_confirm: false,
        };
        let due = |wall: Duration, running: Duration| is_due(&given, obtained_at.plus(wall), running);
        assert!(!due(Duration::ZERO, Duration::ZERO) && !due(day / 2 - Duration::from_secs(1), day / 2 - Duration::from_secs(1)));
        assert!(due(day / 2, Duration::ZERO), "the machine slept, or the agent was started again");
        assert!(due(day * 30, Duration::from_secs(1)), "it slept for long, or the clock was set forward");
        assert!(due(Duration::ZERO, day / 2), "the clock was set back");
        let before = Timestamp::from_unix_ms(obtained_at.unix_ms() - 86_400_000).unwrap();
        assert!(is_due(&given, before, Duration::ZERO), "it was set back for long, and the agent was started again");
        for failures in 1..100 {
            assert!((Duration::from_millis(1)..=RETRY_MAX).contains(&retry_after(failures, &given)), "{failures}");
        }
        let short = Given { valid_for_ms: 4_000, ..given };
        assert!(retry_after(50, &short) <= LOOK_EVERY);
    }
}
