//! Enrolment on a real fabric: machines become nodes, stay nodes, change their keys, and what is none is told why.

use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use probeops_nats::connect::{Link, LinkError, connect};
use probeops_nats::node_key::NodeKey;
use probeops_shared::enroll::{ConfirmRequest, EnrollRequest, Mark};
use probeops_shared::timestamp::Timestamp;
use probeops_tests::fabric::{Agent, Api, ApiOptions, Fabric, free_port};
use probeops_tests::http::{Answer, Caller};
use probeops_tests::needs;
use probeops_tests::silent::Silent;
use probeops_tests::terminal::Terminal;
use probeops_tests::up::{Home, Said};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// How long credentials of nodes last in the first test: long enough for a slow machine to renew them at half of it.
const VALID_FOR: Duration = Duration::from_secs(12);

fn api_with(fabric: &Fabric, told: &[&str]) -> Api {
    let address = free_port();
    let mut command = fabric.api_command(address, &ApiOptions::default());
    command.args(told);
    fabric.api_of(address, command)
}

/// A token in a file of its own; the token's record, too.
fn token(home: &Home, api: &Api, name: &str, more: &Value) -> (String, Value) {
    let mut request = json!({"region": "eu", "tools": ["echo", "tcp"]});
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let made = api.admin().post("/v1/enroll-tokens", &request).expect(201);
    let path = home.file(name, &format!("{}\n", made["token"].as_str().unwrap()));
    (path.display().to_string(), made)
}

fn enroll(home: &Home, api: &Api, state: &str, told: &[&str]) -> Said {
    let mut arguments = vec!["agent", "enroll", api.url(), "--state", state];
    arguments.extend(told);
    talkative(home, &arguments)
}

/// Runs a command that logs all that it can.
fn talkative(home: &Home, arguments: &[&str]) -> Said {
    let mut command = home.probeops(arguments);
    command.env("PROBEOPS_LOG", "debug");
    home.finish(command)
}

#[track_caller]
fn refused(said: &Said, code: i32, part: &str) {
    assert_eq!(said.code, Some(code), "{}{}", said.out, said.err);
    assert!(said.err.contains(part), "{}", said.err);
}

fn record(home: &Home, state: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(home.path(state).join("enrollment.json")).unwrap()).unwrap()
}

fn expires_at(home: &Home, state: &str) -> Timestamp {
    record(home, state)["given"]["expires_at"].as_str().and_then(Timestamp::parse).unwrap()
}

fn seed(home: &Home, state: &str) -> String {
    std::fs::read_to_string(home.path(state).join("node.nk")).unwrap()
}

fn copy(home: &Home, from: &str, to: &str) {
    std::fs::create_dir(home.path(to)).unwrap();
    for file in std::fs::read_dir(home.path(from)).unwrap().flatten() {
        std::fs::copy(file.path(), home.path(to).join(file.file_name())).unwrap();
    }
}

fn only_its_owner_may_read(home: &Home) {
    for file in ["node.nk", "node.creds", "enrollment.json"] {
        let bits = std::fs::metadata(home.path("state").join(file)).unwrap().permissions().mode();
        assert_eq!(bits & 0o777, 0o600, "{file}");
    }
}

