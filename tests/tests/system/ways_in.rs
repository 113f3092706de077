//! The limits, in every way that a caller comes in: what is within them is run by a real node, and what is not is refused by the limit's name.

use std::net::UdpSocket;
use std::thread::{scope, sleep};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_nats::{Client, ConnectOptions, Event, HeaderMap, Request};
use futures_util::StreamExt;
use probeops_shared::timestamp::Timestamp;
use probeops_tests::fabric::{AgentOptions, Api, ApiOptions, Fabric};
use probeops_tests::http::{Answer, Caller};
use probeops_tests::identity::Issuer;
use probeops_tests::silent::Silent;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// Only a hang takes this long.
const HANG: Duration = Duration::from_secs(60);
/// How often it is looked whether a schedule has fired.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How many jobs of a service a node runs at once only after it was told of it.
const MORE_THAN_UNTOLD: usize = 6;

/// A job: tool, target, from where.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask(pub(super) &'static str, pub(super) &'static str, pub(super) &'static str);

/// Where a job comes in over HTTP, for keys and JWTs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Post,
    Streamed,
    ByUrl,
    Batch,
    Online,
    Scheduled,
    Explained,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Came {
    /// A node ran it, or would.
    Ran(String),
    /// It waits for its turn.
    Waits,
    /// The API refused it: with which status and words.
    Refused(u64, String),
    /// The node did.
    Failed(String),
    /// The broker did: a publication that is not granted.
    Forbidden(String),
}

