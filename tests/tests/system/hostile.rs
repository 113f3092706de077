//! Whoever means harm harms nobody but himself: strangers at every listener, callers, nodes, a service, receivers of callbacks and targets, each doing
//! its worst, while the jobs of a bystander succeed, nothing panics, and the memory of all comes back to what honest use had needed.

mod broker;
mod endless;
mod http;
mod http2;
mod knocks;
mod liars;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use probeops_tests::fabric::{Agent, Api, ApiOptions, Fabric, Sentry};
use probeops_tests::hostile::door::Door;
use probeops_tests::hostile::{Bystander, Counts, allow_sockets, held, open_files, resident_bytes, slow_heads};
use probeops_tests::http::{Answer, Caller};
use probeops_tests::receiver::{Receiver, Reply};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

use self::broker::Broker;

/// What the test itself needs, with its ten thousand connections, and an API that holds them.
const SOCKETS: u64 = 12_500;
/// For how many connections one API has room.
const ROOM: usize = 12_000;
/// How many connections are held open at once.
const CONNECTIONS: usize = 10_000;
/// How many may wait at a time until the API accepts them.
const AHEAD: usize = 100;
/// How many connections an API with less room must have sent away before that is believed.
const SENT_AWAY: usize = 2_000;
/// How many connections are made at HTTPS, and at each of the broker's two listeners, at the same time.
const OVER_TLS: usize = 2_000;
/// How many of a bystander's jobs have to succeed while something lasts.
const MEANWHILE: usize = 5;
/// Only a hang takes this long.
const HANG: Duration = Duration::from_secs(60);
/// How many honest callers there are at once before anybody means harm, and how often each asks for each kind of job.
const HONEST: usize = 20;
const HONEST_ROUNDS: usize = 3;
/// How many honest ones are connected at once to each API, and three times as many to the broker.
const CROWD: usize = 100;

/// All that listen or serve.
const PROGRAMS: [&str; 7] = ["API with room", "API over HTTPS", "usual API", "broker", "agent", "keymaster", "sentry"];
/// Which is the broker.
const BROKER: usize = 3;
/// How many times as much memory as after honest use the broker's runtime may keep, be it in use or not.
const KEPT_TIMES: u64 = 4;
/// For how long it is looked what each holds after honest use, before anybody means harm.
const RESTS_FOR: Duration = Duration::from_secs(20);
/// Only what has no end takes longer to give memory back: the broker's store forgets what nobody has read for a while.
const BACK_WITHIN: Duration = Duration::from_mins(4);

/// Everybody.
struct Site {
    fabric: Fabric,
    /// Has room for all.
    roomy: Api,
    /// As it is by default: it has less room.
    usual: Api,
    /// As by default, over HTTPS.
    secure: Api,
    agent: Rc<Agent>,
    sentry: Sentry,
    bystander: String,
}

impl Site {
    fn start() -> Self {
        allow_sockets(SOCKETS);
        let fabric = Fabric::start();
        let sentry = fabric.sentry();
        let options = ApiOptions { callback_allow: Some("127.0.0.0/8".to_owned()), ..ApiOptions::default() };
        let roomy = fabric.api_with(&ApiOptions { connections_max: Some(ROOM), ..options.clone() });
        let usual = fabric.api_with(&options);
        let secure = fabric.api_with(&ApiOptions { tls: Some(fabric.certificate()), ..options });
        let agent = fabric.agent("good-1", "good");
        let bystander = roomy.key(&json!({"name": "bystander", "scopes": ["jobs:write", "jobs:read"]}));
        for api in [&roomy, &usual, &secure] {
            api.wait_for_nodes(1);
            api.wait_until("the bystander is known", || api.caller(&bystander).get("/v1/tools").status == 200);
        }
        Self { fabric, roomy, usual, secure, agent, sentry, bystander }
    }

