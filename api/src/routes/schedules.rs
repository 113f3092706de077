//! Schedules.

use std::borrow::Cow;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use probeops_shared::access::Scope;
use probeops_shared::bounded::shown;
use probeops_shared::invalid::Invalid;
use probeops_shared::json;
use probeops_shared::problem::Code;
use probeops_shared::timestamp::Timestamp;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::App;
use crate::access::Principal;
use crate::jobs::JobRequest;
use crate::later::rights::PrincipalRef;
use crate::later::schedules::results::ResultPage;
use crate::later::schedules::trigger::Trigger;
use crate::later::schedules::{JITTER_MS_MAX, OVERDUE_AFTER_MS, OVERDUE_AFTER_MS_MAX, Overdue, Schedule, ScheduleView};
use crate::openapi::tool_job_schema;
use crate::problem::{Problem, success};
use crate::routes::body::{JsonBody, NoBody};
use crate::routes::frame::CurrentRequest;
use crate::routes::guard::{Changing, Who};
use crate::routes::jobs;
use crate::routes::nodes::PAGING;
use crate::routes::operation::{Answer, Needs, Operation, Parameter, Route, schema};
use crate::routes::path_id::PathId;
use crate::routes::prefer::Form;
use crate::routes::query::{PageLimit, Place, Query, page};

const READS: Needs = Needs::Scope(&[Scope::JobsRead, Scope::JobsWrite]);
const WRITES: Needs = Needs::Scope(&[Scope::JobsWrite]);
/// The fields of the jobs that a schedule makes.
pub(crate) const JOB_FIELDS: [&str; 6] = ["tool", "target", "parameters", "from", "timeout_ms", "callback"];
/// The fields that say when it makes them.
const OWN_FIELDS: [&str; 8] = ["at", "every", "cron", "time_zone", "jitter_ms", "overdue", "overdue_after_ms", "paused"];
/// Where reading results goes on.
static RESULTS: [Parameter; 2] = [
    Parameter::new("limit", "How many entries at most.", schema::<PageLimit>),
    Parameter::new("cursor", "Where to go on: `next` of the page before.", schema::<Place>),
];

pub(super) fn operations() -> Vec<Operation> {
    vec![
        Operation {
            body: Some(request_schema),
            answers: vec![Answer::json(success::CREATED, "The schedule.", schema::<ScheduleView>)],
            problems: &[Code::NoSuchRegion, Code::NoSuchNode, Code::Conflict, Code::RateLimited, Code::TooLarge, Code::Unavailable],
            ..operation(
                Route::post("/v1/schedules", create),
                WRITES,
                "createSchedule",
                (
                    "Run a job at a time, or again and again",
                    "The fields of a job, and when: exactly one of `at`, `every` and `cron`. Each firing becomes an ordinary job, with what your API \
                 key may do then; one that is not allowed any more is refused, and a schedule whose key was revoked is suspended. A time that \
                 the clock of `time_zone` passes over comes at the end of the gap; one that it has twice comes the first time only, unless the \
                 hour is `*` or a step. Of several firings that nobody could take, as while the broker was away, only the last is run, and with \
                 `\"overdue\":\"drop\"` not even that when it is more than `overdue_after_ms` late. Needs an API key: what a JWT allows cannot be \
                 looked up later. A schedule that is over is deleted after 24 hours.",
                ),
            )
        },
        Operation {
            query: Cow::Borrowed(&PAGING),
            answers: vec![Answer::json(success::DONE, "The schedules, by id.", schema::<ScheduleList>)],
            problems: &[Code::Unavailable],
            ..operation(
                Route::get("/v1/schedules", list),
                READS,
                "listSchedules",
                ("List your schedules", "All of yours, paused and suspended ones too; an admin sees everybody's."),
            )
        },
        operation(
            Route::get("/v1/schedules/{id}", read),
            READS,
            "readSchedule",
            ("Read one of your schedules", "When it is due, and what became of it last."),
        ),
        operation(
            Route::delete("/v1/schedules/{id}", delete),
            WRITES,
            "deleteSchedule",
            ("Delete a schedule", "It makes no more jobs; those that it made go on."),
        ),
        operation(
            Route::post("/v1/schedules/{id}/pause", pause),
            WRITES,
            "pauseSchedule",
            ("Pause a schedule", "It makes no jobs until it is resumed. Pausing it again changes nothing."),
        ),
        operation(
            Route::post("/v1/schedules/{id}/resume", resume),
            WRITES,
            "resumeSchedule",
            ("Resume a schedule", "Lets one go on that was paused or suspended. What was due meanwhile is not made up for."),
        ),
        Operation {
            query: Cow::Borrowed(&RESULTS),
            answers: vec![Answer::json(success::DONE, "What became of the firings, newest first.", schema::<ResultPage>)],
            ..operation(
                Route::get("/v1/schedules/{id}/results", results),
                READS,
                "listScheduleResults",
                (
                    "Read what became of a schedule's firings",
                    "Each became a job, or was skipped, or was refused. They are kept as jobs are: for 24 hours.",
                ),
            )
        },
    ]
}

