//! The broker checks no reply subject: whoever asks it for anything has its answer published wherever he likes in his account, and what a bucket
//! gives back is what he has put there. Nobody may gain by it.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::{Client, Message, Subscriber};
use fixture::{Broker, Connection, PATIENCE, api, collector, node, registrar, service, store};
use futures_util::{FutureExt, StreamExt};
use probeops_nats::permissions::Role;
use probeops_nats::permissions::lists::stored_streams;
use probeops_shared::subjects::{self, broker, storage};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::fixture;

/// Where none of those who try may publish.
const ELSEWHERE: [&str; 15] = [
    "$KV.KEYS.evil",
    "$KV.NODES.n1",
    "$KV.SERVICES.evil",
    "$KV.PRESENCE.eu.evil",
    "$KV.REPLICAS.api-2",
    "$KV.REVOKED.evil",
    "later.v1.due.evil",
    "audit.v1.violation.sentry",
    "node.v1.n1.ctl.drain.api-2",
    "_INBOX.svc.t.n1",
    "_INBOX_n.n1.cut",
    "key.v1.revoke.sentry",
    // As it is said by those who have it from another account.
    "js.v1.$KV.REPLICAS.api-2",
    "js.v1.$KV.REVOKED.evil",
    "js.v1.$KV.KEYS.evil",
];
/// What is put where it may be, and would be believed elsewhere.
const FORGED: &str = r#"{"forged":true}"#;

/// What hears and what keeps what arrives elsewhere.
struct Elsewhere {
    node: [Subscriber; 2],
    service: Subscriber,
    keymaster: Subscriber,
    stores: Client,
    audit: Client,
    /// On which subjects those who listen have heard something.
    subjects: BTreeSet<String>,
}

impl Elsewhere {
    async fn of(broker: &Broker) -> Self {
        let (n1, svc) = (broker.connect(&node("n1", "eu")).await.client, broker.connect(&service("svc")).await.client);
        let desk = broker.connect(&Role::KeymasterDesk).await.client;
        let node = [n1.subscribe(subjects::node_all("n1")).await.unwrap(), n1.subscribe("_INBOX_n.n1.>").await.unwrap()];
        let service = svc.subscribe("_INBOX.svc.>").await.unwrap();
        let keymaster = desk.queue_subscribe(subjects::keymaster_all(), subjects::KEYMASTER_QUEUE.to_owned()).await.unwrap();
        for client in [n1, svc, desk] {
            client.flush().await.unwrap();
        }
        let stores = broker.connect(&Role::Provisioner).await.client;
        Self { node, service, keymaster, stores, audit: broker.connect(&Role::AuditProvisioner).await.client, subjects: BTreeSet::new() }
    }

    /// On which subjects something has arrived or is kept, among those of [`ELSEWHERE`].
    async fn arrived(&mut self) -> BTreeSet<String> {
        self.heard();
        let mut subjects = std::mem::take(&mut self.subjects);
        let buckets = [storage::KEYS, storage::NODES, storage::SERVICES, storage::PRESENCE, storage::REPLICAS, storage::REVOKED];
        let streams = buckets.map(broker::bucket_stream).into_iter().chain([storage::LATER.to_owned()]);
        let kept = streams.map(|stream| (&self.stores, stream)).chain([(&self.audit, storage::AUDIT.to_owned())]);
        for (client, stream) in kept {
            let request = json!({"subjects_filter": ">"}).to_string();
            let info = timeout(PATIENCE, client.request(broker::stream_info(&stream), request.into())).await.unwrap().unwrap();
            let info: Value = serde_json::from_slice(&info.payload).unwrap();
            subjects.extend(info["state"]["subjects"].as_object().into_iter().flatten().map(|(subject, _)| subject.clone()));
        }
        subjects.retain(|subject| ELSEWHERE.contains(&subject.as_str()));
        subjects
    }

    /// What has come to those who listen, besides what was asked of them.
    fn heard(&mut self) -> Vec<Message> {
        let [to_node, to_inbox] = &mut self.node;
        let mut messages = Vec::new();
        for heard in [to_node, to_inbox, &mut self.service, &mut self.keymaster] {
            messages.extend(std::iter::from_fn(|| heard.next().now_or_never().flatten()));
        }
        messages.retain(|message| ELSEWHERE.contains(&message.subject.as_str()));
        self.subjects.extend(messages.iter().map(|message| message.subject.to_string()));
        messages
    }
}

/// One subject of each kind that a credential may publish.
fn questions(connection: &Role) -> Vec<String> {
    let one = |pattern: &String| match pattern.strip_suffix(".>") {
        Some(before) => format!("{}.eu.n1", before.replace('*', "n1")),
        None => pattern.replace('*', "n1"),
    };
    connection.permissions().unwrap().publish.iter().map(one).collect()
}

