//! What several resolvers say to the same question, side by side.

use std::borrow::Cow;
use std::collections::BTreeSet;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};

use super::Transport;
use super::report::{DnsAttempt, DnsReport, DnsResponse, DnsServer, DnsTimings};
use crate::bounded::shown;
use crate::host::Host;
use crate::tls::TlsSession;

/// How many resolvers may be asked beside the first.
pub const COMPARED_MAX: usize = 7;
/// What stands for the answer of who gave none.
const NO_ANSWER: &str = "no answer";

/// Resolvers, a few, each of them once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Resolvers(Vec<Host>);

impl Resolvers {
    /// All of them.
    pub fn hosts(&self) -> &[Host] {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Resolvers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let wants = || de::Error::custom(format!("must be a list of at most {COMPARED_MAX} name servers, not {}", shown(&value)));
        let list = value.as_array().filter(|list| list.len() <= COMPARED_MAX).ok_or_else(wants)?;
        let mut hosts = Vec::new();
        for given in list {
            let host: Host = given.as_str().ok_or_else(wants)?.parse().map_err(de::Error::custom)?;
            if hosts.contains(&host) {
                return Err(de::Error::custom(format!("has {host} twice; each server is asked once")));
            }
            hosts.push(host);
        }
        Ok(Self(hosts))
    }
}

impl JsonSchema for Resolvers {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Resolvers".into()
    }
    fn json_schema(schemas: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "array", "items": schemas.subschema_for::<Host>(), "maxItems": COMPARED_MAX, "uniqueItems": true})
    }
}

/// What several resolvers say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DnsComparison {
    /// Whether all that were asked say the same.
    pub agreed: bool,
    /// Those that say the same, together; the first resolver's group is the first.
    pub groups: Vec<DnsGroup>,
    /// In what the others differ from the first group, in words.
    pub differences: Vec<String>,
    /// What each of them said, in the order in which they were given.
    pub answers: Vec<DnsCompared>,
}

/// Resolvers that say the same: the same code and the same records, whatever their order and how long they may be kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DnsGroup {
    /// Who.
    pub resolvers: Vec<String>,
    /// The name of the response code, or that there is no answer.
    pub rcode: String,
    /// The records of the answer without signatures: name, type and data, sorted.
    pub records: Vec<String>,
}

/// What one of several resolvers said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DnsCompared {
    /// Who it is, as it was given; the address of a server of the node's own.
    pub resolver: String,
    /// Who was asked last.
    pub server: DnsServer,
    /// What carried the last query.
    pub transport: Transport,
    /// Every query sent to it, in order.
    pub attempts: Vec<DnsAttempt>,
    /// Whether there is an answer.
    pub answered: bool,
    /// How long things took.
    pub timings: DnsTimings,
    /// Over `tls` and `https`, what the server agreed to and what its certificate is worth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSession>,
    /// The answer.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub response: Option<DnsResponse>,
}

impl DnsCompared {
    /// What a report says of it.
    pub fn of(report: &DnsReport) -> Self {
        Self {
            resolver: report.server.name.clone().unwrap_or_else(|| report.server.address.to_string()),
            server: report.server.clone(),
            transport: report.transport,
            attempts: report.attempts.clone(),
            answered: report.answered,
            timings: report.timings.clone(),
            tls: report.tls.clone(),
            response: report.response.clone(),
        }
    }

    fn rcode(&self) -> &str {
        self.response.as_ref().map_or(NO_ANSWER, |response| &response.rcode.name)
    }

    fn records(&self) -> BTreeSet<String> {
        let answer = self.response.iter().flat_map(|response| &response.answer).filter(|record| record.kind != "RRSIG");
        answer.map(|record| format!("{} {} {}", record.name.to_ascii_lowercase(), record.kind, record.value)).collect()
    }
}

impl DnsComparison {
    /// Puts together those that say the same.
    pub fn of(answers: Vec<DnsCompared>) -> Self {
        let mut groups: Vec<DnsGroup> = Vec::new();
        for answer in &answers {
            let (rcode, records) = (answer.rcode(), answer.records().into_iter().collect::<Vec<_>>());
            match groups.iter_mut().find(|group| group.rcode == rcode && group.records == records) {
                Some(group) => group.resolvers.push(answer.resolver.clone()),
                None => groups.push(DnsGroup { resolvers: vec![answer.resolver.clone()], rcode: rcode.to_owned(), records }),
            }
        }
        let mut differences = Vec::new();
        if let Some((first, others)) = groups.split_first() {
            for other in others {
                differences.extend(different(first, other));
            }
        }
        differences.extend(verified_by_some(&answers));
        Self { agreed: groups.len() < 2, groups, differences, answers }
    }
}

