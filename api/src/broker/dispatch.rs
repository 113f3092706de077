//! From a run to its outcome: attempts, until one succeeds or says something final, or there is no point in going on.
//!
//! Diagnostics only read, so running one twice is harmless; answering twice is not, and does not happen: the first final answer of any
//! attempt is the outcome, and whatever else was accepted is cancelled.

mod failed;
mod follow;
mod spares;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use bytes::Bytes;
use probeops_shared::ids::{NodeId, Region, RequestId};
use probeops_shared::job::{Events, SILENCE_MAX, header};
use probeops_shared::outcome::{FailureKind, NodeRef, Outcome};
use probeops_shared::subjects;
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::ToolName;
use probeops_shared::traceparent::Traceparent;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub(crate) use self::spares::{Spares, UsedNodes};
use super::replies::{Answer, Listener, Waiting, cancel};
use super::{Broker, LinkState};
use crate::trace::{Context, spans};

/// The most attempts for one run.
const ATTEMPTS_MAX: usize = 12;
/// So many attempts go to the region's queue group before nodes are chosen by name.
const GROUP_ATTEMPTS: usize = 2;
/// The shortest time a node has to accept.
const ACCEPT_WITHIN: Duration = Duration::from_millis(250);
/// When nobody at all has listened for this long, nobody will.
const NOBODY_FOR: Duration = Duration::from_secs(1);
/// The first wait between attempts; it doubles.
const RETRY_MIN: Duration = Duration::from_millis(5);
/// The longest wait between attempts.
const RETRY_MAX: Duration = Duration::from_millis(160);
/// How long a node that was told to stop has to say what it found until then.
const CANCELLED_WITHIN: Duration = Duration::from_millis(800);
/// How many answers of one run may wait to be read: each attempt says a few words, and `alive` is read as it comes.
const ANSWERS_MAX: usize = 64;

/// Where a run goes.
#[derive(Clone, Debug)]
pub(crate) enum Destination {
    /// Any node of a region.
    Region(Region),
    /// One node.
    Node(NodeId),
    /// This node, or another that fits.
    OneOf(NodeId, Arc<Spares>),
}

/// One node's share of a job.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// Its id, the same in every attempt.
    pub(crate) request_id: RequestId,
    /// The tool.
    pub(crate) tool: ToolName,
    /// The target as given.
    pub(crate) target: String,
    /// The job message.
    pub(crate) message: Bytes,
    /// Where it goes.
    pub(crate) to: Destination,
    /// On whose behalf.
    pub(crate) principal: String,
    /// That principal's targets.
    pub(crate) targets: Option<String>,
    /// The span of its dispatch.
    pub(crate) trace: Option<Context>,
    /// Start by then or not at all.
    pub(crate) deadline: Timestamp,
    /// The longest the tool may take.
    pub(crate) budget: Duration,
    /// When the caller waits no more, where he said so.
    pub(crate) ends_by: Option<Timestamp>,
}

/// Who follows a run while it goes on.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    /// Hears what its nodes tell.
    pub(crate) listener: Arc<dyn Listener>,
    /// Ends it before its time.
    pub(crate) cancel: CancellationToken,
}

/// What came of a run, and of which message it is.
#[derive(Clone, Debug)]
pub(crate) struct Dispatched {
    /// The outcome.
    pub(crate) outcome: Outcome,
    /// The attempt and the number of the node's message; none when it is no node's.
    pub(crate) answered: Option<(u32, u64)>,
    /// What the trace is told of it.
    pub(crate) told: Traced,
}

/// What a trace is told of a run; nothing where it is not.
#[derive(Clone, Debug, Default)]
pub(crate) struct Traced {
    /// What happened on the way.
    pub(crate) events: Vec<spans::Event>,
    /// The span of the node whose outcome it is.
    pub(crate) span: Option<Traceparent>,
}

