//! Problems: errors of the HTTP API (RFC 9457). The only file that picks a status.

mod negotiate;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use probeops_shared::access::Scope;
use probeops_shared::invalid::Invalid;
use probeops_shared::problem::Code;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::limits::Allowance;

pub(crate) use negotiate::preference;

/// When to try again after a problem that passes by itself and does not say when.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

/// An error of the HTTP API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    code: Code,
    detail: String,
    errors: Vec<Invalid>,
    retry_after: Option<Duration>,
    challenge: Option<Challenge>,
    asked: Option<Box<Asked>>,
    allowance: Option<Box<Allowance>>,
}

/// What a 401 or 403 tells a client about its credential (RFC 6750).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Challenge {
    /// There was none.
    Missing,
    /// It is not accepted.
    Refused,
    /// It lacks this scope.
    Scope(Scope),
}

/// The job or thing that a refused request was about, for the audit trail.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The tool as given.
    pub tool: String,
    /// The target as given, or the thing to be changed.
    pub target: String,
}

/// A problem as it is sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Problem")]
pub struct ProblemDocument {
    /// Identifies the kind of problem: `urn:probeops:problem:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind of problem in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong with this request, and what would be right.
    pub detail: String,
    /// The kind of problem, for programs.
    pub code: Code,
    /// What exactly is wrong, and where.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Invalid>,
    /// Finds the request in the log and in the audit trail.
    pub request_id: String,
}

