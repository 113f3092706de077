//! `tls` against servers of this machine.

use probeops_shared::tls::ProblemCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{Context, FailureKind, LOCAL, Live, News, execute, fails, finds, open_node, policy, run, spec};
use crate::testing::{Authority, serve, server_config, valid};

/// The options for a server of ours.
fn at(port: u16, authority: &Authority, more: Value) -> Value {
    let mut parameters = json!({"port": port, "server_name": "good.test", "ca_certificates": authority.certificate.pem()});
    let Value::Object(more) = more else { panic!("{more}") };
    parameters.as_object_mut().unwrap().extend(more);
    parameters
}

#[tokio::test]
async fn a_chain_is_shown_with_every_reason_not_to_trust_it() {
    let root = Authority::root("Root");
    let middle = root.below("Middle");
    let identity = middle.certify_with(&["other.test"], |params| valid(params, -9, -2));
    let port = serve(server_config(&identity, &[&middle])).await.port();
    let found = finds(&open_node(&[]), "tls", "127.0.0.1", at(port, &root, json!({"pem": true}))).await;
    let report = &found.report;
    let codes: Vec<&Value> = report["problems"].as_array().unwrap().iter().map(|problem| &problem["code"]).collect();
    assert_eq!(codes, [ProblemCode::NameMismatch.as_str(), ProblemCode::Expired.as_str()], "{report}");
    assert_eq!((&report["handshake"], &report["verified"], &report["days_left"]), (&json!("completed"), &json!(false), &json!(-2)));
    assert_eq!((&report["chain"][0]["subject"], report["chain"].as_array().unwrap().len()), (&json!("CN=other.test"), 2));
    assert!(report["chain"][0]["pem"].as_str().unwrap().starts_with("-----BEGIN CERTIFICATE-----\n"));
    for part in [
        "depth=0 CN=other.test\nverify error:num=10:certificate has expired (the server's certificate expired on ",
        "verify error:num=62:hostname mismatch (the server's certificate is not for good.test, but for other.test)\n",
        "CONNECTION ESTABLISHED\nProtocol version: TLSv1.3\nCiphersuite: TLS_AES_256_GCM_SHA384\nPeer certificate: CN=other.test\n",
        "Verification error: certificate has expired\n",
        "Certificate chain\n 0 s:CN=other.test\n   i:CN=Middle\n   a:PKEY: id-ecPublicKey, 256 (bit); sigalg: ecdsa-with-SHA256\n",
    ] {
        assert!(found.output.contains(part), "{part}\n{}", found.output);
    }
    assert!(found.output.ends_with("---\nDONE\n"), "{}", found.output);
}

#[tokio::test]
async fn every_connection_is_from_the_source_that_is_given() {
    let (context, listener) = (open_node(&[]), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let port = listener.local_addr().unwrap().port();
    let refused = run(&context, "tls", "127.0.0.1", json!({"port": port, "source": "192.0.2.9"})).await;
    fails(refused, FailureKind::Invalid, "is not an address of this node");
    // One that the system would not choose by itself, where there is one.
    let own = crate::net::interfaces::read().unwrap().addresses;
    let source = own.into_iter().find(|own| own.is_ipv4() && !own.is_loopback()).unwrap_or(LOCAL[0]);
    // The server ends each: that of the handshake, the one by hand, and those of the versions.
    let serve = async {
        loop {
            let (stream, from) = listener.accept().await.unwrap();
            assert_eq!(from.ip(), source);
            drop(stream);
        }
    };
    let parameters = json!({"port": port, "source": source, "versions": true});
    tokio::select! {
        found = finds(&context, "tls", "127.0.0.1", parameters) => assert_eq!(found.report["state"], "open", "{}", found.report),
        () = serve => {}
    }
}

#[tokio::test]
async fn versions_are_tried_one_by_one_and_told_as_they_are_known() {
    let root = Authority::root("Root");
    let port = serve(server_config(&root.certify(&["good.test"]), &[])).await.port();
    let (live, mut news) = Live::heard();
    let parameters = at(port, &root, json!({"versions": true}));
    let found = execute(&open_node(&[]), spec("tls", "127.0.0.1", parameters), &live).await.unwrap();
    let accepted: Vec<_> = found.report["versions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|offer| (offer["version"].as_str().unwrap(), offer["accepted"] == true))
        .collect();
    assert_eq!(accepted, [("1.3", true), ("1.2", true), ("1.1", false), ("1.0", false)], "{}", found.report);
    assert_eq!(found.report["versions"][1]["cipher"], "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384");
    assert_eq!(found.report["versions"][3]["failure"]["code"], "alert");
    let (mut told, mut kinds) = (String::new(), Vec::new());
    while let Some(News { progress, output, .. }) = news.try_recv() {
        told += &output;
        kinds.push(progress["type"].as_str().unwrap().to_owned());
    }
    assert_eq!(kinds, ["resolved", "connected", "handshake", "version", "version", "version", "version"]);
    assert_eq!(told + "DONE\n", found.output);
}

#[tokio::test]
async fn a_mail_server_goes_over_to_tls() {
    let root = Authority::root("Root");
    let config = server_config(&root.certify(&["good.test"]), &[]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        for (says, hears) in [("220 mail\r\n", "EHLO probeops.invalid\r\n"), ("250-mail\r\n250 STARTTLS\r\n", "STARTTLS\r\n")] {
            stream.write_all(says.as_bytes()).await.unwrap();
            let mut heard = vec![0; hears.len()];
            stream.read_exact(&mut heard).await.unwrap();
            assert_eq!(String::from_utf8(heard).unwrap(), hears);
        }
        stream.write_all(b"220 go\r\n").await.unwrap();
        TlsAcceptor::from(std::sync::Arc::new(config)).accept(stream).await
    };
    let (context, parameters) = (open_node(&[]), at(port, &root, json!({"starttls": "smtp"})));
    let (found, _stream) = tokio::join!(finds(&context, "tls", "127.0.0.1", parameters), serve);
    assert_eq!(found.report["verified"], true, "{}", found.report);
    assert!(found.report["timings"]["starttls_ms"].is_number());
}

#[tokio::test]
async fn a_port_without_tls_is_a_finding() {
    let context = open_node(&[]);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let found = finds(&context, "tls", "127.0.0.1", json!({"port": closed})).await;
    assert_eq!((&found.report["state"], &found.report["handshake"]), (&json!("refused"), &json!("failed")), "{}", found.report);
    assert!(found.output.starts_with("connect to 127.0.0.1 port") && found.report.get("verified").is_none(), "{}", found.output);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let silent = finds(&context, "tls", "127.0.0.1", json!({"port": port, "timeout": 0.2})).await;
    assert_eq!((&silent.report["state"], &silent.report["failure"]["code"]), (&json!("open"), &json!("timed_out")), "{}", silent.report);
}

#[tokio::test]
async fn texts_that_hold_no_certificate_are_refused_at_the_node() {
    let broken = json!({"ca_certificates": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"});
    fails(run(&open_node(&[]), "tls", "127.0.0.1", broken).await, FailureKind::Invalid, "cannot be read");
}

#[tokio::test]
async fn nothing_is_sent_to_what_is_denied() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = Context::new(policy(""), &[]).unwrap();
    let port = listener.local_addr().unwrap().port();
    fails(run(&closed, "tls", "127.0.0.1", json!({"port": port})).await, FailureKind::Denied, "loopback");
    assert!(tokio::time::timeout(std::time::Duration::from_millis(50), listener.accept()).await.is_err());
}
