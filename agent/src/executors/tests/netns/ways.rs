//! Every way in which a tool can be pointed at a host.

use probeops_shared::tools::ToolName;
use serde_json::{Value, json};

/// A tool, its target and its options, such that the host is the first that anything is sent to.
pub(super) type Way = (&'static str, String, Value);

/// Every way to this host.
pub(super) fn to(host: &str) -> Vec<Way> {
    let in_url = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let aimed = |tool: &'static str, parameters: Value| (tool, host.to_owned(), parameters);
    let over = |tool: &'static str, protocols: &[&str]| {
        protocols.iter().map(|protocol| aimed(tool, json!({"protocol": protocol}))).collect::<Vec<_>>()
    };
    let asking = |parameters: Value| ("dns", "a.test".to_owned(), parameters);
    let of_resolver =
        ["udp", "tcp", "tls", "https"].map(|protocol| asking(json!({"resolver": host, "protocol": protocol, "tries": 1}))).to_vec();
    let ways = [
        over("ping", &["icmp", "tcp"]),
        over("traceroute", &["icmp", "udp", "tcp"]),
        over("mtr", &["icmp", "udp", "tcp"]),
        over("pmtu", &["icmp", "udp"]),
        vec![aimed("tcp", json!({})), aimed("tcp", json!({"ports": "22,80", "banner": true})), aimed("tcp", json!({"tls": true}))],
        vec![aimed("tls", json!({})), aimed("tls", json!({"versions": true})), aimed("tls", json!({"starttls": "smtp"}))],
        vec![
            ("http", format!("http://{in_url}/"), json!({})),
            ("http", format!("https://{in_url}/"), json!({"redirects_max": 3})),
            ("http", "http://any.test/".to_owned(), json!({"resolve": host})),
            ("http", "http://any.test/".to_owned(), json!({"resolver": host})),
            ("http", "http://127.0.0.1/".to_owned(), json!({"proxy": format!("http://{in_url}:3128")})),
            ("http", "https://127.0.0.1/".to_owned(), json!({"proxy": format!("http://{in_url}:3128")})),
        ],
        of_resolver,
        vec![asking(json!({"resolver": host, "trace": true, "tries": 1})), asking(json!({"resolver": host, "validate": true, "tries": 1}))],
        vec![
            ("whois", "example.com".to_owned(), json!({"server": host})),
            ("whois", "example.com".to_owned(), json!({"protocol": "rdap", "rdap_server": format!("http://{in_url}/")})),
            ("whois", "example.com".to_owned(), json!({"protocol": "rdap", "rdap_server": format!("https://{in_url}/")})),
        ],
    ]
    .concat();
    for tool in ToolName::ALL.iter().filter(|tool| **tool != ToolName::Echo) {
        assert!(ways.iter().any(|(known, ..)| *known == tool.as_str()), "there is no way of {tool} here");
    }
    ways
}
