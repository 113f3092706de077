//! Reads the trail message by message: newest first to be looked at, oldest first to be exported.
//!
//! Every message holds up to a hundred records. A page looks at a bounded number of messages; when it has not seen the end it says where to go
//! on, even if it found nothing.

use std::fmt;
use std::str::FromStr;

use probeops_shared::audit::chain::{self, Exported};
use probeops_shared::audit::{Record, Verdict};
use probeops_shared::ids::NodeId;
use probeops_shared::problem::Code;
use probeops_shared::subjects::{self, storage};
use probeops_shared::timestamp::Timestamp;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::sight::Sight;
use crate::broker::Broker;
use crate::broker::backwards::Backwards;
use crate::broker::last::{Last, next_of, next_since};
use crate::problem::Problem;

/// How many messages one page looks at.
const MESSAGES_MAX: usize = 2_000;
/// How many messages are looked at for one page of an export.
const EXPORTED_MAX: usize = 64;
/// The place after everything in a message that cannot be read.
const UNREADABLE: usize = 999_999_999;
/// A message may be stored by a clock that runs so far behind that of its records, in milliseconds.
const CLOCK_SLACK_MS: i64 = 60_000;

/// What to look for.
#[derive(Clone, Debug)]
pub struct Filter {
    /// From then on.
    pub since: Option<Timestamp>,
    /// Until then.
    pub until: Option<Timestamp>,
    /// On whose behalf.
    pub principal: Option<String>,
    /// At which node.
    pub node: Option<NodeId>,
    /// With which tool.
    pub tool: Option<String>,
    /// Of which target.
    pub target: Option<String>,
    /// What happened.
    pub verdict: Option<Verdict>,
    /// Of which request or job; the runs of a job are its own.
    pub request_id: Option<String>,
    /// How many records.
    pub limit: usize,
    /// Older than this one.
    pub cursor: Option<Cursor>,
}

/// The place of a record in the trail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    sequence: u64,
    index: usize,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.sequence, self.index)
    }
}

impl FromStr for Cursor {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parsed =
            text.split_once('.').and_then(|(sequence, index)| Some(Self { sequence: sequence.parse().ok()?, index: index.parse().ok()? }));
        parsed.ok_or_else(|| "must be a cursor as an earlier answer gave it in `next`, such as 1200.3".to_owned())
    }
}

impl JsonSchema for Cursor {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Cursor".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": "^[0-9]{1,19}[.][0-9]{1,9}$"})
    }
}

