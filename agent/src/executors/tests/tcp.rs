//! `tcp` against servers that talk, and several ports at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use probeops_shared::tools::tcp::PORT_INTERVAL;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{Context, FailureKind, Found, Live, execute, fails, finds, open_node, policy, run, spec};
use crate::testing::{self_signed, serve, server_config};

/// Listens on loopback and answers one connection: greets, and answers the line it is sent.
async fn talk_to(greeting: &'static [u8], answer: fn(&[u8]) -> Vec<u8>, parameters: Value) -> (Found, Vec<u8>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut parameters = parameters;
    parameters["port"] = json!(listener.local_addr().unwrap().port());
    let serve = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(greeting).await.unwrap();
        let mut line = vec![0; 1024];
        let length = stream.read(&mut line).await.unwrap_or(0);
        line.truncate(length);
        stream.write_all(&answer(&line)).await.unwrap();
        line
    };
    let context = open_node(&[]);
    let (found, heard) = tokio::join!(finds(&context, "tcp", "127.0.0.1", parameters), serve);
    (found, heard)
}

#[tokio::test]
async fn what_is_sent_arrives_and_what_is_expected_is_found() {
    let parameters = json!({"banner": true, "send": "PING \\x00\\xff\\r\\n", "expect_regex": "\\+(P[A-Z]+)"});
    let (found, heard) = talk_to(b"* ready\r\n", |line| [b"+PONG ", line].concat(), parameters).await;
    assert_eq!(heard, b"PING \0\xff\r\n");
    let port = &found.report["ports"][0];
    assert_eq!((&port["banner"], &port["sent_bytes"]), (&json!("* ready\\r\\n"), &json!(9)), "{port}");
    assert_eq!(port["expect"], json!({"matched": true, "found": "+PONG", "groups": ["PONG"]}));
    assert!(found.output.ends_with("* ready\n+PONG PING \\x00\\xff\n(expected /\\+(P[A-Z]+)/: found \"+PONG\")\n"), "{}", found.output);
}

#[tokio::test]
async fn a_talk_cut_short_leaves_what_was_said() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (context, (live, mut news)) = (open_node(&[]), Live::heard());
    let parameters =
        json!({"port": port, "send": "one\\n", "expect": "two", "then": [{"send": "three\\n", "expect": "four"}], "reply_wait_ms": 10_000});
    let serve = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut heard = [0; 4];
        stream.read_exact(&mut heard).await.unwrap();
        stream.write_all(b"two").await.unwrap();
        while news.recv().await.is_some_and(|news| news.progress["type"] != "exchange") {}
    };
    tokio::select! {
        _ = execute(&context, spec("tcp", "127.0.0.1", parameters), &live) => panic!("the second answer never came"),
        () = serve => {}
    }
    let found = live.taken().unwrap();
    let told = &found.report["ports"][0];
    assert_eq!((&told["state"], &told["reply"], &told["expect"]["matched"]), (&json!("open"), &json!("two"), &json!(true)), "{told}");
}

#[tokio::test]
async fn what_is_expected_and_not_said_is_a_finding() {
    let parameters = json!({"send": "HELO\\n", "expect": "250", "reply_wait_ms": 300});
    let (found, _) = talk_to(b"", |_| b"554 no\r\n".to_vec(), parameters).await;
    let port = &found.report["ports"][0];
    assert_eq!((&port["state"], &port["expect"]), (&json!("open"), &json!({"matched": false})), "{port}");
    assert_eq!((&port["reply"], &port["reply_bytes"]), (&json!("554 no\\r\\n"), &json!(8)));
    assert!(found.output.ends_with("554 no\n(expected \"250\": not found)\n"), "{}", found.output);
}

#[tokio::test]
async fn what_is_expected_may_come_in_pieces_and_ends_the_wait() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        for piece in [b"22", b"0 ", b"re", b"ad"] {
            stream.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        // Held open: only the match ends the wait.
        let mut end = [0; 1];
        assert!(matches!(stream.read(&mut end).await, Ok(0) | Err(_)));
    };
    let context = open_node(&[]);
    let probe = finds(&context, "tcp", "127.0.0.1", json!({"port": port, "expect": "220 read", "reply_wait_ms": 10_000}));
    let (found, ()) = tokio::join!(probe, serve);
    assert_eq!(found.report["ports"][0]["expect"], json!({"matched": true, "found": "220 read"}), "{}", found.report);
}

