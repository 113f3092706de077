//! `probeops enroll-tokens`: what lets machines become nodes, as the API makes it.

use std::time::Duration;

use clap::{Args, Subcommand};
use probeops_shared::ids::{NodeId, Region};
use probeops_shared::registry::ValidFor;
use probeops_shared::tools::ToolName;
use serde_json::{Map, Value, json};

use crate::client::{Client, ClientArgs};
use crate::exit::Failed;
use crate::register::{joined, label};
use crate::terminal::{Form, field, note, say, table};

/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How many entries a page has at most.
const PAGE_MAX: usize = 100;
/// More tokens there cannot be.
const TOKENS_MAX: usize = 1000;

/// Make, list and revoke enrolment tokens, with which machines become nodes
#[derive(Debug, Subcommand)]
pub(crate) enum EnrollTokens {
    /// Make one; it is printed once
    #[command(
        after_help = "Example:\n  probeops enroll-tokens add --region eu-central --tools echo,ping,dns,tcp --label site=fra >token.txt\nand on the machine\n  probeops-agent enroll https://probeops.example.com --token-file token.txt"
    )]
    Add(AddArgs),
    /// List those that have not expired, without the tokens themselves
    List(Shown),
    /// Revoke one; nodes that enrolled with it stay nodes
    Revoke {
        /// Its id, as `enroll-tokens list` shows it
        id: String,
        #[command(flatten)]
        shown: Shown,
    },
}

/// What nodes a token makes.
#[derive(Args, Debug)]
pub(crate) struct AddArgs {
    /// Their region
    #[arg(long)]
    region: Region,
    /// What they may run
    #[arg(long, value_delimiter = ',', required = true, help = format!("What they may run: {}", joined(ToolName::ALL)))]
    tools: Vec<ToolName>,
    /// A label, such as site=fra, by which jobs can select them; several by naming it again
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(probeops_shared::ids::LabelKey, probeops_shared::ids::LabelValue)>,
    /// The name of the one node that it is for; nodes choose their own unless given
    #[arg(long, value_name = "NAME")]
    node: Option<NodeId>,
    /// How many nodes may enrol with it [default: 1]
    #[arg(long, value_name = "COUNT")]
    uses: Option<u32>,
    /// How long it can be used: 15m, 1h, 30d at most [default: 1h]
    #[arg(long, value_name = "TIME")]
    expires_in: Option<ValidFor>,
    /// Forget these nodes once they were away for some minutes
    #[arg(long)]
    ephemeral: bool,
    #[command(flatten)]
    shown: Shown,
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

/// Does what is asked with enrolment tokens.
pub(crate) fn enroll_tokens(command: &EnrollTokens) -> Result<(), Failed> {
    match command {
        EnrollTokens::Add(args) => {
            let made = Client::open(&args.shown.client)?.post("/v1/enroll-tokens", &asked(args)?, ANSWER_TIMEOUT)?.body;
            match args.shown.output {
                Form::Json => args.shown.output.show(&made, String::new),
                Form::Text => {
                    note(format!(
                        "The token is shown once and kept nowhere; it makes {} node(s) until {}:",
                        made["uses"],
                        field(&made, "/expires_at")
                    ));
                    say(field(&made, "/token"));
                }
            }
        }
        EnrollTokens::List(shown) => {
            let client = Client::open(&shown.client)?;
            let all = client.pages(("/v1/enroll-tokens", "enroll_tokens"), &[], TOKENS_MAX, PAGE_MAX, ANSWER_TIMEOUT)?;
            shown.output.show(&json!({"enroll_tokens": all}), || tokens_table(&all));
        }
        EnrollTokens::Revoke { id, shown } => {
            let revoked = Client::open(&shown.client)?.delete(&format!("/v1/enroll-tokens/{id}"), ANSWER_TIMEOUT)?.body;
            shown.output.show(&revoked, || format!("enrolment token {id} is revoked"));
        }
    }
    Ok(())
}

fn asked(args: &AddArgs) -> Result<Value, Failed> {
    let mut labels = Map::new();
    for (key, value) in &args.labels {
        if labels.insert(key.to_string(), json!(value)).is_some() {
            return Err(Failed::usage(format!("label `{key}` is given twice; a node has one value for each")));
        }
    }
    let mut asked = json!({"region": args.region, "tools": args.tools, "labels": labels, "ephemeral": args.ephemeral});
    if let Some(node) = &args.node {
        asked["node"] = json!(node);
    }
    if let Some(uses) = args.uses {
        asked["uses"] = json!(uses);
    }
    if let Some(expires_in) = args.expires_in {
        asked["expires_in_ms"] = json!(u64::try_from(expires_in.duration().as_millis()).unwrap_or(u64::MAX));
    }
    Ok(asked)
}

fn tokens_table(tokens: &[Value]) -> String {
    let row = |token: &Value| {
        let tools: Vec<&str> = token["tools"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let state = if token["revoked_at"].is_string() {
            format!("revoked {}", field(token, "/revoked_at"))
        } else {
            format!("until {}", field(token, "/expires_at"))
        };
        let node = if token["node"].is_string() { field(token, "/node") } else { "any".to_owned() };
        [field(token, "/id"), field(token, "/region"), tools.join(","), node, format!("{} of {}", token["used"], token["uses"]), state]
    };
    table(["TOKEN", "REGION", "TOOLS", "NODE", "USED", "STATE"], &tokens.iter().map(row).collect::<Vec<_>>())
}
