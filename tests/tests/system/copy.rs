//! A copy of the trail that our operator cannot touch, made by the very words of README.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream::State};
use async_nats::{Client, ConnectOptions};
use probeops_nats::connect::{Link, LinkError, connect};
use probeops_nats::layout::Layout;
use probeops_nats::permissions::Role;
use probeops_nats::vault::Vault;
use probeops_tests::fabric::{free_port, program};
use probeops_tests::process::Process;
use serde_json::{Value, json};

const README: &str = include_str!("../../../README.md");
/// Only a hang takes this long.
const HANG: Duration = Duration::from_secs(60);
/// How long to listen for what must not come.
const NOTHING_WITHIN: Duration = Duration::from_millis(500);
/// The password of who keeps the copy.
const PASSWORD: &str = "of-the-keeper-alone";

/// Two operators on one machine, each with a folder.
struct Two {
    folder: PathBuf,
    /// What README says, and what it is here.
    places: BTreeMap<&'static str, String>,
    nats_server: PathBuf,
    broker: Option<Process>,
    copying: Option<Process>,
    runtime: tokio::runtime::Runtime,
}

impl Drop for Two {
    fn drop(&mut self) {
        (self.broker, self.copying) = (None, None);
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

/// What README says between these, without the first.
fn said<'a>(from: &str, to: &str) -> &'a str {
    let found = README.split_once(from).and_then(|(_, rest)| rest.split_once(to));
    found.unwrap_or_else(|| panic!("README does not say `{from}`")).0
}

impl Two {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("probeops-copy-{:016x}", rand::random::<u64>()));
        std::fs::create_dir_all(folder.join("etc-copy")).unwrap();
        let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        let [broker, mirrors, copy] = [free_port(), free_port(), free_port()].map(|address| address.to_string());
        let places = BTreeMap::from([
            ("/data", at("data")),
            ("/etc/copy", at("etc-copy")),
            ("/var/lib/copy", at("var-lib-copy")),
            ("0.0.0.0:4222", broker),
            ("127.0.0.1:4222", copy),
            ("broker.example:7422", mirrors.replace("127.0.0.1", "localhost")),
            ("0.0.0.0:7422", mirrors),
            ("broker.example", "localhost".to_owned()),
        ]);
        let layout = Layout::new(folder.join("data"));
        let nats_server = probeops_tests::fabric::find_nats_server(&layout);
        Self { folder, places, nats_server, broker: None, copying: None, runtime: tokio::runtime::Runtime::new().unwrap() }
    }