impl Problem {
    /// A problem of this kind.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), errors: Vec::new(), retry_after: None, challenge: None, asked: None, allowance: None }
    }

    /// The same, said of one of several things.
    #[must_use]
    pub(crate) fn of(self, what: &str) -> Self {
        Self { detail: format!("{what}: {}", self.detail), ..self }
    }

    /// A request that is malformed in this way.
    pub fn invalid(invalid: Invalid) -> Self {
        Self::new(Code::Invalid, invalid.to_string()).at(invalid)
    }

    /// A request without a credential.
    pub fn no_credential(detail: impl Into<String>) -> Self {
        Self { challenge: Some(Challenge::Missing), ..Self::new(Code::Unauthorized, detail) }
    }

    /// A credential that is not accepted.
    pub fn bad_credential(detail: impl Into<String>) -> Self {
        Self { challenge: Some(Challenge::Refused), ..Self::new(Code::Unauthorized, detail) }
    }

    /// A credential that lacks a scope.
    pub fn missing_scope(scope: Scope, scopes: &[Scope]) -> Self {
        let held: Vec<&str> = scopes.iter().map(|scope| scope.as_str()).collect();
        let held = if held.is_empty() { "none".to_owned() } else { held.join(", ") };
        let detail = format!("this needs the scope `{scope}`; your credential has: {held}");
        Self { challenge: Some(Challenge::Scope(scope)), ..Self::new(Code::Forbidden, detail) }
    }

    /// A request in which all this is wrong.
    pub fn all_invalid(errors: Vec<Invalid>) -> Self {
        let detail = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        Self { errors, ..Self::new(Code::Invalid, detail) }
    }

    /// The same of a request whose fields came as query parameters.
    #[must_use]
    pub fn in_query(self) -> Self {
        let named = |invalid: Invalid| {
            let mut tokens = invalid.pointer.split('/').skip(1);
            let name = tokens.next().map(|first| if first == "parameters" { tokens.next().unwrap_or(first) } else { first });
            match name {
                Some(name) => Invalid::new(format!("?{name}"), invalid.detail),
                None => invalid,
            }
        };
        if self.code == Code::Invalid && self.detail == Self::all_invalid(self.errors.clone()).detail {
            let again = Self::all_invalid(self.errors.iter().cloned().map(named).collect());
            return Self { errors: again.errors, detail: again.detail, ..self };
        }
        Self { errors: self.errors.into_iter().map(named).collect(), ..self }
    }

    /// The same of a request that has the right form and cannot be all the same.
    #[must_use]
    pub(crate) fn of_what_cannot_be(self) -> Self {
        Self { code: Code::Unprocessable, ..self }
    }

    /// The same of a part of a request.
    #[must_use]
    pub fn below(self, pointer: &str) -> Self {
        let named = |invalid: &Invalid| Invalid { pointer: format!("{pointer}{}", invalid.pointer), ..invalid.clone() };
        let errors: Vec<Invalid> = self.errors.iter().map(named).collect();
        if self.code == Code::Invalid && self.detail == Self::all_invalid(self.errors.clone()).detail {
            return Self { detail: Self::all_invalid(errors.clone()).detail, errors, ..self };
        }
        Self { errors, ..self }
    }

    /// Says where one of the errors is.
    #[must_use]
    pub fn at(mut self, invalid: Invalid) -> Self {
        self.errors.push(invalid);
        self
    }

    /// Says when to try again.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Says what is left of the rate that it met.
    #[must_use]
    pub fn allowance(mut self, allowance: Allowance) -> Self {
        self.allowance = Some(Box::new(allowance));
        self
    }

    /// Says what the request was about, for the audit trail.
    #[must_use]
    pub fn asked(mut self, asked: Asked) -> Self {
        self.asked = Some(Box::new(asked));
        self
    }

    /// The kind.
    pub fn code(&self) -> Code {
        self.code
    }

    /// What is wrong.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// What the request was about.
    pub fn about(&self) -> Asked {
        self.asked.as_deref().cloned().unwrap_or_default()
    }

    /// Whether the request was about something that exists.
    pub(crate) fn names_something(&self) -> bool {
        self.asked.is_some()
    }

    /// The answer: a whole one once it is known what the client accepts and how the request is called.
    pub(crate) fn answer(&self, accept: Option<&str>, request_id: &str) -> Response {
        // Plain data always serialises.
        let body = serde_json::to_vec(&self.document(request_id)).unwrap_or_default();
        let mut response = (status(self.code), body).into_response();
        let content_type = if negotiate::prefers_plain_json(accept) { "application/json" } else { PROBLEM_JSON };
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        self.add_headers(response.headers_mut());
        response
    }

    /// What is sent of it.
    pub(crate) fn document(&self, request_id: &str) -> ProblemDocument {
        ProblemDocument {
            kind: format!("urn:probeops:problem:{}", self.code.as_str()),
            title: title(self.code).to_owned(),
            status: status(self.code).as_u16(),
            detail: self.detail.clone(),
            code: self.code,
            errors: self.errors.clone(),
            request_id: request_id.to_owned(),
        }
    }

    /// Adds what it says in headers.
    pub(crate) fn add_headers(&self, headers: &mut HeaderMap) {
        headers.extend(self.allowance.iter().flat_map(|allowance| allowance.headers()));
        let passes = matches!(status(self.code), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        if let Some(after) = self.retry_after.or_else(|| passes.then_some(RETRY_AFTER_DEFAULT)) {
            headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(after)));
        }
        let challenge = self.challenge.or_else(|| (self.code == Code::Unauthorized).then_some(Challenge::Refused));
        let challenge = match challenge {
            None => return,
            Some(Challenge::Missing) => "Bearer realm=\"probeops\"".to_owned(),
            Some(Challenge::Refused) => "Bearer realm=\"probeops\", error=\"invalid_token\"".to_owned(),
            Some(Challenge::Scope(scope)) => format!("Bearer realm=\"probeops\", error=\"insufficient_scope\", scope=\"{scope}\""),
        };
        if let Ok(challenge) = challenge.parse() {
            headers.insert(WWW_AUTHENTICATE, challenge);
        }
    }
}

/// The content type of problems, unless the client prefers plain JSON.
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.detail)
    }
}

impl std::error::Error for Problem {}

/// A problem on its way out; the outermost layer gives it its body, because only there are request id and `Accept` at hand.
#[derive(Clone, Debug)]
pub(crate) struct Raised(pub(crate) Arc<Problem>);

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = status(self.code).into_response();
        response.extensions_mut().insert(Raised(Arc::new(self)));
        response
    }
}

/// Keeps `Allow` (405), which the router alone knows, when a problem gets its body.
pub(crate) fn keep_allow(from: &HeaderMap, to: &mut HeaderMap) {
    if let Some(allow) = from.get(ALLOW) {
        to.insert(ALLOW, allow.clone());
    }
}