/// Who refuses what is beyond a limit, and in which words.
enum Refused {
    /// The API, with this status.
    ByApi(u64, &'static str),
    /// The node, which alone knows where a name leads.
    ByNode(&'static str),
}

/// A limit, and what it comes to.
struct Limit {
    name: &'static str,
    limits: Value,
    within: Ask,
    beyond: Ask,
    refused: Refused,
}

impl Way {
    pub(super) const ALL: [Self; 7] =
        [Self::Post, Self::Streamed, Self::ByUrl, Self::Batch, Self::Online, Self::Scheduled, Self::Explained];
}

impl Ask {
    /// The body of the job; `tcp` knocks at this port.
    pub(super) fn body(self, port: u16) -> Value {
        let Self(tool, target, from) = self;
        let parameters = if tool == "tcp" { json!({"port": port, "timeout": 2}) } else { json!({}) };
        json!({"tool": tool, "target": target, "from": from, "parameters": parameters})
    }

    fn path(self, port: u16) -> String {
        let Self(tool, target, from) = self;
        let more = if tool == "tcp" { format!("&port={port}&timeout=2") } else { String::new() };
        format!("/v1/run/{tool}?target={target}&from={}{more}", from.replace('=', "%3D").replace(' ', "%20"))
    }
}

/// What a job came to that is over.
fn of_job(job: &Value) -> Came {
    match job["status"].as_str() {
        Some("queued" | "running") => return Came::Waits,
        status => assert_eq!(status, Some("finished"), "{job}"),
    }
    let [outcome] = job["results"].as_array().unwrap().as_slice() else { panic!("not one result: {job}") };
    if outcome["status"] == "success" {
        return Came::Ran(outcome["node"]["id"].as_str().unwrap().to_owned());
    }
    let failure = &outcome["failure"];
    Came::Failed(format!("{}: {}", failure["kind"].as_str().unwrap(), failure["detail"].as_str().unwrap()))
}

fn of_problem(problem: &Value) -> Came {
    let words = problem["detail"].as_str().unwrap_or_else(|| panic!("no problem: {problem}"));
    Came::Refused(problem["status"].as_u64().unwrap(), words.to_owned())
}

fn of_answer(answer: &Answer) -> Came {
    if answer.status < 300 { of_job(&answer.body) } else { of_problem(&answer.body) }
}

/// Asks over HTTP in this way, and waits for the end; for a turn only so many seconds.
fn over_http(caller: &Caller, way: Way, ask: Ask, (port, patience_s): (u16, u8)) -> Came {
    let with = |more: Value| {
        let mut body = ask.body(port);
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let wait = format!("wait={patience_s}");
    let send = |path: &str, body: &Value| caller.post_raw(path, "application/json", body.to_string().as_bytes(), &[("prefer", &wait)]);
    match way {
        Way::Post => of_answer(&send("/v1/jobs", &ask.body(port))),
        Way::Streamed => {
            let mut told = caller.stream("POST", "/v1/jobs", &ask.body(port), &[("accept", "text/event-stream")]);
            if told.status == 200 {
                return of_job(&told.events().pop().unwrap().data);
            }
            of_problem(&serde_json::from_str(&told.rest()).unwrap())
        }
        Way::ByUrl => of_answer(&caller.get(&ask.path(port))),
        Way::Batch => {
            let batch = send("/v1/jobs/batch", &json!({"jobs": [ask.body(port)]})).expect(200);
            let result = &batch["results"][0];
            if result["problem"].is_null() { of_job(&result["job"]) } else { of_problem(&result["problem"]) }
        }
        Way::Online => of_answer(&send("/v1/jobs", &with(json!({"when": "online"})))),
        Way::Scheduled => {
            let soon = Timestamp::now().plus(Duration::from_secs(1));
            let made = caller.post("/v1/schedules", &with(json!({"at": soon})));
            if made.status == 201 { fired(caller, made.body["id"].as_str().unwrap()) } else { of_problem(&made.body) }
        }
        Way::Explained => {
            let answer = caller.post("/v1/jobs?explain=true", &ask.body(port));
            if answer.status != 200 {
                return of_problem(&answer.body);
            }
            let explained = &answer.body["selectors"][0];
            let problem = &explained["problem"];
            match problem["code"].as_str() {
                None => Came::Ran(explained["nodes"][0]["id"].as_str().unwrap_or_else(|| panic!("{explained}")).to_owned()),
                Some(code) => {
                    let status = if code == "forbidden" { 403 } else { 404 };
                    Came::Refused(status, problem["detail"].as_str().unwrap().to_owned())
                }
            }
        }
    }
}

/// What the one firing of a schedule came to.
fn fired(caller: &Caller, id: &str) -> Came {
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < HANG, "schedule {id} did not fire");
        let results = caller.get(&format!("/v1/schedules/{id}/results")).expect(200);
        let fired = &results["results"][0];
        if !fired["refused"].is_null() {
            return of_problem(&fired["refused"]);
        }
        match fired.get("job").filter(|job| job["status"].is_string()).map(of_job) {
            None | Some(Came::Waits) => sleep(LOOK_EVERY),
            Some(came) => return came,
        }
    }
}

/// A service with its connection.
pub(super) struct Service {
    name: String,
    client: Client,
    events: UnboundedReceiver<String>,
}

impl Service {
    /// Asks at the front door.
    pub(super) fn at_the_door(&self, fabric: &Fabric, body: &Value, prefer: &str) -> Value {
        let mut headers = HeaderMap::new();
        headers.insert("Prefer", prefer);
        let request = Request::new().payload(body.to_string().into()).headers(headers).timeout(Some(HANG));
        let answer = fabric.block_on(self.client.send_request(format!("api.v1.run.{}", self.name), request)).unwrap();
        serde_json::from_slice(&answer.payload).unwrap()
    }

    fn knock(&self, fabric: &Fabric, body: &Value) -> Came {
        let answer = self.at_the_door(fabric, body, "wait=60");
        if answer["code"].is_null() { of_job(&answer) } else { of_problem(&answer) }
    }

    /// Where a job of it is published: at a node, or in a region.
    fn subject(&self, Ask(tool, _, from): Ask) -> String {
        match from.strip_prefix("node:") {
            Some(node) => format!("node.v1.{node}.job.{tool}.{}", self.name),
            None => format!("job.v1.{}.{tool}.{}", if from.contains('=') { "eu" } else { from }, self.name),
        }
    }

