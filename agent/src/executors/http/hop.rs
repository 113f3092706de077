//! One request: judge, connect, go through the proxy, over to TLS, ask, read.

use std::net::SocketAddr;
use std::time::Duration;

use probeops_shared::host::{DnsName, Host};
use probeops_shared::http_url::{HttpUrl, Scheme};
use probeops_shared::outcome::{Failure, FailureKind};
use probeops_shared::tools::ToolName;
use probeops_shared::tools::http::assertion::BODY_ASSERTED_MAX;
use probeops_shared::tools::http::parts::concealed_value;
use probeops_shared::tools::http::report::{
    HeaderField, HttpBody, HttpFailure, HttpFailureCode, HttpPhase, HttpProxy, HttpReport, HttpRequest, HttpTimings,
};
use probeops_shared::tools::http::{Http, HttpVersion};
use probeops_shared::tools::network::{Family, FamilyChoice, ms};
use probeops_shared::tools::tcp::report::PortState;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::{Next, Run};
use crate::executors::dial::{Closed, Dialled, dial};
use crate::executors::reach::Reached;
use crate::net::Connection;
use crate::net::http::{self, Answer, Limits, Speech, tunnel};
use crate::net::tls::{self, Terms, Trust};

/// A request to be made.
pub(super) struct Hop<'a> {
    pub(super) run: &'a Run<'a>,
    pub(super) next: &'a Next,
    /// What was found before it.
    pub(super) so_far: &'a HttpReport,
}

/// A request that was made.
pub(super) struct Done {
    pub(super) request: HttpRequest,
    /// The header fields with their secret values.
    pub(super) headers: Vec<(String, String)>,
    /// The beginning of the body.
    pub(super) kept: Vec<u8>,
}

/// A request that is being made: what is known of it is kept if the run is cut short.
struct Unfinished<'a> {
    hop: &'a Hop<'a>,
    done: &'a mut Done,
    is_over: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let (Hop { run, so_far, .. }, request) = (self.hop, &self.done.request);
        // Before there is a connection nothing is known of it.
        if self.is_over || request.state != PortState::Open || std::thread::panicking() {
            return;
        }
        let mut report = HttpReport { status: request.status.or(so_far.status), total_ms: ms(run.started.elapsed()), ..(*so_far).clone() };
        report.requests.push(request.clone());
        run.live.set(run.options, run.target, report);
    }
}

/// A request whose answer is awaited: what there is of that goes with it, however that ends.
struct Asked<'a> {
    answer: Answer,
    done: &'a mut Done,
    /// How much of the body is shown.
    shown: usize,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let (answer, done) = (std::mem::take(&mut self.answer), &mut *self.done);
        done.request.timings.download_ms = answer.download.map(ms);
        done.request.body = answer.body.map(|body| {
            let beginning = answer.kept.get(..self.shown).unwrap_or(&answer.kept);
            HttpBody { text: String::from_utf8_lossy(beginning).into_owned(), ..body }
        });
        (done.headers, done.kept) = (answer.headers, answer.kept);
    }
}

/// Where to connect to, and how from there.
struct Way {
    to: SocketAddr,
    /// The host's own address behind a proxy.
    behind: Option<SocketAddr>,
    dns_ms: Option<f64>,
}

