//! `whois` beside Debian's whois: the same words from the same servers.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use serde_json::json;

use super::network::Network;
use super::{ours, theirs};

const REGISTRY: [&str; 2] = ["10.9.1.2", "fd09:1::2"];
const REGISTRAR: &str = "10.9.1.3";

/// A registry at this address of the host, which goes with its network; and the lines that it has heard.
fn serve(network: &Network, address: &'static str, answer: impl Fn(&str) -> String + Send + 'static) -> Arc<Mutex<Vec<String>>> {
    let listener = network.in_host(move || TcpListener::bind((address, 43)).unwrap());
    let heard = Arc::new(Mutex::new(Vec::new()));
    let lines = Arc::clone(&heard);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            BufReader::new(&mut stream).read_line(&mut line).unwrap();
            stream.write_all(answer(line.trim_end()).as_bytes()).unwrap();
            lines.lock().unwrap().push(line);
        }
    });
    heard
}

fn entry(line: &str) -> String {
    match line {
        "example.com" => "Domain Name: EXAMPLE.COM\r\nRegistrar: Example\r\nCreation Date: 1995-08-14T04:00:00Z\r\nName Server: A.TEST\r\n\r\n>>> Last update <<<\r\n",
        "192.0.2.1" => "% Information related to '192.0.2.0 - 192.0.2.255'\n\ninetnum:        192.0.2.0 - 192.0.2.255\nnetname:        TEST-NET-1\n\n",
        // Debian's whois writes it in small letters; registries do not care.
        "AS64500" | "as64500" => "aut-num:        AS64500\nas-name:        EXAMPLE-AS\n\n",
        _ => "%ERROR:101: no entries found\n",
    }
    .to_owned()
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn an_answer_is_printed_as_whois_prints_it_and_asked_for_with_the_same_line() {
    let network = Network::new();
    for server in REGISTRY {
        let heard = serve(&network, server, entry);
        for (target, registered) in [("example.com", true), ("192.0.2.1", true), ("AS64500", true), ("nowhere.example", false)] {
            let found = ours(&network, "whois", target, json!({"server": server}));
            assert_eq!(found.report["registered"], registered, "{}", found.report);
            assert_eq!(found.output, theirs(&network, "whois", &["-h", server, target]));
            let lines = std::mem::take(&mut *heard.lock().unwrap());
            assert!(lines.len() == 2 && lines[0].eq_ignore_ascii_case(&lines[1]), "{lines:?}");
        }
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn iana_is_followed_as_whois_follows_it() {
    let network = Network::new();
    network.host_address(&format!("{REGISTRAR}/24"));
    let _iana = serve(&network, REGISTRY[0], |_| format!("% IANA WHOIS server\n\nrefer:        {REGISTRAR}\n\ndomain:       COM\n"));
    let _registry = serve(&network, REGISTRAR, entry);
    network.node_etc("hosts", &format!("{} whois.iana.org\n", REGISTRY[0]));
    for target in ["example.com", "192.0.2.1", "AS64500"] {
        let found = ours(&network, "whois", target, json!({"server": REGISTRY[0]}));
        let real = theirs(&network, "whois", &["-I", target]);
        assert_eq!(found.report["queries"].as_array().unwrap().len(), 2, "{}", found.report);
        assert_eq!(found.output, real);
    }
}
