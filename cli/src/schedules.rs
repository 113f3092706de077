//! `probeops schedules`: jobs that run at a time, or again and again.

use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};
use probeops_shared::selector::{self, Selector};
use probeops_shared::tools::{Spec, ToolName};
use serde_json::{Map, Value, json};

use crate::client::{Client, ClientArgs};
use crate::exit::Failed;
use crate::terminal::{Form, field, table};

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most entries asked for at once.
const PAGE_MAX: usize = 100;

/// Run jobs at a time, or again and again
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  probeops schedules add ping 192.0.2.1 --from eu-central --every 15m --option count=4
  probeops schedules add tls example.com --from '*' --cron '0 30 2 * * *' --time-zone Europe/Berlin
  probeops schedules results sch_0123456789abcdef0123")]
pub(crate) enum Schedules {
    /// Make one
    Add(Box<AddArgs>),
    /// List yours
    List {
        /// How many at most
        #[arg(long, value_name = "NUMBER", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        limit: u32,
        #[command(flatten)]
        shown: Shown,
    },
    /// Show one
    Show(OneArgs),
    /// Pause one; what is due meanwhile is not made up for
    Pause(OneArgs),
    /// Let one go on that was paused or suspended
    Resume(OneArgs),
    /// Delete one
    Delete(OneArgs),
    /// Show what became of its firings, newest first
    Results {
        /// The schedule's id
        #[arg(value_name = "ID")]
        id: String,
        /// How many at most
        #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        limit: u32,
        #[command(flatten)]
        shown: Shown,
    },
}

/// Which schedule.
#[derive(Args, Debug)]
pub(crate) struct OneArgs {
    /// The schedule's id
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    shown: Shown,
}

/// What to run, and when.
#[derive(Args, Debug)]
pub(crate) struct AddArgs {
    /// Which tool
    tool: ToolName,
    /// Whom to point it at
    #[arg(default_value = "")]
    target: String,
    /// From where: a region, node:ID, labels such as site=fra; several with commas
    #[arg(long, value_name = "SELECTOR", required = true, value_parser = selectors)]
    from: Vec<Vec<Selector>>,
    /// An option of the tool; may be repeated
    #[arg(long = "option", value_name = "NAME=VALUE", value_parser = option)]
    options: Vec<(String, Value)>,
    #[command(flatten)]
    when: WhenArgs,
    /// By how much at most each firing is put off by chance, in milliseconds
    #[arg(long, value_name = "MS")]
    jitter_ms: Option<u64>,
    /// What becomes of a firing that is overdue
    #[arg(long, value_parser = ["drop", "run_once"])]
    overdue: Option<String>,
    /// How long after it is due that is, in milliseconds
    #[arg(long, value_name = "MS")]
    overdue_after_ms: Option<u64>,
    /// What waiting for nodes and running may take together, in milliseconds
    #[arg(long, value_name = "MS")]
    timeout_ms: Option<u64>,
    /// Whom to tell the end of each job
    #[arg(long, value_name = "URL")]
    callback: Option<String>,
    /// The secret that signs that
    #[arg(long, value_name = "ID", requires = "callback")]
    secret_id: Option<String>,
    /// Let it wait until it is resumed
    #[arg(long)]
    paused: bool,
    #[command(flatten)]
    shown: Shown,
}

/// When, in one of three ways.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("trigger").required(true).args(["at", "every", "cron"]))]
pub(crate) struct WhenArgs {
    /// Once, at this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// Again and again, after so long: 90s, 15m, 2h, 1d
    #[arg(long, value_name = "SPAN")]
    every: Option<String>,
    /// Second, minute, hour, day of the month, month, day of the week
    #[arg(long, value_name = "SIX FIELDS")]
    cron: Option<String>,
    /// On whose clock: a zone such as Europe/Berlin; UTC unless said
    #[arg(long, value_name = "ZONE", requires = "cron")]
    time_zone: Option<String>,
}

/// How it is asked for and printed.
#[derive(Args, Debug)]
pub(crate) struct Shown {
    /// What to print
    #[arg(short, long, value_name = "FORM", default_value = "text")]
    output: Form,
    #[command(flatten)]
    client: ClientArgs,
}