    /// Publishes a job, and hears what the node, or the broker, says to it.
    fn straight(&mut self, fabric: &Fabric, ask: Ask, port: u16) -> Came {
        let subject = self.subject(ask);
        fabric.block_on(async {
            let inbox = format!("_INBOX.{}.{:032x}", self.name, rand::random::<u128>());
            let mut answers = self.client.subscribe(format!("{inbox}.*")).await.unwrap();
            let mut body = ask.body(port);
            body["request_id"] = json!("r-1");
            body.as_object_mut().unwrap().remove("from");
            self.client.publish_with_reply(subject, format!("{inbox}._"), body.to_string().into()).await.unwrap();
            let heard = async {
                loop {
                    tokio::select! {
                        answer = answers.next() => {
                            let answer = answer.unwrap();
                            assert_eq!(answer.status, None, "{answer:?}");
                            let outcome = serde_json::from_slice::<Value>(&answer.payload).unwrap();
                            return of_job(&json!({"status": "finished", "results": [outcome]}));
                        }
                        event = self.events.recv() => {
                            let event = event.unwrap();
                            if event.to_lowercase().contains("permissions violation") {
                                return Came::Forbidden(event);
                            }
                        }
                    }
                }
            };
            tokio::time::timeout(HANG, heard).await.expect("an answer")
        })
    }
}

/// A broker, an API that takes JWTs, and three nodes in two regions that find names by a name server of ours.
pub(super) struct World {
    pub(super) fabric: Fabric,
    pub(super) api: Api,
    issuer: Issuer,
    pub(super) silent: Silent,
}

const ISSUER: &str = "https://id.example";

impl World {
    pub(super) fn new() -> Self {
        let (fabric, issuer) = (Fabric::start(), Issuer::new());
        let jwks = fabric.file("jwks.json", &Issuer::jwks(&[&issuer]).to_string());
        let (jwt_issuer, jwt_audience) = (Some(ISSUER.to_owned()), Some("probeops".to_owned()));
        let api = fabric.api_with(&ApiOptions { jwks: Some(jwks), jwt_issuer, jwt_audience, ..ApiOptions::default() });
        let resolvers = Some(format!("127.0.0.1:{}", name_server()));
        for (id, region, site) in [("eu-1", "eu", "fra"), ("eu-2", "eu", "ber"), ("us-1", "us", "nyc")] {
            let options = AgentOptions { labels: vec![("site", site)], resolvers: resolvers.clone(), ..AgentOptions::default() };
            fabric.agent_with(id, region, &options);
        }
        api.wait_for_nodes(3);
        Self { fabric, api, issuer, silent: Silent::start() }
    }

    /// Somebody with a key of these scopes and limits.
    pub(super) fn key(&self, scopes: &[&str], limits: &Value) -> Caller {
        self.api.caller(&self.api.key(&json!({"name": "limited", "scopes": scopes, "limits": limits})))
    }

    /// Somebody with a JWT of his own with these limits.
    fn jwt(&self, limits: &Value) -> Caller {
        let subject = format!("{:016x}", rand::random::<u64>());
        let ends = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 600;
        let claims = json!({
            "iss": ISSUER, "aud": "probeops", "sub": subject, "exp": ends, "scope": "jobs:write jobs:read", "probeops": limits
        });
        self.api.caller(&self.issuer.sign(&claims))
    }

    /// A service with these limits; what they leave open is all there is.
    pub(super) fn service(&self, name: &str, limits: &Value) -> Service {
        let regions = if limits["nodes"].is_null() { json!(["eu", "us"]) } else { json!([]) };
        let mut body = json!({"name": name, "regions": regions, "tools": ["echo", "tcp"]});
        body.as_object_mut().unwrap().extend(limits.as_object().unwrap().clone());
        let made = self.api.admin().post("/v1/services", &body).expect(201);
        let (sender, events) = unbounded_channel();
        let options = ConnectOptions::with_credentials(made["creds"].as_str().unwrap()).unwrap();
        let options = options.add_root_certificates(self.fabric.ca()).require_tls(true).custom_inbox_prefix(format!("_INBOX_f.{name}"));
        let options = options.event_callback(move |event: Event| {
            drop(sender.send(event.to_string()));
            async {}
        });
        let client = self.fabric.block_on(options.connect(self.fabric.url())).unwrap();
        Service { name: name.to_owned(), client, events }
    }
}

/// Answers every question for an address: names that begin with `out` lead to 127.0.0.2, all others to 127.0.0.1. Returns its port.
fn name_server() -> u16 {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut message = [0; 512];
        while let Ok((length, from)) = server.recv_from(&mut message) {
            let name_ends = 12 + message[12..length].iter().position(|byte| *byte == 0).unwrap();
            let wants_ipv4 = message[name_ends + 1..name_ends + 3] == [0, 1];
            let mut answer = message[..name_ends + 5].to_vec();
            // An answer, recursion available, no error; one question, one answer to it for IPv4, and nothing else.
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(wants_ipv4), 0, 0, 0, 0]);
            if wants_ipv4 {
                let last = if message[13..].starts_with(b"out") { 2 } else { 1 };
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, last]);
            }
            drop(server.send_to(&answer, from));
        }
    });
    port
}

