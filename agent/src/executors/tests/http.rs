//! `http` against servers of this machine.

use std::io::Write as _;
use std::time::Duration;

use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::dns_server::DnsServer;
use super::web::{Web, page};
use super::{Context, FailureKind, Live, News, execute, fails, finds, open_node, policy, run, spec};
use crate::testing::{Authority, server_config};

async fn asks(url: &str, parameters: Value) -> Value {
    finds(&open_node(&[]), "http", url, parameters).await.report
}

fn sha256(data: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(data))
}

#[tokio::test]
async fn an_answer_is_told_as_it_was_sent() {
    let web = Web::start(None, |_| page("200 All right", &["X-B: 1", "Set-Cookie: id=secret; Path=/", "x-b: 2"], b"hello")).await;
    let url = format!("http://127.0.0.1:{}/a?b", web.port());
    let (live, mut news) = Live::heard();
    let found = execute(&open_node(&[]), spec("http", &url, json!({})), &live).await.unwrap();
    let request = &found.report["requests"][0];
    assert_eq!(
        (&request["status"], &request["reason"], &request["protocol"]),
        (&json!(200), &json!("All right"), &json!("HTTP/1.1")),
        "{request}"
    );
    let fields: Vec<_> = request["headers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|field| (field["name"].as_str().unwrap(), field["value"].as_str().unwrap()))
        .collect();
    assert_eq!(fields, [("Content-Length", "5"), ("X-B", "1"), ("Set-Cookie", "id=***; Path=/"), ("x-b", "2")]);
    assert_eq!(request["body"], json!({"text": "hello", "size_bytes": 5, "sha256": sha256(b"hello"), "truncated": false}));
    for phase in ["connect_ms", "first_byte_ms", "download_ms", "total_ms"] {
        assert!(request["timings"][phase].as_f64().unwrap() >= 0.0, "{phase}: {request}");
    }
    assert!(request["timings"].get("dns_ms").is_none() && request["timings"].get("tls_ms").is_none() && request.get("tls").is_none());
    let sent = &web.asked()[0];
    assert_eq!(
        *sent,
        format!(
            "GET /a?b HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nUser-Agent: ProbeOps/{}\r\nAccept: */*\r\n\r\n",
            web.port(),
            probeops_shared::VERSION
        )
    );
    for line in sent.trim_end().lines() {
        assert!(found.output.contains(&format!("> {line}\n")), "{line}\n{}", found.output);
    }
    assert!(found.output.contains("< HTTP/1.1 200 All right\n< Content-Length: 5\n< X-B: 1\n"), "{}", found.output);
    assert!(found.output.contains("<\nhello\n* Body: 5 bytes, SHA-256 "), "{}", found.output);
    let (mut told, mut phases) = (String::new(), Vec::new());
    while let Some(News { progress, output, .. }) = news.try_recv() {
        told += &output;
        phases.push(progress["phase"].as_str().unwrap().to_owned());
    }
    assert_eq!((phases.as_slice(), told), (&["connected", "answered", "finished"].map(str::to_owned)[..], found.output));
}

#[tokio::test]
async fn what_is_sent_is_what_was_asked_for() {
    let web = Web::start(None, |_| page("201 Created", &[], b"")).await;
    let url = format!("http://127.0.0.1:{}/", web.port());
    let parameters = json!({"method": "PUT", "body": "some text", "host_header": "other.test", "basic_auth": "user:secret",
        "headers": ["X-One: 1", "accept: text/plain", "Cookie: id=secret"], "compression": true});
    let found = finds(&open_node(&[]), "http", &url, parameters).await;
    let sent = &web.asked()[0];
    for line in [
        "PUT / HTTP/1.1\r\nHost: other.test\r\n",
        "\r\nAccept-Encoding: gzip, deflate\r\n",
        "\r\nAuthorization: Basic dXNlcjpzZWNyZXQ=\r\n",
        "\r\nX-One: 1\r\n",
        "\r\nAccept: text/plain\r\n",
        "\r\nCookie: id=secret\r\n",
        "\r\nContent-Length: 9\r\n",
        "\r\n\r\nsome text",
    ] {
        assert!(sent.contains(line), "{line}\n{sent}");
    }
    assert_eq!(sent.matches("ccept: ").count(), 1, "{sent}");
    let whole = found.report.to_string() + &found.output;
    assert!(!whole.contains("secret") && !whole.contains("dXNlcj") && whole.contains("> Authorization: Basic ***"), "{whole}");
}

#[tokio::test]
async fn redirects_are_followed_as_far_as_allowed_and_each_is_listed() {
    let web = Web::start(None, |line| match line.split(' ').nth(1).unwrap() {
        "/1" => page("302 Found", &["Location: /2"], b"one"),
        "/2" => page("307 Temporary Redirect", &["Location: 3?x"], b""),
        "/loop" => page("301 Moved", &["Location: /loop"], b""),
        "/ftp" => page("301 Moved", &["Location: ftp://127.0.0.1/"], b""),
        _ => page("200 OK", &[], b"end"),
    })
    .await;
    let at = |path: &str| format!("http://127.0.0.1:{}{path}", web.port());
    let chain = |report: &Value| -> Vec<(String, u64)> {
        let one = |request: &Value| (request["url"].as_str().unwrap().to_owned(), request["status"].as_u64().unwrap());
        report["requests"].as_array().unwrap().iter().map(one).collect()
    };
    let report = asks(&at("/1"), json!({"redirects_max": 5, "method": "POST", "body": "x"})).await;
    assert_eq!(chain(&report), [(at("/1"), 302), (at("/2"), 307), (at("/3?x"), 200)]);
    assert_eq!((&report["redirects"], &report["status"]), (&json!(2), &json!(200)));
    let asked = web.asked();
    assert!(asked[0].starts_with("POST /1 ") && asked[1].starts_with("GET /2 ") && !asked[1].contains("\r\n\r\nx"), "{asked:?}");
    assert_eq!(chain(&asks(&at("/1"), json!({})).await), [(at("/1"), 302)]);
    let report = asks(&at("/loop"), json!({"redirects_max": 10})).await;
    assert_eq!((chain(&report).len(), report["redirect_not_followed"].is_string()), (11, true), "{report}");
    let report = asks(&at("/ftp"), json!({"redirects_max": 10})).await;
    assert!(report["redirect_not_followed"].as_str().unwrap().contains("only http and https"), "{report}");
}

#[tokio::test]
async fn credentials_stay_with_the_origin_that_they_were_given_for() {
    let other = Web::start(None, |_| page("200 OK", &[], b"")).await;
    let to = format!("Location: http://127.0.0.1:{}/", other.port());
    let web = Web::start(None, move |line| {
        if line.contains(" /same ") {
            page("200 OK", &[], b"")
        } else if line.contains(" /1 ") {
            page("301 x", &["Location: /same"], b"")
        } else {
            page("301 x", &[&to], b"")
        }
    })
    .await;
    let options = || json!({"redirects_max": 3, "bearer_token": "secret", "headers": ["Cookie: a=secret", "X-Kept: yes"]});
    asks(&format!("http://127.0.0.1:{}/1", web.port()), options()).await;
    assert!(web.asked()[1].contains("Bearer secret") && web.asked()[1].contains("Cookie"), "{:?}", web.asked());
    asks(&format!("http://127.0.0.1:{}/", web.port()), options()).await;
    let asked = &other.asked()[0];
    assert!(!asked.contains("secret") && asked.contains("X-Kept: yes"), "{asked}");
}

#[tokio::test]
async fn a_redirect_into_denied_space_is_refused_and_nothing_is_sent() {
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    for denied in ["127.0.0.2", "2130706434", "0x7f.2", "[::ffff:127.0.0.2]", "[64:ff9b::7f00:2]", "[2002:7f00:2::]"] {
        let to = format!("Location: http://{denied}:{port}/");
        let web = Web::start(None, move |_| page("302 Found", &[&to], b"")).await;
        let node = Context::new(policy("allow_loopback = true\n[deny]\nnetworks = [\"127.0.0.2/32\"]"), &[]).unwrap();
        let live = Live::default();
        let spec = spec("http", &format!("http://127.0.0.1:{}/", web.port()), json!({"redirects_max": 3}));
        fails(execute(&node, spec, &live).await, FailureKind::Denied, "127.0.0.2");
        assert_eq!(live.taken().unwrap().report["requests"][0]["status"], 302, "what was found before it is kept");
    }
    assert!(tokio::time::timeout(Duration::from_millis(50), listener.accept()).await.is_err(), "nobody came");
}

#[tokio::test]
async fn neither_resolve_nor_a_proxy_leads_around_the_policy() {
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let proxy = Web::start(None, |_| page("200 OK", &[], b"")).await;
    let node = Context::new(policy("allow_loopback = true\n[deny]\nnetworks = [\"127.0.0.2/32\"]\nnames = [\"bad.test\"]"), &[]).unwrap();
    let through = format!("http://127.0.0.1:{}/", proxy.port());
    for (target, parameters) in [
        (format!("http://127.0.0.1:{port}/"), json!({"resolve": "127.0.0.2"})),
        ("http://127.0.0.1/".to_owned(), json!({"proxy": format!("http://127.0.0.2:{port}")})),
        ("http://127.0.0.2/".to_owned(), json!({"proxy": through})),
        ("https://127.0.0.2/".to_owned(), json!({"proxy": through})),
        ("http://169.254.169.254/latest/meta-data/".to_owned(), json!({"proxy": through})),
        ("http://bad.test/".to_owned(), json!({"resolve": "127.0.0.1"})),
    ] {
        fails(run(&node, "http", &target, parameters).await, FailureKind::Denied, "this node's policy");
    }
    assert!(proxy.asked().is_empty(), "{:?}", proxy.asked());
    assert!(tokio::time::timeout(Duration::from_millis(50), listener.accept()).await.is_err(), "nobody came");
}

#[tokio::test]
async fn resolve_connects_elsewhere_under_the_same_name() {
    let web = Web::start(None, |_| page("200 OK", &[], b"")).await;
    let url = format!("http://nowhere.test:{}/", web.port());
    let report = asks(&url, json!({"resolve": "127.0.0.1"})).await;
    assert_eq!((&report["status"], &report["requests"][0]["address"]), (&json!(200), &json!("127.0.0.1")), "{report}");
    assert!(web.asked()[0].contains(&format!("Host: nowhere.test:{}\r\n", web.port())));
    let server = DnsServer::start().await;
    let found = finds(&open_node(&[server.address]), "http", &format!("http://local.test:{}/", web.port()), json!({})).await;
    assert!(found.report["requests"][0]["timings"]["dns_ms"].is_number(), "{}", found.report);
}

#[tokio::test]
async fn https_shows_the_certificate_and_fails_only_when_told_to_verify() {
    let root = Authority::root("Root");
    let mut config = server_config(&root.certify(&["good.test"]), &[]);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let web = Web::start(Some(config), |_| page("200 OK", &[], b"x")).await;
    let url = |host: &str| format!("https://{host}:{}/", web.port());
    let options = |more: Value| {
        let mut options = json!({"resolve": "127.0.0.1", "ca_certificates": root.certificate.pem()});
        options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        options
    };
    let report = asks(&url("good.test"), options(json!({}))).await;
    let tls = &report["requests"][0]["tls"];
    assert_eq!(
        (&report["status"], &tls["verified"], &tls["alpn"], &tls["days_left"]),
        (&json!(200), &json!(true), &json!("http/1.1"), &json!(90)),
        "{report}"
    );
    assert!(report["requests"][0]["timings"]["tls_ms"].is_number());
    let report = asks(&url("bad.test"), options(json!({}))).await;
    assert_eq!((&report["failure"]["code"], report.get("status")), (&json!("tls"), None), "{report}");
    assert_eq!(report["requests"][0]["tls"]["problems"][0]["code"], "name_mismatch");
    let report = asks(&url("bad.test"), options(json!({"verify": false}))).await;
    assert_eq!((&report["status"], &report["requests"][0]["tls"]["verified"]), (&json!(200), &json!(false)), "{report}");
    let report = asks(&url("bad.test"), options(json!({"server_name": "good.test"}))).await;
    assert_eq!(report["requests"][0]["tls"]["verified"], true, "{report}");
    let report = asks(&url("good.test"), options(json!({"http_version": "2"}))).await;
    assert!(report["failure"].is_object(), "{report}");
}

#[tokio::test]
async fn http_2_is_spoken_where_the_server_prefers_it() {
    let root = Authority::root("Root");
    let mut config = server_config(&root.certify(&["good.test"]), &[]);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let large = vec![b'x'; 300_000];
    let sum = sha256(&large);
    let serve = async {
        let stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        let service = hyper::service::service_fn(|request: hyper::Request<hyper::body::Incoming>| {
            assert_eq!((request.uri().host(), request.uri().path()), (Some("good.test"), "/p"));
            let body = http_body_util::Full::new(bytes::Bytes::from(large.clone()));
            async { Ok::<_, std::convert::Infallible>(hyper::Response::builder().header("x-a", "1").body(body).unwrap()) }
        });
        hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new())
            .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
            .await
    };
    let parameters = json!({"resolve": "127.0.0.1", "ca_certificates": root.certificate.pem(), "assertions": [{"type": "protocol", "one_of": ["HTTP/2"]}]});
    let (context, url) = (open_node(&[]), format!("https://good.test:{port}/p"));
    let (found, _served) = tokio::join!(finds(&context, "http", &url, parameters), serve);
    let request = &found.report["requests"][0];
    assert_eq!(
        (&request["protocol"], &request["status"], &request["tls"]["alpn"]),
        (&json!("HTTP/2"), &json!(200), &json!("h2")),
        "{request}"
    );
    assert_eq!((&request["body"]["size_bytes"], &request["body"]["sha256"]), (&json!(300_000), &json!(sum)));
    assert_eq!((found.report["assertions"][0]["passed"].clone(), request["headers"][0]["name"].clone()), (json!(true), json!("x-a")));
    assert!(found.output.contains("> GET /p HTTP/2\n") && found.output.contains("< HTTP/2 200 \n"), "{}", found.output);
}