/// Does it.
pub(crate) fn run(command: &Schedules) -> Result<(), Failed> {
    match command {
        Schedules::Add(args) => {
            let body = body(args)?;
            one(&args.shown, &Client::open(&args.shown.client)?.post("/v1/schedules", &body, PATIENCE)?.body);
        }
        Schedules::List { limit, shown } => {
            let all = listed(shown, ("/v1/schedules", "schedules"), *limit)?;
            shown.output.show(&json!({"schedules": all}), || schedules_table(&all));
        }
        Schedules::Show(args) => one(&args.shown, &Client::open(&args.shown.client)?.get(&path(args, ""), &[], PATIENCE)?.body),
        Schedules::Pause(args) => {
            one(&args.shown, &Client::open(&args.shown.client)?.post(&path(args, "/pause"), &json!({}), PATIENCE)?.body);
        }
        Schedules::Resume(args) => {
            one(&args.shown, &Client::open(&args.shown.client)?.post(&path(args, "/resume"), &json!({}), PATIENCE)?.body);
        }
        Schedules::Delete(args) => {
            let deleted = Client::open(&args.shown.client)?.delete(&path(args, ""), PATIENCE)?.body;
            args.shown.output.show(&deleted, || format!("schedule {} is deleted", field(&deleted, "/id")));
        }
        Schedules::Results { id, limit, shown } => {
            let all = listed(shown, (&format!("/v1/schedules/{id}/results"), "results"), *limit)?;
            shown.output.show(&json!({"results": all}), || results_table(&all));
        }
    }
    Ok(())
}

fn path(args: &OneArgs, verb: &str) -> String {
    format!("/v1/schedules/{}{verb}", args.id)
}

fn listed(shown: &Shown, list: (&str, &str), limit: u32) -> Result<Vec<Value>, Failed> {
    Client::open(&shown.client)?.pages(list, &[], usize::try_from(limit).unwrap_or(usize::MAX), PAGE_MAX, PATIENCE)
}

/// What is asked of the API.
fn body(args: &AddArgs) -> Result<Value, Failed> {
    let parameters: Map<String, Value> = args.options.iter().cloned().collect();
    // What the API would refuse of the tool is refused here, in the same words, without asking it.
    Spec::parse(args.tool, &args.target, parameters.clone()).map_err(|invalid| Failed::usage(format!("{invalid}")))?;
    let from: Vec<&Selector> = args.from.iter().flatten().collect();
    let mut body = Map::new();
    let mut add = |name: &str, value: Option<Value>| drop(value.map(|value| body.insert(name.to_owned(), value)));
    add("tool", Some(json!(args.tool)));
    add("target", (!args.target.is_empty()).then(|| json!(args.target)));
    add("parameters", Some(parameters.into()));
    add("from", Some(json!(from)));
    add("at", args.when.at.clone().map(Value::from));
    add("every", args.when.every.clone().map(Value::from));
    add("cron", args.when.cron.clone().map(Value::from));
    add("time_zone", args.when.time_zone.clone().map(Value::from));
    add("jitter_ms", args.jitter_ms.map(Value::from));
    add("overdue", args.overdue.clone().map(Value::from));
    add("overdue_after_ms", args.overdue_after_ms.map(Value::from));
    add("timeout_ms", args.timeout_ms.map(Value::from));
    let callback = |url: &String| match &args.secret_id {
        Some(secret_id) => json!({"url": url, "secret_id": secret_id}),
        None => json!({"url": url}),
    };
    add("callback", args.callback.as_ref().map(callback));
    add("paused", args.paused.then_some(Value::Bool(true)));
    Ok(body.into())
}

fn selectors(argument: &str) -> Result<Vec<Selector>, String> {
    selector::split_list(argument).into_iter().map(str::parse).collect()
}