fn limits() -> Vec<Limit> {
    let limit = |name, limits, [within, beyond]: [Ask; 2], refused| Limit { name, limits, within, beyond, refused };
    let by_api = Refused::ByApi;
    vec![
        limit(
            "tools",
            json!({"tools": ["tcp"]}),
            [Ask("tcp", "127.0.0.1", "eu"), Ask("echo", "x", "eu")],
            by_api(403, "limited to the tools tcp; `echo` is none of them"),
        ),
        limit(
            "regions",
            json!({"regions": ["eu"]}),
            [Ask("echo", "x", "eu"), Ask("echo", "x", "us")],
            by_api(403, "limited to the regions eu; `us` is none of them"),
        ),
        limit(
            "nodes",
            json!({"nodes": ["eu-1"]}),
            [Ask("echo", "x", "node:eu-1"), Ask("echo", "x", "node:eu-2")],
            by_api(404, "there is no node `eu-2`; the nodes are: eu-1"),
        ),
        limit(
            "labels",
            json!({"labels": ["site=fra"]}),
            [Ask("echo", "x", "site=fra"), Ask("echo", "x", "site=ber")],
            by_api(404, "no node has the labels of `site=ber`; the labels are: site=fra"),
        ),
        limit(
            "networks",
            json!({"targets": ["127.0.0.0/30"]}),
            [Ask("tcp", "127.0.0.1", "eu"), Ask("tcp", "127.0.0.9", "eu")],
            by_api(403, "limited to the targets 127.0.0.0/30; `127.0.0.9` is none of them"),
        ),
        limit(
            "names",
            json!({"targets": ["*.corp.example"]}),
            [Ask("tcp", "in.corp.example", "eu"), Ask("tcp", "in.other.example", "eu")],
            by_api(403, "limited to the targets *.corp.example; `in.other.example` is none of them"),
        ),
        limit(
            "where names lead",
            json!({"targets": ["127.0.0.1", "*.corp.example"]}),
            [Ask("tcp", "in.corp.example", "eu"), Ask("tcp", "out.corp.example", "eu")],
            Refused::ByNode("denied: out.corp.example (127.0.0.2): the caller's own target limits do not include it"),
        ),
    ]
}

impl Limit {
    #[track_caller]
    fn ran(&self, cell: &str, came: &Came) {
        assert!(matches!(came, Came::Ran(_)), "{} × {cell}: {came:?}", self.name);
    }

    /// What is beyond it is refused by whom it is to be.
    #[track_caller]
    fn refuses(&self, cell: &str, came: &Came) {
        let as_it_should = match (&self.refused, came) {
            (Refused::ByApi(status, words), Came::Refused(given, said)) => status == given && said.contains(words),
            (Refused::ByNode(words), Came::Failed(said)) => said == words,
            (Refused::ByApi(..) | Refused::ByNode(_), _) => false,
        };
        assert!(as_it_should, "{} × {cell}: {came:?}", self.name);
    }

    fn holds_over_http(&self, (who, caller): (&str, &Caller), way: Way, port: u16) {
        let cell = format!("{who}, {way:?}");
        let [within, beyond] = [self.within, self.beyond].map(|ask| over_http(caller, way, ask, (port, 60)));
        if (who, way) == ("jwt", Way::Scheduled) {
            // That cannot be: what its owner may later nobody can look up.
            return not_for(&format!("{} × {cell}", self.name), &within);
        }
        self.ran(&cell, &within);
        match (way, &self.refused) {
            // Where a name leads the API does not know.
            (Way::Explained, Refused::ByNode(_)) => self.ran(&cell, &beyond),
            _ => self.refuses(&cell, &beyond),
        }
    }

