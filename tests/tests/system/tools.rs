//! Every tool's success and every kind of failure that a run can end with, asked over HTTP.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, UdpSocket};
use std::thread::JoinHandle;
use std::time::Duration;

use probeops_shared::tools::ToolName;
use probeops_tests::fabric::{AgentOptions, Fabric};
use probeops_tests::needs;
use serde_json::json;

/// Only a hang takes this long.
const HANG: Duration = Duration::from_secs(60);

/// Answers one query with NXDOMAIN: the query itself, marked as an answer. Returns its port.
fn name_server() -> (u16, JoinHandle<()>) {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    server.set_read_timeout(Some(HANG)).unwrap();
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
    (port, answering)
}

/// Answers one question about a domain. Returns its port.
fn registry() -> (u16, JoinHandle<()>) {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        stream.set_read_timeout(Some(HANG)).unwrap();
        let mut question = String::new();
        BufReader::new(&stream).read_line(&mut question).unwrap();
        assert_eq!(question, "example.com\r\n");
        stream.write_all(b"Domain Name: EXAMPLE.COM\r\nRegistrar: Example Registrar\r\n").unwrap();
    });
    (port, answering)
}

#[test]
fn every_tool_of_the_catalogue_is_announced_and_runs() {
    needs::icmp();
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("t-1", "eu");
    api.wait_for_nodes(1);
    let catalogue = api.admin().get("/v1/tools").expect(200);
    let names: Vec<&str> = catalogue["tools"].as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    assert_eq!(names, ToolName::ALL.iter().map(|tool| tool.as_str()).collect::<Vec<_>>());
    let beat = api.admin().get("/v1/nodes/t-1").expect(200)["beat"].clone();
    assert_eq!((&beat["tools"], &beat["unavailable"]), (&json!(names), &json!([])));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (dns_port, answering) = name_server();
    let (whois_port, registering) = registry();
    let livez = format!("{}/livez", api.url());
    for tool in ToolName::ALL {
        let (parameters, pointer, found) = match tool {
            ToolName::Echo => (json!({"payload_bytes": 3}), "/payload", json!("xxx")),
            ToolName::Ping => (json!({"count": 2, "interval_ms": 100}), "/stats/received", json!(2)),
            ToolName::Traceroute => (json!({"queries": 1}), "/end", json!("reached")),
            ToolName::Mtr => (json!({"rounds": 2, "interval_ms": 200}), "/hops/0/received", json!(2)),
            ToolName::Dns => (json!({"resolver": "127.0.0.1", "port": dns_port}), "/rcode/name", json!("NXDOMAIN")),
            ToolName::Tcp => (json!({"port": port}), "/ports/0/state", json!("open")),
            // It greets, and nobody answers.
            ToolName::Tls => (json!({"port": port, "timeout": 1}), "/handshake", json!("failed")),
            ToolName::Http => (json!({}), "/requests/0/status", json!(200)),
            ToolName::Pmtu => (json!({"max_bytes": 9000}), "/mtu_bytes", json!(9000)),
            ToolName::Whois => {
                (json!({"protocol": "whois", "server": "127.0.0.1", "port": whois_port, "recursion": false}), "/registered", json!(true))
            }
        };
        let target = match tool {
            ToolName::Http => livez.as_str(),
            ToolName::Whois => "example.com",
            _ => "127.0.0.1",
        };
        let outcome = api.admin().job(tool.as_str(), target, "node:t-1", &parameters).outcome();
        assert_eq!((&outcome["tool"], &outcome["status"]), (&json!(tool), &json!("success")), "{outcome}");
        assert_eq!(outcome["report"].pointer(pointer), Some(&found), "{outcome}");
    }
    answering.join().unwrap();
    registering.join().unwrap();
}

#[test]
fn a_port_is_open_or_refused_and_both_are_findings() {
    needs::ipv6_loopback();
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
    let (port, answering) = name_server();
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
    fabric.agent_with("k-1", "eu", &AgentOptions { resolvers: Some(resolver.clone()), slots_light: Some(1), ..AgentOptions::default() });
    fabric.agent_with("k-2", "narrow", &AgentOptions { tools: vec!["echo"], ..AgentOptions::default() });
    api.wait_for_nodes(2);
    let admin = api.admin();
    assert_eq!(admin.job("tcp", "169.254.169.254", "eu", &json!({})).failure_kind(), "denied");
    assert_eq!(admin.job("tcp", "::ffff:169.254.169.254", "eu", &json!({})).failure_kind(), "denied");
    assert_eq!(admin.job("tcp", "127.0.0.1", "node:k-2", &json!({})).failure_kind(), "unsupported");
    let unresolved = admin.job("tcp", "name.example", "eu", &json!({"timeout": 1})).outcome();
    assert_eq!(unresolved["failure"]["kind"], "unresolved", "{unresolved}");
    let why = format!("name.example cannot be resolved on this node: {resolver}: timeout");
    assert_eq!(unresolved["failure"]["detail"], why, "{unresolved}");
    admin.post("/v1/nodes/k-2/drain", &json!({})).expect(200);
    assert_eq!(admin.job("echo", "x", "node:k-2", &json!({})).failure_kind(), "draining");
    // Once the API has heard of it, nobody is asked.
    api.wait_until("it is known to drain", || admin.get("/v1/nodes/k-2").expect(200)["beat"]["draining"] == json!(true));
    let gone = admin.job("echo", "x", "narrow", &json!({})).expect(503);
    let why =
        "no node of region narrow that can run echo takes jobs now; 1 of its nodes are online (1 of them draining), and they can run: none";
    assert_eq!((&gone["code"], &gone["detail"]), (&json!("no_node_available"), &json!(why)), "{gone}");
}

#[test]
fn a_name_without_an_address_is_unresolved() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("u-1", "eu");
    api.wait_for_nodes(1);
    assert_eq!(api.admin().job("tcp", "no-such-name.invalid", "eu", &json!({})).failure_kind(), "unresolved");
}

#[test]
fn a_fault_of_the_node_is_internal_and_its_log_has_it() {
    let fabric = Fabric::start();
    let api = fabric.api();
    let agent = fabric.agent("i-1", "eu");
    api.wait_for_nodes(1);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ask = || api.admin().job("tcp", "127.0.0.1", "node:i-1", &json!({"port": listener.local_addr().unwrap().port()})).outcome();
    // A machine that is out of descriptors.
    let before = agent.open_no_more();
    let outcome = ask();
    assert_eq!((&outcome["status"], &outcome["failure"]["kind"]), (&json!("failed"), &json!("internal")), "{outcome}");
    let detail = outcome["failure"]["detail"].as_str().unwrap();
    let incident = detail.strip_prefix("this node could not open a connection: Too many open files; its log has it as incident ").unwrap();
    agent.wait_for_log(incident);
    agent.limit_files(before);
    assert_eq!(ask()["report"]["ports"][0]["state"], "open");
}
