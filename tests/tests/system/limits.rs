//! Limits, which two replicas hold together.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use probeops_tests::fabric::{AgentOptions, Api, Fabric};
use probeops_tests::http::{Answer, Caller};
use probeops_tests::silent::Silent;
use serde_json::{Value, json};

/// Two replicas and a node.
fn two() -> (Fabric, [Api; 2]) {
    let fabric = Fabric::start();
    let apis = [fabric.api(), fabric.api()];
    fabric.agent("l-1", "eu");
    for api in &apis {
        api.wait_for_nodes(1);
    }
    (fabric, apis)
}

/// Somebody with these limits, as a caller of every replica.
fn limited<const REPLICAS: usize>(apis: &[Api; REPLICAS], limits: &Value) -> [Caller; REPLICAS] {
    let [first, ..] = apis.as_slice() else { panic!("no replica") };
    let key = first.key(&json!({"name": "limited", "scopes": ["jobs:write", "jobs:read"], "limits": limits}));
    let callers = std::array::from_fn(|index| apis[index].caller(&key));
    for (api, caller) in apis.iter().zip(&callers) {
        api.wait_until("the key is known", || caller.get("/v1/tools").status == 200);
    }
    callers
}

fn echo(caller: &Caller) -> Answer {
    caller.job("echo", "x", "eu", &json!({}))
}

/// A run that lasts until the test ends it.
fn begin(caller: &Caller, silent: &Silent) -> Answer {
    let body = json!({"tool": "tcp", "target": "127.0.0.1", "from": "eu", "parameters": silent.parameters(10_000)});
    caller.post_raw("/v1/jobs", "application/json", body.to_string().as_bytes(), &[("prefer", "respond-async")])
}

#[track_caller]
fn refused(answer: &Answer, part: &str) {
    assert_eq!((answer.status, &answer.body["code"]), (429, &json!("rate_limited")), "{}", answer.text);
    assert!(answer.body["detail"].as_str().unwrap().contains(part), "{}", answer.text);
    assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
}

/// When each of the runs began that came through while two threads at each replica ask as fast as they can.
fn flood(callers: &[Caller; 2], lasts: Duration) -> (Vec<Duration>, usize) {
    let (began, times, tried) = (Instant::now(), Mutex::new(Vec::new()), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for caller in callers.iter().chain(callers) {
            scope.spawn(|| {
                while began.elapsed() < lasts {
                    tried.fetch_add(1, Ordering::Relaxed);
                    let answer = echo(caller);
                    match answer.status {
                        200 => times.lock().unwrap().push(began.elapsed()),
                        429 => std::thread::sleep(Duration::from_millis(5)),
                        _ => panic!("{}", answer.text),
                    }
                }
            });
        }
    });
    let mut times = times.into_inner().unwrap();
    times.sort_unstable();
    (times, tried.into_inner())
}

#[test]
fn two_replicas_together_admit_a_rate_and_no_more() {
    let (_fabric, apis) = two();
    let callers = limited(&apis, &json!({"rate": "60/m"}));
    let (times, tried) = flood(&callers, Duration::from_secs(66));
    let first = times.iter().filter(|at| **at < Duration::from_secs(60)).count();
    assert!(tried > 600, "{tried}");
    assert!((54..=60).contains(&first), "{first} of 60 in the first minute");
    // The first minute's are forgotten within a twentieth of a minute after it, and all are there again.
    assert!((108..=120).contains(&times.len()), "{} in 66 s", times.len());
    let left = callers[1].get("/v1/limits").expect(200);
    assert_eq!((&left["rate"]["count"], &left["rate"]["window_ms"]), (&json!(60), &json!(60_000)), "{left}");
    assert!(left["rate"]["left"].as_u64().unwrap() <= 6, "{left}");
}