#[test]
fn a_machine_enrols_and_its_agent_renews_and_changes_keys_without_losing_a_job() {
    let (fabric, home) = (Fabric::start_logging(Some("debug")), Home::new());
    let valid_for = format!("{}s", VALID_FOR.as_secs());
    let api = api_with(&fabric, &["--node-valid-for", &valid_for, "--ephemeral-after", "2s"]);
    let (file, made) = token(&home, &api, "token", &json!({"labels": {"site": "fra"}}));
    let said = enroll(&home, &api, "state", &["--token-file", &file, "--node", "fra-1"]);
    assert!(said.err.contains("the broker takes the credential"), "{}", said.err);
    let mut told = said.err.clone();
    assert!(said.good().contains("node fra-1 in region eu is enrolled"));
    only_its_owner_may_read(&home);
    let tokens = api.admin().get("/v1/enroll-tokens").expect(200);
    assert_eq!((&tokens["enroll_tokens"][0]["id"], &tokens["enroll_tokens"][0]["used"]), (&made["id"], &json!(1)));
    // Once more is nothing, also with a token that is none.
    let again = enroll(&home, &api, "state", &["--token-file", "/nowhere"]).good();
    assert!(again.starts_with("nothing to do: this machine is node fra-1 in region eu"), "{again}");

    let state = home.path("state").display().to_string();
    let agent = fabric.agent_of("fra-1", &["--state", &state]);
    api.wait_for_nodes(1);
    assert_eq!(api.admin().get("/v1/nodes/fra-1").expect(200)["labels"], json!({"site": "fra"}));
    // It outlives its first credential, under load: jobs all the time, and one that runs over a renewal.
    let first = expires_at(&home, "state");
    let silent = Silent::start();
    std::thread::scope(|scope| {
        let (caller, parameters) = (api.admin(), silent.parameters(8_000));
        let long = scope.spawn(move || caller.job("tcp", "127.0.0.1", "eu", &parameters).outcome());
        let _held = silent.connected();
        let mut jobs = 0;
        while Timestamp::now() < first.plus(Duration::from_secs(1)) {
            let outcome = api.admin().job("echo", "x", "eu", &json!({})).outcome();
            assert_eq!(outcome["status"], "success", "job {jobs}: {outcome}\n{}", agent.log());
            jobs += 1;
        }
        assert_eq!(long.join().unwrap()["status"], "success", "{}", agent.log());
        assert!(jobs > 10, "{jobs}");
    });
    agent.wait_for_log("there is another credential; connecting with it");

    // The key changes while jobs run, and until a second after the agent has changed to it; the old one is worth nothing from then on.
    copy(&home, "state", "old");
    told += &changes_its_key(&home, &api, &silent, &agent);
    assert_ne!(seed(&home, "state"), seed(&home, "old"));
    let url = fabric.url();
    let old = home.path("old/node.creds").display().to_string();
    let ca = fabric.ca().display().to_string();
    let ended = home.run(&["agent", "--servers", &url, "--ca", &ca, "--creds", &old]);
    assert_eq!(ended.code, Some(78), "{}", ended.err);
    assert!(enroll(&home, &api, "state", &[]).good().contains("nothing to do"));

    // A machine that slept for longer than its credential lasts comes back by itself, and so does one that was off.
    let (rested, _) = token(&home, &api, "rested-token", &json!({"region": "lab"}));
    enroll(&home, &api, "rested", &["--token-file", &rested, "--node", "lab-1"]).good();
    agent.pause();
    let ends = expires_at(&home, "state");
    let (ephemeral, for_a_while) = token(&home, &api, "ephemeral", &json!({"ephemeral": true, "region": "lab"}));
    let short = home.path("short").display().to_string();
    let of_short = ["--state", &short, "--enroll", api.url(), "--enroll-token-file", &ephemeral, "--node", "short-1"];
    let passing = fabric.agent_of("short-1", &of_short);
    api.wait_until("the ephemeral node is there", || api.admin().get("/v1/nodes/short-1").body["online"] == json!(true));
    passing.terminate();
    assert_eq!(passing.wait(), Some(0));
    api.wait_until("the ephemeral node is forgotten", || api.admin().get("/v1/nodes/short-1").status == 404);
    api.wait_until("the credentials are over", || ends < Timestamp::now() && expires_at(&home, "rested") < Timestamp::now());
    assert_eq!(expires_at(&home, "state"), ends, "it has not slept");
    agent.resume();
    let rested = home.path("rested").display().to_string();
    fabric.agent_of("lab-1", &["--state", &rested]);
    for region in ["eu", "lab"] {
        api.wait_until("it is back", || {
            let answer = api.admin().job("echo", "x", region, &json!({}));
            answer.status == 200 && answer.outcome()["status"] == "success"
        });
    }
    for state in ["state", "rested"] {
        assert!(expires_at(&home, state) > ends, "{state}");
    }

    // Revoked, it is told so and stays out; all of this is in the trail, and nothing secret anywhere.
    api.admin().post("/v1/nodes/fra-1/revoke", &json!({})).expect(200);
    assert_eq!(agent.wait(), Some(78), "{}", agent.log());
    assert!(agent.log().contains("revoked"), "{}", agent.log());
    refused(&home.run(&["agent", "rotate", "--state", "state"]), 78, "was revoked");
    api.wait_for_audit("verdict=refused", 1);
    let secrets = [text(&made), text(&for_a_while), seed(&home, "state"), seed(&home, "old"), seed(&home, "short")];
    let logs = [told, api.log(), agent.log(), passing.log(), fabric.keymaster_log()];
    assert!(logs[1..].iter().all(|log| log.contains("DEBUG")), "{logs:?}");
    all_is_in_the_trail(&api, &secrets, logs);
}

