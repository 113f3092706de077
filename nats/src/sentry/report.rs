//! Writes what was seen into the log and the trail, in bounded number: what is the same is one record with a count, and one who goes on and on
//! gets a record with a count now and then.

use std::collections::HashMap;

use async_nats::Client;
use probeops_shared::audit::{Record, Verdict};
use probeops_shared::subjects::{self, AUDIT_VIOLATION};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::permissions::Role;
use crate::sentry::watch::{Finding, Kind, Who};
use crate::trail::Writer;

/// So many records of one principal may come at once …
const OF_ONE_MAX: f64 = 100.0;
/// … and so many a second in the long run.
const OF_ONE_PER_S: f64 = 0.1;
/// The same of all together.
const OF_ALL_MAX: f64 = 1000.0;
const OF_ALL_PER_S: f64 = 5.0;
/// How many different findings are kept apart between two writings; more are counted.
const APART_MAX: usize = 1000;
/// How many principals are remembered; of more, only a count.
const PRINCIPALS_MAX: usize = 10_000;
/// Who is meant where nobody was let in.
const NOBODY: &str = "-";

/// Gathers findings, and has them written.
#[derive(Debug)]
pub(super) struct Reporter {
    findings: mpsc::Receiver<Finding>,
    handle: Handle,
    gathered: Vec<(Finding, u64)>,
    of_one: HashMap<String, Allowance>,
    of_all: Allowance,
    /// Of each principal, what was not recorded one by one.
    unrecorded: HashMap<String, u64>,
    total: u64,
    writer: Writer,
}

/// Where others report.
#[derive(Clone, Debug)]
pub(super) struct Handle(mpsc::Sender<Finding>);

impl Handle {
    pub(super) fn report(&self, finding: Finding) {
        drop(self.0.try_send(finding));
    }
}

/// What may be written, refilled with time.
#[derive(Clone, Copy, Debug)]
struct Allowance {
    left: f64,
    at: Instant,
}

impl Allowance {
    fn take(&mut self, now: Instant, most: f64, per_s: f64) -> bool {
        self.left = (self.left + now.duration_since(self.at).as_secs_f64() * per_s).min(most);
        self.at = now;
        let enough = self.left >= 1.0;
        if enough {
            self.left -= 1.0;
        }
        enough
    }
}

