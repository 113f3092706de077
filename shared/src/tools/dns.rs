//! `dns`: ask a name server.

pub mod assertion;
mod check;
pub mod comparison;
mod output;
pub mod record_type;
pub mod report;
pub mod secure;
pub mod subnet;
pub mod trace;
pub mod validation;

use std::net::IpAddr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bounded::{Bounded, Seconds};
use crate::host::{DnsName, Host};
use crate::invalid::Invalid;
use crate::tls::pem::CertificatesPem;
use crate::tools::choice::choice;
use crate::tools::http::assertion::Verdict;
use crate::tools::network::{BUDGET_SLACK, FamilyChoice, RESOLUTION_MAX, Resolved, Source};
use crate::tools::{Class, Tool};

use assertion::DnsAssertions;
use comparison::{DnsCompared, Resolvers};
use record_type::RecordType;
use report::{AttemptResult, DnsAttempt, DnsReport, DnsResponse};
use secure::{HTTPS_PORT, HttpPath, TLS_PORT};
use subnet::Subnet;
use trace::{DnsTraceStep, TRACE_LOOKUPS_MAX, TRACE_QUERIES_MAX};
use validation::{DnsValidation, DnsValidationQuery, TrustAnchor, VALIDATION_MAX, ValidationState};

/// The port of name servers.
pub const DNS_PORT: u16 = 53;

/// Ask a name server for records. An address is asked for by its reverse name, under in-addr.arpa or ip6.arpa.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of its own, given by name")]
pub struct Dns {
    /// Which records, by name or number: `AAAA`, `TYPE65`, `65`; A unless given, PTR when the target is an address. What an
    /// `ANY` brings is up to the server (RFC 8482).
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<RecordType>,
    /// Of which class; `CH` is where servers tell their version (`version.bind`, type TXT).
    pub class: RecordClass,
    /// Which name server to ask, by address or name; the node's own unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolver: Option<Host>,
    /// Which other name servers to ask the same at the same time, to compare what they say with what the first says.
    pub compare_with: Resolvers,
    /// On which port of the servers that are named, and with `trace` of every server; unless given 53, over `tls` 853, over `https` 443.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<Bounded<0, 65_535, { DNS_PORT as u64 }>>,
    /// Over which transport.
    pub protocol: Transport,
    /// The name that the certificate of a server must be for, over `tls` and `https`; unless given, what the server is named by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_name: Option<Host>,
    /// Whether the certificate must be trusted before anything is asked, over `tls` and `https`; the report says in any case what is
    /// wrong with it.
    pub tls_verify: bool,
    /// Authorities to trust besides those of the node, PEM; a server's own certificate may be among them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_certificates: Option<CertificatesPem>,
    /// Where on the server to ask, over `https`.
    pub path: HttpPath,
    /// Whether an answer that does not fit a datagram is asked for again over TCP.
    pub tcp_fallback: bool,
    /// Which kind of address of a server to use where there are both.
    pub family: FamilyChoice,
    /// From which address of the node to ask; the system's choice unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// How long to wait for the answer to one query, in seconds.
    pub timeout: Seconds<100, 30_000, 2_000>,
    /// How many queries to send before giving up; the node's own servers take turns.
    pub tries: Bounded<1, 5, 2>,
    /// Whether the server shall find the answer elsewhere if it does not have it (flag `rd`).
    pub recursion: bool,
    /// Whether to ask for DNSSEC records too (EDNS flag `do`).
    pub dnssec: bool,
    /// Whether the server shall answer without verifying (flag `cd`).
    pub checking_disabled: bool,
    /// Whether to ask which of its machines answers (EDNS option NSID).
    pub nsid: bool,
    /// A network to ask on behalf of: a server may answer differently for each (EDNS option ECS, RFC 7871). `0.0.0.0/0` asks that
    /// none be passed on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_subnet: Option<Subnet>,
    /// Whether to speak EDNS, which some old servers do not understand.
    pub edns: bool,
    /// How large an answer over UDP may be, as told to the server by EDNS.
    pub edns_bytes: Bounded<512, 65_535, 1_232>,
    /// Whether to go the way of every delegation from the root down to the answer, asking the servers of each zone on the way. It
    /// starts at the `resolver` if one is given, which for a private root is its server, and at the Internet's root otherwise.
    pub trace: bool,
    /// Whether the node itself shall prove the answer by DNSSEC, from the trust anchor down, with what the server gives it. Of several
    /// servers it is the first one's answer.
    pub validate: bool,
    /// Where a proof begins, instead of at the keys of the Internet's root: a DS or DNSKEY record of another root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust_anchor: Option<TrustAnchor>,
    /// Whether the report has query and answer as they were on the wire too, in base64.
    pub raw: bool,
    /// What the answer has to be like, at most 20, such as `{"type": "rcode", "one_of": ["NOERROR"]}` or
    /// `{"type": "records", "section": "answer", "all_match": "192\\.0\\.2\\."}`; records may also be such that `some_match`, `none_match` or
    /// `some_differ`. One that does not hold is a finding: the run itself has succeeded.
    pub assertions: DnsAssertions,
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            kind: None,
            class: RecordClass::default(),
            resolver: None,
            compare_with: Resolvers::default(),
            port: None,
            protocol: Transport::default(),
            tls_name: None,
            tls_verify: true,
            ca_certificates: None,
            path: HttpPath::default(),
            tcp_fallback: true,
            family: FamilyChoice::default(),
            source: None,
            timeout: Seconds::default(),
            tries: Bounded::default(),
            recursion: true,
            dnssec: false,
            checking_disabled: false,
            nsid: false,
            client_subnet: None,
            edns: true,
            edns_bytes: Bounded::default(),
            trace: false,
            validate: false,
            trust_anchor: None,
            raw: false,
            assertions: DnsAssertions::default(),
        }
    }
}

