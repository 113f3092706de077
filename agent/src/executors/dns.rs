//! `dns`: one question to one server, or to the node's own in turn, until there is an answer; or the way from the root to it.

mod asking;
mod proof;
mod referral;
mod trace;

use std::net::SocketAddr;

use probeops_shared::host::DnsName;
use probeops_shared::outcome::{Failure, FailureKind};
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::dns::report::{DnsReport, DnsServer, DnsTimings};
use probeops_shared::tools::dns::{Dns, DnsProgress};

use crate::executors::{Context, Found, Live};
use crate::net::dns::message::Query;
use asking::Asking;

pub(super) async fn run(context: &Context, target: &DnsName, options: &Dns, live: &Live) -> Result<DnsReport, Failure> {
    context.permit_question(target)?;
    if options.trace {
        return trace::run(context, target, options, live).await;
    }
    let query = query(target, options)?;
    let servers = Servers::of(context, target, options, live).await?;
    let first = servers.first()?;
    let mut asking = Asking::new(&query, options);
    let turns = servers.addresses.iter().cycle().take(options.tries.get_usize());
    for server in turns {
        asking
            .ask(*server, |asking, attempt| {
                live.set(Found::of(options, target, &report(asking, &servers, first)));
                live.tell(options, target, &DnsProgress::Attempt(attempt.clone()));
            })
            .await;
        if asking.response.is_some() {
            break;
        }
    }
    let mut report = report(&asking, &servers, first);
    if options.validate {
        report.validation = Some(proof::prove(&asking, target, options, live).await);
    }
    Ok(report)
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
}

impl Servers {
    /// The server that the caller names, a target like any other, or the node's own, which are always usable.
    async fn of(context: &Context, target: &DnsName, options: &Dns, live: &Live) -> Result<Self, Failure> {
        let Some(resolver) = &options.resolver else {
            return Ok(Self { addresses: context.node.resolver.own_servers().await, name: None, resolve_ms: None });
        };
        let port = options.port.get_u16();
        let reached = context.reach(resolver, Some(port), options.family).await?;
        live.tell(options, target, &DnsProgress::Resolved(reached.resolved()));
        let name = resolver.address().is_none().then(|| resolver.to_string());
        Ok(Self { addresses: vec![SocketAddr::new(reached.address, port)], name, resolve_ms: reached.resolve_ms })
    }

    fn first(&self) -> Result<SocketAddr, Failure> {
        let none = || Failure::new(FailureKind::Unresolved, "this node has no name server of its own; name one in `resolver`");
        self.addresses.first().copied().ok_or_else(none)
    }
}

/// What is known so far; before anybody was asked, it is `first` that will be.
fn report(asking: &Asking<'_>, servers: &Servers, first: SocketAddr) -> DnsReport {
    let last = asking.last.as_ref();
    let server = last.map_or(first, |last| last.server);
    let timings = last.map(|last| last.timings.clone()).unwrap_or_default();
    DnsReport {
        question: asking.query.question(),
        server: DnsServer { name: servers.name.clone(), address: server.ip(), port: server.port() },
        transport: last.map_or_else(Default::default, |last| last.transport),
        attempts: asking.attempts.clone(),
        answered: asking.response.is_some(),
        asked_at: last.map_or_else(Timestamp::now, |last| last.asked_at),
        timings: DnsTimings { resolve_ms: servers.resolve_ms, ..timings },
        response: asking.response.clone(),
        trace: Vec::new(),
        validation: None,
    }
}