    fn here(&self, said: &str) -> String {
        // The longer first: one address begins as another.
        let mut places: Vec<_> = self.places.iter().collect();
        places.sort_by_key(|(place, _)| std::cmp::Reverse(place.len()));
        places.into_iter().fold(said.to_owned(), |said, (place, here)| said.replace(place, here))
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Runs a command of ours that README gives, with what more is said to it; what it prints.
    fn run(&self, line: &str, more: &[&str]) -> String {
        let words = self.here(line.split(" #").next().unwrap());
        let mut words = words.split_whitespace();
        assert_eq!(words.next(), Some("probeops"), "{line}");
        let ended = program().args(words.take_while(|word| *word != ">")).args(more).output().unwrap();
        assert!(ended.status.success(), "{line}: {}", String::from_utf8_lossy(&ended.stderr));
        String::from_utf8(ended.stdout).unwrap()
    }

    fn start(&self, name: &str, config: &Path) -> Process {
        let mut command = Command::new(&self.nats_server);
        command.arg("-c").arg(config).env("KEEPER_PASSWORD", PASSWORD).env("SYSTEM_PASSWORD", "of-the-system");
        Process::start(name, &self.folder, command)
    }

    fn start_broker(&mut self) {
        self.broker = Some(self.start("broker", &Layout::new(self.data()).server_conf()));
        let listen = self.places["0.0.0.0:4222"].clone();
        self.until("the broker listens", || std::net::TcpStream::connect(&listen).is_ok());
    }

    fn start_copying(&mut self) {
        self.copying = Some(self.start("copy", &self.folder.join("etc-copy/copy.conf")));
        let listen = self.places["127.0.0.1:4222"].clone();
        self.until("the other server listens", || std::net::TcpStream::connect(&listen).is_ok());
    }

    #[track_caller]
    fn until(&self, what: &str, mut so: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !so() {
            let log = |name: &str| std::fs::read_to_string(self.folder.join(name)).unwrap_or_default();
            assert!(begun.elapsed() < HANG, "not after {HANG:?}: {what}\n{}\n{}", log("copy.log"), log("broker.log"));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Who keeps the copy, on his server.
    fn keeper(&self) -> Client {
        let options = ConnectOptions::with_user_and_password("keeper".to_owned(), PASSWORD.to_owned());
        self.runtime.block_on(options.connect(self.places["127.0.0.1:4222"].as_str())).unwrap()
    }

    /// What a request says; none where nobody answers.
    fn asked(&self, client: &Client, subject: &str, body: &str) -> Option<Value> {
        let asked = async { tokio::time::timeout(NOTHING_WITHIN, client.request(subject.to_owned(), body.to_owned().into())).await };
        let answer = self.runtime.block_on(asked).ok()?.ok()?;
        Some(serde_json::from_slice(&answer.payload).unwrap())
    }

    /// How the copy is.
    fn copied(&self, keeper: &Client) -> State {
        self.runtime.block_on(async {
            let mut stream = jetstream::new(keeper.clone()).get_stream("AUDIT-COPY").await.unwrap();
            stream.info().await.unwrap().state.clone()
        })
    }

    /// All messages of the trail itself: on which subject, and what they say.
    fn trail(&self) -> Vec<(String, Vec<u8>)> {
        let layout = Layout::new(self.data());
        let vault = Vault::open(&layout).unwrap();
        let creds = self.folder.join(format!("{:016x}.creds", rand::random::<u64>()));
        vault.mint_to(&creds, &Role::Auditor, Duration::from_mins(5)).unwrap();
        let link = Link { servers: vec![self.servers()], ca: Some(layout.ca_certificate()), creds };
        self.runtime.block_on(async {
            let (client, _events) = connect(&link, "auditor", &Role::Auditor.inbox_prefix()).await.unwrap();
            let trail = jetstream::with_prefix(client, probeops_shared::subjects::broker::LENT).get_stream("AUDIT").await.unwrap();
            let last = trail.get_info().await.unwrap().state.last_sequence;
            let mut messages = Vec::new();
            for sequence in 1..=last {
                let message = trail.direct_get(sequence).await.unwrap();
                messages.push((message.subject.to_string(), message.payload.to_vec()));
            }
            messages
        })
    }

    fn servers(&self) -> String {
        std::fs::read_to_string(self.data().join("servers")).unwrap().trim().to_owned()
    }

    /// Waits until the copy has all of the trail, message for message.
    #[track_caller]
    fn until_copied(&self, keeper: &Client) -> Vec<(String, Vec<u8>)> {
        let trail = self.trail();
        let length = u64::try_from(trail.len()).unwrap();
        self.until("the copy has all of it", || self.copied(keeper).last_sequence == length);
        assert_eq!(self.all_of_the_copy(keeper), trail);
        trail
    }

    fn all_of_the_copy(&self, keeper: &Client) -> Vec<(String, Vec<u8>)> {
        let last = self.copied(keeper).last_sequence;
        self.runtime.block_on(async {
            let stream = jetstream::new(keeper.clone()).get_stream("AUDIT-COPY").await.unwrap();
            let mut messages = Vec::new();
            for sequence in 1..=last {
                let message = stream.get_raw_message(sequence).await.unwrap();
                messages.push((message.subject.to_string(), message.payload.to_vec()));
            }
            messages
        })
    }

    /// Has something recorded.
    fn record(&self, node: &str) {
        self.run(&format!("probeops nodes add {node} --region eu --tools echo --data /data"), &[]);
    }
}

#[test]
fn a_server_of_somebody_else_keeps_a_copy_of_the_trail_that_ours_cannot_touch() {
    let mut two = Two::new();
    let commands = said("a leaf connection whose credential reads the trail and nothing else:\n\n```sh\n", "```");
    let [init, provision] = commands.lines().collect::<Vec<_>>()[..] else { panic!("{commands}") };
    let monitoring = free_port().port().to_string();
    two.run(init, &["--monitoring", &monitoring]);
    two.start_broker();
    two.run(provision, &[]);
    for (from, to) in [("data/mirror.creds", "etc-copy/mirror.creds"), ("data/tls/ca.pem", "etc-copy/ca.pem")] {
        std::fs::copy(two.folder.join(from), two.folder.join(to)).unwrap();
    }
    let conf = two.here(said("```text\n# copy.conf", "```"));
    std::fs::write(two.folder.join("etc-copy/copy.conf"), format!("#{conf}")).unwrap();
    two.start_copying();
    let keeper = two.keeper();
    let (subject, stream) = (said("as `keeper`: a request to `", "`"), said("with\n`{\"name\":\"AUDIT-COPY\"", "`"));
    let stream = format!("{{\"name\":\"AUDIT-COPY\"{stream}");
    let made = two.asked(&keeper, subject, &stream).unwrap();
    assert!(made.get("error").is_none() && made["config"]["mirror"]["name"] == "AUDIT", "{made}");
    for node in ["n-1", "n-2"] {
        two.record(node);
    }
    let first = two.until_copied(&keeper);
    assert!(first.len() >= 2 && first.iter().all(|(subject, _)| subject.starts_with("audit.v1.")), "{first:?}");

    // It catches up with what was recorded while either was away.
    two.copying = None;
    two.record("n-3");
    two.start_copying();
    let keeper = two.keeper();
    let second = two.until_copied(&keeper);
    assert!(second.len() > first.len() && second.starts_with(&first));
    two.broker = None;
    two.start_broker();
    two.record("n-4");
    let third = two.until_copied(&keeper);
    the_credential_reads_the_trail_and_nothing_else(&two, &keeper);

    // What the copy is exported to is whole, and is what the trail was exported to.
    std::fs::write(two.folder.join("etc-copy/keeper.password"), format!("{PASSWORD}\n")).unwrap();
    let lines: Vec<&str> = said("What it has is read and verified there:\n\n```sh\n", "```").lines().collect();
    let [export, verify] = lines[..] else { panic!("{lines:?}") };
    let verified = |two: &Two, name: &str| {
        let exported = two.run(export, &[]);
        let file = two.folder.join(name);
        std::fs::write(&file, &exported).unwrap();
        let said = two.run(&verify.replace("copy.jsonl", file.to_str().unwrap()), &[]);
        (exported, said)
    };
    let (exported, said) = verified(&two, "copy.jsonl");
    assert!(exported.lines().count() >= third.len() && exported.contains("\"n-4\""), "{exported}");
    assert!(said.contains("whole"), "{said}");

    // Our disk is lost, and all that our operator has of the trail with it: the copy is what it was.
    two.broker = None;
    std::fs::remove_dir_all(Layout::new(two.data()).jetstream_dir()).unwrap();
    two.start_broker();
    two.run(provision, &[]);
    two.record("n-5");
    assert!(two.trail().len() < third.len(), "the trail has begun anew");
    std::thread::sleep(NOTHING_WITHIN);
    assert_eq!(two.all_of_the_copy(&keeper), third);
    assert_eq!(verified(&two, "later.jsonl").0, exported);
    // Nor can whoever keeps it take one out of it.
    for (subject, body) in
        [("$JS.API.STREAM.PURGE.AUDIT-COPY", String::new()), ("$JS.API.STREAM.MSG.DELETE.AUDIT-COPY", json!({"seq": 1}).to_string())]
    {
        let refused = two.asked(&keeper, subject, &body).unwrap();
        assert!(refused["error"]["description"].is_string(), "{subject}: {refused}");
    }
    assert_eq!(two.all_of_the_copy(&keeper), third);
}

/// Over the leaf connection nothing comes in or goes out but the copy; and no client comes in with it.
fn the_credential_reads_the_trail_and_nothing_else(two: &Two, keeper: &Client) {
    let before = two.trail();
    let may = two.asked(keeper, "$JS.probeops.API.STREAM.INFO.AUDIT", "").expect("what a copy needs is answered");
    assert_eq!(may["config"]["name"], "AUDIT", "{may}");
    for (subject, body) in [
        ("$JS.probeops.API.STREAM.PURGE.AUDIT", ""),
        ("$JS.probeops.API.STREAM.DELETE.AUDIT", ""),
        ("$JS.probeops.API.STREAM.UPDATE.AUDIT", r#"{"name":"AUDIT","subjects":["audit.v1.>"],"max_msgs":1}"#),
        ("$JS.probeops.API.STREAM.MSG.DELETE.AUDIT", r#"{"seq":1}"#),
        ("$JS.probeops.API.STREAM.MSG.GET.AUDIT", r#"{"seq":1}"#),
        ("$JS.probeops.API.STREAM.CREATE.OTHER", r#"{"name":"OTHER","subjects":["other"]}"#),
        ("$JS.probeops.API.STREAM.NAMES", ""),
        ("$JS.probeops.API.INFO", ""),
        ("audit.v1.command.forged", "x"),
        ("$SYS.REQ.SERVER.PING", ""),
    ] {
        let answer = two.asked(keeper, subject, body);
        assert_eq!(answer, None, "{subject}");
    }
    assert_eq!(two.trail(), before, "the trail is what it was");
    let layout = Layout::new(two.data());
    let link = Link { servers: vec![two.servers()], ca: Some(layout.ca_certificate()), creds: two.folder.join("etc-copy/mirror.creds") };
    let refused = two.runtime.block_on(connect(&link, "mirror", "_INBOX.mirror"));
    assert!(matches!(refused, Err(LinkError::Refused(_))), "a client comes in with it");
}
