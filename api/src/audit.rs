//! The audit trail: what the API did and refused, written by `writer`, and all of it, read by [`reader`] as far as [`sight`] reaches. `taking`:
//! whether it takes records; `brake`: what is not recorded one by one.

mod brake;
pub mod reader;
pub mod sight;
mod taking;
mod writer;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::Quota;
use probeops_shared::audit::{Record, Verdict};
use probeops_shared::ids::NodeId;
use probeops_shared::problem::Code;
use probeops_shared::timestamp::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::brake::Brakes;
use crate::audit::reader::{Export, ExportPage, Filter, Page};
use crate::audit::sight::Sight;
use crate::audit::taking::Taking;
use crate::audit::writer::Sources;
use crate::broker::Broker;
use crate::metrics::Metrics;
use crate::problem::{Asked, Problem};

/// How many records of what is done wait to be written; more are left out and counted, and jobs are not run.
const DONE_MAX: usize = 16_384;
/// How many of what was only asked, and was refused or read; more are counted.
const ASKED_MAX: usize = 2_048;
/// So many refusals in a row are recorded of those who named nobody, and of each principal, and then one a second; more are counted, so that
/// nobody fills the trail with what he may not.
const REFUSALS_IN_A_ROW: NonZeroU32 = NonZeroU32::new(50).expect("not zero");
/// How often one who reads the same thing again and again is recorded.
const READ_AGAIN_AFTER: Duration = Duration::from_mins(1);
/// How long a job waits for its record to be stored: less than it may wait for a node.
const STORED_WITHIN: Duration = Duration::from_secs(4);
/// When a trail that takes no records may take some again.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// Longer texts are cut.
const TEXT_LENGTH_MAX: usize = 512;
/// What stands for a principal where there is none.
const NOBODY: &str = "-";
/// What stands for principals who are too many to be told apart.
const OTHERS: &str = "(others)";

/// Whether jobs are run of which the trail has no record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum AuditMode {
    /// No record, no run: a job is dispatched when the trail has its record.
    #[default]
    Required,
    /// Jobs do not wait for the trail. What it does not take, and what waits when this process is killed, is in no trail.
    BestEffort,
}

/// The trail.
#[derive(Clone, Debug)]
pub struct Audit(Arc<Inner>);

struct Inner {
    done: mpsc::Sender<Entry>,
    asked: mpsc::Sender<Record>,
    mode: AuditMode,
    taking: Taking,
    counted: Arc<Counted>,
    broker: Broker,
}

/// What is not recorded one by one.
struct Counted {
    /// Refusals, by principal.
    refusals: Brakes<String>,
    /// Reading, by who reads what, and how.
    reads: Brakes<[String; 3]>,
}

impl Counted {
    fn new() -> Self {
        let refusals = Quota::per_second(NonZeroU32::MIN).allow_burst(REFUSALS_IN_A_ROW);
        let reads = Quota::with_period(READ_AGAIN_AFTER).unwrap_or(refusals);
        Self { refusals: Brakes::new(refusals, OTHERS.to_owned()), reads: Brakes::new(reads, [OTHERS, "", "read"].map(str::to_owned)) }
    }

    /// Records of what may be told by now.
    fn untold(&self) -> Vec<Record> {
        told(self.refusals.untold(), self.reads.untold())
    }

    /// Records of all there is.
    fn all_untold(&self) -> Vec<Record> {
        told(self.refusals.all_untold(), self.reads.all_untold())
    }
}

fn told(refusals: Vec<(String, u64)>, reads: Vec<([String; 3], u64)>) -> Vec<Record> {
    let refused = refusals.into_iter().map(|(principal, count)| {
        let detail = format!("{count} more requests were refused and not recorded one by one");
        Record { detail, ..Record::new(Verdict::Refused, principal) }
    });
    let read = reads.into_iter().map(|([principal, target, detail], count)| {
        let detail = format!("{detail}{}", again(count));
        Record { target, detail, ..Record::new(Verdict::Read, principal) }
    });
    refused.chain(read).map(cut_all).collect()
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("mode", &self.mode).field("taking", &self.taking).finish_non_exhaustive()
    }
}

/// A record that is to be written.
#[derive(Debug)]
struct Entry {
    record: Record,
    /// Told when it is stored; dropped when it is not known to be.
    stored: Option<oneshot::Sender<()>>,
}

