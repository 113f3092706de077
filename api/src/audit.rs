//! The audit trail: what the API did and refused, written by `writer`, and all of it, read by [`reader`]. `taking`: whether it takes records;
//! `brake`: what is not recorded one by one.

mod brake;
pub mod reader;
mod taking;
mod writer;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::Quota;
use probeops_shared::audit::{Record, Verdict};
use probeops_shared::ids::NodeId;
use probeops_shared::problem::Code;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::brake::{Brake, Brakes};
use crate::audit::reader::{Export, ExportPage, Filter, Page};
use crate::audit::taking::Taking;
use crate::broker::Broker;
use crate::metrics::Metrics;
use crate::problem::{Asked, Problem};

/// How many records wait to be written; more are left out and counted, and jobs are not run.
const QUEUE_MAX: usize = 16_384;
/// So many refusals a second are recorded of those who named nobody, and of each principal; more are counted, so that they cannot crowd out the
/// trail.
const REFUSALS_PER_SECOND: NonZeroU32 = NonZeroU32::new(50).expect("not zero");
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
    queue: mpsc::Sender<Entry>,
    mode: AuditMode,
    taking: Taking,
    strangers: Brake,
    at_the_door: Brakes,
    reads: Brakes,
    broker: Broker,
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
        let (queue, entries) = mpsc::channel(QUEUE_MAX);
        let taking = Taking::new(metrics.clone());
        drop(tasks.spawn(writer::write(broker.clone(), entries, taking.clone(), stop.clone())));
        drop(tasks.spawn(taking.clone().watch(broker.clone(), stop.clone())));
        let refusals = Quota::per_second(REFUSALS_PER_SECOND);
        let reads = Quota::with_period(READ_AGAIN_AFTER).unwrap_or(refusals);
        Self(Arc::new(Inner {
            queue,
            mode,
            taking,
            strangers: Brake::new(refusals),
            at_the_door: Brakes::new(refusals),
            reads: Brakes::new(reads),
            broker: broker.clone(),
        }))
    }

    /// Writes a record soon.
    pub fn record(&self, record: Record) {
        if self.0.queue.try_send(Entry { record: cut_all(record), stored: None }).is_err() {
            self.0.taking.lose();
        }
    }

    /// Writes the record of a job that is about to run, and waits until it is stored; the job must not run otherwise. Where records are not
    /// required it is written soon.
    pub(crate) async fn stored(&self, record: Record) -> Result<(), Problem> {
        if self.0.mode == AuditMode::BestEffort {
            self.record(record);
            return Ok(());
        }
        if let Some(why) = self.0.taking.why_not_even_try() {
            return Err(unrecorded(&why));
        }
        let (sender, stored) = oneshot::channel();
        if self.0.queue.try_send(Entry { record: cut_all(record), stored: Some(sender) }).is_err() {
            return Err(unrecorded("more records wait to be written than there is room for"));
        }
        if let Ok(Ok(())) = tokio::time::timeout(STORED_WITHIN, stored).await {
            return Ok(());
        }
        let why = self.0.taking.why_not();
        Err(unrecorded(&why.unwrap_or_else(|| format!("it did not acknowledge one within {} s", STORED_WITHIN.as_secs()))))
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
        if let Some(principal) = refusal.principal {
            let Some(unrecorded) = self.0.at_the_door.pass(principal) else { return };
            return self.record_refusal(refusal, &more(unrecorded, "of this principal"));
        }
        let Some(unrecorded) = self.0.strangers.pass() else { return };
        self.record_refusal(refusal, &more(unrecorded, "without an accepted credential"));
    }

    /// Records what was refused to a service at the front door: there, too, nobody can crowd out the trail.
    pub(crate) fn refused_at_the_door(&self, service: &str, refusal: &Refusal<'_>) {
        let Some(unrecorded) = self.0.at_the_door.pass(service) else { return };
        self.record_refusal(refusal, &more(unrecorded, "of this service"));
    }

    fn record_refusal(&self, refusal: &Refusal<'_>, more: &str) {
        let detail = format!("{} ({}){more}", refusal.problem, refusal.request);
        let Asked { tool, target } = refusal.problem.about();
        self.record(Record { tool, target, detail, ..blank(Verdict::Refused, refusal.principal.unwrap_or(NOBODY), refusal.request_id) });
    }

    /// Records that somebody changed something: who, in which request, what (`node:<id>`, `key:<id>`, …), and how.
    pub fn changed(&self, principal: &str, request_id: &str, target: String, detail: String) {
        let node = target.strip_prefix("node:").and_then(|id| id.parse::<NodeId>().ok());
        self.record(Record { node, target, detail, ..blank(Verdict::Changed, principal, request_id) });
    }

    /// Records that somebody read what is not his own. Whoever reads the same again and again is recorded once a minute, with how often.
    pub(crate) fn read(&self, principal: &str, request_id: &str, target: String, detail: &str) {
        let Some(unrecorded) = self.0.reads.pass(&format!("{principal} {target} {detail}")) else { return };
        let again = if unrecorded > 0 { format!("; {unrecorded} more times since that was last recorded") } else { String::new() };
        let detail = format!("{detail}{again}");
        self.record(Record { target, detail, ..blank(Verdict::Read, principal, request_id) });
    }

    /// A page of the trail, newest first.
    pub async fn page(&self, filter: &Filter) -> Result<Page, Problem> {
        reader::page(&self.0.broker, filter).await
    }

    /// A page of the trail, oldest first, with what tells whether it is whole.
    pub async fn export(&self, export: &Export) -> Result<ExportPage, Problem> {
        reader::export(&self.0.broker, export).await
    }
}

fn more(unrecorded: u64, of: &str) -> String {
    if unrecorded == 0 {
        return String::new();
    }
    format!("; {unrecorded} more {of} were refused before and not recorded one by one")
}

fn unrecorded(why: &str) -> Problem {
    let detail = format!("the audit trail does not take the record of this job now, and without one it is not run: {why}");
    Problem::new(Code::Unavailable, detail).retry_after(RETRY_AFTER)
}

/// The id of a message of the trail: the same for the same records of the same writer, so that the broker keeps them once however often they
/// are sent, and another for anybody else's.
pub(crate) fn message_id(writer: impl std::fmt::Display, payload: &[u8]) -> String {
    format!("{writer}.{}", data_encoding::HEXLOWER.encode(&Sha256::digest(payload)))
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
        assert_eq!(message_id("api-1", b"x"), message_id("api-1", b"x"));
        assert_ne!(message_id("api-1", b"x"), message_id("api-2", b"x"), "two replicas may refuse the same request in the same moment");
        assert_ne!(message_id("api-1", b"x"), message_id("api-1", b"y"));
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