    /// At the front door as over HTTP; straight at a node the broker refuses what was not granted, and all of a service that only the API can limit.
    fn holds_for(&self, fabric: &Fabric, service: &mut Service, port: u16) {
        self.ran("service, door", &service.knock(fabric, &self.within.body(port)));
        self.refuses("service, door", &service.knock(fabric, &self.beyond.body(port)));
        for ask in [self.within, self.beyond] {
            let mut body = ask.body(port);
            body["when"] = json!("online");
            not_for(&format!("{} × service, door, online", self.name), &service.knock(fabric, &body));
        }
        let at_the_door_only = ["labels", "targets"].iter().any(|name| !self.limits[name].is_null());
        let [within, beyond] = [self.within, self.beyond].map(|ask| (service.straight(fabric, ask, port), service.subject(ask)));
        if !at_the_door_only {
            self.ran("service, straight", &within.0);
        }
        for (came, subject) in [Some(within).filter(|_| at_the_door_only), Some(beyond)].into_iter().flatten() {
            assert!(matches!(&came, Came::Forbidden(said) if said.contains(&subject)), "{} × service, straight: {came:?}", self.name);
        }
    }
}

/// Whoever has what cannot be looked up later is told what can.
#[track_caller]
fn not_for(cell: &str, came: &Came) {
    assert!(matches!(came, Came::Refused(403, said) if said.ends_with("use an API key")), "{cell}: {came:?}");
}

#[test]
fn every_limit_holds_in_every_way_in() {
    let world = World::new();
    let port = world.silent.port();
    let limits = limits();
    let callers: Vec<_> =
        limits.iter().map(|limit| [("key", world.key(&JOBS, &limit.limits)), ("jwt", world.jwt(&limit.limits))]).collect();
    let numbered = |begins: &str, index: usize| format!("{begins}-{index}");
    let mut services: Vec<_> =
        limits.iter().enumerate().map(|(index, limit)| world.service(&numbered("limited", index), &limit.limits)).collect();
    scope(|threads| {
        for (limit, callers) in limits.iter().zip(&callers) {
            threads.spawn(move || {
                for (who, caller) in callers {
                    for way in Way::ALL {
                        limit.holds_over_http((who, caller), way, port);
                    }
                }
            });
        }
        for (limit, service) in limits.iter().zip(&mut services) {
            limit.holds_for(&world.fabric, service, port);
        }
    });
    rates_hold(&world);
    numbers_at_once_hold(&world);
}

const JOBS: [&str; 2] = ["jobs:write", "jobs:read"];

/// Of two runs in an hour there are two, and the third is told so, in whatever way it comes.
fn rates_hold(world: &World) {
    let (limits, ask, port) = (json!({"rate": "2/h"}), Ask("echo", "x", "eu"), world.silent.port());
    let callers: Vec<_> =
        Way::ALL.iter().flat_map(|way| [("key", *way, world.key(&JOBS, &limits)), ("jwt", *way, world.jwt(&limits))]).collect();
    scope(|threads| {
        for (who, way, caller) in &callers {
            threads.spawn(move || {
                let (ran, refused) = until_refused(|| over_http(caller, *way, ask, (port, 60)));
                if (*who, *way) == ("jwt", Way::Scheduled) {
                    return not_for("rate × jwt, Scheduled", &refused);
                }
                // A schedule takes one when it is made, and one when it fires.
                assert_eq!(ran, if *way == Way::Scheduled { 1 } else { 2 }, "{who}, {way:?}");
                let said = matches!(&refused, Came::Refused(429, said) if said.starts_with("your credential is limited to 2/h runs"));
                assert!(said, "rate × {who}, {way:?}: {refused:?}");
            });
        }
    });
    let ask = Ask("echo", "x", "node:eu-1");
    let mut service = world.service("rated", &json!({"nodes": ["eu-1"], "rate": "2/h"}));
    until_told(world, "after-rated");
    let (ran, refused) = until_refused(|| service.straight(&world.fabric, ask, port));
    let words = "limited: service rated may run 2 in 3600000 ms at this node, its share of its rate";
    assert_eq!((ran, refused), (2, Came::Failed(words.to_owned())));
    let (ran, refused) = until_refused(|| service.knock(&world.fabric, &ask.body(port)));
    assert!(ran == 2 && matches!(&refused, Came::Refused(429, said) if said.contains("limited to 2/h runs")), "{ran}, then {refused:?}");
}

