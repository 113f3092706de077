//! What the owner's policy says of whom a caller names beside the target, and of runs that go on when it changes.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, UdpSocket};

use super::dns_server::answer;
use super::web::{Web, page};
use super::{Context, FailureKind, Live, execute, fails, policy, run, spec};
use crate::policy::keeper::Keeper;

/// Whatever else a caller names is a target like any other, for every tool.
#[tokio::test]
async fn every_server_that_a_caller_names_is_judged() {
    let node = Context::new(policy("allow_loopback = true\n[deny]\nnetworks = [\"127.66.0.0/16\"]"), &[]).unwrap();
    for (tool, target, parameters) in [
        ("ping", "127.66.0.1", json!({})),
        ("ping", "127.66.0.1", json!({"protocol": "tcp", "port": 80})),
        ("traceroute", "127.66.0.1", json!({})),
        ("mtr", "127.66.0.1", json!({})),
        ("pmtu", "127.66.0.1", json!({"protocol": "udp"})),
        ("tcp", "127.66.0.1", json!({"ports": "80,443"})),
        ("tcp", "127.66.0.1", json!({"port": 25, "send": "STARTTLS", "starttls": true})),
        ("tls", "127.66.0.1", json!({"port": 25, "starttls": "smtp"})),
        ("http", "http://127.66.0.1/", json!({})),
        ("http", "http://127.0.0.1:1/", json!({"resolve": "127.66.0.1"})),
        ("http", "http://127.0.0.1:1/", json!({"proxy": "http://127.66.0.1:3128"})),
        ("http", "http://name.test/", json!({"resolver": "127.66.0.1"})),
        ("dns", "name.test", json!({"resolver": "127.66.0.1"})),
        ("dns", "name.test", json!({"resolver": "127.66.0.1", "protocol": "tcp"})),
        ("dns", "name.test", json!({"resolver": "127.66.0.1", "protocol": "tls"})),
        ("dns", "name.test", json!({"resolver": "127.66.0.1", "protocol": "https"})),
        ("dns", "name.test", json!({"resolver": "127.66.0.1", "trace": true})),
        ("dns", "name.test", json!({"resolver": "127.0.0.1", "compare_with": ["127.66.0.1"]})),
        ("whois", "name.test", json!({"protocol": "whois", "server": "127.66.0.1"})),
        ("whois", "name.test", json!({"protocol": "rdap", "rdap_server": "http://127.66.0.1/"})),
    ] {
        let (words, failure) = (format!("{tool} {target} {parameters}"), run(&node, tool, target, parameters).await.unwrap_err());
        assert!(failure.kind == FailureKind::Denied && failure.detail.contains("127.66.0.0/16 is in deny.networks"), "{words}: {failure}");
    }
}

/// A policy in a file of its own.
struct Owner(PathBuf);

impl Owner {
    fn new(text: &str) -> Self {
        let owner = Self(std::env::temp_dir().join(format!("probeops-owner-{:032x}.toml", rand::random::<u128>())));
        owner.writes(text);
        owner
    }

    fn writes(&self, text: &str) {
        std::fs::write(&self.0, text).unwrap();
    }

    fn node(&self) -> Context {
        self.node_asking(&[])
    }

    fn node_asking(&self, resolvers: &[SocketAddr]) -> Context {
        Context::new(Keeper::open(Some(&self.0), &[], Vec::new()).unwrap(), resolvers).unwrap()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap();
    }
}

/// A run that waits for a banner which does not come.
fn listening(listener: &TcpListener) -> Value {
    json!({"port": listener.local_addr().unwrap().port(), "banner": true, "banner_wait_ms": 10_000})
}

#[tokio::test]
async fn a_run_ends_when_the_owner_denies_what_it_touches_and_its_connections_with_it() {
    for narrower in ["# The default.\n", "allow_loopback = true\n[deny]\ntools = [\"tcp\"]", "allow_loopback = true\n[allow]\nports = [1]"]
    {
        let owner = Owner::new("allow_loopback = true\n");
        let node = owner.node();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let live = Live::default();
        let running = execute(&node, spec("tcp", "127.0.0.1", listening(&listener)), &live);
        let narrow = async {
            let (stream, _) = listener.accept().await.unwrap();
            owner.writes(narrower);
            assert!(node.policy().read_again(&owner.0));
            stream
        };
        let (ended, mut stream) = tokio::join!(running, narrow);
        fails(ended, FailureKind::Denied, "the node's owner has changed its policy while this ran: ");
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0, "the connection is closed");
        assert_eq!(live.taken().unwrap().report["ports"][0]["state"], "open", "what was found before it is kept");
        let again = run(&node, "tcp", "127.0.0.1", json!({"port": 2})).await;
        fails(again, FailureKind::Denied, "this node's policy: ");
    }
}

#[tokio::test]
async fn a_run_that_the_new_policy_allows_goes_on_and_is_judged_by_it_from_then() {
    let owner = Owner::new("allow_loopback = true\n");
    let node = Arc::new(owner.node());
    let elsewhere = TcpListener::bind("127.66.0.1:0").await.unwrap();
    let to = format!("Location: http://127.66.0.1:{}/", elsewhere.local_addr().unwrap().port());
    // By the time of its answer, where that leads is not allowed any more.
    let (file, asked) = (owner.0.clone(), Arc::clone(&node));
    let web = Web::start(None, move |_| {
        std::fs::write(&file, "allow_loopback = true\n[deny]\nnetworks = [\"127.66.0.0/16\"]").unwrap();
        assert!(asked.policy().read_again(&file));
        page("302 Found", &[&to], b"")
    })
    .await;
    let url = format!("http://127.0.0.1:{}/", web.port());
    let ended = run(&node, "http", &url, json!({"redirects_max": 3})).await;
    let failure = ended.unwrap_err();
    assert!(failure.kind == FailureKind::Denied && failure.detail.contains("127.66.0.1: this node's policy: 127.66.0.0/16"), "{failure}");
    assert!(!failure.detail.contains("while this ran"), "the redirect is denied, and not the run: {failure}");
    // A change that does not concern it does not end a run.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let running = run(&node, "tcp", "127.0.0.1", listening(&listener));
    let widen = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        owner.writes("allow_loopback = true\n[deny]\nports = [1]\n");
        assert!(node.policy().read_again(&owner.0));
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"220 hello\r\n").await.unwrap();
        stream
    };
    let (ended, _stream) = tokio::join!(running, widen);
    assert_eq!(ended.unwrap().report["ports"][0]["state"], "open");
}

