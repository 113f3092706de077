//! From here to an encrypted connection with whom it should be, step by step; each step that fails says how to mend it.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use probeops_shared::host::Host;
use probeops_shared::tls::{ProblemCode, TlsSession};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::net::http::tunnel::{self, NoTunnel};
use crate::net::tls::{self, Anchors, Refused, Terms, Trust};
use crate::net::words;
use crate::policy::Endpoint;
use crate::way::proxy::Proxy;
use crate::way::server::{Scheme, Server};

/// How long a name, a connection, or an answer of the proxy may take.
const STEP_WITHIN: Duration = Duration::from_secs(5);
/// The longest first line of a broker; it names every server of its cluster.
const INFO_BYTES_MAX: usize = 64 * 1024;

/// Something that stands in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Obstacle {
    /// What is wrong.
    pub(crate) detail: String,
    /// What to do, as a command to paste where there is one.
    pub(crate) cure: String,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; to mend it: {}", self.detail, self.cure)
    }
}

fn obstacle(detail: impl Into<String>, cure: impl Into<String>) -> Obstacle {
    Obstacle { detail: detail.into(), cure: cure.into() }
}

/// Connects to a host, by the system's own name service, as the client library does.
pub(crate) async fn tcp(endpoint: &Endpoint) -> Result<TcpStream, Obstacle> {
    let (host, name) = match &endpoint.host {
        Host::Name(name) => (name.clone(), Some(name)),
        Host::Address(address) => (address.to_string(), None),
    };
    let found = tokio::time::timeout(STEP_WITHIN, tokio::net::lookup_host((host.as_str(), endpoint.port))).await;
    let cure = || format!("getent ahosts {host}   # it must print addresses; else mend DNS or /etc/hosts");
    let addresses: Vec<_> = match found {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => return Err(obstacle(format!("the name {host} cannot be resolved ({error})"), cure())),
        Err(_) => {
            return Err(obstacle(format!("the name {host} cannot be resolved (no answer within {} s)", STEP_WITHIN.as_secs()), cure()));
        }
    };
    let mut said = "it has no address".to_owned();
    for address in addresses {
        match tokio::time::timeout(STEP_WITHIN, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // A message waits for no other; where it cannot be had, it is only slower.
                drop(stream.set_nodelay(true));
                return Ok(stream);
            }
            Ok(Err(error)) => said = format!("{address}: {}", words(&error)),
            Err(_) => said = format!("{address}: no answer within {} s", STEP_WITHIN.as_secs()),
        }
    }
    let whose = if name.is_some() { format!("{endpoint} ({said})") } else { said };
    Err(obstacle(
        format!("no TCP connection to {whose}"),
        format!("nc -vz -w 5 {host} {}   # open that port in the firewalls between, or correct the address", endpoint.port),
    ))
}

/// Has the proxy connect to the server.
pub(crate) async fn through(proxy: &Proxy, server: &Server) -> Result<TcpStream, Obstacle> {
    let at = proxy.endpoint();
    let mut stream = tcp(at).await.map_err(|obstacle| Obstacle {
        detail: format!("the proxy of {} is not reached: {}", proxy.known_from(), obstacle.detail),
        ..obstacle
    })?;
    let lines = proxy.lines().map_err(|detail| {
        let cure = "install -m 640 -g probeops /dev/stdin /etc/probeops/proxy.password   # then type the password, Enter, Ctrl-D";
        obstacle(format!("the password for the proxy {at} cannot be read: {detail}"), cure)
    })?;
    let opened = tokio::time::timeout(STEP_WITHIN, tunnel::open(&mut stream, &server.endpoint, &lines)).await;
    match opened {
        Ok(Ok(())) => Ok(stream),
        Ok(Err(NoTunnel::Broken(detail))) => Err(obstacle(
            format!("the proxy {at} opens no tunnel: {detail}"),
            format!("curl -v -p -x http://{at} https://{}   # is it an HTTP proxy at all?", server.endpoint),
        )),
        Ok(Err(NoTunnel::Refused { status, detail })) => Err(obstacle(detail, proxy_cure(status, proxy, &server.endpoint))),
        Err(_) => Err(obstacle(
            format!("the proxy {at} has not answered CONNECT {} within {} s", server.endpoint, STEP_WITHIN.as_secs()),
            format!("curl -v -p -x http://{at} https://{}   # can the proxy reach it?", server.endpoint),
        )),
    }
}

/// What to do about a proxy's answer (RFC 9110, section 15).
pub(crate) fn proxy_cure(status: Option<u16>, proxy: &Proxy, to: &Endpoint) -> String {
    let at = proxy.endpoint();
    match status {
        Some(407) if proxy.has_login() => {
            format!(
                "correct the user and the password in {} (proxy_password_file has the password); the proxy does not accept them",
                proxy.known_from()
            )
        }
        Some(407) => format!(
            "set proxy = \"http://USER@{at}\" and proxy_password_file = \"/etc/probeops/proxy.password\", a file with the password; the proxy wants to know who asks"
        ),
        Some(403 | 405) => format!(
            "have the proxy's operator allow CONNECT to {to} (many allow port 443 only: then use the broker's wss:// address at port 443)"
        ),
        Some(502..=504) => {
            format!("have the proxy's operator see why it cannot reach {to}; from there: nc -vz {} {}", to.host, to.port)
        }
        Some(_) | None => format!("curl -v -p -x http://{at} https://{to}   # shows what the proxy says"),
    }
}

