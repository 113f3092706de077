//! `dns`: one question to one server, or to the node's own in turn, until there is an answer; or the way from the root to it.

mod asking;
mod proof;
mod referral;
mod trace;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::try_join_all;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use probeops_shared::host::{DnsName, Host};
use probeops_shared::outcome::{Failure, FailureKind};
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::dns::comparison::{DnsCompared, DnsComparison};
use probeops_shared::tools::dns::report::{AttemptResult, DnsReport, DnsResponse, DnsServer, DnsTimings};
use probeops_shared::tools::dns::secure::HTTPS_PORT;
use probeops_shared::tools::dns::{Dns, DnsProgress, Transport};
use probeops_shared::tools::network::Family;

use crate::executors::tls::authorities;
use crate::executors::{Context, Live, reach};
use crate::net::dns::Way;
use crate::net::dns::message::Query;
use crate::net::tls::{Terms, Trust};
use asking::Asking;

pub(super) async fn run(context: &Context, target: &DnsName, options: &Dns, live: &Live) -> Result<DnsReport, Failure> {
    context.permit_question(target)?;
    reach::source(options.source)?;
    let family = options.family.from_source(options.source);
    // To copy all of them costs, and seldom is there a need to.
    let asked = if family == options.family { Cow::Borrowed(options) } else { Cow::Owned(Dns { family, ..options.clone() }) };
    let mut report = ask(context, target, &asked, live).await?;
    if !options.assertions.is_empty() {
        live.set(options, target, report.clone());
        report.assertions = options.assertions.judge(report.response.as_ref());
        for verdict in &report.assertions {
            live.tell(options, target, &DnsProgress::Assertion { verdict: verdict.clone() });
        }
    }
    Ok(report)
}

async fn ask(context: &Context, target: &DnsName, options: &Dns, live: &Live) -> Result<DnsReport, Failure> {
    if options.trace {
        // Boxed, as all else that is seldom wanted, so that a plain query is not as large as these.
        return Box::pin(trace::run(context, target, options, live)).await;
    }
    let query = query(target, options)?;
    let servers = Servers::of(context, target, options, live).await?;
    let job = Job { query: &query, target, options, live };
    let (asking, mut report) = match options.compare_with.hosts() {
        [] => job.answer(&servers, |report| live.set(options, target, report)).await?,
        others => {
            // All of them are judged before anything is sent to one of them.
            let others = others.iter().map(|resolver| Servers::named(context, target, options, resolver, live));
            Box::pin(async { job.compare(&servers, &try_join_all(others).await?).await }).await?
        }
    };
    if options.validate {
        live.set(options, target, report.clone());
        report.validation = Some(Box::pin(proof::prove(&asking, target, options, live)).await);
    }
    Ok(report)
}

/// A question, and who is told of its answers.
struct Job<'a> {
    query: &'a Query,
    target: &'a DnsName,
    options: &'a Dns,
    live: &'a Live,
}

impl<'a> Job<'a> {
    /// What the servers say, asked in turn until one does; `known` is told after each query that is not the last.
    async fn answer(&self, servers: &Servers, known: impl Fn(DnsReport)) -> Result<(Asking<'a>, DnsReport), Failure> {
        let first = servers.first()?;
        let mut asking = Asking::new(self.query, servers.way.clone(), self.options);
        for server in servers.addresses.iter().cycle().take(self.options.tries.get_usize()) {
            asking
                .ask(*server, |asking, attempt| {
                    if attempt.result != AttemptResult::Answered {
                        known(report(asking, asking.response.clone(), servers, first));
                    }
                    self.live.tell(self.options, self.target, &DnsProgress::Attempt(attempt.clone()));
                })
                .await;
            if asking.response.is_some() {
                break;
            }
        }
        // What is to be proven is looked at once more.
        let response = if self.options.validate { asking.response.clone() } else { asking.response.take() };
        let report = report(&asking, response, servers, first);
        Ok((asking, report))
    }

    /// What several say, asked at once. The report is that of the first, and of all of them.
    async fn compare(&self, first: &Servers, others: &[Servers]) -> Result<(Asking<'a>, DnsReport), Failure> {
        let known = Mutex::new(BTreeMap::new());
        let keep = |index: usize, report: DnsReport| {
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            known.insert(index, report);
            if let Some(report) = with_comparison(&known) {
                self.live.set(self.options, self.target, report);
            }
        };
        let keep = &keep;
        let all = std::iter::once(first).chain(others).enumerate();
        let mut pending: FuturesUnordered<_> =
            all.map(|(index, servers)| async move { (index, self.answer(servers, |report| keep(index, report)).await) }).collect();
        let mut asking_first = None;
        while let Some((index, answer)) = pending.next().await {
            let (asking, report) = answer?;
            self.live.tell(self.options, self.target, &DnsProgress::Compared(Box::new(DnsCompared::of(&report))));
            keep(index, report);
            if index == 0 {
                asking_first = Some(asking);
            }
        }
        let report = with_comparison(&known.lock().unwrap_or_else(PoisonError::into_inner));
        // The first is always among them.
        asking_first.zip(report).ok_or_else(|| Failure::new(FailureKind::Internal, "no resolver was asked"))
    }
}