/// In what a group differs from the first.
fn different(first: &DnsGroup, other: &DnsGroup) -> Vec<String> {
    let (who, whom) = (other.resolvers.join(", "), first.resolvers.join(", "));
    let mut differences = Vec::new();
    if first.rcode != other.rcode {
        let said = |rcode: &str| if rcode == NO_ANSWER { "gives no answer".to_owned() } else { format!("says {rcode}") };
        differences.push(format!("{who} {}, {whom} {}", said(&other.rcode), said(&first.rcode)));
    }
    for (has, lacks, group, than) in [(other, first, &who, &whom), (first, other, &whom, &who)] {
        let only = has.records.iter().filter(|record| !lacks.records.contains(record));
        differences.extend(only.map(|record| format!("{group} has, and {than} has not: {record}")));
    }
    differences
}

/// That some say they have verified their answer (flag `ad`) and some do not.
fn verified_by_some(answers: &[DnsCompared]) -> Option<String> {
    let named = |verified: bool| {
        let said = answers.iter().filter(|answer| answer.response.as_ref().is_some_and(|response| response.flags.ad == verified));
        said.map(|answer| answer.resolver.as_str()).collect::<Vec<_>>().join(", ")
    };
    let (verified, unverified) = (named(true), named(false));
    (!verified.is_empty() && !unverified.is_empty())
        .then(|| format!("{verified} says that it has verified the answer (ad), {unverified} does not"))
}

/// What is printed below the answers.
pub(super) fn summary(comparison: &DnsComparison) -> String {
    let (asked, groups) = (comparison.answers.len(), comparison.groups.len());
    let mut text = match groups {
        1 => format!(";; COMPARISON: all {asked} resolvers say the same\n"),
        _ => format!(";; COMPARISON: {groups} different answers from {asked} resolvers\n"),
    };
    text.extend(comparison.differences.iter().map(|difference| format!(";; {difference}\n")));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::dns::report::{DnsCode, DnsFlags, DnsRecord};

    fn compared(resolver: &str, rcode: Option<&str>, values: &[&str]) -> DnsCompared {
        let record = |value: &&str| DnsRecord {
            name: "A.test.".to_owned(),
            ttl_s: u32::try_from(resolver.len()).unwrap(),
            class: "IN".to_owned(),
            kind: if value.contains('.') { "A" } else { "RRSIG" }.to_owned(),
            value: (*value).to_owned(),
        };
        let response = rcode.map(|rcode| DnsResponse {
            rcode: DnsCode { code: 0, name: rcode.to_owned() },
            answer: values.iter().map(record).collect(),
            flags: DnsFlags { ad: resolver == "one", ..DnsFlags::default() },
            ..DnsResponse::default()
        });
        DnsCompared {
            resolver: resolver.to_owned(),
            server: DnsServer { name: None, address: "192.0.2.53".parse().unwrap(), port: 53 },
            transport: Transport::Udp,
            attempts: Vec::new(),
            answered: response.is_some(),
            timings: DnsTimings::default(),
            tls: None,
            response,
        }
    }

    #[test]
    fn those_that_say_the_same_are_put_together_and_the_rest_is_named() {
        let comparison = DnsComparison::of(vec![
            compared("one", Some("NOERROR"), &["192.0.2.1", "192.0.2.2", "signature"]),
            compared("three", Some("NOERROR"), &["192.0.2.2", "192.0.2.1"]),
            compared("forger", Some("NOERROR"), &["192.0.2.1", "192.0.2.9"]),
            compared("ignorant", Some("NXDOMAIN"), &[]),
            compared("dead", None, &[]),
        ]);
        let groups: Vec<String> = comparison.groups.iter().map(|group| format!("{} {}", group.resolvers.join("+"), group.rcode)).collect();
        assert_eq!(groups, ["one+three NOERROR", "forger NOERROR", "ignorant NXDOMAIN", "dead no answer"]);
        assert!(!comparison.agreed);
        for difference in [
            "forger has, and one, three has not: a.test. A 192.0.2.9",
            "one, three has, and forger has not: a.test. A 192.0.2.2",
            "ignorant says NXDOMAIN, one, three says NOERROR",
            "dead gives no answer, one, three says NOERROR",
            "one says that it has verified the answer (ad), three, forger, ignorant does not",
        ] {
            assert!(comparison.differences.iter().any(|named| named == difference), "{:?}", comparison.differences);
        }
        let same = DnsComparison::of(vec![compared("one", Some("NXDOMAIN"), &[]), compared("one too", Some("NXDOMAIN"), &[])]);
        assert!(same.agreed && same.groups.len() == 1 && summary(&same).starts_with(";; COMPARISON: all 2 resolvers say the same\n"));
    }
}
