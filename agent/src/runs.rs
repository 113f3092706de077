//! What is running: by caller and request, so that it can be cancelled and is never run twice at once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use probeops_shared::ids::{Caller, RequestId};
use probeops_shared::tools::Class;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::slots::Slots;

type Key = (Caller, RequestId);

/// The runs going on.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    next: AtomicU64,
    running: Mutex<HashMap<Key, Entry>>,
}

/// A run that asks for room.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    /// Who asked.
    pub(crate) caller: Caller,
    /// For what.
    pub(crate) request_id: RequestId,
    /// Which dispatch of it this is, where the caller counts them.
    pub(crate) attempt: Option<u32>,
    /// Which slots it takes.
    pub(crate) class: Class,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    cancel: CancellationToken,
    superseded: CancellationToken,
    attempt: Option<u32>,
    class: Class,
    /// Freed with the entry.
    slot: OwnedSemaphorePermit,
}

impl Runs {
    /// Enters a run, if there is room. An older one of the same caller and request makes room: the caller asks again because it gave that one
    /// up. If it says that this is a later attempt, it does not want to hear of the older one, whose end would be taken for the job's.
    pub(crate) fn enter(self: &Arc<Self>, candidate: Candidate, slots: &Slots) -> Option<Running> {
        let Candidate { caller, request_id, attempt, class } = candidate;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (key, cancel, superseded) = ((caller, request_id), CancellationToken::new(), CancellationToken::new());
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // One of another class makes no room in this one; where there is none, it goes on.
        let makes_room = running.get(&key).is_some_and(|older| older.class == class);
        let taken = if makes_room { None } else { Some(slots.take(class)?) };
        let older = running.remove(&key);
        if let Some(older) = &older {
            let later = older.attempt.is_some() && older.attempt < attempt;
            if later { &older.superseded } else { &older.cancel }.cancel();
        }
        let slot = taken.or_else(|| older.map(|older| older.slot))?;
        running.insert(key.clone(), Entry { number, cancel: cancel.clone(), superseded: superseded.clone(), attempt, class, slot });
        Some(Running { runs: Arc::clone(self), key, number, cancel, superseded })
    }

    /// Cancels a run of `caller`; a replica of the API may cancel those of any replica.
    pub(crate) fn cancel(&self, caller: &Caller, request_id: &RequestId) -> bool {
        let Ok(running) = self.running.lock() else { return false };
        let mut found = false;
        for ((owner, id), entry) in running.iter() {
            if id == request_id && (owner == caller || (owner.is_api() && caller.is_api())) {
                entry.cancel.cancel();
                found = true;
            }
        }
        found
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.running.lock().map_or(0, |running| running.len())
    }
}

/// A run going on; dropping it takes it out and frees its slot.
#[derive(Debug)]
pub(crate) struct Running {
    runs: Arc<Runs>,
    key: Key,
    number: u64,
    /// Tells the run to stop.
    pub(crate) cancel: CancellationToken,
    /// Tells the run to stop and to say nothing.
    pub(crate) superseded: CancellationToken,
}

impl Running {
    /// Takes it out, and its slot with it, unless a newer run of the same request has that.
    pub(crate) fn over(self) -> Option<OwnedSemaphorePermit> {
        self.remove()
    }

    fn remove(&self) -> Option<OwnedSemaphorePermit> {
        let mut running = self.runs.running.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = running.get(&self.key).is_some_and(|entry| entry.number == self.number);
        if ours { running.remove(&self.key).map(|entry| entry.slot) } else { None }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.remove());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_probe_slot() -> Slots {
        Slots::new(&[(Class::Probe, 1)].into())
    }

    fn candidate(caller: &str, request_id: &str, class: Class) -> Candidate {
        Candidate { caller: caller.parse().unwrap(), request_id: request_id.parse().unwrap(), attempt: None, class }
    }

    #[test]
    fn the_same_request_again_takes_the_older_runs_place() {
        let (runs, slots) = (Arc::new(Runs::default()), one_probe_slot());
        let older = runs.enter(candidate("svc", "r", Class::Probe), &slots).unwrap();
        assert!(runs.enter(candidate("svc", "other", Class::Probe), &slots).is_none(), "the only slot is taken");
        let newer = runs.enter(candidate("svc", "r", Class::Probe), &slots).unwrap();
        assert!(older.cancel.is_cancelled() && !newer.cancel.is_cancelled());
        drop(older);
        assert_eq!((runs.len(), slots.free(Class::Probe)), (1, 0), "the older run's end does not take out the newer one");
        drop(newer);
        assert_eq!((runs.len(), slots.free(Class::Probe)), (0, 1));
    }

    #[test]
    fn a_later_attempt_silences_the_older_one() {
        let (runs, slots) = (Arc::new(Runs::default()), one_probe_slot());
        let attempt = |number| Candidate { attempt: Some(number), ..candidate("api-00000001", "r", Class::Probe) };
        let first = runs.enter(attempt(1), &slots).unwrap();
        let second = runs.enter(attempt(2), &slots).unwrap();
        assert!(first.superseded.is_cancelled() && !first.cancel.is_cancelled());
        let again = runs.enter(attempt(2), &slots).unwrap();
        assert!(second.cancel.is_cancelled() && !second.superseded.is_cancelled() && !again.cancel.is_cancelled());
    }

    #[test]
    fn the_same_request_for_another_class_frees_the_older_runs_slot() {
        let (runs, slots) = (Arc::new(Runs::default()), one_probe_slot());
        let _older = runs.enter(candidate("svc", "r", Class::Probe), &slots).unwrap();
        let _newer = runs.enter(candidate("svc", "r", Class::Light), &slots).unwrap();
        assert_eq!((runs.len(), slots.free(Class::Probe)), (1, 1));
    }

    #[test]
    fn a_repeated_request_that_finds_no_room_leaves_the_older_run_alone() {
        let (runs, slots) = (Arc::new(Runs::default()), Slots::new(&[(Class::Probe, 1), (Class::Light, 1)].into()));
        let _other = runs.enter(candidate("svc", "other", Class::Light), &slots).unwrap();
        let older = runs.enter(candidate("svc", "r", Class::Probe), &slots).unwrap();
        assert!(runs.enter(candidate("svc", "r", Class::Light), &slots).is_none());
        assert!(!older.cancel.is_cancelled() && !older.superseded.is_cancelled());
        assert_eq!(runs.len(), 2);
    }

    #[test]
    fn a_service_cancels_only_its_own() {
        let (runs, slots) = (Arc::new(Runs::default()), one_probe_slot());
        let id: RequestId = "r".parse().unwrap();
        let running = runs.enter(candidate("api-00000001", "r", Class::Probe), &slots).unwrap();
        assert!(!runs.cancel(&"svc".parse().unwrap(), &id) && !running.cancel.is_cancelled());
        assert!(runs.cancel(&"api-00000002".parse().unwrap(), &id) && running.cancel.is_cancelled());
    }
}
