//! `probeops audit`: the trail, as the API shows it; `tail`: as it comes; `chained`: all of it, with what tells whether it is whole.

mod chained;
mod copy;
mod tail;

use std::time::Duration;

use clap::{Args, Subcommand};
use probeops_shared::audit::{Record, Verdict};
use probeops_shared::ids::NodeId;
use probeops_shared::text::plain;
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::ToolName;
use serde_json::{Value, json};

use crate::client::{Client, ClientArgs};
use crate::exit::Failed;
use crate::spans;
use crate::terminal::{Form, pretty, say, table};

/// How long one page may take.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// The most records asked for at once.
const PAGE_RECORDS_MAX: usize = 100;

/// Show who asked what, and what was done, newest first
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  probeops audit --since 1h\n  probeops audit --node fra-1 --verdict denied -o json\n  probeops audit tail --principal billing\n  \
                  probeops audit export > trail.jsonl\n  probeops audit verify trail.jsonl"
)]
pub(crate) struct AuditArgs {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    Tail(tail::TailArgs),
    Export(chained::ExportArgs),
    Verify(chained::VerifyArgs),
}

/// What to show of what there is.
#[derive(Args, Debug)]
struct ListArgs {
    /// Only what happened since: a time (2026-01-31T12:00:00Z) or how long ago (90s, 15m, 2h, 7d)
    #[arg(long, value_name = "WHEN", value_parser = when)]
    since: Option<Timestamp>,
    /// Only what happened before: a time, or how long ago
    #[arg(long, value_name = "WHEN", value_parser = when)]
    until: Option<Timestamp>,
    #[command(flatten)]
    wanted: Wanted,
    /// How many records at most
    #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// What to print
    #[arg(short, long, value_name = "FORM", default_value = "text")]
    output: Form,
    #[command(flatten)]
    client: ClientArgs,
}

/// Which records.
#[derive(Args, Debug)]
struct Wanted {
    /// Only at this node
    #[arg(long, value_name = "ID")]
    node: Option<NodeId>,
    /// Only on behalf of: key:ID, jwt:SUBJECT, or a service's name
    #[arg(long, value_name = "NAME")]
    principal: Option<String>,
    /// Only this tool
    #[arg(long)]
    tool: Option<ToolName>,
    /// Only this target: a job's, or what was changed or read, such as key:ID or node:ID
    #[arg(long, value_name = "TARGET")]
    target: Option<String>,
    /// Only records of this kind
    #[arg(long, value_parser = verdict, long_help = format!("Only records of this kind: {}", verdicts()))]
    verdict: Option<Verdict>,
    /// Only of this request or job
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
}

