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

/// Things of several types, each of which says its `type`.
pub(crate) trait Typed: DeserializeOwned {
    /// The types there are.
    const TYPES: &'static [&'static str];
}

/// One of them as it is written in a job; what does not say its type is told which there are.
pub(crate) struct Written<T>(pub(crate) T);

impl<'de, T: Typed> Deserialize<'de> for Written<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        if value.get("type").is_none() {
            let wanted = T::TYPES.join("\", \"");
            let given = if value.is_object() { "one without".to_owned() } else { shown(&value) };
            return Err(de::Error::custom(format!("must be an object with a `type`, one of \"{wanted}\", not {given}")));
        }
        serde_json::from_value(value).map(Self).map_err(de::Error::custom)
    }
}
