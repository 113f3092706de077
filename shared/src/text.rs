//! Values that are written as text, and text that is shown.

/// Text from elsewhere without anything that a terminal would obey.
pub fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' => plain.push(character),
            control if control.is_control() => plain.extend(control.escape_unicode()),
            other => plain.push(other),
        }
    }
    plain
}

/// Makes a type that can be parsed and shown a string on the wire, with one message for whatever is none.
macro_rules! as_text {
    ($name:ident, $schema:tt) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                match serde_json::Value::deserialize(deserializer)? {
                    serde_json::Value::String(text) => text.parse().map_err(serde::de::Error::custom),
                    other => Err(serde::de::Error::custom(format!("must be a string, not {}", crate::bounded::shown(&other)))),
                }
            }
        }

        $crate::text::inline_schema!($name, $schema);
    };
}
pub(crate) use as_text;

/// Gives a type a schema that stands wherever it is used.
macro_rules! inline_schema {
    ($name:ident, $schema:tt) => {
        impl schemars::JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!($schema)
            }
        }
    };
}
pub(crate) use inline_schema;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_shown_steers_the_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\n\tc"), "a\\u{1b}[2Jb\n\tc");
    }
}