/// A page of the trail.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "AuditPage")]
pub struct Page {
    /// The records, newest first.
    pub records: Vec<Entry>,
    /// Give this as `cursor` to read on; absent at the end of the trail. There may be more even when this page is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A record and its place.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "AuditEntry")]
pub struct Entry {
    /// Its place in the trail.
    pub cursor: String,
    /// Who wrote it, as attested by the broker: a replica of the API, `keymaster-desk`, `sentry`, a command; a node is `node:<id>`.
    pub writer: String,
    /// The record.
    #[serde(flatten)]
    pub record: Record,
}

/// What to export.
#[derive(Clone, Debug)]
pub struct Export {
    /// What was stored from then on.
    pub since: Option<Timestamp>,
    /// What was stored until then.
    pub until: Option<Timestamp>,
    /// How many records.
    pub limit: usize,
    /// After this one.
    pub cursor: Option<Cursor>,
}

/// A page of an export.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "AuditExport")]
pub struct ExportPage {
    /// The records, oldest first.
    pub records: Vec<Exported>,
    /// Whether your limits hide some of the trail: then records are left out, and nothing can tell whether it is whole. Absent where all is here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub narrowed: bool,
    /// Messages of the trail that could not be read, by number: none of ours looks so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<u64>,
    /// Give this as `cursor` to read on, at the end too, where more may come; absent as long as there is nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// Whether this was the end.
    pub end: bool,
}

/// A message of the trail.
#[derive(Clone, Debug)]
struct Batch {
    sequence: u64,
    writer: String,
    stored_unix_ms: i64,
    records: Vec<Record>,
}

/// Reads a page.
pub(super) async fn page(broker: &Broker, filter: &Filter, sight: Sight<'_>) -> Result<Page, Problem> {
    let newest = filter.cursor.map(|cursor| cursor.sequence);
    let context = broker.audit_reader();
    let trail = Backwards::new(&context, storage::AUDIT, subjects::broker::AUDIT_ALL.to_owned(), newest).await;
    let mut trail = trail.map_err(|error| unreadable(&error))?;
    let mut pages = Pages::new(filter, |record| sight.sees(record), trail.oldest);
    let mut looked = 0;
    while looked < MESSAGES_MAX
        && let Some(messages) = trail.next().await.map_err(|error| unreadable(&error))?
    {
        looked += messages.len();
        if messages.iter().any(|message| pages.take(parsed(message)) == Reading::Over) {
            break;
        }
    }
    Ok(pages.page())
}

fn parsed(message: &Last) -> Batch {
    let records = serde_json::from_slice::<chain::Batch<Record>>(&message.payload).map_or_else(
        |error| {
            tracing::warn!(sequence = message.sequence, subject = %message.subject, %error, "a message of the audit trail cannot be read");
            Vec::new()
        },
        |batch| batch.records.into_iter().map(|link| link.record).collect(),
    );
    let writer = match subjects::parse_audit(&message.subject) {
        Some((subjects::AUDIT_NODE, node)) => chain::node_writer(node),
        Some((_, publisher)) => publisher.to_owned(),
        None => message.subject.clone(),
    };
    Batch { sequence: message.sequence, writer, stored_unix_ms: message.stored_at.unix_ms(), records }
}

/// Exports a page.
pub(super) async fn export(broker: &Broker, export: &Export, sight: Sight<'_>) -> Result<ExportPage, Problem> {
    let client = broker.audit_reader().client();
    let read = match (export.cursor, export.since) {
        (None, Some(since)) => next_since(&client, storage::AUDIT, subjects::broker::AUDIT_ALL, since, EXPORTED_MAX).await,
        (cursor, _) => {
            let from = cursor.map_or(1, |cursor| cursor.sequence.max(1));
            next_of(&client, storage::AUDIT, subjects::broker::AUDIT_ALL, from, EXPORTED_MAX).await
        }
    };
    let (messages, more) = read.map_err(|error| unreadable(&error))?;
    let (narrowed, next) = (sight.is_narrowed(), export.cursor.map(|cursor| cursor.to_string()));
    let sees = |record: &RawValue| !narrowed || serde_json::from_str(record.get()).is_ok_and(|record| sight.sees(&record));
    let mut page = ExportPage { records: Vec::new(), narrowed, unreadable: Vec::new(), next, end: !more };
    for message in messages {
        if export.until.is_some_and(|until| message.stored_at > until) {
            page.end = true;
            break;
        }
        let first = export.cursor.filter(|cursor| cursor.sequence == message.sequence).map_or(0, |cursor| cursor.index + 1);
        let Ok(batch) = serde_json::from_slice::<chain::Batch>(&message.payload) else {
            page.unreadable.push(message.sequence);
            page.next = Some(Cursor { sequence: message.sequence, index: UNREADABLE }.to_string());
            continue;
        };
        for exported in batch.exported(&message.subject, message.sequence).skip(first) {
            if page.records.len() == export.limit {
                page.end = false;
                return Ok(page);
            }
            page.next = Some(exported.cursor.clone());
            if sees(&exported.record) {
                page.records.push(exported);
            }
        }
    }
    Ok(page)
}

fn unreadable(error: &dyn fmt::Display) -> Problem {
    Problem::new(Code::Unavailable, format!("the audit trail cannot be read now: {error}"))
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    GoesOn,
    Over,
}

/// Gathers a page from messages, newest first.
struct Pages<'a, S> {
    filter: &'a Filter,
    /// Whether it may be read.
    sees: S,
    oldest: u64,
    found: Vec<Entry>,
    next: Option<Cursor>,
}

impl<'a, S: Fn(&Record) -> bool> Pages<'a, S> {
    fn new(filter: &'a Filter, sees: S, oldest: u64) -> Self {
        Self { filter, sees, oldest, found: Vec::new(), next: None }
    }

    fn take(&mut self, batch: Batch) -> Reading {
        // Records are older than their message, so nothing from here on can be young enough.
        if self.filter.since.is_some_and(|since| batch.stored_unix_ms.saturating_add(CLOCK_SLACK_MS) < since.unix_ms()) {
            self.next = None;
            return Reading::Over;
        }
        for (index, record) in batch.records.into_iter().enumerate().rev() {
            let place = Cursor { sequence: batch.sequence, index };
            if self.filter.cursor.is_some_and(|cursor| place >= cursor) || !self.filter.matches(&record) || !(self.sees)(&record) {
                continue;
            }
            // One more than wanted tells that there is more.
            if self.found.len() == self.filter.limit {
                self.next = self.found.last().and_then(|last| last.cursor.parse().ok());
                return Reading::Over;
            }
            self.found.push(Entry { cursor: place.to_string(), writer: batch.writer.clone(), record });
        }
        self.next = (batch.sequence > self.oldest).then_some(Cursor { sequence: batch.sequence, index: 0 });
        Reading::GoesOn
    }

