//! What is said to a server and what it has to answer, one after the other.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

use super::dialogue::{Bytes, Pattern};
use crate::tools::list;

/// How many exchanges may follow the first.
const THEN_MAX: usize = 10;

/// One thing to say, and what has to be answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub struct Exchange {
    /// What to send; `${1}` to `${9}` stand for what the groups of the last `expect_regex` caught.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub send: Option<Bytes>,
    /// What the server must say then; when nothing is sent, behind what was expected before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expect: Option<Bytes>,
    /// The same as a regular expression.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expect_regex: Option<Pattern>,
    /// Whether to go over to TLS then.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub starttls: bool,
}

impl Exchange {
    /// Whether a certain answer is wanted.
    pub fn expects(&self) -> bool {
        self.expect.is_some() || self.expect_regex.is_some()
    }

    /// Whether an answer is waited for.
    pub fn waits(&self) -> bool {
        self.send.is_some() || self.expects()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        !self.waits() && !self.starttls
    }
}

/// A few exchanges.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct Exchanges(#[schemars(length(max = 10))] Vec<Exchange>);

impl Exchanges {
    /// The exchanges.
    pub fn as_slice(&self) -> &[Exchange] {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Exchanges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let list = list::at_most::<_, Exchange>(deserializer, THEN_MAX, "exchanges")?;
        match list.iter().position(|exchange| exchange.is_empty() || (exchange.expect.is_some() && exchange.expect_regex.is_some())) {
            Some(wrong) => Err(de::Error::custom(format!(
                "must each have a `send`, an `expect` or `expect_regex` (one of them) or `starttls`, and number {} has not",
                wrong + 1
            ))),
            None => Ok(Self(list)),
        }
    }
}
