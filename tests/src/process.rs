//! A child process with a log, ended by its own id and never by name.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Only a hang takes this long.
pub(crate) const HANG: Duration = Duration::from_secs(60);
/// How often to look for what is waited for.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(25);

/// A process of ours.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it; what it prints goes to `<folder>/<name>.log`.
    pub fn start(name: &str, folder: &Path, command: Command) -> Self {
        Self::start_reading(name, folder, command, Stdio::null())
    }

    /// The same with something to read.
    pub(crate) fn start_reading(name: &str, folder: &Path, mut command: Command, input: Stdio) -> Self {
        let log = folder.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).expect("a log file");
        command.stdin(input).stdout(file.try_clone().expect("a log file")).stderr(file);
        let child = command.spawn().unwrap_or_else(|error| panic!("{name} cannot be started: {error} ({command:?})"));
        Self { name: name.to_owned(), child, log }
    }

    /// What it has printed.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).expect("a process id");
        kill(Pid::from_raw(id), signal).unwrap_or_else(|error| panic!("{signal} to {}: {error}", self.name));
    }

    /// Waits until it ends.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                return status;
            }
            assert!(started.elapsed() < HANG, "{} does not end; its log:\n{}", self.name, self.log());
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until its log has `words` in it.
    pub(crate) fn wait_for_log(&mut self, words: &str) {
        let started = Instant::now();
        while !self.log().contains(words) {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                assert!(self.log().contains(words), "{} ended with {status} before it said `{words}`:\n{}", self.name, self.log());
                return;
            }
            assert!(started.elapsed() < HANG, "{} never said `{words}`:\n{}", self.name, self.log());
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already, and it may be stopped: both signals are needed for the second.
        if self.child.try_wait().ok().flatten().is_none() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(15).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            eprintln_log(&self.name, &tail.join("\n"));
        }
    }
}

#[expect(clippy::print_stderr, reason = "a failed test shows what its processes said")]
fn eprintln_log(name: &str, tail: &str) {
    eprintln!("--- the end of {name}'s log\n{tail}");
}
