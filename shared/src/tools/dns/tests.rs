//! Which options go together, and what is said of those that do not.

use serde_json::json;

use super::*;
use crate::tools::{Spec, ToolName};

#[track_caller]
fn refuses(target: &str, parameters: &serde_json::Value, pointer: &str, part: &str) {
    let invalid = Spec::parse(ToolName::Dns, target, parameters.as_object().unwrap().clone()).unwrap_err();
    assert_eq!(invalid.pointer, pointer, "{invalid}");
    assert!(invalid.detail.contains(part), "{invalid}");
}

#[test]
fn an_address_is_asked_for_by_its_reverse_name() {
    let dns = Dns::default();
    assert_eq!(dns.record_type(&"192.0.2.1".parse().unwrap()), RecordType::PTR);
    assert_eq!(dns.record_type(&"example.com".parse().unwrap()), RecordType::A);
    refuses("192.0.2.1", &json!({"type": "A"}), "/parameters/type", "leave `type` out for PTR");
    assert_eq!(asked_name(&"192.0.2.1".parse().unwrap()), "1.2.0.192.in-addr.arpa");
    let v6 = asked_name(&"2001:db8::1".parse().unwrap());
    assert!(v6.starts_with("1.0.0.0.") && v6.ends_with(".8.b.d.0.1.0.0.2.ip6.arpa") && v6.len() == 72, "{v6}");
}

#[test]
fn options_that_mean_nothing_together_are_refused() {
    refuses("example.com", &json!({"port": 5353}), "/parameters/port", "none is given");
    refuses("example.com", &json!({"dnssec": true, "edns": false}), "/parameters/dnssec", "`edns` is false");
    refuses("example.com", &json!({"nsid": true, "edns": false}), "/parameters/nsid", "`edns` is false");
    refuses("example.com", &json!({"client_subnet": "10.0.0.0/8", "edns": false}), "/parameters/client_subnet", "`edns` is false");
    refuses("example.com", &json!({"client_subnet": "10.0.0.0/33"}), "/parameters/client_subnet", "such as 192.0.2.0/24");
    refuses("example.com", &json!({"protocol": "tcp", "tcp_fallback": false}), "/parameters/tcp_fallback", "`protocol` is tcp");
    refuses("example.com", &json!({"trace": true, "compare_with": ["192.0.2.1"]}), "/parameters/compare_with", "leave one of them out");
    refuses("a.test", &json!({"resolver": "dns.test", "compare_with": ["dns.test"]}), "/parameters/compare_with", "asked anyway");
    refuses("a.test", &json!({"compare_with": ["dns.test", "DNS.test."]}), "/parameters/compare_with", "has dns.test twice");
    refuses("a.test", &json!({"compare_with": ["dns.test", 1]}), "/parameters/compare_with", "a list of at most 7 name servers");
    refuses("a.test", &json!({"compare_with": ["192.0.2.1"], "family": "6"}), "/parameters/family", "is an IPv4 address");
    refuses("example.com", &json!({"trust_anchor": ". DS 1 8 2 00"}), "/parameters/trust_anchor", "set `validate` too");
    refuses("example.com", &json!({"trust_anchor": ". A 1", "validate": true}), "/parameters/trust_anchor", "must be a DS or DNSKEY");
    refuses("example.com", &json!({"trace": true, "validate": true}), "/parameters/validate", "leave one of them out");
    refuses("example.com", &json!({"validate": true, "class": "CH"}), "/parameters/class", "only class IN is signed");
    refuses("example.com", &json!({"validate": true, "edns": false}), "/parameters/validate", "`edns` is false");
    refuses("example.com", &json!({"trace": true, "class": "CH"}), "/parameters/class", "class IN only");
    refuses("example.com", &json!({"trace": true, "timeout": 30}), "/parameters/timeout", "at most 300 s");
    refuses("example.com", &json!({"class": "ch"}), "/parameters/class", "\"IN\", \"CH\", \"HS\"");
    refuses("example.com", &json!({"type": "AAAAA"}), "/parameters/type", "did you mean `AAAA`?");
    refuses("example.com", &json!({"type": 70_000}), "/parameters/type", "from 1 to 65535");
    refuses("example.com", &json!({"type": "AXFR"}), "/parameters/type", "not a type of record");
    refuses("example.com", &json!({"protocol": "quic"}), "/parameters/protocol", "\"udp\", \"tcp\", \"tls\", \"https\"");
    refuses("example.com", &json!({"protocol": "tls"}), "/parameters/protocol", "name one in `resolver`");
    refuses("a.test", &json!({"protocol": "tls", "resolver": "dns.test", "trace": true}), "/parameters/protocol", "over udp or tcp");
    refuses("a.test", &json!({"protocol": "tls", "resolver": "dns.test", "path": "/q"}), "/parameters/path", "it is tls");
    refuses("a.test", &json!({"tls_name": "dns.test"}), "/parameters/tls_name", "it is udp");
    refuses("a.test", &json!({"tls_verify": false}), "/parameters/tls_verify", "it is udp");
    let several = json!({"protocol": "tls", "resolver": "dns.test", "tls_name": "a.test", "compare_with": ["192.0.2.1"]});
    refuses("a.test", &several, "/parameters/tls_name", "do not have one name");
    refuses("example.com", &json!({"resolver": "https://dns.example/"}), "/parameters/resolver", "give only its host");
}