/// Jobs run while the key changes and until a second after the agent has changed to it; what is said of it.
fn changes_its_key(home: &Home, api: &Api, silent: &Silent, agent: &Agent) -> String {
    std::thread::scope(|scope| {
        let (caller, parameters) = (api.admin(), silent.parameters(4_000));
        let long = scope.spawn(move || caller.job("tcp", "127.0.0.1", "eu", &parameters).outcome());
        let _held = silent.connected();
        let rotated = scope.spawn(|| talkative(home, &["agent", "rotate", "--state", "state"]));
        let changed = Cell::new(None);
        api.wait_until("the agent has changed to the new key", || {
            let outcome = api.admin().job("echo", "x", "eu", &json!({})).outcome();
            assert_eq!(outcome["status"], "success", "{outcome}\n{}", agent.log());
            if changed.get().is_none() && rotated.is_finished() {
                let key = NodeKey::from_seed(&seed(home, "state")).unwrap().public_key().unwrap();
                let told = api.audit("verdict=reported&target=credential");
                let of_key = |record: &Value| record["detail"].as_str().is_some_and(|detail| detail.contains(key.as_str()));
                changed.set(told.iter().any(of_key).then(Instant::now));
            }
            changed.get().is_some_and(|changed| changed.elapsed() > Duration::from_secs(1))
        });
        assert_eq!(long.join().unwrap()["status"], "success", "{}", agent.log());
        let rotated = rotated.join().unwrap();
        let told = rotated.err.clone();
        assert!(rotated.good().contains("with its new key"));
        told
    })
}

fn all_is_in_the_trail(api: &Api, secrets: &[String], logs: [String; 5]) {
    let trail = [api.audit("verdict=changed"), api.audit("verdict=refused")].concat();
    let said = |part: &str| trail.iter().any(|record| record["detail"].as_str().is_some_and(|detail| detail.contains(part)));
    for part in [
        "enrolment token made: region eu",
        "node is enrolling",
        "node enrolled: region eu",
        "node credential renewed",
        "node changed its key to U",
        "the key it had before is revoked",
        "ephemeral node forgotten",
        "was revoked at",
    ] {
        assert!(said(part), "{part}: {trail:?}");
    }
    for text in logs.into_iter().chain([json!(trail).to_string()]) {
        assert!(secrets.iter().all(|secret| !text.contains(secret.trim())), "{text}");
    }
}

/// A machine that says exactly what a test wants said.
struct Machine {
    caller: Caller,
    key: NodeKey,
    mark: Option<Mark>,
    next_mark: Mark,
    disk_of: char,
    /// Its address, as a proxy in front of the API says it.
    at: Option<&'static str>,
}

impl Machine {
    fn new(api: &Api) -> Self {
        Self { caller: api.nobody(), key: NodeKey::new(), mark: None, next_mark: Mark::new(), disk_of: '0', at: None }
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        let headers: Vec<_> = self.at.iter().map(|at| ("x-forwarded-for", *at)).collect();
        self.caller.post_raw(path, "application/json", body.to_string().as_bytes(), &headers)
    }

    fn challenge(&self) -> String {
        let asked = json!({"public_key": self.key.public_key().unwrap()});
        self.post("/v1/enroll/challenge", &asked).expect(200)["challenge"].as_str().unwrap().to_owned()
    }

    fn request(&self, token: Option<&str>, node: &str) -> EnrollRequest {
        let mut request = EnrollRequest {
            token: token.map(str::to_owned),
            public_key: self.key.public_key().unwrap(),
            challenge: self.challenge(),
            signature: "A".repeat(86).parse().unwrap(),
            node: Some(node.parse().unwrap()),
            machine: Some(self.disk_of.to_string().repeat(64).parse().unwrap()),
            mark: self.mark.clone(),
            next_mark: self.next_mark.clone(),
            new_public_key: None,
            new_signature: None,
        };
        let digest = token.map_or("-".to_owned(), |token| data_encoding::HEXLOWER.encode(&Sha256::digest(token.as_bytes())));
        request.signature = self.key.sign(&request.statement(&digest)).unwrap();
        request
    }

