//! Strangers at the broker's ports, and an honest node and service that come while they are there.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::{Client, ConnectOptions};
use futures_util::StreamExt;
use probeops_tests::hostile::door::{Door, cut_client_hello, frame};

use super::http::by_chance;
use super::{HANG, Site};

/// How many connections are slow in each way.
const SLOW: usize = 100;
/// How many say nothing at all.
const SILENT: usize = 500;
/// How many honest ones come meanwhile, over TCP and over WebSocket.
const HONEST: usize = 3;

/// Where the broker is, and who comes honestly.
pub(super) struct Broker {
    tcp: SocketAddr,
    websocket: SocketAddr,
    ca: PathBuf,
    urls: [String; 2],
    /// Of a service, and of nodes, each of which comes once.
    creds: [Vec<PathBuf>; 2],
}

impl Broker {
    /// As strangers and honest ones find it; a service and nodes of this name may come.
    pub(super) fn of(site: &Site, name: &str) -> Self {
        let fabric = &site.fabric;
        let service = fabric.service(name, &["good"], &["echo"], &[]);
        let creds = [vec![service.creds; HONEST], fabric.enrol(name, HONEST, "bad")];
        Self { tcp: fabric.listen(), websocket: fabric.websocket(), ca: fabric.ca(), urls: [fabric.url(), fabric.wss_url()], creds }
    }

    /// So many connections of an honest service at the same time.
    pub(super) async fn honest_crowd(&self, count: usize) {
        let [url, _] = &self.urls;
        let [creds, _] = &self.creds;
        let all = futures_util::stream::iter((0..count).map(|_| come(url, &self.ca, &creds[0])));
        drop(all.buffer_unordered(16).collect::<Vec<Client>>().await);
    }

    /// Each of these connections the broker closes by itself, whatever they say, and also if they say nothing; meanwhile it lets honest ones in.
    pub(super) async fn beset(&self) {
        let [tcp, websocket] = [self.tcp, self.websocket].map(Door::bare);
        let (nats, upgraded) = (Door::nats(self.tcp, &self.ca), Door::websocket(self.websocket, &self.ca));
        let https = Door::tls(self.websocket, &self.ca);
        let oversized = [&b"CONNECT {\"name\":\""[..], &vec![b'x'; 200_000], b"\"}\r\n"].concat();
        let deep = format!("CONNECT {{\"a\":{}\r\n", "[".repeat(15_000)).into_bytes();
        let forged = b"CONNECT {\"jwt\":\"eyJ0eXAiOiJKV1QiLCJhbGciOiJlZDI1NTE5LW5rZXkifQ.e30.AAAA\",\"sig\":\"AAAA\"}\r\nPING\r\n".to_vec();
        let headers = ["GET / HTTP/1.1\r\nHost: x\r\n", &"X-A: b\r\n".repeat(200_000)].concat().into_bytes();
        let unasked = b"PUB ev.v1.good.good-1.bye 100000000\r\n".to_vec();
        let truncated = b"CONNECT {\"verbose\":".to_vec();
        let cases: Vec<Case<'_>> = vec![
            ("silent", &tcp, Vec::new(), SILENT, false),
            ("by chance, where TLS is due", &tcp, by_chance(), 10, false),
            ("a cut handshake", &tcp, cut_client_hello(100), SLOW, false),
            ("a handshake byte by byte", &tcp, cut_client_hello(9), SLOW, true),
            ("in clear text", &tcp, truncated.clone(), 10, false),
            ("silent after TLS", &nats, Vec::new(), SLOW, false),
            ("a line byte by byte", &nats, truncated.clone(), SLOW, true),
            ("by chance after TLS", &nats, by_chance(), 10, false),
            ("an oversized line", &nats, oversized.clone(), 10, false),
            ("a deep line", &nats, deep.clone(), 10, false),
            ("a forged credential", &nats, forged.clone(), 10, false),
            ("without a credential", &nats, unasked.clone(), 10, false),
            ("silent, WebSocket", &websocket, Vec::new(), SILENT, false),
            ("by chance, WebSocket", &websocket, by_chance(), 10, false),
            ("a cut handshake, WebSocket", &websocket, cut_client_hello(100), SLOW, false),
            ("a handshake byte by byte, WebSocket", &websocket, cut_client_hello(9), SLOW, true),
            ("silent before the upgrade", &https, Vec::new(), SLOW, false),
            ("an upgrade byte by byte", &https, b"GET / HTTP/1.1\r\nX-A:".to_vec(), SLOW, true),
            ("an upgrade without end", &https, headers, 3, false),
            ("silent after the upgrade", &upgraded, Vec::new(), SLOW, false),
            ("by chance after the upgrade", &upgraded, by_chance(), 10, false),
            ("an oversized line in a frame", &upgraded, frame(&oversized), 10, false),
            ("a deep line in a frame", &upgraded, frame(&deep), 10, false),
            ("a forged credential in a frame", &upgraded, frame(&forged), 10, false),
        ];
        let closed = async |(what, door, words, _, trickles): &Case<'_>| {
            let closed = door.until_closed(words, *trickles).await;
            assert!(closed.is_ok(), "{what}: it is not closed: {closed:?}");
        };
        let attacks = cases.iter().flat_map(|case| (0..case.3).map(|_| closed(case)));
        let attacks = futures_util::future::join_all(attacks);
        futures_util::join!(attacks, self.come_meanwhile());
    }

    /// Honest ones are let in, while others are there.
    pub(super) async fn come_meanwhile(&self) {
        for number in 0..HONEST {
            for (url, creds) in self.urls.iter().zip(&self.creds) {
                tokio::time::sleep(Duration::from_millis(500)).await;
                let arrived = tokio::time::timeout(HANG, come(url, &self.ca, &creds[number])).await;
                drop(arrived.unwrap_or_else(|_| panic!("{url}: nobody is let in")));
            }
        }
    }

    /// Who comes to stay, at its two listeners: how many, by which door, and what is said there.
    pub(super) fn crowds(&self, each: usize) -> Vec<(usize, Door, Vec<u8>)> {
        let [tcp, websocket] = [self.tcp, self.websocket].map(Door::bare);
        let (nats, upgraded) = (Door::nats(self.tcp, &self.ca), Door::websocket(self.websocket, &self.ca));
        vec![
            (each / 2, tcp.clone(), Vec::new()),
            (each / 4, tcp, cut_client_hello(100)),
            (each / 4, nats, b"CONNECT {".to_vec()),
            (each / 2, websocket.clone(), Vec::new()),
            (each / 4, websocket, cut_client_hello(100)),
            (each / 4, upgraded, Vec::new()),
        ]
    }
}

/// What it is, where and what is said, by how many, and whether more follows byte by byte.
type Case<'a> = (&'static str, &'a Door, Vec<u8>, usize, bool);

/// Somebody with a credential is let in and heard.
async fn come(url: &str, ca: &Path, creds: &Path) -> Client {
    let options = ConnectOptions::with_credentials_file(creds).await.expect("a credential");
    let client = options.add_root_certificates(ca.to_owned()).require_tls(true).connect(url).await.expect("the broker");
    client.flush().await.expect("an answer");
    client
}
