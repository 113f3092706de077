//! No packet to whom the policy denies, by any tool and on any way there: counted as it would leave.

use std::sync::Arc;

use probeops_shared::outcome::{Failure, FailureKind};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use super::super::dns_server::DnsServer;
use super::super::web::{Web, page};
use super::super::{Context, DISGUISES, Found, Spec, run};
use super::namespace::counted_here;
use super::network::Network;
use super::ways::{self, Way};
use super::{execute, policy, theirs};
use crate::executors::Live;
use crate::testing::{Authority, server_config};

/// What the node may not touch, in the answers of our name server: `metadata.test`, `alias.test`, and `rebinding.test` from the second time on.
const DENIED: &str = "169.254.169.254";

/// A network in which all that leaves the node's own loopback, or goes to the denied part of that, is counted.
fn counting() -> Network {
    let network = Network::new();
    network.node_reaches_everything();
    network.count_leaving("meta l4proto { tcp, udp, icmp } ip daddr != 127.0.0.1");
    network.count_leaving("meta l4proto { tcp, udp } meta nfproto ipv6");
    network.count_leaving("icmpv6 type echo-request");
    network
}

/// The counters count.
fn counts(network: &Network) {
    for address in [DENIED, "64:ff9b::a9fe:a9fe", "::1", "127.0.0.2"] {
        let before = network.leaving();
        theirs(network, "ping", &["-n", "-c", "1", "-W", "1", address]);
        assert!(network.leaving() > before, "{address}");
    }
}

/// Runs what we wrote in the node's namespace, on one thread, so that what it starts is there too.
fn in_node<T: Send + 'static>(network: &Network, run: impl AsyncFnOnce() -> T + Send + 'static) -> T {
    network.in_node(move || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run()))
}

fn node(server: &DnsServer) -> Context {
    Context::new(policy("allow_loopback = true\n[deny]\nnetworks = [\"127.0.0.2/32\", \"::1/128\"]"), &[server.address]).unwrap()
}