    /// Does it while bystanders ask, one at each of these APIs, until each has been answered a few times more. None of them has to ask again, unless
    /// his API has no room left.
    #[track_caller]
    fn beside<T>(&self, what: &str, apis: &[&Api], harm: impl FnOnce(&[Bystander]) -> T) -> T {
        let bystanders: Vec<Bystander> = apis.iter().map(|api| Bystander::start(api, &self.bystander, "good")).collect();
        let result = harm(&bystanders);
        answered(what, &bystanders);
        for (api, bystander) in apis.iter().zip(bystanders) {
            let unharmed = bystander.finish();
            assert!(unharmed.again.is_empty() || api.url() == self.usual.url(), "{what}: {unharmed:?} at {}", api.url());
            assert!(unharmed.longest < HANG, "{what}: {unharmed:?} at {}", api.url());
        }
        let logs = [
            self.roomy.log(),
            self.secure.log(),
            self.usual.log(),
            self.fabric.broker_log(),
            self.agent.log(),
            self.fabric.keymaster_log(),
            self.sentry.log(),
        ];
        for (name, log) in PROGRAMS.iter().zip(logs) {
            let bad = |line: &&str| ["panic", "incident", "fatal error"].iter().any(|word| line.contains(word));
            let panicked: Vec<&str> = log.lines().filter(bad).collect();
            assert!(panicked.is_empty(), "{what}: {name}: {panicked:#?}");
        }
        result
    }

    /// What each program holds, in bytes. Of the broker it is what its runtime has in use: how much more that keeps is its own affair (Go gives back
    /// within minutes, and as much again as is in use is free at any time).
    fn held(&self) -> [u64; PROGRAMS.len()] {
        [
            resident_bytes(self.roomy.process_id()),
            resident_bytes(self.secure.process_id()),
            resident_bytes(self.usual.process_id()),
            self.fabric.broker_heap_bytes(),
            resident_bytes(self.agent.process_id()),
            resident_bytes(self.fabric.keymaster_process_id()),
            resident_bytes(self.sentry.process_id()),
        ]
    }

    /// The least that each of them holds in a while after it was used; of the broker what it holds at once, for what was stored last it keeps at hand.
    fn rests(&self) -> [u64; PROGRAMS.len()] {
        let (mut least, started) = (self.held(), Instant::now());
        let at_once = least[BROKER];
        while started.elapsed() < RESTS_FOR {
            std::thread::sleep(Duration::from_millis(500));
            least.iter_mut().zip(self.held()).for_each(|(least, now)| *least = now.min(*least));
        }
        least[BROKER] = at_once;
        least
    }

    fn job(&self, body: &Value) -> Answer {
        self.roomy.admin().post("/v1/jobs", body)
    }
}

