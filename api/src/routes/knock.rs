//! A job that a service asks for at the front door: the same fields and headers as those of `POST /v1/jobs`, and the same checks.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue};
use probeops_shared::json;
use probeops_shared::problem::Code;

use crate::jobs::JobRequest;
use crate::problem::Problem;
use crate::routes::body::BODY_BYTES_MAX;
use crate::routes::jobs::{JOB_FIELDS, asked, prepared};
use crate::routes::prefer::{Form, Prefer};

pub(crate) use crate::routes::frame::request_id;
pub(crate) use crate::routes::idempotency::replayed;

/// What is asked for.
#[derive(Debug)]
pub(crate) struct Knock {
    /// The job.
    pub(crate) request: JobRequest,
    /// How long to wait for its end.
    pub(crate) wait: Duration,
    /// What was done of what the caller prefers, if he said so.
    pub(crate) applied: Option<HeaderValue>,
}

/// Reads it; what is wrong with it is about the tool and target that it names.
pub(crate) fn read(body: &[u8], headers: &HeaderMap) -> Result<Knock, Problem> {
    if body.len() > BODY_BYTES_MAX {
        return Err(Problem::new(Code::TooLarge, format!("the body is larger than {BODY_BYTES_MAX} bytes; no job needs so much")));
    }
    let fields = json::parse_object(body, &JOB_FIELDS).map_err(Problem::invalid)?;
    let about = asked(&fields);
    let read = || {
        let prefer = Prefer::read(headers)?;
        // Nobody sees a service go away, so no job of its ends with that: it is refused as for any answer that is not streamed.
        let (request, _) = prepared(fields, headers, Form::Json)?;
        Ok(Knock { request, wait: prefer.wait(), applied: prefer.applied() })
    };
    read().map_err(|problem: Problem| problem.asked(about))
}
