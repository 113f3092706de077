//! `dns`: ask a name server.

pub mod comparison;
mod output;
pub mod record_type;
pub mod report;
pub mod subnet;
pub mod trace;
pub mod validation;

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bounded::{Bounded, Seconds};
use crate::host::{DnsName, Host};
use crate::invalid::Invalid;
use crate::tools::choice::choice;
use crate::tools::network::{BUDGET_SLACK, Family, RESOLUTION_MAX, Resolved};
use crate::tools::{Class, Tool};

use comparison::{DnsCompared, Resolvers};
use record_type::RecordType;
use report::{AttemptResult, DnsAttempt, DnsReport};
use subnet::Subnet;
use trace::{DnsTraceStep, TRACE_LOOKUPS_MAX, TRACE_QUERIES_MAX};
use validation::{DnsValidationQuery, TrustAnchor, VALIDATION_MAX};

/// The port of name servers.
pub const DNS_PORT: u16 = 53;
/// The longest a run may be planned to take.
const RUN_MAX: Duration = Duration::from_mins(5);

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
    /// On which port of the servers that are named; with `trace`, of every server.
    pub port: Bounded<0, 65_535, { DNS_PORT as u64 }>,
    /// Over which transport.
    pub protocol: Transport,
    /// Whether an answer that does not fit a datagram is asked for again over TCP.
    pub tcp_fallback: bool,
    /// Which kind of address of a server to use where there are both.
    pub family: Family,
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
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            kind: None,
            class: RecordClass::default(),
            resolver: None,
            compare_with: Resolvers::default(),
            port: Bounded::default(),
            protocol: Transport::default(),
            tcp_fallback: true,
            family: Family::default(),
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

    fn longest_trace(&self) -> Duration {
        // One lookup more for the name of the starting server.
        RESOLUTION_MAX.saturating_mul(TRACE_LOOKUPS_MAX + 1) + self.timeout.duration().saturating_mul(TRACE_QUERIES_MAX)
    }

    fn check_validation(&self) -> Result<(), Invalid> {
        let refused = |name: &str, detail: String| Err(Invalid::new(format!("/parameters/{name}"), detail));
        match (self.validate, &self.trust_anchor) {
            (false, Some(_)) => refused("trust_anchor", "a proof begins there, and none is asked for; set `validate` too".to_owned()),
            (true, _) if self.trace => {
                refused("validate", "`trace` shows what each server says, and proves nothing; leave one of them out".to_owned())
            }
            (true, _) if self.class != RecordClass::In => refused("class", format!("only class IN is signed, not {}", self.class)),
            _ => Ok(()),
        }
    }

    fn check_trace(&self) -> Result<(), Invalid> {
        if self.class != RecordClass::In {
            let detail = format!("delegations are followed in class IN only, not in {}; leave `trace` or `class` out", self.class);
            return Err(Invalid::new("/parameters/class", detail));
        }
        let (longest, most) = (self.longest_trace(), RUN_MAX);
        if longest > most {
            let detail = format!(
                "{TRACE_QUERIES_MAX} queries of {} s each may take {} s; a run may take at most {} s, so lower `timeout`",
                self.timeout.duration().as_secs_f64(),
                longest.as_secs(),
                most.as_secs()
            );
            return Err(Invalid::new("/parameters/timeout", detail));
        }
        Ok(())
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
}

impl Tool for Dns {
    const SUMMARY: &'static str =
        "Ask name servers for records of any type, compare resolvers, prove an answer by DNSSEC, or trace from the root";
    const CLASS: Class = Class::Probe;
    const EXAMPLE_TARGET: &'static str = "example.com";
    type Target = DnsName;
    type Report = DnsReport;
    type Progress = DnsProgress;

