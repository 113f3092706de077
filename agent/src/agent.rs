//! The life of an agent: start, serve, drain, stop.

mod entry;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::{Client, Subscriber};
use futures_util::StreamExt;
use probeops_nats::connect::{Credential, LinkEvent};
use probeops_nats::process::exit;
use probeops_shared::presence::PolicyReport;
use probeops_shared::subjects;
use probeops_shared::tools::Class;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use entry::identity;
use entry::{Access, connected};

use crate::capability;
use crate::clock::Clock;
use crate::config::Settings;
use crate::enroll::{self, Renewal};
use crate::executors::Context;
use crate::groups::{self, Advice, Groups};
use crate::health::Health;
use crate::here;
use crate::inbox::Inbox;
use crate::outbox::{Leaving, Outbox};
use crate::policy::keeper::{Follower, Keeper};
use crate::presence::Presence;
use crate::slots::Slots;
use crate::trail::Trail;
use crate::way::Way;
use crate::worker::Worker;

/// How often the slots are looked at.
const SLOTS_LOOKED_AT_EVERY: Duration = Duration::from_millis(50);
/// After leaving the groups, jobs still on their way arrive within this.
const STRAGGLERS_WITHIN: Duration = Duration::from_millis(500);
/// How long the last messages may take to leave.
const FLUSHED_WITHIN: Duration = Duration::from_secs(5);

/// Why an agent ended other than by being told to.
#[derive(Debug)]
pub enum AgentError {
    /// Something in the settings, the credential or the policy.
    Start(String),
    /// The broker does not accept the credential (any more).
    Revoked(String),
}

impl AgentError {
    /// The program's exit code for it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Start(_) => 1,
            Self::Revoked(_) => exit::REVOKED,
        }
    }
}

impl fmt::Display for AgentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(detail) | Self::Revoked(detail) => f.write_str(detail),
        }
    }
}

impl std::error::Error for AgentError {}

/// Runs an agent until `stop` is cancelled, and then drains it.
pub async fn run(settings: Settings, stop: CancellationToken) -> Result<(), AgentError> {
    let Some((settings, renewal)) = Box::pin(enroll::ready(settings, &stop)).await? else { return Ok(()) };
    let credential = Credential::read(&settings.creds).map_err(|error| AgentError::Start(error.to_string()))?;
    let (node, granted) = identity(&credential).map_err(AgentError::Start)?;
    let _here = here::take(&credential).inspect_err(|error| {
        tracing::warn!(node = %node.id, %error, "does another agent run here with the same credential? The broker takes two for a theft");
    });
    let clock = Arc::new(Clock::default());
    let trail = Trail::open(node.clone(), Arc::clone(&clock), settings.state.as_deref(), settings.spool_mib * 1024 * 1024);
    let trail = trail.map_err(AgentError::Start)?;
    let way = Way::open(settings.link(), &settings.proxies().map_err(AgentError::Start)?).await.map_err(AgentError::Start)?;
    let away_from = way.endpoints().into_iter().chain(settings.api().map_err(AgentError::Start)?).collect();
    let policy = Keeper::open(settings.policy.as_deref(), &settings.servers, away_from);
    let policy = policy.map_err(|error| AgentError::Start(error.to_string()))?;
    let follower = policy.follower().map_err(|error| AgentError::Start(format!("cannot listen to signals: {error}")))?;
    let context = Context::new(policy, &settings.resolvers).map_err(|error| AgentError::Start(error.to_string()))?;
    let context = context.with_engine(settings.icmp_engine).with_asn_zone(settings.asn_zone.as_deref());
    let (tools, unavailable) = capability::probe(&granted);
    for lacks in &unavailable {
        tracing::warn!(tool = %lacks.tool, "cannot run {}: {}; to grant it: {}", lacks.tool, lacks.missing, lacks.grant);
    }
    let health = Health::begin(settings.health_file.clone()).map_err(AgentError::Start)?;
    let Some((client, events)) = connected(&way, &node, renewal.as_ref(), &stop).await? else { return Ok(()) };
    let slots = Slots::new(&BTreeMap::from([(Class::Light, settings.slots_light), (Class::Probe, settings.slots_probe)]));
    let (outbox, to_carry) = Outbox::new(client.clone());
    let worker = Arc::new(Worker {
        node: node.clone(),
        tools: tools.clone(),
        unavailable,
        context,
        slots,
        clock,
        outbox: Arc::new(outbox),
        trail: trail.clone(),
        limits: Arc::default(),
        runs: Arc::default(),
        running: TaskTracker::new(),
        abort: CancellationToken::new(),
        draining: AtomicBool::new(false),
        unanswerable: AtomicU64::new(0),
    });
    trail.report("agent", format!("started, version {}; {}", probeops_shared::VERSION, trail.origin()));
    trail.report("policy", policy_words(&worker.context.policy().report()));
    let life = Life::begin(worker, client, to_carry, health, Duration::from_secs(settings.drain_timeout_s))
        .await
        .map_err(|error| AgentError::Start(format!("cannot subscribe: {error}")))?;
    life.follow_policy(follower);
    tracing::info!(node = %node.id, region = %node.region, tools = ?tools, "the agent is ready");
    let replaced = life.renew(renewal.clone());
    let access = Access::new(way.link().clone(), renewal);
    let lived = life.live((events, replaced), access, &stop).await;
    if let Err(error) = &lived {
        trail.report("agent", format!("ended: {error}"));
    }
    trail.close().await;
    way.close().await;
    lived
}

