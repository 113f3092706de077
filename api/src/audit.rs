//! The audit trail: what the API did and refused, written by `writer`, and all of it, read by [`reader`].

pub mod reader;
mod writer;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use probeops_shared::audit::{Record, Verdict};
use probeops_shared::ids::NodeId;
use probeops_shared::timestamp::Timestamp;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::reader::{Filter, Page};
use crate::broker::Broker;
use crate::problem::{Asked, Problem};

/// How many records wait to be written; more are dropped and counted.
const QUEUE_MAX: usize = 16_384;
/// So many refusals a second are recorded of those who named nobody; more are counted, so that strangers cannot crowd out the trail.
const STRANGERS_PER_SECOND: NonZeroU32 = NonZeroU32::new(50).expect("not zero");
/// Longer texts are cut.
const TEXT_LENGTH_MAX: usize = 512;
/// What stands for a principal where there is none.
const NOBODY: &str = "-";

/// The trail.
#[derive(Clone, Debug)]
pub struct Audit(Arc<Inner>);

struct Inner {
    queue: mpsc::Sender<Record>,
    dropped: AtomicU64,
    strangers: DefaultDirectRateLimiter,
    strangers_unrecorded: AtomicU64,
    broker: Broker,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("dropped", &self.dropped).finish_non_exhaustive()
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
    pub fn start(broker: &Broker, tasks: &TaskTracker, stop: &CancellationToken) -> Self {
        let (queue, records) = mpsc::channel(QUEUE_MAX);
        drop(tasks.spawn(writer::write(broker.clone(), records, stop.clone())));
        let strangers = RateLimiter::direct(Quota::per_second(STRANGERS_PER_SECOND));
        Self(Arc::new(Inner {
            queue,
            dropped: AtomicU64::new(0),
            strangers,
            strangers_unrecorded: AtomicU64::new(0),
            broker: broker.clone(),
        }))
    }

    /// Writes a record soon.
    pub fn record(&self, mut record: Record) {
        for text in [&mut record.principal, &mut record.tool, &mut record.target, &mut record.request_id, &mut record.detail] {
            cut(text);
        }
        if self.0.queue.try_send(record).is_err() {
            let dropped = self.0.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            if dropped.is_power_of_two() {
                tracing::error!(dropped, "audit records are lost: the broker keeps them more slowly than they are made");
            }
        }
    }

    /// Records a refused request.
    pub fn refused(&self, refusal: &Refusal<'_>) {
        let mut detail = format!("{} ({})", refusal.problem, refusal.request);
        if refusal.principal.is_none() {
            if self.0.strangers.check().is_err() {
                self.0.strangers_unrecorded.fetch_add(1, Ordering::Relaxed);
                return;
            }
            let unrecorded = self.0.strangers_unrecorded.swap(0, Ordering::Relaxed);
            if unrecorded > 0 {
                detail =
                    format!("{detail}; {unrecorded} more without an accepted credential were refused before and not recorded one by one");
            }
        }
        let Asked { tool, target } = refusal.problem.about();
        self.record(Record { tool, target, detail, ..blank(Verdict::Refused, refusal.principal.unwrap_or(NOBODY), refusal.request_id) });
    }

    /// Records that somebody changed something about access.
    pub fn changed(&self, principal: &str, request_id: &str, target: String, detail: String) {
        let node = target.strip_prefix("node:").and_then(|id| id.parse::<NodeId>().ok());
        self.record(Record { node, target, detail, ..blank(Verdict::Changed, principal, request_id) });
    }

    /// A page of the trail, newest first.
    pub async fn page(&self, filter: &Filter) -> Result<Page, Problem> {
        reader::page(&self.0.broker, filter).await
    }
}

/// The id of a message of the trail: the same for the same records of the same writer, so that the broker keeps them once however often they
/// are sent, and another for anybody else's.
pub(crate) fn message_id(writer: impl std::fmt::Display, payload: &[u8]) -> String {
    format!("{writer}.{}", data_encoding::HEXLOWER.encode(&Sha256::digest(payload)))
}

fn blank(verdict: Verdict, principal: &str, request_id: &str) -> Record {
    Record {
        time: Timestamp::now(),
        verdict,
        principal: principal.to_owned(),
        caller: None,
        node: None,
        region: None,
        tool: String::new(),
        target: String::new(),
        request_id: request_id.to_owned(),
        detail: String::new(),
        duration_ms: None,
    }
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
