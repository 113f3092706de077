//! Somebody who asks one agent for many jobs, straight over the broker.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use async_nats::{Client, Subscriber};
use futures_util::StreamExt;
use probeops_nats::permissions::Role;
use probeops_shared::subjects;
use probeops_shared::timestamp::Timestamp;
use probeops_tests::fabric::Fabric;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

/// The agent's id.
pub(crate) const NODE: &str = "bench-1";
/// The asker's name: a replica's of the API, whom nodes do not limit.
const NAME: &str = "api-bench";
/// How long after the last answer, or after having asked, another must come.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);

/// A job to ask for.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) tool: &'static str,
    pub(crate) target: String,
    pub(crate) parameters: Value,
}

/// What it came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Done {
    pub(crate) job: usize,
    pub(crate) outcome: Value,
}

/// Asks, and hears of everything that it has asked for.
pub(crate) struct Asker {
    client: Client,
    inbox: String,
    answers: Subscriber,
    asked: usize,
}

/// Acknowledges what the agent records: one whose records nobody takes is soon busy.
fn acknowledge(fabric: &Fabric) -> anyhow::Result<()> {
    let name = "collector-bench".parse().map_err(anyhow::Error::msg)?;
    let hearing = fabric.connect(&fabric.credential(&Role::Collector { name }));
    let answering = fabric.connect(&fabric.credential(&Role::Acknowledger));
    fabric.block_on(async {
        let mut events = hearing.queue_subscribe(subjects::events(), subjects::COLLECTOR_QUEUE.to_owned()).await?;
        drop(tokio::spawn(async move {
            while let Some(event) = events.next().await {
                let ack = json!({"time_unix_ms": Timestamp::now().unix_ms()}).to_string();
                if let Some(reply) = event.reply
                    && answering.publish(reply, ack.into()).await.is_err()
                {
                    return;
                }
            }
        }));
        Ok(())
    })
}

impl Asker {
    /// With a credential of its own.
    pub(crate) fn new(fabric: &Fabric) -> anyhow::Result<Self> {
        let caller = NAME.parse().map_err(anyhow::Error::msg)?;
        let client = fabric.connect(&fabric.credential(&Role::Api { caller }));
        let inbox = format!("_INBOX.{NAME}.{:032x}", rand::random::<u128>());
        let answers = fabric.block_on(client.subscribe(format!("{inbox}.*")))?;
        acknowledge(fabric)?;
        Ok(Self { client, inbox, answers, asked: 0 })
    }

    /// Asks for all of them, evenly over a while; what they came to, in the order of the jobs.
    pub(crate) async fn all(&mut self, jobs: &[Job], over: Duration) -> anyhow::Result<Vec<Value>> {
        let first = self.asked;
        self.ask_all(jobs, over).await?;
        let mut outcomes = HashMap::new();
        while outcomes.len() < jobs.len() {
            let done = self.next().await?;
            outcomes.insert(done.job - first, done.outcome);
        }
        (0..jobs.len()).map(|job| outcomes.remove(&job).context("an outcome is missing")).collect()
    }

    /// Asks for all of them, evenly over a while, and does not wait.
    pub(crate) async fn ask_all(&mut self, jobs: &[Job], over: Duration) -> anyhow::Result<()> {
        let started = Instant::now();
        for (index, job) in jobs.iter().enumerate() {
            let due = over.mul_f64(fraction(index, jobs.len()));
            // Timers tick by the millisecond.
            if due > started.elapsed() + Duration::from_millis(1) {
                self.client.flush().await?;
                tokio::time::sleep_until(started + due).await;
            }
            self.ask(job).await?;
        }
        self.client.flush().await?;
        Ok(())
    }

    /// Keeps so many jobs under way for a while; how many were done. `is_right` looks at every report.
    pub(crate) async fn keep(
        &mut self,
        job: impl Fn(usize) -> Job,
        under_way: usize,
        duration: Duration,
        is_right: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<usize> {
        let ends = Instant::now() + duration;
        for _ in 0..under_way {
            self.ask(&job(self.asked)).await?;
        }
        let (mut waiting, mut done) = (under_way, 0);
        while waiting > 0 {
            let outcome = self.next().await?.outcome;
            ensure!(outcome["status"] == "success" && is_right(&outcome["report"]), "not what was asked for: {outcome}");
            (waiting, done) = (waiting - 1, done + 1);
            if Instant::now() < ends {
                self.ask(&job(self.asked)).await?;
                waiting += 1;
            }
        }
        Ok(done)
    }

    /// Asks for all of them, evenly over a while, and meanwhile for the others again and again; what the first came to, and how many others
    /// were done.
    pub(crate) async fn beside(&mut self, jobs: &[Job], over: Duration, others: &[Job]) -> anyhow::Result<(Vec<Value>, usize)> {
        let first = self.asked;
        self.ask_all(jobs, over).await?;
        for other in others {
            self.ask(other).await?;
        }
        let (mut outcomes, mut under_way, mut done_of_others) = (HashMap::new(), others.len(), 0);
        while outcomes.len() < jobs.len() || under_way > 0 {
            let done = self.next().await?;
            if let Some(job) = done.job.checked_sub(first).filter(|job| *job < jobs.len()) {
                outcomes.insert(job, done.outcome);
                continue;
            }
            ensure!(done.outcome["status"] == "success", "not what was asked for: {}", done.outcome);
            (under_way, done_of_others) = (under_way - 1, done_of_others + 1);
            if let Some(other) = others.get(done_of_others % others.len()).filter(|_| outcomes.len() < jobs.len()) {
                self.ask(other).await?;
                under_way += 1;
            }
        }
        let outcomes = (0..jobs.len()).map(|job| outcomes.remove(&job).context("an outcome is missing")).collect::<anyhow::Result<_>>()?;
        Ok((outcomes, done_of_others))
    }

    /// Whether an answer has come already.
    pub(crate) async fn next_within(&mut self, patience: Duration) -> Option<Done> {
        timeout(patience, self.next()).await.ok()?.ok()
    }

    /// The next outcome.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Done> {
        let message = timeout(ANSWERED_WITHIN, self.answers.next()).await.context("no answer any more")?.context("the broker is gone")?;
        if let Some(status) = message.status {
            bail!("the broker says {status}");
        }
        let outcome: Value = serde_json::from_slice(&message.payload)?;
        let job = outcome["request_id"].as_str().and_then(|id| id.strip_prefix("b-")).context("an answer to nothing of ours")?.parse()?;
        Ok(Done { job, outcome })
    }

    async fn ask(&mut self, job: &Job) -> anyhow::Result<()> {
        let Job { tool, target, parameters } = job;
        let body = json!({"request_id": format!("b-{}", self.asked), "tool": tool, "target": target, "parameters": parameters});
        let subject = format!("node.v1.{NODE}.job.{tool}.{NAME}");
        self.asked += 1;
        Ok(self.client.publish_with_reply(subject, format!("{}._", self.inbox), body.to_string().into()).await?)
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a benchmark")]
fn fraction(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}

/// An address of the peer's.
pub(crate) fn address(index: usize) -> String {
    format!("10.78.{}.{}", index >> 8 & 255, index & 255)
}
