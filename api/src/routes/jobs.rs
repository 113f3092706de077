//! Jobs.

use std::borrow::Cow;
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
use probeops_shared::selector::Selector;
use probeops_shared::tools::ToolName;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value};

use crate::App;
use crate::access::Principal;
use crate::callbacks::Callback;
use crate::jobs::{
    Came, EXPIRES_IN, EXPIRES_IN_MAX, Explanation, How, Idempotency, JobDocument, JobPage, JobRequest, JobStatus, Submitted, Wanted,
    Watcher,
};
use crate::openapi::job_request_schema;
use crate::problem::{Asked, Problem, success};
use crate::routes::body::{JsonBody, NoBody};
use crate::routes::guard::Who;
use crate::routes::operation::{Answer, Needs, Operation, Parameter, Route, schema};
use crate::routes::path_id::PathId;
use crate::routes::prefer::{Form, PREFERENCE_APPLIED, Prefer};
use crate::routes::query::{PageLimit, Place, Query};
use crate::routes::stream::From;
use crate::routes::{frame, idempotency, prefer, stream};

/// The fields of a job's request.
pub(crate) const JOB_FIELDS: [&str; 10] =
    ["tool", "target", "parameters", "from", "timeout_ms", "callback", "cancel_on_disconnect", "idempotency_key", "when", "expires_in_ms"];
/// How many selectors a job may have.
pub(crate) const SELECTORS_MAX: usize = 100;
/// When to ask again for a job that goes on, in seconds.
const ASK_AGAIN_S: u64 = 1;

/// The query parameter that only asks what would be done.
pub(super) const EXPLAIN: &str = "explain";
/// What it means.
pub(super) const EXPLAIN_MEANS: &str =
    "Only say which nodes would be used, and why not others: nothing runs. It counts as one run of your rate.";
static EXPLAINS: [Parameter; 1] = [Parameter::new(EXPLAIN, EXPLAIN_MEANS, schema::<bool>)];

/// How a caller wants his answer.
pub(super) static HEADERS: [Parameter; 2] = [
    Parameter::new("Prefer", "How long to wait (RFC 7240): `wait=N` seconds, at most 60, or `respond-async`.", schema::<String>),
    Parameter::new(
        "Idempotency-Key",
        "1 to 255 printable characters of your choice. The same key with the same request gives the same job for 24 hours, with \
         `Idempotent-Replayed: true`, while it goes on and after; with another request it is a mistake (422).",
        idempotency::schema,
    ),
];
/// Where a caller that comes back wants to go on.
static RESUME: [Parameter; 1] =
    [Parameter::new("Last-Event-ID", "The id of the last event that was seen: only what came after it is told.", schema::<String>)];
/// What making a job may end with.
pub(super) static MAKING: [Code; 6] =
    [Code::NoSuchRegion, Code::NoSuchNode, Code::NoNodeAvailable, Code::IdempotencyMismatch, Code::RateLimited, Code::Unavailable];
/// Which jobs are listed.
static LIST_QUERY: [Parameter; 5] = [
    Parameter::new("status", "Only those that are so now.", schema::<JobStatus>),
    Parameter::new("tool", "Only with this tool.", schema::<ToolName>),
    Parameter::new(
        "caller",
        "Of whom: `key:<id>` or `jwt:<subject>`. Your own unless said; others need scope `admin`, without limits.",
        schema::<String>,
    ),
    Parameter::new("limit", "How many jobs at most.", schema::<PageLimit>),
    Parameter::new("cursor", "Where to go on: `next` of the page before.", schema::<Place>),
];
/// The forms in which a job can be followed.
pub(super) const FOLLOWED: [(&str, &str); 2] = [
    (
        "text/event-stream",
        "Server-Sent Events: `job` (the job as it is; the last one says that it is over), `accepted`, `progress`, `outcome`; `gap` where some \
         are no longer kept. The id of an event is `<run>.<attempt>.<seq>`.",
    ),
    ("text/plain", "What the tool prints, as it prints it."),
];

