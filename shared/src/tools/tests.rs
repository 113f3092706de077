//! What holds for every tool of the catalogue.

use serde_json::json;

use super::*;

#[test]
fn every_tool_has_a_default_that_is_itself_valid() {
    for tool in ToolName::ALL {
        let spec = Spec::parse(*tool, tool.example_target(), tool.default_parameters()).unwrap();
        assert_eq!(spec.tool(), *tool);
        assert!(spec.budget() > Duration::ZERO);
        assert_eq!(tool.as_str().parse(), Ok(*tool));
    }
}

#[test]
fn every_option_has_a_description_and_a_type() {
    for tool in ToolName::ALL {
        for (name, property) in tool.option_properties() {
            assert!(property.get("description").is_some(), "{tool}.{name} says nothing of itself: {property}");
        }
    }
}

#[test]
fn an_unknown_tool_lists_what_there_is() {
    let detail = "ehco".parse::<ToolName>().unwrap_err();
    assert!(detail.starts_with("unknown tool `ehco`; did you mean `echo`? the tools are echo"), "{detail}");
}

/// Whether a report of a tool is bad: a whole one, with these fields instead of its own.
fn is_bad(tool: ToolName, fields: &Value) -> bool {
    let mut report = match tool {
        ToolName::Echo => json!({"node_time": "2026-11-05T09:08:07Z", "version": "1", "payload": ""}),
        ToolName::Ping => {
            let stats = json!({"sent": 4, "received": 4, "errors": 0, "out_of_order": 0, "sending_ms": 1.0, "elapsed_ms": 1.0});
            json!({"address": "192.0.2.1", "family": "4", "method": "icmp_raw", "payload_bytes": 56, "packets": [], "stats": stats})
        }
        ToolName::Traceroute | ToolName::Mtr => json!({
            "started_at": "2026-11-05T09:08:07Z", "address": "192.0.2.1", "family": "4", "method": "icmp_raw", "packet_bytes": 60,
            "flow": "constant", "rounds": 1, "end": "silent", "hops": [], "elapsed_ms": 1.0
        }),
        ToolName::Dns => json!({
            "question": {"name": "example.com.", "class": "IN", "type": "A"}, "server": {"address": "192.0.2.53", "port": 53},
            "transport": "udp", "attempts": [], "answered": false, "asked_at": "2026-11-05T09:08:07Z", "timings": {}
        }),
        ToolName::Tcp => json!({"address": "192.0.2.1", "family": "4", "ports": []}),
        ToolName::Tls => json!({
            "address": "192.0.2.1", "family": "4", "port": 443, "state": "open", "handshake": "completed", "server_name": "example.com",
            "sni": true, "verified": true, "timings": {}
        }),
        ToolName::Http => json!({"requests": [], "status": 500, "redirects": 0, "total_ms": 1.0}),
        ToolName::Pmtu => json!({"address": "192.0.2.1", "family": "4", "protocol": "icmp", "verdict": "hop", "probes": []}),
        ToolName::Whois => json!({"kind": "domain", "queries": []}),
    };
    report.as_object_mut().unwrap().extend(as_object(fields));
    let spec = Spec::parse(tool, tool.example_target(), Map::new()).unwrap();
    spec.is_bad(&report).unwrap_or_else(|invalid| panic!("{tool}: {invalid}"))
}

#[test]
fn each_tool_says_which_findings_nobody_wants() {
    let stats = |received| json!({"sent": 4, "received": received, "errors": 0, "out_of_order": 0, "sending_ms": 1.0, "elapsed_ms": 1.0});
    let port = |port: Value| json!({"ports": [{"port": 22, "state": "open"}, port]});
    let answer = |code| {
        let flags = json!({"aa": false, "tc": false, "rd": true, "ra": true, "ad": false, "cd": false});
        json!({
            "answered": true, "id": 1, "opcode": "QUERY", "rcode": {"code": code, "name": ""}, "flags": flags, "questions": [], "answer": [],
            "authority": [], "additional": [], "size_bytes": 12
        })
    };
    let proven = |state: &str| {
        let validation = json!({
            "state": state, "negative": false, "resolver_says_secure": false, "trust_anchors": [], "queries": [], "elapsed_ms": 1.0
        });
        Value::Object(as_object(&answer(0)).into_iter().chain([("validation".to_owned(), validation)]).collect())
    };
    let verdict = |passed| json!({"assertion": 0, "type": "status", "passed": passed, "detail": ""});
    for (tool, fields, bad) in [
        (ToolName::Echo, json!({}), false),
        (ToolName::Ping, json!({"stats": stats(1)}), false),
        (ToolName::Ping, json!({"stats": stats(0)}), true),
        (ToolName::Traceroute, json!({"end": "reached"}), false),
        (ToolName::Traceroute, json!({"end": "unreachable"}), true),
        (ToolName::Traceroute, json!({"end": "max_ttl"}), true),
        (ToolName::Mtr, json!({"end": "reached"}), false),
        (ToolName::Mtr, json!({"end": "silent"}), true),
        (ToolName::Dns, json!({}), true),
        (ToolName::Dns, answer(0), false),
        (ToolName::Dns, answer(3), true),
        (ToolName::Dns, proven("secure"), false),
        (ToolName::Dns, proven("insecure"), false),
        (ToolName::Dns, proven("bogus"), true),
        (ToolName::Dns, proven("indeterminate"), true),
        (ToolName::Tcp, port(json!({"port": 80, "state": "open", "expect": {"matched": true}})), false),
        (ToolName::Tcp, port(json!({"port": 80, "state": "open", "expect": {"matched": false}})), true),
        (ToolName::Tcp, port(json!({"port": 80, "state": "refused"})), true),
        (ToolName::Tcp, port(json!({"port": 80, "state": "open", "tls": {"server_name": "", "sni": false}})), false),
        (
            ToolName::Tcp,
            port(
                json!({"port": 80, "state": "open", "tls": {"failure": {"code": "closed", "detail": ""}, "server_name": "", "sni": false}}),
            ),
            true,
        ),
        (ToolName::Tls, json!({}), false),
        (ToolName::Tls, json!({"verified": false}), true),
        (ToolName::Tls, json!({"state": "refused"}), true),
        (ToolName::Tls, json!({"failure": {"code": "alert", "detail": ""}}), true),
        (ToolName::Http, json!({}), false),
        (ToolName::Http, json!({"assertions": [verdict(true)]}), false),
        (ToolName::Http, json!({"assertions": [verdict(true), verdict(false)]}), true),
        (ToolName::Http, json!({"failure": {"code": "connect", "detail": ""}}), true),
        (ToolName::Pmtu, json!({}), false),
        (ToolName::Pmtu, json!({"verdict": "capped"}), false),
        (ToolName::Pmtu, json!({"verdict": "black_hole"}), true),
        (ToolName::Pmtu, json!({"verdict": "silent"}), true),
        (ToolName::Pmtu, json!({"verdict": "unreachable"}), true),
        (ToolName::Whois, json!({"registered": true}), false),
        (ToolName::Whois, json!({"registered": false}), true),
        (ToolName::Whois, json!({}), true),
    ] {
        assert_eq!(is_bad(tool, &fields), bad, "{tool} {fields}");
    }
}

#[test]
fn a_report_of_another_shape_is_not_judged() {
    let spec = Spec::parse(ToolName::Ping, "192.0.2.1", Map::new()).unwrap();
    assert_eq!(spec.is_bad(&json!({"address": "nowhere"})).unwrap_err().pointer, "/address");
}
