//! A receiver of webhooks on a port of its own, whose answers a test decides; it checks signatures by itself.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::process::{HANG, LOOK_EVERY};

/// What SHA-256 works on at once.
const BLOCK_BYTES: usize = 64;

/// A receiver; it ends with the test's process.
#[derive(Debug)]
pub struct Receiver {
    port: u16,
    received: Arc<Mutex<Vec<Received>>>,
}

/// A request that came.
#[derive(Clone, Debug)]
pub struct Received {
    /// When.
    pub at: Instant,
    /// Path and query.
    pub target: String,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// What it was answered with.
    pub status: u16,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body_bytes: usize,
    after: Duration,
}

impl Reply {
    /// An empty answer.
    pub fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body_bytes: 0, after: Duration::ZERO }
    }

    /// With a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// With so large a body.
    #[must_use]
    pub fn body_bytes(self, body_bytes: usize) -> Self {
        Self { body_bytes, ..self }
    }

    /// After this long.
    #[must_use]
    pub fn after(self, after: Duration) -> Self {
        Self { after, ..self }
    }
}

impl Receiver {
    /// One that answers each request by how many came to the same path and query before it.
    pub fn start(answer: impl Fn(usize, &Received) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let received: Arc<Mutex<Vec<Received>>> = Arc::default();
        let (kept, answer) = (Arc::clone(&received), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (kept, answer) = (Arc::clone(&kept), Arc::clone(&answer));
                // Who breaks off in the middle is killed by the test.
                std::thread::spawn(move || drop(serve(stream, &kept, answer.as_ref())));
            }
        });
        Self { port, received }
    }

    /// Its address with a path and query.
    pub fn url(&self, target: &str) -> String {
        format!("http://127.0.0.1:{}{target}", self.port)
    }

    /// Its origin.
    pub fn origin(&self) -> String {
        self.url("")
    }

    /// All that came.
    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What came to a path and query.
    pub fn received_at(&self, target: &str) -> Vec<Received> {
        self.received().into_iter().filter(|received| received.target == target).collect()
    }

    /// Waits until so many came to a path and query.
    #[track_caller]
    pub fn wait_for(&self, target: &str, count: usize) -> Vec<Received> {
        let started = Instant::now();
        loop {
            let received = self.received_at(target);
            if received.len() >= count {
                return received;
            }
            assert!(started.elapsed() < HANG, "{} of {count} came to {target}", received.len());
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

impl Received {
    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    /// How many of its signatures are by this secret (Standard Webhooks).
    pub fn signatures_by(&self, secret: &str) -> usize {
        let key = BASE64.decode(secret.trim_start_matches("whsec_").as_bytes()).expect("a secret");
        let (id, at) = (self.header("webhook-id").expect("an id"), self.header("webhook-timestamp").expect("a time"));
        let signed = [format!("{id}.{at}.").as_bytes(), &self.body].concat();
        let expected = format!("v1,{}", BASE64.encode(&hmac_sha256(&key, &signed)));
        self.signatures().iter().filter(|signature| **signature == expected).count()
    }

    /// Its signatures.
    pub fn signatures(&self) -> Vec<&str> {
        self.header("webhook-signature").map(|all| all.split(' ').collect()).unwrap_or_default()
    }
}

/// HMAC (RFC 2104), written out so that it is not the sender's.
fn hmac_sha256(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut block = [0_u8; BLOCK_BYTES];
    block.iter_mut().zip(key).for_each(|(byte, key)| *byte = *key);
    let padded = |with: u8| block.iter().map(|byte| byte ^ with).collect::<Vec<u8>>();
    let inner = Sha256::digest([padded(0x36), message.to_vec()].concat());
    Sha256::digest([padded(0x5c), inner.to_vec()].concat()).to_vec()
}

fn serve(stream: TcpStream, kept: &Mutex<Vec<Received>>, answer: &dyn Fn(usize, &Received) -> Reply) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        // Who is killed in the middle of his request has asked for nothing.
        if reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    let mut received = Received { at: Instant::now(), target, headers, body: Vec::new(), status: 0 };
    let length = received.header("content-length").and_then(|length| length.parse().ok()).unwrap_or_default();
    received.body = vec![0; length];
    reader.read_exact(&mut received.body)?;
    let reply = {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        let before = kept.iter().filter(|earlier| earlier.target == received.target).count();
        let reply = answer(before, &received);
        received.status = reply.status;
        kept.push(received);
        reply
    };
    std::thread::sleep(reply.after);
    let mut stream = reader.into_inner();
    write!(stream, "HTTP/1.1 {} Said\r\ncontent-length: {}\r\nconnection: close\r\n", reply.status, reply.body_bytes)?;
    for (name, value) in &reply.headers {
        write!(stream, "{name}: {value}\r\n")?;
    }
    stream.write_all(b"\r\n")?;
    stream.write_all(&vec![b'x'; reply.body_bytes])
}