/// An option and its value: JSON where it is that, and text where it is not.
fn option(argument: &str) -> Result<(String, Value), String> {
    let (name, value) = argument.split_once('=').ok_or_else(|| format!("must be a name, `=` and a value, not `{argument}`"))?;
    Ok((name.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
}

fn one(shown: &Shown, schedule: &Value) {
    shown.output.show(schedule, || schedules_table(std::slice::from_ref(schedule)));
}

fn schedules_table(schedules: &[Value]) -> String {
    let row = |schedule: &Value| {
        let when = ["/at", "/every", "/cron"].into_iter().map(|pointer| field(schedule, pointer)).find(|text| text != "-");
        let when = match field(schedule, "/time_zone").as_str() {
            "-" => when.unwrap_or_default(),
            zone => format!("{} {zone}", when.unwrap_or_default()),
        };
        let state = match (schedule.get("suspended"), schedule.get("paused"), schedule.get("next_due")) {
            (Some(_), _, _) => format!("suspended: {}", field(schedule, "/suspended")),
            (None, Some(Value::Bool(true)), _) => "paused".to_owned(),
            (None, _, Some(_)) => "active".to_owned(),
            (None, _, None) => "over".to_owned(),
        };
        [field(schedule, "/id"), field(schedule, "/tool"), field(schedule, "/target"), when, field(schedule, "/next_due"), state]
    };
    table(["SCHEDULE", "TOOL", "TARGET", "WHEN", "NEXT DUE", "STATE"], &schedules.iter().map(row).collect::<Vec<_>>())
}

fn results_table(results: &[Value]) -> String {
    let row = |fired: &Value| {
        let became = match (fired.get("job"), fired.get("skipped"), fired.get("refused")) {
            (Some(_), _, _) => format!("{} {}", field(fired, "/job/status"), outcomes(fired)),
            (None, Some(_), _) => format!("skipped: {}", field(fired, "/skipped")),
            (None, None, Some(_)) => format!("refused: {}", field(fired, "/refused/detail")),
            (None, None, None) => "its job is no longer kept".to_owned(),
        };
        [field(fired, "/due"), field(fired, "/fired_at"), field(fired, "/job/id"), became]
    };
    table(["DUE", "FIRED", "JOB", "BECAME"], &results.iter().map(row).collect::<Vec<_>>())
}

/// How a job's runs ended, in a word each.
fn outcomes(fired: &Value) -> String {
    let results = fired.pointer("/job/results").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let words = results.iter().map(|outcome| match field(outcome, "/failure/kind").as_str() {
        "-" => field(outcome, "/status"),
        kind => kind.to_owned(),
    });
    words.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(subcommand)]
        schedules: Schedules,
    }

    fn asked(arguments: &str) -> Result<Value, String> {
        let arguments = ["x", "add"].into_iter().chain(arguments.split('|'));
        let command = Command::try_parse_from(arguments).map_err(|error| error.to_string())?;
        let Schedules::Add(args) = command.schedules else { return Err("another command".to_owned()) };
        body(&args).map_err(|failed| failed.text)
    }

    #[test]
    fn what_is_given_is_what_the_api_is_asked() {
        let ping = asked("ping|192.0.2.1|--from|eu,node:a|--every|15m|--option|count=4|--jitter-ms|5").unwrap();
        let expected = json!({
            "tool": "ping", "target": "192.0.2.1", "parameters": {"count": 4}, "from": ["eu", "node:a"], "every": "15m", "jitter_ms": 5,
        });
        assert_eq!(ping, expected);
        assert!(asked("ping|192.0.2.1|--from|eu").unwrap_err().contains("--at"));
        assert!(asked("ping|192.0.2.1|--from|eu|--every|1m|--cron|x").unwrap_err().contains("cannot be used with"));
        assert!(asked("ping|192.0.2.1|--from|eu|--every|1m|--option|count=0").unwrap_err().contains("/parameters/count"));
    }

    #[test]
    fn a_firing_says_what_became_of_it() {
        let job = json!({"due": "d", "fired_at": "f", "job": {"id": "i", "status": "finished", "results": [{"status": "success"}]}});
        let refused = json!({"due": "d", "fired_at": "f", "refused": {"detail": "no\u{1b}"}});
        let shown = results_table(&[job, json!({"due": "d", "skipped": "overdue"}), refused]);
        for part in ["finished success", "skipped: overdue", "refused: no\\u{1b}"] {
            assert!(shown.contains(part), "{shown}");
        }
    }
}
