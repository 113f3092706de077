//! The message that asks: identical for the API and for services that publish straight to the broker.

use std::str::FromStr;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::bounded::shown;
use crate::ids::RequestId;
use crate::invalid::Invalid;
use crate::json;
use crate::outcome::{Failure, Outcome};
use crate::tools::{Spec, ToolName};

/// What transport may add: a job not begun this long after it was made is not begun at all.
pub const GRACE: Duration = Duration::from_secs(5);
/// The largest job message.
pub const JOB_BYTES_MAX: usize = 64 * 1024;
/// A deadline further away than this is a mistake of the publisher's clock or arithmetic.
pub const DEADLINE_MAX: Duration = Duration::from_hours(1);
/// A run that is not finished after this says that it was accepted, if [signs of life](Events::SignsOfLife) were asked for.
pub const ACCEPTED_AFTER: Duration = Duration::from_millis(20);
/// A run says at least this often that it is alive, if events were asked for.
pub const ALIVE_EVERY: Duration = Duration::from_secs(2);
/// An accepted run that says nothing for this long is given up: twice what it may be silent, and less than grace, so that a node that dies
/// soon after it accepted can still be replaced before the deadline.
pub const SILENCE_MAX: Duration = Duration::from_secs(4);

/// The header names of jobs and of their answers.
pub mod header {
    /// Unix milliseconds: start by then or not at all.
    pub const DEADLINE: &str = "Probe-Deadline";
    /// Which dispatch of the run this is, from 1.
    pub const ATTEMPT: &str = "Probe-Attempt";
    /// What the caller wants to hear of a run before its outcome: see [`super::Events`]; absent, nothing.
    pub const EVENTS: &str = "Probe-Events";
    /// On whose behalf; believed only from replicas of the API.
    pub const PRINCIPAL: &str = "Probe-Principal";
    /// That principal's targets; believed only from replicas of the API.
    pub const TARGETS: &str = "Probe-Targets";
    /// Unix microseconds at which the publisher sent it: what `echo` measures dispatch from.
    pub const SENT: &str = "Probe-Sent";
    /// With a beat: the digest of the [`crate::presence::Shares`] that the node knows.
    pub const SHARES: &str = "Probe-Shares";
    /// Which event a message is: see [`super::Event`].
    pub const EVENT: &str = "Probe-Event";
    /// The number of an event, from 0, without gaps.
    pub const SEQ: &str = "Probe-Seq";
    /// W3C trace context.
    pub const TRACEPARENT: &str = "traceparent";
}

/// What a caller wants to hear of a run before its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Events {
    /// `1`, every event: `accepted` as soon as the run begins, however short it is, then each `progress` as it happens, and `alive` where there
    /// is none for [`ALIVE_EVERY`].
    All,
    /// `2`, only that the node has it: `accepted` of a run that lasts longer than [`ACCEPTED_AFTER`], and then `alive` every [`ALIVE_EVERY`].
    SignsOfLife,
}

impl Events {
    /// The value of the header.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::All => "1",
            Self::SignsOfLife => "2",
        }
    }
}

impl FromStr for Events {
    type Err = String;

    /// Reads the header.
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::All, Self::SignsOfLife].into_iter().find(|events| events.as_str() == text).ok_or_else(|| {
            format!(
                "must be 1 (every event) or 2 (only accepted and alive), or be left out (only the outcome), not `{}`",
                text.escape_debug()
            )
        })
    }
}

/// What a message from a node to a caller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The run has begun.
    Accepted,
    /// It goes on and has nothing to say, or nobody who wants to hear it.
    Alive,
    /// It has found something; the body is a [`Progress`](crate::outcome::Progress).
    Progress,
    /// It is over; the body is an [`Outcome`].
    Outcome,
}

impl Event {
    /// The word in the header.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Alive => "alive",
            Self::Progress => "progress",
            Self::Outcome => "outcome",
        }
    }

    /// Reads the header; a message without one is an outcome.
    pub fn parse(text: Option<&str>) -> Option<Self> {
        match text {
            Some("accepted") => Some(Self::Accepted),
            Some("alive") => Some(Self::Alive),
            Some("progress") => Some(Self::Progress),
            Some("outcome") | None => Some(Self::Outcome),
            Some(_) => None,
        }
    }
}

/// What a control message asks of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Stop the run named in the body (`{"request_id"}`).
    Cancel,
    /// Take no new jobs.
    Drain,
    /// Hold callers to what the body says ([`crate::presence::Shares`]).
    Limits,
}

impl Verb {
    /// The token of the subject.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Drain => "drain",
            Self::Limits => "limits",
        }
    }

    /// Reads the token.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Cancel, Self::Drain, Self::Limits].into_iter().find(|verb| verb.as_str() == text)
    }
}

/// A job, checked.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its id, unique for its caller.
    pub request_id: RequestId,
    /// What to run.
    pub spec: Spec,
}

/// A job message that cannot be run, with what could be read of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// What is wrong.
    pub invalid: Invalid,
    /// The request, or a new id where it has none.
    pub request_id: RequestId,
    /// The tool as given.
    pub tool: String,
    /// The target as given.
    pub target: String,
}

impl Rejected {
    /// The outcome that says so.
    pub fn into_outcome<R>(self) -> Outcome<R> {
        Outcome::failed(self.request_id, self.tool, self.target, Failure::from(self.invalid))
    }
}