    fn page(self) -> Page {
        Page { records: self.found, next: self.next.map(|next| next.to_string()) }
    }
}

impl Filter {
    fn matches(&self, record: &Record) -> bool {
        let of_request = |wanted: &String| {
            let rest = record.request_id.strip_prefix(wanted.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.since.is_none_or(|since| record.time >= since)
            && self.until.is_none_or(|until| record.time <= until)
            && self.principal.as_ref().is_none_or(|principal| record.principal == *principal)
            && self.node.as_ref().is_none_or(|node| record.node.as_ref() == Some(node))
            && self.tool.as_ref().is_none_or(|tool| record.tool == *tool)
            && self.target.as_ref().is_none_or(|target| record.target == *target)
            && self.verdict.is_none_or(|verdict| record.verdict == verdict)
            && self.request_id.as_ref().is_none_or(of_request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(limit: usize) -> Filter {
        Filter {
            since: None,
            until: None,
            principal: None,
            node: None,
            tool: None,
            target: None,
            verdict: None,
            request_id: None,
            limit,
            cursor: None,
        }
    }

    /// Three messages with three records each, a second apart; ids are `<sequence>-<index>`.
    fn trail() -> Vec<Batch> {
        let batch = |sequence: u64| {
            let record = |index: i64| {
                let unix_ms = i64::try_from(sequence).unwrap() * 1_000_000 + index * 1_000;
                let mut record = crate::audit::blank(Verdict::Accepted, "key:a", &format!("{sequence}-{index}"));
                record.time = Timestamp::from_unix_ms(unix_ms).unwrap();
                record
            };
            Batch {
                sequence,
                writer: "api-1".to_owned(),
                stored_unix_ms: i64::try_from(sequence).unwrap() * 1_000_000 + 5_000,
                records: (0..3).map(record).collect(),
            }
        };
        (4..=6).map(batch).collect()
    }

    /// What a page holds, and where it goes on.
    fn read_page(filter: &Filter) -> (Vec<String>, Option<String>) {
        let mut pages = Pages::new(filter, |_| true, 4);
        for batch in trail().into_iter().rev() {
            if filter.cursor.is_some_and(|cursor| batch.sequence > cursor.sequence) {
                continue;
            }
            if pages.take(batch) == Reading::Over {
                break;
            }
        }
        let page = pages.page();
        (page.records.into_iter().map(|entry| entry.record.request_id).collect(), page.next)
    }

    #[test]
    fn pages_follow_each_other_without_a_gap_newest_first() {
        let mut wanted = filter(4);
        let (first, next) = read_page(&wanted);
        assert_eq!((first, next.as_deref()), (vec!["6-2".into(), "6-1".into(), "6-0".into(), "5-2".into()], Some("5.2")));
        wanted.cursor = Some(next.unwrap().parse().unwrap());
        let (second, next) = read_page(&wanted);
        assert_eq!((second, next.as_deref()), (vec!["5-1".into(), "5-0".into(), "4-2".into(), "4-1".into()], Some("4.1")));
        wanted.cursor = Some(next.unwrap().parse().unwrap());
        assert_eq!(read_page(&wanted), (vec!["4-0".into()], None));
        assert_eq!(read_page(&filter(9)).1, None, "exactly all there is");
    }

    #[test]
    fn only_what_was_asked_for_is_found() {
        let at = |unix_ms| Timestamp::from_unix_ms(unix_ms);
        let (found, next) = read_page(&Filter { since: at(5_001_000), until: at(6_000_000), ..filter(9) });
        assert_eq!((found, next), (vec!["6-0".into(), "5-2".into(), "5-1".into()], None));
        assert_eq!(read_page(&Filter { request_id: Some("5-1".to_owned()), ..filter(9) }).0, ["5-1"]);
        assert!(read_page(&Filter { verdict: Some(Verdict::Denied), ..filter(9) }).0.is_empty());
        assert!(read_page(&Filter { principal: Some("key:b".to_owned()), ..filter(9) }).0.is_empty());
    }

    #[test]
    fn the_runs_of_a_job_belong_to_it() {
        let mut record = crate::audit::blank(Verdict::Finished, "key:a", "0198.3");
        let wanted = Filter { request_id: Some("0198".to_owned()), ..filter(1) };
        assert!(wanted.matches(&record));
        record.request_id = "01980".to_owned();
        assert!(!wanted.matches(&record));
    }

    #[test]
    fn a_cursor_is_read_back_as_it_was_given() {
        let cursor: Cursor = "12.3".parse().unwrap();
        assert_eq!(cursor.to_string(), "12.3");
        for bad in ["", "12", "12.", "a.b", "-1.0", "1.2.3"] {
            assert!(bad.parse::<Cursor>().is_err(), "{bad}");
        }
    }
}
