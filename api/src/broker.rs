//! The API's side of the broker: its connections, its answers, its dispatch. Nothing else of the API names the client library's connection.

pub(crate) mod backwards;
mod dispatch;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod idempotency;
pub(crate) mod last;
mod late;
mod lease;
mod pull;
mod replies;
pub(crate) mod room;
mod shares;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::{self, kv};
use async_nats::{Client, HeaderMap, Request, RequestErrorKind};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use probeops_nats::connect::{Credential, Link, LinkError, LinkEvent, backoff, connect, violations_total};
use probeops_nats::server::version;
use probeops_shared::ids::{Caller, JobId, NodeId, RequestId};
use probeops_shared::job::Verb;
use probeops_shared::problem::Code;
use probeops_shared::subjects::{self, storage};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::dispatch::Traced;
pub(crate) use self::dispatch::{Destination, Dispatched, Run, Spares, UsedNodes, Watched};
pub(crate) use self::idempotency::{Keys, Use, Used};
pub(crate) use self::late::LateAnswer;
pub(crate) use self::lease::Lease;
use self::replies::Replies;
pub(crate) use self::replies::{Heard, Listener};
pub(crate) use self::shares::Told;
use crate::access::services::Services;
use crate::audit::Audit;
use crate::collector::{Collector, Desk};
use crate::metrics::Metrics;
use crate::problem::Problem;
use crate::roster::Roster;
use crate::watch::{Change, watch};

/// How long the broker may take to answer a JetStream request.
const JETSTREAM_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a node may take to answer a control message.
const CONTROL_WITHIN: Duration = Duration::from_secs(2);

/// Where the broker is and the files that say who we are.
#[derive(Clone, Debug)]
pub struct Links {
    /// The broker's addresses.
    pub servers: Vec<String>,
    /// The authority that signed its certificate.
    pub ca: Option<PathBuf>,
    /// The folder with `api.creds`, `store.creds`, `collector.creds`, `acknowledger.creds`, `frontdoor.creds` and `auditor.creds`.
    pub creds: PathBuf,
}

/// Whether a connection is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LinkState {
    /// It is.
    pub(crate) connected: bool,
    /// Counts connections.
    pub(crate) epoch: u64,
}

/// Why a part of ours that was asked gave no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unanswered {
    /// It is not there.
    Nobody,
    /// It took too long.
    Late,
    /// The broker could not be asked.
    Broker(String),
}

/// The broker, as the API uses it.
#[derive(Clone, Debug)]
pub struct Broker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: Client,
    caller: Caller,
    /// Puts what is asked and done into the trail.
    recorder: jetstream::Context,
    jetstream: jetstream::Context,
    auditor: jetstream::Context,
    keys: kv::Store,
    nodes: kv::Store,
    services: kv::Store,
    idempotency: Keys,
    limits: kv::Store,
    lease: Lease,
    replies: Replies,
    /// What nodes say of runs that were over, until somebody reads it.
    late_answers: Mutex<Option<mpsc::Receiver<LateAnswer>>>,
    roster: Roster,
    /// Whether the roster has been told of all who were granted, and of all who are there.
    told: [CancellationToken; 2],
    /// What nodes know of the limits of services.
    shares: Told,
    link: watch::Receiver<LinkState>,
    /// The connection by which this replica keeps something in streams and buckets.
    store_link: watch::Receiver<LinkState>,
    links: Links,
}

