//! `tcp`: a handshake with each port, and a short talk with what listens there.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use probeops_shared::host::Host;
use probeops_shared::outcome::Failure;
use probeops_shared::tls::{TlsFailure, TlsFailureCode, TlsSession};
use probeops_shared::tools::ToolName;
use probeops_shared::tools::network::{Family, ms};
use probeops_shared::tools::tcp::exchange::Exchange;
use probeops_shared::tools::tcp::report::{PortState, TcpExchange, TcpExpectation, TcpPort, TcpProgress, TcpReport, TcpTls};
use probeops_shared::tools::tcp::{BANNER_BYTES_MAX, PORT_INTERVAL, REPLY_BYTES_MAX, Tcp};
use tokio::net::TcpStream;
use tokio::time::MissedTickBehavior;

use crate::executors::dial::{Closed, Dialled, dial_from};
use crate::executors::tls::{authorities, identity};
use crate::executors::{Context, Live, reach};
use crate::net::Connection;
use crate::net::tcp::{self, Until};
use crate::net::tls::{self, Terms, Trust};

pub(super) async fn run(context: &Context, target: &Host, options: &Tcp, live: &Live) -> Result<TcpReport, Failure> {
    let terms = terms(target, options)?;
    let ports = options.ports();
    let touched: Vec<Option<u16>> = ports.iter().copied().map(Some).collect();
    let source = reach::source(options.source)?;
    let family = options.family.from_source(options.source);
    let reached = context.reach_all(target, &touched, family).await?;
    live.tell(options, target, &TcpProgress::Resolved(reached.resolved()));
    let address = reached.address;
    let report = TcpReport { address, family: Family::of(address), resolve_ms: reached.resolve_ms, ports: Vec::with_capacity(ports.len()) };
    let so_far = Mutex::new(report);
    let known = || so_far.lock().unwrap_or_else(PoisonError::into_inner);
    // What is known of a port, however the run ends.
    let keep = |port: &TcpPort| {
        let mut report = known();
        report.ports.retain(|known| known.port != port.port);
        report.ports.push(port.clone());
        live.set(options, target, report.clone());
    };
    let mut left = ports.into_iter();
    let mut pace = tokio::time::interval(PORT_INTERVAL);
    // A handshake that began late does not make the next one begin early.
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut handshakes = FuturesUnordered::new();
    let mut talks = FuturesUnordered::new();
    loop {
        let port = tokio::select! {
            _ = pace.tick(), if left.len() > 0 => {
                handshakes.extend(left.next().map(|port| shake_hands(source, SocketAddr::new(address, port), options.timeout.duration())));
                continue;
            }
            Some(shaken) = handshakes.next() => match shaken? {
                (port, Some(stream)) if options.talks() => {
                    let connect_ms = port.connect_ms.unwrap_or_default();
                    live.tell(options, target, &TcpProgress::Open { address, port: port.port, connect_ms });
                    let connection: Option<Box<dyn Connection>> = Some(Box::new(stream));
                    let talk = Talk { options, terms: &terms, connection, rest: Vec::new(), caught: Vec::new() };
                    keep(&port);
                    talks.push(talk.hold(port, &keep, move |port, number, exchange| {
                        let exchange = Box::new(exchange.clone());
                        live.tell(options, target, &TcpProgress::Exchange { address, port, number, exchange });
                    }));
                    continue;
                }
                (port, _) => port,
            },
            Some(port) = talks.next() => port,
            else => break,
        };
        keep(&port);
        live.tell(options, target, &TcpProgress::Port { address, report: Box::new(port) });
    }
    let report = known().clone();
    Ok(report)
}

/// What TLS is to be like, wherever it begins.
fn terms(target: &Host, options: &Tcp) -> Result<Terms, Failure> {
    Ok(Terms {
        trust: Trust::Inspect,
        min: options.min_version.version(),
        max: options.max_version.version(),
        authorities: authorities(options.ca_certificates.as_ref())?,
        identity: identity(options.client_certificate.as_ref(), options.client_key.as_ref())?,
        ..Terms::new(options.server_name.as_ref().unwrap_or(target))
    })
}

