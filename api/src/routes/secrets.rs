//! Secrets that sign callbacks.

use std::borrow::Cow;

use axum::Json;
use axum::extract::State;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use probeops_shared::access::Scope;
use probeops_shared::invalid::Invalid;
use probeops_shared::json;
use probeops_shared::problem::Code;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::App;
use crate::access::keys::{NAME_LENGTH_MAX, check_name};
use crate::callbacks::CallbackUrl;
use crate::callbacks::secrets::{SecretRecord, SecretView};
use crate::problem::{Problem, success};
use crate::routes::body::{JsonBody, NoBody};
use crate::routes::frame::CurrentRequest;
use crate::routes::guard::{Changing, Who};
use crate::routes::operation::{Answer, Needs, Operation, Route, schema};
use crate::routes::path_id::PathId;

const NEEDS: Needs = Needs::Scope(&[Scope::JobsWrite]);
/// The fields of a request for a secret.
const FIELDS: [&str; 2] = ["name", "origin"];

pub(super) fn operations() -> Vec<Operation> {
    let operation = |route, id: &'static str, summary: &'static str, description| Operation {
        route,
        needs: NEEDS,
        id: id.into(),
        summary: summary.into(),
        description,
        query: Cow::Borrowed(&[]),
        headers: &[],
        body: None,
        answers: Vec::new(),
        problems: &[Code::NotFound, Code::Conflict, Code::RateLimited, Code::Unavailable],
    };
    vec![
        Operation {
            body: Some(schema::<SecretRequest>),
            answers: vec![Answer::json(success::CREATED, "The secret.", schema::<SecretShown>)],
            problems: &[Code::Conflict, Code::RateLimited, Code::Unavailable],
            ..operation(
                Route::post("/v1/secrets", create),
                "createSecret",
                "Make a secret that signs callbacks",
                "The secret is shown in this answer and never again. It signs callbacks to one origin (scheme, host, port), and only yours.",
            )
        },
        Operation {
            answers: vec![Answer::json(success::DONE, "The secrets, by id.", schema::<SecretList>)],
            problems: &[Code::Unavailable],
            ..operation(
                Route::get("/v1/secrets", list),
                "listSecrets",
                "List your secrets",
                "All of yours, without the secrets themselves.",
            )
        },
        Operation {
            answers: vec![Answer::json(success::DONE, "The new secret.", schema::<SecretShown>)],
            ..operation(
                Route::post("/v1/secrets/{id}/rotate", rotate),
                "rotateSecret",
                "Replace a secret",
                "For 24 hours the old one signs beside the new one: a receiver takes a callback when it knows either.",
            )
        },
        Operation {
            answers: vec![Answer::json(success::DONE, "The secret that was deleted.", schema::<SecretView>)],
            problems: &[Code::NotFound, Code::RateLimited, Code::Unavailable],
            ..operation(
                Route::delete("/v1/secrets/{id}", delete),
                "deleteSecret",
                "Delete a secret",
                "Callbacks that it was to sign are not sent any more.",
            )
        },
    ]
}

/// A secret to be made.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(example = serde_json::json!({"name": "n8n", "origin": "https://n8n.example"}))]
struct SecretRequest {
    /// What it is for.
    #[schemars(length(min = 1, max = NAME_LENGTH_MAX))]
    name: String,
    /// The scheme, host and port whose callbacks it signs.
    #[schemars(length(min = 1))]
    origin: String,
}

/// A secret that was made.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct SecretShown {
    /// The secret itself (`whsec_…`); it is shown only here.
    secret: String,
    /// What is shown of it later.
    #[serde(flatten)]
    view: SecretView,
}

/// All secrets of a principal.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct SecretList {
    /// The secrets, by id.
    secrets: Vec<SecretView>,
}

impl SecretShown {
    fn of(record: &SecretRecord) -> Self {
        Self { secret: record.newest().to_owned(), view: record.view() }
    }
}

async fn create(
    State(app): State<App>,
    Changing(principal): Changing,
    current: CurrentRequest,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let fields = json::parse_object(&body, &FIELDS).map_err(Problem::invalid)?;
    let SecretRequest { name, origin } = json::typed(Value::Object(fields)).map_err(Problem::invalid)?;
    check_name(&name).map_err(|detail| Problem::invalid(Invalid::new("/name", detail)))?;
    let origin = self::origin(&origin).map_err(|detail| Problem::invalid(Invalid::new("/origin", detail)))?;
    let record = app.callbacks.secrets().create(&principal.name, name, origin).await?;
    let detail = format!("secret made: {}, for {}", record.name, record.origin);
    app.audit.changed(&principal.name, &current.0, format!("secret:{}", record.id), detail);
    let headers = [(LOCATION, format!("/v1/secrets/{}", record.id))];
    Ok((success::CREATED, headers, Json(SecretShown::of(&record))).into_response())
}

/// An origin in its normal form.
fn origin(given: &str) -> Result<String, String> {
    let url: CallbackUrl = given.parse()?;
    if given.contains('?') || given.trim_end_matches('/').matches('/').count() > 2 {
        return Err(format!("must be a scheme, a host and a port only, such as {}", url.origin()));
    }
    Ok(url.origin())
}

async fn list(State(app): State<App>, Who(principal): Who) -> Result<Json<SecretList>, Problem> {
    let secrets = app.callbacks.secrets().list(&principal.name).await?;
    Ok(Json(SecretList { secrets: secrets.iter().map(SecretRecord::view).collect() }))
}

async fn rotate(
    State(app): State<App>,
    Changing(principal): Changing,
    current: CurrentRequest,
    PathId(id): PathId,
    NoBody: NoBody,
) -> Result<Json<SecretShown>, Problem> {
    let record = app.callbacks.secrets().rotate(&principal.name, &id).await?.ok_or_else(|| missing(&id))?;
    app.audit.changed(&principal.name, &current.0, format!("secret:{}", record.id), format!("secret rotated: {}", record.name));
    Ok(Json(SecretShown::of(&record)))
}

async fn delete(
    State(app): State<App>,
    Changing(principal): Changing,
    current: CurrentRequest,
    PathId(id): PathId,
    NoBody: NoBody,
) -> Result<Json<SecretView>, Problem> {
    let record = app.callbacks.secrets().delete(&principal.name, &id).await?.ok_or_else(|| missing(&id))?;
    app.audit.changed(&principal.name, &current.0, format!("secret:{}", record.id), format!("secret deleted: {}", record.name));
    Ok(Json(record.view()))
}

fn missing(id: &str) -> Problem {
    let shown: String = id.chars().take(64).collect();
    Problem::new(Code::NotFound, format!("there is no secret `{shown}` of yours; /v1/secrets lists them"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        for (given, normal) in [
            ("https://N8N.example", "https://n8n.example"),
            ("https://n8n.example:443/", "https://n8n.example"),
            ("http://10.0.0.1:5678", "http://10.0.0.1:5678"),
        ] {
            assert_eq!(origin(given).as_deref(), Ok(normal));
        }
        for given in ["https://n8n.example/x", "https://n8n.example/?a", "n8n.example", "https://u@n8n.example", ""] {
            assert!(origin(given).is_err(), "{given}");
        }
    }
}