/// What the trail is told of the owner's policy, as the roster shows it.
fn policy_words(PolicyReport { summary, digest, error, .. }: &PolicyReport) -> String {
    let file = digest.as_ref().map_or_else(|| "no file".to_owned(), |digest| format!("sha256 {digest}"));
    match error {
        Some(error) => format!("the owner's file cannot be used, and the last good one ({file}) stays: {error}"),
        None => format!("in force ({file}): {summary}"),
    }
}

/// Everything that lives while the agent does.
struct Life {
    worker: Arc<Worker>,
    client: Client,
    presence: Arc<Presence>,
    groups: Groups,
    /// Owns the tasks that read subscriptions, beat and send the trail.
    tasks: TaskTracker,
    /// Ends them.
    end: CancellationToken,
    /// Sends the trail; told to end after the last record.
    trail: tokio::task::JoinHandle<()>,
    end_trail: CancellationToken,
    /// Carries answers to the connection.
    carry: tokio::task::JoinHandle<()>,
    end_carry: CancellationToken,
    drain_timeout: Duration,
}

impl Life {
    async fn begin(
        worker: Arc<Worker>,
        client: Client,
        to_carry: mpsc::Receiver<Leaving>,
        health: Health,
        drain_timeout: Duration,
    ) -> Result<Self, async_nats::SubscribeError> {
        let node = worker.node.clone();
        let (inbox, acknowledgements) = Inbox::open(client.clone(), Arc::clone(&worker.outbox), &node.id).await?;
        let inbox = Arc::new(inbox);
        let presence = Arc::new(Presence::new(Arc::clone(&worker), Arc::clone(&inbox), health));
        let groups = Groups::new(client.clone(), node.clone(), worker.tools.clone());
        let (tasks, end, end_trail) = (TaskTracker::new(), CancellationToken::new(), CancellationToken::new());
        let direct = client.subscribe(subjects::node_all(&node.id)).await?;
        let delivering = Arc::clone(&inbox);
        drop(tasks.spawn(async move { delivering.deliver(acknowledgements).await }));
        let (carrying, end_carry) = (Arc::clone(&worker.outbox), CancellationToken::new());
        let ended = end_carry.clone();
        let carry = tokio::spawn(async move { carrying.carry(to_carry, &ended).await });
        let (recording, ended) = (Arc::clone(&worker), end_trail.clone());
        let trail = tasks.spawn(async move { recording.trail.send(&inbox, &ended).await });
        let mut life = Self { worker, client, presence, groups, tasks, end, trail, end_trail, carry, end_carry, drain_timeout };
        life.read(direct, None);
        for class in Class::ALL {
            life.join(class).await;
        }
        let acknowledged = life.presence.hello().await;
        let (presence, end) = (Arc::clone(&life.presence), life.end.clone());
        drop(life.tasks.spawn(async move { presence.beat(acknowledged, &end).await }));
        Ok(life)
    }

