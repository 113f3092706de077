//! `probeops audit`: the trail, as the API shows it.

use std::time::Duration;

use clap::Args;
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
#[command(after_help = "Examples:\n  probeops audit --since 1h\n  probeops audit --node fra-1 --verdict denied -o json")]
pub(crate) struct AuditArgs {
    /// Only what happened since: a time (2026-01-31T12:00:00Z) or how long ago (90s, 15m, 2h, 7d)
    #[arg(long, value_name = "WHEN", value_parser = when)]
    since: Option<Timestamp>,
    /// Only what happened before: a time, or how long ago
    #[arg(long, value_name = "WHEN", value_parser = when)]
    until: Option<Timestamp>,
    /// Only at this node
    #[arg(long, value_name = "ID")]
    node: Option<NodeId>,
    /// Only on behalf of: key:ID, jwt:SUBJECT, or a service's name
    #[arg(long, value_name = "NAME")]
    principal: Option<String>,
    /// Only this tool
    #[arg(long)]
    tool: Option<ToolName>,
    /// Only records of this kind: accepted, refused, changed, finished, denied
    #[arg(long, value_parser = verdict)]
    verdict: Option<Verdict>,
    /// Only of this request or job
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// How many records at most
    #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// What to print
    #[arg(short, long, value_name = "FORM", default_value = "text")]
    output: Form,
    #[command(flatten)]
    client: ClientArgs,
}

/// Prints the trail.
pub(crate) fn run(args: &AuditArgs) -> Result<(), Failed> {
    let client = Client::open(&args.client)?;
    let wanted = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let records = client.pages(("/v1/audit", "records"), &filters(args), wanted, PAGE_RECORDS_MAX, PAGE_TIMEOUT)?;
    match args.output {
        Form::Json => say(pretty(&json!({"records": records}))),
        Form::Text => say(shown(&records)),
    }
    Ok(())
}

fn filters(args: &AuditArgs) -> Vec<(&'static str, String)> {
    let given = [
        ("since", args.since.map(|at| at.to_string())),
        ("until", args.until.map(|at| at.to_string())),
        ("node", args.node.as_ref().map(ToString::to_string)),
        ("principal", args.principal.clone()),
        ("tool", args.tool.map(|tool| tool.to_string())),
        ("verdict", args.verdict.map(|verdict| verdict.as_str().to_owned())),
        ("request_id", args.request_id.clone()),
    ];
    given.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// A line for each record, by their own times: the trail has them as they arrived, and a node sends a second's worth at once.
fn shown(records: &[Value]) -> String {
    let row = |record: &Value| -> [String; 7] {
        let Ok(record) = serde_json::from_value::<Record>(record.clone()) else {
            // Of another version, perhaps; what there is to see is shown all the same.
            let time = record.get("time").and_then(Value::as_str).unwrap_or("-");
            return [plain(time), "?".into(), "?".into(), "?".into(), "?".into(), "?".into(), plain(&record.to_string())];
        };
        [
            record.time.to_string(),
            record.verdict.as_str().to_owned(),
            plain(&record.principal),
            record.node.map_or_else(|| "-".to_owned(), |node| node.to_string()),
            plain(&record.tool),
            plain(&record.target),
            plain(&record.detail),
        ]
    };
    let mut rows: Vec<_> = records.iter().map(row).collect();
    // Times of one form sort as text.
    rows.sort_by(|[earlier, ..], [later, ..]| later.cmp(earlier));
    table(["TIME", "VERDICT", "PRINCIPAL", "NODE", "TOOL", "TARGET", "DETAIL"], &rows)
}

fn verdict(text: &str) -> Result<Verdict, String> {
    Verdict::ALL.into_iter().find(|verdict| verdict.as_str() == text).ok_or_else(|| {
        let all: Vec<&str> = Verdict::ALL.iter().map(|verdict| verdict.as_str()).collect();
        format!("must be one of {}", all.join(", "))
    })
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
        let record = json!({"time": "2026-01-31T12:00:00Z", "verdict": "denied", "principal": "svc", "tool": "ping", "target": "a\u{1b}b", "request_id": "r"});
        let text = shown(&[record]);
        assert_eq!(text.lines().nth(1).unwrap(), "2026-01-31T12:00:00.000000Z  denied   svc        -     ping  a\\u{1b}b");
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
