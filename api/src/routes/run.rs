//! One tool by a URL, for whoever has only that: curl, a browser, a monitoring probe.

use std::borrow::Cow;

use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use probeops_shared::access::Scope;
use probeops_shared::invalid::Invalid;
use probeops_shared::job::DEADLINE_MAX;
use probeops_shared::selector::Selector;
use probeops_shared::tools::ToolName;
use probeops_shared::tools::option::{Kind, description};
use serde_json::{Map, Value, json};

use crate::App;
use crate::access::Principal;
use crate::problem::{Asked, Problem};
use crate::routes::frame::HEADERS_BYTES_MAX;
use crate::routes::guard::Who;
use crate::routes::jobs::{self, SELECTORS_MAX};
use crate::routes::operation::{Needs, Operation, Parameter, Route, Shape};
use crate::routes::query::Query;

/// Where the tools are.
const RUN: &str = "/v1/run/";
/// The parameters that are no option of the tool.
const FIELDS: [&str; 4] = ["target", "from", "timeout_ms", "cancel_on_disconnect"];

pub(super) fn operations() -> Vec<Operation> {
    ToolName::ALL.iter().map(|tool| operation(*tool)).collect()
}

fn operation(tool: ToolName) -> Operation {
    let handler = async move |State(app): State<App>, Who(principal): Who, headers: HeaderMap, query: Query| {
        run(&app, &principal, &headers, tool, &query).await
    };
    Operation {
        route: Route::get(format!("{RUN}{tool}"), handler),
        needs: Needs::Scope(&[Scope::JobsWrite]),
        id: format!("run{}", crate::openapi::capitalised(tool.as_str())).into(),
        summary: format!("{} (by a URL)", tool.summary()).into(),
        description: "The same as `POST /v1/jobs`, with the tool's options as query parameters; lists are given one by one. Secrets have no \
                      place in a URL, nor has what is long: such options are only in the body of `POST /v1/jobs`.",
        query: parameters(tool).into(),
        headers: &jobs::HEADERS,
        body: None,
        answers: jobs::ran(),
        problems: &jobs::MAKING,
    }
}

/// The options that may stand in a URL.
fn options(tool: ToolName) -> Vec<(String, Value, Kind)> {
    let properties = tool.option_properties().into_iter();
    let kinds = properties.filter_map(|(name, property)| Some((name, Kind::of(&property)?, property)));
    // What may be as long as all headers together does not pass as a URL.
    let long = |property: &Value| property["maxLength"].as_u64().is_some_and(|most| most >= HEADERS_BYTES_MAX as u64);
    kinds
        .filter(|(_, kind, property)| *kind != Kind::TextOrFile && !long(property))
        .map(|(name, kind, property)| (name, property, kind))
        .collect()
}

fn parameters(tool: ToolName) -> Vec<Parameter> {
    let parameter = |name: &'static str, description: &'static str, schema: Value, required, repeats| {
        let (name, description) = (Cow::Borrowed(name), Cow::Borrowed(description));
        Parameter { name, description, shape: Shape::Given(schema), required, repeats }
    };
    let target_is_optional = probeops_shared::tools::Spec::parse(tool, "", Map::new()).is_ok();
    let places = json!({"type": "array", "items": Selector::text_schema(), "minItems": 1, "maxItems": SELECTORS_MAX, "uniqueItems": true});
    let mut target = tool.target_schema(&mut schemars::SchemaGenerator::default());
    target.insert("examples".to_owned(), json!([tool.example_target()]));
    let mut parameters = vec![
        parameter("target", "Whom to point it at.", target.to_value(), !target_is_optional, false),
        parameter(
            "from",
            "From where: a region, `node:` and a node's id, labels, or what else `from` may be in `POST /v1/jobs`; several by naming it again.",
            places,
            true,
            true,
        ),
        parameter(jobs::EXPLAIN, jobs::EXPLAIN_MEANS, json!({"type": "boolean"}), false, false),
        parameter(
            "timeout_ms",
            "What waiting for a node and running may take together.",
            json!({"type": "integer", "minimum": 1, "maximum": u64::try_from(DEADLINE_MAX.as_millis()).unwrap_or(u64::MAX)}),
            false,
            false,
        ),
        parameter(
            "cancel_on_disconnect",
            "Whether a streamed job ends when nobody follows it any more.",
            json!({"type": "boolean"}),
            false,
            false,
        ),
    ];
    parameters.extend(options(tool).into_iter().map(|(name, property, kind)| {
        let about = description(&property).replace('\n', " ");
        let schema = match &kind {
            Kind::Json => json!({"type": "string", "contentMediaType": "application/json"}),
            Kind::List(item) if **item == Kind::Json => {
                json!({"type": "array", "items": {"type": "string", "contentMediaType": "application/json"}})
            }
            _ => property,
        };
        let repeats = matches!(kind, Kind::List(_));
        Parameter { name: name.into(), description: about.into(), shape: Shape::Given(schema), required: false, repeats }
    }));
    parameters
}

