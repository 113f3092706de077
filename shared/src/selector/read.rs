//! Selectors in JSON: as text, or as an object that says the same.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value};

use super::{Place, RUNS_PER_JOB_MAX, Selector, TAKE_WANTS, Take, Term, WANTS, bounded, terms};
use crate::bounded::shown;
use crate::ids::LabelKey;
use crate::invalid::{Invalid, suggestion};
use crate::json::escaped;

/// The fields of the object.
const FIELDS: [&str; 4] = ["region", "node", "labels", "take"];

impl Selector {
    /// Reads a selector that stands at `pointer`.
    pub fn read(value: &Value, pointer: &str) -> Result<Self, Invalid> {
        match value {
            Value::String(text) => text.parse().map_err(|detail: String| Invalid::new(pointer, detail)),
            Value::Object(fields) => object(fields).map_err(|invalid| invalid.under(pointer)),
            other => Err(Invalid::new(pointer, format!("must be text or an object that selects nodes, not {}; {WANTS}", shown(other)))),
        }
    }
}

fn object(fields: &Map<String, Value>) -> Result<Selector, Invalid> {
    if let Some(unknown) = fields.keys().find(|name| !FIELDS.contains(&name.as_str())) {
        let short: String = unknown.chars().take(64).collect();
        let detail = format!("unknown field `{short}`; {}the fields are {}", suggestion(&short, FIELDS), FIELDS.join(", "));
        return Err(Invalid::new(format!("/{}", escaped(&short)), detail));
    }
    let take = fields.get("take").map(take).transpose()?;
    let place = match (fields.get("region"), fields.get("node"), fields.get("labels")) {
        (Some(region), None, None) => match text(region, "/region")? {
            "*" => Place::Everywhere,
            region => Place::Region(region.parse().map_err(|detail: String| Invalid::new("/region", detail))?),
        },
        (None, Some(node), None) => {
            if take.is_some() {
                return Err(Invalid::new("/take", "a node is one: `take` goes with `region` or `labels`"));
            }
            return text(node, "/node")?.parse().map(Selector::Node).map_err(|detail| Invalid::new("/node", detail));
        }
        (None, None, Some(labels)) => Place::Labels(labels_of(labels)?),
        _ => return Err(Invalid::new("", "must have exactly one of `region` (a region, or \"*\" for every one), `node` and `labels`")),
    };
    Ok(Selector::Nodes { place, take: take.unwrap_or(Take::One) })
}

fn text<'a>(value: &'a Value, pointer: &str) -> Result<&'a str, Invalid> {
    value.as_str().ok_or_else(|| Invalid::new(pointer, format!("must be a string, not {}", shown(value))))
}

fn take(value: &Value) -> Result<Take, Invalid> {
    let count = value.as_u64().and_then(|count| u16::try_from(count).ok()).filter(|count| (1..=RUNS_PER_JOB_MAX).contains(count));
    match (value.as_str(), count) {
        (Some("one"), _) => Ok(Take::One),
        (Some("all"), _) => Ok(Take::All),
        (_, Some(count)) => Ok(Take::Distinct(count)),
        _ => Err(Invalid::new("/take", format!("must be {TAKE_WANTS}, not {}", shown(value)))),
    }
}

fn labels_of(value: &Value) -> Result<Vec<Term>, Invalid> {
    let here = |detail: String| Invalid::new("/labels", detail);
    match value {
        Value::String(text) => terms(text).map_err(here),
        Value::Object(labels) => bounded(labels.iter().map(term).collect::<Result<_, _>>()?).map_err(here),
        other => Err(here(format!(
            "must be an object such as {{\"site\": \"fra\"}}, or text such as \"site=fra,env!=lab\", not {}",
            shown(other)
        ))),
    }
}

/// `"site": "fra"`, `"role": ["edge", "core"]` or `"env": {"not": "lab"}`.
fn term((name, value): (&String, &Value)) -> Result<Term, Invalid> {
    let key: LabelKey = name.parse().map_err(|detail: String| Invalid::new("/labels", detail))?;
    let pointer = format!("/labels/{}", escaped(name));
    let wants = || format!("must be a value, a list of values, or {{\"not\": value}}, not {}", shown(value));
    let one = |value: &Value| value.as_str().ok_or_else(wants)?.parse();
    let term = match value {
        Value::Object(object) => match object.get("not").filter(|_| object.len() == 1) {
            Some(value) => one(value).map(|value| Term::Unequal(key, value)),
            None => Err(wants()),
        },
        Value::Array(values) => values.iter().map(one).collect::<Result<_, _>>().and_then(|values| Term::one_of(key, values)),
        value => one(value).map(|value| Term::Equal(key, value)),
    };
    term.map_err(|detail| Invalid::new(pointer, detail))
}

impl Serialize for Selector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::read(&Value::deserialize(deserializer)?, "").map_err(de::Error::custom)
    }
}
