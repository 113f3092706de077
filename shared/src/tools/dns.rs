//! `dns`: ask a name server.

mod output;
pub mod record_type;

use std::net::IpAddr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bounded::{Bounded, Seconds};
use crate::host::{DnsName, Host};
use crate::invalid::Invalid;
use crate::timestamp::Timestamp;
use crate::tools::choice::choice;
use crate::tools::network::{BUDGET_SLACK, Family, RESOLUTION_MAX};
use crate::tools::{Class, Tool};

use record_type::RecordType;

/// The port of name servers.
pub const DNS_PORT: u16 = 53;

/// Ask a name server for records. An address is asked for by its reverse name, under in-addr.arpa or ip6.arpa.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Dns {
    /// Which records, by name or number: `AAAA`, `TYPE65`, `65`; A unless given, PTR when the target is an address. What an
    /// `ANY` brings is up to the server (RFC 8482).
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<RecordType>,
    /// Which name server to ask, by address or name; the node's own unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolver: Option<Host>,
    /// On which port of the `resolver`.
    pub port: Bounded<1, 65_535, { DNS_PORT as u64 }>,
    /// Over which transport; an answer truncated over UDP is asked for again over TCP.
    pub protocol: Transport,
    /// Which kind of address of the `resolver` to use where its name has both.
    pub family: Family,
    /// How long to wait for the answer to one query, in seconds.
    pub timeout: Seconds<100, 30_000, 2_000>,
    /// How many queries to send before giving up; the node's own servers take turns.
    pub tries: Bounded<1, 5, 2>,
    /// Whether the server shall find the answer elsewhere if it does not have it (flag `rd`).
    pub recursion: bool,
    /// Whether to ask for DNSSEC records too (EDNS flag `do`).
    pub dnssec: bool,
    /// Whether to speak EDNS, which some old servers do not understand.
    pub edns: bool,
    /// How large an answer over UDP may be, as told to the server by EDNS.
    pub edns_bytes: Bounded<512, 65_535, 1_232>,
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            kind: None,
            resolver: None,
            port: Bounded::default(),
            protocol: Transport::default(),
            family: Family::default(),
            timeout: Seconds::default(),
            tries: Bounded::default(),
            recursion: true,
            dnssec: false,
            edns: true,
            edns_bytes: Bounded::default(),
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

choice! {
    /// What became of one query.
    AttemptResult {
        /// An answer came.
        Answered = "answered",
        /// An answer came that did not fit a datagram.
        Truncated = "truncated",
        /// None came in time.
        #[default]
        Timeout = "timeout",
        /// Nothing listens there.
        Refused = "refused",
        /// The server cannot be reached.
        Unreachable = "unreachable",
        /// The server ended the connection without an answer.
        Closed = "closed",
        /// What came is not a DNS message.
        Malformed = "malformed",
    }
}

/// What a name server said. Without an answer only the question, the server and the attempts are there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DnsReport {
    /// What was asked.
    pub question: DnsQuestion,
    /// Who was asked last.
    pub server: DnsServer,
    /// What carried the last query.
    pub transport: Transport,
    /// Every query sent, in order.
    pub attempts: Vec<DnsAttempt>,
    /// Whether there is an answer, be it an error of the server's.
    pub answered: bool,
    /// When the last query was sent, by the node's clock.
    pub asked_at: Timestamp,
    /// How long things took.
    pub timings: DnsTimings,
    /// The answer.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub response: Option<DnsResponse>,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DnsQuestion {
    /// The name, with its final dot.
    pub name: String,
    /// The class.
    pub class: String,
    /// The type.
    #[serde(rename = "type")]
    pub kind: String,
}

/// A name server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DnsServer {
    /// Its name, if it was given by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
}

/// One query.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DnsAttempt {
    /// Who was asked.
    pub address: IpAddr,
    /// On which port.
    pub port: u16,
    /// Over what.
    pub transport: Transport,
    /// What became of it.
    pub result: AttemptResult,
    /// How long it took, in milliseconds.
    pub elapsed_ms: f64,
    /// More about what went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// How long things took; absent is what there was not.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DnsTimings {
    /// To find the resolver's address, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolve_ms: Option<f64>,
    /// To connect, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_ms: Option<f64>,
    /// From the query to its answer, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_ms: Option<f64>,
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DnsResponse {
    /// The number of query and answer.
    pub id: u16,
    /// What was asked to be done; QUERY.
    pub opcode: String,
    /// Whether it went well.
    pub rcode: DnsCode,
    /// The flags of the header.
    pub flags: DnsFlags,
    /// EDNS, if the server speaks it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edns: Option<DnsEdns>,
    /// The question as the server repeated it.
    pub questions: Vec<DnsQuestion>,
    /// The records asked for.
    pub answer: Vec<DnsRecord>,
    /// Who knows more.
    pub authority: Vec<DnsRecord>,
    /// What may be of use too.
    pub additional: Vec<DnsRecord>,
    /// The size of the answer.
    pub size_bytes: usize,
}

/// A code and its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DnsCode {
    /// The number.
    pub code: u16,
    /// The name.
    pub name: String,
}

/// The flags of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(clippy::struct_excessive_bools, reason = "they are the bits of the header")]
pub struct DnsFlags {
    /// The server is an authority for the name.
    pub aa: bool,
    /// The answer was cut to fit.
    pub tc: bool,
    /// Recursion was desired.
    pub rd: bool,
    /// Recursion is available.
    pub ra: bool,
    /// The server says that it has verified the answer (DNSSEC).
    pub ad: bool,
    /// Verification was not wanted.
    pub cd: bool,
}

