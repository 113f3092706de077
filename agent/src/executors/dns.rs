//! `dns`: one question to one server, or to the node's own in turn, until there is an answer.

use std::net::SocketAddr;

use probeops_shared::host::DnsName;
use probeops_shared::outcome::{Failure, FailureKind};
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::dns::report::{AttemptResult, DnsAttempt, DnsReport, DnsServer, DnsTimings};
use probeops_shared::tools::dns::{Dns, DnsProgress, Transport};
use probeops_shared::tools::network::ms;
use tokio::time::Instant;

use crate::executors::{Context, Found, Live};
use crate::net::dns::message::{self, Query};
use crate::net::dns::{self, Answer, NoAnswer};

pub(super) async fn run(context: &Context, target: &DnsName, options: &Dns, live: &Live) -> Result<DnsReport, Failure> {
    context.permit_question(target)?;
    let query = Query::new(target, options.record_type(target), options).map_err(|detail| Failure::new(FailureKind::Invalid, detail))?;
    let (servers, name, resolve_ms) = servers(context, target, options, live).await?;
    let turns = servers.iter().cycle().take(usize::try_from(options.tries.get()).unwrap_or(1));
    let Some(first) = servers.first() else {
        return Err(Failure::new(FailureKind::Unresolved, "this node has no name server of its own; name one in `resolver`"));
    };
    let mut run = Run {
        query: &query,
        options,
        report: DnsReport {
            question: query.question(),
            server: DnsServer { name, address: first.ip(), port: first.port() },
            transport: options.protocol,
            attempts: Vec::new(),
            answered: false,
            asked_at: Timestamp::now(),
            timings: DnsTimings { resolve_ms, ..DnsTimings::default() },
            response: None,
        },
    };
    for server in turns {
        let mut transport = options.protocol;
        loop {
            run.ask(*server, transport).await;
            live.set(Found::of(options, target, &run.report));
            let Some(attempt) = run.report.attempts.last() else { break };
            live.tell(options, target, &DnsProgress::Attempt(attempt.clone()));
            if attempt.result != AttemptResult::Truncated || !options.tcp_fallback {
                break;
            }
            transport = Transport::Tcp;
        }
        if run.report.answered {
            break;
        }
    }
    Ok(run.report)
}

/// Whom to ask: the server that the caller names, a target like any other, or the node's own, which are always usable.
async fn servers(
    context: &Context,
    target: &DnsName,
    options: &Dns,
    live: &Live,
) -> Result<(Vec<SocketAddr>, Option<String>, Option<f64>), Failure> {
    let Some(resolver) = &options.resolver else {
        return Ok((context.node.resolver.own_servers().await, None, None));
    };
    let port = options.port.get_u16();
    let reached = context.reach(resolver, Some(port), options.family).await?;
    live.tell(options, target, &DnsProgress::Resolved(reached.resolved()));
    let name = resolver.address().is_none().then(|| resolver.to_string());
    Ok((vec![SocketAddr::new(reached.address, port)], name, reached.resolve_ms))
}

/// A run so far.
struct Run<'a> {
    query: &'a Query,
    options: &'a Dns,
    report: DnsReport,
}

impl Run<'_> {
    /// Sends one query and notes what becomes of it. A cut answer counts until there is a whole one.
    async fn ask(&mut self, server: SocketAddr, transport: Transport) {
        let (asked_at, started) = (Timestamp::now(), Instant::now());
        let is_answer = |bytes: &[u8]| self.query.is_answered_by(bytes);
        let answer = dns::ask(server, transport, self.query.bytes(), is_answer, self.options.timeout.duration()).await;
        let elapsed_ms = ms(started.elapsed());
        let read = answer.and_then(|answer| match message::read(&answer.bytes) {
            Ok(response) => Ok((answer, response)),
            Err(detail) => Err(NoAnswer { result: AttemptResult::Malformed, detail: Some(detail), connect: answer.connect }),
        });
        let (result, detail, connect) = match read {
            Ok((answer, response)) => {
                let connect = answer.connect;
                let cut = response.flags.tc && transport == Transport::Udp;
                self.note(server, transport, asked_at, Some(&answer));
                (self.report.answered, self.report.response) = (true, Some(response));
                (if cut { AttemptResult::Truncated } else { AttemptResult::Answered }, None, connect)
            }
            Err(NoAnswer { result, detail, connect }) => {
                if !self.report.answered {
                    self.note(server, transport, asked_at, None);
                }
                (result, detail, connect)
            }
        };
        let (address, port, connect_ms) = (server.ip(), server.port(), connect.map(ms));
        self.report.attempts.push(DnsAttempt { address, port, transport, result, elapsed_ms, connect_ms, detail });
    }

    fn note(&mut self, server: SocketAddr, transport: Transport, asked_at: Timestamp, answer: Option<&Answer>) {
        let report = &mut self.report;
        (report.server.address, report.server.port) = (server.ip(), server.port());
        (report.transport, report.asked_at) = (transport, asked_at);
        report.timings.connect_ms = answer.and_then(|answer| answer.connect).map(ms);
        report.timings.query_ms = answer.map(|answer| ms(answer.took));
    }
}
