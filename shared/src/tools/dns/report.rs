//! What a name server said.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Transport;
use super::comparison::DnsComparison;
use super::trace::DnsTraceStep;
use super::validation::DnsValidation;
use crate::timestamp::Timestamp;
use crate::tls::TlsSession;
use crate::tools::choice::choice;
use crate::tools::http::assertion::Verdict;

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
        /// The TLS handshake failed: the certificate is not trusted, or something else.
        TlsFailed = "tls_failed",
    }
}

/// What a name server said. Without an answer only the question, the server and the attempts are there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DnsReport {
    /// What was asked.
    pub question: DnsQuestion,
    /// With `raw`, the query as it was sent, a DNS message in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_wire: Option<String>,
    /// Who was asked last.
    pub server: DnsServer,
    /// What carried the last query.
    pub transport: Transport,
    /// Every query sent, in order; of a trace those of its last step.
    pub attempts: Vec<DnsAttempt>,
    /// Whether there is an answer, be it an error of the server's.
    pub answered: bool,
    /// When the last query was sent, by the node's clock.
    pub asked_at: Timestamp,
    /// How long things took.
    pub timings: DnsTimings,
    /// Over `tls` and `https`, what the server agreed to and what its certificate is worth; of the last handshake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSession>,
    /// The answer.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub response: Option<DnsResponse>,
    /// With `trace`, every step from the root to the answer, which the rest of the report is about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trace: Vec<DnsTraceStep>,
    /// With `validate`, what this node has proven of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<DnsValidation>,
    /// With `compare_with`, what all of them said; the rest of the report is about the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comparison: Option<DnsComparison>,
    /// What became of each assertion, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub assertions: Vec<Verdict>,
}

/// A question.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    /// How long connecting took, in milliseconds; absent over UDP, and where there was no connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_ms: Option<f64>,
    /// How long the TLS handshake took, in milliseconds; absent where there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_ms: Option<f64>,
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
    /// For the TLS handshake, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_ms: Option<f64>,
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
    /// With `raw`, the answer as it came, a DNS message (RFC 1035, 4.1) in base64 (RFC 4648, 4).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_wire: Option<String>,
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_report_without_an_answer_has_no_fields_of_one() {
        let report = DnsReport {
            question: DnsQuestion { name: "a.".to_owned(), class: "IN".to_owned(), kind: "A".to_owned() },
            query_wire: None,
            server: DnsServer { name: None, address: "192.0.2.53".parse().unwrap(), port: 53 },
            transport: Transport::Udp,
            attempts: Vec::new(),
            answered: false,
            asked_at: Timestamp::from_unix_ms(0).unwrap(),
            timings: DnsTimings::default(),
            tls: None,
            response: None,
            trace: Vec::new(),
            validation: None,
            comparison: None,
            assertions: Vec::new(),
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
