//! The HTTP API, asked from the command line.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use probeops_agent::enroll::api::roots_of;
use probeops_shared::invalid::Invalid;
use probeops_shared::problem::Code;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::tls::TlsConfig;

use crate::exit::{Exit, Failed};

/// How long it may take to reach the API.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer that is read, in bytes: a hundred outcomes of 256 KiB each.
const ANSWER_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// How much of an answer that is not the API's is shown.
const FOREIGN_CHARS_MAX: usize = 120;
/// Where `up` says under which address its API answers.
pub(crate) const URL_FILE: &str = "url";
/// Where `up` keeps the first key.
pub(crate) const KEY_FILE: &str = "admin.key";
/// Where `up` keeps everything unless told otherwise.
pub(crate) const DATA_DEFAULT: &str = ".probeops";

/// Which API to ask, and as whom.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ClientArgs {
    /// The API's address; a running local `probeops up` unless given
    #[arg(long, env = "PROBEOPS_URL", value_name = "URL", help_heading = "API")]
    url: Option<String>,
    /// A file with the API key or JWT; the variable `PROBEOPS_TOKEN` may hold it instead
    #[arg(long, env = "PROBEOPS_TOKEN_FILE", value_name = "FILE", help_heading = "API")]
    token_file: Option<PathBuf>,
    /// The authority that signed the API's certificate (PEM), if it is a private one
    #[arg(long, env = "PROBEOPS_API_CA", value_name = "FILE", help_heading = "API")]
    ca: Option<PathBuf>,
    /// The data folder of a local `probeops up`
    #[arg(long, env = "PROBEOPS_DATA", value_name = "DIR", default_value = DATA_DEFAULT, help_heading = "API")]
    data: PathBuf,
}

/// The API, and a credential for it.
#[derive(Debug)]
pub(crate) struct Client {
    agent: ureq::Agent,
    url: String,
    token: Option<String>,
}

/// What the API answered.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Its body.
    pub body: Value,
}

#[derive(Deserialize)]
struct Problem {
    code: Code,
    detail: String,
    #[serde(default)]
    errors: Vec<Invalid>,
    #[serde(default)]
    request_id: Option<String>,
}

impl Client {
    /// Finds out whom to ask and as whom.
    pub(crate) fn open(args: &ClientArgs) -> Result<Self, Failed> {
        let variable = std::env::var("PROBEOPS_TOKEN").ok().filter(|token| !token.trim().is_empty());
        let (url, local) = match &args.url {
            Some(url) => (url.clone(), false),
            None => (local_url(&args.data)?, true),
        };
        let token = match (&args.token_file, variable) {
            (Some(file), _) => read_line(file)?,
            (None, Some(token)) => token.trim().to_owned(),
            // The local key is for the local API: it is never sent anywhere else.
            (None, None) if local => read_line(&args.data.join(KEY_FILE))?,
            (None, None) => return Err(Failed::usage(format!("no credential for {url}: set PROBEOPS_TOKEN, or give --token-file FILE"))),
        };
        Self::new(&url, token, args.ca.as_deref())
    }

