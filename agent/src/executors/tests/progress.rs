//! What every tool tells while it goes on: as it happens, in order, in the shape that is promised, and nothing that its report does not say.

use std::time::Duration;

use probeops_shared::tools::dns::Dns;
use probeops_shared::tools::http::Http;
use probeops_shared::tools::mtr::Mtr;
use probeops_shared::tools::ping::Ping;
use probeops_shared::tools::pmtu::Pmtu;
use probeops_shared::tools::tcp::Tcp;
use probeops_shared::tools::tls::Tls;
use probeops_shared::tools::traceroute::Traceroute;
use probeops_shared::tools::whois::Whois;
use probeops_shared::tools::{Tool, ToolName};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use super::dns_server::DnsServer;
use super::web::{Web, page};
use super::{Found, Live, execute, open_node, spec, without_rtts};
use crate::executors::News;
use crate::testing::{self_signed, server_config};

/// A run, all that it told, and how long it took.
struct Told {
    found: Found,
    news: Vec<News>,
    lasted: Duration,
}

impl Told {
    /// What was told of this type, without that word and whose address it is about.
    fn of(&self, kind: &str) -> Vec<Value> {
        let without = |progress: &Value| {
            let fields = progress.as_object().unwrap().iter().filter(|(name, _)| *name != "type");
            Value::Object(fields.map(|(name, value)| (name.clone(), value.clone())).collect::<Map<_, _>>())
        };
        self.news.iter().map(|news| &news.progress).filter(|progress| progress["type"] == kind).map(without).collect()
    }

    /// A part of that.
    fn part(&self, kind: &str, part: &str) -> Vec<Value> {
        self.of(kind).into_iter().map(|mut progress| progress[part].take()).collect()
    }
}

async fn run(tool: &str, target: &str, parameters: Value) -> Told {
    let shown = format!("{tool} {target} {parameters}");
    let server = DnsServer::start().await;
    let (context, (live, mut heard)) = (open_node(&[server.address]), Live::heard());
    let started = std::time::Instant::now();
    let found = execute(&context, spec(tool, target, parameters), &live).await.unwrap();
    let lasted = started.elapsed();
    drop(live);
    let news: Vec<News> = std::iter::from_fn(|| heard.try_recv()).collect();
    assert!(!news.is_empty(), "{shown} tells nothing");
    assert!(news.is_sorted_by_key(|news| news.elapsed) && news.iter().all(|news| news.missed == 0), "{shown}: {news:?}");
    for news in &news {
        assert_eq!(again(tool, &news.progress), news.progress, "{shown}: it is read as it was written");
    }
    let told: String = news.iter().map(|news| news.output.as_str()).collect();
    assert!(found.output.starts_with(&told), "{shown} told:\n{told}\nand printed:\n{}", found.output);
    Told { found, news, lasted }
}

/// Progress as whoever knows its type reads and writes it.
fn again(tool: &str, progress: &Value) -> Value {
    fn of<T: Tool>(progress: &Value) -> Value {
        let read: T::Progress = serde_json::from_value(progress.clone()).unwrap_or_else(|error| panic!("{progress}: {error}"));
        serde_json::to_value(read).unwrap()
    }
    match tool.parse().unwrap() {
        ToolName::Echo => panic!("echo tells nothing"),
        ToolName::Ping => of::<Ping>(progress),
        ToolName::Traceroute => of::<Traceroute>(progress),
        ToolName::Mtr => of::<Mtr>(progress),
        ToolName::Dns => of::<Dns>(progress),
        ToolName::Tcp => of::<Tcp>(progress),
        ToolName::Tls => of::<Tls>(progress),
        ToolName::Http => of::<Http>(progress),
        ToolName::Pmtu => of::<Pmtu>(progress),
        ToolName::Whois => of::<Whois>(progress),
    }
}

#[track_caller]
fn list(report: &Value) -> Vec<Value> {
    report.as_array().unwrap().clone()
}

#[tokio::test]
async fn each_packet_hop_and_round_is_told_as_it_happens() {
    for protocol in ["icmp", "tcp"] {
        let told = run("ping", "127.0.0.1", json!({"protocol": protocol, "count": 3, "interval_ms": 200})).await;
        assert_eq!(told.of("packet"), list(&told.found.report["packets"]));
        // The first is told when it has arrived, and not at the end.
        let first = told.news.iter().find(|news| news.progress["type"] == "packet").unwrap();
        assert!(first.elapsed + Duration::from_millis(200) < told.lasted, "{:?} of {:?}", first.elapsed, told.lasted);
    }
    for protocol in ["icmp", "udp", "tcp"] {
        let told = run("traceroute", "127.0.0.1", json!({"protocol": protocol})).await;
        assert_eq!(told.of("hop"), list(&told.found.report["hops"]));
        assert_eq!(told.part("probe", "probe").len(), 3, "{:?}", told.news);
        let told = run("mtr", "127.0.0.1", json!({"protocol": protocol, "rounds": 3, "interval_ms": 200})).await;
        assert_eq!((told.part("round", "round"), &told.found.report["rounds"]), (vec![json!(1), json!(2), json!(3)], &json!(3)));
        let last = told.part("round", "hops").pop().unwrap();
        assert_eq!(last, without_rtts(&told.found.report["hops"]));
        let first = told.news.iter().find(|news| news.progress["type"] == "round").unwrap();
        // A round may be a little late, and the next no later for it.
        assert!(first.elapsed + Duration::from_millis(150) < told.lasted, "{:?} of {:?}", first.elapsed, told.lasted);
    }
    let told = run("pmtu", "127.0.0.1", json!({"max_bytes": 2000})).await;
    assert_eq!(told.of("probe"), list(&told.found.report["probes"]));
}

