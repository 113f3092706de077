//! `probeops jobs`: your jobs, as the API keeps them.

use std::time::Duration;

use clap::{Args, Subcommand};
use probeops_shared::ids::JobId;
use probeops_shared::text::plain;
use probeops_shared::tools::ToolName;
use serde_json::{Value, json};

use crate::client::{Client, ClientArgs};
use crate::exit::Failed;
use crate::terminal::{Form, pretty, say, table};
use crate::tool;

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most jobs asked for at once.
const PAGE_JOBS_MAX: usize = 100;

/// List, show and cancel your jobs
#[derive(Debug, Subcommand)]
pub(crate) enum Jobs {
    /// List your jobs, newest first
    #[command(after_help = "Examples:\n  probeops jobs list --status running\n  probeops jobs list --tool ping --limit 1000 -o json")]
    List(ListArgs),
    /// Show one of your jobs and what came of it
    Show(OneArgs),
    /// End one of your jobs before its time
    Cancel(OneArgs),
}

/// Which jobs.
#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    /// Only those that are so now
    #[arg(long, value_name = "STATUS", value_parser = ["queued", "running", "finished", "cancelled", "expired"])]
    status: Option<String>,
    /// Only this tool
    #[arg(long)]
    tool: Option<ToolName>,
    /// Of another caller (key:ID or jwt:SUBJECT); for administrators
    #[arg(long, value_name = "NAME")]
    caller: Option<String>,
    /// How many jobs at most
    #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// What to print
    #[arg(short, long, value_name = "FORM", default_value = "text")]
    output: Form,
    #[command(flatten)]
    client: ClientArgs,
}

/// Which job.
#[derive(Args, Debug)]
pub(crate) struct OneArgs {
    /// The job's id
    #[arg(value_name = "ID")]
    id: JobId,
    /// What to print: what the tool printed, or the job as JSON
    #[arg(short, long, value_name = "FORM", default_value = "text")]
    output: Form,
    #[command(flatten)]
    client: ClientArgs,
}

/// Does it.
pub(crate) fn run(command: Jobs) -> Result<(), Failed> {
    match command {
        Jobs::List(args) => list(&args),
        Jobs::Show(args) => show(&Client::open(&args.client)?.get(&format!("/v1/jobs/{}", args.id), &[], PATIENCE)?.body, args.output),
        Jobs::Cancel(args) => show(&Client::open(&args.client)?.delete(&format!("/v1/jobs/{}", args.id), PATIENCE)?.body, args.output),
    }
}

fn list(args: &ListArgs) -> Result<(), Failed> {
    let client = Client::open(&args.client)?;
    let wanted = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let filters = [("status", args.status.clone()), ("tool", args.tool.map(|tool| tool.to_string())), ("caller", args.caller.clone())];
    let filters: Vec<(&str, String)> = filters.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let jobs = client.pages(("/v1/jobs", "jobs"), &filters, wanted, PAGE_JOBS_MAX, PATIENCE)?;
    match args.output {
        Form::Json => say(pretty(&json!({"jobs": jobs}))),
        Form::Text => say(shown(&jobs)),
    }
    Ok(())
}

fn show(document: &Value, form: Form) -> Result<(), Failed> {
    let outcomes = tool::outcomes(document)?;
    match form {
        Form::Json => say(pretty(document)),
        Form::Text => {
            say(shown(std::slice::from_ref(document)));
            say(format!("\n{}", tool::text(&outcomes).trim_end()));
        }
    }
    Ok(())
}

/// A line for each job.
pub(crate) fn shown(jobs: &[Value]) -> String {
    let row = |job: &Value| -> [String; 6] {
        let text = |name: &str| plain(job.get(name).and_then(Value::as_str).unwrap_or("-"));
        let from = job.get("from").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        [text("created_at"), text("id"), text("status"), text("tool"), text("target"), plain(&from.collect::<Vec<_>>().join(","))]
    };
    table(["CREATED", "ID", "STATUS", "TOOL", "TARGET", "FROM"], &jobs.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_one_line_and_cannot_steer_the_terminal() {
        let job =
            json!({"id": "i", "created_at": "t", "status": "running", "tool": "ping", "target": "a\u{1b}b", "from": ["eu", "node:n"]});
        assert_eq!(shown(&[job]).lines().nth(1).unwrap(), "t        i   running  ping  a\\u{1b}b  eu,node:n");
    }
}
