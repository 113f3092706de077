//! What each kind of credential is for, done.

use async_nats::jetstream::kv::{Operation, Watch};
use async_nats::{HeaderMap, Message, StatusCode, Subscriber, jetstream};
use fixture::{Broker, Connection, PATIENCE, api, collector, node, recorder, registrar, service, service_at_the_door, store};
use futures_util::StreamExt;
use probeops_nats::permissions::Role;
use probeops_shared::ids::{Caller, JobId, NodeId, ReplyToken};
use probeops_shared::subjects::{
    self, ANY, AUDIT_COMMAND, AUDIT_NODE, COLLECTOR_QUEUE, FRONT_DOOR_QUEUE, NO_RESPONDERS, NODE_QUEUE, REST, broker, storage,
};
use tokio::time::{Instant, timeout};

use crate::fixture;

async fn next(subscription: &mut Subscriber) -> Message {
    timeout(PATIENCE, subscription.next()).await.unwrap().unwrap()
}

async fn next_entry(watch: &mut Watch) -> jetstream::kv::Entry {
    timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap()
}

/// Publishes a job until somebody takes it; what a subscription of another connection needs to arrive at the broker is not known here.
async fn ask(asker: &Connection, subject: &str, caller: &str) -> Message {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let token = ReplyToken::new();
        let mut answers = asker.client.subscribe(subjects::reply(caller, token, ANY)).await.unwrap();
        asker.client.publish_with_reply(subject.to_owned(), subjects::reply(caller, token, NO_RESPONDERS), "job".into()).await.unwrap();
        let answer = next(&mut answers).await;
        if answer.status != Some(StatusCode::NO_RESPONDERS) || Instant::now() > deadline {
            return answer;
        }
    }
}

#[tokio::test]
async fn a_service_asks_a_node_and_the_broker_says_who_answered() {
    let broker = Broker::start().await;
    let asker = broker.connect(&service("svc")).await;
    let mut answers = asker.client.subscribe(subjects::reply("svc", "t", ANY)).await.unwrap();
    let nobody = subjects::reply("svc", "t", NO_RESPONDERS);
    asker.client.publish_with_reply(subjects::job("eu", "echo", "svc"), nobody.clone(), "job".into()).await.unwrap();
    let answer = next(&mut answers).await;
    assert_eq!((answer.subject.as_str(), answer.status), (nobody.as_str(), Some(StatusCode::NO_RESPONDERS)));

    let n1 = broker.connect(&node("n1", "eu")).await;
    let mut jobs = n1.client.queue_subscribe(subjects::job("eu", "echo", ANY), NODE_QUEUE.to_owned()).await.unwrap();
    let mut own = n1.client.subscribe(subjects::node_all("n1")).await.unwrap();
    let client = n1.client.clone();
    let (caller, id): (Caller, NodeId) = ("svc".parse().unwrap(), "n1".parse().unwrap());
    let working = tokio::spawn(async move {
        for subscription in [&mut jobs, &mut own] {
            let job = next(subscription).await;
            let answer = subjects::answer(&job.reply.unwrap(), &caller, &id).unwrap();
            client.publish(answer, "outcome".into()).await.unwrap();
        }
    });
    for subject in [subjects::job("eu", "echo", "svc"), subjects::node_job("n1", "echo", "svc")] {
        let answer = ask(&asker, &subject, "svc").await;
        assert_eq!(answer.payload, "outcome");
        assert_eq!(subjects::parse_reply(&answer.subject, &"svc".parse().unwrap()).unwrap().1, "n1");
    }
    working.await.unwrap();
}

