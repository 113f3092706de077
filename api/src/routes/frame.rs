//! Around every request: its id, the last look at problems, and the audit record of what was refused.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::header::{ACCEPT, CACHE_CONTROL};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use probeops_shared::ids::RequestId;
use probeops_shared::problem::Code;

use crate::audit::{Audit, Refusal};
use crate::metrics::Metrics;
use crate::problem::{Problem, Raised, keep_allow};
use crate::routes::guard::Who;
use crate::routes::run;
use crate::trace::{Context, TRACEPARENT, Tracer, spans};

/// The header with a request's id, in and out.
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The longest path with its query.
const TARGET_BYTES_MAX: usize = 8 * 1024;
/// The largest headers, names and values together. The listener lets twice as much through, so that most who exceed it are told in our words.
pub(crate) const HEADERS_BYTES_MAX: usize = 32 * 1024;
/// The most headers; the listener itself refuses more than a hundred.
const HEADERS_MAX: usize = 80;

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

pub(super) async fn frame(State((audit, metrics, tracer)): State<(Audit, Metrics, Tracer)>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = request_id(request.headers());
    let accept = accepted(request.headers());
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let route = request.extensions().get::<MatchedPath>().cloned();
    request.extensions_mut().insert(CurrentRequest(Arc::clone(&id)));
    let span = tracer.enter(request.headers_mut());
    let traceparent = traceparent(request.headers());
    let mut response = match check_size(&request) {
        Ok(()) => caught(next.run(request), &id).await,
        Err(problem) => problem.into_response(),
    };
    if let Some(Raised(problem)) = response.extensions_mut().remove::<Raised>() {
        let who = response.extensions().get::<Who>().map(|who| who.0.name.clone());
        let request = format!("{method} {}", uri.path());
        let asked = route.as_ref().and_then(|route| run::asked(route.as_str(), &uri)).filter(|_| !problem.names_something());
        let problem = asked.map_or_else(|| Problem::clone(&problem), |asked| Problem::clone(&problem).asked(asked));
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
    if let Some(traceparent) = traceparent.and_then(|traceparent| traceparent.header()) {
        headers.insert(TRACEPARENT, traceparent);
    }
    // What is not in the table, path or method, has no name of its own: anybody could make up any number of them.
    let route = route.as_ref().map_or("", MatchedPath::as_str);
    let known = [Method::GET, Method::HEAD, Method::POST, Method::DELETE].contains(&method);
    let method_name = if known && !route.is_empty() { method.as_str() } else { "other" };
    if let Some(span) = span {
        let principal = response.extensions().get::<Who>().map(|who| who.0.name.as_str());
        let status = response.status().as_u16();
        tracer.request(&span, began, spans::Request { method: &method, route, path: uri.path(), status, id: &id, principal });
    }
    metrics.answered(method_name, route, response.status().as_u16(), began.elapsed());
    tracing::debug!(request.id = %id, status = response.status().as_u16(), elapsed_ms = began.elapsed().as_secs_f64() * 1000.0, "{method} {}", uri.path());
    response
}

/// The trace context if it has the form that W3C gives it; anything else is none.
pub(super) fn traceparent(headers: &HeaderMap) -> Option<Context> {
    Context::of(headers)
}

/// Refuses a path or headers that nothing of ours needs.
fn check_size(request: &Request) -> Result<(), Problem> {
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    if target > TARGET_BYTES_MAX {
        let detail = format!("path and query have {target} bytes; at most {TARGET_BYTES_MAX} are read");
        return Err(Problem::new(Code::UriTooLong, detail));
    }
    let headers = request.headers();
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if bytes > HEADERS_BYTES_MAX || headers.len() > HEADERS_MAX {
        let detail = format!(
            "there are {} headers with {bytes} bytes; at most {HEADERS_MAX} with {HEADERS_BYTES_MAX} bytes are read",
            headers.len()
        );
        return Err(Problem::new(Code::HeadersTooLarge, detail));
    }
    Ok(())
}

/// The caller's own id if it is a sane one, else a new one.
pub(crate) fn request_id(headers: &HeaderMap) -> Arc<str> {
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

/// What a handler answers, or that it panicked.
async fn caught(answer: impl Future<Output = Response>, id: &str) -> Response {
    AssertUnwindSafe(answer).catch_unwind().await.unwrap_or_else(|panic| panicked(&*panic, id))
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

    #[tokio::test]
    async fn a_panic_becomes_a_problem_that_says_where_to_look() {
        let handler = async { if true { panic!("index out of bounds") } else { Response::default() } };
        let mut response = caught(handler, "r-1").await;
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
