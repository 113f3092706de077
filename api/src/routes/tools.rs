//! The catalogue of tools.

use std::borrow::Cow;
use std::sync::LazyLock;

use axum::Json;
use probeops_shared::tools::{Class, Spec, ToolName};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::problem::success;
use crate::routes::operation::{Answer, Needs, Operation, Route, schema};

pub(super) fn operations() -> Vec<Operation> {
    vec![Operation {
        route: Route::get("/v1/tools", list),
        needs: Needs::Credential,
        id: "listTools".into(),
        summary: "List the tools with their options".into(),
        description: "Everything there is to know of a tool without running it, with JSON Schemas (2020-12). Which nodes can run it is at \
                      `/v1/regions` and `/v1/nodes`.",
        query: Cow::Borrowed(&[]),
        headers: &[],
        body: None,
        answers: vec![Answer::json(success::DONE, "The tools.", schema::<ToolList>)],
        problems: &[],
    }]
}

/// The catalogue.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct ToolList {
    /// The tools.
    tools: Vec<ToolView>,
}

/// A tool.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Tool")]
struct ToolView {
    /// Its name.
    name: ToolName,
    /// What it does.
    summary: &'static str,
    /// Which slots of a node it takes.
    class: Class,
    /// The longest a run with default options may take, in milliseconds.
    budget_ms: u64,
    /// A target for examples.
    example_target: &'static str,
    /// Its options with their defaults.
    defaults: Map<String, Value>,
    /// What its target may be, as a JSON Schema.
    target: Schema,
    /// What its options may be, as a JSON Schema.
    parameters: Schema,
    /// What its report looks like, as a JSON Schema.
    report: Schema,
    /// What it tells while it goes on, to callers who hear events, as a JSON Schema.
    progress: Schema,
}

/// It does not change while we run.
static CATALOGUE: LazyLock<ToolList> = LazyLock::new(|| ToolList { tools: ToolName::ALL.iter().copied().map(view).collect() });

async fn list() -> Json<&'static ToolList> {
    Json(&CATALOGUE)
}

fn view(tool: ToolName) -> ToolView {
    // Inlined: each schema can be used by itself.
    let schemas = || SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true).into_generator();
    let defaults = tool.default_parameters();
    let budget =
        Spec::parse(tool, tool.example_target(), defaults.clone()).map_or_else(|_| std::time::Duration::ZERO, |spec| spec.budget());
    ToolView {
        name: tool,
        summary: tool.summary(),
        class: tool.class(),
        budget_ms: u64::try_from(budget.as_millis()).unwrap_or(u64::MAX),
        example_target: tool.example_target(),
        defaults,
        target: tool.target_schema(&mut schemas()),
        parameters: tool.options_schema(&mut schemas()),
        report: tool.report_schema(&mut schemas()),
        progress: tool.progress_schema(&mut schemas()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tool_is_listed_with_all_its_options_and_a_budget() {
        assert_eq!(CATALOGUE.tools.len(), ToolName::ALL.len());
        for tool in &CATALOGUE.tools {
            assert!(tool.budget_ms > 0, "{}", tool.name);
            let properties = tool.parameters.get("properties").and_then(Value::as_object).unwrap();
            assert_eq!(properties.keys().collect::<Vec<_>>(), tool.name.option_names().iter().collect::<Vec<_>>(), "{}", tool.name);
            assert!(tool.defaults.keys().all(|option| properties.contains_key(option)), "{}", tool.name);
            let text = serde_json::to_string(tool).unwrap();
            assert!(!text.contains("$ref"), "{}: its schemas refer to nothing outside", tool.name);
        }
    }
}