#[tokio::test]
async fn a_service_is_answered_at_the_front_door_and_an_observer_sees_it() {
    let broker = Broker::start().await;
    let door = broker.connect(&Role::FrontDoor).await;
    let mut knocks = door.client.queue_subscribe(subjects::front_door(ANY), FRONT_DOOR_QUEUE.to_owned()).await.unwrap();
    let mut questions = door.client.subscribe(broker::SERVICES_ALL).await.unwrap();
    door.client.flush().await.unwrap();
    let answering = tokio::spawn(async move {
        let knock = next(&mut knocks).await;
        door.client.publish(knock.reply.unwrap(), "job".into()).await.unwrap();
        let question = next(&mut questions).await;
        door.client.publish(question.reply.unwrap(), "pong".into()).await.unwrap();
        door.client.flush().await.unwrap();
        (knock.subject, question.subject)
    });
    let service = broker.connect(&service_at_the_door("svc")).await;
    // The library's own request, in the service's own inbox.
    let answer = timeout(PATIENCE, service.client.request(subjects::front_door("svc"), "job".into())).await.unwrap();
    assert_eq!(answer.unwrap().payload, "job");
    let observer = broker.connect(&Role::Observer).await;
    let seen = timeout(PATIENCE, observer.client.request("$SRV.PING", "".into())).await.unwrap();
    assert_eq!(seen.unwrap().payload, "pong");
    let (knocked, questioned) = answering.await.unwrap();
    assert_eq!((subjects::parse_front_door(&knocked), questioned.as_str()), (Some("svc".parse().unwrap()), "$SRV.PING"));
}

#[tokio::test]
async fn a_node_announces_itself_and_is_acknowledged() {
    let broker = Broker::start().await;
    let collecting = broker.connect(&collector()).await;
    let acknowledging = broker.connect(&Role::Acknowledger).await;
    let asking = broker.connect(&store()).await;
    let announcing = broker.connect(&node("n1", "eu")).await;

    let roster = jetstream::with_prefix(asking.client.clone(), broker::LENT).get_key_value(storage::PRESENCE).await.unwrap();
    let mut watch = roster.watch_all().await.unwrap();
    let presence = jetstream::with_prefix(collecting.client.clone(), broker::LENT).get_key_value(storage::PRESENCE).await.unwrap();
    // The bucket keeps the last value of a key, and who watches gets what is there when it begins: this says that it has begun.
    presence.put("eu.before", "".into()).await.unwrap();
    assert_eq!(next_entry(&mut watch).await.key, "eu.before");
    let mut events = collecting.client.queue_subscribe(subjects::events(), COLLECTOR_QUEUE.to_owned()).await.unwrap();
    // An answer to a request on the same connection: the broker has the subscription.
    presence.entry("eu.n1").await.unwrap();

    let collected = tokio::spawn(async move {
        let event = next(&mut events).await;
        let key = subjects::presence_key(&"eu".parse().unwrap(), &"n1".parse().unwrap());
        let first = presence.create(&key, event.payload.clone()).await.unwrap();
        let second = presence.update(&key, "newer".into(), first).await.unwrap();
        assert!(presence.update(&key, "older".into(), first).await.is_err(), "an older beat never overwrites");
        assert_eq!(presence.entry(&key).await.unwrap().unwrap().revision, second);
        acknowledging.client.publish(event.reply.unwrap(), "ack".into()).await.unwrap();
        acknowledging.client.flush().await.unwrap();
    });
    let acknowledged = timeout(PATIENCE, announcing.client.request(subjects::event("eu", "n1", "hello"), "beat".into())).await.unwrap();
    assert_eq!(acknowledged.unwrap().payload, "ack");
    collected.await.unwrap();
    for value in ["beat", "newer"] {
        let entry = next_entry(&mut watch).await;
        assert_eq!((entry.key.as_str(), entry.value.as_ref(), entry.operation), ("eu.n1", value.as_bytes(), Operation::Put));
    }
}

