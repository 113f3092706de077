//! A job while it goes on here: what its nodes tell, kept for whoever watches and whoever comes back, and how to end it.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use probeops_shared::ids::NodeId;
use probeops_shared::outcome::{Outcome, Progress};
use probeops_shared::planted;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::JobDocument;
use super::store::{RunEnd, Stored};
use crate::broker::{Dispatched, Heard, Listener};

/// How many events of one job are kept for those who come later or read slowly.
const EVENTS_MAX: usize = 2_048;
/// How many bytes of them.
const EVENTS_BYTES_MAX: usize = 1024 * 1024;
/// How many bytes of one job's events are written to the stream, which all jobs share; then only its outcomes.
const WRITTEN_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How many bytes of all jobs' events are kept; beyond that only the last few of each.
const ALL_BYTES_MAX: usize = 128 * 1024 * 1024;
/// How many are kept of each job in any case.
const EVENTS_MIN: usize = 16;
/// How long a job that is only watched goes on without anybody watching: a reader that comes back is there again within this time.
const LEFT_AFTER: Duration = Duration::from_secs(2);
/// How many bytes of events wait to be written to the stream at most; what does not fit is in the outcome.
const UNWRITTEN_BYTES_MAX: usize = 256 * 1024;

/// How many bytes of events all jobs hold.
static ALL_BYTES: AtomicUsize = AtomicUsize::new(0);

/// The id of an event: which run, which dispatch of it, and its number in that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId {
    /// The index of the run in the job.
    pub run: usize,
    /// Which dispatch of the run, from 1; 0 where no node answered.
    pub attempt: u32,
    /// The number among the events of that dispatch, from 0.
    pub seq: u64,
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.run, self.attempt, self.seq)
    }
}

impl FromStr for EventId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split('.');
        let mut next = || parts.next().filter(|part| part.bytes().all(|byte| byte.is_ascii_digit()));
        let parsed = (|| {
            let (run, attempt, seq) = (next()?.parse().ok()?, next()?.parse().ok()?, next()?.parse().ok()?);
            Some(Self { run, attempt, seq })
        })();
        parsed
            .filter(|_| parts.next().is_none())
            .ok_or_else(|| "must be the id of an event as it was sent: <run>.<attempt>.<seq>, such as 0.1.3".to_owned())
    }
}

/// What an event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A node has begun with a run; the data is a [`Begun`].
    Accepted,
    /// It has found something; the data is a [`Found`].
    Progress,
    /// A run is over; the data is an [`Ended`].
    Outcome,
}

impl Kind {
    /// The word in the stream of events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Progress => "progress",
            Self::Outcome => "outcome",
        }
    }

    /// Reads the word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Accepted, Self::Progress, Self::Outcome].into_iter().find(|kind| kind.as_str() == word)
    }
}

/// A node has begun with a run.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Begun {
    /// Which run: the index of its outcome in `results`.
    pub run: usize,
    /// Which dispatch of it, from 1. A higher one begins anew.
    pub attempt: u32,
    /// Who.
    pub node: NodeId,
}

/// A node has found something.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Found {
    /// Which run: the index of its outcome in `results`.
    pub run: usize,
    /// Which dispatch of it, from 1.
    pub attempt: u32,
    /// Who.
    pub node: NodeId,
    /// How long after the node began, in milliseconds.
    pub elapsed_ms: f64,
    /// What was found: a packet, a hop, a round, a phase, an answer (the tool's own shape).
    pub progress: Value,
    /// What the tool prints of it in a terminal; absent where it prints nothing yet.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output: String,
    /// How many before this one could not be told, because too many came at once; absent when none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missed: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// A run is over.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Ended {
    /// Which run: the index of its outcome in `results`.
    pub run: usize,
    /// What came of it.
    pub outcome: Outcome,
}

/// An event of a job.
#[derive(Clone, Debug)]
pub struct Told {
    /// Its id.
    pub id: EventId,
    /// What it says.
    pub kind: Kind,
    /// That, as JSON in one line.
    pub data: Bytes,
}

