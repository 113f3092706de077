//! `tcp`: a handshake with each port, and a short talk with what listens there.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use probeops_shared::host::Host;
use probeops_shared::outcome::Failure;
use probeops_shared::tls::{TlsFailure, TlsFailureCode, TlsSession};
use probeops_shared::tools::ToolName;
use probeops_shared::tools::network::{Family, ms};
use probeops_shared::tools::tcp::report::{PortState, TcpExpectation, TcpPort, TcpProgress, TcpReport, TcpTls};
use probeops_shared::tools::tcp::{BANNER_BYTES_MAX, PORT_INTERVAL, REPLY_BYTES_MAX, Tcp};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::MissedTickBehavior;

use crate::executors::dial::{Closed, Dialled, dial};
use crate::executors::tls::authorities;
use crate::executors::{Context, Live};
use crate::net::tcp::{self, Until};
use crate::net::tls::{self, Terms, Trust};

pub(super) async fn run(context: &Context, target: &Host, options: &Tcp, live: &Live) -> Result<TcpReport, Failure> {
    let terms = terms(target, options)?;
    let ports = options.ports();
    let touched: Vec<Option<u16>> = ports.iter().copied().map(Some).collect();
    let reached = context.reach_all(target, &touched, options.family).await?;
    live.tell(options, target, &TcpProgress::Resolved(reached.resolved()));
    let address = reached.address;
    let mut report =
        TcpReport { address, family: Family::of(address), resolve_ms: reached.resolve_ms, ports: Vec::with_capacity(ports.len()) };
    let mut left = ports.into_iter();
    let mut pace = tokio::time::interval(PORT_INTERVAL);
    // A handshake that began late does not make the next one begin early.
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut handshakes = FuturesUnordered::new();
    let mut talks = FuturesUnordered::new();
    loop {
        let port = tokio::select! {
            _ = pace.tick(), if left.len() > 0 => {
                handshakes.extend(left.next().map(|port| shake_hands(SocketAddr::new(address, port), options.timeout.duration())));
                continue;
            }
            Some(shaken) = handshakes.next() => match shaken? {
                (port, Some(stream)) if options.talks() => {
                    let connect_ms = port.connect_ms.unwrap_or_default();
                    live.tell(options, target, &TcpProgress::Open { address, port: port.port, connect_ms });
                    talks.push(talk(stream, terms.as_ref(), options, port.clone()));
                    // That it is open is known, however the run ends.
                    report.ports.push(port);
                    live.set(options, target, report.clone());
                    continue;
                }
                (port, _) => port,
            },
            Some(port) = talks.next() => port,
            else => return Ok(report),
        };
        report.ports.retain(|known| known.port != port.port);
        report.ports.push(port.clone());
        live.set(options, target, report.clone());
        live.tell(options, target, &TcpProgress::Port { address, report: Box::new(port) });
    }
}

/// What TLS is to be like, if it is asked for.
fn terms(target: &Host, options: &Tcp) -> Result<Option<Terms>, Failure> {
    let authorities = authorities(options.ca_certificates.as_ref())?;
    let name = options.server_name.as_ref().unwrap_or(target);
    Ok(options.tls.then(|| Terms { trust: Trust::Inspect, authorities, ..Terms::new(name) }))
}

/// What becomes of the handshake with a port, and the connection when it is open.
async fn shake_hands(to: SocketAddr, patience: Duration) -> Result<(TcpPort, Option<TcpStream>), Failure> {
    let report = TcpPort { port: to.port(), ..TcpPort::default() };
    Ok(match dial(ToolName::Tcp, to, patience).await? {
        Dialled::Open { stream, took } => (TcpPort { state: PortState::Open, connect_ms: Some(ms(took)), ..report }, Some(stream)),
        Dialled::Closed(Closed { state, reason, icmp, took }) => {
            let connect_ms = took.filter(|_| state == PortState::Refused).map(ms);
            (TcpPort { state, connect_ms, icmp, reason: Some(reason), ..report }, None)
        }
    })
}

