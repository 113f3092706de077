//! Jobs.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, LOCATION, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use probeops_shared::access::Scope;
use probeops_shared::bounded::shown;
use probeops_shared::ids::JobId;
use probeops_shared::invalid::Invalid;
use probeops_shared::job::{self, DEADLINE_MAX};
use probeops_shared::json;
use probeops_shared::problem::Code;
use serde_json::{Map, Value};

use crate::App;
use crate::jobs::{JobDocument, JobRequest, JobStatus, Selector, Submitted};
use crate::openapi::job_request_schema;
use crate::problem::{Asked, Problem, success};
use crate::routes::body::JsonBody;
use crate::routes::frame;
use crate::routes::guard::Who;
use crate::routes::operation::{Answer, Needs, Operation, Route, schema};
use crate::routes::path_id::PathId;

/// The fields of a job's request.
pub(crate) const JOB_FIELDS: [&str; 5] = ["tool", "target", "parameters", "from", "timeout_ms"];
/// From how many places one job may run.
pub(crate) const SELECTORS_MAX: usize = 100;
/// When to ask again for a job that goes on, in seconds.
const ASK_AGAIN_S: u64 = 1;

pub(super) fn operations() -> Vec<Operation> {
    vec![
        Operation {
            route: Route::post("/v1/jobs", submit),
            needs: Needs::Scope(&[Scope::JobsWrite]),
            id: "runJob",
            summary: "Run a tool and wait for what it finds",
            description: "Runs the tool from every place named in `from` and answers with the finished job. What a tool finds (a dead host, \
                          a refused port) is a finding in `report`; why a node could not run it is in `failure`. A job that takes longer than \
                          a minute is answered with 202 and goes on; ask for it at `Location`.",
            query: &[],
            body: Some(job_request_schema),
            answers: vec![
                Answer { status: success::DONE, description: "The finished job.", schema: schema::<JobDocument> },
                Answer {
                    status: success::ACCEPTED,
                    description: "The job so far; it goes on and will be at `Location`.",
                    schema: schema::<JobDocument>,
                },
            ],
            problems: &[Code::NoSuchRegion, Code::NoSuchNode, Code::NoNodeAvailable, Code::RateLimited, Code::Unavailable],
        },
        Operation {
            route: Route::get("/v1/jobs/{id}", read),
            needs: Needs::Scope(&[Scope::JobsRead, Scope::JobsWrite]),
            id: "readJob",
            summary: "Read one of your jobs",
            description: "The job so far, or as it ended. Jobs are kept for 24 hours, or until 1 GiB of newer ones takes their place; those of \
                          other callers are not found.",
            query: &[],
            body: None,
            answers: vec![Answer { status: success::DONE, description: "The job.", schema: schema::<JobDocument> }],
            problems: &[Code::NotFound, Code::Unavailable],
        },
    ]
}

