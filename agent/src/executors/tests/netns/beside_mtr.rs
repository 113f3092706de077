//! `mtr` beside mtr(8): the same hops, as many packets, the same verdict on loss.

use std::fs::File;
use std::net::TcpListener;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::{Context, Live, execute, policy, spec, without_rtts};
use super::path::Path;
use super::router::{Router, with_labels};
use super::server::{Folder, Server, await_start};
use super::{Found, node, on, to_its_end};

/// A hop as both print it: its number, who answered, the loss, how many were sent.
type Line = (String, String, f64, u64);

fn ours(path: &Path, target: &str, parameters: Value) -> Found {
    on(path, "mtr", target, parameters)
}

fn theirs(path: &Path, arguments: &[&str]) -> String {
    // It waits for late answers as long as it is told to, five seconds otherwise.
    let output = path.node_command("mtr").args(["-r", "-n", "-i", "0.2", "-G", "1"]).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("mtr: {error}; apt-get install mtr-tiny"));
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn lines(text: &str) -> Vec<Line> {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let hop = words.first().filter(|word| word.ends_with("|--"))?.to_string();
        let loss = words.get(2)?.trim_end_matches('%').parse().ok()?;
        Some((hop, words.get(1)?.to_string(), loss, words.get(3)?.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

#[track_caller]
fn same(path: &Path, target: &str, parameters: Value, arguments: &[&str]) -> Found {
    let mut all = arguments.to_vec();
    all.push(target);
    let (real, found) = (theirs(path, &all), ours(path, target, parameters));
    assert_eq!(lines(&found.output), lines(&real), "mtr said:\n{real}\nwe said:\n{}", found.output);
    // The numbers stand in the same columns.
    let width = |text: &str| text.lines().skip(1).map(|line| line.trim_end().len()).collect::<Vec<_>>();
    assert_eq!(width(&found.output), width(&real).iter().map(|width| (*width).max(76)).collect::<Vec<_>>(), "{real}\n{}", found.output);
    found
}

fn losses(found: &Found) -> Vec<(f64, bool)> {
    let hops = found.report["hops"].as_array().unwrap();
    hops.iter().map(|hop| (hop["loss_pct"].as_f64().unwrap(), hop["limited"] == true)).collect()
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn every_hop_is_watched_by_every_protocol_in_both_families() {
    let path = Path::new(4);
    path.silence(2);
    let listener = path.at(5, || TcpListener::bind("[::]:80").unwrap());
    for target in [path.host(), path.host_v6()] {
        for (protocol, flags) in [("icmp", vec![]), ("udp", vec!["-u"]), ("tcp", vec!["-T", "-P", "80"])] {
            let parameters = json!({"protocol": protocol, "rounds": 4, "interval_ms": 200, "timeout": 1});
            let found = same(&path, &target, parameters, &[&["-c", "4"], flags.as_slice()].concat());
            assert_eq!(
                (&found.report["end"], &found.report["loss_pct"], &found.report["rounds"]),
                (&json!("reached"), &json!(0.0), &json!(4))
            );
            assert_eq!(losses(&found), [(0.0, false), (100.0, true), (0.0, false), (0.0, false), (0.0, false)]);
            let hop = &found.report["hops"][3];
            let order = ["best_ms", "avg_ms", "worst_ms"].map(|field| hop[field].as_f64().unwrap());
            assert!(
                order.is_sorted() && hop["last_ms"].is_number() && hop["stdev_ms"].is_number() && hop["jitter_ms"].is_number(),
                "{hop}"
            );
        }
    }
    drop(listener);
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn loss_on_a_link_is_missing_at_all_hops_behind_it_and_a_limited_router_loses_nothing() {
    let path = Path::new(4);
    // Every second packet to the host itself is lost before the last link.
    path.filter(4, "forward", "ip daddr 10.8.4.2 icmp type echo-request ip ttl 1 numgen inc mod 2 0 drop");
    let parameters = |rounds: u64| json!({"rounds": rounds, "interval_ms": 200, "timeout": 1});
    let found = same(&path, &path.host(), parameters(6), &["-c", "6"]);
    assert_eq!(losses(&found), [(0.0, false), (0.0, false), (0.0, false), (0.0, false), (50.0, false)]);
    assert_eq!(found.report["loss_pct"], 50.0);
    let lost = found.report["hops"][4]["rtts_ms"].as_array().unwrap().iter().map(Value::is_null).collect::<Vec<_>>();
    assert_eq!(lost, [true, false, true, false, true, false], "{}", found.report);
    // Asked five times a second, router 2 answers six times and then once a second.
    path.limit(2);
    let found = ours(&path, &path.host(), parameters(20));
    let real = theirs(&path, &["-c", "20", &path.host()]);
    let loss_of = |text: &str, hop: usize| lines(text)[hop].2;
    for text in [&found.output, &real] {
        assert!((25.0..=90.0).contains(&loss_of(text, 1)), "a limited router: {text}");
        assert!([0, 2, 3].iter().all(|hop| loss_of(text, *hop) == 0.0), "{text}");
        assert!((loss_of(text, 4) - 50.0).abs() < 0.1, "{text}");
    }
    assert_eq!(losses(&found).iter().map(|(_, limited)| *limited).collect::<Vec<_>>(), [false, true, false, false, false]);
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_path_that_is_refused_or_falls_silent_ends_where_mtr_ends_it() {
    let path = Path::new(3);
    for target in ["10.8.201.1", "10.8.203.1", "fd08:201::1"] {
        let found = same(&path, target, json!({"rounds": 3, "interval_ms": 200, "timeout": 1}), &["-c", "3"]);
        assert_eq!((&found.report["end"], found.report.get("loss_pct")), (&json!("unreachable"), None), "{}", found.report);
        assert!(found.report["hops"][3]["icmp"]["meaning"].is_string(), "{}", found.report);
    }
    let found = ours(&path, "10.8.204.1", json!({"rounds": 3, "interval_ms": 200, "timeout": 0.3}));
    let real = theirs(&path, &["-c", "3", "10.8.204.1"]);
    assert_eq!(found.report["end"], "silent", "{}", found.report);
    assert_eq!(lines(&found.output)[..4], lines(&real)[..4], "three that answer and one that does not: {real}\n{}", found.output);
    assert!(losses(&found).iter().all(|(_, limited)| !limited), "nobody behind answers: {}", found.report);
}

/// A name server on the node, with a zone of origins by two names: the one that mtr(8) asks for, and one of our own.
fn origins(path: &Path) -> (Server, Folder) {
    let folder = Folder::new();
    let text = |name: &str, origins: &str| format!("{name} TXT \"{origins} | ZZ | other | 2026-01-01\"\n");
    let nibbles = |link: u8| format!("{}{link}.0.0.0.8.0.d.f.origin6", "0.".repeat(8));
    let records = [
        text("2.1.8.10.origin", "64500 | 10.8.1.0/24"),
        text("2.2.8.10.origin", "64501 | 10.8.2.0/24"),
        // The first is all that mtr(8) reads.
        text("2.3.8.10.origin", "64502 | 10.8.3.0/24"),
        text("2.3.8.10.origin", "64600 | 10.8.0.0/16"),
        text(&nibbles(1), "64500 | fd08:1::/32"),
        text(&nibbles(2), "4200000001 64501 | fd08:2::/32"),
        text(&nibbles(3), "64502 | fd08:3::/32"),
    ];
    folder.write("zone", &format!("$TTL 300\n@ SOA ns1 host 1 3600 900 604800 60\n@ NS ns1\nns1 A 10.8.0.1\n{}", records.concat()));
    let zones = ["asn.cymru.com", "asn.test"].map(|zone| format!("zone \"{zone}\" {{ type primary; file \"zone\"; }};\n")).concat();
    folder.write(
        "named.conf",
        &format!(
            "options {{ directory \"{}\"; pid-file none; session-keyfile none; listen-on {{ 10.8.0.1; }}; listen-on-v6 {{ none; }};\n\
             recursion no; dnssec-validation no; rrset-order {{ order none; }}; querylog yes; }};\ncontrols {{ }};\n{zones}",
            folder.path(".")
        ),
    );
    path.node_etc("resolv.conf", "nameserver 10.8.0.1\n");
    let log = File::create(folder.join("log")).unwrap();
    let mut command = path.node_command("named");
    let server = Server::start(command.current_dir(&folder).args(["-g", "-c", "named.conf"]).stdin(Stdio::null()).stderr(log), "bind9");
    let answer =
        || path.node_command("dig").args(["+short", "+tries=1", "+time=1", "@10.8.0.1", "asn.test", "NS"]).output().unwrap().stdout;
    await_start(|| answer().starts_with(b"ns1.asn.test."), || folder.read("log"));
    (server, folder)
}

fn node_asking(server: &str, zone: Option<&str>) -> Context {
    Context::new(policy("allow_loopback = true"), &[server.parse().unwrap()]).unwrap().with_asn_zone(zone)
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn who_announces_a_hop_is_told_as_mtr_tells_it() {
    let path = Path::new(3);
    let (server, folder) = origins(&path);
    let watch = json!({"asn": true, "rounds": 2, "interval_ms": 200, "timeout": 1});
    let ask = |target: &str, zone| path.at(0, to_its_end(move || node_asking("10.8.0.1:53", zone), "mtr", target, watch.clone()));
    let unasked = ask(&path.host(), None);
    assert!(unasked.output.contains("  2. AS???    10.8.1.2 ") && unasked.report["hops"][1]["addresses"][0].get("asn").is_none());
    assert!(!folder.read("log").contains("origin.asn.cymru.com"), "a stranger was asked about private addresses: {}", folder.read("log"));
    let (found, real) = (ask(&path.host(), Some("asn.test")), theirs(&path, &["-z", "-c", "2", &path.host()]));
    assert!(folder.read("log").contains("origin.asn.cymru.com"), "mtr asks him: {}", folder.read("log"));
    // As far as the loss; the times differ.
    let hops = |text: &str| text.lines().skip(2).map(|line| line.split('%').next().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(hops(&found.output), hops(&real), "{real}\n{}", found.output);
    let asn =
        |found: &Found| found.report["hops"].as_array().unwrap().iter().map(|hop| hop["addresses"][0]["asn"].clone()).collect::<Vec<_>>();
    assert_eq!(asn(&found), [Value::Null, json!([64500]), json!([64501]), json!([64502])]);
    // Two long numbers run into the address in mtr(8).
    let (found, real) = (ask(&path.host_v6(), Some("asn.test")), theirs(&path, &["-z", "-c", "2", &path.host_v6()]));
    let words = |text: &str| hops(text).iter().map(|hop| hop.split_whitespace().collect::<String>()).collect::<Vec<_>>();
    assert_eq!(words(&found.output), words(&real), "{real}\n{}", found.output);
    assert!(found.output.contains("\n  3. AS4200000001 64501 fd08:2::2 "), "{}", found.output);
    assert_eq!(asn(&found), [Value::Null, json!([64500]), json!([4_200_000_001_u32, 64501]), json!([64502])]);
    drop((server, folder));
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn origins_are_told_with_the_hops_and_a_zone_that_is_silent_costs_nothing_but_them() {
    let path = Path::new(3);
    let (server, folder) = origins(&path);
    let run = |tool: &str, resolver: &'static str, parameters: Value| {
        let spec = spec(tool, &path.host(), parameters);
        path.at(0, move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let (live, mut heard) = Live::heard();
            let began = Instant::now();
            let found = runtime.block_on(async { execute(&node_asking(resolver, Some("asn.test")), spec, &live).await.unwrap() });
            drop(live);
            (found, std::iter::from_fn(|| heard.try_recv()).map(|news| news.progress).collect::<Vec<_>>(), began.elapsed())
        })
    };
    let (found, told, _) = run("traceroute", "10.8.0.1:53", json!({"asn": true}));
    assert_eq!(found.report["hops"][2]["origins"], json!([{"address": "10.8.2.2", "asn": [64501]}]), "{}", found.report);
    assert!(found.output.contains(" 1  10.8.0.2 [*]  ") && found.output.contains(" 3  10.8.2.2 [AS64501]  "), "{}", found.output);
    let hops: Vec<&Value> = told.iter().filter(|progress| progress["type"] == "hop").map(|hop| &hop["origins"]).collect();
    assert_eq!(hops, found.report["hops"].as_array().unwrap().iter().map(|hop| &hop["origins"]).collect::<Vec<_>>());
    let (found, told, _) = run("mtr", "10.8.0.1:53", json!({"asn": true, "rounds": 3, "interval_ms": 300}));
    assert_eq!(told[1]["hops"][1]["addresses"][0]["asn"], json!([64500]), "known by the end of the first round: {told:?}");
    assert_eq!(told.last().unwrap()["hops"], without_rtts(&found.report["hops"]));
    let (found, _, took) = run("traceroute", "10.8.204.1:53", json!({"asn": true, "names": true}));
    assert_eq!((&found.report["end"], found.report["hops"].as_array().unwrap().len()), (&json!("reached"), 4), "{}", found.report);
    assert!(found.output.contains(" 3  10.8.2.2 (10.8.2.2) [*]  ") && took < Duration::from_secs(5), "{took:?} {}", found.output);
    drop((server, folder));
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_target_that_comes_nearer_ends_the_path_earlier() {
    let path = Path::new(3);
    let target = path.host();
    let path_taken = std::thread::scope(|scope| {
        let watching = scope.spawn(|| ours(&path, &target, json!({"rounds": 8, "interval_ms": 300, "timeout": 1})));
        std::thread::sleep(Duration::from_millis(1_000));
        // Router 2 answers in the host's place from now on.
        path.take_over(2);
        watching.join().unwrap()
    });
    assert_eq!(
        (&path_taken.report["end"], path_taken.report["hops"].as_array().unwrap().len()),
        (&json!("reached"), 2),
        "{}",
        path_taken.output
    );
    let addresses: Vec<&str> =
        path_taken.report["hops"][1]["addresses"].as_array().unwrap().iter().map(|known| known["address"].as_str().unwrap()).collect();
    assert_eq!(addresses, ["10.8.1.2", "10.8.3.2"]);
    assert_eq!((&path_taken.report["hops"][1]["sent"], &path_taken.report["hops"][1]["loss_pct"]), (&json!(8), &json!(0.0)));
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn equal_paths_are_shown_by_several_flows() {
    let path = Path::with_twin(3);
    let found = ours(&path, &path.host(), json!({"protocol": "udp", "rounds": 16, "flows": 16, "interval_ms": 200, "timeout": 1}));
    let hop = &found.report["hops"][1];
    let addresses = hop["addresses"].as_array().unwrap();
    let received: u64 = addresses.iter().map(|address| address["received"].as_u64().unwrap()).sum();
    assert_eq!((addresses.len(), received, &hop["sent"]), (2, 16, &json!(16)), "{hop}");
    let real = theirs(&path, &["-u", "-c", "16", &path.host()]);
    let others =
        |text: &str| text.lines().filter_map(|line| line.split_once("10.8.")).map(|(before, _)| before.to_owned()).collect::<Vec<_>>();
    assert_eq!(others(&found.output), others(&real), "{real}\n{}", found.output);
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn the_labels_of_a_router_are_shown() {
    let path = Path::new(3);
    let router = Router::start(&path, 2, with_labels);
    let found = ours(&path, &path.host(), json!({"rounds": 2, "interval_ms": 200, "timeout": 1}));
    assert_eq!(found.report["hops"][1]["addresses"][0]["mpls"][1]["label"], 25600, "{}", found.report);
    // mtr(8) has these words for them, though in a report only where a hop has several addresses.
    assert!(
        found.output.contains("\n       [MPLS: Lbl 24001 TC 1 S 0 TTL 1]\n       [MPLS: Lbl 25600 TC 0 S 1 TTL 2]\n"),
        "{}",
        found.output
    );
    drop(router);
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_router_that_quotes_little_is_counted_all_the_same() {
    let path = Path::new(3);
    let shortly = |dropped: &[u8]| {
        std::thread::sleep(Duration::from_millis(5));
        [&[0; 4], &dropped[..28]].concat()
    };
    let routers = [Router::start(&path, 1, shortly), Router::start(&path, 2, shortly)];
    let found = ours(&path, &path.host(), json!({"protocol": "udp", "rounds": 5, "interval_ms": 200, "timeout": 1}));
    assert_eq!(losses(&found), [(0.0, false); 4], "{}", found.output);
    assert_eq!(found.report["flow"], "per_probe");
    drop(routers);
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn each_round_is_told_when_it_is_over() {
    let path = Path::new(2);
    let target = path.host();
    let (found, news) = path.at(0, move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let (live, mut news) = Live::heard();
            let found = execute(&node(), spec("mtr", &target, json!({"rounds": 4, "interval_ms": 200})), &live).await.unwrap();
            drop(live);
            let mut told = Vec::new();
            while let Some(news) = news.recv().await {
                told.push(news.progress);
            }
            (found, told)
        })
    });
    assert_eq!(news[0]["type"], "resolved");
    let sent: Vec<(u64, u64)> =
        news[1..].iter().map(|round| (round["round"].as_u64().unwrap(), round["hops"][2]["sent"].as_u64().unwrap())).collect();
    assert_eq!(sent, [(1, 1), (2, 2), (3, 3), (4, 4)]);
    assert_eq!(news[4]["hops"], without_rtts(&found.report["hops"]));
    assert!(found.report["hops"].as_array().unwrap().iter().all(|hop| hop["rtts_ms"].as_array().unwrap().len() == 4), "{}", found.report);
}
