//! What is wrong with a request is said with status, code, place and words.

use probeops_tests::fabric::Fabric;
use serde_json::{Value, json};

/// What every message about a target ends with, or nearly every.
const WANTS: &str = "give an address such as 192.0.2.1 or 2001:db8::1, or a name such as example.com";

/// A body, and what must come of it.
struct Row {
    body: Value,
    status: u16,
    code: &'static str,
    pointer: &'static str,
    words: String,
}

/// Content type, body, and what must come of them: status, code, pointer, words.
type Mistake<'a> = (&'a str, &'a [u8], u16, &'a str, Option<&'a str>, &'a str);

fn row(body: Value, pointer: &'static str, words: impl Into<String>) -> Row {
    Row { body, status: 400, code: "invalid", pointer, words: words.into() }
}

/// What has the right form and cannot be all the same.
fn cannot_be(body: Value, pointer: &'static str, words: impl Into<String>) -> Row {
    Row { status: 422, code: "unprocessable", ..row(body, pointer, words) }
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

/// What is said of a count.
fn count(given: &str) -> String {
    format!("must be a whole number from 1 to 100, not {given}")
}

/// What is said of a region.
fn region(given: &str) -> String {
    format!("a region must be 1 to 63 of a-z, 0-9 and `-`, not starting with `-`, not the string \"{given}\"")
}

/// The whole sentence is compared: what is wrong with a body is said at its place, all else of the whole request.
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
    let said = if matches!(code, "invalid" | "unprocessable") { &answer.body["errors"][0]["detail"] } else { &answer.body["detail"] };
    assert_eq!(said, words, "{shown}");
}

/// Mistakes in tool and parameters, and fields that lack or are too many.
fn fields() -> Vec<Row> {
    vec![
        row(ping(&json!({"count": 0})), "/parameters/count", count("0")),
        row(ping(&json!({"count": 101})), "/parameters/count", count("101")),
        row(ping(&json!({"count": 1.5})), "/parameters/count", count("1.5")),
        row(ping(&json!({"count": "4"})), "/parameters/count", count("the string \"4\"")),
        row(ping(&json!({"count": null})), "/parameters/count", count("null")),
        row(
            ping(&json!({"cuont": 4})),
            "/parameters/cuont",
            "unknown option `cuont`; did you mean `count`? the options are protocol, port, count, interval_ms, timeout, \
             payload_bytes, dont_fragment, ttl, dscp, family, source (tool ping)",
        ),
        row(ping(&json!([])), "/parameters", "must be an object of the tool's options, not a list"),
        row(
            json!({"tool": "pnig", "target": "127.0.0.1", "from": "eu"}),
            "/tool",
            "unknown tool `pnig`; did you mean `ping`? the tools are echo, ping, traceroute, mtr, dns, tcp, tls, http, pmtu, whois",
        ),
        row(json!({"target": "127.0.0.1", "from": "eu"}), "/tool", "`tool` is missing: name the tool to run, such as \"ping\""),
        row(json!({"tool": 7, "from": "eu"}), "/tool", "must be a string, not 7"),
        row(
            json!({"tool": "ping", "target": "127.0.0.1"}),
            "/from",
            "`from` is missing: say from where, a region such as \"eu-central\", \"node:\" and a node's id, labels such as \"site=fra\", \
             or a list of these; /v1/regions lists the regions",
        ),
        row(
            json!({"tool": "ping", "target": "127.0.0.1", "from": "eu", "form": 1}),
            "/form",
            "unknown field `form`; did you mean `from`? the fields are tool, target, parameters, from, timeout_ms, callback, \
             cancel_on_disconnect, idempotency_key, when, expires_in_ms",
        ),
    ]
}

fn targets() -> Vec<Row> {
    vec![
        row(target(""), "/target", format!("a target is required; {WANTS}")),
        row(target("a b"), "/target", format!("the string \"a b\" has spaces in it; {WANTS}")),
        row(target("a\u{7}b"), "/target", format!("the string \"a\\u0007b\" has control characters in it; {WANTS}")),
        row(
            target("https://example.com/x"),
            "/target",
            "the string \"https://example.com/x\" is a https URL; give only its host: example.com",
        ),
        row(target("[::1]"), "/target", "the string \"[::1]\" is in brackets; write the address without them: ::1"),
        row(
            target("fe80::1%eth0"),
            "/target",
            format!("the string \"fe80::1%eth0\" has a zone id, which means something only on one machine; {WANTS}"),
        ),
        cannot_be(
            target("xn--a.\u{e9}\u{301}\u{200d}"),
            "/target",
            "the string \"xn--a.\u{e9}\u{301}\u{200d}\" is not a valid internationalised name (IDNA, UTS 46)",
        ),
        cannot_be(target(&"a".repeat(254)), "/target", "a name is at most 253 characters long, this one has 254"),
        row(target("-c"), "/target", format!("the string \"-c\" starts with `-`; {WANTS}")),
        cannot_be(
            target("2130706433"),
            "/target",
            "the string \"2130706433\" is not a host name but a number form of an address; write it as four decimal numbers, such as 192.0.2.1",
        ),
        row(json!({"tool": "tcp", "target": 1, "from": "eu"}), "/target", "must be a string, not 1"),
    ]
}

