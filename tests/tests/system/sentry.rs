//! What the broker refuses is in the trail, and a key that two use is cut and revoked.

use std::path::Path;

use probeops_nats::permissions::Role;
use probeops_tests::fabric::{Api, ApiOptions, Fabric, Sentry, free_port};
use probeops_tests::up::Home;
use serde_json::{Value, json};

/// What the sentry has logged of violations: whose, on which subject, how many this line tells of, and how many it has seen in all by then.
fn logged_by(sentry: &Sentry) -> Vec<(String, String, u64, u64)> {
    let log = sentry.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let said = lines.filter_map(|line| {
        let fields = if line["fields"].is_object() { line["fields"].clone() } else { line };
        let of = |name: &str| fields[name].as_str().unwrap_or_default().to_owned();
        of("message").starts_with("violation: ").then(|| {
            (of("principal"), of("subject"), fields["count"].as_u64().unwrap_or_default(), fields["total"].as_u64().unwrap_or_default())
        })
    });
    said.collect()
}

/// Says something where this credential may not.
fn breaks(fabric: &Fabric, creds: &Path, subject: &'static str) {
    let client = fabric.connect(creds);
    fabric.block_on(async {
        client.publish(subject, "{}".into()).await.unwrap();
        client.flush().await.unwrap();
    });
}

#[test]
fn what_a_node_a_service_and_an_api_may_not_is_counted_logged_and_in_the_trail() {
    let fabric = Fabric::start();
    let sentry = fabric.sentry();
    let api = fabric.api();
    let agent = fabric.agent("a-1", "eu");
    api.wait_for_nodes(1);
    let replica = fabric.credential(&Role::Api { caller: "api-9".parse().unwrap() });
    let broken = [
        ("node:a-1", fabric.node_creds("a-1"), "job.v1.eu.echo.a-1"),
        ("service:billing", fabric.service("billing", &["eu"], &["echo"], &[]).creds, "job.v1.us.echo.billing"),
        ("part:api-9", replica, "job.v1.eu.echo.billing"),
    ];
    for (principal, creds, subject) in &broken {
        let before: u64 = logged_by(&sentry).iter().map(|(_, _, count, _)| count).sum();
        breaks(&fabric, creds, subject);
        let seen = api.wait_for_audit(&format!("verdict=violation&principal={principal}"), 1);
        assert_eq!((&seen[0]["target"], seen.len()), (&json!(subject), 1), "{seen:?}");
        let logged = logged_by(&sentry);
        let expected = (principal.to_string(), subject.to_string(), 1, before + 1);
        assert!(logged.contains(&expected), "{expected:?} is not in {logged:?}: {}", sentry.log());
    }
    drop(agent);
}

/// One whose credentials were mixed up: that with which it answers nodes is another, and may not.
#[test]
fn an_api_counts_and_logs_itself_what_it_was_forbidden() {
    let fabric = Fabric::start();
    let sound = fabric.api();
    let agent = fabric.agent("a-1", "eu");
    sound.wait_for_nodes(1);
    let counted = |api: &Api| {
        let metrics = api.admin().get("/metrics").text;
        let line = metrics.lines().find_map(|line| line.strip_prefix("probeops_violations_total ")).map(str::to_owned);
        line.and_then(|count| count.parse::<u64>().ok()).unwrap_or_else(|| panic!("it counts none: {metrics}"))
    };
    assert_eq!(counted(&sound), 0, "who does what he is for is forbidden nothing");

    let address = free_port();
    let command = fabric.api_command(address, &ApiOptions::default());
    let given: Vec<&std::ffi::OsStr> = command.get_args().collect();
    let folder = given.iter().position(|argument| *argument == "--creds").map(|place| Path::new(given[place + 1]).to_owned()).unwrap();
    std::fs::copy(fabric.credential(&Role::Auditor), folder.join("acknowledger.creds")).unwrap();
    let mixed_up = fabric.api_of(address, command);
    // From now on there is nobody else whom the node could tell what it did.
    sound.kill();
    mixed_up.wait_until("it was forbidden something", || counted(&mixed_up) > 0);
    let count = counted(&mixed_up);
    let log = mixed_up.log();
    let forbidden: Vec<&str> = log.lines().filter(|line| line.contains("the broker forbade something: ")).collect();
    assert!(forbidden.len() as u64 >= count, "{count} are counted: {log}");
    for words in ["Permissions Violation for Publish to", "_INBOX_n.a-1", "\"violations_total\":1"] {
        assert!(forbidden[0].contains(words), "{words} is not in {}", forbidden[0]);
    }
    drop(agent);
}

