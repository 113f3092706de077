//! What the caller has left of his limits.

use std::borrow::Cow;

use axum::Json;
use axum::extract::State;
use probeops_shared::problem::Code;

use crate::App;
use crate::limits::LimitsDocument;
use crate::problem::{Problem, success};
use crate::routes::guard::Who;
use crate::routes::operation::{Answer, Needs, Operation, Route, schema};

pub(super) fn operations() -> Vec<Operation> {
    vec![Operation {
        route: Route::get("/v1/limits", read),
        needs: Needs::Credential,
        id: "readLimits".into(),
        summary: "Read your limits and what is left of them".into(),
        description: "What your credential may do and what narrows that; your rate and how many runs you may have at once, as all replicas of the API count them, and the limits of nodes, which all \
                      callers share. What is not limited is absent. Asking costs nothing.",
        query: Cow::Borrowed(&[]),
        headers: &[],
        body: None,
        answers: vec![Answer::json(success::DONE, "The limits and what is left of them.", schema::<LimitsDocument>)],
        problems: &[Code::Unavailable],
    }]
}

async fn read(State(app): State<App>, Who(principal): Who) -> Result<Json<LimitsDocument>, Problem> {
    app.jobs.limits(&principal).await.map(Json)
}
