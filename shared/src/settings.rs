//! Settings files: TOML, strict, and every error says where.
//!
//! A setting comes from a flag, else its environment variable (both read by clap), else the file, else its default. A program keeps the first
//! three in one structure of options, merges it with `Option::or`, and completes it with defaults.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
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

/// Tells versions of a file apart, by what is in it: times are as coarse as the clock of a file system, survive copies, and say nothing of a
/// link on the way that leads elsewhere now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp(Option<[u8; 32]>);

impl Stamp {
    /// The version there is now; none where there is no file, or none that can be read. Beyond what is read of a settings file nothing counts.
    pub fn of(path: &Path) -> Self {
        let is_file = std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
        let mut bytes = Vec::new();
        let read = File::open(path).ok().filter(|_| is_file).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).ok());
        read.map_or_else(Self::default, |_| Self::of_bytes(&bytes))
    }

    /// The version that has been read.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self(Some(Sha256::digest(bytes).into()))
    }

    /// The SHA-256 of it, in hexadecimal digits.
    pub fn hex(&self) -> Option<String> {
        self.0.map(|digest| HEXLOWER.encode(&digest))
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
    fn a_version_of_a_file_is_what_is_in_it() {
        let folder = std::env::temp_dir().join(format!("probeops-stamps-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("one")).unwrap();
        std::fs::create_dir_all(folder.join("two")).unwrap();
        let file = folder.join("p.toml");
        let stamp = || Stamp::of(&file);
        assert_eq!((stamp(), stamp().hex()), (Stamp::default(), None), "there is none");
        std::fs::write(&file, "a = 1\n").unwrap();
        let first = stamp();
        assert_eq!(first, Stamp::of_bytes(b"a = 1\n"));
        assert!(first.hex().is_some_and(|hex| hex.len() == 64));
        // As long, and as old.
        let modified = std::fs::metadata(&file).unwrap().modified().unwrap();
        std::fs::write(&file, "a = 2\n").unwrap();
        File::options().write(true).open(&file).unwrap().set_modified(modified).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().modified().unwrap(), modified);
        let second = stamp();
        assert_ne!(second, first);
        // Another one in its place.
        std::fs::write(folder.join("new"), "a = 1\n").unwrap();
        std::fs::rename(folder.join("new"), &file).unwrap();
        assert_eq!(stamp(), first, "and back");
        // A folder on the way is a link that leads elsewhere now.
        for (folder_of_it, text) in [("one", "a = 3\n"), ("two", "a = 4\n")] {
            std::fs::write(folder.join(folder_of_it).join("p.toml"), text).unwrap();
        }
        std::fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("one", folder.join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/p.toml", &file).unwrap();
        let third = stamp();
        std::os::unix::fs::symlink("two", folder.join("..next")).unwrap();
        std::fs::rename(folder.join("..next"), folder.join("..data")).unwrap();
        assert_eq!((third, stamp()), (Stamp::of_bytes(b"a = 3\n"), Stamp::of_bytes(b"a = 4\n")));
        assert_eq!(Stamp::of(&folder), Stamp::default(), "a folder is no file");
        std::fs::remove_dir_all(&folder).unwrap();
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
