//! `whois`: registries, one after the other, each judged like any other target.

pub(crate) mod rdap;
pub(crate) mod text;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use probeops_shared::host::{DnsName, Host};
use probeops_shared::outcome::{Failure, FailureKind};
use probeops_shared::tools::ToolName;
use probeops_shared::tools::network::ms;
use probeops_shared::tools::whois::registered::Registered;
use probeops_shared::tools::whois::report::{Registry, WhoisProgress, WhoisQuery, WhoisRecord, WhoisReport, WhoisStatus};
use probeops_shared::tools::whois::url::RdapUrl;
use probeops_shared::tools::whois::{RDAP_BYTES_MAX, REDIRECTS_MAX, REFERRALS_MAX, WHOIS_BYTES_MAX, WHOIS_PORT, Whois};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::executors::dial::{Dialled, dial};
use crate::executors::tls::authorities;
use crate::executors::{Context, Live};
use crate::net::get::{self, Fetched, Wanted};
use crate::net::tls::{self, Terms};

use text::Reading;

/// The types in which RDAP is answered (RFC 7480, 4.2).
const RDAP_TYPES: &str = "application/rdap+json, application/json;q=0.5";

pub(super) async fn run(context: &Context, target: &Registered, options: &Whois, live: &Live) -> Result<WhoisReport, Failure> {
    match target {
        Registered::Domain(name) => context.permit_question(&DnsName::Name(name.clone()))?,
        Registered::Address(address) => context.permit_question(&DnsName::Address(*address))?,
        Registered::AutonomousSystem(_) => {}
    }
    let authorities = authorities(options.ca_certificates.as_ref())?;
    let report = WhoisReport { kind: target.kind(), ..WhoisReport::default() };
    let mut search = Search { context, target, options, live, authorities, report, refusal: None };
    for registry in options.protocols() {
        match registry {
            Registry::Rdap => search.by_rdap().await,
            Registry::Whois => search.by_whois().await,
        }
        if search.report.registered.is_some() {
            search.report.protocol = Some(*registry);
            break;
        }
    }
    match search.refusal {
        // Nobody could be asked at all.
        Some(refusal) if search.report.queries.iter().all(|query| query.address.is_none()) => Err(refusal),
        Some(_) | None => Ok(search.report),
    }
}

struct Search<'a> {
    context: &'a Context,
    target: &'a Registered,
    options: &'a Whois,
    live: &'a Live,
    authorities: Vec<CertificateDer<'static>>,
    report: WhoisReport,
    /// Why the last server that could not be asked could not.
    refusal: Option<Failure>,
}