/// One that answers with a schedule.
fn operation(route: Route, needs: Needs, id: &'static str, (summary, description): (&'static str, &'static str)) -> Operation {
    Operation {
        route,
        needs,
        id: id.into(),
        summary: summary.into(),
        description,
        query: Cow::Borrowed(&[]),
        headers: &[],
        body: None,
        answers: vec![Answer::json(success::DONE, "The schedule.", schema::<ScheduleView>)],
        problems: if needs == WRITES {
            &[Code::NotFound, Code::RateLimited, Code::Unavailable]
        } else {
            &[Code::NotFound, Code::Unavailable]
        },
    }
}

/// A page of schedules.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct ScheduleList {
    /// The schedules, by id.
    schedules: Vec<ScheduleView>,
    /// Give this as `cursor` to read on; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

async fn create(
    State(app): State<App>,
    Changing(principal): Changing,
    current: CurrentRequest,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let known: Vec<&str> = JOB_FIELDS.into_iter().chain(OWN_FIELDS).collect();
    let fields = json::parse_object(&body, &known).map_err(Problem::invalid)?;
    let asked = jobs::asked(&fields);
    let made = made(&app, &principal, fields).await.map_err(|problem| problem.asked(asked))?;
    let view = made.view()?;
    let target = made.job.get("target").and_then(Value::as_str).unwrap_or_default();
    let detail =
        format!("schedule made: {} {target}, {}", made.job.get("tool").and_then(Value::as_str).unwrap_or_default(), when(&made.trigger));
    app.audit.changed(&principal.name, &current.0, format!("schedule:{}", made.id), detail);
    let headers = [(LOCATION, format!("/v1/schedules/{}", made.id))];
    Ok((success::CREATED, headers, Json(view)).into_response())
}

async fn made(app: &App, owner: &Principal, mut fields: Map<String, Value>) -> Result<Schedule, Problem> {
    let now = Timestamp::now();
    let now = Timestamp::from_unix_ms(now.unix_ms()).unwrap_or(now);
    let job: Map<String, Value> = JOB_FIELDS.iter().filter_map(|name| fields.remove_entry(*name)).collect();
    let trigger = Trigger::parse(&fields, now);
    let jitter_ms = milliseconds(&fields, "jitter_ms", (0, JITTER_MS_MAX), 0);
    let overdue_after_ms = milliseconds(&fields, "overdue_after_ms", (0, OVERDUE_AFTER_MS_MAX), OVERDUE_AFTER_MS);
    let (overdue, paused) = (overdue(fields.get("overdue")), flag(fields.get("paused"), "paused"));
    let request = jobs::request(&mut job.clone(), &HeaderMap::new(), Form::Json);
    let (trigger, jitter_ms, overdue_after_ms, overdue, paused, request) =
        match (trigger, jitter_ms, overdue_after_ms, overdue, paused, request) {
            (Ok(trigger), Ok(jitter), Ok(after), Ok(overdue), Ok(paused), Ok((request, _))) => {
                (trigger, jitter, after, overdue, paused, request)
            }
            (trigger, jitter, after, overdue, paused, request) => {
                let mut errors = request.err().unwrap_or_default();
                errors.extend([trigger.err(), jitter.err(), after.err(), overdue.err(), paused.err()].into_iter().flatten());
                return Err(Problem::all_invalid(errors));
            }
        };
    if let Some(every) = trigger.interval().filter(|every| u128::from(jitter_ms) > every.as_millis()) {
        let detail = format!("must be at most the {} ms of `every`, not {jitter_ms}", every.as_millis());
        return Err(Problem::invalid(Invalid::new("/jitter_ms", detail)));
    }
    app.jobs.admit(owner, &request).await?;
    // Only what can be looked up when a job is due may have schedules.
    let principal = PrincipalRef::lasting(owner)?;
    let schedule = Schedule {
        id: String::new(),
        caller: owner.name.clone(),
        principal,
        job,
        trigger,
        jitter_ms,
        overdue,
        overdue_after_ms,
        paused,
        suspended: None,
        created_at: now,
        next_due: None,
        last: None,
        last_reminded: None,
    };
    app.jobs.charge(owner).await?;
    app.schedules.create(schedule).await
}

