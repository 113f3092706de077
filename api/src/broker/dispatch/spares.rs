//! Nodes that stand ready for those of a job that turn out to be busy, gone or unwilling.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use probeops_shared::ids::NodeId;

/// The nodes that a job uses; none is to be used twice.
#[derive(Clone, Debug, Default)]
pub(crate) struct UsedNodes(Arc<Mutex<HashSet<NodeId>>>);

impl UsedNodes {
    /// Marks a node as used; false if it was.
    pub(crate) fn mark(&self, node: &NodeId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(node.clone())
    }
}

/// Other nodes that fit, the best first.
#[derive(Debug)]
pub(crate) struct Spares {
    nodes: Mutex<VecDeque<NodeId>>,
    used: UsedNodes,
}

impl Spares {
    /// These nodes, as long as nobody else of the job uses them.
    pub(crate) fn new(nodes: Vec<NodeId>, used: &UsedNodes) -> Arc<Self> {
        Arc::new(Self { nodes: Mutex::new(nodes.into()), used: used.clone() })
    }

    /// Keeps only those of which this holds.
    pub(crate) fn retain(&self, holds: impl Fn(&NodeId) -> bool) {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).retain(holds);
    }

    /// Those that are left.
    pub(crate) fn left(&self) -> Vec<NodeId> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// The best that is left; it is used from now on.
    pub(crate) fn take(&self) -> Option<NodeId> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        std::iter::from_fn(|| nodes.pop_front()).find(|node| self.used.mark(node))
    }
}