    /// Asks for another key.
    fn changes(&self, next: &NodeKey, node: &str) -> Answer {
        let mut request = self.request(None, node);
        request.new_public_key = Some(next.public_key().unwrap());
        let statement = request.statement("-");
        request.signature = self.key.sign(&statement).unwrap();
        request.new_signature = Some(next.sign(&statement).unwrap());
        self.caller.post("/v1/enroll", &json!(request))
    }

    /// Goes on with another key.
    fn with(&self, key: &NodeKey) -> Self {
        let key = NodeKey::from_seed(&key.seed().unwrap()).unwrap();
        Self {
            caller: self.caller.clone(),
            key,
            mark: Some(self.next_mark.clone()),
            next_mark: Mark::new(),
            disk_of: self.disk_of,
            at: self.at,
        }
    }

    /// The status and the body.
    fn enroll(&self, token: Option<&str>, node: &str) -> (u16, Value) {
        let answer = self.post("/v1/enroll", &json!(self.request(token, node)));
        (answer.status, answer.body)
    }

    fn confirm(&self, node: &str) -> (u16, Value) {
        let mut request = ConfirmRequest {
            public_key: self.key.public_key().unwrap(),
            challenge: self.challenge(),
            signature: "A".repeat(86).parse().unwrap(),
            node: node.parse().unwrap(),
        };
        request.signature = self.key.sign(&request.statement()).unwrap();
        let answer = self.post("/v1/enroll/confirm", &json!(request));
        (answer.status, answer.body)
    }
}

#[track_caller]
fn says((status, body): (u16, Value), wanted: u16, part: &str) {
    assert_eq!(status, wanted, "{body}");
    assert!(body["detail"].as_str().is_some_and(|detail| detail.contains(part)), "{body}");
}

fn text(made: &Value) -> String {
    made["token"].as_str().unwrap().to_owned()
}

/// How often a token was used; none once it is over.
fn used(api: &Api, made: &Value) -> Option<Value> {
    let tokens = api.admin().get("/v1/enroll-tokens").expect(200);
    let tokens = tokens["enroll_tokens"].as_array().unwrap();
    tokens.iter().find(|token| token["id"] == made["id"]).map(|token| token["used"].clone())
}

#[test]
fn a_token_is_taken_from_where_the_service_manager_puts_it() {
    let (fabric, home) = (Fabric::start(), Home::new());
    let api = api_with(&fabric, &[]);
    let folder = home.path("credentials");
    std::fs::create_dir(&folder).unwrap();
    let (_, made) = token(&home, &api, "credentials/token", &json!({}));
    let enrolled = |state: &str, node: &str, credentials: &std::path::Path| {
        let mut command = home.probeops(&["agent", "enroll", api.url(), "--state", state, "--node", node]);
        command.env("CREDENTIALS_DIRECTORY", credentials);
        home.finish(command)
    };
    let said = enrolled("state", "fra-1", &folder);
    assert!(!(said.out.clone() + &said.err).contains(&text(&made)), "{}{}", said.out, said.err);
    assert!(said.good().contains("node fra-1 in region eu is enrolled"));
    assert_eq!(used(&api, &made), Some(json!(1)));
    let state = home.path("state").display().to_string();
    let _agent = fabric.agent_of("fra-1", &["--state", &state]);
    api.wait_for_nodes(1);
    // Where there is none in it, nobody at a terminal can be asked either.
    let empty = home.path("empty");
    std::fs::create_dir(&empty).unwrap();
    let said = enrolled("other", "fra-2", &empty);
    assert!(said.code != Some(0) && said.err.contains("token"), "{}{}", said.out, said.err);
    assert_eq!(api.admin().get("/v1/nodes/fra-2").status, 404);
}