impl Destination {
    /// The subject with its arguments named.
    pub(crate) fn template(&self) -> &'static str {
        match self {
            Self::Region(_) => subjects::JOB_TEMPLATE,
            Self::Node(_) | Self::OneOf(..) => subjects::NODE_JOB_TEMPLATE,
        }
    }
}

impl Broker {
    /// Gets a run done by a node. Always returns an outcome, within grace, budget and grace.
    pub(crate) async fn dispatch(&self, run: &Run, watched: Option<&Watched>) -> Dispatched {
        let (sender, answers) = mpsc::channel(ANSWERS_MAX);
        let mut dispatch = Dispatch {
            broker: self,
            run,
            listener: watched.map(|watched| Arc::clone(&watched.listener)),
            sender,
            answers,
            link: self.link(),
            attempts: Vec::new(),
            tried: Vec::new(),
            refused: Vec::new(),
            refusal: None,
            nobody_since: None,
            answered: None,
            told: Traced::default(),
        };
        let cancelled = async {
            match watched {
                Some(watched) => watched.cancel.cancelled().await,
                None => std::future::pending().await,
            }
        };
        let out_of_time = async {
            match run.ends_by {
                Some(ends_by) => tokio::time::sleep(ends_by.since(Timestamp::now())).await,
                None => std::future::pending().await,
            }
        };
        let outcome = tokio::select! {
            outcome = dispatch.outcome() => Some(outcome),
            () = cancelled => None,
            () = out_of_time => Some(dispatch.out_of_time()),
        };
        let Some(outcome) = outcome else {
            let cancelled = dispatch.cancelled().await;
            return Dispatched { told: Traced { events: dispatch.told.events, ..cancelled.told }, ..cancelled };
        };
        dispatch.cancel_the_rest(&outcome).await;
        dispatch.remember_the_rest();
        Dispatched { outcome, answered: dispatch.answered, told: dispatch.told }
    }
}

/// A day.
const DURATION_MS_MAX: f64 = 86_400_000.0;

impl Broker {
    /// An outcome as its node gave it. The broker attests the node, and we know what we asked: what the message says of those does not count, and
    /// no run takes longer than a day, or less than no time.
    pub(crate) fn attested(&self, run: &Run, node: NodeId, payload: &[u8]) -> Option<Outcome> {
        let given: Outcome = serde_json::from_slice(payload)
            .inspect_err(|error| tracing::error!(job.id = %run.request_id, %node, %error, "an outcome cannot be read"))
            .ok()?;
        let region = self.roster().region(&node).or_else(|| given.node.as_ref().map(|node| node.region.clone()));
        Some(Outcome {
            request_id: run.request_id.clone(),
            tool: run.tool.as_str().to_owned(),
            target: run.target.clone(),
            node: region.map(|region| NodeRef { id: node, region }),
            duration_ms: given.duration_ms.clamp(0.0, DURATION_MS_MAX),
            ..given
        })
    }
}

struct Dispatch<'a> {
    broker: &'a Broker,
    run: &'a Run,
    listener: Option<Arc<dyn Listener>>,
    sender: mpsc::Sender<Box<Answer>>,
    answers: mpsc::Receiver<Box<Answer>>,
    link: watch::Receiver<LinkState>,
    attempts: Vec<Attempt<'a>>,
    /// Nodes that have refused or fallen silent.
    tried: Vec<NodeId>,
    /// Those of them that will not do it at any time.
    refused: Vec<NodeId>,
    /// What the last node that refused said.
    refusal: Option<Outcome>,
    /// Since when the broker has said nothing but that nobody listens.
    nobody_since: Option<Instant>,
    /// The message with the outcome: its attempt and number.
    answered: Option<(u32, u64)>,
    told: Traced,
}

struct Attempt<'a> {
    /// Answers reach us while it lives.
    waiting: Waiting<'a>,
    /// The node that was asked, where it was one.
    asked: Option<NodeId>,
    accepted_by: Option<NodeId>,
    over: bool,
}