/// Waits until each of them has been answered a few times more.
#[track_caller]
fn answered(what: &str, bystanders: &[Bystander]) {
    let before: Vec<usize> = bystanders.iter().map(Bystander::succeeded).collect();
    let started = Instant::now();
    while bystanders.iter().zip(&before).any(|(bystander, before)| bystander.succeeded() < before + MEANWHILE) {
        assert!(started.elapsed() < HANG, "{what}: a bystander is not answered any more");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What each program holds comes back to within a fifth of what it held after honest use: once after everything, and again after strangers have come
/// a second time. The broker may hold what its streams have grown by as well, mostly by the jobs of the bystanders: it keeps the newest of it at hand.
#[test]
fn nobody_who_means_harm_harms_a_bystander() {
    let site = Site::start();
    honest_use(&site);
    let (honest, stored) = (site.rests(), site.fabric.broker_stored_bytes());
    let kept = resident_bytes(site.fabric.broker_process_id());
    let liar = liars::lying_node(&site);
    let servers = site.fabric.block_on(endless::servers());
    let strangers = |round| {
        site.beside("heads that never end, with room for all", &[&site.roomy], |bystanders| all_held(&site, bystanders));
        site.beside("heads that never end, without", &[&site.usual], |_| sent_away(&site));
        site.beside("strangers at every listener", &[&site.roomy, &site.secure], |_| strangers(&site, round));
    };
    let connected = site.fabric.broker_connections();
    let comes_back = || {
        let mut may = honest.map(|bytes| bytes + bytes / 5);
        may[BROKER] += site.fabric.broker_stored_bytes().saturating_sub(stored);
        comes_back(&site, connected, may);
        let keeps = resident_bytes(site.fabric.broker_process_id());
        assert!(keeps <= KEPT_TIMES * kept, "the broker's runtime keeps {keeps} bytes, and kept {kept}");
    };
    strangers("once");
    site.beside("connections over TLS", &[&site.roomy, &site.secure], |bystanders| over_tls(&site, bystanders));
    // They take their time, which is everybody's.
    let to_the_end = site.fabric.spawn(http2::to_the_end(site.roomy.address(), site.secure.address(), site.fabric.ca()));
    site.beside("nodes that lie", &[&site.roomy], |_| liars::lies(&site));
    site.beside("a service that lies", &[&site.roomy], |_| liars::lying_service(&site, servers.silent));
    site.beside("requests at the front door and at the keymaster", &[&site.roomy], |_| knocks::knocks(&site));
    site.beside("receivers and targets that never end", &[&site.roomy], |_| endless::never_ending(&site, &servers));
    site.fabric.block_on(to_the_end).unwrap();
    comes_back();
    strangers("twice");
    comes_back();
    liar.abort();
}

/// Waits until each program holds no more than it may, and the broker no more connections than before.
#[track_caller]
fn comes_back(site: &Site, connected: u64, may: [u64; PROGRAMS.len()]) {
    let started = Instant::now();
    loop {
        let (now, connections) = (site.held(), site.fabric.broker_connections());
        let grown: Vec<String> = (0..PROGRAMS.len())
            .filter(|program| now[*program] > may[*program])
            .map(|program| format!("{}: {} bytes, and it may {}", PROGRAMS[program], now[program], may[program]))
            .collect();
        if grown.is_empty() && connections <= connected {
            return;
        }
        assert!(started.elapsed() < BACK_WITHIN, "{connections} connections of {connected}; memory has not come back: {grown:#?}");
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// So many honest callers of each API who are there at the same time, and stay until the last has been answered.
async fn crowd(site: &Site) {
    let ca = site.fabric.ca();
    let doors = [Door::bare(site.roomy.address()), Door::bare(site.usual.address()), Door::tls(site.secure.address(), &ca)];
    let request = format!("GET /v1/tools HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n", site.roomy.admin_key());
    let all = doors.iter().flat_map(|door| (0..CROWD).map(move |_| door)).map(async |door| {
        let mut stream = door.enter().await.expect("a way in");
        stream.write_all(request.as_bytes()).await.expect("that it is heard");
        stream.flush().await.expect("that it is heard");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 200");
        stream
    });
    drop(futures_util::future::join_all(all).await);
}

/// What the programs are for, from several callers at once and of every kind that is used later, mistakes too, and many who only stay.
fn honest_use(site: &Site) {
    let broker = Broker::of(site, "regular");
    site.fabric.block_on(async { futures_util::join!(crowd(site), broker.honest_crowd(3 * CROWD)) });
    knocks::honest(site);
    let receiver = Receiver::start(|_, _| Reply::status(204));
    let (plain, secure) = (site.usual.address(), site.secure.address());
    let jobs = [
        json!({"tool": "echo", "target": "x", "from": "good"}),
        json!({"tool": "echo", "target": "x", "from": "good", "callback": {"url": receiver.url("/callback")}}),
        json!({"tool": "http", "target": format!("http://{plain}/livez"), "from": "good", "parameters": {"timeout": 2}}),
        json!({"tool": "tls", "target": secure.ip(), "from": "good", "parameters": {"port": secure.port(), "timeout": 2}}),
        json!({"tool": "tcp", "target": plain.ip(), "from": "good", "parameters": {"port": plain.port(), "timeout": 2}}),
        json!({"tool": "dns", "target": "a.example", "from": "good", "parameters": {"resolver": plain.ip(), "port": plain.port(), "protocol": "tcp", "timeout": 2, "tries": 1}}),
        json!({"tool": "whois", "target": "a.example", "from": "good", "parameters": {"server": plain.ip(), "port": plain.port(), "protocol": "whois", "recursion": false, "timeout": 2}}),
    ];
    for api in [&site.roomy, &site.usual, &site.secure] {
        let (url, key, ca) = (api.url(), api.admin_key(), api.ca());
        std::thread::scope(|threads| {
            for _ in 0..HONEST {
                threads.spawn(|| {
                    for job in (0..HONEST_ROUNDS).flat_map(|_| &jobs) {
                        let answer = Caller::new(url, Some(key), ca).post("/v1/jobs", job);
                        assert_eq!(answer.body["status"], "finished", "{job}: {}", answer.text);
                    }
                });
            }
        });
        let mistaken = api.admin().post("/v1/jobs", &json!({"tool": "echo"}));
        assert_eq!(mistaken.status, 400, "{}", mistaken.text);
        let told = api.admin().stream("POST", "/v1/jobs", &jobs[0], &[("accept", "text/event-stream")]).events();
        assert!(told.iter().any(|event| event.event == "outcome"), "{told:?}");
    }
}

/// Ten thousand at once are all held, by the API as by those who made them, while a bystander is answered.
fn all_held(site: &Site, bystanders: &[Bystander]) {
    let (counts, turns) = (Arc::new(Counts::default()), Arc::new(Semaphore::new(0)));
    let slow = slow_heads(site.roomy.address(), (CONNECTIONS, Arc::clone(&turns)), Arc::clone(&counts));
    let slow = site.fabric.spawn(slow);
    let (started, mut had_turns) = (Instant::now(), 0);
    loop {
        // Of more than wait for the API to accept them than the system has room for, it cuts some, be they honest or not.
        let files = open_files(site.roomy.process_id());
        let have_turns = CONNECTIONS.min(files + AHEAD);
        turns.add_permits(have_turns.saturating_sub(had_turns));
        had_turns = had_turns.max(have_turns);
        let held = || counts.open() == CONNECTIONS && open_files(site.roomy.process_id()) > CONNECTIONS;
        let closed = counts.closed.load(Ordering::Acquire);
        if held() {
            answered("while all are held", bystanders);
            if held() && counts.closed.load(Ordering::Acquire) == closed {
                break;
            }
        }
        assert!(started.elapsed() < HANG, "{} connections are open, of {files} files, and {counts:?}", counts.open());
        std::thread::sleep(Duration::from_millis(20));
    }
    slow.abort();
}

/// Where there is less room they are sent away, and come back.
fn sent_away(site: &Site) {
    let (counts, turns) = (Arc::new(Counts::default()), Arc::new(Semaphore::new(CONNECTIONS)));
    let slow = site.fabric.spawn(slow_heads(site.usual.address(), (CONNECTIONS, turns), Arc::clone(&counts)));
    let started = Instant::now();
    while counts.made.load(Ordering::Acquire) < CONNECTIONS || counts.closed.load(Ordering::Acquire) < SENT_AWAY {
        assert!(started.elapsed() < HANG, "{counts:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    slow.abort();
}

/// Thousands come over TLS at the same time, with and without a whole handshake, and stay while bystanders are answered and honest ones are let in.
fn over_tls(site: &Site, bystanders: &[Bystander]) {
    let (address, ca, broker) = (site.secure.address(), site.fabric.ca(), Broker::of(site, "beside"));
    let counts = Arc::new(Counts::default());
    let crowds = http2::crowds(address, &ca, OVER_TLS).into_iter().chain(broker.crowds(OVER_TLS));
    let crowds: Vec<_> = crowds.map(|(count, door, words)| site.fabric.spawn(held(door, words, count, Arc::clone(&counts)))).collect();
    let started = Instant::now();
    site.fabric.block_on(broker.come_meanwhile());
    while counts.made.load(Ordering::Acquire) < 3 * OVER_TLS {
        assert!(started.elapsed() < HANG, "{counts:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    answered("while they stay", bystanders);
    for crowd in crowds {
        crowd.abort();
    }
}

/// What is slow, broken, cut off, repeated and by chance, at all listeners at the same time: HTTP, HTTPS, and the broker's two.
fn strangers(site: &Site, round: &str) {
    let (plain, secure) = (Door::bare(site.roomy.address()), Door::tls(site.secure.address(), &site.fabric.ca()));
    let secure2 = Door::http2(site.secure.address(), &site.fabric.ca());
    let (key, broker) = (site.roomy.admin_key(), Broker::of(site, &format!("visitor-{round}")));
    site.fabric.block_on(async {
        futures_util::join!(
            http::broken_requests(&plain, http::http1(key)),
            http::broken_requests(&secure, http::http1(key)),
            http::broken_requests(&plain, http2::http2()),
            http::broken_requests(&secure2, http2::http2()),
            http2::unended_streams(&plain, key),
            http2::unended_streams(&secure2, key),
            http::slow_bodies(&plain, key),
            http::slow_bodies(&secure, key),
            http::slow_handshakes(site.secure.address()),
            http::repeated(&plain, key),
            broker.beset(),
        );
    });
}

/// A job of the first key's, from any thread.
fn said_by(address: SocketAddr, key: &str, job: &str) -> Value {
    let caller = Caller::new(&format!("http://{address}"), Some(key), None);
    caller.post_raw("/v1/jobs", "application/json", job.as_bytes(), &[]).body
}
