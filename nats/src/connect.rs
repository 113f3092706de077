//! One connection to the broker, as every part of ProbeOps makes it.
//!
//! The credential file is read again at every (re)connect, so a renewed one is used without a restart. Reconnecting backs off with jitter and
//! a floor, because the broker accepts and closes a connection whose credential expires in this very second.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::{Auth, AuthError, Client, ConnectErrorKind, ConnectOptions, Event, ReconnectToServer, ServerAddr, ServerError};
use data_encoding::BASE64URL_NOPAD;
use nkeys::KeyPair;
use probeops_shared::timestamp::Timestamp;
use serde::Deserialize;
use tokio::sync::mpsc;

/// How often the client asks a silent broker whether it is there; three unanswered pings end the connection.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How long one attempt to connect may take: TCP, TLS and the broker's greeting.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The shortest wait before an attempt.
const BACKOFF_FLOOR: Duration = Duration::from_millis(10);
/// The longest wait before the first attempt.
const BACKOFF_MIN: Duration = Duration::from_millis(250);
/// The longest wait before reconnecting: two that lost the same broker may be back so long one after the other.
pub const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// How many events of a connection may wait to be read.
const EVENTS_MAX: usize = 256;

/// Counts violations.
static VIOLATIONS: AtomicU64 = AtomicU64::new(0);

/// Where the broker is and who we are.
#[derive(Clone, Debug)]
pub struct Link {
    /// Its addresses: `tls://host:port` or `wss://host:port/path`, one kind only.
    pub servers: Vec<String>,
    /// The authorities of whom one must have signed its certificate (PEM, one or several), read again at every (re)connect; the system's own
    /// when absent.
    pub ca: Option<PathBuf>,
    /// Our credential, in NATS' `.creds` form.
    pub creds: PathBuf,
}

/// What happens to a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// It is (again) there.
    Connected,
    /// It is gone; the client reconnects by itself.
    Disconnected,
    /// The server will stop soon.
    LameDuck,
    /// The broker does not accept the credential any more; the text is its own.
    Refused(String),
    /// The broker forbade a publication or subscription; the text is its own.
    Violation(String),
    /// A subscription was not read fast enough and has lost messages.
    SlowConsumer,
    /// Anything else, for the log.
    Other(String),
}

/// Why there is no connection.
#[derive(Debug)]
pub enum LinkError {
    /// The settings cannot be right.
    Invalid(String),
    /// The credential file cannot be used.
    Credential(String),
    /// The broker does not accept the credential.
    Refused(String),
    /// The broker cannot be reached now; trying again may help.
    Unreachable(String),
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(detail) | Self::Credential(detail) | Self::Refused(detail) | Self::Unreachable(detail) => f.write_str(detail),
        }
    }
}

impl std::error::Error for LinkError {}

/// A credential, as its file says it.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// The signed claims.
    jwt: String,
    /// The private half.
    seed: String,
    /// Whom it names: a node, a caller, a service.
    pub name: String,
    /// The public half of its key.
    pub public_key: String,
    /// When it was signed, by the clock of whoever did.
    pub issued_at: Option<Timestamp>,
    /// When it ends; absent when never.
    pub expires_at: Option<Timestamp>,
    /// The account it is of, by its public key.
    pub account: String,
    /// What it may subscribe, queue group included.
    pub subscribe: Vec<String>,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("name", &self.name).field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

impl Credential {
    /// Reads a `.creds` file. What it claims is checked by the broker, not here.
    pub fn read(path: &Path) -> Result<Self, LinkError> {
        let shown = path.display();
        let broken = |what: &str| {
            LinkError::Credential(format!("{shown} is not a usable credential ({what}); have it written again by the operator"))
        };
        let text =
            std::fs::read_to_string(path).map_err(|error| LinkError::Credential(format!("cannot read the credential {shown}: {error}")))?;
        let jwt = section(&text, "NATS USER JWT").ok_or_else(|| broken("it has no `NATS USER JWT` part"))?;
        let seed = section(&text, "USER NKEY SEED").ok_or_else(|| broken("it has no `USER NKEY SEED` part"))?;
        KeyPair::from_seed(&seed).map_err(|_| broken("its seed is damaged"))?;
        let payload = jwt
            .split('.')
            .nth(1)
            .and_then(|part| BASE64URL_NOPAD.decode(part.as_bytes()).ok())
            .ok_or_else(|| broken("its JWT is damaged"))?;
        let claims: Claims = serde_json::from_slice(&payload).map_err(|_| broken("its JWT is damaged"))?;
        let at = |seconds: Option<i64>| seconds.and_then(|seconds| Timestamp::from_unix_ms(seconds.saturating_mul(1000)));
        let (issued_at, expires_at) = (at(claims.iat), at(claims.exp));
        Ok(Self {
            jwt,
            seed,
            name: claims.name,
            public_key: claims.sub,
            issued_at,
            expires_at,
            account: claims.nats.issuer_account,
            subscribe: claims.nats.sub.allow,
        })
    }

