//! What an answer has to be like, and whether it is.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::report::{DnsRecord, DnsResponse};
use crate::tools::choice::choice;
use crate::tools::http::assertion::Verdict;
use crate::tools::http::assertion::values::Pattern;
use crate::tools::list::{self, Typed, Written};

/// How many assertions one run takes.
const ASSERTIONS_MAX: usize = 20;
/// What assertions there are.
const TYPES: [&str; 2] = ["rcode", "records"];

/// A few assertions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct DnsAssertions(#[schemars(length(max = 20))] Vec<DnsAssertion>);

impl DnsAssertions {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Judges them all.
    pub fn judge(&self, response: Option<&DnsResponse>) -> Vec<Verdict> {
        self.0.iter().enumerate().map(|(index, assertion)| assertion.judge(index, response)).collect()
    }
}

impl<'de> Deserialize<'de> for DnsAssertions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let list = list::at_most::<_, Written<DnsAssertion>>(deserializer, ASSERTIONS_MAX, "assertions")?;
        Ok(Self(list.into_iter().map(|written| written.0).collect()))
    }
}

impl Typed for DnsAssertion {
    const TYPES: &'static [&'static str] = &TYPES;
}

/// One thing that an answer has to be like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[schemars(inline)]
pub enum DnsAssertion {
    /// The response code is one of these, such as `"NOERROR"` or `"NXDOMAIN"`.
    Rcode {
        /// The codes.
        one_of: Vec<String>,
    },
    /// The records of a section are as said, each as a line such as `example.com.\t300\tIN\tA\t192.0.2.1` with tabs between its parts.
    Records {
        /// Which section.
        #[serde(default)]
        section: DnsSection,
        /// What each of them has to match.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        all_match: Option<Pattern>,
        /// What at least one of them has to match.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        some_match: Option<Pattern>,
        /// What none of them may match.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        none_match: Option<Pattern>,
        /// What not all of them may match.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        some_differ: Option<Pattern>,
    },
}

choice! {
    /// A section of an answer.
    DnsSection {
        /// What was asked for.
        #[default]
        Answer = "answer",
        /// Who is responsible.
        Authority = "authority",
        /// What helps.
        Additional = "additional",
    }
}

impl DnsAssertion {
    fn judge(&self, index: usize, response: Option<&DnsResponse>) -> Verdict {
        let kind = match self {
            Self::Rcode { .. } => "rcode",
            Self::Records { .. } => "records",
        };
        let (passed, detail) = match response {
            Some(response) => self.holds(response),
            None => (false, "there is no answer".to_owned()),
        };
        Verdict { assertion: index, kind: kind.to_owned(), passed, detail }
    }

    fn holds(&self, response: &DnsResponse) -> (bool, String) {
        match self {
            Self::Rcode { one_of } => {
                let code = &response.rcode.name;
                (one_of.iter().any(|wanted| wanted.eq_ignore_ascii_case(code)), format!("the code is {code}"))
            }
            Self::Records { section, all_match, some_match, none_match, some_differ } => {
                let records = match section {
                    DnsSection::Answer => &response.answer,
                    DnsSection::Authority => &response.authority,
                    DnsSection::Additional => &response.additional,
                };
                let matching = |pattern: &Pattern| records.iter().filter(|record| pattern.is_match(line(record).as_bytes())).count();
                let wanted = [
                    (all_match, (|found, all| found == all) as fn(usize, usize) -> bool),
                    (some_match, |found, _| found > 0),
                    (none_match, |found, _| found == 0),
                    (some_differ, |found, all| found < all),
                ];
                let all = records.len();
                let judged = wanted.iter().filter_map(|(pattern, holds)| {
                    let found = matching(pattern.as_ref()?);
                    Some((holds(found, all), format!("{found} of {all} records in {section} match /{}/", pattern.as_ref()?)))
                });
                judged.fold((true, format!("there are {all} records in {section}")), |(passed, before), (holds, detail)| {
                    // The first that does not hold is what is told.
                    if passed { (holds, detail) } else { (passed, before) }
                })
            }
        }
    }
}

fn line(record: &DnsRecord) -> String {
    let DnsRecord { name, ttl_s, class, kind, value, .. } = record;
    format!("{name}\t{ttl_s}\t{class}\t{kind}\t{value}")
}

/// What became of an assertion, as a line.
pub(super) fn verdict_line(verdict: &Verdict) -> String {
    let word = if verdict.passed { "holds" } else { "FAILS" };
    format!(";; ASSERTION {} ({}) {word}: {}\n", verdict.assertion, verdict.kind, verdict.detail)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn response() -> DnsResponse {
        let record = |value: &str| json!({"name": "a.test.", "ttl_s": 60, "class": "IN", "type": "A", "value": value});
        let flags = json!({"aa": false, "tc": false, "rd": true, "ra": true, "ad": false, "cd": false});
        serde_json::from_value(json!({
            "id": 1, "opcode": "QUERY", "rcode": {"code": 0, "name": "NOERROR"}, "flags": flags, "questions": [],
            "answer": [record("192.0.2.1"), record("192.0.2.2")], "authority": [], "additional": [], "size_bytes": 12
        }))
        .unwrap()
    }

    #[track_caller]
    fn judges(assertion: &Value, passed: bool, detail: &str) {
        let assertions: DnsAssertions = serde_json::from_value(json!([assertion])).unwrap();
        let verdict = &assertions.judge(Some(&response()))[0];
        assert_eq!((verdict.passed, verdict.detail.as_str()), (passed, detail));
        assert!(!assertions.judge(None)[0].passed);
    }

    #[test]
    fn each_assertion_is_judged_by_what_was_answered() {
        judges(&json!({"type": "rcode", "one_of": ["noerror", "NXDOMAIN"]}), true, "the code is NOERROR");
        judges(&json!({"type": "rcode", "one_of": ["NXDOMAIN"]}), false, "the code is NOERROR");
        judges(&json!({"type": "records"}), true, "there are 2 records in answer");
        let one = "\\tA\\t192\\.0\\.2\\.1$";
        let detail = format!("1 of 2 records in answer match /{one}/");
        for (how, passed) in [("all_match", false), ("some_match", true), ("none_match", false), ("some_differ", true)] {
            judges(&json!({"type": "records", how: one}), passed, &detail);
        }
        for (how, passed) in [("all_match", true), ("some_match", true), ("none_match", false), ("some_differ", false)] {
            judges(&json!({"type": "records", how: "^a\\.test\\."}), passed, "2 of 2 records in answer match /^a\\.test\\./");
        }
        for (how, passed) in [("all_match", true), ("some_match", false), ("none_match", true), ("some_differ", false)] {
            judges(&json!({"type": "records", "section": "authority", how: "x"}), passed, "0 of 0 records in authority match /x/");
        }
        judges(&json!({"type": "records", "some_match": "x", "none_match": "y"}), false, "0 of 2 records in answer match /x/");
    }

    #[test]
    fn what_is_no_list_of_assertions_is_refused() {
        let refuses = |given: Value, part: &str| {
            let error = serde_json::from_value::<DnsAssertions>(given).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        refuses(json!([{"rcode": "NOERROR"}]), "a `type`, one of \"rcode\", \"records\", not one without");
        refuses(json!(["NOERROR"]), "not the string \"NOERROR\"");
        refuses(json!(vec![json!({"type": "records"}); 21]), "at most 20 assertions, not 21");
        for listed in TYPES {
            refuses(json!([{"type": "?"}]), &format!("`{listed}`"));
        }
    }
}