/// What the job of a schedule asks for, as it was checked when the schedule was made.
pub(crate) fn scheduled_job(mut fields: Map<String, Value>) -> Result<JobRequest, Problem> {
    let (request, _) = jobs::request(&mut fields, &HeaderMap::new(), Form::Json).map_err(Problem::all_invalid)?;
    Ok(request)
}

fn milliseconds(fields: &Map<String, Value>, name: &str, (least, most): (u64, u64), unless_given: u64) -> Result<u64, Invalid> {
    let Some(given) = fields.get(name) else { return Ok(unless_given) };
    let read = given.as_u64().filter(|given| (least..=most).contains(given));
    let wants = || format!("must be a whole number of milliseconds from {least} to {most}, not {}", shown(given));
    read.ok_or_else(|| Invalid::new(format!("/{name}"), wants()))
}

fn overdue(given: Option<&Value>) -> Result<Overdue, Invalid> {
    let Some(given) = given else { return Ok(Overdue::default()) };
    let wants = || format!("must be \"drop\" or \"run_once\", not {}", shown(given));
    serde_json::from_value(given.clone()).map_err(|_unknown| Invalid::new("/overdue", wants()))
}

fn flag(given: Option<&Value>, name: &str) -> Result<bool, Invalid> {
    match given {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => Err(Invalid::new(format!("/{name}"), format!("must be true or false, not {}", shown(other)))),
    }
}

fn when(trigger: &Trigger) -> String {
    match trigger {
        Trigger::At(at) => format!("at {at}"),
        Trigger::Every(every) => format!("every {every}"),
        Trigger::Cron { pattern, time_zone } => format!("cron {pattern} {time_zone}"),
    }
}

async fn list(State(app): State<App>, Who(principal): Who, current: CurrentRequest, query: Query) -> Result<Json<ScheduleList>, Problem> {
    let (cursor, limit) = (query.value::<String>("cursor")?, query.limit()?);
    let schedules = app.schedules.list(&principal).await?;
    let (schedules, next) = page(schedules, |schedule| schedule.id.as_str(), cursor.as_deref(), limit);
    if schedules.iter().any(|schedule| schedule.caller != principal.name) {
        app.audit.read(&principal.name, &current.0, "schedules".to_owned(), "those of others listed");
    }
    Ok(Json(ScheduleList { schedules: schedules.iter().map(Schedule::view).collect::<Result<_, Problem>>()?, next }))
}

async fn read(
    State(app): State<App>,
    Who(principal): Who,
    current: CurrentRequest,
    PathId(id): PathId,
) -> Result<Json<ScheduleView>, Problem> {
    let schedule = app.schedules.find(&principal, &id).await?;
    if schedule.caller != principal.name {
        app.audit.read(&principal.name, &current.0, format!("schedule:{id}"), &format!("a schedule of {}", schedule.caller));
    }
    schedule.view().map(Json)
}

async fn delete(
    State(app): State<App>,
    Changing(principal): Changing,
    current: CurrentRequest,
    PathId(id): PathId,
    NoBody: NoBody,
) -> Result<Json<ScheduleView>, Problem> {
    let deleted = app.schedules.delete(&principal, &id).await?;
    changed(&app, &principal, &current, (&deleted, "deleted"))
}