/// A job that goes on here, or one of another replica that is followed here.
#[derive(Debug)]
pub(crate) struct Live {
    /// The job as it began, without results.
    pub(crate) document: JobDocument,
    /// Ends its runs before their time.
    pub(crate) cancel: CancellationToken,
    /// Whether it ends when nobody watches any more.
    only_watched: bool,
    /// Whether what is told of it comes from another replica, from the beginning.
    fed: bool,
    watchers: AtomicUsize,
    ring: Mutex<Ring>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Ring {
    events: VecDeque<Arc<Told>>,
    bytes: usize,
    /// How many events there were before the first that is kept.
    gone: u64,
    /// What was told last of each run, and its outcome.
    runs: Vec<RunSoFar>,
    /// Events that are not in the stream yet, a line each.
    unwritten: BytesMut,
    /// How many batches of them are.
    batches: u64,
    /// How many bytes of them.
    written: usize,
    /// The job's document, once it is over.
    end: Option<Bytes>,
    /// Nothing more will be known.
    left_off: bool,
    /// What came too late.
    late: Vec<Outcome>,
}

#[derive(Clone, Debug, Default)]
struct RunSoFar {
    last: Option<(u32, u64)>,
    /// The highest number of each dispatch.
    numbers: BTreeMap<u32, u64>,
    outcome: Option<Outcome>,
}

/// An event as it lies in the stream, a line of a batch.
#[derive(Debug, Serialize, Deserialize)]
struct Line<'a> {
    id: String,
    event: &'a str,
    #[serde(borrow)]
    data: &'a serde_json::value::RawValue,
}

impl Live {
    /// A job with so many runs that has just begun here.
    pub(crate) fn new(document: JobDocument, runs: usize, only_watched: bool) -> Arc<Self> {
        Arc::new(Self { only_watched, ..Self::of(document, runs) })
    }

    /// A job with so many runs that goes on at another replica.
    pub(crate) fn elsewhere(document: JobDocument, runs: usize) -> Arc<Self> {
        Arc::new(Self { fed: true, ..Self::of(document, runs) })
    }

    fn of(document: JobDocument, runs: usize) -> Self {
        let mut ring = Ring::default();
        ring.runs = vec![RunSoFar::default(); runs];
        Self {
            document,
            cancel: CancellationToken::new(),
            only_watched: false,
            fed: false,
            watchers: AtomicUsize::new(0),
            ring: Mutex::new(ring),
            changed: watch::Sender::new(()),
        }
    }

    /// Whoever hears the nodes of one of its runs.
    pub(crate) fn listener(self: &Arc<Self>, run: usize) -> Arc<dyn Listener> {
        Arc::new(RunListener { live: Arc::clone(self), run })
    }

    /// One of its runs is over.
    pub(crate) fn conclude(&self, run: usize, Dispatched { outcome, answered, .. }: Dispatched) -> RunEnd {
        let mut ring = self.ring();
        let so_far = ring.runs.get_mut(run);
        let told = so_far.as_ref().and_then(|so_far| so_far.last);
        // What no node said follows what the last one had said.
        let (attempt, seq) = answered.unwrap_or_else(|| told.map_or((0, 0), |(attempt, seq)| (attempt, seq.saturating_add(1))));
        if let Some(so_far) = so_far {
            so_far.outcome = Some(outcome.clone());
        }
        let end = RunEnd { attempt, seq, outcome };
        ring.push(end.told(run));
        drop(ring);
        self.changed.send_replace(());
        end
    }

    /// It is over.
    pub(crate) fn finish(&self, document: Bytes) {
        self.ring().end = Some(document);
        self.changed.send_replace(());
    }

    /// Nothing more will be known of it here: whoever watches is to look again.
    pub(crate) fn leave_off(&self) {
        self.ring().left_off = true;
        self.changed.send_replace(());
    }

    /// Whether nobody watches it.
    pub(crate) fn is_left(&self) -> bool {
        self.watchers.load(Ordering::Acquire) == 0
    }

    /// A job as it lies in the stream, with what there is to tell of it.
    pub(crate) fn of_stored(stored: Stored) -> Arc<Self> {
        let document = stored.state.document.clone();
        let inside =
            document.results.iter().enumerate().map(|(run, outcome)| RunEnd { attempt: 0, seq: 0, outcome: outcome.clone() }.told(run));
        let beside = stored.runs.iter().map(|(run, end)| end.told(*run));
        let events: Vec<Told> = inside.chain(beside).collect();
        let live = Arc::new(Self::of(JobDocument { results: Vec::new(), ..document.clone() }, events.len()));
        let mut ring = live.ring();
        for told in events {
            ring.push(told);
        }
        if document.status.is_over() {
            ring.end = Some(stored.into_document().to_bytes());
        }
        drop(ring);
        live
    }

