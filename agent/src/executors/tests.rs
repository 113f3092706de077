//! Each executor against real sockets of this machine.

mod denials;
mod dns;
mod dns_server;
mod http;
mod live;
mod narrowing;
mod netns;
mod paths;
mod pmtu;
mod progress;
mod tcp;
mod tls;
mod web;
mod whois;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use probeops_shared::outcome::FailureKind;
use probeops_shared::tools::ping::report::IcmpEngine;
use serde_json::{Map, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use dns_server::DnsServer;

const LOCAL: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

fn policy(text: &str) -> Policy {
    let file = std::env::temp_dir().join(format!("probeops-policy-{:032x}.toml", rand::random::<u128>()));
    std::fs::write(&file, text).unwrap();
    let policy = Policy::load(Some(&file), &["tls://192.0.2.1:4222".to_owned()]).unwrap();
    std::fs::remove_file(file).unwrap();
    policy
}

/// A node whose owner allows loopback.
fn open_node(resolvers: &[SocketAddr]) -> Context {
    Context::new(policy("allow_loopback = true"), resolvers).unwrap()
}

fn spec(tool: &str, target: &str, parameters: Value) -> Spec {
    let Value::Object(parameters) = parameters else { panic!("{parameters}") };
    Spec::parse(tool.parse().unwrap(), target, parameters).unwrap()
}

/// Ways of writing 169.254.169.254, 127.0.0.2 and `::1`, some of which are no address to anybody.
const DISGUISES: [&str; 36] = [
    "169.254.169.254",
    "127.0.0.2",
    "::1",
    "0:0:0:0:0:0:0:1",
    // Decimal, octal, hexadecimal, short, as inet_aton(3) has them.
    "2852039166",
    "025177524776",
    "0251.0376.0251.0376",
    "0xa9fea9fe",
    "0xA9.0xFE.0xA9.0xFE",
    "169.254.43518",
    "169.16689662",
    "169.0376.0xa9fe",
    "2130706434",
    "017700000002",
    "0x7f000002",
    "0x7f.0.0.2",
    "0177.0.0.2",
    "127.2",
    // What IDNA maps to digits and dots, and a name's last dot.
    "169.254.169.254.",
    "127.0.0.2.",
    "\u{ff11}69.254.169.254",
    "\u{2460}\u{2465}\u{2468}.254.169.254",
    "127\u{3002}0\u{3002}0\u{3002}2",
    // An IPv4 address in an IPv6 one: mapped, compatible, NAT64 of the well-known and of the local prefix, 6to4, Teredo (the server's, the
    // client's), ISATAP.
    "::ffff:169.254.169.254",
    "::ffff:a9fe:a9fe",
    "::ffff:127.0.0.2",
    "::169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::a9fe:a9fe",
    "64:ff9b::7f00:2",
    "2002:a9fe:a9fe::",
    "2002:7f00:2::",
    "2001:0:a9fe:a9fe::",
    "2001::5601:5601",
    "2001:db8::5efe:a9fe:a9fe",
];

/// The hops of `mtr` as they are told at the end of a round.
fn without_rtts(hops: &Value) -> Value {
    let mut hops = hops.clone();
    for hop in hops.as_array_mut().unwrap() {
        hop.as_object_mut().unwrap().remove("rtts_ms");
    }
    hops
}

/// What a run found, to be looked into.
#[derive(Debug)]
struct Found {
    report: Value,
    output: String,
}

impl From<super::Found> for Found {
    fn from(found: super::Found) -> Self {
        Self { report: found.report.map_or(Value::Null, |report| serde_json::from_str(report.get()).unwrap()), output: found.output }
    }
}

impl Live {
    fn taken(&self) -> Option<Found> {
        self.take().map(Found::from)
    }
}

async fn execute(context: &Context, spec: Spec, live: &Live) -> Result<Found, Failure> {
    super::execute(context, &spec, live).await.map(Found::from)
}

async fn run(context: &Context, tool: &str, target: &str, parameters: Value) -> Result<Found, Failure> {
    execute(context, spec(tool, target, parameters), &Live::default()).await
}

async fn finds(context: &Context, tool: &str, target: &str, parameters: Value) -> Found {
    run(context, tool, target, parameters).await.unwrap()
}

#[track_caller]
fn fails(result: Result<Found, Failure>, kind: FailureKind, part: &str) {
    let failure = result.unwrap_err();
    assert!(failure.kind == kind && failure.detail.contains(part), "{failure}");
}

#[tokio::test]
async fn echo_says_what_the_node_knows() {
    let context = open_node(&[]).for_run(None, Some(1.5), Some(-2.0));
    let found = finds(&context, "echo", "x", json!({"payload_bytes": 3})).await;
    assert_eq!(
        (&found.report["dispatch_ms"], &found.report["clock_offset_ms"], &found.report["payload"]),
        (&json!(1.5), &json!(-2.0), &json!("xxx"))
    );
}

#[tokio::test]
async fn this_machine_answers_ping_over_both_families() {
    for (engine, address) in [IcmpEngine::Own, IcmpEngine::Surge].into_iter().flat_map(|engine| LOCAL.map(|address| (engine, address))) {
        let context = open_node(&[]).with_engine(engine);
        let found = finds(&context, "ping", &address.to_string(), json!({"count": 3, "interval_ms": 100, "ttl": 9})).await;
        let stats = &found.report["stats"];
        assert_eq!((&found.report["engine"], stats.get("duplicates").is_some()), (&json!(engine), engine == IcmpEngine::Own));
        assert_eq!((&stats["sent"], &stats["received"], &stats["loss_pct"]), (&json!(3), &json!(3), &json!(0.0)), "{}", found.output);
        assert_eq!(found.report["packets"].as_array().unwrap().len(), 3);
        assert!(
            found.output.starts_with(if address.is_ipv4() { "PING 127.0.0.1 (127.0.0.1) 56(84)" } else { "PING ::1(::1) 56 data" })
                && found.output.contains("rtt min/avg/max/mdev"),
            "{}",
            found.output
        );
    }
}

#[tokio::test]
async fn surge_ping_refuses_what_it_cannot_do_and_names_the_setting_that_can() {
    let surge = open_node(&[]).with_engine(IcmpEngine::Surge);
    for (option, value) in
        [("source", json!("127.0.0.1")), ("dscp", json!(46)), ("dont_fragment", json!(true)), ("payload_bytes", json!(1981))]
    {
        let refused = run(&surge, "ping", "127.0.0.1", json!({option: value})).await.unwrap_err();
        let named = refused.detail.contains(&format!("`{option}`")) && refused.detail.contains("icmp_engine = \"own\"");
        assert!(refused.kind == FailureKind::Unsupported && named, "{refused}");
        assert!(run(&open_node(&[]), "ping", "127.0.0.1", json!({option: value, "count": 1})).await.is_ok(), "{option}");
    }
    // What does not ping by ICMP does not care.
    let traced = finds(&surge, "traceroute", "127.0.0.1", json!({"protocol": "icmp", "dscp": 46})).await;
    assert_eq!(traced.report["end"], "reached", "{}", traced.report);
    let tcp = finds(&surge, "ping", "127.0.0.1", json!({"protocol": "tcp", "dscp": 46, "count": 1})).await;
    assert!(tcp.report.get("engine").is_none() && tcp.report["stats"]["received"] == 1, "{}", tcp.report);
}

#[tokio::test]
async fn a_host_that_is_silent_is_a_finding() {
    for engine in [IcmpEngine::Own, IcmpEngine::Surge] {
        // The documentation network: routed nowhere, so silence, or an ICMP error from a router; never a reply.
        let found = finds(&open_node(&[]).with_engine(engine), "ping", "192.0.2.77", json!({"count": 1, "timeout": 0.1})).await;
        assert_eq!(found.report["stats"]["received"], 0, "{}", found.output);
        assert!(found.report["stats"].get("rtt_avg_ms").is_none());
    }
}

#[tokio::test]
async fn a_run_cut_short_leaves_what_it_found() {
    let (context, live) = (open_node(&[]), Live::default());
    let run = execute(&context, spec("ping", "127.0.0.1", json!({"count": 100, "interval_ms": 1000})), &live);
    let first_reply = async {
        loop {
            match live.taken() {
                Some(found) if found.report["stats"]["received"] != 0 => return found,
                Some(_) | None => tokio::task::yield_now().await,
            }
        }
    };
    let found = tokio::select! {
        _ = run => panic!("a hundred seconds have passed"),
        found = first_reply => found,
    };
    assert_eq!((&found.report["stats"]["sent"], found.report["packets"].as_array().unwrap().len()), (&json!(1), 1));
}

#[tokio::test]
async fn a_port_is_open_and_its_banner_read() {
    for address in LOCAL {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (context, target) = (open_node(&[]), address.to_string());
        let probe = finds(&context, "tcp", &target, json!({"port": port, "banner": true}));
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"220 hello\r\n\xff").await.unwrap();
        };
        let (found, ()) = tokio::join!(probe, serve);
        assert_eq!(
            (&found.report["ports"][0]["state"], &found.report["ports"][0]["banner"]),
            (&json!("open"), &json!("220 hello\\r\\n\\xff")),
            "{}",
            found.report
        );
        assert!(found.report["ports"][0]["connect_ms"].as_f64().unwrap() > 0.0 && found.output.contains("succeeded"), "{}", found.output);
    }
}

