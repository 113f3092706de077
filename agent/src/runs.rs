//! What is running: by caller and request, so that it can be cancelled and is never run twice at once.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use probeops_shared::ids::{Caller, RequestId};
use tokio_util::sync::CancellationToken;

type Key = (Caller, RequestId);

/// The runs going on.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    next: AtomicU64,
    running: Mutex<HashMap<Key, (u64, CancellationToken)>>,
}

impl Runs {
    /// Enters a run. An older one of the same caller and request is cancelled: the caller asks again because it gave that one up.
    pub(crate) fn enter(&self, caller: &Caller, request_id: &RequestId) -> Running<'_> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let cancel = CancellationToken::new();
        let key = (caller.clone(), request_id.clone());
        if let Ok(mut running) = self.running.lock()
            && let Some((_, older)) = running.insert(key.clone(), (number, cancel.clone()))
        {
            older.cancel();
        }
        Running { runs: self, key, number, cancel }
    }

    /// Cancels a run of `caller`; a replica of the API may cancel those of any replica.
    pub(crate) fn cancel(&self, caller: &Caller, request_id: &RequestId) -> bool {
        let Ok(running) = self.running.lock() else { return false };
        let mut found = false;
        for ((owner, id), (_, cancel)) in running.iter() {
            if id == request_id && (owner == caller || (owner.is_api() && caller.is_api())) {
                cancel.cancel();
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

/// A run going on; dropping it takes it out.
#[derive(Debug)]
pub(crate) struct Running<'a> {
    runs: &'a Runs,
    key: Key,
    number: u64,
    /// Tells the run to stop.
    pub(crate) cancel: CancellationToken,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Ok(mut running) = self.runs.running.lock()
            && running.get(&self.key).is_some_and(|(number, _)| *number == self.number)
        {
            running.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_request_again_cancels_the_older_run_only() {
        let runs = Runs::default();
        let (caller, id): (Caller, RequestId) = ("svc".parse().unwrap(), "r".parse().unwrap());
        let older = runs.enter(&caller, &id);
        let newer = runs.enter(&caller, &id);
        assert!(older.cancel.is_cancelled() && !newer.cancel.is_cancelled());
        drop(older);
        assert_eq!(runs.len(), 1, "the older run's end does not take out the newer one");
        drop(newer);
        assert_eq!(runs.len(), 0);
    }

    #[test]
    fn a_service_cancels_only_its_own() {
        let runs = Runs::default();
        let id: RequestId = "r".parse().unwrap();
        let running = runs.enter(&"api-00000001".parse().unwrap(), &id);
        assert!(!runs.cancel(&"svc".parse().unwrap(), &id) && !running.cancel.is_cancelled());
        assert!(runs.cancel(&"api-00000002".parse().unwrap(), &id) && running.cancel.is_cancelled());
    }
}
