//! The keymaster on a broker of three servers: who is revoked is cut on each at once, and stays out whatever happens to one of them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use async_nats::{Client, HeaderMap, Request, RequestErrorKind};
use fixture::{Connection, PATIENCE, Scratch, Sentry, api, node, program};
use futures_util::{FutureExt, StreamExt};
use probeops_nats::config::ServerSettings;
use probeops_nats::connect::{Link, LinkError, LinkEvent, connect};
use probeops_nats::keymaster::{self, MintsPerMinute, Settings};
use probeops_nats::layout::Layout;
use probeops_nats::permissions::{AccountName, Role};
use probeops_nats::sentry::{self, Bounds};
use probeops_nats::server::ports::free_port;
use probeops_nats::server::supervise::{self, Running};
use probeops_nats::streams::provision;
use probeops_nats::vault::credentials::Credentials;
use probeops_nats::vault::{CREDENTIAL_LIFETIME, Vault};
use probeops_nats::{process, tls};
use probeops_shared::audit::Record;
use probeops_shared::ids::Caller;
use probeops_shared::keymaster::Verb;
use probeops_shared::subjects;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::fixture;

const NAMES: [&str; 3] = ["s1", "s2", "s3"];
/// A second is promised from the request to the cut.
const CUT_WITHIN: Duration = Duration::from_secs(1);
/// How often that is tried: a machine that does much else may be held up now and then.
const TRIES: usize = 3;
/// How often to look for what is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// After how long without an answer the same is asked again.
const AGAIN_AFTER: Duration = Duration::from_secs(3);

/// Whether there are any.
#[derive(Clone, Copy)]
enum Streams {
    Some,
    None,
}

struct Server {
    settings: ServerSettings,
    conf: PathBuf,
    stderr: PathBuf,
    running: Option<Running>,
}

/// Three servers, and a keymaster.
struct Cluster {
    layout: Layout,
    vault: Vault,
    servers: Vec<Server>,
    _scratch: Scratch,
}

impl Cluster {
    async fn start(streams: Streams) -> Self {
        process::install_tls_provider();
        let scratch = Scratch::new();
        let layout = Layout::new(scratch.path());
        let vault = Vault::open_or_create(&layout).unwrap();
        let certificate = tls::ensure(&layout, &[]).unwrap();
        let loopback = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let routes = NAMES.map(|_| loopback(free_port().unwrap()));
        let listed: Vec<String> = routes.iter().map(|route| format!("nats://{route}")).collect();
        let mut servers = Vec::new();
        for (name, route) in NAMES.iter().zip(routes) {
            let mut settings = ServerSettings::in_layout(&layout, &certificate, loopback(free_port().unwrap()));
            (*name).clone_into(&mut settings.server_name);
            settings.jetstream_dir = scratch.path().join(format!("{name}-jetstream"));
            settings.resolver_dir = scratch.path().join(format!("{name}-resolver"));
            settings.log_file = Some(scratch.path().join(format!("{name}.log")));
            let conf = scratch.path().join(format!("{name}.conf"));
            let text = settings.render(&vault).unwrap();
            let (before, rest) = text.split_once("jetstream {").unwrap();
            let (block, after) = rest.split_once("}\n").unwrap();
            let (before, after) = match streams {
                Streams::Some => (format!("{before}jetstream {{{block}}}\n"), after),
                Streams::None => (before.to_owned(), after),
            };
            let cluster = format!("cluster {{ name: \"three\", listen: \"{route}\", routes: [{}] }}\n", listed.join(", "));
            std::fs::write(&conf, format!("{before}{after}{cluster}")).unwrap();
            servers.push(Server { settings, conf, stderr: scratch.path().join(format!("{name}.stderr")), running: None });
        }
        let mut cluster = Self { layout, vault, servers, _scratch: scratch };
        for index in 0..NAMES.len() {
            cluster.run(index).await;
        }
        cluster
    }

    async fn run(&mut self, index: usize) {
        let program = program(&self.layout);
        let server = &mut self.servers[index];
        server.running = Some(supervise::start(&program, &server.conf, &server.settings, &server.stderr).await.unwrap());
    }

    async fn stop(&mut self, index: usize) {
        self.servers[index].running.take().unwrap().stop().await.unwrap();
    }

    fn signal(&self, index: usize, signal: &str) {
        let group = self.servers[index].running.as_ref().unwrap().process_group();
        let sent = std::process::Command::new("kill").args([&format!("-{signal}"), "--", &format!("-{group}")]).status().unwrap();
        assert!(sent.success());
    }

    fn url(&self, index: usize) -> String {
        format!("tls://{}", self.servers[index].settings.listen)
    }

