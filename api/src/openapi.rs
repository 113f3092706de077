//! The OpenAPI 3.1 document, made from the table of operations that the router is made from, and from the types that are sent and read.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use axum::http::Method;
use probeops_shared::job::DEADLINE_MAX;
use probeops_shared::problem::Code;
use probeops_shared::selector::Selector;
use probeops_shared::tools::{Spec, ToolName};
use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::jobs::EXPIRES_IN_MAX;
use crate::problem::{PROBLEM_JSON, ProblemDocument, status, success};
use crate::routes::operation::{Needs, Operation, Parameter, Shape};
use crate::routes::{KEY_CHARS_MAX, SELECTORS_MAX, operations};

const SCHEMAS: &str = "#/components/schemas";
const DESCRIPTION: &str = "Ping, resolve or connect to a target from machines inside private networks. Send a credential as \
    `Authorization: Bearer <API key or JWT>`. Errors are RFC 9457 problems; `code` is one of a closed set.";

static DOCUMENT: LazyLock<String> = LazyLock::new(|| made(&operations()).to_string());

/// The document.
pub fn document() -> &'static str {
    &DOCUMENT
}

/// The schema of a job's request: one alternative a tool.
pub(crate) fn job_request_schema(schemas: &mut SchemaGenerator) -> Schema {
    tool_job_schema(schemas, "Job", |_| ())
}

/// The schema of what is made of a job's request by `change`: one alternative a tool, called by the tool's name and `suffix`.
pub(crate) fn tool_job_schema(schemas: &mut SchemaGenerator, suffix: &str, change: impl Fn(&mut Value)) -> Schema {
    let alternatives: Vec<(ToolName, String)> =
        ToolName::ALL.iter().map(|tool| (*tool, format!("{}{suffix}", capitalised(tool.as_str())))).collect();
    for (tool, name) in &alternatives {
        let mut schema = job_of(*tool, schemas);
        change(&mut schema);
        schemas.definitions_mut().insert(name.clone(), schema);
    }
    let reference = |name: &String| format!("{SCHEMAS}/{name}");
    let mapping: Map<String, Value> = alternatives.iter().map(|(tool, name)| (tool.as_str().to_owned(), reference(name).into())).collect();
    let one_of: Vec<Value> = alternatives.iter().map(|(_, name)| json!({"$ref": reference(name)})).collect();
    let mut schema = Schema::default();
    schema.insert("oneOf".to_owned(), one_of.into());
    schema.insert("discriminator".to_owned(), json!({"propertyName": "tool", "mapping": mapping}));
    schema
}

fn job_of(tool: ToolName, schemas: &mut SchemaGenerator) -> Value {
    let target = tool.target_schema(schemas);
    let parameters = tool.options_schema(schemas);
    let selector = schemas.subschema_for::<Selector>();
    let target_is_optional = Spec::parse(tool, "", Map::new()).is_ok();
    let required: Vec<&str> = if target_is_optional { vec!["tool", "from"] } else { vec!["tool", "target", "from"] };
    json!({
        "type": "object",
        "description": tool.summary(),
        "required": required,
        "additionalProperties": false,
        "dependentRequired": {"expires_in_ms": ["when"]},
        "properties": {
            "tool": {"const": tool.as_str()},
            "target": target,
            "parameters": parameters,
            "from": {
                "description": "From where: a selector, or a list of these. A node that several of them select runs the job once.",
                "oneOf": [selector, {"type": "array", "items": selector, "minItems": 1, "maxItems": SELECTORS_MAX, "uniqueItems": true}],
            },
            "callback": crate::callbacks::request_schema(),
            "cancel_on_disconnect": {
                "description": "Whether a job whose answer is streamed is to end when nobody follows it any more.",
                "type": "boolean", "default": false,
            },
            "when": {
                "description": "`online`: the job waits until a node that fits is there, and needs nobody who waits for it.",
                "const": "online",
            },
            "expires_in_ms": {
                "description": "With `when`: how long it waits at most; an hour unless said.",
                "type": "integer", "minimum": 1, "maximum": u64::try_from(EXPIRES_IN_MAX.as_millis()).unwrap_or(u64::MAX),
            },
            "idempotency_key": {
                "description": "The same as the header Idempotency-Key, for one job of several.",
                "type": "string", "minLength": 1, "maxLength": KEY_CHARS_MAX, "pattern": "^[ -~]+$",
            },
            "timeout_ms": {
                "description": "What waiting for nodes and running may take together; at least what the tool itself may take. When it is over, the job ends: what is missing then is reported as failed, with its node named.",
                "type": "integer", "minimum": 1, "maximum": u64::try_from(DEADLINE_MAX.as_millis()).unwrap_or(u64::MAX),
            },
        },
        "examples": [{"tool": tool.as_str(), "target": tool.example_target(), "from": "eu-central"}],
    })
}

