//! From attempts to one outcome, whatever nodes do.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::fixture::{Answer, Api, Ask, Fabric};
use crate::node::{Ears, Node, header_of, request_id};

const IN_LAB: &str = r#"{"tool":"echo","target":"x","from":"lab"}"#;
const PATIENT: &str = r#"{"tool":"echo","target":"x","from":"lab","parameters":{"timeout":30}}"#;

async fn fabric() -> (Fabric, Api) {
    let fabric = Fabric::start().await;
    let api = fabric.api(|_| {}).await;
    (fabric, api)
}

async fn end(fabric: Fabric, api: Api) {
    api.stop().await;
    fabric.stop().await;
}

/// The one outcome of a finished job.
#[track_caller]
fn outcome(answer: &Answer) -> &Value {
    assert_eq!((answer.status, &answer.body["status"]), (200, &"finished".into()), "{answer:?}");
    assert_eq!(answer.body["results"].as_array().map(Vec::len), Some(1), "{answer:?}");
    &answer.body["results"][0]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_attempt_is_followed_by_another_and_a_late_accept_by_a_cancel() {
    let (fabric, api) = fabric().await;
    let mut node = Node::start(&fabric, &api, "n-1", (Ears::Group, 8)).await;
    let script = async {
        let (first, second) = (node.hears().await, node.hears().await);
        assert!(first.subject.starts_with("job.v1.lab.echo.api-"), "{}", first.subject);
        assert_eq!((header_of(&first, "Probe-Attempt"), header_of(&second, "Probe-Attempt")), ("1", "2"));
        assert_eq!(request_id(&first), request_id(&second));
        assert_eq!(header_of(&first, "Probe-Deadline"), header_of(&second, "Probe-Deadline"));
        assert_eq!(header_of(&first, "Probe-Events"), "2", "nobody is there yet to hear of progress");
        assert_ne!(first.reply, second.reply, "each attempt has a token of its own");
        node.succeeds(&second).await;
        (first, node)
    };
    let (answer, (first, mut node)) = tokio::join!(api.post(&fabric.admin, "/v1/jobs", IN_LAB), script);
    assert_eq!(outcome(&answer)["node"], json!({"id": "n-1", "region": "lab"}));
    node.accepts(&first).await;
    let cancel = node.hears().await;
    assert!(cancel.subject.starts_with("node.v1.n-1.ctl.cancel.api-"), "{}", cancel.subject);
    assert_eq!(request_id(&cancel), request_id(&first));
    drop(node);
    end(fabric, api).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_refuses_is_followed_by_the_node_with_the_most_room() {
    let (fabric, api) = fabric().await;
    let mut full = Node::start(&fabric, &api, "n-1", (Ears::Group, 1)).await;
    let _smaller = Node::start(&fabric, &api, "n-2", (Ears::Name, 2)).await;
    let mut free = Node::start(&fabric, &api, "n-3", (Ears::Name, 8)).await;
    let script = async {
        for _ in 0..2 {
            let job = full.hears().await;
            full.fails(&job, "busy").await;
        }
        let third = free.hears().await;
        assert!(third.subject.starts_with("node.v1.n-3.job.echo.api-"), "{}", third.subject);
        assert_eq!(header_of(&third, "Probe-Attempt"), "3");
        free.succeeds(&third).await;
    };
    let (answer, ()) = tokio::join!(api.post(&fabric.admin, "/v1/jobs", IN_LAB), script);
    assert_eq!(outcome(&answer)["node"]["id"], "n-3");
    // A node's policy is its own: the next attempt goes to another node at once, by name.
    let script = async {
        let job = full.hears().await;
        full.fails(&job, "denied").await;
        let second = free.hears().await;
        assert_eq!((header_of(&second, "Probe-Attempt"), second.subject.starts_with("node.v1.n-3.")), ("2", true));
        free.succeeds(&second).await;
    };
    let (answer, ()) = tokio::join!(api.post(&fabric.admin, "/v1/jobs", IN_LAB), script);
    assert_eq!(outcome(&answer)["node"]["id"], "n-3");
    drop((full, free));
    end(fabric, api).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_outcome_is_delivered_and_what_else_was_accepted_is_cancelled() {
    let (fabric, api) = fabric().await;
    let mut late = Node::start(&fabric, &api, "n-1", (Ears::Group, 1)).await;
    let mut chosen = Node::start(&fabric, &api, "n-2", (Ears::Name, 8)).await;
    let script = async {
        let (first, second) = (late.hears().await, late.hears().await);
        let third = chosen.hears().await;
        chosen.accepts(&third).await;
        late.accepts(&second).await;
        let cancel = late.hears().await;
        assert!(cancel.subject.starts_with("node.v1.n-1.ctl.cancel."), "{}", cancel.subject);
        // As an agent does when it is cancelled; it is not the job's outcome.
        late.fails(&second, "cancelled").await;
        late.says(&first, "outcome", &json!({"nonsense": true})).await;
        chosen.succeeds(&third).await;
    };
    let (answer, ()) = tokio::join!(api.post(&fabric.admin, "/v1/jobs", IN_LAB), script);
    assert_eq!((outcome(&answer)["node"]["id"].as_str(), outcome(&answer)["status"].as_str()), (Some("n-2"), Some("success")));
    drop((late, chosen));
    end(fabric, api).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_node_asked_twice_is_not_told_to_stop_what_is_wanted() {
    let (fabric, api) = fabric().await;
    let mut node = Node::start(&fabric, &api, "n-1", (Ears::Group, 8)).await;
    let script = async {
        let (first, second) = (node.hears().await, node.hears().await);
        // It took both after all: the newer run has replaced the older.
        node.accepts(&first).await;
        node.accepts(&second).await;
        node.fails(&first, "cancelled").await;
        let next = node.hears().await;
        assert!(next.subject.starts_with("job.v1."), "no cancel: {}", next.subject);
        node.succeeds(&second).await;
        node
    };
    let (answer, node) = tokio::join!(api.post(&fabric.admin, "/v1/jobs", IN_LAB), script);
    assert_eq!(outcome(&answer)["status"], "success");
    drop(node);
    end(fabric, api).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_final_failure_is_the_outcome_and_its_node_cannot_speak_for_others() {
    let (fabric, api) = fabric().await;
    let mut node = Node::start(&fabric, &api, "n-1", (Ears::Group, 8)).await;
    let script = async {
        let job = node.hears().await;
        let failure = json!({"kind": "invalid", "detail": "so it is"});
        let lies = json!({
            "request_id": "another", "tool": "ping", "target": "y", "status": "failed", "failure": failure, "output": "", "duration_ms": 1e22,
            "started_at": "2026-01-02T03:04:05Z", "node": {"id": "n-9", "region": "eu-central"},
        });
        node.says(&job, "outcome", &lies).await;
        job
    };
    let (answer, job) = tokio::join!(api.post(&fabric.admin, "/v1/jobs", IN_LAB), script);
    let outcome = outcome(&answer);
    assert_eq!(outcome["failure"]["kind"], "invalid");
    assert_eq!(
        (&outcome["node"], &outcome["tool"], &outcome["target"]),
        (&json!({"id": "n-1", "region": "lab"}), &"echo".into(), &"x".into())
    );
    assert_eq!((&outcome["request_id"], &outcome["duration_ms"]), (&request_id(&job).into(), &json!(86_400_000.0)));
    // No second attempt: the next thing the node hears is the next job.
    let script = async {
        let next = node.hears().await;
        assert_ne!(request_id(&next), request_id(&job));
        node.succeeds(&next).await;
    };
    let (answer, ()) = tokio::join!(api.post(&fabric.admin, "/v1/jobs", IN_LAB), script);
    assert_eq!(answer.status, 200);
    drop(node);
    end(fabric, api).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_at_all_is_unavailable_and_silence_after_accept_is_lost() {
    let (fabric, api) = fabric().await;
    let deaf = Node::start(&fabric, &api, "n-1", (Ears::None, 8)).await;
    let answer = api.post(&fabric.admin, "/v1/jobs", IN_LAB).await;
    assert_eq!(outcome(&answer)["failure"]["kind"], "unavailable");
    assert!(outcome(&answer)["failure"]["detail"].as_str().unwrap().ends_with("nobody is connected who could"), "{answer:?}");
    assert_eq!(outcome(&answer).get("node"), None);
    let mut node = Node::start(&fabric, &api, "n-2", (Ears::Group, 8)).await;
    let script = async {
        let job = node.hears().await;
        node.accepts(&job).await;
    };
    let (answer, ()) = tokio::join!(api.post(&fabric.admin, "/v1/jobs", IN_LAB), script);
    assert_eq!(outcome(&answer)["failure"]["kind"], "lost");
    assert!(outcome(&answer)["failure"]["detail"].as_str().unwrap().starts_with("node n-2 accepted the job"), "{answer:?}");
    drop((deaf, node));
    end(fabric, api).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_ends_with_its_time_and_names_the_node_that_is_still_at_it() {
    let (fabric, api) = fabric().await;
    let mut node = Node::start(&fabric, &api, "n-1", (Ears::Group, 8)).await;
    let body = r#"{"tool":"echo","target":"x","from":"node:n-1","parameters":{"timeout":0.1},"timeout_ms":1500}"#;
    let script = async {
        let job = node.hears().await;
        node.accepts(&job).await;
        let cancel = node.hears().await;
        assert!(cancel.subject.starts_with("node.v1.n-1.ctl.cancel.api-"), "{}", cancel.subject);
    };
    let begun = std::time::Instant::now();
    let (answer, ()) = tokio::join!(api.post(&fabric.admin, "/v1/jobs", body), script);
    assert!((1.4..3.0).contains(&begun.elapsed().as_secs_f64()), "{:?}", begun.elapsed());
    let outcome = outcome(&answer);
    assert_eq!((&outcome["failure"]["kind"], &outcome["node"]), (&json!("lost"), &json!({"id": "n-1", "region": "lab"})));
    assert_eq!(outcome["failure"]["detail"], "node n-1 accepted the job and had not answered when `timeout_ms` was over");
    drop(node);
    end(fabric, api).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_accepted_run_outlives_an_outage_of_the_broker() {
    let (mut fabric, api) = fabric().await;
    let admin = fabric.admin.clone();
    let mut node = Node::start(&fabric, &api, "n-1", (Ears::Group, 8)).await;
    let script = async {
        let job = node.hears().await;
        node.accepts(&job).await;
        // Answers of one node arrive in their order: when this one is there, the API knows of the other.
        let quick = async {
            let job = node.hears().await;
            node.succeeds(&job).await;
        };
        tokio::join!(api.post(&admin, "/v1/jobs", IN_LAB), quick);
        fabric.stop_broker().await;
        api.until("/readyz", |answer| answer.status == 503).await;
        assert_eq!(api.until("/livez", |answer| answer.status == 200).await.body["status"], "alive");
        // Its record waits for the broker, longer than an accepted run may be silent; then it is refused, and not run later.
        let late = api.post(&admin, "/v1/jobs", IN_LAB).await;
        assert_eq!((late.status, late.body["code"].as_str()), (503, Some("unavailable")), "{late:?}");
        assert!(late.body["detail"].as_str().unwrap().starts_with("the audit trail does not take the record of this job"), "{late:?}");
        let refused = api.post(&admin, "/v1/nodes/n-1/drain", "").await;
        assert_eq!((refused.status, refused.body["code"].as_str()), (503, Some("unavailable")), "{refused:?}");
        fabric.start_broker().await;
        api.until("/readyz", |answer| answer.status == 200).await;
        node.client_is_back().await;
        node.succeeds(&job).await;
    };
    let (answer, ()) = tokio::join!(api.post(&admin, "/v1/jobs", PATIENT), script);
    assert_eq!((outcome(&answer)["status"].as_str(), outcome(&answer)["node"]["id"].as_str()), (Some("success"), Some("n-1")));
    // Nothing was kept while the broker was away: the next thing the node hears is the next job.
    let script = async {
        let next = node.hears().await;
        assert!(next.subject.starts_with("job.v1."), "{}", next.subject);
        node.succeeds(&next).await;
        request_id(&next)
    };
    let (answer, ran) = tokio::join!(api.post(&admin, "/v1/jobs", IN_LAB), script);
    assert_eq!((outcome(&answer)["status"].as_str(), answer.body["id"].as_str()), (Some("success"), Some(ran.as_str())));
    drop(node);
    end(fabric, api).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_hangs_up_finds_its_job_later() {
    let (fabric, api) = fabric().await;
    let mut node = Node::start(&fabric, &api, "n-1", (Ears::Group, 8)).await;
    let mut caller = TcpStream::connect(api.base.strip_prefix("http://").unwrap()).await.unwrap();
    let (admin, length) = (&fabric.admin, IN_LAB.len());
    let head = format!("POST /v1/jobs HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {admin}\r\ncontent-type: application/json\r\n");
    caller.write_all(format!("{head}content-length: {length}\r\n\r\n{IN_LAB}").as_bytes()).await.unwrap();
    let job = node.hears().await;
    drop(caller);
    node.succeeds(&job).await;
    let path = format!("/v1/jobs/{}", request_id(&job));
    let kept = api.until_as(admin, &path, |answer| answer.status == 200).await;
    assert_eq!(outcome(&kept)["status"], "success");
    drop(node);
    end(fabric, api).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_lets_what_runs_end_and_answers_it() {
    let (fabric, api) = fabric().await;
    let mut node = Node::start(&fabric, &api, "n-1", (Ears::Group, 8)).await;
    let stop = api.stop_token();
    let script = async {
        let job = node.hears().await;
        node.accepts(&job).await;
        stop.cancel();
        // Only once nothing new is accepted any more.
        api.until("/livez", |answer| answer.status == 0).await;
        node.succeeds(&job).await;
    };
    let (answer, ()) = tokio::join!(api.post(&fabric.admin, "/v1/jobs", IN_LAB), script);
    assert_eq!(outcome(&answer)["status"], "success");
    let again = fabric.api(|_| {}).await;
    let path = format!("/v1/jobs/{}", answer.body["id"].as_str().unwrap());
    assert_eq!(again.get(&fabric.admin, &path).await.body, answer.body, "it was kept, too");
    drop(node);
    api.stop().await;
    end(fabric, again).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_outlives_its_call_is_read_while_it_goes_on() {
    let (fabric, api) = fabric().await;
    let other = fabric.api(|_| {}).await;
    let mut fast = Node::start(&fabric, &api, "n-1", (Ears::Group, 8)).await;
    let mut slow = Node::start(&fabric, &api, "n-2", (Ears::Name, 8)).await;
    // Longer than a call waits.
    let body = r#"{"tool":"dns","target":"x","from":["node:n-2","lab"],"parameters":{"timeout":30,"tries":3}}"#;
    let mut call = Box::pin(api.post(&fabric.admin, "/v1/jobs", body));
    let both = async { (fast.hears().await, slow.hears().await) };
    let (quick, long) = tokio::select! {
        jobs = both => jobs,
        answer = &mut call => panic!("answered too early: {answer:?}"),
    };
    slow.accepts(&long).await;
    fast.succeeds(&quick).await;
    let mut alive = tokio::time::interval(Duration::from_secs(2));
    let answer = loop {
        tokio::select! {
            answer = &mut call => break answer,
            _ = alive.tick() => slow.says(&long, "alive", &json!({})).await,
        }
    };
    drop(call);
    assert_eq!((answer.status, answer.body["status"].as_str()), (202, Some("running")), "{answer:?}");
    let path = format!("/v1/jobs/{}", answer.body["id"].as_str().unwrap());
    assert_eq!((answer.headers["location"].to_str().unwrap(), &answer.headers["retry-after"]), (path.as_str(), &"1".parse().unwrap()));
    assert_eq!(answer.body["results"][0]["node"]["id"], "n-1", "the job so far");
    assert_eq!(other.get(&fabric.admin, &path).await.body, answer.body, "and on another replica");
    slow.succeeds(&long).await;
    let done = other.until_as(&fabric.admin, &path, |answer| answer.body["status"] == "finished").await;
    let by: Vec<_> = done.body["results"].as_array().unwrap().iter().map(|outcome| outcome["node"]["id"].as_str().unwrap()).collect();
    assert_eq!(by, ["n-2", "n-1"], "in the order asked for");
    drop((fast, slow));
    other.stop().await;
    end(fabric, api).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_of_a_rate_is_told_with_every_answer_and_the_trace_reaches_the_node() {
    let (fabric, api) = fabric().await;
    let mut node = Node::start(&fabric, &api, "n-1", (Ears::Group, 8)).await;
    let limited = r#"{"name":"slow","scopes":["jobs:write"],"limits":{"rate":"2/h"}}"#;
    let key = api.post(&fabric.admin, "/v1/keys", limited).await.body["key"].as_str().unwrap().to_owned();
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for left in ["1", "0"] {
        let script = async {
            let job = node.hears().await;
            assert_eq!(header_of(&job, "traceparent"), trace);
            node.succeeds(&job).await;
        };
        let headers = vec![("content-type", "application/json".to_owned()), ("traceparent", trace.to_owned())];
        let token = Some(key.clone());
        let ask = Ask { method: "POST", path: "/v1/jobs".to_owned(), token, headers, body: IN_LAB.as_bytes().to_vec() };
        let (answer, ()) = tokio::join!(api.ask(ask), script);
        assert_eq!((answer.status, answer.headers["traceparent"].to_str().unwrap()), (200, trace));
        assert_eq!(answer.headers["ratelimit-policy"], "\"runs\";q=2;w=3600");
        assert!(answer.headers["ratelimit"].to_str().unwrap().starts_with(&format!("\"runs\";r={left};t=")), "{answer:?}");
    }
    let refused = api.post(&key, "/v1/jobs", IN_LAB).await;
    assert_eq!((refused.status, refused.body["code"].as_str()), (429, Some("rate_limited")), "{refused:?}");
    let again: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((3500..=3780).contains(&again), "{again}");
    assert!(refused.headers["ratelimit"].to_str().unwrap().starts_with("\"runs\";r=0;t="), "{refused:?}");
    drop(node);
    end(fabric, api).await;
}
