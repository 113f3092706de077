//! Follows a server's log, also where the server begins a new file.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::sentry::log::{self, Line};

/// How often to look whether there is more.
const LOOKED_AT_EVERY: Duration = Duration::from_millis(50);
/// What is read at once, in bytes.
const CHUNK_BYTES: usize = 64 * 1024;
/// A longer line is nobody's violation, and is passed over.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Follows a log from its end, until nobody wants its lines any more. It is read by a thread: files have no other way to wait.
pub(super) fn follow(path: PathBuf, lines: mpsc::Sender<Line>) {
    let mut tail = Tail::at_end(path);
    drop(std::thread::spawn(move || {
        while !lines.is_closed() {
            let read = tail.read(|line| log::read(line).is_none_or(|line| lines.blocking_send(line).is_ok()));
            tail.say(read);
            std::thread::sleep(LOOKED_AT_EVERY);
        }
    }));
}

/// A log, and how far it has been read.
struct Tail {
    path: PathBuf,
    open: Option<File>,
    /// Of a line whose end is not there yet.
    begun: Vec<u8>,
    /// Whether the line that goes on is too long.
    passing_over: bool,
    /// Whether it was said that it cannot be read.
    complained: bool,
}

impl Tail {
    fn at_end(path: PathBuf) -> Self {
        // What is not there yet will be read from its beginning.
        let open = File::open(&path).and_then(|mut file| file.seek(SeekFrom::End(0)).map(|_| file)).ok();
        Self { path, open, begun: Vec::new(), passing_over: false, complained: false }
    }

    /// Reads what is there, line by line, for as long as they are wanted.
    fn read(&mut self, mut each: impl FnMut(&str) -> bool) -> io::Result<()> {
        loop {
            if self.open.is_none() {
                self.open = Some(File::open(&self.path)?);
            }
            // Asked before reading to its end: what was written until the server left it is then read.
            let left = self.was_left();
            if !self.read_open(&mut each)? {
                return Ok(());
            }
            if !left {
                return Ok(());
            }
            self.begun.clear();
            self.open = None;
        }
    }

    /// Whether the file is no longer the one with that name, or was cut.
    fn was_left(&mut self) -> bool {
        let Some(file) = &mut self.open else { return true };
        let (Ok(open), Ok(named), Ok(at)) = (file.metadata(), std::fs::metadata(&self.path), file.stream_position()) else { return false };
        (open.dev(), open.ino()) != (named.dev(), named.ino()) || open.len() < at
    }

    fn read_open(&mut self, each: &mut impl FnMut(&str) -> bool) -> io::Result<bool> {
        let Some(file) = &mut self.open else { return Ok(true) };
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let read = file.read(&mut chunk)?;
            let mut rest = chunk.get(..read).unwrap_or_default();
            if rest.is_empty() {
                return Ok(true);
            }
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let (line, after) = rest.split_at(end);
                rest = after.get(1..).unwrap_or_default();
                self.begun.extend_from_slice(line);
                let whole = std::mem::take(&mut self.begun);
                if !std::mem::take(&mut self.passing_over) && !each(&String::from_utf8_lossy(&whole)) {
                    return Ok(false);
                }
            }
            self.begun.extend_from_slice(rest);
            if self.begun.len() > LINE_BYTES_MAX {
                self.begun.clear();
                self.passing_over = true;
            }
        }
    }

    fn say(&mut self, read: io::Result<()>) {
        match read {
            Ok(()) => self.complained = false,
            Err(error) if !std::mem::replace(&mut self.complained, true) => {
                tracing::error!(log = %shown(&self.path), "violations cannot be seen now: the broker's log cannot be read: {error}");
            }
            Err(_) => {}
        }
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::testing::Scratch;

    #[test]
    fn a_log_is_followed_from_its_end_into_the_next_file() {
        let scratch = Scratch::new();
        let path = scratch.path().join("server.log");
        std::fs::write(&path, "old\n").unwrap();
        let mut tail = Tail::at_end(path.clone());
        let append = |text: &str| File::options().append(true).create(true).open(&path).unwrap().write_all(text.as_bytes()).unwrap();
        let mut read = || {
            let mut lines = Vec::new();
            tail.read(|line| {
                lines.push(line.to_owned());
                true
            })
            .unwrap();
            lines
        };
        assert!(read().is_empty());
        append("one\ntw");
        assert_eq!(read(), ["one"]);
        append("o\nthree\n");
        std::fs::rename(&path, scratch.path().join("server.log.1")).unwrap();
        append("four\n");
        assert_eq!(read(), ["two", "three", "four"], "the end of the old one first");
        append(&format!("{}\nfive\n", "x".repeat(2 * LINE_BYTES_MAX)));
        assert_eq!(read(), ["five"], "what is too long is passed over");
        std::fs::write(&path, "six\n").unwrap();
        assert_eq!(read(), ["six"], "it was cut");
    }

    #[test]
    fn a_log_that_is_not_there_yet_is_read_from_its_beginning() {
        let scratch = Scratch::new();
        let path = scratch.path().join("server.log");
        let mut tail = Tail::at_end(path.clone());
        assert!(tail.read(|_| true).is_err());
        std::fs::write(&path, "one\n").unwrap();
        let mut lines = Vec::new();
        tail.read(|line| {
            lines.push(line.to_owned());
            true
        })
        .unwrap();
        assert_eq!(lines, ["one"]);
    }
}
