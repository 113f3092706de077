//! A tool's options as flags, made from their JSON Schema.

use clap::builder::{BoolValueParser, PossibleValuesParser, StringValueParser, TypedValueParser, ValueParser};
use clap::{Arg, ArgAction, ArgMatches};
use probeops_shared::tools::ToolName;
use probeops_shared::tools::option::{Kind, description};
use serde_json::{Map, Value};

/// The flags of a tool's options.
pub(super) fn flags(tool: ToolName) -> Vec<Arg> {
    tool.option_properties().iter().map(|(name, property)| flag(name, property)).collect()
}

/// The options that were given.
pub(super) fn given(tool: ToolName, matches: &ArgMatches) -> Map<String, Value> {
    let properties = tool.option_properties();
    properties.iter().filter_map(|(name, property)| Some((name.clone(), value(name, property, matches)?))).collect()
}

/// The value of an option, if it was given; a list is given one by one.
fn value(name: &str, property: &Value, matches: &ArgMatches) -> Option<Value> {
    let mut values = matches.get_many::<Value>(name)?.cloned();
    if matches!(Kind::of(property), Some(Kind::List(_))) { Some(Value::Array(values.collect())) } else { values.next() }
}

fn flag(name: &str, property: &Value) -> Arg {
    let kind = Kind::of(property).unwrap_or(Kind::Text);
    let arg = Arg::new(name.to_owned()).long(name.replace('_', "-")).help(help(property, &kind)).action(ArgAction::Set);
    typed(arg, kind, property)
}

fn typed(arg: Arg, kind: Kind, property: &Value) -> Arg {
    match kind {
        // `--banner` is enough to say yes; `--banner=false` undoes a default of yes.
        Kind::Flag => {
            let parser = BoolValueParser::new().map(Value::from);
            arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("BOOL").value_parser(parser)
        }
        Kind::Whole { .. } => arg.value_name("NUMBER").allow_negative_numbers(true).value_parser(read(kind)),
        Kind::Number { .. } => arg.value_name(unit(property)).allow_negative_numbers(true).value_parser(read(kind)),
        Kind::Choice(words) => arg.value_name("WORD").value_parser(PossibleValuesParser::new(words).map(Value::from)),
        Kind::Text => arg.value_name("TEXT").value_parser(StringValueParser::new().map(Value::from)),
        Kind::TextOrFile => arg.value_name("TEXT|@FILE").value_parser(ValueParser::from(text_or_file)),
        Kind::List(item) => typed(arg, *item, property).action(ArgAction::Append),
        Kind::Json => arg.value_name("JSON").value_parser(read(kind)),
    }
}

/// What is in the file after an `@`, without its last line break; anything else is the text itself.
fn text_or_file(given: &str) -> Result<Value, String> {
    let Some(file) = given.strip_prefix('@') else { return Ok(given.into()) };
    let text = std::fs::read_to_string(file).map_err(|error| format!("{file} cannot be read: {error}"))?;
    Ok(text.trim_end_matches(['\r', '\n']).into())
}

/// Numbers that are not whole are durations in seconds, by DESIGN of the wire.
fn unit(property: &Value) -> &'static str {
    if description(property).contains("second") { "SECONDS" } else { "NUMBER" }
}

/// What reads as the kind says; what went before its error, clap says itself.
fn read(kind: Kind) -> ValueParser {
    ValueParser::from(move |text: &str| kind.read(text))
}

fn help(property: &Value, kind: &Kind) -> String {
    // In a doc comment a single line break is a space.
    let text = description(property).split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect::<Vec<_>>().join("\n");
    let text = text.trim_end_matches('.');
    let mut notes = Vec::new();
    match kind {
        Kind::Whole { min, max } => notes.push(format!("{min} to {max}")),
        Kind::Number { min, max } => notes.push(format!("{min} to {max}")),
        Kind::List(_) => notes.push("may be given several times".to_owned()),
        Kind::Flag | Kind::Choice(_) | Kind::Text | Kind::TextOrFile | Kind::Json => {}
    }
    match property.get("default") {
        Some(Value::String(word)) if !word.is_empty() => notes.push(format!("default: {word}")),
        Some(value @ (Value::Number(_) | Value::Bool(true))) => notes.push(format!("default: {value}")),
        Some(_) | None => {}
    }
    if notes.is_empty() { text.to_owned() } else { format!("{text} [{}]", notes.join("; ")) }
}

#[cfg(test)]
mod tests {
    use clap::Command;
    use serde_json::json;

    use super::*;

