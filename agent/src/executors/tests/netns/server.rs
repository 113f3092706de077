//! A program that serves, with a folder for what it needs; both go with the test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a program may take until it serves.
const START_MAX: Duration = Duration::from_secs(20);

/// How long it may take to end when it is asked to.
const END_MAX: Duration = Duration::from_secs(5);

/// A folder that goes with the test.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("probeops-{:08x}", rand::random::<u32>()));
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.join(name).display().to_string()
    }

    /// Where it is written.
    pub(super) fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    pub(super) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }
}

impl AsRef<Path> for Folder {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// A running program.
pub(super) struct Server(Child);

impl Server {
    pub(super) fn start(command: &mut Command, package: &str) -> Self {
        Self(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}; apt-get install {package}")))
    }
}

impl Drop for Server {
    /// Asks it to end, so that it ends what it has started in its turn.
    fn drop(&mut self) {
        let began = Instant::now();
        let _asked = kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), Signal::SIGTERM);
        while began.elapsed() < END_MAX && matches!(self.0.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Waits until a server serves; `log` says why it does not.
pub(super) fn await_start(serves: impl Fn() -> bool, log: impl Fn() -> String) {
    let started = Instant::now();
    while !serves() {
        assert!(started.elapsed() < START_MAX, "{}", log());
    }
}
