//! `probeops deliveries` and `probeops secrets`: callbacks, as the API shows them.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::client::{Client, ClientArgs};
use crate::exit::{Exit, Failed};
use crate::terminal::{Form, field, table};

/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// See what became of callbacks, and deliver them again
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Examples:\n  probeops deliveries list --status pending\n  probeops deliveries replay msg_01a2124e-bfc0-7005-bdbf-af8c6b6a2860"
)]
pub(crate) enum Deliveries {
    /// List them; those that changed last are at the end
    List {
        /// Only that of this job
        #[arg(long, value_name = "ID")]
        job: Option<String>,
        /// Only those of which this became: pending, delivered, gone, expired, failed
        #[arg(long, value_name = "STATUS")]
        status: Option<String>,
        #[command(flatten)]
        shown: Shown,
    },
    /// Show one with its attempts
    Show {
        /// Its id
        id: String,
        #[command(flatten)]
        shown: Shown,
    },
    /// Deliver one again that is over
    Replay {
        /// Its id
        id: String,
        #[command(flatten)]
        shown: Shown,
    },
}

/// Make, list, replace and delete secrets that sign callbacks
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  probeops secrets add n8n --origin https://n8n.example")]
pub(crate) enum Secrets {
    /// Make one; it is shown only now
    Add {
        /// What it is for
        name: String,
        /// The scheme, host and port whose callbacks it signs
        #[arg(long, value_name = "URL")]
        origin: String,
        #[command(flatten)]
        shown: Shown,
    },
    /// List yours
    List {
        #[command(flatten)]
        shown: Shown,
    },
    /// Replace one; the old one signs beside it for 24 hours
    Rotate {
        /// Its id
        id: String,
        #[command(flatten)]
        shown: Shown,
    },
    /// Delete one; what it was to sign is not sent any more
    Remove {
        /// Its id
        id: String,
        #[command(flatten)]
        shown: Shown,
    },
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

/// Does what is asked with deliveries.
pub(crate) fn deliveries(command: &Deliveries) -> Result<(), Failed> {
    match command {
        Deliveries::List { job, status, shown } => {
            let filters = [("job", job), ("status", status)];
            let filters = filters.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))).collect();
            let all = listed(&Client::open(&shown.client)?, "/v1/deliveries", "deliveries", filters)?;
            shown.output.show(&json!({"deliveries": all}), || deliveries_table(&all));
        }
        Deliveries::Show { id, shown } => {
            let delivery = Client::open(&shown.client)?.get(&format!("/v1/deliveries/{id}"), &[], ANSWER_TIMEOUT)?.body;
            shown.output.show(&delivery, || {
                format!("{}\n{}", deliveries_table(std::slice::from_ref(&delivery)).trim_end(), attempts_table(&delivery))
            });
        }
        Deliveries::Replay { id, shown } => {
            let path = format!("/v1/deliveries/{id}/replay");
            let delivery = Client::open(&shown.client)?.post(&path, &json!({}), ANSWER_TIMEOUT)?.body;
            shown.output.show(&delivery, || deliveries_table(std::slice::from_ref(&delivery)));
        }
    }
    Ok(())
}

/// Does what is asked with secrets.
pub(crate) fn secrets(command: &Secrets) -> Result<(), Failed> {
    match command {
        Secrets::Add { name, origin, shown } => {
            let body = json!({"name": name, "origin": origin});
            let made = Client::open(&shown.client)?.post("/v1/secrets", &body, ANSWER_TIMEOUT)?.body;
            shown.output.show(&made, || format!("{}\n{}", secrets_table(std::slice::from_ref(&made)).trim_end(), field(&made, "/secret")));
        }
        Secrets::List { shown } => {
            let all = listed(&Client::open(&shown.client)?, "/v1/secrets", "secrets", Vec::new())?;
            shown.output.show(&json!({"secrets": all}), || secrets_table(&all));
        }
        Secrets::Rotate { id, shown } => {
            let made = Client::open(&shown.client)?.post(&format!("/v1/secrets/{id}/rotate"), &json!({}), ANSWER_TIMEOUT)?.body;
            shown.output.show(&made, || format!("{}\n{}", secrets_table(std::slice::from_ref(&made)).trim_end(), field(&made, "/secret")));
        }
        Secrets::Remove { id, shown } => {
            let removed = Client::open(&shown.client)?.delete(&format!("/v1/secrets/{id}"), ANSWER_TIMEOUT)?.body;
            shown.output.show(&removed, || secrets_table(std::slice::from_ref(&removed)));
        }
    }
    Ok(())
}

/// All entries of a list, page by page.
fn listed(client: &Client, path: &str, name: &str, filters: Vec<(&'static str, String)>) -> Result<Vec<Value>, Failed> {
    let (mut all, mut query) = (Vec::new(), filters);
    loop {
        let mut page = client.get(path, &query, ANSWER_TIMEOUT)?.body;
        let Some(Value::Array(found)) = page.get_mut(name).map(Value::take) else {
            return Err(Failed::new(Exit::Transport, format!("the API's answer has no list of {name}; is it of another version?")));
        };
        all.extend(found);
        let Some(next) = page.get("next").and_then(Value::as_str) else { return Ok(all) };
        query.retain(|(name, _)| *name != "cursor");
        query.push(("cursor", next.to_owned()));
    }
}

fn deliveries_table(deliveries: &[Value]) -> String {
    let row = |delivery: &Value| ["/id", "/status", "/tries", "/caller", "/url"].map(|name| field(delivery, name));
    table(["DELIVERY", "STATUS", "TRIES", "CALLER", "URL"], &deliveries.iter().map(row).collect::<Vec<_>>())
}

fn attempts_table(delivery: &Value) -> String {
    let attempts = delivery.get("attempts").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let row = |attempt: &Value| ["/at", "/status", "/took_ms", "/next_at", "/error"].map(|name| field(attempt, name));
    table(["ATTEMPT", "STATUS", "TOOK (MS)", "NEXT", "ERROR"], &attempts.iter().map(row).collect::<Vec<_>>())
}

fn secrets_table(secrets: &[Value]) -> String {
    let row = |secret: &Value| ["/id", "/name", "/origin", "/created_at", "/old_until"].map(|name| field(secret, name));
    table(["SECRET", "NAME", "ORIGIN", "CREATED", "OLD SIGNS UNTIL"], &secrets.iter().map(row).collect::<Vec<_>>())
}
