//! Jobs that go on at another replica: followed through the stream, cancelled by a word to their replica.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt};
use probeops_shared::ids::{Caller, JobId, RequestId};
use probeops_shared::outcome::FailureKind;
use probeops_shared::presence::REPLICA_GONE_AFTER;
use probeops_shared::problem::Code;
use probeops_shared::subjects::{self, OfJob};
use tokio::time::{interval, timeout};

use super::live::Live;
use super::store::{RunEnd, State, Stored};
use super::{CANCELLED_WITHIN, FULL_RETRY_AFTER, JobDocument, Jobs};
use crate::problem::Problem;

/// How many jobs of other replicas are followed here at once; each has a consumer at the broker, shared by all who watch it.
const FOLLOWED_MAX: usize = 1_000;
/// How often it is looked whether anybody still watches.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often a replica that does not answer is told again, until it is gone.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(250);
/// What a replica is told when a job of its own is to end.
const CANCEL: &str = "cancel";

impl Jobs {
    /// A job that goes on at another replica, followed here.
    pub(super) fn elsewhere(&self, stored: &Stored) -> Result<Arc<Live>, Problem> {
        let (document, runs) = (stored.state.document.clone(), stored.state.runs.unwrap_or(1));
        let mut followed = self.0.elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(live) = followed.get(&document.id) {
            return Ok(Arc::clone(live));
        }
        if followed.len() >= FOLLOWED_MAX {
            let detail = format!("this replica follows {FOLLOWED_MAX} jobs of others and takes no more for the moment");
            return Err(Problem::new(Code::Unavailable, detail).retry_after(FULL_RETRY_AFTER));
        }
        let live = Live::elsewhere(document, runs);
        drop(followed.insert(live.document.id, Arc::clone(&live)));
        drop(followed);
        let (jobs, following) = (self.clone(), Arc::clone(&live));
        drop(tokio::spawn(async move {
            if let Err(error) = jobs.follow(&following).await {
                tracing::warn!(job.id = %following.document.id, %error, "a job of another replica cannot be followed");
            }
            drop(jobs.0.elsewhere.lock().unwrap_or_else(PoisonError::into_inner).remove(&following.document.id));
            following.leave_off();
        }));
        Ok(live)
    }

    /// Takes over what comes into the stream until the job is over or nobody watches.
    async fn follow(&self, live: &Live) -> Result<(), String> {
        let mut messages = self.0.store.follow(&live.document).await?;
        let mut look = interval(LOOK_EVERY);
        // The first tick is at once, before whoever asked has begun to watch.
        look.reset();
        loop {
            let message = tokio::select! {
                message = messages.next() => message.ok_or_else(|| "the stream has ended".to_owned())?,
                _ = look.tick() => {
                    if live.is_left() {
                        return Ok(());
                    }
                    continue;
                }
            };
            let message = message.map_err(|error| error.to_string())?;
            match subjects::parse_job(&message.subject) {
                Some((_, _, OfJob::Events(_))) => live.learn(&message.payload),
                Some((_, _, OfJob::Run(run))) => match serde_json::from_slice::<RunEnd>(&message.payload) {
                    Ok(end) => live.learn_end(run, &end),
                    Err(error) => return Err(format!("a stored outcome cannot be read: {error}")),
                },
                Some((_, id, OfJob::State)) => {
                    let state: State = serde_json::from_slice(&message.payload).map_err(|error| error.to_string())?;
                    if state.document.status.is_over() {
                        let stored = self.0.store.read(id).await?.ok_or_else(|| "the job is no longer kept".to_owned())?;
                        live.finish(stored.into_document().to_bytes());
                        return Ok(());
                    }
                }
                Some((_, _, OfJob::Late)) => {
                    live.learn_late(serde_json::from_slice(&message.payload).map_err(|error| error.to_string())?);
                }
                Some((_, _, OfJob::Open)) | None => {}
            }
        }
    }

    /// Tells the replica at which a job goes on to end it, and waits until it has. If that replica is gone, it is ended here.
    pub(super) async fn cancel_elsewhere(&self, stored: &Stored) -> Result<JobDocument, Problem> {
        let id = stored.state.document.id;
        let unavailable = |why: String| Problem::new(Code::Unavailable, format!("job `{id}` could not be cancelled: {why}"));
        let replica = stored.state.replica.as_ref().ok_or_else(|| unavailable("it is not known where it goes on".to_owned()))?;
        let live = self.elsewhere(stored)?;
        live.cancel.cancel();
        let mut watcher = live.watch(None);
        let gives_up = Instant::now() + REPLICA_GONE_AFTER + CANCELLED_WITHIN;
        let mut within = CANCELLED_WITHIN;
        loop {
            self.0.broker.tell_replica(replica, CANCEL, id).await.map_err(unavailable)?;
            if matches!(timeout(within, watcher.end()).await, Ok(Some(_))) {
                return Ok(live.document_now());
            }
            within = ASK_AGAIN_AFTER;
            let lease = self.0.broker.lease();
            if !lease.is_there(replica).await.map_err(unavailable)? {
                lease.steady().await;
                if !lease.is_there(replica).await.map_err(unavailable)? {
                    break;
                }
            }
            if Instant::now() > gives_up {
                return Err(unavailable(format!("replica {replica}, at which it goes on, does not answer")));
            }
        }
        for (run, node) in live.going_on() {
            let request_id = if live.runs() > 1 { RequestId::of_run(id, run) } else { id.into() };
            self.0.broker.cancel_run(&node, &request_id).await;
        }
        self.end_for_another(id, FailureKind::Cancelled).await.map_err(unavailable)?;
        let stored = self.0.store.read(id).await.map_err(unavailable)?;
        stored.map(Stored::into_document).ok_or_else(|| unavailable("it is no longer kept".to_owned()))
    }

    /// Whether a job of another replica is about to be cancelled here, which ends it as such even if that replica is gone.
    pub(super) fn is_cancelled_here(&self, id: JobId) -> bool {
        let followed = self.0.elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
        followed.get(&id).is_some_and(|live| live.cancel.is_cancelled())
    }

    /// Does what other replicas ask for.
    pub(super) async fn hear(&self, said: impl Stream<Item = (String, Caller, JobId)>) {
        let mut said = std::pin::pin!(said);
        while let Some((verb, from, id)) = said.next().await {
            match (verb.as_str(), self.live().get(&id)) {
                (CANCEL, Some(live)) => live.cancel.cancel(),
                (CANCEL, None) => tracing::debug!(%from, job.id = %id, "a job that is over was to be cancelled"),
                _ => tracing::warn!(%from, verb, "another replica asks for what this one does not know"),
            }
        }
    }
}
