//! Callbacks: a job's end told to whom its caller named, by Standard Webhooks.
//!
//! What is to be delivered waits in stream CALLBACKS, where a delay of its next attempt survives the end of any process; `deliver` takes it from
//! there. `guard` says whom it may be told, `client` tells it, `schedule` says when again, `sign` and `secrets` prove who says it,
//! `deliveries` is what became of it. The query of a callback's URL and the value of its header are secrets of the caller: they are stored, sent,
//! and shown nowhere.

mod client;
pub(crate) mod deliver;
pub(crate) mod deliveries;
pub(crate) mod guard;
pub(crate) mod hosts;
mod request;
mod schedule;
pub(crate) mod secrets;
mod sign;
mod url;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{Context, kv};
use probeops_shared::ids::JobId;
use probeops_shared::invalid::Invalid;
use probeops_shared::problem::Code;
use probeops_shared::subjects::{self, ANY, storage};
use probeops_shared::timestamp::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::access::Principal;
use crate::broker::Broker;
use crate::broker::room::filled;
use crate::callbacks::guard::Guard;
use crate::callbacks::secrets::Secrets;
use crate::jobs::{JobDocument, JobStatus, owner};
use crate::problem::Problem;

pub(crate) use client::{tls_connector, tls_connector_trusting};
pub(crate) use request::schema as request_schema;
pub use url::CallbackUrl;
pub(crate) use url::origin_of;

/// The longest that a callback may be tried, and as long as it is unless the caller says otherwise.
pub(crate) const MAX_AGE: Duration = Duration::from_hours(24);
/// What stands for the value of a header.
const HIDDEN: &str = "***";
/// When to try again to queue a callback.
const QUEUE_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// How many callbacks of one principal may wait.
const WAITING_MAX: u64 = 2_000;
/// When there may be room for more.
const ROOM_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// How long an API that stops goes on trying.
const QUEUED_WITHIN: Duration = Duration::from_secs(10);

/// Whom to tell the end of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Callback {
    /// Where.
    pub url: CallbackUrl,
    /// The secret that signs it; it is not signed where this is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_id: Option<String>,
    /// A header that is sent with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<StaticHeader>,
    /// How long it is tried.
    pub max_age_ms: u64,
    /// The span of the request that asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// A header of the caller's choice.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StaticHeader {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

impl fmt::Debug for StaticHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StaticHeader").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A callback as it is shown: without what only its receiver may know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Callback")]
pub struct CallbackView {
    /// The id of its delivery, which is its `webhook-id`.
    pub delivery: String,
    /// Where, without the query.
    pub url: String,
    /// The secret that signs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_id: Option<String>,
    /// The header that is sent with it; its value is `***`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<HeaderView>,
    /// How long it is tried, in milliseconds.
    pub max_age_ms: u64,
}

/// A header as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HeaderView {
    /// Its name.
    pub name: String,
    /// `***`.
    pub value: String,
}

impl Callback {
    /// As it is shown with a job.
    pub(crate) fn view(&self, job: JobId) -> CallbackView {
        CallbackView {
            delivery: delivery_id(job),
            url: self.url.to_string(),
            secret_id: self.secret_id.clone(),
            header: self.header.as_ref().map(|header| HeaderView { name: header.name.clone(), value: HIDDEN.to_owned() }),
            max_age_ms: self.max_age_ms,
        }
    }

    fn max_age(&self) -> Duration {
        Duration::from_millis(self.max_age_ms)
    }
}

/// The id of a job's delivery: the same at every attempt, whoever makes it and why.
pub(crate) fn delivery_id(job: JobId) -> String {
    format!("msg_{job}")
}

/// A callback in the queue.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Due {
    /// The job that is over.
    pub(crate) job: JobId,
    /// Whose it is.
    pub(crate) caller: String,
    /// Whom to tell.
    pub(crate) callback: Callback,
    /// How the job ended.
    pub(crate) status: JobStatus,
    /// When.
    pub(crate) finished_at: Timestamp,
    /// Until when it is tried.
    pub(crate) expires_at: Timestamp,
    /// How often it was asked for again.
    pub(crate) replay: u32,
    /// The job without what nodes found, for when its stream has forgotten it: whoever waits for its end is told of it all the same.
    pub(crate) document: JobDocument,
}

/// What delivers callbacks.
#[derive(Clone, Debug)]
pub struct Callbacks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    jetstream: Context,
    queue: PullConsumer,
    guard: Guard,
    secrets: Secrets,
    deliveries: kv::Store,
}

