//! What the API reads of callers and nodes, as `tests/fuzz` calls it. Only in a build with the feature `fuzzing`.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use futures_util::FutureExt;
use probeops_shared::enroll::{ChallengeRequest, ConfirmRequest, EnrollRequest};
use probeops_shared::ids::{JobId, NodeId};
use probeops_shared::invalid::Invalid;
use probeops_shared::outcome::Outcome;
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::Spec;
use serde_json::{Map, Value};

pub use crate::access::jwt::fuzzing as jwt;
pub use crate::broker::fuzzing as broker;
use crate::broker::{Dispatched, Heard, Traced};
pub use crate::collector::fuzzing as collector;
use crate::jobs::live::Live;
use crate::jobs::{JobDocument, JobStatus, Next, Told};
use crate::later::schedules::trigger::Trigger;
use crate::problem::Problem;
use crate::routes::{enroll, knock};

/// A job's request: what to run, from where, and how long the call waits.
pub fn request(body: &[u8], headers: &[(&str, &[u8])]) -> Result<(Spec, Vec<String>, Duration), Problem> {
    let named = |(name, value): &(&str, &[u8])| Some((name.parse::<HeaderName>().ok()?, HeaderValue::from_bytes(value).ok()?));
    let headers: HeaderMap = headers.iter().filter_map(named).collect();
    let read = knock::read(body, &headers)?;
    Ok((read.request.spec, read.request.from.iter().map(ToString::to_string).collect(), read.wait))
}

/// The errors of a problem, each with where it is.
pub fn errors(problem: &Problem) -> Vec<Invalid> {
    let document = serde_json::to_value(problem.document("")).unwrap_or_default();
    serde_json::from_value(document.get("errors").cloned().unwrap_or_default()).unwrap_or_default()
}

/// What a node tells of its run: the number it gives, and progress unless it only begins.
#[derive(Clone, Copy, Debug)]
pub struct Said<'a> {
    /// Which dispatch.
    pub attempt: u32,
    /// Its number.
    pub seq: u64,
    /// The body of progress.
    pub progress: Option<&'a [u8]>,
}

/// A job of one run that hears all this and then ends so, with or without an answer of this attempt and number: what somebody is told who
/// watches from the beginning, what somebody is told who comes back after each of these events, and what is written for other replicas.
pub fn told(node: &NodeId, said: &[Said<'_>], outcome: Outcome, answered: Option<(u32, u64)>) -> (Vec<Told>, Vec<Vec<Told>>, Vec<Told>) {
    let document = JobDocument {
        id: JobId::new(),
        tool: outcome.tool.clone(),
        target: outcome.target.clone(),
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
    };
    let live = Live::new(document.clone(), 1, false);
    let listener = live.listener(0);
    for Said { attempt, seq, progress } in said.iter().copied() {
        listener.hear(&Heard { attempt, seq, node, progress });
    }
    let (_, lines) = live.unwritten();
    let _end = live.conclude(0, Dispatched { outcome, answered, told: Traced::default() });
    live.finish(Bytes::from_static(b"{}"));
    let all = events(live.watch(None));
    let again = all.iter().map(|told| events(live.watch(Some(told.id)))).collect();
    let there = Live::elsewhere(document, 1);
    there.learn(&lines);
    there.finish(Bytes::from_static(b"{}"));
    (all, again, events(there.watch(None)))
}

fn events(mut watcher: crate::jobs::Watcher) -> Vec<Told> {
    let mut told = Vec::new();
    while let Some(Some(next)) = watcher.next().now_or_never() {
        if let Next::Event(event) = next {
            told.push((*event).clone());
        }
    }
    told
}

/// The request of a node for a challenge.
pub fn challenge(body: &[u8]) -> Result<ChallengeRequest, Problem> {
    enroll::challenge_of(body)
}

/// The request of a node for a credential.
pub fn enroll(body: &[u8]) -> Result<EnrollRequest, Problem> {
    enroll::enroll_of(body)
}

/// That a node's credential is taken.
pub fn confirm(body: &[u8]) -> Result<ConfirmRequest, Problem> {
    enroll::confirm_of(body)
}

/// When a schedule is due, as it is kept, and its first times after `now`.
pub fn trigger(fields: &Map<String, Value>, now: Timestamp) -> Result<(Value, Vec<Timestamp>), Invalid> {
    let trigger = Trigger::parse(fields, now)?;
    let dues = std::iter::successors(trigger.next_after(now, now), |due| trigger.next_after(*due, now)).take(3).collect();
    Ok((serde_json::to_value(&trigger).unwrap_or_default(), dues))
}