#[tokio::test]
async fn over_tls_the_talk_is_the_same_and_a_stranger_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let config = server_config(&self_signed(&["mail.test"]), &[]);
    let serve = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await.unwrap();
        stream.write_all(b"+OK ready\r\n").await.unwrap();
        let mut line = [0; 6];
        stream.read_exact(&mut line).await.unwrap();
        stream.write_all(b"+OK bye\r\n").await.unwrap();
        stream.flush().await.unwrap();
        (line, stream.get_ref().1.server_name().map(str::to_owned))
    };
    let context = open_node(&[]);
    let parameters = json!({"port": port, "tls": true, "server_name": "mail.test", "banner": true, "send": "QUIT\\r\\n", "expect": "bye"});
    let (found, (line, sni)) = tokio::join!(finds(&context, "tcp", "127.0.0.1", parameters), serve);
    assert_eq!((&line, sni.as_deref()), (b"QUIT\r\n", Some("mail.test")));
    let port = &found.report["ports"][0];
    assert_eq!((&port["banner"], &port["expect"]["matched"]), (&json!("+OK ready\\r\\n"), &json!(true)), "{port}");
    let tls = &port["tls"];
    assert_eq!(
        (&tls["version"], &tls["verified"], &tls["problems"][0]["code"]),
        (&json!("1.3"), &json!(false), &json!("self_signed")),
        "{tls}"
    );
    assert!(tls["handshake_ms"].is_number() && tls.get("failure").is_none());
    assert!(found.output.contains("(TLSv1.3, TLS_AES_256_GCM_SHA384, CN=mail.test, not trusted: "), "{}", found.output);
}

/// A mail server, as far as to TLS and a greeting there; it says two things in one piece.
async fn mail_server(listener: TcpListener) -> Vec<String> {
    let mut heard = Vec::new();
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut line = async |stream: &mut (dyn AsyncStream + '_)| {
        let mut text = String::new();
        while !text.ends_with('\n') {
            text.push(char::from(stream.read_u8().await.unwrap()));
        }
        heard.push(text);
    };
    stream.write_all(b"220-one\r\n220 mail.test ready\r\n").await.unwrap();
    line(&mut stream).await;
    stream.write_all(b"250-mail.test\r\n250 STARTTLS\r\n").await.unwrap();
    line(&mut stream).await;
    stream.write_all(b"220 go on\r\n").await.unwrap();
    let mut stream = TlsAcceptor::from(Arc::new(server_config(&self_signed(&["mail.test"]), &[]))).accept(stream).await.unwrap();
    line(&mut stream).await;
    stream.write_all(b"250 hello\r\n").await.unwrap();
    stream.flush().await.unwrap();
    drop(stream.read_u8().await);
    heard
}

trait AsyncStream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin {}
impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> AsyncStream for S {}

#[tokio::test]
async fn a_talk_goes_on_as_long_as_the_server_says_what_it_should() {
    let then = json!([
        {"expect_regex": "220 ([a-z.]+) (ready)"},
        {"send": "EHLO ${1} ${2}\\r\\n", "expect_regex": "250[ -]STARTTLS"},
        {"send": "STARTTLS\\r\\n", "expect": "220 ", "starttls": true},
        {"send": "EHLO again\\r\\n", "expect": "250 "},
        {"send": "QUIT\\r\\n", "expect": "221", },
    ]);
    for (last, failed) in [(4, false), (5, true)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut parameters =
            json!({"port": listener.local_addr().unwrap().port(), "expect": "220-", "server_name": "mail.test", "reply_wait_ms": 300});
        parameters["then"] = json!(then.as_array().unwrap()[..last]);
        let (live, mut news) = Live::heard();
        let (context, spec) = (open_node(&[]), spec("tcp", "127.0.0.1", parameters));
        let (found, heard) = tokio::join!(execute(&context, spec.clone(), &live), mail_server(listener));
        let found = found.unwrap();
        assert_eq!(heard, ["EHLO mail.test ready\r\n", "STARTTLS\r\n", "EHLO again\r\n"]);
        let port = &found.report["ports"][0];
        // What came with the first greeting is where the second is looked for.
        assert_eq!((&port["expect"]["found"], &port["then"][0]["expect"]["groups"]), (&json!("220-"), &json!(["mail.test", "ready"])));
        assert_eq!(port["then"][1]["sent_bytes"], 22, "{port}");
        let starttls = &port["then"][2]["starttls"];
        assert_eq!((&starttls["version"], &starttls["problems"][0]["code"]), (&json!("1.3"), &json!("self_signed")), "{port}");
        assert_eq!((port["then"].as_array().unwrap().len(), spec.is_bad(&found.report)), (last, Ok(failed)), "{port}");
        assert!(found.output.contains("220 go on\n(expected \"220 \": found \"220 \")\n(TLSv1.3, "), "{}", found.output);
        drop(live);
        let told: Vec<_> = std::iter::from_fn(|| news.try_recv()).map(|news| news.progress).collect();
        let numbers: Vec<u64> = told.iter().filter_map(|progress| progress["number"].as_u64()).collect();
        assert_eq!(numbers, (0..=u64::try_from(last).unwrap()).collect::<Vec<_>>(), "{told:?}");
    }
}

#[tokio::test]
async fn a_talk_ends_where_the_server_says_something_else() {
    let parameters = json!({"expect": "220 ", "then": [{"send": "NOOP\\r\\n", "expect": "250"}, {"send": "never"}], "reply_wait_ms": 300});
    let (found, heard) = talk_to(b"220 here\r\n", |_| b"500 no\r\n".to_vec(), parameters).await;
    assert_eq!(heard, b"NOOP\r\n");
    let port = &found.report["ports"][0];
    assert_eq!(port["then"], json!([{"sent_bytes": 6, "reply": "500 no\\r\\n", "reply_bytes": 8, "expect": {"matched": false}}]));
}