#[tokio::test]
async fn the_api_and_commands_keep_their_registers_and_jobs() {
    let mut broker = Broker::start().await;
    let mut connection = broker.connect(&store()).await;
    let mut command = broker.connect(&registrar()).await;
    let context = jetstream::with_prefix(connection.client.clone(), broker::LENT);
    let command_context = jetstream::with_prefix(command.client.clone(), broker::LENT);
    let written = [(&context, storage::KEYS), (&context, storage::NODES), (&command_context, storage::SERVICES)];
    for (context, bucket) in written {
        let store = context.get_key_value(bucket).await.unwrap();
        let revision = store.create("a", "1".into()).await.unwrap();
        store.update("a", "2".into(), revision).await.unwrap();
        store.put("b", "3".into()).await.unwrap();
        store.delete("b").await.unwrap();
        assert_eq!(store.get("a").await.unwrap().unwrap(), "2");
        assert_eq!(store.get("b").await.unwrap(), None);
        let keys: Vec<_> = store.keys().await.unwrap().map(Result::unwrap).collect().await;
        assert_eq!(keys, ["a"], "{bucket}");
    }

    // A replica is forgotten when it does not say again that it is there, and others see that.
    let replicas = context.get_key_value(storage::REPLICAS).await.unwrap();
    let mut there = replicas.watch_with_history(REST).await.unwrap();
    replicas.put("api-1", "".into()).await.unwrap();
    assert_eq!(next_entry(&mut there).await.operation, Operation::Put);
    let forgotten = next_entry(&mut there).await;
    assert_eq!((forgotten.key.as_str(), forgotten.operation == Operation::Put), ("api-1", false));
    assert_eq!(replicas.get("api-1").await.unwrap(), None);

    let job = JobId::new();
    context.publish(subjects::job_state("o", job), "state".into()).await.unwrap().await.unwrap();
    let jobs = context.get_stream_no_info(storage::JOBS).await.unwrap();
    assert_eq!(jobs.direct_get_last_for_subject(subjects::job_state("o", job)).await.unwrap().payload, "state");
    let none = jobs.direct_get_last_for_subject(subjects::job_state("o", JobId::new())).await.unwrap_err();
    assert_eq!(none.kind(), jetstream::stream::DirectGetErrorKind::NotFound);

    // A watch goes on after the broker was away.
    let store = context.get_key_value(storage::NODES).await.unwrap();
    let mut watch = store.watch_with_history(REST).await.unwrap();
    assert_eq!(next_entry(&mut watch).await.key, "a");
    assert_eq!(next_entry(&mut watch).await.operation, Operation::Delete);
    broker.stop().await;
    broker.run().await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = store.put("c", "back".into()).await {
        assert!(Instant::now() < deadline, "{error}");
    }
    // It may say first that it missed the broker's heartbeat.
    let back = async { Box::pin(watch.by_ref().filter_map(async |entry| entry.ok())).next().await };
    // It is made again and then tells all again.
    let mut told = vec![timeout(PATIENCE, back).await.unwrap().unwrap().key];
    while told.last().is_some_and(|key| key != "c") {
        told.push(next_entry(&mut watch).await.key);
    }
    assert!(connection.violations_so_far().is_empty() && command.violations_so_far().is_empty());
}

