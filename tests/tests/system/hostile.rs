//! Whoever means harm harms nobody but himself: callers, a node, a service, receivers of callbacks and targets, each doing its worst, while the
//! jobs of a bystander succeed, nothing panics, and the memory of all comes back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use futures_util::StreamExt;
use probeops_shared::job::header;
use probeops_shared::presence::{Beat, PolicyReport, Slots};
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::ToolName;
use probeops_tests::fabric::{Agent, Api, ApiOptions, Fabric};
use probeops_tests::hostile::{Bystander, Liar, allow_sockets, endless, resident_bytes, said, slow_heads};
use serde_json::{Value, json};

/// What the test itself needs, with its ten thousand connections.
const SOCKETS: u64 = 12_000;
/// How many connections are held open at once.
const CONNECTIONS: usize = 10_000;
/// How many more connections than it has room for the API must have sent away and let in before that is believed.
const OPENED: usize = 11_000;
/// Only a hang takes this long.
const HANG: Duration = Duration::from_secs(60);
/// How many junk jobs a service publishes.
const FLOOD: usize = 5_000;

/// Everybody.
struct Site {
    fabric: Fabric,
    api: Api,
    agent: std::rc::Rc<Agent>,
    address: SocketAddr,
    bystander: String,
}

impl Site {
    fn start() -> Self {
        allow_sockets(SOCKETS);
        let fabric = Fabric::start();
        let api = fabric.api_with(&ApiOptions { callback_allow: Some("127.0.0.0/8".to_owned()), ..ApiOptions::default() });
        let agent = fabric.agent("good-1", "good");
        api.wait_for_nodes(1);
        let bystander = api.key(&json!({"name": "bystander", "scopes": ["jobs:write", "jobs:read"]}));
        let address = api.url().trim_start_matches("http://").parse().unwrap();
        Self { fabric, api, agent, address, bystander }
    }

    /// Does it while the bystander asks, until he has been answered a few times more.
    #[track_caller]
    fn beside<T>(&self, what: &str, harm: impl FnOnce() -> T) -> T {
        let bystander = Bystander::start(self.api.url(), &self.bystander, "good");
        let result = harm();
        let before = bystander.succeeded();
        let started = Instant::now();
        while bystander.succeeded() < before + 3 && started.elapsed() < HANG {
            std::thread::sleep(Duration::from_millis(20));
        }
        let (count, longest) = bystander.finish();
        assert!(count >= before + 3, "{what}: a bystander got {count} answers in all");
        for log in [self.api.log(), self.agent.log()] {
            let panicked: Vec<&str> = log.lines().filter(|line| line.contains("panicked") || line.contains("incident")).collect();
            assert!(panicked.is_empty(), "{what}: {panicked:#?}");
        }
        assert!(longest < HANG, "{what}: a bystander's job took {longest:?}");
        result
    }

    fn resident(&self) -> [u64; 2] {
        [self.api.process_id(), self.agent.process_id()].map(resident_bytes)
    }

    fn job(&self, body: &Value) -> probeops_tests::http::Answer {
        self.api.admin().post("/v1/jobs", body)
    }
}

