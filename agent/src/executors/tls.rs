//! `tls`: connect, go over to TLS, greet, and show what came back.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use probeops_shared::host::Host;
use probeops_shared::outcome::{Failure, FailureKind};
use probeops_shared::tls::pem::{CertificatesPem, PrivateKeyPem};
use probeops_shared::tls::{TlsFailure, TlsFailureCode, TlsSession, TlsVersion};
use probeops_shared::tools::ToolName;
use probeops_shared::tools::network::{Family, ms};
use probeops_shared::tools::tcp::report::PortState;
use probeops_shared::tools::tls::Tls;
use probeops_shared::tools::tls::report::{Handshake, TlsProgress, TlsReport, TlsTimings, VersionOffer};
use rustls::sign::CertifiedKey;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::executors::dial::{Closed, Dialled, dial_from};
use crate::executors::{Context, Live, reach};
use crate::net::tls::{self, Refused, Terms, Trust, hello};
use crate::net::{starttls, words};

pub(super) async fn run(context: &Context, target: &Host, options: &Tls, live: &Live) -> Result<TlsReport, Failure> {
    let (terms, port, started) = (terms(target, options)?, options.port(), Instant::now());
    let source = reach::source(options.source)?;
    let reached = context.reach(target, Some(port), options.family.from_source(options.source)).await?;
    live.tell(options, target, &TlsProgress::Resolved(reached.resolved()));
    let mut run = Run { source, to: SocketAddr::new(reached.address, port), options, terms: &terms };
    let mut report = TlsReport {
        address: reached.address,
        family: Family::of(reached.address),
        port,
        state: PortState::Filtered,
        icmp: None,
        reason: None,
        handshake: Handshake::Failed,
        failure: None,
        session: TlsSession::default(),
        versions: None,
        timings: TlsTimings { resolve_ms: reached.resolve_ms, ..TlsTimings::default() },
    };
    // What is kept, and what is told of it.
    let tell = |report: &TlsReport, progress: Option<&TlsProgress>| {
        live.set(options, target, report.clone());
        if let Some(progress) = progress {
            live.tell(options, target, progress);
        }
    };
    run.handshake(&mut report, &tell).await?;
    report.timings.total_ms = Some(ms(started.elapsed()));
    tell(&report, Some(&TlsProgress::Handshake(Box::new(report.clone()))));
    if options.versions && report.state == PortState::Open {
        for version in options.offered() {
            let offer = run.offer(version).await?;
            report.versions.get_or_insert_default().push(offer.clone());
            report.timings.total_ms = Some(ms(started.elapsed()));
            tell(&report, Some(&TlsProgress::Version(offer)));
        }
    }
    Ok(report)
}

/// What the options say of the handshake.
fn terms(target: &Host, options: &Tls) -> Result<Terms, Failure> {
    Ok(Terms {
        trust: Trust::Inspect,
        alpn: options.alpn.protocols().to_vec(),
        min: options.min_version.0,
        max: options.max_version,
        authorities: authorities(options.ca_certificates.as_ref())?,
        identity: identity(options.client_certificate.as_ref(), options.client_key.as_ref())?,
        pem: options.pem,
        ..Terms::new(options.server_name.as_ref().unwrap_or(target))
    })
}

/// The authorities that an option names.
pub(super) fn authorities(ca_certificates: Option<&CertificatesPem>) -> Result<Vec<rustls::pki_types::CertificateDer<'static>>, Failure> {
    let Some(given) = ca_certificates else { return Ok(Vec::new()) };
    tls::certificates(given).map_err(|detail| invalid("/parameters/ca_certificates", &detail))
}

/// Who the options say we are.
pub(super) fn identity(certificate: Option<&CertificatesPem>, key: Option<&PrivateKeyPem>) -> Result<Option<Arc<CertifiedKey>>, Failure> {
    let (Some(certificate), Some(key)) = (certificate, key) else { return Ok(None) };
    tls::identity(certificate, key).map(Some).map_err(|detail| invalid("/parameters/client_certificate", &detail))
}

fn invalid(pointer: &str, detail: &str) -> Failure {
    Failure { pointer: Some(pointer.to_owned()), ..Failure::new(FailureKind::Invalid, detail) }
}

/// Whom to greet, and how.
struct Run<'a> {
    source: Option<IpAddr>,
    to: SocketAddr,
    options: &'a Tls,
    terms: &'a Terms,
}

/// How far a connection came.
enum Opened {
    /// TLS may begin.
    Ready { stream: TcpStream, starttls: Option<Duration> },
    /// There is no connection.
    Closed(Closed),
    /// The protocol in clear does not go over to TLS.
    InClear { detail: String },
}

