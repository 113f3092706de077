//! Deliveries: what became of callbacks.

use std::borrow::Cow;

use axum::Json;
use axum::extract::State;
use probeops_shared::access::Scope;
use probeops_shared::ids::JobId;
use probeops_shared::problem::Code;
use schemars::JsonSchema;
use serde::Serialize;

use crate::App;
use crate::callbacks::deliveries::{Delivery, DeliveryStatus, Filter};
use crate::callbacks::origin_of;
use crate::problem::{Problem, success};
use crate::routes::body::NoBody;
use crate::routes::frame::CurrentRequest;
use crate::routes::guard::{Changing, Who};
use crate::routes::operation::{Answer, Needs, Operation, Parameter, Route, schema};
use crate::routes::path_id::PathId;
use crate::routes::query::{PageLimit, Place, Query};

const READS: Needs = Needs::Scope(&[Scope::JobsRead, Scope::JobsWrite]);

/// Query parameters of the list.
static LISTING: [Parameter; 4] = [
    Parameter::new("job", "Only that of this job.", schema::<JobId>),
    Parameter::new("status", "Only those of which this became.", schema::<DeliveryStatus>),
    Parameter::new("limit", "How many entries at most.", schema::<PageLimit>),
    Parameter::new("cursor", "Where to go on: `next` of the page before.", schema::<Place>),
];

pub(super) fn operations() -> Vec<Operation> {
    vec![
        Operation {
            route: Route::get("/v1/deliveries", list),
            needs: READS,
            id: "listDeliveries".into(),
            summary: "List your deliveries".into(),
            description: "What became of the callbacks of your jobs, with their last attempts; those that changed last are at the end. They are \
                          kept for seven days. A page that looked at much and found little is short or empty and still says `next`.",
            query: Cow::Borrowed(&LISTING),
            headers: &[],
            body: None,
            answers: vec![Answer::json(success::DONE, "The deliveries.", schema::<DeliveryList>)],
            problems: &[Code::Unavailable],
        },
        Operation {
            route: Route::get("/v1/deliveries/{id}", read),
            needs: READS,
            id: "readDelivery".into(),
            summary: "Read one of your deliveries".into(),
            description: "What became of a callback, with its last 20 attempts.",
            query: Cow::Borrowed(&[]),
            headers: &[],
            body: None,
            answers: vec![Answer::json(success::DONE, "The delivery.", schema::<Delivery>)],
            problems: &[Code::NotFound, Code::Unavailable],
        },
        Operation {
            route: Route::post("/v1/deliveries/{id}/replay", replay),
            needs: Needs::Scope(&[Scope::JobsWrite]),
            id: "replayDelivery".into(),
            summary: "Deliver a callback again".into(),
            description: "Tries a callback anew that is over, under the same `webhook-id`. One that is still tried is a conflict, and so is one \
                          whose job is no longer kept. It counts as one run of your rate.",
            query: Cow::Borrowed(&[]),
            headers: &[],
            body: None,
            answers: vec![Answer::json(success::DONE, "The delivery, pending.", schema::<Delivery>)],
            problems: &[Code::NotFound, Code::Conflict, Code::RateLimited, Code::Unavailable],
        },
    ]
}

/// A page of deliveries.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct DeliveryList {
    /// The deliveries, those that changed last at the end.
    deliveries: Vec<Delivery>,
    /// Give this as `cursor` to read on; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

async fn list(State(app): State<App>, Who(principal): Who, current: CurrentRequest, query: Query) -> Result<Json<DeliveryList>, Problem> {
    let words: Vec<&str> = DeliveryStatus::ALL.iter().map(|(word, _)| *word).collect();
    let status = |text: &str| DeliveryStatus::ALL.iter().find(|(word, _)| *word == text).map(|(_, status)| *status);
    let filter = Filter {
        job: query.value("job")?,
        status: query.read("status", &format!("one of {}", words.join(", ")), status)?,
        limit: query.limit()?,
        cursor: query.read("cursor", "`next` of the page before", Place::read)?.unwrap_or_default(),
    };
    let (deliveries, next) = app.callbacks.deliveries(&principal, &filter).await?;
    if deliveries.iter().any(|delivery| delivery.caller != principal.name) {
        app.audit.read(&principal.name, &current.0, "deliveries".to_owned(), "those of others listed");
    }
    Ok(Json(DeliveryList { deliveries, next: next.map(|next| next.to_string()) }))
}

async fn read(State(app): State<App>, Who(principal): Who, current: CurrentRequest, PathId(id): PathId) -> Result<Json<Delivery>, Problem> {
    let delivery = app.callbacks.delivery(&principal, &id).await?;
    if delivery.caller != principal.name {
        app.audit.read(&principal.name, &current.0, format!("delivery:{id}"), &format!("a delivery of {}", delivery.caller));
    }
    Ok(Json(delivery))
}

async fn replay(
    State(app): State<App>,
    Changing(principal): Changing,
    current: CurrentRequest,
    PathId(id): PathId,
    NoBody: NoBody,
) -> Result<Json<Delivery>, Problem> {
    let delivery = app.callbacks.replay(&principal, &id, &app.jobs).await?;
    app.audit.changed(&principal.name, &current.0, format!("delivery:{id}"), format!("asked for again, to {}", origin_of(&delivery.url)));
    Ok(Json(delivery))
}
