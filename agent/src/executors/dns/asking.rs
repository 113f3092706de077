//! One question, asked of one server after another until there is an answer.

use std::net::SocketAddr;

use data_encoding::BASE64;
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tls::TlsSession;
use probeops_shared::tools::dns::report::{AttemptResult, DnsAttempt, DnsResponse, DnsTimings};
use probeops_shared::tools::dns::{Dns, Transport};
use probeops_shared::tools::network::{Source, ms};
use tokio::time::Instant;

use crate::net::dns::message::{self, Query};
use crate::net::dns::{self, Answer, NoAnswer, Way};

/// A question so far.
pub(super) struct Asking<'a> {
    pub(super) query: &'a Query,
    /// How servers are asked.
    pub(super) way: Way,
    options: &'a Dns,
    /// Every query sent, in order.
    pub(super) attempts: Vec<DnsAttempt>,
    /// Who was asked last, and when; of an answer, whom it is from.
    pub(super) last: Option<Last>,
    /// What was agreed in the last TLS handshake, or why not.
    pub(super) session: Option<TlsSession>,
    /// The answer; a cut one counts until there is a whole one.
    pub(super) response: Option<DnsResponse>,
}

/// A query.
pub(super) struct Last {
    pub(super) server: SocketAddr,
    pub(super) transport: Transport,
    pub(super) asked_at: Timestamp,
    /// What took how long, if it was answered.
    pub(super) timings: DnsTimings,
}

impl<'a> Asking<'a> {
    pub(super) fn new(query: &'a Query, way: Way, options: &'a Dns) -> Self {
        Self { query, way, options, attempts: Vec::new(), last: None, session: None, response: None }
    }

    /// Asks one server, again over TCP where its answer does not fit a datagram. `heard` is told after each query.
    pub(super) async fn ask(&mut self, server: SocketAddr, mut heard: impl FnMut(&Self, &DnsAttempt)) {
        let mut way = self.way.clone();
        loop {
            let attempt = self.attempt(server, &way).await;
            let result = attempt.result;
            self.attempts.push(attempt.clone());
            heard(self, &attempt);
            if result != AttemptResult::Truncated || !self.options.tcp_fallback {
                return;
            }
            way = Way::Tcp;
        }
    }

    /// The query as it is on the wire, where that is wanted.
    pub(super) fn query_wire(&self) -> Option<String> {
        self.options.raw.then(|| BASE64.encode(self.query.bytes()))
    }

    async fn attempt(&mut self, server: SocketAddr, way: &Way) -> DnsAttempt {
        let transport = way.transport();
        let (asked_at, started) = (Timestamp::now(), Instant::now());
        let is_answer = |bytes: &[u8]| self.query.is_answered_by(bytes);
        let from = self.options.source.map(Source::address);
        let answer = dns::ask((from, server), way, self.query.bytes(), is_answer, self.options.timeout.duration()).await;
        let elapsed_ms = ms(started.elapsed());
        let read = answer.and_then(|answer| match message::read(&answer.bytes) {
            Ok(response) => Ok((answer, response)),
            Err(detail) => Err(NoAnswer { result: AttemptResult::Malformed, detail: Some(detail), connection: answer.connection }),
        });
        let (result, detail, connection) = match read {
            Ok((answer, response)) => {
                let cut = response.flags.tc && transport == Transport::Udp;
                self.last = Some(Last { server, transport, asked_at, timings: timings(&answer) });
                let answer_wire = self.options.raw.then(|| BASE64.encode(&answer.bytes));
                self.response = Some(DnsResponse { answer_wire, ..response });
                (if cut { AttemptResult::Truncated } else { AttemptResult::Answered }, None, answer.connection)
            }
            Err(NoAnswer { result, detail, connection }) => {
                if self.response.is_none() {
                    self.last = Some(Last { server, transport, asked_at, timings: DnsTimings::default() });
                }
                (result, detail, connection)
            }
        };
        let (connect_ms, tls_ms) = (connection.connect.map(ms), connection.tls.map(ms));
        self.session = connection.session.map(|session| *session).or(self.session.take());
        DnsAttempt { address: server.ip(), port: server.port(), transport, result, elapsed_ms, connect_ms, tls_ms, detail }
    }
}

fn timings(answer: &Answer) -> DnsTimings {
    let (connect_ms, tls_ms) = (answer.connection.connect.map(ms), answer.connection.tls.map(ms));
    DnsTimings { resolve_ms: None, connect_ms, tls_ms, query_ms: Some(ms(answer.took)) }
}