#[tokio::test]
async fn http_2_in_clear_is_spoken_when_asked_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://127.0.0.1:{}/", listener.local_addr().unwrap().port());
    let serve = async {
        let io = hyper_util::rt::TokioIo::new(listener.accept().await.unwrap().0);
        let service = hyper::service::service_fn(|request: hyper::Request<hyper::body::Incoming>| async move {
            let body = http_body_util::BodyExt::collect(request.into_body()).await.unwrap().to_bytes();
            Ok::<_, std::convert::Infallible>(hyper::Response::new(http_body_util::Full::new(body)))
        });
        hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new()).serve_connection(io, service).await
    };
    let options = json!({"http_version": "2", "method": "POST", "body": "sent back"});
    let (report, _served) = tokio::join!(asks(&url, options), serve);
    let request = &report["requests"][0];
    assert_eq!((&request["protocol"], &request["body"]["text"]), (&json!("HTTP/2"), &json!("sent back")), "{report}");
}

#[tokio::test]
async fn bodies_are_bounded_and_decompressed() {
    let text = b"0123456789".repeat(5000);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&text).unwrap();
    let (gzip, plain) = (encoder.finish().unwrap(), text.clone());
    let web = Web::start(None, move |line| {
        if line.contains("gzip") { page("200 OK", &["Content-Encoding: gzip"], &gzip) } else { page("200 OK", &[], &plain) }
    })
    .await;
    let url = |path: &str| format!("http://127.0.0.1:{}/{path}", web.port());
    let body = |report: &Value| report["requests"][0]["body"].clone();
    let whole = body(&asks(&url("gzip"), json!({"compression": true, "body_bytes": 10})).await);
    assert_eq!((&whole["text"], &whole["size_bytes"], &whole["sha256"]), (&json!("0123456789"), &json!(50_000), &json!(sha256(&text))));
    let cut = body(&asks(&url("gzip"), json!({"compression": true, "read_bytes_max": 20_000, "body_bytes": 0})).await);
    assert_eq!((&cut["size_bytes"], &cut["truncated"], &cut["sha256"]), (&json!(20_000), &json!(true), &json!(sha256(&text[..20_000]))));
    let cut = body(&asks(&url(""), json!({"read_bytes_max": 20_000, "body_bytes": 0})).await);
    assert_eq!((&cut["size_bytes"], &cut["truncated"], &cut["sha256"]), (&json!(20_000), &json!(true), &json!(sha256(&text[..20_000]))));
    let broken = Web::start(None, |_| page("200 OK", &["Content-Encoding: gzip"], b"no gzip")).await;
    let report = asks(&format!("http://127.0.0.1:{}/", broken.port()), json!({"compression": true})).await;
    assert_eq!(report["failure"]["code"], "compression", "{report}");
}