/// Asks the broker all that it may, with the answers to go elsewhere, and then once with the answer to itself: what was asked before is then done.
async fn tries(connection: &Connection, role: &Role) {
    let inbox = connection.client.new_inbox();
    let mut answers = connection.client.subscribe(inbox.clone()).await.unwrap();
    for question in questions(role) {
        let body = match question.as_str() {
            read if read.contains(".DIRECT.GET.") => r#"{"seq":1}"#,
            // What waits for messages waits for ever.
            taken if taken.contains(".MSG.NEXT.") => r#"{"batch":1,"no_wait":true}"#,
            _ => FORGED,
        };
        for reply in ELSEWHERE.into_iter().chain([inbox.as_str()]) {
            connection.client.publish_with_reply(question.clone(), reply.to_owned(), body.into()).await.unwrap();
        }
        timeout(PATIENCE, answers.next()).await.expect(&question).unwrap();
    }
}

#[tokio::test]
async fn whoever_reads_the_trail_or_hears_nodes_can_lead_no_answer_elsewhere() {
    let broker = Broker::start().await;
    let mut elsewhere = Elsewhere::of(&broker).await;
    for role in [collector(), Role::Auditor] {
        let mut connection = broker.connect(&role).await;
        tries(&connection, &role).await;
        assert_eq!(elsewhere.arrived().await, BTreeSet::new(), "{role:?}");
        assert!(connection.violations_so_far().is_empty(), "all that was asked may be asked: {role:?}");
    }
}

/// That an answer in a bucket is seen at all: whoever provisions is in the account of streams.
async fn what_is_led_elsewhere_is_seen() {
    let broker = Broker::start().await;
    let mut elsewhere = Elsewhere::of(&broker).await;
    let reply = "$KV.KEYS.evil";
    elsewhere.stores.publish_with_reply(broker::stream_info(storage::JOBS), reply, "".into()).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !elsewhere.arrived().await.contains(reply) {
        assert!(Instant::now() < deadline, "what is led elsewhere is not seen");
    }
}

#[tokio::test]
async fn whoever_keeps_something_can_lead_no_answer_elsewhere() {
    Box::pin(what_is_led_elsewhere_is_seen()).await;
    for role in [store(), registrar()] {
        let broker = Broker::start().await;
        let mut elsewhere = Elsewhere::of(&broker).await;
        let mut connection = broker.connect(&role).await;
        tries(&connection, &role).await;
        assert_eq!(elsewhere.arrived().await, BTreeSet::new(), "{role:?}");
        assert!(connection.violations_so_far().is_empty(), "all that was asked may be asked: {role:?}");
    }
}

/// All that the streams hold, and how many follow each.
#[derive(Debug, PartialEq)]
struct Held(Vec<(String, Value, Value)>);

impl Held {
    async fn of(broker: &Broker) -> Self {
        let (stores, audit) = (broker.connect(&Role::Provisioner).await.client, broker.connect(&Role::AuditProvisioner).await.client);
        let streams = stored_streams().into_iter().map(|stream| (&stores, stream)).chain([(&audit, storage::AUDIT.to_owned())]);
        let mut held = Vec::new();
        for (client, stream) in streams {
            let request = json!({"subjects_filter": ">"}).to_string();
            let info = timeout(PATIENCE, client.request(broker::stream_info(&stream), request.into())).await.unwrap().unwrap();
            let mut info: Value = serde_json::from_slice(&info.payload).unwrap();
            let follow = info["state"]["consumer_count"].take();
            held.push((stream, follow, json!([info["error"], info["state"]["last_seq"], info["state"]["subjects"]])));
        }
        Self(held)
    }

    /// The same but for who follows.
    fn kept(&self) -> Vec<(&String, &Value)> {
        self.0.iter().map(|(stream, _, held)| (stream, held)).collect()
    }
}

/// What the broker would take for a request to destroy something, if it came as one of its answers.
fn orders() -> Vec<String> {
    let streams = [storage::AUDIT.to_owned(), storage::JOBS.to_owned()]
        .into_iter()
        .chain([storage::NODES, storage::REPLICAS, storage::REVOKED, storage::LIMITS].map(broker::bucket_stream));
    let there = streams.flat_map(|stream| ["DELETE", "PURGE"].map(|verb| format!("$JS.API.STREAM.{verb}.{stream}")));
    there.flat_map(|order| [broker::lent(&order), order]).collect()
}

/// Fills what an answer could empty: by what its own connection may write, so that there is something of each.
async fn filled(keeping: &Client) {
    for subject in ["jobs.v1.o.x.state".to_owned(), subjects::later_online("o", "x"), subjects::callback("o", "x")]
        .into_iter()
        .chain(["$KV.NODES.z", "$KV.LIMITS.x", "$KV.KEYS.z"].map(broker::lent))
    {
        let kept = timeout(PATIENCE, keeping.request(subject.clone(), "".into())).await.unwrap().unwrap();
        assert!(String::from_utf8_lossy(&kept.payload).contains("\"seq\""), "{subject}: {kept:?}");
    }
}

