//! Carries connections of this process through a proxy to one server, over TLS that begins here.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use std::{fmt, io};

use probeops_nats::connect::CONNECT_TIMEOUT;
use probeops_shared::host::Host;
use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::net::Connection;
use crate::net::tls::Trust;
use crate::policy::Endpoint;
use crate::way::Obstacle as LastObstacle;
use crate::way::dial::{self, Obstacle};
use crate::way::proxy::Proxy;
use crate::way::server::{Scheme, Server};

/// The longest head of the library's own request for a WebSocket.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// How long to wait when no connection can be taken.
const BREATH: Duration = Duration::from_millis(100);
/// Who has which connection (proc(5)).
const CONNECTIONS: &str = "/proc/net/tcp";

/// Listens on the loopback for this process.
pub(super) struct Forwarder {
    address: String,
    at: SocketAddr,
    task: JoinHandle<()>,
    carrying: TaskTracker,
    end: CancellationToken,
}

/// Where to carry to.
struct Route {
    server: Server,
    proxy: Proxy,
    ca: Option<PathBuf>,
    last: LastObstacle,
}

impl Forwarder {
    /// Begins to listen.
    pub(super) async fn open(server: Server, proxy: Proxy, ca: Option<PathBuf>, last: LastObstacle) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let at = listener.local_addr()?;
        let address = match server.scheme {
            Scheme::Tls => format!("nats://{at}"),
            Scheme::Wss => format!("ws://{at}{}", server.path),
        };
        let (carrying, end) = (TaskTracker::new(), CancellationToken::new());
        let route = Arc::new(Route { server, proxy, ca, last });
        let task = tokio::spawn(accept(listener, route, carrying.clone(), end.clone()));
        Ok(Self { address, at, task, carrying, end })
    }

    /// What the client library is told to connect to.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Where it listens: no tool has business there.
    pub(super) fn endpoint(&self) -> Endpoint {
        Endpoint::of_way(Host::Address(self.at.ip()), self.at.port())
    }

    /// Takes no more connections, and waits for those there are to end.
    pub(super) async fn close(self) {
        self.end.cancel();
        // It has ended, or it ends now.
        drop(self.task.await);
        self.carrying.close();
        self.carrying.wait().await;
    }
}

impl fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forwarder").field("address", &self.address).finish_non_exhaustive()
    }
}

async fn accept(listener: TcpListener, route: Arc<Route>, carrying: TaskTracker, end: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = end.cancelled() => return,
        };
        match accepted {
            Ok((client, peer)) => {
                let route = Arc::clone(&route);
                let at = listener.local_addr();
                drop(carrying.spawn(async move {
                    match at.map_err(|error| error.to_string()) {
                        Ok(at) => route.serve(client, peer, at).await,
                        Err(error) => tracing::error!(error, "the forwarder has no address"),
                    }
                }));
            }
            Err(error) => {
                tracing::warn!(%error, "the forwarder to the proxy could not take a connection");
                // No file can be opened now: then not in this very moment either.
                tokio::time::sleep(BREATH).await;
            }
        }
    }
}

impl Route {
    /// Serves a connection of this process, and of nobody else.
    async fn serve(&self, client: TcpStream, peer: SocketAddr, at: SocketAddr) {
        match owner(peer, at).await {
            Ok(Some(user)) if user == nix::unistd::geteuid().as_raw() => {}
            Ok(user) => return tracing::warn!(?user, "another user of this machine wanted to use the agent's way through the proxy"),
            Err(error) => return self.stopped_by(&format!("cannot see whose connections are: {CONNECTIONS}: {error}")),
        }
        let reached = tokio::time::timeout(CONNECT_TIMEOUT, self.reach(client)).await;
        let (mut client, mut broker) = match reached {
            Ok(Ok(both)) => both,
            Ok(Err(obstacle)) => return self.stopped_by(&obstacle.to_string()),
            Err(_) => {
                return self.stopped_by(&format!(
                    "the broker {} was not reached through the proxy {} within {} s",
                    self.server,
                    self.proxy,
                    CONNECT_TIMEOUT.as_secs()
                ));
            }
        };
        // How it ends is for the client library to notice.
        if let Err(error) = copy_bidirectional(&mut client, &mut broker).await {
            tracing::debug!(%error, "a connection through the proxy ended");
        }
    }

