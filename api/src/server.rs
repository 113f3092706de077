//! The listener: HTTP/1.1 and HTTP/2, with TLS or behind a proxy, bounded in everything a stranger could use up.

mod crowd;
mod tls;

use std::future::Future;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::crowd::{Activity, Counted};
use crate::config::Listen;
use crate::jobs::WAIT_MAX;
use crate::routes::HEADERS_BYTES_MAX;
use crate::routes::client::CameBy;

/// How long a TLS handshake, and the first bytes of a connection, may take.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// How long the head of a request may take to arrive, and how long a connection may idle between two.
const HEAD_WITHIN: Duration = Duration::from_secs(30);
/// How large the head of a request may be for it to be read at all; from half of it on, it is refused in our own words.
const HEAD_BYTES_MAX: usize = 2 * HEADERS_BYTES_MAX;
/// How many requests one HTTP/2 connection may have going on.
const STREAMS_MAX: u32 = 128;
/// How much of bodies one HTTP/2 connection may send ahead.
const WINDOW_BYTES: u32 = 256 * 1024;
/// How often a silent HTTP/2 client is asked whether it is there, and how long it may take to say so.
const PING_EVERY: Duration = Duration::from_secs(20);
/// After this long a connection ends as soon as its requests are answered; the client makes a new one.
const CONNECTION_AGE_MAX: Duration = Duration::from_hours(1);
/// How long a connection may go on after it was told to end: a call that waits for its job, and the way of its answer.
const END_WITHIN: Duration = WAIT_MAX.saturating_add(Duration::from_secs(10));
/// How long a client may leave what we send it unread before its connection is cut.
const UNREAD_WITHIN: Duration = Duration::from_secs(30);
/// The wait after the system would not give another connection.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// How often those who ask nothing are told again that others wait.
const CROWD_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// How a client that speaks HTTP/2 without TLS begins.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// A listener that is not served yet.
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    connections_max: usize,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("socket", &self.socket).field("tls", &self.tls.is_some()).finish_non_exhaustive()
    }
}

/// Which version of HTTP a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Listener {
    /// Takes the address. The error says what to do.
    pub async fn bind(listen: &Listen) -> Result<Self, String> {
        let tls = listen.tls.as_ref().map(tls::acceptor).transpose()?;
        let address = listen.address;
        let socket = TcpListener::bind(address).await.map_err(|error| match error.kind() {
            ErrorKind::AddrInUse => {
                format!("cannot listen on {address}: another program does already; stop it, or set --http to another port")
            }
            ErrorKind::PermissionDenied => {
                format!(
                    "cannot listen on {address}: ports below 1024 need a privilege; set --http to a higher one, or put a proxy in front"
                )
            }
            ErrorKind::AddrNotAvailable => {
                format!("cannot listen on {address}: this machine has no such address; set --http to one it has")
            }
            _ => format!("cannot listen on {address}: {error}"),
        })?;
        let address = socket.local_addr().map_err(|error| format!("cannot tell on what address it listens: {error}"))?;
        Ok(Self { socket, address, tls, connections_max: listen.connections_max })
    }

    /// The address it took.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it can be reached.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        self.socket.local_addr().map_or_else(|_| format!("{scheme}://?"), |address| format!("{scheme}://{address}"))
    }

    /// Serves until told to stop; then accepts nothing new, and lets what goes on end within a bound.
    pub async fn serve(self, router: Router, stop: CancellationToken) -> Result<(), String> {
        tracing::info!("listening on {}", self.url());
        let connections = TaskTracker::new();
        let room = Arc::new(Semaphore::new(self.connections_max));
        let crowd = Arc::new(Notify::new());
        let http = Http { builder: builder(&connections), router, stop: stop.clone(), crowd: Arc::clone(&crowd) };
        loop {
            let accepted = tokio::select! {
                accepted = accept(&self.socket, &room, &crowd) => accepted,
                () = stop.cancelled() => break,
            };
            if let Some((stream, place)) = accepted {
                let (http, tls) = (http.clone(), self.tls.clone());
                drop(connections.spawn(async move {
                    http.connection(stream, tls).await;
                    drop(place);
                }));
            }
        }
        drop(self.socket);
        connections.close();
        if timeout(END_WITHIN, connections.wait()).await.is_err() {
            let (open, end_s) = (connections.len(), END_WITHIN.as_secs());
            tracing::warn!(open, "some connections did not end within {end_s} s and are cut");
        }
        Ok(())
    }
}

/// The next connection, once there is room for it; until then the system lets clients wait. When there is none, those who ask nothing are sent
/// away: whoever only holds connections keeps nobody out.
async fn accept(socket: &TcpListener, room: &Arc<Semaphore>, crowd: &Notify) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let place = if let Ok(place) = Arc::clone(room).try_acquire_owned() {
        place
    } else {
        loop {
            crowd.notify_waiters();
            if let Ok(place) = timeout(CROWD_AGAIN_AFTER, Arc::clone(room).acquire_owned()).await {
                break place.ok()?;
            }
        }
    };
    match socket.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        // The client has gone already.
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => None,
        Err(error) => {
            tracing::error!(%error, "no connection can be accepted; are there enough file descriptors (ulimit -n)?");
            sleep(ACCEPT_AGAIN_AFTER).await;
            None
        }
    }
}

