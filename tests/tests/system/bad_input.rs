//! What is wrong with a request is said with status, code, place and words.

use probeops_tests::fabric::Fabric;
use serde_json::{Value, json};

/// A body, and what must come of it.
struct Row {
    body: Value,
    status: u16,
    code: &'static str,
    pointer: &'static str,
    words: &'static str,
}

/// Content type, body, and what must come of them: status, code, pointer, words.
type Mistake<'a> = (&'a str, &'a [u8], u16, &'a str, Option<&'a str>, &'a str);

fn row(body: Value, pointer: &'static str, words: &'static str) -> Row {
    Row { body, status: 400, code: "invalid", pointer, words }
}

fn ping(parameters: &Value) -> Value {
    json!({"tool": "ping", "target": "127.0.0.1", "from": "eu", "parameters": parameters})
}

fn target(target: &str) -> Value {
    json!({"tool": "tcp", "target": target, "from": "eu"})
}

fn from(from: &Value) -> Value {
    json!({"tool": "echo", "from": from})
}

#[track_caller]
fn check(answer: &probeops_tests::http::Answer, status: u16, code: &str, pointer: Option<&str>, words: &str) {
    let shown = &answer.text;
    assert_eq!(answer.status, status, "{shown}");
    assert_eq!(answer.body["status"], status, "{shown}");
    assert_eq!(answer.body["code"], code, "{shown}");
    assert!(answer.header("content-type").is_some_and(|kind| kind.contains("json")), "{shown}");
    assert_eq!(answer.header("x-request-id"), answer.body["request_id"].as_str(), "{shown}");
    if let Some(pointer) = pointer {
        assert_eq!(answer.body["errors"][0]["pointer"], pointer, "{shown}");
    }
    assert!(shown.contains(words), "`{words}` is not in {shown}");
}

#[test]
fn each_mistake_in_a_job_is_named_with_its_place() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("bad-1", "eu");
    let caller = api.admin();
    api.wait_for_nodes(1);
    let table = [
        row(ping(&json!({"count": 0})), "/parameters/count", "must be a whole number from 1 to 100, not 0"),
        row(ping(&json!({"count": 101})), "/parameters/count", "must be a whole number from 1 to 100, not 101"),
        row(ping(&json!({"count": 1.5})), "/parameters/count", "not 1.5"),
        row(ping(&json!({"count": "4"})), "/parameters/count", "not the string \\\"4\\\""),
        row(ping(&json!({"count": null})), "/parameters/count", "not null"),
        row(ping(&json!({"cuont": 4})), "/parameters/cuont", "did you mean `count`?"),
        row(ping(&json!([])), "/parameters", "must be an object"),
        row(
            json!({"tool": "pnig", "target": "127.0.0.1", "from": "eu"}),
            "/tool",
            "did you mean `ping`? the tools are echo, ping, dns, tcp",
        ),
        row(json!({"target": "127.0.0.1", "from": "eu"}), "/tool", "missing"),
        row(json!({"tool": 7, "from": "eu"}), "/tool", "must be a string, not 7"),
        row(json!({"tool": "ping", "target": "127.0.0.1"}), "/from", "from"),
        row(json!({"tool": "ping", "target": "127.0.0.1", "from": "eu", "form": 1}), "/form", "did you mean `from`?"),
        row(target(""), "/target", "a target is required"),
        row(target("a b"), "/target", "spaces"),
        row(target("a\u{7}b"), "/target", "control characters"),
        row(target("https://example.com/x"), "/target", "give only its host: example.com"),
        row(target("[::1]"), "/target", "without them: ::1"),
        row(target("fe80::1%eth0"), "/target", "zone id"),
        row(target("xn--a.\u{e9}\u{301}\u{200d}"), "/target", "internationalised"),
        row(target(&"a".repeat(254)), "/target", "at most 253"),
        row(target("-c"), "/target", "starts with `-`"),
        row(target("2130706433"), "/target", "number form of an address"),
        row(json!({"tool": "tcp", "target": 1, "from": "eu"}), "/target", "must be a string"),
        row(from(&json!("eu.central")), "/from", "must be 1 to 63 of a-z"),
        row(from(&json!("*")), "/from", "must be 1 to 63 of a-z"),
        row(from(&json!(">")), "/from", "must be 1 to 63 of a-z"),
        row(from(&json!("eu central")), "/from", "must be 1 to 63 of a-z"),
        row(from(&json!([])), "/from", "from"),
        row(from(&json!(["eu", "EU"])), "/from/1", "must be 1 to 63 of a-z"),
        row(json!({"tool": "ping", "target": "127.0.0.1", "from": "eu", "timeout_ms": 10}), "/timeout_ms", "may take"),
        row(json!({"tool": "ping", "target": "127.0.0.1", "from": "eu", "timeout_ms": "x"}), "/timeout_ms", "must be a whole number"),
        Row { status: 404, code: "no_such_region", ..row(from(&json!("mars")), "/from", "the regions are: eu") },
        Row { status: 404, code: "no_such_node", ..row(from(&json!("node:mars-1")), "/from", "the nodes are: bad-1") },
    ];
    for Row { body, status, code, pointer, words } in table {
        check(&caller.post("/v1/jobs", &body), status, code, Some(pointer), words);
    }
    let accepted = caller.job("tcp", "b\u{fc}cher.example", "eu", &json!({})).expect(200);
    assert_eq!(accepted["target"], "xn--bcher-kva.example");
}