/// What becomes of the handshake with a port, and the connection when it is open.
async fn shake_hands(from: Option<IpAddr>, to: SocketAddr, patience: Duration) -> Result<(TcpPort, Option<TcpStream>), Failure> {
    let report = TcpPort { port: to.port(), ..TcpPort::default() };
    Ok(match dial_from(ToolName::Tcp, from, to, patience).await? {
        Dialled::Open { stream, took } => (TcpPort { state: PortState::Open, connect_ms: Some(ms(took)), ..report }, Some(stream)),
        Dialled::Closed(Closed { state, reason, icmp, took }) => {
            let connect_ms = took.filter(|_| state == PortState::Refused).map(ms);
            (TcpPort { state, connect_ms, icmp, reason: Some(reason), ..report }, None)
        }
    })
}

/// A talk with what listens.
struct Talk<'a> {
    options: &'a Tcp,
    terms: &'a Terms,
    /// None when it went over to TLS in vain.
    connection: Option<Box<dyn Connection>>,
    /// What was heard behind what was expected.
    rest: Vec<u8>,
    /// What the groups of the last regular expression have caught.
    caught: Vec<Vec<u8>>,
}

impl Talk<'_> {
    /// Talks until all is said, or until the server does not say what it should; each exchange of several is told.
    async fn hold(mut self, mut report: TcpPort, keep: impl Fn(&TcpPort), tell: impl Fn(u16, usize, &TcpExchange)) -> TcpPort {
        if self.options.tls {
            report.tls = Some(Box::new(self.secure().await));
            keep(&report);
        }
        if let Some(connection) = self.connection.as_mut().filter(|_| self.options.banner) {
            let heard = tcp::listen(connection, Until::Pause, BANNER_BYTES_MAX, self.options.banner_wait_ms.ms()).await;
            (report.banner, report.banner_bytes) = (escaped(&heard), Some(heard.len()));
            keep(&report);
        }
        let exchanges = self.options.exchanges();
        for (number, exchange) in exchanges.iter().enumerate() {
            let became = self.exchange(exchange, number > 0).await;
            if exchanges.len() > 1 && !exchange.is_empty() {
                tell(report.port, number, &became);
            }
            let goes_on = self.connection.is_some() && !became.has_failed();
            if number == 0 {
                report.first = became;
            } else {
                report.then.push(became);
            }
            keep(&report);
            if !goes_on {
                break;
            }
        }
        report
    }

    /// Says what is to be said, looks for what is expected, and goes over to TLS if that is to follow.
    async fn exchange(&mut self, exchange: &Exchange, has_places: bool) -> TcpExchange {
        let mut became = TcpExchange::default();
        let Some(connection) = &mut self.connection else { return became };
        let patience = self.options.reply_wait_ms.ms();
        if let Some(send) = &exchange.send {
            let text = if has_places { send.filled(&self.caught) } else { send.as_slice().to_vec() };
            became.sent_bytes = Some(tcp::say(connection, &text, patience).await);
            // An answer comes after the question.
            self.rest.clear();
        }
        if exchange.waits() {
            let heard_before = std::mem::take(&mut self.rest);
            let enough = |heard: &[u8]| find(exchange, &[&heard_before, heard].concat()).is_some();
            let heard = match (exchange.expects(), enough(&[])) {
                (true, true) => Vec::new(),
                (true, false) => tcp::listen(connection, Until::Heard(&enough), REPLY_BYTES_MAX, patience).await,
                (false, _) => tcp::listen(connection, Until::Pause, REPLY_BYTES_MAX, patience).await,
            };
            let heard = [heard_before, heard].concat();
            if exchange.expects() {
                let match_ = find(exchange, &heard);
                became.expect = Some(match_.as_ref().map_or_else(TcpExpectation::default, Match::told));
                if let Some(found) = match_ {
                    self.rest = heard.get(found.end..).unwrap_or_default().to_vec();
                    if let Some(groups) = found.groups {
                        self.caught = groups.into_iter().map(Option::unwrap_or_default).collect();
                    }
                }
            }
            (became.reply, became.reply_bytes) = (escaped(&heard), Some(heard.len()));
        }
        if exchange.starttls && !became.has_failed() {
            self.rest.clear();
            became.starttls = Some(Box::new(self.secure().await));
        }
        became
    }

    /// Goes over to TLS; without it there is no connection any more.
    async fn secure(&mut self) -> TcpTls {
        let Some(connection) = self.connection.take() else { return TcpTls::default() };
        let (started, patience) = (Instant::now(), self.options.timeout.duration());
        match tokio::time::timeout(patience, tls::connect(connection, self.terms)).await {
            Ok(Ok((stream, session))) => {
                self.connection = Some(Box::new(stream));
                TcpTls { handshake_ms: Some(ms(started.elapsed())), failure: None, session }
            }
            Ok(Err(refused)) => TcpTls { handshake_ms: None, failure: Some(refused.failure), session: *refused.session },
            Err(_) => {
                let detail = format!("timed out: no handshake within {} ms", patience.as_millis());
                let failure = TlsFailure { code: TlsFailureCode::TimedOut, detail };
                TcpTls { handshake_ms: None, failure: Some(failure), session: TlsSession::default() }
            }
        }
    }
}

