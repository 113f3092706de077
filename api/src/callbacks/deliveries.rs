//! What became of callbacks, in bucket DELIVERIES.

use std::fmt;
use std::time::Duration;

use probeops_shared::ids::JobId;
use probeops_shared::problem::Code;
use probeops_shared::subjects::{ANY, REST, broker, storage};
use probeops_shared::timestamp::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::{Callbacks, Due, delivery_id};
use crate::access::Principal;
use crate::broker::last::{last_of_each, next_of};
use crate::jobs::{Jobs, owner};
use crate::problem::{Asked, Problem};

/// How many attempts are kept of a delivery.
const ATTEMPTS_MAX: usize = 20;
/// How many entries are read at once.
const READ_AT_ONCE: usize = 256;
/// How often a page is read on for; one that has found little until then is short, and says where to go on.
const READS_MAX: usize = 20;
/// How long the end of a job whose callback was delivered may take to be stored.
const STORED_WITHIN: Duration = Duration::from_secs(2);
/// When to look again whether it is.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// A callback, and what became of it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Delivery {
    /// Its id, which is its `webhook-id`.
    pub(crate) id: String,
    /// The job whose end it tells.
    pub(crate) job: JobId,
    /// Whose that is.
    pub(crate) caller: String,
    /// Where to, without the query.
    pub(crate) url: String,
    /// What became of it.
    pub(crate) status: DeliveryStatus,
    /// When its job ended.
    pub(crate) created_at: Timestamp,
    /// Until when it is tried.
    pub(crate) expires_at: Timestamp,
    /// How many attempts there were, since it was last asked for again.
    pub(crate) tries: u32,
    /// How often it was asked for again.
    pub(crate) replays: u32,
    /// The last 20 attempts, the newest last.
    pub(crate) attempts: Vec<Attempt>,
}

/// What became of a callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DeliveryStatus {
    /// It is tried.
    Pending,
    /// It was answered with 2xx.
    Delivered,
    /// It was answered with 410: nobody wants it.
    Gone,
    /// It was tried until its time was over.
    Expired,
    /// It cannot be sent any more: its job or its secret is gone.
    Failed,
}

impl DeliveryStatus {
    pub(crate) const ALL: [(&'static str, Self); 5] = [
        ("pending", Self::Pending),
        ("delivered", Self::Delivered),
        ("gone", Self::Gone),
        ("expired", Self::Expired),
        ("failed", Self::Failed),
    ];
}

/// One attempt.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Attempt {
    /// When it began.
    pub(crate) at: Timestamp,
    /// What it was answered with; absent when with nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<u16>,
    /// Why it was not answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// How long it took, in milliseconds.
    pub(crate) took_ms: f64,
    /// When the next one is; absent when it was the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) next_at: Option<Timestamp>,
}

impl Delivery {
    /// One that was not tried yet.
    pub(super) fn of(due: &Due) -> Self {
        Self {
            id: delivery_id(due.job),
            job: due.job,
            caller: due.caller.clone(),
            url: due.callback.url.to_string(),
            status: DeliveryStatus::Pending,
            created_at: due.finished_at,
            expires_at: due.expires_at,
            tries: 0,
            replays: due.replay,
            attempts: Vec::new(),
        }
    }

    /// The same, when it is asked for again: it is tried anew.
    pub(super) fn replayed(mut self, due: &Due) -> Self {
        if due.replay > self.replays {
            self.status = DeliveryStatus::Pending;
            (self.replays, self.tries, self.expires_at) = (due.replay, 0, due.expires_at);
        }
        self
    }

    /// Adds an attempt.
    pub(super) fn add(&mut self, attempt: Attempt) {
        self.tries = self.tries.saturating_add(1);
        if self.attempts.len() >= ATTEMPTS_MAX {
            self.attempts.remove(0);
        }
        self.attempts.push(attempt);
    }

    fn key(&self) -> String {
        format!("{}.{}", owner(&self.caller), self.id)
    }
}

