//! The first run: `up`, `up --once`, what they print, and what they survive.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use probeops_nats::vault::credentials::Credentials;
use probeops_shared::timestamp::Timestamp;
use probeops_tests::http::Caller;
use probeops_tests::up::{Home, NOBODY, Up, documents, is_root, wait_until};
use serde_json::{Value, json};

const PING_GROUPS: &str = "/proc/sys/net/ipv4/ping_group_range";

/// Runs the pasted line as a shell does.
#[track_caller]
fn paste(home: &Home, line: &str) -> Value {
    // The shell takes the line apart as it does for everybody; what curl would be given, the harness asks. README's test pastes it with curl.
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("curl() {{ printf '%s\\n' \"$@\"; }}; {line}"));
    let given = home.finish(shell).good();
    let [silent, url, token_flag, authorization, type_flag, content_type, body_flag, body] = given.lines().collect::<Vec<_>>()[..] else {
        panic!("not eight arguments: {given}")
    };
    assert_eq!((silent, token_flag, type_flag, body_flag), ("-s", "-H", "-H", "-d"));
    assert_eq!(content_type, "content-type: application/json");
    let token = authorization.strip_prefix("authorization: Bearer ").unwrap();
    let base = url.strip_suffix("/v1/jobs").unwrap();
    Caller::new(base, Some(token), None).post_raw("/v1/jobs", "application/json", body.as_bytes(), &[]).expect(200)
}

/// Whether a group may open ping sockets on this machine.
fn may_ping(group: u32) -> bool {
    let range = std::fs::read_to_string(PING_GROUPS).unwrap();
    let bounds: Vec<u32> = range.split_whitespace().map(|bound| bound.parse().unwrap()).collect();
    (bounds[0]..=bounds[1]).contains(&group)
}

#[test]
fn the_first_run_prints_what_works_when_pasted_and_keeps_its_state() {
    let home = Home::new();
    let system = std::fs::read_to_string(PING_GROUPS).unwrap();
    let mut up = home.up("it's data", &[]);
    assert!(up.url().starts_with("http://127.0.0.1:"), "{}", up.log());
    assert!(up.log().starts_with("ready http://"), "nothing before it:\n{}", up.log());
    let key = up.line("key   ");
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(up.log().contains("allow loopback as a target"), "{}", up.log());
    let job = paste(&home, &up.curl());
    assert_eq!((&job["status"], &job["results"][0]["status"]), (&json!("finished"), &json!("success")), "{job}");
    assert_eq!(job["target"], "127.0.0.1");
    // Loopback, but not what this machine's fabric itself listens on for others.
    let ports: Value = serde_json::from_str(&std::fs::read_to_string(home.path("it's data/ports.json")).unwrap()).unwrap();
    let api: u16 = up.url().rsplit(':').next().unwrap().parse().unwrap();
    for own_port in [json!(api), ports["broker"].clone(), ports["websocket"].clone()] {
        let touched = up.caller().job("tcp", "127.0.0.1", "demo-eu", &json!({"port": own_port})).outcome();
        assert_eq!(touched["failure"]["kind"], "denied", "{touched}");
    }
    // Ping where the agents announced it, else tcp; and what is missing is said with its cure.
    let nodes = up.caller().get("/v1/nodes").expect(200);
    let nodes: Vec<&Value> = nodes["nodes"].as_array().unwrap().iter().collect();
    assert_eq!(nodes.iter().map(|node| &node["region"]).collect::<Vec<_>>(), ["demo-eu", "demo-us"]);
    let can_ping = nodes[0]["beat"]["tools"].as_array().unwrap().contains(&json!("ping"));
    assert_eq!(job["tool"], if can_ping { "ping" } else { "tcp" }, "{nodes:?}");
    assert_eq!(up.log().contains("ping_group_range"), !can_ping, "{}", up.log());
    assert_eq!(std::fs::read_to_string(PING_GROUPS).unwrap(), system);

    let second = home.run(&["up", "--data", "it's data", "--http", "127.0.0.1:0"]).bad(1);
    assert!(second.contains(&format!("is in use by process {}; stop that one", up.process_id())), "{second}");

    assert_eq!(up.others().len(), 8, "the broker below its shell, the keymaster, the sentry, the API, two agents: {:?}", up.others());
    assert_eq!(up.end(Signal::SIGINT), Some(0), "{}", up.log());
    assert_eq!(up.others(), [], "nothing is left when it has ended");
    assert!(!up.log().contains("probeops:"), "{}", up.log());

    let mut again = home.up("it's data", &[]);
    assert_eq!(again.line("key   "), key);
    let caller = again.caller();
    assert_eq!(caller.get(&format!("/v1/jobs/{}", job["id"].as_str().unwrap())).expect(200)["results"], job["results"]);
    let trail = caller.get(&format!("/v1/audit?request_id={}", job["id"].as_str().unwrap())).expect(200);
    assert_eq!(trail["records"].as_array().map(Vec::len), Some(2), "accepted and finished: {trail}");
    let keys = caller.get("/v1/keys").expect(200);
    assert_eq!(keys["keys"].as_array().map(Vec::len), Some(1), "{keys}");
    assert_eq!(paste(&home, &again.curl())["results"][0]["status"], "success");
    assert_eq!(again.end(Signal::SIGTERM), Some(0), "{}", again.log());
    assert_eq!(again.others(), []);
}

