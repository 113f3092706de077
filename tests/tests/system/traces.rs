//! Traces: one from the caller to the node and back, whole over retries, without secrets, and of no harm when nobody collects it.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use probeops_tests::fabric::{AgentOptions, Api, ApiOptions, Fabric, free_port};
use probeops_tests::otlp::{Collector, Told};
use probeops_tests::receiver::{Receiver, Reply};
use probeops_tests::silent::Silent;
use serde_json::{Value, json};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

fn to(collector: &str) -> ApiOptions {
    let callback_allow = Some("127.0.0.0/8".to_owned());
    ApiOptions { collector: Some((collector.to_owned(), 1.0)), callback_allow, ..ApiOptions::default() }
}

/// A job, posted as part of a trace: what was answered, and its header `traceparent`.
#[track_caller]
fn post(api: &Api, job: &Value, traceparent: &str) -> (Value, String) {
    let headers = [("traceparent", traceparent), ("tracestate", "vendor=1")];
    let answer = api.admin().post_raw("/v1/jobs", "application/json", job.to_string().as_bytes(), &headers);
    let traceparent = answer.header("traceparent").unwrap().to_owned();
    (answer.expect(200), traceparent)
}

#[track_caller]
fn only(told: &[Told], kind: SpanKind) -> &Told {
    let of: Vec<&Told> = told.iter().filter(|told| told.span.kind() == kind).collect();
    let [only] = of.as_slice() else { panic!("{} spans of kind {kind:?}: {told:?}", of.len()) };
    only
}

fn sum(api: &Api, result: &str) -> u64 {
    let metrics = api.admin().get("/metrics").text;
    let line = format!("probeops_spans_total{{result=\"{result}\"}} ");
    metrics.lines().find_map(|told| told.strip_prefix(&line)?.parse().ok()).unwrap_or_default()
}

#[test]
fn one_trace_leads_from_the_caller_over_the_api_to_the_node() {
    let collector = Collector::start();
    let fabric = Fabric::start_logging(Some("debug"));
    let api = fabric.api_with(&to(&collector.url()));
    let agent = fabric.agent("t-1", "eu");
    api.wait_for_nodes(1);
    let job = json!({"tool": "echo", "target": "hello", "from": "eu"});
    let (document, answered) = post(&api, &job, &format!("00-{TRACE}-{CALLER}-01"));
    let told = collector.wait_for(TRACE, 3);
    assert_eq!(told.len(), 3, "{told:?}");
    let (request, dispatch, node) = (only(&told, SpanKind::Server), only(&told, SpanKind::Producer), only(&told, SpanKind::Consumer));
    assert_eq!((request.parent(), dispatch.parent(), node.parent()), (CALLER.to_owned(), request.id(), dispatch.id()));
    assert_eq!(answered, format!("00-{TRACE}-{}-01", request.id()), "the caller is told where its call is");
    assert!(told.iter().all(|told| told.span.trace_state == "vendor=1" && told.span.status.is_none()), "{told:?}");
    for (told, service) in [(request, "probeops-api"), (dispatch, "probeops-api"), (node, "probeops-agent")] {
        assert_eq!(told.service(), service);
        assert!(told.span.start_time_unix_nano <= told.span.end_time_unix_nano, "{told:?}");
    }
    assert_eq!((&node.resource["service.instance.id"], &node.resource["probeops.region"]), (&json!("t-1"), &json!("eu")));
    for (told, attributes) in [
        (
            request,
            json!({"http.request.method": "POST", "http.route": "/v1/jobs", "url.path": "/v1/jobs", "url.scheme": "http", "http.response.status_code": 200}),
        ),
        (
            dispatch,
            json!({"messaging.system": "nats", "messaging.operation.type": "send", "messaging.message.conversation_id": document["id"],
                "messaging.destination.template": "job.v1.<region>.<tool>.<caller>", "probeops.tool": "echo", "probeops.attempts": 1}),
        ),
        (
            node,
            json!({"messaging.system": "nats", "messaging.operation.type": "process", "messaging.message.id": document["results"][0]["request_id"]}),
        ),
    ] {
        for (key, value) in attributes.as_object().unwrap() {
            assert_eq!(told.attribute(key), *value, "{key}");
        }
    }
    let [(event, attempt)] = dispatch.events().try_into().unwrap();
    assert_eq!((event.as_str(), &attempt["probeops.attempt"]), ("attempt", &json!(1)));
    assert!(attempt["messaging.destination.name"].as_str().unwrap().starts_with("job.v1.eu.echo.api-"), "{attempt:?}");
    // The node itself knows its span.
    let log = agent.log();
    assert!(log.contains(TRACE) && log.contains(&node.id()), "{log}");
    // Each run of a job for several is dispatched by a span of its own.
    let trace = "a".repeat(32);
    post(&api, &json!({"tool": "echo", "target": "hello", "from": ["eu", "node:t-1"]}), &format!("00-{trace}-{CALLER}-01"));
    let told = collector.wait_for(&trace, 5);
    let of = |kind: SpanKind| told.iter().filter(move |told| told.span.kind() == kind);
    let dispatches: BTreeSet<String> = of(SpanKind::Producer).map(Told::id).collect();
    let parents: BTreeSet<String> = of(SpanKind::Consumer).map(Told::parent).collect();
    assert!(dispatches.len() == 2 && dispatches == parents, "{told:?}");
}

