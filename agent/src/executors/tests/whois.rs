//! `whois` against registries of our own, which speak WHOIS and RDAP as the real ones do.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use super::web::{Web, page};
use super::{Context, FailureKind, Live, execute, fails, finds, open_node, policy, run, spec};
use crate::testing::{Authority, server_config};

/// A server of WHOIS that answers each line with what `answer` makes of it, and how many it has answered.
async fn whois_server(answer: impl Fn(&str) -> String + Send + 'static) -> (SocketAddr, Arc<AtomicUsize>) {
    whois_server_at("127.0.0.1:0", answer).await
}

async fn whois_server_at(at: &str, answer: impl Fn(&str) -> String + Send + 'static) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(at).await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            let mut line = String::new();
            BufReader::new(&mut stream).read_line(&mut line).await.unwrap();
            assert!(line.ends_with("\r\n"), "{line:?}");
            // Whoever has read enough ends the connection.
            drop(stream.write_all(answer(line.trim_end()).as_bytes()).await);
        }
    });
    (address, asked)
}

/// What a server of RDAP answers: status, where to instead, body.
type Answer = (u16, Option<String>, String);

/// A server of RDAP, over TLS if it has a certificate.
async fn rdap_server(tls: Option<rustls::ServerConfig>, answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Web {
    let answer = move |line: &str| {
        let (status, location, body) = answer(line.split(' ').nth(1).unwrap());
        let location = location.map(|location| format!("Location: {location}"));
        let fields: Vec<&str> = ["Content-Type: application/rdap+json"].into_iter().chain(location.as_deref()).collect();
        page(&format!("{status} Any"), &fields, body.as_bytes())
    };
    Web::start(tls, answer).await
}

fn domain_object(name: &str) -> String {
    json!({"objectClassName": "domain", "ldhName": name, "handle": "D1-TEST", "status": ["active"],
        "nameservers": [{"objectClassName": "nameserver", "ldhName": "NS1.TEST"}],
        "events": [{"eventAction": "registration", "eventDate": "2001-02-03T04:05:06Z"}]})
    .to_string()
}

fn statuses(report: &Value) -> Vec<&str> {
    report["queries"].as_array().unwrap().iter().map(|query| query["status"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn whois_follows_iana_to_the_registry_and_the_registrar_and_no_further() {
    let (beyond, beyond_asked) = whois_server(|_| "Domain Name: EXAMPLE.TEST\r\n".to_owned()).await;
    let (registrar, _) = whois_server(move |line| {
        format!("Domain Name: {line}\r\nRegistrant Organization: Example Holder\r\nRegistrar WHOIS Server: whois://{beyond}\r\nCreation Date: 1999\r\n")
    })
    .await;
    let (registry, _) = whois_server(move |line| {
        format!("Domain Name: {line}\r\nRegistrar WHOIS Server: {registrar}\r\nRegistrar: Example\r\nCreation Date: 2001-02-03\r\n")
    })
    .await;
    let (iana, _) =
        whois_server(move |_| format!("% IANA WHOIS server\n\nrefer:        {registry}\n\ndomain:       TEST\ncreated:      1970-01-01\n"))
            .await;
    let parameters = json!({"server": "127.0.0.1", "port": iana.port()});
    let found = finds(&open_node(&[]), "whois", "example.test", parameters.clone()).await;
    let report = &found.report;
    // The registry's date, not that of IANA's entry nor the registrar's; and the holder, whom only the registrar names.
    assert_eq!(
        (&report["registered"], &report["protocol"], &report["record"]["created"]),
        (&json!(true), &json!("whois"), &json!("2001-02-03")),
        "{report}"
    );
    assert_eq!((&report["record"]["registrar"], &report["record"]["organization"]), (&json!("Example"), &json!("Example Holder")));
    assert_eq!(statuses(report), ["referral", "referral", "found"]);
    assert_eq!(beyond_asked.load(Ordering::Relaxed), 0, "a third referral is not followed");
    assert!(
        found.output.starts_with("% IANA WHOIS server\n\nrefer: ") && found.output.ends_with("Creation Date: 1999\n"),
        "{}",
        found.output
    );
    let alone =
        finds(&open_node(&[]), "whois", "example.test", json!({"server": "127.0.0.1", "port": iana.port(), "recursion": false})).await;
    assert!(alone.report.get("registered").is_none() && alone.report["queries"].as_array().unwrap().len() == 1, "{}", alone.report);
    // What is told adds up to what is printed.
    let (live, mut heard) = Live::heard();
    let again = execute(&open_node(&[]), spec("whois", "example.test", parameters), &live).await.unwrap();
    drop(live);
    let (mut told, mut kinds) = (String::new(), Vec::new());
    while let Some(news) = heard.recv().await {
        told.push_str(&news.output);
        kinds.push(news.progress["type"].as_str().unwrap().to_owned());
    }
    assert_eq!((told, kinds), (again.output, ["asking", "answer"].repeat(3).iter().map(|kind| (*kind).to_owned()).collect()));
}

#[tokio::test]
async fn servers_that_refer_to_each_other_are_each_asked_once() {
    let back = Arc::new(OnceLock::new());
    let to = Arc::clone(&back);
    let (second, second_asked) = whois_server(move |_| format!("refer: {}\n", to.get().unwrap())).await;
    let (first, first_asked) = whois_server(move |_| format!("refer: {second}\n")).await;
    back.set(first).unwrap();
    let found = finds(&open_node(&[]), "whois", "192.0.2.1", json!({"server": "127.0.0.1", "port": first.port()})).await;
    assert_eq!((first_asked.load(Ordering::Relaxed), second_asked.load(Ordering::Relaxed)), (1, 1), "{}", found.report);
}

#[tokio::test]
async fn a_referral_to_where_the_node_may_not_go_is_refused_and_nothing_is_sent() {
    let (hidden, asked) = whois_server_at("127.0.0.2:0", |_| "inetnum: 192.0.2.0 - 192.0.2.255\n".to_owned()).await;
    let redirect = rdap_server(None, move |_| (302, Some(format!("http://{hidden}/ip/192.0.2.1")), String::new())).await.address;
    let context = Context::new(policy("allow_loopback = true\n[deny]\nnetworks = [\"127.0.0.2/32\"]"), &[]).unwrap();
    for referral in [hidden.to_string(), "169.254.169.254".to_owned(), "::ffff:169.254.169.254".to_owned(), "64:ff9b::a9fe:a9fe".to_owned()]
    {
        let (server, _) = whois_server(move |_| format!("refer: {referral}\n")).await;
        let found = finds(&context, "whois", "192.0.2.1", json!({"server": "127.0.0.1", "port": server.port()})).await;
        assert_eq!(statuses(&found.report), ["referral", "denied"], "{}", found.report);
        assert!(found.report["queries"][1].get("address").is_none() && found.output.contains("this node's policy"), "{}", found.output);
    }
    let rdap = json!({"protocol": "rdap", "rdap_server": format!("http://{redirect}/")});
    let found = finds(&context, "whois", "192.0.2.1", rdap).await;
    assert_eq!(statuses(&found.report), ["referral", "denied"], "{}", found.report);
    assert_eq!(asked.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn rdap_is_asked_first_over_tls_and_through_a_redirect() {
    let root = Authority::root("Root");
    let config = || server_config(&root.certify(&["127.0.0.1"]), &[]);
    let registry = rdap_server(Some(config()), |path| match path {
        "/v1/domain/example.test" => (200, None, domain_object("EXAMPLE.TEST")),
        _ => (404, None, json!({"errorCode": 404, "title": "Not Found"}).to_string()),
    })
    .await;
    let address = registry.address;
    let redirector =
        rdap_server(Some(config()), move |path| (302, Some(format!("https://{address}/v1{path}")), String::new())).await.address;
    let parameters = json!({"rdap_server": format!("https://{redirector}"), "ca_certificates": root.certificate.pem()});
    let context = open_node(&[]);
    let found = finds(&context, "whois", "example.test", parameters.clone()).await;
    let report = &found.report;
    assert_eq!(
        (&report["protocol"], &report["registered"], statuses(report)),
        (&json!("rdap"), &json!(true), vec!["referral", "found"]),
        "{report}"
    );
    assert_eq!(report["record"]["name_servers"], json!(["ns1.test"]));
    assert_eq!((&report["queries"][1]["http_status"], &report["queries"][1]["object"]["handle"]), (&json!(200), &json!("D1-TEST")));
    assert!(found.output.ends_with("Domain Name: example.test\nRegistry Domain ID: D1-TEST\nCreation Date: 2001-02-03T04:05:06Z\nDomain Status: active\nName Server: ns1.test\n"), "{}", found.output);
    assert!(registry.asked()[0].to_lowercase().contains("accept: application/rdap+json"), "{:?}", registry.asked());
    let missing = finds(&context, "whois", "nowhere.test", parameters).await;
    assert_eq!(
        (&missing.report["registered"], statuses(&missing.report)),
        (&json!(false), vec!["referral", "not_found"]),
        "{}",
        missing.report
    );
    // Without the authority the server is a stranger, and is not believed.
    let stranger =
        finds(&context, "whois", "example.test", json!({"protocol": "rdap", "rdap_server": format!("https://{redirector}")})).await;
    assert_eq!((stranger.report.get("registered"), statuses(&stranger.report)), (None, vec!["failed"]));
    assert!(
        stranger.report["queries"][0]["reason"].as_str().unwrap().starts_with("TLS: the certificate is not trusted"),
        "{}",
        stranger.report
    );
}

#[tokio::test]
async fn whois_is_asked_where_rdap_brings_no_answer() {
    let (whois, _) = whois_server(|line| format!("aut-num: {line}\nas-name: EXAMPLE-AS\n")).await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let broken = rdap_server(None, |_| (500, None, String::new())).await.address;
    let downgrade = {
        let root = Authority::root("Root");
        let config = server_config(&root.certify(&["127.0.0.1"]), &[]);
        let server = rdap_server(Some(config), move |_| (301, Some(format!("http://{broken}/")), String::new())).await.address;
        (format!("https://{server}/"), root.certificate.pem())
    };
    for (server, ca, reason) in [
        (format!("http://{closed}/"), None, "Connection refused"),
        (format!("http://{broken}/"), None, "it answered with HTTP 500"),
        (downgrade.0, Some(downgrade.1), "it redirects from https to http"),
    ] {
        let mut parameters = json!({"rdap_server": server, "server": "127.0.0.1", "port": whois.port()});
        if let Some(ca) = ca {
            parameters["ca_certificates"] = ca.into();
        }
        let found = finds(&open_node(&[]), "whois", "AS64500", parameters).await;
        assert!(found.report["queries"][0]["reason"].as_str().unwrap().starts_with(reason), "{}", found.report);
        assert_eq!(
            (&found.report["protocol"], &found.report["record"]["name"]),
            (&json!("whois"), &json!("EXAMPLE-AS")),
            "{}",
            found.report
        );
    }
}

#[tokio::test]
async fn answers_are_bounded() {
    let (endless, _) =
        whois_server(|_| "Domain Name: example.test\nRegistrar: x\n".to_owned() + &"remark: 0123456789\n".repeat(8_000)).await;
    let found = finds(&open_node(&[]), "whois", "example.test", json!({"server": "127.0.0.1", "port": endless.port()})).await;
    let query = &found.report["queries"][0];
    assert_eq!((&query["size_bytes"], &query["truncated"]), (&json!(64 * 1024), &json!(true)));
    let large = rdap_server(None, |_| (200, None, "[".repeat(200_000))).await.address;
    let found =
        finds(&open_node(&[]), "whois", "example.test", json!({"protocol": "rdap", "rdap_server": format!("http://{large}")})).await;
    assert!(found.report["queries"][0]["reason"].as_str().unwrap().contains("longer than 131072 bytes"), "{}", found.report);
    let loops = rdap_server(None, |path| (302, Some(format!("{path}/x")), String::new())).await.address;
    let found =
        finds(&open_node(&[]), "whois", "example.test", json!({"protocol": "rdap", "rdap_server": format!("http://{loops}")})).await;
    assert_eq!(statuses(&found.report), ["referral", "referral", "referral", "failed"], "{}", found.report);
}

#[tokio::test]
async fn nobody_to_ask_is_a_failure_and_silence_a_finding() {
    let context = Context::new(policy(""), &[]).unwrap();
    fails(run(&context, "whois", "example.test", json!({"server": "127.0.0.1"})).await, FailureKind::Denied, "loopback");
    fails(
        run(&context, "whois", "example.test", json!({"rdap_server": "https://169.254.169.254/", "protocol": "rdap"})).await,
        FailureKind::Denied,
        "link-local",
    );
    let narrowed = open_node(&[]).for_run(Some("*.example.com".parse().unwrap()), None, None);
    fails(
        run(&narrowed, "whois", "example.org", json!({"server": "127.0.0.1"})).await,
        FailureKind::Denied,
        "the caller's own target limits",
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let open_ended = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let held = async {
        let (mut stream, _) = open_ended.accept().await.unwrap();
        stream.write_all(b"aut-num: AS64500\nas-name: EXAMPLE-AS\n").await.unwrap();
        stream
    };
    let parameters = json!({"server": "127.0.0.1", "port": open_ended.local_addr().unwrap().port(), "timeout": 0.3});
    let context = open_node(&[]);
    let (found, _stream) = tokio::join!(finds(&context, "whois", "AS64500", parameters), held);
    let query = &found.report["queries"][0];
    assert_eq!((&query["status"], &query["truncated"]), (&json!("found"), &json!(true)), "it answered and did not end: {query}");
    let silent = json!({"server": "127.0.0.1", "port": listener.local_addr().unwrap().port(), "timeout": 0.2});
    let found = finds(&open_node(&[]), "whois", "example.test", silent).await;
    assert_eq!((statuses(&found.report), found.report.get("registered")), (vec!["unreachable"], None), "{}", found.report);
    assert!(found.output.contains("no answer within 200 ms"), "{}", found.output);
}
