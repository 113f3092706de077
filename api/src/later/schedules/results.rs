//! What became of each firing: a pointer beside the jobs, in stream JOBS.

use std::time::Duration;

use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use futures_util::{StreamExt, stream};
use probeops_shared::subjects::{self, ANY, storage};
use probeops_shared::timestamp::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use super::{Last, Schedule, Schedules, Skipped, unavailable};
use crate::access::Principal;
use crate::broker::backwards::Backwards;
use crate::broker::last::last_of_each;
use crate::jobs::{JobDocument, Jobs, Stored, owner};
use crate::problem::{Problem, ProblemDocument};

/// How long they are kept, as jobs are.
pub(super) const KEPT: Duration = Duration::from_hours(24);
/// How many jobs are read at once.
const READ_AT_ONCE: usize = 16;

/// A page of what became of firings.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct ResultPage {
    /// The firings, newest first.
    pub(crate) results: Vec<Fired>,
    /// Give this as `cursor` to read on; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<String>,
}

/// What became of a firing: it became a job, it was skipped, or it was refused.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[expect(clippy::struct_field_names, reason = "it is what the answer says")]
pub(crate) struct Fired {
    /// When it was due.
    due: Timestamp,
    /// When it was taken.
    fired_at: Timestamp,
    /// Its job as it is now; absent where there is none, or it is no longer kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<JobDocument>,
    /// Why it was not to be run.
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<Skipped>,
    /// Why it could not be run.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<ProblemDocument>,
}

impl Schedules {
    /// Keeps what became of a firing. What is known of it already stays.
    pub(crate) async fn keep(&self, schedule: &Schedule, became: &Last) -> Result<(), String> {
        let payload = serde_json::to_vec(became).map_err(|error| error.to_string())?;
        let message = PublishMessage::build().payload(payload.into()).expected_last_subject_sequence(0);
        let subject = subjects::job_firing(owner(&schedule.caller), &schedule.id, became.due.unix_ms());
        let sent = self.jetstream.send_publish(subject, message).await.map_err(|error| error.to_string())?;
        match sent.await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Whether it is kept what became of a firing.
    pub(crate) async fn is_kept(&self, schedule: &Schedule, due: Timestamp) -> Result<bool, String> {
        let subject = subjects::job_firing(owner(&schedule.caller), &schedule.id, due.unix_ms());
        let found = last_of_each(&self.jetstream.client(), storage::JOBS, &[subject]).await?;
        Ok(!found.is_empty())
    }

    /// A page of what became of the firings of one of a principal's schedules, newest first.
    pub(crate) async fn results(
        &self,
        (principal, jobs): (&Principal, &Jobs),
        id: &str,
        (limit, cursor): (usize, Option<u64>),
    ) -> Result<ResultPage, Problem> {
        let schedule = self.find(principal, id).await?;
        let subject = subjects::job_firing(owner(&schedule.caller), &schedule.id, ANY);
        let read = Backwards::new(&self.jetstream, storage::JOBS, subject, cursor).await;
        let mut read = read.map_err(|error| unavailable(&error))?;
        let (mut found, mut next): (Vec<Last>, Option<u64>) = (Vec::new(), None);
        'pages: while let Some(messages) = read.next().await.map_err(|error| unavailable(&error))? {
            for message in messages {
                let Ok(became) = serde_json::from_slice::<Last>(&message.payload) else { continue };
                if found.len() == limit {
                    next = Some(message.sequence);
                    break 'pages;
                }
                found.push(became);
            }
        }
        let results = stream::iter(found).map(async |became: Last| {
            let job = match became.job {
                Some(id) => jobs.stored(id).await.map_err(|error| unavailable(&error))?.map(Stored::into_document),
                None => None,
            };
            let Last { due, fired_at, job: _, skipped, refused } = became;
            Ok(Fired { due, fired_at, job, skipped, refused })
        });
        let results: Vec<Result<Fired, Problem>> = results.buffered(READ_AT_ONCE).collect().await;
        Ok(ResultPage { results: results.into_iter().collect::<Result<_, Problem>>()?, next: next.map(|next| next.to_string()) })
    }
}