/// Talks to what listens, over TLS if that is asked for and comes about.
async fn talk(stream: TcpStream, terms: Option<&Terms>, options: &Tcp, report: TcpPort) -> TcpPort {
    let Some(terms) = terms else { return converse(stream, options, report).await };
    let (started, patience) = (Instant::now(), options.timeout.duration());
    let failed = |failure, session| TcpPort {
        tls: Some(Box::new(TcpTls { handshake_ms: None, failure: Some(failure), session })),
        ..report.clone()
    };
    match tokio::time::timeout(patience, tls::connect(stream, terms)).await {
        Ok(Ok((stream, session))) => {
            let tls = TcpTls { handshake_ms: Some(ms(started.elapsed())), failure: None, session };
            converse(stream, options, TcpPort { tls: Some(Box::new(tls)), ..report }).await
        }
        Ok(Err(refused)) => failed(refused.failure, *refused.session),
        Err(_) => {
            let detail = format!("timed out: no handshake within {} ms", patience.as_millis());
            failed(TlsFailure { code: TlsFailureCode::TimedOut, detail }, TlsSession::default())
        }
    }
}

/// Listens for the banner, says what is to be said, and looks for what is expected.
async fn converse(mut stream: impl AsyncRead + AsyncWrite + Unpin, options: &Tcp, mut report: TcpPort) -> TcpPort {
    if options.banner {
        let heard = tcp::listen(&mut stream, Until::Pause, BANNER_BYTES_MAX, options.banner_wait_ms.ms()).await;
        (report.banner, report.banner_bytes) = (escaped(&heard), Some(heard.len()));
    }
    let patience = options.reply_wait_ms.ms();
    if let Some(send) = &options.send {
        report.sent_bytes = Some(tcp::say(&mut stream, send.as_slice(), patience).await);
    }
    if options.send.is_some() || options.expects() {
        let enough = |heard: &[u8]| expectation(options, heard).is_some_and(|expect| expect.matched);
        let until = if options.expects() { Until::Heard(&enough) } else { Until::Pause };
        let heard = tcp::listen(&mut stream, until, REPLY_BYTES_MAX, patience).await;
        report.expect = expectation(options, &heard);
        (report.reply, report.reply_bytes) = (escaped(&heard), Some(heard.len()));
    }
    report
}

fn escaped(heard: &[u8]) -> Option<String> {
    (!heard.is_empty()).then(|| heard.escape_ascii().to_string())
}

/// The verdict on what was heard; `None` when nothing is expected.
fn expectation(options: &Tcp, heard: &[u8]) -> Option<TcpExpectation> {
    let shown = |found: &[u8]| found.escape_ascii().to_string();
    if let Some(text) = &options.expect {
        let text = text.as_slice();
        let matched = heard.windows(text.len()).any(|window| window == text);
        return Some(TcpExpectation { matched, found: matched.then(|| shown(text)), groups: Vec::new() });
    }
    let pattern = options.expect_regex.as_ref()?.regex();
    let Some(captures) = pattern.captures(heard) else { return Some(TcpExpectation::default()) };
    let groups = captures.iter().skip(1).map(|group| group.map(|group| shown(group.as_bytes()))).collect();
    Some(TcpExpectation { matched: true, found: captures.get(0).map(|whole| shown(whole.as_bytes())), groups })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_says_what_was_found() {
        let of = |options: Tcp, heard: &[u8]| expectation(&options, heard).unwrap();
        let text = |expect: &str| Tcp { expect: expect.parse().ok(), ..Tcp::default() };
        assert_eq!(of(text("\\xff\\n"), b"a\xff\n"), TcpExpectation { matched: true, found: Some("\\xff\\n".to_owned()), groups: vec![] });
        assert!(!of(text("longer than that"), b"short").matched);
        let regex = |expect: &str| Tcp { expect_regex: expect.parse().ok(), ..Tcp::default() };
        let version = of(regex("SSH-([0-9.]+)-(\\S+)( .*)?"), b"SSH-2.0-OpenSSH_9.2\r\n");
        assert_eq!(version.groups, [Some("2.0".to_owned()), Some("OpenSSH_9.2".to_owned()), None]);
        assert_eq!(version.found.as_deref(), Some("SSH-2.0-OpenSSH_9.2"));
        assert_eq!(expectation(&Tcp::default(), b"x"), None);
    }
}