    fn sign(&self, nonce: &[u8]) -> Result<Auth, AuthError> {
        let pair = KeyPair::from_seed(&self.seed).map_err(AuthError::new)?;
        let mut auth = Auth::new();
        auth.jwt = Some(self.jwt.clone());
        auth.signature = Some(pair.sign(nonce).map_err(AuthError::new)?);
        Ok(auth)
    }
}

#[derive(Deserialize)]
struct Claims {
    name: String,
    #[serde(default)]
    sub: String,
    #[serde(default)]
    iat: Option<i64>,
    #[serde(default)]
    exp: Option<i64>,
    nats: UserClaims,
}

#[derive(Deserialize)]
struct UserClaims {
    #[serde(default)]
    issuer_account: String,
    #[serde(default)]
    sub: Allow,
}

#[derive(Default, Deserialize)]
struct Allow {
    #[serde(default)]
    allow: Vec<String>,
}

fn section(text: &str, name: &str) -> Option<String> {
    let body = text.split_once(&format!("-----BEGIN {name}-----"))?.1.split_once("-----")?.0.trim().trim_end_matches('-').trim();
    (!body.is_empty()).then(|| body.to_owned())
}

/// How often the broker has forbidden this process something, since it began. Each is one too many: it is a fault of ours, or somebody else's work.
pub fn violations_total() -> u64 {
    VIOLATIONS.load(Ordering::Relaxed)
}

/// Connects. `name` is shown in the broker's own listings; `inbox_prefix` is where the client library's own requests are answered.
pub async fn connect(link: &Link, name: &str, inbox_prefix: &str) -> Result<(Client, mpsc::Receiver<LinkEvent>), LinkError> {
    connect_through(link, &link.servers, name, inbox_prefix).await
}

/// The same, beginning with any of the servers; whenever it is made again, with the next one: that which it was made to last may hang, which looks
/// as if it were there.
pub async fn connect_in_turn(link: &Link, name: &str, inbox_prefix: &str) -> Result<(Client, mpsc::Receiver<LinkEvent>), LinkError> {
    let turn = AtomicUsize::new(rand::random::<u16>().into());
    connect_with(link, &link.servers, (name, inbox_prefix), |options| {
        options.reconnect_to_server_callback(move |servers, _| {
            let turn = turn.fetch_add(1, Ordering::Relaxed).checked_rem(servers.len());
            let next = turn.and_then(|turn| servers.into_iter().nth(turn));
            async move { next.map(|server| ReconnectToServer { addr: server.addr, delay: None }) }
        })
    })
    .await
}

/// The same through something in this process that encrypts and carries on what is said to it: `addresses` stand for the servers of the link,
/// and those that are not `tls://` or `wss://` are of this machine itself.
pub async fn connect_through(
    link: &Link,
    addresses: &[String],
    name: &str,
    inbox_prefix: &str,
) -> Result<(Client, mpsc::Receiver<LinkEvent>), LinkError> {
    connect_with(link, addresses, (name, inbox_prefix), std::convert::identity).await
}

async fn connect_with(
    link: &Link,
    addresses: &[String],
    (name, inbox_prefix): (&str, &str),
    choose: impl FnOnce(ConnectOptions) -> ConnectOptions,
) -> Result<(Client, mpsc::Receiver<LinkEvent>), LinkError> {
    check_servers(&link.servers)?;
    let in_clear = addresses.iter().any(|address| !is_encrypted(address));
    if let Some(address) = addresses.iter().find(|address| !is_encrypted(address) && !is_here(address)) {
        return Err(LinkError::Invalid(format!("`{address}` is spoken to in clear and is not on this machine")));
    }
    Credential::read(&link.creds)?;
    if let Some(ca) = &link.ca {
        std::fs::metadata(ca)
            .map_err(|error| LinkError::Invalid(format!("cannot read the broker's authority {}: {error}", ca.display())))?;
    }
    let (events, receiver) = mpsc::channel(EVENTS_MAX);
    // An address that begins with tls:// is encrypted without being told.
    let options = choose(options(link, name, inbox_prefix, events).require_tls(!in_clear));
    let servers = link.servers.join(",");
    let client = options.connect(addresses).await.map_err(|error| {
        let why = with_sources(&error);
        match error.kind() {
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => LinkError::Refused(why),
            ConnectErrorKind::ServerParse => LinkError::Invalid(format!("`{servers}` is not an address of a broker: {why}")),
            _ => LinkError::Unreachable(format!("cannot reach the broker at {servers}: {why}")),
        }
    })?;
    Ok((client, receiver))
}