/// The status of each kind of problem.
pub(crate) fn status(code: Code) -> StatusCode {
    match code {
        Code::Invalid => StatusCode::BAD_REQUEST,
        Code::Unauthorized => StatusCode::UNAUTHORIZED,
        Code::Forbidden => StatusCode::FORBIDDEN,
        Code::NotFound | Code::NoSuchRegion | Code::NoSuchNode => StatusCode::NOT_FOUND,
        Code::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        Code::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
        Code::Conflict => StatusCode::CONFLICT,
        Code::Unprocessable | Code::IdempotencyMismatch => StatusCode::UNPROCESSABLE_ENTITY,
        Code::UriTooLong => StatusCode::URI_TOO_LONG,
        Code::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Code::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Code::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Code::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        Code::NoNodeAvailable | Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// The status of answers that are no problems.
pub(crate) mod success {
    use axum::http::StatusCode;

    /// Here it is.
    pub(crate) const DONE: StatusCode = StatusCode::OK;
    /// It was made.
    pub(crate) const CREATED: StatusCode = StatusCode::CREATED;
    /// It goes on.
    pub(crate) const ACCEPTED: StatusCode = StatusCode::ACCEPTED;
    /// A revocation is done, or goes on where servers have yet to take it.
    pub(crate) fn of(told: &crate::revocation::Told) -> StatusCode {
        if told.everywhere() { DONE } else { ACCEPTED }
    }

    /// There is nothing more to say.
    pub(crate) const NOTHING_MORE: StatusCode = StatusCode::NO_CONTENT;
}

fn title(code: Code) -> &'static str {
    match code {
        Code::Invalid => "The request is malformed",
        Code::Unauthorized => "No acceptable credential",
        Code::Forbidden => "Not allowed",
        Code::NotFound => "Not found",
        Code::NoSuchRegion => "No such region",
        Code::NoSuchNode => "No such node",
        Code::NoNodeAvailable => "No node available",
        Code::MethodNotAllowed => "Method not allowed",
        Code::UriTooLong => "Path and query too long",
        Code::HeadersTooLarge => "Headers too large",
        Code::TooLarge => "Body too large",
        Code::UnsupportedMediaType => "Unsupported media type",
        Code::RequestTimeout => "The request took too long to arrive",
        Code::RateLimited => "Too many requests",
        Code::Conflict => "Conflict",
        Code::Unprocessable => "The request cannot be carried out",
        Code::IdempotencyMismatch => "Idempotency key used for another request",
        Code::Unavailable => "Temporarily unavailable",
        Code::Internal => "Internal error",
    }
}

/// Whole seconds, rounded up, never none.
fn whole_seconds(after: Duration) -> u64 {
    let up = u64::from(after.subsec_nanos() > 0);
    (after.as_secs() + up).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_has_a_status_a_title_and_a_type() {
        for code in Code::ALL {
            let response = Problem::new(code, "why").answer(None, "r-1");
            assert!(response.status().is_client_error() || response.status().is_server_error(), "{code:?}");
            assert_eq!(response.headers()[CONTENT_TYPE], PROBLEM_JSON);
            assert!(!title(code).is_empty());
        }
    }

    #[test]
    fn problems_that_pass_say_when_in_whole_seconds() {
        for (after, header) in [(None, "1"), (Some(0), "1"), (Some(1_000), "1"), (Some(1_001), "2"), (Some(59_999), "60")] {
            for code in [Code::RateLimited, Code::Unavailable, Code::NoNodeAvailable] {
                let problem = Problem::new(code, "");
                let problem = after.map_or(problem.clone(), |ms| problem.retry_after(Duration::from_millis(ms)));
                assert_eq!(problem.answer(None, "").headers()[RETRY_AFTER], header, "{code:?}");
            }
        }
        assert!(Problem::new(Code::Invalid, "").answer(None, "").headers().get(RETRY_AFTER).is_none());
    }

    #[test]
    fn a_refused_credential_is_told_how_to_do_better() {
        let challenge = |problem: &Problem| problem.answer(None, "").headers()[WWW_AUTHENTICATE].to_str().unwrap().to_owned();
        assert_eq!(challenge(&Problem::no_credential("")), "Bearer realm=\"probeops\"");
        assert_eq!(challenge(&Problem::bad_credential("")), "Bearer realm=\"probeops\", error=\"invalid_token\"");
        let missing = Problem::missing_scope(Scope::JobsWrite, &[Scope::JobsRead]);
        assert_eq!(challenge(&missing), "Bearer realm=\"probeops\", error=\"insufficient_scope\", scope=\"jobs:write\"");
        assert_eq!(missing.detail, "this needs the scope `jobs:write`; your credential has: jobs:read");
    }
}