impl Callbacks {
    /// Finds the queue and the buckets.
    pub(crate) async fn start(broker: &Broker, guard: Guard) -> Result<Self, String> {
        let jetstream = broker.jetstream();
        let missing = |what: &str, error: &dyn fmt::Display| format!("{what} cannot be used: {error} (was the broker provisioned?)");
        let [usual, spare] = storage::DELIVER;
        let queue = match jetstream.get_consumer_from_stream(usual, storage::CALLBACKS).await {
            Ok(queue) => queue,
            Err(error) => {
                let spare = jetstream.get_consumer_from_stream(spare, storage::CALLBACKS).await;
                spare.map_err(|_neither| missing("stream CALLBACKS", &error))?
            }
        };
        let bucket = async |name: &'static str| jetstream.get_key_value(name).await.map_err(|error| missing(name, &error));
        let secrets = Secrets::new(jetstream.client(), bucket(storage::SECRETS).await?);
        let deliveries = bucket(storage::DELIVERIES).await?;
        Ok(Self(Arc::new(Inner { jetstream, queue, guard, secrets, deliveries })))
    }

    /// The secrets.
    pub(crate) fn secrets(&self) -> &Secrets {
        &self.0.secrets
    }

    /// Refuses a callback that could never be delivered: to where none may go, or signed with a secret that is not the caller's or not for there.
    pub(crate) async fn admit(&self, principal: &Principal, callback: &Callback) -> Result<(), Problem> {
        let refused = |pointer: &str, detail: String| {
            let invalid = Invalid::new(pointer, detail);
            Problem::new(Code::Forbidden, invalid.to_string()).at(invalid)
        };
        self.0.guard.check_form(&callback.url).map_err(|detail| refused("/callback/url", detail))?;
        self.check_room(&principal.name).await?;
        let Some(id) = &callback.secret_id else { return Ok(()) };
        let secret = self.0.secrets.find(&principal.name, id).await?;
        let Some(secret) = secret else {
            let detail = format!("there is no secret `{id}` of yours; /v1/secrets lists them");
            return Err(Problem::invalid(Invalid::new("/callback/secret_id", detail)));
        };
        if secret.origin != callback.url.origin() {
            let detail = format!("secret `{id}` signs only what goes to {}", secret.origin);
            return Err(refused("/callback/secret_id", detail));
        }
        Ok(())
    }

    /// Refuses one more callback where too many of this principal wait already, so that who calls back to where nobody answers holds up nobody else,
    /// and where the queue is about to be full, so that the end of a job does not have to wait for room.
    async fn check_room(&self, principal: &str) -> Result<(), Problem> {
        let unknown =
            |error: &dyn fmt::Display| Problem::new(Code::Unavailable, format!("the queue of callbacks cannot be looked at now: {error}"));
        let filter = subjects::callback(owner(principal), ANY);
        let filled = filled(&self.0.jetstream.client(), storage::CALLBACKS, &filter).await.map_err(|error| unknown(&error))?;
        if filled.subjects >= WAITING_MAX {
            let detail = format!(
                "{WAITING_MAX} callbacks of yours wait to be delivered, and no more are taken until some are; /v1/deliveries?status=pending lists them"
            );
            return Err(Problem::new(Code::RateLimited, detail).retry_after(ROOM_AGAIN_AFTER));
        }
        if filled.percent >= 90 {
            let detail = "the queue of callbacks is almost full; jobs without one are taken";
            return Err(Problem::new(Code::Unavailable, detail).retry_after(ROOM_AGAIN_AFTER));
        }
        Ok(())
    }

    /// Puts a callback into the queue and waits until it is stored there; false when it could not be until an API that stops must.
    pub(crate) async fn queue(&self, due: &Due, stopping: impl Fn() -> bool) -> bool {
        let mut stop_at = None;
        loop {
            let Err(error) = self.publish(due).await else { return true };
            tracing::warn!(job.id = %due.job, %error, "a callback could not be queued; trying again");
            if stopping() && Instant::now() > *stop_at.get_or_insert_with(|| Instant::now() + QUEUED_WITHIN) {
                tracing::error!(job.id = %due.job, "a callback could not be queued before this API stopped; its job stays unfinished");
                return false;
            }
            sleep(QUEUE_AGAIN_AFTER).await;
        }
    }

    async fn publish(&self, due: &Due) -> Result<(), String> {
        let id = delivery_id(due.job);
        let payload = serde_json::to_vec(due).map_err(|error| error.to_string())?;
        let message = PublishMessage::build().message_id(format!("{id}.{}", due.replay)).payload(payload.into());
        let sent =
            self.0.jetstream.send_publish(subjects::callback(owner(&due.caller), &id), message).await.map_err(|error| error.to_string())?;
        sent.await.map_err(|error| error.to_string())?;
        if due.replay == 0 {
            self.announce(due).await;
        }
        Ok(())
    }
}
