//! What nodes ask to come by their credentials. They have no bearer credential: what they sign says who they are.

use std::borrow::Cow;

use axum::Json;
use axum::extract::State;
use probeops_shared::enroll::{Challenge, ChallengeRequest, ConfirmRequest, EnrollRequest, NodeCredential};
use probeops_shared::json;
use probeops_shared::problem::Code;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::App;
use crate::problem::Problem;
use crate::problem::success;
use crate::routes::body::JsonBody;
use crate::routes::client::Client;
use crate::routes::frame::CurrentRequest;
use crate::routes::operation::{Answer, Needs, Operation, Route, schema};

/// The fields of a request for a credential.
const ENROLL_FIELDS: [&str; 10] =
    ["token", "public_key", "challenge", "signature", "node", "machine", "mark", "next_mark", "new_public_key", "new_signature"];

pub(super) fn operations() -> Vec<Operation> {
    vec![
        Operation {
            route: Route::post("/v1/enroll/challenge", challenge),
            needs: Needs::Nothing,
            id: "challengeNode".into(),
            summary: "Get a challenge to sign".into(),
            description: "For agents. What the private half of this key signs within a minute shows that the node has it.",
            query: Cow::Borrowed(&[]),
            headers: &[],
            body: Some(schema::<ChallengeRequest>),
            answers: vec![Answer::json(success::DONE, "The challenge.", schema::<Challenge>)],
            problems: &[Code::RateLimited],
        },
        Operation {
            route: Route::post("/v1/enroll", enroll),
            needs: Needs::Nothing,
            id: "enrollNode".into(),
            summary: "Enrol a node, or renew its credential".into(),
            description: "For agents. With a token, or with a key that an operator registered, a machine becomes a node; its first credential is \
                          for a few minutes, until it confirms that the broker takes it. A node that is one renews its credential, or puts \
                          another key in the place of its own, at most once an hour, by signature alone.",
            query: Cow::Borrowed(&[]),
            headers: &[],
            body: Some(schema::<EnrollRequest>),
            answers: vec![Answer::json(success::DONE, "The credential.", schema::<NodeCredential>)],
            problems: &[Code::Forbidden, Code::Conflict, Code::RateLimited, Code::Unavailable],
        },
        Operation {
            route: Route::post("/v1/enroll/confirm", confirm),
            needs: Needs::Nothing,
            id: "confirmNode".into(),
            summary: "Confirm that the broker takes a credential".into(),
            description: "For agents. Uses up the token that the node enrolled with, or revokes the key that it had before, and gives it a \
                          credential that lasts. A node of which nothing is to be confirmed is refused (409): it renews its credential.",
            query: Cow::Borrowed(&[]),
            headers: &[],
            body: Some(schema::<ConfirmRequest>),
            answers: vec![Answer::json(success::DONE, "The credential that lasts.", schema::<NodeCredential>)],
            problems: &[Code::Forbidden, Code::Conflict, Code::RateLimited, Code::Unavailable],
        },
    ]
}

async fn challenge(State(app): State<App>, from: Client, JsonBody(body): JsonBody) -> Result<Json<Challenge>, Problem> {
    let request = challenge_of(&body)?;
    app.enroll.challenge(&request.public_key, from.0).map(Json)
}

async fn enroll(
    State(app): State<App>,
    current: CurrentRequest,
    from: Client,
    JsonBody(body): JsonBody,
) -> Result<Json<NodeCredential>, Problem> {
    let request = enroll_of(&body)?;
    Box::pin(app.enroll.enroll(&request, from.0, &current.0)).await.map(Json)
}

async fn confirm(
    State(app): State<App>,
    current: CurrentRequest,
    from: Client,
    JsonBody(body): JsonBody,
) -> Result<Json<NodeCredential>, Problem> {
    let request = confirm_of(&body)?;
    Box::pin(app.enroll.confirm(&request, from.0, &current.0)).await.map(Json)
}

/// Reads the request for a challenge.
pub(crate) fn challenge_of(body: &[u8]) -> Result<ChallengeRequest, Problem> {
    parse(body, &["public_key"])
}

/// Reads the request for a credential.
pub(crate) fn enroll_of(body: &[u8]) -> Result<EnrollRequest, Problem> {
    parse(body, &ENROLL_FIELDS)
}

/// Reads that a credential is taken.
pub(crate) fn confirm_of(body: &[u8]) -> Result<ConfirmRequest, Problem> {
    parse(body, &["public_key", "challenge", "signature", "node"])
}

fn parse<T: DeserializeOwned>(body: &[u8], fields: &[&str]) -> Result<T, Problem> {
    let fields = json::parse_object(body, fields).map_err(Problem::invalid)?;
    json::typed(Value::Object(fields)).map_err(Problem::invalid)
}
