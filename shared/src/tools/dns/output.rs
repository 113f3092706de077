//! A report as dig prints it.

use std::fmt::Write as _;

use super::comparison::DnsCompared;
use super::report::{AttemptResult, DnsAttempt, DnsEdns, DnsFlags, DnsQuestion, DnsRecord, DnsReport, DnsResponse};
use super::{Transport, assertion, comparison, trace, validation};

/// In which columns dig begins TTL, class, type and data; a tabulator is eight wide.
const COLUMNS: [usize; 4] = [24, 32, 40, 48];
const TAB: usize = 8;

pub(super) fn of(report: &DnsReport) -> String {
    let verdicts: String = report.assertions.iter().map(assertion::verdict_line).collect();
    if !report.trace.is_empty() {
        return trace::of(&report.trace) + &verdicts;
    }
    let mut text = String::new();
    match &report.comparison {
        None => text.push_str(&answered(report)),
        Some(comparison) => {
            let of_each = comparison.answers.iter().map(|answer| answered(&of_one(report, answer)) + "\n");
            text.extend(of_each);
            text.push_str(&comparison::summary(comparison));
        }
    }
    if let Some(validation) = &report.validation {
        text.push('\n');
        text.push_str(&validation::line(validation));
    }
    text + &verdicts
}

/// The report as if it were of this one alone.
fn of_one(report: &DnsReport, answer: &DnsCompared) -> DnsReport {
    DnsReport {
        server: answer.server.clone(),
        transport: answer.transport,
        attempts: answer.attempts.clone(),
        timings: answer.timings.clone(),
        response: answer.response.clone(),
        ..report.clone()
    }
}

fn answered(report: &DnsReport) -> String {
    let mut text = String::new();
    // A truncated answer that is the last is kept as it is; before another it was asked for again.
    let kept = report.attempts.last().is_some_and(|last| last.result == AttemptResult::Truncated);
    for attempt in report.attempts.iter().take(report.attempts.len() - usize::from(kept)) {
        text.push_str(&attempted(&report.question.name, report.server.name.as_deref(), attempt));
    }
    match &report.response {
        Some(response) => {
            text.push_str(&answer(response));
            text.push_str(&closing(report, response));
        }
        None => text.push_str(";; no servers could be reached\n"),
    }
    text
}

/// What is printed of a query before the next is sent; `named` is the name that the server was given by.
pub(super) fn attempted(asked: &str, named: Option<&str>, attempt: &DnsAttempt) -> String {
    match attempt.result {
        AttemptResult::Truncated => ";; Truncated, retrying in TCP mode.\n".to_owned(),
        _ => failed(asked, named, attempt).unwrap_or_default(),
    }
}

/// The same where nothing is said of what did not fit a datagram.
pub(super) fn failed(asked: &str, named: Option<&str>, attempt: &DnsAttempt) -> Option<String> {
    let detail = attempt.detail.as_deref();
    let what = match attempt.result {
        AttemptResult::Answered | AttemptResult::Truncated => return None,
        AttemptResult::Timeout => "timed out",
        AttemptResult::Refused => "connection refused",
        AttemptResult::Unreachable => match detail {
            Some("Network is unreachable") => "network unreachable",
            Some("Permission denied" | "Operation not permitted") => "permission denied",
            Some(_) | None => "host unreachable",
        },
        AttemptResult::Closed => "end of file",
        AttemptResult::Malformed => "malformed message",
        AttemptResult::TlsFailed => "TLS handshake failed",
    };
    let server = format!("{}#{}", attempt.address, attempt.port);
    let named = named.map_or_else(|| attempt.address.to_string(), str::to_owned);
    let asked = asked.strip_suffix('.').filter(|name| !name.is_empty()).unwrap_or(asked);
    Some(match (attempt.transport, attempt.connect_ms) {
        (Transport::Tcp | Transport::Tls | Transport::Https, None) => {
            format!(";; Connection to {server}({named}) for {asked} failed: {what}.\n")
        }
        (Transport::Tls | Transport::Https, Some(_)) if attempt.result == AttemptResult::TlsFailed => {
            let why = detail.unwrap_or(what);
            match why.strip_prefix("the certificate is not trusted: ") {
                Some(problems) => format!(";; TLS peer certificate verification for {server} failed: {problems}\n"),
                None => format!(";; Connection to {server}({named}) for {asked} failed: {why}.\n"),
            }
        }
        // Without a way there the datagram is not even sent.
        (Transport::Udp, _) if what == "network unreachable" => {
            format!(";; UDP setup with {server}({named}) for {asked} failed: {what}.\n")
        }
        (Transport::Udp | Transport::Tcp | Transport::Tls | Transport::Https, _) => {
            let more =
                detail.filter(|_| attempt.result == AttemptResult::Malformed).map_or_else(String::new, |detail| format!(" ({detail})"));
            format!(";; communications error to {server}: {what}{more}\n")
        }
    })
}

