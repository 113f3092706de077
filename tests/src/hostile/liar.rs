//! A node that lies.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, HeaderMap, Message};
use futures_util::StreamExt;
use probeops_shared::job::header;
use serde_json::{Value, json};

/// How often it says that it is alive.
const ALIVE_EVERY: Duration = Duration::from_millis(200);
/// How often a node says a large thing: what it sends at once, whoever listens to all nodes must have heard before he hears others.
const PIECE_EVERY: Duration = Duration::from_millis(20);
/// What a node may publish in one message.
const NODE_BYTES_MAX: usize = 250 * 1024;

/// A node that answers each job with the lie that its target names.
#[derive(Debug)]
pub struct Liar {
    client: Client,
    node: String,
}

impl Liar {
    /// One with this connection, which is that of a node.
    pub fn new(client: Client, node: &str) -> Self {
        Self { client, node: node.to_owned() }
    }

    /// Lies about every job that it is asked for by its name, several at a time.
    pub async fn lie(self) {
        let mut jobs = self.client.subscribe(format!("node.v1.{}.>", self.node)).await.expect("as it was granted");
        let this = Arc::new(self);
        while let Some(job) = jobs.next().await {
            let this = Arc::clone(&this);
            drop(tokio::spawn(async move { this.answer(&job).await }));
        }
    }

    async fn answer(&self, job: &Message) {
        let (Some(reply), Ok(asked)) = (&job.reply, serde_json::from_slice::<Value>(&job.payload)) else { return };
        let to = reply.strip_suffix('_').map(|inbox| format!("{inbox}{}", self.node)).expect("where to answer");
        let lie = asked["target"].as_str().unwrap_or_default();
        let truth = told(&asked, &self.node, "lie");
        let output = "again and again\n".repeat(1_000);
        let found = json!({"request_id": asked["request_id"], "elapsed_ms": 1.0, "progress": {"x": 1}, "output": output});
        let found = found.to_string().into_bytes();
        let first = job.headers.as_ref().and_then(|headers| headers.get(header::ATTEMPT)).is_none_or(|attempt| attempt.as_str() == "1");
        match lie {
            // Asked again it would begin again.
            "large" if !first => self.say(&to, ("outcome", "0"), Vec::new()).await,
            "large" | "endless" | "alive" => self.go_on(lie, &to, &found).await,
            "seq" => {
                for seq in ["18446744073709551615", "0", "0", "-1", "99999999999999999999999", "x", "18446744073709551615"] {
                    self.say(&to, ("accepted", seq), found.clone()).await;
                    self.say(&to, ("progress", seq), found.clone()).await;
                }
                self.say(&to, ("outcome", "3"), truth.to_string().into_bytes()).await;
            }
            "unknown" => {
                self.say(&to, ("finished", "0"), truth.to_string().into_bytes()).await;
                self.say(&to, ("outcome", "1"), truth.to_string().into_bytes()).await;
            }
            // Everything told again and in the wrong order.
            "shuffled" => {
                self.say(&to, ("accepted", "0"), Vec::new()).await;
                for seq in ["1", "2", "2", "5", "3", "4", "5", "1", "6", "6"] {
                    self.say(&to, ("progress", seq), found.clone()).await;
                }
                self.say(&to, ("accepted", "0"), Vec::new()).await;
                for (event, seq) in [("outcome", "7"), ("outcome", "7"), ("progress", "8"), ("accepted", "0")] {
                    self.say(&to, (event, seq), truth.to_string().into_bytes()).await;
                }
            }
            "twice" => {
                for _ in 0..100 {
                    self.say(&to, ("outcome", "0"), truth.to_string().into_bytes()).await;
                }
            }
            "backwards" => {
                self.say(&to, ("outcome", "9"), truth.to_string().into_bytes()).await;
                self.say(&to, ("progress", "8"), found).await;
                self.say(&to, ("accepted", "7"), Vec::new()).await;
            }
            "headers" => {
                let mut headers = HeaderMap::new();
                for number in 0..1_000 {
                    headers.append(format!("X-{number}").as_str(), "y".repeat(200).as_str());
                }
                headers.insert(header::EVENT, "outcome");
                drop(self.client.publish_with_headers(to, headers, truth.to_string().into()).await);
            }
            one => self.say(&to, ("outcome", "0"), outcome(one, truth)).await,
        }
    }

    /// What is never over, until the connection is, or a hundred megabytes of outcomes, each as large as the broker lets through.
    async fn go_on(&self, lie: &str, to: &str, found: &[u8]) {
        self.say(to, ("accepted", "0"), Vec::new()).await;
        for number in 1_u64.. {
            let seq = number.to_string();
            match lie {
                "endless" => {
                    self.say(to, ("progress", &seq), found.to_vec()).await;
                    tokio::time::sleep(PIECE_EVERY).await;
                }
                "alive" => {
                    self.say(to, ("accepted", &seq), Vec::new()).await;
                    tokio::time::sleep(ALIVE_EVERY).await;
                }
                "large" if number <= 400 => {
                    self.say(to, ("outcome", &seq), vec![b'{'; NODE_BYTES_MAX]).await;
                    tokio::time::sleep(PIECE_EVERY).await;
                }
                _ => return,
            }
        }
    }

    async fn say(&self, to: &str, (event, seq): (&str, &str), body: Vec<u8>) {
        say(&self.client, to, (event, seq), body).await;
    }
}

/// Says this of a job, whoever it is that says it.
pub async fn say(client: &Client, to: &str, (event, seq): (&str, &str), body: Vec<u8>) {
    let mut headers = HeaderMap::new();
    headers.insert(header::EVENT, event);
    headers.insert(header::SEQ, seq);
    drop(client.publish_with_headers(to.to_owned(), headers, body.into()).await);
}

/// The outcome of a job of `echo` as a node of region `bad` writes it.
pub fn told(asked: &Value, node: &str, output: &str) -> Value {
    json!({
        "request_id": asked["request_id"], "status": "success", "output": output, "duration_ms": 1.0, "tool": "echo",
        "target": asked["target"], "report": {}, "started_at": "2026-01-01T00:00:00Z", "node": {"id": node, "region": "bad"},
    })
}

/// An outcome that lies in this way.
fn outcome(lie: &str, mut truth: Value) -> Vec<u8> {
    match lie {
        "ids" => {
            truth["request_id"] = json!("another");
            truth["tool"] = json!("ping");
            truth["target"] = json!("elsewhere");
            truth["node"] = json!({"id": "good-1", "region": "good"});
        }
        "numbers" => {
            truth["duration_ms"] = json!(-1.7e308);
            truth["started_at"] = json!("9999-12-31T23:59:59Z");
        }
        "deep" => return nested(&truth),
        "junk" => return vec![0xff; NODE_BYTES_MAX],
        _ => {}
    }
    truth.to_string().into_bytes()
}

/// An outcome whose report is as deep as there is room for.
fn nested(outcome: &Value) -> Vec<u8> {
    let depth = NODE_BYTES_MAX / 2 - 1_000;
    let report = format!("\"report\":{}{}", "[".repeat(depth), "]".repeat(depth));
    outcome.to_string().replace("\"report\":{}", &report).into_bytes()
}