fn made(operations: &[Operation]) -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.definitions_path = "/components/schemas".into());
    let mut schemas = settings.into_generator();
    let problem = schemas.subschema_for::<ProblemDocument>();
    let mut paths: Map<String, Value> = Map::new();
    for operation in operations {
        let described = described(operation, &problem, &mut schemas);
        let path = paths.entry(operation.route.path.as_ref()).or_insert_with(|| json!({}));
        if let Value::Object(path) = path {
            path.insert(operation.route.method.as_str().to_ascii_lowercase(), described);
        }
    }
    let reports: Vec<Value> = ToolName::ALL.iter().map(|tool| tool.report_schema(&mut schemas).to_value()).collect();
    let mut definitions = schemas.take_definitions(true);
    name_reports(&mut definitions, reports);
    json!({
        "openapi": "3.1.0",
        "info": {"title": "ProbeOps", "version": probeops_shared::VERSION, "description": DESCRIPTION, "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": definitions,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "description": "An API key (pk_…) or a JWT."}},
            "headers": {
                "RequestId": {"description": "The request's id: the one sent, or a new one.", "schema": {"type": "string"}},
                "RetryAfter": {"description": "When to try again, in seconds.", "schema": {"type": "integer", "minimum": 1}},
                "RateLimitPolicy": {"description": "How many runs in how many seconds, where your credential is limited.", "schema": {"type": "string"}, "example": "\"runs\";q=60;w=60"},
                "RateLimit": {"description": "How many runs are left, and in how many seconds all are possible again.", "schema": {"type": "string"}, "example": "\"runs\";r=58;t=2"},
                "Location": {"description": "Where it is.", "schema": {"type": "string", "format": "uri-reference"}},
                "Challenge": {"description": "What kind of credential is wanted, and what is wrong with this one.", "schema": {"type": "string"}},
            },
        },
    })
}

/// An outcome's report is whatever its tool finds; the types are told so that generated clients know them.
fn name_reports(definitions: &mut Map<String, Value>, reports: Vec<Value>) {
    let report = definitions.get_mut("Outcome").and_then(|outcome| outcome.pointer_mut("/properties/report"));
    if let Some(Value::Object(report)) = report {
        let any: Vec<Value> =
            reports.into_iter().chain([json!({"type": "object", "description": "Measured until the failure."})]).collect();
        report.insert("anyOf".to_owned(), any.into());
    }
}