impl Reporter {
    pub(super) fn new(client: Client) -> Self {
        let (sender, findings) = mpsc::channel(APART_MAX);
        let name = Role::Sentry.name();
        let writer = Writer::start(client, subjects::audit(AUDIT_VIOLATION, &name), name);
        Self {
            findings,
            handle: Handle(sender),
            gathered: Vec::new(),
            of_one: HashMap::new(),
            of_all: Allowance { left: OF_ALL_MAX, at: Instant::now() },
            unrecorded: HashMap::new(),
            total: 0,
            writer,
        }
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Gathers a finding.
    pub(super) fn report(&mut self, finding: Finding) {
        self.total += 1;
        // The last ones first: a flood is the same again and again.
        if let Some((_, count)) = self.gathered.iter_mut().rev().find(|(known, _)| *known == finding) {
            *count += 1;
        } else if self.gathered.len() < APART_MAX {
            self.gathered.push((finding, 1));
        } else {
            self.unrecorded(principal(&finding), 1);
        }
    }

    fn unrecorded(&mut self, principal: String, count: u64) {
        let known = self.unrecorded.len() < PRINCIPALS_MAX || self.unrecorded.contains_key(&principal);
        *self.unrecorded.entry(if known { principal } else { NOBODY.to_owned() }).or_default() += count;
    }

    /// Has what was gathered written, as far as it may be.
    pub(super) fn write(&mut self) {
        while let Ok(finding) = self.findings.try_recv() {
            self.report(finding);
        }
        let now = Instant::now();
        let mut quiet: Vec<String> = self.unrecorded.keys().cloned().collect();
        for (finding, count) in std::mem::take(&mut self.gathered) {
            let principal = principal(&finding);
            if !self.may_write(&principal, now) {
                self.unrecorded(principal, count);
                continue;
            }
            quiet.retain(|known| *known != principal);
            let more = self.unrecorded.remove(&principal).unwrap_or_default();
            self.send(record(&finding, count, more), count);
        }
        for principal in quiet {
            if self.may_write(&principal, now) {
                let more = self.unrecorded.remove(&principal).unwrap_or_default();
                let detail = format!("{more} violations were seen and not recorded one by one");
                self.send(Record { detail, ..Record::new(Verdict::Violation, principal) }, more);
            }
        }
        let full = |allowance: &Allowance| allowance.left + now.duration_since(allowance.at).as_secs_f64() * OF_ONE_PER_S >= OF_ONE_MAX;
        self.of_one.retain(|_, allowance| !full(allowance));
    }

    fn may_write(&mut self, principal: &str, now: Instant) -> bool {
        let room = self.of_one.len() < PRINCIPALS_MAX || self.of_one.contains_key(principal);
        let key = if room { principal } else { NOBODY };
        let of_one = self.of_one.entry(key.to_owned()).or_insert(Allowance { left: OF_ONE_MAX, at: now });
        of_one.take(now, OF_ONE_MAX, OF_ONE_PER_S) && self.of_all.take(now, OF_ALL_MAX, OF_ALL_PER_S)
    }

    fn send(&mut self, record: Record, count: u64) {
        tracing::warn!(principal = record.principal, subject = record.target, count, total = self.total, "violation: {}", record.detail);
        self.writer.pen().put(record);
    }

    /// Waits until what was written is kept.
    pub(super) async fn end(self) {
        self.writer.end().await;
    }
}

fn principal(finding: &Finding) -> String {
    finding.who.as_ref().map_or_else(|| NOBODY.to_owned(), Who::principal)
}

fn record(finding: &Finding, count: u64, more: u64) -> Record {
    let mut detail = format!("{}; from {}", finding.what, finding.host);
    if let Some(who) = &finding.who {
        let whose = if who.key.is_empty() { "a server".to_owned() } else { format!("key {}", who.key) };
        detail = format!("{detail}, {whose} of account {}", who.account);
    }
    if count > 1 {
        detail = format!("{detail}; {count} times");
    }
    if more > 0 {
        detail = format!("{detail}; {more} more before were not recorded one by one");
    }
    let (node, region, caller) = match finding.who.as_ref().map(|who| &who.kind) {
        Some(Kind::Node(node, region)) => (Some(node.clone()), Some(region.clone()), None),
        Some(Kind::Service(name)) => (None, None, Some(name.to_string())),
        Some(Kind::Part(name)) => (None, None, Some(name.clone())),
        Some(Kind::Unknown) | None => (None, None, None),
    };
    Record { node, region, caller, target: finding.subject.clone(), detail, ..Record::new(Verdict::Violation, principal(finding)) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_allowance_is_refilled_with_time() {
        let begun = Instant::now();
        let mut allowance = Allowance { left: 2.0, at: begun };
        assert_eq!([begun; 3].map(|now| allowance.take(now, 2.0, 0.1)), [true, true, false]);
        assert!(!allowance.take(begun + Duration::from_secs(9), 2.0, 0.1));
        assert!(allowance.take(begun + Duration::from_secs(11), 2.0, 0.1));
    }

    #[test]
    fn a_record_says_who_what_and_how_often() {
        let kind = Kind::Node("n1".parse().unwrap(), "eu".parse().unwrap());
        let who = Who { key: "UN1".to_owned(), account: "APP".to_owned(), kind };
        let finding = Finding { who: Some(who), what: "publish".to_owned(), subject: "x".to_owned(), host: "10.0.0.1".to_owned() };
        let record = record(&finding, 3, 7);
        assert_eq!((record.principal.as_str(), record.node.as_ref().map(ToString::to_string).as_deref()), ("node:n1", Some("n1")));
        assert_eq!(record.detail, "publish; from 10.0.0.1, key UN1 of account APP; 3 times; 7 more before were not recorded one by one");
        assert_eq!(record.target, "x");
    }
}
