//! The agent on the wire, as a raw client of the broker sees it: events, cancelling, groups, and links that break.

use std::io::Write;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use async_nats::StatusCode;
use futures_util::StreamExt;
use probeops_nats::permissions::Role;
use probeops_shared::ids::Caller as CallerName;
use probeops_shared::subjects;
use probeops_tests::asker::{Asker, Heard};
use probeops_tests::fabric::{AgentOptions, Fabric};
use probeops_tests::needs;
use probeops_tests::silent::Silent;
use probeops_tests::wire::Wire;
use serde_json::{Value, json};

/// A class that has been full for longer leaves its groups; and what that takes on top.
const LEFT_WITHIN: Duration = Duration::from_secs(2);

fn echo(request_id: &str) -> Value {
    json!({"request_id": request_id, "tool": "echo", "target": "x"})
}

/// The kinds in order; their numbers are checked to have no gaps.
#[track_caller]
fn kinds(heard: &[Heard]) -> Vec<&str> {
    let numbers: Vec<u64> = heard.iter().map(|heard| heard.seq).collect();
    assert_eq!(numbers, (0..).take(heard.len()).collect::<Vec<u64>>());
    heard.iter().map(|heard| heard.event.as_str()).collect()
}

#[test]
fn events_are_numbered_without_gaps_and_end_with_one_outcome() {
    let fabric = Fabric::start();
    fabric.agent("e-1", "eu");
    let asker = Asker::service(&fabric, &["echo", "tcp"], &[]);
    let events = [("Probe-Events", "1"), ("Probe-Attempt", "3")];
    let silent = Silent::start();
    let long = asker.ask("job.v1.eu.tcp", &silent.job("long", 5_000), &events).all();
    assert_eq!(kinds(&long), ["accepted", "progress", "progress", "alive", "alive", "progress", "outcome"], "{long:?}");
    assert!(long.iter().all(|heard| heard.attempt == Some(3) && heard.body["request_id"] == "long"), "{long:?}");
    assert_eq!((&long[1].body["progress"]["address"], &long[2].body["progress"]["type"]), (&json!("127.0.0.1"), &json!("open")));
    assert_eq!(long[5].body["progress"]["type"], "port", "with the banner that did not come: {long:?}");
    assert_eq!(long[6].body["report"]["ports"][0]["state"], "open");
    // The policy is asked by the run, which has begun then; what is refused before is not accepted.
    let denied = asker.ask("job.v1.eu.tcp", &json!({"tool": "tcp", "target": "169.254.169.254"}), &events).all();
    assert_eq!((kinds(&denied), &denied[1].body["failure"]["kind"]), (vec!["accepted", "outcome"], &json!("denied")));
    assert_eq!(kinds(&asker.ask("job.v1.eu.echo", &json!({"tool": "tcp"}), &events).all()), ["outcome"]);
    // Without the header there is one message, however long it takes.
    assert_eq!(kinds(&asker.ask("job.v1.eu.tcp", &silent.job("quiet", 2_500), &[]).all()), ["outcome"]);
}

