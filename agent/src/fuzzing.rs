//! What the agent reads of strangers and of files, as `tests/fuzz` calls it: from bytes, and with nobody on the other side. Only in a build
//! with the feature `fuzzing`.

use std::io::Cursor;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use http_body_util::Full;
use probeops_shared::access::Targets;
use probeops_shared::audit::chain::Link;
use probeops_shared::host::Host;
use probeops_shared::job::Events;
use probeops_shared::outcome::Failure;
use probeops_shared::settings::SettingsError;
use probeops_shared::tls::{Certificate, OcspStaple, TlsSession, TlsVersion};
use probeops_shared::tools::ToolName;
use probeops_shared::tools::dns::report::{DnsRecord, DnsResponse};
use probeops_shared::tools::http::report::HttpBody;
use probeops_shared::tools::network::{Family, MplsLabel};
use probeops_shared::tools::tls::StartTls;
use probeops_shared::tools::whois::registered::Registered;
use probeops_shared::tools::whois::report::WhoisRecord;
use probeops_shared::traceparent::Traceparent;
use rustls::pki_types::CertificateDer;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, copy, duplex, join, sink, split};
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

use crate::config::Given;
use crate::enroll::{self, Record};
use crate::executors::whois::{rdap, text};
use crate::net::dns::message;
use crate::net::error_queue::extensions;
use crate::net::http::{Answer, Limits, Speech, exchange, tunnel};
use crate::net::icmp::packet;
use crate::net::tls::{Terms, certificate, hello, ocsp};
use crate::net::{get, starttls};
use crate::policy::Policy;
use crate::resolve::origin;
use crate::trail;
use crate::worker::headers;

/// More than any run takes whose other side has said all it will.
const PATIENCE: Duration = Duration::from_secs(60);

/// A message of DNS.
pub fn dns(bytes: &[u8]) -> Result<DnsResponse, String> {
    message::read(bytes)
}

/// The origins that records tell of an address.
pub fn origins(address: IpAddr, records: &[DnsRecord]) -> Vec<u32> {
    origin::read(address, records)
}

/// A packet of ICMP: its type, identifier and number, and what it carries.
pub fn icmp(bytes: &[u8]) -> Option<(u8, u16, u16, &[u8])> {
    packet::read(bytes).map(|echo| (echo.kind, echo.identifier, echo.number, echo.payload))
}

/// A packet without the header that a raw IPv4 socket shows.
pub fn icmp_without_header(bytes: &[u8]) -> &[u8] {
    packet::without_header(bytes)
}

/// Our own request.
pub fn icmp_request(family: Family, identifier: u16, number: u16, nonce: [u8; 8], payload_bytes: usize) -> Vec<u8> {
    packet::request(family, identifier, number, nonce, payload_bytes)
}

/// Whether a payload carries what a request with this nonce did.
pub fn icmp_carries(payload: &[u8], nonce: [u8; 8]) -> bool {
    packet::carries(payload, nonce)
}

/// The labels behind a quoted packet.
pub fn mpls(quoted: &[u8]) -> Vec<MplsLabel> {
    extensions::labels(quoted)
}

/// A certificate's facts.
pub fn certificate(der: &[u8], at_unix_s: i64) -> Option<Certificate> {
    certificate::read(&CertificateDer::from(der), at_unix_s, true)
}

/// What a staple says of the first certificate of a chain.
pub fn ocsp(staple: &[u8], chain: &[Vec<u8>]) -> OcspStaple {
    let chain: Vec<CertificateDer<'_>> = chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    ocsp::read(staple, &chain)
}

/// What a server shows that says just this, and whether it came to its end.
pub fn greeting(said: &[u8], name: &Host) -> (bool, TlsSession) {
    let greeted = runtime().block_on(hello::greet(stream(said), TlsVersion::V1_2, &Terms::new(name)));
    greeted.map_or_else(|refused| (false, *refused.session), |session| (true, session))
}

/// How a dialogue goes that should lead to TLS.
pub fn start_tls(protocol: StartTls, said: &[u8]) -> Result<(), String> {
    runtime().block_on(starttls::start(&mut stream(said), protocol, PATIENCE))
}

/// How a proxy answers.
pub fn tunnel(said: &[u8]) -> Result<(), String> {
    let to = std::net::SocketAddr::from(([192, 0, 2, 1], 443));
    runtime().block_on(tunnel::open(&mut stream(said), to, &[])).map_err(|none| none.to_string())
}

/// What is known of an HTTP answer.
#[derive(Debug)]
pub struct Exchanged {
    /// Its status; 0 until there is one.
    pub status: u16,
    /// The words after it.
    pub reason: Option<String>,
    /// Its header fields.
    pub headers: Vec<(String, String)>,
    /// Its body, as far as it was kept.
    pub kept: Vec<u8>,
    /// What is told of the body.
    pub body: Option<HttpBody>,
    /// Why it is not whole.
    pub failure: Option<String>,
}

/// An HTTP answer, in HTTP/2 or before, of whose body so much is read and kept.
pub fn http(said: &[u8], two: bool, (read, keep): (usize, usize)) -> Exchanged {
    let mut answer = Answer::default();
    let failure = runtime().block_on(async {
        let limits = Limits { until: Instant::now() + PATIENCE, read, keep, decompress: true };
        let mut request = hyper::Request::new(Full::<Bytes>::default());
        *request.uri_mut() = hyper::Uri::from_static("http://example.com/");
        let speech = if two { Speech::Two } else { Speech::One };
        exchange(Box::new(asked(said)), speech, request, limits, &mut answer, |_| ()).await.err()
    });
    let Answer { status, reason, headers, kept, body, .. } = answer;
    Exchanged { status, reason, headers, kept, body, failure: failure.map(|failure| failure.detail) }
}