    /// Takes the owner's policy as it is whenever it changes.
    fn follow_policy(&self, follower: Follower) {
        let (worker, presence, end) = (Arc::clone(&self.worker), Arc::clone(&self.presence), self.end.clone());
        drop(self.tasks.spawn(async move {
            let tell = |report: PolicyReport| {
                worker.trail.report("policy", policy_words(&report));
                presence.say_hello.notify_one();
            };
            worker.context.policy().follow(follower, tell, &end).await;
        }));
    }

    async fn join(&mut self, class: Class) {
        for (subscription, left) in self.groups.join(class).await {
            self.read(subscription, Some(left));
        }
    }

    /// Reads a subscription until it ends; one of a group ends when the group is left, after what is still on its way.
    fn read(&self, mut subscription: Subscriber, left: Option<tokio::sync::oneshot::Receiver<()>>) {
        let worker = Arc::clone(&self.worker);
        drop(self.tasks.spawn(async move {
            let (mut leaving, mut left, mut stragglers_until) = (false, left, Instant::now());
            loop {
                let message = match &mut left {
                    Some(word) if !leaving => tokio::select! {
                        message = subscription.next() => message,
                        _ = word => {
                            leaving = true;
                            stragglers_until = Instant::now() + STRAGGLERS_WITHIN;
                            groups::leave(&mut subscription).await;
                            continue;
                        }
                    },
                    Some(_) => tokio::time::timeout_at(stragglers_until.into(), subscription.next()).await.unwrap_or(None),
                    None => subscription.next().await,
                };
                let Some(message) = message else { return };
                worker.receive(message).await;
            }
        }));
    }

    /// Renews the credential, where the node enrolled, and says when there is another.
    fn renew(&self, renewal: Option<Renewal>) -> mpsc::Receiver<()> {
        let (replaced, told) = mpsc::channel(1);
        if let Some(renewal) = renewal {
            drop(self.tasks.spawn(renewal.keep(replaced, self.end.clone())));
        }
        told
    }

