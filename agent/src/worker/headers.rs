//! What the headers of a job say.

use std::fmt::Display;

use async_nats::HeaderMap;
use probeops_shared::access::Targets;
use probeops_shared::job::{Events, header};
use probeops_shared::outcome::{Failure, FailureKind};
use probeops_shared::planted;
use probeops_shared::traceparent::Traceparent;

/// On whose behalf it is asked; only the API is believed that it is somebody else's.
pub(crate) fn principal<'a>(headers: Option<&'a HeaderMap>, caller: &'a str, is_api: bool) -> &'a str {
    read(headers, header::PRINCIPAL).filter(|_| is_api).unwrap_or(caller)
}

/// Which dispatch it is.
pub(crate) fn attempt(headers: Option<&HeaderMap>) -> Option<u32> {
    read(headers, header::ATTEMPT)?.parse().ok()
}

/// The span that dispatched it.
pub(crate) fn span(headers: Option<&HeaderMap>) -> Option<Traceparent> {
    read(headers, header::TRACEPARENT)?.parse().ok()
}

/// When it was sent, in microseconds since 1970.
pub(crate) fn sent_unix_us(headers: Option<&HeaderMap>) -> Option<i64> {
    read(headers, header::SENT)?.parse().ok()
}

/// By when it is to begin.
pub(crate) fn deadline_unix_ms(headers: Option<&HeaderMap>) -> Result<Option<i64>, Failure> {
    let Some(given) = read(headers, header::DEADLINE) else { return Ok(None) };
    let name = header::DEADLINE;
    given.parse().map(Some).map_err(|_| {
        Failure::new(FailureKind::Invalid, format!("header {name} must be milliseconds since 1970 as a whole number, not `{given}`"))
    })
}

/// What the caller wants to hear of it.
pub(crate) fn events(headers: Option<&HeaderMap>) -> Result<Option<Events>, Failure> {
    read(headers, header::EVENTS).map(|text| text.parse().map_err(|detail| bad(header::EVENTS, detail))).transpose()
}

/// The targets that the principal is limited to; only the API knows them.
pub(crate) fn targets(headers: Option<&HeaderMap>, is_api: bool) -> Result<Option<Targets>, Failure> {
    let believed = |text: &&str| is_api || planted!("headers" if text.split(',').count() > 2);
    let given = read(headers, header::TARGETS).filter(believed);
    given.map(|text| text.parse().map_err(|detail| bad(header::TARGETS, detail))).transpose()
}

fn bad(name: &str, detail: impl Display) -> Failure {
    Failure::new(FailureKind::Invalid, format!("header {name}: {detail}"))
}

fn read<'a>(headers: Option<&'a HeaderMap>, name: &str) -> Option<&'a str> {
    headers?.get(name).map(async_nats::HeaderValue::as_str)
}
