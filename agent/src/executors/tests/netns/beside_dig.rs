//! `dns` beside dig(1), on a BIND of our own.

use std::process::Stdio;

use hickory_proto::op::{Edns, Message, MessageType};
use hickory_proto::rr::rdata::opt::EdnsOption;
use serde_json::{Value, json};

use super::network::Network;
use super::server::{Folder, Server, await_start};
use super::{Found, ours, theirs};

const SERVER: &str = "10.9.1.2";
const SERVER_V6: &str = "fd09:1::2";

/// Odd records of every kind, one a line: owner, class, type, data.
const ZONE: &str = include_str!("zone.txt");

const CONFIGURATION: &str = r#"
options { directory "FOLDER"; pid-file none; session-keyfile none; listen-on { any; }; listen-on-v6 { any; }; recursion no;
          dnssec-validation no; server-id "here"; minimal-responses no; max-udp-size 1232; };
controls { };
zone "odd.test" { type primary; file "zone"; check-names ignore; check-mx ignore; };
zone "2.0.192.in-addr.arpa" { type primary; file "reverse"; };
"#;

const REVERSE: &str = "$TTL 60\n@ IN SOA ns.odd.test. host.odd.test. 1 2 3 4 5\n@ IN NS ns.odd.test.\n1 IN PTR one.odd.test.\n";

/// A running BIND.
struct Bind {
    _server: Server,
    _folder: Folder,
}

impl Bind {
    fn start(network: &Network) -> Self {
        let folder = Folder::new();
        folder.write("zone", ZONE);
        folder.write("reverse", REVERSE);
        let configuration = folder.write("named.conf", &CONFIGURATION.replace("FOLDER", &folder.path(".")));
        let log = std::fs::File::create(folder.join("log")).unwrap();
        let mut command = network.host_command("named");
        command.args(["-g", "-c", &configuration]).stdin(Stdio::null()).stderr(log);
        let server = Server::start(&mut command, "bind9");
        await_start(
            || theirs(network, "dig", &["+short", "+tries=1", "+time=1", "@10.9.1.2", "a.odd.test"]).contains("192.0.2.1"),
            || folder.read("log"),
        );
        Self { _server: server, _folder: folder }
    }
}

/// Without what differs between two runs, and without the lines by which dig introduces itself; dig may say more than once that it gives up.
fn comparable(text: &str) -> String {
    let line = |line: &str| {
        let before_number = line.split_once(", id: ").map_or(line, |(before, _)| before);
        let varies = [";; Query time:", ";; WHEN:"].into_iter().find(|start| line.starts_with(start));
        varies.unwrap_or(before_number).to_owned()
    };
    let introductions = ["; <<>> DiG", ";; global options", "; (1 server found)"];
    let mut lines: Vec<String> = text.lines().filter(|text| !introductions.iter().any(|start| text.starts_with(start))).map(line).collect();
    if let Some(given_up) = lines.last().filter(|line| *line == ";; no servers could be reached").cloned() {
        lines.retain(|line| !line.is_empty() && *line != given_up);
        lines.push(given_up);
    }
    // The introduction begins with a blank line, and a server may turn the records of a set.
    if let Some(header) = lines.iter().position(|line| line == ";; Got answer:") {
        lines.retain({
            let mut number = 0;
            move |line| {
                number += 1;
                number > header || !line.is_empty()
            }
        });
    }
    lines.chunk_by_mut(|one, next| is_record(one) && is_record(next)).for_each(<[String]>::sort);
    lines.join("\n").trim().to_owned()
}

fn is_record(line: &str) -> bool {
    !line.is_empty() && !line.starts_with(';')
}

#[track_caller]
fn same(network: &Network, name: &str, dig: &[&str], mut parameters: Value) -> Found {
    let server = parameters["resolver"].as_str().unwrap_or(SERVER).to_owned();
    let at = format!("@{server}");
    parameters["resolver"] = json!(server);
    let real = theirs(network, "dig", &[&["+nocookie", "+noidnout", "+time=1", "+tries=2", &at], dig].concat());
    let found = ours(network, "dns", name, parameters);
    let (ours, theirs) = (comparable(&found.output), comparable(&real));
    let different: Vec<String> = theirs
        .lines()
        .zip(ours.lines())
        .filter(|(theirs, ours)| theirs != ours)
        .map(|(theirs, ours)| format!("dig:  {theirs}\nours: {ours}"))
        .collect();
    if theirs != ours {
        DIFFERENT.with_borrow_mut(|all| all.push(format!("=== {name} {dig:?}\n{}", different.join("\n"))));
    }
    found
}

