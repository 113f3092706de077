//! Around every request: its id, the last look at problems, and the audit record of what was refused.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::{ACCEPT, CACHE_CONTROL};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use probeops_shared::ids::RequestId;
use probeops_shared::problem::Code;

use crate::audit::{Audit, Refusal};
use crate::problem::{Problem, Raised, keep_allow};
use crate::routes::guard::Who;

/// The header with a request's id, in and out.
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id of the request being answered.
#[derive(Clone, Debug)]
pub(super) struct CurrentRequest(pub(super) Arc<str>);

impl<S: Sync> FromRequestParts<S> for CurrentRequest {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let current = parts.extensions.get::<Self>().cloned();
        current.ok_or_else(|| Problem::new(Code::Internal, "the request has no id"))
    }
}

pub(super) async fn frame(State(audit): State<Audit>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = request_id(request.headers());
    let accept = accepted(request.headers());
    let (method, uri) = (request.method().clone(), request.uri().clone());
    request.extensions_mut().insert(CurrentRequest(Arc::clone(&id)));
    let answered = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    let mut response = answered.unwrap_or_else(|panic| panicked(&*panic, &id));
    if let Some(Raised(problem)) = response.extensions_mut().remove::<Raised>() {
        let who = response.extensions().get::<Who>().map(|who| who.0.name.clone());
        let request = format!("{method} {}", uri.path());
        if is_recorded(&method, &problem) {
            audit.refused(&Refusal { principal: who.as_deref(), request_id: &id, request: &request, problem: &problem });
        }
        log(&problem, &request, who.as_deref(), &id);
        let mut answer = problem.answer(accept.as_deref(), &id);
        keep_allow(response.headers(), answer.headers_mut());
        response = answer;
    }
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(X_REQUEST_ID, id);
    }
    tracing::debug!(request.id = %id, status = response.status().as_u16(), elapsed_ms = began.elapsed().as_secs_f64() * 1000.0, "{method} {}", uri.path());
    response
}

/// The caller's own id if it is a sane one, else a new one.
fn request_id(headers: &HeaderMap) -> Arc<str> {
    let given = headers.get(X_REQUEST_ID).and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<RequestId>().ok());
    Arc::from(given.unwrap_or_default().as_str())
}

fn accepted(headers: &HeaderMap) -> Option<String> {
    let given: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    (!given.is_empty()).then(|| given.join(","))
}

/// Whoever was refused for who he is or for what he asked about is recorded, and every attempt to change something or to run a job.
fn is_recorded(method: &Method, problem: &Problem) -> bool {
    let refused = matches!(problem.code(), Code::Unauthorized | Code::Forbidden);
    refused || problem.names_something() || !method.is_safe()
}

fn log(problem: &Problem, request: &str, principal: Option<&str>, id: &str) {
    match problem.code() {
        Code::Internal => tracing::error!(request.id = id, principal, "{request}: {problem}"),
        Code::Unavailable => tracing::warn!(request.id = id, principal, "{request}: {problem}"),
        _ => tracing::debug!(request.id = id, principal, "{request}: {problem}"),
    }
}

fn panicked(panic: &(dyn Any + Send), id: &str) -> Response {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(request.id = id, "a handler panicked: {}", text.unwrap_or("it did not say why"));
    Problem::new(Code::Internal, "the request met a fault of this API; its log says more under the request_id").into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Asked;

    #[test]
    fn a_sane_request_id_is_kept_and_any_other_replaced() {
        let of = |value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(X_REQUEST_ID, HeaderValue::from_bytes(value).unwrap());
            request_id(&headers)
        };
        assert_eq!(&*of(b"n8n-42.1_x"), "n8n-42.1_x");
        for bad in [&b""[..], b"a b", b"\xff", b"<script>", "x".repeat(65).as_bytes()] {
            assert!(uuid::Uuid::try_parse(&of(bad)).is_ok_and(|id| id.get_version_num() == 7));
        }
    }

    #[test]
    fn a_panic_becomes_a_problem_that_says_where_to_look() {
        let mut response = panicked(&"index out of bounds", "r-1");
        assert!(response.status().is_server_error());
        let Raised(problem) = response.extensions_mut().remove::<Raised>().unwrap();
        assert!(problem.code() == Code::Internal && !problem.detail().contains("bounds"), "{problem}");
    }

    #[test]
    fn refusals_are_recorded_and_reading_what_is_not_there_is_not() {
        let asked = Asked { target: "job:somebody-else's".to_owned(), ..Asked::default() };
        for (method, problem, recorded) in [
            (Method::GET, Problem::new(Code::Unauthorized, ""), true),
            (Method::GET, Problem::new(Code::Forbidden, ""), true),
            (Method::GET, Problem::new(Code::NotFound, ""), false),
            (Method::GET, Problem::new(Code::NotFound, "").asked(asked), true),
            (Method::POST, Problem::new(Code::Invalid, ""), true),
            (Method::POST, Problem::new(Code::RateLimited, ""), true),
            (Method::DELETE, Problem::new(Code::NotFound, ""), true),
        ] {
            assert_eq!(is_recorded(&method, &problem), recorded, "{method} {problem}");
        }
    }
}