#[test]
fn a_short_window_slides_and_a_small_count_is_exact() {
    let (_fabric, apis) = two();
    let (times, _) = flood(&limited(&apis, &json!({"rate": "40/s"})), Duration::from_secs(10));
    // Seen from here the answers of a window may come closer together than their runs were admitted.
    assert!((360..=440).contains(&times.len()), "{} in 10 s at 40/s", times.len());
    let (times, tried) = flood(&limited(&apis, &json!({"rate": "3/h"})), Duration::from_secs(3));
    assert_eq!(times.len(), 3, "of {tried}");
}

#[test]
fn what_is_left_is_the_same_wherever_it_is_asked() {
    let (_fabric, apis) = two();
    let [one, other] = limited(&apis, &json!({"rate": "10/h", "at_once": 5}));
    let whole = one.get("/v1/limits").expect(200);
    assert_eq!(whole["rate"], json!({"count": 10, "window_ms": 3_600_000, "left": 10, "reset_ms": 0}));
    assert_eq!((&whole["at_once"], &whole["nodes"]), (&json!({"count": 5, "left": 5}), &json!([])));
    for (number, caller) in [&one, &other, &other, &one].into_iter().enumerate() {
        let answer = echo(caller);
        let told = format!("\"runs\";r={};t=", 9 - number);
        assert!(answer.header("ratelimit").unwrap().starts_with(&told), "{told} {:?}", answer.header("ratelimit"));
        assert_eq!(answer.header("ratelimit-policy"), Some("\"runs\";q=10;w=3600"));
    }
    for caller in [&one, &other] {
        assert_eq!(caller.get("/v1/limits").expect(200)["rate"]["left"], 6);
    }
    let unlimited = apis[0].admin().get("/v1/limits").expect(200);
    assert_eq!((unlimited.get("rate"), unlimited.get("at_once"), &unlimited["nodes"]), (None, None, &json!([])));
    assert_eq!(apis[0].nobody().get("/v1/limits").status, 401);
}

#[test]
fn so_many_at_once_are_so_many_on_all_replicas_and_a_killed_ones_come_back() {
    let (_fabric, apis) = two();
    let callers = limited(&apis, &json!({"at_once": 3}));
    let silent = Silent::start();
    let begun = [&callers[0], &callers[1], &callers[0]].map(|caller| {
        begin(caller, &silent).expect(202);
        silent.connected()
    });
    for caller in &callers {
        refused(&begin(caller, &silent), "limited to 3 runs at once");
        assert_eq!(caller.get("/v1/limits").expect(200)["at_once"], json!({"count": 3, "left": 0}));
    }
    let [of_first, of_second, of_first_too] = begun;
    drop(of_second);
    let mut again = None;
    apis[0].wait_until("what ended at one replica is free at the other", || {
        let answer = begin(&callers[0], &silent);
        again = (answer.status == 202).then(|| silent.connected());
        again.is_some()
    });
    refused(&begin(&callers[1], &silent), "at once");
    apis[0].kill();
    let killed = Instant::now();
    apis[1].wait_until("the killed replica's share is free", || begin(&callers[1], &silent).status == 202);
    assert!(killed.elapsed() < Duration::from_secs(12), "{:?}", killed.elapsed());
    drop((of_first, of_first_too, again));
}

#[test]
fn what_is_limited_is_refused_where_the_bucket_takes_nothing_and_nobody_else_notices() {
    let (fabric, apis) = two();
    let [by_rate, _] = limited(&apis, &json!({"rate": "1000/s"}));
    let [by_number, _] = limited(&apis, &json!({"at_once": 100}));
    echo(&by_rate).expect(200);
    fabric.fill("LIMITS");
    // What was leased before may be spent, for as long as it is worth something.
    std::thread::sleep(Duration::from_millis(200));
    for caller in [&by_rate, &by_number] {
        let answer = echo(caller);
        assert_eq!((answer.status, &answer.body["code"]), (503, &json!("unavailable")), "{}", answer.text);
        assert!(answer.body["detail"].as_str().unwrap().starts_with("bucket LIMITS"), "{}", answer.text);
    }
    for api in &apis {
        echo(&api.admin()).expect(200);
    }
}