fn builder(connections: &TaskTracker) -> Builder<Owner> {
    let mut builder = Builder::new(Owner(connections.clone()));
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(HEAD_BYTES_MAX)
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX))
        .max_concurrent_streams(STREAMS_MAX)
        .initial_connection_window_size(WINDOW_BYTES)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY);
    builder
}

/// Runs what the HTTP library spawns where stopping can see it.
#[derive(Clone, Debug)]
struct Owner(TaskTracker);

impl<F: Future<Output: Send + 'static> + Send + 'static> Executor<F> for Owner {
    fn execute(&self, future: F) {
        drop(self.0.spawn(future));
    }
}

/// What every connection is served with.
#[derive(Clone)]
struct Http {
    builder: Builder<Owner>,
    router: Router,
    stop: CancellationToken,
    /// Tells every connection that others wait.
    crowd: Arc<Notify>,
}

impl Http {
    async fn connection(self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        // Answers are small and whole: waiting to fill packets only delays them.
        let prepared = stream.set_nodelay(true).and_then(|()| SockRef::from(&stream).set_tcp_user_timeout(Some(UNREAD_WITHIN)));
        if let Err(error) = prepared {
            tracing::debug!(%error, "a connection was gone before it was served");
            return;
        }
        let activity = Activity::new();
        let Some(tls) = tls else {
            let version = self.begun(&activity, version_of(&stream)).await;
            if let Some(Ok(Some(version))) = version {
                self.requests(stream, version, (activity, CameBy::ClearText)).await;
            }
            return;
        };
        let Ok(from) = stream.peer_addr() else { return tracing::debug!("a connection was gone before it was served") };
        match self.begun(&activity, tls.accept(stream)).await {
            Some(Ok(stream)) => {
                let version = if stream.get_ref().1.alpn_protocol() == Some(tls::HTTP2) { Version::Two } else { Version::One };
                self.requests(stream, version, (activity, CameBy::Tls(from.ip()))).await;
            }
            Some(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            None => tracing::debug!("a TLS handshake took too long"),
        }
    }

    /// Waits for how a connection begins; none when that takes too long, or longer than others can wait for its place.
    async fn begun<T>(&self, activity: &Activity, beginning: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            begun = timeout(HANDSHAKE_WITHIN, beginning) => begun.ok(),
            () = in_the_way(&self.crowd, activity) => None,
        }
    }

    async fn requests(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        version: Version,
        (activity, came_by): (Activity, CameBy),
    ) {
        let Self { builder, router, stop, crowd } = self;
        // Told the version instead of left to find it out: waiting for the first bytes would have no bound.
        let builder = match version {
            Version::One => builder.http1_only(),
            Version::Two => builder.http2_only(),
        };
        let service = Counted::new(router, activity.clone(), came_by);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let told_to_end = async {
            tokio::select! {
                () = stop.cancelled() => {}
                () = unasked(&crowd, &activity) => {}
                () = sleep(CONNECTION_AGE_MAX) => {}
            }
        };
        let ended = tokio::select! {
            ended = &mut connection => ended,
            // Without a farewell: of a head that arrives byte by byte the library would wait for the end.
            () = in_the_way(&crowd, &activity) => Ok(()),
            () = told_to_end => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = timeout(END_WITHIN, connection) => ended.unwrap_or(Ok(())),
                    () = in_the_way(&crowd, &activity) => Ok(()),
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended badly");
        }
    }
}

/// Waits until others want the place of a connection on which nothing is being answered: it may end in order, and soon. Those that are answered
/// keep theirs, however long that takes.
async fn unasked(crowd: &Notify, activity: &Activity) {
    loop {
        crowd.notified().await;
        if !activity.is_answered() {
            return;
        }
    }
}

/// Waits until others want the place of a connection that asks nothing.
async fn in_the_way(crowd: &Notify, activity: &Activity) {
    loop {
        crowd.notified().await;
        if activity.is_idle() {
            return;
        }
    }
}

/// What a clear-text connection speaks, by its first bytes; none when it ends before it said anything.
async fn version_of(stream: &TcpStream) -> std::io::Result<Option<Version>> {
    let mut first = [0; HTTP2_PREFACE.len()];
    let length = stream.peek(&mut first).await?;
    let seen = first.get(..length).unwrap_or_default();
    Ok(match seen {
        [] => None,
        // Three bytes tell `PRI` from `POST` and `PUT`.
        seen if seen.len() >= 3 && HTTP2_PREFACE.starts_with(seen) => Some(Version::Two),
        _ => Some(Version::One),
    })
}

#[cfg(test)]
mod tests;