impl Broker {
    /// Connects and begins to listen and to keep the roster; the tasks end with `stop`. Waits for the broker as long as it takes.
    pub(crate) async fn start(links: Links, roster: Roster, tasks: &TaskTracker, stop: &CancellationToken) -> Result<Self, String> {
        let credential = Credential::read(&links.link("api").creds).map_err(|error| error.to_string())?;
        let caller: Caller = credential.name.parse().map_err(|detail| format!("the API's credential names nobody: {detail}"))?;
        if !caller.is_api() {
            return Err(format!("the credential `{caller}` is not an API's; its name begins with api-"));
        }
        let (client, events) = links.connected("api", caller.as_str(), stop).await?;
        version::require(&client.server_info().version, "the broker").map_err(|error| error.to_string())?;
        let link = followed("api", events, tasks);
        let (store, store_events) = links.connected("store", &format!("{caller} store"), stop).await?;
        let store_link = followed("store", store_events, tasks);
        let (auditing, auditor_events) = links.connected("auditor", "auditor", stop).await?;
        drop(tasks.spawn(log_events("auditor", auditor_events)));
        let jetstream = patient(jetstream::with_prefix(store, subjects::broker::LENT));
        let bucket = async |name: &'static str| {
            jetstream
                .get_key_value(name)
                .await
                .map_err(|error| format!("bucket {name} cannot be used: {error} (was the broker provisioned?)"))
        };
        let (keys, nodes, presence) = (bucket(storage::KEYS).await?, bucket(storage::NODES).await?, bucket(storage::PRESENCE).await?);
        let idempotency = Keys::new(bucket(storage::IDEMPOTENCY).await?);
        let (limits, services) = (bucket(storage::LIMITS).await?, bucket(storage::SERVICES).await?);
        let lease = Lease::take(bucket(storage::REPLICAS).await?, caller.clone(), store_link.clone()).await;
        let lease = lease.map_err(|error| format!("bucket {} cannot be written: {error}", storage::REPLICAS))?;
        drop(tasks.spawn(lease.clone().keep(stop.clone())));
        let answers =
            client.subscribe(subjects::replies(&caller)).await.map_err(|error| format!("cannot subscribe to answers: {error}"))?;
        let (replies, late_answers) = Replies::new();
        let broker = Self(Arc::new(Inner {
            recorder: patient(jetstream::new(client.clone())),
            client,
            caller,
            jetstream,
            auditor: patient(jetstream::with_prefix(auditing, subjects::broker::LENT)),
            keys,
            nodes: nodes.clone(),
            services,
            idempotency,
            limits,
            lease,
            replies,
            late_answers: Mutex::new(Some(late_answers)),
            roster: roster.clone(),
            told: [CancellationToken::new(), CancellationToken::new()],
            shares: Told::default(),
            link,
            store_link: store_link.clone(),
            links,
        }));
        let mux = broker.clone();
        drop(tasks.spawn(async move { mux.0.replies.deliver(answers, &mux.0.caller, &mux.0.client).await }));
        let [granted_told, present_told] = broker.0.told.clone();
        let (granted, stopped) = (roster.clone(), stop.clone());
        let learn_grant = and_then(granted_told, move |change| granted.learn_grant(change));
        drop(tasks.spawn(watch(nodes, store_link.clone(), stopped, learn_grant)));
        let learn_presence = and_then(present_told, move |change| roster.learn_presence(change));
        drop(tasks.spawn(watch(presence, store_link, stop.clone(), learn_presence)));
        Ok(broker)
    }

    /// Begins to hear nodes; ends with `stop`.
    pub(crate) async fn hear_nodes(
        &self,
        (audit, metrics): (&Audit, &Metrics),
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<(), String> {
        let links = &self.0.links;
        let (collecting, collector_events) = links.connected("collector", "collector", stop).await?;
        let (acknowledger, acknowledger_events) = links.connected("acknowledger", "acknowledger", stop).await?;
        for (name, events) in [("collector", collector_events), ("acknowledger", acknowledger_events)] {
            drop(tasks.spawn(log_events(name, events)));
        }
        let (told, auditor) = (self.0.shares.clone(), self.0.auditor.client());
        let desk = Desk { told, auditor, audit: audit.clone(), metrics: metrics.clone() };
        let collector =
            Collector::new(collecting, acknowledger, desk).await.map_err(|error| format!("bucket PRESENCE cannot be written: {error}"))?;
        let events = collector.subscribe().await.map_err(|error| format!("cannot subscribe to nodes' events: {error}"))?;
        let stopped = stop.clone();
        drop(tasks.spawn(async move {
            tokio::select! {
                () = collector.collect(events) => {}
                () = stopped.cancelled() => {}
            }
        }));
        Ok(())
    }

    /// Begins to tell nodes what these services may ask them for; ends with `stop`.
    pub(crate) fn share_out(&self, services: &Services, tasks: &TaskTracker, stop: &CancellationToken) {
        let (all, changed) = (services.clone(), services.changed());
        // One that has the front door only is limited there.
        let direct = move || all.list().into_iter().filter(|grant| grant.revoked_at.is_none() && grant.direct()).collect();
        shares::start(&self.0.shares, (&self.0.client, &self.0.caller, &self.0.roster), (direct, changed), (tasks, stop));
    }

    /// Waits until the roster has been told of every node there was. Where there is none it is never told so: not longer than `at_most`.
    pub(crate) async fn roster_told(&self, at_most: Duration) {
        let [granted, present] = &self.0.told;
        drop(tokio::time::timeout(at_most, async { tokio::join!(granted.cancelled(), present.cancelled()) }).await);
    }

    /// Whether jobs can be taken now, or why not.
    pub fn ready(&self) -> Result<(), String> {
        let connected = |client: &Client| client.connection_state() == State::Connected;
        let both = connected(&self.0.client) && connected(&self.0.jetstream.client());
        both.then_some(()).ok_or_else(|| "the broker cannot be reached; the API keeps trying".to_owned())
    }

    /// Whether JetStream answers, or why not.
    pub async fn storage_ready(&self) -> Result<(), String> {
        self.ready()?;
        // Reading a key that cannot exist asks the same server, stream and permission as reading one that does.
        self.0.keys.get("readyz").await.map(drop).map_err(|error| format!("the broker's storage does not answer: {error}"))
    }

    /// Who this API is on the broker.
    pub fn caller(&self) -> &Caller {
        &self.0.caller
    }

    /// Bucket KEYS.
    pub fn keys(&self) -> kv::Store {
        self.0.keys.clone()
    }

    /// Bucket SERVICES.
    pub fn services(&self) -> kv::Store {
        self.0.services.clone()
    }

    /// Bucket NODES.
    pub(crate) fn nodes(&self) -> kv::Store {
        self.0.nodes.clone()
    }

    /// Where the broker is and who we are.
    pub(crate) fn links(&self) -> &Links {
        &self.0.links
    }

    /// The store's streams and buckets.
    pub fn jetstream(&self) -> jetstream::Context {
        self.0.jetstream.clone()
    }

    /// JetStream of the audit account, for writing.
    pub(crate) fn audit_recorder(&self) -> jetstream::Context {
        self.0.recorder.clone()
    }

    /// JetStream of the audit account, for reading.
    pub fn audit_reader(&self) -> jetstream::Context {
        self.0.auditor.clone()
    }

    /// What other replicas tell this one: what it is, who says so, and about which job.
    pub(crate) async fn replicas(&self) -> Result<impl Stream<Item = (String, Caller, JobId)> + use<>, String> {
        let messages = self.0.client.subscribe(subjects::replica_all(&self.0.caller)).await.map_err(|error| error.to_string())?;
        Ok(messages.filter_map(async |message| {
            let (verb, from) = subjects::parse_replica(&message.subject)?;
            let job = std::str::from_utf8(&message.payload).ok()?.parse().ok()?;
            Some((verb.to_owned(), from, job))
        }))
    }

    /// Which job was asked for by which key.
    pub(crate) fn idempotency(&self) -> &Keys {
        &self.0.idempotency
    }

    /// Bucket LIMITS.
    pub(crate) fn limits(&self) -> kv::Store {
        self.0.limits.clone()
    }

    /// That this replica is there, and which others are.
    pub(crate) fn lease(&self) -> &Lease {
        &self.0.lease
    }

    /// Tells a node to stop a run, whichever replica had asked for it.
    pub(crate) async fn cancel_run(&self, node: &NodeId, request_id: &RequestId) {
        replies::cancel(&self.0.client, &self.0.caller, node, request_id).await;
    }

    /// What nodes say of runs that were over; for one reader.
    pub(crate) fn late_answers(&self) -> Option<mpsc::Receiver<LateAnswer>> {
        self.0.late_answers.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Tells another replica something about a job.
    pub(crate) async fn tell_replica(&self, to: &Caller, verb: &str, job: JobId) -> Result<(), String> {
        let subject = subjects::replica(to, verb, &self.0.caller);
        self.0.client.publish(subject, job.to_string().into()).await.map_err(|error| error.to_string())
    }

    /// The connection over which nodes are asked and the trail is written.
    pub(crate) fn link(&self) -> watch::Receiver<LinkState> {
        self.0.link.clone()
    }

    /// The connection by which this replica keeps something in streams and buckets.
    pub(crate) fn store_link(&self) -> watch::Receiver<LinkState> {
        self.0.store_link.clone()
    }

    pub(crate) fn roster(&self) -> &Roster {
        &self.0.roster
    }

    /// Tells a node to take no new jobs, and waits until it says that it heard.
    pub async fn drain(&self, node: &NodeId) -> Result<(), Problem> {
        // Kept by a client that is not connected, it would drain the node long after we said that it cannot be done.
        self.ready().map_err(|why| Problem::new(Code::Unavailable, why))?;
        let subject = subjects::node_control(node, Verb::Drain.as_str(), &self.0.caller);
        let (sender, mut answers) = mpsc::channel(1);
        let waiting = self.0.replies.wait((1, Some(node.clone())), sender, None);
        let reply = subjects::reply(&self.0.caller, waiting.token(), subjects::NO_RESPONDERS);
        let sent = self.0.client.publish_with_reply_and_headers(subject, reply, HeaderMap::new(), Vec::new().into()).await;
        sent.map_err(|error| Problem::new(Code::Unavailable, format!("the broker could not be told: {error}")))?;
        match tokio::time::timeout(CONTROL_WITHIN, answers.recv()).await {
            Ok(Some(answer)) if answer.node.is_some() => Ok(()),
            Ok(Some(_)) => Err(Problem::new(Code::NoNodeAvailable, format!("node {node} is not connected"))),
            Ok(None) | Err(_) => {
                Err(Problem::new(Code::Unavailable, format!("node {node} did not answer within {} ms", CONTROL_WITHIN.as_millis())))
            }
        }
    }

    /// Asks a part of ours under this id, which is the same where the same is asked again, and waits for its one answer.
    pub(crate) async fn ask(&self, subject: String, (id, body): (&str, Vec<u8>), within: Duration) -> Result<Bytes, Unanswered> {
        // Kept by a client that is not connected, it would be done long after we said that it cannot be.
        self.ready().map_err(Unanswered::Broker)?;
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, id);
        let request = Request::new().payload(body.into()).headers(headers).timeout(Some(within));
        let answer = self.0.client.send_request(subject, request).await.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => Unanswered::Nobody,
            RequestErrorKind::TimedOut => Unanswered::Late,
            _ => Unanswered::Broker(format!("the broker could not be asked: {error}")),
        })?;
        Ok(answer.payload)
    }
}

