//! Whether a request that is refused fits what /openapi.json says of it: then it is not malformed (400), and still cannot be (422), because its
//! fields contradict each other or a text is not what it should be inside.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use axum::extract::Request;
use axum::http::{HeaderValue, Method, Uri};
use bytes::Bytes;
use jsonschema::{Draft, PatternOptions, Validator};
use probeops_shared::problem::Code;
use probeops_shared::tools::option::Kind;
use serde_json::{Map, Value, json};

use crate::openapi;
use crate::problem::Problem;
use crate::routes::operation::{Operation, Parameter, Route};

/// What the document says that a request of one operation looks like; read from it when first something is refused.
#[derive(Debug)]
pub(super) struct Fit {
    method: Method,
    path: String,
    headers: &'static [Parameter],
    schema: OnceLock<Option<(Value, Validator)>>,
}

/// What is kept of a request until it is known whether it is refused.
pub(super) struct LookedAt {
    uri: Uri,
    headers: Vec<(&'static str, HeaderValue)>,
    body: Seen,
}

/// The body of a request as it was read.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen(Arc<OnceLock<Bytes>>);

impl Seen {
    /// Keeps the body.
    pub(super) fn keep(&self, body: &Bytes) {
        self.0.get_or_init(|| body.clone());
    }
}

impl Fit {
    /// Of this operation.
    pub(super) fn of(operation: &Operation) -> Self {
        let Route { method, path, .. } = &operation.route;
        Self { method: method.clone(), path: path.to_string(), headers: operation.headers, schema: OnceLock::new() }
    }

    /// Keeps of a request what it is judged by.
    pub(super) fn look_at(&self, request: &mut Request) -> LookedAt {
        let body = Seen::default();
        if self.method != Method::GET {
            request.extensions_mut().insert(body.clone());
        }
        let named = self.headers.iter().filter_map(|parameter| match &parameter.name {
            Cow::Borrowed(name) => Some((*name, request.headers().get(*name)?.clone())),
            Cow::Owned(_) => None,
        });
        LookedAt { uri: request.uri().clone(), headers: named.collect(), body }
    }

    /// The problem of a request that is refused as malformed: as it is if the document says so too, else that of one that cannot be.
    pub(super) fn judged(&self, problem: Problem, request: &LookedAt) -> Problem {
        if self.fits(request) == Some(true) { problem.of_what_cannot_be() } else { problem }
    }

    /// The same of a body alone.
    pub(super) fn judged_body(&self, problem: Problem, body: &Value) -> Problem {
        let fits = || self.schema().is_some_and(|(_, schema)| schema.is_valid(&json!({"body": body})));
        if problem.code() == Code::Invalid && fits() { problem.of_what_cannot_be() } else { problem }
    }

    fn schema(&self) -> Option<&(Value, Validator)> {
        let made = || {
            let schema = request_schema(openapi::tree(), &self.method, &self.path)?;
            // Of linear time, whatever is matched.
            let options = jsonschema::options().with_draft(Draft::Draft202012).with_pattern_options(PatternOptions::regex());
            let validator = options.should_validate_formats(true).build(&schema);
            let validator = validator.inspect_err(|error| tracing::error!(%error, path = self.path, "a schema of ours cannot be used"));
            Some((schema, validator.ok()?))
        };
        self.schema.get_or_init(made).as_ref()
    }

    /// Whether the request fits; nothing where it is not even made of what the schema speaks of.
    fn fits(&self, request: &LookedAt) -> Option<bool> {
        let (schema, validator) = self.schema()?;
        let mut parts = json!({"query": query(&schema["properties"]["query"]["properties"], &request.uri)?});
        let header = request.headers.iter().map(|(name, value)| ((*name).to_owned(), String::from_utf8_lossy(value.as_bytes()).into()));
        parts["header"] = header.collect::<Map<String, Value>>().into();
        if let Some(body) = request.body.0.get() {
            parts["body"] = probeops_shared::json::parse(body).ok()?;
        }
        Some(validator.is_valid(&parts))
    }
}

/// The query parameters as their schemas mean them; none where one of them is not even of its type.
fn query(schemas: &Value, uri: &Uri) -> Option<Map<String, Value>> {
    let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri).ok()?.0;
    let mut query = Map::new();
    for (name, text) in pairs {
        let kind = Kind::of(schemas.get(&name)?).unwrap_or(Kind::Text);
        let value = kind.read(&text).ok()?;
        if matches!(kind, Kind::List(_)) {
            if let Value::Array(values) = query.entry(name).or_insert_with(|| json!([])) {
                values.push(value);
            }
        } else if query.insert(name, value).is_some() {
            return None;
        }
    }
    Some(query)
}