/// Whether policy kept a run, or the last step of it, from its way.
fn denied(result: &Result<Found, Failure>) -> bool {
    match result {
        Err(failure) => failure.kind == FailureKind::Denied,
        Ok(found) => found.report["queries"].as_array().and_then(|queries| queries.last()).is_some_and(|last| {
            // A number is no host of a URL of RDAP at all.
            last["status"] == "denied" || last["reason"].as_str().is_some_and(|why| why.starts_with("it redirects to nowhere"))
        }),
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn no_packet_leaves_for_an_address_that_is_denied_however_it_is_written() {
    let network = counting();
    in_node(&network, async || {
        let server = DnsServer::start().await;
        for host in DISGUISES.iter().chain(&["metadata.test", "metadata.test.", "METADATA.test", "\u{24dc}etadata.test", "alias.test"]) {
            for (tool, target, parameters) in ways::to(host) {
                let shown = format!("{tool} {target} {parameters}");
                match Spec::parse(tool.parse().unwrap(), &target, parameters.as_object().unwrap().clone()) {
                    Err(invalid) => assert!(
                        invalid.pointer == "/target" || invalid.pointer.starts_with("/parameters/re") || {
                            ["/parameters/proxy", "/parameters/server", "/parameters/rdap_server"].contains(&invalid.pointer.as_str())
                        },
                        "{shown}: {invalid}"
                    ),
                    Ok(spec) => {
                        let result = execute(&node(&server), spec, &Live::default()).await;
                        assert!(denied(&result), "{shown}: {result:?}");
                    }
                }
                assert_eq!(counted_here("output"), 0, "{shown}");
            }
        }
    });
    counts(&network);
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn no_packet_follows_a_name_to_where_it_leads_when_it_is_looked_up_again() {
    let network = counting();
    in_node(&network, async || {
        // Servers that talk, for tools that connect more than once.
        let root = Authority::root("Root");
        let secure = Web::start(Some(server_config(&root.certify(&["rebinding.test"]), &[])), |_| page("200 OK", &[], b"")).await;
        let more: Vec<Way> = vec![
            ("tls", "rebinding.test".to_owned(), json!({"port": secure.port(), "versions": true})),
            ("tcp", "rebinding.test".to_owned(), json!({"port": secure.port(), "tls": true, "send": "GET / HTTP/1.0\\r\\n\\r\\n"})),
            ("http", format!("https://rebinding.test:{}/", secure.port()), json!({"verify": false})),
        ];
        for (tool, target, parameters) in ways::to("rebinding.test").into_iter().chain(more) {
            let shown = format!("{tool} {target} {parameters}");
            let server = DnsServer::start().await;
            // Whatever it asks of the address that was judged, it asks of that one only, and of no other that the name has by then.
            let result = execute(&node(&server), quick(tool, &target, parameters.clone()), &Live::default()).await;
            assert!(!denied(&result), "{shown}: {result:?}");
            assert_eq!(counted_here("output"), 0, "{shown}");
            let result = run(&node(&server), tool, &target, parameters).await;
            assert!(denied(&result), "{shown}: {result:?}");
            assert_eq!(counted_here("output"), 0, "{shown}");
        }
    });
    counts(&network);
}

/// The same, not longer than it has to be.
fn quick(tool: &str, target: &str, mut parameters: Value) -> Spec {
    for (option, of, value) in [("rounds", "mtr", json!(1)), ("count", "ping", json!(2)), ("max_bytes", "pmtu", json!(2000))] {
        if of == tool {
            parameters[option] = value;
        }
    }
    super::spec(tool, target, parameters)
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn the_nodes_own_addresses_are_denied_unless_loopback_is_allowed() {
    let network = Network::new();
    in_node(&network, async || {
        for host in ["10.9.0.2", "fd09::2", "::ffff:10.9.0.2"] {
            // A service that a firewall could hide from the network.
            let hidden = TcpListener::bind((host, 0)).await.unwrap();
            for (tool, parameters) in [("tcp", json!({"port": hidden.local_addr().unwrap().port()})), ("ping", json!({"count": 1}))] {
                let by = async |rules: &str| run(&Context::new(policy(rules), &[]).unwrap(), tool, host, parameters.clone()).await;
                let refused = by("").await.unwrap_err();
                assert_eq!(refused.kind, FailureKind::Denied, "{tool} {host}: {refused:?}");
                assert!(by("allow_loopback = true").await.is_ok(), "{tool} {host}");
            }
        }
    });
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn no_packet_follows_a_redirect_into_what_is_denied() {
    let network = counting();
    in_node(&network, async || {
        for host in
            [DENIED, "2852039166", "[::ffff:a9fe:a9fe]", "[64:ff9b::a9fe:a9fe]", "127.0.0.2", "[::1]", "metadata.test", "alias.test"]
        {
            let to = format!("Location: http://{host}/x");
            let secure_to = format!("Location: https://{host}/x");
            let web = Web::start(None, move |_| page("302 Found", &[&to], b"")).await;
            let secure = Web::start(None, move |_| page("307 Found", &[&secure_to], b"")).await;
            let ways = [&web, &secure].into_iter().flat_map(|web| {
                let (port, proxy) = (web.port(), format!("http://127.0.0.1:{}", web.port()));
                [
                    (format!("http://127.0.0.1:{port}/"), json!({"redirects_max": 3})),
                    (format!("http://any.test:{port}/"), json!({"redirects_max": 3, "resolve": "127.0.0.1"})),
                    ("http://127.0.0.1:1/".to_owned(), json!({"redirects_max": 3, "proxy": proxy})),
                ]
            });
            for (url, parameters) in ways {
                refused("http", &url, parameters).await;
            }
            let rdap = json!({"protocol": "rdap", "rdap_server": format!("http://127.0.0.1:{}/", web.port())});
            refused("whois", "example.com", rdap).await;
            // What the proxy would be asked for is judged too.
            let proxy = Web::start(None, |_| page("200 OK", &[], b"")).await;
            for scheme in ["http", "https"] {
                refused("http", &format!("{scheme}://{host}/"), json!({"proxy": format!("http://127.0.0.1:{}", proxy.port())})).await;
            }
            assert!(proxy.asked().is_empty(), "{host}: {:?}", proxy.asked());
        }
        // A redirect to the same name, whose address is another by then.
        let web = Web::start(None, |line| page("302 Found", &[&format!("Location: /again{}", line.len())], b"")).await;
        refused("http", &format!("http://rebinding.test:{}/", web.port()), json!({"redirects_max": 3})).await;
        refused("whois", "example.com", json!({"protocol": "rdap", "rdap_server": format!("http://rebinding.test:{}/", web.port())})).await;
        assert_eq!(web.asked().len(), 2, "{:?}", web.asked());
    });
    counts(&network);
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn no_packet_follows_a_referral_into_what_is_denied() {
    let network = counting();
    in_node(&network, async || {
        for referral in [
            DENIED,
            "::ffff:a9fe:a9fe",
            "64:ff9b::a9fe:a9fe",
            "127.0.0.2",
            "::1",
            "metadata.test",
            "alias.test",
            "whois://metadata.test:4321",
            "rebinding.test:4321",
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let answer = Arc::new(format!("refer: {referral}\n"));
            drop(tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    BufReader::new(&mut stream).read_line(&mut String::new()).await.unwrap();
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }));
            // Under a name that is another's by the time of the referral.
            refused("whois", "192.0.2.1", json!({"server": "rebinding.test", "port": port})).await;
        }
    });
    counts(&network);
}

/// Runs on a node of its own, whose names lead where they lead the first time.
async fn refused(tool: &str, target: &str, parameters: Value) {
    let shown = format!("{tool} {target} {parameters}");
    let server = DnsServer::start().await;
    let result = run(&node(&server), tool, target, parameters).await;
    assert!(denied(&result), "{shown}: {result:?}");
    assert_eq!(counted_here("output"), 0, "{shown}");
}