#[tokio::test]
async fn each_answer_is_told_as_it_comes() {
    let told = run("dns", "large.test", json!({"type": "TXT"})).await;
    assert_eq!((told.of("attempt"), told.of("attempt").len()), (list(&told.found.report["attempts"]), 2));
    let server = DnsServer::start().await;
    let resolver = json!({"resolver": "127.0.0.1", "port": server.address.port(), "compare_with": ["127.0.0.2"], "tries": 1});
    let told = run("dns", "local.test", resolver).await;
    assert_eq!(told.of("compared").len(), 2);
    let answers = list(&told.found.report["comparison"]["answers"]);
    assert!(told.of("compared").iter().all(|answer| answers.contains(answer)), "{answers:?}");
    let slow = run("dns", "silent.test", json!({"timeout": 0.2, "tries": 3})).await;
    assert_eq!((slow.of("attempt"), slow.of("attempt").len()), (list(&slow.found.report["attempts"]), 3));
    assert!(slow.news[0].elapsed + Duration::from_millis(300) < slow.lasted, "{:?} of {:?}", slow.news[0].elapsed, slow.lasted);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(tokio::spawn(async move {
        loop {
            let mut stream = listener.accept().await.unwrap().0;
            BufReader::new(&mut stream).read_line(&mut String::new()).await.unwrap();
            stream.write_all(b"inetnum: 192.0.2.0 - 192.0.2.255\r\n").await.unwrap();
        }
    }));
    let told = run("whois", "192.0.2.1", json!({"server": "127.0.0.1", "port": port})).await;
    let mut answers = told.of("answer");
    let record = answers[0].as_object_mut().unwrap().remove("record");
    assert_eq!((answers, record.as_ref()), (list(&told.found.report["queries"]), told.found.report.get("record")));
    assert_eq!(told.of("asking").len(), 1);
    let told = run("tcp", "127.0.0.1", json!({"ports": format!("{port},1"), "banner": true, "banner_wait_ms": 300})).await;
    let mut ports = told.of("port");
    for port in &mut ports {
        assert_eq!(port.as_object_mut().unwrap().remove("address"), Some(json!("127.0.0.1")));
    }
    assert_eq!((ports, told.of("open").len()), (list(&told.found.report["ports"]), 1));
    let told = run("tcp", "127.0.0.1", json!({"port": port, "send": "x\\n", "expect": "inet", "then": [{"expect": "255"}]})).await;
    let said = told.of("exchange");
    let of_report = [&told.found.report["ports"][0], &told.found.report["ports"][0]["then"][0]];
    assert_eq!(said.len(), 2);
    for (said, of_report) in said.iter().zip(of_report) {
        assert_eq!((&said["reply"], &said["expect"]), (&of_report["reply"], &of_report["expect"]));
    }
}

#[tokio::test]
async fn each_phase_and_redirect_is_told_as_it_is_over() {
    let secure = Web::start(Some(server_config(&self_signed(&["local.test"]), &[])), |_| page("200 OK", &[], b"end")).await;
    let to = format!("Location: https://local.test:{}/", secure.port());
    let web = Web::start(None, move |_| page("302 Found", &[&to], b"")).await;
    let assertions = json!([{"type": "status", "one_of": ["200"]}, {"type": "tls", "used": true}]);
    let parameters = json!({"redirects_max": 1, "verify": false, "http_version": "1.1", "assertions": assertions});
    let told = run("http", &format!("http://local.test:{}/", web.port()), parameters).await;
    let phases: Vec<Value> = told.part("phase", "phase");
    let one = ["connected", "answered", "finished"];
    assert_eq!(phases, [&one[..], &["connected", "secured", "answered", "finished"]].concat());
    let finished =
        told.of("phase").into_iter().filter(|progress| progress["phase"] == "finished").map(|mut progress| progress["request"].take());
    assert_eq!(finished.collect::<Vec<_>>(), list(&told.found.report["requests"]));
    assert_eq!(told.part("assertion", "verdict"), list(&told.found.report["assertions"]));

    let told = run("tls", "local.test", json!({"port": secure.port(), "versions": true})).await;
    let kinds: Vec<&str> = told.news.iter().map(|news| news.progress["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, [&["resolved", "connected", "handshake"][..], &["version"; 4]].concat());
    assert_eq!(told.of("version"), list(&told.found.report["versions"]));
    assert_eq!(told.of("handshake")[0]["chain"], told.found.report["chain"]);
}
