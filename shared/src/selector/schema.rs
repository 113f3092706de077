//! What a selector looks like, for whoever reads the schema.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::{RUNS_PER_JOB_MAX, Selector, TERMS_MAX, VALUES_MAX};
use crate::ids::{LabelKey, LabelValue, NodeId, Region};

const TOKEN: &str = "[a-z0-9][a-z0-9-]{0,62}";
const LABEL: &str = "[a-z0-9]([a-z0-9._/-]*[a-z0-9])?";
/// The longest term: a name and so many values of 63 characters, and what stands between them.
pub(super) const TERM_LENGTH_MAX: usize = (VALUES_MAX + 1) * 64 + 8;
const COUNT: &str = "([1-9][0-9]{0,2}|1000)";

impl Selector {
    /// What one looks like as text.
    pub fn text_schema() -> Schema {
        json_schema!({"type": "string", "pattern": pattern(), "examples": ["eu-central", "eu-central:all", "node:fra-1", "*", "site=fra,env!=lab"]})
    }
}

impl JsonSchema for Selector {
    fn schema_name() -> Cow<'static, str> {
        "Selector".into()
    }
    fn json_schema(schemas: &mut SchemaGenerator) -> Schema {
        let (region, node) = (schemas.subschema_for::<Region>(), schemas.subschema_for::<NodeId>());
        let (key, value) = (schemas.subschema_for::<LabelKey>(), schemas.subschema_for::<LabelValue>());
        let take = json_schema!({
            "description": "How many: any one, every one, or so many different ones.",
            "oneOf": [{"enum": ["one", "all"]}, {"type": "integer", "minimum": 1, "maximum": RUNS_PER_JOB_MAX}],
            "default": "one",
        });
        let labels = json_schema!({
            "type": "object", "minProperties": 1, "maxProperties": TERMS_MAX, "propertyNames": key,
            "additionalProperties": {"oneOf": [
                value,
                {"type": "array", "items": value, "minItems": 1, "maxItems": VALUES_MAX},
                {"type": "object", "required": ["not"], "properties": {"not": value}, "additionalProperties": false},
            ]},
        });
        let terms = json_schema!({"type": "string", "pattern": format!("^{}$", terms())});
        json_schema!({
            "description": "Which node or nodes: a region (any one node of it), `<region>:all`, `<region>*3` (three different nodes), \
                            `node:` and a node's id, `*` (one node of every region), `*:all`, `*5`, or labels, of which all must hold: \
                            `site=fra,env!=lab`, `role in (edge,core)`, with `:all` or `*3` after them. The object says the same.",
            "oneOf": [
                Self::text_schema(),
                {
                    "type": "object", "required": ["region"], "additionalProperties": false,
                    "properties": {"region": {"description": "A region, or `*` for every one.", "anyOf": [region, {"const": "*"}]}, "take": take},
                },
                {"type": "object", "required": ["node"], "additionalProperties": false, "properties": {"node": node}},
                {
                    "type": "object", "required": ["labels"], "additionalProperties": false,
                    "properties": {"labels": {"oneOf": [labels, terms]}, "take": take},
                },
            ],
        })
    }
}

fn terms() -> String {
    let term = term();
    format!("{term}(,{term})*")
}

fn term() -> String {
    // How long and how many is said in words: counted, the pattern would take megabytes wherever it is used.
    format!("{LABEL}(!?={LABEL}| in \\({LABEL}(,{LABEL})*\\))")
}

/// What one term looks like as text.
pub(super) fn term_pattern() -> String {
    format!("^{}$", term())
}

fn pattern() -> String {
    format!("^(node:{TOKEN}|(\\*|{TOKEN}|{})(:all)?|({TOKEN}|{})?\\*{COUNT})$", terms(), terms())
}