/// What is fetched of a registry: its status, and the body as far as `bytes_max`.
pub fn fetched(said: &[u8], bytes_max: usize) -> Result<(u16, Vec<u8>, bool), String> {
    let wanted = get::Wanted { authority: "example.com", path: "/", accept: "*/*", bytes_max };
    let fetched = runtime().block_on(async { get::get(asked(said), wanted).await })?;
    Ok((fetched.status, fetched.body, fetched.truncated))
}

/// What an answer of WHOIS says.
#[derive(Debug)]
pub struct WhoisAnswer {
    /// Of the entry.
    pub record: Option<WhoisRecord>,
    /// Whether it says that there is none.
    pub missing: bool,
    /// Who knows more.
    pub referral: Option<(Host, u16)>,
}

/// An answer of WHOIS.
pub fn whois(target: &Registered, bytes: &[u8]) -> WhoisAnswer {
    let reading = text::read(target, &text::decoded(bytes));
    WhoisAnswer {
        record: reading.record,
        missing: reading.missing,
        referral: reading.referral.map(|referral| (referral.host, referral.port)),
    }
}

/// An answer of RDAP.
pub fn rdap(body: &[u8]) -> Result<(Value, WhoisRecord), String> {
    rdap::read(body)
}

/// The owner's file, as a policy; a name and an address are judged by it.
pub fn policy(file: &Path, server: &str) -> Result<Policy, String> {
    Policy::load(Some(file), &[server.to_owned()]).map_err(|error| error.to_string())
}

/// What a policy says of a tool and a name.
pub fn judged(policy: &Policy, tool: ToolName, name: &str) -> (Result<(), String>, Result<(), String>) {
    (policy.check_tool(tool).map_err(|denial| denial.to_string()), policy.check_name(name).map_err(|denial| denial.to_string()))
}

/// The agent's own file, and what is wrong with what it sets.
pub fn settings(text: &str) -> Result<Result<String, String>, SettingsError> {
    let given: Given = probeops_shared::settings::parse(text, Path::new("agent.toml"))?;
    Ok(given.complete().and_then(|settings| probeops_shared::settings::printed(&settings)))
}

/// What the headers of a job say, of whoever asks.
#[derive(Debug)]
pub struct JobHeaders {
    /// On whose behalf.
    pub principal: String,
    /// Which dispatch.
    pub attempt: Option<u32>,
    /// The span that dispatched it.
    pub span: Option<Traceparent>,
    /// When it was sent.
    pub sent_unix_us: Option<i64>,
    /// By when it is to begin.
    pub deadline_unix_ms: Result<Option<i64>, Failure>,
    /// What is to be told of it.
    pub events: Result<Option<Events>, Failure>,
    /// To which targets it is limited.
    pub targets: Result<Option<Targets>, Failure>,
}

/// A job's headers, by name and value; those that no client can send are left out.
pub fn job_headers(given: &[(&str, &str)], caller: &str, is_api: bool) -> JobHeaders {
    let mut all = HeaderMap::new();
    for (name, value) in given {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
            all.append(name, value);
        }
    }
    let all = Some(&all);
    JobHeaders {
        principal: headers::principal(all, caller, is_api).to_owned(),
        attempt: headers::attempt(all),
        span: headers::span(all),
        sent_unix_us: headers::sent_unix_us(all),
        deadline_unix_ms: headers::deadline_unix_ms(all),
        events: headers::events(all),
        targets: headers::targets(all, is_api),
    }
}

/// What the file of waiting records says, of this writer: the number of the first, and they.
pub fn spool(text: &[u8], writer: &str) -> (u64, Vec<Link>) {
    // Nothing can be put aside there.
    let (first, links, _) = trail::waiting_in(Path::new("/nowhere/audit.spool"), text, writer);
    (first, links)
}

/// What a node knows of its enrolment.
pub fn enrollment(text: &str) -> Result<Record, String> {
    enroll::read_record(text).map_err(|error| error.to_string())
}

/// A server that says this when it is asked, whatever for. It runs on [`runtime`].
fn asked(said: &[u8]) -> DuplexStream {
    let (ours, theirs) = duplex(64 * 1024);
    let (mut questions, mut answers) = split(theirs);
    let said = said.to_vec();
    tokio::spawn(async move {
        if questions.read_u8().await.is_ok() {
            let answered = async {
                answers.write_all(&said).await?;
                answers.shutdown().await
            };
            let mut nowhere = sink();
            drop(tokio::join!(answered, copy(&mut questions, &mut nowhere)));
        }
    });
    ours
}

fn stream(said: &[u8]) -> impl AsyncRead + AsyncWrite + Send + Unpin + 'static {
    join(Cursor::new(said.to_vec()), sink())
}

thread_local! {
    static RUNTIME: &'static Runtime = Box::leak(Box::new(Builder::new_current_thread().enable_time().build().unwrap_or_else(|error| {
        // Nothing can be read without one.
        tracing::error!(%error, "no runtime");
        std::process::abort()
    })));
}

fn runtime() -> &'static Runtime {
    RUNTIME.with(|runtime| *runtime)
}
