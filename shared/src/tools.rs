//! The catalogue of tools.
//!
//! A tool is one type: its options. The type carries everything that is known of the tool without running it, and all else is derived from
//! it: subjects, permissions, validation and its messages, JSON Schema, OpenAPI, command line, budgets, documentation.
//! To add one, write its file below `tools/`, add its row to the catalogue, and write its executor in the agent.

pub(crate) mod choice;
pub mod dns;
pub mod echo;
pub mod http;
mod list;
pub mod mtr;
pub mod network;
pub mod option;
pub mod ping;
pub mod pmtu;
pub mod tcp;
pub mod tls;
pub mod trace;
pub mod traceroute;
pub mod whois;

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::invalid::{Invalid, suggestion};
use crate::json;
use crate::text::as_text;

/// A kind of diagnostic; implemented by the type of its options (`parameters` of a job).
pub trait Tool: Serialize + DeserializeOwned + JsonSchema + Default + Clone + fmt::Debug + Send + 'static {
    /// One line: catalogue, `--help`, README.
    const SUMMARY: &'static str;
    /// Which slots of a node it takes.
    const CLASS: Class;
    /// A target that shows what may be asked, for examples.
    const EXAMPLE_TARGET: &'static str;
    /// Whom it is pointed at.
    type Target: Clone + fmt::Debug + fmt::Display + FromStr<Err = String> + JsonSchema + Send + 'static;
    /// What it finds.
    type Report: Serialize + DeserializeOwned + JsonSchema + fmt::Debug + Send + 'static;
    /// What it tells while it goes on; [`Nothing`] where it tells nothing.
    type Progress: Serialize + DeserializeOwned + JsonSchema + fmt::Debug;

    /// What no single option can say of itself: combinations.
    fn check(&self, _target: &Self::Target) -> Result<(), Invalid> {
        Ok(())
    }

    /// Takes out of its options, as they are shown again, what is secret.
    fn conceal(_parameters: &mut Map<String, Value>) {}

    /// The longest a run may take.
    fn budget(&self) -> Duration;

    /// What the tool that everybody knows would print.
    fn output(&self, target: &Self::Target, report: &Self::Report) -> String;

    /// What that tool would print at this moment; nothing, where it prints only at its end.
    fn progress_output(&self, _target: &Self::Target, _progress: &Self::Progress) -> String {
        String::new()
    }

    /// Whether a person would call what was found bad, so that a script should stop; most tools measure and do not judge.
    fn is_bad(&self, _report: &Self::Report) -> bool {
        false
    }
}

/// What is never told.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
pub enum Nothing {}

/// Which slots of a node a tool takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Asks nothing of the network.
    Light,
    /// Sends packets.
    Probe,
}

impl Class {
    /// All classes.
    pub const ALL: [Self; 2] = [Self::Light, Self::Probe];

    /// How many runs of this class a node takes at once, unless its owner says otherwise.
    pub fn default_slots(self) -> usize {
        match self {
            Self::Light => 256,
            Self::Probe => 32,
        }
    }

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Light => "light",
            Self::Probe => "probe",
        }
    }
}

