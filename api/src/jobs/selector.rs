//! From where a job is to run.

use std::fmt;
use std::str::FromStr;

use probeops_shared::ids::{NodeId, Region};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Which node or nodes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Selector {
    /// Any one node of a region.
    Region(Region),
    /// This node.
    Node(NodeId),
}

impl FromStr for Selector {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("node", id)) => id.parse().map(Self::Node),
            Some((kind, _)) => Err(format!(
                "`{}:` selects nothing; write a region such as eu-central, or node: and a node's id",
                kind.chars().take(64).collect::<String>()
            )),
            None => text.parse().map(Self::Region),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Region(region) => region.fmt(f),
            Self::Node(node) => write!(f, "node:{node}"),
        }
    }
}

impl Serialize for Selector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Selector {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Selector".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^(node:)?[a-z0-9][a-z0-9-]{0,62}$",
            "description": "A region (any one node of it), or `node:` and a node's id.",
            "examples": ["eu-central", "node:fra-1"],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_is_a_region_or_a_node() {
        assert_eq!("eu-central".parse::<Selector>().unwrap().to_string(), "eu-central");
        assert_eq!("node:fra-1".parse::<Selector>().unwrap(), Selector::Node("fra-1".parse().unwrap()));
        for bad in ["", "eu.central", "*", ">", "eu central", "node:", "node:a.b", "label:x", "eu:all"] {
            assert!(bad.parse::<Selector>().is_err(), "{bad}");
        }
    }
}