/// What an answer that is empty asks for, once it is led to this.
async fn led(connection: &Client, orders: &[String]) {
    // What is empty where it is kept asks for anything that needs no words.
    let put = broker::lent("$KV.NODES.z");
    let read = broker::lent(&broker::direct_get_last(broker::bucket_stream(storage::NODES), "$KV.NODES.z"));
    for question in [&read, &put] {
        for order in orders {
            connection.publish_with_reply(question.clone(), order.clone(), "".into()).await.unwrap();
        }
        timeout(PATIENCE, connection.request(question.clone(), "".into())).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn no_answer_to_whoever_keeps_something_is_taken_for_an_order() {
    let purge = broker::lent(&broker::stream_purge(storage::LATER));
    for (role, is_lent_the_purge) in [(registrar(), false), (store(), true)] {
        let broker = Broker::start().await;
        let (keeping, connection) = (broker.connect(&store()).await.client, broker.connect(&role).await.client);
        filled(&keeping).await;
        led(&connection, &[]).await;
        let before = Held::of(&broker).await;
        let kept = ["$KV.KEYS.x", "$KV.REPLICAS.x", "$KV.REVOKED.x", "$KV.LIMITS.x"].map(broker::lent);
        let published = [subjects::later_online("o", "evil"), "jobs.v1.o.evil.state".to_owned(), subjects::callback("o", "evil")];
        let consumers = [storage::JOBS.to_owned(), broker::bucket_stream(storage::PRESENCE)]
            .map(|stream| broker::lent(&broker::consumer_create(stream)));
        led(&connection, &[orders(), kept.to_vec(), published.to_vec(), consumers.to_vec()].concat()).await;
        // An API may purge these itself. That it is seen says that more would be, and that all that was led before has come to its end.
        led(&connection, std::slice::from_ref(&purge)).await;
        let purged = |held: &Held| held.0.iter().any(|(stream, _, held)| stream == storage::LATER && held[2].is_null());
        let (deadline, mut after) = (Instant::now() + PATIENCE, Held::of(&broker).await);
        while is_lent_the_purge && !purged(&after) {
            assert!(Instant::now() < deadline, "nothing was purged");
            after = Held::of(&broker).await;
        }
        let others = |held: &Held| -> Vec<(String, Value)> {
            // Each reading of it puts it there once more.
            let nodes = broker::bucket_stream(storage::NODES);
            held.kept()
                .into_iter()
                .filter(|(stream, _)| **stream != nodes && (!is_lent_the_purge || *stream != storage::LATER))
                .map(|(stream, held)| (stream.clone(), held.clone()))
                .collect()
        };
        assert_eq!(others(&after), others(&before), "{role:?}");
        assert!(after.0.iter().zip(&before.0).all(|(after, before)| after.1 == before.1), "nobody follows anything: {role:?}");
        let nodes = after.0.iter().find(|(stream, _, _)| *stream == broker::bucket_stream(storage::NODES)).unwrap();
        assert_eq!(nodes.2[2], json!({"$KV.NODES.z": 5}), "{role:?}");
    }
}

#[tokio::test]
async fn no_consumer_delivers_elsewhere_than_to_keepers() {
    let broker = Broker::start().await;
    let mut elsewhere = Elsewhere::of(&broker).await;
    let keeping = broker.connect(&store()).await.client;
    let ask = async |subject: String, body: Value| -> Value {
        let answer = timeout(PATIENCE, keeping.request(subject, body.to_string().into())).await.unwrap().unwrap();
        serde_json::from_slice(&answer.payload).unwrap()
    };
    filled(&keeping).await;
    let before = Held::of(&broker).await;
    let stream = broker::bucket_stream(storage::KEYS);
    let consumer = |deliver_subject: &str, more: Value| {
        let mut config = json!({"deliver_subject": deliver_subject, "ack_policy": "none"});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"stream_name": stream, "config": config})
    };
    for (count, deliver_subject) in ELSEWHERE.into_iter().map(str::to_owned).chain(orders()).enumerate() {
        let made = ask(broker::lent(&broker::consumer_create(&stream)), consumer(&deliver_subject, json!({}))).await;
        // The broker makes any but one that would feed itself.
        assert_eq!(made["error"].is_null(), !deliver_subject.starts_with("$KV.KEYS."), "{deliver_subject}: {made}");
        let name = format!("evil-{count}");
        let kept = json!({"name": name, "durable_name": name, "flow_control": true, "idle_heartbeat": 1_000_000_000_u64});
        ask(broker::lent(&broker::consumer_create_named(&stream, &name)), consumer(&deliver_subject, kept)).await;
    }
    // By the time that one has delivered in its own inbox the others would have.
    let own = format!("{}.x", store().inbox_prefix());
    let mut inbox = keeping.subscribe(own.clone()).await.unwrap();
    keeping.flush().await.unwrap();
    let made = ask(broker::lent(&broker::consumer_create(&stream)), consumer(&own, json!({}))).await;
    assert!(made["error"].is_null(), "{made}");
    assert_eq!(timeout(PATIENCE, inbox.next()).await.unwrap().unwrap().subject.as_str(), "$KV.KEYS.z");
    assert_eq!(elsewhere.arrived().await, BTreeSet::new());
    assert_eq!(Held::of(&broker).await.kept(), before.kept());
}