impl Entry {
    fn is_waited_for(&self) -> bool {
        self.stored.is_some()
    }
}

/// A request that was refused.
#[derive(Debug)]
pub struct Refusal<'a> {
    /// Who asked; none when no credential was accepted.
    pub principal: Option<&'a str>,
    /// Its id.
    pub request_id: &'a str,
    /// Its method and path.
    pub request: &'a str,
    /// Why.
    pub problem: &'a Problem,
}

impl Audit {
    /// The trail; its writer goes on until `stop`, and then writes what is left.
    pub fn start(broker: &Broker, (mode, metrics): (AuditMode, &Metrics), tasks: &TaskTracker, stop: &CancellationToken) -> Self {
        let (done, done_queue) = mpsc::channel(DONE_MAX);
        let (asked, asked_queue) = mpsc::channel(ASKED_MAX);
        let (taking, counted) = (Taking::new(metrics.clone()), Arc::new(Counted::new()));
        let sources = Sources { done: done_queue, asked: asked_queue, counted: Arc::clone(&counted) };
        drop(tasks.spawn(writer::write(broker.clone(), sources, taking.clone(), stop.clone())));
        drop(tasks.spawn(taking.clone().watch(broker.clone(), stop.clone())));
        Self(Arc::new(Inner { done, asked, mode, taking, counted, broker: broker.clone() }))
    }

    /// Writes a record of what is done soon.
    pub fn record(&self, record: Record) {
        if self.0.done.try_send(Entry { record: cut_all(record), stored: None }).is_err() {
            self.0.taking.lose();
        }
    }

    /// Writes the record of a job or change that is about to be done, and waits until it is stored; it must not be done otherwise. Where records
    /// are not required it is written soon.
    pub(crate) async fn stored(&self, record: Record) -> Result<(), Problem> {
        if self.0.mode == AuditMode::BestEffort {
            self.record(record);
            return Ok(());
        }
        let what = if record.verdict == Verdict::Changed { "change" } else { "job" };
        if let Some(why) = self.0.taking.why_not_even_try() {
            return Err(unrecorded(what, &why));
        }
        let (sender, mut stored) = oneshot::channel();
        if self.0.done.try_send(Entry { record: cut_all(record), stored: Some(sender) }).is_err() {
            return Err(unrecorded(what, "more records wait to be written than there is room for"));
        }
        let in_time = tokio::time::timeout(STORED_WITHIN, &mut stored).await;
        // From here on the writer knows that nobody waits.
        stored.close();
        if matches!(in_time, Ok(Ok(()))) || stored.try_recv().is_ok() {
            return Ok(());
        }
        let why = self.0.taking.why_not();
        Err(unrecorded(what, &why.unwrap_or_else(|| format!("it did not acknowledge one within {} s", STORED_WITHIN.as_secs()))))
    }

    /// Whether jobs can be recorded as they have to be, or why not.
    pub fn ready(&self) -> Result<(), String> {
        match self.0.taking.why_not() {
            Some(why) if self.0.mode == AuditMode::Required => Err(format!("the audit trail takes no records: {why}")),
            Some(_) | None => Ok(()),
        }
    }

    /// Records a refused request.
    pub fn refused(&self, refusal: &Refusal<'_>) {
        let (principal, of) = refusal.principal.map_or((NOBODY, "without an accepted credential"), |name| (name, "of this principal"));
        let key = principal.to_owned();
        let Some(unrecorded) = self.0.counted.refusals.pass(&key) else { return };
        let detail = format!("{} ({}){}", refusal.problem, refusal.request, more(unrecorded, of));
        let Asked { tool, target } = refusal.problem.about();
        let record = Record { tool, target, detail, ..blank(Verdict::Refused, principal, refusal.request_id) };
        if self.0.asked.try_send(cut_all(record)).is_err() {
            self.0.counted.refusals.pass_over(&key, unrecorded + 1);
        }
    }

    /// Records that somebody changed something: who, in which request, what (`node:<id>`, `key:<id>`, …), and how.
    pub fn changed(&self, principal: &str, request_id: &str, target: String, detail: String) {
        self.record(change(principal, request_id, target, detail));
    }

    /// The same before it is done, which it must not be without its record: for what lets somebody do more than before. Where it fails after
    /// that, the refusal of the same request is recorded. What takes something away is done first: no full trail keeps anybody from it.
    pub(crate) async fn changing(&self, principal: &str, request_id: &str, target: String, detail: String) -> Result<(), Problem> {
        self.stored(change(principal, request_id, target, detail)).await
    }