pub(super) fn operations() -> Vec<Operation> {
    vec![
        Operation {
            route: Route::post("/v1/jobs", submit),
            needs: Needs::Scope(&[Scope::JobsWrite]),
            id: "runJob".into(),
            summary: "Run a tool and wait for what it finds".into(),
            description: "Runs the tool on every node that `from` selects and answers with the finished job. What a tool finds (a dead host, \
                          a refused port) is a finding in `report`; why a node could not run it is in `failure`. A job that takes longer than \
                          a minute, or than `Prefer: wait=N` allows, is answered with 202 and goes on; ask for it at `Location`. \
                          `Accept: text/event-stream` tells everything as it happens, `Accept: text/plain` prints what the tool prints. \
                          `callback` has its end told to a URL, until that answers with 2xx. `\"when\": \"online\"` queues the job until a node that \
                          fits is there, and answers with 202 at once unless `Prefer: wait=N` says otherwise.",
            query: Cow::Borrowed(&EXPLAINS),
            headers: &HEADERS,
            body: Some(job_request_schema),
            answers: ran(),
            problems: &MAKING,
        },
        Operation {
            route: Route::get("/v1/jobs", list),
            needs: Needs::Scope(&[Scope::JobsRead, Scope::JobsWrite]),
            id: "listJobs".into(),
            summary: "List your jobs, newest first".into(),
            description: "Jobs without their outcomes, which `GET /v1/jobs/{id}` has. One that its caller waited for is listed once it is over, \
                          any other from its beginning. A page that looked at much and found little is short or empty and still says `next`.",
            query: Cow::Borrowed(&LIST_QUERY),
            headers: &[],
            body: None,
            answers: vec![Answer::json(success::DONE, "The jobs, newest first.", schema::<JobPage>)],
            problems: &[Code::Unavailable],
        },
        Operation {
            route: Route::get("/v1/jobs/{id}", read),
            needs: Needs::Scope(&[Scope::JobsRead, Scope::JobsWrite]),
            id: "readJob".into(),
            summary: "Read one of your jobs".into(),
            description: "The job so far, or as it ended. Jobs are kept for 24 hours, or until 1 GiB of newer ones takes their place; those of \
                          other callers are not found.",
            query: Cow::Borrowed(&[]),
            headers: &[],
            body: None,
            answers: vec![Answer::json(success::DONE, "The job.", schema::<JobDocument>)],
            problems: &[Code::NotFound, Code::Unavailable],
        },
        Operation {
            route: Route::delete("/v1/jobs/{id}", cancel),
            needs: Needs::Scope(&[Scope::JobsWrite]),
            id: "cancelJob".into(),
            summary: "End one of your jobs before its time".into(),
            description: "Tells its nodes to stop, and answers with the job so far; with 202 when it takes longer than 2 s. One that is over is a conflict.",
            query: Cow::Borrowed(&[]),
            headers: &[],
            body: None,
            answers: vec![
                Answer::json(success::DONE, "The job, cancelled.", schema::<JobDocument>),
                Answer::json(success::ACCEPTED, "The job, which is about to end.", schema::<JobDocument>),
            ],
            problems: &[Code::NotFound, Code::Conflict, Code::Unavailable],
        },
        followed_job(),
    ]
}

fn followed_job() -> Operation {
    Operation {
        route: Route::get("/v1/jobs/{id}/events", follow),
        needs: Needs::Scope(&[Scope::JobsRead, Scope::JobsWrite]),
        id: "followJob".into(),
        summary: "Follow one of your jobs".into(),
        description: "Tells what its nodes tell, from the beginning or from after `Last-Event-ID`, and ends with the job. Of a job that is \
                      over its outcomes are told.",
        query: Cow::Borrowed(&[]),
        headers: &RESUME,
        body: None,
        answers: vec![
            Answer { status: success::DONE, description: "What is told.", schema: None, also: &FOLLOWED },
            Answer {
                status: success::NOTHING_MORE,
                description: "The last event was seen already; do not come back.",
                schema: None,
                also: &[],
            },
        ],
        problems: &[Code::NotFound, Code::Unavailable],
    }
}

/// What running a job is answered with.
pub(super) fn ran() -> Vec<Answer> {
    vec![
        Answer {
            also: &FOLLOWED,
            ..Answer::json(success::DONE, "The finished job, or what it tells; or what it would do.", job_or_explanation)
        },
        Answer::json(success::ACCEPTED, "The job so far; it goes on and will be at `Location`.", schema::<JobDocument>),
    ]
}

fn job_or_explanation(schemas: &mut SchemaGenerator) -> Schema {
    json_schema!({"anyOf": [schemas.subschema_for::<JobDocument>(), schemas.subschema_for::<Explanation>()]})
}

async fn submit(
    State(app): State<App>,
    Who(principal): Who,
    headers: HeaderMap,
    query: Query,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let explain = explains(&query)?;
    let fields = json::parse_object(&body, &JOB_FIELDS).map_err(|invalid| Problem::invalid(of_a_schedule(invalid)))?;
    if explain { explanation(&app, &principal, &headers, fields).await } else { run(&app, &principal, &headers, fields).await }
}

