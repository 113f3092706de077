//! Many jobs in one call: each is taken or refused for itself.

use std::borrow::Cow;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::future::join_all;
use probeops_shared::access::Scope;
use probeops_shared::bounded::shown;
use probeops_shared::invalid::Invalid;
use probeops_shared::json;
use probeops_shared::problem::Code;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::App;
use crate::access::Principal;
use crate::audit::Refusal;
use crate::jobs::{Came, How, JobDocument, Submitted};
use crate::limits::Allowance;
use crate::openapi::job_request_schema;
use crate::problem::{Problem, ProblemDocument, success};
use crate::routes::body::JsonBody;
use crate::routes::frame::CurrentRequest;
use crate::routes::guard::Who;
use crate::routes::idempotency;
use crate::routes::jobs::{JOB_FIELDS, asked, prepared};
use crate::routes::operation::{Answer, Needs, Operation, Parameter, Route, schema};
use crate::routes::prefer::{Form, PREFERENCE_APPLIED, Prefer};

/// How many jobs one call may hold.
const JOBS_MAX: usize = 100;
/// The way and what it is called in the trail.
const PATH: &str = "/v1/jobs/batch";

static HEADERS: [Parameter; 1] = [Parameter::new(
    "Prefer",
    "How long to wait (RFC 7240): `wait=N` seconds, at most 60; otherwise nothing is waited for.",
    schema::<String>,
)];

/// What became of the jobs of a batch.
#[derive(Debug, Serialize, JsonSchema)]
struct Batch {
    /// One for each job, in their order.
    results: Vec<Entry>,
}

/// What became of one job of a batch.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "BatchEntry")]
struct Entry {
    /// Which one, from 0.
    index: usize,
    /// The status that the job would have been answered with on its own.
    status: u16,
    /// The job, finished (200) or as far as it is (202).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<JobDocument>")]
    job: Option<Box<RawValue>>,
    /// Why there is no job.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<ProblemDocument>,
}

pub(super) fn operations() -> Vec<Operation> {
    vec![Operation {
        route: Route::post(PATH, submit),
        needs: Needs::Scope(&[Scope::JobsWrite]),
        id: "runJobs".into(),
        summary: "Run many jobs".into(),
        description: "Takes or refuses each job for itself, as if it had been posted alone: one that is wrong keeps no other from running. \
                      Jobs are answered as they have begun; `Prefer: wait=N` waits for them. Each takes its runs from your rate, and may have \
                      an `idempotency_key` of its own.",
        query: Cow::Borrowed(&[]),
        headers: &HEADERS,
        body: Some(batch_schema),
        answers: vec![Answer::json(success::DONE, "What became of each.", schema::<Batch>)],
        problems: &[Code::Unavailable],
    }]
}

fn batch_schema(schemas: &mut SchemaGenerator) -> Schema {
    let job = job_request_schema(schemas);
    let jobs = serde_json::json!({"type": "array", "minItems": 1, "maxItems": JOBS_MAX, "items": job});
    let schema = serde_json::json!({"type": "object", "required": ["jobs"], "additionalProperties": false, "properties": {"jobs": jobs}});
    Schema::try_from(schema).unwrap_or_default()
}

async fn submit(
    State(app): State<App>,
    Who(principal): Who,
    CurrentRequest(id): CurrentRequest,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let jobs = jobs(&body).map_err(Problem::invalid)?;
    if idempotency::key(&headers)?.is_some() {
        let detail = "header Idempotency-Key: cannot name several jobs; give each its own `idempotency_key`";
        return Err(Problem::new(Code::Invalid, detail));
    }
    let prefer = Prefer::read(&headers)?;
    let wait = if prefer.applied().is_some() { prefer.wait() } else { Duration::ZERO };
    let each = jobs.into_iter().enumerate().map(async |(index, job)| {
        let done = one(&app, &principal, &headers, job, wait).await.map_err(|problem| problem.below(&format!("/jobs/{index}")));
        if let Err(problem) = &done {
            app.audit.refused(&Refusal { principal: Some(&principal.name), request_id: &id, request: &format!("POST {PATH}"), problem });
        }
        entry(index, done, &id)
    });
    let (results, allowances): (Vec<Entry>, Vec<Option<Allowance>>) = join_all(each).await.into_iter().unzip();
    let mut response = Json(Batch { results }).into_response();
    let said = response.headers_mut();
    if let Some(applied) = prefer.applied() {
        said.insert(PREFERENCE_APPLIED, applied);
    }
    if let Some(allowance) = allowances.into_iter().flatten().last() {
        said.extend(allowance.headers());
    }
    Ok(response)
}

fn jobs(body: &[u8]) -> Result<Vec<Value>, Invalid> {
    match json::parse_object(body, &["jobs"])?.remove("jobs") {
        Some(Value::Array(jobs)) if (1..=JOBS_MAX).contains(&jobs.len()) => Ok(jobs),
        Some(Value::Array(jobs)) => Err(Invalid::new("/jobs", format!("must hold 1 to {JOBS_MAX} jobs, not {}", jobs.len()))),
        Some(other) => Err(Invalid::new("/jobs", format!("must be a list of jobs, not {}", shown(&other)))),
        None => Err(Invalid::new("/jobs", "`jobs` is missing: a list of jobs")),
    }
}

async fn one(app: &App, principal: &Principal, headers: &HeaderMap, job: Value, wait: Duration) -> Result<Submitted, Problem> {
    let fields = json::object(job).map_err(Problem::invalid)?;
    let asked = asked(&fields);
    let submitted = async {
        json::refuse_unknown(&fields, "field", &JOB_FIELDS).map_err(Problem::invalid)?;
        let (request, _) = prepared(fields, headers, Form::Json)?;
        app.jobs.submit(principal, request, How::Wait(wait)).await
    };
    submitted.await.map_err(|problem| problem.asked(asked))
}

fn entry(index: usize, done: Result<Submitted, Problem>, request_id: &str) -> (Entry, Option<Allowance>) {
    let job = |document: Bytes| String::from_utf8(document.into()).ok().and_then(|text| RawValue::from_string(text).ok());
    let (status, job, problem, allowance) = match done {
        Ok(Submitted { answer: Came::Over(document), allowance, .. }) => (success::DONE.as_u16(), job(document), None, allowance),
        Ok(Submitted { answer: Came::SoFar(document), allowance, .. }) => (success::ACCEPTED.as_u16(), job(document), None, allowance),
        Ok(Submitted { answer: Came::Watched(watcher), allowance, .. }) => {
            (success::ACCEPTED.as_u16(), job(watcher.so_far().to_bytes()), None, allowance)
        }
        Err(problem) => {
            let document = problem.document(request_id);
            (document.status, None, Some(document), None)
        }
    };
    (Entry { index, status, job, problem }, allowance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_holds_one_to_a_hundred_jobs() {
        assert_eq!(jobs(br#"{"jobs":[{},7]}"#).unwrap().len(), 2);
        let many = format!("{{\"jobs\":[{}]}}", ["{}"; JOBS_MAX + 1].join(","));
        for (body, wrong) in [
            ("{}", "/jobs: `jobs` is missing"),
            (r#"{"jobs":[]}"#, "/jobs: must hold 1 to 100 jobs, not 0"),
            (many.as_str(), "/jobs: must hold 1 to 100 jobs, not 101"),
            (r#"{"jobs":{}}"#, "/jobs: must be a list of jobs"),
            (r#"{"job":[]}"#, "did you mean `jobs`?"),
        ] {
            let invalid = jobs(body.as_bytes()).unwrap_err().to_string();
            assert!(invalid.contains(wrong), "{invalid}");
        }
    }
}
