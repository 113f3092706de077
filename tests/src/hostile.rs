//! Who means harm, and the bystander who must not notice: slow and broken callers, a node that lies, a server that never comes to its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_nats::{Client, HeaderMap, Message};
use futures_util::StreamExt;
use probeops_shared::job::header;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::http::Caller;

/// How often a slow one sends the next byte.
const TRICKLE_EVERY: Duration = Duration::from_millis(200);
/// How often a node says a large thing: what it sends at once, whoever listens to all nodes must have heard before he hears others.
const PIECE_EVERY: Duration = Duration::from_millis(20);
/// What a node may publish in one message.
const NODE_BYTES_MAX: usize = 250 * 1024;

/// Somebody whose jobs all have to succeed, whatever happens to others. Each of his calls is a connection of its own.
#[derive(Debug)]
pub struct Bystander {
    stop: Arc<AtomicBool>,
    succeeded: Arc<AtomicUsize>,
    asking: JoinHandle<Result<Duration, String>>,
}

impl Bystander {
    /// One who asks nodes of this region for `echo`, job after job.
    pub fn start(url: &str, token: &str, region: &str) -> Self {
        let (stop, succeeded) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&succeeded));
        let (url, token, body) =
            (url.to_owned(), token.to_owned(), json!({"tool": "echo", "target": "bystander", "from": region}).to_string());
        let asking = std::thread::spawn(move || {
            let mut longest = Duration::ZERO;
            while !stopped.load(Ordering::Acquire) {
                let began = Instant::now();
                let caller = Caller::new(&url, Some(&token), None);
                let answer = caller.try_post("/v1/jobs", "application/json", body.as_bytes(), &[]).map_err(|error| error.to_string())?;
                if answer.status != 200 || answer.body["results"][0]["status"] != "success" {
                    return Err(format!("{}: {}", answer.status, answer.text));
                }
                longest = longest.max(began.elapsed());
                counted.fetch_add(1, Ordering::AcqRel);
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(longest)
        });
        Self { stop, succeeded, asking }
    }

    /// How many of his jobs have succeeded.
    pub fn succeeded(&self) -> usize {
        self.succeeded.load(Ordering::Acquire)
    }

    /// Stops him; how many of his jobs succeeded, and how long the slowest took. Fails if one did not.
    #[track_caller]
    pub fn finish(self) -> (usize, Duration) {
        self.stop.store(true, Ordering::Release);
        let longest = self.asking.join().expect("a thread that does not panic");
        let longest =
            longest.unwrap_or_else(|why| panic!("a bystander's job failed after {} others: {why}", self.succeeded.load(Ordering::Acquire)));
        (self.succeeded.load(Ordering::Acquire), longest)
    }
}

/// Lets this process have so many files and sockets open; programs that it starts later may, too.
#[track_caller]
pub fn allow_sockets(count: u64) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < count) {
        assert!(
            limit.maximum.is_none_or(|maximum| maximum >= count),
            "this test opens {count} sockets, and the limit is {:?}; raise it: `ulimit -Hn {count}`, or `--ulimit nofile={count}` for a container",
            limit.maximum
        );
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("below the hard limit");
    }
}

/// How many bytes of memory a process holds.
pub fn resident_bytes(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("a process of ours");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// Holds so many connections open, each with a request that arrives byte by byte and never ends; one that is closed is made anew. Ends when it
/// is dropped.
pub async fn slow_heads(address: SocketAddr, count: usize, opened: Arc<AtomicUsize>) {
    let mut slow = tokio::task::JoinSet::new();
    for number in 0..count {
        let opened = Arc::clone(&opened);
        slow.spawn(async move {
            loop {
                // With as many the system may have no room for one more at this moment.
                if let Ok(mut stream) = TcpStream::connect(address).await {
                    opened.fetch_add(1, Ordering::Relaxed);
                    let mut begun = stream.write_all(b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nX-Slow: ").await.is_ok();
                    while begun {
                        let mut answer = [0; 64];
                        tokio::select! {
                            read = stream.read(&mut answer) => begun = read.is_ok_and(|length| length > 0),
                            () = tokio::time::sleep(TRICKLE_EVERY * 10) => begun = stream.write_all(b"x").await.is_ok(),
                        }
                    }
                }
                tokio::time::sleep(Duration::from_millis(100 + number as u64 % 400)).await;
            }
        });
    }
    while slow.join_next().await.is_some() {}
}

/// Says this on a connection of its own and hears the answer, until it ends or nothing comes for a while.
pub async fn said(address: SocketAddr, words: &[u8]) -> Vec<u8> {
    let Ok(mut stream) = TcpStream::connect(address).await else { return Vec::new() };
    // It may be cut off in the middle, which is an answer, too.
    drop(stream.write_all(words).await);
    let mut heard = Vec::new();
    while let Ok(Ok(length)) = tokio::time::timeout(Duration::from_secs(2), stream.read_buf(&mut heard)).await {
        if length == 0 || heard.len() > 1024 * 1024 {
            break;
        }
    }
    heard
}

/// A TCP server that says `first` and then, again and again, `again`, each a while after the other; its address. It lives as long as the runtime.
pub async fn endless(first: &'static [u8], again: &'static [u8], every: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    drop(tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            drop(tokio::spawn(async move {
                let mut heard = [0; 4096];
                drop(stream.read(&mut heard).await);
                let mut open = stream.write_all(first).await.is_ok();
                while open {
                    tokio::time::sleep(every).await;
                    open = !again.is_empty() && stream.write_all(again).await.is_ok();
                }
            }));
        }
    }));
    address
}

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
        let truth = json!({
            "request_id": asked["request_id"], "status": "success", "output": "lie", "duration_ms": 1.0, "tool": "echo", "target": lie,
            "report": {}, "started_at": "2026-01-01T00:00:00Z", "node": {"id": self.node, "region": "bad"},
        });
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

    /// What is never over, or a hundred megabytes of outcome in as large pieces as the broker lets through.
    async fn go_on(&self, lie: &str, to: &str, found: &[u8]) {
        self.say(to, ("accepted", "0"), Vec::new()).await;
        for number in 1..500 {
            let seq = number.to_string();
            match lie {
                "endless" => {
                    self.say(to, ("progress", &seq), found.to_vec()).await;
                    tokio::time::sleep(PIECE_EVERY).await;
                }
                "alive" if number < 100 => {
                    self.say(to, ("accepted", &seq), Vec::new()).await;
                    tokio::time::sleep(TRICKLE_EVERY).await;
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
        let mut headers = HeaderMap::new();
        headers.insert(header::EVENT, event);
        headers.insert(header::SEQ, seq);
        drop(self.client.publish_with_headers(to.to_owned(), headers, body.into()).await);
    }
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