#[tokio::test]
async fn a_failed_assertion_is_a_finding() {
    let web = Web::start(None, |_| page("404 Not Found", &[], br#"{"error": "gone"}"#)).await;
    let assertions = json!([{"type": "status", "one_of": ["2xx"]}, {"type": "json", "path": "$.error", "equals": "gone"}, {"type": "body", "matches": "g.ne"}]);
    let found =
        finds(&open_node(&[]), "http", &format!("http://127.0.0.1:{}/", web.port()), json!({"assertions": assertions, "body_bytes": 0}))
            .await;
    let passed: Vec<bool> = found.report["assertions"].as_array().unwrap().iter().map(|verdict| verdict["passed"] == true).collect();
    assert_eq!(passed, [false, true, true], "{}", found.report);
    assert!(found.output.contains("* Assertion 0 (status) FAILS: the status is 404\n"), "{}", found.output);
}

#[tokio::test]
async fn servers_that_misbehave_are_findings() {
    for (says, code) in [
        (&b""[..], "closed"),
        (b"220 mail\r\n", "protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", "closed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nabc", "protocol"),
    ] {
        let web = Web::start(None, move |_| says.to_vec()).await;
        let found = finds(&open_node(&[]), "http", &format!("http://127.0.0.1:{}/", web.port()), json!({})).await;
        assert_eq!(found.report["failure"]["code"], code, "{}\n{}", says.escape_ascii(), found.report);
    }
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let report = asks(&format!("http://127.0.0.1:{closed}/"), json!({})).await;
    assert_eq!((&report["failure"]["code"], &report["requests"][0]["state"]), (&json!("connect"), &json!("refused")), "{report}");
    // Silent before the head, and in the middle of the body: what came until then is kept.
    for (says, status) in [(&b""[..], None), (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", Some(200))] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://127.0.0.1:{}/", listener.local_addr().unwrap().port());
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(says).await.unwrap();
            stream
        };
        let (report, _stream) = tokio::join!(asks(&url, json!({"timeout": 0.3})), serve);
        assert_eq!((&report["failure"]["code"], report.get("status").and_then(Value::as_u64)), (&json!("timed_out"), status), "{report}");
        assert_eq!(report["requests"][0]["body"]["text"].as_str(), status.map(|_| "abc"), "{report}");
    }
}

#[tokio::test]
async fn the_oldest_version_is_spoken_with_servers_that_end_their_answers_by_closing() {
    let root = Authority::root("Root");
    for tls in [None, Some(server_config(&root.certify(&["127.0.0.1"]), &[]))] {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let web = Web::start(tls, |_| b"HTTP/1.0 200 OK\r\nX-A: b\r\n\r\nto the end".to_vec()).await;
        let url = format!("{scheme}://127.0.0.1:{}/x", web.port());
        let options = json!({"http_version": "1.0", "method": "POST", "body": "abc", "verify": false});
        let report = asks(&url, options).await;
        let request = &report["requests"][0];
        assert_eq!((&request["protocol"], &request["body"]["text"]), (&json!("HTTP/1.0"), &json!("to the end")), "{report}");
        let asked = &web.asked()[0];
        assert!(asked.starts_with("POST /x HTTP/1.0\r\nHost: 127.0.0.1:") && asked.ends_with("\r\n\r\nabc"), "{asked}");
        assert!(asked.contains("Content-Length: 3\r\n") && !asked.contains("Transfer-Encoding"), "{asked}");
    }
}

/// A proxy that makes tunnels; it tells what it was asked for.
async fn tunnel_proxy(listener: TcpListener) -> String {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let to = head.split(' ').nth(1).unwrap().to_owned();
    let mut behind = TcpStream::connect(to).await.unwrap();
    stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
    drop(tokio::io::copy_bidirectional(&mut stream, &mut behind).await);
    head
}

#[tokio::test]
async fn a_proxy_is_handed_addresses_and_makes_tunnels_to_what_has_a_name() {
    let proxy = Web::start(None, |_| page("200 OK", &[], b"from the proxy")).await;
    let options = json!({"proxy": format!("http://127.0.0.1:{}", proxy.port()), "proxy_auth": "user:secret",
        "proxy_headers": ["x-route: 2", "X-Api-Key: secret"]});
    let report = asks("http://127.0.0.1:1/x", options).await;
    assert_eq!((&report["status"], &report["requests"][0]["proxy"]["tunnel"]), (&json!(200), &json!(false)), "{report}");
    assert!(proxy.asked()[0].starts_with("GET http://127.0.0.1:1/x HTTP/1.1\r\nHost: 127.0.0.1:1\r\n"), "{:?}", proxy.asked());
    assert!(proxy.asked()[0].contains("Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\nX-Route: 2\r\nX-Api-Key: secret\r\n"));
    assert!(!report.to_string().contains("secret"), "{report}");

    let root = Authority::root("Root");
    let web = Web::start(Some(server_config(&root.certify(&["local.test"]), &[])), |_| page("200 OK", &[], b"through")).await;
    let (server, listener) = (DnsServer::start().await, TcpListener::bind("127.0.0.1:0").await.unwrap());
    let options = json!({"proxy": format!("http://{}", listener.local_addr().unwrap()), "ca_certificates": root.certificate.pem(),
        "proxy_headers": ["X-Route: 2"]});
    let (context, url) = (open_node(&[server.address]), format!("https://local.test:{}/", web.port()));
    let (found, asked) = tokio::join!(finds(&context, "http", &url, options), tunnel_proxy(listener));
    let to = format!("127.0.0.1:{}", web.port());
    assert_eq!(asked, format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nX-Route: 2\r\n\r\n"));
    assert!(!web.asked()[0].contains("X-Route"), "{:?}", web.asked());
    let request = &found.report["requests"][0];
    assert_eq!((&request["body"]["text"], &request["tls"]["verified"]), (&json!("through"), &json!(true)), "{request}");
    assert!(
        request["timings"]["proxy_ms"].is_number() && found.output.contains("* CONNECT tunnel established to 127.0.0.1"),
        "{}",
        found.output
    );

    let refusing = Web::start(None, |_| page("407 Proxy Authentication Required", &[], b"")).await;
    let report = asks("https://127.0.0.1/", json!({"proxy": format!("http://127.0.0.1:{}", refusing.port())})).await;
    assert_eq!(report["failure"]["code"], "proxy", "{report}");
    assert!(report["failure"]["detail"].as_str().unwrap().contains("407 Proxy Authentication Required"), "{report}");
}

#[tokio::test]
async fn a_run_cut_short_keeps_the_requests_before_and_closes_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://127.0.0.1:{}/", listener.local_addr().unwrap().port());
    let (context, (live, mut news)) = (open_node(&[]), Live::heard());
    let serve = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc").await.unwrap();
        loop {
            match news.recv().await {
                Some(news) if news.progress["phase"] == "answered" => break stream,
                Some(_) => {}
                None => panic!("no answer was told of"),
            }
        }
    };
    let mut stream = tokio::select! {
        _ = execute(&context, spec("http", &url, json!({})), &live) => panic!("the body has no end"),
        served = serve => served,
    };
    let found = live.taken().unwrap();
    assert_eq!((&found.report["status"], &found.report["requests"][0]["status"]), (&json!(200), &json!(200)));
    let body = &found.report["requests"][0]["body"];
    assert_eq!((&body["text"], &body["size_bytes"], &body["truncated"]), (&json!("abc"), &json!(3), &json!(true)), "{body}");
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await.unwrap().unwrap();
}