#[tokio::test]
async fn a_callback_waits_in_the_queue_until_it_is_acknowledged() {
    let mut broker = Broker::start().await;
    let mut connection = broker.connect(&store()).await;
    let context = jetstream::with_prefix(connection.client.clone(), broker::LENT);
    context.publish(subjects::callback("o", "d1"), "callback".into()).await.unwrap().await.unwrap();
    let queue: jetstream::consumer::PullConsumer = context.get_consumer_from_stream(storage::DELIVER[0], storage::CALLBACKS).await.unwrap();
    let mut taken = queue.batch().max_messages(1).expires(PATIENCE).messages().await.unwrap();
    let first = timeout(PATIENCE, taken.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(first.info().unwrap().delivered, 1);
    first.ack_with(jetstream::AckKind::Nak(Some(std::time::Duration::from_secs(1)))).await.unwrap();
    connection.client.flush().await.unwrap();
    // Who waits for it is the broker: its end does not forget it.
    broker.stop().await;
    broker.run().await.unwrap();
    // What the broker sent while nobody listened comes again when its time for an acknowledgement is over, which is 30 s.
    let deadline = Instant::now() + PATIENCE * 3;
    let second = loop {
        assert!(Instant::now() < deadline);
        let Ok(mut taken) = queue.batch().max_messages(1).expires(std::time::Duration::from_secs(2)).messages().await else { continue };
        if let Ok(Some(Ok(message))) = timeout(PATIENCE, taken.next()).await {
            break message;
        }
    };
    assert!(second.info().unwrap().delivered > 1 && second.payload.as_ref() == b"callback");
    second.double_ack().await.unwrap();
    let mut rest = queue.batch().max_messages(1).expires(std::time::Duration::from_millis(500)).messages().await.unwrap();
    assert!(timeout(PATIENCE, rest.next()).await.unwrap().is_none(), "it is gone");
    for bucket in [storage::SECRETS, storage::DELIVERIES, storage::SCHEDULES, storage::LIMITS, storage::IDEMPOTENCY] {
        let store = context.get_key_value(bucket).await.unwrap();
        let revision = store.create("o.a", "1".into()).await.unwrap();
        store.update("o.a", "2".into(), revision).await.unwrap();
        assert_eq!(store.get("o.a").await.unwrap().unwrap(), "2");
        store.delete("o.a").await.unwrap();
        assert_eq!(store.get("o.a").await.unwrap(), None, "{bucket}");
    }
    assert!(connection.violations_so_far().is_empty());
}

#[tokio::test]
async fn a_schedule_is_due_in_time_and_ends_when_it_is_taken_away() {
    let broker = Broker::start().await;
    let mut connection = broker.connect(&store()).await;
    let context = jetstream::with_prefix(connection.client.clone(), broker::LENT);
    let mut every = HeaderMap::new();
    every.insert("Nats-Schedule", "@every 1s");
    every.insert("Nats-Schedule-Target", subjects::later_due("s1").as_str());
    context.publish_with_headers(subjects::schedule("s1"), every, "s1".into()).await.unwrap().await.unwrap();
    let due: jetstream::consumer::PullConsumer = context.get_consumer_from_stream(storage::DUE[0], storage::LATER).await.unwrap();
    let take = async || {
        let mut taken = due.batch().max_messages(1).expires(std::time::Duration::from_secs(3)).messages().await.unwrap();
        timeout(PATIENCE, taken.next()).await.unwrap().transpose().unwrap()
    };
    for _ in 0..2 {
        let fired = take().await.expect("it is due each second");
        assert_eq!((fired.subject.as_str(), fired.payload.as_ref()), (subjects::later_due("s1").as_str(), &b"s1"[..]));
        fired.double_ack().await.unwrap();
    }
    let body = serde_json::json!({"filter": subjects::schedule("s1")}).to_string();
    let purged = connection.client.request(broker::lent(&broker::stream_purge(storage::LATER)), body.into()).await.unwrap();
    assert!(String::from_utf8_lossy(&purged.payload).contains("\"success\":true"));
    // One may have been due in that moment.
    if let Some(last) = take().await {
        last.double_ack().await.unwrap();
        assert!(take().await.is_none(), "nothing is due any more");
    }
    context.publish(subjects::later_online("o", "j1"), "job".into()).await.unwrap().await.unwrap();
    let online: jetstream::consumer::PullConsumer = context.get_consumer_from_stream(storage::ONLINE[0], storage::LATER).await.unwrap();
    let mut taken = online.batch().max_messages(1).expires(PATIENCE).messages().await.unwrap();
    let waiting = timeout(PATIENCE, taken.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(waiting.subject.as_str(), subjects::later_online("o", "j1"));
    waiting.double_ack().await.unwrap();
    assert!(connection.violations_so_far().is_empty());
}

#[tokio::test]
async fn what_is_audited_is_kept_in_the_other_account_and_read_there() {
    let broker = Broker::start().await;
    let asking = broker.connect(&api()).await;
    let collecting = broker.connect(&collector()).await;
    let commanding = broker.connect(&recorder()).await;
    let recorded = [
        (&asking, subjects::audit("api", "api-1")),
        (&collecting, subjects::audit(AUDIT_NODE, "n1")),
        (&commanding, subjects::audit(AUDIT_COMMAND, "command-1")),
    ];
    for (connection, subject) in recorded {
        let published = jetstream::new(connection.client.clone()).publish(subject.clone(), subject.into()).await.unwrap();
        assert_eq!(timeout(PATIENCE, published).await.unwrap().unwrap().stream, storage::AUDIT);
    }
    let auditing = broker.connect(&Role::Auditor).await;
    let mut trail = jetstream::with_prefix(auditing.client.clone(), broker::LENT).get_stream(storage::AUDIT).await.unwrap();
    let state = trail.info().await.unwrap().state.clone();
    assert_eq!((state.first_sequence, state.last_sequence), (1, 3));
    assert_eq!(trail.direct_get(1).await.unwrap().payload, "audit.v1.api.api-1");
    let last = trail.direct_get_last_for_subject("audit.v1.node.n1").await.unwrap();
    assert_eq!((last.sequence, last.payload.as_ref()), (2, b"audit.v1.node.n1".as_slice()));

    // Many at once, as a page of the trail is read.
    let inbox = auditing.client.new_inbox();
    let mut page = auditing.client.subscribe(inbox.clone()).await.unwrap();
    let request = r#"{"seq":1,"batch":10}"#;
    auditing.client.publish_with_reply(broker::lent(&broker::direct_get(storage::AUDIT)), inbox, request.into()).await.unwrap();
    let sequence = |message: &Message| message.headers.as_ref().and_then(|headers| headers.get("Nats-Sequence").map(ToString::to_string));
    assert_eq!(sequence(&next(&mut page).await).as_deref(), Some("1"));
    assert_eq!(sequence(&next(&mut page).await).as_deref(), Some("2"));
    assert_eq!(sequence(&next(&mut page).await).as_deref(), Some("3"));
    let end = next(&mut page).await;
    assert_eq!(end.status.map(|status| status.as_u16()), Some(204), "{end:?}");
}

#[tokio::test]
async fn connections_of_the_application_are_seen_coming_and_going() {
    let broker = Broker::start().await;
    let account = broker.vault.account_key(probeops_nats::permissions::AccountName::Application).to_owned();
    let watching = broker.connect(&broker.presence()).await;
    let mut connects = watching.client.subscribe(broker::account_connect(&account)).await.unwrap();
    let mut disconnects = watching.client.subscribe(broker::account_disconnect(&account)).await.unwrap();
    let listed = timeout(PATIENCE, watching.client.request(broker::account_connections(&account), "{}".into())).await.unwrap().unwrap();
    assert!(serde_json::from_slice::<serde_json::Value>(&listed.payload).unwrap().get("data").is_some());

    let n1 = broker.connect(&node("n1", "eu")).await;
    let event: serde_json::Value = serde_json::from_slice(&next(&mut connects).await.payload).unwrap();
    assert_eq!(event["client"]["user"], n1.credentials.public_key.as_str());
    let kick = format!("{{\"cid\":{}}}", event["client"]["id"]);
    let server = event["server"]["id"].as_str().unwrap();
    timeout(PATIENCE, watching.client.request(broker::server_kick(server), kick.into())).await.unwrap().unwrap();
    let event: serde_json::Value = serde_json::from_slice(&next(&mut disconnects).await.payload).unwrap();
    assert_eq!(event["client"]["user"], n1.credentials.public_key.as_str());
}