fn answer(response: &DnsResponse) -> String {
    let edns = usize::from(response.edns.is_some());
    let mut text = format!(
        ";; Got answer:\n;; ->>HEADER<<- opcode: {}, status: {}, id: {}\n;; flags: {}; QUERY: {}, ANSWER: {}, AUTHORITY: {}, ADDITIONAL: {}\n",
        response.opcode,
        response.rcode.name,
        response.id,
        flags(response.flags),
        response.questions.len(),
        response.answer.len(),
        response.authority.len(),
        response.additional.len() + edns
    );
    if response.flags.rd && !response.flags.ra {
        text.push_str(";; WARNING: recursion requested but not available\n");
    }
    text.push('\n');
    if let Some(edns) = &response.edns {
        text.push_str(&pseudosection(edns));
    }
    if !response.questions.is_empty() {
        text.push_str(";; QUESTION SECTION:\n");
        text.extend(response.questions.iter().map(question_line));
        text.push('\n');
    }
    for (title, records) in [("ANSWER", &response.answer), ("AUTHORITY", &response.authority), ("ADDITIONAL", &response.additional)] {
        if !records.is_empty() {
            let _ = writeln!(text, ";; {title} SECTION:");
            text.extend(records.iter().map(record_line));
            text.push('\n');
        }
    }
    text
}

fn flags(flags: DnsFlags) -> String {
    let DnsFlags { aa, tc, rd, ra, ad, cd } = flags;
    let all = [("qr", true), ("aa", aa), ("tc", tc), ("rd", rd), ("ra", ra), ("ad", ad), ("cd", cd)];
    all.iter().filter(|(_, set)| *set).map(|(name, _)| *name).collect::<Vec<_>>().join(" ")
}

fn pseudosection(edns: &DnsEdns) -> String {
    let wanted = if edns.dnssec_ok { " do" } else { "" };
    let mut text = format!(";; OPT PSEUDOSECTION:\n; EDNS: version: {}, flags:{wanted}; udp: {}\n", edns.version, edns.udp_bytes);
    for option in &edns.options {
        let space = if option.value.is_empty() { "" } else { " " };
        let _ = writeln!(text, "; {}:{space}{}", option.name, option.value);
    }
    text
}

fn question_line(question: &DnsQuestion) -> String {
    let [_, class, kind, _] = COLUMNS;
    let mut line = Line::default();
    line.put(&question.name).to(class).put(&question.class).to(kind).put(&question.kind);
    format!(";{}\n", line.text)
}

pub(super) fn record_line(record: &DnsRecord) -> String {
    let [ttl, class, kind, value] = COLUMNS;
    let mut line = Line::default();
    line.put(&record.name).to(ttl).put(&record.ttl_s.to_string()).to(class).put(&record.class).to(kind).put(&record.kind);
    line.to(value).put(&record.value).text.push('\n');
    line.text
}

fn closing(report: &DnsReport, response: &DnsResponse) -> String {
    let server = &report.server;
    let name = server.name.as_deref().map_or_else(|| server.address.to_string(), str::to_owned);
    let transport = match report.transport {
        Transport::Udp => "UDP",
        Transport::Tcp => "TCP",
        Transport::Tls => "TLS",
        Transport::Https => "HTTPS",
    };
    let took = report.timings.query_ms.map_or_else(String::new, |query_ms| format!(";; Query time: {query_ms:.0} msec\n"));
    format!(
        "{took};; SERVER: {}#{}({name}) ({transport})\n;; WHEN: {}\n;; MSG SIZE  rcvd: {}\n",
        server.address,
        server.port,
        report.asked_at.calendar(),
        response.size_bytes
    )
}

/// A line that is filled up to columns with tabulators, as the BIND programs do it.
#[derive(Default)]
struct Line {
    text: String,
    column: usize,
}