/// The extension of the header.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DnsEdns {
    /// Its version.
    pub version: u8,
    /// DNSSEC records are wanted.
    pub dnssec_ok: bool,
    /// The largest datagram the server takes.
    pub udp_bytes: u16,
    /// Options.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<DnsOption>,
}

/// An option of EDNS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DnsOption {
    /// Its number.
    pub code: u16,
    /// Its name, as dig has it.
    pub name: String,
    /// What it says, as dig prints it.
    pub value: String,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DnsRecord {
    /// Whose it is, with the final dot.
    pub name: String,
    /// How long it may be kept, in seconds.
    pub ttl_s: u32,
    /// Its class.
    pub class: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it says, in the presentation format of zone files.
    pub value: String,
}

impl Dns {
    /// Which records to ask for.
    pub fn record_type(&self, target: &DnsName) -> RecordType {
        self.kind.unwrap_or(match target {
            DnsName::Address(_) => RecordType::PTR,
            DnsName::Name(_) => RecordType::A,
        })
    }
}

impl Tool for Dns {
    const SUMMARY: &'static str = "Ask a name server for records of any type, over UDP or TCP";
    const CLASS: Class = Class::Probe;
    const EXAMPLE_TARGET: &'static str = "example.com";
    type Target = DnsName;
    type Report = DnsReport;

    fn check(&self, target: &DnsName) -> Result<(), Invalid> {
        let kind = self.record_type(target);
        if let DnsName::Address(address) = target
            && (kind == RecordType::A || kind == RecordType::AAAA)
        {
            let detail =
                format!("{address} is an address, which is asked for by its reverse name; leave `type` out for PTR, or give a name");
            return Err(Invalid::new("/parameters/type", detail));
        }
        if self.resolver.is_none() && self.port != Bounded::default() {
            return Err(Invalid::new("/parameters/port", "`port` is a port of the `resolver`, and none is given"));
        }
        if self.dnssec && !self.edns {
            return Err(Invalid::new("/parameters/dnssec", "`dnssec` is asked for by EDNS, and `edns` is false"));
        }
        Ok(())
    }

    /// Resolver's name, every try, and one more over TCP.
    fn budget(&self) -> Duration {
        let queries = u32::try_from(self.tries.get() + 1).unwrap_or(u32::MAX);
        RESOLUTION_MAX + self.timeout.duration().saturating_mul(queries) + BUDGET_SLACK
    }

    fn output(&self, _target: &DnsName, report: &DnsReport) -> String {
        output::of(report)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tools::{Spec, ToolName};

    #[track_caller]
    fn refuses(target: &str, parameters: serde_json::Value, pointer: &str, part: &str) {
        let invalid = Spec::parse(ToolName::Dns, target, parameters.as_object().unwrap().clone()).unwrap_err();
        assert_eq!(invalid.pointer, pointer, "{invalid}");
        assert!(invalid.detail.contains(part), "{invalid}");
    }

    #[test]
    fn an_address_is_asked_for_by_its_reverse_name() {
        let dns = Dns::default();
        assert_eq!(dns.record_type(&"192.0.2.1".parse().unwrap()), RecordType::PTR);
        assert_eq!(dns.record_type(&"example.com".parse().unwrap()), RecordType::A);
        refuses("192.0.2.1", json!({"type": "A"}), "/parameters/type", "leave `type` out for PTR");
    }

    #[test]
    fn options_that_mean_nothing_together_are_refused() {
        refuses("example.com", json!({"port": 5353}), "/parameters/port", "none is given");
        refuses("example.com", json!({"dnssec": true, "edns": false}), "/parameters/dnssec", "`edns` is false");
        refuses("example.com", json!({"type": "AAAAA"}), "/parameters/type", "did you mean `AAAA`?");
        refuses("example.com", json!({"type": 70_000}), "/parameters/type", "from 1 to 65535");
        refuses("example.com", json!({"type": "AXFR"}), "/parameters/type", "not a type of record");
        refuses("example.com", json!({"protocol": "tls"}), "/parameters/protocol", "\"udp\", \"tcp\"");
        refuses("example.com", json!({"resolver": "https://dns.example/"}), "/parameters/resolver", "give only its host");
    }

    #[test]
    fn a_report_without_an_answer_has_no_fields_of_one() {
        let report = DnsReport {
            question: DnsQuestion { name: "a.".to_owned(), class: "IN".to_owned(), kind: "A".to_owned() },
            server: DnsServer { name: None, address: "192.0.2.53".parse().unwrap(), port: 53 },
            transport: Transport::Udp,
            attempts: Vec::new(),
            answered: false,
            asked_at: Timestamp::from_unix_ms(0).unwrap(),
            timings: DnsTimings::default(),
            response: None,
        };
        let value = serde_json::to_value(&report).unwrap();
        assert!(value.get("rcode").is_none() && value.get("answer").is_none(), "{value}");
        assert_eq!(serde_json::from_value::<DnsReport>(value).unwrap(), report);
        let answered = DnsReport { answered: true, response: Some(DnsResponse::default()), ..report };
        let value = serde_json::to_value(&answered).unwrap();
        assert_eq!(value["rcode"], json!({"code": 0, "name": ""}));
        assert_eq!(serde_json::from_value::<DnsReport>(value).unwrap(), answered);
    }
}
