//! What `http` refuses, conceals and judges.

use serde_json::json;

use super::assertion::Evidence;
use super::report::{HttpBody, HttpRequest, HttpTimings};
use super::*;
use crate::tools::network::Family;
use crate::tools::tcp::report::PortState;
use crate::tools::{Spec, ToolName};

fn check(target: &str, parameters: Value) -> Result<Spec, Invalid> {
    let Value::Object(parameters) = parameters else { panic!("{parameters}") };
    Spec::parse("http".parse().unwrap(), target, parameters)
}

#[track_caller]
fn refuses(parameters: Value, pointer: &str, part: &str) {
    let invalid = check("https://example.com/", parameters).unwrap_err();
    assert!(invalid.pointer.starts_with(pointer) && invalid.detail.contains(part), "{invalid}");
}

#[test]
fn what_means_nothing_or_would_break_the_message_is_refused() {
    refuses(json!({"method": "GE T"}), "/parameters/method", "such as \"GET\"");
    refuses(json!({"method": "connect"}), "/parameters/method", "CONNECT is for proxies");
    refuses(json!({"headers": ["Host: x"]}), "/parameters/headers", "give it in `host_header`");
    refuses(json!({"headers": ["Transfer-Encoding: chunked"]}), "/parameters/headers", "made by the node");
    refuses(json!({"headers": ["A: b\r\nC: d"]}), "/parameters/headers", "control characters");
    refuses(json!({"headers": ["no line"]}), "/parameters/headers", "no header line");
    refuses(json!({"host_header": "a\r\nb"}), "/parameters/host_header", "must be a host");
    refuses(json!({"basic_auth": "secret"}), "/parameters/basic_auth", "user:password");
    refuses(json!({"basic_auth": "a:b", "bearer_token": "c"}), "/parameters/bearer_token", "only one");
    refuses(json!({"bearer_token": "c", "headers": ["Authorization: x y"]}), "/parameters/headers", "already");
    refuses(json!({"proxy": "https://proxy.example"}), "/parameters/proxy", "scheme http");
    refuses(json!({"proxy_auth": "a:b"}), "/parameters/proxy_auth", "without `proxy`");
    refuses(json!({"proxy_headers": ["A: b"]}), "/parameters/proxy_headers", "without `proxy`");
    let twice = json!({"proxy": "http://p/", "proxy_auth": "a:b", "proxy_headers": ["Proxy-Authorization: x"]});
    refuses(twice, "/parameters/proxy_headers", "from `proxy_auth`");
    refuses(json!({"http_version": "0.9"}), "/parameters/http_version", "\"1.0\", \"1.1\", \"2\"");
    refuses(json!({"tls_max_version": "1.1"}), "/parameters/tls_max_version", "must be one of");
    refuses(json!({"tls_min_version": "1.3", "tls_max_version": "1.2"}), "/parameters/tls_min_version", "newer than");
    refuses(json!({"assertions": [{"type": "body", "matches": "("}]}), "/parameters/assertions", "no regular expression");
    refuses(json!({"assertions": [{"type": "json", "path": "x"}]}), "/parameters/assertions", "no JSONPath");
    refuses(json!({"assertions": [{"type": "json", "path": "$..a..b"}]}), "/parameters/assertions", "only once");
    refuses(json!({"assertions": [{"type": "status", "one_of": ["20x"]}]}), "/parameters/assertions", "\"2xx\"");
    refuses(json!({"assertions": [{"status": "200"}]}), "/parameters/assertions/0", "a `type`, one of \"status\", \"header\"");
    refuses(json!({"assertions": ["200"]}), "/parameters/assertions", "not the string \"200\"");
    for listed in assertion::TYPES {
        let unknown =
            Spec::parse(ToolName::Http, "http://example.com/", json!({"assertions": [{"type": "?"}]}).as_object().unwrap().clone());
        assert!(unknown.unwrap_err().detail.contains(&format!("`{listed}`")), "{listed}");
    }
    refuses(json!({"assertions": vec![json!({"type": "body"}); 21]}), "/parameters/assertions", "at most 20");
    assert_eq!(check("http://a/", json!({"server_name": "b"})).unwrap_err().pointer, "/parameters/server_name");
}