    fn urls(&self) -> Vec<String> {
        (0..NAMES.len()).map(|index| self.url(index)).collect()
    }

    fn link(&self, index: usize, credentials: &Credentials) -> Link {
        let creds = self.layout.creds(&format!("test-{:016x}", rand::random::<u64>()));
        std::fs::write(&creds, credentials.to_creds_file()).unwrap();
        Link { servers: vec![self.url(index)], ca: Some(self.layout.ca_certificate()), creds }
    }

    fn mint(&self, role: &Role) -> Credentials {
        self.vault.mint(role, CREDENTIAL_LIFETIME).unwrap()
    }

    async fn is_refused_everywhere(&self, credentials: &Credentials) {
        for (index, name) in NAMES.iter().enumerate() {
            assert!(self.is_refused(index, credentials).await, "{name}");
        }
    }

    async fn connect(&self, index: usize, role: &Role, credentials: &Credentials) -> Connection {
        let (client, events) = connect(&self.link(index, credentials), &role.name(), &role.inbox_prefix()).await.unwrap();
        Connection { client, events, credentials: credentials.clone() }
    }

    async fn is_refused(&self, index: usize, credentials: &Credentials) -> bool {
        let begun = Instant::now();
        loop {
            match connect(&self.link(index, credentials), "test", "_INBOX.test").await {
                Ok(_) => return false,
                Err(LinkError::Refused(_)) => return true,
                // A machine that does much else.
                Err(LinkError::Unreachable(_)) if begun.elapsed() < PATIENCE => tokio::time::sleep(LOOK_EVERY).await,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Whether it is refused from the server's first word on, also once the server lets in who may.
    async fn is_refused_from_the_start(&self, index: usize, credentials: &Credentials, good: &Credentials) -> bool {
        let at_first = self.is_refused(index, credentials).await;
        let lets_in = async {
            while self.is_refused(index, good).await {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(PATIENCE, lets_in).await.unwrap();
        at_first && self.is_refused(index, credentials).await
    }
}

/// Asks the keymaster as a replica of the API does: the same again where nothing is heard, which a server may have been given that hangs.
async fn ask(client: &Client, verb: Verb, request: &Value) -> Value {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", format!("{:032x}", rand::random::<u128>()));
    loop {
        let request = Request::new().headers(headers.clone()).payload(request.to_string().into()).timeout(Some(AGAIN_AFTER));
        match client.send_request(subjects::keymaster(verb, "api-1"), request).await {
            Ok(answer) => return serde_json::from_slice(&answer.payload).unwrap(),
            Err(error) if error.kind() == RequestErrorKind::TimedOut => {}
            Err(error) => panic!("{error}"),
        }
    }
}

async fn revoke(client: &Client, credentials: &Credentials) -> Value {
    ask(client, Verb::Revoke, &json!({"public_key": credentials.public_key})).await
}

/// Asks for it again until these servers have taken it and those have not. One that is held up for a while is named like one that is away. There is
/// no trail here, which holds nothing up.
async fn is_revoked(client: &Client, credentials: &Credentials, servers: &[&str], waiting: &[&str]) {
    let expected = json!({"servers": servers, "waiting": waiting, "unrecorded": true});
    let mut answers = Vec::new();
    let revoked = async {
        while answers.last() != Some(&expected) {
            answers.push(revoke(client, credentials).await);
        }
    };
    assert!(tokio::time::timeout(PATIENCE, revoked).await.is_ok(), "not {expected}: {answers:?}");
}

async fn is_cut(connection: &mut Connection) {
    connection.next(|event| matches!(event, LinkEvent::Refused(_)).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_revoked_is_cut_on_three_servers_at_once_and_stays_out_whatever_happens_to_one() {
    let mut cluster = Cluster::start(Streams::None).await;
    let stop = CancellationToken::new();
    let (servers, ca) = (cluster.urls(), Some(cluster.layout.ca_certificate()));
    let health = cluster.layout.root().join("health");
    let settings =
        Settings { layout: cluster.layout.clone(), servers, ca, mints: MintsPerMinute::default(), health_file: Some(health.clone()) };
    // No server knows the application's account yet: the keymaster tells them.
    let keymaster = tokio::spawn(keymaster::run(settings, stop.clone()));
    let well = async {
        while keymaster::check_health(&health).is_err() {
            assert!(!keymaster.is_finished(), "the keymaster has ended");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, well).await.unwrap();
    let api = cluster.connect(0, &api(), &cluster.mint(&api())).await.client;
    let [older, silent, good] = ["n2", "n3", "n4"].map(|id| cluster.mint(&node(id, "eu")));
    let bad = all_connections_are_cut(&cluster, &api, &good).await;
    nobody_else_is_answered(&cluster, &api, &bad, &good).await;

    // A server that lost its disk has the account from the others before it lets anybody in.
    cluster.stop(1).await;
    std::fs::remove_dir_all(&cluster.servers[1].settings.resolver_dir).unwrap();
    cluster.run(1).await;
    assert!(cluster.is_refused_from_the_start(1, &bad, &good).await, "after the loss of its disk");

    one_that_was_away_is_told(&mut cluster, &api, &older).await;
    one_that_hangs_is_told_again(&cluster, &api, &silent).await;

    // All of it survives the end of everything.
    for index in 0..NAMES.len() {
        cluster.stop(index).await;
    }
    for index in 0..NAMES.len() {
        cluster.run(index).await;
    }
    for credentials in [&bad, &older, &silent] {
        assert!(cluster.vault.is_revoked(AccountName::Application, &credentials.public_key).unwrap());
        for (index, name) in NAMES.iter().enumerate() {
            assert!(cluster.is_refused_from_the_start(index, credentials, &good).await, "{name}");
        }
    }
    stop.cancel();
    tokio::time::timeout(PATIENCE, keymaster).await.unwrap().unwrap().unwrap();
}

/// Two with one key, on two servers, and violations on each.
#[tokio::test(flavor = "multi_thread")]
async fn what_happens_on_each_of_three_servers_is_noticed_and_a_clone_on_another_is_cut() {
    let cluster = Cluster::start(Streams::Some).await;
    let (servers, ca) = (cluster.urls(), Some(cluster.layout.ca_certificate()));
    provision(&cluster.layout, &cluster.vault, &servers, ca.as_deref()).await.unwrap();
    let stop = CancellationToken::new();
    let mints = MintsPerMinute::default();
    let settings = Settings { layout: cluster.layout.clone(), servers: servers.clone(), ca: ca.clone(), mints, health_file: None };
    let keymaster = tokio::spawn(keymaster::run(settings, stop.clone()));
    sentry::mint(&cluster.layout, &cluster.vault, CREDENTIAL_LIFETIME).unwrap();
    let settings = sentry::Settings {
        servers,
        ca,
        creds: cluster.layout.sentry_dir(),
        logs: cluster.servers.iter().map(|server| server.settings.log_file.clone().unwrap()).collect(),
        bounds: Bounds { last_words_within: Duration::from_secs(2), ..Bounds::default() },
        health_file: None,
    };
    let auditor = cluster.connect(0, &Role::Auditor, &cluster.mint(&Role::Auditor)).await.client;
    let sentry = Sentry::start(settings, auditor).await;

    let mut attackers = Vec::new();
    for (index, name) in ["v1", "v2", "v3"].into_iter().enumerate() {
        let attacker = cluster.connect(index, &node(name, "eu"), &cluster.mint(&node(name, "eu"))).await;
        attacker.client.publish(subjects::job("eu", "echo", name), "x".into()).await.unwrap();
        attacker.client.flush().await.unwrap();
        attackers.push(attacker);
    }
    let expired = cluster.vault.mint(&node("late", "eu"), Duration::from_secs(1)).unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.is_refused_everywhere(&expired).await;

    // The thief is at the second server, the node at the first, and one that reconnects has gone from the third to the second.
    let credentials = cluster.mint(&node("n1", "eu"));
    let mut both = [cluster.connect(0, &node("n1", "eu"), &credentials).await, cluster.connect(1, &node("n1", "eu"), &credentials).await];
    let moved = cluster.mint(&node("n2", "eu"));
    let mut old = cluster.connect(2, &node("n2", "eu"), &moved).await;
    let mut new = cluster.connect(1, &node("n2", "eu"), &moved).await;
    let [first, second] = &mut both;
    let speaking = async {
        loop {
            for (client, name) in [(&first.client, "n1"), (&second.client, "n1"), (&new.client, "n2")] {
                client.publish(subjects::event("eu", name, "beat"), "x".into()).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let cut = async { tokio::join!(first_end(&mut first.events), first_end(&mut second.events)) };
    tokio::select! {
        () = speaking => {}
        _ = cut => {}
    }
    let is = |record: &Record, (principal, words): &(&str, &str)| record.principal == *principal && record.detail.contains(words);
    let wanted = vec![
        ("node:v1", "publish"),
        ("node:v2", "publish"),
        ("node:v3", "publish"),
        ("-", "it says it is late"),
        ("node:n1", "cut: clone"),
        ("node:n1", "revoked: its key is void on s1, s2, s3"),
    ];
    sentry.notices(wanted, is).await;
    cluster.is_refused_everywhere(&credentials).await;
    for connection in [&mut old, &mut new] {
        assert!(!std::iter::from_fn(|| connection.events.try_recv().ok()).any(|event| event == LinkEvent::Disconnected));
    }
    sentry.end().await;
    stop.cancel();
    tokio::time::timeout(PATIENCE, keymaster).await.unwrap().unwrap().unwrap();
}

async fn first_end(events: &mut mpsc::Receiver<LinkEvent>) {
    let ended = async { while !matches!(events.recv().await.unwrap(), LinkEvent::Disconnected | LinkEvent::Refused(_)) {} };
    tokio::time::timeout(PATIENCE, ended).await.unwrap();
}

/// One credential with a connection to each server, which is then revoked.
async fn all_connections_are_cut(cluster: &Cluster, api: &Client, good: &Credentials) -> Credentials {
    let mut left_alone = Vec::new();
    for index in 0..NAMES.len() {
        left_alone.push(cluster.connect(index, &node("n4", "eu"), good).await);
    }
    let mut tried = Vec::new();
    let bad = loop {
        let bad = cluster.mint(&node("n1", "eu"));
        let mut connections = Vec::new();
        for index in 0..NAMES.len() {
            connections.push(cluster.connect(index, &node("n1", "eu"), &bad).await);
        }
        let asked = Instant::now();
        let (answer, cut) = tokio::join!(revoke(api, &bad), async {
            for connection in &mut connections {
                is_cut(connection).await;
            }
            asked.elapsed()
        });
        tried.push((cut, asked.elapsed(), answer.clone()));
        if cut < CUT_WITHIN && answer == json!({"servers": NAMES, "waiting": [], "unrecorded": true}) {
            break bad;
        }
        assert!(tried.len() < TRIES, "cut, and answered, after {tried:?}");
    };
    eprintln!("three connections cut, and acknowledged by three servers, after {tried:?}");
    cluster.is_refused_everywhere(&bad).await;
    for connection in &mut left_alone {
        while let Ok(event) = connection.events.try_recv() {
            assert!(!matches!(event, LinkEvent::Refused(_) | LinkEvent::Disconnected), "{event:?}");
        }
    }
    // Nor does the key get another credential.
    let rights = json!({"node": "n1", "region": "eu", "tools": ["echo"]});
    let again = ask(api, Verb::MintNode, &json!({"public_key": bad.public_key, "lifetime_s": 60, "rights": rights})).await;
    assert_eq!(again["problem"]["code"], "conflict", "{again}");
    bad
}

/// A request that wants its answer in somebody else's inbox.
async fn nobody_else_is_answered(cluster: &Cluster, api: &Client, bad: &Credentials, good: &Credentials) {
    let other = Role::Api { caller: "api-2".parse::<Caller>().unwrap() };
    let other = cluster.connect(0, &other, &cluster.mint(&other)).await;
    let mut overheard = other.client.subscribe("_INBOX_c.api-2.x").await.unwrap();
    other.client.flush().await.unwrap();
    let request = json!({"public_key": good.public_key}).to_string();
    api.publish_with_reply(subjects::keymaster(Verb::Revoke, "api-1"), "_INBOX_c.api-2.x", request.into()).await.unwrap();
    // It has been through the same queue.
    is_revoked(api, bad, &NAMES, &[]).await;
    assert!(overheard.next().now_or_never().is_none());
    assert!(!cluster.is_refused(0, good).await, "what cannot be answered is not done");
}

/// It is named, comes back with an old disk, and has it before anybody asks.
async fn one_that_was_away_is_told(cluster: &mut Cluster, api: &Client, older: &Credentials) {
    cluster.stop(2).await;
    is_revoked(api, older, &["s1", "s2"], &["s3"]).await;
    cluster.run(2).await;
    let back = Instant::now();
    let refused = async {
        while !cluster.is_refused(2, older).await {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.unwrap();
    eprintln!("a server that came back with an old disk was told after {:?}", back.elapsed());
    is_revoked(api, older, &NAMES, &[]).await;
}

/// It is named, and told again until it has it.
async fn one_that_hangs_is_told_again(cluster: &Cluster, api: &Client, silent: &Credentials) {
    let mut on_silent = cluster.connect(2, &node("n3", "eu"), silent).await;
    cluster.signal(2, "STOP");
    is_revoked(api, silent, &["s1", "s2"], &["s3"]).await;
    cluster.signal(2, "CONT");
    is_cut(&mut on_silent).await;
    is_revoked(api, silent, &NAMES, &[]).await;
}