#[test]
fn ordinary_work_is_no_violation_an_attack_is_and_a_cloned_agent_ends() {
    let fabric = Fabric::start();
    let sentry = fabric.sentry();
    let api = fabric.api();
    let first = fabric.agent("a-1", "eu");
    api.wait_for_nodes(1);
    for _ in 0..3 {
        api.admin().job("echo", "fine", "eu", &json!({})).expect(200);
    }
    assert_eq!(api.audit("verdict=violation"), Vec::<Value>::new(), "who does what he is for breaks nothing");

    let service = fabric.service("billing", &["eu"], &["echo"], &[]);
    let client = fabric.connect(&service.creds);
    fabric.block_on(async {
        client.publish("job.v1.us.echo.billing", "{}".into()).await.unwrap();
        client.flush().await.unwrap();
    });
    let seen = api.wait_for_audit("verdict=violation&principal=service:billing", 1);
    assert_eq!((&seen[0]["target"], &seen[0]["caller"]), (&json!("job.v1.us.echo.billing"), &json!("billing")), "{}", seen[0]);
    assert!(seen[0]["detail"].as_str().unwrap().starts_with("publish; from 127.0.0.1, key U"), "{}", seen[0]);

    // The same credential on another machine: both have it, and nobody can say which of them is the thief.
    let second = fabric.agent_again("a-1");
    assert_eq!((first.wait(), second.wait()), (Some(78), Some(78)), "both end: {}", sentry.log());
    let said = first.log();
    assert!(
        said.contains("the broker's sentry cuts this connection: clone: its key is used by two connections at the same time"),
        "{said}"
    );
    let records = api.wait_for_audit("verdict=violation&node=a-1", 3);
    for words in ["cut: clone", "clone: its key", "revoked: its key is void on probeops"] {
        assert!(records.iter().any(|record| record["detail"].as_str().unwrap().starts_with(words)), "{words}: {records:#?}");
    }

    // The register says so, too: at once, and of one that was cut while no API was there as soon as one is.
    let because = "clone: its key was used by two connections at the same time, from 127.0.0.1";
    let says = |api: &Api, id: &str| {
        let node = api.admin().get(&format!("/v1/nodes/{id}")).body;
        node["revoked"] == json!(true) && node["revoked_at"].is_string() && node["revoked_because"] == because && node["revoking"].is_null()
    };
    api.wait_until("the register says that it is revoked, when and why", || says(&api, "a-1"));
    let trail = api.audit("verdict=changed&node=a-1");
    assert!(
        trail.iter().any(|record| record["principal"] == "sentry" && record["detail"] == format!("node revoked: {because}")),
        "{trail:?}"
    );
    api.kill();
    let third = fabric.agent("a-2", "eu");
    let fourth = fabric.agent_again("a-2");
    assert_eq!((third.wait(), fourth.wait()), (Some(78), Some(78)), "{}", sentry.log());
    let (data, url) = (fabric.data().display().to_string(), fabric.url());
    let listed = Home::new().run(&["nodes", "list", "--data", &data, "--servers", &url]).good();
    let line = listed.lines().find(|line| line.starts_with("a-2 ")).unwrap_or_default();
    assert!(line.contains("revoked 2") && line.contains(because), "{listed}");
    let api = fabric.api();
    api.wait_until("an API that was away says so", || says(&api, "a-2"));
}
