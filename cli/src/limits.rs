//! `probeops limits`: what the caller and the nodes have left.

use std::time::Duration;

use clap::Args;
use serde_json::Value;

use crate::client::{Client, ClientArgs};
use crate::exit::Failed;
use crate::terminal::{Form, note, pretty, say, table};

/// How long the answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Show your limits, those of nodes, and what is left of them
#[derive(Args, Debug)]
pub(crate) struct LimitsArgs {
    /// What to print
    #[arg(short, long, value_name = "FORM", default_value = "text")]
    output: Form,
    #[command(flatten)]
    client: ClientArgs,
}

/// Asks and prints.
pub(crate) fn run(args: &LimitsArgs) -> Result<(), Failed> {
    let limits = Client::open(&args.client)?.get("/v1/limits", &[], ANSWER_TIMEOUT)?.body;
    let Form::Text = args.output else {
        say(pretty(&limits));
        return Ok(());
    };
    let rows = rows(&limits);
    if rows.is_empty() {
        note("nothing is limited");
    } else {
        say(table(["OF", "LIMIT", "LEFT", "ALL AGAIN IN"], &rows).trim_end());
    }
    Ok(())
}

fn rows(limits: &Value) -> Vec<[String; 4]> {
    let mut rows = rows_of("you", limits);
    for (name, list) in limits.get("limits").and_then(Value::as_object).into_iter().flatten() {
        if let Value::Array(items) = list {
            let items: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
            rows.push(["you".to_owned(), format!("only {name} {}", items.join(", ")), "-".to_owned(), "-".to_owned()]);
        }
    }
    for node in limits.get("nodes").and_then(Value::as_array).into_iter().flatten() {
        rows.extend(rows_of(node.get("node").and_then(Value::as_str).unwrap_or_default(), node));
    }
    rows
}

fn rows_of(whose: &str, limits: &Value) -> Vec<[String; 4]> {
    let number = |limit: &Value, name: &str| limit.get(name).and_then(Value::as_u64).unwrap_or_default();
    let seconds = |limit: &Value, name: &str| number(limit, name).div_ceil(1_000);
    let row = |limit: String, left: &Value, again: String| [whose.to_owned(), limit, number(left, "left").to_string(), again];
    let rate = limits.get("rate").map(|rate| {
        let limit = format!("{} runs in {} s", number(rate, "count"), seconds(rate, "window_ms"));
        row(limit, rate, format!("{} s", seconds(rate, "reset_ms")))
    });
    let at_once = limits.get("at_once").map(|limit| row(format!("{} runs at once", number(limit, "count")), limit, "-".to_owned()));
    rate.into_iter().chain(at_once).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_limit_is_a_row() {
        let limits = json!({
            "principal": "key:k",
            "limits": {"tools": ["ping", "dns"], "rate": "60/m"},
            "rate": {"count": 60, "window_ms": 60_000, "left": 12, "reset_ms": 41_001},
            "nodes": [{"node": "fra-1", "at_once": {"count": 4, "left": 4}}],
        });
        let told = rows(&limits).into_iter().map(|row| row.join(" | ")).collect::<Vec<_>>();
        assert_eq!(told, ["you | 60 runs in 60 s | 12 | 42 s", "you | only tools ping, dns | - | -", "fra-1 | 4 runs at once | 4 | -"]);
        assert!(rows(&json!({"principal": "key:k", "nodes": []})).is_empty());
    }
}