async fn pause(
    State(app): State<App>,
    Changing(principal): Changing,
    current: CurrentRequest,
    PathId(id): PathId,
    NoBody: NoBody,
) -> Result<Json<ScheduleView>, Problem> {
    match app.schedules.pause(&principal, &id).await? {
        (schedule, true) => changed(&app, &principal, &current, (&schedule, "paused")),
        (schedule, false) => schedule.view().map(Json),
    }
}

async fn resume(
    State(app): State<App>,
    Changing(principal): Changing,
    current: CurrentRequest,
    PathId(id): PathId,
    NoBody: NoBody,
) -> Result<Json<ScheduleView>, Problem> {
    match app.schedules.resume(&principal, &id).await? {
        (schedule, true) => changed(&app, &principal, &current, (&schedule, "resumed")),
        (schedule, false) => schedule.view().map(Json),
    }
}

/// Notes in the trail what was done with a schedule, and shows it.
fn changed(
    app: &App,
    who: &Principal,
    current: &CurrentRequest,
    (schedule, done): (&Schedule, &str),
) -> Result<Json<ScheduleView>, Problem> {
    app.audit.changed(&who.name, &current.0, format!("schedule:{}", schedule.id), format!("schedule {done}: {}", when(&schedule.trigger)));
    schedule.view().map(Json)
}

async fn results(State(app): State<App>, Who(principal): Who, PathId(id): PathId, query: Query) -> Result<Json<ResultPage>, Problem> {
    let cursor = query.read("cursor", "a cursor as an earlier answer gave it in `next`, such as 1200", Place::read)?;
    app.schedules.results((&principal, &app.jobs), &id, (query.limit()?, cursor)).await.map(Json)
}

/// The schema of the body: the fields of a job, for each tool, and when.
fn request_schema(schemas: &mut SchemaGenerator) -> Schema {
    tool_job_schema(schemas, "Schedule", |job| {
        let Some(properties) = job.get_mut("properties").and_then(Value::as_object_mut) else { return };
        properties.retain(|name, _| JOB_FIELDS.contains(&name.as_str()));
        let own = json!({
            "at": {"description": "When, once.", "type": "string", "format": "date-time", "examples": ["2026-12-01T10:00:00Z"]},
            "every": {"description": "After how long again and again, in s, m, h or d: from 1s to 366d.", "type": "string", "pattern": "^[0-9]{1,8}[smhd]$", "examples": ["15m"]},
            "cron": {
                "description": "When: second, minute, hour, day of the month, month, day of the week.",
                "type": "string", "maxLength": 256, "pattern": "^ *[!-~]+( +[!-~]+){5} *$", "examples": ["0 30 2 * * *"],
            },
            "time_zone": {"description": "On whose clock, with `cron`: a zone of the IANA database.", "type": "string", "maxLength": 256, "default": "UTC", "examples": ["Europe/Berlin"]},
            "jitter_ms": {"description": "By how much at most each firing is put off by chance; at most `every`.", "type": "integer", "minimum": 0, "maximum": JITTER_MS_MAX, "default": 0},
            "overdue": {"description": "What becomes of a firing that is overdue.", "enum": ["drop", "run_once"], "default": "drop"},
            "overdue_after_ms": {"description": "How long after it is due that is.", "type": "integer", "minimum": 0, "maximum": OVERDUE_AFTER_MS_MAX, "default": OVERDUE_AFTER_MS},
            "paused": {"description": "Whether it waits until it is resumed.", "type": "boolean", "default": false},
        });
        properties.extend(own.as_object().cloned().unwrap_or_default());
        if let Some(job) = job.as_object_mut() {
            let one_of: Vec<Value> = ["at", "every", "cron"].iter().map(|name| json!({"required": [name]})).collect();
            job.insert("oneOf".to_owned(), one_of.into());
            job.insert("dependentRequired".to_owned(), json!({"time_zone": ["cron"]}));
            if let Some(Value::Array(examples)) = job.get_mut("examples") {
                for example in examples.iter_mut().filter_map(Value::as_object_mut) {
                    example.insert("every".to_owned(), "15m".into());
                }
            }
        }
    })
}
