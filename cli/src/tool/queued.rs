//! A job that waits for a node: it is queued, and nobody waits for it here.

use std::time::Duration;

use clap::{Arg, ArgMatches};
use probeops_shared::registry::ValidFor;
use serde_json::Value;

use super::NETWORK_MARGIN;
use crate::client::Client;
use crate::exit::Failed;
use crate::jobs::shown;
use crate::terminal::{Form, pretty, say};

/// The longest that a job waits for a node.
const EXPIRES_IN_MAX: Duration = Duration::from_hours(7 * 24);

/// When a job is to run.
pub(super) fn flags() -> [Arg; 2] {
    let when = Arg::new("WHEN")
        .long("when")
        .value_name("WHEN")
        .help("Queue the job and end: it runs when a node is there that fits, and `probeops jobs show ID` tells what came of it")
        .conflicts_with("EXPLAIN")
        .value_parser(["online"]);
    let expires_in = Arg::new("EXPIRES_IN")
        .long("expires-in")
        .value_name("TIME")
        .help("How long a queued job waits for a node, such as 30m, 12h or 7d, which is the longest; an hour unless said")
        .requires("WHEN")
        .value_parser(expires_in);
    [when, expires_in]
}

fn expires_in(text: &str) -> Result<ValidFor, String> {
    let wants = || format!("must be a number and `s`, `m`, `h` or `d`, at most 7d, such as 12h, not `{text}`");
    let parsed: ValidFor = text.parse().map_err(|_| wants())?;
    if parsed.duration() <= EXPIRES_IN_MAX { Ok(parsed) } else { Err(wants()) }
}

/// The job, to be queued; none where it is to run at once.
pub(super) fn body(matches: &ArgMatches, body: &Value) -> Option<Value> {
    let when = matches.get_one::<String>("WHEN")?;
    let mut body = body.as_object()?.clone();
    drop(body.insert("when".to_owned(), when.as_str().into()));
    if let Some(expires_in) = matches.get_one::<ValidFor>("EXPIRES_IN") {
        let expires_in_ms = u64::try_from(expires_in.duration().as_millis()).unwrap_or(u64::MAX);
        drop(body.insert("expires_in_ms".to_owned(), expires_in_ms.into()));
    }
    Some(body.into())
}

/// Queues it and says under which id.
pub(super) fn queue(client: &Client, body: &Value, form: Form) -> Result<(), Failed> {
    let job = client.post("/v1/jobs", body, NETWORK_MARGIN)?.body;
    match form {
        Form::Json => say(pretty(&job)),
        Form::Text => say(shown(std::slice::from_ref(&job))),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Command;
    use serde_json::json;

    use super::*;

    fn given(arguments: &[&str]) -> Result<Option<Value>, String> {
        let command = Command::new("x").arg(Arg::new("EXPLAIN").long("explain").num_args(0)).args(flags());
        let matches = command.try_get_matches_from(["x"].iter().chain(arguments)).map_err(|error| error.to_string())?;
        Ok(body(&matches, &json!({"tool": "echo"})))
    }

    #[test]
    fn a_job_is_queued_where_it_says_so_for_as_long_as_it_says() {
        assert_eq!(given(&[]), Ok(None));
        assert_eq!(given(&["--when", "online"]), Ok(Some(json!({"tool": "echo", "when": "online"}))));
        let long = given(&["--when", "online", "--expires-in", "7d"]).unwrap().unwrap();
        assert_eq!(long["expires_in_ms"], 604_800_000);
        for (arguments, part) in [
            (&["--when", "later"][..], "online"),
            (&["--when", "online", "--expires-in", "8d"], "at most 7d"),
            (&["--when", "online", "--expires-in", "5"], "at most 7d"),
            (&["--expires-in", "5m"], "--when"),
            (&["--when", "online", "--explain"], "cannot be used with"),
        ] {
            let refused = given(arguments).unwrap_err();
            assert!(refused.contains(part), "{refused}");
        }
    }
}