#[test]
fn what_is_no_node_is_told_why_and_a_token_counts_only_what_the_broker_took() {
    needs::machine_id();
    let (fabric, home) = (Fabric::start(), Home::new());
    let api = api_with(&fabric, &[]);
    let used = |made: &Value| used(&api, made);

    // One use, and three who want it at once: one gets it, and another only once the first has failed for good.
    let (_, one) = token(&home, &api, "one", &json!({}));
    let one_text = text(&one);
    let machines: Vec<Machine> = (0..3).map(|_| Machine::new(&api)).collect();
    let answers: Vec<(u16, Value)> = std::thread::scope(|scope| {
        let tries: Vec<_> = machines
            .iter()
            .enumerate()
            .map(|(index, machine)| {
                scope.spawn({
                    let one_text = &one_text;
                    move || machine.enroll(Some(one_text), &format!("m-{index}"))
                })
            })
            .collect();
        tries.into_iter().map(|tried| tried.join().unwrap()).collect()
    });
    let (taken, others): (Vec<_>, Vec<_>) = answers.iter().cloned().enumerate().partition(|(_, (status, _))| *status == 200);
    assert_eq!((taken.len(), others.len()), (1, 2), "{answers:?}");
    for (_, answer) in others {
        says(answer, 409, "is taken by a node that is enrolling");
    }
    let (winner, name) = (&machines[taken[0].0], format!("m-{}", taken[0].0));
    assert_eq!((&taken[0].1.1["to_confirm"], used(&one)), (&json!(true), Some(json!(0))), "nothing is used up yet");
    // A crash before it confirms: the same key asks again. Confirming is no way to renew.
    assert_eq!(winner.enroll(Some(&one_text), &name).0, 200);
    let confirmed = winner.confirm(&name);
    assert_eq!((confirmed.0, &confirmed.1["to_confirm"], used(&one)), (200, &json!(false), Some(json!(1))), "{}", confirmed.1);
    let expires_at = || api.admin().get(&format!("/v1/nodes/{name}")).expect(200)["expires_at"].clone();
    let before = expires_at();
    says(winner.confirm(&name), 409, "is to be confirmed: it has enrolled with this key");
    assert_eq!((expires_at(), used(&one)), (before, Some(json!(1))));
    says(Machine::new(&api).enroll(Some(&one_text), "m-9"), 403, "is used up: 1 of 1");

    // Copies: another machine; and of two that go on from the same credential the second.
    let mark = Some(winner.next_mark.clone());
    let goes_on = |mark: &Option<Mark>, disk_of: char| Machine {
        caller: api.nobody(),
        key: NodeKey::from_seed(&winner.key.seed().unwrap()).unwrap(),
        mark: mark.clone(),
        next_mark: Mark::new(),
        disk_of,
        at: None,
    };
    says(goes_on(&mark, '1').enroll(None, &name), 409, "on another machine, and this is a copy of its disk");
    let original = goes_on(&mark, '0');
    assert_eq!(original.enroll(None, &name).0, 200);
    assert_eq!(original.enroll(None, &name).0, 200, "whoever heard no answer asks again");
    says(goes_on(&mark, '0').enroll(None, &name), 409, "its disk was cloned, or restored from a backup");

    // What is not signed by the key, or for another, or too late, or by nobody that is known.
    let stranger = Machine::new(&api);
    says(stranger.enroll(None, "m-9"), 403, "this key is not known here");
    says(stranger.confirm(&name), 403, "this key is not known here");
    let mut forged = stranger.request(None, "m-9");
    forged.node = Some("m-8".parse().unwrap());
    let answer = api.nobody().post("/v1/enroll", &json!(forged));
    says((answer.status, answer.body), 403, "the signature is not that of this key");
    let mut foreign = stranger.request(None, "m-9");
    foreign.challenge = winner.challenge();
    let answer = api.nobody().post("/v1/enroll", &json!(foreign));
    says((answer.status, answer.body), 403, "the challenge was not made for this key");
    what_an_agent_is_told(&fabric, &home, &api, &name);
}

