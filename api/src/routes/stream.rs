//! A job while it goes on, as events (Server-Sent Events, WHATWG HTML section 9.2) or as the text that its tool prints.

mod script;

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HeaderName, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use futures_util::{StreamExt, future};
use probeops_shared::problem::Code;

use crate::jobs::{EventId, Next, Told, Watcher};
use crate::problem::{Problem, success};
use script::Script;

/// The last event that a client has seen, when it comes back.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Tells nginx to pass on what comes as it comes.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// How often something is sent when there is nothing to say, so that nobody in between takes the connection for dead.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(15);
/// How soon a client that lost its connection is to come back.
const COME_BACK_AFTER: Duration = Duration::from_secs(1);
/// The id of the last event of a job: a client that comes back with it is told that there is nothing more.
const END: &str = "end";

/// Where a client that comes back wants to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    /// It is new.
    Beginning,
    /// It has seen this one.
    After(EventId),
    /// It has seen all.
    End,
}

/// Reads `Last-Event-ID`.
pub(super) fn from(headers: &HeaderMap) -> Result<From, Problem> {
    let Some(given) = headers.get(LAST_EVENT_ID) else { return Ok(From::Beginning) };
    match given.to_str().unwrap_or("?") {
        "" => Ok(From::Beginning),
        END => Ok(From::End),
        id => id.parse().map(From::After).map_err(|detail| Problem::new(Code::Invalid, format!("header Last-Event-ID: {detail}"))),
    }
}

/// Nothing more is to come: a client that gets this does not come back.
pub(super) fn nothing_more() -> Response {
    success::NOTHING_MORE.into_response()
}

/// What is told of the job, as events: first the job as it is, then what its nodes tell, last the job as it ended.
pub(super) fn events(watcher: Watcher) -> Response {
    let begun = serde_json::to_string(watcher.document()).unwrap_or_default();
    let begun = Event::default().event("job").retry(COME_BACK_AFTER).data(begun);
    let told = followed(watcher).map(|next| match next {
        Next::Event(told) => event(&told),
        Next::Gap => Event::default().event("gap").data(r#"{"detail":"some events are no longer kept; the outcomes have what they said"}"#),
        Next::End(document) => Event::default().event("job").id(END).data(String::from_utf8_lossy(&document)),
    });
    let events = stream::once(future::ready(begun)).chain(told).map(Ok::<_, Infallible>);
    let alive = KeepAlive::new().interval(HEARTBEAT_EVERY).text("heartbeat");
    ([(X_ACCEL_BUFFERING, "no")], Sse::new(events).keep_alive(alive)).into_response()
}

fn event(told: &Told) -> Event {
    Event::default().event(told.kind.as_str()).id(told.id.to_string()).data(String::from_utf8_lossy(&told.data))
}

/// What the job's tool prints, as it prints it.
pub(super) fn text(watcher: Watcher) -> Response {
    let mut script = Script::new(watcher.runs());
    let pieces = followed(watcher).map(move |next| match next {
        Next::Event(told) => script.told(&told),
        Next::Gap => {
            script.gap();
            String::new()
        }
        Next::End(document) => script.end_with(&document),
    });
    let pieces = pieces.filter(|piece| future::ready(!piece.is_empty())).map(|piece| Ok::<_, Infallible>(Bytes::from(piece)));
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8")),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (X_ACCEL_BUFFERING, HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(pieces)).into_response()
}

fn followed(watcher: Watcher) -> impl Stream<Item = Next> {
    stream::unfold(watcher, async |mut watcher| Some((watcher.next().await?, watcher)))
}
