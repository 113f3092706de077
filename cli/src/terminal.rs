//! What people read: lines on standard output and standard error, and tables.

use std::fmt::Display;
use std::io::Write;

use probeops_shared::text::plain;
use serde::Serialize;
use serde_json::Value;

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Form {
    /// For people.
    #[default]
    Text,
    /// JSON, as the API answers.
    Json,
}

impl Form {
    /// Prints an answer of the API: as it is, or as this text.
    pub(crate) fn show(self, answer: &Value, text: impl FnOnce() -> String) {
        match self {
            Self::Json => say(pretty(answer)),
            Self::Text => say(text()),
        }
    }
}

/// What an answer says at this JSON pointer, for a cell of a table; a dash where it says nothing.
pub(crate) fn field(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => plain(text),
        Some(other) => plain(&other.to_string()),
    }
}

/// Writes a line to standard output. A reader that has gone away (`| head`) wants no more, which is not an error.
pub(crate) fn say(line: impl Display) {
    let mut out = std::io::stdout().lock();
    drop(writeln!(out, "{line}").and_then(|()| out.flush()));
}

/// Writes a piece of text to standard output.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

/// Writes a line to standard error.
pub(crate) fn note(line: impl Display) {
    drop(writeln!(std::io::stderr().lock(), "{line}"));
}

/// Any value as indented JSON.
pub(crate) fn pretty(value: &impl Serialize) -> String {
    // Serialising plain data cannot fail.
    serde_json::to_string_pretty(value).unwrap_or_default()
}

/// Columns under their headings, each as wide as it must be; the last one is not padded.
pub(crate) fn table<const COLUMNS: usize>(headings: [&str; COLUMNS], rows: &[[String; COLUMNS]]) -> String {
    let mut widths = headings.map(|heading| heading.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[String; COLUMNS]| {
        let padded: Vec<String> = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(&headings.map(str::to_owned))];
    lines.extend(rows.iter().map(line));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_as_wide_as_its_cells() {
        let rows = [["demo-eu".to_owned(), "x".to_owned()], ["n".to_owned(), String::new()]];
        assert_eq!(table(["NODE", "TOOLS"], &rows), "NODE     TOOLS\ndemo-eu  x\nn");
    }
}