impl Hop<'_> {
    pub(super) async fn run(self) -> Result<Done, Failure> {
        let begun = Instant::now();
        let way = self.way().await?;
        let mut done = Done { request: self.blank(&way), headers: Vec::new(), kept: Vec::new() };
        let mut unfinished = Unfinished { hop: &self, done: &mut done, is_over: false };
        let until = Instant::now() + self.options().timeout.duration();
        unfinished.done.request.failure = Box::pin(self.make(&way, until, unfinished.done)).await?.err();
        unfinished.done.request.timings.total_ms = Some(ms(begun.elapsed()));
        unfinished.is_over = true;
        drop(unfinished);
        Ok(done)
    }

    /// Judges every address that is connected to, here or by the proxy, before anything is sent.
    async fn way(&self) -> Result<Way, Failure> {
        let (url, options, context) = (&self.next.url, self.options(), self.run.context);
        let host = match &options.resolve {
            Some(instead) if self.is_targets_host() => {
                // The name is not looked up, but it is asked for by name all the same.
                context.permit_question(&match url.host() {
                    Host::Address(address) => DnsName::Address(*address),
                    Host::Name(name) => DnsName::Name(name.clone()),
                })?;
                instead
            }
            Some(_) | None => url.host(),
        };
        let reached = match &options.resolver {
            Some(resolver) => context.reach_by(resolver, host, Some(url.port()), options.family).await?,
            None => context.reach(host, Some(url.port()), options.family).await?,
        };
        let own = SocketAddr::new(reached.address, url.port());
        let Some(proxy) = &options.proxy else { return Ok(Way { to: own, behind: None, dns_ms: reached.resolve_ms }) };
        let Reached { address, resolve_ms } = context.reach(proxy.host(), Some(proxy.port()), FamilyChoice::Any).await?;
        let dns_ms =
            [reached.resolve_ms, resolve_ms].into_iter().flatten().reduce(|one, other| ms(Duration::from_secs_f64((one + other) / 1000.0)));
        Ok(Way { to: SocketAddr::new(address, proxy.port()), behind: Some(own), dns_ms })
    }

    /// Everything after the address is known; an outer failure is one of this machine.
    async fn make(&self, way: &Way, until: Instant, done: &mut Done) -> Result<Result<(), HttpFailure>, Failure> {
        let mut stream = match dial(ToolName::Http, way.to, self.options().timeout.duration()).await? {
            Dialled::Open { stream, took } => {
                (done.request.state, done.request.timings.connect_ms) = (PortState::Open, Some(ms(took)));
                stream
            }
            Dialled::Closed(Closed { state, reason, icmp, took }) => {
                let code = if took.is_some() { HttpFailureCode::Connect } else { HttpFailureCode::TimedOut };
                let failure = HttpFailure { code, detail: reason };
                (done.request.state, done.request.icmp, done.request.failure) = (state, icmp, Some(failure.clone()));
                self.run.tell(HttpPhase::Connected, &done.request);
                return Ok(Err(failure));
            }
        };
        // What is written in more than one piece is not to wait for the answer to the first.
        if self.next.url.scheme() == Scheme::Https || self.options().body.is_some() || self.options().http_version == HttpVersion::V2 {
            stream.set_nodelay(true).map_err(|error| Failure::new(FailureKind::Internal, crate::net::words(&error)))?;
        }
        let passed = timeout_at(until, self.pass(&mut stream, way, done)).await;
        self.run.tell(HttpPhase::Connected, &done.request);
        if let Err(failure) = passed.unwrap_or_else(|_| Err(late("the proxy did not answer"))) {
            return Ok(Err(failure));
        }
        Ok(match self.next.url.scheme() {
            Scheme::Http => {
                let speech = if self.options().http_version == HttpVersion::V2 { Speech::Two } else { Speech::One };
                self.ask(Box::new(stream), speech, until, done).await
            }
            Scheme::Https => Box::pin(self.ask_over_tls(stream, until, done)).await,
        })
    }

    /// Through the proxy, if there is one and the request is not handed over to it whole.
    async fn pass(&self, stream: &mut TcpStream, way: &Way, done: &mut Done) -> Result<(), HttpFailure> {
        let Some(behind) = way.behind.filter(|_| done.request.proxy.as_ref().is_some_and(|proxy| proxy.tunnel)) else { return Ok(()) };
        let started = Instant::now();
        let opened = tunnel::open(stream, behind, &self.proxy_lines()).await;
        if opened.is_ok() {
            done.request.timings.proxy_ms = Some(ms(started.elapsed()));
        }
        opened.map_err(|why| HttpFailure { code: HttpFailureCode::Proxy, detail: why.to_string() })
    }

    async fn ask_over_tls(&self, stream: TcpStream, until: Instant, done: &mut Done) -> Result<(), HttpFailure> {
        let (options, url) = (self.options(), &self.next.url);
        let alpn: &[&str] = match options.http_version {
            HttpVersion::Auto => &["h2", "http/1.1"],
            // Strict servers end a handshake that offers only what they do not know.
            HttpVersion::V1_0 => &[],
            HttpVersion::V1_1 => &["http/1.1"],
            HttpVersion::V2 => &["h2"],
        };
        let own = self.is_targets_host();
        let terms = Terms {
            trust: if options.verify { Trust::Strict } else { Trust::Inspect },
            alpn: alpn.iter().map(|protocol| (*protocol).to_owned()).collect(),
            min: options.tls_min_version.version(),
            max: options.tls_max_version.version(),
            authorities: self.run.authorities.clone(),
            identity: self.run.identity.clone().filter(|_| own),
            ..Terms::new(options.server_name.as_ref().filter(|_| own).unwrap_or_else(|| url.host()))
        };
        let started = Instant::now();
        let greeted = timeout_at(until, Box::pin(tls::connect(stream, &terms))).await;
        // What it was made with is not kept for as long as the answer takes.
        drop(terms);
        let Ok(connected) = greeted else {
            return Err(late("the server did not finish the TLS handshake"));
        };
        done.request.timings.tls_ms = Some(ms(started.elapsed()));
        match connected {
            Ok((stream, session)) => {
                let two = session.alpn.as_deref() == Some("h2");
                let stream = Box::new(stream);
                done.request.tls = Some(Box::new(session));
                self.run.tell(HttpPhase::Secured, &done.request);
                if !two && options.http_version == HttpVersion::V2 {
                    let detail = "the server does not speak HTTP/2 (it did not choose h2 by ALPN)".to_owned();
                    return Err(HttpFailure { code: HttpFailureCode::Protocol, detail });
                }
                self.ask(stream, if two { Speech::Two } else { Speech::One }, until, done).await
            }
            Err(refused) => {
                done.request.tls = Some(refused.session);
                self.run.tell(HttpPhase::Secured, &done.request);
                Err(HttpFailure { code: HttpFailureCode::Tls, detail: refused.failure.detail })
            }
        }
    }

    async fn ask(&self, stream: Box<dyn Connection>, speech: Speech, until: Instant, done: &mut Done) -> Result<(), HttpFailure> {
        let options = self.options();
        let shown = options.body_bytes.get_usize();
        let keep = if options.assertions.is_empty() { shown } else { shown.max(BODY_ASSERTED_MAX) };
        let limits = Limits { until, read: options.read_bytes_max.get_usize(), keep, decompress: options.compression };
        let request = self.request(speech, done)?;
        let mut asked = Asked { answer: Answer::default(), done, shown };
        let Asked { answer, done: Done { request: so_far, .. }, .. } = &mut asked;
        http::exchange(stream, speech, request, limits, answer, |head| {
            note(head, so_far);
            self.run.tell(HttpPhase::Answered, so_far);
        })
        .await
    }

    fn blank(&self, way: &Way) -> HttpRequest {
        let url = self.next.url.clone();
        // A proxy would look a name up by itself, past the policy; an address it can have.
        let named = url.host().address().is_none() || self.options().resolve.is_some();
        let tunnel = named || url.scheme() == Scheme::Https || self.options().http_version == HttpVersion::V2;
        let proxy = self.options().proxy.clone().zip(way.behind);
        HttpRequest {
            method: self.next.method.clone(),
            address: way.to.ip(),
            family: Family::of(way.to.ip()),
            port: way.to.port(),
            proxy: proxy.map(|(url, behind): (HttpUrl, SocketAddr)| HttpProxy { url, tunnel, address: behind.ip() }),
            state: PortState::Filtered,
            icmp: None,
            tls: None,
            request_headers: Vec::new(),
            protocol: None,
            status: None,
            reason: None,
            headers: Vec::new(),
            body: None,
            timings: HttpTimings { dns_ms: way.dns_ms, ..HttpTimings::default() },
            failure: None,
            url,
        }
    }

    pub(super) fn options(&self) -> &Http {
        self.run.options
    }

    /// Whether what was said of the target's host is meant for this one.
    pub(super) fn is_targets_host(&self) -> bool {
        self.next.url.host() == self.run.target.host()
    }
}

/// Adds to a request what the head of its answer says.
fn note(answer: &Answer, request: &mut HttpRequest) {
    request.protocol = Some(answer.protocol.clone());
    request.status = Some(answer.status);
    request.reason.clone_from(&answer.reason);
    let field = |(name, value): &(String, String)| HeaderField { name: name.clone(), value: concealed_value(name, value) };
    request.headers = answer.headers.iter().map(field).collect();
    request.timings.first_byte_ms = answer.first_byte.map(ms);
}

fn late(what: &str) -> HttpFailure {
    HttpFailure { code: HttpFailureCode::TimedOut, detail: format!("{what} within `timeout`") }
}
