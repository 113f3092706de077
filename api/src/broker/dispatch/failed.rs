//! What is said of a run when no node says it.

use probeops_shared::ids::NodeId;
use probeops_shared::outcome::{Failure, FailureKind, NodeRef, Outcome};

use super::{Destination, Dispatch};

impl Dispatch<'_> {
    pub(super) fn gave_up(&self) -> Outcome {
        if let Some(refusal) = &self.refusal {
            return refusal.clone();
        }
        let attempts = self.attempts.len();
        let why = match (self.nobody_since, self.link.borrow().connected) {
            (_, false) => "the broker could not be reached in time",
            (Some(_), true) => "nobody is connected who could",
            (None, true) => "nobody answered in time",
        };
        self.failed(Failure::new(FailureKind::Unavailable, format!("{} the job in {attempts} attempts: {why}", self.nobody_took())))
    }

    /// Who has not taken the job, as a sentence begins.
    fn nobody_took(&self) -> String {
        match &self.run.to {
            Destination::Region(region) => format!("no node of region {region} took"),
            Destination::OneOf(first, _) if self.tried.iter().any(|node| node != first) => {
                let mut asked = self.tried.clone();
                asked.sort_unstable();
                asked.dedup();
                let asked: Vec<&str> = asked.iter().map(NodeId::as_str).collect();
                format!("none of the nodes {} has taken", asked.join(", "))
            }
            Destination::Node(node) | Destination::OneOf(node, _) => format!("node {node} has not taken"),
        }
    }

    /// What is said when the caller waits no more.
    pub(super) fn out_of_time(&self) -> Outcome {
        if let Some(node) = self.attempts.iter().rev().filter(|attempt| !attempt.over).find_map(|attempt| attempt.accepted_by.as_ref()) {
            let detail = format!("node {node} accepted the job and had not answered when `timeout_ms` was over");
            return self.failed_at(Some(node), Failure::new(FailureKind::Lost, detail));
        }
        if let Some(refusal) = &self.refusal {
            return refusal.clone();
        }
        let detail = format!("{} the job before `timeout_ms` was over", self.nobody_took());
        self.failed(Failure::new(FailureKind::Unavailable, detail))
    }

    /// A failure that no node has told, with the node that the run was for.
    pub(super) fn failed(&self, failure: Failure) -> Outcome {
        let node = match &self.run.to {
            Destination::Region(_) => None,
            Destination::Node(node) | Destination::OneOf(node, _) => Some(node),
        };
        self.failed_at(node, failure)
    }

    pub(super) fn failed_at(&self, node: Option<&NodeId>, failure: Failure) -> Outcome {
        let node = node.and_then(|id| Some(NodeRef { id: id.clone(), region: self.broker.roster().region(id)? }));
        let run = self.run;
        Outcome { node, ..Outcome::failed(run.request_id.clone(), run.tool.as_str(), run.target.clone(), failure) }
    }
}
