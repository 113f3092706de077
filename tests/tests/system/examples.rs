//! The example in Rust does what it says; its neighbours in Python and JavaScript are run by tests/python/examples.py.

use std::process::Command;

use probeops_tests::fabric::Fabric;
use serde_json::json;

#[test]
fn the_example_asks_directly_and_at_the_front_door_and_says_what_is_forbidden() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("e-1", "eu");
    api.wait_for_nodes(1);
    let made = api.admin().post("/v1/services", &json!({"name": "billing", "regions": ["eu"], "tools": ["ping"]})).expect(201);
    let creds = fabric.file("billing.creds", made["creds"].as_str().unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_example"));
    command.arg(fabric.url()).arg(fabric.ca()).arg(creds).args(["billing", "eu"]);
    let done = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{out}{err}");
    let said: Vec<&str> = out.lines().collect();
    assert_eq!(said.first(), Some(&"outcome: success from e-1"), "{out}");
    let events = |word: &str| said.iter().filter(|line| line.starts_with(word)).count();
    assert_eq!((events("event: accepted"), events("event: outcome"), events("event: progress")), (1, 1, 3), "{out}");
    assert!(out.contains(r#"event: progress ["64 bytes from 127.0.0.1: icmp_seq=2"#), "{out}");
    assert!(out.contains("job: finished with 1 outcome"), "{out}");
    assert_eq!((events("door: job"), events("door: progress"), events("door: outcome"), events("door: finished")), (1, 3, 1, 1), "{out}");
    assert!(out.contains("problem: 403 forbidden"), "{out}");
    let forbidden = said.last().unwrap().to_lowercase();
    assert!(forbidden.starts_with("forbidden: ") && forbidden.contains("permissions violation for publish"), "{out}");
}