impl Links {
    /// The link for one of our roles.
    pub(crate) fn link(&self, role: &str) -> Link {
        Link { servers: self.servers.clone(), ca: self.ca.clone(), creds: self.creds.join(format!("{role}.creds")) }
    }

    /// The name that a role's credential carries.
    fn name_of(&self, role: &str) -> Result<String, String> {
        Credential::read(&self.link(role).creds).map(|credential| credential.name).map_err(|error| error.to_string())
    }

    /// Connects a role, however long it takes.
    pub(crate) async fn connected(
        &self,
        role: &str,
        title: &str,
        stop: &CancellationToken,
    ) -> Result<(Client, mpsc::Receiver<LinkEvent>), String> {
        let link = self.link(role);
        let inbox = subjects::client_inbox(self.name_of(role)?);
        let mut attempt = 1;
        loop {
            match connect(&link, title, &inbox).await {
                Ok(connection) => return Ok(connection),
                Err(LinkError::Unreachable(why)) => {
                    let wait = backoff(attempt);
                    tracing::warn!(attempt, wait_ms = wait.as_millis(), "{why}");
                    tokio::select! {
                        () = tokio::time::sleep(wait) => attempt += 1,
                        () = stop.cancelled() => return Err("told to stop before the broker was there".to_owned()),
                    }
                }
                Err(error) => return Err(format!("{role}: {error}")),
            }
        }
    }
}

