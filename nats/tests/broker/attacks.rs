//! Attacks that are no single subject: coming in with what is no credential, what the broker lets pass and nobody may gain by, clones, floods.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use async_nats::jetstream::message::PublishMessage;
use async_nats::{Auth, Client, ConnectOptions, HeaderMap, jetstream};
use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use fixture::{Broker, Connection, PATIENCE, api, collector, node, recorded, registrar, service, store};
use nkeys::KeyPair;
use probeops_nats::connect::{Link, LinkError, LinkEvent, connect};
use probeops_nats::keymaster::{self, MintsPerMinute};
use probeops_nats::permissions::{AccountName, Role};
use probeops_nats::sentry::Bounds;
use probeops_nats::vault::CREDENTIAL_LIFETIME;
use probeops_nats::vault::credentials::Credentials;
use probeops_shared::audit::{Record, Verdict};
use probeops_shared::keymaster::Verb;
use probeops_shared::registry::RevokedKey;
use probeops_shared::subjects::{self, broker, storage};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::fixture;

/// The claims of a JWT.
fn payload(jwt: &str) -> Value {
    serde_json::from_slice(&BASE64URL_NOPAD.decode(jwt.split('.').nth(1).unwrap().as_bytes()).unwrap()).unwrap()
}

/// Claims as somebody wants them, signed by whom he wants.
fn signed(mut claims: Value, signer: &KeyPair) -> String {
    claims["iss"] = signer.public_key().into();
    let header = BASE64URL_NOPAD.encode(br#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
    let content = format!("{header}.{}", BASE64URL_NOPAD.encode(claims.to_string().as_bytes()));
    let signature = BASE64URL_NOPAD.encode(&signer.sign(content.as_bytes()).unwrap());
    format!("{content}.{signature}")
}

/// What a connection says for so long after another of its key has come may be of before.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(2);

/// A running keymaster.
struct Keymaster(JoinHandle<anyhow::Result<()>>, CancellationToken);

impl Keymaster {
    fn start(broker: &Broker, mints: MintsPerMinute) -> Self {
        let stop = CancellationToken::new();
        let ca = Some(broker.layout.ca_certificate());
        let settings = keymaster::Settings { layout: broker.layout.clone(), servers: broker.servers(), ca, mints, health_file: None };
        Self(tokio::spawn(keymaster::run(settings, stop.clone())), stop)
    }

    async fn end(self) {
        self.1.cancel();
        timeout(PATIENCE, self.0).await.unwrap().unwrap().unwrap();
    }
}

impl Broker {
    /// Another connection with the same credential.
    async fn connect_again(&self, credentials: &Credentials) -> Connection {
        let (client, events) = self.try_again(credentials).await.unwrap();
        Connection { client, events, credentials: credentials.clone() }
    }

    async fn try_again(&self, credentials: &Credentials) -> Result<(Client, mpsc::Receiver<LinkEvent>), LinkError> {
        let creds = self.layout.creds(&format!("again-{:016x}", rand::random::<u64>()));
        std::fs::write(&creds, credentials.to_creds_file()).unwrap();
        connect(&self.link(creds), "again", &subjects::node_inbox(&credentials.name)).await
    }

    /// What the sentry has written down for the register of nodes.
    async fn said_revoked(&self, public_key: &str) -> RevokedKey {
        let store = self.connect(&store()).await;
        let bucket = jetstream::with_prefix(store.client.clone(), broker::LENT).get_key_value(storage::REVOKED).await.unwrap();
        let said = async {
            loop {
                if let Some(value) = bucket.get(public_key).await.unwrap() {
                    return serde_json::from_slice(&value).unwrap();
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, said).await.unwrap()
    }

    fn signing_key(&self, account: AccountName) -> KeyPair {
        let seed = std::fs::read_to_string(self.layout.key(&format!("{}-signing", account.as_str()))).unwrap();
        KeyPair::from_seed(seed.trim()).unwrap()
    }

    /// Tries to come in with this JWT, and what is signed with this key.
    async fn comes_in(&self, jwt: Option<String>, signing: Option<&str>, options: ConnectOptions) -> bool {
        let signing = signing.map(|seed| KeyPair::from_seed(seed).unwrap());
        let options = match jwt {
            Some(jwt) => ConnectOptions::with_auth_callback(move |nonce| {
                let mut auth = Auth::new();
                auth.jwt = Some(jwt.clone());
                auth.signature = signing.as_ref().map(|key| key.sign(&nonce).unwrap());
                async move { Ok(auth) }
            }),
            None => options,
        };
        let options = options.add_root_certificates(self.layout.ca_certificate()).require_tls(true);
        options.connect(&self.servers()[..]).await.is_ok()
    }
}

#[tokio::test]
async fn nobody_comes_in_with_what_is_no_credential_and_each_who_tries_is_noticed() {
    let (broker, stranger) = (Broker::start().await, Broker::configured());
    let sentry = broker.sentry(Bounds::default()).await;
    let (application, audit) = (broker.signing_key(AccountName::Application), broker.signing_key(AccountName::Audit));
    let mint = |role: &Role| broker.vault.mint(role, CREDENTIAL_LIFETIME).unwrap();
    let (n1, n2, revoked) = (mint(&node("n1", "eu")), mint(&node("n2", "eu")), mint(&node("n3", "eu")));
    let foreign = stranger.vault.mint(&node("n1", "eu"), CREDENTIAL_LIFETIME).unwrap();
    let with = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut claims = payload(&n1.jwt);
        claims["name"] = name.into();
        change(&mut claims);
        claims
    };
    let system = broker.connect(&Role::Keymaster).await;
    keymaster::push(&system.client, &broker.vault.revoke(&revoked.public_key).unwrap()).await.unwrap();
    let edited = {
        let parts: Vec<&str> = n1.jwt.split('.').collect();
        let claims = with("edited", &|claims| claims["nats"]["pub"]["allow"] = json!([">"]));
        format!("{}.{}.{}", parts[0], BASE64URL_NOPAD.encode(claims.to_string().as_bytes()), parts[2])
    };
    let own = KeyPair::new_account();
    // What is tried, with which key, and what the sentry says of it.
    let tried = [
        (edited, n1.seed.as_str(), None),
        (signed(with("expired", &|claims| claims["exp"] = 1_700_000_000.into()), &application), &n1.seed, Some("expired")),
        (signed(with("self-signed", &|_| ()), &own), &n1.seed, Some("self-signed")),
        (signed(with("other-account", &|_| ()), &audit), &n1.seed, Some("other-account")),
        (signed(with("of-no-time", &|claims| claims["nbf"] = 4_000_000_000_u64.into()), &application), &n1.seed, Some("of-no-time")),
        (revoked.jwt.clone(), &revoked.seed, Some("n3")),
        (foreign.jwt.clone(), &foreign.seed, Some(foreign.public_key.as_str())),
        (n2.jwt.clone(), &n1.seed, Some(n2.public_key.as_str())),
        (
            signed(with("wss-only", &|claims| claims["nats"]["allowed_connection_types"] = json!(["WEBSOCKET"])), &application),
            &n1.seed,
            Some("wss-only"),
        ),
        (signed(with("elsewhere", &|claims| claims["nats"]["src"] = json!(["10.99.0.0/16"])), &application), &n1.seed, Some("elsewhere")),
    ];
    let mut wanted = Vec::new();
    for (jwt, seed, says) in tried {
        assert!(!broker.comes_in(Some(jwt), Some(seed), ConnectOptions::new()).await, "{says:?}");
        wanted.push(says.map_or("not let in: Authentication Failure; from", |says| says).to_owned());
    }
    // A credential that asks for no proof of the key, from somebody who has read it in a log: signed by us, and not accepted either.
    let bearer = signed(with("bearer", &|claims| claims["nats"]["bearer_token"] = true.into()), &application);
    assert!(!broker.comes_in(Some(bearer), None, ConnectOptions::new()).await);
    assert!(!broker.comes_in(Some(n1.jwt.clone()), None, ConnectOptions::new()).await, "without its key");
    assert!(!broker.comes_in(None, None, ConnectOptions::new()).await, "nothing at all");
    let password = ConnectOptions::with_user_and_password("operator".to_owned(), "secret".to_owned());
    assert!(!broker.comes_in(None, None, password).await);
    assert!(!broker.comes_in(None, None, ConnectOptions::with_nkey(n1.seed.clone())).await, "a key that no claims speak of");
    wanted.extend(["bearer (", "operator"].map(|says| format!("it says it is {says}")));
    // Ours for the inside come by the plain way only.
    let creds = broker.layout.creds("inside");
    broker.vault.mint_to(&creds, &Role::Provisioner, CREDENTIAL_LIFETIME).unwrap();
    let websocket = format!("wss://localhost:{}", broker.settings.websocket.unwrap().listen.port());
    let by_web = Link { servers: vec![websocket], ..broker.link(creds) };
    assert!(matches!(broker.try_connect(&by_web).await, Err(LinkError::Refused(_))));
    wanted.push("it says it is provisioner (".to_owned());
    // In the clear: a client, and a device that speaks MQTT.
    for said in [&b"CONNECT {\"verbose\":false}\r\nPING\r\n"[..], b"\x10\x12\x00\x04MQTT\x04\x02\x00\x3c\x00\x06device"] {
        let mut stream = TcpStream::connect(broker.settings.listen).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(said).unwrap();
        let mut answer = Vec::new();
        // What it greets with is no secret; that it resets the connection is an end, too.
        drop(stream.read_to_end(&mut answer));
        assert!(!String::from_utf8_lossy(&answer).contains("PONG"));
    }
    wanted.push("not let in: TLS Handshake Failure".to_owned());
    sentry.notices(wanted, |record: &Record, words| record.principal == "-" && record.detail.contains(words.as_str())).await;
    // And it was the credential each time: with its own it comes in.
    assert!(broker.comes_in(Some(n1.jwt.clone()), Some(&n1.seed), ConnectOptions::new()).await);
    sentry.end().await;
}

#[tokio::test]
async fn there_is_no_other_way_in() {
    let broker = Broker::start().await;
    let monitoring = broker.settings.monitoring().unwrap();
    let mut stream = TcpStream::connect(monitoring).unwrap();
    stream.write_all(b"GET /varz HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let figures: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    for door in ["leaf", "gateway", "mqtt", "cluster"] {
        assert!(figures[door]["port"].is_null(), "{door}: {}", figures[door]);
    }
    assert_eq!(figures["http_host"], "127.0.0.1", "figures are for this machine alone");
    assert!(figures["no_auth_user"].is_null() && figures["auth_required"] == true && figures["tls_required"] == true);
}

#[tokio::test]
async fn what_the_broker_lets_pass_gains_nobody_anything() {
    let broker = Broker::start().await;
    let sentry = broker.sentry(Bounds::default()).await;
    let (n1, n2, asking) = (broker.connect(&node("n1", "eu")).await, broker.connect(&node("n2", "eu")).await, broker.connect(&api()).await);
    let mut heard = n2.client.subscribe(subjects::node_all("n2")).await.unwrap();
    // The broker checks no reply subject: nothing that answers what a node says may be led elsewhere by it, and no stream answers it.
    for reply in ["node.v1.n2.ctl.drain.api-1", "$JS.API.STREAM.DELETE.JOBS", "job.v1.eu.echo.api-1"] {
        let mut poison = HeaderMap::new();
        poison.insert("Nats-Msg-Id", "k1");
        let event = subjects::event("eu", "n1", "beat");
        n1.client.publish_with_reply_and_headers(event, reply, poison, "x".into()).await.unwrap();
    }
    let fence = n1.client.subscribe(subjects::node_all("n1")).await.unwrap();
    n1.client.flush().await.unwrap();
    drop(fence);
    let context = jetstream::new(asking.client.clone());
    let recorded = |id: &str| PublishMessage::build().payload("[]".into()).message_id(id);
    // Its message ids take away nobody's.
    let kept = context.send_publish(subjects::audit("api", "api-1"), recorded("k1")).await.unwrap().await.unwrap();
    assert!(!kept.duplicate, "{kept:?}");
    // A header that a stream would obey: the trail forgets nothing by it.
    for (header, value) in [
        ("Nats-Rollup", "all"),
        ("Nats-Rollup", "sub"),
        ("Nats-TTL", "1s"),
        ("Nats-Schedule", "@every 1s"),
        ("Nats-Expected-Stream", "JOBS"),
    ] {
        let message = recorded(&format!("h-{header}-{value}")).header(header, value);
        let refused = context.send_publish(subjects::audit("api", "api-1"), message).await.unwrap().await;
        assert!(refused.is_err(), "{header}: {refused:?}");
    }
    // A trace of its own message leads nowhere that it may not publish itself, and an option of its connection gives it nothing.
    let mut trace = HeaderMap::new();
    trace.insert("Nats-Trace-Dest", "job.v1.eu.echo.svc");
    n1.client.publish_with_headers(subjects::event("eu", "n1", "beat"), trace, "x".into()).await.unwrap();
    let options = ConnectOptions::with_credentials(&n1.credentials.to_creds_file()).unwrap().no_echo();
    let options = options.add_root_certificates(broker.layout.ca_certificate()).require_tls(true);
    let no_echo = options.connect(&broker.servers()[..]).await.unwrap();
    no_echo.publish("node.v1.n2.ctl.drain.n1", "x".into()).await.unwrap();
    no_echo.flush().await.unwrap();
    let seen = |record: &Record, subject: &&str| record.principal == "node:n1" && record.target == **subject;
    sentry.notices(vec!["job.v1.eu.echo.svc", "node.v1.n2.ctl.drain.n1"], seen).await;
    // By now all of it would have arrived: what comes first is what was really asked.
    asking.client.publish(subjects::node_job("n2", "echo", "api-1"), "asked".into()).await.unwrap();
    let first = timeout(PATIENCE, futures_util::StreamExt::next(&mut heard)).await.unwrap().unwrap();
    assert_eq!(first.payload, "asked");
    sentry.end().await;
}

/// Says something until the connection ends.
async fn speak(connection: &mut Connection, name: &str, every: Duration) -> Duration {
    say(connection, name, (every, Bytes::from_static(b"x"))).await
}

/// Says this until the connection ends.
async fn say(connection: &mut Connection, name: &str, (every, what): (Duration, Bytes)) -> Duration {
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < PATIENCE, "{name} was not cut");
        connection.client.publish(subjects::event("eu", name, "beat"), what.clone()).await.unwrap();
        while let Ok(event) = connection.events.try_recv() {
            if matches!(event, LinkEvent::Disconnected | LinkEvent::Refused(_)) {
                return begun.elapsed();
            }
        }
        if every.is_zero() { tokio::task::yield_now().await } else { sleep(every).await }
    }
}

