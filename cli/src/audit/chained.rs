//! All of the trail, record by record, with what tells whether it is whole; and whether it is.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use probeops_shared::audit::chain::Exported;
use probeops_shared::audit::closing::{Closer, Closing};
use probeops_shared::audit::verify::{Read, Verified, Verifier};
use probeops_shared::text::plain;
use probeops_shared::timestamp::Timestamp;
use serde::Deserialize;

use super::{copy, when};
use crate::client::{Client, ClientArgs};
use crate::exit::{Exit, Failed};
use crate::terminal::{note, say};

/// How long one page may take.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// The most records asked for at once.
const PAGE_RECORDS_MAX: usize = 1_000;
/// What an export says first that is narrowed by the limits of whoever made it.
const NARROWED: &str = r#"{"narrowed":true}"#;
/// How many findings are shown.
const FINDINGS_SHOWN: usize = 100;

/// Write the trail as JSON lines, oldest first, with the chain of every record
#[derive(Args, Debug)]
#[command(after_help = "\
The last line closes the export: it has what was asked for, where each chain begins and ends, and the SHA-256 of all, which is said on standard error, \
too. Note it elsewhere, and `verify --sha256` tells whether it is still that export.\n\nExamples:\n  probeops audit export > trail.jsonl\n  probeops audit export --since 7d --until 1h > week.jsonl")]
pub(super) struct ExportArgs {
    /// Only what was stored since: a time (2026-01-31T12:00:00Z) or how long ago (90s, 15m, 2h, 7d)
    #[arg(long, value_name = "WHEN", value_parser = when)]
    since: Option<Timestamp>,
    /// Only what was stored before: a time, or how long ago
    #[arg(long, value_name = "WHEN", value_parser = when)]
    until: Option<Timestamp>,
    /// Read all of the copy that the NATS server of somebody else keeps (stream AUDIT-COPY), in place of the trail; says as whom
    #[arg(long, value_name = "URL", requires = "copy_password_file", conflicts_with_all = ["since", "until"])]
    copy: Option<String>,
    /// The password for it
    #[arg(long, value_name = "FILE", requires = "copy")]
    copy_password_file: Option<PathBuf>,
    #[command(flatten)]
    client: ClientArgs,
}

/// Tell whether an exported trail is whole: no record changed, left out or swapped. Needs no API
#[derive(Args, Debug)]
#[command(after_help = "\
Exit code 1 says that something is wrong. A finding names the record where its chain shows it: one that was changed, is missing (at either end, too) or \
out of its place. What no chain shows, such as records of two writers that changed places, is found by the digest of all lines, which does not tell where. \
An export that does not end with its closing line was cut off, or is still being written.\n\n\
No key is in it: whoever can write all of a file anew can make another that is whole. Against that, give the digest that was noted when it was made, \
or another export of the same trail, such as one from a copy.\n\n\
Examples:\n  probeops audit verify trail.jsonl\n  probeops audit verify trail.jsonl --sha256 \"$(cat noted)\"\n  probeops audit verify january.jsonl february.jsonl")]
pub(super) struct VerifyArgs {
    /// What `probeops audit export` wrote; - reads standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// A later export of the same trail, which must go on where FILE ends, or have it too
    #[arg(value_name = "LATER")]
    later: Option<PathBuf>,
    /// The digest that FILE must have: what `export` said, or `verify`, when it was made
    #[arg(long, value_name = "HEX", value_parser = sha256)]
    sha256: Option<String>,
}

/// An export that is being written.
pub(super) struct Writing<W> {
    out: W,
    closer: Closer,
}

/// A page of an export.
#[derive(Deserialize)]
pub(super) struct Page {
    pub(super) records: Vec<Exported>,
    #[serde(default)]
    pub(super) narrowed: bool,
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

impl<W: Write> Writing<W> {
    pub(super) fn record(&mut self, record: &Exported) -> io::Result<()> {
        writeln!(self.out, "{}", self.closer.record(record)?)
    }

    /// A message that cannot be read.
    pub(super) fn unreadable(&mut self, message: u64) -> io::Result<()> {
        self.other(&serde_json::json!({"unreadable_message": message}).to_string())
    }

    fn other(&mut self, line: &str) -> io::Result<()> {
        self.closer.other(line);
        writeln!(self.out, "{line}")
    }

