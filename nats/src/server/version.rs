//! Versions of nats-server.

use std::fmt;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

/// The oldest that is used: earlier ones carry published advisories and know no cron schedules.
pub const FLOOR: Version = Version { major: 2, minor: 14, patch: 3 };
/// The one that is fetched.
pub const PINNED: Version = Version { major: 2, minor: 15, patch: 1 };

/// How long a program may take to say its version.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How much of what it says is read, in bytes.
const ANSWER_BYTES_MAX: u64 = 4096;
/// How often a running program is looked at.
const POLL: Duration = Duration::from_millis(10);

/// A released version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl FromStr for Version {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.strip_prefix('v').unwrap_or(text).split(['-', '+']).next().unwrap_or_default();
        let parsed: Option<Vec<u32>> = numbers.split('.').map(|part| part.parse().ok()).collect();
        match parsed.as_deref() {
            Some([major, minor, patch]) => Ok(Self { major: *major, minor: *minor, patch: *patch }),
            Some(_) | None => Err(format!("`{}` is not a version", text.escape_debug())),
        }
    }
}

/// Reads a version and refuses one that is too old; `whose` begins the message.
pub fn require(text: &str, whose: &str) -> Result<Version> {
    let version: Version = text.parse().map_err(|detail| anyhow!("{whose} is of an unknown version: {detail}"))?;
    if version < FLOOR {
        bail!("{whose} is nats-server {version}, and {FLOOR} or later is needed");
    }
    Ok(version)
}

/// Asks a program for its version and refuses what is not a nats-server, or is too old.
pub fn of_program(path: &Path) -> Result<Version> {
    let shown = path.display();
    let text = asked(path)?;
    match text.trim().strip_prefix("nats-server: ") {
        Some(version) => require(version, &shown.to_string()),
        None => {
            bail!("{shown} is not nats-server: asked for its version it said `{}`", text.lines().next().unwrap_or_default().escape_debug())
        }
    }
}

fn asked(path: &Path) -> Result<String> {
    let shown = path.display();
    let deadline = Instant::now() + ANSWER_MAX;
    let mut child = loop {
        match Command::new(path).arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn() {
            Ok(child) => break child,
            // Another thread started a program while this one was being written, and that has it open for another moment.
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy && Instant::now() < deadline => std::thread::sleep(POLL),
            Err(error) => bail!("{shown} cannot be run: {error}"),
        }
    };
    while child.try_wait().with_context(|| format!("{shown} cannot be waited for"))?.is_none() {
        if Instant::now() >= deadline {
            child.kill().and_then(|()| child.wait()).with_context(|| format!("{shown} cannot be stopped"))?;
            bail!("{shown} is not nats-server: asked for its version it said nothing for {} s", ANSWER_MAX.as_secs());
        }
        std::thread::sleep(POLL);
    }
    let mut said = Vec::new();
    let answer = child.stdout.take().with_context(|| format!("{shown} said nothing"))?;
    answer.take(ANSWER_BYTES_MAX).read_to_end(&mut said).with_context(|| format!("cannot read what {shown} said"))?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_and_old_ones_refused() {
        for (text, right) in [
            ("2.14.3", true),
            ("v2.15.1", true),
            ("2.15.0-RC.1", true),
            ("2.14.2", false),
            ("2.9.10", false),
            ("x", false),
            ("2.15", false),
        ] {
            assert_eq!(require(text, "x").is_ok(), right, "{text}");
        }
        assert_eq!(
            require("v2.9.10", "/usr/sbin/nats-server").unwrap_err().to_string(),
            "/usr/sbin/nats-server is nats-server 2.9.10, and 2.14.3 or later is needed"
        );
    }

    #[test]
    fn another_program_is_not_taken_for_nats_server() {
        let refused = of_program(Path::new("/bin/sh")).unwrap_err().to_string();
        assert!(refused.starts_with("/bin/sh is not nats-server: asked for its version it said"), "{refused}");
        assert!(of_program(Path::new("/nonexistent")).unwrap_err().to_string().starts_with("/nonexistent cannot be run: "));
    }
}