    /// Reaches the server, and lets both sides begin.
    async fn reach(&self, mut client: TcpStream) -> Result<(TcpStream, Box<dyn Connection>), Obstacle> {
        // A message waits for no other; where it cannot be had, it is only slower.
        drop(client.set_nodelay(true));
        let mut stream = dial::through(&self.proxy, &self.server).await?;
        let lost = |error: io::Error| Obstacle {
            detail: format!("the connection through the proxy {} was lost at once: {error}", self.proxy),
            cure: "none: it is tried again".to_owned(),
        };
        match self.server.scheme {
            Scheme::Tls => {
                let greeting = in_clear(&dial::greeting(&mut stream, &self.server).await?);
                let (stream, _) = dial::encrypt(stream, &self.server, self.ca.as_deref(), Trust::Strict).await?;
                client.write_all(greeting.as_bytes()).await.map_err(lost)?;
                Ok((client, Box::new(stream)))
            }
            Scheme::Wss => {
                let (mut stream, _) = dial::encrypt(stream, &self.server, self.ca.as_deref(), Trust::Strict).await?;
                let head = with_host(&head(&mut client).await.map_err(lost)?, &self.server.endpoint);
                stream.write_all(head.as_bytes()).await.map_err(lost)?;
                stream.flush().await.map_err(lost)?;
                Ok((client, Box::new(stream)))
            }
        }
    }

    fn stopped_by(&self, obstacle: &str) {
        tracing::warn!(server = %self.server, "{obstacle}");
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(obstacle.to_owned());
    }
}

/// The broker's first line for somebody who need not encrypt any more.
fn in_clear(greeting: &str) -> String {
    let mut info: Map<String, Value> = greeting.strip_prefix("INFO ").and_then(|info| serde_json::from_str(info).ok()).unwrap_or_default();
    info.insert("tls_required".to_owned(), Value::Bool(false));
    info.remove("tls_available");
    format!("INFO {}\r\n", Value::Object(info))
}

/// The head of the library's request, with its end.
async fn head(client: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
        if head.len() > HEAD_BYTES_MAX {
            return Err(io::Error::other("a request has no end"));
        }
    }
    String::from_utf8(head).map_err(|_| io::Error::other("a request is not text"))
}

/// The same head, asking for the server by its own name instead of the forwarder's.
fn with_host(head: &str, server: &Endpoint) -> String {
    const HTTPS_PORT: u16 = 443;
    let whole = server.to_string();
    let host = if server.port == HTTPS_PORT { whole.rsplit_once(':').map_or(whole.as_str(), |(host, _)| host) } else { &whole };
    head.split_inclusive("\r\n")
        .map(|line| if line.to_ascii_lowercase().starts_with("host:") { format!("Host: {host}\r\n") } else { line.to_owned() })
        .collect()
}

/// The user whose connection comes from `peer` to `at`.
async fn owner(peer: SocketAddr, at: SocketAddr) -> io::Result<Option<u32>> {
    let table = tokio::fs::read_to_string(Path::new(CONNECTIONS)).await?;
    Ok(find_owner(&table, peer, at))
}

fn find_owner(table: &str, peer: SocketAddr, at: SocketAddr) -> Option<u32> {
    // As the kernel prints them: the address as a number of this machine, in hexadecimal.
    let shown = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), address.port()),
        IpAddr::V6(_) => String::new(),
    };
    let (from, to) = (shown(peer), shown(at));
    table.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [_, local, remote, _, _, _, _, user, ..] if *local == from && *remote == to => user.parse().ok(),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brokers_greeting_asks_for_no_encryption_any_more() {
        let greeting = in_clear(r#"INFO {"server_id":"N","nonce":"x","tls_required":true,"tls_available":true}"#);
        assert_eq!(greeting, "INFO {\"server_id\":\"N\",\"nonce\":\"x\",\"tls_required\":false}\r\n");
    }

    #[test]
    fn a_web_server_is_asked_by_its_own_name() {
        let head = "GET /nats HTTP/1.1\r\nHost: 127.0.0.1:9\r\nUpgrade: websocket\r\n\r\n";
        let server: Server = "wss://broker.example/nats".parse().unwrap();
        assert_eq!(with_host(head, &server.endpoint), "GET /nats HTTP/1.1\r\nHost: broker.example\r\nUpgrade: websocket\r\n\r\n");
        let server: Server = "wss://[2001:db8::1]:8443".parse().unwrap();
        assert!(with_host(head, &server.endpoint).contains("\r\nHost: [2001:db8::1]:8443\r\n"));
        assert_eq!((server.path.as_str(), server.scheme), ("/", Scheme::Wss));
    }

    #[tokio::test]
    async fn a_connection_of_this_process_is_known_for_its_own() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let at = listener.local_addr().unwrap();
        let client = TcpStream::connect(at).await.unwrap();
        let peer = client.local_addr().unwrap();
        assert_eq!(owner(peer, at).await.unwrap(), Some(nix::unistd::geteuid().as_raw()));
        let row = "   1: 0100007F:1F90 0100007F:0050 01 00000000:00000000 00:00000000 00000000  1000        0 12345 1 0\n";
        let address = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        assert_eq!(find_owner(row, address(8080), address(80)), Some(1000));
        assert_eq!(find_owner(row, address(8081), address(80)), None);
    }
}
