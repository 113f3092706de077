//! Handshakes with real servers, each wrong in a way of its own.

use std::net::SocketAddr;

use probeops_shared::tls::ProblemCode as Code;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpStream;

use super::*;
use crate::testing::{Authority, Identity, self_signed, serve, server_config, valid};

fn terms(authority: &Authority) -> Terms {
    let authorities = vec![authority.certificate.der().clone()];
    Terms { trust: Trust::Inspect, authorities, ..Terms::new(&"good.test".parse().unwrap()) }
}

async fn greet(address: SocketAddr, terms: &Terms) -> Result<TlsSession, Refused> {
    connect(TcpStream::connect(address).await.unwrap(), terms).await.map(|(_, session)| session)
}

/// What the chain is found to be, with the strict way taken to the same verdict.
async fn codes(config: ServerConfig, terms: &Terms) -> Vec<Code> {
    let address = serve(config).await;
    let session = greet(address, terms).await.unwrap();
    let strict = greet(address, &Terms { trust: Trust::Strict, ..terms.clone() }).await;
    assert_eq!(strict.is_ok(), session.problems.is_empty(), "{:?}", session.problems);
    if let Err(refused) = strict {
        assert_eq!((refused.failure.code, &refused.session.problems), (TlsFailureCode::Certificate, &session.problems));
        assert_eq!(refused.session.chain, session.chain);
    }
    assert_eq!(session.verified, Some(session.problems.is_empty()));
    session.problems.iter().map(|problem| problem.code).collect()
}

#[tokio::test]
async fn a_good_chain_is_verified_and_told() {
    let root = Authority::root("Root");
    let middle = root.below("Middle");
    let identity = middle.certify(&["good.test", "192.0.2.1"]);
    let mut config = server_config(&identity, &[&middle]);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let terms = Terms { alpn: vec!["h2".to_owned(), "http/1.1".to_owned()], trust: Trust::Strict, pem: true, ..terms(&root) };
    let session = greet(serve(config).await, &terms).await.unwrap();
    assert_eq!((session.version, session.alpn.as_deref(), session.verified), (Some(TlsVersion::V1_3), Some("h2"), Some(true)));
    assert_eq!((session.cipher.as_deref(), session.group.as_deref()), (Some("TLS_AES_256_GCM_SHA384"), Some("X25519")));
    assert_eq!((session.signature_scheme.as_deref(), session.sni), (Some("ECDSA_NISTP256_SHA256"), true));
    assert_eq!((session.days_left, session.client_certificate_requested, session.chain.len()), (Some(90), Some(false), 2));
    let own = &session.chain[0];
    assert_eq!((own.subject.as_str(), own.issuer.as_str(), own.version, own.is_ca), ("CN=good.test", "CN=Middle", 3, false));
    assert_eq!(own.san, ["good.test", "IP:192.0.2.1"]);
    assert_eq!((own.key.kind.as_str(), own.key.bits, own.key.curve.as_deref()), ("EC", Some(256), Some("P-256")));
    assert_eq!(own.signature_algorithm, "ecdsa-with-SHA256");
    assert_eq!(own.pem.as_ref().unwrap().replace('\n', ""), identity.certificate.pem().replace(['\n', '\r'], ""));
    assert!(session.chain[1].is_ca && session.ocsp.is_none());
}

#[tokio::test]
async fn every_reason_is_told_at_once() {
    let root = Authority::root("Root");
    let middle = root.below("Middle");
    let terms = terms(&root);
    let with = |identity: &Identity| server_config(identity, &[&middle]);
    assert_eq!(codes(with(&middle.certify(&["good.test"])), &terms).await, []);
    assert_eq!(codes(with(&middle.certify_with(&["good.test"], |params| valid(params, -9, -1))), &terms).await, [Code::Expired]);
    assert_eq!(codes(with(&middle.certify_with(&["good.test"], |params| valid(params, 2, 9))), &terms).await, [Code::NotYetValid]);
    assert_eq!(codes(with(&middle.certify(&["other.test"])), &terms).await, [Code::NameMismatch]);
    let identity = middle.certify_with(&["other.test"], |params| valid(params, -9, -1));
    assert_eq!(codes(with(&identity), &terms).await, [Code::NameMismatch, Code::Expired]);
    assert_eq!(
        codes(server_config(&identity, &[]), &terms).await,
        [Code::UnknownIssuer, Code::NameMismatch, Code::Expired],
        "and the link to the root is missing"
    );
    let client = middle.certify_with(&["good.test"], |params| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    });
    assert_eq!(codes(with(&client), &terms).await, [Code::WrongPurpose]);
    // One that was made with the same name and another key.
    let namesake = Authority::root("Root").below("Middle");
    assert_eq!(codes(with(&namesake.certify(&["good.test"])), &terms).await, [Code::BadSignature]);
    let stranger = Authority::root("Stranger");
    assert_eq!(codes(server_config(&stranger.certify(&["good.test"]), &[&stranger]), &terms).await, [Code::UnknownIssuer]);
}

#[tokio::test]
async fn a_certificate_that_signs_itself_is_trusted_only_when_it_is_named() {
    let identity = self_signed(&["good.test"]);
    let terms = terms(&Authority::root("Root"));
    assert_eq!(codes(server_config(&identity, &[]), &terms).await, [Code::SelfSigned]);
    let named = Terms { authorities: vec![identity.certificate.der().clone()], ..terms };
    assert_eq!(codes(server_config(&identity, &[]), &named).await, []);
}