/// The job that was asked for by a URL, as far as it can be read, for the audit trail; none at any other route. It is an attempt to run something
/// all the same if its query is refused before anybody looks at what it asks for.
pub(super) fn asked(route: &str, uri: &Uri) -> Option<Asked> {
    let mut fields = Map::from_iter([("tool".to_owned(), Value::from(route.strip_prefix(RUN)?))]);
    let query = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri).map(|query| query.0).unwrap_or_default();
    fields.extend(query.into_iter().find(|(name, _)| name == "target").map(|(name, target)| (name, target.into())));
    Some(jobs::asked(&fields))
}

async fn run(app: &App, principal: &Principal, headers: &HeaderMap, tool: ToolName, query: &Query) -> Result<Response, Problem> {
    let fields = fields(tool, query).map_err(|errors| Problem::all_invalid(errors).in_query())?;
    if jobs::explains(query)? {
        return jobs::explanation(app, principal, headers, fields).await.map_err(Problem::in_query);
    }
    jobs::run(app, principal, headers, fields).await.map_err(Problem::in_query)
}

/// The query as the fields of a job's request.
fn fields(tool: ToolName, query: &Query) -> Result<Map<String, Value>, Vec<Invalid>> {
    let (mut fields, mut parameters, mut wrong) = (Map::new(), Map::new(), Vec::new());
    fields.insert("tool".to_owned(), tool.as_str().into());
    for name in FIELDS {
        let given: Vec<&str> = query.given(name).collect();
        let kind = match name {
            "timeout_ms" => Kind::Whole { min: 1, max: u64::MAX },
            "cancel_on_disconnect" => Kind::Flag,
            _ => Kind::Text,
        };
        let value = match given.as_slice() {
            [] => continue,
            [one] => kind.read(one),
            several => Ok(several.to_vec().into()),
        };
        match value {
            Ok(value) => drop(fields.insert(name.to_owned(), value)),
            Err(detail) => wrong.push(Invalid::new(format!("/{name}"), detail)),
        }
    }
    for (name, _, kind) in options(tool) {
        let read: Result<Vec<Value>, String> = query.given(&name).map(|text| kind.read(text)).collect();
        match (read, &kind) {
            (Ok(values), _) if values.is_empty() => {}
            (Ok(values), Kind::List(_)) => drop(parameters.insert(name, values.into())),
            (Ok(values), _) => drop(values.into_iter().next().and_then(|value| parameters.insert(name, value))),
            (Err(detail), _) => wrong.push(Invalid::new(format!("/parameters/{name}"), detail)),
        }
    }
    fields.insert("parameters".to_owned(), parameters.into());
    if wrong.is_empty() { Ok(fields) } else { Err(wrong) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(tool: ToolName, text: &str) -> Result<Map<String, Value>, Problem> {
        let query = Query::parse(&format!("/x?{text}").parse().unwrap(), &parameters(tool))?;
        fields(tool, &query).map_err(|errors| Problem::all_invalid(errors).in_query())
    }

    #[test]
    fn a_query_is_a_job() {
        let fields = read(ToolName::Ping, "target=192.0.2.1&from=eu&from=us&count=3&interval_ms=200&timeout=0.5").unwrap();
        let expected = json!({
            "tool": "ping", "target": "192.0.2.1", "from": ["eu", "us"],
            "parameters": {"count": 3, "interval_ms": 200, "timeout": 0.5},
        });
        assert_eq!(Value::from(fields), expected);
        let fields = read(ToolName::Echo, "from=eu&timeout_ms=5000").unwrap();
        assert_eq!(Value::from(fields), json!({"tool": "echo", "from": "eu", "timeout_ms": 5000, "parameters": {}}));
    }

    #[test]
    fn what_is_wrong_is_named_by_its_parameter() {
        let refused = |text: &str| read(ToolName::Ping, text).unwrap_err().detail().to_owned();
        assert_eq!(refused("count=x"), "?count: must be a whole number from 1 to 100, not the string \"x\"");
        assert!(refused("cuont=1").starts_with("?cuont: unknown query parameter `cuont`; did you mean `count`?"));
        assert_eq!(refused("count=1&count=2"), "?count: `count` is given twice");
        assert!(refused("count=0&payload_bytes=x").contains("; ?payload_bytes: "), "both are named");
    }

    #[test]
    fn no_option_is_called_like_a_field_and_no_secret_stands_in_a_url() {
        for tool in ToolName::ALL {
            for (name, property, _) in options(*tool) {
                assert!(!FIELDS.contains(&name.as_str()) && name != jobs::EXPLAIN, "{tool} {name}");
                assert!(!property.to_string().contains("\"writeOnly\":true"), "{tool} {name}: {property}");
            }
        }
    }
}
