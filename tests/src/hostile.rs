//! Who means harm, and the bystander who must not notice: slow and broken callers, a node that lies, a server that never comes to its end.

pub mod door;
pub mod liar;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use self::door::Door;
use crate::fabric::Api;
use crate::http::Caller;

/// How often a slow one sends the next byte.
const TRICKLE_EVERY: Duration = Duration::from_secs(2);

/// Somebody whose jobs all have to succeed, whatever happens to others. Each of his calls is a connection of its own.
#[derive(Debug)]
pub struct Bystander {
    stop: Arc<AtomicBool>,
    succeeded: Arc<AtomicUsize>,
    asking: JoinHandle<Result<(Vec<String>, Duration), String>>,
}

/// What became of a bystander's jobs, all of which have succeeded.
#[derive(Clone, Debug)]
pub struct Unharmed {
    /// How many they were.
    pub succeeded: usize,
    /// Why he had to ask again, each time that his connection was cut before he was answered.
    pub again: Vec<String>,
    /// How long the slowest took.
    pub longest: Duration,
}

/// How often he asks at most until he is heard.
const TRIES_MAX: u32 = 5;

impl Bystander {
    /// One who asks nodes of this region for `echo`, job after job.
    pub fn start(api: &Api, token: &str, region: &str) -> Self {
        let (stop, succeeded) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&succeeded));
        let (url, ca, token) = (api.url().to_owned(), api.ca().map(Path::to_owned), token.to_owned());
        let body = json!({"tool": "echo", "target": "bystander", "from": region}).to_string();
        let asking = std::thread::spawn(move || {
            let (mut again, mut longest) = (Vec::new(), Duration::ZERO);
            while !stopped.load(Ordering::Acquire) {
                let began = Instant::now();
                // A full API sends away who is not heard within a second, on a busy machine also him; he comes back, as clients do.
                let mut tries = 0;
                let answer = loop {
                    tries += 1;
                    let caller = Caller::new(&url, Some(&token), ca.as_deref());
                    match caller.try_post("/v1/jobs", "application/json", body.as_bytes(), &[]) {
                        Ok(answer) => break answer,
                        Err(error) if tries < TRIES_MAX => again.push(format!("{error} after {:?}", began.elapsed())),
                        Err(error) => return Err(error.to_string()),
                    }
                };
                if answer.status != 200 || answer.body["results"][0]["status"] != "success" {
                    return Err(format!("{}: {}", answer.status, answer.text));
                }
                longest = longest.max(began.elapsed());
                counted.fetch_add(1, Ordering::AcqRel);
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok((again, longest))
        });
        Self { stop, succeeded, asking }
    }

    /// How many of his jobs have succeeded.
    pub fn succeeded(&self) -> usize {
        self.succeeded.load(Ordering::Acquire)
    }

    /// Stops him. Fails if one of his jobs did not succeed.
    #[track_caller]
    pub fn finish(self) -> Unharmed {
        self.stop.store(true, Ordering::Release);
        let asked = self.asking.join().expect("a thread that does not panic");
        let succeeded = self.succeeded.load(Ordering::Acquire);
        let (again, longest) = asked.unwrap_or_else(|why| panic!("a bystander's job failed after {succeeded} others: {why}"));
        Unharmed { succeeded, again, longest }
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

/// How many files and sockets a process has open.
pub fn open_files(process: u32) -> usize {
    std::fs::read_dir(format!("/proc/{process}/fd")).expect("a process of ours").count()
}

/// What becomes of many connections.
#[derive(Debug, Default)]
pub struct Counts {
    /// How many were made in all.
    pub made: AtomicUsize,
    /// How many of them the other side has closed.
    pub closed: AtomicUsize,
}

impl Counts {
    /// How many are open.
    pub fn open(&self) -> usize {
        self.made.load(Ordering::Acquire) - self.closed.load(Ordering::Acquire)
    }
}

/// Holds so many connections open, once each has its turn, with a request that arrives byte by byte and never ends; one that is closed is made
/// anew. Ends when it is dropped.
pub async fn slow_heads(address: SocketAddr, (count, turns): (usize, Arc<Semaphore>), counts: Arc<Counts>) {
    let mut slow = tokio::task::JoinSet::new();
    for number in 0..count {
        let counts = Arc::clone(&counts);
        turns.acquire().await.expect("never closed").forget();
        slow.spawn(async move {
            loop {
                // With as many the system may have no room for one more at this moment.
                if let Ok(mut stream) = TcpStream::connect(address).await {
                    counts.made.fetch_add(1, Ordering::AcqRel);
                    let mut begun = stream.write_all(b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nX-Slow: ").await.is_ok();
                    while begun {
                        let mut answer = [0; 64];
                        tokio::select! {
                            read = stream.read(&mut answer) => begun = read.is_ok_and(|length| length > 0),
                            () = tokio::time::sleep(TRICKLE_EVERY) => begun = stream.write_all(b"x").await.is_ok(),
                        }
                    }
                    counts.closed.fetch_add(1, Ordering::AcqRel);
                }
                tokio::time::sleep(Duration::from_millis(100 + number as u64 % 400)).await;
            }
        });
    }
    while slow.join_next().await.is_some() {}
}

/// Holds so many connections open, each of which enters, says this, then a byte now and then, and stays until it is closed. Ends when all are, or
/// when it is dropped.
pub async fn held(door: Door, words: Vec<u8>, count: usize, counts: Arc<Counts>) {
    let (mut held, words) = (tokio::task::JoinSet::new(), Arc::new(words));
    for _ in 0..count {
        let (door, words, counts) = (door.clone(), Arc::clone(&words), Arc::clone(&counts));
        held.spawn(async move {
            let mut stream = door.enter_at_last().await.expect("a way in");
            counts.made.fetch_add(1, Ordering::AcqRel);
            let mut open = stream.write_all(&words).await.is_ok() && stream.flush().await.is_ok();
            while open {
                let mut answer = [0; 64];
                tokio::select! {
                    read = stream.read(&mut answer) => open = read.is_ok_and(|length| length > 0),
                    () = tokio::time::sleep(TRICKLE_EVERY) => open = stream.write_all(b"x").await.is_ok() && stream.flush().await.is_ok(),
                }
            }
            counts.closed.fetch_add(1, Ordering::AcqRel);
        });
    }
    while let Some(ended) = held.join_next().await {
        ended.expect("a way in");
    }
}

/// A UDP server that answers whatever it is asked with `again`, again and again, for a while; its address. It lives as long as the runtime.
pub async fn endless_datagrams(again: &'static [u8], every: Duration, lasts: Duration) -> SocketAddr {
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a free port"));
    let address = socket.local_addr().expect("an address");
    drop(tokio::spawn(async move {
        let mut heard = [0; 4096];
        loop {
            // An error tells that somebody before has gone.
            let Ok((_, from)) = socket.recv_from(&mut heard).await else { continue };
            let (socket, began) = (Arc::clone(&socket), Instant::now());
            drop(tokio::spawn(async move {
                while began.elapsed() < lasts {
                    drop(socket.send_to(again, from).await);
                    tokio::time::sleep(every).await;
                }
            }));
        }
    }));
    address
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
