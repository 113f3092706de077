//! Nodes and services that mean harm.

use std::net::SocketAddr;
use std::time::Duration;

use async_nats::{Client, HeaderMap, Subscriber};
use futures_util::StreamExt;
use probeops_shared::job::header;
use probeops_shared::presence::{Beat, PolicyReport, Slots};
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::ToolName;
use probeops_tests::hostile::door::{Stream, as_node};
use probeops_tests::hostile::liar::{Liar, say, told};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{HANG, Site, said_by};

/// How many junk jobs a service publishes.
const FLOOD: usize = 5_000;
/// How often it publishes the same one.
const DUPLICATES: usize = 40;
/// How large a message is that is too large.
const LARGE: usize = 100 * 1024 * 1024;

/// A node of region `bad` with a credential as any other.
pub(super) fn lying_node(site: &Site) -> tokio::task::JoinHandle<()> {
    let creds = site.fabric.enrol("liar", 1, "bad").remove(0);
    let client = site.fabric.connect_in(&creds, "_INBOX_n.liar-1");
    let beat = Beat {
        clock_offset_ms: Some(1.7e308),
        rtt_ms: Some(1.7e308),
        slots: [(ToolName::Echo.class(), Slots { free: 1_000_000_000, total: 1_000_000_000 })].into(),
        policy: PolicyReport::new("x".repeat(20_000)),
        ..beat("liar-1")
    };
    let beat = serde_json::to_vec(&beat).unwrap();
    let telling = client.clone();
    let liar = site.fabric.spawn(async move {
        let beats = async {
            loop {
                let say = async |subject: &str, body: Vec<u8>| {
                    drop(telling.publish_with_reply(subject.to_owned(), "_INBOX_n.liar-1.0".to_owned(), body.into()).await);
                };
                say("ev.v1.bad.liar-1.beat", beat.clone()).await;
                // In others' names, of no kind, as deep and as large as it gets; the broker lets some of it through.
                for subject in ["ev.v1.bad.liar-1.beat", "ev.v1.bad.liar-1.audit", "ev.v1.bad.liar-1.nothing", "ev.v1.good.good-1.bye"] {
                    for body in [
                        b"junk".to_vec(),
                        vec![b'['; 200_000],
                        vec![b' '; 250_000],
                        String::from_utf8_lossy(&beat).replace("liar-1", "good-1").into_bytes(),
                    ] {
                        say(subject, body).await;
                    }
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::join!(beats, Liar::new(client, "liar-1").lie())
    });
    site.roomy.wait_for_nodes(2);
    site.fabric.spawn(async move { drop(liar.await) })
}

/// What an honest node of region `bad` says of itself.
fn beat(node: &str) -> Beat {
    Beat {
        node: node.parse().unwrap(),
        region: "bad".parse().unwrap(),
        boot_id: "b".to_owned(),
        started_at: Timestamp::now(),
        counter: 1,
        version: "0".to_owned(),
        tools: vec![ToolName::Echo],
        unavailable: Vec::new(),
        slots: [(ToolName::Echo.class(), Slots { free: 1, total: 1 })].into(),
        draining: false,
        clock_offset_ms: None,
        rtt_ms: None,
        policy: PolicyReport::new(String::new()),
    }
}

/// Every lie is an answer, and to its own job only: what is told of node, tool and request is what the API knows.
pub(super) fn lies(site: &Site) {
    let lie = |lie: &str| {
        let body = json!({"tool": "echo", "target": lie, "from": "node:liar-1", "timeout_ms": 12_000});
        (lie.to_owned(), site.job(&body))
    };
    let once = ["ids", "seq", "numbers", "deep", "junk", "unknown", "twice", "shuffled", "backwards", "headers", "truth"];
    for (lie, answer) in once.map(lie) {
        let outcome = answer.outcome();
        assert_eq!(
            (&outcome["target"], &outcome["tool"], &outcome["node"]["id"]),
            (&json!(lie), &json!("echo"), &json!("liar-1")),
            "{outcome}"
        );
        let succeeds = !["deep", "junk"].contains(&lie.as_str());
        assert_eq!(outcome["status"] == "success", succeeds, "{lie}: {outcome}");
    }
    told_once_and_in_order(site);
    told_as_it_was(site);
    stolen(site);
    too_large(site);
    // Those that take their time, at the same time; somebody watches, as text and as events.
    let (address, key) = (site.roomy.address(), site.roomy.admin_key());
    std::thread::scope(|threads| {
        let slow = [("large", "unavailable"), ("endless", "lost"), ("alive", "lost")];
        let slow = slow.map(|(lie, kind)| threads.spawn(move || (lie, kind, job_from(address, key, lie, "application/json"))));
        for accept in ["text/plain", "text/event-stream"] {
            threads.spawn(move || job_from(address, key, "endless", accept));
        }
        for (lie, kind, answer) in slow.into_iter().map(|slow| slow.join().unwrap()) {
            let job: Value = serde_json::from_str(answer.rsplit("\r\n\r\n").next().unwrap()).unwrap();
            let failure = &job["results"][0]["failure"];
            assert_eq!((&job["status"], &failure["kind"]), (&json!("finished"), &json!(kind)), "{lie}: {job}");
            assert_eq!(failure["detail"].as_str().unwrap().contains("goes on with it after its time"), lie != "large", "{lie}: {job}");
        }
    });
}

/// What comes twice and in the wrong order, whoever watches is told once and in order.
fn told_once_and_in_order(site: &Site) {
    let body = json!({"tool": "echo", "target": "shuffled", "from": "node:liar-1"});
    let events = site.roomy.admin().stream("POST", "/v1/jobs", &body, &[("accept", "text/event-stream")]).events();
    let ids: Vec<u64> = events.iter().filter_map(|event| event.id.strip_prefix("0.1.")?.parse().ok()).collect();
    let kinds: Vec<&str> = events.iter().filter(|event| event.id.starts_with("0.1.")).map(|event| event.event.as_str()).collect();
    assert_eq!(ids, [0, 1, 2, 5, 6, 7], "{kinds:?}");
    assert_eq!(kinds, ["accepted", "progress", "progress", "progress", "progress", "outcome"], "{ids:?}");
}

/// Whoever watches is told no more than what is so, once, in order, of his own job, and nothing after its end.
fn told_as_it_was(site: &Site) {
    let lies: [(&str, &[&str]); 6] = [
        ("ids", &["outcome"]),
        ("seq", &["accepted", "outcome"]),
        ("twice", &["outcome"]),
        // What came after its outcome may be told if it was heard before that was, in its place.
        ("backwards", &["progress", "outcome"]),
        ("unknown", &["outcome"]),
        ("numbers", &["outcome"]),
    ];
    for (lie, wanted) in lies {
        let body = json!({"tool": "echo", "target": lie, "from": "node:liar-1"});
        let events = site.roomy.admin().stream("POST", "/v1/jobs", &body, &[("accept", "text/event-stream")]).events();
        let of_run: Vec<_> = events.iter().filter(|event| event.id.starts_with("0.")).collect();
        let told: Vec<&str> = of_run.iter().map(|event| event.event.as_str()).collect();
        assert!(told == wanted || lie == "backwards" && told == ["outcome"], "{lie}: {told:?}");
        assert!(of_run.iter().all(|event| event.id.starts_with("0.1.")), "{lie}: {events:?}");
        let outcome = &of_run.last().unwrap().data["outcome"];
        let [first, .., last] = events.as_slice() else { panic!("{lie}: {events:?}") };
        assert_eq!(last.data["results"], json!([outcome]), "{lie}: {events:?}");
        assert_eq!((&last.data["id"], &last.data["status"]), (&first.data["id"], &json!("finished")), "{lie}: {events:?}");
        assert_eq!(
            (&outcome["request_id"], &outcome["tool"], &outcome["target"], &outcome["node"]),
            (&last.data["id"], &json!("echo"), &json!(lie), &json!({"id": "liar-1", "region": "bad"})),
            "{lie}: {events:?}"
        );
    }
}

/// A node that has heard where another is awaited tells its own outcome there, under its own name, which is not believed, and under the other's,
/// which the broker refuses.
fn stolen(site: &Site) {
    let [quiet_id, thief_id] = ["quiet", "thief"].map(|name| format!("{name}-1"));
    let connect = |name: &str, id: &str| {
        let creds = site.fabric.enrol(name, 1, "bad").remove(0);
        site.fabric.connect_in(&creds, &format!("_INBOX_n.{id}"))
    };
    let (quiet, thief) = (connect("quiet", &quiet_id), connect("thief", &thief_id));
    let mut jobs = site.fabric.block_on(quiet.subscribe(format!("node.v1.{quiet_id}.>"))).unwrap();
    site.fabric.block_on(quiet.flush()).unwrap();
    site.fabric.announce_all(&[beat(&quiet_id)]);
    site.roomy
        .wait_until("the quiet node is online", || site.roomy.admin().get(&format!("/v1/nodes/{quiet_id}")).body["online"] == json!(true));
    let (address, key) = (site.roomy.address(), site.roomy.admin_key());
    let job = json!({"tool": "echo", "target": "mine", "from": format!("node:{quiet_id}")}).to_string();
    let answer = std::thread::scope(|threads| {
        let asking = threads.spawn(|| said_by(address, key, &job));
        site.fabric.block_on(async {
            let job = tokio::time::timeout(HANG, jobs.next()).await.expect("the job").unwrap();
            let asked: Value = serde_json::from_slice(&job.payload).unwrap();
            let inbox = job.reply.as_ref().and_then(|reply| reply.strip_suffix('_')).unwrap();
            let outcome = |node: &str, output: &str| told(&asked, node, output).to_string().into_bytes();
            say(&quiet, &format!("{inbox}{quiet_id}"), ("accepted", "0"), Vec::new()).await;
            quiet.flush().await.unwrap();
            for name in [&thief_id, &quiet_id] {
                for event in ["accepted", "progress", "outcome"] {
                    say(&thief, &format!("{inbox}{name}"), (event, "1"), outcome(name, "stolen")).await;
                }
            }
            // All of it has been with the API before the truth is.
            thief.flush().await.unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
            say(&quiet, &format!("{inbox}{quiet_id}"), ("outcome", "1"), outcome(&quiet_id, "honest")).await;
            quiet.flush().await.unwrap();
        });
        asking.join().unwrap()
    });
    let outcome = &answer["results"][0];
    assert_eq!((&outcome["node"]["id"], &outcome["output"]), (&json!(quiet_id), &json!("honest")), "{answer}");
    let refused = site.roomy.wait_for_audit(&format!("verdict=violation&node={thief_id}"), 1);
    assert!(refused.iter().all(|record| record["target"].as_str().is_some_and(|target| target.ends_with(&quiet_id))), "{refused:#?}");
}

/// A hundred megabytes in one message, as the outcome of a job that it has accepted: the broker ends the connection that begins with it, and its
/// caller is told that the node was lost.
fn too_large(site: &Site) {
    let creds = site.fabric.enrol("giant", 1, "bad").remove(0);
    let stream = site.fabric.block_on(async {
        let mut stream = as_node(site.fabric.listen(), &site.fabric.ca(), &creds).await.expect("the broker");
        stream.write_all(b"SUB node.v1.giant-1.> 1\r\nPING\r\n").await.unwrap();
        stream.flush().await.unwrap();
        drop(line(&mut stream, "PONG").await);
        stream
    });
    site.fabric.announce_all(&[beat("giant-1")]);
    site.roomy.wait_until("the giant is online", || site.roomy.admin().get("/v1/nodes/giant-1").body["online"] == json!(true));
    let (address, key) = (site.roomy.address(), site.roomy.admin_key());
    let job = json!({"tool": "echo", "target": "small", "from": "node:giant-1"}).to_string();
    let answer = std::thread::scope(|threads| {
        let asking = threads.spawn(|| said_by(address, key, &job));
        overwhelm(site, stream);
        asking.join().unwrap()
    });
    let outcome = &answer["results"][0];
    assert_eq!((&outcome["failure"]["kind"], &outcome["node"]["id"]), (&json!("lost"), &json!("giant-1")), "{answer}");
    let seen = site.roomy.wait_for_audit("verdict=violation&node=giant-1", 1);
    assert!(seen.iter().any(|record| record["detail"].to_string().to_lowercase().contains("payload")), "{seen:#?}");
}

/// The next line of the broker's that begins with this.
async fn line(stream: &mut Box<dyn Stream>, start: &str) -> String {
    let mut read = Vec::new();
    loop {
        read.push(stream.read_u8().await.expect("more of the broker"));
        if read.ends_with(b"\r\n") {
            let line = String::from_utf8_lossy(&read).into_owned();
            if line.starts_with(start) {
                return line;
            }
            read.clear();
        }
    }
}

/// Accepts the job that comes, and answers it with a hundred megabytes.
fn overwhelm(site: &Site, mut stream: Box<dyn Stream>) {
    site.fabric.block_on(async {
        let job = tokio::time::timeout(HANG, line(&mut stream, "HMSG ")).await.expect("the job");
        let inbox = job.split(' ').nth(3).and_then(|reply| reply.strip_suffix('_')).expect("where to answer");
        let accepted = format!("NATS/1.0\r\n{}: accepted\r\n{}: 0\r\n\r\n", header::EVENT, header::SEQ);
        let length = accepted.len();
        let (mut from, mut to) = tokio::io::split(stream);
        let say = async {
            to.write_all(format!("HPUB {inbox}giant-1 {length} {length}\r\n{accepted}\r\n").as_bytes()).await?;
            to.write_all(format!("PUB {inbox}giant-1 {LARGE}\r\n").as_bytes()).await?;
            let piece = vec![b'{'; 256 * 1024];
            for _ in 0..LARGE / piece.len() {
                to.write_all(&piece).await?;
            }
            to.flush().await
        };
        let mut heard = Vec::new();
        let hear = async { while from.read_buf(&mut heard).await.is_ok_and(|length| length > 0) {} };
        let both = tokio::time::timeout(HANG, futures_util::future::join(say, hear));
        let (said, ()) = both.await.expect("that it is closed");
        let heard = String::from_utf8_lossy(&heard);
        assert!(said.is_err(), "it took all of it: {heard}");
        assert!(!heard.contains("-ERR") || heard.contains("Maximum Payload"), "{heard}");
    });
}

/// A job at the node that lies, to the end of its answer; of a long one only the end is kept.
fn job_from(address: SocketAddr, key: &str, lie: &str, accept: &str) -> String {
    use std::io::{Read, Write};
    let body = json!({"tool": "echo", "target": lie, "from": "node:liar-1"}).to_string();
    let head = format!(
        "POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nAccept: {accept}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    let (mut answer, mut piece) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        let length = stream.read(&mut piece).unwrap();
        if length == 0 {
            return String::from_utf8_lossy(&answer).into_owned();
        }
        answer.extend_from_slice(&piece[..length]);
        let excess = answer.len().saturating_sub(1024 * 1024);
        drop(answer.drain(..excess));
    }
}

/// A service publishes what is no job, as fast as it can; its one honest job is answered all the same, once it is within its rate again.
pub(super) fn lying_service(site: &Site, silent: SocketAddr) {
    let service = site.fabric.service("flooder", &["good"], &["echo", "tcp"], &["good-1"]);
    let client = site.fabric.connect(&service.creds);
    let echo = json!({"request_id": "r", "tool": "echo", "target": "x", "parameters": {}}).to_string();
    let bodies: Vec<Vec<u8>> = vec![
        b"junk".to_vec(),
        Vec::new(),
        vec![b'['; 60_000],
        vec![0xff; 200_000],
        echo.clone().into_bytes(),
        format!("{{\"tool\":{}", "{\"a\":".repeat(10_000)).into_bytes(),
        echo.replace("\"parameters\":{}", &format!("\"parameters\":{{{}\"z\":1}}", "\"a\":1,".repeat(5_000))).into_bytes(),
    ];
    let numbers = ["-9223372036854775808", "9223372036854775807", "0", "x", ""];
    site.fabric.block_on(async {
        let mut answers = client.subscribe("_INBOX.flooder.>").await.unwrap();
        for number in 0..FLOOD {
            let mut headers = HeaderMap::new();
            for name in
                [header::SENT, header::DEADLINE, header::ATTEMPT, header::EVENTS, header::TARGETS, header::PRINCIPAL, header::TRACEPARENT]
            {
                if rand::random::<bool>() {
                    headers.insert(name, numbers[rand::random_range(0..numbers.len())]);
                }
            }
            // Others' inboxes, none, and its own.
            let reply = ["_INBOX.flooder.t._", "_INBOX.flooder.t.good-1", "_INBOX.other.t._", "ev.v1.good.good-1.beat", "_INBOX.flooder._"]
                [number % 5];
            let body = bodies[number % bodies.len()].clone().into();
            client.publish_with_reply_and_headers("node.v1.good-1.job.echo.flooder", reply, headers, body).await.unwrap();
        }
        client.flush().await.unwrap();
        let honest = async {
            loop {
                client.publish_with_reply("job.v1.good.echo.flooder", "_INBOX.flooder.honest._", echo.clone().into()).await.unwrap();
                while let Ok(Some(answer)) = tokio::time::timeout(Duration::from_secs(1), answers.next()).await {
                    let outcome: Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
                    if answer.subject.as_str() == "_INBOX.flooder.honest.good-1" && outcome["status"] == "success" {
                        return;
                    }
                }
            }
        };
        tokio::time::timeout(HANG, honest).await.expect("an honest job is answered");
        duplicated(&client, silent, answers).await;
    });
}

/// One request published again and again, as other dispatches and in the wrong order: it runs to its end once, and takes one slot.
async fn duplicated(client: &Client, silent: SocketAddr, mut answers: Subscriber) {
    let parameters = json!({"port": silent.port(), "banner": true, "timeout": 2});
    let job = json!({"request_id": "same", "tool": "tcp", "target": silent.ip(), "parameters": parameters}).to_string();
    for number in 0..DUPLICATES {
        let mut headers = HeaderMap::new();
        // 3, 1, 2, 0, 3, ...
        headers.insert(header::ATTEMPT, ["3", "1", "2", "0"][number % 4]);
        let body = job.clone().into();
        client.publish_with_reply_and_headers("node.v1.good-1.job.tcp.flooder", "_INBOX.flooder.same._", headers, body).await.unwrap();
    }
    let mut outcomes = Vec::new();
    while let Ok(Some(answer)) = tokio::time::timeout(Duration::from_secs(4), answers.next()).await {
        if answer.subject.as_str() == "_INBOX.flooder.same.good-1"
            && answer.headers.as_ref().and_then(|headers| headers.get(header::EVENT)).is_some_and(|event| event.as_str() == "outcome")
        {
            outcomes.push(serde_json::from_slice::<Value>(&answer.payload).unwrap());
        }
    }
    let is_whole = |outcome: &&Value| outcome["status"] == "success" || outcome["failure"]["kind"] == "timed_out";
    assert_eq!(outcomes.iter().filter(is_whole).count(), 1, "{outcomes:#?}");
    assert!(outcomes.iter().all(|outcome| outcome["request_id"] == "same"), "{outcomes:#?}");
}