#[test]
fn a_node_with_a_limit_is_spared_where_another_will_do_and_named_where_not() {
    let fabric = Fabric::start();
    let apis = [fabric.api(), fabric.api()];
    fabric.agent_with("n-slow", "eu", &AgentOptions { rate: Some("2/h"), ..AgentOptions::default() });
    fabric.agent_with("n-one", "us", &AgentOptions { at_once: Some("1"), ..AgentOptions::default() });
    fabric.agent("n-free", "eu");
    for api in &apis {
        api.wait_for_nodes(3);
    }
    let admins = [apis[0].admin(), apis[1].admin()];
    for number in 0..12 {
        let outcome = echo(&admins[number % 2]).expect(200);
        assert_eq!(outcome["results"][0]["status"], "success", "{outcome}");
    }
    while admins[1].job("echo", "x", "node:n-slow", &json!({})).status == 200 {}
    let told = admins[0].get("/v1/limits").expect(200);
    assert_eq!(told["nodes"][0]["node"], "n-one", "{told}");
    let slow = &told["nodes"][1];
    assert_eq!((&slow["node"], &slow["rate"]["left"], &slow["rate"]["count"]), (&json!("n-slow"), &json!(0), &json!(2)), "{told}");
    for admin in &admins {
        refused(&admin.job("echo", "x", "node:n-slow", &json!({})), "node n-slow is limited to 2/h runs");
        for selector in ["eu", "eu*1"] {
            let job = admin.job("echo", "x", selector, &json!({})).expect(200);
            assert_eq!(job["results"][0]["node"]["id"], "n-free", "{selector}");
        }
        refused(&admin.job("echo", "x", "eu:all", &json!({})), "node n-slow");
    }
    let silent = Silent::start();
    let body = json!({"tool": "tcp", "target": "127.0.0.1", "from": "us", "parameters": silent.parameters(10_000)});
    admins[0].post_raw("/v1/jobs", "application/json", body.to_string().as_bytes(), &[("prefer", "respond-async")]).expect(202);
    let held = silent.connected();
    refused(&admins[1].job("echo", "x", "us", &json!({})), "node n-one is limited to 1 runs at once");
    drop(held);
    apis[1].wait_until("it is free again", || admins[1].job("echo", "x", "us", &json!({})).status == 200);
}

/// A service with its connection.
struct Publisher<'a> {
    fabric: &'a Fabric,
    name: &'a str,
    client: async_nats::Client,
}

impl<'a> Publisher<'a> {
    fn new(fabric: &'a Fabric, name: &'a str, rate: Option<&str>) -> Self {
        let service = fabric.service_with_rate(name, &["eu"], &["echo"], &["d-1", "d-2"], rate);
        Self { fabric, name, client: fabric.connect(&service.creds) }
    }

    /// Publishes so many jobs in so long, and reads the outcome of each.
    fn publish(&self, to: &str, jobs: u32, within: Duration) -> Vec<Value> {
        self.fabric.block_on(async {
            let inbox = format!("_INBOX.{}.{:032x}", self.name, rand::random::<u128>());
            let mut answers = self.client.subscribe(format!("{inbox}.*")).await.unwrap();
            let publishing = async {
                let mut beat = tokio::time::interval(within / jobs);
                for number in 0..jobs {
                    beat.tick().await;
                    let body = json!({"request_id": format!("r-{number}"), "tool": "echo", "target": "x"}).to_string();
                    let (subject, reply) = (format!("{to}.{}", self.name), format!("{inbox}._"));
                    self.client.publish_with_reply(subject, reply, body.into()).await.unwrap();
                }
            };
            let reading = async {
                let mut outcomes = Vec::new();
                while outcomes.len() < jobs as usize {
                    let message = tokio::time::timeout(Duration::from_secs(30), answers.next()).await.expect("an answer").unwrap();
                    outcomes.push(serde_json::from_slice(&message.payload).unwrap());
                }
                outcomes
            };
            tokio::join!(publishing, reading).1
        })
    }

