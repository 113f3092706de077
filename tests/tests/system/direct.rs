//! Jobs published straight to the broker, by any client that holds a service's credential.

use std::io::Write;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::{Client, HeaderMap, StatusCode};
use futures_util::StreamExt;
use probeops_tests::asker::Asker;
use probeops_tests::fabric::Fabric;
use probeops_tests::silent::Silent;
use serde_json::{Value, json};

/// Only a hang takes this long.
const HANG: Duration = Duration::from_secs(60);

/// What came back on a reply subject, and from whom.
struct Answer {
    responder: String,
    status: Option<StatusCode>,
    body: Value,
}

/// A service with its connection.
struct Publisher<'a> {
    fabric: &'a Fabric,
    name: &'a str,
    client: Client,
}

impl<'a> Publisher<'a> {
    fn new(fabric: &'a Fabric, name: &'a str, tools: &[&str], nodes: &[&str]) -> Self {
        let service = fabric.service(name, &["eu"], tools, nodes);
        Self { fabric, name, client: fabric.connect(&service.creds) }
    }

    /// Publishes and reads the one answer.
    fn ask(&self, subject: &str, body: &[u8], headers: HeaderMap) -> Answer {
        self.fabric.block_on(async {
            let inbox = format!("_INBOX.{}.{:032x}", self.name, rand::random::<u128>());
            let mut answers = self.client.subscribe(format!("{inbox}.*")).await.unwrap();
            let (subject, body) = (subject.to_owned(), body.to_vec().into());
            self.client.publish_with_reply_and_headers(subject, format!("{inbox}._"), headers, body).await.unwrap();
            let message = tokio::time::timeout(HANG, answers.next()).await.expect("an answer").expect("an open subscription");
            let responder = message.subject.rsplit('.').next().unwrap_or_default().to_owned();
            Answer { responder, status: message.status, body: serde_json::from_slice(&message.payload).unwrap_or(Value::Null) }
        })
    }
}

fn job(tool: &str, target: &str) -> Vec<u8> {
    json!({"request_id": "r-1", "tool": tool, "target": target, "parameters": {"timeout": 2}}).to_string().into_bytes()
}

fn unix_ms() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

fn header(name: &str, value: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(name, value);
    headers
}

fn deadline(at: &str) -> HeaderMap {
    header("Probe-Deadline", at)
}

#[test]
fn one_question_gets_one_outcome_from_a_node_the_broker_vouches_for() {
    let fabric = Fabric::start();
    let service = Publisher::new(&fabric, "billing", &["echo", "tcp"], &["d-1"]);
    let nobody = service.ask("job.v1.eu.echo.billing", &job("echo", "x"), HeaderMap::new());
    assert_eq!((nobody.responder.as_str(), nobody.status), ("_", Some(StatusCode::NO_RESPONDERS)));
    fabric.agent("d-1", "eu");
    let answer = service.ask("job.v1.eu.echo.billing", &job("echo", "x"), HeaderMap::new());
    assert_eq!(answer.responder, "d-1");
    assert_eq!(answer.body["status"], "success", "{}", answer.body);
    assert_eq!(answer.body["request_id"], "r-1");
    assert_eq!(answer.body["node"], json!({"id": "d-1", "region": "eu"}));
    let direct = service.ask("node.v1.d-1.job.tcp.billing", &job("tcp", "127.0.0.1"), HeaderMap::new());
    assert_eq!(direct.body["status"], "success", "{}", direct.body);
}

