//! Every tool's success and every kind of failure that a run can end with, asked over HTTP.

use std::io::Write;
use std::net::{TcpListener, UdpSocket};

use probeops_shared::tools::ToolName;
use probeops_tests::fabric::{AgentOptions, Fabric};
use serde_json::json;

#[test]
fn every_tool_of_the_catalogue_is_announced_and_runs() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("t-1", "eu");
    api.wait_for_nodes(1);
    let catalogue = api.admin().get("/v1/tools").expect(200);
    let names: Vec<&str> = catalogue["tools"].as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    assert_eq!(names, ToolName::ALL.iter().map(|tool| tool.as_str()).collect::<Vec<_>>());
    for tool in ToolName::ALL {
        let node = api.admin().get("/v1/nodes/t-1").expect(200);
        let unavailable = node["beat"]["unavailable"].as_array().unwrap().iter().find(|lacks| lacks["tool"] == tool.as_str()).cloned();
        let answer = api.admin().job(tool.as_str(), "127.0.0.1", "node:t-1", &json!({}));
        match unavailable {
            None => assert_eq!(answer.outcome()["tool"], tool.as_str()),
            // A machine that grants no ICMP to this user says so, and how to change it.
            Some(lacks) => {
                assert!(lacks["grant"].as_str().unwrap().contains("ping_group_range"), "{lacks}");
                assert_eq!(answer.failure_kind(), "unsupported");
            }
        }
    }
}

#[test]
fn a_port_is_open_or_refused_and_both_are_findings() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("t-1", "eu");
    api.wait_for_nodes(1);
    for address in ["127.0.0.1", "::1"] {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let greeting = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"220 ready\r\n").unwrap();
        });
        let open = api.admin().job("tcp", address, "eu", &json!({"port": port, "banner": true})).outcome();
        assert_eq!(open["report"]["ports"][0]["state"], "open", "{open}");
        greeting.join().unwrap();
        assert!(open["report"]["ports"][0]["banner"].to_string().contains("220 ready"), "{open}");
        assert!(open["report"]["ports"][0]["connect_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{open}");
        let refused = api.admin().job("tcp", address, "eu", &json!({"port": port})).outcome();
        assert_eq!((&refused["status"], &refused["report"]["ports"][0]["state"]), (&json!("success"), &json!("refused")), "{refused}");
    }
}

#[test]
fn dns_asks_the_resolver_it_is_told_to() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("t-1", "eu");
    api.wait_for_nodes(1);
    // Answers one query with NXDOMAIN: the query itself, marked as an answer.
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let answering = std::thread::spawn(move || {
        let mut message = [0; 512];
        let (length, from) = server.recv_from(&mut message).unwrap();
        message[2] = 0x81;
        message[3] = 0x83;
        // Without the query's OPT record.
        message[10] = 0;
        message[11] = 0;
        let question_end = 12 + message[12..length].iter().position(|byte| *byte == 0).unwrap() + 5;
        server.send_to(&message[..question_end], from).unwrap();
    });
    let outcome = api.admin().job("dns", "nowhere.example", "eu", &json!({"resolver": "127.0.0.1", "port": port})).outcome();
    assert_eq!(outcome["status"], "success", "{outcome}");
    assert_eq!(outcome["report"]["rcode"]["name"], "NXDOMAIN", "{outcome}");
    answering.join().unwrap();
    assert!(outcome["output"].as_str().unwrap().contains("status: NXDOMAIN"), "{outcome}");
}

#[test]
fn each_kind_of_failure_is_told_apart() {
    let fabric = Fabric::start();
    let api = fabric.api();
    // A name server that never answers.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let resolver = silent.local_addr().unwrap().to_string();
    fabric.agent_with("k-1", "eu", &AgentOptions { resolvers: Some(resolver), slots_light: Some(1), ..AgentOptions::default() });
    fabric.agent_with("k-2", "narrow", &AgentOptions { tools: vec!["echo"], ..AgentOptions::default() });
    api.wait_for_nodes(2);
    let admin = api.admin();
    assert_eq!(admin.job("tcp", "169.254.169.254", "eu", &json!({})).failure_kind(), "denied");
    assert_eq!(admin.job("tcp", "::ffff:169.254.169.254", "eu", &json!({})).failure_kind(), "denied");
    assert_eq!(admin.job("tcp", "127.0.0.1", "node:k-2", &json!({})).failure_kind(), "unsupported");
    let silent_resolver = admin.job("tcp", "name.example", "eu", &json!({"timeout": 1})).failure_kind();
    assert!(["timed_out", "unresolved"].contains(&silent_resolver.as_str()), "{silent_resolver}");
    admin.post("/v1/nodes/k-2/drain", &json!({})).expect(200);
    assert_eq!(admin.job("echo", "x", "node:k-2", &json!({})).failure_kind(), "draining");
    let gone = admin.job("echo", "x", "narrow", &json!({}));
    assert!(gone.status == 503 || gone.body["results"][0]["failure"]["kind"] == "draining", "{}", gone.text);
}

#[test]
fn a_name_without_an_address_is_unresolved() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("u-1", "eu");
    api.wait_for_nodes(1);
    assert_eq!(api.admin().job("tcp", "no-such-name.invalid", "eu", &json!({})).failure_kind(), "unresolved");
}