    /// The job as it ended, or as far as it is.
    pub(crate) fn document_now(&self) -> JobDocument {
        let end = self.ring().end.clone();
        // It was written by us.
        end.and_then(|end| serde_json::from_slice(&end).ok()).unwrap_or_else(|| self.so_far())
    }

    /// The job with the outcomes there are, in the order of their runs.
    pub(crate) fn so_far(&self) -> JobDocument {
        let ring = self.ring();
        let results = ring.runs.iter().filter_map(|run| run.outcome.clone()).collect();
        JobDocument { results, late: ring.late.clone(), ..self.document.clone() }
    }

    /// One of its runs that was over has another outcome.
    pub(crate) fn learn_late(&self, outcome: Outcome) {
        self.ring().late.push(outcome);
    }

    /// How many runs it has.
    pub(crate) fn runs(&self) -> usize {
        self.ring().runs.len()
    }

    /// The runs that have begun and have no outcome, as far as was told, and their nodes.
    pub(crate) fn going_on(&self) -> Vec<(usize, NodeId)> {
        let ring = self.ring();
        let mut going_on: BTreeMap<usize, NodeId> = BTreeMap::new();
        for told in &ring.events {
            match told.kind {
                Kind::Accepted => {
                    if let Ok(Begun { run, node, .. }) = serde_json::from_slice(&told.data) {
                        drop(going_on.insert(run, node));
                    }
                }
                Kind::Outcome => drop(going_on.remove(&told.id.run)),
                Kind::Progress => {}
            }
        }
        going_on.into_iter().collect()
    }

    /// The events that are not in the stream yet, and the number of their batch.
    pub(crate) fn unwritten(&self) -> (u64, Bytes) {
        let mut ring = self.ring();
        ring.batches += u64::from(!ring.unwritten.is_empty());
        (ring.batches, ring.unwritten.split().freeze())
    }

    /// Waits until something was told.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Watches it: from its beginning, or from after an event.
    pub(crate) fn watch(self: &Arc<Self>, after: Option<EventId>) -> Watcher {
        self.watchers.fetch_add(1, Ordering::AcqRel);
        let changed = self.changed.subscribe();
        let ring = self.ring();
        let found = after.and_then(|id| ring.events.iter().rposition(|told| told.id == id));
        let (at, gap, skip) = match (after, found) {
            (Some(_), Some(index)) => (ring.gone + u64::try_from(index + 1).unwrap_or(u64::MAX), false, None),
            // It may be yet to come.
            (Some(id), None) if self.fed => (ring.gone, false, Some(id)),
            (Some(_), None) => (ring.gone, true, None),
            (None, _) => (0, false, None),
        };
        drop(ring);
        Watcher { live: Arc::clone(self), at, gap, skip, ended: false, changed }
    }

    /// Takes over what another replica has written of the job.
    pub(crate) fn learn(&self, lines: &[u8]) {
        let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let read = |line| {
            let Line { id, event, data } = serde_json::from_slice(line).ok()?;
            Some(Told { id: id.parse().ok()?, kind: Kind::parse(event)?, data: data.get().to_owned().into() })
        };
        let mut ring = self.ring();
        lines.filter_map(read).for_each(|told| ring.push(told));
        drop(ring);
        self.changed.send_replace(());
    }

    /// Takes over an outcome that another replica has written.
    pub(crate) fn learn_end(&self, run: usize, end: &RunEnd) {
        self.ring().push(end.told(run));
        self.changed.send_replace(());
    }