#[test]
fn once_prints_both_outcomes_in_full_and_names_the_step_that_fails() {
    let home = Home::new();
    // In the folder that is taken unless another is named.
    let once = ["up", "--once"];
    let said = home.run(&once).good();
    let [job, outcome] = &documents(&said)[..] else { panic!("two documents, not\n{said}") };
    assert_eq!((&job["status"], &job["results"][0]["status"]), (&json!("finished"), &json!("success")), "{job}");
    assert_eq!((&outcome["status"], &outcome["tool"]), (&json!("success"), &json!("tcp")), "{outcome}");
    for outcome in [&job["results"][0], outcome] {
        assert!(outcome["report"].is_object() && outcome["output"].as_str().is_some_and(|text| !text.is_empty()), "{outcome}");
        assert!(outcome["node"]["id"].as_str().is_some_and(|id| id.starts_with("demo-")), "{outcome}");
    }

    // The service's credential cannot be written where a folder is.
    let in_the_way = home.path(".probeops/services/first-service.creds");
    std::fs::create_dir(&in_the_way).unwrap();
    let failed = home.run(&once);
    assert_eq!((failed.code, documents(&failed.out).len()), (Some(1), 1), "{}", failed.err);
    let last = failed.err.lines().last().unwrap();
    assert!(last.starts_with("probeops: step `a job straight over NATS` failed: ") && last.contains("first-service.creds"), "{last}");
    std::fs::remove_dir(&in_the_way).unwrap();

    // A key that may look and not ask.
    let mut up = home.up(".probeops", &[]);
    let key = home.run(&["keys", "add", "reader", "--scopes", "nodes:read"]).good();
    assert_eq!(up.end(Signal::SIGTERM), Some(0));
    std::fs::write(home.path(".probeops/admin.key"), key).unwrap();
    let failed = home.run(&once);
    assert_eq!((failed.code, failed.out.as_str()), (Some(1), ""), "{}", failed.err);
    let last = failed.err.lines().last().unwrap();
    assert!(last.starts_with("probeops: step `a job over HTTP` failed: forbidden") && last.contains("jobs:write"), "{last}");
}

#[test]
fn somebody_who_may_do_nothing_gets_ping_or_tcp_as_the_kernel_allows_and_no_memory_of_his_own_programs() {
    let home = Home::new();
    home.folder_of_nobody("home");
    std::fs::set_permissions(home.path(""), std::fs::Permissions::from_mode(0o755)).unwrap();
    let nats_server = home.nats_server();
    let data = home.path("home/data");
    let up = |more: &[&str]| {
        let mut command = home.as_nobody(home.probeops(&["up", "--data", data.to_str().unwrap()]).args(more));
        command.env("HOME", home.path("home")).env("NATS_SERVER", &nats_server);
        command
    };
    let run = |more: &[&str]| home.finish(up(&[&["--once"], more].concat()));
    let said = run(&[]).good();
    let [job, outcome] = &documents(&said)[..] else { panic!("two documents, not\n{said}") };
    let group = if is_root() { NOBODY } else { nix::unistd::getegid().as_raw() };
    assert_eq!(job["tool"], if may_ping(group) { "ping" } else { "tcp" }, "{job}");
    assert_eq!((&job["results"][0]["status"], &outcome["status"]), (&json!("success"), &json!("success")), "{said}");
    if may_ping(group) {
        run(&["--allow-ping"]).good();
    } else {
        let why = run(&["--allow-ping"]).bad(2);
        assert!(why.contains("needs root; run `sudo sysctl -w net.ipv4.ping_group_range="), "{why}");
    }
    let mut up = home.start_up_of("home/data", up(&["--http", "127.0.0.1:0"]));
    up.wait_ready();
    nobody_has_its_memory(&home, &up);
    assert_eq!(up.end(Signal::SIGTERM), Some(0), "{}", up.log());
}

