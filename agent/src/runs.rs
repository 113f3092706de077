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

#[derive(Debug)]
struct Entry {
    number: u64,
    cancel: CancellationToken,
    class: Class,
    /// Freed with the entry.
    slot: OwnedSemaphorePermit,
}

impl Runs {
    /// Enters a run, if there is room. An older one of the same caller and request is cancelled and makes room: the caller asks again because
    /// it gave that one up.
    pub(crate) fn enter(self: &Arc<Self>, caller: &Caller, request_id: &RequestId, class: Class, slots: &Slots) -> Option<Running> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (key, cancel) = ((caller.clone(), request_id.clone()), CancellationToken::new());
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = match running.remove(&key) {
            Some(older) => {
                older.cancel.cancel();
                if older.class == class { Some(older.slot) } else { slots.take(class) }
            }
            None => slots.take(class),
        }?;
        running.insert(key.clone(), Entry { number, cancel: cancel.clone(), class, slot });
        Some(Running { runs: Arc::clone(self), key, number, cancel })
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
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(mut running) = self.runs.running.lock()
            && running.get(&self.key).is_some_and(|entry| entry.number == self.number)
        {
            running.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_probe_slot() -> Slots {
        Slots::new(&[(Class::Probe, 1)].into())
    }

    #[test]
    fn the_same_request_again_takes_the_older_runs_place() {
        let (runs, slots) = (Arc::new(Runs::default()), one_probe_slot());
        let (caller, id): (Caller, RequestId) = ("svc".parse().unwrap(), "r".parse().unwrap());
        let older = runs.enter(&caller, &id, Class::Probe, &slots).unwrap();
        assert!(runs.enter(&caller, &"other".parse().unwrap(), Class::Probe, &slots).is_none(), "the only slot is taken");
        let newer = runs.enter(&caller, &id, Class::Probe, &slots).unwrap();
        assert!(older.cancel.is_cancelled() && !newer.cancel.is_cancelled());
        drop(older);
        assert_eq!((runs.len(), slots.free(Class::Probe)), (1, 0), "the older run's end does not take out the newer one");
        drop(newer);
        assert_eq!((runs.len(), slots.free(Class::Probe)), (0, 1));
    }

    #[test]
    fn the_same_request_for_another_class_frees_the_older_runs_slot() {
        let (runs, slots) = (Arc::new(Runs::default()), one_probe_slot());
        let (caller, id): (Caller, RequestId) = ("svc".parse().unwrap(), "r".parse().unwrap());
        let _older = runs.enter(&caller, &id, Class::Probe, &slots).unwrap();
        let _newer = runs.enter(&caller, &id, Class::Light, &slots).unwrap();
        assert_eq!((runs.len(), slots.free(Class::Probe)), (1, 1));
    }

    #[test]
    fn a_service_cancels_only_its_own() {
        let (runs, slots) = (Arc::new(Runs::default()), one_probe_slot());
        let id: RequestId = "r".parse().unwrap();
        let running = runs.enter(&"api-00000001".parse().unwrap(), &id, Class::Probe, &slots).unwrap();
        assert!(!runs.cancel(&"svc".parse().unwrap(), &id) && !running.cancel.is_cancelled());
        assert!(runs.cancel(&"api-00000002".parse().unwrap(), &id) && running.cancel.is_cancelled());
    }
}
