//! Query parameters, as strict as bodies: an unknown or repeated one is an error. Pointers in errors are `?` and the parameter's name.

use std::fmt::Display;
use std::str::FromStr;

use axum::extract::FromRequestParts;
use axum::http::Uri;
use axum::http::request::Parts;
use probeops_shared::invalid::{Invalid, suggestion};
use probeops_shared::problem::Code;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::problem::Problem;
use crate::routes::operation::Parameter;

/// How many entries a list shows unless told.
const PAGE_DEFAULT: usize = 100;
/// How many entries a list shows at most.
pub(super) const PAGE_MAX: usize = 1_000;

/// How many entries to show.
pub(super) struct PageLimit;

impl JsonSchema for PageLimit {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "PageLimit".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "integer", "minimum": 1, "maximum": PAGE_MAX, "default": PAGE_DEFAULT})
    }
}

/// A place in a stream, where a page goes on.
pub(super) struct Place;

impl Place {
    /// The largest: what every reader of JSON keeps exactly (RFC 8259, 6), and more than a stream will ever have.
    const MAX: u64 = (1 << 53) - 1;

    /// The place that is written there, if it is one.
    pub(super) fn read(text: &str) -> Option<u64> {
        text.parse().ok().filter(|place| *place <= Self::MAX)
    }
}

impl JsonSchema for Place {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Place".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "integer", "minimum": 0, "maximum": Self::MAX})
    }
}

/// The parameters given.
#[derive(Clone, Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Ok(parts.extensions.remove::<Self>().unwrap_or_default())
    }
}

impl Query {
    /// Reads the parameters and refuses unknown and repeated ones.
    pub(super) fn parse(uri: &Uri, known: &[Parameter]) -> Result<Self, Problem> {
        if uri.query().unwrap_or_default().is_empty() {
            return Ok(Self::default());
        }
        let parsed = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri);
        let axum::extract::Query(pairs) =
            parsed.map_err(|error| Problem::new(Code::Invalid, format!("the query (what follows `?`) cannot be read: {error}")))?;
        for (index, (name, _)) in pairs.iter().enumerate() {
            let short: String = name.chars().take(64).collect();
            let refused = |detail: String| Problem::invalid(Invalid::new(format!("?{short}"), detail));
            let Some(parameter) = known.iter().find(|parameter| parameter.name == *name) else {
                let names: Vec<&str> = known.iter().map(|parameter| parameter.name.as_ref()).collect();
                let choice = if names.is_empty() {
                    "there are none here".to_owned()
                } else {
                    format!("the query parameters are {}", names.join(", "))
                };
                return Err(refused(format!("unknown query parameter `{short}`; {}{choice}", suggestion(&short, names.iter().copied()))));
            };
            if !parameter.repeats && pairs.iter().take(index).any(|(earlier, _)| earlier == name) {
                return Err(refused(format!("`{short}` is given twice")));
            }
        }
        Ok(Self(pairs))
    }

    /// The value of a parameter, if it is given.
    pub(super) fn value<T: FromStr<Err: Display>>(&self, name: &str) -> Result<Option<T>, Problem> {
        let given = self.0.iter().find(|(given, _)| given == name);
        given.map(|(_, value)| value.parse().map_err(|error| refused(name, &error))).transpose()
    }

    /// The values of a parameter as they were given.
    pub(super) fn given<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    /// The value of a parameter that `read` understands, if it is given.
    pub(super) fn read<T>(&self, name: &str, wants: &str, read: impl Fn(&str) -> Option<T>) -> Result<Option<T>, Problem> {
        let given = self.0.iter().find(|(given, _)| given == name);
        given.map(|(_, value)| read(value).ok_or_else(|| refused(name, &format!("must be {wants}, not {}", shown(value))))).transpose()
    }

    /// How many entries to show.
    pub(super) fn limit(&self) -> Result<usize, Problem> {
        let wants = format!("a whole number from 1 to {PAGE_MAX}");
        let read = |text: &str| text.parse().ok().filter(|limit| (1..=PAGE_MAX).contains(limit));
        Ok(self.read("limit", &wants, read)?.unwrap_or(PAGE_DEFAULT))
    }
}

fn refused(name: &str, detail: &dyn Display) -> Problem {
    Problem::invalid(Invalid::new(format!("?{name}"), detail.to_string()))
}

fn shown(value: &str) -> String {
    probeops_shared::bounded::shown(&value.into())
}

/// The first entries after `cursor`, and where to go on if there are more. Entries are in the order of their keys.
pub(super) fn page<T>(entries: Vec<T>, key: impl Fn(&T) -> &str, cursor: Option<&str>, limit: usize) -> (Vec<T>, Option<String>) {
    let mut after: Vec<T> = entries.into_iter().filter(|entry| cursor.is_none_or(|cursor| key(entry) > cursor)).collect();
    let more = after.len() > limit;
    after.truncate(limit);
    let next = after.last().filter(|_| more).map(|last| key(last).to_owned());
    (after, next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes::operation::schema;

    static KNOWN: [Parameter; 2] = [Parameter::new("limit", "", schema::<PageLimit>), Parameter::new("node", "", schema::<String>)];

    fn parse(query: &str) -> Result<Query, Problem> {
        Query::parse(&format!("/x?{query}").parse().unwrap(), &KNOWN)
    }

    #[test]
    fn unknown_and_repeated_parameters_are_refused_by_name() {
        let detail = |query: &str| parse(query).unwrap_err().detail().to_owned();
        assert_eq!(detail("limt=1"), "?limt: unknown query parameter `limt`; did you mean `limit`? the query parameters are limit, node");
        assert_eq!(detail("limit=1&limit=2"), "?limit: `limit` is given twice");
        let none = Query::parse(&"/x?a".parse().unwrap(), &[]).unwrap_err();
        assert_eq!(none.detail(), "?a: unknown query parameter `a`; there are none here");
    }

    #[test]
    fn values_are_checked_and_named() {
        assert_eq!(parse("limit=7&node=fra%2D1").unwrap().value::<String>("node").unwrap().as_deref(), Some("fra-1"));
        assert_eq!(parse("").unwrap().limit().unwrap(), PAGE_DEFAULT);
        for bad in ["limit=0", "limit=1001", "limit=x", "limit=", "limit=-1"] {
            let problem = parse(bad).unwrap().limit().unwrap_err();
            assert!(problem.detail().starts_with("?limit: must be a whole number from 1 to 1000"), "{problem}");
        }
    }

    #[test]
    fn a_page_says_where_to_go_on_only_when_there_is_more() {
        let all = || vec!["a", "b", "c"];
        assert_eq!(page(all(), |entry| entry, None, 2), (vec!["a", "b"], Some("b".to_owned())));
        assert_eq!(page(all(), |entry| entry, Some("b"), 2), (vec!["c"], None));
        assert_eq!(page(all(), |entry| entry, None, 3), (all(), None));
        assert_eq!(page(all(), |entry| entry, Some("z"), 3), (vec![], None));
    }
}