    /// Writes the last line; what the digest of all is.
    fn close(mut self, since: Option<Timestamp>, until: Option<Timestamp>) -> io::Result<String> {
        let (line, sha256) = self.closer.close(since, until)?;
        writeln!(self.out, "{line}")?;
        self.out.flush()?;
        Ok(sha256)
    }
}

pub(super) fn export(args: &ExportArgs) -> Result<(), Failed> {
    let mut writing = Writing { out: io::stdout().lock(), closer: Closer::default() };
    if let (Some(url), Some(password_file)) = (&args.copy, &args.copy_password_file) {
        copy::export(url, password_file, &mut writing)?;
    } else {
        export_pages(args, &mut writing)?;
    }
    let sha256 = writing.close(args.since, args.until).map_err(|error| not_written(&error))?;
    note(format!("SHA-256 {sha256}"));
    Ok(())
}

pub(super) fn not_written(error: &io::Error) -> Failed {
    Failed::work(format!("cannot write the export: {error}"))
}

fn export_pages(args: &ExportArgs, writing: &mut Writing<impl Write>) -> Result<(), Failed> {
    let client = Client::open(&args.client)?;
    let mut cursor = None;
    loop {
        let until = args.until.map(|until| until.to_string());
        let first = cursor.is_none();
        let Page { records, narrowed, unreadable, next, end } =
            page(&client, &[("since", args.since.map(|since| since.to_string())), ("until", until), ("cursor", cursor)])?;
        if narrowed && first {
            note("your credential is limited, so records beyond its limits are left out: this export cannot be verified as a whole");
            writing.other(NARROWED).map_err(|error| not_written(&error))?;
        }
        records.iter().try_for_each(|record| writing.record(record)).map_err(|error| not_written(&error))?;
        unreadable.into_iter().try_for_each(|message| writing.unreadable(message)).map_err(|error| not_written(&error))?;
        if end {
            return Ok(());
        }
        cursor = next;
    }
}

pub(super) fn verify(args: &VerifyArgs) -> Result<(), Failed> {
    let first = read(&args.file)?;
    let later = args.later.as_ref().map(|path| read(path).map(|verified| (path, verified))).transpose()?;
    let between = later.as_ref().map(|(_, later)| first.followed_by(later)).unwrap_or_default();
    let mut not_whole: Vec<String> = Vec::new();
    if let Some(noted) = &args.sha256
        && first.closing.as_ref().is_some_and(|(_, sha256)| sha256 != noted)
    {
        not_whole.push(format!("{} is not the export of which that digest was noted", args.file.display()));
    }
    for (path, verified) in std::iter::once((&args.file, &first)).chain(later.as_ref().map(|(path, verified)| (*path, verified))) {
        let file = path.display();
        if later.is_some() {
            say(format!("{file}:"));
        }
        say(shown(verified));
        if !verified.findings.is_empty() {
            not_whole.push(format!("the trail in {file} is not whole: {}", counted(verified.findings.len())));
        }
    }
    if !between.is_empty() {
        say(listed(between.iter().map(String::as_str)).trim_end().to_owned());
        not_whole.push(format!("the two are not of one trail, or it was changed: {}", counted(between.len())));
    }
    if not_whole.is_empty() { Ok(()) } else { Err(Failed::new(Exit::Failed, not_whole.join("; "))) }
}

fn counted(findings: usize) -> String {
    format!("{findings} finding{}", if findings == 1 { "" } else { "s" })
}

/// Reads an export that has something in it.
fn read(path: &Path) -> Result<Verified, Failed> {
    let unreadable = |error: io::Error| Failed::usage(format!("cannot read {}: {error}", path.display()));
    let input: Box<dyn BufRead> = if path.as_os_str() == "-" {
        Box::new(BufReader::new(io::stdin()))
    } else {
        Box::new(BufReader::new(File::open(path).map_err(unreadable)?))
    };
    let mut reading = Verifier::default();
    for line in input.lines() {
        let line = line.map_err(unreadable)?;
        if line == NARROWED {
            let detail = "records beyond the limits of whoever exported it are not in it; a credential without limits exports all";
            return Err(Failed::new(
                Exit::Failed,
                format!("the export in {} is narrowed and cannot be verified: {detail}", path.display()),
            ));
        }
        reading.line(&line);
    }
    let verified = reading.end();
    if verified.records == 0 && verified.findings.is_empty() {
        return Err(Failed::new(Exit::Failed, format!("there is no record in {}, and nothing to verify", path.display())));
    }
    Ok(verified)
}

fn listed<'a>(findings: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = findings.len().saturating_sub(FINDINGS_SHOWN);
    let mut text = findings.take(FINDINGS_SHOWN).fold(String::new(), |all, finding| all + &plain(finding) + "\n");
    if more > 0 {
        text += &format!("and {more} more\n");
    }
    text
}

fn shown(verified: &Verified) -> String {
    let Verified { records, repeated, chains, findings, closing, messages } = verified;
    let mut text = format!("{records} records in {} chains, {repeated} of them sent again\n", chains.len());
    let mut before: Option<&String> = None;
    for ((writer, start), read) in chains {
        let Read { from_the_beginning, first, last, hash, time, lost, .. } = read;
        // A process that was started anew, a node that was installed anew: that is no gap.
        let anew = before.replace(writer) == Some(writer);
        let begins = if *from_the_beginning && anew {
            "begins anew".to_owned()
        } else if *from_the_beginning {
            "from its beginning".to_owned()
        } else {
            format!("from record {first}; what was before is not here")
        };
        let lost = if *lost > 0 { format!("; {lost} of them say that records were left out") } else { String::new() };
        let (writer, start) = (plain(writer), plain(start));
        text += &format!("{writer} (chain of {start}): {begins}, to record {last} of {}, {}{lost}\n", plain(time), plain(hash));
    }
    let told: Vec<String> = findings.iter().map(ToString::to_string).collect();
    text += &listed(told.iter().map(String::as_str));
    if let (Some((closing, sha256)), []) = (closing, &findings[..]) {
        text += &format!(
            "whole: nothing was changed, left out or swapped since it was exported: {}\nSHA-256 {sha256}",
            asked(closing, *messages)
        );
    }
    text.trim_end().to_owned()
}

/// What such an export has, and what it does not.
fn asked(Closing { since, until, .. }: &Closing, messages: Option<(u64, u64)>) -> String {
    let begins = match (since, messages) {
        (Some(since), _) => format!("what was stored since {since}, and nothing of what was before"),
        (None, Some((first @ 2.., _))) => format!("what there was from message {first} on; the trail had none before it any more"),
        (None, _) => "the trail from its first record on".to_owned(),
    };
    until.map_or_else(|| begins.clone(), |until| format!("{begins}, until {until}"))
}

fn sha256(text: &str) -> Result<String, String> {
    let is_one = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_one { Ok(text.to_ascii_lowercase()) } else { Err("must be a SHA-256: 64 hexadecimal digits".to_owned()) }
}