async fn submit(State(app): State<App>, Who(principal): Who, headers: HeaderMap, JsonBody(body): JsonBody) -> Result<Response, Problem> {
    let mut fields = json::parse_object(&body, &JOB_FIELDS).map_err(Problem::invalid)?;
    let asked = asked(&fields);
    let submitted = match request(&mut fields, &headers) {
        Ok(request) => app.jobs.submit(&principal, request).await,
        Err(problem) => Err(problem),
    };
    let Submitted { id, status, document, allowance } = submitted.map_err(|problem| problem.asked(asked))?;
    let json = [(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    let mut response = match status {
        JobStatus::Finished => (json, document).into_response(),
        JobStatus::Running => {
            let headers = [(LOCATION, format!("/v1/jobs/{id}")), (RETRY_AFTER, ASK_AGAIN_S.to_string())];
            (success::ACCEPTED, json, headers, document).into_response()
        }
    };
    if let Some(allowance) = allowance {
        response.headers_mut().extend(allowance.headers());
    }
    Ok(response)
}

async fn read(State(app): State<App>, Who(principal): Who, PathId(id): PathId) -> Result<Json<JobDocument>, Problem> {
    let id: JobId = id.parse().map_err(|detail: String| Problem::new(Code::NotFound, detail))?;
    app.jobs.get(&principal, id).await.map(Json)
}

/// The tool and target as far as they can be read, for the audit trail.
fn asked(fields: &Map<String, Value>) -> Asked {
    let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default().chars().take(256).collect();
    Asked { tool: text("tool"), target: text("target") }
}

/// Checks a request; says everything that is wrong with it at once.
fn request(fields: &mut Map<String, Value>, headers: &HeaderMap) -> Result<JobRequest, Problem> {
    let (from, timeout) = (selectors(fields.get("from")), timeout(fields.get("timeout_ms")));
    match (job::spec(fields), from, timeout) {
        (Ok(spec), Ok(from), Ok(timeout)) => Ok(JobRequest { spec, from, timeout, traceparent: frame::traceparent(headers) }),
        (spec, from, timeout) => {
            let errors: Vec<Invalid> = [spec.err(), from.err(), timeout.err()].into_iter().flatten().collect();
            let detail = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            Err(errors.into_iter().fold(Problem::new(Code::Invalid, detail), Problem::at))
        }
    }
}

fn selectors(given: Option<&Value>) -> Result<Vec<Selector>, Invalid> {
    let wants = "a region such as \"eu-central\", \"node:\" and a node's id, or a list of these";
    let one = |pointer: String, value: &Value| match value {
        Value::String(text) => text.parse::<Selector>().map_err(|detail| Invalid::new(pointer, detail)),
        other => Err(Invalid::new(pointer, format!("must be {wants}, not {}", shown(other)))),
    };
    let list = match given {
        None => return Err(Invalid::new("/from", format!("`from` is missing: say from where, {wants}; /v1/regions lists the regions"))),
        Some(Value::Array(list)) => list,
        Some(value) => return Ok(vec![one("/from".to_owned(), value)?]),
    };
    if !(1..=SELECTORS_MAX).contains(&list.len()) {
        return Err(Invalid::new("/from", format!("must name 1 to {SELECTORS_MAX} places, not {}", list.len())));
    }
    let mut selectors: Vec<Selector> = Vec::with_capacity(list.len());
    for (index, value) in list.iter().enumerate() {
        let selector = one(format!("/from/{index}"), value)?;
        if selectors.contains(&selector) {
            return Err(Invalid::new(format!("/from/{index}"), format!("`{selector}` is named twice")));
        }
        selectors.push(selector);
    }
    Ok(selectors)
}

fn timeout(given: Option<&Value>) -> Result<Option<Duration>, Invalid> {
    let Some(value) = given else { return Ok(None) };
    let longest_ms = u64::try_from(DEADLINE_MAX.as_millis()).unwrap_or(u64::MAX);
    let timeout_ms = value.as_u64().filter(|timeout_ms| (1..=longest_ms).contains(timeout_ms));
    let wants = || format!("must be a whole number of milliseconds from 1 to {longest_ms}, not {}", shown(value));
    timeout_ms.map(|timeout_ms| Some(Duration::from_millis(timeout_ms))).ok_or_else(|| Invalid::new("/timeout_ms", wants()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<JobRequest, Problem> {
        let mut fields = json::parse_object(body.as_bytes(), &JOB_FIELDS).map_err(Problem::invalid)?;
        request(&mut fields, &HeaderMap::new())
    }

    #[track_caller]
    fn refuses(body: &str, pointer: &str, part: &str) {
        let problem = parse(body).unwrap_err();
        assert_eq!(problem.code(), Code::Invalid);
        assert!(problem.detail().contains(part), "{problem}");
        assert!(pointer.is_empty() || problem.detail().contains(&format!("{pointer}: ")), "{problem}");
    }

    #[test]
    fn one_place_or_several_are_asked_for_in_the_same_way() {
        let one = parse(r#"{"tool":"echo","from":"eu-central"}"#).unwrap();
        assert_eq!(one.from, [Selector::Region("eu-central".parse().unwrap())]);
        let several = parse(r#"{"tool":"echo","from":["eu-central","node:fra-1"],"timeout_ms":60000}"#).unwrap();
        assert_eq!((several.from.len(), several.timeout), (2, Some(Duration::from_mins(1))));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        refuses(r#"{"tool":"echo"}"#, "/from", "`from` is missing");
        refuses(r#"{"tool":"echo","from":[]}"#, "/from", "must name 1 to 100 places, not 0");
        refuses(r#"{"tool":"echo","from":["eu","eu"]}"#, "/from/1", "named twice");
        refuses(r#"{"tool":"echo","from":["eu",7]}"#, "/from/1", "not 7");
        refuses(r#"{"tool":"echo","from":null}"#, "/from", "not null");
        for region in ["eu.central", "*", ">", "eu central", ""] {
            refuses(&format!(r#"{{"tool":"echo","from":"{region}"}}"#), "/from", "a region must be 1 to 63 of");
        }
        for timeout in ["0", "1.5", "\"5\"", "null", "-1", "3600001"] {
            refuses(&format!(r#"{{"tool":"echo","from":"eu","timeout_ms":{timeout}}}"#), "/timeout_ms", "from 1 to 3600000");
        }
        refuses(r#"{"tool":"ehco","from":"eu"}"#, "/tool", "did you mean `echo`? the tools are echo");
        refuses(r#"{"tool":"echo","form":"eu"}"#, "/form", "did you mean `from`?");
        refuses(r#"{"tool":"echo","from":"eu","from":"us"}"#, "", "`from` is given twice");
        refuses("", "", "the body is empty");
        refuses(r#"{"tool":"echo""#, "", "ends too early");
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let problem = parse(r#"{"tool":"echo","parameters":{"timeout":0},"from":"eu.x","timeout_ms":0}"#).unwrap_err();
        for pointer in ["/parameters/timeout: ", "/from: ", "/timeout_ms: "] {
            assert!(problem.detail().contains(pointer), "{problem}");
        }
    }
}
