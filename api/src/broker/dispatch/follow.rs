//! What comes back for the attempts of a run, and what it means.

use std::time::{Duration, Instant};

use probeops_nats::connect::BACKOFF_MAX;
use probeops_shared::ids::NodeId;
use probeops_shared::job::{Event, GRACE, SILENCE_MAX};
use probeops_shared::outcome::{Failure, FailureKind, Outcome};

use super::{ATTEMPTS_MAX, CANCELLED_WITHIN, Destination, Dispatch, Dispatched, Traced, is_about_this_node};
use crate::broker::replies::{Answer, cancel};
use crate::trace::spans;

/// What to do after an answer.
enum Step {
    /// This is the outcome.
    Final(Box<Outcome>),
    /// A node has begun, or goes on.
    Running(u32),
    /// The attempt is over.
    Over(u32),
}

impl Dispatch<'_> {
    /// Follows an attempt (and hears the older ones) until there is an outcome or no hope for it.
    pub(super) async fn follow(&mut self, number: u32) -> Option<Outcome> {
        match tokio::time::timeout(self.accept_within(), self.next(number)).await {
            Ok(Some(Step::Final(outcome))) => Some(*outcome),
            // An older attempt that was given up for its silence may turn out to run after all.
            Ok(Some(Step::Running(running))) => self.accompany(running).await,
            // Over, the connection is gone, or silence.
            Ok(Some(Step::Over(_)) | None) => None,
            Err(_silent) => {
                self.tell(|| spans::answered("unanswered", Some(number), None, None));
                None
            }
        }
    }

    /// Stays with a run that a node has begun.
    async fn accompany(&mut self, mut running: u32) -> Option<Outcome> {
        let patience_ends = Instant::now() + self.run.budget + GRACE;
        let mut heard_at = Instant::now();
        let mut silent_at = heard_at + SILENCE_MAX;
        let mut link = self.link.clone();
        let mut connected = *link.borrow_and_update();
        let mut again = None;
        loop {
            // Without a connection silence says nothing.
            let until = if connected.connected { patience_ends.min(silent_at) } else { patience_ends };
            let step = tokio::select! {
                step = tokio::time::timeout_at(until.into(), self.next_of_any()) => step,
                Ok(()) = link.changed() => {
                    let now = *link.borrow_and_update();
                    if now.connected && now.epoch != connected.epoch {
                        again = self.ask_again(running).await;
                        // The node keeps what it has to say until it is back, too, which may be later than we are: then its silence begins.
                        silent_at = Instant::now() + BACKOFF_MAX + SILENCE_MAX;
                    }
                    connected = now;
                    continue;
                }
            };
            match step {
                Ok(Step::Final(outcome)) => return Some(*outcome),
                Ok(Step::Over(over)) if over == running => return None,
                Ok(Step::Running(alive)) if alive == running || Some(alive) == again => {
                    heard_at = Instant::now();
                    (running, silent_at) = (alive, heard_at + SILENCE_MAX);
                }
                Ok(Step::Running(other)) => self.cancel_attempt(other, running).await,
                // Somebody has it, so it does not count that nobody listens.
                Ok(Step::Over(_)) => self.nobody_since = None,
                Err(_silent) => {
                    self.give_up(running, connected.connected && heard_at.elapsed() < SILENCE_MAX);
                    return None;
                }
            }
        }
    }

    /// Stops what has begun or is about to, and waits a little for what it found until then.
    pub(super) async fn cancelled(&mut self) -> Dispatched {
        let (client, caller, id) = (&self.broker.0.client, &self.broker.0.caller, &self.run.request_id);
        let under_way = self.attempts.iter().any(|attempt| !attempt.over);
        for node in self.attempts.iter().filter(|attempt| !attempt.over).filter_map(|attempt| attempt.accepted_by.as_ref()) {
            cancel(client, caller, node, id).await;
        }
        let answer = async {
            loop {
                // Never closed: the dispatch holds a sender itself.
                let Some(answer) = self.answers.recv().await else { continue };
                let Some(node) = answer.node else { continue };
                match answer.event {
                    // What each of them says is the outcome, be it that the run was over already.
                    Event::Outcome => {
                        if let Some(outcome) = self.read(node, &answer.payload).filter(|outcome| outcome.started_at.is_some()) {
                            let told = Traced { span: answer.span, ..Traced::default() };
                            return Dispatched { outcome, answered: Some((answer.attempt, answer.seq)), told };
                        }
                    }
                    Event::Accepted => cancel(client, caller, &node, id).await,
                    Event::Alive | Event::Progress => {}
                }
            }
        };
        let within = if under_way { CANCELLED_WITHIN } else { Duration::ZERO };
        tokio::time::timeout(within, answer).await.unwrap_or_else(|_elapsed| {
            let failure = Failure::new(FailureKind::Cancelled, "the job was cancelled before a node had answered");
            Dispatched { outcome: self.failed(failure), answered: None, told: Traced::default() }
        })
    }

    /// Asks the node that had begun once more, as long as a run may begin: what it said while only we were away, it said to nobody. If it is
    /// still at it, it drops the older run. Returns the number of the attempt.
    async fn ask_again(&mut self, running: u32) -> Option<u32> {
        let node = self.attempt(running)?.accepted_by.clone()?;
        if self.expired() || self.attempts.len() >= ATTEMPTS_MAX {
            return None;
        }
        Some(self.publish(&Destination::Node(node)).await)
    }

    /// Remembers that the node which had begun says nothing any more; or nothing but that it goes on, whatever the budget is.
    fn give_up(&mut self, running: u32, goes_on: bool) {
        let node = self.attempt(running).and_then(|attempt| attempt.accepted_by.clone());
        let who = node.as_ref().map_or_else(|| "the node".to_owned(), |node| format!("node {node}"));
        let (what, told) = if goes_on { ("goes on with it after its time", "endless") } else { ("then fell silent", "silent") };
        let lost = Failure::new(FailureKind::Lost, format!("{who} accepted the job and {what}"));
        self.tell(|| spans::answered(told, Some(running), node.as_ref().map(NodeId::as_str), None));
        self.refusal = Some(self.failed_at(node.as_ref(), lost));
        self.tried.extend(node);
    }

    /// The next thing that matters while waiting for `number` to be accepted; none when the connection goes.
    async fn next(&mut self, number: u32) -> Option<Step> {
        let mut link = self.link.clone();
        loop {
            let step = tokio::select! {
                step = self.next_of_any() => step,
                _ = link.wait_for(|state| !state.connected) => return None,
            };
            match step {
                Step::Over(over) if over != number => {}
                step => return Some(step),
            }
        }
    }

    async fn next_of_any(&mut self) -> Step {
        loop {
            // Never closed: the dispatch holds a sender itself.
            if let Some(answer) = self.answers.recv().await
                && let Some(step) = self.judge(*answer)
            {
                return step;
            }
        }
    }

    fn judge(&mut self, answer: Answer) -> Option<Step> {
        let number = answer.attempt;
        let Some(node) = answer.node else {
            self.nobody_since.get_or_insert_with(Instant::now);
            self.tell(|| spans::answered("no_responders", Some(number), None, None));
            self.attempt(number)?.over = true;
            return Some(Step::Over(number));
        };
        self.nobody_since = None;
        match answer.event {
            Event::Accepted | Event::Alive | Event::Progress => {
                if answer.event == Event::Accepted {
                    self.tell(|| spans::answered("accepted", Some(number), Some(node.as_str()), None));
                }
                let attempt = self.attempt(number)?;
                attempt.accepted_by = Some(node);
                (!attempt.over).then_some(Step::Running(number))
            }
            Event::Outcome => {
                self.attempt(number)?.over = true;
                let Some(outcome) = self.read(node.clone(), &answer.payload) else {
                    self.tried.push(node);
                    return Some(Step::Over(number));
                };
                if self.is_final(outcome.failure_kind()) {
                    (self.answered, self.told.span) = (Some((number, answer.seq)), answer.span);
                    return Some(Step::Final(Box::new(outcome)));
                }
                if is_about_this_node(outcome.failure_kind()) || outcome.failure_kind() == Some(FailureKind::Draining) {
                    self.refused.push(node.clone());
                }
                let failure = outcome.failure_kind().map(|kind| kind.to_string());
                self.tell(|| spans::answered("refused", Some(number), Some(node.as_str()), failure));
                self.tried.push(node);
                self.refusal = Some(outcome);
                Some(Step::Over(number))
            }
        }
    }

    fn read(&self, node: NodeId, payload: &[u8]) -> Option<Outcome> {
        self.broker.attested(self.run, node, payload)
    }

    /// Whether there is no point in asking another node, or the same one later.
    fn is_final(&self, failure: Option<FailureKind>) -> bool {
        let any_node = !matches!(self.run.to, Destination::Node(_));
        let Some(failure) = failure else { return true };
        match failure {
            // Cancelled: not by us, who would not listen any more; the agent stops, or it dropped an older attempt of this run.
            FailureKind::Busy | FailureKind::Cancelled => false,
            FailureKind::Draining | FailureKind::Denied | FailureKind::Unsupported => !any_node,
            FailureKind::Invalid
            | FailureKind::Expired
            | FailureKind::TimedOut
            | FailureKind::Unresolved
            | FailureKind::Limited
            | FailureKind::Internal
            | FailureKind::Unavailable
            | FailureKind::Lost => true,
        }
    }

    /// Cancels an attempt that began beside the one that is `kept`. On the same node the newer has replaced the older already, and a cancel would
    /// meet the one that is wanted.
    async fn cancel_attempt(&mut self, number: u32, kept: u32) {
        let kept_by = self.attempt(kept).and_then(|attempt| attempt.accepted_by.clone());
        let node = self.attempt(number).and_then(|attempt| {
            attempt.over = true;
            attempt.accepted_by.clone()
        });
        if let Some(node) = node.filter(|node| Some(node) != kept_by.as_ref()) {
            cancel(&self.broker.0.client, &self.broker.0.caller, &node, &self.run.request_id).await;
        }
    }
}