/// The report of the first of these, and of all of them.
fn with_comparison(known: &BTreeMap<usize, DnsReport>) -> Option<DnsReport> {
    let compared = known.values().map(DnsCompared::of).collect();
    known.first_key_value().map(|(_, report)| DnsReport { comparison: Some(DnsComparison::of(compared)), ..report.clone() })
}

fn query(target: &DnsName, options: &Dns) -> Result<Query, Failure> {
    Query::new(target, options.record_type(target), options).map_err(|detail| Failure::new(FailureKind::Invalid, detail))
}

/// Whom to ask.
struct Servers {
    /// In order of preference.
    addresses: Vec<SocketAddr>,
    /// What they were given by, if that is a name.
    name: Option<String>,
    /// How long that name took to resolve.
    resolve_ms: Option<f64>,
    /// How they are asked.
    way: Way,
}

impl Servers {
    /// The server that the caller names, a target like any other, or the node's own, which are always usable.
    async fn of(context: &Context, target: &DnsName, options: &Dns, live: &Live) -> Result<Self, Failure> {
        let Some(resolver) = &options.resolver else {
            let way = if options.protocol == Transport::Tcp { Way::Tcp } else { Way::Udp };
            let mut addresses = context.node.resolver.own_servers().await;
            addresses.retain(|server| options.source.is_none_or(|source| source.family() == Family::of(server.ip())));
            return Ok(Self { addresses, name: None, resolve_ms: None, way });
        };
        Self::named(context, target, options, resolver, live).await
    }

    async fn named(context: &Context, target: &DnsName, options: &Dns, resolver: &Host, live: &Live) -> Result<Self, Failure> {
        let (port, way) = (options.port(), way(options, resolver)?);
        let reached = context.reach(resolver, Some(port), options.family).await?;
        live.tell(options, target, &DnsProgress::Resolved(reached.resolved()));
        let name = resolver.address().is_none().then(|| resolver.to_string());
        Ok(Self { addresses: vec![SocketAddr::new(reached.address, port)], name, resolve_ms: reached.resolve_ms, way })
    }

    fn first(&self) -> Result<SocketAddr, Failure> {
        let none = || Failure::new(FailureKind::Unresolved, "this node has no name server of its own; name one in `resolver`");
        self.addresses.first().copied().ok_or_else(none)
    }
}

/// How a resolver is asked. Its certificate must be for what it is named by, unless another name is given.
fn way(options: &Dns, resolver: &Host) -> Result<Way, Failure> {
    let alpn = match options.protocol {
        Transport::Udp => return Ok(Way::Udp),
        Transport::Tcp => return Ok(Way::Tcp),
        Transport::Tls => "dot",
        Transport::Https => "h2",
    };
    let name = options.tls_name.as_ref().unwrap_or(resolver);
    let trust = if options.tls_verify { Trust::Strict } else { Trust::Inspect };
    let authorities = authorities(options.ca_certificates.as_ref())?;
    let terms = Arc::new(Terms { trust, alpn: vec![alpn.to_owned()], authorities, ..Terms::new(name) });
    if options.protocol == Transport::Tls {
        return Ok(Way::Tls(terms));
    }
    let host = match name {
        Host::Address(IpAddr::V6(address)) => format!("[{address}]"),
        Host::Address(IpAddr::V4(_)) | Host::Name(_) => name.to_string(),
    };
    let port = if options.port() == HTTPS_PORT { String::new() } else { format!(":{}", options.port()) };
    Ok(Way::Https(terms, format!("https://{host}{port}{}", options.path)))
}

/// What is known so far; before anybody was asked, it is `first` that will be.
fn report(asking: &Asking<'_>, response: Option<DnsResponse>, servers: &Servers, first: SocketAddr) -> DnsReport {
    let last = asking.last.as_ref();
    let server = last.map_or(first, |last| last.server);
    let timings = last.map(|last| last.timings.clone()).unwrap_or_default();
    DnsReport {
        question: asking.query.question(),
        query_wire: asking.query_wire(),
        server: DnsServer { name: servers.name.clone(), address: server.ip(), port: server.port() },
        transport: last.map_or_else(Default::default, |last| last.transport),
        attempts: asking.attempts.clone(),
        answered: response.is_some(),
        asked_at: last.map_or_else(Timestamp::now, |last| last.asked_at),
        timings: DnsTimings { resolve_ms: servers.resolve_ms, ..timings },
        tls: asking.session.clone(),
        response,
        trace: Vec::new(),
        validation: None,
        comparison: None,
        assertions: Vec::new(),
    }
}