/// Mistakes in from where and in how long.
fn places() -> Vec<Row> {
    vec![
        row(from(&json!("eu.central")), "/from", region("eu.central")),
        row(from(&json!(">")), "/from", region(">")),
        row(
            from(&json!("eu central")),
            "/from",
            "the string \"eu central\" says nothing of a label; write site=fra, env!=lab or role in (edge,core)",
        ),
        row(
            from(&json!("site=Fra:all")),
            "/from",
            "the value of a label must be 1 to 63 of a-z, 0-9, `.`, `_`, `/` and `-`, beginning and ending with a letter or a digit, not the \
             string \"Fra\"",
        ),
        row(
            from(&json!({"region": "eu", "take": "two"})),
            "/from/take",
            "must be \"one\", \"all\" or how many distinct nodes, from 1 to 1000, not the string \"two\"",
        ),
        row(from(&json!([])), "/from", "must list 1 to 100 selectors, not 0"),
        row(from(&json!(["eu", "EU"])), "/from/1", region("EU")),
        cannot_be(
            json!({"tool": "ping", "target": "127.0.0.1", "from": "eu", "timeout_ms": 10}),
            "/timeout_ms",
            "10 ms is too short: this tool with these parameters may take 9000 ms (lower `timeout`, `count` or `interval_ms`, \
             or allow more than 9000)",
        ),
        row(
            json!({"tool": "ping", "target": "127.0.0.1", "from": "eu", "timeout_ms": "x"}),
            "/timeout_ms",
            "must be a whole number of milliseconds from 1 to 3600000, not the string \"x\"",
        ),
        Row { status: 404, code: "no_such_region", ..row(from(&json!("mars")), "/from", "there is no region `mars`; the regions are: eu") },
        Row {
            status: 404,
            code: "no_such_node",
            ..row(from(&json!("node:mars-1")), "/from", "there is no node `mars-1`; the nodes are: bad-1")
        },
    ]
}

#[test]
fn each_mistake_in_a_job_is_named_with_its_place() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("bad-1", "eu");
    let caller = api.admin();
    api.wait_for_nodes(1);
    for Row { body, status, code, pointer, words } in [fields(), targets(), places()].into_iter().flatten() {
        check(&caller.post("/v1/jobs", &body), status, code, Some(pointer), &words);
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
    let (early, not_json) =
        ("the JSON ends too early: EOF while parsing a value at line 1 column 8", "not JSON: expected value at line 1 column 1");
    let unknown = "unknown field `x`; the fields are tool, target, parameters, from, timeout_ms, callback, cancel_on_disconnect, idempotency_key, when, expires_in_ms";
    let content_type = |said: &str| format!("{said}; it must be application/json (with curl, add -H 'Content-Type: application/json')");
    let text = content_type("the body's content type is `text/plain`");
    let form = content_type("the body's content type is `application/x-www-form-urlencoded`");
    // A pointer is where it is, and the whole body where it is everywhere; what is wrong with the headers is nowhere in the body.
    let table: [Mistake<'_>; 11] = [
        (json_type, b"", 400, "invalid", Some(""), "the body is empty; send a JSON object"),
        (json_type, b"{\"tool\":", 400, "invalid", Some(""), early),
        (json_type, b"ping", 400, "invalid", Some(""), not_json),
        (json_type, b"\xff\xfe", 400, "invalid", Some(""), not_json),
        (json_type, b"[1]", 400, "invalid", Some(""), "must be a JSON object, not a list"),
        (json_type, b"{\"tool\":\"echo\",\"tool\":\"echo\"}", 400, "invalid", Some("/tool"), "field `tool` is given twice"),
        (
            json_type,
            b"{\"parameters\":{\"count\":1,\"count\":1}}",
            400,
            "invalid",
            Some("/parameters/count"),
            "field `count` is given twice",
        ),
        (json_type, b"{\"tool\":\"echo\",\"x\":1}", 400, "invalid", Some("/x"), unknown),
        (json_type, large.as_bytes(), 413, "too_large", None, "the body is larger than 65536 bytes; no job needs so much"),
        ("text/plain", good.as_bytes(), 415, "unsupported_media_type", None, &text),
        ("application/x-www-form-urlencoded", good.as_bytes(), 415, "unsupported_media_type", None, &form),
    ];
    for (content_type, body, status, code, pointer, words) in table {
        check(&caller.post_raw("/v1/jobs", content_type, body, &[]), status, code, pointer, words);
    }
    let packed = caller.post_raw("/v1/jobs", json_type, good.as_bytes(), &[("content-encoding", "gzip")]);
    let encoded = "the body is encoded as `gzip`; send it as it is, without Content-Encoding";
    check(&packed, 415, "unsupported_media_type", None, encoded);
    let none = content_type("the body has no content type");
    check(&caller.post_raw("/v1/jobs", "", good.as_bytes(), &[]), 415, "unsupported_media_type", None, &none);
    let nothing = "there is nothing at `/v1/nothing`; /openapi.json says what there is";
    check(&caller.get("/v1/nothing"), 404, "not_found", None, nothing);
    let wrong_method = caller.get("/v1/jobs/batch");
    let allowed = "`/v1/jobs/batch` cannot be asked with GET; the header Allow says with what";
    check(&wrong_method, 405, "method_not_allowed", None, allowed);
    assert_eq!(wrong_method.header("allow"), Some("POST"));
    check(&caller.get("/v1/jobs/7"), 404, "not_found", None, "a job id must be a UUID, not the string \"7\"");
    let limti = "unknown query parameter `limti`; did you mean `limit`? the query parameters are since, until, principal, node, tool, target, verdict, \
                 request_id, limit, cursor";
    check(&caller.get("/v1/audit?limti=3"), 400, "invalid", Some("?limti"), limti);
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
