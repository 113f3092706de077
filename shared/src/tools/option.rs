//! What kind of value an option takes, read from its JSON Schema: for whoever gives options as text, one by one.

use serde_json::Value;

use crate::bounded::shown;

/// What kind of value an option takes.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// Yes or no.
    Flag,
    /// A whole number between two others.
    Whole {
        /// The smallest.
        min: u64,
        /// The largest.
        max: u64,
    },
    /// A number between two others.
    Number {
        /// The smallest.
        min: f64,
        /// The largest.
        max: f64,
    },
    /// One of these words.
    Choice(Vec<String>),
    /// Text that the tool itself understands.
    Text,
    /// Text that others should not read (`writeOnly`), or of many lines: better in a file than on a command line or in a URL.
    TextOrFile,
    /// Several of these.
    List(Box<Self>),
    /// What only JSON can say.
    Json,
}

impl Kind {
    /// Reads an option's schema; `None` for a form that no tool of the catalogue uses yet.
    pub fn of(property: &Value) -> Option<Self> {
        let alternatives = ["oneOf", "anyOf"].into_iter().find_map(|key| property.get(key)?.as_array());
        let schemas: Vec<&Value> = alternatives.map_or_else(|| vec![property], |list| list.iter().collect());
        let schemas: Vec<&Value> = schemas.into_iter().filter(|schema| types(schema) != ["null"]).collect();
        let words: Vec<String> = schemas.iter().flat_map(|schema| words(schema)).collect();
        let open = schemas.iter().any(|schema| schema.get("const").is_none() && schema.get("enum").is_none());
        if !words.is_empty() && !open {
            return Some(Self::Choice(words));
        }
        let of_type = |wanted: &str| schemas.iter().find(|schema| types(schema).contains(&wanted));
        if let Some(schema) = of_type("string") {
            // Secrets (`writeOnly`), and what is of many lines.
            let rather = |key: &str| schema.get(key).or_else(|| property.get(key)).is_some();
            return Some(if rather("writeOnly") || rather("contentMediaType") { Self::TextOrFile } else { Self::Text });
        }
        if of_type("boolean").is_some() {
            return Some(Self::Flag);
        }
        if let Some(list) = of_type("array") {
            return Some(Self::List(Box::new(Self::of(list.get("items")?)?)));
        }
        // One of several shapes is told apart by the tool itself.
        if of_type("object").is_some() {
            return Some(Self::Json);
        }
        if let Some(schema) = of_type("integer") {
            let bound = |key: &str| schema.get(key).and_then(Value::as_u64);
            return Some(Self::Whole { min: bound("minimum").unwrap_or(0), max: bound("maximum").unwrap_or(u64::MAX) });
        }
        let schema = of_type("number")?;
        let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
        Some(Self::Number { min: bound("minimum").unwrap_or(0.0), max: bound("maximum").unwrap_or(f64::MAX) })
    }

    /// The value that a text gives; the error says what would be right.
    pub fn read(&self, text: &str) -> Result<Value, String> {
        let wants = |what: String| format!("must be {what}, not {}", shown(&text.into()));
        match self {
            Self::Flag => text.parse::<bool>().map(Value::from).map_err(|_| wants("true or false".to_owned())),
            Self::Whole { min, max } => {
                let number = text.parse().ok().filter(|number| (*min..=*max).contains(number));
                number.map(Value::from).ok_or_else(|| wants(format!("a whole number from {min} to {max}")))
            }
            Self::Number { min, max } => {
                // A whole number stays one, so that the request reads as it was typed.
                let given = text.parse::<u64>().map(Value::from).or_else(|_| text.parse::<f64>().map(Value::from));
                let number = given.ok().filter(|value| value.as_f64().is_some_and(|number| (*min..=*max).contains(&number)));
                number.ok_or_else(|| wants(format!("a number from {min} to {max}")))
            }
            Self::Choice(words) if words.iter().any(|word| word == text) => Ok(text.into()),
            Self::Choice(words) => Err(wants(format!("one of {}", words.join(", ")))),
            Self::Text | Self::TextOrFile => Ok(text.into()),
            Self::List(item) => item.read(text),
            Self::Json => serde_json::from_str(text).map_err(|error| format!("is not JSON: {error}")),
        }
    }
}

fn types(schema: &Value) -> Vec<&str> {
    match schema.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
        Some(_) | None => Vec::new(),
    }
}

fn words(schema: &Value) -> Vec<String> {
    let constant = schema.get("const").into_iter();
    let listed = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
    constant.chain(listed).filter_map(Value::as_str).map(str::to_owned).collect()
}

/// What the schema says of the option.
pub fn description(property: &Value) -> &str {
    property.get("description").and_then(Value::as_str).unwrap_or_default()
}
