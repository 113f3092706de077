//! What no executor touches.

use serde_json::json;
use tokio::net::TcpListener;

use super::dns_server::DnsServer;
use super::{Context, DISGUISES, FailureKind, Live, Spec, ToolName, execute, fails, finds, open_node, policy, run};

#[tokio::test]
async fn loopback_and_metadata_are_denied_by_default() {
    let closed = Context::new(policy(""), &[]).unwrap();
    fails(run(&closed, "tcp", "127.0.0.1", json!({})).await, FailureKind::Denied, "allow_loopback = true");
    fails(run(&closed, "ping", "localhost", json!({})).await, FailureKind::Denied, "localhost (127.0.0.1): this node's policy");
    fails(run(&closed, "tcp", "::ffff:169.254.169.254", json!({})).await, FailureKind::Denied, "link-local");
    fails(run(&closed, "traceroute", "127.0.0.1", json!({})).await, FailureKind::Denied, "loopback");
    fails(run(&closed, "dns", "example.com", json!({"resolver": "127.0.0.1"})).await, FailureKind::Denied, "loopback");
    fails(run(&closed, "tcp", "192.0.2.1", json!({"port": 4222})).await, FailureKind::Denied, "own broker 192.0.2.1:4222");
    fails(run(&closed, "traceroute", "192.0.2.1", json!({"protocol": "tcp", "port": 4222})).await, FailureKind::Denied, "own broker");
    fails(run(&closed, "ping", "192.0.2.1", json!({"protocol": "tcp", "port": 4222})).await, FailureKind::Denied, "own broker");
    fails(
        run(&Context::new(policy("[deny]\ntools = [\"tcp\"]"), &[]).unwrap(), "tcp", "10.0.0.1", json!({})).await,
        FailureKind::Denied,
        "deny.tools",
    );
}

#[tokio::test]
async fn no_way_of_writing_an_address_gets_past_the_policy() {
    let closed = Context::new(policy(""), &[]).unwrap();
    for text in DISGUISES.iter().chain(&["localhost", "localhost.", "LOCALHOST"]) {
        for (tool, parameters) in [
            ("ping", json!({})),
            ("ping", json!({"protocol": "tcp"})),
            ("traceroute", json!({})),
            ("traceroute", json!({"protocol": "udp"})),
            ("traceroute", json!({"protocol": "tcp"})),
            ("mtr", json!({})),
            ("mtr", json!({"protocol": "udp"})),
            ("mtr", json!({"protocol": "tcp"})),
            ("tcp", json!({})),
            ("tls", json!({})),
            ("pmtu", json!({})),
        ] {
            match Spec::parse(tool.parse().unwrap(), text, parameters.as_object().unwrap().clone()) {
                Err(invalid) => assert_eq!(invalid.pointer, "/target", "{text}: {invalid}"),
                Ok(spec) => fails(execute(&closed, spec, &Live::default()).await, FailureKind::Denied, "this node's policy"),
            }
        }
        let url = if text.contains(':') { format!("http://[{text}]/") } else { format!("http://{text}/") };
        for (target, parameters, pointer) in [
            (url.as_str(), json!({}), "/target"),
            ("http://192.0.2.1/", json!({"resolve": text}), "/parameters/resolve"),
            ("http://192.0.2.1/", json!({"proxy": url}), "/parameters/proxy"),
            (url.as_str(), json!({"proxy": "http://192.0.2.1:3128"}), "/target"),
        ] {
            match Spec::parse(ToolName::Http, target, parameters.as_object().unwrap().clone()) {
                Err(invalid) => assert_eq!(invalid.pointer, pointer, "{text}: {invalid}"),
                Ok(spec) => fails(execute(&closed, spec, &Live::default()).await, FailureKind::Denied, "this node's policy"),
            }
        }
        let server = json!({"server": text});
        match Spec::parse(ToolName::Whois, "example.com", server.as_object().unwrap().clone()) {
            Err(invalid) => assert_eq!(invalid.pointer, "/parameters/server", "{text}: {invalid}"),
            Ok(spec) => fails(execute(&closed, spec, &Live::default()).await, FailureKind::Denied, "this node's policy"),
        }
        let bracketed = if text.contains(':') { format!("[{text}]") } else { (*text).to_owned() };
        let rdap = json!({"rdap_server": format!("https://{bracketed}/"), "protocol": "rdap"});
        match Spec::parse(ToolName::Whois, "example.com", rdap.as_object().unwrap().clone()) {
            Err(invalid) => assert_eq!(invalid.pointer, "/parameters/rdap_server", "{text}: {invalid}"),
            Ok(spec) => fails(execute(&closed, spec, &Live::default()).await, FailureKind::Denied, "this node's policy"),
        }
        for parameters in [json!({"resolver": text}), json!({"resolver": text, "trace": true}), json!({"compare_with": [text]})] {
            match Spec::parse(ToolName::Dns, "example.com", parameters.as_object().unwrap().clone()) {
                Err(invalid) => assert!(invalid.pointer.starts_with("/parameters/"), "{text}: {invalid}"),
                Ok(spec) => fails(execute(&closed, spec, &Live::default()).await, FailureKind::Denied, "this node's policy"),
            }
        }
    }
}