/// Learns a change, and says when it was the last of those that were there.
fn and_then(told: CancellationToken, learn: impl Fn(Change)) -> impl Fn(Change) {
    move |change| {
        let last = change.is_last();
        learn(change);
        if last {
            told.cancel();
        }
    }
}

fn patient(mut jetstream: jetstream::Context) -> jetstream::Context {
    jetstream.set_timeout(JETSTREAM_TIMEOUT);
    jetstream
}

/// Whether a connection is there, from now on.
fn followed(name: &'static str, mut events: mpsc::Receiver<LinkEvent>, tasks: &TaskTracker) -> watch::Receiver<LinkState> {
    let (state, link) = watch::channel(LinkState { connected: true, epoch: 1 });
    drop(tasks.spawn(async move {
        while let Some(event) = events.recv().await {
            match &event {
                LinkEvent::Connected => state.send_modify(|state| *state = LinkState { connected: true, epoch: state.epoch + 1 }),
                LinkEvent::Disconnected => state.send_modify(|state| state.connected = false),
                _ => {}
            }
            log_event(name, &event);
        }
    }));
    link
}

pub(crate) async fn log_events(name: &'static str, mut events: mpsc::Receiver<LinkEvent>) {
    while let Some(event) = events.recv().await {
        log_event(name, &event);
    }
}

fn log_event(connection: &str, event: &LinkEvent) {
    match event {
        LinkEvent::Connected => tracing::info!(connection, "connected to the broker"),
        LinkEvent::Disconnected => tracing::warn!(connection, "the connection to the broker is gone; trying to get it back"),
        LinkEvent::LameDuck => tracing::info!(connection, "the broker is about to stop"),
        LinkEvent::Refused(text) => tracing::error!(connection, "the broker does not accept the credential: {text}"),
        LinkEvent::Violation(text) => {
            tracing::error!(connection, violations_total = violations_total(), "the broker forbade something: {text}");
        }
        LinkEvent::SlowConsumer => tracing::error!(connection, "messages arrived faster than they could be read; some were lost"),
        LinkEvent::Other(text) => tracing::warn!(connection, "the connection says: {text}"),
    }
}