#[test]
fn a_run_that_another_node_takes_over_is_in_the_same_trace() {
    let collector = Collector::start();
    let fabric = Fabric::start();
    let api = fabric.api_with(&to(&collector.url()));
    let first = fabric.agent("t-1", "eu");
    fabric.agent_with("t-2", "eu", &AgentOptions { slots_probe: Some(1), ..AgentOptions::default() });
    api.wait_for_nodes(2);
    let silent = Silent::start();
    let ask = |from: &'static str, trace: &str| {
        let (caller, parameters, traceparent) = (api.admin(), silent.parameters(10_000), format!("00-{trace}-{CALLER}-01"));
        let job = json!({"tool": "tcp", "target": "127.0.0.1", "from": from, "parameters": parameters}).to_string();
        std::thread::spawn(move || {
            caller.post_raw("/v1/jobs", "application/json", job.as_bytes(), &[("traceparent", &traceparent)]).outcome()
        })
    };
    // The second node is full, so the first takes the job, begins, and dies.
    let (filling, mut filled) = (ask("node:t-2", &"b".repeat(32)), silent.connected());
    let (asked, _begun) = (ask("eu", TRACE), silent.connected());
    std::thread::sleep(Duration::from_millis(200));
    first.kill();
    filled.write_all(b"done\r\n").unwrap();
    assert_eq!(filling.join().unwrap()["status"], "success");
    silent.connected().write_all(b"hello\r\n").unwrap();
    assert_eq!(asked.join().unwrap()["node"]["id"], "t-2");
    let told = collector.wait_for(TRACE, 3);
    assert_eq!(told.len(), 3, "{told:?}");
    let (request, dispatch, node) = (only(&told, SpanKind::Server), only(&told, SpanKind::Producer), only(&told, SpanKind::Consumer));
    assert_eq!((request.parent(), dispatch.parent(), node.parent()), (CALLER.to_owned(), request.id(), dispatch.id()));
    assert_eq!(node.resource["service.instance.id"], "t-2");
    let events = dispatch.events();
    let attempts = events.iter().filter(|(name, _)| name == "attempt").count();
    assert!(attempts >= 2 && dispatch.attribute("probeops.attempts") == json!(attempts), "{events:?}");
    let silent_node = events.iter().find(|(name, _)| name == "silent").map(|(_, attributes)| &attributes["probeops.node"]);
    assert_eq!(silent_node, Some(&json!("t-1")), "{events:?}");
}