    /// An API at a known address.
    pub(crate) fn new(url: &str, token: String, ca: Option<&Path>) -> Result<Self, Failed> {
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Failed::usage("the credential is not one line of printable characters; it should be an API key (pk_…) or a JWT"));
        }
        Ok(Self { token: Some(token), ..Self::anonymous(url, ca)? })
    }

    /// An API that is asked what anybody may ask.
    pub(crate) fn anonymous(url: &str, ca: Option<&Path>) -> Result<Self, Failed> {
        let url = url.trim_end_matches('/').to_owned();
        if !(url.starts_with("http://") || url.starts_with("https://")) {
            return Err(Failed::usage(format!("`{url}` is not an address of the API; it begins with http:// or https://")));
        }
        let mut tls = TlsConfig::builder();
        if let Some(ca) = ca {
            tls = tls.root_certs(roots_of(ca).map_err(Failed::usage)?);
        }
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            // A redirect would take the credential and the request elsewhere.
            .max_redirects(0)
            .user_agent(format!("probeops/{}", probeops_shared::VERSION))
            .tls_config(tls.build());
        Ok(Self { agent: config.build().new_agent(), url, token: None })
    }

    /// Reads. `query` is encoded here.
    pub(crate) fn get(&self, path: &str, query: &[(&str, String)], patience: Duration) -> Result<Answer, Failed> {
        self.answer(self.send_get(path, query, patience))
    }

    /// Reads something of a known form; parts of it may be kept in the very bytes that the API sent.
    pub(crate) fn get_as<T: DeserializeOwned>(&self, path: &str, query: &[(&str, String)], patience: Duration) -> Result<T, Failed> {
        let mut response = self.send_get(path, query, patience).map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let bytes = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec().map_err(|error| self.unreachable(&error))?;
        if !status.is_success() {
            return read_answer(&self.url, status.as_u16(), &bytes).and(Err(self.foreign()));
        }
        serde_json::from_slice(&bytes).map_err(|_| self.foreign())
    }

    fn send_get(&self, path: &str, query: &[(&str, String)], patience: Duration) -> Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        let mut request = self.authorized(self.agent.get(format!("{}{path}", self.url)));
        for (name, value) in query {
            request = request.query(name, value);
        }
        request.config().timeout_global(Some(patience)).build().call()
    }

    /// Reads so many entries of a list (its path, and its name in the answer), page by page.
    pub(crate) fn pages(
        &self,
        (path, name): (&str, &str),
        filters: &[(&str, String)],
        wanted: usize,
        page_max: usize,
        patience: Duration,
    ) -> Result<Vec<Value>, Failed> {
        let (mut entries, mut cursor): (Vec<Value>, Option<String>) = (Vec::new(), None);
        loop {
            let mut query = filters.to_vec();
            query.push(("limit", (wanted - entries.len()).min(page_max).to_string()));
            query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
            let mut page = self.get(path, &query, patience)?.body;
            let Some(Value::Array(found)) = page.get_mut(name).map(Value::take) else {
                return Err(Failed::new(Exit::Transport, format!("the API's answer has no list of {name}; is it of another version?")));
            };
            entries.extend(found);
            cursor = page.get("next").and_then(Value::as_str).map(str::to_owned);
            if cursor.is_none() || entries.len() >= wanted {
                return Ok(entries);
            }
        }
    }

    /// Posts JSON.
    pub(crate) fn post(&self, path: &str, body: &Value, patience: Duration) -> Result<Answer, Failed> {
        let request = self.authorized(self.agent.post(format!("{}{path}", self.url))).header("content-type", "application/json");
        let sent = request.config().timeout_global(Some(patience)).build().send(body.to_string());
        self.answer(sent)
    }

    /// Posts JSON and hands on the answer's text as it comes, line by line. Returns where what was asked for is.
    pub(crate) fn post_for_text(&self, path: &str, body: &Value, patience: Duration, mut hear: impl FnMut(&str)) -> Result<String, Failed> {
        let request = self.authorized(self.agent.post(format!("{}{path}", self.url))).header("content-type", "application/json");
        let request = request.header("accept", "text/plain").config().timeout_global(Some(patience)).build();
        let response = request.send(body.to_string()).map_err(|error| self.unreachable(&error))?;
        let location = response.headers().get("location").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (true, Some(location)) = (response.status().is_success(), location) else {
            return self.answer(Ok(response)).and(Err(self.foreign()));
        };
        let mut text = BufReader::new(response.into_body().into_with_config().limit(ANSWER_BYTES_MAX).reader());
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = text.read_until(b'\n', &mut line).map_err(|error| {
                Failed::new(Exit::Transport, format!("the answer of the API broke off: {error}; what came of it is at {location}"))
            })?;
            if read == 0 {
                return Ok(location);
            }
            hear(&String::from_utf8_lossy(&line));
        }
    }

    fn unreachable(&self, error: &ureq::Error) -> Failed {
        Failed::new(Exit::Transport, format!("cannot reach the API at {}: {error}", self.url))
    }

    fn foreign(&self) -> Failed {
        Failed::new(Exit::Transport, format!("{} does not answer as a ProbeOps API would", self.url))
    }

    /// Deletes.
    pub(crate) fn delete(&self, path: &str, patience: Duration) -> Result<Answer, Failed> {
        let request = self.authorized(self.agent.delete(format!("{}{path}", self.url)));
        let sent = request.config().timeout_global(Some(patience)).build().call();
        self.answer(sent)
    }

    fn authorized<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    fn answer(&self, sent: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Answer, Failed> {
        let mut response = sent.map_err(|error| self.unreachable(&error))?;
        let status = response.status().as_u16();
        let bytes = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec().map_err(|error| self.unreachable(&error))?;
        read_answer(&self.url, status, &bytes)
    }
}

