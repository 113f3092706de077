//! Services: made over HTTP, asking at the front door, and taken back.

use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use async_nats::{Client, ConnectOptions, Event, HeaderMap, Message};
use futures_util::StreamExt;
use probeops_nats::permissions::Role;
use probeops_tests::fabric::{Api, Fabric};
use probeops_tests::silent::Silent;
use serde_json::{Value, json};

use super::trail::refusals_told;

/// Only a hang takes this long.
const HANG: Duration = Duration::from_secs(60);
/// How long to listen for what must not come.
const NOTHING_WITHIN: Duration = Duration::from_millis(500);
/// What is refused is refused at once: within this, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(2);
/// A second is promised from the request to the cut.
const CUT_WITHIN: Duration = Duration::from_secs(1);

/// What is asked, with which headers, and the status, code and words of the problem that comes back.
type Refused<'a> = (Value, &'a [(&'a str, &'a str)], u64, &'a str, &'a str);

/// A service with its connection.
struct Service<'a> {
    fabric: &'a Fabric,
    name: &'static str,
    client: Client,
    events: Receiver<String>,
}

impl<'a> Service<'a> {
    /// Made over HTTP, as this body says.
    fn made(fabric: &'a Fabric, api: &Api, name: &'static str, rest: &Value) -> Self {
        let mut body = json!({"name": name, "regions": ["eu"], "tools": ["echo", "tcp", "ping"]});
        body.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        let made = api.admin().post("/v1/services", &body).expect(201);
        Self::of(fabric, name, made["creds"].as_str().unwrap())
    }

    fn of(fabric: &'a Fabric, name: &'static str, creds: &str) -> Self {
        let (client, events) = fabric.block_on(connect(fabric, name, creds)).unwrap();
        Self { fabric, name, client, events }
    }

    fn subject(&self) -> String {
        format!("api.v1.run.{}", self.name)
    }

    /// The one answer, by the library's own request.
    fn ask(&self, body: &Value, headers: &[(&str, &str)]) -> Message {
        let request = async_nats::Request::new().payload(body.to_string().into()).headers(headers_of(headers)).timeout(Some(HANG));
        self.fabric.block_on(self.client.send_request(self.subject(), request)).unwrap()
    }

    /// Every message until the last, by their events; the last one has none.
    fn follow(&self, body: &Value) -> (Vec<(String, u64, Value)>, Value) {
        self.fabric.block_on(async {
            let inbox = self.client.new_inbox();
            let mut answers = self.client.subscribe(inbox.clone()).await.unwrap();
            let headers = headers_of(&[("Probe-Events", "1")]);
            self.client.publish_with_reply_and_headers(self.subject(), inbox, headers, body.to_string().into()).await.unwrap();
            let mut told = Vec::new();
            loop {
                let message = tokio::time::timeout(HANG, answers.next()).await.unwrap().unwrap();
                let header = |name: &str| message.headers.as_ref().and_then(|headers| headers.get(name)).map(ToString::to_string);
                let body = serde_json::from_slice(&message.payload).unwrap_or(Value::Null);
                match header("Probe-Event") {
                    Some(event) => told.push((event, header("Probe-Seq").unwrap().parse().unwrap(), body)),
                    None => return (told, body),
                }
            }
        })
    }

    /// The next thing that the connection itself says and that has these words.
    fn hears(&self, words: &str) -> String {
        let begun = Instant::now();
        loop {
            let left = HANG.saturating_sub(begun.elapsed());
            let event = self.events.recv_timeout(left).unwrap_or_else(|_| panic!("nothing was said of `{words}`"));
            if event.to_lowercase().contains(words) {
                return event;
            }
        }
    }
}

async fn connect(fabric: &Fabric, name: &str, creds: &str) -> Result<(Client, Receiver<String>), async_nats::ConnectError> {
    let (sender, events) = channel();
    let options = ConnectOptions::with_credentials(creds).unwrap().add_root_certificates(fabric.ca()).require_tls(true);
    let options = options.custom_inbox_prefix(format!("_INBOX_f.{name}")).event_callback(move |event: Event| {
        drop(sender.send(event.to_string()));
        async {}
    });
    Ok((options.connect(fabric.url()).await?, events))
}

