//! A node whose every word a test decides: what the API makes of answers that an agent gives rarely, late, or never.

use std::time::Duration;

use async_nats::{Client, HeaderMap, Message, Subscriber};
use futures_util::stream::{BoxStream, pending, select_all};
use futures_util::{FutureExt, StreamExt};
use probeops_nats::permissions::Role;
use probeops_shared::ids::{NodeId, Region};
use probeops_shared::job::header;
use probeops_shared::presence::{Beat, EventAck, EventKind, PolicyReport, Slots};
use probeops_shared::subjects;
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::{Class, ToolName};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::fixture::{Api, Fabric, PATIENCE};

/// Often enough for the roster.
const BEAT_EVERY: Duration = Duration::from_secs(3);
/// What it says it can run.
const TOOLS: [ToolName; 2] = [ToolName::Echo, ToolName::Dns];

/// Where a node hears of jobs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ears {
    /// In its region's group, and under its own name.
    Group,
    /// Only under its own name.
    Name,
    /// Nowhere.
    None,
}

pub(crate) struct Node {
    id: NodeId,
    client: Client,
    heard: BoxStream<'static, Message>,
    beating: JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.beating.abort();
    }
}

impl Node {
    /// A node with so many free slots, once the API knows that it is there.
    pub(crate) async fn start(fabric: &Fabric, api: &Api, id: &str, (ears, free): (Ears, usize)) -> Self {
        let (node, region): (NodeId, Region) = (id.parse().unwrap(), "lab".parse().unwrap());
        fabric.grant(id, "lab").await;
        let client = fabric.connect(&Role::Node { node: node.clone(), region: region.clone(), tools: TOOLS.to_vec() }).await;
        let mut heard = vec![pending().boxed()];
        if ears != Ears::None {
            heard.push(client.subscribe(subjects::node_all(&node)).await.unwrap().boxed());
        }
        if ears == Ears::Group {
            for tool in TOOLS {
                let group = subjects::node_tool_group(&region, tool);
                heard.push(client.queue_subscribe(group, subjects::NODE_QUEUE.to_owned()).await.unwrap().boxed());
            }
        }
        let heard = select_all(heard).boxed();
        client.flush().await.unwrap();
        let beating = tokio::spawn(beat(client.clone(), node.clone(), region, free));
        api.until_as(&fabric.admin, &format!("/v1/nodes/{id}"), |answer| answer.body["online"] == true).await;
        Self { id: node, client, heard, beating }
    }

    /// The next message for it.
    pub(crate) async fn hears(&mut self) -> Message {
        tokio::time::timeout(PATIENCE, self.heard.next()).await.expect("a message for the node").unwrap()
    }

    /// What the broker has sent it by now, if anything.
    pub(crate) async fn has_heard(&mut self) -> Option<Message> {
        self.comes_after_all_else().await;
        self.heard.next().now_or_never().flatten()
    }

    /// Once the broker says that nobody listens to this, all that either side said to the other before has come.
    async fn comes_after_all_else(&self) {
        let nobody = subjects::reply("nobody", "token", &self.id);
        assert!(self.client.request(nobody, "".into()).await.is_err(), "nobody listens there");
    }

    /// Answers a job.
    pub(crate) async fn says(&self, job: &Message, event: &str, body: &Value) {
        let reply = job.reply.as_ref().unwrap().strip_suffix(subjects::NO_RESPONDERS).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header::EVENT, event);
        self.client.publish_with_headers(format!("{reply}{}", self.id), headers, body.to_string().into()).await.unwrap();
        // What is said after it, by whomever, comes after it.
        self.comes_after_all_else().await;
    }

    /// Tells the control plane records for the trail; why they are not taken, if they are not.
    pub(crate) async fn tells(&self, payload: &[u8]) -> Option<String> {
        let subject = subjects::event("lab", &self.id, EventKind::Audit);
        let answer = self.client.request(subject, payload.to_vec().into()).await.unwrap();
        let ack: EventAck = serde_json::from_slice(&answer.payload).unwrap();
        ack.refused.map(|refusal| refusal.why)
    }

    /// Says so without waiting for an answer.
    pub(crate) async fn shouts(&self, payload: Vec<u8>) {
        let subject = subjects::event("lab", &self.id, EventKind::Audit);
        let inbox = format!("{}.records", subjects::node_inbox(&self.id));
        self.client.publish_with_reply(subject, inbox, payload.into()).await.unwrap();
    }

    /// Says that it will be back, and wants that acknowledged there.
    pub(crate) async fn wants_an_answer_at(&self, reply: &str) {
        let subject = subjects::event("lab", &self.id, EventKind::Time);
        self.client.publish_with_reply(subject, reply.to_owned(), "".into()).await.unwrap();
    }

    /// What comes to this subject of its own inbox.
    pub(crate) async fn listens(&self, what: &str) -> Subscriber {
        let subscriber = self.client.subscribe(format!("{}.{what}", subjects::node_inbox(&self.id))).await.unwrap();
        self.client.flush().await.unwrap();
        subscriber
    }

    /// Waits until it is connected again.
    pub(crate) async fn client_is_back(&self) {
        let back = async {
            while self.client.connection_state() != async_nats::connection::State::Connected {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, back).await.expect("the node is connected again");
    }

    pub(crate) async fn accepts(&self, job: &Message) {
        self.says(job, "accepted", &json!({"request_id": request_id(job)})).await;
    }

    pub(crate) async fn succeeds(&self, job: &Message) {
        self.says(job, "outcome", &self.outcome(job, &json!({"status": "success", "report": {"by": self.id}}))).await;
    }

    pub(crate) async fn fails(&self, job: &Message, kind: &str) {
        let failure = json!({"kind": kind, "detail": format!("{} says {kind}", self.id)});
        self.says(job, "outcome", &self.outcome(job, &json!({"status": "failed", "failure": failure}))).await;
    }

    fn outcome(&self, job: &Message, more: &Value) -> Value {
        let mut outcome = json!({
            "request_id": request_id(job), "tool": "echo", "target": "x", "output": "", "duration_ms": 1.0,
            "node": {"id": self.id, "region": "lab"},
        });
        outcome.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        outcome
    }
}

pub(crate) fn request_id(message: &Message) -> String {
    let body: Value = serde_json::from_slice(&message.payload).unwrap();
    body["request_id"].as_str().unwrap().to_owned()
}

/// What a header of a job says.
pub(crate) fn header_of<'a>(message: &'a Message, name: &str) -> &'a str {
    message.headers.as_ref().unwrap().get(name).unwrap().as_str()
}

async fn beat(client: Client, node: NodeId, region: Region, free: usize) {
    let (subject, inbox) = (subjects::event(&region, &node, EventKind::Hello), format!("{}.beat", subjects::node_inbox(&node)));
    let mut beat = Beat {
        node,
        region,
        boot_id: "test".to_owned(),
        started_at: Timestamp::now(),
        counter: 0,
        version: "test".to_owned(),
        tools: TOOLS.to_vec(),
        unavailable: Vec::new(),
        slots: [(Class::Light, Slots { free, total: 8 })].into(),
        draining: false,
        clock_offset_ms: None,
        rtt_ms: None,
        policy: PolicyReport::new(""),
    };
    loop {
        let body = serde_json::to_vec(&beat).unwrap();
        client.publish_with_reply(subject.clone(), inbox.clone(), body.into()).await.unwrap();
        beat.counter += 1;
        tokio::time::sleep(BEAT_EVERY).await;
    }
}