impl<'a> Dispatch<'a> {
    async fn outcome(&mut self) -> Outcome {
        while self.attempts.len() < ATTEMPTS_MAX {
            if !self.attempts.is_empty() {
                tokio::time::sleep(retry_wait(self.attempts.len())).await;
            }
            if !self.connected().await || self.expired() {
                break;
            }
            if self.nobody_since.is_some_and(|since| since.elapsed() >= NOBODY_FOR) {
                break;
            }
            let Some(destination) = self.destination() else { break };
            let number = self.publish(&destination).await;
            if let Some(outcome) = self.follow(number).await {
                return outcome;
            }
            if let Destination::Node(node) = destination {
                self.tried.push(node);
            }
        }
        self.gave_up()
    }

    /// A node that cannot be told now that it is not wanted any more may say later what it found.
    fn remember_the_rest(&self) {
        let open = self.attempts.iter().zip(1..).filter(|(attempt, _)| !attempt.over);
        let mut run = None;
        for (attempt, number) in open {
            // Not with what it was asked: that may be long, and secret.
            let run = run.get_or_insert_with(|| Arc::new(Run { message: Bytes::new(), ..self.run.clone() }));
            self.broker.0.replies.late.remember(attempt.waiting.token(), (number, attempt.asked.clone()), run);
        }
    }

    /// Waits until connected; false when that takes longer than the deadline.
    async fn connected(&mut self) -> bool {
        let left = self.run.deadline.since(Timestamp::now());
        tokio::time::timeout(left, self.link.wait_for(|state| state.connected)).await.is_ok_and(|state| state.is_ok())
    }

    fn expired(&self) -> bool {
        self.run.deadline <= Timestamp::now()
    }

    /// The group first, then nodes by name; none when every node has refused.
    fn destination(&self) -> Option<Destination> {
        let region = match &self.run.to {
            Destination::Region(region) => region,
            Destination::Node(_) => return Some(self.run.to.clone()),
            Destination::OneOf(first, spares) => return self.one_of(first, spares).map(Destination::Node),
        };
        let refused_for_good = self.refusal.as_ref().is_some_and(|outcome| is_about_this_node(outcome.failure_kind()));
        if self.attempts.len() < GROUP_ATTEMPTS && !refused_for_good {
            return Some(self.run.to.clone());
        }
        let candidates = self.broker.roster().candidates(region, self.run.tool);
        let untried = candidates.into_iter().filter(|candidate| !self.tried.contains(&candidate.id));
        match untried.max_by_key(|candidate| candidate.free) {
            Some(candidate) => Some(Destination::Node(candidate.id)),
            None if refused_for_good => None,
            None => Some(self.run.to.clone()),
        }
    }

    /// The node that was chosen, then others that fit, then again those that may have a slot by now, the one that was asked longest ago first.
    fn one_of(&self, first: &NodeId, spares: &Spares) -> Option<NodeId> {
        if self.attempts.is_empty() {
            return Some(first.clone());
        }
        let again = || {
            let willing = self.tried.iter().filter(|node| !self.refused.contains(node));
            willing.min_by_key(|node| self.tried.iter().rposition(|tried| tried == *node)).cloned()
        };
        spares.take().or_else(again)
    }

    /// Makes one more attempt and returns its number, from 1.
    async fn publish(&mut self, destination: &Destination) -> u32 {
        let broker: &'a Broker = self.broker;
        let number = u32::try_from(self.attempts.len() + 1).unwrap_or(u32::MAX);
        let (caller, run) = (&broker.0.caller, self.run);
        let subject = match destination {
            Destination::Region(region) => subjects::job(region, run.tool, caller),
            Destination::Node(node) | Destination::OneOf(node, _) => subjects::node_job(node, run.tool, caller),
        };
        let asked = match destination {
            Destination::Region(_) => None,
            Destination::Node(node) | Destination::OneOf(node, _) => Some(node.clone()),
        };
        let waiting = broker.0.replies.wait((number, asked.clone()), self.sender.clone(), self.listener.clone());
        let reply = subjects::reply(caller, waiting.token(), subjects::NO_RESPONDERS);
        self.attempts.push(Attempt { waiting, asked, accepted_by: None, over: false });
        self.tell(|| spans::attempted(number, &subject));
        // What nobody hears is not told.
        let events = if self.listener.is_some() { Events::All } else { Events::SignsOfLife };
        let headers = headers(run, number, events);
        let sent = broker.0.client.publish_with_reply_and_headers(subject, reply, headers, run.message.clone()).await;
        if let Err(error) = sent {
            tracing::warn!(job.id = %run.request_id, attempt = number, %error, "an attempt could not be published");
        }
        number
    }

