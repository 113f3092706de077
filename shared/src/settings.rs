//! Settings files: TOML, strict, and every error says where.
//!
//! A setting comes from a flag, else its environment variable (both read by clap), else the file, else its default. A program keeps the first
//! three in one structure of options, merges it with `Option::or`, and completes it with defaults.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::invalid::suggestion;

/// The largest settings file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// How the path to a value goes on whose place in the file is kept (`toml::Spanned`).
const SPANNED: &str = ".$__serde_spanned_private_value";
/// What stands in the place of a secret.
const REDACTED: &str = "(redacted)";

/// A settings file that cannot be used.
#[derive(Debug)]
pub enum SettingsError {
    /// It cannot be read.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What it says is not a setting.
    Invalid {
        /// The file.
        path: PathBuf,
        /// On which line, from 1.
        line: usize,
        /// The setting, `a.b` where it is nested; empty when the file is not TOML at all.
        key: String,
        /// What is wrong and what would be right.
        detail: String,
    },
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { path, source } if source.kind() == std::io::ErrorKind::NotFound => {
                write!(f, "there is no settings file {}", path.display())
            }
            Self::Unreadable { path, source } => write!(f, "cannot read the settings file {}: {source}", path.display()),
            Self::Invalid { path, line, key, detail } if key.is_empty() => write!(f, "{} line {line}: {detail}", path.display()),
            Self::Invalid { path, line, key, detail } => write!(f, "{} line {line}: `{key}`: {detail}", path.display()),
        }
    }
}

impl std::error::Error for SettingsError {}

/// Reads a settings file. `T` refuses unknown keys itself (`deny_unknown_fields`).
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, SettingsError> {
    parse(&read(path)?, path)
}

/// The text of a settings file.
pub fn read(path: &Path) -> Result<String, SettingsError> {
    let unreadable = |source| SettingsError::Unreadable { path: path.to_owned(), source };
    let bytes = std::fs::metadata(path).map_err(unreadable)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(unreadable(std::io::Error::other(format!("it has {bytes} bytes, and at most {FILE_BYTES_MAX} are read"))));
    }
    std::fs::read_to_string(path).map_err(unreadable)
}

/// Tells versions of a file apart, without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp(Option<(SystemTime, u64, u64)>);

impl Stamp {
    /// The version there is now; none where there is no such file.
    pub fn of(path: &Path) -> Self {
        let metadata = std::fs::metadata(path).ok();
        Self(metadata.and_then(|metadata| Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))))
    }
}

/// Reads settings from a file where one is given, and all unset where none is.
pub fn load_if_given<T: DeserializeOwned + Default>(path: Option<&Path>) -> Result<T, SettingsError> {
    path.map_or_else(|| Ok(T::default()), load)
}

/// Reads the text of a settings file; `path` is for messages.
pub fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, SettingsError> {
    let invalid = |error: &toml::de::Error, key: String| SettingsError::Invalid {
        path: path.to_owned(),
        line: line_of(text, error.span().map_or(0, |span| span.start)),
        detail: explained(error.message()),
        key,
    };
    let document = toml::Deserializer::parse(text).map_err(|error| invalid(&error, String::new()))?;
    serde_path_to_error::deserialize(document).map_err(|error| {
        // A value whose place in the file is kept is wrapped by the parser.
        let key = error.path().to_string().replace(SPANNED, "");
        invalid(error.inner(), if key == "." { String::new() } else { key })
    })
}

/// Settings as TOML for `--print-config`: whatever is a secret by its name, or stands before the `@` of an address, is left out.
pub fn printed(settings: &impl Serialize) -> Result<String, String> {
    let mut table = Table::try_from(settings).map_err(|error| error.to_string())?;
    redact(&mut table);
    toml::to_string_pretty(&table).map_err(|error| error.to_string())
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// Adds to serde's words about an unknown key the one that was probably meant.
fn explained(message: &str) -> String {
    let message = message.trim().replace('\n', "; ");
    let Some((given, known)) = message.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`')) else { return message };
    let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
    if known.is_empty() {
        return format!("unknown key `{given}`; there are none here");
    }
    format!("unknown key `{given}`; {}the keys are {}", suggestion(given, known.iter().copied()), known.join(", "))
}

fn redact(table: &mut Table) {
    for (key, value) in table.iter_mut() {
        let secret = ["secret", "token", "password", "seed"].iter().any(|word| key.ends_with(word));
        match value {
            Value::String(text) if secret => REDACTED.clone_into(text),
            other => redact_value(other),
        }
    }
}

fn redact_value(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Some((scheme, rest)) = text.split_once("://")
                && let Some((_, host)) = rest.rsplit_once('@')
            {
                *text = format!("{scheme}://{REDACTED}@{host}");
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redact_value),
        Value::Table(table) => redact(table),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Example {
        http: Option<String>,
        slots: Option<u16>,
        servers: Vec<String>,
        webhook_secret: Option<String>,
        secret_file: Option<PathBuf>,
        limits: Nested,
    }

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Nested {
        connections: Option<u32>,
    }

    #[track_caller]
    fn refuses(text: &str, message: &str) {
        let error = parse::<Example>(text, Path::new("p.toml")).unwrap_err();
        assert_eq!(error.to_string(), message);
    }

    #[test]
    fn what_is_wrong_is_named_with_file_line_and_key() {
        refuses(
            "http = \"a\"\nslot = 3\n",
            "p.toml line 2: `slot`: unknown key `slot`; did you mean `slots`? the keys are http, slots, servers, webhook_secret, secret_file, limits",
        );
        refuses("\n\nslots = \"3\"\n", "p.toml line 3: `slots`: invalid type: string \"3\", expected u16");
        refuses("slots = 70000\n", "p.toml line 1: `slots`: invalid value: integer `70000`, expected u16");
        refuses(
            "[limits]\nconnection = 1\n",
            "p.toml line 2: `limits.connection`: unknown key `connection`; did you mean `connections`? the keys are connections",
        );
        let not_toml = parse::<Example>("http = \"a\"\nhttp: b\n", Path::new("p.toml")).unwrap_err().to_string();
        assert!(not_toml.starts_with("p.toml line 2: "), "{not_toml}");
        let twice = parse::<Example>("slots = 1\nslots = 2\n", Path::new("p.toml")).unwrap_err().to_string();
        assert!(twice.starts_with("p.toml line 2: ") && twice.contains("duplicate"), "{twice}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load::<Example>(Path::new("/nowhere/p.toml")).unwrap_err();
        assert_eq!(error.to_string(), "there is no settings file /nowhere/p.toml");
        assert!(load_if_given::<Example>(None).unwrap().http.is_none());
    }

    #[test]
    fn secrets_are_not_printed_and_paths_to_them_are() {
        let settings = parse::<Example>(
            "servers = [\"tls://me:pw@broker:4222\"]\nwebhook_secret = \"abc\"\nsecret_file = \"/run/s\"\n[limits]\nconnections = 3\n",
            Path::new("p.toml"),
        );
        let text = printed(&settings.unwrap()).unwrap();
        assert!(text.contains("tls://(redacted)@broker:4222") && text.contains("webhook_secret = \"(redacted)\""), "{text}");
        assert!(text.contains("secret_file = \"/run/s\"") && text.contains("connections = 3"), "{text}");
        assert!(!text.contains("pw") && !text.contains("abc"), "{text}");
    }
}