#[tokio::test]
async fn a_port_may_be_none_that_a_server_can_have() {
    let context = open_node(&[]);
    for parameters in [json!({"port": 0}), json!({"ports": "0"})] {
        let report = finds(&context, "tcp", "127.0.0.1", parameters).await.report;
        assert_eq!((&report["ports"][0]["port"], &report["ports"][0]["state"]), (&json!(0), &json!("refused")), "{report}");
    }
    for (tool, parameters) in [
        ("ping", json!({"protocol": "tcp", "port": 0, "count": 1})),
        ("traceroute", json!({"protocol": "tcp", "port": 0, "queries": 1, "max_ttl": 1})),
        ("mtr", json!({"protocol": "tcp", "port": 0, "rounds": 1, "max_ttl": 1})),
    ] {
        let spec = spec(tool, "127.0.0.1", parameters);
        let found = execute(&context, spec.clone(), &Live::default()).await.unwrap();
        assert_eq!(spec.is_bad(&found.report), Ok(false), "{tool}: {}", found.report);
    }
}

#[tokio::test]
async fn a_connection_is_from_the_source_that_is_given() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let context = open_node(&[]);
    let refused = run(&context, "tcp", "127.0.0.1", json!({"port": port, "source": "192.0.2.9"})).await;
    fails(refused, FailureKind::Invalid, "is not an address of this node");
    let ((), found) = tokio::join!(
        async { assert_eq!(listener.accept().await.unwrap().1.ip().to_string(), "127.0.0.1") },
        finds(&context, "tcp", "127.0.0.1", json!({"port": port, "source": "127.0.0.1"}))
    );
    assert_eq!(found.report["ports"][0]["state"], "open");
}

#[tokio::test]
async fn only_the_versions_of_tls_that_are_wanted_are_offered() {
    let port = serve(server_config(&self_signed(&["a.test"]), &[])).await.port();
    for (range, version) in [(json!({}), "1.3"), (json!({"max_version": "1.2"}), "1.2"), (json!({"min_version": "1.3"}), "1.3")] {
        let mut parameters = json!({"port": port, "tls": true, "server_name": "a.test"});
        parameters.as_object_mut().unwrap().extend(range.as_object().unwrap().clone());
        let found = finds(&open_node(&[]), "tcp", "127.0.0.1", parameters).await;
        assert_eq!(found.report["ports"][0]["tls"]["version"], version, "{}", found.report);
    }
}

#[tokio::test]
async fn a_port_without_tls_is_open_all_the_same() {
    let (found, _) = talk_to(b"220 plain\r\n", |_| Vec::new(), json!({"tls": true, "banner": true})).await;
    let port = &found.report["ports"][0];
    assert_eq!((&port["state"], &port["tls"]["failure"]["code"]), (&json!("open"), &json!("not_tls")), "{port}");
    assert!(
        port.get("banner").is_none() && found.output.contains("(no TLS: the server answers with something that is not TLS)"),
        "{}",
        found.output
    );
}

#[tokio::test]
async fn every_port_is_told_as_it_becomes_known_and_the_telling_is_the_output() {
    let (first, second) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let open = [first.local_addr().unwrap().port(), second.local_addr().unwrap().port()];
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let ports = format!("{},{closed},{}", open[0], open[1]);
    let (live, mut heard) = Live::heard();
    let found = execute(&open_node(&[]), spec("tcp", "127.0.0.1", json!({"ports": ports})), &live).await.unwrap();
    let states: BTreeMap<u64, &str> = found.report["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|port| (port["port"].as_u64().unwrap(), port["state"].as_str().unwrap()))
        .collect();
    assert_eq!(states, BTreeMap::from([(open[0].into(), "open"), (closed.into(), "refused"), (open[1].into(), "open")]));
    drop(live);
    let mut told = Vec::new();
    while let Some(news) = heard.recv().await {
        told.push(news);
    }
    assert_eq!(told.iter().map(|news| news.progress["type"].as_str().unwrap()).collect::<Vec<_>>(), ["resolved", "port", "port", "port"]);
    assert_eq!(told.iter().map(|news| news.output.as_str()).collect::<String>(), found.output);
    // Paced: the third handshake begins two intervals after the first.
    assert!(told[3].elapsed >= PORT_INTERVAL * 2, "{told:?}");
}

#[tokio::test]
async fn one_denied_port_denies_the_run_before_anything_is_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let allowed = listener.local_addr().unwrap().port();
    let context = Context::new(policy("allow_loopback = true\n[deny]\nports = [25]"), &[]).unwrap();
    fails(
        run(&context, "tcp", "127.0.0.1", json!({"ports": format!("{allowed},25")})).await,
        FailureKind::Denied,
        "port 25 is in deny.ports",
    );
    let nobody = std::future::poll_fn(|task| std::task::Poll::Ready(listener.poll_accept(task).is_pending())).await;
    assert!(nobody, "somebody connected");
}