#[test]
fn a_trace_that_the_caller_does_not_keep_or_does_not_have() {
    let collector = Collector::start();
    let fabric = Fabric::start();
    let api = fabric.api_with(&to(&collector.url()));
    fabric.agent("t-1", "eu");
    api.wait_for_nodes(1);
    let job = json!({"tool": "echo", "target": "hello", "from": "eu"});
    // Not kept, it goes on all the same: others may look for it in their logs.
    let (_, answered) = post(&api, &job, &format!("00-{TRACE}-{CALLER}-00"));
    assert!(answered.starts_with(&format!("00-{TRACE}-")) && answered.ends_with("-00") && !answered.contains(CALLER), "{answered}");
    // Without one, or with one that is none, a new one begins.
    for none in ["", "00-x-y-01"] {
        let (_, answered) = post(&api, &job, none);
        let trace: String = answered.chars().skip(3).take(32).collect();
        let told = collector.wait_for(&trace, 3);
        let request = only(&told, SpanKind::Server);
        assert_eq!(request.parent(), "");
        assert!(answered.contains(&request.id()), "{answered}");
    }
    assert!(collector.told().iter().all(|told| told.trace_id() != TRACE), "it was not to be kept");
    let never = fabric.api_with(&ApiOptions { collector: Some((collector.url(), 0.0)), ..ApiOptions::default() });
    let answer = never.admin().get("/v1/tools");
    assert!(answer.header("traceparent").unwrap().ends_with("-02"), "none is kept of those that begin here: {answer:?}");
}

#[test]
fn a_callback_is_a_trace_of_its_own_that_leads_to_the_request() {
    let collector = Collector::start();
    let fabric = Fabric::start();
    let api = fabric.api_with(&to(&collector.url()));
    fabric.agent("t-1", "eu");
    api.wait_for_nodes(1);
    let receiver = Receiver::start(|before, _| Reply::status(if before == 0 { 409 } else { 204 }));
    let job = json!({"tool": "echo", "target": "hello", "from": "eu", "callback": {"url": receiver.url("/hook?SECRETQUERY")}});
    post(&api, &job, &format!("00-{TRACE}-{CALLER}-01"));
    let posted = receiver.wait_for("/hook?SECRETQUERY", 2);
    let request = collector.wait_for(TRACE, 3);
    let request = only(&request, SpanKind::Server).id();
    for (posted, (status, again)) in posted.iter().zip([(409, json!(null)), (204, json!(1))]) {
        let traceparent = posted.header("traceparent").unwrap();
        let trace: String = traceparent.chars().skip(3).take(32).collect();
        let told = collector.wait_for(&trace, 1).remove(0);
        assert!(traceparent.ends_with(&format!("{}-03", told.id())), "{traceparent} {told:?}");
        let [link] = told.span.links.as_slice() else { panic!("{told:?}") };
        assert_eq!(data_encoding::HEXLOWER.encode(&link.trace_id), TRACE);
        assert_eq!(data_encoding::HEXLOWER.encode(&link.span_id), request);
        assert_eq!((told.attribute("http.response.status_code"), told.attribute("http.request.resend_count")), (json!(status), again));
        assert_eq!((told.attribute("server.address"), told.span.kind()), (json!("127.0.0.1"), SpanKind::Client));
    }
}