/// The authorities of a file.
pub(crate) fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, Obstacle> {
    let shown = path.display();
    let cure = format!(
        "ask the operator for the broker's ca.pem (`probeops up` keeps it as tls/ca.pem of its data folder), and: install -m 644 ca.pem {shown}"
    );
    let text = std::fs::read_to_string(path)
        .map_err(|error| obstacle(format!("cannot read the authorities {shown}: {}", words(&error)), cure.clone()))?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    read.ok().filter(|read| !read.is_empty()).ok_or_else(|| obstacle(format!("{shown} holds no whole certificate in PEM form"), cure))
}

/// Whom the broker's certificate must be of.
pub(crate) fn terms(server: &Server, ca: Option<&Path>, trust: Trust) -> Result<Terms, Obstacle> {
    let mut terms = Terms { trust, ..Terms::new(&server.endpoint.host) };
    if let Some(ca) = ca {
        (terms.anchors, terms.authorities) = (Anchors::Named, authorities(ca)?);
    }
    Ok(terms)
}

/// What the broker says first, where it speaks before TLS: `INFO {…}`, without the end of its line.
pub(crate) async fn greeting(stream: &mut TcpStream, server: &Server) -> Result<String, Obstacle> {
    let read = tokio::time::timeout(STEP_WITHIN, read_line(stream)).await;
    let line = match read {
        Ok(Ok(line)) => line,
        Ok(Err(detail)) => return Err(not_a_broker(server, &detail)),
        Err(_) => return Err(not_a_broker(server, &format!("it says nothing for {} s", STEP_WITHIN.as_secs()))),
    };
    if line.starts_with("INFO ") { Ok(line) } else { Err(not_a_broker(server, "its first line is not INFO")) }
}

fn not_a_broker(server: &Server, detail: &str) -> Obstacle {
    let cure = match server.scheme {
        Scheme::Tls => {
            "correct the address in `servers`: tls://HOST:PORT with the broker's own port, or wss://HOST/PATH where it is a web port"
        }
        Scheme::Wss => {
            "correct the address in `servers`: wss://HOST/PATH as the operator gave it; tls://HOST:PORT is for the broker's own port"
        }
    };
    obstacle(format!("{} does not answer as a broker: {detail}", server.endpoint), cure)
}

/// Byte by byte: what follows the line belongs to TLS.
async fn read_line(stream: &mut TcpStream) -> Result<String, String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(stream.read_u8().await.map_err(|_| "it ended the connection".to_owned())?);
        if line.len() > INFO_BYTES_MAX {
            return Err("its first line has no end".to_owned());
        }
    }
    String::from_utf8(line).map(|line| line.trim_end().to_owned()).map_err(|_| "its first line is not text".to_owned())
}

/// Greets the broker over TLS, as [`terms`] say.
pub(crate) async fn encrypt<S>(
    stream: S,
    server: &Server,
    ca: Option<&Path>,
    trust: Trust,
) -> Result<(TlsStream<S>, Box<TlsSession>), Obstacle>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let terms = terms(server, ca, trust)?;
    match tokio::time::timeout(STEP_WITHIN, Box::pin(tls::connect(stream, &terms))).await {
        Ok(Ok((stream, session))) => Ok((stream, Box::new(session))),
        Ok(Err(Refused { failure, session })) => {
            let cure = tls_cure(server, ca, &session);
            Err(obstacle(format!("no TLS with {}: {}", server.endpoint, failure.detail), cure))
        }
        Err(_) => Err(not_a_broker(server, &format!("no TLS handshake within {} s", STEP_WITHIN.as_secs()))),
    }
}

/// What to do about a certificate.
pub(crate) fn tls_cure(server: &Server, ca: Option<&Path>, session: &TlsSession) -> String {
    let has = |codes: &[ProblemCode]| session.problems.iter().any(|problem| codes.contains(&problem.code));
    let at = &server.endpoint;
    if has(&[ProblemCode::NotYetValid]) {
        "timedatectl set-ntp true   # this machine's clock is behind, or the certificate is for later".to_owned()
    } else if has(&[ProblemCode::Expired]) {
        "have the broker's operator renew its certificate (`probeops up` and `probeops init` do so when they start); if `date` is wrong here: timedatectl set-ntp true".to_owned()
    } else if has(&[ProblemCode::NameMismatch]) {
        format!("write a name of the certificate into `servers`, or have the operator add `{}` (probeops init --host {0})", at.host)
    } else if has(&[ProblemCode::UnknownIssuer, ProblemCode::SelfSigned]) {
        match ca {
            Some(ca) => format!("get the broker's present ca.pem from its operator, and: install -m 644 ca.pem {}", ca.display()),
            None => "get the broker's ca.pem from its operator, and set ca = \"/etc/probeops/ca.pem\" (--ca)".to_owned(),
        }
    } else {
        format!("openssl s_client -connect {at} -servername {}   # shows what the other side says", at.host)
    }
}