impl Search<'_> {
    async fn by_rdap(&mut self) {
        let mut url = self.options.rdap_server().below(&self.target.rdap_path());
        for redirects in 0..=REDIRECTS_MAX {
            let mut query = WhoisQuery { protocol: Registry::Rdap, server: url.to_string(), ..WhoisQuery::default() };
            let answer = match self.reach(&mut query, &url.host, url.port).await {
                Some(to) => bounded(&mut query, self.options.timeout.duration(), fetch(to, &url, &self.authorities)).await,
                None => None,
            };
            let next = answer.map(|fetched| self.understand(&mut query, &fetched, &url, redirects));
            match next {
                Some(Next::Ask(next)) => {
                    self.tell(query, None);
                    url = next;
                }
                Some(Next::Know(record)) => {
                    self.report.registered = Some(true);
                    self.report.record = Some(WhoisRecord::clone(&record));
                    return self.tell(query, Some(*record));
                }
                Some(Next::End) | None => {
                    self.report.registered = (query.status == WhoisStatus::NotFound).then_some(false);
                    return self.tell(query, None);
                }
            }
        }
    }

    /// What an answer of RDAP means.
    fn understand(&self, query: &mut WhoisQuery, fetched: &Fetched, url: &RdapUrl, redirects: u32) -> Next {
        query.http_status = Some(fetched.status);
        query.size_bytes = Some(fetched.body.len());
        query.truncated = fetched.truncated;
        let result = match (fetched.status, &fetched.location) {
            (301 | 302 | 303 | 307 | 308, Some(location)) => {
                query.referral = Some(location.clone());
                match url.redirected(location) {
                    Ok(next) if url.tls && !next.tls => Err(format!("it redirects from https to {next}, which is not followed")),
                    Ok(_) if redirects == REDIRECTS_MAX => Err(format!("more than {REDIRECTS_MAX} redirects are not followed")),
                    Ok(next) if self.options.recursion => {
                        query.status = WhoisStatus::Referral;
                        Ok(Next::Ask(next))
                    }
                    Ok(next) => Err(format!("it redirects to {next}, and `recursion` is false")),
                    Err(why) => Err(format!("it redirects to nowhere: {why}")),
                }
            }
            // The one that redirects knows of no server; that says nothing of the object.
            (404, _) if redirects == 0 && self.options.rdap_server.is_none() => Err("it knows no RDAP server for it".to_owned()),
            (404, _) => {
                query.status = WhoisStatus::NotFound;
                query.object = serde_json::from_slice(&fetched.body).ok();
                Ok(Next::End)
            }
            (200, _) if fetched.truncated => Err(format!("its answer is longer than {RDAP_BYTES_MAX} bytes")),
            (200, _) => rdap::read(&fetched.body).map(|(object, record)| {
                query.status = WhoisStatus::Found;
                query.object = Some(object);
                Next::Know(Box::new(record))
            }),
            (429, _) => Err("it has been asked too often (HTTP 429)".to_owned()),
            (status, _) => Err(format!("it answered with HTTP {status}")),
        };
        result.unwrap_or_else(|why| {
            query.reason = Some(why);
            Next::End
        })
    }

    async fn by_whois(&mut self) {
        let (mut server, mut port) = (self.options.whois_server(), self.options.port.get_u16());
        let mut asked = Vec::new();
        loop {
            let line = text::question(self.target, &server);
            asked.push((server.clone(), port));
            let mut query = WhoisQuery {
                protocol: Registry::Whois,
                server: named_server(&server, port),
                query: Some(line.clone()),
                ..WhoisQuery::default()
            };
            let Some(to) = self.reach(&mut query, &server, port).await else { return self.tell(query, None) };
            let mut bytes = Vec::new();
            let truncated = match bounded(&mut query, self.options.timeout.duration(), ask(to, &line, &mut bytes)).await {
                Some(more) => more,
                // It answered and did not end: what it said is the answer.
                None if !bytes.is_empty() => {
                    query.reason = query.reason.take().map(|why| format!("its answer did not end: {why}"));
                    true
                }
                None => return self.tell(query, None),
            };
            let Reading { record, missing, referral } = text::read(self.target, &text::decoded(&bytes));
            query.size_bytes = Some(bytes.len());
            query.truncated = truncated;
            query.text = Some(text::decoded(&bytes));
            query.referral = referral.as_ref().map(|referral| named_server(&referral.host, referral.port));
            let left = asked.len() <= usize::try_from(REFERRALS_MAX).unwrap_or(usize::MAX);
            let next = referral.as_ref().filter(|next| self.options.recursion && left && !asked.contains(&(next.host.clone(), next.port)));
            // What IANA says is of the whole block or top-level domain, not of what was asked for.
            let of_target = referral.as_ref().is_none_or(|referral| referral.to_registrar);
            let record = record.filter(|_| of_target);
            query.status = match (next, &record) {
                (Some(_), _) => WhoisStatus::Referral,
                (None, Some(_)) => WhoisStatus::Found,
                (None, None) if missing => WhoisStatus::NotFound,
                (None, None) => WhoisStatus::Failed,
            };
            if query.status == WhoisStatus::Failed {
                query.reason = Some(match &query.referral {
                    Some(other) => format!("it only refers to {other}, which is not asked"),
                    None => "its answer has nothing that is known of such an entry".to_owned(),
                });
            }
            if let Some(record) = record.clone() {
                self.report.registered = Some(true);
                self.report.record.get_or_insert_default().complete(record);
            } else if query.status == WhoisStatus::NotFound {
                // A registrar that does not know its own domain does not undo the registry's word.
                self.report.registered.get_or_insert(false);
            }
            self.tell(query, record);
            match next {
                Some(next) => (server, port) = (next.host.clone(), next.port),
                None => return,
            }
        }
    }

    /// The address of a server to ask, if it may be; the query says why not.
    async fn reach(&mut self, query: &mut WhoisQuery, host: &Host, port: u16) -> Option<SocketAddr> {
        match self.context.reach(host, Some(port), self.options.family).await {
            Ok(reached) => {
                query.address = Some(reached.address);
                let (protocol, server) = (query.protocol, query.server.clone());
                self.live.tell(self.options, self.target, &WhoisProgress::Asking { protocol, server, address: reached.address });
                Some(SocketAddr::new(reached.address, port))
            }
            Err(failure) => {
                query.status = if failure.kind == FailureKind::Denied { WhoisStatus::Denied } else { WhoisStatus::Unresolved };
                query.reason = Some(failure.detail.clone());
                self.refusal = Some(failure);
                None
            }
        }
    }

    /// Keeps what a server said, and tells it.
    fn tell(&mut self, query: WhoisQuery, record: Option<WhoisRecord>) {
        self.report.queries.push(query.clone());
        self.live.set(self.options, self.target, self.report.clone());
        let progress = WhoisProgress::Answer { record: record.map(Box::new), query: Box::new(query) };
        self.live.tell(self.options, self.target, &progress);
    }
}