impl Wanted {
    fn fits(&self, record: &Record) -> bool {
        let of_request = |wanted: &String| {
            let rest = record.request_id.strip_prefix(wanted.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.node.as_ref().is_none_or(|node| record.node.as_ref() == Some(node))
            && self.principal.as_ref().is_none_or(|principal| record.principal == *principal)
            && self.tool.is_none_or(|tool| record.tool == tool.as_str())
            && self.target.as_ref().is_none_or(|target| record.target == *target)
            && self.verdict.is_none_or(|verdict| record.verdict == verdict)
            && self.request_id.as_ref().is_none_or(of_request)
    }
}

/// Runs a command about the trail.
pub(crate) fn run(args: &AuditArgs) -> Result<(), Failed> {
    match &args.command {
        None => list(&args.list),
        Some(Command::Tail(args)) => tail::run(args),
        Some(Command::Export(args)) => chained::export(args),
        Some(Command::Verify(args)) => chained::verify(args),
    }
}

fn list(args: &ListArgs) -> Result<(), Failed> {
    let client = Client::open(&args.client)?;
    let wanted = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let records = client.pages(("/v1/audit", "records"), &filters(args), wanted, PAGE_RECORDS_MAX, PAGE_TIMEOUT)?;
    match args.output {
        Form::Json => say(pretty(&json!({"records": records}))),
        Form::Text => say(shown(&records)),
    }
    Ok(())
}

fn filters(args: &ListArgs) -> Vec<(&'static str, String)> {
    let Wanted { node, principal, tool, target, verdict, request_id } = &args.wanted;
    let given = [
        ("since", args.since.map(|at| at.to_string())),
        ("until", args.until.map(|at| at.to_string())),
        ("node", node.as_ref().map(ToString::to_string)),
        ("principal", principal.clone()),
        ("tool", tool.map(|tool| tool.to_string())),
        ("target", target.clone()),
        ("verdict", verdict.map(|verdict| verdict.as_str().to_owned())),
        ("request_id", request_id.clone()),
    ];
    given.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

fn row(record: &Value, writer: &str) -> [String; 8] {
    let Ok(record) = serde_json::from_value::<Record>(record.clone()) else {
        // Of another version, perhaps; what there is to see is shown all the same.
        let time = record.get("time").and_then(Value::as_str).unwrap_or("-");
        return [plain(time), "?".into(), plain(writer), "?".into(), "?".into(), "?".into(), "?".into(), plain(&record.to_string())];
    };
    [
        record.time.to_string(),
        record.verdict.as_str().to_owned(),
        plain(writer),
        plain(&record.principal),
        record.node.map_or_else(|| "-".to_owned(), |node| node.to_string()),
        plain(&record.tool),
        plain(&record.target),
        plain(&record.detail),
    ]
}

/// A line for each record, by their own times: the trail has them as they arrived, and a node sends a second's worth at once.
fn shown(records: &[Value]) -> String {
    let writer = |record: &Value| record["writer"].as_str().unwrap_or("-").to_owned();
    let mut rows: Vec<_> = records.iter().map(|record| row(record, &writer(record))).collect();
    // Times of one form sort as text.
    rows.sort_by(|[earlier, ..], [later, ..]| later.cmp(earlier));
    table(["TIME", "VERDICT", "WRITER", "PRINCIPAL", "NODE", "TOOL", "TARGET", "DETAIL"], &rows)
}

fn verdict(text: &str) -> Result<Verdict, String> {
    Verdict::ALL.into_iter().find(|verdict| verdict.as_str() == text).ok_or_else(|| format!("must be one of {}", verdicts()))
}

fn verdicts() -> String {
    Verdict::ALL.map(Verdict::as_str).join(", ")
}

fn when(text: &str) -> Result<Timestamp, String> {
    let ago = || {
        let ago_ms = i64::try_from(spans::parse(text).ok()?.as_millis()).ok()?;
        Timestamp::from_unix_ms(Timestamp::now().unix_ms().checked_sub(ago_ms)?)
    };
    let wants = || "must be a time such as 2026-01-31T12:00:00Z, or how long ago, such as 90s, 15m, 2h or 7d".to_owned();
    Timestamp::parse(text).or_else(ago).ok_or_else(wants)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_may_be_given_as_how_long_ago() {
        let two_hours_ago = when("2h").unwrap();
        assert!(Timestamp::now().since(two_hours_ago).as_secs() >= 7200);
        assert_eq!(when("2026-01-31T12:00:00Z").unwrap().unix_ms(), 1_769_860_800_000);
        for bad in ["", "h", "2", "2w", "-1h", "ü"] {
            assert!(when(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_record_is_one_line_and_cannot_steer_the_terminal() {
        let record = json!({"time": "2026-01-31T12:00:00Z", "verdict": "denied", "principal": "svc", "tool": "ping", "target": "a\u{1b}b", "request_id": "r", "writer": "n\u{1b}1"});
        let text = shown(&[record]);
        assert_eq!(text.lines().nth(1).unwrap(), "2026-01-31T12:00:00.000000Z  denied   n\\u{1b}1  svc        -     ping  a\\u{1b}b");
    }

    #[test]
    fn records_are_in_the_order_of_their_times_and_none_is_left_out() {
        let at = |second: u32, verdict: &str| json!({"time": format!("2026-01-31T12:00:0{second}.000000Z"), "verdict": verdict, "principal": "p"});
        let text = shown(&[at(1, "finished"), at(3, "vanished"), at(2, "denied")]);
        let times: Vec<&str> = text.lines().skip(1).map(|line| &line[17..19]).collect();
        assert_eq!(times, ["03", "02", "01"], "{text}");
        assert!(text.contains("vanished"), "{text}");
    }
}