    /// Tells the trace what happens, where the run is part of one.
    fn tell(&mut self, event: impl FnOnce() -> spans::Event) {
        if self.run.trace.as_ref().is_some_and(Context::is_told) {
            self.told.events.push(event());
        }
    }

    fn accept_within(&self) -> Duration {
        let roster = self.broker.roster();
        let rtt_ms = match (self.attempts.last().and_then(|attempt| attempt.asked.as_ref()), &self.run.to) {
            (Some(node), _) => roster.rtt_ms(node).unwrap_or_default(),
            (None, Destination::Region(region)) => roster.slowest_rtt_ms(region),
            (None, Destination::Node(_) | Destination::OneOf(..)) => 0.0,
        };
        ACCEPT_WITHIN.max(Duration::try_from_secs_f64(rtt_ms * 3.0 / 1000.0).unwrap_or(ACCEPT_WITHIN)).min(SILENCE_MAX)
    }

    fn attempt(&mut self, number: u32) -> Option<&mut Attempt<'a>> {
        self.attempts.get_mut(usize::try_from(number).ok()?.checked_sub(1)?)
    }

    async fn cancel_the_rest(&self, outcome: &Outcome) {
        // A failure that we tell ourselves may name a node that is still at it.
        let winner = outcome.node.as_ref().map(|node| &node.id).filter(|_| self.answered.is_some());
        for attempt in self.attempts.iter().filter(|attempt| !attempt.over) {
            if let Some(node) = attempt.accepted_by.as_ref().filter(|node| Some(*node) != winner) {
                cancel(&self.broker.0.client, &self.broker.0.caller, node, &self.run.request_id).await;
            }
        }
    }
}

/// Whether it is this node that refuses, whatever the moment.
fn is_about_this_node(failure: Option<FailureKind>) -> bool {
    matches!(failure, Some(FailureKind::Denied | FailureKind::Unsupported))
}

/// 5 ms, doubled for each attempt up to 160 ms, half of it more or less by chance.
fn retry_wait(attempts_so_far: usize) -> Duration {
    let doubled = RETRY_MIN.saturating_mul(1 << attempts_so_far.saturating_sub(1).min(8)).min(RETRY_MAX);
    doubled.mul_f64(0.5 + rand::random::<f64>())
}

fn headers(run: &Run, attempt: u32, events: Events) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::DEADLINE, run.deadline.unix_ms().to_string());
    headers.insert(header::ATTEMPT, attempt.to_string());
    headers.insert(header::EVENTS, events.as_str());
    headers.insert(header::PRINCIPAL, run.principal.as_str());
    if let Ok(since) = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) {
        headers.insert(header::SENT, since.as_micros().to_string());
    }
    if let Some(targets) = &run.targets {
        headers.insert(header::TARGETS, targets.as_str());
    }
    if let Some(trace) = &run.trace {
        headers.insert(header::TRACEPARENT, trace.traceparent());
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_between_attempts_double_up_to_a_bound() {
        for attempts_so_far in 1..=ATTEMPTS_MAX {
            let wait = retry_wait(attempts_so_far);
            assert!(wait >= RETRY_MIN / 2 && wait <= RETRY_MAX * 3 / 2, "{attempts_so_far}: {wait:?}");
        }
        assert!(retry_wait(10) >= RETRY_MAX / 2);
    }
}