fn described(operation: &Operation, problem: &Schema, schemas: &mut SchemaGenerator) -> Value {
    let Operation { route, needs, id, summary, description, query, headers: asked, body, answers, problems: _ } = operation;
    let in_path = route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let mut parameters: Vec<Value> =
        in_path.map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}})).collect();
    for (parameter, place) in query.iter().map(|parameter| (parameter, "query")).chain(asked.iter().map(|parameter| (parameter, "header")))
    {
        parameters.push(parameter_of(parameter, place, schemas));
    }
    let mut responses: Map<String, Value> = Map::new();
    for answer in answers {
        let mut headers = json!({"X-Request-Id": header("RequestId")});
        if matches!(answer.status, success::CREATED | success::ACCEPTED) {
            headers["Location"] = header("Location");
        }
        if answer.status == success::ACCEPTED {
            headers["Retry-After"] = header("RetryAfter");
        }
        if operation.problems.contains(&Code::RateLimited) {
            add_rate(&mut headers);
        }
        let mut content: Map<String, Value> =
            answer.schema.iter().map(|schema| ("application/json".to_owned(), json!({"schema": schema(schemas)}))).collect();
        for (content_type, description) in answer.also {
            content.insert((*content_type).to_owned(), json!({"schema": {"type": "string", "description": description}}));
        }
        let mut described = json!({"description": answer.description, "headers": headers});
        if !content.is_empty() {
            described["content"] = content.into();
        }
        responses.insert(answer.status.as_str().to_owned(), described);
    }
    for (status, codes) in problems(operation) {
        responses.insert(status.to_string(), refused(status, &codes, problem));
    }
    let security = if *needs == Needs::Nothing { json!([]) } else { json!([{"bearer": []}]) };
    let mut described = json!({
        "operationId": id, "summary": summary, "description": described_scope(description, *needs), "tags": [tag(&route.path)],
        "security": security, "parameters": parameters, "responses": responses,
    });
    if let Some(body) = body {
        described["requestBody"] = json!({"required": true, "content": {"application/json": {"schema": body(schemas)}}});
    }
    described
}

fn parameter_of(parameter: &Parameter, place: &str, schemas: &mut SchemaGenerator) -> Value {
    let schema = match &parameter.shape {
        Shape::Made(make) => make(schemas).to_value(),
        Shape::Given(schema) => schema.clone(),
    };
    json!({"name": parameter.name, "in": place, "required": parameter.required, "description": parameter.description, "schema": schema})
}

fn described_scope(description: &str, needs: Needs) -> String {
    match needs {
        Needs::Nothing => description.to_owned(),
        Needs::Credential => format!("{description}\n\nNeeds a credential, of any scope."),
        Needs::Scope(scopes) => {
            let scopes: Vec<String> = scopes.iter().map(|scope| format!("`{scope}`")).collect();
            format!("{description}\n\nNeeds the scope {}.", scopes.join(" or "))
        }
    }
}

/// The problems an operation can have, by status: its own, and those that its needs and its method bring.
fn problems(operation: &Operation) -> BTreeMap<u16, Vec<Code>> {
    let mut codes = vec![Code::Invalid, Code::UriTooLong, Code::HeadersTooLarge, Code::Internal];
    codes.extend_from_slice(operation.problems);
    match operation.needs {
        Needs::Nothing => {}
        Needs::Credential => codes.extend([Code::Unauthorized, Code::Unavailable]),
        Needs::Scope(_) => codes.extend([Code::Unauthorized, Code::Forbidden, Code::Unavailable]),
    }
    if operation.route.method != Method::GET {
        codes.extend([Code::TooLarge, Code::RequestTimeout]);
    }
    if operation.body.is_some() {
        codes.push(Code::UnsupportedMediaType);
    }
    let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for code in codes {
        let same = by_status.entry(status(code).as_u16()).or_default();
        if !same.contains(&code) {
            same.push(code);
        }
    }
    by_status
}

fn refused(status: u16, codes: &[Code], problem: &Schema) -> Value {
    let words: Vec<String> = codes.iter().map(|code| format!("`{}`", code.as_str())).collect();
    let mut headers = json!({"X-Request-Id": header("RequestId")});
    if matches!(status, 429 | 503) {
        headers["Retry-After"] = header("RetryAfter");
    }
    if codes.contains(&Code::RateLimited) {
        add_rate(&mut headers);
    }
    if status == 401 {
        headers["WWW-Authenticate"] = header("Challenge");
    }
    let content = json!({PROBLEM_JSON: {"schema": problem}, "application/json": {"schema": problem}});
    json!({"description": words.join(", "), "headers": headers, "content": content})
}