    /// Waits until the nodes were told of it, which is not limited.
    fn wait_until_told(&self, api: &Api) {
        for node in ["d-1", "d-2"] {
            let to = format!("node.v1.{node}.job.echo");
            api.wait_until("the nodes are told", || admitted(&self.publish(&to, 6, Duration::from_millis(60))) == 6);
        }
    }
}

/// How many ran; every other is told when to come back.
#[track_caller]
fn admitted(outcomes: &[Value]) -> usize {
    for outcome in outcomes.iter().filter(|outcome| outcome["status"] != "success") {
        assert_eq!(outcome["failure"]["kind"], "limited", "{outcome}");
        assert!(outcome["failure"]["retry_after_ms"].as_u64().unwrap() > 0, "{outcome}");
    }
    outcomes.iter().filter(|outcome| outcome["status"] == "success").count()
}

#[test]
fn a_service_that_floods_gets_its_rate_from_two_nodes_together_and_callers_over_http_do_not_notice() {
    let (fabric, over_http) = (Fabric::start(), AtomicUsize::new(0));
    let api = fabric.api();
    let free = Publisher::new(&fabric, "free", None);
    let (slow, fast) = (Publisher::new(&fabric, "slow", Some("60/m")), Publisher::new(&fabric, "fast", Some("20/s")));
    fabric.agent("d-1", "eu");
    fabric.agent("d-2", "eu");
    api.wait_for_nodes(2);
    free.wait_until_told(&api);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (admin, over, over_http) = (api.admin(), &over, &over_http);
        scope.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let job = echo(&admin).expect(200);
                assert_eq!(job["results"][0]["status"], "success", "{job}");
                over_http.fetch_add(1, Ordering::Relaxed);
            }
        });
        // Ten times what it may.
        let ran = admitted(&slow.publish("job.v1.eu.echo", 600, Duration::from_secs(6)));
        let ran_fast = admitted(&fast.publish("job.v1.eu.echo", 1_000, Duration::from_secs(5)));
        over.store(true, Ordering::Relaxed);
        assert!((54..=66).contains(&ran), "{ran} of 60 in a minute");
        assert!((90..=110).contains(&ran_fast), "{ran_fast} in 5 s at 20/s");
    });
    assert!(over_http.into_inner() > 50, "the caller over HTTP was held up");
    let told = slow.publish("node.v1.d-1.job.echo", 1, Duration::from_millis(1)).remove(0);
    let detail = told["failure"]["detail"].as_str().unwrap();
    assert_eq!(detail, "service slow may run 30 in 60000 ms at this node, its share of its rate");
}

#[test]
fn a_node_that_was_not_told_of_a_service_runs_a_little_and_learns_of_one_granted_later() {
    let fabric = Fabric::start();
    fabric.service("early", &["eu"], &["echo"], &[]);
    fabric.agent("d-1", "eu");
    let late = Publisher::new(&fabric, "late", Some("30/h"));
    // Nobody is there who could tell.
    assert_eq!(admitted(&late.publish("job.v1.eu.echo", 20, Duration::from_millis(200))), 5);
    let api = fabric.api();
    api.wait_for_nodes(1);
    let free = Publisher::new(&fabric, "free", None);
    let to = "node.v1.d-1.job.echo";
    api.wait_until("the node is told", || admitted(&free.publish(to, 6, Duration::from_millis(60))) == 6);
    assert_eq!(admitted(&late.publish(to, 40, Duration::from_millis(400))), 25, "what it had counts");
    // The other node's beginning halves the share, which is told at once; what was used stays used.
    fabric.agent("d-2", "eu");
    api.wait_until("the other node is told", || admitted(&free.publish("node.v1.d-2.job.echo", 6, Duration::from_millis(60))) == 6);
    assert_eq!(admitted(&late.publish("node.v1.d-2.job.echo", 40, Duration::from_millis(400))), 15);
}