fn options(link: &Link, name: &str, inbox_prefix: &str, events: mpsc::Sender<LinkEvent>) -> ConnectOptions {
    let creds = link.creds.clone();
    let mut options = ConnectOptions::with_auth_callback(move |nonce| {
        // A few hundred bytes from a local file, once a connection: not worth a thread.
        let auth = Credential::read(&creds).map_err(AuthError::new).and_then(|credential| credential.sign(&nonce));
        async move { auth }
    })
    .name(name)
    .ping_interval(PING_INTERVAL)
    .connection_timeout(CONNECT_TIMEOUT)
    .custom_inbox_prefix(inbox_prefix)
    .ignore_discovered_servers()
    .reconnect_delay_callback(backoff)
    .event_callback(move |event| {
        let events = events.clone();
        async move {
            if let Some(event) = read_event(event)
                && events.try_send(event).is_err()
            {
                tracing::debug!("an event of the connection was not waited for");
            }
        }
    });
    if let Some(ca) = &link.ca {
        options = options.add_root_certificates(ca.clone());
    }
    options
}

fn check_servers(servers: &[String]) -> Result<(), LinkError> {
    if servers.is_empty() {
        return Err(LinkError::Invalid("no broker is configured; give its address, such as tls://broker.example:4222".to_owned()));
    }
    match servers.iter().find(|server| !is_encrypted(server)) {
        Some(server) => Err(LinkError::Invalid(format!("`{server}` is not an address of a broker; it begins with tls:// or wss://"))),
        None => Ok(()),
    }
}

fn is_encrypted(address: &str) -> bool {
    address.starts_with("tls://") || address.starts_with("wss://")
}

fn is_here(address: &str) -> bool {
    address.parse::<ServerAddr>().is_ok_and(|address| address.host().parse::<IpAddr>().is_ok_and(|host| host.is_loopback()))
}

fn read_event(event: Event) -> Option<LinkEvent> {
    match event {
        Event::Connected => Some(LinkEvent::Connected),
        Event::Disconnected => Some(LinkEvent::Disconnected),
        Event::LameDuckMode => Some(LinkEvent::LameDuck),
        Event::SlowConsumer(_) | Event::ServerError(ServerError::SlowConsumer(_)) => Some(LinkEvent::SlowConsumer),
        Event::ServerError(ServerError::AuthorizationViolation) => Some(LinkEvent::Refused("authorization violation".to_owned())),
        Event::ServerError(ServerError::Other(text)) => Some(read_server_text(text)),
        Event::ClientError(error) => Some(read_server_text(error.to_string())),
        Event::Draining | Event::Closed => None,
    }
}

fn read_server_text(text: String) -> LinkEvent {
    let lower = text.to_ascii_lowercase();
    if lower.contains("permissions violation") {
        VIOLATIONS.fetch_add(1, Ordering::Relaxed);
        LinkEvent::Violation(text)
    } else if ["authentication revoked", "authentication expired", "authorization violation"].iter().any(|words| lower.contains(words)) {
        LinkEvent::Refused(text)
    } else {
        LinkEvent::Other(text)
    }
}

/// How long to wait before the attempt: at once-ish for the first, then doubling from a quarter of a second to ten; always half of it by chance,
/// so that a fleet does not come back in step, and never nothing.
pub fn backoff(attempt: usize) -> Duration {
    let doublings = u32::try_from(attempt.saturating_sub(1).min(10)).unwrap_or(10);
    let longest = BACKOFF_MIN.saturating_mul(1 << doublings).min(BACKOFF_MAX);
    let shortest = if attempt <= 1 { BACKOFF_FLOOR } else { longest / 2 };
    shortest + longest.saturating_sub(shortest).mul_f64(rand::random::<f64>())
}

fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backing_off_is_jittered_and_capped() {
        for attempt in 0..40 {
            let wait = backoff(attempt);
            assert!(wait >= BACKOFF_FLOOR && wait <= BACKOFF_MAX, "{attempt}: {wait:?}");
        }
        assert!(backoff(30) >= BACKOFF_MAX / 2);
    }

    #[test]
    fn the_brokers_words_are_understood() {
        for (text, refused) in [
            ("User Authentication Revoked", true),
            ("User Authentication Expired", true),
            ("Permissions Violation for Publish to \"x\"", false),
            ("something else", false),
        ] {
            assert_eq!(matches!(read_server_text(text.to_owned()), LinkEvent::Refused(_)), refused, "{text}");
        }
        assert!(matches!(read_server_text("Permissions Violation for Publish to \"x\"".to_owned()), LinkEvent::Violation(_)));
    }

    #[test]
    fn only_encrypted_addresses_are_accepted() {
        assert!(check_servers(&["tls://a:4222".to_owned()]).is_ok());
        for bad in ["nats://a:4222", "a:4222", "ws://a"] {
            assert!(check_servers(&[bad.to_owned()]).is_err(), "{bad}");
        }
        assert!(check_servers(&[]).is_err());
        assert!(
            is_here("nats://127.0.0.1:1")
                && is_here("ws://127.0.0.1:1/nats")
                && !is_here("nats://10.0.0.1:1")
                && !is_here("ws://localhost")
        );
    }
}
