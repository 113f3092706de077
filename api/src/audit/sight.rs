//! What of the trail somebody may read: all of it, or what his limits leave.
//!
//! Whoever is limited reads of what was done at nodes that he may know of, with tools and targets that he may use, and of what he asked himself. What
//! is of no node (keys, services, jobs of others as they came to the API) is for those who are not limited.

use probeops_shared::access::Targets;
use probeops_shared::audit::Record;
use probeops_shared::host::{DnsName, Host};
use probeops_shared::http_url::HttpUrl;
use probeops_shared::ids::Region;

use crate::access::Principal;
use crate::roster::Roster;

/// Who reads.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'a> {
    principal: &'a Principal,
    roster: &'a Roster,
}

impl<'a> Sight<'a> {
    /// That of this principal.
    pub fn new(principal: &'a Principal, roster: &'a Roster) -> Self {
        Self { principal, roster }
    }

    /// Whether there is something that he may not read.
    pub fn is_narrowed(&self) -> bool {
        self.principal.limits.hide_something()
    }

    /// Whether he may read it.
    pub fn sees(&self, record: &Record) -> bool {
        !self.is_narrowed() || record.principal == self.principal.name || self.sees_node(record) && self.sees_job(record)
    }

    fn sees_node(&self, record: &Record) -> bool {
        let (Some(id), limits) = (&record.node, &self.principal.limits) else { return false };
        if let Some(grant) = self.roster.grant(id) {
            // A node may have been in another region when this was recorded.
            let there = |region: &Region| *region == grant.region || self.principal.sees_region(region);
            return self.principal.sees_node(&grant) && record.region.as_ref().is_none_or(there);
        }
        // Of one that is forgotten nobody knows the labels.
        let region = record.region.as_ref().is_some_and(|region| self.principal.sees_region(region));
        region && limits.labels.is_none() && limits.nodes.as_ref().is_none_or(|nodes| nodes.contains(id))
    }

    fn sees_job(&self, record: &Record) -> bool {
        let limits = &self.principal.limits;
        if record.tool.is_empty() {
            return true;
        }
        let tool = limits.tools.as_ref().is_none_or(|tools| tools.iter().any(|tool| tool.as_str() == record.tool));
        tool && limits.targets.as_ref().is_none_or(|targets| allow(targets, &record.target))
    }
}

/// Whether a target may be used, as far as it is written; one that is neither host nor URL may not.
fn allow(targets: &Targets, target: &str) -> bool {
    let host = target.parse::<Host>().ok().or_else(|| target.parse::<HttpUrl>().ok().map(|url| url.host().clone()));
    match (host, target.parse::<DnsName>()) {
        (Some(Host::Address(address)), _) | (None, Ok(DnsName::Address(address))) => targets.allow_literal(address),
        (Some(Host::Name(name)), _) | (None, Ok(DnsName::Name(name))) => targets.allow_name(&name),
        (None, Err(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use probeops_shared::access::Scope;
    use probeops_shared::audit::Verdict;
    use probeops_shared::registry::{Labels, NodeGrant};
    use probeops_shared::timestamp::Timestamp;
    use probeops_shared::tools::ToolName;
    use serde_json::{Value, json};

    use super::*;
    use crate::access::Identity;

    fn grant(id: &str, region: &str, site: &str) -> NodeGrant {
        NodeGrant {
            labels: Labels::from([("site".parse().unwrap(), site.parse().unwrap())]),
            ..NodeGrant::new(id.parse().unwrap(), region.parse().unwrap(), vec![ToolName::Ping], id, Timestamp::now())
        }
    }

    fn at(node: &str, region: &str, tool: &str, target: &str) -> Record {
        let (node, region) = (node.parse().ok(), region.parse().ok());
        Record { node, region, tool: tool.to_owned(), target: target.to_owned(), ..Record::new(Verdict::Finished, "key:other") }
    }

    #[track_caller]
    fn sees(limits: &Value, record: &Record, expected: bool) {
        let identity = Identity {
            name: "key:me".to_owned(),
            scopes: vec![Scope::AuditRead],
            limits: serde_json::from_value(limits.clone()).unwrap(),
            nodes: Vec::new(),
            expires_at: None,
        };
        let roster = Roster::of(vec![(grant("a-1", "a", "x"), None), (grant("b-1", "b", "y"), None)]);
        let principal = Principal::of(Arc::new(identity));
        assert_eq!(Sight::new(&principal, &roster).sees(record), expected, "{limits}: {record:?}");
    }

    #[test]
    fn who_is_limited_reads_of_his_nodes_his_tools_his_targets_and_of_himself() {
        let table = [
            (json!({"regions": ["a"]}), at("a-1", "a", "ping", "x.example"), true),
            (json!({"regions": ["a"]}), at("b-1", "b", "ping", "x.example"), false),
            (json!({"regions": ["a"]}), at("a-1", "b", "ping", "x.example"), false),
            (json!({"regions": ["a"]}), at("gone", "a", "ping", "x.example"), true),
            (json!({"regions": ["a"]}), at("gone", "b", "ping", "x.example"), false),
            (json!({"nodes": ["a-1"]}), at("a-1", "a", "ping", "x.example"), true),
            (json!({"nodes": ["a-1"]}), at("b-1", "b", "ping", "x.example"), false),
            (json!({"labels": ["site=x"]}), at("a-1", "a", "ping", "x.example"), true),
            (json!({"labels": ["site=x"]}), at("b-1", "b", "ping", "x.example"), false),
            (json!({"labels": ["site=x"]}), at("gone", "a", "ping", "x.example"), false),
            (json!({"tools": ["ping"]}), at("a-1", "a", "ping", "x.example"), true),
            (json!({"tools": ["ping"]}), at("a-1", "a", "tcp", "x.example"), false),
            (json!({"targets": ["*.example"]}), at("a-1", "a", "ping", "x.example"), true),
            (json!({"targets": ["*.example"]}), at("a-1", "a", "http", "https://x.example:8443/a?b"), true),
            (json!({"targets": ["*.example"]}), at("a-1", "a", "http", "https://x.other/"), false),
            (json!({"targets": ["10.0.0.0/8"]}), at("a-1", "a", "ping", "10.1.2.3"), true),
            (json!({"targets": ["10.0.0.0/8"]}), at("a-1", "a", "ping", "11.1.2.3"), false),
            (json!({"targets": ["*.example"]}), at("a-1", "a", "echo", "anything at all"), false),
        ];
        for (limits, record, expected) in table {
            sees(&limits, &record, expected);
            sees(&json!({"rate": "1/m"}), &record, true);
            sees(&limits, &Record { principal: "key:me".to_owned(), ..record }, true);
        }
        // What changed of a node is told to who may know of it, and what is of none to nobody who is limited.
        let of_node = |id: &str| Record { node: id.parse().ok(), ..Record::new(Verdict::Changed, "key:other") };
        sees(&json!({"regions": ["a"]}), &of_node("a-1"), true);
        sees(&json!({"regions": ["a"]}), &of_node("b-1"), false);
        sees(&json!({"tools": ["ping"]}), &Record::new(Verdict::Changed, "key:other"), false);
        sees(&json!({}), &Record::new(Verdict::Changed, "key:other"), true);
    }
}