fn what_an_agent_is_told(fabric: &Fabric, home: &Home, api: &Api, name: &str) {
    let used = |made: &Value| used(api, made);
    // With the agent: names, tokens that are over, a broker that cannot be reached.
    let (two_file, two) = token(home, api, "two", &json!({"uses": 2}));
    refused(
        &enroll(home, api, "a", &["--token-file", &two_file, "--node", name]),
        78,
        "is another machine with another key; choose another name",
    );
    assert_eq!(used(&two), Some(json!(0)));
    let lost = ["--token-file", &two_file, "--node", "a-1", "--servers", "tls://127.0.0.1:1"];
    refused(&enroll(home, api, "a", &lost), 1, "Nothing is used up: run this again");
    let key = seed(home, "a");
    enroll(home, api, "a", &["--token-file", &two_file, "--node", "a-1"]).good();
    assert_eq!((seed(home, "a"), used(&two)), (key, Some(json!(1))), "it goes on with the key that it had");
    let (named_file, _) = token(home, api, "named", &json!({"node": "fixed-1"}));
    let said = enroll(home, api, "b", &["--token-file", &named_file, "--node", "b-1"]);
    assert!(said.err.contains("the token gives the name fixed-1, not b-1"), "{}", said.err);
    said.good();
    let maker = json!({"name": "maker", "scopes": ["nodes:enroll"], "limits": {"regions": ["eu"]}});
    let maker = api.admin().post("/v1/keys", &maker).expect(201);
    let caller = api.caller(maker["key"].as_str().unwrap());
    let asked = |region: &str| caller.post("/v1/enroll-tokens", &json!({"region": region, "tools": ["echo"]}));
    asked("us").expect(403);
    let orphan = home.file("orphan", asked("eu").expect(201)["token"].as_str().unwrap());
    api.admin().delete(&format!("/v1/keys/{}", maker["id"].as_str().unwrap())).expect(200);
    refused(&enroll(home, api, "c", &["--token-file", orphan.to_str().unwrap()]), 78, "the API key that made the enrolment token");
    // Nor with that of a key of which nothing is known any more.
    let maker = api.admin().post("/v1/keys", &json!({"name": "lost", "scopes": ["nodes:enroll"]})).expect(201);
    let made = api.caller(maker["key"].as_str().unwrap()).post("/v1/enroll-tokens", &json!({"region": "eu", "tools": ["echo"]}));
    let orphan = home.file("lost", made.expect(201)["token"].as_str().unwrap());
    fabric.lose("KEYS", maker["id"].as_str().unwrap());
    api.wait_until("the key is forgotten", || api.caller(maker["key"].as_str().unwrap()).get("/v1/tools").status == 401);
    refused(&enroll(home, api, "c", &["--token-file", orphan.to_str().unwrap()]), 78, "is not known any more");
    let (over_file, over) = token(home, api, "over", &json!({"expires_in_ms": 1000}));
    let (gone_file, gone) = token(home, api, "gone", &json!({}));
    api.admin().delete(&format!("/v1/enroll-tokens/{}", gone["id"].as_str().unwrap())).expect(200);
    refused(&enroll(home, api, "c", &["--token-file", &gone_file]), 78, "was revoked at");
    api.wait_until("the token is over", || used(&over).is_none());
    refused(&enroll(home, api, "c", &["--token-file", &over_file]), 78, "expired at");
    refused(&enroll(home, api, "c", &[]), 1, "no enrolment token is given");
    let mistyped = home.file("mistyped", &text(&two).replace("pe_", "pe_x"));
    refused(&enroll(home, api, "c", &["--token-file", mistyped.to_str().unwrap()]), 78, "cut off or has something added");
    a_token_is_piped_or_typed_and_not_shown(home, api);

    // A cloned disk is refused on the machine, too.
    copy(home, "a", "clone");
    let path = home.path("clone").join("enrollment.json");
    let mut held = record(home, "clone");
    held["machine"] = json!("f".repeat(64));
    std::fs::write(&path, held.to_string()).unwrap();
    refused(&home.run(&["agent", "--state", "clone"]), 78, "this disk is a copy of that of `a-1`");
    copy(home, "b", "twin");
    home.run(&["agent", "rotate", "--state", "twin"]).good();
    refused(&home.run(&["agent", "rotate", "--state", "b"]), 78, "this key is not known here");

    // Without a token: the operator registers the key that the machine has made.
    let public_key = enroll(home, api, "static", &["--print-key"]).good();
    refused(&enroll(home, api, "static", &["--no-token"]), 78, "this key is not known here");
    let (data, servers) = (fabric.data().display().to_string(), fabric.url());
    let add = ["nodes", "add", "static-1", "--region", "eu", "--tools", "echo", "--public-key", public_key.trim()];
    home.run(&[&add[..], &["--data", &data, "--servers", &servers]].concat()).good();
    api.wait_until("it is registered", || api.admin().get("/v1/nodes/static-1").status == 200);
    assert!(enroll(home, api, "static", &["--no-token"]).good().contains("node static-1 in region eu"));
    api.wait_for_audit("verdict=refused", 15);
}