    /// Records that somebody read what is not his own. Whoever reads the same again and again is recorded once a minute, with how often.
    pub(crate) fn read(&self, principal: &str, request_id: &str, target: String, detail: &str) {
        let mut key = [principal, &target, detail].map(str::to_owned);
        key.iter_mut().for_each(cut);
        let Some(unrecorded) = self.0.counted.reads.pass(&key) else { return };
        let detail = format!("{detail}{}", again(unrecorded));
        let record = Record { target, detail, ..blank(Verdict::Read, principal, request_id) };
        if self.0.asked.try_send(cut_all(record)).is_err() {
            self.0.counted.reads.pass_over(&key, unrecorded + 1);
        }
    }

    /// A page of what one may read of the trail, newest first.
    pub async fn page(&self, filter: &Filter, sight: Sight<'_>) -> Result<Page, Problem> {
        reader::page(&self.0.broker, filter, sight).await
    }

    /// A page of what one may read of the trail, oldest first, with what tells whether it is whole.
    pub async fn export(&self, export: &Export, sight: Sight<'_>) -> Result<ExportPage, Problem> {
        reader::export(&self.0.broker, export, sight).await
    }
}

fn more(unrecorded: u64, of: &str) -> String {
    if unrecorded == 0 {
        return String::new();
    }
    format!("; {unrecorded} more {of} were refused before and not recorded one by one")
}

fn again(unrecorded: u64) -> String {
    if unrecorded > 0 { format!("; {unrecorded} more times since that was last recorded") } else { String::new() }
}

/// The record that what this one says of a job did not come about.
pub(crate) fn undone(record: Record, why: &str) -> Record {
    Record { time: Timestamp::now(), verdict: Verdict::Refused, detail: format!("it did not begin: {why}"), ..record }
}

fn unrecorded(what: &str, why: &str) -> Problem {
    let done = if what == "job" { "run" } else { "made" };
    let detail = format!("the audit trail does not take the record of this {what} now, and without one it is not {done}: {why}");
    Problem::new(Code::Unavailable, detail).retry_after(RETRY_AFTER)
}

/// The id of a message of the trail: the same for the same records of the same writer, so that the broker keeps them once however often they
/// are sent, and another for anybody else's. Whoever could guess it could publish it first, and have the broker take ours for the same.
pub(crate) fn message_id(writer: impl std::fmt::Display, secret: u128, payload: &[u8]) -> String {
    format!("{writer}.{secret:032x}.{}", data_encoding::HEXLOWER.encode(&Sha256::digest(payload)))
}

fn change(principal: &str, request_id: &str, target: String, detail: String) -> Record {
    let node = target.strip_prefix("node:").and_then(|id| id.parse::<NodeId>().ok());
    Record { node, target, detail, ..blank(Verdict::Changed, principal, request_id) }
}

fn blank(verdict: Verdict, principal: &str, request_id: &str) -> Record {
    Record { request_id: request_id.to_owned(), ..Record::new(verdict, principal) }
}

fn cut_all(mut record: Record) -> Record {
    for text in [&mut record.principal, &mut record.tool, &mut record.target, &mut record.request_id, &mut record.detail] {
        cut(text);
    }
    record
}

fn cut(text: &mut String) {
    if text.len() > TEXT_LENGTH_MAX {
        let at = (0..=TEXT_LENGTH_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(at);
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_an_id_of_its_writer_and_its_content() {
        assert_eq!(message_id("api-1", 7, b"x"), message_id("api-1", 7, b"x"));
        assert_ne!(
            message_id("api-1", 7, b"x"),
            message_id("api-2", 7, b"x"),
            "two replicas may refuse the same request in the same moment"
        );
        assert_ne!(message_id("api-1", 7, b"x"), message_id("api-1", 8, b"x"), "nobody knows its secret");
        assert_ne!(message_id("api-1", 7, b"x"), message_id("api-1", 7, b"y"));
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let mut text = "ü".repeat(TEXT_LENGTH_MAX);
        cut(&mut text);
        assert_eq!(text.chars().count(), TEXT_LENGTH_MAX / 2 + 1);
        let mut short = "x".repeat(TEXT_LENGTH_MAX);
        cut(&mut short);
        assert_eq!(short.len(), TEXT_LENGTH_MAX);
    }
}