/// With the credential of one and nothing of ours between: whatever it claims of who asks and what he may, the owner's file has the last word.
#[test]
fn an_api_that_is_taken_over_has_no_node_touch_what_its_owner_denies() {
    let fabric = Fabric::start();
    fabric.agent_with("o-1", "eu", &AgentOptions { allow_loopback: false, ..AgentOptions::default() });
    let (taken_over, listener) = (Asker::api(&fabric), TcpListener::bind("127.0.0.1:0").unwrap());
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let claims = [("Probe-Principal", "key:admin"), ("Probe-Targets", "127.0.0.0/8,169.254.0.0/16,localhost,example.com,192.0.2.1,::/0")];
    let denied = |tool: &str, target: &str, parameters: &Value, headers: &[(&str, &str)]| {
        let body = json!({"request_id": "r-1", "tool": tool, "target": target, "parameters": parameters});
        for subject in [format!("node.v1.o-1.job.{tool}"), format!("job.v1.eu.{tool}")] {
            let outcome = taken_over.ask(&subject, &body, headers).hear().body;
            assert_eq!(outcome["failure"]["kind"], "denied", "{tool} {target}: {outcome}");
            assert!(outcome["failure"]["detail"].as_str().unwrap().contains("this node's policy"), "{tool} {target}: {outcome}");
        }
    };
    for headers in [&claims[..], &claims[..1], &[]] {
        for target in ["127.0.0.1", "::ffff:127.0.0.1", "localhost", "169.254.169.254"] {
            denied("tcp", target, &json!({"port": port}), headers);
        }
    }
    denied("http", &format!("http://127.0.0.1:{port}/"), &json!({}), &claims);
    denied("http", &format!("http://192.0.2.1:{port}/"), &json!({"resolve": "127.0.0.1"}), &claims);
    denied("http", "http://192.0.2.1/", &json!({"proxy": format!("http://127.0.0.1:{port}")}), &claims);
    denied("dns", "example.com", &json!({"resolver": "127.0.0.1", "port": port}), &claims);
    // Nobody has come.
    assert_eq!(listener.accept().map(drop).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn the_shortest_run_is_told_as_it_happens_to_whoever_wants_every_event() {
    let fabric = Fabric::start();
    fabric.agent("q-1", "eu");
    let asker = Asker::service(&fabric, &["echo", "tcp"], &[]);
    let events = [("Probe-Events", "1")];
    assert_eq!(kinds(&asker.ask("job.v1.eu.echo", &echo("echo"), &events).all()), ["accepted", "outcome"]);
    // A port where nobody listens is refused in less than a millisecond.
    let refused = json!({"request_id": "refused", "tool": "tcp", "target": "127.0.0.1", "parameters": {"port": 1}});
    let heard = asker.ask("job.v1.eu.tcp", &refused, &events).all();
    assert_eq!(kinds(&heard), ["accepted", "progress", "progress", "outcome"], "{heard:?}");
    assert_eq!((&heard[1].body["progress"]["type"], &heard[2].body["progress"]["state"]), (&json!("resolved"), &json!("refused")));
    assert_eq!(heard[3].body["output"], heard[2].body["output"], "{heard:?}");
}

#[test]
fn whoever_wants_signs_of_life_hears_of_long_runs_only_that_they_go_on() {
    let fabric = Fabric::start();
    fabric.agent("s-1", "eu");
    let asker = Asker::service(&fabric, &["echo", "tcp"], &[]);
    let signs = [("Probe-Events", "2")];
    assert_eq!(kinds(&asker.ask("job.v1.eu.echo", &echo("short"), &signs).all()), ["outcome"]);
    let silent = Silent::start();
    let long = asker.ask("job.v1.eu.tcp", &silent.job("long", 5_000), &signs).all();
    assert_eq!(kinds(&long), ["accepted", "alive", "alive", "outcome"], "{long:?}");
    assert!(long.iter().all(|heard| heard.body["request_id"] == "long"), "{long:?}");
    assert_eq!(long[3].body["report"]["ports"][0]["state"], "open");
}

#[test]
fn what_a_run_finds_is_told_as_it_happens_and_kept_when_it_is_cut_short() {
    let fabric = Fabric::start();
    fabric.agent("p-1", "eu");
    let asker = Asker::api(&fabric);
    let body = json!({"request_id": "p", "tool": "ping", "target": "127.0.0.1", "parameters": {"count": 100, "interval_ms": 200}});
    let mut run = asker.ask("node.v1.p-1.job.ping", &body, &[("Probe-Events", "1")]);
    let mut heard: Vec<Heard> = (0..4).map(|_| run.hear()).collect();
    assert_eq!(asker.cancel("p-1", "p"), json!({"changed": true}));
    heard.extend(run.all());
    let outcome = &heard.last().unwrap().body;
    assert_eq!(outcome["failure"]["kind"], "cancelled", "{outcome}");
    let told: Vec<&Value> = heard.iter().filter(|heard| heard.event == "progress").map(|heard| &heard.body).collect();
    assert_eq!(kinds(&heard)[..2], ["accepted", "progress"]);
    assert_eq!((&told[0]["progress"]["type"], &told[1]["progress"]["seq"]), (&json!("resolved"), &json!(1)), "{told:?}");
    let packets = outcome["report"]["packets"].as_array().unwrap();
    assert_eq!(
        packets.iter().map(|packet| &packet["seq"]).collect::<Vec<_>>(),
        told[1..].iter().map(|told| &told["progress"]["seq"]).collect::<Vec<_>>()
    );
    // Together they print what the whole prints before its figures.
    let printed: String = told.iter().map(|told| told["output"].as_str().unwrap()).collect();
    assert!(outcome["output"].as_str().unwrap().starts_with(&printed), "{printed}\n{outcome}");
}

#[test]
fn a_cancel_reaches_a_waiting_run_and_frees_its_slot() {
    let fabric = Fabric::start();
    fabric.agent_with("k-1", "eu", &AgentOptions { slots_probe: Some(1), ..AgentOptions::default() });
    let (api, service) = (Asker::api(&fabric), Asker::service(&fabric, &["tcp"], &["k-1"]));
    let silent = Silent::start();
    let mut run = api.ask("node.v1.k-1.job.tcp", &silent.job("c-1", 10_000), &[]);
    let stream = silent.connected();
    assert_eq!(service.ask("node.v1.k-1.job.tcp", &silent.job("s-1", 100), &[]).hear().body["failure"]["kind"], "busy");
    assert_eq!(api.cancel("k-1", "no-such-request"), json!({"changed": false}));
    // Another replica may cancel what this one asked for.
    assert_eq!(Asker::api(&fabric).cancel("k-1", "c-1"), json!({"changed": true}));
    let outcome = run.hear().body;
    assert_eq!((&outcome["status"], &outcome["failure"]["kind"]), (&json!("failed"), &json!("cancelled")), "{outcome}");
    assert_eq!(outcome["report"]["ports"][0]["state"], "open", "what was found until then: {outcome}");
    drop(stream);
    let next = service.ask("node.v1.k-1.job.tcp", &silent.job("s-2", 100), &[]).hear().body;
    assert_eq!(next["status"], "success", "the slot is free: {next}");
}

#[test]
fn nobody_but_the_api_cancels() {
    let fabric = Fabric::start();
    fabric.agent("k-1", "eu");
    let (api, service) = (Asker::api(&fabric), Asker::service(&fabric, &["tcp"], &["k-1"]));
    let silent = Silent::start();
    let mut run = service.ask("node.v1.k-1.job.tcp", &silent.job("mine", 1_500), &[]);
    let _stream = silent.connected();
    // The broker does not let a service publish there at all; and a replica does not cancel what a service asked for.
    assert!(service.ask("node.v1.k-1.ctl.cancel", &json!({"request_id": "mine"}), &[]).within(Duration::from_millis(500)).is_none());
    assert_eq!(api.cancel("k-1", "mine"), json!({"changed": false}));
    assert_eq!(run.hear().body["status"], "success");
}

#[test]
fn the_same_request_again_drops_the_older_run_and_takes_its_slot() {
    let fabric = Fabric::start();
    fabric.agent_with("r-1", "eu", &AgentOptions { slots_probe: Some(1), ..AgentOptions::default() });
    let asker = Asker::service(&fabric, &["tcp"], &["r-1"]);
    let silent = Silent::start();
    let mut older = asker.ask("node.v1.r-1.job.tcp", &silent.job("again", 10_000), &[]);
    let _first = silent.connected();
    let mut newer = asker.ask("node.v1.r-1.job.tcp", &silent.job("again", 300), &[]);
    assert_eq!(older.hear().body["failure"]["kind"], "cancelled");
    let outcome = newer.hear().body;
    assert_eq!((&outcome["status"], &outcome["report"]["ports"][0]["state"]), (&json!("success"), &json!("open")), "{outcome}");
}

#[test]
fn a_later_attempt_is_the_only_one_that_is_answered() {
    let fabric = Fabric::start();
    fabric.agent_with("r-1", "eu", &AgentOptions { slots_probe: Some(1), ..AgentOptions::default() });
    let asker = Asker::api(&fabric);
    let silent = Silent::start();
    let mut first = asker.ask("node.v1.r-1.job.tcp", &silent.job("again", 10_000), &[("Probe-Attempt", "1")]);
    let _first = silent.connected();
    let mut second = asker.ask("node.v1.r-1.job.tcp", &silent.job("again", 300), &[("Probe-Attempt", "2")]);
    let outcome = second.hear();
    assert_eq!((&outcome.body["status"], outcome.attempt), (&json!("success"), Some(2)), "{outcome:?}");
    // The end of the first would be taken for the end of the job.
    assert!(first.within(Duration::from_secs(1)).is_none());
}

#[test]
fn a_full_node_leaves_its_groups_and_comes_back_when_there_is_room() {
    let fabric = Fabric::start();
    let agent = fabric.agent_with("g-1", "eu", &AgentOptions { slots_probe: Some(1), ..AgentOptions::default() });
    let (api, asker) = (Asker::api(&fabric), Asker::service(&fabric, &["tcp", "echo"], &["g-1"]));
    let silent = Silent::start();
    let ask = |id: &str| asker.ask("job.v1.eu.tcp", &silent.job(id, 100), &[]).hear();
    let mut run = api.ask("node.v1.g-1.job.tcp", &silent.job("full", 10_000), &[]);
    let _stream = silent.connected();
    assert_eq!(ask("early").body["failure"]["kind"], "busy", "it is still in the group");
    agent.wait_for_log("leaving the groups");
    let left = Instant::now();
    while ask("later").status != Some(StatusCode::NO_RESPONDERS) {
        assert!(left.elapsed() < LEFT_WITHIN, "it is still in the group");
    }
    assert_eq!(asker.ask("node.v1.g-1.job.tcp", &silent.job("direct", 100), &[]).hear().body["failure"]["kind"], "busy");
    assert_eq!(asker.ask("job.v1.eu.echo", &echo("light"), &[]).hear().body["status"], "success", "the other class stays");
    assert_eq!(api.cancel("g-1", "full"), json!({"changed": true}));
    assert_eq!(run.hear().body["failure"]["kind"], "cancelled");
    let freed = Instant::now();
    while ask("again").status == Some(StatusCode::NO_RESPONDERS) {
        assert!(freed.elapsed() < LEFT_WITHIN, "it has not joined again");
    }
    assert_eq!(ask("last").body["status"], "success");
}

/// Publishes jobs to region `eu` in bursts until `enough`, and counts the answers until there is one for each.
#[track_caller]
fn all_are_answered(fabric: &Fabric, asker: &Asker<'_>, tool: &str, job: &Value, enough: impl Fn() -> bool) {
    let (client, job) = (asker.client(), job.to_string());
    fabric.block_on(async {
        let inbox = format!("_INBOX.billing.{:032x}", rand::random::<u128>());
        let mut answers = client.subscribe(format!("{inbox}.*")).await.unwrap();
        let (mut published, mut answered) = (0, 0);
        while !enough() {
            for _ in 0..50 {
                let subject = format!("job.v1.eu.{tool}.billing");
                client.publish_with_reply(subject, format!("{inbox}._"), job.clone().into()).await.unwrap();
                published += 1;
            }
            while tokio::time::timeout(Duration::from_millis(5), answers.next()).await.is_ok() {
                answered += 1;
            }
        }
        while answered < published {
            let next = tokio::time::timeout(Duration::from_secs(5), answers.next()).await;
            assert!(next.is_ok(), "{} of {published} jobs were never answered", published - answered);
            answered += 1;
        }
    });
}

#[test]
fn nothing_is_lost_while_a_node_leaves_and_joins_under_load() {
    const LEAVES: usize = 12;
    let fabric = Fabric::start();
    let agent = fabric.agent_with("l-1", "eu", &AgentOptions { slots_probe: Some(1), ..AgentOptions::default() });
    let asker = Asker::service(&fabric, &["tcp"], &[]);
    let silent = Silent::start();
    let mut job = silent.job("", 400);
    // Each is a request of its own.
    job.as_object_mut().unwrap().remove("request_id");
    all_are_answered(&fabric, &asker, "tcp", &job, || agent.log().matches("leaving the groups").count() >= LEAVES);
}

#[test]
fn nothing_is_lost_while_a_node_stops_under_load() {
    let fabric = Fabric::start();
    let agent = fabric.agent("l-1", "eu");
    let asker = Asker::service(&fabric, &["echo"], &[]);
    let (started, stopping) = (Instant::now(), std::cell::Cell::new(false));
    all_are_answered(&fabric, &asker, "echo", &json!({"tool": "echo", "target": "x"}), || {
        if started.elapsed() > Duration::from_secs(1) && !stopping.replace(true) {
            agent.terminate();
        }
        agent.log().contains("\"stopped\"") || agent.log().trim_end().ends_with("stopped")
    });
    assert_eq!(agent.wait(), Some(0), "{}", agent.log());
}

#[test]
fn each_run_of_a_node_that_stops_ends_with_its_outcome_after_its_events() {
    const RUNS: usize = 200;
    let fabric = Fabric::start();
    let agent = fabric.agent_with("o-1", "eu", &AgentOptions { slots_probe: Some(RUNS), ..AgentOptions::default() });
    // Nobody is there who tells the node how much a service may.
    let asker = Asker::api(&fabric);
    let silent = Silent::start();
    // They end at the same moment, and each has something to tell then.
    let mut runs: Vec<_> =
        (0..RUNS).map(|index| asker.ask("job.v1.eu.tcp", &silent.job(&format!("r{index}"), 2_000), &[("Probe-Events", "1")])).collect();
    assert!(runs.iter_mut().all(|run| run.hear().event == "accepted"));
    agent.terminate();
    for mut run in runs {
        let mut heard = vec![run.hear()];
        while heard.last().unwrap().event != "outcome" {
            heard.push(run.hear());
        }
        assert!((1..).zip(&heard).all(|(seq, heard)| heard.seq == seq), "{heard:?}");
        let (last, before) = heard.split_last().unwrap();
        assert_eq!((last.event.as_str(), &last.body["status"]), ("outcome", &json!("success")), "{heard:?}");
        assert_eq!(before.last().unwrap().body["progress"]["type"], "port", "{heard:?}");
        let ports = &last.body["report"]["ports"];
        assert_eq!(ports[0]["state"], "open", "{heard:?}");
    }
    assert_eq!(agent.wait(), Some(0), "{}", agent.log());
}

#[test]
fn a_run_that_ends_while_the_link_is_dead_is_answered_after_the_reconnect() {
    needs::icmp();
    let fabric = Fabric::start();
    let wire = Wire::to(fabric.listen());
    fabric.agent_with("w-1", "eu", &AgentOptions { server: Some(format!("tls://{}", wire.address())), ..AgentOptions::default() });
    let asker = Asker::service(&fabric, &["tcp", "ping"], &[]);
    let silent = Silent::start();
    // One ends before anybody has noticed that the link is dead, which takes up to 30 s; the other when the link is back.
    let mut waits = silent.job("early", 2_000);
    waits["parameters"]["timeout"] = json!(30);
    let early = asker.ask("job.v1.eu.tcp", &waits, &[]);
    let _stream = silent.connected();
    let parameters = json!({"count": 5, "interval_ms": 10_000});
    let late = json!({"request_id": "late", "tool": "ping", "target": "127.0.0.1", "parameters": parameters});
    let mut late = asker.ask("job.v1.eu.ping", &late, &[("Probe-Events", "1")]);
    assert_eq!(late.hear().event, "accepted");
    wire.cut();
    let heard = early.all();
    assert_eq!(kinds(&heard), ["outcome"]);
    assert_eq!(
        (&heard[0].body["request_id"], &heard[0].body["report"]["ports"][0]["state"]),
        (&json!("early"), &json!("open")),
        "{heard:?}"
    );
    let heard = late.all();
    let last = heard.last().unwrap();
    assert_eq!((&last.body["request_id"], &last.body["report"]["stats"]["received"]), (&json!("late"), &json!(5)), "{heard:?}");
    // The numbers tell how many events were lost with the link.
    assert!(last.seq > u64::try_from(heard.len()).unwrap(), "{heard:?}");
}

#[test]
fn what_cannot_leave_before_an_agent_stops_is_named_in_its_log() {
    let fabric = Fabric::start();
    let wire = Wire::to(fabric.listen());
    let agent =
        fabric.agent_with("w-1", "eu", &AgentOptions { server: Some(format!("tls://{}", wire.address())), ..AgentOptions::default() });
    let asker = Asker::service(&fabric, &["tcp"], &[]);
    let silent = Silent::start();
    let _run = asker.ask("job.v1.eu.tcp", &silent.job("last-words", 1_000), &[]);
    let _stream = silent.connected();
    wire.break_off();
    agent.wait_for_log("the connection to the broker is gone");
    agent.terminate();
    assert_eq!(agent.wait(), Some(0), "{}", agent.log());
    let log = agent.log();
    let line = log.lines().find(|line| line.contains("an outcome is lost")).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains("last-words") && line.contains("tcp") && line.contains("the broker was away until the agent stopped"), "{line}");
    assert!(log.contains("the agent stops with audit records that nobody acknowledged"), "{log}");
}

#[test]
fn ping_measures_this_machine_over_both_families() {
    needs::icmp();
    needs::ipv6_loopback();
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("p-1", "eu");
    api.wait_for_nodes(1);
    for (address, family) in [("127.0.0.1", "4"), ("::1", "6")] {
        let outcome = api.admin().job("ping", address, "eu", &json!({"count": 3, "interval_ms": 100, "family": family})).outcome();
        let (stats, packets) = (&outcome["report"]["stats"], outcome["report"]["packets"].as_array().unwrap());
        assert_eq!((&stats["sent"], &stats["received"], &stats["loss_pct"]), (&json!(3), &json!(3), &json!(0.0)), "{outcome}");
        let rtts: Vec<f64> = packets.iter().map(|packet| packet["rtt_ms"].as_f64().unwrap()).collect();
        let (least, most) = (rtts.iter().copied().fold(f64::MAX, f64::min), rtts.iter().copied().fold(0.0, f64::max));
        assert_eq!((stats["rtt_min_ms"].as_f64(), stats["rtt_max_ms"].as_f64()), (Some(least), Some(most)), "{outcome}");
        assert!(least > 0.0 && outcome["report"]["family"] == family && outcome["report"]["address"] == address, "{outcome}");
        let method = outcome["report"]["method"].as_str().unwrap();
        assert!(["icmp_datagram", "icmp_raw"].contains(&method), "{method}");
        assert!(outcome["duration_ms"].as_f64().unwrap() >= stats["sending_ms"].as_f64().unwrap(), "{outcome}");
    }
}

#[test]
fn a_run_that_outlasts_its_budget_is_timed_out_with_what_it_found() {
    needs::icmp();
    let fabric = Fabric::start();
    let agent = fabric.agent("b-1", "eu");
    let asker = Asker::service(&fabric, &["ping"], &[]);
    let events = [("Probe-Events", "1")];
    let parameters = json!({"count": 100, "interval_ms": 100, "timeout": 0.1});
    let mut run = asker.ask("job.v1.eu.ping", &json!({"tool": "ping", "target": "127.0.0.1", "parameters": parameters}), &events);
    while run.hear().body["progress"]["type"] != "packet" {}
    // Its budget is 15.5 s. Held still for longer, it has not sent all when it goes on.
    agent.pause();
    std::thread::sleep(Duration::from_secs(16));
    agent.resume();
    let outcome = run.all().pop().unwrap().body;
    assert_eq!((&outcome["status"], &outcome["failure"]["kind"]), (&json!("failed"), &json!("timed_out")), "{outcome}");
    let stats = &outcome["report"]["stats"];
    assert!(stats["received"].as_u64().is_some_and(|received| (1..100).contains(&received)), "{outcome}");
    assert!(outcome["output"].as_str().unwrap().starts_with("PING 127.0.0.1"), "{outcome}");
}

#[test]
fn a_large_outcome_is_cut_and_the_link_survives_it() {
    let fabric = Fabric::start();
    fabric.agent("o-1", "eu");
    let asker = Asker::service(&fabric, &["dns", "echo"], &[]);
    // One TXT record of 65,000 bytes that each take five characters in JSON, twice: in the report and in the output.
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        let mut query = [0; 512];
        let length = std::io::Read::read(&mut stream, &mut query).unwrap();
        let question_end = 14 + query[14..length].iter().position(|byte| *byte == 0).unwrap() + 5;
        let strings: Vec<u8> = std::iter::repeat_n([&[255][..], &[0xff; 255]].concat(), 254).flatten().collect();
        let mut message = query[2..question_end].to_vec();
        message[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        message.extend([0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 60]);
        message.extend(u16::try_from(strings.len()).unwrap().to_be_bytes());
        message.extend(strings);
        stream.write_all(&u16::try_from(message.len()).unwrap().to_be_bytes()).unwrap();
        stream.write_all(&message).unwrap();
    });
    let parameters = json!({"type": "TXT", "resolver": "127.0.0.1", "port": port, "protocol": "tcp"});
    let body = json!({"request_id": "large", "tool": "dns", "target": "large.example", "parameters": parameters});
    let mut run = asker.ask("job.v1.eu.dns", &body, &[]);
    let outcome = run.hear().body;
    assert_eq!((&outcome["request_id"], &outcome["status"], &outcome["truncated"]), (&json!("large"), &json!("success"), &json!(true)));
    answering.join().unwrap();
    assert_eq!(asker.ask("job.v1.eu.echo", &echo("after"), &[]).hear().body["status"], "success");
}