#[tokio::test]
async fn an_alias_leads_to_no_name_that_is_denied() {
    let server = DnsServer::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let node = |rules: &str| Context::new(policy(&format!("allow_loopback = true\n{rules}")), &[server.address]).unwrap();
    let ask = async |rules: &str| run(&node(rules), "tcp", "nickname.test", json!({"port": port})).await;
    // Of those that are allowed, the name that is asked for is one.
    assert_eq!(ask("[allow]\nnames = [\"nickname.test\"]").await.unwrap().report["ports"][0]["state"], "open");
    fails(
        ask("[deny]\nnames = [\"local.test\"]").await,
        FailureKind::Denied,
        "nickname.test, an alias of local.test: this node's policy: `local.test`",
    );
}

#[tokio::test]
async fn the_servers_of_the_root_are_targets_like_any_other() {
    let closed = Context::new(policy("[deny]\nnetworks = [\"0.0.0.0/0\", \"::/0\"]"), &[]).unwrap();
    fails(run(&closed, "dns", "example.com", json!({"trace": true})).await, FailureKind::Denied, "no server of the root may be asked: ");
    let limited = open_node(&[]).for_run(Some("*.example.com".parse().unwrap()), None, None);
    let trace = run(&limited, "dns", "a.example.com", json!({"trace": true})).await;
    fails(trace, FailureKind::Denied, "the caller's own target limits do not include it");
}

#[tokio::test]
async fn a_name_is_resolved_once_and_the_checked_address_is_kept() {
    // Asked a second time, the server says another address: where a rebinding attack leads to.
    let server = DnsServer::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let context = open_node(&[server.address]);
    let found = finds(&context, "tcp", "rebinding.test", json!({"port": port})).await;
    assert_eq!((&found.report["ports"][0]["state"], &found.report["address"]), (&json!("open"), &json!("127.0.0.1")), "{}", found.report);
    fails(run(&context, "tcp", "rebinding.test", json!({"port": port})).await, FailureKind::Denied, "link-local");
}

#[tokio::test]
async fn a_failure_names_only_some_of_many_denied_addresses() {
    let server = DnsServer::start().await;
    let failure = run(&open_node(&[server.address]), "tcp", "many.test", json!({})).await.unwrap_err();
    assert!(failure.detail.ends_with("and 96 more of its addresses are denied too") && failure.detail.len() < 1000, "{failure}");
}

#[tokio::test]
async fn the_nodes_own_servers_are_denied_by_address_and_by_name() {
    let context = Context::new(policy("allow_loopback = true\n[deny]\nendpoints = [\"localhost:8443\"]"), &[]).unwrap();
    for target in ["127.0.0.1", "::1", "127.1.2.3", "localhost"] {
        fails(run(&context, "tcp", target, json!({"port": 8443})).await, FailureKind::Denied, "localhost:8443 is in deny.endpoints");
    }
    assert!(run(&context, "ping", "127.0.0.1", json!({"count": 1})).await.is_ok(), "loopback itself is allowed");
}

#[tokio::test]
async fn a_principals_targets_narrow_what_the_policy_allows() {
    let context = open_node(&[]).for_run(Some("*.example.com,10.0.0.0/8".parse().unwrap()), None, None);
    fails(run(&context, "tcp", "127.0.0.1", json!({})).await, FailureKind::Denied, "the caller's own target limits");
    fails(run(&context, "ping", "localhost", json!({})).await, FailureKind::Denied, "the caller's own target limits");
    fails(run(&context, "dns", "example.org", json!({})).await, FailureKind::Denied, "the caller's own target limits");
    fails(
        run(&context, "dns", "a.example.com", json!({"resolver": "127.0.0.1"})).await,
        FailureKind::Denied,
        "the caller's own target limits",
    );
}