#[test]
fn no_secret_and_no_target_is_in_any_span() {
    let collector = Collector::start();
    let fabric = Fabric::start();
    let token = fabric.file("otlp-headers", "authorization: Bearer COLLECTORTOKEN\nx-tenant: ours\n");
    let (address, receiver) = (free_port(), Receiver::start(|_, _| Reply::status(204)));
    let mut command = fabric.api_command(address, &to(&collector.url()));
    command.arg("--otlp-headers-file").arg(token);
    let api = fabric.api_of(address, command);
    fabric.agent("t-1", "eu");
    api.wait_for_nodes(1);
    let planted = ["PLANTEDQUERY", "PLANTEDPATH", "PLANTEDHEADER", "PLANTEDCALLBACK", "PLANTEDVALUE", "PLANTEDKEY", "PLANTEDNAME"];
    let job = json!({
        "tool": "http", "target": receiver.url("/PLANTEDPATH?PLANTEDQUERY"), "from": "eu",
        "parameters": {"headers": ["Authorization: Bearer PLANTEDHEADER"]},
        "callback": {"url": receiver.url("/PLANTEDCALLBACK?PLANTEDCALLBACK"), "header": {"name": "X-Token", "value": "PLANTEDVALUE"}},
    });
    let headers = [("traceparent", format!("00-{TRACE}-{CALLER}-01")), ("idempotency-key", "PLANTEDKEY".to_owned())];
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let answer = api.admin().post_raw("/v1/jobs", "application/json", job.to_string().as_bytes(), &headers);
    assert_eq!(answer.outcome()["status"], "success");
    let get = api.admin().get("/v1/run/dns?target=PLANTEDNAME.example&from=eu");
    assert_eq!(get.status, 200, "{}", get.text);
    api.admin().get("/nothing/PLANTEDPATH?PLANTEDQUERY").expect(404);
    receiver.wait_for("/PLANTEDCALLBACK?PLANTEDCALLBACK", 1);
    collector.wait_for(TRACE, 3);
    // Request, dispatch and node of two jobs, the callback, what is not there: the last of them has come.
    api.wait_until("all that was planted is told of", || {
        let told = collector.told();
        told.iter().any(|told| !told.span.links.is_empty())
            && told.iter().any(|told| told.attribute("http.response.status_code") == json!(404))
            && told.iter().filter(|told| told.span.kind() == SpanKind::Consumer).count() >= 2
    });
    let headers = collector.first_headers();
    assert!(headers.contains(&("authorization".to_owned(), "Bearer COLLECTORTOKEN".to_owned())), "{headers:?}");
    assert!(headers.contains(&("x-tenant".to_owned(), "ours".to_owned())), "{headers:?}");
    let key = api.admin_key().to_owned();
    for body in collector.bodies() {
        let text = String::from_utf8_lossy(&body).into_owned();
        for secret in planted.into_iter().chain(["COLLECTORTOKEN", &key]) {
            assert!(!text.contains(secret), "{secret} is in a span: {text}");
        }
    }
}

#[test]
fn a_collector_that_is_not_there_costs_no_job_and_what_is_lost_is_counted() {
    let fabric = Fabric::start();
    // Nobody listens there.
    let api = fabric.api_with(&to(&format!("http://{}", free_port())));
    fabric.agent("t-1", "eu");
    api.wait_for_nodes(1);
    let job = json!({"tool": "echo", "target": "hello", "from": "eu"});
    let started = Instant::now();
    let jobs = 50;
    for _ in 0..jobs {
        let (document, _) = post(&api, &job, &format!("00-{TRACE}-{CALLER}-01"));
        assert_eq!(document["results"][0]["status"], "success");
    }
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    api.wait_until("the loss is counted", || sum(&api, "unreachable") >= 3 * jobs);
    assert_eq!(sum(&api, "exported"), 0);
    assert!(api.log().contains("spans are lost"), "{}", api.log());
    assert_eq!(api.stop(), Some(0), "it does not hold up the end either");
}

#[test]
fn a_collector_that_is_busy_is_asked_again_and_what_it_rejects_is_counted() {
    let collector = Collector::answering(|before| match before {
        0 => Reply::status(503),
        1 => Reply::status(429).header("retry-after", "1"),
        _ => Reply::status(200),
    });
    let fabric = Fabric::start();
    let api = fabric.api_with(&to(&collector.url()));
    fabric.agent("t-1", "eu");
    api.wait_for_nodes(1);
    let (document, _) = post(&api, &json!({"tool": "echo", "target": "hello", "from": "eu"}), &format!("00-{TRACE}-{CALLER}-01"));
    assert_eq!(document["results"][0]["status"], "success");
    let told = collector.wait_for(TRACE, 3);
    assert_eq!(told.len(), 3, "each is told once: {told:?}");
    api.wait_until("what came is counted", || sum(&api, "exported") >= 3);
    let refusing = Collector::answering(|_| Reply::status(400));
    let other = fabric.api_with(&to(&refusing.url()));
    api.wait_until("what is refused is counted", || sum(&other, "refused") > 0);
}