#[tokio::test]
async fn clones_and_floods_are_cut_and_one_that_reconnects_is_not() {
    const SPEAK_EVERY: Duration = Duration::from_millis(200);
    const MESSAGES_PER_S: u64 = 1_000;
    const BYTES_PER_S: u64 = 500_000;
    let broker = Broker::start().await;
    let keymaster = Keymaster::start(&broker, MintsPerMinute::default());
    let bounds =
        Bounds { messages_per_s: MESSAGES_PER_S, bytes_per_s: BYTES_PER_S, last_words_within: LAST_WORDS_WITHIN, ..Bounds::default() };
    let sentry = broker.sentry(bounds).await;

    // One whose old connection is dead, which the broker does not know yet: silent here.
    let mut dead = broker.connect(&node("n2", "eu")).await;
    let mut alive = broker.connect_again(&dead.credentials).await;
    let mut n1 = broker.connect(&node("n1", "eu")).await;
    let mut clone = broker.connect_again(&n1.credentials).await;
    let stay = async {
        loop {
            alive.client.publish(subjects::event("eu", "n2", "beat"), "x".into()).await.unwrap();
            sleep(SPEAK_EVERY).await;
        }
    };
    let both = async { tokio::join!(speak(&mut n1, "n1", SPEAK_EVERY), speak(&mut clone, "n1", SPEAK_EVERY)) };
    tokio::select! {
        _ = both => {}
        () = stay => {}
    }
    let is = |record: &Record, (principal, words): &(&str, &str)| record.principal == *principal && record.detail.contains(words);
    sentry
        .notices(vec![("node:n1", "cut: clone"), ("node:n1", "clone: its key"), ("node:n1", "revoked: its key is void on probeops")], is)
        .await;
    assert!(matches!(broker.try_again(&n1.credentials).await, Err(LinkError::Refused(_))), "neither comes back");
    let said = broker.said_revoked(&n1.credentials.public_key).await;
    assert_eq!(
        (said.node.as_str(), said.because.as_str()),
        ("n1", "clone: its key was used by two connections at the same time, from 127.0.0.1")
    );
    for connection in [&mut dead, &mut alive] {
        assert!(!std::iter::from_fn(|| connection.events.try_recv().ok()).any(|event| event == LinkEvent::Disconnected));
    }

    // A flood of what it may publish, and one of what it may not; a service that asks as much as it may is left alone.
    let mut busy = broker.connect(&node("n4", "eu")).await;
    let mut calm = broker.connect(&service("svc")).await;
    let flooding = async { speak(&mut busy, "n4", Duration::ZERO).await };
    let asking = async {
        loop {
            calm.client.publish(subjects::job("eu", "echo", "svc"), "x".into()).await.unwrap();
            sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        _ = flooding => {}
        () = asking => {}
    }
    // Few messages, and large ones.
    let mut large = broker.connect(&node("n6", "eu")).await;
    let filling = say(&mut large, "n6", (Duration::from_millis(5), Bytes::from(vec![b'x'; 64 * 1024])));
    let cut_after = filling.await;
    sentry.notices(vec![("node:n6", "cut: flood")], is).await;
    let records = sentry.records().await;
    let said = records.iter().find(|record| is(record, &("node:n6", "cut: flood"))).unwrap();
    let figures: Vec<u64> = said.detail.split(' ').filter_map(|word| word.parse().ok()).collect();
    assert!(figures[0] < MESSAGES_PER_S && figures[1] > BYTES_PER_S, "after {cut_after:?}: {}", said.detail);
    let rude = broker.connect(&node("n5", "eu")).await;
    for _ in 0..20_000 {
        rude.client.publish("job.v1.eu.echo.n5", "x".into()).await.unwrap();
    }
    rude.client.flush().await.unwrap();
    sentry.notices(vec![("node:n4", "cut: flood"), ("node:n5", "cut: flood"), ("node:n5", "times")], is).await;
    // Of so many events its end may be lost; that it had to come in again is not.
    let deadline = Instant::now() + PATIENCE;
    while rude.client.statistics().connects.load(std::sync::atomic::Ordering::Relaxed) < 2 {
        assert!(Instant::now() < deadline, "it was not cut");
        sleep(Duration::from_millis(20)).await;
    }
    assert!(!std::iter::from_fn(|| calm.events.try_recv().ok()).any(|event| event == LinkEvent::Disconnected));
    let of_the_flood = sentry.records().await.iter().filter(|record| record.principal == "node:n5").count();
    assert!(of_the_flood <= 102, "20,000 violations made {of_the_flood} records");
    sentry.end().await;
    keymaster.end().await;
}

#[tokio::test]
async fn one_that_comes_and_goes_beside_a_node_is_cut_and_a_node_that_reconnects_all_the_time_is_not() {
    const SPEAK_EVERY: Duration = Duration::from_millis(200);
    let broker = Broker::start().await;
    let keymaster = Keymaster::start(&broker, MintsPerMinute::default());
    let sentry = broker.sentry(Bounds { last_words_within: LAST_WORDS_WITHIN, ..Bounds::default() }).await;
    let mut n1 = broker.connect(&node("n1", "eu")).await;
    let mut n2 = broker.connect(&node("n2", "eu")).await;
    let credentials = n1.credentials.clone();
    let visit = async {
        // Until its key is void.
        while let Ok((client, _events)) = broker.try_again(&credentials).await {
            client.flush().await.unwrap();
            client.drain().await.unwrap();
            sleep(SPEAK_EVERY).await;
        }
    };
    let reconnects = async {
        loop {
            n2.client.publish(subjects::event("eu", "n2", "beat"), "x".into()).await.unwrap();
            drop(n2.client.flush().await);
            n2.client.force_reconnect().await.unwrap();
            sleep(SPEAK_EVERY).await;
        }
    };
    let mut speaking = broker.connect_again(&credentials).await;
    // The first of the two is gone before anything is said by the other: of the two one is there.
    n1.client.drain().await.unwrap();
    timeout(PATIENCE, async { while n1.events.recv().await.is_some() {} }).await.unwrap();
    tokio::select! {
        _ = async { tokio::join!(speak(&mut speaking, "n1", SPEAK_EVERY), visit) } => {}
        () = reconnects => {}
    }
    let is = |record: &Record, words: &&str| record.principal == "node:n1" && record.detail.contains(*words);
    sentry.notices(vec!["cut: clone", "revoked: its key is void on probeops"], is).await;
    assert_eq!(broker.said_revoked(&credentials.public_key).await.node.as_str(), "n1");
    assert!(!std::iter::from_fn(|| n2.events.try_recv().ok()).any(|event| matches!(event, LinkEvent::Refused(_))));
    assert!(sentry.records().await.iter().all(|record| record.principal != "node:n2"));
    broker.try_again(&n2.credentials).await.unwrap();
    sentry.end().await;
    keymaster.end().await;
}

/// It has said so in the trail itself, whatever they who asked say there: what it signed for this key, so often, what it took away, and what it
/// refused, so often.
async fn check_recorded(broker: &Broker, key: &str, (signed, refused): (usize, usize)) {
    let auditor = broker.connect(&Role::Auditor).await.client;
    let told: Vec<(Verdict, String, String, String)> =
        recorded(&auditor).await.into_iter().map(|record| (record.verdict, record.principal, record.target, record.detail)).collect();
    let has = |verdict, principal: &str, target: &str, words: &str| {
        let is = |(is, whose, of, said): &&(Verdict, String, String, String)| {
            *is == verdict
                && whose == principal
                && of == target
                && said.contains(words)
                && (verdict == Verdict::Signed || said.starts_with("revoke for key U"))
        };
        told.iter().filter(is).count()
    };
    assert_eq!(has(Verdict::Signed, "part:api-1", "node:n1", &format!("credential signed for key {key}, until ")), signed, "{told:#?}");
    assert_eq!(has(Verdict::Signed, "part:api-2", "node:n1", "credential signed for key "), 1);
    assert_eq!(has(Verdict::Signed, "part:api-1", "node:n1", &format!("key {key} revoked on probeops")), 1);
    assert_eq!(has(Verdict::Refused, "part:api-1", "", ": forbidden: "), refused, "{told:#?}");
    assert_eq!(has(Verdict::Refused, "part:api-1", "", ": not_found: "), 1);
}

#[tokio::test]
async fn a_keymaster_gives_and_takes_away_for_an_api_only_what_is_of_nodes_and_services() {
    const MINTS: u32 = 12;
    let broker = Broker::start().await;
    let keymaster = Keymaster::start(&broker, MintsPerMinute(MINTS.try_into().unwrap()));
    let (asking, other) = (broker.connect(&api()).await, Role::Api { caller: "api-2".parse().unwrap() });
    let other = broker.connect(&other).await;
    let ask = async |caller: &Connection, verb: Verb, request: &Value| -> Value {
        let subject = subjects::keymaster(verb, &caller.credentials.name);
        loop {
            match caller.client.request(subject.clone(), request.to_string().into()).await {
                Ok(answer) => return serde_json::from_slice(&answer.payload).unwrap(),
                // It is about to be ready.
                Err(error) if error.kind() == async_nats::RequestErrorKind::NoResponders => sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    let revoke = async |key: &str| ask(&asking, Verb::Revoke, &json!({"public_key": key})).await["problem"]["code"].clone();
    let unknown = revoke(&KeyPair::new_user().public_key()).await;
    assert_eq!(unknown, "not_found");
    // It is ready, so its own credentials are there.
    let held = ["keymaster", "keymaster-desk"].map(|name| {
        let path = broker.layout.keys_dir().join(format!("{name}.creds"));
        Credentials::read_if_exists(&path).unwrap().unwrap().public_key
    });
    let parts = [broker.presence(), Role::Sentry, collector(), registrar(), Role::Auditor, Role::Provisioner, Role::FrontDoor];
    let parts = parts.map(|role| broker.vault.mint(&role, CREDENTIAL_LIFETIME).unwrap().public_key);
    let apis = [asking.credentials.public_key.clone(), other.credentials.public_key.clone()];
    for key in held.iter().chain(&parts).chain(&apis) {
        assert_eq!(revoke(key).await, "forbidden", "{key}");
        for account in AccountName::ALL {
            assert!(!broker.vault.is_revoked(account, key).unwrap());
        }
    }
    for account in AccountName::ALL {
        assert_eq!(revoke(broker.vault.account_key(account)).await, "invalid");
        assert_eq!(revoke(&broker.signing_key(account).public_key()).await, "invalid");
    }

    let mint = |rights: Value, key: &str| json!({"public_key": key, "lifetime_s": 60, "rights": rights});
    let fresh = || KeyPair::new_user().public_key();
    let n1 = json!({"node": "n1", "region": "eu", "tools": ["echo"]});
    for (verb, rights, key, code) in [
        (Verb::MintNode, n1.clone(), apis[0].clone(), "conflict"),
        (Verb::MintNode, json!({"node": "n1.>", "region": "eu", "tools": ["echo"]}), fresh(), "invalid"),
        (Verb::MintNode, json!({"node": "n1", "region": "*", "tools": ["echo"]}), fresh(), "invalid"),
        (Verb::MintNode, json!({"node": "n1", "region": "eu", "tools": ["*"]}), fresh(), "invalid"),
        (Verb::MintNode, json!({"node": "api-1", "region": "eu", "tools": ["echo"]}), fresh(), "forbidden"),
        (
            Verb::MintService,
            json!({"name": "sentry", "regions": ["eu"], "tools": ["echo"], "nodes": [], "direct": true}),
            fresh(),
            "forbidden",
        ),
        (Verb::MintService, json!({"name": "s", "regions": [], "tools": ["echo"], "nodes": ["*"], "direct": true}), fresh(), "invalid"),
        (Verb::MintService, n1.clone(), fresh(), "invalid"),
    ] {
        let answer = ask(&asking, verb, &mint(rights.clone(), &key)).await;
        assert_eq!(answer["problem"]["code"], code, "{rights}: {answer}");
    }
    let key = fresh();
    for _ in 8..MINTS {
        assert!(ask(&asking, Verb::MintNode, &mint(n1.clone(), &key)).await["jwt"].is_string());
    }
    let refused = ask(&asking, Verb::MintNode, &mint(n1.clone(), &key)).await;
    assert_eq!(refused["problem"]["code"], "rate_limited", "{refused}");
    assert!(ask(&other, Verb::MintNode, &mint(n1, &fresh())).await["jwt"].is_string(), "another has a rate of its own");
    // What is a node's is taken away all the same.
    let taken = ask(&asking, Verb::Revoke, &json!({"public_key": key})).await;
    assert_eq!(taken, json!({"servers": ["probeops"], "waiting": []}));
    keymaster.end().await;
    let refused = held.len() + parts.len() + apis.len();
    check_recorded(&broker, &key, ((8..MINTS).count(), refused)).await;
}

/// Whoever may change what the trail takes.
struct Provisioner(Client);

impl Provisioner {
    async fn of(broker: &Broker) -> Self {
        Self(broker.connect(&Role::AuditProvisioner).await.client)
    }

    async fn has_trail_take_at_most(&self, max_bytes: i64) {
        let info = self.0.request(broker::stream_info(storage::AUDIT), "".into()).await.unwrap();
        let mut config = serde_json::from_slice::<Value>(&info.payload).unwrap()["config"].take();
        config["max_bytes"] = max_bytes.into();
        let updated = self.0.request(broker::stream_update(storage::AUDIT), config.to_string().into()).await.unwrap();
        assert!(serde_json::from_slice::<Value>(&updated.payload).unwrap()["error"].is_null(), "{updated:?}");
    }

    async fn has_trail_take_nothing(&self) {
        self.has_trail_take_at_most(1).await;
    }

    async fn has_trail_take_records(&self) {
        self.has_trail_take_at_most(1024 * 1024).await;
    }
}

/// Asks the keymaster as an API, once it is ready.
async fn ask_keymaster(client: &Client, verb: Verb, request: &Value) -> Value {
    loop {
        match client.request(subjects::keymaster(verb, "api-1"), request.to_string().into()).await {
            Ok(answer) => return serde_json::from_slice(&answer.payload).unwrap(),
            Err(error) if error.kind() == async_nats::RequestErrorKind::NoResponders => sleep(Duration::from_millis(20)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

/// A request for the credential of a node, and its key.
fn mint_n1() -> (Value, String) {
    let (key, rights) = (KeyPair::new_user().public_key(), json!({"node": "n1", "region": "eu", "tools": ["echo"]}));
    (json!({"public_key": key, "lifetime_s": 60, "rights": rights}), key)
}

/// What the keymaster has put into the trail of a key, once it is so much.
async fn noted(auditor: &Client, key: &str, count: usize) -> Vec<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let records = recorded(auditor).await.into_iter();
        let found: Vec<String> = records.filter(|record| record.detail.contains(key)).map(|record| record.detail).collect();
        if found.len() >= count {
            return found;
        }
        assert!(Instant::now() < deadline, "only {found:#?} of {key}");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_keymaster_gives_nobody_a_credential_of_which_the_trail_does_not_know() {
    let broker = Broker::start().await;
    let keymaster = Keymaster::start(&broker, MintsPerMinute::default());
    let (asking, provisioner) = (broker.connect(&api()).await, Provisioner::of(&broker).await);
    let mint = async || ask_keymaster(&asking.client, Verb::MintNode, &mint_n1().0).await;
    assert!(mint().await["jwt"].is_string());
    provisioner.has_trail_take_nothing().await;
    let refused = mint().await;
    assert_eq!((&refused["problem"]["code"], &refused["jwt"]), (&json!("unavailable"), &Value::Null), "{refused}");
    assert!(refused["problem"]["detail"].as_str().unwrap().starts_with("the audit trail does not take the record"), "{refused}");
    provisioner.has_trail_take_records().await;
    let deadline = Instant::now() + PATIENCE;
    while !mint().await["jwt"].is_string() {
        assert!(Instant::now() < deadline);
    }
    keymaster.end().await;
}

#[tokio::test]
async fn a_revocation_waits_for_no_trail_and_is_in_it_once_when_it_takes_records_again() {
    /// Longer than whoever writes into a trail once tried.
    const AWAY_FOR: Duration = Duration::from_secs(12);
    let broker = Broker::start().await;
    let keymaster = Keymaster::start(&broker, MintsPerMinute::default());
    let (asking, provisioner) = (broker.connect(&api()).await, Provisioner::of(&broker).await);
    let auditor = broker.connect(&Role::Auditor).await.client;
    let revoke = async |key: &str| ask_keymaster(&asking.client, Verb::Revoke, &json!({"public_key": key})).await;
    let mut nodes = Vec::new();
    for id in ["n1", "n2", "n3"] {
        nodes.push(broker.connect(&node(id, "eu")).await);
    }
    // Where the trail takes it, it is there before the answer.
    let [kept, first, second] = [0, 1, 2].map(|index: usize| nodes[index].credentials.public_key.clone());
    assert_eq!(revoke(&kept).await, json!({"servers": ["probeops"], "waiting": []}));
    assert_eq!(noted(&auditor, &kept, 0).await, [format!("key {kept} revoked on probeops")]);

    provisioner.has_trail_take_nothing().await;
    let away = Instant::now();
    for (index, key) in [(1, &first), (2, &second)] {
        let asked = Instant::now();
        let (answer, ()) = tokio::join!(revoke(key), nodes[index].next(|event| matches!(event, LinkEvent::Refused(_)).then_some(())));
        assert_eq!(answer, json!({"servers": ["probeops"], "waiting": [], "unrecorded": true}));
        assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    }
    sleep(AWAY_FOR.saturating_sub(away.elapsed())).await;
    provisioner.has_trail_take_records().await;
    for key in [&first, &second] {
        assert_eq!(noted(&auditor, key, 1).await, [format!("key {key} revoked on probeops")]);
    }
    keymaster.end().await;
    assert!(recorded(&auditor).await.iter().all(|record| record.verdict != Verdict::Lost));
}

#[tokio::test]
async fn a_keymaster_that_is_told_to_stop_answers_what_it_has_and_has_it_recorded() {
    let broker = Broker::start().await;
    let keymaster = Keymaster::start(&broker, MintsPerMinute::default());
    let (asking, provisioner) = (broker.connect(&api()).await, Provisioner::of(&broker).await);
    let auditor = broker.connect(&Role::Auditor).await.client;
    let held = broker.connect(&node("n2", "eu")).await.credentials.public_key;
    assert!(ask_keymaster(&asking.client, Verb::MintNode, &mint_n1().0).await["jwt"].is_string());
    // Both wait for the trail when it is told to stop.
    provisioner.has_trail_take_nothing().await;
    let ((mint, made), revoke) = (mint_n1(), json!({"public_key": held}));
    let client = asking.client.clone();
    let asked =
        tokio::spawn(
            async move { tokio::join!(ask_keymaster(&client, Verb::MintNode, &mint), ask_keymaster(&client, Verb::Revoke, &revoke)) },
        );
    let deadline = Instant::now() + PATIENCE;
    while broker.vault.signed(&made).unwrap().is_none() || !broker.vault.is_revoked(AccountName::Application, &held).unwrap() {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(5)).await;
    }
    keymaster.1.cancel();
    provisioner.has_trail_take_records().await;
    let (minted, revoked) = timeout(PATIENCE, asked).await.unwrap().unwrap();
    assert!(minted["jwt"].is_string(), "{minted}");
    assert_eq!(revoked["servers"], json!(["probeops"]), "{revoked}");
    keymaster.end().await;
    let gone = asking.client.request(subjects::keymaster(Verb::Revoke, "api-1"), json!({"public_key": held}).to_string().into()).await;
    assert_eq!(gone.unwrap_err().kind(), async_nats::RequestErrorKind::NoResponders);
    assert_eq!((noted(&auditor, &made, 1).await.len(), noted(&auditor, &held, 1).await.len()), (1, 1));
}

#[tokio::test]
async fn a_revocation_that_is_asked_for_again_is_answered_again_and_recorded_once_and_another_of_the_same_key_as_such() {
    let broker = Broker::start().await;
    let keymaster = Keymaster::start(&broker, MintsPerMinute::default());
    let (asking, auditor) = (broker.connect(&api()).await.client, broker.connect(&Role::Auditor).await.client);
    let (request, key) = mint_n1();
    assert!(ask_keymaster(&asking, Verb::MintNode, &request).await["jwt"].is_string());
    let subject = subjects::keymaster(Verb::Revoke, "api-1");
    let revoke = async |id: Option<&str>| -> Value {
        let mut headers = HeaderMap::new();
        if let Some(id) = id {
            headers.insert("Nats-Msg-Id", id);
        }
        let request = async_nats::Request::new().headers(headers).payload(json!({"public_key": key}).to_string().into());
        serde_json::from_slice(&asking.send_request(subject.clone(), request).await.unwrap().payload).unwrap()
    };
    // As an API asks that hears nothing, at the same time and after it; and without an id, each is its own.
    let taken = json!({"servers": ["probeops"], "waiting": []});
    let (one, two, three) = tokio::join!(revoke(Some("1")), revoke(Some("1")), revoke(Some("1")));
    for answer in [one, two, three, revoke(Some("1")).await] {
        assert_eq!(answer, taken);
    }
    let signed = |noted: Vec<String>| noted.into_iter().filter(|detail| !detail.starts_with("credential")).collect::<Vec<_>>();
    let [anew, again] = [format!("key {key} revoked on probeops"), format!("key {key} was revoked before, and is on probeops")];
    assert_eq!(signed(noted(&auditor, &key, 2).await), std::slice::from_ref(&anew));
    for id in [Some("2"), None, None] {
        assert_eq!(revoke(id).await, taken);
    }
    keymaster.end().await;
    assert_eq!(signed(noted(&auditor, &key, 5).await), [anew, again.clone(), again.clone(), again]);
}

#[tokio::test]
async fn what_goes_beyond_a_limit_is_refused_and_noticed() {
    let broker = Broker::start().await;
    let sentry = broker.sentry(Bounds::default()).await;
    let mut n1 = broker.connect(&node("n1", "eu")).await;
    let mut held = Vec::new();
    // One more would let it hoard shares of the queue.
    for _ in 0..5 {
        held.push(n1.client.queue_subscribe("job.v1.eu.echo.*", "w".to_owned()).await.unwrap());
    }
    let refused = n1.next(|event| if let LinkEvent::Other(text) = event { Some(text.clone()) } else { None }).await;
    assert!(refused.to_lowercase().contains("maximum subscriptions exceeded"), "{refused}");
    // More than an outcome of the largest size with its headers.
    n1.client.publish(subjects::event("eu", "n1", "beat"), vec![0_u8; 300 * 1024].into()).await.unwrap();
    n1.next(|event| matches!(event, LinkEvent::Disconnected).then_some(())).await;
    let mut calling = broker.connect(&service("svc")).await;
    calling.client.publish(subjects::job("eu", "echo", "svc"), vec![0_u8; 300 * 1024].into()).await.unwrap();
    calling.next(|event| matches!(event, LinkEvent::Disconnected).then_some(())).await;
    let wanted = vec![
        ("node:n1", "maximum subscriptions exceeded"),
        ("node:n1", "maximum payload exceeded"),
        ("service:svc", "maximum payload exceeded"),
    ];
    sentry.notices(wanted, |record, (principal, words)| record.principal == *principal && record.detail.contains(words)).await;
    sentry.end().await;
}
