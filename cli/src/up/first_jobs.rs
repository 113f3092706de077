//! The first jobs of a new fabric: the line to paste, and the two that `--once` runs.

use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use probeops_nats::connect::{Link, connect};
use probeops_nats::layout::files;
use probeops_nats::permissions::Role;
use probeops_shared::ids::{Caller, Region, ReplyToken};
use probeops_shared::job::{GRACE, Job};
use probeops_shared::outcome::{Outcome, Status};
use probeops_shared::subjects;
use probeops_shared::tools::ToolName;
use serde_json::{Value, json};

use crate::client::Client;
use crate::exit::Failed;
use crate::terminal::{note, pretty, say};
use crate::up::fabric::Fabric;
use crate::up::quoted;

/// How long a job over HTTP may take.
const HTTP_WITHIN: Duration = Duration::from_secs(60);
/// How long the service's credential lasts.
const SERVICE_LIFETIME: Duration = Duration::from_mins(5);
/// Where both jobs go.
const TARGET: &str = "127.0.0.1";

/// The job over HTTP: ping where a node announced it, else a connection to a port that is open; none without nodes.
fn first_job(open_port: u16, nodes: &[Value]) -> Option<Value> {
    let can_ping = |node: &&Value| node["beat"]["tools"].as_array().is_some_and(|tools| tools.contains(&json!(ToolName::Ping)));
    let (tool, parameters, node) = match nodes.iter().find(can_ping) {
        Some(node) => (ToolName::Ping, json!({"count": 2}), node),
        None => (ToolName::Tcp, json!({"port": open_port}), nodes.first()?),
    };
    Some(json!({"tool": tool, "target": TARGET, "from": node["region"], "parameters": parameters}))
}

/// The same as a line for a shell.
pub(super) fn curl(fabric: &Fabric, nodes: &[Value]) -> Option<String> {
    Some(line(fabric.url(), &fabric.layout().admin_key(), &first_job(fabric.open_port(), nodes)?))
}

fn line(url: &str, key_file: &Path, body: &Value) -> String {
    let key_file = quoted(key_file);
    format!("curl -s {url}/v1/jobs -H \"authorization: Bearer $(cat {key_file})\" -H 'content-type: application/json' -d '{body}'")
}

/// Runs one job over HTTP and one straight over NATS and prints both outcomes in full.
pub(super) async fn run(fabric: &Fabric, nodes: &[Value]) -> Result<(), Failed> {
    let step = |name: &'static str| move |error: Failed| Failed::work(format!("step `{name}` failed: {error}"));
    over_http(fabric, nodes).await.map_err(step("a job over HTTP"))?;
    over_nats(fabric, nodes).await.map_err(step("a job straight over NATS"))
}

async fn over_http(fabric: &Fabric, nodes: &[Value]) -> Result<(), Failed> {
    let key = files::read_if_exists(&fabric.layout().admin_key()).map_err(|error| Failed::work(format!("{error:#}")))?.unwrap_or_default();
    let client = Client::new(fabric.url(), key.trim().to_owned(), None)?;
    let body = first_job(fabric.open_port(), nodes).ok_or_else(no_nodes)?;
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    note(format!("1. over HTTP: {} {} from {}", text("tool"), text("target"), text("from")));
    let answer = tokio::task::spawn_blocking(move || client.post("/v1/jobs", &body, HTTP_WITHIN)).await.map_err(Failed::work)??;
    say(pretty(&answer.body));
    let outcome = &answer.body["results"][0];
    if outcome["status"] == "success" { Ok(()) } else { Err(Failed::work(format!("its outcome is {}", outcome["failure"]))) }
}

async fn over_nats(fabric: &Fabric, nodes: &[Value]) -> Result<(), Failed> {
    let control = fabric.control()?;
    let region: Region = nodes.first().and_then(|node| node["region"].as_str()).ok_or_else(no_nodes)?.parse().map_err(Failed::work)?;
    note(format!("2. straight over NATS: tcp {TARGET} from {region}"));
    let name: Caller = "first-service".parse().map_err(Failed::work)?;
    let (regions, tools) = (vec![region.clone()], vec![ToolName::Tcp]);
    let role = Role::Service { name: name.clone(), regions, tools, nodes: Vec::new(), direct: true };
    let creds = control.layout.service_creds(&name);
    control.vault.mint_to(&creds, &role, SERVICE_LIFETIME).map_err(|error| Failed::work(format!("{error:#}")))?;
    let link = Link { servers: control.servers.clone(), ca: control.ca(), creds: creds.clone() };
    let (client, _events) = connect(&link, "first service", &role.inbox_prefix()).await.map_err(Failed::work)?;
    std::fs::remove_file(&creds).map_err(|error| Failed::work(format!("cannot remove {}: {error}", creds.display())))?;
    let message = json!({"tool": ToolName::Tcp, "target": TARGET, "parameters": {"port": fabric.open_port(), "timeout": 2}}).to_string();
    let job = Job::parse(message.as_bytes()).map_err(|rejected| Failed::work(rejected.invalid))?;
    let token = ReplyToken::new();
    let mut answers = client.subscribe(subjects::reply(&name, token, subjects::ANY)).await.map_err(Failed::work)?;
    let (subject, reply) = (subjects::job(&region, ToolName::Tcp, &name), subjects::reply(&name, token, subjects::NO_RESPONDERS));
    client.publish_with_reply(subject, reply, job.to_bytes().into()).await.map_err(Failed::work)?;
    let patience = job.spec.budget() + GRACE;
    let answer = tokio::time::timeout(patience, answers.next()).await;
    let answer = answer.map_err(|_| Failed::work(format!("no answer within {} ms", patience.as_millis())))?;
    let answer = answer.ok_or_else(|| Failed::work("the connection ended before the answer"))?;
    if let Some(status) = answer.status {
        return Err(Failed::work(format!("the broker answers {status}: no node of {region} listens")));
    }
    let outcome: Outcome =
        serde_json::from_slice(&answer.payload).map_err(|error| Failed::work(format!("the outcome cannot be read: {error}")))?;
    say(pretty(&outcome));
    match (outcome.status, outcome.failure) {
        (Status::Success, _) => Ok(()),
        (Status::Failed, failure) => {
            Err(Failed::work(format!("its outcome is {}", failure.map_or_else(String::new, |failure| failure.to_string()))))
        }
    }
}

fn no_nodes() -> Failed {
    Failed::work("no demo agent runs, because all are revoked; grant one again with `probeops nodes add`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_job_is_what_a_node_announced() {
        let node = |region: &str, tools: &[&str]| json!({"region": region, "beat": {"tools": tools}});
        let (bare, able) = (node("a", &["echo", "tcp"]), node("b", &["echo", "ping", "tcp"]));
        let ping = json!({"tool": "ping", "target": "127.0.0.1", "from": "b", "parameters": {"count": 2}});
        assert_eq!(first_job(8222, &[bare.clone(), able]), Some(ping));
        let tcp = json!({"tool": "tcp", "target": "127.0.0.1", "from": "a", "parameters": {"port": 8222}});
        assert_eq!(first_job(8222, &[bare]), Some(tcp));
        assert_eq!(first_job(8222, &[]), None);
    }

    #[test]
    fn the_line_for_a_shell_survives_any_path() {
        let line = line("http://127.0.0.1:1", Path::new("/a b/it's"), &json!({}));
        assert!(line.contains(r"$(cat '/a b/it'\''s')"), "{line}");
    }
}
