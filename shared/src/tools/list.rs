//! Lists as they are written in a job: of at most so many things.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

use crate::bounded::shown;

/// A list of at most `max` things, which are called `what`.
pub(crate) fn at_most<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D, max: usize, what: &str) -> Result<Vec<T>, D::Error> {
    let list = Vec::<T>::deserialize(deserializer)?;
    if list.len() > max {
        return Err(de::Error::custom(format!("must be at most {max} {what}, not {}", list.len())));
    }
    Ok(list)
}

/// The same of things that say their `type`; what does not is told which types there are.
pub(crate) fn at_most_typed<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    deserializer: D,
    max: usize,
    what: &str,
    types: &[&str],
) -> Result<Vec<T>, D::Error> {
    let read = |value: Value| {
        if value.get("type").is_none() {
            let given = if value.is_object() { "one without".to_owned() } else { shown(&value) };
            let wanted = types.join("\", \"");
            return Err(de::Error::custom(format!("must be an object with a `type`, one of \"{wanted}\", not {given}")));
        }
        serde_json::from_value(value).map_err(de::Error::custom)
    };
    at_most(deserializer, max, what)?.into_iter().map(read).collect()
}
