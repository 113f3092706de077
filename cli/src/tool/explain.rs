//! Which nodes a job would go to or goes without, printed.

use std::fmt::{self, Display};

use probeops_shared::ids::{NodeId, Region};
use probeops_shared::outcome::NodeRef;
use probeops_shared::selector::Selector;
use probeops_shared::text::plain;
use serde::Deserialize;
use serde_json::{Value, json};

use super::unreadable;
use crate::exit::{Exit, Failed};
use crate::terminal::{Form, pretty, say};

/// A node that a job does not go to, as the API says it.
#[derive(Deserialize)]
pub(super) struct Excluded {
    node: Option<NodeId>,
    region: Region,
    why: String,
    detail: Option<String>,
}

impl Display for Excluded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.node {
            Some(node) => write!(f, "{node} in {}: {}", self.region, plain(&self.why))?,
            None => write!(f, "region {}: {}", self.region, plain(&self.why))?,
        }
        self.detail.as_ref().map_or(Ok(()), |detail| write!(f, " ({})", plain(detail)))
    }
}

#[derive(Deserialize)]
struct Explanation {
    selectors: Vec<Explained>,
}

#[derive(Deserialize)]
struct Explained {
    selector: Selector,
    runs: usize,
    nodes: Vec<NodeRef>,
    excluded: Vec<Excluded>,
    problem: Option<NotChosen>,
}

#[derive(Deserialize)]
struct NotChosen {
    detail: String,
}

/// Prints which nodes would be used; fails if the job would be refused.
pub(super) fn explain(body: &Value, form: Form) -> Result<(), Failed> {
    let explanation: Explanation = serde_json::from_value(body.clone()).map_err(|error| unreadable(&error))?;
    match form {
        Form::Json => say(pretty(body)),
        Form::Text => explanation.selectors.iter().for_each(|explained| {
            say(format!("{}: {} of", explained.selector, counted(explained.runs)));
            explained.nodes.iter().for_each(|node| say(format!("  + {} in {}", node.id, node.region)));
            explained.excluded.iter().for_each(|excluded| say(format!("  - {excluded}")));
        }),
    }
    match explanation.selectors.iter().find_map(|explained| explained.problem.as_ref()) {
        Some(problem) => Err(Failed::new(Exit::Failed, plain(&problem.detail))),
        None => Ok(()),
    }
}

fn counted(runs: usize) -> String {
    if runs == 1 { "1 run".to_owned() } else { format!("{runs} runs") }
}

/// The nodes that a job went without.
pub(super) fn missing(document: &Value) -> Result<Vec<Excluded>, Failed> {
    let missing = document.get("missing").cloned().unwrap_or_else(|| json!([]));
    serde_json::from_value(missing).map_err(|error| unreadable(&error))
}