fn a_token_is_piped_or_typed_and_not_shown(home: &Home, api: &Api) {
    let (file, made) = token(home, api, "by-hand", &json!({"uses": 2}));
    let command = |state: &str, more: &[&str]| home.probeops(&[&["agent", "enroll", api.url(), "--state", state], more].concat());
    let piped = File::open(&file).unwrap();
    home.finish_reading(command("piped", &["--node", "p-1", "--token-file", "-"]), piped.into()).good();

    let mut terminal = Terminal::open();
    // Whoever changes his mind has his terminal as it was.
    let asks = "Enrolment token (pe_…, not shown): ";
    let mut asked = home.start_reading("interrupted", command("typed", &["--node", "t-1"]), terminal.input(), asks);
    assert!(!terminal.shows(), "while it asks");
    terminal.types("pe_half\u{3}");
    assert_eq!((asked.wait(), terminal.shows()), (Some(1), true), "{}", asked.log());
    assert!(asked.log().contains("interrupted before the token was typed"), "{}", asked.log());
    let mut asked = home.start_reading("typed", command("typed", &["--node", "t-1"]), terminal.input(), asks);
    terminal.types(&format!("{}\n", text(&made)));
    assert_eq!((asked.wait(), terminal.shows()), (Some(0), true), "{}", asked.log());
    assert!(!asked.log().contains(&text(&made)) && asked.log().contains("node t-1 in region eu is enrolled"), "{}", asked.log());
    terminal.types("seen\n");
    assert_eq!(terminal.shown("seen\r\n"), "seen\r\n", "of all that was typed");
}

#[test]
fn a_key_is_changed_once_an_hour_and_one_that_may_be_taken_is_never_forgotten() {
    let (fabric, home) = (Fabric::start(), Home::new());
    let api = api_with(&fabric, &[]);
    let (_, made) = token(&home, &api, "token", &json!({}));
    let machine = Machine::new(&api);
    assert_eq!((machine.enroll(Some(&text(&made)), "k-1").0, machine.confirm("k-1").0), (200, 200));
    let machine = machine.with(&machine.key);
    let [first, second] = [NodeKey::new(), NodeKey::new()];
    let begun = machine.changes(&first, "k-1");
    assert_eq!((begun.status, &begun.body["to_confirm"]), (200, &json!(true)), "{}", begun.body);
    // Another in its place would leave a key that the broker takes and that nobody knows of.
    let other = machine.changes(&second, "k-1");
    let names = format!("is changing its key to {} already: go on with that one, or begin anew after 2", first.public_key().unwrap());
    says((other.status, other.body), 429, &names);
    assert_eq!(machine.changes(&first, "k-1").status, 200, "whoever heard no answer asks again");
    let machine = machine.with(&first);
    assert_eq!(machine.confirm("k-1").0, 200);
    let again = machine.changes(&second, "k-1");
    let wait_s: u64 = again.header("retry-after").unwrap().parse().unwrap();
    assert!((3_500..=3_600).contains(&wait_s), "{wait_s}");
    says((again.status, again.body), 429, "node `k-1` changed its key at 2");
    assert_eq!(machine.enroll(None, "k-1").0, 200, "it renews all the same");
}

