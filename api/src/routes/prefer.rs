//! How a caller wants his answer: by `Accept`, and by `Prefer` (RFC 7240).

use std::time::Duration;

use axum::http::header::{ACCEPT, HeaderName};
use axum::http::{HeaderMap, HeaderValue};
use probeops_shared::bounded::shown;
use probeops_shared::planted;
use probeops_shared::problem::Code;

use crate::jobs::WAIT_MAX;
use crate::problem::{Problem, preference};

/// What a caller prefers.
pub(super) const PREFER: HeaderName = HeaderName::from_static("prefer");
/// What of it was done.
pub(super) const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// In what form a caller wants a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The job's document.
    Json,
    /// Its events, as they happen (`text/event-stream`).
    Events,
    /// What its tool prints, as it prints it (`text/plain`).
    Text,
}

/// The form that is accepted best; where several are accepted alike, the document.
pub(super) fn form(headers: &HeaderMap) -> Form {
    let given: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let accept = given.join(",");
    let of = |kind, subtype| preference(&accept, kind, subtype);
    // A browser shows text, and asks for nothing but pages.
    let text = of("text", "plain").max(of("text", "html"));
    let forms = [(Form::Text, text), (Form::Events, of("text", "event-stream")), (Form::Json, of("application", "json"))];
    forms.into_iter().max_by_key(|(_, preference)| *preference).map_or(Form::Json, |(form, _)| form)
}

/// How long a caller wants to wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Prefer {
    respond_async: bool,
    wait: Option<Duration>,
}

impl Prefer {
    /// Reads the header. What is not known is ignored, as the RFC wants it; a `wait` that is no number is a mistake.
    pub(super) fn read(headers: &HeaderMap) -> Result<Self, Problem> {
        let mut prefer = Self::default();
        for value in headers.get_all(PREFER) {
            let value = value.to_str().unwrap_or_default();
            for preference in value.split(',') {
                let named = preference.split(';').next().unwrap_or_default();
                let (name, given) = named.split_once('=').map_or((named, ""), |(name, given)| (name, given.trim()));
                match name.trim().to_ascii_lowercase().as_str() {
                    "respond-async" => prefer.respond_async = true,
                    // The first of a name counts.
                    "wait" if prefer.wait.is_none() => prefer.wait = Some(seconds(given)?),
                    _ => {}
                }
            }
        }
        Ok(prefer)
    }

    /// How long the call waits.
    pub(super) fn wait(self) -> Duration {
        let unsaid = if self.respond_async { Duration::ZERO } else { WAIT_MAX };
        if let Some(wait) = self.wait
            && planted!("request" if self.respond_async && wait > WAIT_MAX)
        {
            return wait;
        }
        self.wait.map_or(unsaid, |wait| wait.min(WAIT_MAX))
    }

    /// What of it was done, if anything was asked.
    pub(super) fn applied(self) -> Option<HeaderValue> {
        let wait = self.wait.map(|wait| format!("wait={}", wait.min(WAIT_MAX).as_secs()));
        let said: Vec<String> = self.respond_async.then(|| "respond-async".to_owned()).into_iter().chain(wait).collect();
        (!said.is_empty()).then(|| HeaderValue::try_from(said.join(", ")).ok()).flatten()
    }
}

fn seconds(given: &str) -> Result<Duration, Problem> {
    let bare = given.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(given);
    bare.parse().map(Duration::from_secs).map_err(|_| {
        let detail = format!("header Prefer: `wait` must be a whole number of seconds, such as wait=10, not {}", shown(&bare.into()));
        Problem::new(Code::Invalid, detail)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &HeaderName, values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn the_form_is_the_one_that_is_accepted_best() {
        for (accept, wanted) in [
            ("*/*", Form::Json),
            ("application/json, text/plain, */*", Form::Json),
            ("application/json,text/html,application/xhtml+xml,application/xml,text/*;q=0.9, image/*;q=0.8, */*;q=0.7", Form::Json),
            ("text/event-stream", Form::Events),
            ("text/event-stream, application/json;q=0.5", Form::Events),
            ("text/plain", Form::Text),
            ("text/plain;q=0.4, application/json;q=0.5", Form::Json),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", Form::Text),
            ("image/png", Form::Json),
        ] {
            assert_eq!(form(&headers(&ACCEPT, &[accept])), wanted, "{accept}");
        }
        assert_eq!(form(&HeaderMap::new()), Form::Json);
    }

    #[test]
    fn a_wait_is_read_bounded_and_said_again() {
        for (given, wait_s, applied) in [
            (&["wait=10"][..], 10, Some("wait=10")),
            (&["wait=\"10\""], 10, Some("wait=10")),
            (&["Wait=10; foo=bar, handling=lenient"], 10, Some("wait=10")),
            (&["wait=0"], 0, Some("wait=0")),
            (&["wait=3600"], 60, Some("wait=60")),
            (&["respond-async"], 0, Some("respond-async")),
            (&["respond-async", "wait=5"], 5, Some("respond-async, wait=5")),
            (&["wait=5, wait=7"], 5, Some("wait=5")),
            (&["return=minimal"], 60, None),
            (&[], 60, None),
        ] {
            let prefer = Prefer::read(&headers(&PREFER, given)).unwrap();
            let said = prefer.applied();
            assert_eq!((prefer.wait().as_secs(), said.as_ref().and_then(|value| value.to_str().ok())), (wait_s, applied), "{given:?}");
        }
        for bad in ["wait", "wait=", "wait=x", "wait=-1", "wait=1.5"] {
            let problem = Prefer::read(&headers(&PREFER, &[bad])).unwrap_err();
            assert!(problem.detail().starts_with("header Prefer: `wait` must be a whole number of seconds"), "{problem}");
        }
    }
}
