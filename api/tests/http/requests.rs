//! What is answered to requests that are not right.

use probeops_shared::tools::ToolName;

use crate::fixture::{Answer, Api, Ask, Fabric};

/// A request, and what must be said of it.
struct Case {
    ask: Ask,
    status: u16,
    code: &'static str,
    pointer: &'static str,
    part: &'static str,
}

fn job(body: &str) -> Ask {
    post("/v1/jobs", body)
}

fn post(path: &str, body: &str) -> Ask {
    let headers = vec![("content-type", "application/json".to_owned())];
    Ask { method: "POST", path: path.to_owned(), headers, body: body.as_bytes().to_vec(), ..Ask::default() }
}

fn get(path: &str) -> Ask {
    Ask { method: "GET", path: path.to_owned(), ..Ask::default() }
}

fn case(ask: Ask, status: u16, code: &'static str, pointer: &'static str, part: &'static str) -> Case {
    Case { ask, status, code, pointer, part }
}

fn bodies() -> Vec<Case> {
    let large = format!(r#"{{"tool":"echo","from":"eu-central","target":"{}"}}"#, "x".repeat(70_000));
    let invalid = |body: &str, pointer: &'static str, part: &'static str| case(job(body), 400, "invalid", pointer, part);
    vec![
        invalid("", "", "the body is empty"),
        invalid(r#"{"tool":"echo","#, "", "ends too early"),
        invalid("ping", "", "not JSON"),
        invalid("[]", "", "must be a JSON object, not a list"),
        invalid(r#"{"tool":"echo","tool":"echo"}"#, "/tool", "`tool` is given twice"),
        invalid(r#"{"tool":"echo","from":"eu-central","count":1}"#, "/count", "unknown field `count`"),
        invalid(r#"{"tool":"echo","from":"eu-central","every":"5m"}"#, "/every", "belongs to POST /v1/schedules"),
        invalid(r#"{"tool":"ehco","from":"eu-central"}"#, "/tool", "did you mean `echo`?"),
        invalid(
            r#"{"tool":"echo","from":"eu-central","parameters":{"payload_byte":1}}"#,
            "/parameters/payload_byte",
            "did you mean `payload_bytes`?",
        ),
        invalid(r#"{"tool":"echo","from":"eu-central","parameters":{"timeout":"4"}}"#, "/parameters/timeout", "not the string \"4\""),
        invalid(r#"{"tool":"echo","from":"eu.>"}"#, "/from", "a region must be"),
        case(job(&large), 413, "too_large", "", "larger than 65536 bytes"),
        case(Ask { headers: vec![], ..job("{}") }, 415, "unsupported_media_type", "", "-H 'Content-Type: application/json'"),
        case(post("/v1/keys", r#"{"name":"n","scopes":["all"]}"#), 400, "invalid", "/scopes/0", "unknown scope"),
        case(post("/v1/nodes/fra-1/revoke", "now"), 400, "invalid", "", "takes no body"),
    ]
}

fn paths() -> Vec<Case> {
    vec![
        case(job(r#"{"tool":"echo","from":"us-east"}"#), 404, "no_such_region", "/from", "the regions are: eu-central"),
        case(job(r#"{"tool":"echo","from":"node:ber-1"}"#), 404, "no_such_node", "/from", "the nodes are: fra-1"),
        case(
            job(r#"{"tool":"echo","from":"eu-central"}"#),
            503,
            "no_node_available",
            "/from",
            "takes jobs now; 0 of its nodes are online, and they can run: none",
        ),
        case(job(r#"{"tool":"echo","from":"node:fra-1"}"#), 503, "no_node_available", "/from", "not online"),
        case(get("/v1/nothing"), 404, "not_found", "", "there is nothing at `/v1/nothing`"),
        case(get("/"), 404, "not_found", "", "/openapi.json"),
        case(Ask { method: "PUT", ..get("/v1/keys") }, 405, "method_not_allowed", "", "PUT"),
        case(get("/v1/jobs/x"), 404, "not_found", "", "must be a UUID"),
        case(get("/v1/jobs/0198c0de-0000-7000-8000-000000000000"), 404, "not_found", "", "no job"),
        case(get("/v1/nodes/ber-1"), 404, "no_such_node", "", "there is no node `ber-1`"),
        case(get("/v1/nodes/%FF"), 404, "not_found", "", "UTF-8"),
        case(post("/v1/nodes/ber-1/drain", ""), 404, "no_such_node", "", "there is no node `ber-1`"),
        case(Ask { method: "DELETE", ..get("/v1/keys/aaaaaaaaaa") }, 404, "not_found", "", "there is no key `aaaaaaaaaa`"),
        case(get("/v1/audit?verdit=denied"), 400, "invalid", "?verdit", "did you mean `verdict`?"),
        case(get("/v1/nodes?limit=0"), 400, "invalid", "?limit", "from 1 to 1000"),
        case(get("/v1/tools?x"), 400, "invalid", "?x", "there are none here"),
        case(get(&format!("/v1/tools?{}", "x".repeat(9_000))), 414, "uri_too_long", "", "at most 8192 are read"),
        case(Ask { headers: vec![("x-long", "x".repeat(40_000))], ..get("/v1/tools") }, 431, "headers_too_large", "", "with 32768 bytes"),
        case(Ask { headers: vec![("x-many", "x".to_owned()); 85], ..get("/v1/tools") }, 431, "headers_too_large", "", "at most 80"),
    ]
}

async fn check(api: &Api, admin: &str, case: Case) {
    let Case { ask, status, code, pointer, part } = case;
    let shown = format!("{} {} {}", ask.method, ask.path, String::from_utf8_lossy(&ask.body).chars().take(100).collect::<String>());
    let answer = api.ask(Ask { token: Some(admin.to_owned()), ..ask }).await;
    assert_eq!((answer.status, answer.body["code"].as_str()), (status, Some(code)), "{shown}: {answer:?}");
    assert_eq!(answer.body["status"], status, "{shown}");
    assert_eq!(answer.headers["content-type"], "application/problem+json", "{shown}");
    assert_eq!(answer.body["type"], format!("urn:probeops:problem:{code}"), "{shown}");
    assert_eq!(answer.headers["x-request-id"].to_str().ok(), answer.body["request_id"].as_str(), "{shown}");
    assert!(answer.body.to_string().contains(&part.replace('"', "\\\"")), "{shown}: {}", answer.body);
    assert_eq!(answer.headers.contains_key("retry-after"), matches!(status, 429 | 503), "{shown}");
    if !pointer.is_empty() {
        assert_eq!(answer.body["errors"][0]["pointer"], pointer, "{shown}: {}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_that_is_not_right_is_told_why() {
    let fabric = Fabric::start().await;
    let api = fabric.api(|_| {}).await;
    for case in bodies().into_iter().chain(paths()) {
        check(&api, &fabric.admin, case).await;
    }
    let wrong_method = api.ask(Ask { method: "PUT", token: Some(fabric.admin.clone()), ..get("/v1/keys") }).await;
    let allow = wrong_method.headers["allow"].to_str().unwrap();
    assert!(allow.contains("GET") && allow.contains("POST"), "{allow}");
    api.stop().await;
    fabric.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_gets_its_own_request_id_and_the_content_type_it_prefers() {
    let fabric = Fabric::start().await;
    let api = fabric.api(|_| {}).await;
    let n8n = "application/json,text/html,application/xhtml+xml,application/xml,text/*;q=0.9, image/*;q=0.8, */*;q=0.7";
    let headers = vec![("accept", n8n.to_owned()), ("x-request-id", "n8n-7".to_owned())];
    let answer = api.ask(Ask { headers, ..get("/v1/regions") }).await;
    assert_eq!((answer.status, answer.headers["content-type"].to_str().unwrap()), (401, "application/json"));
    assert_eq!((answer.headers["x-request-id"].to_str().unwrap(), &answer.body["request_id"]), ("n8n-7", &"n8n-7".into()));
    assert_eq!(answer.headers["www-authenticate"], "Bearer realm=\"probeops\"");
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for (given, out) in [(trace, Some(trace)), ("00-x-y-01", None)] {
        let answer = api.ask(Ask { headers: vec![("traceparent", given.to_owned())], ..get("/livez") }).await;
        assert_eq!(answer.headers.get("traceparent").map(|value| value.to_str().unwrap()), out);
        assert!(answer.headers.contains_key("x-request-id"), "{answer:?}");
    }
    api.stop().await;
    fabric.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_there_is_can_be_read() {
    let fabric = Fabric::start().await;
    let api = fabric.api(|_| {}).await;
    let read = async |path: &str| -> Answer { api.get(&fabric.admin, path).await };
    let regions = read("/v1/regions").await;
    assert_eq!(
        regions.body,
        serde_json::json!({"regions": [{"region": "eu-central", "nodes": 1, "online": 0, "draining": 0, "tools": []}]})
    );
    let nodes = read("/v1/nodes").await;
    assert_eq!((&nodes.body["nodes"][0]["id"], nodes.body.get("next")), (&"fra-1".into(), None));
    let tools = read("/v1/tools").await;
    assert!(tools.body["tools"].as_array().unwrap().iter().any(|tool| tool["name"] == "echo" && tool["budget_ms"] == 5000));
    let document = api.until("/openapi.json", |answer| answer.status == 200).await;
    assert_eq!(document.body["openapi"], "3.1.0");
    let described: Vec<String> = document.body["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| methods.as_object().unwrap().keys().map(move |method| format!("{} {path}", method.to_uppercase())))
        .collect();
    let by_url: Vec<String> = ToolName::ALL.iter().map(|tool| format!("GET /v1/run/{tool}")).collect();
    let mut named = vec![
        "POST /v1/jobs",
        "GET /v1/jobs/{id}",
        "DELETE /v1/jobs/{id}",
        "GET /v1/jobs",
        "POST /v1/jobs/batch",
        "GET /v1/jobs/{id}/events",
        "GET /v1/limits",
        "GET /v1/tools",
        "GET /v1/regions",
        "GET /v1/nodes",
        "GET /v1/nodes/{id}",
        "POST /v1/nodes/{id}/drain",
        "POST /v1/nodes/{id}/revoke",
        "POST /v1/keys",
        "GET /v1/keys",
        "DELETE /v1/keys/{id}",
        "POST /v1/services",
        "POST /v1/schedules",
        "GET /v1/schedules",
        "GET /v1/schedules/{id}",
        "DELETE /v1/schedules/{id}",
        "POST /v1/schedules/{id}/pause",
        "POST /v1/schedules/{id}/resume",
        "GET /v1/schedules/{id}/results",
        "GET /v1/services",
        "DELETE /v1/services/{name}",
        "POST /v1/secrets",
        "GET /v1/secrets",
        "POST /v1/secrets/{id}/rotate",
        "DELETE /v1/secrets/{id}",
        "GET /v1/deliveries",
        "GET /v1/deliveries/{id}",
        "POST /v1/deliveries/{id}/replay",
        "GET /v1/enroll-tokens",
        "POST /v1/enroll-tokens",
        "DELETE /v1/enroll-tokens/{id}",
        "POST /v1/enroll/challenge",
        "POST /v1/enroll",
        "POST /v1/enroll/confirm",
        "GET /v1/audit",
        "GET /v1/audit/export",
        "GET /metrics",
        "GET /livez",
        "GET /readyz",
        "GET /openapi.json",
    ];
    named.extend(by_url.iter().map(String::as_str));
    named.sort_unstable_by_key(|route| route.split_once(' ').map(|(method, path)| (path, method)));
    let mut described: Vec<&str> = described.iter().map(String::as_str).collect();
    described.sort_unstable_by_key(|route| route.split_once(' ').map(|(method, path)| (path, method)));
    assert_eq!(described, named, "these routes and no other");
    assert_eq!(api.until("/livez", |answer| answer.status == 200).await.body["status"], "alive");
    api.stop().await;
    fabric.stop().await;
}