choice! {
    /// A class of records.
    RecordClass {
        /// The Internet.
        #[default]
        In = "IN",
        /// Chaos.
        Ch = "CH",
        /// Hesiod.
        Hs = "HS",
    }
}

impl RecordClass {
    /// The number (IANA "DNS CLASSes").
    pub const fn number(self) -> u16 {
        match self {
            Self::In => 1,
            Self::Ch => 3,
            Self::Hs => 4,
        }
    }
}

choice! {
    /// What carries a query.
    Transport {
        /// One datagram each way.
        #[default]
        Udp = "udp",
        /// A connection.
        Tcp = "tcp",
        /// A connection that nobody can listen in on (RFC 7858).
        Tls = "tls",
        /// A request to a web server (RFC 8484), over HTTP/2.
        Https = "https",
    }
}

impl Transport {
    /// Whether it is encrypted.
    pub const fn is_secure(self) -> bool {
        matches!(self, Self::Tls | Self::Https)
    }

    /// Where servers listen for it.
    pub const fn port(self) -> u16 {
        match self {
            Self::Udp | Self::Tcp => DNS_PORT,
            Self::Tls => TLS_PORT,
            Self::Https => HTTPS_PORT,
        }
    }
}

impl Dns {
    /// Which records to ask for.
    pub fn record_type(&self, target: &DnsName) -> RecordType {
        self.kind.unwrap_or(match target {
            DnsName::Address(_) => RecordType::PTR,
            DnsName::Name(_) => RecordType::A,
        })
    }

    /// On which port the servers that are named are asked.
    pub fn port(&self) -> u16 {
        self.port.map_or(self.protocol.port(), Bounded::get_u16)
    }

    fn longest_trace(&self) -> Duration {
        // One lookup more for the name of the starting server.
        RESOLUTION_MAX.saturating_mul(TRACE_LOOKUPS_MAX + 1) + self.timeout.duration().saturating_mul(TRACE_QUERIES_MAX)
    }
}

