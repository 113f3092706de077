//! The text of a job's runs, as it grows.
//!
//! What a run prints while it goes on is the beginning of what its outcome has printed. Where that does not hold, since something was missed or
//! another node began anew, the whole follows under a line that says so. Several runs are told apart by their node, line by line.

use std::fmt::Write;

use probeops_shared::outcome::{OUTCOME_BYTES_MAX, Outcome};
use probeops_shared::text::plain;
use serde::de::DeserializeOwned;

use crate::jobs::{Begun, Ended, Found, JobDocument, Kind, Told};

/// What was printed of each run.
#[derive(Debug)]
pub(super) struct Script {
    runs: Vec<Printed>,
}

#[derive(Clone, Debug, Default)]
struct Printed {
    attempt: u32,
    node: String,
    text: String,
    /// Something of it was missed.
    broken: bool,
    /// Its outcome was told.
    over: bool,
    /// The end of it, as long as it is no whole line.
    rest: String,
}

impl Script {
    /// Nothing yet, of so many runs.
    pub(super) fn new(runs: usize) -> Self {
        Self { runs: vec![Printed::default(); runs] }
    }

    /// What an event adds.
    pub(super) fn told(&mut self, told: &Told) -> String {
        match told.kind {
            Kind::Accepted => read(told).map_or_else(String::new, |begun| self.begun(&begun)),
            Kind::Progress => read(told).map_or_else(String::new, |found| self.found(&found)),
            Kind::Outcome => read(told).map_or_else(String::new, |ended: Ended| self.outcome(ended.run, &ended.outcome)),
        }
    }

    /// Something was missed.
    pub(super) fn gap(&mut self) {
        for run in &mut self.runs {
            run.broken = true;
        }
    }

    /// What an outcome adds.
    pub(super) fn outcome(&mut self, run: usize, outcome: &Outcome) -> String {
        let several = self.runs.len() > 1;
        let Some(printed) = self.runs.get_mut(run) else { return String::new() };
        printed.over = true;
        printed.node = outcome.node.as_ref().map_or_else(|| "no node".to_owned(), |node| node.id.to_string());
        let known = if printed.broken { None } else { outcome.output.strip_prefix(printed.text.as_str()) };
        let mut added = String::new();
        match known {
            Some(rest) => added.push_str(&printed.print(several, rest)),
            None if printed.text.is_empty() => added.push_str(&printed.print(several, &outcome.output)),
            None => {
                added.push_str(&printed.end(several));
                added.push_str(&printed.print(several, "-- not all of this was told while it went on; the whole:\n"));
                added.push_str(&printed.print(several, &outcome.output));
            }
        }
        added + &printed.end(several)
    }

    /// What is left when the job is over with this document: outcomes that were not told, too.
    pub(super) fn end_with(&mut self, document: &[u8]) -> String {
        let document: Option<JobDocument> = serde_json::from_slice(document).ok();
        let outcomes = document.map(|document| document.results).unwrap_or_default();
        // Only of a job that is over are there as many as runs.
        let untold: Vec<usize> =
            (0..self.runs.len().min(outcomes.len())).filter(|run| self.runs.get(*run).is_some_and(|printed| !printed.over)).collect();
        let told: String = untold.into_iter().filter_map(|run| Some(self.outcome(run, outcomes.get(run)?))).collect();
        told + &self.end()
    }

    /// What is left when the job is over.
    pub(super) fn end(&mut self) -> String {
        let several = self.runs.len() > 1;
        self.runs.iter_mut().map(|printed| printed.end(several)).collect()
    }

    fn begun(&mut self, begun: &Begun) -> String {
        let several = self.runs.len() > 1;
        let Some(printed) = self.runs.get_mut(begun.run) else { return String::new() };
        let again = printed.attempt != begun.attempt && !printed.text.is_empty();
        let mut added = String::new();
        if again {
            added.push_str(&printed.end(several));
            added.push_str(&printed.print(several, &format!("-- begun again by node {}\n", begun.node)));
            printed.text.clear();
        }
        (printed.attempt, printed.node) = (begun.attempt, begun.node.to_string());
        added
    }

    fn found(&mut self, found: &Found) -> String {
        let begun = self.begun(&Begun { run: found.run, attempt: found.attempt, node: found.node.clone() });
        let several = self.runs.len() > 1;
        let Some(printed) = self.runs.get_mut(found.run) else { return begun };
        // No outcome has printed more than that: a node that goes on and on has something else to say in the end.
        printed.broken |= found.missed > 0 || printed.text.len() + found.output.len() > OUTCOME_BYTES_MAX;
        if printed.broken {
            return begun;
        }
        let added = printed.print(several, &found.output);
        printed.text.push_str(&found.output);
        begun + &added
    }
}

