//! How much goes on to each destination, or for each caller, at once: one that is dead or slow holds nobody else up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How many in a row must have failed until only one goes on at once.
const FAILURES_MAX: u32 = 8;
/// When at the latest.
const BUSY_FOR_MAX: Duration = Duration::from_mins(1);
/// How many destinations are remembered.
const HOSTS_MAX: usize = 10_000;

/// The destinations.
#[derive(Clone, Debug)]
pub(crate) struct Hosts {
    known: Arc<Mutex<HashMap<String, Host>>>,
    /// How many attempts go on to one at once.
    at_once_max: usize,
    /// When to come back to one that has enough to do.
    busy_for: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
struct Host {
    at_once: usize,
    /// How many attempts in a row were not answered.
    failures: u32,
}

/// One attempt's place at a destination.
#[derive(Debug)]
pub(crate) struct Place {
    hosts: Hosts,
    name: String,
}

impl Hosts {
    /// With so many places each; when to come back while none is free.
    pub(crate) fn new(at_once_max: usize, busy_for: Duration) -> Self {
        Self { known: Arc::default(), at_once_max, busy_for }
    }

    /// A place at a destination, or when to come back.
    pub(crate) fn enter(&self, name: &str) -> Result<Place, Duration> {
        let mut hosts = self.lock();
        if hosts.len() >= HOSTS_MAX && !hosts.contains_key(name) {
            hosts.retain(|_, host| host.at_once > 0);
        }
        let host = hosts.entry(name.to_owned()).or_default();
        let limit = if host.failures < FAILURES_MAX { self.at_once_max } else { 1 };
        if host.at_once >= limit {
            // The longer it does not answer, the later.
            return Err(self.busy_for.saturating_mul(2_u32.saturating_pow(host.failures / FAILURES_MAX)).min(BUSY_FOR_MAX));
        }
        host.at_once += 1;
        Ok(Place { hosts: self.clone(), name: name.to_owned() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Host>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The destination has answered.
    pub(super) fn answered(&self) {
        self.note(|_| 0);
    }

    /// It has not.
    pub(super) fn unanswered(&self) {
        self.note(|failures| failures.saturating_add(1));
    }

    fn note(&self, failures: impl FnOnce(u32) -> u32) {
        if let Some(host) = self.hosts.lock().get_mut(&self.name) {
            host.failures = failures(host.failures);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut hosts = self.hosts.lock();
        if let Some(host) = hosts.get_mut(&self.name) {
            host.at_once = host.at_once.saturating_sub(1);
            if host.at_once == 0 && host.failures == 0 {
                hosts.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY_FOR: Duration = Duration::from_millis(500);

    #[test]
    fn a_destination_has_so_many_places_and_others_have_theirs() {
        let hosts = Hosts::new(8, BUSY_FOR);
        let held: Vec<Place> = (0..8).map(|_| hosts.enter("a").unwrap()).collect();
        assert_eq!(hosts.enter("a").unwrap_err(), BUSY_FOR);
        assert!(hosts.enter("b").is_ok());
        drop(held);
        assert!(hosts.enter("a").is_ok() && hosts.lock().is_empty(), "nothing is left behind");
    }

    #[test]
    fn one_that_does_not_answer_is_asked_less() {
        let hosts = Hosts::new(8, BUSY_FOR);
        let place = hosts.enter("a").unwrap();
        for _ in 0..FAILURES_MAX {
            place.unanswered();
        }
        assert_eq!(hosts.enter("a").unwrap_err(), BUSY_FOR * 2);
        (0..1_000).for_each(|_| place.unanswered());
        assert_eq!(hosts.enter("a").unwrap_err(), BUSY_FOR_MAX);
        place.answered();
        assert!(hosts.enter("a").is_ok());
    }
}