/// Whatever a node asks for while it is revoked, no key of it is left that the broker takes.
#[test]
fn a_node_that_changes_its_key_while_it_is_revoked_is_revoked() {
    const NODES: usize = 6;
    let (fabric, home) = (Fabric::start(), Home::new());
    let api = api_with(&fabric, &[]);
    let (_, made) = token(&home, &api, "token", &json!({"uses": NODES}));
    let mut given = Vec::new();
    for number in 0..NODES {
        let (machine, next, id) = (Machine::new(&api), NodeKey::new(), format!("r-{number}"));
        let first = machine.enroll(Some(&text(&made)), &id);
        assert_eq!((first.0, machine.confirm(&id).0), (200, 200));
        let old = machine.with(&machine.key);
        let admin = api.admin();
        std::thread::scope(|scope| {
            let (begun, has_begun) = mpsc::channel();
            let revoke = format!("/v1/nodes/{id}/revoke");
            let revoking = scope.spawn(move || {
                // Once surely after the change has begun, and else sooner and later.
                if number == 0 {
                    has_begun.recv().unwrap();
                }
                std::thread::sleep(Duration::from_millis(15 * u64::try_from(number).unwrap()));
                admin.post(&revoke, &json!({})).expect(200)
            });
            let changing = old.changes(&next, &id);
            begun.send(()).unwrap_or_default();
            let new = old.with(&next);
            let confirmed = new.confirm(&id);
            let jwts = [first.1, changing.body, confirmed.1].map(|body| body["jwt"].as_str().map(str::to_owned));
            let keys = [&machine.key, &next, &next];
            given.extend(jwts.into_iter().zip(keys).filter_map(|(jwt, key)| Some(key.creds_file(&jwt?).unwrap())));
            revoking.join().unwrap();
        });
        let node = api.admin().get(&format!("/v1/nodes/{id}")).expect(200);
        assert_eq!((&node["revoked"], node.get("revoking")), (&json!(true), None), "{node}");
    }
    assert!(given.len() > NODES, "no key was ever changed");
    for (number, creds) in given.iter().enumerate() {
        let creds = home.file(&format!("given-{number}"), creds);
        let link = Link { servers: vec![fabric.url()], ca: Some(fabric.ca()), creds };
        let refused = fabric.block_on(connect(&link, "given", "_INBOX_n.x")).map(drop).unwrap_err();
        assert!(matches!(refused, LinkError::Refused(_)), "{number}: {refused}");
    }
}

#[test]
fn a_flood_of_made_up_keys_and_tokens_holds_up_no_node_and_nobody_from_elsewhere() {
    const FLOODED: usize = 50;
    let (fabric, home) = (Fabric::start(), Home::new());
    let api = api_with(&fabric, &[]);
    let (_, made) = token(&home, &api, "token", &json!({"uses": 2}));
    let at = |at| Machine { at: Some(at), ..Machine::new(&api) };
    let enrols = |machine: &Machine, name: &str| {
        let answers = (machine.enroll(Some(&text(&made)), name), machine.confirm(name));
        assert_eq!((answers.0.0, answers.1.0), (200, 200), "{answers:?}");
    };
    let node = at("198.51.100.7");
    enrols(&node, "m-1");
    let (stop, refused) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (begun, flooded) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let (begun, machine) = (begun.clone(), at("198.51.100.7"));
            let (stop, refused) = (&stop, &refused);
            scope.spawn(move || {
                let asked = json!({"public_key": machine.key.public_key().unwrap()});
                while !stop.load(Ordering::Relaxed) {
                    if machine.post("/v1/enroll/challenge", &asked).status == 429 {
                        refused.fetch_add(1, Ordering::Relaxed);
                        // The test may be over.
                        begun.send(()).ok();
                    }
                }
            });
        }
        let held_up = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..FLOODED {
                flooded.recv_timeout(Duration::from_secs(60)).expect("the flood is refused");
            }
            enrols(&at("198.51.100.8"), "m-2");
            // From the same address as the flood, a node renews.
            let before = refused.load(Ordering::Relaxed);
            let mut mark = node.next_mark.clone();
            for _ in 0..10 {
                let key = NodeKey::from_seed(&node.key.seed().unwrap()).unwrap();
                let renewing = Machine { key, mark: Some(mark), ..at("198.51.100.7") };
                let (status, body) = renewing.enroll(None, "m-1");
                assert_eq!((status, &body["to_confirm"]), (200, &json!(false)), "{body}");
                mark = renewing.next_mark;
            }
            assert!(refused.load(Ordering::Relaxed) > before, "the flood goes on");
        }));
        stop.store(true, Ordering::Relaxed);
        held_up.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}