fn add_rate(headers: &mut Value) {
    headers["RateLimit-Policy"] = header("RateLimitPolicy");
    headers["RateLimit"] = header("RateLimit");
}

fn header(name: &str) -> Value {
    json!({"$ref": format!("#/components/headers/{name}")})
}

fn tag(path: &str) -> &str {
    path.strip_prefix("/v1/").map_or("service", |rest| rest.split('/').next().unwrap_or(rest))
}

/// A name as it stands in another.
pub(crate) fn capitalised(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn parsed() -> Value {
        serde_json::from_str(document()).unwrap()
    }

    fn visit<'a>(value: &'a Value, seen: &mut impl FnMut(&'a str, &'a Value)) {
        match value {
            Value::Object(object) => object.iter().for_each(|(key, value)| {
                seen(key, value);
                visit(value, seen);
            }),
            Value::Array(items) => items.iter().for_each(|item| visit(item, seen)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    #[test]
    fn everything_referred_to_is_there() {
        let document = parsed();
        let mut references = BTreeSet::new();
        visit(&document, &mut |key, value| {
            if key == "$ref" {
                references.insert(value.as_str().unwrap());
            }
        });
        assert!(references.len() > 10);
        for reference in references {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }

    #[test]
    fn every_operation_is_described_once() {
        let document = parsed();
        let table = operations();
        let ids: BTreeSet<&str> = table.iter().map(|operation| operation.id.as_ref()).collect();
        assert_eq!(ids.len(), table.len(), "ids are unique");
        for operation in &table {
            let path = operation.route.path.replace('/', "~1");
            let method = operation.route.method.as_str().to_ascii_lowercase();
            let described = document.pointer(&format!("/paths/{path}/{method}")).unwrap();
            assert_eq!(described["operationId"], operation.id.as_ref());
            assert_eq!(described["responses"].get("401").is_some(), operation.needs != Needs::Nothing, "{}", operation.id);
            assert_eq!(
                described["parameters"].as_array().unwrap().len(),
                operation.query.len() + operation.headers.len() + operation.route.path.matches('{').count()
            );
            assert!(described["responses"].as_object().unwrap().values().all(|response| response["description"] != ""));
        }
        let described: usize = document["paths"].as_object().unwrap().values().map(|path| path.as_object().unwrap().len()).sum();
        assert_eq!(described, table.len());
    }

    #[test]
    fn a_job_is_described_for_each_tool_with_its_own_options() {
        let document = parsed();
        let one_of = document.pointer("/paths/~1v1~1jobs/post/requestBody/content/application~1json/schema/oneOf").unwrap();
        assert_eq!(one_of.as_array().unwrap().len(), ToolName::ALL.len());
        for tool in ToolName::ALL {
            let job = document.pointer(&format!("/components/schemas/{}Job", capitalised(tool.as_str()))).unwrap();
            assert_eq!(job["properties"]["tool"]["const"], tool.as_str());
            let options = job.pointer("/properties/parameters/$ref").unwrap().as_str().unwrap();
            let options = document.pointer(&options[1..]).unwrap();
            let names: Vec<&String> = options["properties"].as_object().unwrap().keys().collect();
            assert_eq!(names, tool.option_names().iter().collect::<Vec<_>>(), "{tool}");
            let known: BTreeSet<&str> = job["properties"].as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(known, crate::routes::JOB_FIELDS.into_iter().collect::<BTreeSet<_>>());
        }
    }

    #[test]
    fn outcomes_name_the_reports_of_all_tools() {
        let document = parsed();
        let reports = document.pointer("/components/schemas/Outcome/properties/report/anyOf").unwrap().as_array().unwrap();
        assert_eq!(reports.len(), ToolName::ALL.len() + 1);
    }
}