/// The schema of what a request of this operation consists of.
fn request_schema(document: &Value, method: &Method, path: &str) -> Option<Value> {
    let operation = &document["paths"][path][method.as_str().to_ascii_lowercase()];
    let part = |place: &str| {
        let parameters = operation["parameters"].as_array().into_iter().flatten().filter(|parameter| parameter["in"] == place);
        let (mut properties, mut required) = (Map::new(), Vec::new());
        for parameter in parameters {
            properties.insert(parameter["name"].as_str()?.to_owned(), parameter["schema"].clone());
            required.extend((parameter["required"] == true).then(|| parameter["name"].clone()));
        }
        Some(json!({"type": "object", "properties": properties, "required": required}))
    };
    let body = operation.pointer("/requestBody/content/application~1json/schema");
    let mut schema = json!({
        "components": {"schemas": document["components"]["schemas"]},
        "type": "object",
        "properties": {"query": part("query")?, "header": part("header")?},
    });
    schema["properties"]["body"] = body.cloned().unwrap_or(Value::Bool(false));
    Some(schema)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(id: &str) -> Fit {
        Fit::of(crate::routes::operations().iter().find(|operation| operation.id == id).unwrap())
    }

    fn judged(fit: &Fit, uri: &str, headers: &[(&'static str, &'static str)], body: Option<&str>) -> Code {
        let headers = headers.iter().map(|(name, value)| (*name, HeaderValue::from_static(value))).collect();
        let request = LookedAt { uri: uri.parse().unwrap(), headers, body: Seen::default() };
        if let Some(body) = body {
            request.body.keep(&Bytes::copy_from_slice(body.as_bytes()));
        }
        fit.judged(Problem::new(Code::Invalid, "why"), &request).code()
    }

    #[test]
    fn every_operation_has_a_schema_that_can_be_used() {
        for operation in crate::routes::operations() {
            assert!(Fit::of(&operation).schema().is_some(), "{}", operation.id);
        }
    }

    #[test]
    fn what_fits_the_document_is_not_malformed() {
        let run = of("runJob");
        let body = |text: &str| judged(&run, "/v1/jobs", &[], Some(text));
        // TLS 1.3 at the least and 1.2 at the most; each alone is well.
        let contradictory = r#"{"tool":"tls","target":"example.com","from":"eu","parameters":{"min_version":"1.3","max_version":"1.2"}}"#;
        assert_eq!(body(contradictory), Code::Unprocessable);
        for malformed in [
            r#"{"tool":"tls","target":"example.com"}"#,
            r#"{"tool":"ping","target":"example.com","from":"eu","parameters":{"count":0}}"#,
            r#"{"tool":"ping","target":"example.com","from":"eu","form":1}"#,
            r#"{"tool":"pong","target":"example.com","from":"eu"}"#,
            r#"{"tool":"echo","from":"eu","from":"eu"}"#,
            "[]",
            "{",
        ] {
            assert_eq!(body(malformed), Code::Invalid, "{malformed}");
        }
        assert_eq!(judged(&run, "/v1/jobs?explain=1", &[], Some(contradictory)), Code::Invalid);
        assert_eq!(judged(&run, "/v1/jobs?explain=true", &[], Some(contradictory)), Code::Unprocessable);
        assert_eq!(judged(&run, "/v1/jobs", &[("Idempotency-Key", "")], Some(contradictory)), Code::Invalid);
    }

    #[test]
    fn a_query_is_judged_by_the_types_of_its_parameters() {
        let run = of("runTls");
        let with = |query: &str| judged(&run, &format!("/v1/run/tls?{query}"), &[], None);
        assert_eq!(with("target=example.com&from=eu&from=us&min_version=1.3&max_version=1.2"), Code::Unprocessable);
        for malformed in [
            "target=example.com",
            "target=a&from=eu&timeout=x",
            "target=a&from=eu&pem=1",
            "target=a&target=b&from=eu",
            "target=a&from=eu&x=",
        ] {
            assert_eq!(with(malformed), Code::Invalid, "{malformed}");
        }
    }
}
