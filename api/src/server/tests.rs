//! Real connections to a real listener.

use std::net::SocketAddr;

use axum::routing::get;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use super::*;
use crate::config::TlsFiles;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

fn listen(tls: Option<TlsFiles>) -> Listen {
    Listen { address: "127.0.0.1:0".parse().unwrap(), tls, connections_max: 2 }
}

struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

async fn serve(router: Router, tls: Option<TlsFiles>) -> Running {
    let listener = Listener::bind(&listen(tls)).await.unwrap();
    let (address, stop) = (listener.socket.local_addr().unwrap(), CancellationToken::new());
    let told = stop.clone();
    Running { address, stop, serving: tokio::spawn(async move { listener.serve(router, told).await.unwrap() }) }
}

async fn all(mut stream: impl AsyncRead + Unpin) -> String {
    let mut bytes = Vec::new();
    // A TLS peer that closes without saying goodbye has still answered.
    drop(stream.read_to_end(&mut bytes).await);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn a_request_that_goes_on_is_answered_after_stop() {
    let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (handler_begun, handler_goes_on) = (Arc::clone(&begun), Arc::clone(&go_on));
    let router = Router::new().route(
        "/",
        get(async move || {
            handler_begun.notify_one();
            handler_goes_on.notified().await;
            "done"
        }),
    );
    let running = serve(router, None).await;
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    stream.write_all(REQUEST).await.unwrap();
    begun.notified().await;
    running.stop.cancel();
    go_on.notify_one();
    assert!(all(stream).await.ends_with("done"));
    running.serving.await.unwrap();
    assert!(TcpStream::connect(running.address).await.is_err(), "nothing new is accepted");
}

#[tokio::test]
async fn a_port_in_use_is_one_clear_line() {
    let running = serve(Router::new(), None).await;
    let error = Listener::bind(&Listen { address: running.address, ..listen(None) }).await.unwrap_err();
    assert_eq!(
        error,
        format!("cannot listen on {}: another program does already; stop it, or set --http to another port", running.address)
    );
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let running = serve(Router::new(), None).await;
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    let begun = "GET / HTTP/1.1\r\nHost: x\r\nX: ";
    // Not a byte more: what stays unread would reset the connection before the answer is seen.
    let head = format!("{begun}{}", "y".repeat(HEAD_BYTES_MAX - begun.len()));
    drop(stream.write_all(head.as_bytes()).await);
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 431");
}

/// Asks on a connection that stays open, and reads the answer.
async fn ask_and_stay(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"done") {
        assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "{}", String::from_utf8_lossy(&answer));
    }
    stream
}

#[tokio::test]
async fn connections_that_ask_nothing_make_room_for_those_that_do() {
    let running = serve(Router::new().route("/", get(async || "done")), None).await;
    let mut idle = Vec::new();
    for _ in 0..10 {
        idle.push(ask_and_stay(running.address).await);
    }
    assert_eq!(all(idle.swap_remove(0)).await, "", "the oldest was sent away");
}

#[tokio::test]
async fn heads_that_never_end_make_room_for_those_that_do() {
    let running = serve(Router::new().route("/", get(async || "done")), None).await;
    let mut slow = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ").await.unwrap();
        slow.push(stream);
    }
    let began = tokio::time::Instant::now();
    drop(ask_and_stay(running.address).await);
    assert!(began.elapsed() < HEAD_WITHIN / 3, "{:?}", began.elapsed());
    assert_eq!(all(slow.swap_remove(0)).await, "", "the oldest was sent away");
}

#[tokio::test]
async fn a_request_that_goes_on_is_not_sent_away() {
    let go_on = Arc::new(Notify::new());
    let held = Arc::clone(&go_on);
    let router = Router::new().route("/", get(async || "done"));
    let router = router.route("/held", get(async move || held.notified().await));
    let running = serve(router, None).await;
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    stream.write_all(b"GET /held HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let idle = ask_and_stay(running.address).await;
    // Longer than anybody is fresh.
    tokio::time::sleep(crowd::FRESH * 2).await;
    for _ in 0..3 {
        drop(ask_and_stay(running.address).await);
    }
    go_on.notify_one();
    assert!(all(stream).await.starts_with("HTTP/1.1 200"));
    drop(idle);
}

#[tokio::test(start_paused = true)]
async fn a_head_that_never_ends_ends_its_connection() {
    let running = serve(Router::new(), None).await;
    let began = tokio::time::Instant::now();
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ").await.unwrap();
    all(stream).await;
    assert!(began.elapsed() >= HEAD_WITHIN && began.elapsed() < HEAD_WITHIN * 2, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_says_nothing_ends() {
    let running = serve(Router::new(), None).await;
    let began = tokio::time::Instant::now();
    all(TcpStream::connect(running.address).await.unwrap()).await;
    assert!(began.elapsed() >= HANDSHAKE_WITHIN && began.elapsed() < HEAD_WITHIN, "{:?}", began.elapsed());
}

#[tokio::test]
async fn http2_is_known_by_its_first_bytes() {
    let running = serve(Router::new(), None).await;
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut frame = [0; 9];
    stream.read_exact(&mut frame).await.unwrap();
    assert_eq!(frame[3], 4, "it answers with its own settings");
}

#[tokio::test]
async fn https_needs_a_certificate_and_a_key_that_belong_together() {
    let folder = std::env::temp_dir().join(format!("probeops-https-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let other = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let files = TlsFiles { cert: write("cert.pem", &cert.pem()), key: write("key.pem", &signing_key.serialize_pem()) };
    let mismatch = TlsFiles { key: write("other.pem", &other.signing_key.serialize_pem()), ..files.clone() };
    let empty = TlsFiles { cert: write("empty.pem", "no certificate"), ..files.clone() };
    assert!(Listener::bind(&listen(Some(mismatch))).await.unwrap_err().contains("cannot be used together"));
    assert!(Listener::bind(&listen(Some(empty))).await.unwrap_err().contains("has no certificate in it"));
    let absent = TlsFiles { key: folder.join("absent.pem"), ..files.clone() };
    let error = Listener::bind(&listen(Some(absent))).await.unwrap_err();
    assert!(error.contains("tls_key: no private key can be read from") && error.contains("absent.pem"), "{error}");
    let swapped = TlsFiles { key: files.cert.clone(), ..files.clone() };
    assert!(Listener::bind(&listen(Some(swapped))).await.unwrap_err().contains("tls_key: no private key can be read from"));

    let running = serve(Router::new().route("/", get(async || "secret")), Some(files)).await;
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let connector = TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()));
    let stream = TcpStream::connect(running.address).await.unwrap();
    let mut stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap();
    stream.write_all(REQUEST).await.unwrap();
    assert!(all(stream).await.ends_with("secret"));
    std::fs::remove_dir_all(&folder).unwrap();
}
