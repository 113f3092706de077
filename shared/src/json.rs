//! Strict JSON: a repeated key is an error, and every error has a pointer.

use std::fmt;

use serde::de::{self, DeserializeOwned, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::invalid::{Invalid, suggestion};

/// Parses a JSON document and refuses repeated keys.
pub fn parse(bytes: &[u8]) -> Result<Value, Invalid> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Invalid::new("", "the body is empty; send a JSON object"));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map(|Strict(value)| value);
    let value = value.map_err(|error| {
        let pointer = pointer(error.path());
        match error.inner().classify() {
            serde_json::error::Category::Data => Invalid::new(pointer, without_position(&error.inner().to_string())),
            serde_json::error::Category::Eof => Invalid::new("", format!("the JSON ends too early: {}", error.inner())),
            serde_json::error::Category::Syntax | serde_json::error::Category::Io => {
                Invalid::new("", format!("not JSON: {}", error.inner()))
            }
        }
    })?;
    deserializer.end().map_err(|error| Invalid::new("", format!("not JSON: {error}")))?;
    Ok(value)
}

/// Parses a JSON document that must be an object with no other fields than `known`.
pub fn parse_object(bytes: &[u8], known: &[&str]) -> Result<Map<String, Value>, Invalid> {
    let object = object(parse(bytes)?)?;
    refuse_unknown(&object, "field", known)?;
    Ok(object)
}

/// The value as an object.
pub fn object(value: Value) -> Result<Map<String, Value>, Invalid> {
    match value {
        Value::Object(object) => Ok(object),
        other => Err(Invalid::new("", format!("must be a JSON object, not {}", crate::bounded::shown(&other)))),
    }
}

/// Refuses any key that is not `known`, suggesting the one that was meant.
pub fn refuse_unknown(object: &Map<String, Value>, what: &str, known: &[&str]) -> Result<(), Invalid> {
    let Some(key) = object.keys().find(|key| !known.contains(&key.as_str())) else { return Ok(()) };
    let short: String = key.chars().take(64).collect();
    let choice = if known.is_empty() { format!("there are no {what}s here") } else { format!("the {what}s are {}", known.join(", ")) };
    Err(Invalid::new(
        format!("/{}", escaped(&short)),
        format!("unknown {what} `{short}`; {}{choice}", suggestion(&short, known.iter().copied())),
    ))
}

/// Turns a value into a type, with a pointer to what does not fit.
pub fn typed<T: DeserializeOwned>(value: Value) -> Result<T, Invalid> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let pointer = pointer(error.path());
        Invalid::new(pointer, without_position(&error.into_inner().to_string()))
    })
}

fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let mut pointer = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => pointer.push_str(&format!("/{index}")),
            Segment::Map { key } => pointer.push_str(&format!("/{}", escaped(key))),
            Segment::Enum { variant } => pointer.push_str(&format!("/{}", escaped(variant))),
            Segment::Unknown => {}
        }
    }
    pointer
}

/// Escapes a key for a JSON pointer (RFC 6901, 3).
pub(crate) fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

fn without_position(message: &str) -> String {
    message.rsplit_once(" at line ").map_or(message, |(text, _)| text).to_owned()
}

/// A JSON value in which no key stands twice.
struct Strict(Value);

impl<'de> de::Deserialize<'de> for Strict {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        StrictValue.deserialize(deserializer).map(Self)
    }
}

struct StrictValue;

impl<'de> DeserializeSeed<'de> for StrictValue {
    type Value = Value;
    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for StrictValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(list.into())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if object.contains_key(&key) {
                // Refused as the value, so that the error points at the field and not at what it is in.
                return entries.next_value_seed(Repeated(&key));
            }
            let Strict(value) = entries.next_value()?;
            object.insert(key, value);
        }
        Ok(object.into())
    }
}

/// The value of a field that has one already.
struct Repeated<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Repeated<'_> {
    type Value = Value;
    fn deserialize<D: de::Deserializer<'de>>(self, _: D) -> Result<Value, D::Error> {
        Err(de::Error::custom(format!("field `{}` is given twice", self.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refuses(text: &str, pointer: &str, part: &str) {
        let invalid = parse(text.as_bytes()).unwrap_err();
        assert_eq!(invalid.pointer, pointer, "{invalid}");
        assert!(invalid.detail.contains(part), "{invalid}");
    }

    #[test]
    fn what_is_not_one_json_document_is_refused() {
        refuses("", "", "empty");
        refuses("{\"a\":", "", "ends too early");
        refuses("{} {}", "", "not JSON");
        refuses("ping", "", "not JSON");
    }

    #[test]
    fn a_repeated_key_is_refused_where_it_stands() {
        refuses("{\"a\":1,\"a\":2}", "/a", "`a` is given twice");
        refuses("{\"a\":[{\"b\":1,\"b\":2}]}", "/a/0/b", "`b` is given twice");
    }

    #[test]
    fn an_unknown_key_is_named_with_what_was_meant() {
        let object = object(parse(b"{\"cuont\":1}").unwrap()).unwrap();
        let invalid = refuse_unknown(&object, "option", &["count", "ttl"]).unwrap_err();
        assert_eq!(invalid.to_string(), "/cuont: unknown option `cuont`; did you mean `count`? the options are count, ttl");
    }
}