/// The fields of a job message.
pub const JOB_FIELDS: [&str; 4] = ["request_id", "tool", "target", "parameters"];

impl Job {
    /// Reads and checks a message. A missing `request_id` is made.
    pub fn parse(body: &[u8]) -> Result<Self, Box<Rejected>> {
        let blank = |invalid| Box::new(Rejected { invalid, request_id: RequestId::new(), tool: String::new(), target: String::new() });
        if body.len() > JOB_BYTES_MAX {
            return Err(blank(Invalid::new(
                "",
                format!("a job message is at most {JOB_BYTES_MAX} bytes long, this one has {}", body.len()),
            )));
        }
        let fields = json::parse(body).and_then(json::object).map_err(blank)?;
        Self::from_fields(fields)
    }

    /// Checks the fields of a message.
    pub fn from_fields(mut fields: Map<String, Value>) -> Result<Self, Box<Rejected>> {
        let short = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().chars().take(256).collect::<String>();
        let (tool, target) = (short(fields.get("tool")), short(fields.get("target")));
        let (request_id, refused_id) = match fields.get("request_id") {
            None => (RequestId::new(), None),
            Some(value) => {
                match value.as_str().ok_or_else(|| format!("a request id must be a string, not {}", shown(value))).and_then(str::parse) {
                    Ok(request_id) => (request_id, None),
                    Err(detail) => (RequestId::new(), Some(Invalid::new("/request_id", detail))),
                }
            }
        };
        let checked = match refused_id {
            Some(invalid) => Err(invalid),
            None => json::refuse_unknown(&fields, "field", &JOB_FIELDS).and_then(|()| spec(&mut fields)),
        };
        match checked {
            Ok(spec) => Ok(Self { request_id, spec }),
            Err(invalid) => Err(Box::new(Rejected { invalid, request_id, tool, target })),
        }
    }

    /// The message.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (tool, target, parameters) = (self.spec.tool(), self.spec.target(), self.spec.parameters());
        json!({"request_id": self.request_id, "tool": tool, "target": target, "parameters": parameters}).to_string().into_bytes()
    }
}

/// Takes `tool`, `target` and `parameters` out of a message and checks them.
pub fn spec(fields: &mut Map<String, Value>) -> Result<Spec, Invalid> {
    let tool: ToolName = match fields.get("tool") {
        Some(Value::String(tool)) => tool.parse().map_err(|detail| Invalid::new("/tool", detail))?,
        Some(other) => return Err(Invalid::new("/tool", format!("must be a string, not {}", shown(other)))),
        None => return Err(Invalid::new("/tool", "`tool` is missing: name the tool to run, such as \"ping\"")),
    };
    let target = match fields.remove("target") {
        Some(Value::String(target)) => target,
        Some(other) => return Err(Invalid::new("/target", format!("must be a string, not {}", shown(&other)))),
        None => String::new(),
    };
    let parameters = match fields.remove("parameters") {
        Some(Value::Object(parameters)) => parameters,
        Some(other) => return Err(Invalid::new("/parameters", format!("must be an object of the tool's options, not {}", shown(&other)))),
        None => Map::new(),
    };
    Spec::parse(tool, &target, parameters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refuses(body: &str, pointer: &str, part: &str) -> Rejected {
        let rejected = *Job::parse(body.as_bytes()).unwrap_err();
        assert_eq!(rejected.invalid.pointer, pointer, "{}", rejected.invalid);
        assert!(rejected.invalid.detail.contains(part), "{}", rejected.invalid);
        rejected
    }

    #[test]
    fn a_message_is_read_back_as_it_was_written() {
        let job = Job::parse(br#"{"request_id":"r-1","tool":"echo","target":"x","parameters":{"payload_bytes":3,"timeout":5}}"#).unwrap();
        let again = Job::parse(&job.to_bytes()).unwrap();
        assert_eq!(again.request_id.as_str(), "r-1");
        assert_eq!(again.to_bytes(), job.to_bytes());
    }

    #[test]
    fn a_caller_wants_every_event_or_signs_of_life() {
        for events in [Events::All, Events::SignsOfLife] {
            assert_eq!(events.as_str().parse(), Ok(events));
        }
        for unknown in ["", "0", "3", "true", " 1"] {
            let why = unknown.parse::<Events>().unwrap_err();
            assert!(why.starts_with("must be 1 (") && why.ends_with(&format!("not `{unknown}`")), "{why}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_and_what_could_be_read_is_kept() {
        let rejected = refuses(
            r#"{"request_id":"r-1","tool":"echo","target":"x","parameters":{"payload":3}}"#,
            "/parameters/payload",
            "did you mean `payload_bytes`?",
        );
        assert_eq!((rejected.request_id.as_str(), rejected.tool.as_str(), rejected.target.as_str()), ("r-1", "echo", "x"));
        refuses(r#"{"tool":"echo","parameters":{"timeout":"5"}}"#, "/parameters/timeout", "not the string \"5\"");
        refuses(r#"{"tool":"echo","parameters":[]}"#, "/parameters", "not a list");
        refuses(r#"{"target":"x"}"#, "/tool", "missing");
        refuses(r#"{"tool":"echo","tools":1}"#, "/tools", "did you mean `tool`?");
        refuses(r#"{"tool":"echo","request_id":"a b"}"#, "/request_id", "1 to 64 of");
        refuses("[]", "", "must be a JSON object");
    }
}
