//! Where an answer on the way from the root leads: pure reading of what a server said.

use std::net::IpAddr;

use probeops_shared::tools::dns::report::{DnsQuestion, DnsRecord, DnsResponse};
use probeops_shared::tools::dns::trace::{AddressSource, DnsTraceServer, StepResult};

/// A zone and its servers, as far as their addresses came with it.
#[derive(Debug, PartialEq)]
pub(super) struct Delegation {
    pub(super) zone: String,
    pub(super) servers: Vec<DnsTraceServer>,
}

/// The servers of the root, as the starting server knows them.
pub(super) fn root(response: &DnsResponse) -> (StepResult, Option<Delegation>) {
    if response.rcode.code != 0 {
        return (StepResult::Error, None);
    }
    match delegation(response, ".") {
        Some(delegation) => (StepResult::Referral, Some(delegation)),
        None => (StepResult::Lame, None),
    }
}

/// What a server of `zone` said to the question.
pub(super) fn judge(response: &DnsResponse, zone: &str, question: &DnsQuestion) -> (StepResult, Option<Delegation>) {
    match response.rcode.name.as_str() {
        "NOERROR" => {}
        "NXDOMAIN" => return (StepResult::NoSuchName, None),
        _ => return (StepResult::Error, None),
    }
    if response.flags.tc {
        return (StepResult::Truncated, None);
    }
    if !response.answer.is_empty() {
        return (if ends_in_alias(&response.answer, question) { StepResult::Alias } else { StepResult::Answer }, None);
    }
    let owner = response.authority.iter().find(|record| record.kind == "NS").map(|record| record.name.as_str());
    match owner {
        _ if response.flags.aa || response.authority.iter().any(|record| record.kind == "SOA") => (StepResult::NoData, None),
        Some(owner) if is_below(owner, zone) && is_at_or_below(&question.name, owner) => {
            (StepResult::Referral, delegation(response, owner))
        }
        Some(_) => (StepResult::BadReferral, None),
        None => (StepResult::Lame, None),
    }
}

/// The name servers that the answer has for a zone, with the addresses that it has for them.
fn delegation(response: &DnsResponse, zone: &str) -> Option<Delegation> {
    let of_zone = |record: &&DnsRecord| record.kind == "NS" && same(&record.name, zone);
    let named = response.answer.iter().chain(&response.authority).filter(of_zone);
    let servers: Vec<DnsTraceServer> = named.map(|record| server(&record.value, &response.additional)).collect();
    (!servers.is_empty()).then(|| Delegation { zone: zone.to_owned(), servers })
}

fn server(name: &str, additional: &[DnsRecord]) -> DnsTraceServer {
    let glue = additional.iter().filter(|record| ["A", "AAAA"].contains(&record.kind.as_str()) && same(&record.name, name));
    let addresses: Vec<IpAddr> = glue.filter_map(|record| record.value.parse().ok()).collect();
    let source = (!addresses.is_empty()).then_some(AddressSource::Glue);
    DnsTraceServer { name: name.to_owned(), addresses, source, not_asked: None }
}

/// Whether what was asked for is not there, but only another name for it.
fn ends_in_alias(answer: &[DnsRecord], question: &DnsQuestion) -> bool {
    let mut name = question.name.as_str();
    for _ in 0..=answer.len() {
        let mut of_name = answer.iter().filter(|record| same(&record.name, name));
        if of_name.clone().any(|record| record.kind == question.kind || question.kind == "ANY") {
            return false;
        }
        match of_name.find(|record| record.kind == "CNAME") {
            Some(alias) => name = &alias.value,
            None => return !same(name, &question.name),
        }
    }
    // It goes round in a circle.
    true
}

fn same(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}

fn is_at_or_below(name: &str, zone: &str) -> bool {
    same(name, zone) || is_below(name, zone)
}

/// A dot that is part of a label has a backslash before it, and ends none.
fn is_below(name: &str, zone: &str) -> bool {
    if zone == "." {
        return name != ".";
    }
    let Some((above, end)) = name.len().checked_sub(zone.len()).and_then(|at| name.split_at_checked(at)) else { return false };
    same(end, zone) && above.ends_with('.') && !above.ends_with("\\.")
}