#[tokio::test]
async fn an_address_needs_a_certificate_for_it_and_is_not_sent() {
    let root = Authority::root("Root");
    let address = serve(server_config(&root.certify(&["127.0.0.1"]), &[])).await;
    let here = Terms { name: "127.0.0.1".parse().unwrap(), ..terms(&root) };
    let session = greet(address, &here).await.unwrap();
    assert_eq!((session.verified, session.sni), (Some(true), false));
    let session = greet(address, &Terms { name: "127.0.0.2".parse().unwrap(), ..here }).await.unwrap();
    assert_eq!(session.problems[0].detail, "the server's certificate is not for 127.0.0.2, but for 127.0.0.1");
}

#[tokio::test]
async fn versions_can_be_narrowed_and_what_does_not_fit_is_told() {
    let root = Authority::root("Root");
    let identity = root.certify(&["good.test"]);
    let old = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(identity.chain(&[]), identity.key_der())
        .unwrap();
    let address = serve(old).await;
    let session = greet(address, &terms(&root)).await.unwrap();
    assert_eq!((session.version, session.verified), (Some(TlsVersion::V1_2), Some(true)));
    assert_eq!(session.cipher.as_deref(), Some("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"));
    let refused = greet(address, &Terms { min: TlsVersion::V1_3, ..terms(&root) }).await.unwrap_err();
    assert_eq!(
        (refused.failure.code, refused.failure.detail.as_str()),
        (TlsFailureCode::Alert, "the server sent the alert ProtocolVersion")
    );
    assert!(refused.session.chain.is_empty() && refused.session.verified.is_none());
}

#[tokio::test]
async fn a_server_may_ask_who_we_are() {
    let root = Authority::root("Root");
    let identity = root.certify(&["good.test"]);
    let mut trusted = RootCertStore::empty();
    trusted.add(root.certificate.der().clone()).unwrap();
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(trusted), Arc::clone(&provider)).build().unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain(&[]), identity.key_der())
        .unwrap();
    let address = serve(config).await;
    let session = greet(address, &Terms { max: TlsVersion::V1_2, ..terms(&root) }).await.unwrap_err().session;
    assert_eq!((session.client_certificate_requested, session.verified), (Some(true), Some(true)));
    let client =
        root.certify_with(&["client.test"], |params| params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth]);
    let text = |text: String| serde_json::from_value(text.into()).unwrap();
    let key: PrivateKeyPem = serde_json::from_value(client.key.serialize_pem().into()).unwrap();
    let shown = super::identity(&text(client.certificate.pem()), &key).unwrap();
    let session = greet(address, &Terms { identity: Some(shown), ..terms(&root) }).await.unwrap();
    assert_eq!(session.client_certificate_requested, Some(true));
    let other = super::identity(&text(identity.certificate.pem()), &key).unwrap_err();
    assert_eq!(other, "the key is of an unknown kind, or not the certificate's");
}

#[tokio::test]
async fn a_server_that_speaks_something_else_is_told_apart_from_one_that_hangs_up() {
    use tokio::io::AsyncWriteExt;
    for (words, code) in [(&b"220 hello\r\n"[..], TlsFailureCode::NotTls), (&b""[..], TlsFailureCode::Closed)] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let speak = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(words).await.unwrap();
            stream.shutdown().await.unwrap();
            stream
        };
        let terms = Terms::new(&"good.test".parse().unwrap());
        let (refused, _stream) = tokio::join!(greet(address, &terms), speak);
        assert_eq!(refused.unwrap_err().failure.code, code);
    }
}

#[test]
fn a_broken_certificate_is_told_and_never_believed() {
    let root = Authority::root("Root");
    let identity = root.certify(&["good.test"]);
    let whole = identity.certificate.der().to_vec();
    let mut roots = RootCertStore::empty();
    roots.add(root.certificate.der().clone()).unwrap();
    let algorithms = ring::default_provider().signature_verification_algorithms;
    let authorities = judge::Authorities { roots: Arc::new(roots), named: Vec::new(), algorithms };
    let name = server_name(&"good.test".parse().unwrap()).unwrap();
    let now = rustls::pki_types::UnixTime::now();
    let judged = |der: Vec<u8>| judge::problems(&[CertificateDer::from(der)], &name, None, now, &authorities);
    assert_eq!(judged(whole.clone()), []);
    for index in 0..whole.len() {
        let mut broken = whole.clone();
        broken[index] ^= 1 << (index % 8);
        assert!(!judged(broken.clone()).is_empty(), "a changed bit in byte {index}");
        drop(certificate::read(&CertificateDer::from(broken), 0, true));
        assert!(!judged(whole[..index].to_vec()).is_empty(), "cut at {index}");
    }
    assert_eq!(judge::problems(&[], &name, None, now, &authorities)[0].code, Code::Unsupported);
    for length in 0..200 {
        let noise: Vec<u8> = (0..length).map(|_| rand::random()).collect();
        assert_ne!(ocsp::read(&noise, &[identity.certificate.der().clone()]).status, probeops_shared::tls::OcspStatus::Good);
    }
}