    #[test]
    fn every_option_of_every_tool_is_a_flag_with_its_description() {
        for tool in ToolName::ALL {
            let flags = flags(*tool);
            let properties = tool.option_properties();
            assert_eq!(flags.len(), properties.len());
            for (name, property) in properties {
                let flag = flags.iter().find(|flag| flag.get_id().as_str() == name).unwrap();
                assert_eq!(flag.get_long().unwrap(), name.replace('_', "-"));
                let first_words: Vec<&str> = description(&property).split_whitespace().take(3).collect();
                let help = flag.get_help().unwrap().to_string();
                assert!(help.starts_with(first_words.join(" ").trim_end_matches('.')), "{tool} --{name}: {help}");
                assert!(Kind::of(&property).is_some(), "{tool} --{name} has a schema that makes no flag: {property}");
            }
        }
    }

    #[test]
    fn every_default_is_accepted_by_its_own_flag() {
        for tool in ToolName::ALL {
            for (name, value) in tool.default_parameters() {
                let text = match &value {
                    Value::String(text) => text.clone(),
                    Value::Null | Value::Array(_) => continue,
                    other => other.to_string(),
                };
                let matches =
                    Command::new("t").args(flags(*tool)).try_get_matches_from(["t", &format!("--{}={text}", name.replace('_', "-"))]);
                assert_eq!(given(*tool, &matches.unwrap()).get(&name), Some(&value), "{tool} --{name}");
            }
        }
    }

    #[track_caller]
    fn reads(property: &Value, argument: &str, value: Option<&Value>) {
        let matches = Command::new("t").arg(flag("an_option", property)).try_get_matches_from(["t", argument]);
        assert_eq!(matches.ok().and_then(|matches| matches.get_one::<Value>("an_option").cloned()).as_ref(), value, "{argument}");
    }

    #[test]
    fn a_schema_decides_what_a_flag_accepts() {
        let count = json!({"type": "integer", "minimum": 1, "maximum": 100, "default": 4});
        reads(&count, "--an-option=4", Some(&json!(4)));
        for bad in
            ["--an-option=0", "--an-option=101", "--an-option=1.5", "--an-option=-1", "--an-option=x", "--an-option", "--an_option=4"]
        {
            reads(&count, bad, None);
        }
        let seconds = json!({"type": "number", "minimum": 0.1, "maximum": 30.0});
        reads(&seconds, "--an-option=0.5", Some(&json!(0.5)));
        reads(&seconds, "--an-option=5", Some(&json!(5)));
        reads(&seconds, "--an-option=31", None);
        reads(&seconds, "--an-option=NaN", None);
        let family = json!({"oneOf": [{"type": "string", "const": "any"}, {"type": "string", "enum": ["4", "6"]}]});
        reads(&family, "--an-option=6", Some(&json!("6")));
        reads(&family, "--an-option=5", None);
        let optional = json!({"type": ["integer", "null"], "minimum": 1, "maximum": 255});
        reads(&optional, "--an-option=64", Some(&json!(64)));
        let nullable = json!({"anyOf": [{"type": "integer", "minimum": 1, "maximum": 255}, {"type": "null"}]});
        reads(&nullable, "--an-option=256", None);
        reads(&nullable, "--an-option=255", Some(&json!(255)));
        reads(&json!({"type": "boolean"}), "--an-option", Some(&json!(true)));
        reads(&json!({"type": "boolean"}), "--an-option=false", Some(&json!(false)));
        reads(&json!({"type": ["string", "integer"]}), "--an-option=TYPE65", Some(&json!("TYPE65")));
        reads(&json!({"type": "object"}), "--an-option={\"a\": 1}", Some(&json!({"a": 1})));
        reads(&json!({"type": "object"}), "--an-option=a", None);
    }

    #[test]
    fn a_secret_may_be_in_a_file() {
        let file = std::env::temp_dir().join(format!("probeops-secret-{}", std::process::id()));
        std::fs::write(&file, "user:secret\n").unwrap();
        let secret = json!({"anyOf": [{"type": "string", "writeOnly": true}, {"type": "null"}]});
        reads(&secret, &format!("--an-option=@{}", file.display()), Some(&json!("user:secret")));
        reads(&secret, "--an-option=user:other", Some(&json!("user:other")));
        std::fs::remove_file(&file).unwrap();
        reads(&secret, &format!("--an-option=@{}", file.display()), None);
        reads(&json!({"type": "string"}), "--an-option=@x", Some(&json!("@x")));
    }

    #[test]
    fn a_list_is_given_one_by_one() {
        let given = |property: &Value, arguments: &[&str]| {
            let matches = Command::new("t").arg(flag("an_option", property)).try_get_matches_from([&["t"], arguments].concat()).unwrap();
            value("an_option", property, &matches)
        };
        let words = json!({"type": "array", "items": {"type": "string"}});
        assert_eq!(given(&words, &["--an-option=a,b", "--an-option", "c"]), Some(json!(["a,b", "c"])));
        assert_eq!(given(&words, &[]), None);
        let objects = json!({"type": "array", "items": {"oneOf": [{"type": "object", "properties": {"type": {"const": "a"}}}]}});
        assert_eq!(given(&objects, &["--an-option={\"type\": \"a\"}"]), Some(json!([{"type": "a"}])));
    }
}
