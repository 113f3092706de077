//! The HTTP service: a question in, a job out to the broker, its outcome back.
//!
//! # Layout
//! - [`config`]: what the operator may set. [`server`]: the listener, TLS, limits. `routes`: one file a resource. [`openapi`]: the document.
//! - [`access`]: who asks and what he may. [`problem`]: the only file that picks a status.
//! - [`broker`]: connections and dispatch. [`jobs`]: jobs and their documents. [`roster`]: who is there. `collector`: what nodes say.
//! - [`enroll`]: how nodes come by their credentials.
//! - `door`: the same for services that ask over NATS.
//! - `later`: what is done when nobody waits for it any more.
//! - [`limits`]: what principals and nodes have left, over all replicas.
//! - [`callbacks`]: telling the end of jobs to whom their callers name.
//! - [`audit`]: the trail. [`metrics`]: what is counted. [`trace`]: spans. `watch`: buckets held in memory. [`keymaster`], `revocation`: making credentials, and taking them back.

pub mod access;
pub mod audit;
pub mod broker;
pub mod callbacks;
mod collector;
pub mod config;
mod door;
pub mod enroll;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod jobs;
pub mod keymaster;
pub(crate) mod later;
pub mod limits;
pub mod metrics;
pub mod openapi;
pub mod problem;
pub mod program;
mod revocation;
pub mod roster;
pub mod routes;
pub mod server;
pub mod trace;
mod watch;

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::Access;
use crate::audit::Audit;
use crate::broker::Broker;
use crate::callbacks::Callbacks;
use crate::callbacks::guard::Guard;
use crate::config::Settings;
use crate::door::Door;
use crate::enroll::Enroll;
use crate::jobs::{Ending, Jobs};
use crate::keymaster::Keymaster;
use crate::later::firing::Firings;
use crate::later::schedules::Schedules;
use crate::limits::changes::Changes;
use crate::metrics::Metrics;
use crate::roster::Roster;
use crate::trace::Tracer;

/// Everything a handler needs.
#[derive(Clone, Debug)]
pub struct App {
    /// The broker.
    pub broker: Broker,
    /// Who is there.
    pub roster: Roster,
    /// Who signs credentials.
    pub keymaster: Keymaster,
    /// Jobs.
    pub jobs: Jobs,
    /// Callbacks.
    pub callbacks: Callbacks,
    /// Schedules.
    pub(crate) schedules: Schedules,
    /// Who may what.
    pub access: Access,
    /// How nodes come by their credentials.
    pub(crate) enroll: Enroll,
    /// How many changes one makes.
    pub(crate) changes: Changes,
    /// The trail.
    pub audit: Audit,
    /// What is counted.
    pub metrics: Metrics,
}

/// How long what is still to be written may take when the API stops.
const WRITTEN_WITHIN: Duration = Duration::from_secs(10);

/// Runs an API until `stop` is cancelled; then lets what runs end.
pub async fn run(settings: Settings, stop: CancellationToken) -> Result<(), String> {
    let (tasks, writers, ended) = (TaskTracker::new(), TaskTracker::new(), CancellationToken::new());
    // Bound first: a port in use is known before the broker is asked for anything.
    let listener = server::Listener::bind(&settings.listen).await?;
    let roster = Roster::default();
    let Some(broker) = stop.run_until_cancelled(Box::pin(Broker::start(settings.links.clone(), roster.clone(), &tasks, &ended))).await
    else {
        return Ok(());
    };
    let broker = broker?;
    let metrics = Metrics::new()?;
    let access = Access::start(&broker, (settings.jwt.as_ref(), settings.links.ca.as_deref(), &metrics), &tasks, &ended)?;
    broker.share_out(access.services(), &tasks, &ended);
    let audit = Audit::start(&broker, (settings.audit, &metrics), &writers, &ended);
    let Some(heard) = stop.run_until_cancelled(Box::pin(broker.hear_nodes((&audit, &metrics), &tasks, &ended))).await else {
        return Ok(());
    };
    heard?;
    let keymaster = Keymaster::new(&broker);
    let enroll = Enroll::start((&broker, &keymaster, access.keyring()), &audit, settings.nodes, (&tasks, &ended)).await?;
    let scheme = if settings.listen.tls.is_some() { "https" } else { "http" };
    let ending = Ending { tasks: &writers, stop: &ended };
    let tracer = Tracer::start(settings.traces, (broker.caller().as_str(), scheme), &metrics, ending);
    let guard = Guard::new(settings.callback_allow, &settings.links.servers, listener.address())?;
    let callbacks = Callbacks::start(&broker, guard).await?;
    let jobs = Jobs::start(broker.clone(), audit.clone(), (callbacks.clone(), metrics.clone(), tracer), ending).await?;
    drop(writers.spawn(callbacks::deliver::deliver(callbacks.clone(), jobs.clone(), broker.clone(), writers.clone(), ended.clone())));
    drop(writers.spawn(jobs.clone().take_queued(access.clone(), stop.child_token())));
    let schedules = Schedules::start(&broker).await?;
    let firings = Firings { schedules: schedules.clone(), jobs: jobs.clone(), access: access.clone(), audit: audit.clone() };
    firings.start(&broker, Ending { tasks: &writers, stop: &ended }).await?;
    let Some(door) = stop.run_until_cancelled(Box::pin(Door::connect(&broker, &tasks, &ended))).await else { return Ok(()) };
    let door = door?;
    let app = App {
        broker,
        keymaster,
        roster,
        jobs: jobs.clone(),
        callbacks,
        schedules,
        access,
        enroll,
        changes: Changes::new(),
        audit,
        metrics,
    };
    let closing = stop.child_token();
    let door = tokio::spawn(door.serve(app.clone(), closing.clone()));
    let served = listener.serve(routes::router(app), stop).await;
    closing.cancel();
    tracing::info!("stopping: no new requests, jobs that run may end");
    // Whoever knocked is answered at the end of his job.
    let (_, ()) = tokio::join!(door, jobs.finish());
    ended.cancel();
    writers.close();
    if tokio::time::timeout(WRITTEN_WITHIN, writers.wait()).await.is_err() {
        tracing::error!("not everything could be written before the API stopped");
    }
    served
}