/// Says where a field belongs that only schedules have.
fn of_a_schedule(invalid: Invalid) -> Invalid {
    if !["/at", "/every", "/cron"].contains(&invalid.pointer.as_str()) {
        return invalid;
    }
    Invalid { detail: "belongs to POST /v1/schedules, which takes the fields of a job and when it is to run".to_owned(), ..invalid }
}

/// Whether only an explanation is wanted.
pub(super) fn explains(query: &Query) -> Result<bool, Problem> {
    Ok(query.read(EXPLAIN, "true or false", |text| text.parse().ok())?.unwrap_or(false))
}

/// Says what the job that is asked for in these fields would do.
pub(super) async fn explanation(
    app: &App,
    principal: &Principal,
    headers: &HeaderMap,
    fields: Map<String, Value>,
) -> Result<Response, Problem> {
    let asked = asked(&fields);
    // What would be refused is refused here, too, though neither matters for what is said.
    Prefer::read(headers)?;
    let (request, _) = prepared(fields, headers, prefer::form(headers))?;
    let explanation = app.jobs.explain(principal, &request).await.map_err(|problem| problem.asked(asked))?;
    Ok(Json(explanation).into_response())
}

/// Runs the job that is asked for in these fields, and answers in the form that is asked for in these headers.
pub(super) async fn run(app: &App, principal: &Principal, headers: &HeaderMap, fields: Map<String, Value>) -> Result<Response, Problem> {
    let asked = asked(&fields);
    let form = prefer::form(headers);
    let submitted = async {
        let prefer = Prefer::read(headers)?;
        let (request, cancel_on_disconnect) = prepared(fields, headers, form)?;
        // Whoever queues a job does not wait for it unless he says so.
        let waits = request.expires_in.is_none() || prefer.applied().is_some();
        let wait = if waits { prefer.wait() } else { Duration::ZERO };
        let how = if form == Form::Json { How::Wait(wait) } else { How::Watch { cancel_on_disconnect } };
        Ok((prefer, app.jobs.submit(principal, request, how).await?))
    };
    let (prefer, Submitted { id, answer, allowance, replayed }) = submitted.await.map_err(|problem: Problem| problem.asked(asked))?;
    let json = [(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    let mut response = match answer {
        Came::Over(document) => (json, document).into_response(),
        Came::SoFar(document) => (success::ACCEPTED, json, [(RETRY_AFTER, ASK_AGAIN_S.to_string())], document).into_response(),
        Came::Watched(watcher) => followed(watcher, form),
    };
    let goes_on = form != Form::Json || response.status() == success::ACCEPTED;
    let said = response.headers_mut();
    if let Some(location) = HeaderValue::try_from(format!("/v1/jobs/{id}")).ok().filter(|_| goes_on) {
        said.insert(LOCATION, location);
    }
    if let Some(applied) = prefer.applied().filter(|_| form == Form::Json) {
        said.insert(PREFERENCE_APPLIED, applied);
    }
    if let Some(allowance) = allowance {
        said.extend(allowance.headers());
    }
    said.extend(replayed.then(idempotency::replayed));
    Ok(response)
}

fn followed(watcher: Watcher, form: Form) -> Response {
    if form == Form::Text { stream::text(watcher) } else { stream::events(watcher) }
}

async fn list(State(app): State<App>, Who(principal): Who, query: Query) -> Result<Json<JobPage>, Problem> {
    let words: Vec<&str> = JobStatus::ALL.iter().map(|(_, word)| *word).collect();
    let status = |text: &str| JobStatus::ALL.into_iter().find_map(|(status, word)| (word == text).then_some(status));
    let cursor = "a cursor as an earlier answer gave it in `next`, such as 1200";
    let wanted = Wanted {
        caller: query.value("caller")?,
        status: query.read("status", &format!("one of {}", words.join(", ")), status)?,
        tool: query.value("tool")?,
        limit: query.limit()?,
        cursor: query.read("cursor", cursor, Place::read)?,
    };
    app.jobs.list(&principal, &wanted).await.map(Json)
}

async fn read(State(app): State<App>, Who(principal): Who, PathId(id): PathId) -> Result<Json<JobDocument>, Problem> {
    app.jobs.get(&principal, job_id(&id)?).await.map(Json)
}

async fn cancel(State(app): State<App>, Who(principal): Who, PathId(id): PathId, NoBody: NoBody) -> Result<Response, Problem> {
    let job = app.jobs.cancel(&principal, job_id(&id)?).await?;
    let status = if job.status == JobStatus::Running { success::ACCEPTED } else { success::DONE };
    Ok((status, Json(job)).into_response())
}

async fn follow(State(app): State<App>, Who(principal): Who, PathId(id): PathId, headers: HeaderMap) -> Result<Response, Problem> {
    let id = job_id(&id)?;
    let after = match stream::from(&headers)? {
        From::After(event) => Some(event),
        From::End if app.jobs.get(&principal, id).await?.status.is_over() => return Ok(stream::nothing_more()),
        From::Beginning | From::End => None,
    };
    Ok(followed(app.jobs.watch(&principal, id, after).await?, prefer::form(&headers)))
}

fn job_id(id: &str) -> Result<JobId, Problem> {
    id.parse().map_err(|detail: String| Problem::new(Code::NotFound, detail))
}

/// What these fields and headers ask for, checked, and whether it is to end when nobody follows it.
pub(super) fn prepared(mut fields: Map<String, Value>, headers: &HeaderMap, form: Form) -> Result<(JobRequest, bool), Problem> {
    let idempotency = idempotency::of(headers, &mut fields)?.map(|key| Idempotency::new(key, &fields));
    let (request, cancel_on_disconnect) = request(&mut fields, headers, form).map_err(Problem::all_invalid)?;
    Ok((JobRequest { idempotency, ..request }, cancel_on_disconnect))
}

/// The tool and target as far as they can be read, for the audit trail.
pub(super) fn asked(fields: &Map<String, Value>) -> Asked {
    let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default().chars().take(256).collect();
    Asked { tool: text("tool"), target: text("target") }
}

/// Checks a request, and whether it is to end when nobody follows it; says everything that is wrong with it at once.
pub(super) fn request(fields: &mut Map<String, Value>, headers: &HeaderMap, form: Form) -> Result<(JobRequest, bool), Vec<Invalid>> {
    let (from, timeout) = (selectors(fields.get("from")), timeout(fields.get("timeout_ms")));
    let cancel_on_disconnect = cancel_on_disconnect(fields.get("cancel_on_disconnect"), form);
    let callback = fields.get("callback").map(Callback::parse).transpose();
    let expires_in = expires_in(fields);
    match (job::spec(fields), from, timeout, cancel_on_disconnect, callback, expires_in) {
        (Ok(spec), Ok(from), Ok(timeout), Ok(cancel_on_disconnect), Ok(callback), Ok(expires_in)) => Ok((
            JobRequest {
                spec,
                from,
                timeout,
                callback,
                traceparent: frame::traceparent(headers),
                idempotency: None,
                expires_in,
                schedule: None,
            },
            cancel_on_disconnect,
        )),
        (spec, from, timeout, cancel_on_disconnect, callback, expires_in) => {
            let errors = [spec.err(), from.err(), timeout.err(), cancel_on_disconnect.err(), callback.err(), expires_in.err()];
            Err(errors.into_iter().flatten().collect())
        }
    }
}

fn cancel_on_disconnect(given: Option<&Value>, form: Form) -> Result<bool, Invalid> {
    let refused = |detail: String| Err(Invalid::new("/cancel_on_disconnect", detail));
    match given {
        None | Some(Value::Bool(false)) => Ok(false),
        Some(Value::Bool(true)) if form != Form::Json => Ok(true),
        Some(Value::Bool(true)) => refused("needs an answer that is streamed: `Accept: text/event-stream` or `text/plain`".to_owned()),
        Some(other) => refused(format!("must be true or false, not {}", shown(other))),
    }
}

/// How long the job waits for a node, if it is to wait.
fn expires_in(fields: &Map<String, Value>) -> Result<Option<Duration>, Invalid> {
    let longest_ms = u64::try_from(EXPIRES_IN_MAX.as_millis()).unwrap_or(u64::MAX);
    let expires_in = match fields.get("expires_in_ms") {
        None => None,
        Some(value) => {
            let wants = || format!("must be a whole number of milliseconds from 1 to {longest_ms}, not {}", shown(value));
            let given = value.as_u64().filter(|expires_in_ms| (1..=longest_ms).contains(expires_in_ms));
            Some(given.map(Duration::from_millis).ok_or_else(|| Invalid::new("/expires_in_ms", wants()))?)
        }
    };
    match fields.get("when") {
        None if expires_in.is_some() => {
            Err(Invalid::new("/expires_in_ms", "is how long a job waits for a node, and this one does not: say \"when\": \"online\", too"))
        }
        None => Ok(None),
        Some(Value::String(when)) if when == "online" => {
            if fields.get("cancel_on_disconnect") == Some(&Value::Bool(true)) {
                return Err(Invalid::new("/cancel_on_disconnect", "contradicts \"when\": \"online\": such a job waits without anybody"));
            }
            Ok(Some(expires_in.unwrap_or(EXPIRES_IN)))
        }
        Some(other) => {
            Err(Invalid::new("/when", format!("must be \"online\" (when a node that fits is there), or be left out, not {}", shown(other))))
        }
    }
}

fn selectors(given: Option<&Value>) -> Result<Vec<Selector>, Invalid> {
    let wants = "a region such as \"eu-central\", \"node:\" and a node's id, labels such as \"site=fra\", or a list of these";
    let list = match given {
        None => return Err(Invalid::new("/from", format!("`from` is missing: say from where, {wants}; /v1/regions lists the regions"))),
        Some(Value::Array(list)) => list,
        Some(value) => return Ok(vec![Selector::read(value, "/from")?]),
    };
    if !(1..=SELECTORS_MAX).contains(&list.len()) {
        return Err(Invalid::new("/from", format!("must list 1 to {SELECTORS_MAX} selectors, not {}", list.len())));
    }
    let mut selectors: Vec<Selector> = Vec::with_capacity(list.len());
    for (index, value) in list.iter().enumerate() {
        let selector = Selector::read(value, &format!("/from/{index}"))?;
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
        request(&mut fields, &HeaderMap::new(), Form::Json).map(|(request, _)| request).map_err(Problem::all_invalid)
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
        assert_eq!(one.from, [Selector::region("eu-central".parse().unwrap())]);
        let several = parse(r#"{"tool":"echo","from":["eu-central","node:fra-1"],"timeout_ms":60000}"#).unwrap();
        assert_eq!((several.from.len(), several.timeout), (2, Some(Duration::from_mins(1))));
        let object = parse(r#"{"tool":"echo","from":[{"region":"*","take":3},{"labels":{"site":"fra"},"take":"all"}]}"#).unwrap();
        assert_eq!(object.from.iter().map(ToString::to_string).collect::<Vec<_>>(), ["*3", "site=fra:all"]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        refuses(r#"{"tool":"echo"}"#, "/from", "`from` is missing");
        refuses(r#"{"tool":"echo","from":[]}"#, "/from", "must list 1 to 100 selectors, not 0");
        refuses(r#"{"tool":"echo","from":["eu","eu"]}"#, "/from/1", "named twice");
        refuses(r#"{"tool":"echo","from":["eu",7]}"#, "/from/1", "not 7");
        refuses(r#"{"tool":"echo","from":null}"#, "/from", "not null");
        refuses(r#"{"tool":"echo","from":["*5",{"region":"*","take":5}]}"#, "/from/1", "`*5` is named twice");
        refuses(r#"{"tool":"echo","from":{"region":"eu","take":"al"}}"#, "/from/take", "must be \"one\", \"all\"");
        for region in ["eu.central", ">", ""] {
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
    fn a_job_waits_for_a_node_where_it_says_so() {
        let waits = |more: &str| parse(&format!(r#"{{"tool":"echo","from":"eu"{more}}}"#)).map(|request| request.expires_in);
        assert_eq!(waits("").unwrap(), None);
        assert_eq!(waits(r#","when":"online""#).unwrap(), Some(Duration::from_hours(1)));
        assert_eq!(waits(r#","when":"online","expires_in_ms":604800000"#).unwrap(), Some(Duration::from_hours(168)));
        refuses(r#"{"tool":"echo","from":"eu","when":"later"}"#, "/when", "must be \"online\"");
        refuses(r#"{"tool":"echo","from":"eu","expires_in_ms":5}"#, "/expires_in_ms", "say \"when\"");
        refuses(r#"{"tool":"echo","from":"eu","when":"online","expires_in_ms":604800001}"#, "/expires_in_ms", "from 1 to 604800000");
        refuses(r#"{"tool":"echo","from":"eu","when":"online","cancel_on_disconnect":true}"#, "/cancel_on_disconnect", "contradicts");
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let problem = parse(r#"{"tool":"echo","parameters":{"timeout":0},"from":"eu.x","timeout_ms":0}"#).unwrap_err();
        for pointer in ["/parameters/timeout: ", "/from: ", "/timeout_ms: "] {
            assert!(problem.detail().contains(pointer), "{problem}");
        }
    }
}