    /// Each event once, and those of a dispatch in their order: what comes again, or after one that follows it, is left out.
    fn tell(&self, told: Told) {
        let mut ring = self.ring();
        let EventId { run, attempt, seq } = told.id;
        if let Some(so_far) = ring.runs.get_mut(run) {
            let known = so_far.numbers.get(&attempt).is_some_and(|last| seq <= *last);
            if known && !planted!("events" if attempt == 3) {
                return;
            }
            so_far.numbers.insert(attempt, seq);
            so_far.last = Some((attempt, seq));
        }
        ring.write(&told);
        ring.push(told);
        drop(ring);
        self.changed.send_replace(());
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn left(self: &Arc<Self>) {
        if self.watchers.fetch_sub(1, Ordering::AcqRel) > 1 || !self.only_watched || self.ring().end.is_some() {
            return;
        }
        let (live, runtime) = (Arc::clone(self), tokio::runtime::Handle::try_current());
        let Ok(runtime) = runtime else { return self.cancel.cancel() };
        drop(runtime.spawn(async move {
            tokio::time::sleep(LEFT_AFTER).await;
            if live.is_left() {
                live.cancel.cancel();
            }
        }));
    }
}

impl Ring {
    fn push(&mut self, told: Told) {
        self.bytes += told.data.len();
        let mut all = ALL_BYTES.fetch_add(told.data.len(), Ordering::Relaxed) + told.data.len();
        self.events.push_back(Arc::new(told));
        while self.events.len() > EVENTS_MIN
            && (self.events.len() > EVENTS_MAX || self.bytes > EVENTS_BYTES_MAX || all > ALL_BYTES_MAX)
            && let Some(oldest) = self.events.pop_front()
        {
            self.gone += 1;
            self.bytes -= oldest.data.len();
            all = ALL_BYTES.fetch_sub(oldest.data.len(), Ordering::Relaxed) - oldest.data.len();
        }
    }