fn read_answer(url: &str, status: u16, bytes: &[u8]) -> Result<Answer, Failed> {
    let foreign = || {
        let text = String::from_utf8_lossy(bytes);
        let shown: String = probeops_shared::text::plain(text.trim()).chars().take(FOREIGN_CHARS_MAX).collect();
        Failed::new(Exit::Transport, format!("{url} does not answer as a ProbeOps API would (status {status}): {shown}"))
    };
    if status >= 300 {
        let problem: Problem = serde_json::from_slice(bytes).map_err(|_| foreign())?;
        return Err(Failed::new(Exit::of_problem(problem.code), probeops_shared::text::plain(&problem.to_string())));
    }
    Ok(Answer { body: serde_json::from_slice(bytes).map_err(|_| foreign())? })
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.detail)?;
        for invalid in &self.errors {
            // A problem with one error often repeats it in its detail.
            if invalid.to_string() != self.detail && invalid.detail != self.detail {
                write!(f, "\n  {invalid}")?;
            } else if !invalid.pointer.is_empty() && !self.detail.contains(&invalid.pointer) {
                write!(f, "\n  at {}", invalid.pointer)?;
            }
        }
        match (&self.request_id, self.code) {
            (Some(id), Code::Internal | Code::Unavailable) => write!(f, "\n  request {id}"),
            (Some(_) | None, _) => Ok(()),
        }
    }
}

/// The address of the API of a local `up`.
pub(crate) fn local_url(data: &Path) -> Result<String, Failed> {
    let file = data.join(URL_FILE);
    let none = || {
        Failed::usage(format!(
            "no API is given: set PROBEOPS_URL (or --url), or start a local one with `probeops up` (there is no {})",
            file.display()
        ))
    };
    match std::fs::read_to_string(&file) {
        Ok(url) => Ok(url.trim().to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(none()),
        Err(error) => Err(Failed::usage(format!("cannot read {}: {error}", file.display()))),
    }
}

fn read_line(file: &Path) -> Result<String, Failed> {
    let text =
        std::fs::read_to_string(file).map_err(|error| Failed::usage(format!("cannot read the credential {}: {error}", file.display())))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn fails(status: u16, body: &str, exit: Exit, text: &str) {
        let failed = read_answer("http://a", status, body.as_bytes()).unwrap_err();
        assert_eq!((failed.exit, failed.text.as_str()), (exit, text));
    }

    #[test]
    fn a_problem_is_printed_with_its_pointers() {
        fails(
            400,
            r#"{"code":"invalid","detail":"the request is malformed","errors":[{"pointer":"/from","detail":"is missing"}]}"#,
            Exit::Usage,
            "invalid: the request is malformed\n  /from: is missing",
        );
        fails(403, r#"{"code":"forbidden","detail":"needs scope jobs:write"}"#, Exit::Access, "forbidden: needs scope jobs:write");
        fails(
            503,
            r#"{"code":"unavailable","detail":"no broker","request_id":"r"}"#,
            Exit::Transport,
            "unavailable: no broker\n  request r",
        );
    }

    #[test]
    fn an_answer_of_something_else_is_named_as_such() {
        fails(
            502,
            "<html>Bad Gateway</html>",
            Exit::Transport,
            "http://a does not answer as a ProbeOps API would (status 502): <html>Bad Gateway</html>",
        );
        fails(200, "ok", Exit::Transport, "http://a does not answer as a ProbeOps API would (status 200): ok");
    }

    #[test]
    fn an_address_or_credential_that_cannot_be_right_is_refused_before_anything_is_sent() {
        assert!(Client::new("localhost:8080", "pk_x".to_owned(), None).unwrap_err().text.contains("begins with http://"));
        assert!(Client::new("http://a", "two\nlines".to_owned(), None).unwrap_err().text.contains("one line"));
        assert!(Client::new("https://a", "pk_x".to_owned(), Some(Path::new("/nowhere.pem"))).unwrap_err().text.contains("/nowhere.pem"));
    }
}