/// A server of WHOIS as it is shown: with its port where that is not the usual one.
fn named_server(host: &Host, port: u16) -> String {
    match host {
        _ if port == WHOIS_PORT => host.to_string(),
        Host::Address(IpAddr::V6(address)) => format!("[{address}]:{port}"),
        Host::Address(_) | Host::Name(_) => format!("{host}:{port}"),
    }
}

/// What follows an answer of RDAP.
enum Next {
    Ask(RdapUrl),
    Know(Box<WhoisRecord>),
    End,
}

/// Waits for an answer as long as a server may take; the query says why there is none.
async fn bounded<T>(query: &mut WhoisQuery, patience: Duration, asking: impl Future<Output = Result<T, Trouble>>) -> Option<T> {
    let started = Instant::now();
    let (status, reason) = match timeout(patience, asking).await {
        Ok(Ok(answer)) => {
            query.took_ms = Some(ms(started.elapsed()));
            return Some(answer);
        }
        Ok(Err(Trouble::NoConnection(why))) => (WhoisStatus::Unreachable, why),
        Ok(Err(Trouble::NoAnswer(why))) => (WhoisStatus::Failed, why),
        Err(_) => (WhoisStatus::Unreachable, format!("no answer within {} ms", patience.as_millis())),
    };
    (query.status, query.reason) = (status, Some(reason));
    None
}

/// Why a server did not answer.
enum Trouble {
    NoConnection(String),
    NoAnswer(String),
}

/// Longer than any wait that a caller can ask for: the wait is bounded around the whole of a question.
const CONNECT_PATIENCE: Duration = Duration::from_mins(1);

async fn connect(to: SocketAddr) -> Result<TcpStream, Trouble> {
    match dial(ToolName::Whois, to, CONNECT_PATIENCE).await {
        Ok(Dialled::Open { stream, .. }) => Ok(stream),
        Ok(Dialled::Closed(closed)) => Err(Trouble::NoConnection(closed.reason)),
        Err(failure) => Err(Trouble::NoConnection(failure.detail)),
    }
}

async fn fetch(to: SocketAddr, url: &RdapUrl, authorities: &[CertificateDer<'static>]) -> Result<Fetched, Trouble> {
    let authority = url.authority();
    let wanted = Wanted { authority: &authority, path: &url.path, accept: RDAP_TYPES, bytes_max: RDAP_BYTES_MAX };
    let stream = connect(to).await?;
    if !url.tls {
        return get::get(stream, wanted).await.map_err(Trouble::NoAnswer);
    }
    let terms = Terms { alpn: vec!["http/1.1".to_owned()], authorities: authorities.to_vec(), ..Terms::new(&url.host) };
    let (stream, _) = tls::connect(stream, &terms).await.map_err(|refused| Trouble::NoAnswer(format!("TLS: {}", refused.failure)))?;
    get::get(stream, wanted).await.map_err(Trouble::NoAnswer)
}

/// Sends one line and reads until the server ends (RFC 3912), and whether there was more than is kept.
async fn ask(to: SocketAddr, line: &str, answer: &mut Vec<u8>) -> Result<bool, Trouble> {
    let no_answer = |error: std::io::Error| Trouble::NoAnswer(crate::net::words(&error));
    let mut stream = connect(to).await?;
    stream.write_all(format!("{line}\r\n").as_bytes()).await.map_err(no_answer)?;
    let bound = u64::try_from(WHOIS_BYTES_MAX).unwrap_or(u64::MAX);
    (&mut stream).take(bound).read_to_end(answer).await.map_err(no_answer)?;
    Ok(answer.len() == WHOIS_BYTES_MAX && stream.read_u8().await.is_ok())
}