#[test]
fn secrets_are_not_shown_again() {
    let given = json!({"headers": ["Cookie: id=secret; b=secret", "X: shown"], "proxy": "http://p/", "proxy_auth": "user:secret",
        "proxy_headers": ["X-Api-Key: secret"],
        "client_certificate": "-----BEGIN CERTIFICATE-----", "client_key": "-----BEGIN PRIVATE KEY-----secret", "basic_auth": "user:secret"});
    let spec = check("https://example.com/", given).unwrap();
    let shown = Value::Object(spec.shown_parameters()).to_string();
    assert!(!shown.contains("secret") && shown.contains("Cookie: id=***; b=***") && shown.contains("X: shown"), "{shown}");
    assert!(!format!("{spec:?}").contains("secret"));
    assert!(Value::Object(spec.parameters()).to_string().contains("user:secret"), "the node needs it");
    for (name, value, shown) in [
        ("Set-Cookie", "id=secret; Path=/; HttpOnly", "id=***; Path=/; HttpOnly"),
        ("authorization", "Basic c2VjcmV0", "Basic ***"),
        ("Proxy-Authorization", "secret", "***"),
        ("X-Api-Key", "my secret", "***"),
        ("content-type", "text/html", "text/html"),
    ] {
        assert_eq!(parts::concealed_value(name, value), shown);
    }
}

#[test]
fn each_assertion_has_its_own_verdict() {
    let body = br#"{"items": [{"name": "a", "n": 1}, {"name": "b", "n": 2}]}"#;
    let mut request = answer();
    request.body =
        Some(HttpBody { text: String::new(), size_bytes: body.len(), compressed_bytes: None, sha256: String::new(), truncated: false });
    let headers = [("Content-Type".to_owned(), "text/html".to_owned()), ("Set-Cookie".to_owned(), "id=secret".to_owned())];
    let timings = HttpTimings { total_ms: Some(20.0), ..HttpTimings::default() };
    let evidence = Evidence { request: &request, headers: &headers, body, timings };
    for (assertion, passed, detail) in [
        (json!({"type": "status", "one_of": ["2xx", 301]}), true, "the status is 204"),
        (json!({"type": "status", "one_of": ["200"]}), false, "the status is 204"),
        (json!({"type": "header", "name": "content-type", "matches": "^text/"}), true, "content-type is text/html"),
        (json!({"type": "header", "name": "content-type", "absent": true}), false, "content-type is text/html"),
        (json!({"type": "header", "name": "x", "absent": true}), true, "there is no x"),
        (json!({"type": "header", "name": "x", "matches": "y"}), false, "there is no x"),
        (json!({"type": "header", "name": "x", "matches": "y", "optional": true}), true, "there is no x"),
        (json!({"type": "header", "name": "content-type", "not_matches": "^text/", "optional": true}), false, "content-type is text/html"),
        (json!({"type": "tls", "used": false}), true, "it came in clear"),
        (json!({"type": "tls", "used": true}), false, "it came in clear"),
        (json!({"type": "json", "path": "$.items[?@.n > 1].name", "absent": true}), false, "there is \"b\""),
        (json!({"type": "json", "path": "$.nothing", "absent": true}), true, "there is nothing at the path"),
        (json!({"type": "header", "name": "set-cookie", "matches": "secret"}), true, "set-cookie is id=***"),
        (json!({"type": "body", "matches": "\"n\": [12]"}), true, "there is `\\\"n\\\": 1`"),
        (json!({"type": "body", "not_matches": "items"}), false, "there is `items`"),
        (json!({"type": "json", "path": "$.items[1].n", "equals": 2}), true, "there is 2"),
        (json!({"type": "json", "path": "$.items[?@.n > 1].name", "matches": "^b$"}), true, "there is \"b\""),
        (json!({"type": "json", "path": "$.nothing"}), false, "there is nothing at the path"),
        (json!({"type": "certificate_days_left", "min": 14}), false, "there is no certificate"),
        (json!({"type": "phase", "phase": "total", "max_ms": 20}), true, "total took 20.000 ms"),
        (json!({"type": "phase", "phase": "tls", "max_ms": 20}), false, "there was no phase tls"),
        (json!({"type": "protocol", "one_of": ["HTTP/2"]}), false, "HTTP/1.1"),
    ] {
        let assertions: Assertions = serde_json::from_value(json!([assertion])).unwrap();
        let verdicts = assertions.judge(&evidence);
        assert_eq!((verdicts[0].passed, verdicts[0].detail.as_str()), (passed, detail), "{assertion}");
    }
}

fn answer() -> HttpRequest {
    HttpRequest {
        url: "http://example.com/".parse().unwrap(),
        method: "GET".to_owned(),
        address: "192.0.2.1".parse().unwrap(),
        family: Family::V4,
        port: 80,
        proxy: None,
        state: PortState::Open,
        icmp: None,
        tls: None,
        request_headers: Vec::new(),
        protocol: Some("HTTP/1.1".to_owned()),
        status: Some(204),
        reason: None,
        headers: Vec::new(),
        body: None,
        timings: HttpTimings::default(),
        failure: None,
    }
}