impl Printed {
    /// The text as it is shown: as it comes, or in whole lines that begin with their node.
    fn print(&mut self, several: bool, text: &str) -> String {
        if !several {
            return plain(text);
        }
        self.rest.push_str(text);
        let Some(end) = self.rest.rfind('\n') else { return String::new() };
        let lines: String = self.rest.drain(..=end).collect();
        lines.lines().fold(String::new(), |mut shown, line| {
            let _cannot_fail = writeln!(shown, "{}", format!("{} | {}", self.node, plain(line)).trim_end());
            shown
        })
    }

    /// The rest, as a whole line.
    fn end(&mut self, several: bool) -> String {
        if self.rest.is_empty() { String::new() } else { self.print(several, "\n") }
    }
}

fn read<T: DeserializeOwned>(told: &Told) -> Option<T> {
    serde_json::from_slice(&told.data).ok()
}

#[cfg(test)]
mod tests {
    use probeops_shared::ids::RequestId;
    use probeops_shared::outcome::{Failure, FailureKind, NodeRef};
    use serde_json::json;

    use super::*;
    use crate::jobs::EventId;

    fn found(run: usize, attempt: u32, node: &str, output: &str, missed: u64) -> Told {
        let data =
            json!({"run": run, "attempt": attempt, "node": node, "elapsed_ms": 1.0, "progress": {}, "output": output, "missed": missed});
        Told { id: EventId { run, attempt, seq: 1 }, kind: Kind::Progress, data: data.to_string().into() }
    }

    fn ended(run: usize, node: &str, output: &str) -> Told {
        let failed = Outcome::failed(RequestId::new(), "ping", "a", Failure::new(FailureKind::Internal, ""));
        let node = Some(NodeRef { id: node.parse().unwrap(), region: "eu".parse().unwrap() });
        let outcome = Outcome { output: output.to_owned(), node, ..failed };
        let data = serde_json::to_vec(&Ended { run, outcome }).unwrap();
        Told { id: EventId { run, attempt: 1, seq: 9 }, kind: Kind::Outcome, data: data.into() }
    }

    #[track_caller]
    fn prints(runs: usize, told: &[Told], expected: &str) {
        let mut script = Script::new(runs);
        let printed: String = told.iter().map(|told| script.told(told)).collect();
        assert_eq!(printed + &script.end(), expected);
    }

    #[test]
    fn what_was_printed_is_not_printed_again() {
        prints(1, &[found(0, 1, "a", "PING\n", 0), found(0, 1, "a", "64 by", 0), ended(0, "a", "PING\n64 bytes\n")], "PING\n64 bytes\n");
        prints(1, &[ended(0, "a", "busy\n")], "busy\n");
        prints(1, &[found(0, 1, "a", "\u{1b}[2J", 0)], "\\u{1b}[2J");
    }

    #[test]
    fn what_was_missed_is_in_the_whole() {
        let told = [found(0, 1, "a", "1\n", 0), found(0, 1, "a", "3\n", 1), ended(0, "a", "1\n2\n3\n")];
        prints(1, &told, "1\n-- not all of this was told while it went on; the whole:\n1\n2\n3\n");
        prints(1, &[found(0, 1, "a", "3\n", 1), ended(0, "a", "1\n3\n")], "1\n3\n");
    }

    #[test]
    fn of_a_node_that_goes_on_and_on_no_more_is_kept_than_an_outcome_has() {
        let mut script = Script::new(1);
        let line = "x".repeat(1_023) + "\n";
        let printed: usize = (0..1_000).map(|_| script.told(&found(0, 1, "a", &line, 0)).len()).sum();
        assert_eq!((printed, script.runs[0].text.len()), (OUTCOME_BYTES_MAX, OUTCOME_BYTES_MAX));
        assert!(script.told(&ended(0, "a", "short\n")).ends_with("the whole:\nshort\n"));
    }

    #[test]
    fn another_node_begins_anew() {
        let told = [found(0, 1, "a", "1\n", 0), found(0, 2, "b", "1\n", 0), ended(0, "b", "1\n2\n")];
        prints(1, &told, "1\n-- begun again by node b\n1\n2\n");
    }

    #[test]
    fn several_runs_are_told_apart_line_by_line() {
        let told = [
            found(0, 1, "a", "1", 0),
            found(1, 1, "b", "x\ny", 0),
            found(0, 1, "a", " 2\n", 0),
            ended(0, "a", "1 2\n"),
            ended(1, "b", "x\nyz"),
        ];
        prints(2, &told, "b | x\na | 1 2\nb | yz\n");
    }
}