fn headers_of(headers: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, *value);
    }
    map
}

fn body(message: &Message) -> Value {
    serde_json::from_slice(&message.payload).unwrap()
}

fn said<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    message.headers.as_ref()?.get(name).map(async_nats::HeaderValue::as_str)
}

fn echo(from: &str) -> Value {
    json!({"tool": "echo", "target": "x", "from": from})
}

fn one_node() -> (Fabric, Api) {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("d-1", "eu");
    api.wait_for_nodes(1);
    (fabric, api)
}

#[test]
fn a_service_made_over_http_asks_at_the_front_door_with_selectors_and_its_jobs_are_in_the_trail() {
    let (fabric, api) = one_node();
    fabric.agent("d-2", "eu");
    fabric.agent("u-1", "us");
    api.wait_for_nodes(3);
    let asked = json!({"name": "billing", "regions": ["eu"], "tools": ["echo"], "nodes": ["u-1"], "rate": "1000/m", "valid_for": "12h"});
    let made = api.admin().post("/v1/services", &asked);
    assert_eq!(made.header("location"), Some("/v1/services/billing"));
    let made = made.expect(201);
    for (name, value) in [("name", json!("billing")), ("rate", json!("1000/m")), ("nodes", json!(["u-1"]))] {
        assert_eq!(made[name], value, "{made}");
    }
    let listed = api.admin().get("/v1/services").expect(200);
    assert_eq!((&listed["services"][0]["name"], listed["services"][0].get("creds")), (&json!("billing"), None), "{listed}");
    let service = Service::of(&fabric, "billing", made["creds"].as_str().unwrap());
    let answer = service.ask(&echo("eu:all"), &[("X-Request-Id", "mine")]);
    let job = body(&answer);
    assert_eq!((&job["status"], &job["caller"]), (&json!("finished"), &json!("service:billing")), "{job}");
    let mut nodes: Vec<_> = job["results"].as_array().unwrap().iter().map(|outcome| outcome["node"]["id"].as_str().unwrap()).collect();
    nodes.sort_unstable();
    assert_eq!(nodes, ["d-1", "d-2"]);
    assert_eq!((said(&answer, "Content-Type"), said(&answer, "X-Request-Id")), (Some("application/json"), Some("mine")));
    assert!(said(&answer, "RateLimit").is_some_and(|left| left.contains("r=998")), "{:?}", answer.headers);
    // A node that it was granted by id, in another region.
    assert_eq!(body(&service.ask(&echo("node:u-1"), &[]))["results"][0]["node"]["id"], "u-1");
    // What is asked again with its key is not run again.
    let key = [("Idempotency-Key", "k-1")];
    let (first, again) = (service.ask(&echo("eu"), &key), service.ask(&echo("eu"), &key));
    assert_eq!(body(&first)["id"], body(&again)["id"]);
    assert_eq!((said(&first, "Idempotent-Replayed"), said(&again, "Idempotent-Replayed")), (None, Some("true")));
    // A job of a service is found by an admin, and by other services no more than by other keys.
    let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    assert_eq!(api.admin().get(&path).expect(200)["caller"], "service:billing");
    let records = api.wait_for_audit("principal=service:billing&verdict=accepted", 3);
    assert!(records.iter().all(|record| record["tool"] == "echo"), "{records:?}");
    let granted = api.wait_for_audit("verdict=changed", 1);
    assert_eq!(granted[0]["target"], "service:billing");
    assert_eq!(granted[0]["detail"], "service granted: regions eu, tools echo, nodes u-1, rate 1000/m");
    // What takes longer than its caller waits goes on, and it is told so.
    let silent = Silent::start();
    let tcp = Service::made(&fabric, &api, "slow", &json!({}));
    let long = json!({"tool": "tcp", "target": "127.0.0.1", "from": "eu", "parameters": silent.parameters(10_000)});
    let accepted = tcp.ask(&long, &[("Prefer", "wait=1")]);
    assert_eq!((&body(&accepted)["status"], said(&accepted, "Preference-Applied")), (&json!("running"), Some("wait=1")));
}