    async fn live(
        mut self,
        (mut events, mut replaced): (mpsc::Receiver<LinkEvent>, mpsc::Receiver<()>),
        mut access: Access,
        stop: &CancellationToken,
    ) -> Result<(), AgentError> {
        let mut slots_looked_at = tokio::time::interval(SLOTS_LOOKED_AT_EVERY);
        slots_looked_at.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut announced_draining = false;
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => if let Err(error) = self.on_event(event, &mut access).await {
                        self.end_carrying().await;
                        return Err(error);
                    },
                    None => return Err(AgentError::Start("the connection to the broker ended for good".to_owned())),
                },
                Some(()) = replaced.recv() => {
                    self.worker.trail.report("credential", access.held());
                    self.reconnect().await;
                }
                _ = slots_looked_at.tick() => {
                    self.look_at_slots().await;
                    if self.worker.draining.load(Ordering::Acquire) && !announced_draining {
                        announced_draining = true;
                        self.presence.say_hello.notify_one();
                    }
                }
                () = stop.cancelled() => {
                    self.drain().await;
                    return Ok(());
                }
            }
        }
    }

    /// Connects anew, with the credential that is there now. Answers on their way are kept until the broker has them.
    async fn reconnect(&self) {
        drop(tokio::time::timeout(FLUSHED_WITHIN, self.client.flush()).await);
        if let Err(error) = self.client.force_reconnect().await {
            tracing::error!("cannot connect with the new credential: {error}");
        }
    }

    async fn on_event(&mut self, event: LinkEvent, access: &mut Access) -> Result<(), AgentError> {
        match event {
            LinkEvent::Connected => {
                tracing::info!("connected to the broker");
                access.granted();
                self.worker.outbox.flush().await;
                self.presence.say_hello.notify_one();
            }
            LinkEvent::Disconnected => tracing::warn!("the connection to the broker is gone; trying to get it back"),
            LinkEvent::LameDuck => tracing::info!("the broker is about to stop; the client will find another or wait"),
            LinkEvent::Refused(why) => access.again(&why).await?,
            LinkEvent::Violation(text) => {
                tracing::error!(violations_total = probeops_nats::connect::violations_total(), "the broker forbade something: {text}");
            }
            LinkEvent::SlowConsumer => tracing::error!("jobs arrived faster than they could be read; some were lost"),
            LinkEvent::Other(text) => tracing::warn!("the connection says: {text}"),
        }
        Ok(())
    }

    async fn look_at_slots(&mut self) {
        let draining = self.worker.draining.load(Ordering::Acquire);
        for class in Class::ALL {
            if draining {
                self.groups.leave(class);
                continue;
            }
            match self.groups.judge(class, self.worker.slots.free(class), Instant::now()) {
                Advice::Stay => {}
                Advice::Leave => {
                    tracing::info!(class = class.as_str(), "full for long: leaving the groups until a slot is free");
                    self.groups.leave(class);
                }
                Advice::Join => self.join(class).await,
            }
        }
    }

    /// Leaves the groups, lets what runs end, says bye.
    async fn drain(mut self) {
        let running = self.worker.runs.len();
        tracing::info!(running, "stopping: no new jobs, what runs may end");
        self.worker.trail.report("agent", format!("told to stop; {running} runs may end"));
        self.worker.draining.store(true, Ordering::Release);
        self.end.cancel();
        for class in Class::ALL {
            self.groups.leave(class);
        }
        // Jobs that the broker has already sent here are answered `draining` by the readers, not dropped.
        tokio::time::sleep(STRAGGLERS_WITHIN).await;
        self.worker.running.close();
        if tokio::time::timeout(self.drain_timeout, self.worker.running.wait()).await.is_err() {
            tracing::warn!(cut = self.worker.runs.len(), "runs were cut short: the drain timeout is over");
            self.worker.abort.cancel();
            drop(tokio::time::timeout(STRAGGLERS_WITHIN, self.worker.running.wait()).await);
        }
        drop(tokio::time::timeout(FLUSHED_WITHIN, self.worker.outbox.emptied()).await);
        self.worker.trail.report("agent", format!("stops now; {} runs were cut short", self.worker.runs.len()));
        self.end_trail.cancel();
        drop(tokio::time::timeout(FLUSHED_WITHIN, &mut self.trail).await);
        self.presence.bye(&self.client).await;
        // What the readers have said meanwhile; after the next line nothing leaves any more.
        drop(tokio::time::timeout(FLUSHED_WITHIN, self.worker.outbox.emptied()).await);
        self.end_carrying().await;
        if tokio::time::timeout(FLUSHED_WITHIN, self.client.drain()).await.is_err() {
            tracing::warn!("the last messages may not have left");
        }
        self.tasks.close();
        drop(tokio::time::timeout(FLUSHED_WITHIN, self.tasks.wait()).await);
        tracing::info!("stopped");
    }

    /// Lets no more answers leave; those that have not left, or that nobody has confirmed, are named in the log.
    async fn end_carrying(&mut self) {
        self.end_carry.cancel();
        if let Err(error) = (&mut self.carry).await {
            tracing::error!(%error, "what carries answers has ended before");
        }
    }
}
