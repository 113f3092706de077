//! Whether the API lives, whether it can take jobs, and what it offers. Anybody may ask.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use probeops_shared::problem::Code;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;
use tokio::sync::Mutex;

use crate::App;
use crate::openapi;
use crate::problem::{Problem, success};
use crate::routes::operation::{Answer, Needs, Operation, Route, schema};

/// An answer of the broker counts for so long: strangers may ask, and must not burden it.
const READINESS_FRESH: Duration = Duration::from_secs(1);

pub(super) fn operations() -> Vec<Operation> {
    let readiness = Arc::new(Readiness::default());
    let operation = |route, id: &'static str, summary: &'static str, description, answer| Operation {
        route,
        needs: Needs::Nothing,
        id: id.into(),
        summary: summary.into(),
        description,
        query: Cow::Borrowed(&[]),
        headers: &[],
        body: None,
        answers: vec![answer],
        problems: &[],
    };
    let health = |description| Answer::json(success::DONE, description, schema::<Health>);
    vec![
        operation(
            Route::get("/livez", async || Json(Health { status: "alive" })),
            "live",
            "Whether the process answers",
            "Says nothing of the broker: restarting this process would not bring it back.",
            health("It does."),
        ),
        Operation {
            problems: &[Code::Unavailable],
            ..operation(
                Route::get("/readyz", async move |State(app): State<App>| readiness.check(&app).await),
                "ready",
                "Whether jobs can be taken now",
                "Asks the broker and its storage. Where no job runs without its record, an audit trail that takes none is a reason, too.",
                health("They can."),
            )
        },
        operation(
            Route::get("/openapi.json", async || ([(CONTENT_TYPE, "application/json")], openapi::document()).into_response()),
            "describe",
            "This document",
            "OpenAPI 3.1, made from the same table as the routes.",
            Answer::json(success::DONE, "The document.", any_object),
        ),
    ]
}

/// How it goes.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
struct Health {
    /// In a word.
    status: &'static str,
}

fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object"})
}

/// The last answer of the broker.
#[derive(Debug, Default)]
struct Readiness(Mutex<Option<(Instant, Result<(), String>)>>);

impl Readiness {
    async fn check(&self, app: &App) -> Result<Json<Health>, Problem> {
        // Held while the broker is asked: whoever comes meanwhile gets the same answer.
        let mut last = self.0.lock().await;
        let fresh = last.as_ref().filter(|(at, _)| at.elapsed() < READINESS_FRESH).map(|(_, answer)| answer.clone());
        let answer = if let Some(answer) = fresh {
            answer
        } else {
            let answer = app.broker.storage_ready().await.and_then(|()| app.audit.ready());
            *last = Some((Instant::now(), answer.clone()));
            answer
        };
        answer.map_err(|why| Problem::new(Code::Unavailable, why))?;
        Ok(Json(Health { status: "ready" }))
    }
}
