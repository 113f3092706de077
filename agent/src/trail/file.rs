//! The file of records that wait: first the place in the chain before them, then a line for each, and a line for each time that some were
//! acknowledged. It is added to, and written anew, aside, when most of it is of no use any more.
//!
//! It is there for a process that ends, by whatever signal, and not for a machine that loses its power: nothing is forced to the disk.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use probeops_nats::layout::files;
use probeops_shared::audit::chain::{Chain, Link};
use probeops_shared::planted;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Inner;

const NAME: &str = "audit.spool";
/// How long until a file is tried again that could not be written.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// No file of ours is larger: it has at most twice what may wait, and a little more.
const FILE_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// What is found at the start.
pub(super) struct Opened {
    /// Where records are written from now on.
    pub(super) file: SpoolFile,
    /// What an earlier start has left.
    pub(super) found: Option<Found>,
}

/// The place before the first record, the records, and what is wrong with what came after them.
pub(super) type Found = (Chain, Vec<Link>, Option<String>);

/// A file of records.
#[derive(Debug)]
pub(super) struct SpoolFile {
    path: PathBuf,
    /// What is added to; none until it was written for the first time.
    open: Option<File>,
    /// How much of it is whole lines.
    bytes: u64,
    /// Held as long as records are written here.
    _lock: Option<File>,
}

/// A line of it.
#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    hash: Option<String>,
    #[serde(default)]
    record: Option<Box<RawValue>>,
    /// Up to which number, none less than those before.
    #[serde(default)]
    acknowledged: Option<u64>,
}

/// Opens the file of a folder. What it has is of this writer, or put aside.
pub(super) fn open(folder: &Path, writer: &str) -> Result<Opened, String> {
    let path = folder.join(NAME);
    // One that cannot be made cannot be written either, which is said and tried again then.
    drop(files::make_dir(folder));
    let lock = own().create(true).truncate(false).open(folder.join("audit.lock")).ok();
    if lock.as_ref().is_some_and(|lock| matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock))) {
        return Err(format!("another agent keeps its audit records in {}; two of one node look like a theft", folder.display()));
    }
    let found = match read(&path) {
        Ok(text) => Some(parsed(&path, &text, writer)),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(format!("cannot read the audit records in {}: {error}", path.display())),
    };
    Ok(Opened { file: SpoolFile { path, open: None, bytes: 0, _lock: lock }, found })
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
    Ok(text)
}

/// What a file says. What is wrong with it is put aside with it.
pub(super) fn parsed(path: &Path, text: &[u8], writer: &str) -> Found {
    let mut parts = text.split_inclusive(|byte| *byte == b'\n');
    let head = parts.next().and_then(|line| serde_json::from_slice::<Chain>(line).ok());
    let Some(mut head) = head.filter(|head| head.writer() == writer) else {
        let trouble = put_aside(path, "its audit records from before cannot be sent: their file is damaged or another node's");
        return (Chain::begin(writer), Vec::new(), Some(trouble));
    };
    let (mut tail, mut links, mut trouble) = (head.clone(), VecDeque::new(), None);
    for (number, line) in parts.enumerate() {
        let whole = line.ends_with(b"\n");
        match serde_json::from_slice::<Line>(line).ok().filter(|_| whole) {
            Some(Line { acknowledged: Some(upto), .. }) => {
                while head.sequence() <= upto
                    && let Some(link) = links.pop_front()
                {
                    head.pass(&link);
                }
                continue;
            }
            Some(Line { hash: Some(hash), record: Some(record), .. }) => {
                let link = Link { hash, record };
                let again = |last: &Link| last.hash == link.hash;
                if tail.leads_to(&link) || planted!("spool" if links.back().is_some_and(again)) {
                    tail.pass(&link);
                    links.push_back(link);
                    continue;
                }
            }
            Some(_) | None => {}
        }
        // One of which only a part was written has been sent to nobody, and nothing was run because of it.
        trouble = Some(if whole {
            let line = number + 2;
            put_aside(path, &format!("its audit records from line {line} of their file on are damaged, and are not sent"))
        } else {
            "the last audit record of an earlier start was written only in part, and is left out".to_owned()
        });
        break;
    }
    (head, links.into(), trouble)
}

fn put_aside(path: &Path, what: &str) -> String {
    let aside = path.with_extension("damaged");
    match fs::copy(path, &aside) {
        Ok(_) => format!("{what}; {} has them", aside.display()),
        Err(error) => format!("{what}, nor could they be put aside: {error}"),
    }
}

fn own() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

impl SpoolFile {
    /// Adds lines; what was written in part is cut off again.
    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let file = self.open.as_mut().ok_or_else(|| io::Error::other("it was never written"))?;
        if let Err(error) = file.write_all(lines) {
            drop(file.set_len(self.bytes));
            return Err(error);
        }
        self.bytes += lines.len() as u64;
        Ok(())
    }

    /// Puts lines in the place of what is there.
    fn put(&mut self, lines: &[u8]) -> io::Result<()> {
        let aside = self.path.with_extension("new");
        let written = own().create(true).truncate(true).open(&aside).and_then(|mut file| {
            file.write_all(lines)?;
            fs::rename(&aside, &self.path)?;
            Ok(file)
        });
        match written {
            Ok(file) => {
                (self.open, self.bytes) = (Some(file), lines.len() as u64);
                Ok(())
            }
            Err(error) => {
                // Best effort: it may never have been made.
                drop(fs::remove_file(&aside));
                Err(error)
            }
        }
    }
}

impl Inner {
    /// Writes what is to be written until nothing more will come.
    pub(super) fn write(&self, mut file: SpoolFile) {
        let mut not_before = Instant::now();
        let mut waiting = self.waiting();
        loop {
            let ended = waiting.has_ended();
            let rest = if waiting.is_failing() && !ended { not_before.saturating_duration_since(Instant::now()) } else { Duration::ZERO };
            if !rest.is_zero() {
                waiting = self.to_write.wait_timeout(waiting, rest).unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            let Some(work) = waiting.work() else {
                if ended {
                    return;
                }
                waiting = self.to_write.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(waiting);
            let done = if work.anew { file.put(&work.lines) } else { file.append(&work.lines) };
            not_before = Instant::now() + RETRY_AFTER;
            waiting = self.waiting();
            waiting.worked(&work, done.map_err(|error| format!("audit records cannot be written to {}: {error}", file.path.display())));
            self.written.notify_waiters();
            if ended && waiting.is_failing() {
                if waiting.len() == 0 {
                    // All was sent, more than the file says: the next start must not number others the same.
                    drop(fs::remove_file(&file.path));
                }
                return;
            }
        }
    }
}

/// The line of a record.
pub(super) fn line(lines: &mut Vec<u8>, link: &Link) {
    json(lines, link);
}

/// The line that says up to which number they are acknowledged.
pub(super) fn acknowledged(lines: &mut Vec<u8>, upto: u64) {
    json(lines, &serde_json::json!({"acknowledged": upto}));
}

/// All of a file.
pub(super) fn whole<'a>(head: &Chain, links: impl IntoIterator<Item = &'a Link>) -> Vec<u8> {
    let mut text = Vec::new();
    json(&mut text, head);
    links.into_iter().for_each(|link| json(&mut text, link));
    text
}

fn json(lines: &mut Vec<u8>, what: &impl Serialize) {
    // Plain data always serialises, and a vector takes all.
    drop(serde_json::to_writer(&mut *lines, what));
    lines.push(b'\n');
}