/// What deliveries to list.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    /// Only that of this job.
    pub(crate) job: Option<JobId>,
    /// Only those of which this became.
    pub(crate) status: Option<DeliveryStatus>,
    /// How many at most.
    pub(crate) limit: usize,
    /// Only those after this place.
    pub(crate) cursor: u64,
}

impl Callbacks {
    /// Notes that a callback is in the queue. What is known of it already stays.
    pub(super) async fn announce(&self, due: &Due) {
        let delivery = Delivery::of(due);
        let value = serde_json::to_vec(&delivery).unwrap_or_default();
        if let Err(error) = self.0.deliveries.create(delivery.key(), value.into()).await {
            tracing::debug!(delivery = delivery.id, %error, "a delivery is known already, or could not be noted before its first attempt");
        }
    }

    /// What is known of a delivery; none when that is nothing.
    pub(super) async fn known(&self, due: &Due) -> Result<Option<Delivery>, String> {
        let value = self.0.deliveries.get(Delivery::of(due).key()).await.map_err(|error| error.to_string())?;
        Ok(value.and_then(|value| serde_json::from_slice(&value).ok()))
    }

    /// Keeps what became of a delivery. One that cannot be kept is delivered all the same.
    pub(super) async fn keep(&self, delivery: &Delivery) {
        let value = serde_json::to_vec(delivery).unwrap_or_default();
        if let Err(error) = self.0.deliveries.put(delivery.key(), value.into()).await {
            tracing::warn!(delivery = delivery.id, %error, "what became of a delivery could not be kept");
        }
    }

    /// A page of a principal's deliveries, those that changed last at the end, and where to go on. An admin sees everybody's.
    pub(crate) async fn deliveries(&self, principal: &Principal, filter: &Filter) -> Result<(Vec<Delivery>, Option<u64>), Problem> {
        let of = if principal.oversees() { ANY.to_owned() } else { owner(&principal.name) };
        let one = filter.job.map_or_else(|| REST.to_owned(), delivery_id);
        let subject = broker::bucket_key(storage::DELIVERIES, format!("{of}.{one}"));
        let (client, stream) = (self.0.jetstream.client(), broker::bucket_stream(storage::DELIVERIES));
        let (mut found, mut after) = (Vec::new(), filter.cursor);
        for _ in 0..READS_MAX {
            let (read, _more) = next_of(&client, &stream, &subject, after + 1, READ_AT_ONCE).await.map_err(|error| unavailable(&error))?;
            let Some(last) = read.last() else { return Ok((found, None)) };
            let end = last.sequence;
            for entry in &read {
                let Ok(delivery) = serde_json::from_slice::<Delivery>(&entry.payload) else { continue };
                if filter.status.is_none_or(|status| delivery.status == status) {
                    if found.len() == filter.limit {
                        return Ok((found, Some(after)));
                    }
                    found.push(delivery);
                }
                after = entry.sequence;
            }
            after = end;
        }
        Ok((found, Some(after)))
    }

    /// One of a principal's.
    pub(crate) async fn delivery(&self, principal: &Principal, id: &str) -> Result<Delivery, Problem> {
        self.found(principal, id).await.map(|(delivery, _)| delivery)
    }

    async fn found(&self, principal: &Principal, id: &str) -> Result<(Delivery, u64), Problem> {
        let shown: String = id.chars().take(64).collect();
        let missing = || Problem::new(Code::NotFound, format!("there is no delivery `{shown}` of yours; they are kept for seven days"));
        let job: Option<JobId> = id.strip_prefix("msg_").and_then(|job| job.parse().ok());
        let job = job.filter(|job| delivery_id(*job) == id).ok_or_else(missing)?;
        let subject = broker::bucket_key(storage::DELIVERIES, format!("{ANY}.{}", delivery_id(job)));
        let found = last_of_each(&self.0.jetstream.client(), &broker::bucket_stream(storage::DELIVERIES), &[subject]).await;
        let found = found.map_err(|error| unavailable(&error))?;
        let found = found.first().and_then(|last| Some((serde_json::from_slice::<Delivery>(&last.payload).ok()?, last.sequence)));
        let (delivery, revision) = found.ok_or_else(missing)?;
        if delivery.caller == principal.name || principal.oversees() {
            return Ok((delivery, revision));
        }
        // The answer is that of a delivery that never was; the trail knows better.
        Err(missing().asked(Asked { target: format!("delivery:{id}"), ..Asked::default() }))
    }

