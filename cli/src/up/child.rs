//! A program of ours, run as a process of its own.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use probeops_nats::process::exit::REVOKED;
use tokio::process::{Child as Process, ChildStdin, Command};

use crate::exit::Failed;

/// How many bytes at the end of a log are searched for the reason why its program has died.
const TAIL_BYTES: u64 = 16 * 1024;
/// How much of a reason is shown.
const REASON_CHARS_MAX: usize = 400;
/// A log that has grown to this many bytes is put aside at the next start; one old log is kept.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Variables that speak to `up` or to the client, not to the programs that `up` starts.
const VARIABLES_OF_OURS: [&str; 11] = [
    "PROBEOPS_TOKEN",
    "PROBEOPS_TOKEN_FILE",
    "PROBEOPS_URL",
    "PROBEOPS_CONFIG",
    "PROBEOPS_DATA",
    "PROBEOPS_HTTP",
    "PROBEOPS_STATE",
    "PROBEOPS_ENROLL",
    "PROBEOPS_ENROLL_CA",
    "PROBEOPS_ENROLL_TOKEN_FILE",
    "PROBEOPS_NODE",
];

/// A running program. Dropping it ends the program.
#[derive(Debug)]
pub(super) struct Child {
    name: String,
    process: Process,
    /// Its end is the program's word to stop. Kept apart, because waiting for a process closes the end that it holds itself.
    _lifeline: Option<ChildStdin>,
    log: PathBuf,
    /// How long its log was before, in bytes.
    log_start: u64,
}

impl Child {
    /// Starts this very executable as another of its programs; `arguments` begin with the subcommand.
    pub(super) fn start(name: &str, arguments: &[OsString], log_dir: &Path) -> Result<Self, Failed> {
        let log = log_dir.join(format!("{name}.log"));
        let failed = |what: &str, error: std::io::Error| Failed::work(format!("cannot {what}: {error}"));
        let output = open_log(&log).map_err(|error| failed(&format!("write the log {}", log.display()), error))?;
        let log_start = output.metadata().map_err(|error| failed("look at a log", error))?.len();
        let executable = std::env::current_exe().map_err(|error| failed("find this program's own executable", error))?;
        let mut command = Command::new(executable);
        for variable in VARIABLES_OF_OURS {
            command.env_remove(variable);
        }
        let mut process = command
            .args(arguments)
            .arg("--stop-with-stdin")
            .stdin(Stdio::piped())
            .stdout(Stdio::from(output.try_clone().map_err(|error| failed("share a log", error))?))
            .stderr(Stdio::from(output))
            // Ctrl-C in a terminal goes to its whole group; the order in which things stop is ours to choose.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(&format!("start {name}"), error))?;
        let lifeline = process.stdin.take();
        Ok(Self { name: name.to_owned(), process, _lifeline: lifeline, log, log_start })
    }

    /// What it is called.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Waits until it ends.
    pub(super) async fn ended(&mut self) -> Ended {
        let status = self.process.wait().await;
        let code = status.as_ref().ok().and_then(ExitStatus::code);
        let reason = reason(&self.log, self.log_start).unwrap_or_else(|| "it did not say why".to_owned());
        let text = format!("{} ended by itself ({}): {reason} (its log is {})", self.name, shown(status), self.log.display());
        Ended { name: self.name.clone(), code, text }
    }

    /// Tells it to stop, and ends it if it has not within `patience`.
    pub(super) async fn stop(mut self, patience: Duration) {
        if let Some(pid) = self.process.id().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if tokio::time::timeout(patience, self.process.wait()).await.is_err() {
            tracing::warn!("{} did not stop within {} s and is killed", self.name, patience.as_secs());
            drop(self.process.kill().await);
        }
    }
}

/// How a program ended that nobody had told to.
#[derive(Clone, Debug)]
pub(super) struct Ended {
    name: String,
    code: Option<i32>,
    text: String,
}

impl Ended {
    /// The end of the broker.
    pub(super) fn broker(error: &anyhow::Error) -> Self {
        Self { name: "broker".to_owned(), code: None, text: format!("{error:#}") }
    }

    /// What is called so has ended.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether it ended because the broker does not accept its credential any more.
    pub(super) fn revoked(&self) -> bool {
        self.code == Some(i32::from(REVOKED))
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

fn shown(status: std::io::Result<ExitStatus>) -> String {
    status.map_or_else(|error| format!("its end could not be seen: {error}"), |status| status.to_string())
}

fn open_log(log: &Path) -> std::io::Result<File> {
    if std::fs::metadata(log).is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX) {
        std::fs::rename(log, log.with_extension("log.old"))?;
    }
    File::options().create(true).append(true).open(log)
}

/// The last complaint in a log from `start` on, as one line.
fn reason(log: &Path, start: u64) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let bytes = file.metadata().ok()?.len();
    let from = start.max(bytes.saturating_sub(TAIL_BYTES));
    file.seek(SeekFrom::Start(from)).ok()?;
    let mut text = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    // The first line may have lost its beginning.
    let lines = text.lines().skip(usize::from(from > start));
    let complaint = lines.collect::<Vec<_>>().into_iter().rev().find_map(complaint)?;
    Some(probeops_shared::text::plain(&complaint).chars().take(REASON_CHARS_MAX).collect())
}

/// What a line complains of: all that is not a record of the log, and of those the errors.
fn complaint(line: &str) -> Option<String> {
    match serde_json::from_str::<serde_json::Value>(line) {
        Ok(record) if record["level"] == "ERROR" => record["message"].as_str().map(str::to_owned),
        Ok(_) => None,
        Err(_) => Some(line.trim().to_owned()).filter(|line| !line.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestDir;

    #[test]
    fn the_reason_of_an_end_is_the_last_complaint_in_one_harmless_line() {
        let dir = TestDir::new();
        let log = dir.path().join("a.log");
        let good = "{\"level\":\"INFO\",\"message\":\"ready\"}\n".repeat(1000);
        let before = format!("an old complaint\n{good}");
        let start = u64::try_from(before.len()).unwrap();
        let found = |after: &str| {
            std::fs::write(&log, format!("{before}{after}")).unwrap();
            reason(&log, start)
        };
        assert_eq!(found(""), None);
        assert_eq!(found(&good), None, "not even of a line that is cut");
        assert_eq!(
            found("{\"level\":\"ERROR\",\"message\":\"no room\"}\n{\"level\":\"INFO\",\"message\":\"x\"}\n").as_deref(),
            Some("no room")
        );
        let red = found(&format!("{good}probeops-agent: \u{1b}[31mred\n\n"));
        assert_eq!(red.as_deref(), Some("probeops-agent: \\u{1b}[31mred"));
    }

    #[test]
    fn a_large_log_is_put_aside_once() {
        let dir = TestDir::new();
        let log = dir.path().join("a.log");
        File::create(&log).unwrap().set_len(LOG_BYTES_MAX + 1).unwrap();
        assert_eq!(open_log(&log).unwrap().metadata().unwrap().len(), 0);
        assert_eq!(std::fs::metadata(dir.path().join("a.log.old")).unwrap().len(), LOG_BYTES_MAX + 1);
    }
}
