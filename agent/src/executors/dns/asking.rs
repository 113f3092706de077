//! One question, asked of one server after another until there is an answer.

use std::net::SocketAddr;

use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::dns::report::{AttemptResult, DnsAttempt, DnsResponse, DnsTimings};
use probeops_shared::tools::dns::{Dns, Transport};
use probeops_shared::tools::network::ms;
use tokio::time::Instant;

use crate::net::dns::message::{self, Query};
use crate::net::dns::{self, Answer, NoAnswer};

/// A question so far.
pub(super) struct Asking<'a> {
    pub(super) query: &'a Query,
    options: &'a Dns,
    /// Every query sent, in order.
    pub(super) attempts: Vec<DnsAttempt>,
    /// Who was asked last, and when; of an answer, whom it is from.
    pub(super) last: Option<Last>,
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
    pub(super) fn new(query: &'a Query, options: &'a Dns) -> Self {
        Self { query, options, attempts: Vec::new(), last: None, response: None }
    }

    /// Asks one server, again over TCP where its answer does not fit a datagram. `heard` is told after each query.
    pub(super) async fn ask(&mut self, server: SocketAddr, mut heard: impl FnMut(&Self, &DnsAttempt)) {
        let mut transport = self.options.protocol;
        loop {
            let attempt = self.attempt(server, transport).await;
            let result = attempt.result;
            self.attempts.push(attempt.clone());
            heard(self, &attempt);
            if result != AttemptResult::Truncated || !self.options.tcp_fallback {
                return;
            }
            transport = Transport::Tcp;
        }
    }

    async fn attempt(&mut self, server: SocketAddr, transport: Transport) -> DnsAttempt {
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
                let cut = response.flags.tc && transport == Transport::Udp;
                self.last = Some(Last { server, transport, asked_at, timings: timings(&answer) });
                self.response = Some(response);
                (if cut { AttemptResult::Truncated } else { AttemptResult::Answered }, None, answer.connect)
            }
            Err(NoAnswer { result, detail, connect }) => {
                if self.response.is_none() {
                    self.last = Some(Last { server, transport, asked_at, timings: DnsTimings::default() });
                }
                (result, detail, connect)
            }
        };
        DnsAttempt { address: server.ip(), port: server.port(), transport, result, elapsed_ms, connect_ms: connect.map(ms), detail }
    }
}

fn timings(answer: &Answer) -> DnsTimings {
    DnsTimings { resolve_ms: None, connect_ms: answer.connect.map(ms), query_ms: Some(ms(answer.took)) }
}