impl Run<'_> {
    /// Greets as well as we can: with a whole handshake, or by hand where the server is too old for one.
    async fn handshake(&mut self, report: &mut TlsReport, tell: &impl Fn(&TlsReport, Option<&TlsProgress>)) -> Result<(), Failure> {
        let modern = self.terms.max.number() >= TlsVersion::V1_2.number();
        let first = self.open(report, tell).await?;
        let Some(stream) = first else { return Ok(()) };
        let started = Instant::now();
        let greeted = if modern { self.greet(stream, self.terms).await } else { self.greet_by_hand(stream, self.terms.max).await };
        report.timings.tls_ms = Some(ms(started.elapsed()));
        match greeted {
            Ok(session) => {
                (report.handshake, report.session) = (if modern { Handshake::Completed } else { Handshake::Shown }, session);
            }
            Err(Refused { failure, session }) => {
                let again = modern && worth_asking_by_hand(&failure, &session) && self.terms.min.number() <= TlsVersion::V1_2.number();
                (report.failure, report.session) = (Some(failure), *session);
                if again {
                    tell(report, None);
                    self.show(report).await?;
                }
            }
        }
        Ok(())
    }

    /// A second connection, by hand, to a server that refused the first.
    async fn show(&self, report: &mut TlsReport) -> Result<(), Failure> {
        if let Opened::Ready { stream, .. } = self.connect(|_| ()).await? {
            let started = Instant::now();
            if let Ok(session) = self.greet_by_hand(stream, TlsVersion::V1_2).await {
                report.timings.tls_ms = Some(ms(started.elapsed()));
                (report.handshake, report.session) = (Handshake::Shown, session);
            }
        }
        Ok(())
    }

    /// Whether the server accepts this version by itself.
    async fn offer(&self, version: TlsVersion) -> Result<VersionOffer, Failure> {
        let by_library = version.number() >= TlsVersion::V1_2.number();
        let by_hand = version.number() <= TlsVersion::V1_2.number();
        let terms = Terms { min: version, max: version, pem: false, ..self.terms.clone() };
        let mut failure = None;
        for library in [true, false].into_iter().filter(|library| if *library { by_library } else { by_hand }) {
            let stream = match self.connect(|_| ()).await? {
                Opened::Ready { stream, .. } => stream,
                Opened::Closed(closed) => {
                    failure = Some(TlsFailure { code: TlsFailureCode::Closed, detail: closed.reason });
                    continue;
                }
                Opened::InClear { detail } => {
                    failure = Some(TlsFailure { code: TlsFailureCode::NotTls, detail });
                    continue;
                }
            };
            let greeted = if library { self.greet(stream, &terms).await } else { self.greet_by_hand(stream, version).await };
            match greeted {
                // A server may answer with an older version than was offered; that is no yes.
                Ok(session) if session.version == Some(version) => {
                    return Ok(VersionOffer { version, accepted: true, cipher: session.cipher, failure: None });
                }
                Ok(session) => {
                    let other = session.version.map_or("another version", TlsVersion::printed);
                    failure = Some(TlsFailure { code: TlsFailureCode::Incompatible, detail: format!("the server chose {other}") });
                }
                Err(refused) => failure = Some(refused.failure),
            }
        }
        Ok(VersionOffer { version, accepted: false, cipher: None, failure })
    }

    /// Opens the connection of the report.
    async fn open(&self, report: &mut TlsReport, tell: &impl Fn(&TlsReport, Option<&TlsProgress>)) -> Result<Option<TcpStream>, Failure> {
        let connected = |connect: Duration| {
            report.state = PortState::Open;
            report.timings.connect_ms = Some(ms(connect));
            tell(report, Some(&TlsProgress::Connected { connect_ms: ms(connect) }));
        };
        Ok(match self.connect(connected).await? {
            Opened::Ready { stream, starttls } => {
                report.timings.starttls_ms = starttls.map(ms);
                if let Some(starttls_ms) = report.timings.starttls_ms {
                    tell(report, Some(&TlsProgress::StartedTls { starttls_ms }));
                }
                Some(stream)
            }
            Opened::Closed(Closed { state, reason, icmp, .. }) => {
                (report.state, report.reason, report.icmp) = (state, Some(reason), icmp);
                None
            }
            Opened::InClear { detail } => {
                report.failure = Some(TlsFailure { code: TlsFailureCode::NotTls, detail });
                None
            }
        })
    }

    /// `connected` is told how long that took, before the protocol in clear is spoken.
    async fn connect(&self, connected: impl FnOnce(Duration)) -> Result<Opened, Failure> {
        let patience = self.options.timeout.duration();
        let (mut stream, connect) = match dial_from(ToolName::Tls, self.source, self.to, patience).await? {
            Dialled::Open { stream, took } => (stream, took),
            Dialled::Closed(closed) => return Ok(Opened::Closed(closed)),
        };
        connected(connect);
        // Greetings are small, and nobody is to wait for them.
        stream.set_nodelay(true).map_err(|error| Failure::new(FailureKind::Internal, words(&error)))?;
        let Some(protocol) = self.options.starttls else { return Ok(Opened::Ready { stream, starttls: None }) };
        let started = Instant::now();
        Ok(match starttls::start(&mut stream, protocol, patience).await {
            Ok(()) => Opened::Ready { stream, starttls: Some(started.elapsed()) },
            Err(detail) => Opened::InClear { detail },
        })
    }

    async fn greet(&self, stream: TcpStream, terms: &Terms) -> Result<TlsSession, Refused> {
        let patience = self.options.timeout.duration();
        let greeted = timeout(patience, tls::connect(stream, terms)).await;
        greeted.unwrap_or_else(|_| Err(self.late())).map(|(_stream, session)| session)
    }

    async fn greet_by_hand(&self, stream: TcpStream, version: TlsVersion) -> Result<TlsSession, Refused> {
        let greeted = timeout(self.options.timeout.duration(), hello::greet(stream, version, self.terms)).await;
        greeted.unwrap_or_else(|_| Err(self.late()))
    }

    fn late(&self) -> Refused {
        let detail = format!("the server did not finish the handshake within {} ms", self.options.timeout.duration().as_millis());
        let session = TlsSession { server_name: self.terms.name.to_string(), ..TlsSession::default() };
        Refused { failure: TlsFailure { code: TlsFailureCode::TimedOut, detail }, session: Box::new(session) }
    }
}

/// Whether the server may only be too old: it said no before it showed a certificate.
fn worth_asking_by_hand(failure: &TlsFailure, session: &TlsSession) -> bool {
    session.chain.is_empty()
        && matches!(failure.code, TlsFailureCode::Alert | TlsFailureCode::Incompatible | TlsFailureCode::Closed | TlsFailureCode::Protocol)
}