/// What a run tells while it goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum DnsProgress {
    /// Where the resolver is.
    Resolved(Resolved),
    /// What became of a query.
    Attempt(DnsAttempt),
    /// What a step of a trace led to; its queries were told one by one.
    Step(Box<DnsTraceStep>),
    /// What one of several resolvers said.
    Compared(Box<DnsCompared>),
    /// A question that the proof of the answer needed.
    Proof(DnsValidationQuery),
    /// An assertion was judged.
    Assertion {
        /// Whether it holds; with a `type` of its own.
        verdict: Verdict,
    },
}

impl Tool for Dns {
    const SUMMARY: &'static str =
        "Ask name servers over UDP, TCP, TLS or HTTPS, compare them, prove an answer by DNSSEC, or trace it from the root";
    const CLASS: Class = Class::Probe;
    const EXAMPLE_TARGET: &'static str = "example.com";
    type Target = DnsName;
    type Report = DnsReport;
    type Progress = DnsProgress;

    fn check(&self, target: &DnsName) -> Result<(), Invalid> {
        self.check_combinations(target)
    }

    /// Resolver's name, every try, and one more over TCP; of a trace all that it may send and look up.
    fn budget(&self) -> Duration {
        if self.trace {
            return self.longest_trace() + BUDGET_SLACK;
        }
        let queries = u32::try_from(self.tries.get() + 1).unwrap_or(u32::MAX);
        let proof = if self.validate { VALIDATION_MAX } else { Duration::ZERO };
        RESOLUTION_MAX + self.timeout.duration().saturating_mul(queries) + proof + BUDGET_SLACK
    }

    fn output(&self, _target: &DnsName, report: &DnsReport) -> String {
        output::of(report)
    }

    fn progress_output(&self, target: &DnsName, progress: &DnsProgress) -> String {
        let named = self.resolver.as_ref().filter(|resolver| resolver.address().is_none()).map(ToString::to_string);
        match progress {
            DnsProgress::Resolved(_) | DnsProgress::Proof(_) | DnsProgress::Compared(_) | DnsProgress::Assertion { .. } => String::new(),
            // They answer in another order than they are printed in.
            DnsProgress::Attempt(_) if !self.compare_with.hosts().is_empty() => String::new(),
            DnsProgress::Attempt(attempt) if attempt.result == AttemptResult::Truncated && (self.trace || !self.tcp_fallback) => {
                String::new()
            }
            DnsProgress::Attempt(attempt) => output::attempted(&asked_name(target), named.as_deref(), attempt),
            DnsProgress::Step(step) => trace::conclusion(step),
        }
    }

    /// There is no answer, its proof fails, or it is not as asserted; or, where nothing is asserted, not the one of a name that exists.
    fn is_bad(&self, report: &DnsReport) -> bool {
        let unwanted = |response: &DnsResponse| self.assertions.is_empty() && response.rcode.code != 0;
        // That an answer need not be signed is a proof too.
        let unproven = |proof: &DnsValidation| matches!(proof.state, ValidationState::Bogus | ValidationState::Indeterminate);
        report.response.as_ref().is_none_or(unwanted)
            || report.validation.as_ref().is_some_and(unproven)
            || report.assertions.iter().any(|verdict| !verdict.passed)
    }
}

/// The name that is asked for; of an address its reverse name (RFC 1035, 3.5; RFC 3596, 2.5).
fn asked_name(target: &DnsName) -> String {
    let reversed = |labels: Vec<String>| labels.into_iter().rev().collect::<Vec<_>>().join(".");
    match target {
        DnsName::Name(_) => target.to_string(),
        DnsName::Address(IpAddr::V4(v4)) => format!("{}.in-addr.arpa", reversed(v4.octets().iter().map(u8::to_string).collect())),
        DnsName::Address(IpAddr::V6(v6)) => {
            format!("{}.ip6.arpa", reversed(format!("{:032x}", v6.to_bits()).chars().map(String::from).collect()))
        }
    }
}

#[cfg(test)]
mod tests;