#[test]
fn what_is_wrong_is_answered_with_a_problem_at_once() {
    let (fabric, api) = one_node();
    fabric.agent("u-1", "us");
    api.wait_for_nodes(2);
    let service = Service::made(&fabric, &api, "billing", &json!({"targets": ["127.0.0.0/8", "*.example"]}));
    let tcp = |target: &str| json!({"tool": "tcp", "target": target, "from": "eu"});
    let table: [Refused<'_>; 11] = [
        (json!("x"), &[], 400, "invalid", "must be a JSON object"),
        (json!({"tool": "echo", "form": "eu"}), &[], 400, "invalid", "did you mean `from`?"),
        (echo("nowhere"), &[], 403, "forbidden", "limited to the regions eu"),
        (echo("us"), &[], 403, "forbidden", "limited to the regions eu; `us` is none of them"),
        (echo("node:u-1"), &[], 404, "no_such_node", "there is no node `u-1`"),
        (json!({"tool": "whois", "target": "example.com", "from": "eu"}), &[], 403, "forbidden", "limited to the tools"),
        (tcp("10.0.0.1"), &[], 403, "forbidden", "limited to the targets 127.0.0.0/8,*.example"),
        (tcp("localhost"), &[], 403, "forbidden", "`localhost` is none of them"),
        (echo("eu"), &[("Prefer", "wait=soon")], 400, "invalid", "`wait` must be a whole number"),
        (echo("eu"), &[("Probe-Events", "yes")], 400, "invalid", "header Probe-Events: must be 1 (every event)"),
        (json!({"tool": "echo", "from": "eu", "cancel_on_disconnect": true}), &[], 400, "invalid", "/cancel_on_disconnect"),
    ];
    let refusals = table.len();
    for (asked, headers, status, code, words) in table {
        let begun = Instant::now();
        let answer = service.ask(&asked, headers);
        assert!(begun.elapsed() < AT_ONCE, "{asked}: {:?}", begun.elapsed());
        let problem = body(&answer);
        assert_eq!((&problem["status"], &problem["code"]), (&json!(status), &json!(code)), "{asked}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(words), "{problem}");
        assert_eq!(said(&answer, "Content-Type"), Some("application/problem+json"));
        assert_eq!(said(&answer, "Nats-Service-Error-Code"), Some(status.to_string().as_str()));
        assert_eq!(said(&answer, "Nats-Service-Error"), problem["title"].as_str());
        assert_eq!(said(&answer, "X-Request-Id"), problem["request_id"].as_str());
    }
    let records = api.wait_for_audit("principal=service:billing&verdict=refused", refusals);
    assert!(records.iter().all(|record| record["detail"].as_str().unwrap().ends_with("(api.v1.run)")), "{records:?}");
    // Too much for a rate: when there will be room again.
    let few = Service::made(&fabric, &api, "few", &json!({"rate": "1/h"}));
    assert_eq!(body(&few.ask(&echo("eu"), &[]))["status"], "finished");
    let limited = few.ask(&echo("eu"), &[]);
    assert_eq!(body(&limited)["code"], "rate_limited");
    assert!(said(&limited, "Retry-After").unwrap().parse::<u64>().unwrap() > 3_000, "{:?}", limited.headers);
    // Nothing runs of which the trail takes no record.
    let before = fabric.bound_the_trail(1);
    let unrecorded = service.ask(&json!({"tool": "echo", "target": "127.0.0.1", "from": "eu"}), &[]);
    let problem = body(&unrecorded);
    assert_eq!((&problem["status"], &problem["code"]), (&json!(503), &json!("unavailable")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().starts_with("the audit trail does not take the record of this job"), "{problem}");
    assert!(said(&unrecorded, "Retry-After").is_some(), "{:?}", unrecorded.headers);
    fabric.bound_the_trail(before);
    api.wait_until("jobs run again", || body(&service.ask(&tcp("127.0.0.1"), &[]))["status"] == "finished");
    // The node tells of its runs in their order.
    api.wait_for_audit("principal=service:billing&verdict=finished&tool=tcp", 1);
    assert_eq!(api.audit("principal=service:billing&verdict=finished&tool=echo"), Vec::<Value>::new());
    // Whom the register does not know is told so, whatever his credential says.
    let (regions, tools) = (vec!["eu".parse().unwrap()], vec!["echo".parse().unwrap()]);
    let role = Role::Service { name: "stranger".parse().unwrap(), regions, tools, nodes: Vec::new(), direct: true };
    let stranger = Service::of(&fabric, "stranger", &std::fs::read_to_string(fabric.credential(&role)).unwrap());
    assert_eq!(body(&stranger.ask(&echo("eu"), &[]))["code"], "unauthorized");
}

#[test]
fn nobody_is_answered_elsewhere_than_in_his_own_inbox() {
    let (fabric, api) = one_node();
    let (service, other) = (Service::made(&fabric, &api, "billing", &json!({})), Service::made(&fabric, &api, "other", &json!({})));
    let foreign = [
        "_INBOX_f.other.abc",
        "_INBOX_f.billingx.abc",
        "_INBOX_f.billing.*",
        "_INBOX.billing.abc",
        "_INBOX_n.d-1.x",
        "node.v1.d-1.ctl.drain.api-1",
    ];
    fabric.block_on(async {
        let mut heard = other.client.subscribe("_INBOX_f.other.>").await.unwrap();
        other.client.flush().await.unwrap();
        for reply in foreign {
            service.client.publish_with_reply(service.subject(), reply, echo("eu").to_string().into()).await.unwrap();
        }
        service.client.publish(service.subject(), echo("eu").to_string().into()).await.unwrap();
        service.client.flush().await.unwrap();
        assert!(tokio::time::timeout(NOTHING_WITHIN, heard.next()).await.is_err(), "an answer came to somebody else");
    });
    let records = api.wait_for_audit("principal=service:billing&verdict=refused", foreign.len() + 1);
    for record in &records {
        assert!(record["detail"].as_str().unwrap().contains("the reply subject must be in your own inbox, _INBOX_f.billing.>"), "{record}");
    }
    assert_eq!(body(&service.ask(&echo("eu"), &[]))["status"], "finished", "and the node takes jobs as before");
}

#[test]
fn two_replicas_share_the_front_door_and_an_observer_sees_them() {
    let (fabric, first) = one_node();
    let second = fabric.api();
    second.wait_for_nodes(1);
    let service = Service::made(&fabric, &first, "billing", &json!({}));
    for _ in 0..40 {
        assert_eq!(body(&service.ask(&echo("eu"), &[]))["status"], "finished");
    }
    assert_eq!(body(&service.ask(&json!({}), &[]))["code"], "invalid");
    let observer = fabric.connect_in(&fabric.credential(&Role::Observer), &Role::Observer.inbox_prefix());
    let asked = |verb: &str| -> Vec<Value> {
        fabric.block_on(async {
            let inbox = observer.new_inbox();
            let mut answers = observer.subscribe(inbox.clone()).await.unwrap();
            observer.publish_with_reply(format!("$SRV.{verb}"), inbox, "".into()).await.unwrap();
            let two = answers.by_ref().take(2).map(|message| serde_json::from_slice(&message.payload).unwrap());
            tokio::time::timeout(HANG, two.collect()).await.unwrap()
        })
    };
    for info in asked("INFO.probeops") {
        assert_eq!(info["type"], "io.nats.micro.v1.info_response", "{info}");
        let endpoint = &info["endpoints"][0];
        assert_eq!((&endpoint["subject"], &endpoint["queue_group"]), (&json!("api.v1.run.*"), &json!("f")), "{info}");
    }
    assert!(asked("PING").iter().all(|pong| pong["name"] == "probeops"));
    let stats = asked("STATS");
    let requests: Vec<u64> = stats.iter().map(|stats| stats["endpoints"][0]["num_requests"].as_u64().unwrap()).collect();
    assert!(requests.iter().sum::<u64>() == 41 && requests.iter().all(|count| *count > 5), "{requests:?}");
    let problems: u64 = stats.iter().map(|stats| stats["endpoints"][0]["data"]["problems"].as_u64().unwrap()).sum();
    assert_eq!(problems, 1);
    // One that stops first answers who has knocked, and leaves the rest to the other.
    let silent = Silent::start();
    let long = json!({"tool": "tcp", "target": "127.0.0.1", "from": "eu", "parameters": silent.parameters(2_000)});
    let asked: Vec<_> = (0..6)
        .map(|_| {
            let (client, subject, body) = (service.client.clone(), service.subject(), long.to_string());
            let request = async_nats::Request::new().payload(body.into()).timeout(Some(HANG));
            fabric.spawn(async move { client.send_request(subject, request).await.unwrap() })
        })
        .collect();
    let connections: Vec<_> = asked.iter().map(|_| silent.connected()).collect();
    assert_eq!(first.stop(), Some(0), "{}", first.log());
    for answer in asked {
        assert_eq!(body(&fabric.block_on(answer).unwrap())["status"], "finished");
    }
    drop(connections);
    assert_eq!(body(&service.ask(&echo("eu"), &[]))["status"], "finished");
}

#[test]
fn a_job_of_the_front_door_is_told_as_it_happens() {
    let (fabric, api) = one_node();
    let service = Service::made(&fabric, &api, "billing", &json!({}));
    let ping = json!({"tool": "ping", "target": "127.0.0.1", "from": "eu", "parameters": {"count": 3, "interval_ms": 200}});
    let (told, job) = service.follow(&ping);
    let events: Vec<&str> = told.iter().map(|(event, ..)| event.as_str()).collect();
    assert_eq!(events, ["job", "accepted", "progress", "progress", "progress", "progress", "outcome"], "{told:?}");
    assert!(told.iter().enumerate().all(|(index, (_, seq, _))| *seq == index as u64), "{told:?}");
    assert_eq!((&told[0].2["status"], &told[0].2["id"]), (&json!("running"), &job["id"]));
    assert!(told[3].2["output"].as_str().unwrap().contains("bytes from"), "{}", told[3].2);
    assert_eq!((&job["status"], &told[6].2["outcome"]), (&json!("finished"), &job["results"][0]));
    // While nothing is to be told, that it goes on.
    let silent = Silent::start();
    let quiet = json!({"tool": "tcp", "target": "127.0.0.1", "from": "eu", "parameters": silent.parameters(5_000)});
    let (told, job) = service.follow(&quiet);
    assert!(told.iter().filter(|(event, ..)| event == "alive").count() >= 1, "{told:?}");
    assert_eq!(job["status"], "finished");
    // What is wrong is the last message, and the only one.
    let (told, problem) = service.follow(&echo("us"));
    assert_eq!((told.len(), &problem["code"]), (0, &json!("forbidden")));
}

#[test]
fn a_service_with_targets_has_the_front_door_and_nothing_else() {
    let (fabric, api) = one_node();
    let service = Service::made(&fabric, &api, "billing", &json!({"targets": ["127.0.0.1"]}));
    let silent = Silent::start();
    let knock = |target: &str| {
        let tcp = json!({"tool": "tcp", "target": target, "from": "eu", "parameters": {"port": silent.port(), "timeout": 2}});
        body(&service.ask(&tcp, &[]))
    };
    assert_eq!(knock("127.0.0.1")["results"][0]["status"], "success");
    assert_eq!(knock("127.0.0.2")["code"], "forbidden");
    let direct = json!({"tool": "tcp", "target": "127.0.0.2"}).to_string();
    for subject in ["job.v1.eu.tcp.billing", "node.v1.d-1.job.tcp.billing", "api.v1.run.other"] {
        fabric.block_on(service.client.publish_with_reply(subject, "_INBOX.billing.t._", direct.clone().into())).unwrap();
        let refused = service.hears("permissions violation");
        assert!(refused.contains(subject), "{refused}");
    }
    let free = Service::made(&fabric, &api, "free", &json!({}));
    fabric.block_on(async {
        let mut answers = free.client.subscribe("_INBOX.free.t.*").await.unwrap();
        free.client.publish_with_reply("job.v1.eu.tcp.free", "_INBOX.free.t._", direct.into()).await.unwrap();
        let answer = tokio::time::timeout(HANG, answers.next()).await.unwrap().unwrap();
        assert!(answer.subject.ends_with(".d-1"), "{answer:?}");
    });
}

#[test]
fn a_service_that_is_taken_back_is_cut_at_once_and_its_name_can_be_granted_anew() {
    let (fabric, api) = one_node();
    let second = fabric.api();
    let body_of = json!({"name": "billing", "regions": ["eu"], "tools": ["echo"]});
    let made = api.admin().post("/v1/services", &body_of).expect(201);
    let creds = made["creds"].as_str().unwrap();
    let service = Service::of(&fabric, "billing", creds);
    assert_eq!(body(&service.ask(&echo("eu"), &[]))["status"], "finished");
    let taken = api.admin().post("/v1/services", &body_of);
    assert_eq!(taken.status, 409);
    assert!(taken.text.contains("DELETE /v1/services/billing takes it back"), "{}", taken.text);
    let revoked = second.admin().delete("/v1/services/billing").expect(200);
    assert!(revoked["revoked_at"].is_string(), "{revoked}");
    assert_eq!((&revoked["servers"], &revoked["waiting"]), (&json!(["probeops"]), &json!([])), "{revoked}");
    service.hears("revoked");
    let refused = fabric.block_on(connect(&fabric, "billing", creds));
    assert!(refused.is_err(), "a credential that was taken back connects");
    assert_eq!(second.admin().delete("/v1/services/billing").expect(200), revoked, "once more changes nothing");
    assert_eq!(api.admin().delete("/v1/services/nobody").expect(404)["code"], "not_found");
    let records = api.wait_for_audit("verdict=changed", 2);
    assert!(
        records.iter().any(|record| record["detail"] == "service revoked, taken by probeops" && record["target"] == "service:billing"),
        "{records:?}"
    );
    let again = Service::made(&fabric, &api, "billing", &json!({}));
    assert_eq!(body(&again.ask(&echo("eu"), &[]))["status"], "finished");
}

#[test]
fn nobody_makes_a_service_that_may_more_than_he() {
    let (fabric, api) = one_node();
    fabric.agent("u-1", "us");
    api.wait_for_nodes(2);
    let key = |scopes: Value, limits: Value| {
        let token = api.key(&json!({"name": "maker", "scopes": scopes, "limits": limits}));
        api.caller(&token)
    };
    let wanted = json!({"name": "billing", "regions": ["eu"], "tools": ["tcp"]});
    let scopes = json!(["services:write", "jobs:write"]);
    assert_eq!(key(json!(["jobs:write"]), json!({})).post("/v1/services", &wanted).status, 403);
    assert_eq!(key(json!(["services:write"]), json!({})).post("/v1/services", &wanted).status, 403);
    assert_eq!(key(scopes.clone(), json!({"regions": ["us"]})).post("/v1/services", &wanted).status, 403);
    assert_eq!(key(scopes.clone(), json!({"rate": "9/m"})).post("/v1/services", &wanted).status, 403);
    let limited = key(scopes, json!({"regions": ["eu"], "targets": ["10.0.0.0/8"]}));
    let beyond = json!({"name": "billing", "regions": ["eu"], "tools": ["tcp"], "nodes": ["u-1"]});
    assert_eq!(limited.post("/v1/services", &beyond).expect(404)["code"], "no_such_node");
    let made = limited.post("/v1/services", &wanted).expect(201);
    assert_eq!(made["targets"], json!(["10.0.0.0/8"]), "what was left open is limited as its maker is");
    assert_eq!(limited.delete("/v1/services/billing").status, 200);
    let free = json!({"name": "free", "regions": ["eu", "us"], "tools": ["tcp"]});
    api.admin().post("/v1/services", &free).expect(201);
    assert_eq!(
        limited.delete("/v1/services/free").status,
        404,
        "it asks elsewhere, too: one who is limited to regions does not learn of it"
    );
    let wide = json!({"name": "wide", "regions": ["eu"], "tools": ["tcp"]});
    api.admin().post("/v1/services", &wide).expect(201);
    assert_eq!(limited.delete("/v1/services/wide").status, 403);
    let names = |listed: Value| listed["services"].as_array().unwrap().iter().map(|service| service["name"].clone()).collect::<Vec<_>>();
    assert_eq!(names(limited.get("/v1/services").expect(200)), ["billing", "wide"]);
    assert_eq!(names(api.admin().get("/v1/services").expect(200)), ["billing", "free", "wide"]);
}

#[test]
fn a_key_that_is_revoked_takes_its_services_with_it_and_without_a_keymaster_nothing_is_made_or_revoked() {
    let (fabric, api) = one_node();
    let second = fabric.api();
    let maker = api.key(&json!({"name": "maker", "scopes": ["services:write", "jobs:write", "keys:write"]}));
    let id = maker.split('_').nth(1).unwrap().to_owned();
    second.wait_until("the other replica knows the key", || second.caller(&maker).get("/v1/tools").status == 200);
    let made = api.caller(&maker).post("/v1/services", &json!({"name": "billing", "regions": ["eu"], "tools": ["echo"]})).expect(201);
    assert_eq!(made["created_by"], format!("key:{id}"), "{made}");
    let child = api.caller(&maker).post("/v1/keys", &json!({"name": "child", "scopes": ["jobs:write"]})).expect(201)["id"].clone();
    let creds = made["creds"].as_str().unwrap();
    let (of_key, of_admin) = (Service::of(&fabric, "billing", creds), Service::made(&fabric, &api, "other", &json!({})));
    assert_eq!(body(&of_key.ask(&echo("eu"), &[]))["status"], "finished");

    // A replica that was not asked revokes as well: key, connection and credential are worth nothing at once, everywhere.
    let revoking = Instant::now();
    let revoked = second.admin().delete(&format!("/v1/keys/{id}")).expect(200);
    let expected = json!({"services": ["billing"], "keys": [child], "servers": ["probeops"], "waiting": []});
    for field in ["services", "keys", "servers", "waiting"] {
        assert_eq!(revoked[field], expected[field], "{field}: {revoked}");
    }
    of_key.hears("revoked");
    for replica in [&api, &second] {
        replica.wait_until("the key is refused", || replica.caller(&maker).get("/v1/tools").status == 401);
    }
    assert!(revoking.elapsed() < CUT_WITHIN, "{:?}", revoking.elapsed());
    assert!(fabric.block_on(connect(&fabric, "billing", creds)).is_err(), "a credential that was taken back connects");
    assert_eq!(second.admin().delete(&format!("/v1/keys/{id}")).expect(200)["services"], json!([]), "once more changes nothing");
    assert_eq!(body(&of_admin.ask(&echo("eu"), &[]))["status"], "finished", "what others made stays");
    api.wait_until("the trail says so", || {
        let records = api.audit("verdict=changed");
        let with_key = |record: &Value| {
            record["detail"].as_str().is_some_and(|detail| detail.starts_with("service revoked with the key that made it"))
        };
        records.iter().any(|record| record["target"] == "service:billing" && with_key(record))
    });

    // Nobody but the keymaster can sign. What is to be revoked says that it is not so yet, and is as soon as there is one.
    fabric.kill_keymaster();
    let refused = api.admin().post("/v1/services", &json!({"name": "late", "regions": ["eu"], "tools": ["echo"]})).expect(503);
    assert!(refused["detail"].as_str().unwrap().starts_with("no keymaster runs"), "{refused}");
    let refused = api.admin().post("/v1/nodes/d-1/revoke", &json!({})).expect(503);
    assert!(refused["detail"].as_str().unwrap().starts_with("node `d-1` is marked as revoked and gets no more jobs, but"), "{refused}");
    let marked = api.admin().get("/v1/nodes/d-1").expect(200);
    assert_eq!((&marked["revoked"], &marked["revoking"]), (&json!(true), &json!(true)), "{marked}");
    fabric.start_keymaster();
    fabric.wait_for_keymaster();
    second.wait_until("it is revoked", || {
        let node = second.admin().get("/v1/nodes/d-1").expect(200);
        node["revoked"] == json!(true) && node["revoking"].is_null()
    });
    api.admin().post("/v1/services", &json!({"name": "late", "regions": ["eu"], "tools": ["echo"]})).expect(201);
    let reserved = api.admin().post("/v1/services", &json!({"name": "keymaster", "regions": ["eu"], "tools": ["echo"]}));
    assert_eq!(reserved.status, 422, "{}", reserved.text);
}

/// How many refused requests flood the door.
const KNOCKS: usize = 3_000;

#[test]
fn a_service_that_floods_the_door_is_braked_and_the_jobs_of_others_succeed() {
    let (fabric, api) = one_node();
    let flooding = Service::made(&fabric, &api, "flooding", &json!({"rate": "1/h"}));
    let other = Service::made(&fabric, &api, "other", &json!({}));
    assert_eq!(body(&flooding.ask(&echo("eu"), &[]))["status"], "finished");
    let (client, subject) = (flooding.client.clone(), flooding.subject());
    // In turn beyond its rate, beyond what it was granted, and no job at all.
    let asked = [echo("eu").to_string(), echo("us").to_string(), "x".to_owned()];
    let flood = fabric.spawn(async move {
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(inbox.clone()).await.unwrap();
        for body in asked.into_iter().cycle().take(KNOCKS) {
            client.publish_with_reply(subject.clone(), inbox.clone(), body.into()).await.unwrap();
        }
        let mut codes = std::collections::BTreeMap::new();
        for _ in 0..KNOCKS {
            let answer = tokio::time::timeout(HANG, answers.next()).await.unwrap().unwrap();
            *codes.entry(body(&answer)["code"].as_str().unwrap().to_owned()).or_insert(0) += 1;
        }
        codes
    });
    let jobs = 50;
    for _ in 0..jobs {
        let job = body(&other.ask(&echo("eu"), &[]));
        assert_eq!((&job["status"], &job["results"][0]["status"]), (&json!("finished"), &json!("success")), "{job}");
    }
    let codes = fabric.block_on(flood).unwrap();
    // Beyond what may wait of one service it is told so, whatever it asks.
    assert!(codes.keys().all(|code| ["rate_limited", "forbidden", "invalid", "unavailable"].contains(&code.as_str())), "{codes:?}");
    assert_eq!(api.wait_for_audit("principal=service:other&verdict=accepted", jobs).len(), jobs);
    let filter = "principal=service:flooding&verdict=refused";
    api.wait_until("all of it is told", || refusals_told(&api.audit(filter)) == u64::try_from(KNOCKS).unwrap());
    let records = api.audit(filter).len();
    assert!(records < 200, "{records} records of {KNOCKS} refusals");
    assert_eq!(api.audit("principal=service:flooding&verdict=accepted").len(), 1);
}