#[tokio::test]
async fn who_follows_a_bucket_too_often_keeps_nobody_from_it_for_longer_than_he_is_there() {
    let broker = Broker::start().await;
    let (keeping, stores) = (broker.connect(&store()).await.client, broker.connect(&Role::Provisioner).await.client);
    let stream = broker::bucket_stream(storage::NODES);
    let create = async |client: &Client, name: &str| -> Value {
        let config = json!({"name": name, "durable_name": name, "ack_policy": "none", "inactive_threshold": 3_600_000_000_000_u64});
        let body = json!({"stream_name": stream, "config": config}).to_string();
        let answer = client.request(broker::lent(&broker::consumer_create_named(&stream, name)), body.into());
        serde_json::from_slice(&timeout(PATIENCE, answer).await.unwrap().unwrap().payload).unwrap()
    };
    let longer = create(&keeping, "for-an-hour").await;
    assert_eq!(longer["error"]["err_code"], 10153, "the broker keeps none for longer than the stream says: {longer}");
    let info = timeout(PATIENCE, stores.request(broker::stream_info(&stream), "".into())).await.unwrap().unwrap();
    let info: Value = serde_json::from_slice(&info.payload).unwrap();
    assert_eq!((&info["config"]["max_consumers"], &info["state"]["consumer_count"]), (&json!(1024), &json!(0)), "{info}");
}

#[tokio::test]
async fn one_message_empties_no_register() {
    let broker = Broker::start().await;
    let connection = broker.connect(&store()).await.client;
    filled(&connection).await;
    for bucket in [storage::KEYS, storage::NODES, storage::SERVICES, storage::LIMITS] {
        let headers = async_nats::HeaderMap::from_iter([("Nats-Rollup".parse().unwrap(), "all".parse().unwrap())]);
        let subject = broker::lent(&broker::bucket_key(bucket, "x"));
        let refused = connection.request_with_headers(subject, headers, "".into());
        let refused: Value = serde_json::from_slice(&timeout(PATIENCE, refused).await.unwrap().unwrap().payload).unwrap();
        assert_eq!(refused["error"]["err_code"], 10111, "{bucket}: {refused}");
    }
}

#[tokio::test]
async fn where_an_api_speaks_the_broker_says_nothing_for_it_but_that_a_record_is_kept() {
    let broker = Broker::start().await;
    let mut elsewhere = Elsewhere::of(&broker).await;
    let mut connection = broker.connect(&api()).await;
    for question in questions(&api()) {
        for reply in ELSEWHERE {
            connection.client.publish_with_reply(question.clone(), reply.to_owned(), FORGED.into()).await.unwrap();
        }
    }
    // Nobody answers what it asks but the trail, that a record is kept. It is no drain, no outcome, no word of the sentry and no request.
    let (deadline, mut heard) = (Instant::now() + PATIENCE, Vec::new());
    let wanted = ["_INBOX.svc.t.n1", "_INBOX_n.n1.cut", "key.v1.revoke.sentry", "node.v1.n1.ctl.drain.api-2"];
    while !wanted.iter().all(|subject| heard.iter().any(|message: &Message| message.subject.as_str() == *subject)) {
        assert!(Instant::now() < deadline, "only {heard:?}");
        heard.extend(elsewhere.heard());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for message in &heard {
        let body: Value = serde_json::from_slice(&message.payload).unwrap();
        assert_eq!((&body["stream"], &message.reply, &message.headers), (&json!("AUDIT"), &None, &None), "{message:?}");
    }
    let subjects: BTreeSet<&str> = heard.iter().map(|message| message.subject.as_str()).collect();
    assert_eq!(subjects, wanted.into());
    // From one account to another and on to a third no answer goes: the trail has what was published, and nothing that was answered.
    let published = connection.client.request(subjects::audit("api", "api-1"), FORGED.into());
    timeout(PATIENCE, published).await.unwrap().unwrap();
    assert_eq!(elsewhere.arrived().await, wanted.map(str::to_owned).into());
    assert!(connection.violations_so_far().is_empty(), "all that was asked may be asked");
}