#[test]
fn a_caller_who_writes_much_does_not_break_the_trail() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("t-1", "eu");
    let asker = Asker::service(&fabric, &["echo"], &[]);
    let foreign = format!("_INBOX.other.{}", "x".repeat(3_000));
    let client = asker.client();
    fabric.block_on(async {
        for _ in 0..300 {
            client.publish_with_reply("job.v1.eu.echo.billing", foreign.clone(), "{}".into()).await.unwrap();
        }
        client.flush().await.unwrap();
    });
    assert_eq!(asker.ask("job.v1.eu.echo", &echo("after"), &[]).hear().body["status"], "success");
    api.wait_for_audit("principal=billing&verdict=denied", 300);
    api.wait_for_audit("principal=billing&verdict=finished", 1);
}

#[test]
fn an_agent_drains_and_hears_the_sentry_only_where_who_says_so_wants_an_answer() {
    let fabric = Fabric::start();
    let api = fabric.api();
    let agent = fabric.agent("a-1", "eu");
    api.wait_for_nodes(1);
    let caller: CallerName = "api-other".parse().unwrap();
    let speaking = fabric.connect(&fabric.credential(&Role::Api { caller }));
    let sentry = fabric.connect(&fabric.credential(&Role::Sentry));
    let (drain, cut) = (subjects::node_control("a-1", "drain", "api-other"), subjects::node_cut("a-1"));
    fabric.block_on(async {
        // As the broker would say it, where somebody wanted an answer of its led.
        speaking.publish(drain.clone(), r#"{"stream":"AUDIT","seq":1}"#.into()).await.unwrap();
        speaking.publish_with_reply(drain.clone(), "_INBOX.api-1.t._", "".into()).await.unwrap();
        sentry.publish(cut.clone(), "led there".into()).await.unwrap();
        sentry.publish_with_reply(cut.clone(), "_INBOX_c.api-other.x", "led there too".into()).await.unwrap();
        speaking.flush().await.unwrap();
        sentry.flush().await.unwrap();
    });
    // What came before this has been heard.
    assert_eq!(api.admin().job("echo", "x", "node:a-1", &json!({})).outcome()["status"], "success");
    assert!(!agent.log().contains("told to drain") && !agent.log().contains("led there"), "{}", agent.log());
    fabric.block_on(async {
        sentry.publish_with_reply(cut, "_INBOX_c.sentry.x", "said by her".into()).await.unwrap();
        speaking.publish_with_reply(drain, "_INBOX.api-other.t._", "".into()).await.unwrap();
        speaking.flush().await.unwrap();
        sentry.flush().await.unwrap();
    });
    api.wait_until("it has heard both", || agent.log().contains("told to drain") && agent.log().contains("said by her"));
    assert!(!agent.log().contains("led there"), "{}", agent.log());
}