fn escaped(heard: &[u8]) -> Option<String> {
    (!heard.is_empty()).then(|| heard.escape_ascii().to_string())
}

/// What is expected, as it was found.
struct Match {
    found: Vec<u8>,
    /// Where it ends.
    end: usize,
    /// What the groups caught; of a regular expression only.
    groups: Option<Vec<Option<Vec<u8>>>>,
}

impl Match {
    fn told(&self) -> TcpExpectation {
        let shown = |found: &[u8]| found.escape_ascii().to_string();
        let groups = self.groups.iter().flatten().map(|group| group.as_deref().map(shown)).collect();
        TcpExpectation { matched: true, found: Some(shown(&self.found)), groups }
    }
}

/// Looks for what is expected.
fn find(exchange: &Exchange, heard: &[u8]) -> Option<Match> {
    if let Some(text) = &exchange.expect {
        let text = text.as_slice();
        let start = heard.windows(text.len()).position(|window| window == text)?;
        return Some(Match { found: text.to_vec(), end: start + text.len(), groups: None });
    }
    let captures = exchange.expect_regex.as_ref()?.regex().captures(heard)?;
    let whole = captures.get(0)?;
    let groups = captures.iter().skip(1).map(|group| group.map(|group| group.as_bytes().to_vec())).collect();
    Some(Match { found: whole.as_bytes().to_vec(), end: whole.end(), groups: Some(groups) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_says_what_was_found() {
        let of = |exchange: &Exchange, heard: &[u8]| find(exchange, heard).map(|found| (found.told(), found.end));
        let text = |expect: &str| Exchange { expect: expect.parse().ok(), ..Exchange::default() };
        let found = TcpExpectation { matched: true, found: Some("\\xff\\n".to_owned()), groups: vec![] };
        assert_eq!(of(&text("\\xff\\n"), b"a\xff\nb"), Some((found, 3)));
        assert_eq!(of(&text("longer than that"), b"short"), None);
        let regex = |expect: &str| Exchange { expect_regex: expect.parse().ok(), ..Exchange::default() };
        let (version, end) = of(&regex("SSH-([0-9.]+)-(\\S+)( .*)?"), b"SSH-2.0-OpenSSH_9.2\r\n").unwrap();
        assert_eq!(version.groups, [Some("2.0".to_owned()), Some("OpenSSH_9.2".to_owned()), None]);
        assert_eq!((version.found.as_deref(), end), (Some("SSH-2.0-OpenSSH_9.2"), 19));
        assert_eq!(of(&Exchange::default(), b"x"), None);
    }
}
