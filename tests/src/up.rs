//! `probeops up` as a user runs it, and the commands beside it.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::signal::Signal;
use probeops_nats::layout::Layout;
use probeops_nats::server::Search;
use serde_json::Value;

use crate::fabric::{Folder, program};
use crate::http::Caller;
use crate::process::{HANG, LOOK_EVERY, Process};

/// The last line of what `up` prints when it is ready.
const READY: &str = "started again it keeps its state";

/// Who owns nothing.
pub const NOBODY: u32 = 65534;

/// A machine's user: a folder of his own, and what he runs in it.
#[derive(Debug)]
pub struct Home {
    folder: Folder,
}

/// A running `up`.
#[derive(Debug)]
pub struct Up {
    process: Process,
    data: PathBuf,
}

/// A command that goes on.
#[derive(Debug)]
pub struct Running(Process);

/// What a command that has ended said.
#[derive(Clone, Debug)]
pub struct Said {
    /// Its exit code.
    pub code: Option<i32>,
    /// On standard output.
    pub out: String,
    /// On standard error.
    pub err: String,
}

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

impl Home {
    /// A new user.
    pub fn new() -> Self {
        Self { folder: Folder::new() }
    }

    /// A path in his folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.0.join(name)
    }

    /// Writes a file.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).expect("a file");
        path
    }

    /// The program with a subcommand, in his folder.
    pub fn probeops(&self, arguments: &[&str]) -> Command {
        let mut command = program();
        command.args(arguments).current_dir(&self.folder.0);
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, arguments: &[&str]) -> Said {
        self.finish(self.probeops(arguments))
    }

    /// Runs any command to its end.
    pub fn finish(&self, command: Command) -> Said {
        self.finish_reading(command, Stdio::null())
    }

    /// The same with something to read.
    pub fn finish_reading(&self, mut command: Command, input: Stdio) -> Said {
        let number = rand::random::<u64>();
        let file = |name: &str| self.path(&format!("{name}-{number:016x}"));
        let (out, err) = (file("out"), file("err"));
        let create = |path: &Path| File::create(path).expect("a file");
        let spawned = command.stdin(input).stdout(create(&out)).stderr(create(&err)).spawn();
        let mut child = spawned.unwrap_or_else(|error| panic!("cannot be started: {error} ({command:?})"));
        let started = Instant::now();
        let code = loop {
            if let Some(status) = child.try_wait().expect("a child of ours") {
                break status.code();
            }
            if started.elapsed() > HANG {
                drop(child.kill());
                panic!("it does not end: {command:?}");
            }
            std::thread::sleep(LOOK_EVERY);
        };
        let text = |path: &Path| String::from_utf8_lossy(&std::fs::read(path).expect("what it said")).into_owned();
        Said { code, out: text(&out), err: text(&err) }
    }

    /// Starts a command that goes on, and waits until it has printed this.
    #[track_caller]
    pub fn start(&self, name: &str, command: Command, words: &str) -> Running {
        self.start_reading(name, command, Stdio::null(), words)
    }

    /// The same with something to read.
    #[track_caller]
    pub fn start_reading(&self, name: &str, command: Command, input: Stdio, words: &str) -> Running {
        let mut process = Process::start_reading(name, &self.folder.0, command, input);
        process.wait_for_log(words);
        Running(process)
    }

    /// Starts `up` on the data folder `data` with a free port, and waits until it is ready.
    pub fn up(&self, data: &str, arguments: &[&str]) -> Up {
        let mut up = self.start_up(data, arguments);
        up.wait_ready();
        up
    }

    /// Starts `up` and does not wait.
    pub fn start_up(&self, data: &str, arguments: &[&str]) -> Up {
        let mut command = self.probeops(&["up", "--http", "127.0.0.1:0", "--data", data]);
        command.args(arguments);
        self.start_up_of(data, command)
    }

    /// Starts `up` by a command that says all and that somebody else may run; its data folder is `data`.
    pub fn start_up_of(&self, data: &str, command: Command) -> Up {
        let name = format!("up-{:016x}", rand::random::<u64>());
        Up { process: Process::start(&name, &self.folder.0, command), data: self.path(data) }
    }

    /// Makes a command run as somebody who may do nothing: ourselves, or nobody where we are root.
    pub fn as_nobody(&self, command: &Command) -> Command {
        let mut plain = Command::new(command.get_program());
        if is_root() {
            // Our own program lies where only we may look.
            let program = self.path("probeops");
            if !program.exists() {
                std::fs::copy(command.get_program(), &program).expect("a file of ours");
            }
            plain = Command::new(program);
            plain.uid(NOBODY).gid(NOBODY);
        }
        plain.args(command.get_args()).current_dir(self.path(""));
        plain
    }

    /// A folder of nobody's own.
    pub fn folder_of_nobody(&self, name: &str) -> PathBuf {
        let folder = self.path(name);
        std::fs::create_dir(&folder).expect("a file of ours");
        if is_root() {
            std::os::unix::fs::chown(&folder, Some(NOBODY), Some(NOBODY)).expect("a file of ours");
        }
        folder
    }

    /// A nats-server that any user may run: a copy, because the cache is its owner's.
    pub fn nats_server(&self) -> PathBuf {
        let found = Search::usual(std::env::var_os("NATS_SERVER").map(PathBuf::from), &Layout::new(self.path("search")));
        let found = found.find_or_fetch(&|_progress| ()).unwrap_or_else(|error| panic!("{error}")).path;
        let copy = self.path("nats-server");
        std::fs::copy(&found, &copy).expect("a copy of nats-server");
        copy
    }
}

