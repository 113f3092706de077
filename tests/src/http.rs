//! A plain HTTP caller, as curl is one.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// Longer than any call of ours may take: only a hang reaches it.
const HANG: Duration = Duration::from_secs(120);

/// Somebody who calls an API.
#[derive(Clone, Debug)]
pub struct Caller {
    agent: Agent,
    url: String,
    token: Option<String>,
}

/// What the API answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers, lower case.
    pub headers: Vec<(String, String)>,
    /// The body as text.
    pub text: String,
    /// The body as JSON; null when it is not.
    pub body: Value,
}

impl Answer {
    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    /// The body, which must have come with this status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        self.body
    }

    /// The one result of a finished job.
    #[track_caller]
    pub fn outcome(self) -> Value {
        let document = self.expect(200);
        assert_eq!(document["status"], "finished", "{document}");
        assert_eq!(document["results"].as_array().map(Vec::len), Some(1), "{document}");
        document["results"][0].clone()
    }

    /// The kind of failure of the one result of a finished job.
    #[track_caller]
    pub fn failure_kind(self) -> String {
        let outcome = self.outcome();
        outcome["failure"]["kind"].as_str().unwrap_or_else(|| panic!("no failure: {outcome}")).to_owned()
    }
}

impl Caller {
    /// Calls the API at `url` with a bearer token or none, trusting `ca` or the usual authorities.
    pub fn new(url: &str, token: Option<&str>, ca: Option<&Path>) -> Self {
        let mut config = Agent::config_builder().timeout_global(Some(HANG)).http_status_as_error(false).max_redirects(0);
        if let Some(ca) = ca {
            let pem = std::fs::read(ca).unwrap_or_else(|error| panic!("{}: {error}", ca.display()));
            let roots = RootCerts::new_with_certs(&[Certificate::from_pem(&pem).expect("a certificate")]);
            config = config.tls_config(TlsConfig::builder().root_certs(roots).build());
        }
        Self { agent: config.build().into(), url: url.to_owned(), token: token.map(str::to_owned) }
    }

    /// The same API with another token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    /// GET.
    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        self.try_get(path).unwrap_or_else(|error| panic!("no answer: {error}"))
    }

    /// GET that may find nobody.
    pub fn try_get(&self, path: &str) -> Result<Answer, ureq::Error> {
        let request = self.agent.get(format!("{}{path}", self.url));
        let request = self.token.iter().fold(request, |request, token| request.header("authorization", format!("Bearer {token}")));
        request.call().and_then(answer)
    }

    /// DELETE.
    #[track_caller]
    pub fn delete(&self, path: &str) -> Answer {
        let request = self.agent.delete(format!("{}{path}", self.url));
        let request = self.token.iter().fold(request, |request, token| request.header("authorization", format!("Bearer {token}")));
        read(request.call())
    }

    /// POST of JSON.
    #[track_caller]
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_raw(path, "application/json", body.to_string().as_bytes(), &[])
    }

    /// POST of anything, with extra headers.
    #[track_caller]
    pub fn post_raw(&self, path: &str, content_type: &str, body: &[u8], headers: &[(&str, &str)]) -> Answer {
        self.try_post(path, content_type, body, headers).unwrap_or_else(|error| panic!("no answer: {error}"))
    }

    /// POST that may find nobody.
    pub fn try_post(&self, path: &str, content_type: &str, body: &[u8], headers: &[(&str, &str)]) -> Result<Answer, ureq::Error> {
        let mut request = self.agent.post(format!("{}{path}", self.url));
        if !content_type.is_empty() {
            request = request.header("content-type", content_type);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        request.send(body).and_then(answer)
    }

    /// Any request whose answer is read as it comes.
    #[track_caller]
    pub fn stream(&self, method: &str, path: &str, body: &Value, headers: &[(&str, &str)]) -> Streamed {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let sent = if body.is_null() {
            self.agent.run(request.body(()).expect("a request"))
        } else {
            self.agent.run(request.header("content-type", "application/json").body(body.to_string()).expect("a request"))
        };
        Streamed::new(sent.unwrap_or_else(|error| panic!("no answer: {error}")))
    }

    /// A job, posted and waited for.
    #[track_caller]
    pub fn job(&self, tool: &str, target: &str, from: &str, parameters: &Value) -> Answer {
        self.post("/v1/jobs", &serde_json::json!({"tool": tool, "target": target, "from": from, "parameters": parameters}))
    }
}

#[track_caller]
fn read(response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Answer {
    response.and_then(answer).unwrap_or_else(|error| panic!("no answer: {error}"))
}

fn answer(mut response: ureq::http::Response<ureq::Body>) -> Result<Answer, ureq::Error> {
    let headers =
        response.headers().iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap_or_default().to_owned())).collect();
    let text = response.body_mut().read_to_string()?;
    let body = serde_json::from_str(&text).unwrap_or(Value::Null);
    Ok(Answer { status: response.status().as_u16(), headers, text, body })
}

/// An answer that is read as it comes.
pub struct Streamed {
    /// The status.
    pub status: u16,
    headers: ureq::http::HeaderMap,
    lines: BufReader<ureq::BodyReader<'static>>,
}

/// An event of a stream (Server-Sent Events).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Event {
    /// What it is.
    pub event: String,
    /// Its id, if it has one.
    pub id: String,
    /// Its data.
    pub data: Value,
}

impl std::fmt::Debug for Streamed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streamed").field("status", &self.status).field("headers", &self.headers).finish_non_exhaustive()
    }
}

impl Streamed {
    fn new(response: ureq::http::Response<ureq::Body>) -> Self {
        let (parts, body) = response.into_parts();
        Self { status: parts.status.as_u16(), headers: parts.headers, lines: BufReader::new(body.into_reader()) }
    }

    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The next line, with its end; empty at the end.
    #[track_caller]
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap_or_else(|error| panic!("the answer broke off: {error}"));
        line
    }

    /// All that is still to come.
    #[track_caller]
    pub fn rest(&mut self) -> String {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap_or_else(|error| panic!("the answer broke off: {error}"));
        rest
    }

    /// The next event; a comment has only data. None at the end.
    #[track_caller]
    pub fn event(&mut self) -> Option<Event> {
        let mut event = Event::default();
        loop {
            let line = self.line();
            if line.is_empty() {
                return None;
            }
            match line.trim_end_matches('\n').split_once(':') {
                None if event == Event::default() => {}
                None => return Some(event),
                Some(("", comment)) => event.data = comment.trim().into(),
                Some(("event", word)) => word.trim().clone_into(&mut event.event),
                Some(("id", id)) => id.trim().clone_into(&mut event.id),
                Some(("data", data)) => event.data = serde_json::from_str(data.trim()).unwrap_or_else(|error| panic!("{data}: {error}")),
                Some(_) => {}
            }
        }
    }

    /// All events that are still to come.
    #[track_caller]
    pub fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.event()).collect()
    }
}
