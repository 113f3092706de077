//! The routes: one file a resource, and one table of all operations, from which router and document are made.

mod audit;
mod batch;
mod body;
pub(crate) mod client;
mod deliveries;
mod docs;
pub(crate) mod enroll;
mod enroll_tokens;
mod fit;
mod frame;
mod guard;
mod health;
mod idempotency;
mod jobs;
mod keys;
pub(crate) mod knock;
mod limits;
mod metrics;
mod nodes;
pub(crate) mod operation;
mod path_id;
mod prefer;
mod query;
mod run;
mod schedules;
mod secrets;
mod services;
mod stream;
mod tools;

use std::sync::Arc;

use axum::Router;
use axum::http::{Method, Uri};
use axum::middleware::from_fn_with_state;
use probeops_shared::problem::Code;

use crate::App;
use crate::problem::Problem;
use crate::routes::fit::Fit;
use crate::routes::guard::Gate;
use crate::routes::operation::Operation;

pub(crate) use frame::HEADERS_BYTES_MAX;
pub(crate) use idempotency::KEY_CHARS_MAX;
#[cfg(test)]
pub(crate) use jobs::JOB_FIELDS;
pub(crate) use jobs::SELECTORS_MAX;
pub(crate) use schedules::scheduled_job;

/// Everything that is answered.
pub fn router(app: App) -> Router {
    let mut router = Router::new();
    for operation in operations() {
        let fit = Fit::of(&operation);
        let gate = Arc::new(Gate { app: app.clone(), needs: operation.needs, query: operation.query, fit });
        router = router.route(&operation.route.path, operation.route.handler.layer(from_fn_with_state(gate, guard::guard)));
    }
    docs::add(router)
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state((app.audit.clone(), app.metrics.clone(), app.jobs.tracer().clone()), frame::frame))
        .with_state(app)
}

/// The table.
pub(crate) fn operations() -> Vec<Operation> {
    [
        jobs::operations(),
        batch::operations(),
        run::operations(),
        tools::operations(),
        nodes::operations(),
        enroll_tokens::operations(),
        enroll::operations(),
        keys::operations(),
        services::operations(),
        limits::operations(),
        secrets::operations(),
        deliveries::operations(),
        schedules::operations(),
        audit::operations(),
        metrics::operations(),
        health::operations(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

async fn not_found(uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(100).collect();
    Problem::new(Code::NotFound, format!("there is nothing at `{path}`; /openapi.json says what there is"))
}

async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(100).collect();
    Problem::new(Code::MethodNotAllowed, format!("`{path}` cannot be asked with {method}; the header Allow says with what"))
}