/// Waits until a name server is asked for both kinds of addresses of a name, and goes on with `then` before it answers.
async fn answers_after(server: &UdpSocket, then: impl FnOnce()) {
    let mut asked = Vec::new();
    for _ in ["A", "AAAA"] {
        let mut bytes = [0; 512];
        let (length, from) = server.recv_from(&mut bytes).await.unwrap();
        asked.push((answer(&bytes[..length], &mut false).unwrap().to_vec().unwrap(), from));
    }
    then();
    for (answer, from) in asked {
        server.send_to(&answer, from).await.unwrap();
    }
}

#[tokio::test]
async fn the_policy_at_the_moment_of_connecting_decides_however_long_a_name_took_to_be_found() {
    let elsewhere = TcpListener::bind("127.66.0.1:0").await.unwrap();
    let port = elsewhere.local_addr().unwrap().port();
    let url = format!("http://elsewhere.test:{port}/");
    let denied = "elsewhere.test (127.66.0.1): this node's policy: 127.66.0.0/16 is in deny.networks";
    for (tool, target, parameters) in [
        ("ping", "elsewhere.test", json!({})),
        ("ping", "elsewhere.test", json!({"protocol": "tcp", "port": port})),
        ("traceroute", "elsewhere.test", json!({})),
        ("traceroute", "elsewhere.test", json!({"protocol": "tcp", "port": port})),
        ("mtr", "elsewhere.test", json!({})),
        ("pmtu", "elsewhere.test", json!({"protocol": "udp"})),
        ("tcp", "elsewhere.test", json!({"ports": format!("{port}"), "banner": true})),
        ("tls", "elsewhere.test", json!({"port": port})),
        ("http", url.as_str(), json!({})),
        ("http", "http://other.test/", json!({"resolve": "elsewhere.test"})),
        ("http", "http://127.0.0.1:1/", json!({"proxy": url})),
        ("dns", "name.test", json!({"resolver": "elsewhere.test", "port": port, "protocol": "tcp"})),
        ("dns", "name.test", json!({"resolver": "127.0.0.1", "compare_with": ["elsewhere.test"]})),
        ("whois", "name.test", json!({"protocol": "whois", "server": "elsewhere.test", "port": port})),
        ("whois", "name.test", json!({"protocol": "rdap", "rdap_server": url})),
    ] {
        let owner = Owner::new("allow_loopback = true\n");
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let node = owner.node_asking(&[server.local_addr().unwrap()]);
        let narrows = || {
            owner.writes("allow_loopback = true\n[deny]\nnetworks = [\"127.66.0.0/16\"]\n");
            assert!(node.policy().read_again(&owner.0));
        };
        let words = format!("{tool} {target} {parameters}");
        let (ended, ()) = tokio::join!(run(&node, tool, target, parameters), answers_after(&server, narrows));
        let failure = ended.unwrap_err();
        assert!(failure.kind == FailureKind::Denied && failure.detail.contains(denied), "{words}: {failure}");
    }
    let none = tokio::time::timeout(std::time::Duration::ZERO, elsewhere.accept()).await;
    assert!(none.is_err(), "nobody has connected");
}

#[tokio::test]
async fn a_run_ends_when_a_name_is_denied_that_it_asks_for_or_was_led_on_to() {
    let denies = |name: &str| format!("allow_loopback = true\n[deny]\nnames = [\"{name}\"]\n");
    // While it is asked for, by itself or as the question of a tool.
    for (tool, parameters) in [("tcp", json!({})), ("dns", json!({})), ("dns", json!({"type": "TXT"}))] {
        let owner = Owner::new("allow_loopback = true\n");
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let node = owner.node_asking(&[server.local_addr().unwrap()]);
        let narrow = async {
            server.recv_from(&mut [0; 512]).await.unwrap();
            owner.writes(&denies("local.test"));
            assert!(node.policy().read_again(&owner.0));
        };
        let (ended, ()) = tokio::join!(run(&node, tool, "local.test", parameters), narrow);
        fails(
            ended,
            FailureKind::Denied,
            "the node's owner has changed its policy while this ran: local.test: this node's policy: `local.test` is in deny.names",
        );
    }
    // When it is connected: what its name is an alias of.
    let owner = Owner::new("allow_loopback = true\n");
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (node, listener) = (owner.node_asking(&[server.local_addr().unwrap()]), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let running = run(&node, "tcp", "nickname.test", listening(&listener));
    let narrow = async {
        answers_after(&server, || {}).await;
        let stream = listener.accept().await.unwrap();
        owner.writes(&denies("local.test"));
        assert!(node.policy().read_again(&owner.0));
        stream
    };
    let (ended, _stream) = tokio::join!(running, narrow);
    fails(ended, FailureKind::Denied, "nickname.test, an alias of local.test: this node's policy: `local.test` is in deny.names");
}