#[tokio::test]
async fn a_port_where_nothing_listens_is_refused() {
    for address in LOCAL {
        let port = std::net::TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().port();
        let found = finds(&open_node(&[]), "tcp", &address.to_string(), json!({"port": port})).await;
        assert_eq!(
            (&found.report["ports"][0]["state"], &found.report["ports"][0]["reason"]),
            (&json!("refused"), &json!("Connection refused")),
            "{}",
            found.report
        );
        assert!(found.report["ports"][0]["connect_ms"].is_number() && found.report["ports"][0].get("icmp").is_none());
    }
}

#[tokio::test]
async fn a_port_whose_backlog_is_full_looks_filtered() {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let (_first, _second) =
        (std::net::TcpStream::connect(address).unwrap(), std::net::TcpStream::connect_timeout(&address, Duration::from_millis(100)));
    let found = finds(&open_node(&[]), "tcp", "127.0.0.1", json!({"port": address.port(), "timeout": 0.2})).await;
    assert_eq!(found.report["ports"][0]["state"], "filtered", "{}", found.report);
    assert!(found.report["ports"][0].get("connect_ms").is_none() && found.output.contains("timed out"), "{}", found.output);
}

#[tokio::test]
async fn names_are_resolved_by_the_servers_that_the_operator_set() {
    let server = DnsServer::start().await;
    let context = open_node(&[server.address]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let found = finds(&context, "tcp", "local.test", json!({"port": port})).await;
    assert_eq!((&found.report["ports"][0]["state"], &found.report["address"]), (&json!("open"), &json!("127.0.0.1")), "{}", found.report);
    assert!(found.report["resolve_ms"].is_number());
    fails(run(&context, "tcp", "nowhere.test", json!({})).await, FailureKind::Unresolved, "NXDOMAIN");
    for (name, family, address) in
        [("localhost", "prefer_6", "::1"), ("localhost", "prefer_4", "127.0.0.1"), ("local.test", "prefer_6", "127.0.0.1")]
    {
        let report = finds(&context, "tcp", name, json!({"family": family, "port": 1})).await.report;
        assert_eq!((&report["address"], &report["ports"][0]["state"]), (&json!(address), &json!("refused")), "{name} {family}");
    }
    fails(run(&context, "tcp", "local.test", json!({"family": "6"})).await, FailureKind::Unresolved, "has no IPv6 address, only 127.0.0.1");
    // One of its addresses is forbidden: the other is used, and nothing else.
    fails(
        run(&context, "tcp", "metadata.test", json!({})).await,
        FailureKind::Denied,
        "metadata.test (169.254.169.254): this node's policy: a link-local",
    );
    let mixed = finds(&context, "tcp", "mixed.test", json!({"port": port})).await;
    assert_eq!(mixed.report["address"], "127.0.0.1");
}

#[tokio::test]
async fn dns_asks_the_named_server_and_reports_every_section() {
    let server = DnsServer::start().await;
    let resolver = json!({"resolver": "127.0.0.1", "port": server.address.port()});
    let found = finds(&open_node(&[]), "dns", "local.test", resolver.clone()).await;
    let report = &found.report;
    assert_eq!(
        (&report["rcode"]["name"], &report["transport"], &report["answered"]),
        (&json!("NOERROR"), &json!("udp"), &json!(true)),
        "{report}"
    );
    assert_eq!(report["answer"], json!([{"name": "local.test.", "ttl_s": 60, "class": "IN", "type": "A", "value": "127.0.0.1"}]));
    assert_eq!((&report["server"]["address"], &report["flags"]["ra"]), (&json!("127.0.0.1"), &json!(true)));
    assert!(report["size_bytes"].as_u64().unwrap() > 12 && report["timings"]["query_ms"].is_number());
    assert!(
        found.output.contains("local.test.\t\t60\tIN\tA\t127.0.0.1\n") && found.output.contains(";; SERVER: 127.0.0.1#"),
        "{}",
        found.output
    );
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_a_finding() {
    let server = DnsServer::start().await;
    let found = finds(&open_node(&[server.address]), "dns", "nowhere.test", json!({"type": "AAAA"})).await;
    assert_eq!(found.report["rcode"], json!({"code": 3, "name": "NXDOMAIN"}));
    assert_eq!(found.report["authority"][0]["type"], "SOA");
    assert!(found.output.contains("status: NXDOMAIN"), "{}", found.output);
}

#[tokio::test]
async fn an_answer_that_does_not_fit_is_fetched_over_tcp() {
    let server = DnsServer::start().await;
    let context = open_node(&[server.address]);
    let found = finds(&context, "dns", "large.test", json!({"type": "TXT"})).await;
    let results: Vec<&Value> = found.report["attempts"].as_array().unwrap().iter().map(|attempt| &attempt["result"]).collect();
    assert_eq!(results, ["truncated", "answered"], "{}", found.report);
    assert_eq!((&found.report["transport"], found.report["answer"].as_array().unwrap().len()), (&json!("tcp"), 20));
    assert!(found.report["timings"]["connect_ms"].is_number());
    assert!(found.output.starts_with(";; Truncated, retrying in TCP mode.\n"), "{}", found.output);
    let straight = finds(&context, "dns", "large.test", json!({"type": "TXT", "protocol": "tcp"})).await;
    assert_eq!(straight.report["attempts"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn several_resolvers_are_asked_at_once_and_compared() {
    // The same port for both, on an address for each.
    let (one, other) = DnsServer::start_twice().await;
    let port = one.address.port();
    let context = open_node(&[]);
    let parameters = |with: Value| json!({"resolver": "127.0.0.1", "port": port, "timeout": 0.2, "tries": 1, "compare_with": with});
    let found = finds(&context, "dns", "local.test", parameters(json!(["127.0.0.2", "127.0.0.3"]))).await;
    let comparison = &found.report["comparison"];
    assert_eq!(comparison["agreed"], false, "{comparison}");
    assert_eq!(
        comparison["groups"][0],
        json!({"resolvers": ["127.0.0.1", "127.0.0.2"], "rcode": "NOERROR", "records": ["local.test. A 127.0.0.1"]})
    );
    assert_eq!(
        (&comparison["groups"][1]["rcode"], &comparison["answers"][2]["attempts"][0]["result"]),
        (&json!("no answer"), &json!("refused"))
    );
    assert_eq!(found.report["server"]["address"], "127.0.0.1");
    assert!(
        found.output.contains(";; SERVER: 127.0.0.2#") && found.output.contains(";; COMPARISON: 2 different answers from 3 resolvers\n"),
        "{}",
        found.output
    );
    assert_eq!(finds(&context, "dns", "local.test", parameters(json!(["127.0.0.2"]))).await.report["comparison"]["agreed"], true);
    drop(other);
}

#[tokio::test]
async fn a_comparison_cut_short_leaves_the_attempts_of_all() {
    let server = DnsServer::start().await;
    let (context, (live, mut news)) = (open_node(&[]), Live::heard());
    let parameters =
        json!({"resolver": "127.0.0.1", "port": server.address.port(), "timeout": 0.1, "tries": 5, "compare_with": ["127.0.0.2"]});
    // Nobody listens at the other.
    let one_timeout = async { while news.recv().await.is_some_and(|news| news.progress["result"] != "timeout") {} };
    tokio::select! {
        _ = execute(&context, spec("dns", "silent.test", parameters), &live) => panic!("five attempts take half a second"),
        () = one_timeout => {}
    }
    let report = live.taken().unwrap().report;
    assert_eq!(
        (&report["attempts"][0]["result"], report["comparison"]["answers"].as_array().unwrap().len()),
        (&json!("timeout"), 2),
        "{report}"
    );
}

#[tokio::test]
async fn the_way_of_speaking_icmp_is_told_and_is_what_this_user_may() {
    // A group of the range may have datagram sockets; who may not needs the capability for raw ones (icmp(7), capabilities(7)).
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ping_group_range").unwrap();
    let range: Vec<u32> = range.split_whitespace().map(|end| end.parse().unwrap()).collect();
    let groups: Vec<u32> =
        nix::unistd::getgroups().unwrap().into_iter().chain([nix::unistd::getegid()]).map(nix::unistd::Gid::as_raw).collect();
    let expected = if groups.iter().any(|group| (range[0]..=range[1]).contains(group)) { "icmp_datagram" } else { "icmp_raw" };
    let context = open_node(&[]);
    for (tool, parameters) in
        [("ping", json!({"count": 1})), ("traceroute", json!({"protocol": "icmp"})), ("mtr", json!({"protocol": "icmp", "rounds": 1}))]
    {
        let found = finds(&context, tool, "127.0.0.1", parameters).await;
        assert_eq!(found.report["method"], expected, "{tool}: {}", found.report);
    }
}

#[tokio::test]
async fn a_server_that_is_silent_closed_or_forging_gives_no_answer() {
    let server = DnsServer::start().await;
    let context = open_node(&[server.address]);
    let silent = finds(&context, "dns", "silent.test", json!({"timeout": 0.1, "tries": 2})).await;
    let results: Vec<&Value> = silent.report["attempts"].as_array().unwrap().iter().map(|attempt| &attempt["result"]).collect();
    assert_eq!((results, &silent.report["answered"]), (vec![&json!("timeout"), &json!("timeout")], &json!(false)));
    assert!(silent.report.get("rcode").is_none() && silent.output.ends_with(";; no servers could be reached\n"), "{}", silent.output);
    // Somebody else's answer, under another number, is not taken for ours.
    let forged = finds(&context, "dns", "forged.test", json!({"timeout": 0.1, "tries": 1})).await;
    assert_eq!(forged.report["attempts"][0]["result"], "timeout", "{}", forged.report);
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refused = finds(&open_node(&[closed]), "dns", "a.test", json!({"tries": 1})).await;
    assert_eq!(refused.report["attempts"][0]["result"], "refused", "{}", refused.report);
}

#[tokio::test]
async fn what_dns_tells_is_what_it_prints_first() {
    let server = DnsServer::start().await;
    for (name, protocol) in [("silent.test", "udp"), ("large.test", "udp"), ("192.0.2.7", "tcp")] {
        let (live, mut heard) = Live::heard();
        let port = if protocol == "tcp" { 1 } else { server.address.port() };
        let parameters = json!({"resolver": "127.0.0.1", "port": port, "protocol": protocol, "timeout": 0.1});
        let mut spec = spec("dns", name, parameters);
        if let Spec::Dns { options, .. } = &mut spec
            && name == "large.test"
        {
            options.kind = Some("TXT".parse().unwrap());
        }
        let found = execute(&open_node(&[]), spec, &live).await.unwrap();
        drop(live);
        let told: String = std::iter::from_fn(|| heard.try_recv()).map(|news| news.output).collect();
        assert!(!told.is_empty() && found.output.starts_with(&told), "told:\n{told}\nprinted:\n{}", found.output);
    }
}

#[tokio::test]
async fn a_run_that_is_dropped_lets_its_connections_go() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (context, live) = (open_node(&[]), Live::default());
    for protocol in ["tcp", "tls", "https"] {
        let parameters =
            json!({"resolver": "127.0.0.1", "port": listener.local_addr().unwrap().port(), "protocol": protocol, "timeout": 30});
        let mut bytes = [0; 1024];
        let mut stream = tokio::select! {
            _ = execute(&context, spec("dns", "a.test", parameters), &live) => panic!("nobody answered"),
            stream = async {
                let mut stream = listener.accept().await.unwrap().0;
                assert!(stream.read(&mut bytes).await.unwrap() > 0);
                stream
            } => stream,
        };
        while stream.read(&mut bytes).await.is_ok_and(|length| length > 0) {}
    }
}

#[test]
fn defaults_of_every_tool_are_understood_by_its_executor() {
    for tool in ToolName::ALL {
        assert!(Spec::parse(*tool, tool.example_target(), Map::new()).is_ok(), "{tool}");
    }
}