#[test]
fn each_mistake_around_a_job_is_named() {
    let fabric = Fabric::start();
    let api = fabric.api();
    let caller = api.admin();
    let good = json!({"tool": "echo", "from": "eu"}).to_string();
    let large = format!("{{\"tool\":\"{}\"}}", "x".repeat(70_000));
    let json_type = "application/json";
    // A pointer is where it is, and the whole body where it is everywhere; what is wrong with the headers is nowhere in the body.
    let table: [Mistake<'_>; 11] = [
        (json_type, b"", 400, "invalid", Some(""), "the body is empty"),
        (json_type, b"{\"tool\":", 400, "invalid", Some(""), "ends too early"),
        (json_type, b"ping", 400, "invalid", Some(""), "not JSON"),
        (json_type, b"\xff\xfe", 400, "invalid", Some(""), "not JSON"),
        (json_type, b"[1]", 400, "invalid", Some(""), "must be a JSON object"),
        (json_type, b"{\"tool\":\"echo\",\"tool\":\"echo\"}", 400, "invalid", Some("/tool"), "`tool` is given twice"),
        (json_type, b"{\"parameters\":{\"count\":1,\"count\":1}}", 400, "invalid", Some("/parameters/count"), "`count` is given twice"),
        (json_type, b"{\"tool\":\"echo\",\"x\":1}", 400, "invalid", Some("/x"), "unknown field `x`"),
        (json_type, large.as_bytes(), 413, "too_large", None, "larger than 65536 bytes"),
        ("text/plain", good.as_bytes(), 415, "unsupported_media_type", None, "it must be application/json"),
        ("application/x-www-form-urlencoded", good.as_bytes(), 415, "unsupported_media_type", None, "it must be application/json"),
    ];
    for (content_type, body, status, code, pointer, words) in table {
        check(&caller.post_raw("/v1/jobs", content_type, body, &[]), status, code, pointer, words);
    }
    let packed = caller.post_raw("/v1/jobs", json_type, good.as_bytes(), &[("content-encoding", "gzip")]);
    check(&packed, 415, "unsupported_media_type", None, "encoded as `gzip`");
    check(&caller.post_raw("/v1/jobs", "", good.as_bytes(), &[]), 415, "unsupported_media_type", None, "application/json");
    check(&caller.get("/v1/nothing"), 404, "not_found", None, "/v1/nothing");
    let wrong_method = caller.get("/v1/jobs");
    check(&wrong_method, 405, "method_not_allowed", None, "GET");
    assert_eq!(wrong_method.header("allow"), Some("POST"));
    check(&caller.get("/v1/jobs/7"), 404, "not_found", None, "must be a UUID");
    check(&caller.get("/v1/audit?limti=3"), 400, "invalid", None, "did you mean `limit`?");
}

#[test]
fn a_problem_is_plain_json_to_those_who_prefer_it() {
    let fabric = Fabric::start();
    let api = fabric.api();
    let caller = api.admin();
    let asked = |accept: &str| caller.post_raw("/v1/jobs", "application/json", b"{}", &[("accept", accept)]);
    assert_eq!(asked("*/*").header("content-type"), Some("application/problem+json"));
    assert_eq!(asked("application/problem+json").header("content-type"), Some("application/problem+json"));
    let n8n = "application/json,text/html,application/xhtml+xml,application/xml,text/*;q=0.9, image/*;q=0.8, */*;q=0.7";
    assert_eq!(asked(n8n).header("content-type"), Some("application/json"));
}
