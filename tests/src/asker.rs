//! A client of the broker that asks and hears every message of the answer.

use std::time::Duration;

use async_nats::{Client, HeaderMap, Message, StatusCode, Subscriber};
use futures_util::StreamExt;
use probeops_nats::permissions::Role;
use probeops_shared::ids::Caller as CallerName;
use serde_json::{Value, json};

use crate::fabric::Fabric;
use crate::process::HANG;

/// How long to listen for what must not come.
const NOTHING_WITHIN: Duration = Duration::from_millis(500);

/// Somebody who may publish jobs, with a connection.
#[derive(Debug)]
pub struct Asker<'a> {
    fabric: &'a Fabric,
    name: String,
    client: Client,
}

/// One message of an answer.
#[derive(Debug)]
pub struct Heard {
    /// What it is: `accepted`, `alive`, `progress`, `outcome`.
    pub event: String,
    /// Its number.
    pub seq: u64,
    /// Of which attempt.
    pub attempt: Option<u64>,
    /// What the broker itself says, instead of a node.
    pub status: Option<StatusCode>,
    /// The body.
    pub body: Value,
}

/// A job under way.
#[derive(Debug)]
pub struct Asked<'a> {
    fabric: &'a Fabric,
    answers: Subscriber,
}

impl<'a> Asker<'a> {
    /// A service that may ask for these tools in region `eu` and at these nodes.
    pub fn service(fabric: &'a Fabric, tools: &[&str], nodes: &[&str]) -> Self {
        let service = fabric.service("billing", &["eu"], tools, nodes);
        Self { fabric, client: fabric.connect(&service.creds), name: service.name }
    }

    /// A replica of the API, which may cancel.
    pub fn api(fabric: &'a Fabric) -> Self {
        let name = CallerName::new_api();
        let creds = fabric.credential(&Role::Api { caller: name.clone() });
        Self { fabric, client: fabric.connect(&creds), name: name.to_string() }
    }

    /// The connection.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Publishes a job; the caller's own name completes the subject.
    pub fn ask(&self, subject: &str, body: &Value, headers: &[(&str, &str)]) -> Asked<'a> {
        self.fabric.block_on(async {
            let inbox = format!("_INBOX.{}.{:032x}", self.name, rand::random::<u128>());
            let answers = self.client.subscribe(format!("{inbox}.*")).await.expect("the broker");
            let mut all = HeaderMap::new();
            for (name, value) in headers {
                all.insert(*name, *value);
            }
            let subject = format!("{subject}.{}", self.name);
            self.client
                .publish_with_reply_and_headers(subject, format!("{inbox}._"), all, body.to_string().into())
                .await
                .expect("the broker");
            self.client.flush().await.expect("the broker");
            Asked { fabric: self.fabric, answers }
        })
    }

    /// Cancels a request at a node; whether there was one.
    pub fn cancel(&self, node: &str, request_id: &str) -> Value {
        self.ask(&format!("node.v1.{node}.ctl.cancel"), &json!({"request_id": request_id}), &[]).hear().body
    }
}

impl Asked<'_> {
    /// The next message.
    pub fn hear(&mut self) -> Heard {
        self.within(HANG).expect("an answer")
    }

    /// The next message, if it comes in time.
    pub fn within(&mut self, patience: Duration) -> Option<Heard> {
        let message = self.fabric.block_on(async { tokio::time::timeout(patience, self.answers.next()).await }).ok()?;
        Some(heard(&message.expect("an open subscription")))
    }

    /// Everything up to the outcome, and nothing for a while after it.
    pub fn all(mut self) -> Vec<Heard> {
        let mut all = Vec::new();
        loop {
            let heard = self.hear();
            let is_last = heard.event == "outcome";
            all.push(heard);
            if is_last {
                break;
            }
        }
        let more = self.within(NOTHING_WITHIN);
        assert!(more.is_none(), "after the outcome: {more:?}");
        all
    }
}

fn heard(message: &Message) -> Heard {
    let header = |name: &str| message.headers.as_ref().and_then(|headers| headers.get(name)).map(|value| value.as_str().to_owned());
    Heard {
        event: header("Probe-Event").unwrap_or_default(),
        seq: header("Probe-Seq").and_then(|seq| seq.parse().ok()).unwrap_or(u64::MAX),
        attempt: header("Probe-Attempt").and_then(|attempt| attempt.parse().ok()),
        status: message.status,
        body: serde_json::from_slice(&message.payload).unwrap_or_default(),
    }
}