/// No core is dumped of whatever `up` runs, and no process of the same user may look into our programs.
fn nobody_has_its_memory(home: &Home, up: &Up) {
    let (mut ours, mut others) = (0, 0);
    for (process, line) in up.others().into_iter().chain([(i32::try_from(up.process_id()).unwrap(), "probeops up".to_owned())]) {
        let limits = std::fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
        let core: Vec<&str> = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap().split_whitespace().collect();
        assert_eq!(core[4..6], ["0", "0"], "{line}: {limits}");
        // What a debugger needs is needed for this, too. Root may always.
        let mut looks = Command::new("cat");
        looks.arg(format!("/proc/{process}/environ"));
        if is_root() {
            looks.uid(NOBODY).gid(NOBODY);
        }
        let seen = home.finish(looks);
        if line.contains("server.conf") {
            // The broker and its shells are not ours; of them it is seen that whoever looks would see.
            others += 1;
            assert!(seen.good().contains("HOME="), "{line}");
        } else {
            ours += 1;
            assert!(
                seen.code == Some(1) && seen.err.contains("Permission denied") && seen.out.is_empty(),
                "{line}: {}{}",
                seen.out,
                seen.err
            );
        }
    }
    assert_eq!((ours, others), (6, 3), "`up`, a keymaster, a sentry, an API, two agents; a broker below its shells: {:?}", up.others());
}

#[test]
fn a_killed_up_leaves_nothing_running_and_the_next_one_starts() {
    let home = Home::new();
    let mut up = home.up("data", &[]);
    let job = paste(&home, &up.curl());
    let left: Vec<(i32, String)> = up.others();
    // An answer does not wait for its job to be kept; whoever reads it does.
    let kept = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    up.caller().get(&kept).expect(200);
    assert_eq!(up.end(Signal::SIGKILL), None);
    // At once, while the old broker may still have the streams.
    let mut next = home.up("data", &[]);
    let mut still = next.others();
    still.retain(|process| left.contains(process));
    assert_eq!(still, [], "what was left has ended");
    assert_eq!(next.caller().get(&kept).expect(200)["results"], job["results"]);

    // What ends by itself ends everything, with one line.
    let (api, _) = next.others().into_iter().find(|(_, line)| line.contains(" api ")).unwrap();
    kill(Pid::from_raw(api), Signal::SIGKILL).unwrap();
    assert_eq!(next.wait(), Some(1), "{}", next.log());
    assert_eq!(next.others(), []);
    let complaint = next.line("probeops: ");
    assert!(complaint.starts_with("api ended by itself (signal: 9 (SIGKILL)") && complaint.contains("log/api.log"), "{complaint}");

    // Killed while it starts, and told to stop while it starts.
    let mut starting = home.start_up("data", &[]);
    let brokers = |up: &Up| up.others().into_iter().filter(|(_, line)| line.contains("server.conf")).collect::<Vec<_>>();
    wait_until("its broker is there", || !brokers(&starting).is_empty());
    let old = brokers(&starting);
    assert_eq!(starting.end(Signal::SIGKILL), None);
    let mut starting = home.start_up("data", &[]);
    // The old one may still be about to end.
    wait_until("its own broker is there", || brokers(&starting).iter().any(|broker| !old.contains(broker)));
    assert_eq!(starting.end(Signal::SIGTERM), Some(0), "{}", starting.log());
    assert_eq!(starting.others(), []);
    let mut last = home.up("data", &[]);
    assert_eq!(paste(&home, &last.curl())["results"][0]["status"], "success");
    assert_eq!(last.end(Signal::SIGINT), Some(0));
}

#[test]
fn credentials_that_expired_while_it_was_away_are_renewed_at_the_start() {
    let home = Home::new();
    let mut up = home.up("data", &["--credential-lifetime", "10s"]);
    let held = |name: &str| Credentials::read_if_exists(&home.path(name)).unwrap().unwrap().expires_at;
    let own = ["data/creds/api.creds", "data/creds/collector.creds"];
    let files = [own[0], own[1], "data/nodes/demo-eu-1/node.creds", "data/nodes/demo-us-1/node.creds"];
    // It outlives its first credentials.
    let first: Vec<Timestamp> = files.iter().map(|name| held(name)).collect();
    wait_until("the first credentials are over", || first.iter().all(|expiry| *expiry < Timestamp::now()));
    let job = paste(&home, &up.curl());
    assert_eq!(job["results"][0]["status"], "success", "{job}\n{}", up.log());
    assert_eq!(up.end(Signal::SIGTERM), Some(0), "{}", up.log());
    // The clock goes past the last ones while nothing runs.
    wait_until("all credentials are over", || files.iter().all(|name| held(name) < Timestamp::now()));
    let mut again = home.up("data", &[]);
    assert_eq!(paste(&home, &again.curl())["results"][0]["status"], "success", "{}", again.log());
    let twenty_nine_days = Timestamp::now().plus(std::time::Duration::from_hours(29 * 24));
    for name in files {
        // Nodes renew their own, from day to day.
        let least = if own.contains(&name) { twenty_nine_days } else { Timestamp::now().plus(std::time::Duration::from_hours(20)) };
        assert!(held(name) > least, "{name} lasts until {}", held(name));
    }
    assert_eq!(again.end(Signal::SIGTERM), Some(0));
}
