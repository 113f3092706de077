//! What a node has to say for the trail outlives it, and where it cannot be said nothing is run.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use probeops_shared::job::{GRACE, header};
use probeops_shared::timestamp::Timestamp;
use probeops_tests::asker::Asker;
use probeops_tests::fabric::{Agent, Api, Fabric};
use probeops_tests::silent::Silent;
use probeops_tests::up::Home;
use serde_json::{Value, json};

/// A node with a state folder.
struct Node<'a> {
    fabric: &'a Fabric,
    home: Home,
    creds: PathBuf,
}

impl<'a> Node<'a> {
    fn new(fabric: &'a Fabric) -> Self {
        Self { fabric, home: Home::new(), creds: fabric.enrol("s", 1, "eu").remove(0) }
    }

    fn start(&self) -> Rc<Agent> {
        let (state, ca, creds) = (self.home.path("state"), self.fabric.ca(), self.creds.display().to_string());
        let (state, ca, url) = (state.display().to_string(), ca.display().to_string(), self.fabric.url());
        self.fabric.agent_of("s-1", &["--servers", &url, "--ca", &ca, "--creds", &creds, "--state", &state, "--spool-mib", "1"])
    }

    /// What `probeops audit verify` says of the trail as it is now.
    fn verified(&self, api: &Api) -> String {
        let probeops = |arguments: &[&str]| {
            let mut command = self.home.probeops(arguments);
            command.env("PROBEOPS_URL", api.url()).env("PROBEOPS_TOKEN", api.admin_key());
            self.home.finish(command)
        };
        let file = self.home.file("trail.jsonl", &probeops(&["audit", "export"]).good());
        probeops(&["audit", "verify", file.to_str().unwrap()]).good()
    }
}

fn run(service: &Asker<'_>, name: &str) -> Value {
    let job = json!({"request_id": name, "tool": "echo", "target": "x"});
    service.ask("job.v1.eu.echo", &job, &[]).hear().body
}

/// Runs one job after the other until one fails for another reason than its caller's rate; how many ran, and how that one ended.
fn run_until_refused(service: &Asker<'_>, name: &str) -> (usize, Value) {
    let mut ran = 0;
    loop {
        let outcome = run(service, &format!("{name}-{ran}"));
        match outcome["failure"]["kind"].as_str() {
            None => ran += 1,
            Some("limited") => {}
            Some(_) => return (ran, outcome),
        }
    }
}

