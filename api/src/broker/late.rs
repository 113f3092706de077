//! Attempts whose run is over, for what their nodes may still have to say: a node that was cut off sends what it found when it is back.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use probeops_shared::ids::{NodeId, ReplyToken};
use probeops_shared::job::GRACE;
use probeops_shared::traceparent::Traceparent;
use tokio::sync::mpsc;

use super::dispatch::Run;

/// How many attempts are remembered; the oldest go first.
const ATTEMPTS_MAX: usize = 20_000;
/// How many late answers wait to be read; a late one more is dropped.
const ANSWERS_MAX: usize = 256;

/// What a node said of a run that was over.
#[derive(Debug)]
pub(crate) struct LateAnswer {
    /// The run.
    pub(crate) run: Arc<Run>,
    /// Which dispatch of it.
    pub(crate) attempt: u32,
    /// Which node, attested by the broker.
    pub(crate) node: NodeId,
    /// The outcome as it wrote it.
    pub(crate) payload: Bytes,
    /// The node's span, where it names one.
    pub(crate) span: Option<Traceparent>,
}

/// The attempts that are remembered.
#[derive(Debug)]
pub(crate) struct Late {
    attempts: Mutex<Attempts>,
    found: mpsc::Sender<LateAnswer>,
}

#[derive(Debug, Default)]
struct Attempts {
    open: HashMap<ReplyToken, Open>,
    /// In the order in which they came; some may have been answered since.
    order: VecDeque<ReplyToken>,
}

#[derive(Debug)]
struct Open {
    run: Arc<Run>,
    attempt: u32,
    /// The node that was asked, where it was one.
    asked: Option<NodeId>,
    until: Instant,
}

impl Late {
    /// None, and where what is late will be read.
    pub(crate) fn new() -> (Self, mpsc::Receiver<LateAnswer>) {
        let (found, answers) = mpsc::channel(ANSWERS_MAX);
        (Self { attempts: Mutex::default(), found }, answers)
    }

    /// Remembers an attempt without an answer for as long as its node keeps what it has to say.
    pub(crate) fn remember(&self, token: ReplyToken, (attempt, asked): (u32, Option<NodeId>), run: &Arc<Run>) {
        let mut attempts = self.lock();
        while let Some(oldest) = attempts.order.front().copied() {
            let lasts = attempts.open.get(&oldest).is_some_and(|open| open.until > Instant::now());
            if lasts && attempts.order.len() < ATTEMPTS_MAX {
                break;
            }
            drop((attempts.order.pop_front(), attempts.open.remove(&oldest)));
        }
        attempts.order.push_back(token);
        let until = Instant::now() + run.budget + GRACE;
        drop(attempts.open.insert(token, Open { run: Arc::clone(run), attempt, asked, until }));
    }

    /// Passes on an outcome, if its attempt is one of these and no other node was asked.
    pub(crate) fn hear(&self, token: ReplyToken, node: NodeId, payload: Bytes, span: Option<Traceparent>) -> bool {
        let mut attempts = self.lock();
        if attempts.open.get(&token).is_none_or(|open| open.asked.as_ref().is_some_and(|asked| *asked != node)) {
            return false;
        }
        let Some(Open { run, attempt, .. }) = attempts.open.remove(&token) else { return false };
        drop(attempts);
        self.found.try_send(LateAnswer { run, attempt, node, payload, span }).is_ok()
    }

    fn lock(&self) -> MutexGuard<'_, Attempts> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use probeops_shared::ids::RequestId;
    use probeops_shared::timestamp::Timestamp;
    use probeops_shared::tools::ToolName;

    use super::*;
    use crate::broker::dispatch::Destination;

    #[test]
    fn attempts_are_remembered_up_to_a_bound_and_answered_once() {
        let run = Arc::new(Run {
            request_id: RequestId::new(),
            tool: ToolName::Echo,
            target: String::new(),
            message: Bytes::new(),
            to: Destination::Region("eu".parse().unwrap()),
            principal: String::new(),
            targets: None,
            trace: None,
            deadline: Timestamp::now(),
            budget: Duration::from_secs(1),
            ends_by: None,
        });
        let (late, mut answers) = Late::new();
        let tokens: Vec<ReplyToken> = (0..=ATTEMPTS_MAX).map(|_| ReplyToken::new()).collect();
        for token in &tokens {
            late.remember(*token, (1, Some("n".parse().unwrap())), &run);
        }
        assert_eq!(late.lock().order.len(), ATTEMPTS_MAX);
        let heard_from = |node: &str, token: ReplyToken| late.hear(token, node.parse().unwrap(), Bytes::new(), None);
        let heard = |token: ReplyToken| heard_from("n", token);
        assert!(!heard(tokens[0]), "the oldest had to go");
        assert!(!heard_from("m", tokens[1]), "another was asked");
        assert!(heard(tokens[1]) && !heard(tokens[1]));
        assert_eq!(answers.try_recv().unwrap().attempt, 1);
        assert!(answers.try_recv().is_err());
    }
}