    fn check(&self, target: &DnsName) -> Result<(), Invalid> {
        let kind = self.record_type(target);
        if let DnsName::Address(address) = target
            && (kind == RecordType::A || kind == RecordType::AAAA)
        {
            let detail =
                format!("{address} is an address, which is asked for by its reverse name; leave `type` out for PTR, or give a name");
            return Err(Invalid::new("/parameters/type", detail));
        }
        let mut named = self.resolver.iter().chain(self.compare_with.hosts());
        if named.clone().next().is_none() && self.port != Bounded::default() {
            return Err(Invalid::new("/parameters/port", "`port` is a port of the `resolver`, and none is given"));
        }
        named.try_for_each(|resolver| self.family.check(resolver))?;
        if self.trace && !self.compare_with.hosts().is_empty() {
            let detail = "`trace` asks the servers of each zone, and no resolvers; leave one of them out";
            return Err(Invalid::new("/parameters/compare_with", detail));
        }
        if let Some(twice) = self.resolver.as_ref().filter(|resolver| self.compare_with.hosts().contains(resolver)) {
            return Err(Invalid::new("/parameters/compare_with", format!("{twice} is the `resolver`, which is asked anyway")));
        }
        self.check_validation()?;
        if self.trace {
            self.check_trace()?;
        }
        if !self.tcp_fallback && self.protocol != Transport::Udp {
            let detail = format!("only an answer over udp can be truncated, and `protocol` is {}; leave `tcp_fallback` out", self.protocol);
            return Err(Invalid::new("/parameters/tcp_fallback", detail));
        }
        for (name, asked_for) in
            [("dnssec", self.dnssec), ("validate", self.validate), ("nsid", self.nsid), ("client_subnet", self.client_subnet.is_some())]
        {
            if asked_for && !self.edns {
                return Err(Invalid::new(format!("/parameters/{name}"), format!("`{name}` is asked for by EDNS, and `edns` is false")));
            }
        }
        Ok(())
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
            DnsProgress::Resolved(_) | DnsProgress::Proof(_) | DnsProgress::Compared(_) => String::new(),
            // They answer in another order than they are printed in.
            DnsProgress::Attempt(_) if !self.compare_with.hosts().is_empty() => String::new(),
            DnsProgress::Attempt(attempt) if attempt.result == AttemptResult::Truncated && (self.trace || !self.tcp_fallback) => {
                String::new()
            }
            DnsProgress::Attempt(attempt) => output::attempted(&target.to_string(), named.as_deref(), attempt),
            DnsProgress::Step(step) => trace::conclusion(step),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tools::{Spec, ToolName};

    #[track_caller]
    fn refuses(target: &str, parameters: &serde_json::Value, pointer: &str, part: &str) {
        let invalid = Spec::parse(ToolName::Dns, target, parameters.as_object().unwrap().clone()).unwrap_err();
        assert_eq!(invalid.pointer, pointer, "{invalid}");
        assert!(invalid.detail.contains(part), "{invalid}");
    }

    #[test]
    fn an_address_is_asked_for_by_its_reverse_name() {
        let dns = Dns::default();
        assert_eq!(dns.record_type(&"192.0.2.1".parse().unwrap()), RecordType::PTR);
        assert_eq!(dns.record_type(&"example.com".parse().unwrap()), RecordType::A);
        refuses("192.0.2.1", &json!({"type": "A"}), "/parameters/type", "leave `type` out for PTR");
    }

    #[test]
    fn options_that_mean_nothing_together_are_refused() {
        refuses("example.com", &json!({"port": 5353}), "/parameters/port", "none is given");
        refuses("example.com", &json!({"dnssec": true, "edns": false}), "/parameters/dnssec", "`edns` is false");
        refuses("example.com", &json!({"nsid": true, "edns": false}), "/parameters/nsid", "`edns` is false");
        refuses("example.com", &json!({"client_subnet": "10.0.0.0/8", "edns": false}), "/parameters/client_subnet", "`edns` is false");
        refuses("example.com", &json!({"client_subnet": "10.0.0.0/33"}), "/parameters/client_subnet", "such as 192.0.2.0/24");
        refuses("example.com", &json!({"protocol": "tcp", "tcp_fallback": false}), "/parameters/tcp_fallback", "`protocol` is tcp");
        refuses("example.com", &json!({"trace": true, "compare_with": ["192.0.2.1"]}), "/parameters/compare_with", "leave one of them out");
        refuses("a.test", &json!({"resolver": "dns.test", "compare_with": ["dns.test"]}), "/parameters/compare_with", "asked anyway");
        refuses("a.test", &json!({"compare_with": ["dns.test", "DNS.test."]}), "/parameters/compare_with", "has dns.test twice");
        refuses("a.test", &json!({"compare_with": ["dns.test", 1]}), "/parameters/compare_with", "a list of at most 7 name servers");
        refuses("a.test", &json!({"compare_with": ["192.0.2.1"], "family": "6"}), "/parameters/family", "is an IPv4 address");
        refuses("example.com", &json!({"trust_anchor": ". DS 1 8 2 00"}), "/parameters/trust_anchor", "set `validate` too");
        refuses("example.com", &json!({"trust_anchor": ". A 1", "validate": true}), "/parameters/trust_anchor", "must be a DS or DNSKEY");
        refuses("example.com", &json!({"trace": true, "validate": true}), "/parameters/validate", "leave one of them out");
        refuses("example.com", &json!({"validate": true, "class": "CH"}), "/parameters/class", "only class IN is signed");
        refuses("example.com", &json!({"validate": true, "edns": false}), "/parameters/validate", "`edns` is false");
        refuses("example.com", &json!({"trace": true, "class": "CH"}), "/parameters/class", "class IN only");
        refuses("example.com", &json!({"trace": true, "timeout": 30}), "/parameters/timeout", "at most 300 s");
        refuses("example.com", &json!({"class": "ch"}), "/parameters/class", "\"IN\", \"CH\", \"HS\"");
        refuses("example.com", &json!({"type": "AAAAA"}), "/parameters/type", "did you mean `AAAA`?");
        refuses("example.com", &json!({"type": 70_000}), "/parameters/type", "from 1 to 65535");
        refuses("example.com", &json!({"type": "AXFR"}), "/parameters/type", "not a type of record");
        refuses("example.com", &json!({"protocol": "tls"}), "/parameters/protocol", "\"udp\", \"tcp\"");
        refuses("example.com", &json!({"resolver": "https://dns.example/"}), "/parameters/resolver", "give only its host");
    }
}