#[cfg(test)]
mod tests {
    use probeops_shared::tools::dns::report::{DnsCode, DnsFlags};

    use super::*;

    fn record(name: &str, kind: &str, value: &str) -> DnsRecord {
        DnsRecord { name: name.to_owned(), ttl_s: 60, class: "IN".to_owned(), kind: kind.to_owned(), value: value.to_owned() }
    }

    fn response(rcode: &str, answer: &[DnsRecord], authority: &[DnsRecord]) -> DnsResponse {
        DnsResponse {
            rcode: DnsCode { code: u16::from(rcode != "NOERROR"), name: rcode.to_owned() },
            answer: answer.to_vec(),
            authority: authority.to_vec(),
            ..DnsResponse::default()
        }
    }

    #[track_caller]
    fn leads(response: &DnsResponse, result: StepResult) {
        let question = DnsQuestion { name: "a.b.test.".to_owned(), class: "IN".to_owned(), kind: "A".to_owned() };
        assert_eq!(judge(response, "test.", &question).0, result);
    }

    #[test]
    fn an_answer_is_read_for_where_it_leads() {
        leads(&response("NXDOMAIN", &[], &[]), StepResult::NoSuchName);
        leads(&response("REFUSED", &[], &[]), StepResult::Error);
        leads(&response("NOERROR", &[record("A.b.test.", "A", "192.0.2.1")], &[]), StepResult::Answer);
        leads(
            &response("NOERROR", &[record("a.b.test.", "CNAME", "x.test."), record("x.test.", "A", "192.0.2.1")], &[]),
            StepResult::Answer,
        );
        leads(&response("NOERROR", &[record("a.b.test.", "CNAME", "x.example.")], &[]), StepResult::Alias);
        leads(&response("NOERROR", &[record("a.b.test.", "CNAME", "a.b.test.")], &[]), StepResult::Alias);
        leads(&response("NOERROR", &[], &[record("test.", "SOA", "")]), StepResult::NoData);
        leads(&response("NOERROR", &[], &[record("b.test.", "NS", "ns.b.test.")]), StepResult::Referral);
        leads(&response("NOERROR", &[], &[record("a.b.test.", "NS", "ns.b.test.")]), StepResult::Referral);
        for elsewhere in [".", "test.", "TEST.", "c.test.", "x.a.b.test.", "b\\.test.", "est.", "xb.test."] {
            leads(&response("NOERROR", &[], &[record(elsewhere, "NS", "ns.b.test.")]), StepResult::BadReferral);
        }
        leads(&response("NOERROR", &[], &[]), StepResult::Lame);
        let mut cut = response("NOERROR", &[], &[record("b.test.", "NS", "ns.b.test.")]);
        cut.flags.tc = true;
        leads(&cut, StepResult::Truncated);
        let mut authoritative = response("NOERROR", &[], &[]);
        authoritative.flags = DnsFlags { aa: true, ..DnsFlags::default() };
        leads(&authoritative, StepResult::NoData);
    }

    #[test]
    fn a_delegation_has_the_addresses_that_came_with_it() {
        let mut referral = response("NOERROR", &[], &[record("b.test.", "NS", "ns.b.test."), record("b.test.", "NS", "ns.example.")]);
        referral.additional = vec![
            record("NS.b.test.", "A", "192.0.2.1"),
            record("ns.b.test.", "AAAA", "2001:db8::1"),
            record("other.test.", "A", "192.0.2.2"),
        ];
        let servers = delegation(&referral, "b.test.").unwrap().servers;
        let addresses: Vec<usize> = servers.iter().map(|server| server.addresses.len()).collect();
        assert_eq!((addresses, servers[0].source, servers[1].source), (vec![2, 0], Some(AddressSource::Glue), None));
        assert_eq!(root(&referral), (StepResult::Lame, None), "it says nothing of the root");
    }
}