impl Running {
    /// What it has printed.
    pub fn log(&self) -> String {
        self.0.log()
    }

    /// Sends a signal and waits for its end.
    pub fn end(&mut self, signal: Signal) -> Option<i32> {
        self.0.signal(signal);
        self.wait()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> Option<i32> {
        self.0.wait().code()
    }
}

impl Said {
    /// Its standard output, when it went well.
    #[track_caller]
    pub fn good(self) -> String {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.err);
        self.out
    }

    /// The one line of its complaint, when it went wrong in this way.
    #[track_caller]
    pub fn bad(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{}{}", self.out, self.err);
        assert_eq!(self.err.lines().count(), 1, "one line, not\n{}", self.err);
        let line = self.err.trim_end();
        line.strip_prefix("probeops: ").unwrap_or_else(|| panic!("whose line is this? {line}")).to_owned()
    }
}

impl Up {
    /// Waits until it is ready.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        self.process.wait_for_log(READY);
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Waits until it has printed this.
    pub fn wait_for_log(&mut self, words: &str) {
        self.process.wait_for_log(words);
    }

    /// Its process id.
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// The rest of the one printed line that begins so.
    #[track_caller]
    pub fn line(&self, start: &str) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().filter_map(|line| line.trim_start().strip_prefix(start)).collect();
        let [line] = lines[..] else { panic!("one line with `{start}`, not {lines:?} in\n{log}") };
        line.to_owned()
    }

    /// The line to paste.
    #[track_caller]
    pub fn curl(&self) -> String {
        format!("curl {}", self.line("curl "))
    }

    /// Where its API answers.
    pub fn url(&self) -> String {
        self.line("ready ")
    }

    /// A caller with the printed key.
    pub fn caller(&self) -> Caller {
        let key = std::fs::read_to_string(self.line("key   ")).expect("the key's file");
        Caller::new(&self.url(), Some(key.trim()), None)
    }

    /// Sends a signal and waits for its end.
    pub fn end(&mut self, signal: Signal) -> Option<i32> {
        self.process.signal(signal);
        self.wait()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> Option<i32> {
        self.process.wait().code()
    }

    /// The processes that work on its data folder, itself apart: their ids and command lines.
    pub fn others(&self) -> Vec<(i32, String)> {
        let data = self.data.display().to_string();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            // It may end while we look.
            let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&data) && u32::try_from(id) != Ok(self.process_id()) {
                found.push((id, line));
            }
        }
        found
    }
}

/// Whether we may do everything.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Waits until it is so.
#[track_caller]
pub fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(started.elapsed() < HANG, "not after {HANG:?}: {what}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The JSON documents in a text.
#[track_caller]
pub fn documents(text: &str) -> Vec<Value> {
    let read: Result<Vec<Value>, _> = serde_json::Deserializer::from_str(text).into_iter().collect();
    read.unwrap_or_else(|error| panic!("{error} in\n{text}"))
}
