//! All of the trail, record by record, with what tells whether it is whole; and whether it is.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use probeops_shared::audit::chain::Exported;
use probeops_shared::audit::verify::{Read, Verified, Verifier};
use probeops_shared::text::plain;
use probeops_shared::timestamp::Timestamp;
use serde::Deserialize;

use super::when;
use crate::client::{Client, ClientArgs};
use crate::exit::{Exit, Failed};
use crate::terminal::say;

/// How long one page may take.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// The most records asked for at once.
const PAGE_RECORDS_MAX: usize = 1_000;
/// How many findings are shown.
const FINDINGS_SHOWN: usize = 100;

/// Write the trail as JSON lines, oldest first, with the chain of every record
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  probeops audit export > trail.jsonl\n  probeops audit export --since 7d --until 1h > week.jsonl")]
pub(super) struct ExportArgs {
    /// Only what was stored since: a time (2026-01-31T12:00:00Z) or how long ago (90s, 15m, 2h, 7d)
    #[arg(long, value_name = "WHEN", value_parser = when)]
    since: Option<Timestamp>,
    /// Only what was stored before: a time, or how long ago
    #[arg(long, value_name = "WHEN", value_parser = when)]
    until: Option<Timestamp>,
    #[command(flatten)]
    client: ClientArgs,
}

/// Tell whether an exported trail is whole: no record changed, left out or swapped. Needs no API
#[derive(Args, Debug)]
#[command(after_help = "\
Exit code 1 says that something is wrong; each finding names the line and the record. What was cut off at the end cannot be seen in a file: keep the \
hash that is shown for the last record of each chain, and see whether a later export still has it.")]
pub(super) struct VerifyArgs {
    /// What `probeops audit export` wrote; - reads standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// A page of an export.
#[derive(Deserialize)]
pub(super) struct Page {
    pub(super) records: Vec<Exported>,
    #[serde(default)]
    pub(super) unreadable: Vec<u64>,
    pub(super) next: Option<String>,
    pub(super) end: bool,
}

/// The next page.
pub(super) fn page(client: &Client, query: &[(&str, Option<String>)]) -> Result<Page, Failed> {
    let mut given: Vec<(&str, String)> = query.iter().filter_map(|(name, value)| Some((*name, value.clone()?))).collect();
    given.push(("limit", PAGE_RECORDS_MAX.to_string()));
    client.get_as("/v1/audit/export", &given, PAGE_TIMEOUT)
}

pub(super) fn export(args: &ExportArgs) -> Result<(), Failed> {
    let client = Client::open(&args.client)?;
    let mut out = std::io::stdout().lock();
    let written = |error: std::io::Error| Failed::work(format!("cannot write the export: {error}"));
    let mut cursor = None;
    loop {
        let until = args.until.map(|until| until.to_string());
        let Page { records, unreadable, next, end } =
            page(&client, &[("since", args.since.map(|since| since.to_string())), ("until", until), ("cursor", cursor)])?;
        for record in &records {
            writeln!(out, "{}", serde_json::to_string(record).map_err(Failed::work)?).map_err(written)?;
        }
        for message in unreadable {
            writeln!(out, "{}", serde_json::json!({"unreadable_message": message})).map_err(written)?;
        }
        if end {
            return out.flush().map_err(written);
        }
        cursor = next;
    }
}

pub(super) fn verify(args: &VerifyArgs) -> Result<(), Failed> {
    let unreadable = |error: std::io::Error| Failed::usage(format!("cannot read {}: {error}", args.file.display()));
    let input: Box<dyn BufRead> = if args.file.as_os_str() == "-" {
        Box::new(BufReader::new(std::io::stdin()))
    } else {
        Box::new(BufReader::new(File::open(&args.file).map_err(unreadable)?))
    };
    let mut reading = Verifier::default();
    for line in input.lines() {
        reading.line(&line.map_err(unreadable)?);
    }
    let verified = reading.end();
    let file = args.file.display();
    match (verified.records, verified.findings.len()) {
        (0, 0) => return Err(Failed::new(Exit::Failed, format!("there is no record in {file}, and nothing to verify"))),
        (_, 0) => {
            say(shown(&verified));
            return Ok(());
        }
        (_, _) => say(shown(&verified)),
    }
    let count = verified.findings.len();
    Err(Failed::new(Exit::Failed, format!("the trail in {file} is not whole: {count} finding{}", if count == 1 { "" } else { "s" })))
}

fn shown(verified: &Verified) -> String {
    let Verified { records, repeated, chains, findings } = verified;
    let mut text = format!("{records} records in {} chains, {repeated} of them sent again\n", chains.len());
    for ((writer, start), read) in chains {
        let Read { from_the_beginning, first, last, hash, time, lost, .. } = read;
        let begins =
            if *from_the_beginning { "from its beginning".to_owned() } else { format!("from record {first}; what was before is not here") };
        let lost = if *lost > 0 { format!("; {lost} of them say that records were left out") } else { String::new() };
        let (writer, start) = (plain(writer), plain(start));
        text += &format!("{writer} (chain of {start}): {begins}, to record {last} of {}, {}{lost}\n", plain(time), plain(hash));
    }
    for finding in findings.iter().take(FINDINGS_SHOWN) {
        text += &format!("{}\n", plain(&finding.to_string()));
    }
    if findings.len() > FINDINGS_SHOWN {
        text += &format!("and {} more\n", findings.len() - FINDINGS_SHOWN);
    }
    let end = "whole: nothing was changed, left out or swapped up to the last record of each chain";
    if findings.is_empty() { text + end } else { text.trim_end().to_owned() }
}
