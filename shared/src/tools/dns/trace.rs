//! What a trace from the root finds, step by step.

use std::fmt::Write as _;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::output;
use super::report::{DnsAttempt, DnsQuestion, DnsResponse, DnsServer};
use crate::tools::choice::choice;

/// How many zones a trace goes down.
pub const TRACE_STEPS_MAX: usize = 16;
/// How many queries a trace sends in all, retries included.
pub const TRACE_QUERIES_MAX: u32 = 30;
/// How many names of servers a trace looks up, where a delegation comes without their addresses.
pub const TRACE_LOOKUPS_MAX: u32 = 8;

choice! {
    /// Where a step leads.
    StepResult {
        /// To a zone further down, whose servers the next step asks.
        Referral = "referral",
        /// To the records asked for.
        Answer = "answer",
        /// To an alias: the name is another one, which is not traced.
        Alias = "alias",
        /// There is no such name.
        NoSuchName = "no_such_name",
        /// The name has no records of this type.
        NoData = "no_data",
        /// Nowhere: the answer was cut to fit a datagram, and no whole one was had over TCP.
        Truncated = "truncated",
        /// The server answers with an error.
        Error = "error",
        /// The server refers to its own zone again, or to one that is not on the way to the name.
        BadReferral = "bad_referral",
        /// The server knows neither the zone nor who does.
        Lame = "lame",
        /// No server answers.
        #[default]
        NoAnswer = "no_answer",
        /// No server of the zone may be asked by this node or this caller.
        Denied = "denied",
        /// No server of the zone has an address.
        Unresolved = "unresolved",
        /// The trace has taken as many steps, or sent as many queries, as it may.
        Limit = "limit",
    }
}

choice! {
    /// Where the address of a server is known from.
    AddressSource {
        /// It was given as the `resolver`.
        Given = "given",
        /// It is one of the root servers that everybody knows.
        Hints = "hints",
        /// The delegation came with it.
        #[default]
        Glue = "glue",
        /// The node looked its name up.
        Resolved = "resolved",
    }
}

/// One step of a trace: the servers of a zone, and what one of them says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DnsTraceStep {
    /// Whose servers are asked, with its final dot.
    pub zone: String,
    /// What they are asked.
    pub question: DnsQuestion,
    /// With `raw`, the query as it was sent, a DNS message in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_wire: Option<String>,
    /// Where the answer leads.
    pub result: StepResult,
    /// The servers of the zone, as its parent lists them.
    pub servers: Vec<DnsTraceServer>,
    /// Every query sent, in order.
    pub attempts: Vec<DnsAttempt>,
    /// Who answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<DnsServer>,
    /// From the query to its answer, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_ms: Option<f64>,
    /// The answer.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub response: Option<DnsResponse>,
}

/// A server of a zone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DnsTraceServer {
    /// Its name, with the final dot; of the starting server what was given.
    pub name: String,
    /// Its addresses, as far as they were looked for.
    pub addresses: Vec<IpAddr>,
    /// Where they are known from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<AddressSource>,
    /// Why it is not asked: the rule that forbids it, or why it has no address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_asked: Option<String>,
}

/// All steps as `dig +trace` prints them.
pub(super) fn of(steps: &[DnsTraceStep]) -> String {
    let mut text = String::new();
    for step in steps {
        text.extend(step.attempts.iter().map(|attempt| attempt_line(step, attempt)));
        text.push_str(&conclusion(step));
    }
    text
}

/// What is printed of a query that brings nothing.
pub(super) fn attempt_line(step: &DnsTraceStep, attempt: &DnsAttempt) -> String {
    let named = step.servers.iter().find(|server| server.addresses.contains(&attempt.address)).map(|server| plain(&server.name));
    output::failed(&step.question.name, named, attempt).unwrap_or_default()
}

/// What is printed at the end of a step.
pub(super) fn conclusion(step: &DnsTraceStep) -> String {
    let mut text = String::new();
    for (server, why) in step.servers.iter().filter_map(|server| Some((server, server.not_asked.as_deref()?))) {
        let _ = match server.source {
            Some(_) => writeln!(text, ";; {} is not asked: {why}", plain(&server.name)),
            None => writeln!(text, "couldn't get address for '{}': {why}", plain(&server.name)),
        };
    }
    if let (Some(response), Some(server)) = (&step.response, &step.server) {
        text.extend(response.answer.iter().chain(&response.authority).map(output::record_line));
        if step.result == StepResult::BadReferral {
            let again = response.authority.iter().any(|record| record.kind == "NS" && record.name.eq_ignore_ascii_case(&step.zone));
            text.push_str(if again { ";; BAD (HORIZONTAL) REFERRAL\n" } else { ";; BAD REFERRAL\n" });
        }
        let name = server.name.as_deref().map_or_else(|| server.address.to_string(), |name| plain(name).to_owned());
        let (size, took) = (response.size_bytes, step.query_ms.unwrap_or_default());
        let _ = writeln!(text, ";; Received {size} bytes from {}#{}({name}) in {took:.0} ms\n", server.address, server.port);
    }
    match step.result {
        StepResult::NoAnswer => text.push_str(";; no servers could be reached\n"),
        StepResult::Limit => text.push_str(";; the trace ends here: it has asked as much as it may\n"),
        StepResult::Unresolved => {
            let last = step.servers.last().map(|server| plain(&server.name)).unwrap_or_default();
            let _ = writeln!(text, "couldn't get address for '{last}': no more");
        }
        StepResult::Referral
        | StepResult::Answer
        | StepResult::Alias
        | StepResult::NoSuchName
        | StepResult::NoData
        | StepResult::Truncated
        | StepResult::BadReferral
        | StepResult::Error
        | StepResult::Lame
        | StepResult::Denied => {}
    }
    text
}

fn plain(name: &str) -> &str {
    name.strip_suffix('.').filter(|name| !name.is_empty()).unwrap_or(name)
}
