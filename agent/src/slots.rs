//! How many runs a node takes at once, by class. A full class refuses; nothing waits.

use std::collections::BTreeMap;
use std::sync::Arc;

use probeops_shared::presence::Slots as Announced;
use probeops_shared::tools::Class;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The slots of a node.
#[derive(Debug)]
pub(crate) struct Slots(BTreeMap<Class, (Arc<Semaphore>, usize)>);

impl Slots {
    /// So many of each class.
    pub(crate) fn new(totals: &BTreeMap<Class, usize>) -> Self {
        Self(
            Class::ALL
                .into_iter()
                .map(|class| {
                    let total = totals.get(&class).copied().unwrap_or(class.default_slots());
                    (class, (Arc::new(Semaphore::new(total)), total))
                })
                .collect(),
        )
    }

    /// A slot, if one is free; dropping it frees it.
    pub(crate) fn take(&self, class: Class) -> Option<OwnedSemaphorePermit> {
        let (slots, _) = self.0.get(&class)?;
        Arc::clone(slots).try_acquire_owned().ok()
    }

    /// How many are free.
    pub(crate) fn free(&self, class: Class) -> usize {
        self.0.get(&class).map_or(0, |(slots, _)| slots.available_permits())
    }

    /// What the beat says.
    pub(crate) fn announced(&self) -> BTreeMap<Class, Announced> {
        self.0.iter().map(|(class, (slots, total))| (*class, Announced { free: slots.available_permits(), total: *total })).collect()
    }
}