impl Line {
    fn put(&mut self, text: &str) -> &mut Self {
        self.text.push_str(text);
        self.column += text.chars().count();
        self
    }

    fn to(&mut self, column: usize) -> &mut Self {
        let to = column.max(self.column + 1);
        let tabs = to / TAB - self.column / TAB;
        if tabs > 0 {
            self.column = to / TAB * TAB;
        }
        self.text.push_str(&"\t".repeat(tabs));
        self.text.push_str(&" ".repeat(to - self.column));
        self.column = to;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timestamp::Timestamp;
    use crate::tools::dns::report::{DnsCode, DnsOption, DnsServer, DnsTimings};

    fn record(name: &str, kind: &str, value: &str) -> DnsRecord {
        DnsRecord { name: name.to_owned(), ttl_s: 300, class: "IN".to_owned(), kind: kind.to_owned(), value: value.to_owned() }
    }

    fn report(response: Option<DnsResponse>, attempts: Vec<DnsAttempt>) -> DnsReport {
        DnsReport {
            question: DnsQuestion { name: "example.com.".to_owned(), class: "IN".to_owned(), kind: "A".to_owned() },
            query_wire: None,
            server: DnsServer { name: None, address: "192.0.2.53".parse().unwrap(), port: 53 },
            transport: Transport::Udp,
            attempts,
            answered: response.is_some(),
            asked_at: Timestamp::parse("2026-11-05T09:08:07Z").unwrap(),
            timings: DnsTimings { query_ms: Some(11.6), ..DnsTimings::default() },
            tls: None,
            response,
            trace: Vec::new(),
            validation: None,
            comparison: None,
            assertions: Vec::new(),
        }
    }

    #[test]
    fn output_reads_like_dig() {
        let response = DnsResponse {
            id: 4711,
            opcode: "QUERY".to_owned(),
            rcode: DnsCode { code: 0, name: "NOERROR".to_owned() },
            flags: DnsFlags { rd: true, ra: true, ..DnsFlags::default() },
            edns: Some(DnsEdns {
                udp_bytes: 1232,
                options: vec![DnsOption { code: 15, name: "EDE".to_owned(), value: "3 (Stale Answer)".to_owned() }],
                ..DnsEdns::default()
            }),
            questions: vec![DnsQuestion { name: "example.com.".to_owned(), class: "IN".to_owned(), kind: "A".to_owned() }],
            answer: vec![record("example.com.", "A", "192.0.2.1"), record("a-name-that-is-quite-long.example.com.", "A", "192.0.2.2")],
            size_bytes: 56,
            ..DnsResponse::default()
        };
        assert_eq!(
            of(&report(Some(response), Vec::new())),
            ";; Got answer:\n\
             ;; ->>HEADER<<- opcode: QUERY, status: NOERROR, id: 4711\n\
             ;; flags: qr rd ra; QUERY: 1, ANSWER: 2, AUTHORITY: 0, ADDITIONAL: 1\n\
             \n\
             ;; OPT PSEUDOSECTION:\n\
             ; EDNS: version: 0, flags:; udp: 1232\n\
             ; EDE: 3 (Stale Answer)\n\
             ;; QUESTION SECTION:\n\
             ;example.com.\t\t\tIN\tA\n\
             \n\
             ;; ANSWER SECTION:\n\
             example.com.\t\t300\tIN\tA\t192.0.2.1\n\
             a-name-that-is-quite-long.example.com. 300 IN A\t192.0.2.2\n\
             \n\
             ;; Query time: 12 msec\n\
             ;; SERVER: 192.0.2.53#53(192.0.2.53) (UDP)\n\
             ;; WHEN: Thu Nov 05 09:08:07 UTC 2026\n\
             ;; MSG SIZE  rcvd: 56\n"
        );
    }

    #[test]
    fn silence_is_said() {
        let attempt = DnsAttempt {
            address: "192.0.2.53".parse().unwrap(),
            port: 53,
            transport: Transport::Udp,
            result: AttemptResult::Timeout,
            elapsed_ms: 2000.0,
            connect_ms: None,
            tls_ms: None,
            detail: None,
        };
        let text = of(&report(None, vec![attempt]));
        assert_eq!(text, ";; communications error to 192.0.2.53#53: timed out\n;; no servers could be reached\n");
    }
}