#[test]
fn nobody_who_means_harm_harms_a_bystander() {
    let site = Site::start();
    let liar = lying_node(&site);
    let servers = site.fabric.block_on(servers());
    // Once of everything, and of connections as many as there is room for: after that it is known what memory is for use.
    everything(&site, &servers, 5_000);
    let before = site.resident();
    everything(&site, &servers, OPENED);
    let (names, started) = (["API", "agent"], Instant::now());
    loop {
        let after = site.resident();
        let grown: Vec<String> = (0..2)
            .filter(|index| after[*index] > before[*index] + before[*index] / 5)
            .map(|index| format!("{}: {} bytes, and {} before", names[index], after[index], before[index]))
            .collect();
        if grown.is_empty() {
            break;
        }
        assert!(started.elapsed() < HANG, "memory has not come back: {grown:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
    liar.abort();
}

fn everything(site: &Site, servers: &Servers, opened: usize) {
    site.beside("heads that never end", || {
        let count = Arc::new(AtomicUsize::new(0));
        let slow = site.fabric.spawn(slow_heads(site.address, CONNECTIONS, Arc::clone(&count)));
        let started = Instant::now();
        while count.load(Ordering::Relaxed) < opened {
            assert!(started.elapsed() < HANG, "{} connections in {HANG:?}", count.load(Ordering::Relaxed));
            std::thread::sleep(Duration::from_millis(20));
        }
        slow.abort();
    });
    site.beside("what is no request", || site.fabric.block_on(broken_requests(site)));
    site.beside("a node that lies", || lies(site));
    site.beside("a service that lies", || lying_service(site));
    site.beside("receivers and targets that never end", || never_ending(site, servers));
}

/// How a request is answered that is none: as the caller's mistake, or by the end of the connection.
const REFUSED: [&str; 2] = ["4", ""];

/// What does not come to its end, is too large, too deep, cut off, repeated, or by chance.
async fn broken_requests(site: &Site) {
    let address = site.address;
    let cases: Vec<Case> = http1(site.api.admin_key()).into_iter().chain(http2()).collect();
    // Bodies that arrive byte by byte are given up; many of them at once, beside all the rest.
    let slow = b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{";
    let slow = futures_util::future::join_all((0..200).map(|_| said(address, slow)));
    let asked = futures_util::stream::iter(&cases).map(|(what, words, wanted)| async move {
        let answer = said(address, words).await;
        let begins = String::from_utf8_lossy(answer.get(..12).unwrap_or(&answer)).into_owned();
        let status = begins.split(' ').nth(1).unwrap_or(&begins);
        let as_wanted = |wanted: &&str| status == *wanted || !wanted.is_empty() && status.starts_with(wanted);
        assert!(wanted.iter().any(as_wanted), "{what}: {begins:?}, {wanted:?}");
    });
    let all = asked.buffer_unordered(4).for_each(async |()| ());
    let (_, ()) = futures_util::join!(slow, all);
}

/// What it is, what is sent, and how the answer may begin: a status, the frame of HTTP/2, nothing.
type Case = (&'static str, Vec<u8>, &'static [&'static str]);

/// In HTTP/1.1.
fn http1(key: &str) -> Vec<Case> {
    let post = |headers: &str, body: &[u8]| {
        let head = "POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
        [format!("{head}Authorization: Bearer {key}\r\n{headers}\r\n").as_bytes(), body].concat()
    };
    let sized = |body: &[u8]| post(&format!("Connection: close\r\nContent-Length: {}\r\n", body.len()), body);
    let get = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n").into_bytes();
    let job = br#"{"tool":"echo","target":"x","from":"good"}"#;
    vec![
        ("too large", sized(&vec![b' '; 5 * 1024 * 1024]), &["413", ""]),
        ("announced as too large", post("Content-Length: 99999999999\r\n", b"{"), &REFUSED),
        ("a length that is none", post("Content-Length: -1\r\n", b"{}"), &REFUSED),
        ("two lengths", post("Content-Length: 2\r\nContent-Length: 3\r\n", b"{}x"), &REFUSED),
        ("a length and pieces", post("Content-Length: 2\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n", b"0\r\n\r\n"), &REFUSED),
        ("pieces that are none", post("Transfer-Encoding: chunked\r\n", b"zzzz\r\n{}"), &REFUSED),
        ("deep", sized(&[b'['; 60_000]), &["400"]),
        ("deep in a field", sized(format!("{{\"tool\":{}", "{\"a\":".repeat(10_000)).as_bytes()), &["400"]),
        ("cut off", sized(&job[..20]), &["400"]),
        ("by chance", by_chance(), &REFUSED),
        ("headers without end", post(&"X-A: b\r\n".repeat(100_000), b""), &REFUSED),
        ("a long path", get(&format!("/{}", "a".repeat(40_000)), ""), &["414", "431"]),
        ("ten thousand at once", b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n".repeat(10_000), &["200"]),
        ("a NUL", b"GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), &REFUSED),
        ("metrics", get("/metrics", "Authorization: Bearer x\r\n"), &["401"]),
    ]
}

/// In HTTP/2.
fn http2() -> Vec<Case> {
    let after_preface = |frames: Vec<u8>| [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..], &frames].concat();
    // A stream is begun and reset at once, again and again (CVE-2023-44487).
    let reset = |number: u32| {
        let stream = (number * 2 + 1).to_be_bytes();
        [&[0, 0, 3, 1, 5][..], &stream, &[0x82, 0x84, 0x86], &[0, 0, 4, 3, 0], &stream, &[0, 0, 0, 8]].concat()
    };
    // A head that goes on in its next frame, and the next (CVE-2024-27316).
    let continued = |number: u32| [&[0, 0, 200, if number == 0 { 1 } else { 9 }, 0, 0, 0, 0, 1][..], &[0; 200]].concat();
    vec![
        ("by chance, in HTTP/2", after_preface(by_chance()), &["\0\0"]),
        ("reset again and again", after_preface((0..5_000).flat_map(reset).collect()), &["\0\0"]),
        ("a head without end, in HTTP/2", after_preface((0..2_000).flat_map(continued).collect()), &["\0\0"]),
    ]
}

fn by_chance() -> Vec<u8> {
    (0..64 * 1024).map(|_| rand::random()).collect()
}

/// A node of region `bad` with a credential as any other.
fn lying_node(site: &Site) -> tokio::task::JoinHandle<()> {
    let creds = site.fabric.enrol("liar", 1, "bad").remove(0);
    let client = site.fabric.connect_in(&creds, "_INBOX_n.liar-1");
    let now = Timestamp::now();
    let beat = Beat {
        node: "liar-1".parse().unwrap(),
        region: "bad".parse().unwrap(),
        boot_id: "b".to_owned(),
        started_at: now,
        counter: 1,
        version: "0".to_owned(),
        tools: vec![ToolName::Echo],
        unavailable: Vec::new(),
        slots: [(ToolName::Echo.class(), Slots { free: 1_000_000_000, total: 1_000_000_000 })].into(),
        draining: false,
        clock_offset_ms: Some(1.7e308),
        rtt_ms: Some(1.7e308),
        policy: PolicyReport::new("x".repeat(20_000)),
    };
    let beat = serde_json::to_vec(&beat).unwrap();
    let telling = client.clone();
    let liar = site.fabric.spawn(async move {
        let beats = async {
            loop {
                let say = async |subject: &str, body: Vec<u8>| {
                    drop(telling.publish_with_reply(subject.to_owned(), "_INBOX_n.liar-1.0".to_owned(), body.into()).await);
                };
                say("ev.v1.bad.liar-1.beat", beat.clone()).await;
                // In others' names, of no kind, as deep and as large as it gets; the broker lets some of it through.
                for subject in ["ev.v1.bad.liar-1.beat", "ev.v1.bad.liar-1.audit", "ev.v1.bad.liar-1.nothing", "ev.v1.good.good-1.bye"] {
                    for body in [
                        b"junk".to_vec(),
                        vec![b'['; 200_000],
                        vec![b' '; 250_000],
                        String::from_utf8_lossy(&beat).replace("liar-1", "good-1").into_bytes(),
                    ] {
                        say(subject, body).await;
                    }
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        tokio::join!(beats, Liar::new(client, "liar-1").lie())
    });
    site.api.wait_for_nodes(2);
    site.fabric.spawn(async move { drop(liar.await) })
}

/// Every lie is an answer, and to its own job only: what is told of node, tool and request is what the API knows.
fn lies(site: &Site) {
    let lie = |lie: &str| {
        let body = json!({"tool": "echo", "target": lie, "from": "node:liar-1", "timeout_ms": 12_000});
        (lie.to_owned(), site.job(&body))
    };
    let once = ["ids", "seq", "numbers", "deep", "junk", "unknown", "twice", "backwards", "headers", "truth"];
    for (lie, answer) in once.map(lie) {
        let outcome = answer.outcome();
        assert_eq!(
            (&outcome["target"], &outcome["tool"], &outcome["node"]["id"]),
            (&json!(lie), &json!("echo"), &json!("liar-1")),
            "{outcome}"
        );
        let succeeds = !["deep", "junk"].contains(&lie.as_str());
        assert_eq!(outcome["status"] == "success", succeeds, "{lie}: {outcome}");
    }
    // Those that take their time, at the same time; somebody watches, as text and as events.
    let (address, key) = (site.address, site.api.admin_key());
    std::thread::scope(|threads| {
        let slow = ["large", "endless", "alive"].map(|lie| threads.spawn(move || (lie, job_from(address, key, lie, "application/json"))));
        for accept in ["text/plain", "text/event-stream"] {
            threads.spawn(move || job_from(address, key, "endless", accept));
        }
        for (lie, answer) in slow.into_iter().map(|slow| slow.join().unwrap()) {
            assert!(
                answer.contains("\"status\":\"finished\"") && answer.contains("\"status\":\"failed\""),
                "{lie}: {}",
                answer.get(..2_000).unwrap_or(&answer)
            );
        }
    });
}

/// A job at the node that lies, to the end of its answer; of a long one only the end is kept.
fn job_from(address: SocketAddr, key: &str, lie: &str, accept: &str) -> String {
    use std::io::{Read, Write};
    let body = json!({"tool": "echo", "target": lie, "from": "node:liar-1"}).to_string();
    let head = format!(
        "POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nAccept: {accept}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    let (mut answer, mut piece) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        let length = stream.read(&mut piece).unwrap();
        if length == 0 {
            return String::from_utf8_lossy(&answer).into_owned();
        }
        answer.extend_from_slice(&piece[..length]);
        let excess = answer.len().saturating_sub(1024 * 1024);
        drop(answer.drain(..excess));
    }
}

/// A service publishes what is no job, as fast as it can; its one honest job is answered all the same, once it is within its rate again.
fn lying_service(site: &Site) {
    let service = site.fabric.service("flooder", &["good"], &["echo", "tcp"], &["good-1"]);
    let client = site.fabric.connect(&service.creds);
    let echo = json!({"request_id": "r", "tool": "echo", "target": "x", "parameters": {}}).to_string();
    let bodies: Vec<Vec<u8>> = vec![
        b"junk".to_vec(),
        Vec::new(),
        vec![b'['; 60_000],
        vec![0xff; 200_000],
        echo.clone().into_bytes(),
        format!("{{\"tool\":{}", "{\"a\":".repeat(10_000)).into_bytes(),
        echo.replace("\"parameters\":{}", &format!("\"parameters\":{{{}\"z\":1}}", "\"a\":1,".repeat(5_000))).into_bytes(),
    ];
    let numbers = ["-9223372036854775808", "9223372036854775807", "0", "x", ""];
    site.fabric.block_on(async {
        let mut answers = client.subscribe("_INBOX.flooder.>").await.unwrap();
        for number in 0..FLOOD {
            let mut headers = HeaderMap::new();
            for name in
                [header::SENT, header::DEADLINE, header::ATTEMPT, header::EVENTS, header::TARGETS, header::PRINCIPAL, header::TRACEPARENT]
            {
                if rand::random::<bool>() {
                    headers.insert(name, numbers[rand::random_range(0..numbers.len())]);
                }
            }
            // Others' inboxes, none, and its own.
            let reply = ["_INBOX.flooder.t._", "_INBOX.flooder.t.good-1", "_INBOX.other.t._", "ev.v1.good.good-1.beat", "_INBOX.flooder._"]
                [number % 5];
            let body = bodies[number % bodies.len()].clone().into();
            client.publish_with_reply_and_headers("node.v1.good-1.job.echo.flooder", reply, headers, body).await.unwrap();
        }
        client.flush().await.unwrap();
        let honest = async {
            loop {
                client.publish_with_reply("job.v1.good.echo.flooder", "_INBOX.flooder.honest._", echo.clone().into()).await.unwrap();
                while let Ok(Some(answer)) = tokio::time::timeout(Duration::from_secs(1), answers.next()).await {
                    let outcome: Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
                    if answer.subject.as_str() == "_INBOX.flooder.honest.good-1" && outcome["status"] == "success" {
                        return;
                    }
                }
            }
        };
        tokio::time::timeout(HANG, honest).await.expect("an honest job is answered");
    });
}

/// Servers that begin an answer and never end it.
struct Servers {
    heads: SocketAddr,
    bodies: SocketAddr,
    fields: SocketAddr,
    redirects: SocketAddr,
    silent: SocketAddr,
    junk: SocketAddr,
}

async fn servers() -> Servers {
    let (slowly, at_once) = (Duration::from_millis(200), Duration::from_millis(1));
    Servers {
        heads: endless(b"HTTP/1.1 200 OK\r\nX-A: ", b"x", slowly).await,
        bodies: endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"8\r\nendless!\r\n", at_once).await,
        fields: endless(b"HTTP/1.1 200 OK\r\n", b"X-A: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\r\n", at_once).await,
        redirects: endless(b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n", b"", slowly).await,
        silent: endless(b"", b"", slowly).await,
        junk: endless(&[0xff; 4096], &[0xff; 4096], at_once).await,
    }
}

impl Servers {
    fn all(&self) -> [SocketAddr; 6] {
        [self.heads, self.bodies, self.fields, self.redirects, self.silent, self.junk]
    }
}

/// Each of them as the target of runs, and as the receiver of callbacks.
fn never_ending(site: &Site, servers: &Servers) {
    for server in servers.all() {
        let callback = json!({"url": format!("http://{server}/callback"), "max_age_ms": 60_000});
        let answer = site.job(&json!({"tool": "echo", "target": "x", "from": "good", "callback": callback}));
        assert_eq!(answer.outcome()["status"], "success", "whatever becomes of its callback");
    }
    let jobs = servers.all().into_iter().flat_map(|server| {
        let (host, port) = (server.ip(), server.port());
        [
            json!({"tool": "http", "target": format!("http://{server}/"), "from": "good", "parameters": {"timeout": 2}}),
            json!({"tool": "tls", "target": host, "from": "good", "parameters": {"port": port, "timeout": 2}}),
            json!({"tool": "tcp", "target": host, "from": "good", "parameters": {"port": port, "banner": true, "timeout": 2}}),
            json!({"tool": "dns", "target": "a.example", "from": "good", "parameters": {"resolver": host, "port": port, "protocol": "tcp", "timeout": 2, "tries": 1}}),
        ]
    });
    let jobs: Vec<String> = jobs.map(|job| job.to_string()).collect();
    let (address, key) = (site.address, site.api.admin_key());
    std::thread::scope(|threads| {
        let running: Vec<_> = jobs.iter().map(|job| threads.spawn(move || (job, said_by(address, key, job)))).collect();
        for (job, answer) in running.into_iter().map(|job| job.join().unwrap()) {
            assert_eq!(answer["status"], "finished", "{job}: {answer}");
            let outcome = &answer["results"][0];
            let is_told = outcome["status"] == "success" || outcome["failure"]["kind"] == "timed_out";
            assert!(is_told, "that it never ends is told: {job}: {answer}");
        }
    });
}

/// A job of the first key's, from any thread.
fn said_by(address: SocketAddr, key: &str, job: &str) -> Value {
    let caller = probeops_tests::http::Caller::new(&format!("http://{address}"), Some(key), None);
    caller.post_raw("/v1/jobs", "application/json", job.as_bytes(), &[]).body
}
