//! What a comparison found, as a row of a table.

use std::fmt::Display;

/// A row: what was compared, on both sides, and every difference.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// What was compared.
    pub what: &'static str,
    /// What we found.
    pub ours: String,
    /// With which programs.
    pub peer: &'static str,
    /// What they found.
    pub theirs: String,
    /// Where they differ, each with what both said.
    pub differences: Vec<String>,
}

impl Row {
    /// A row without a difference so far.
    pub fn new(what: &'static str, peer: &'static str) -> Self {
        Self { what, peer, ..Self::default() }
    }

    /// Takes down that this must be so.
    pub fn check(&mut self, so: bool, otherwise: impl FnOnce() -> String) {
        if !so {
            self.differences.push(otherwise());
        }
    }

    /// Takes down that both must be the same.
    pub fn same<T: PartialEq + std::fmt::Debug>(&mut self, of: impl Display, ours: &T, theirs: &T) {
        self.check(ours == theirs, || format!("{of}:\n  ours:   {ours:?}\n  theirs: {theirs:?}"));
    }

    /// What both found.
    #[must_use]
    pub fn found(self, ours: impl Display, theirs: impl Display) -> Self {
        Self { ours: ours.to_string(), theirs: theirs.to_string(), ..self }
    }
}

impl Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { what, ours, peer, theirs, differences } = self;
        let verdict = if differences.is_empty() { "same" } else { "DIFFERENT" };
        write!(f, "| {what} | {ours} | `{peer}`: {theirs} | {verdict} |")
    }
}

/// The rows as Markdown.
pub fn table(rows: &[Row]) -> String {
    let head = "| compared | ProbeOps | beside it, at the same time | |\n|---|---|---|---|".to_owned();
    std::iter::once(head).chain(rows.iter().map(Row::to_string)).collect::<Vec<_>>().join("\n")
}