/// Makes what is mechanical: three enums and the matches that delegate to the options' type.
macro_rules! catalogue {
    ($($name:literal => $Variant:ident($Options:ty)),+ $(,)?) => {
        /// The name of a tool.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[expect(missing_docs, reason = "each variant is its tool, documented on the options' type")]
        pub enum ToolName { $($Variant),+ }

        impl ToolName {
            /// All tools, in catalogue order.
            pub const ALL: &'static [Self] = &[$(Self::$Variant),+];

            /// The name on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$Variant => $name),+ }
            }

            /// One line that says what it does.
            pub fn summary(self) -> &'static str {
                match self { $(Self::$Variant => <$Options as Tool>::SUMMARY),+ }
            }

            /// Which slots it takes.
            pub fn class(self) -> Class {
                match self { $(Self::$Variant => <$Options as Tool>::CLASS),+ }
            }

            /// A target for examples.
            pub fn example_target(self) -> &'static str {
                match self { $(Self::$Variant => <$Options as Tool>::EXAMPLE_TARGET),+ }
            }

            /// The JSON Schema (2020-12) of its options.
            pub fn options_schema(self, schemas: &mut SchemaGenerator) -> Schema {
                match self { $(Self::$Variant => schemas.subschema_for::<$Options>()),+ }
            }

            /// The JSON Schema of its target.
            pub fn target_schema(self, schemas: &mut SchemaGenerator) -> Schema {
                match self { $(Self::$Variant => schemas.subschema_for::<<$Options as Tool>::Target>()),+ }
            }

            /// The JSON Schema of its report.
            pub fn report_schema(self, schemas: &mut SchemaGenerator) -> Schema {
                match self { $(Self::$Variant => schemas.subschema_for::<<$Options as Tool>::Report>()),+ }
            }

            /// The JSON Schema of what it tells while it goes on.
            pub fn progress_schema(self, schemas: &mut SchemaGenerator) -> Schema {
                match self { $(Self::$Variant => schemas.subschema_for::<<$Options as Tool>::Progress>()),+ }
            }

            /// Its options with their defaults.
            pub fn default_parameters(self) -> Map<String, Value> {
                match self { $(Self::$Variant => as_object(&<$Options>::default())),+ }
            }
        }

        /// What is to be run: a tool, its target and its options, all checked.
        #[derive(Clone, Debug)]
        #[expect(missing_docs, reason = "each variant is its tool, documented on the options' type")]
        #[expect(clippy::large_enum_variant, reason = "there is one for a run, and it is moved a few times")]
        pub enum Spec { $($Variant { target: <$Options as Tool>::Target, options: $Options }),+ }

        impl Spec {
            /// Checks a tool's target and parameters. Pointers in errors start at the job message.
            pub fn parse(tool: ToolName, target: &str, parameters: Map<String, Value>) -> Result<Self, Invalid> {
                let names: Vec<&str> = tool.option_names().iter().map(String::as_str).collect();
                json::refuse_unknown(&parameters, "option", &names)
                    .map_err(|invalid| Invalid { detail: format!("{} (tool {tool})", invalid.detail), ..invalid.under("/parameters") })?;
                match tool {
                    $(ToolName::$Variant => {
                        let target = target.parse::<<$Options as Tool>::Target>().map_err(|detail| Invalid::new("/target", detail))?;
                        let options: $Options = json::typed(Value::Object(parameters)).map_err(|invalid| invalid.under("/parameters"))?;
                        options.check(&target)?;
                        Ok(Self::$Variant { target, options })
                    })+
                }
            }

            /// Which tool.
            pub fn tool(&self) -> ToolName {
                match self { $(Self::$Variant { .. } => ToolName::$Variant),+ }
            }

            /// The target in its normal form.
            pub fn target(&self) -> String {
                match self { $(Self::$Variant { target, .. } => target.to_string()),+ }
            }

            /// The options, all of them, defaults included.
            pub fn parameters(&self) -> Map<String, Value> {
                match self { $(Self::$Variant { options, .. } => as_object(options)),+ }
            }

            /// The same without what is secret, for whoever looks at the job.
            pub fn shown_parameters(&self) -> Map<String, Value> {
                let mut parameters = self.parameters();
                match self { $(Self::$Variant { .. } => <$Options as Tool>::conceal(&mut parameters)),+ }
                parameters
            }

            /// The longest a run may take.
            pub fn budget(&self) -> Duration {
                match self { $(Self::$Variant { options, .. } => options.budget()),+ }
            }

            /// Whether a person would call this report of it bad; an error when the report cannot be read.
            pub fn is_bad(&self, report: &Value) -> Result<bool, Invalid> {
                match self { $(Self::$Variant { options, .. } => Ok(<$Options as Tool>::is_bad(options, &json::typed(report.clone())?))),+ }
            }
        }
    };
}

catalogue! {
    "echo" => Echo(echo::Echo),
    "ping" => Ping(ping::Ping),
    "traceroute" => Traceroute(traceroute::Traceroute),
    "mtr" => Mtr(mtr::Mtr),
    "dns" => Dns(dns::Dns),
    "tcp" => Tcp(tcp::Tcp),
    "tls" => Tls(tls::Tls),
    "http" => Http(http::Http),
    "pmtu" => Pmtu(pmtu::Pmtu),
    "whois" => Whois(whois::Whois),
}

impl ToolName {
    /// The names of its options.
    pub fn option_names(self) -> &'static [String] {
        static NAMES: OnceLock<Vec<Vec<String>>> = OnceLock::new();
        let all = NAMES.get_or_init(|| Self::ALL.iter().map(|tool| tool.option_properties().keys().cloned().collect()).collect());
        Self::ALL.iter().position(|tool| *tool == self).and_then(|index| all.get(index)).map_or(&[], Vec::as_slice)
    }

    /// The properties of its options' schema, by name, with nothing left to look up elsewhere.
    pub fn option_properties(self) -> Map<String, Value> {
        let settings = schemars::generate::SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
        let schema = self.options_schema(&mut settings.into_generator());
        schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default()
    }

    fn list() -> String {
        Self::ALL.iter().map(|tool| tool.as_str()).collect::<Vec<_>>().join(", ")
    }
}

fn as_object(options: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(options) {
        Ok(Value::Object(object)) => object,
        Ok(_) | Err(_) => Map::new(),
    }
}

impl fmt::Display for ToolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ToolName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.iter().copied().find(|tool| tool.as_str() == text).ok_or_else(|| {
            let short: String = text.chars().take(64).collect();
            format!(
                "unknown tool `{short}`; {}the tools are {}",
                suggestion(&short, Self::ALL.iter().map(|tool| tool.as_str())),
                Self::list()
            )
        })
    }
}

as_text!(ToolName, {"type": "string", "enum": Self::ALL});

#[cfg(test)]
mod tests;