thread_local! {
    static DIFFERENT: std::cell::RefCell<Vec<String>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Fails with every difference that was found.
#[track_caller]
fn none_different() {
    let all = DIFFERENT.take();
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn every_kind_of_record_prints_as_dig_prints_it() {
    let network = Network::new();
    let _bind = Bind::start(&network);
    let records: Vec<Vec<&str>> = ZONE.lines().skip(4).map(|line| line.split_whitespace().collect()).collect();
    assert!(records.len() > 60, "{}", records.len());
    for words in records {
        let [owner, "IN", kind, ..] = words.as_slice() else { panic!("{words:?}") };
        let name = format!("{owner}.odd.test");
        same(&network, &name, &[&name, kind], json!({"type": kind}));
    }
    none_different();
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn every_section_flag_and_transport_prints_as_dig_prints_it() {
    let network = Network::new();
    let _bind = Bind::start(&network);
    let base = || json!({});
    same(&network, "nowhere.odd.test", &["nowhere.odd.test"], base());
    same(&network, "a.odd.test", &["a.odd.test", "MX"], json!({"type": "MX"}));
    same(&network, "x.sub.odd.test", &["x.sub.odd.test"], base());
    same(&network, "example.com", &["example.com"], base());
    same(&network, "odd.test", &["odd.test", "NS"], json!({"type": "NS"}));
    same(&network, "odd.test", &["odd.test", "SOA", "+norecurse"], json!({"type": "SOA", "recursion": false}));
    same(&network, "a.odd.test", &["a.odd.test", "+noedns"], json!({"edns": false}));
    same(&network, "a.odd.test", &["a.odd.test", "+dnssec"], json!({"dnssec": true}));
    same(&network, "a.odd.test", &["a.odd.test", "+bufsize=4096"], json!({"edns_bytes": 4096}));
    same(&network, "a.odd.test", &["a.odd.test", "+nsid"], json!({"nsid": true}));
    for subnet in ["192.0.2.77/24", "10.128.0.0/9", "2001:db8::/56", "0.0.0.0/0"] {
        same(&network, "a.odd.test", &["a.odd.test", &format!("+subnet={subnet}")], json!({"client_subnet": subnet}));
    }
    same(&network, "large.odd.test", &["large.odd.test", "TXT", "+ignore"], json!({"type": "TXT", "tcp_fallback": false}));
    same(&network, "a.odd.test", &["a.odd.test", "+cdflag"], json!({"checking_disabled": true}));
    same(&network, "version.bind", &["version.bind", "CH", "TXT"], json!({"type": "TXT", "class": "CH"}));
    same(&network, "a.odd.test", &["a.odd.test", "+tcp"], json!({"protocol": "tcp"}));
    same(&network, "a.odd.test", &["a.odd.test"], json!({"resolver": SERVER_V6}));
    same(&network, "192.0.2.1", &["-x", "192.0.2.1"], base());
    same(&network, "a.odd.test", &["a.odd.test", "TYPE65534"], json!({"type": "TYPE65534"}));
    same(&network, "a.odd.test", &["a.odd.test", "TYPE65534"], json!({"type": 65_534}));
    same(&network, "any.odd.test", &["any.odd.test", "ANY"], json!({"type": "ANY", "protocol": "tcp"}));
    same(&network, "b\u{fc}cher.odd.test", &["xn--bcher-kva.odd.test"], base());
    same(&network, "*.wild.odd.test", &["*.wild.odd.test"], base());
    same(&network, ".", &[".", "NS"], json!({"type": "NS"}));
    let large = same(&network, "large.odd.test", &["large.odd.test", "TXT"], json!({"type": "TXT"}));
    let results: Vec<&str> =
        large.report["attempts"].as_array().unwrap().iter().map(|attempt| attempt["result"].as_str().unwrap()).collect();
    assert_eq!((results, &large.report["transport"]), (vec!["truncated", "answered"], &json!("tcp")));
    none_different();
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn servers_that_do_not_answer_print_as_dig_prints_them() {
    let network = Network::new();
    network.host_filter("udp dport 5300 drop");
    network.host_filter("tcp dport 5300 drop");
    network.host_filter("meta l4proto { tcp, udp } th dport 5301 reject with icmpx type admin-prohibited");
    for (port, transport) in [(5300, "udp"), (5300, "tcp"), (5301, "udp"), (5301, "tcp"), (5302, "udp"), (5302, "tcp")] {
        let port_text = port.to_string();
        let tcp = if transport == "tcp" { "+tcp" } else { "+notcp" };
        let arguments = ["-p", &port_text, tcp, "a.odd.test"];
        same(&network, "a.odd.test", &arguments, json!({"port": port, "protocol": transport, "timeout": 1}));
    }
    same(&network, "a.odd.test", &["a.odd.test"], json!({"resolver": "192.0.2.53", "timeout": 1}));
    // dig asks port 53 when it is told 0; we ask what we are told, and it is a finding.
    let found = ours(&network, "dns", "a.odd.test", json!({"resolver": SERVER, "port": 0, "tries": 1, "timeout": 1}));
    assert_eq!(found.report["answered"], false, "{}", found.report);
    none_different();
}

/// Answers everything, with these options of EDNS and no records, until the test ends.
fn answer_with_options(network: &Network, options: &'static [(u16, &'static [u8])]) {
    let socket = network.in_host(|| std::net::UdpSocket::bind((SERVER, 5305)).unwrap());
    std::thread::spawn(move || {
        let mut bytes = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut bytes) {
            let mut message = Message::from_vec(&bytes[..length]).unwrap();
            message.metadata.message_type = MessageType::Response;
            let mut edns = Edns::new();
            for (code, data) in options {
                edns.options_mut().insert(EdnsOption::Unknown(*code, data.to_vec()));
            }
            message.set_edns(edns);
            socket.send_to(&message.to_vec().unwrap(), from).unwrap();
        }
    });
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn every_option_of_edns_prints_as_dig_prints_it() {
    let network = Network::new();
    answer_with_options(
        &network,
        &[
            (3, b"ns\x01"),
            (8, &[0, 1, 24, 16, 192, 0, 2]),
            (8, &[0, 2, 56, 48, 0x20, 1, 0xd, 0xb8, 0, 0, 0]),
            (11, &[1, 44]),
            (12, &[0; 7]),
            (15, &[0, 22, b'n', b'o']),
            (15, &[0, 18]),
            (15, &[1, 0]),
            (65_001, b"\x07x"),
            (65_002, b""),
        ],
    );
    let found = same(&network, "a.odd.test", &["-p", "5305", "+norecurse", "a.odd.test"], json!({"port": 5305, "recursion": false}));
    assert_eq!(found.report["edns"]["options"].as_array().unwrap().len(), 10, "{}", found.report);
    none_different();
}