/// How often it ran before something else came of it.
fn until_refused(mut ask: impl FnMut() -> Came) -> (usize, Came) {
    let mut ran = 0;
    loop {
        match ask() {
            Came::Ran(_) => ran += 1,
            other => return (ran, other),
        }
        assert!(ran < 10, "it is not refused");
    }
}

/// Waits until the nodes were told of a service that is made now, and so of all that were made before.
fn until_told(world: &World, name: &str) {
    let mut free = world.service(name, &json!({"nodes": ["eu-1"]}));
    let (ask, port) = (Ask("echo", "x", "node:eu-1"), world.silent.port());
    world
        .api
        .wait_until("the node is told", || (0..MORE_THAN_UNTOLD).all(|_| matches!(free.straight(&world.fabric, ask, port), Came::Ran(_))));
}

/// While the one run goes on that somebody may have, he has no other in any way; what may wait does, and what runs nothing is answered.
fn numbers_at_once_hold(world: &World) {
    let (limits, ask) = (json!({"at_once": 1}), Ask("echo", "x", "node:eu-1"));
    let held = Silent::start();
    let long = json!({"tool": "tcp", "target": "127.0.0.1", "from": "eu", "parameters": held.parameters(10_000)});
    let port = world.silent.port();
    let is_full =
        |came: &Came| matches!(came, Came::Refused(429, said) if said.starts_with("your credential is limited to 1 runs at once"));
    for (who, caller) in [("key", world.key(&JOBS, &limits)), ("jwt", world.jwt(&limits))] {
        caller.post_raw("/v1/jobs", "application/json", long.to_string().as_bytes(), &[("prefer", "respond-async")]).expect(202);
        let connection = held.connected();
        for way in Way::ALL {
            let came = over_http(&caller, way, ask, (port, 1));
            match way {
                Way::Online => assert_eq!(came, Came::Waits, "{who}"),
                Way::Explained => assert_eq!(came, Came::Ran("eu-1".to_owned()), "{who}"),
                Way::Scheduled if who == "jwt" => not_for("at once × jwt, Scheduled", &came),
                Way::Post | Way::Streamed | Way::ByUrl | Way::Batch | Way::Scheduled => {
                    assert!(is_full(&came), "at once × {who}, {way:?}: {came:?}");
                }
            }
        }
        drop(connection);
        let ways = Way::ALL.into_iter().filter(|way| (who, *way) != ("jwt", Way::Scheduled));
        for way in ways {
            world.api.wait_until(&format!("there is room for {who}, {way:?}"), || {
                matches!(over_http(&caller, way, ask, (port, 60)), Came::Ran(_))
            });
        }
    }
    let mut service = world.service("alone", &json!({"nodes": ["eu-1"], "at_once": 1}));
    until_told(world, "after-alone");
    let mut at_a_node = long.clone();
    at_a_node["from"] = json!("node:eu-1");
    assert_eq!(service.at_the_door(&world.fabric, &at_a_node, "respond-async")["status"], "running");
    let connection = held.connected();
    let came = service.knock(&world.fabric, &ask.body(port));
    assert!(is_full(&came), "at once × service, door: {came:?}");
    drop(connection);
    world.api.wait_until("there is room at the door", || matches!(service.knock(&world.fabric, &ask.body(port)), Came::Ran(_)));
    let published = held.job("r-long", 10_000);
    let subject = service.subject(Ask("tcp", "127.0.0.1", "node:eu-1"));
    world.fabric.block_on(service.client.publish_with_reply(subject, "_INBOX.alone.long._", published.to_string().into())).unwrap();
    let connection = held.connected();
    let came = service.straight(&world.fabric, ask, port);
    assert_eq!(came, Came::Failed("limited: service alone has its 1 runs at once at this node".to_owned()));
    drop(connection);
    world.api.wait_until("there is room at the node", || matches!(service.straight(&world.fabric, ask, port), Came::Ran(_)));
}
