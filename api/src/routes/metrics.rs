//! What is counted, for Prometheus.

use std::borrow::Cow;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use probeops_shared::access::Scope;
use probeops_shared::problem::Code;

use crate::App;
use crate::problem::{Problem, success};
use crate::routes::guard::Who;
use crate::routes::operation::{Answer, Needs, Operation, Route};

/// The content type of Prometheus' text format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) fn operations() -> Vec<Operation> {
    vec![Operation {
        route: Route::get("/metrics", read),
        needs: Needs::Scope(&[Scope::MetricsRead]),
        id: "readMetrics".into(),
        summary: "What this process has counted".into(),
        description: "Jobs, requests and nodes, in Prometheus' text format; each API counts for itself. A credential that is limited to some \
                      regions, nodes or labels has no others counted in `probeops_nodes`.",
        query: Cow::Borrowed(&[]),
        headers: &[],
        body: None,
        answers: vec![Answer {
            status: success::DONE,
            description: "The metrics.",
            schema: None,
            also: &[("text/plain", "Text format 0.0.4.")],
        }],
        problems: &[],
    }]
}

async fn read(State(app): State<App>, Who(principal): Who) -> Result<Response, Problem> {
    let regions = app.roster.look(|nodes| nodes.summaries(|region| principal.sees_region(region), |node| principal.sees_node(node)));
    let text = app.metrics.text(&regions, app.broker.ready().is_ok());
    let text = text.map_err(|error| Problem::new(Code::Internal, format!("the metrics cannot be written: {error}")))?;
    Ok(([(CONTENT_TYPE, TEXT)], text).into_response())
}