/// How often the trail has each request, of those that a service asked the node itself for.
fn counted(api: &Api, verdict: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for record in api.audit(&format!("principal=billing&verdict={verdict}")) {
        *counts.entry(record["request_id"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    counts
}

#[test]
fn a_node_whose_records_nobody_takes_is_busy_and_goes_on_when_they_are_taken() {
    let fabric = Fabric::start();
    let api = fabric.api();
    let node = Node::new(&fabric);
    let agent = node.start();
    api.wait_for_nodes(1);
    let service = Asker::service(&fabric, &["echo"], &[]);
    api.wait_until("it is known to the node", || run(&service, "before")["status"] == "success");
    let bytes_max = fabric.bound_the_trail(1);
    let (ran, refused) = run_until_refused(&service, "full");
    assert!(ran > 100, "{ran}");
    let failure = &refused["failure"];
    assert_eq!((&failure["kind"], &failure["retry_after_ms"]), (&json!("busy"), &json!(1_000)));
    let why = failure["detail"].as_str().unwrap();
    assert!(why.starts_with("node s-1 cannot record it: the control plane has not acknowledged its audit records for long"), "{why}");
    // It stays so over a restart.
    agent.kill();
    node.start();
    assert_eq!(run_until_refused(&service, "again").1["failure"]["kind"], "busy");
    fabric.bound_the_trail(bytes_max);
    api.wait_until("it runs jobs again", || run(&service, "after")["status"] == "success");
    api.wait_for_audit("request_id=after&verdict=finished", 1);
    for verdict in ["started", "finished"] {
        let counts = counted(&api, verdict);
        let full: Vec<usize> = (0..ran).filter_map(|number| counts.get(&format!("full-{number}")).copied()).collect();
        assert_eq!(full, vec![1; ran], "{verdict}");
    }
    let verified = node.verified(&api);
    assert!(verified.contains("\nwhole: nothing was changed"), "{verified}");
    assert_eq!(verified.matches("node:s-1 (chain of ").count(), 1, "{verified}");
    assert_eq!(api.audit("verdict=violation&node=s-1"), Vec::<Value>::new());
}

#[test]
fn what_a_node_has_not_said_when_it_is_killed_it_says_once_when_it_starts_again() {
    let fabric = Fabric::start();
    let api = fabric.api();
    let node = Node::new(&fabric);
    let service = Asker::service(&fabric, &["echo", "tcp"], &[]);
    let (silent, mut ran) = (Silent::start(), Vec::new());
    // The first and last time nobody takes records; in between some are on their way, or their acknowledgement is.
    for round in 0..5 {
        let bytes_max = (round % 4 == 0).then(|| fabric.bound_the_trail(1));
        let agent = node.start();
        while ran.len() < (round + 1) * 150 {
            let name = format!("r-{}", ran.len());
            let outcome = run(&service, &name);
            if outcome["failure"]["kind"] != "limited" {
                assert_eq!(outcome["status"], "success", "{outcome}");
                ran.push(name);
            }
        }
        // One is killed in its first moments: what it reaches has heard of it, and nobody has taken a record of it.
        let cut = bytes_max.map(|_| service.ask("job.v1.eu.tcp", &silent.job(&format!("cut-{round}"), 10_000), &[]));
        let _reached = cut.is_some().then(|| silent.connected());
        agent.kill();
        bytes_max.map(|bytes_max| fabric.bound_the_trail(bytes_max));
    }
    let agent = node.start();
    api.wait_until("everything is there", || counted(&api, "finished").len() >= ran.len());
    let once: BTreeMap<String, usize> = ran.iter().map(|name| (name.clone(), 1)).collect();
    assert_eq!(counted(&api, "finished"), once);
    // That they would run was on the disk before they did.
    let cut = ["cut-0", "cut-4"].map(|name| (name.to_owned(), 1));
    assert_eq!(counted(&api, "started"), once.into_iter().chain(cut).collect());
    // What becomes of the node itself is there too: six starts, one end, and its owner's policy as it changes.
    let policy = "s-1-policy.toml";
    fabric.file(policy, "allow_loopback = false\n");
    api.wait_for_audit("verdict=reported&target=policy", 7);
    fabric.file(policy, "allow_loopback = 1\n");
    let told = api.wait_for_audit("verdict=reported&target=policy", 8);
    assert!(
        told[0]["detail"].as_str().unwrap().starts_with("the owner's file cannot be used, and the last good one (sha256 "),
        "{}",
        told[0]
    );
    assert!(told[1]["detail"].as_str().unwrap().starts_with("in force (sha256 "), "{}", told[1]);
    api.admin().post("/v1/nodes/s-1/drain", &json!({})).expect(200);
    api.wait_for_audit("verdict=reported&target=drain", 1);
    agent.terminate();
    assert_eq!(agent.wait(), Some(0));
    let told = api.wait_for_audit("verdict=reported&target=agent", 8);
    let details: Vec<&str> = told.iter().rev().map(|record| record["detail"].as_str().unwrap()).collect();
    assert!(
        details[0].contains("a new chain of its records begins") && details[5].contains("its records go on with number "),
        "{details:?}"
    );
    assert!(details[6].starts_with("told to stop") && details[7].starts_with("stops now"), "{details:?}");
    assert!(told.iter().all(|record| record["principal"] == "node:s-1" && record["node"] == "s-1"), "{told:?}");
    let verified = node.verified(&api);
    assert!(verified.contains(", 0 of them sent again") && verified.contains("\nwhole: nothing was changed"), "{verified}");
    assert_eq!(verified.matches("node:s-1 (chain of ").count(), 1, "{verified}");
    // A node that was installed anew says so, and the trail is as whole as before.
    std::fs::remove_dir_all(node.home.path("state")).unwrap();
    node.start();
    api.wait_until("it runs jobs again", || run(&service, "anew")["status"] == "success");
    api.wait_for_audit("request_id=anew&verdict=finished", 1);
    let verified = node.verified(&api);
    assert!(verified.contains("\nwhole: nothing was changed") && verified.contains("begins anew"), "{verified}");
    assert_eq!(api.audit("verdict=violation&node=s-1"), Vec::<Value>::new());
}

#[test]
fn a_job_whose_record_waits_until_its_deadline_is_over_is_not_run() {
    let fabric = Fabric::start();
    let (api, service) = (fabric.api(), Asker::service(&fabric, &["echo"], &[]));
    let node = Node::new(&fabric);
    // Whoever writes to a pipe waits until somebody reads it.
    let (folder, pipe) = (node.home.path("state"), node.home.path("state/audit.new"));
    std::fs::create_dir_all(&folder).unwrap();
    mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let _agent = node.start();
    let created_at = Timestamp::now();
    let deadline = created_at.plus(GRACE).unix_ms().to_string();
    let job = json!({"request_id": "late", "tool": "echo", "target": "x"});
    let mut asked = service.ask("job.v1.eu.echo", &job, &[(header::DEADLINE, &deadline), (header::EVENTS, "1")]);
    std::thread::sleep(GRACE);
    let _read = std::fs::File::open(&pipe).unwrap();
    let heard = asked.hear();
    let failure = &heard.body["failure"];
    assert_eq!((heard.event.as_str(), &failure["kind"]), ("outcome", &json!("expired")), "{}", heard.body);
    assert!(failure["detail"].as_str().unwrap().ends_with(" ms before the job could begin"), "{failure}");
    let denied = api.wait_for_audit("node=s-1&verdict=denied", 1);
    assert!(denied[0]["detail"].as_str().unwrap().starts_with("expired: "), "{denied:?}");
    assert_eq!(api.audit("node=s-1&verdict=finished"), Vec::<Value>::new());
    // Its slot and what it had taken of its caller's share are free.
    assert_eq!(run(&service, "next")["status"], "success");
}