    fn write(&mut self, told: &Told) {
        if self.unwritten.len() + told.data.len() > UNWRITTEN_BYTES_MAX || self.written > WRITTEN_BYTES_MAX {
            return;
        }
        self.written += told.data.len();
        let line = format!("{{\"id\":\"{}\",\"event\":\"{}\",\"data\":", told.id, told.kind.as_str());
        self.unwritten.extend_from_slice(line.as_bytes());
        self.unwritten.extend_from_slice(&told.data);
        self.unwritten.extend_from_slice(b"}\n");
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        ALL_BYTES.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl RunEnd {
    /// The event that says so.
    pub(crate) fn told(&self, run: usize) -> Told {
        let id = EventId { run, attempt: self.attempt, seq: self.seq };
        let data = serde_json::to_vec(&Ended { run, outcome: self.outcome.clone() }).unwrap_or_default();
        Told { id, kind: Kind::Outcome, data: data.into() }
    }
}

#[derive(Debug)]
struct RunListener {
    live: Arc<Live>,
    run: usize,
}

impl Listener for RunListener {
    fn hear(&self, heard: &Heard<'_>) {
        let (run, attempt, node) = (self.run, heard.attempt, heard.node.clone());
        // Read and written anew: it goes to others as a line of text, and its node is not believed more than that.
        let said = match heard.progress {
            None => serde_json::to_vec(&Begun { run, attempt, node }).map(|data| (Kind::Accepted, data)),
            Some(progress) => serde_json::from_slice::<Progress>(progress).and_then(|said| {
                let Progress { request_id: _, elapsed_ms, progress, output, missed } = said;
                let found = Found { run, attempt, node, elapsed_ms, progress, output, missed };
                serde_json::to_vec(&found).map(|data| (Kind::Progress, data))
            }),
        };
        match said {
            Ok((kind, data)) => self.live.tell(Told { id: EventId { run, attempt, seq: heard.seq }, kind, data: data.into() }),
            Err(error) => tracing::warn!(node = %heard.node, %error, "what a node told cannot be read"),
        }
    }
}

/// What comes next for somebody who watches.
#[derive(Clone, Debug)]
pub enum Next {
    /// An event.
    Event(Arc<Told>),
    /// Events in between are no longer kept, or never were; the outcomes will have what they said.
    Gap,
    /// The job is over; its document.
    End(Bytes),
}

/// Watches a job while it lives.
#[derive(Debug)]
pub struct Watcher {
    live: Arc<Live>,
    /// How many events of the job come before the next one.
    at: u64,
    gap: bool,
    /// Everything until this one is known already.
    skip: Option<EventId>,
    ended: bool,
    changed: watch::Receiver<()>,
}

impl Watcher {
    /// What comes next; nothing after the end.
    pub async fn next(&mut self) -> Option<Next> {
        loop {
            self.changed.mark_unchanged();
            if let Some(next) = self.now() {
                return Some(next);
            }
            if self.ended || self.live.ring().left_off || self.changed.changed().await.is_err() {
                return None;
            }
        }
    }

    /// Waits for the end of the job; its document, or none when it ends somewhere else.
    pub(crate) async fn end(&mut self) -> Option<Bytes> {
        loop {
            self.changed.mark_unchanged();
            let (end, left_off) = {
                let ring = self.live.ring();
                (ring.end.clone(), ring.left_off)
            };
            if end.is_some() || left_off {
                return end;
            }
            // The job itself holds the other end.
            drop(self.changed.changed().await);
        }
    }

    /// The job as far as it is.
    pub(crate) fn so_far(&self) -> JobDocument {
        self.live.so_far()
    }

    /// How many runs it has.
    pub fn runs(&self) -> usize {
        self.live.runs()
    }

    /// The job as it began.
    pub fn document(&self) -> &JobDocument {
        &self.live.document
    }

    fn now(&mut self) -> Option<Next> {
        if std::mem::take(&mut self.gap) {
            return Some(Next::Gap);
        }
        let ring = self.live.ring();
        if self.at < ring.gone {
            self.at = ring.gone;
            return Some(Next::Gap);
        }
        let index = usize::try_from(self.at - ring.gone).unwrap_or(usize::MAX);
        for told in ring.events.iter().skip(index) {
            self.at += 1;
            match self.skip {
                None => return Some(Next::Event(Arc::clone(told))),
                Some(last) if last == told.id => self.skip = None,
                Some(_) => {}
            }
        }
        let end = ring.end.clone().filter(|_| !self.ended)?;
        // What it had seen last has never come.
        if self.skip.take().is_some() {
            return Some(Next::Gap);
        }
        self.ended = true;
        Some(Next::End(end))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.live.left();
    }
}

#[cfg(test)]
mod tests {
    use probeops_shared::ids::{JobId, RequestId};
    use probeops_shared::outcome::{Failure, FailureKind};
    use probeops_shared::timestamp::Timestamp;
    use serde_json::{Map, json};

    use super::*;
    use crate::jobs::JobStatus;

    fn live() -> Arc<Live> {
        Live::new(document(), 1, false)
    }

    fn document() -> JobDocument {
        JobDocument {
            id: JobId::new(),
            tool: "ping".to_owned(),
            target: "a".to_owned(),
            parameters: Map::new(),
            from: Vec::new(),
            caller: "key:a".to_owned(),
            schedule: None,
            status: JobStatus::Running,
            created_at: Timestamp::now(),
            expires_at: None,
            finished_at: None,
            callback: None,
            results: Vec::new(),
            missing: Vec::new(),
            late: Vec::new(),
        }
    }

    fn hear(live: &Arc<Live>, seq: u64, progress: Option<&[u8]>) {
        live.listener(0).hear(&Heard { attempt: 1, seq, node: &"n1".parse().unwrap(), progress });
    }

    fn found(output: &str) -> Vec<u8> {
        json!({"request_id": "r", "elapsed_ms": 1.5, "progress": {"a": "b"}, "output": output}).to_string().into_bytes()
    }

    fn over() -> Dispatched {
        let outcome = Outcome::failed(RequestId::new(), "ping", "a", Failure::new(FailureKind::Busy, "full"));
        Dispatched { outcome, answered: None, told: crate::broker::Traced::default() }
    }

    async fn ids(mut watcher: Watcher) -> Vec<String> {
        let mut ids = Vec::new();
        while let Some(next) = watcher.next().await {
            ids.push(match next {
                Next::Event(told) => told.id.to_string(),
                Next::Gap => "gap".to_owned(),
                Next::End(_) => "end".to_owned(),
            });
        }
        ids
    }

    #[test]
    fn an_id_is_read_as_it_is_written() {
        let id = EventId { run: 3, attempt: 1, seq: 40 };
        assert_eq!(id.to_string().parse::<EventId>(), Ok(id));
        for bad in ["", "1", "1.2", "1.2.3.4", "1.2.", "a.1.2", "+1.2.3", "1.2.-3", "99999999999999999999.1.1"] {
            assert!(bad.parse::<EventId>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn who_comes_back_is_told_the_rest_and_who_comes_late_all() {
        let live = live();
        hear(&live, 0, None);
        hear(&live, 1, Some(&found("1\n")));
        hear(&live, 2, Some(&found("2\n")));
        drop(live.conclude(0, over()));
        live.finish(Bytes::from_static(b"{}"));
        // What no node said follows what the last one had said.
        assert_eq!(ids(live.watch(None)).await, ["0.1.0", "0.1.1", "0.1.2", "0.1.3", "end"]);
        assert_eq!(ids(live.watch(Some("0.1.1".parse().unwrap()))).await, ["0.1.2", "0.1.3", "end"]);
        assert_eq!(ids(live.watch(Some("0.7.1".parse().unwrap()))).await, ["gap", "0.1.0", "0.1.1", "0.1.2", "0.1.3", "end"]);
    }

    #[tokio::test]
    async fn what_comes_again_or_in_the_wrong_order_is_told_once_and_in_order() {
        let live = live();
        for seq in [0, 0, 1, 3, 2, 3, 1, 4] {
            hear(&live, seq, (seq > 0).then_some(&found("x")));
        }
        // Another dispatch has numbers of its own.
        live.listener(0).hear(&Heard { attempt: 2, seq: 0, node: &"n1".parse().unwrap(), progress: None });
        drop(live.conclude(0, over()));
        live.finish(Bytes::from_static(b"{}"));
        assert_eq!(ids(live.watch(None)).await, ["0.1.0", "0.1.1", "0.1.3", "0.1.4", "0.2.0", "0.2.1", "end"]);
    }

    #[tokio::test]
    async fn what_another_replica_wrote_is_told_alike_and_skipped_until_where_it_was_seen() {
        let live = live();
        hear(&live, 0, None);
        hear(&live, 1, Some(&found("1\n")));
        let (batch, lines) = live.unwritten();
        assert_eq!((batch, live.unwritten().1.len()), (1, 0));
        let end = live.conclude(0, over());
        let there = Live::elsewhere(document(), 1);
        let (all, rest) = (there.watch(None), there.watch(Some("0.1.0".parse().unwrap())));
        there.learn(&lines);
        there.learn_end(0, &end);
        there.finish(Bytes::from_static(b"{}"));
        assert_eq!(ids(all).await, ["0.1.0", "0.1.1", "0.1.2", "end"]);
        assert_eq!(ids(rest).await, ["0.1.1", "0.1.2", "end"]);
        let never = there.watch(Some("0.9.9".parse().unwrap()));
        assert_eq!(ids(never).await, ["gap", "end"]);
    }

    #[tokio::test]
    async fn who_reads_too_slowly_is_told_that_something_is_missing() {
        let live = live();
        let slow = live.watch(None);
        for seq in 0..=EVENTS_MAX as u64 {
            hear(&live, seq, Some(&found("")));
        }
        live.finish(Bytes::from_static(b"{}"));
        let told = ids(slow).await;
        assert_eq!((told.len(), &told[..2]), (EVENTS_MAX + 2, &["gap".to_owned(), "0.1.1".to_owned()][..]));
    }

    #[tokio::test]
    async fn what_a_node_tells_is_one_line_of_what_it_may_tell() {
        let live = live();
        hear(
            &live,
            0,
            Some(b"{\"request_id\": \"r\",\n\"elapsed_ms\": 1.0, \"progress\": {\"a\":\n\"\\n\"}, \"run\": 7, \"node\": \"other\"}"),
        );
        hear(&live, 1, Some(b"data: evil\n\n"));
        let mut watcher = live.watch(None);
        let Some(Next::Event(told)) = watcher.next().await else { panic!("an event") };
        assert!(!told.data.contains(&b'\n'), "{:?}", told.data);
        let said: Found = serde_json::from_slice(&told.data).unwrap();
        assert_eq!((said.run, said.node.as_str(), said.progress), (0, "n1", json!({"a": "\n"})));
        assert!(futures_util::poll!(std::pin::pin!(watcher.next())).is_pending(), "what cannot be read is not told");
    }
}