#[test]
fn what_is_wrong_with_a_published_job_is_answered_too() {
    let fabric = Fabric::start();
    fabric.agent("d-1", "eu");
    let service = Publisher::new(&fabric, "billing", &["echo", "tcp"], &[]);
    let huge = format!("{{\"request_id\":\"{}\"}}", "x".repeat(70_000));
    let table: [(&str, &[u8], HeaderMap, &str, &str); 11] = [
        ("echo", b"ping 127.0.0.1", HeaderMap::new(), "invalid", "not JSON: expected value at line 1 column 1"),
        ("echo", huge.as_bytes(), HeaderMap::new(), "invalid", "a job message is at most 65536 bytes long, this one has 70017"),
        (
            "echo",
            &job("tcp", "127.0.0.1"),
            HeaderMap::new(),
            "invalid",
            "the message asks for `tcp`, its subject for `echo`; they must be the same",
        ),
        ("echo", br#"{"tool":"echo","parameters":{"timeuot":1}}"#, HeaderMap::new(), "invalid", "did you mean `timeout`?"),
        ("echo", br#"{"tool":"echo","request_id":"a b"}"#, HeaderMap::new(), "invalid", "a request id must be 1 to 64"),
        ("echo", &job("echo", "x"), deadline(&(unix_ms() - 1000).to_string()), "expired", "ms before the job arrived"),
        ("echo", &job("echo", "x"), deadline(&(unix_ms() + 86_400_000).to_string()), "invalid", "ms away; at most 3600000 ms are allowed"),
        (
            "echo",
            &job("echo", "x"),
            deadline("tomorrow"),
            "invalid",
            "header Probe-Deadline must be milliseconds since 1970 as a whole number, not `tomorrow`",
        ),
        (
            "echo",
            &job("echo", "x"),
            header("Probe-Events", "true"),
            "invalid",
            "header Probe-Events: must be 1 (every event) or 2 (only accepted and alive), or be left out (only the outcome), not `true`",
        ),
        ("echo", &job("echo", "x"), header("Probe-Events", ""), "invalid", "or be left out (only the outcome), not ``"),
        (
            "tcp",
            &job("tcp", "169.254.169.254"),
            HeaderMap::new(),
            "denied",
            "169.254.169.254: this node's policy: a link-local address (where clouds serve their metadata) is always denied",
        ),
    ];
    for (tool, body, headers, kind, words) in table {
        let answer = service.ask(&format!("job.v1.eu.{tool}.billing"), body, headers);
        assert_eq!(answer.body["failure"]["kind"], kind, "{}", answer.body);
        assert!(answer.body["failure"]["detail"].as_str().unwrap_or_default().contains(words), "{}", answer.body);
    }
}

#[test]
fn a_message_of_a_megabyte_costs_its_publisher_the_connection_and_nobody_else_anything() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("d-1", "eu");
    let service = Publisher::new(&fabric, "billing", &["echo"], &[]);
    let connects = || service.client.statistics().connects.load(Ordering::Relaxed);
    assert_eq!(connects(), 1);
    fabric.block_on(async {
        let (subject, reply) = ("job.v1.eu.echo.billing", "_INBOX.billing.large._");
        service.client.publish_with_reply(subject, reply, vec![b' '; 1_000_000].into()).await.unwrap();
    });
    api.wait_until("the broker has cut the connection, and it is back", || connects() >= 2);
    assert_eq!(service.ask("job.v1.eu.echo.billing", &job("echo", "after"), HeaderMap::new()).body["status"], "success");
    let records = api.wait_for_audit("principal=billing&verdict=finished", 1);
    assert_eq!(records.len(), 1, "the large one reached no node: {records:?}");
    assert_eq!(records[0]["target"], "after");
}

#[test]
fn a_job_without_a_reply_subject_of_its_caller_is_not_run() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("d-1", "eu");
    let service = Publisher::new(&fabric, "billing", &["echo"], &[]);
    fabric.block_on(async {
        service.client.publish("job.v1.eu.echo.billing", job("echo", "no-reply").into()).await.unwrap();
        for foreign in ["_INBOX.other.abc._", "job.v1.eu.echo.other", "_INBOX.billing.a.b._", "$JS.API.STREAM.DELETE.AUDIT"] {
            service.client.publish_with_reply("job.v1.eu.echo.billing", foreign, job("echo", "foreign").into()).await.unwrap();
        }
    });
    // Each is in the trail as denied, and none as finished.
    let records = api.wait_for_audit("principal=billing", 5);
    for record in &records {
        assert_eq!(record["verdict"], "denied", "{record}");
        assert!(record["detail"].as_str().unwrap_or_default().contains("reply subject"), "{record}");
    }
}

#[test]
fn two_callers_with_the_same_request_id_get_their_own() {
    let fabric = Fabric::start();
    fabric.agent("d-1", "eu");
    let (one, two) = (Publisher::new(&fabric, "one", &["echo"], &[]), Publisher::new(&fabric, "two", &["echo"], &[]));
    for _ in 0..50 {
        for (service, target) in [(&one, "first"), (&two, "second")] {
            let subject = format!("job.v1.eu.echo.{}", service.name);
            assert_eq!(service.ask(&subject, &job("echo", target), HeaderMap::new()).body["target"], target);
        }
    }
}

#[test]
fn two_callers_with_the_same_request_id_run_at_the_same_time() {
    let fabric = Fabric::start();
    fabric.agent("d-1", "eu");
    let (one, two) = (Asker::service(&fabric, &["tcp"], &[]), Asker::api(&fabric));
    let silent = Silent::start();
    let same = silent.job("r-1", 10_000);
    let first = one.ask("job.v1.eu.tcp", &same, &[]);
    let mut to_first = silent.connected();
    let second = two.ask("job.v1.eu.tcp", &same, &[]);
    let mut to_second = silent.connected();
    // Both go on; the later one ends first, and each hears its own.
    to_second.write_all(b"second\r\n").unwrap();
    to_first.write_all(b"first\r\n").unwrap();
    for (asked, banner) in [(first, "first"), (second, "second")] {
        let heard = asked.all();
        let outcome = &heard.last().unwrap().body;
        assert_eq!((heard.len(), &outcome["status"]), (1, &json!("success")), "{outcome}");
        assert!(outcome["report"]["ports"][0]["banner"].to_string().contains(banner), "{outcome}");
    }
}
