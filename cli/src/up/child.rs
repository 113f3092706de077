//! A program of ours, run as a process of its own.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child as Process, ChildStdin, Command};

use crate::exit::Failed;

/// How many bytes at the end of a log are looked at for its last lines.
const TAIL_BYTES: u64 = 4096;
/// How many lines of a log are shown when its program has died.
const TAIL_LINES: usize = 8;
/// A log that has grown to this many bytes is put aside at the next start; one old log is kept.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Variables that speak to `up` or to the client, not to the programs that `up` starts.
const VARIABLES_OF_OURS: [&str; 6] =
    ["PROBEOPS_TOKEN", "PROBEOPS_TOKEN_FILE", "PROBEOPS_URL", "PROBEOPS_CONFIG", "PROBEOPS_DATA", "PROBEOPS_HTTP"];

/// A running program. Dropping it ends the program.
#[derive(Debug)]
pub(super) struct Child {
    name: String,
    process: Process,
    /// Its end is the program's word to stop. Kept apart, because waiting for a process closes the end that it holds itself.
    _lifeline: Option<ChildStdin>,
    log: PathBuf,
}

impl Child {
    /// Starts this very executable as another of its programs; `arguments` begin with the subcommand.
    pub(super) fn start(name: &str, arguments: &[OsString], log_dir: &Path) -> Result<Self, Failed> {
        let log = log_dir.join(format!("{name}.log"));
        let failed = |what: &str, error: std::io::Error| Failed::work(format!("cannot {what}: {error}"));
        let output = open_log(&log).map_err(|error| failed(&format!("write the log {}", log.display()), error))?;
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
        Ok(Self { name: name.to_owned(), process, _lifeline: lifeline, log })
    }

    /// Waits until it ends.
    pub(super) async fn ended(&mut self) -> Ended {
        let status = self.process.wait().await;
        Ended { name: self.name.clone(), status: shown(status), log: self.log.clone() }
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
    /// What it is called.
    pub name: String,
    status: String,
    log: PathBuf,
}

impl Ended {
    /// The end of its log.
    pub(super) fn last_lines(&self) -> String {
        tail(&self.log).unwrap_or_default()
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ended by itself ({}); the end of {}:", self.name, self.status, self.log.display())?;
        self.last_lines().lines().try_for_each(|line| write!(f, "\n  {line}"))
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

fn tail(log: &Path) -> std::io::Result<String> {
    let mut file = File::open(log)?;
    let bytes = file.metadata()?.len();
    file.seek(SeekFrom::Start(bytes.saturating_sub(TAIL_BYTES)))?;
    let mut text = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut text)?;
    let text = crate::terminal::plain(&String::from_utf8_lossy(&text));
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestDir;

    #[test]
    fn the_end_of_a_log_is_a_few_lines_and_harmless() {
        let dir = TestDir::new();
        let log = dir.path().join("a.log");
        std::fs::write(&log, "line\n".repeat(5000) + "\u{1b}[31mred\n").unwrap();
        let tail = tail(&log).unwrap();
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.ends_with("line\n\\u{1b}[31mred"), "{tail}");
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