    /// Delivers one again that is over, under the same id.
    pub(crate) async fn replay(&self, principal: &Principal, id: &str, jobs: &Jobs) -> Result<Delivery, Problem> {
        jobs.charge(principal).await?;
        let (delivery, revision) = self.found(principal, id).await?;
        if delivery.status == DeliveryStatus::Pending {
            return Err(Problem::new(Code::Conflict, format!("delivery `{id}` is still tried; it can be asked for again when it is over")));
        }
        let gone = || Problem::new(Code::Conflict, format!("the job of delivery `{id}` is no longer kept, so there is nothing to deliver"));
        let mut stored = jobs.stored(delivery.job).await.map_err(|error| unavailable(&error))?.ok_or_else(gone)?;
        // A callback is queued before its job's end is stored, and may be delivered before it is.
        let begun = Instant::now();
        while !stored.state.document.status.is_over() {
            if begun.elapsed() > STORED_WITHIN {
                return Err(unavailable(&"the end of its job is not stored yet"));
            }
            sleep(LOOK_AGAIN_AFTER).await;
            stored = jobs.stored(delivery.job).await.map_err(|error| unavailable(&error))?.ok_or_else(gone)?;
        }
        let callback = stored.state.deliver.clone().ok_or_else(gone)?;
        let due = Due {
            job: delivery.job,
            caller: delivery.caller.clone(),
            status: stored.state.document.status,
            finished_at: delivery.created_at,
            expires_at: Timestamp::now().plus(callback.max_age()),
            replay: delivery.replays + 1,
            callback,
            document: stored.state.document.without_outcomes(),
        };
        self.check_room(&due.caller).await?;
        self.publish(&due).await.map_err(|error| unavailable(&error))?;
        let delivery = delivery.replayed(&due);
        let value = serde_json::to_vec(&delivery).unwrap_or_default();
        if self.0.deliveries.update(delivery.key(), value.into(), revision).await.is_err() {
            tracing::debug!(delivery = delivery.id, "it was tried before it could be noted that it is asked for again");
        }
        Ok(delivery)
    }
}

fn unavailable(error: &dyn fmt::Display) -> Problem {
    Problem::new(Code::Unavailable, format!("deliveries cannot be read or asked for now: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::callbacks::Callback;

    #[test]
    fn a_delivery_keeps_its_last_attempts_and_begins_anew_when_replayed() {
        let callback = Callback::parse(&serde_json::json!({"url": "https://a.example/x?secret"})).unwrap();
        let now = Timestamp::now();
        let mut due: Due = serde_json::from_value(serde_json::json!({
            "job": JobId::new(), "caller": "key:a", "callback": callback, "status": "finished", "finished_at": now, "expires_at": now,
            "replay": 0,
            "document": {
                "id": JobId::new(), "tool": "echo", "target": "x", "parameters": {}, "from": ["eu"], "caller": "key:a", "status": "finished",
                "created_at": now, "results": [],
            },
        }))
        .unwrap();
        let mut delivery = Delivery::of(&due);
        for status in 1..=25 {
            delivery.add(Attempt { at: now, status: Some(status), error: None, took_ms: 1.0, next_at: None });
        }
        assert_eq!((delivery.tries, delivery.attempts.len(), delivery.attempts[0].status), (25, 20, Some(6)));
        assert!(!serde_json::to_string(&delivery).unwrap().contains("secret"));
        delivery.status = DeliveryStatus::Delivered;
        assert_eq!(delivery.clone().replayed(&due).status, DeliveryStatus::Delivered, "the same message again changes nothing");
        due.replay = 1;
        let replayed = delivery.replayed(&due);
        assert_eq!((replayed.status, replayed.tries, replayed.replays), (DeliveryStatus::Pending, 0, 1));
    }
}
