//! What is wrong with an input, and where.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One thing wrong with an input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Invalid {
    /// Where: a JSON pointer (RFC 6901) into the body, `""` for the whole of it.
    pub pointer: String,
    /// What is wrong and what would be right.
    pub detail: String,
}

impl Invalid {
    /// Something wrong at `pointer`.
    pub fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), detail: detail.into() }
    }

    /// The same below `prefix`.
    #[must_use]
    pub fn under(mut self, prefix: &str) -> Self {
        self.pointer.insert_str(0, prefix);
        self
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pointer.as_str() {
            "" => f.write_str(&self.detail),
            pointer => write!(f, "{pointer}: {}", self.detail),
        }
    }
}

impl std::error::Error for Invalid {}

/// "did you mean `count`? " when one of `known` is close to `given`, else nothing.
pub fn suggestion<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let closest = known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(given, name), name))
        .filter(|(distance, name)| *distance <= 2.max(name.len() / 3) || (given.len() >= 3 && name.starts_with(given)))
        .min();
    closest.map_or_else(String::new, |(_, name)| format!("did you mean `{name}`? "))
}
