//! The records that wait, each tied to the one before it.

use std::collections::VecDeque;

use probeops_shared::audit::Record;
use probeops_shared::audit::chain::{Chain, Link};
use probeops_shared::timestamp::Timestamp;
use serde_json::value::to_raw_value;

use super::file;

/// How many records wait at most, those that runs going on will make included.
pub(super) const WAITING_MAX: usize = 50_000;
/// Up to this share of the room the records of what was refused are added: whoever is refused again and again takes no room from those who are
/// not.
pub(super) const REFUSED_SHARE: usize = 2;
/// How much room is kept for a record that is not there yet, in bytes.
const RECORD_BYTES: usize = 1024;
/// What a record takes besides itself.
const LINK_BYTES: usize = 96;
/// A file larger than this, most of which is acknowledged, is written anew.
const FILE_BYTES_MIN: u64 = 1024 * 1024;

/// The records.
#[derive(Debug)]
pub(super) struct Waiting {
    /// The place before the first of them.
    head: Chain,
    /// The place after the last of them.
    tail: Chain,
    links: VecDeque<Link>,
    bytes: usize,
    bytes_max: usize,
    /// How many were ever added.
    said: u64,
    /// For how many more there must be room.
    pub(super) promised: usize,
    /// How many refusals were left out for want of it.
    pub(super) lost: u64,
    file: Option<ToFile>,
}

/// What the file has and what it has not.
#[derive(Debug, Default)]
struct ToFile {
    /// What is to be added to it.
    lines: Vec<u8>,
    /// Up to which of those ever added it has them.
    stored: u64,
    /// How large it is.
    bytes: u64,
    /// It is to be written anew, as a whole.
    anew: bool,
    /// How many chains have begun.
    chain: u64,
    /// Why it could not be written the last time.
    failing: Option<String>,
    /// Nothing more will come.
    ended: bool,
}

/// What is to be done with the file.
pub(super) struct Work {
    /// What to write.
    pub(super) lines: Vec<u8>,
    /// In the place of what is there, or after it.
    pub(super) anew: bool,
    /// Up to which record of which chain it has them then.
    upto: u64,
    chain: u64,
}

impl Waiting {
    /// None yet, and only in memory.
    pub(super) fn new(chain: Chain, bytes_max: usize) -> Self {
        Self { head: chain.clone(), tail: chain, links: VecDeque::new(), bytes: 0, bytes_max, said: 0, promised: 0, lost: 0, file: None }
    }

    /// Those that a file has, which is written anew.
    pub(super) fn with_file(chain: Chain, links: Vec<Link>, bytes_max: usize) -> Self {
        let mut waiting = Self::new(chain, bytes_max);
        for link in links {
            waiting.tail.pass(&link);
            waiting.said += 1;
            waiting.add(link);
        }
        Self { file: Some(ToFile { anew: true, ..ToFile::default() }), ..waiting }
    }

    fn add(&mut self, link: Link) {
        self.bytes += size(&link);
        self.links.push_back(link);
    }

    /// Adds a record.
    pub(super) fn push(&mut self, record: &Record) {
        // Plain data always serialises.
        let Ok(record) = to_raw_value(record) else { return };
        let link = self.tail.link(record);
        if let Some(file) = &mut self.file {
            file::line(&mut file.lines, &link);
        }
        self.said += 1;
        self.add(link);
    }

    pub(super) fn len(&self) -> usize {
        self.links.len()
    }

    /// How many were ever added.
    pub(super) fn said(&self) -> u64 {
        self.said
    }

    /// The number of the record that comes next.
    pub(super) fn next_sequence(&self) -> u64 {
        self.tail.sequence()
    }

    /// Whether there is room for so many more beside those that were promised, or why there is none.
    pub(super) fn has_room(&self, room: usize) -> Result<(), String> {
        if let Some(why) = self.file.as_ref().and_then(|file| file.failing.as_ref()) {
            return Err(why.clone());
        }
        if self.fits(room, 1) {
            return Ok(());
        }
        Err(format!("the control plane has not acknowledged its audit records for long, and {} of them wait", self.links.len()))
    }

    /// Whether so many more fit into a share of the room, beside those that were promised.
    pub(super) fn fits(&self, room: usize, share: usize) -> bool {
        let coming = self.promised + room;
        self.links.len() + coming <= WAITING_MAX / share && self.bytes + coming * RECORD_BYTES <= self.bytes_max / share
    }

    /// A message with the first of them, and how many it has. What the file does not have yet is sent only at the end: a start that knows nothing
    /// of it would number others the same.
    pub(super) fn batch(&self, bytes_max: usize, stopping: bool) -> Option<(Vec<u8>, usize)> {
        let unstored = self.file.as_ref().filter(|_| !stopping).map_or(0, |file| self.said - file.stored);
        let stored = self.links.len().saturating_sub(usize::try_from(unstored).unwrap_or(usize::MAX));
        self.head.message(self.links.iter().take(stored), bytes_max)
    }

    /// The first of them need not wait any more.
    pub(super) fn acknowledged(&mut self, count: usize) {
        for link in self.links.drain(..count.min(self.links.len())) {
            self.head.pass(&link);
            self.bytes -= size(&link);
        }
        let (upto, bytes) = (self.head.sequence() - 1, u64::try_from(self.bytes).unwrap_or(u64::MAX));
        if let Some(file) = &mut self.file {
            file::acknowledged(&mut file.lines, upto);
            file.anew |= file.bytes > FILE_BYTES_MIN.max(bytes.saturating_mul(2));
        }
    }

    pub(super) fn is_at_its_beginning(&self) -> bool {
        self.head.sequence() == 1
    }

    /// All but the first few in a new chain, after a record that says so. None of them is of later than now.
    pub(super) fn begin_anew(&mut self, chain: Chain, first: &Record, left_out: usize, now: Timestamp) {
        let links = std::mem::take(&mut self.links);
        (self.head, self.tail, self.bytes) = (chain.clone(), chain, 0);
        let old = links.into_iter().skip(left_out).map(|link| link.record);
        for record in to_raw_value(first).into_iter().chain(old) {
            let record = in_time(&record, now).unwrap_or(record);
            let link = self.tail.link(record);
            self.add(link);
        }
        self.said += 1;
        if let Some(file) = &mut self.file {
            file.stored = self.said - u64::try_from(self.links.len()).unwrap_or(self.said);
            file.anew = true;
            file.chain += 1;
        }
    }

    /// Whether a record is in the file, where there is one; none as long as it is not known.
    pub(super) fn is_stored(&self, place: u64) -> Option<Result<(), String>> {
        match &self.file {
            Some(file) if file.stored < place => file.failing.clone().map(Err),
            Some(_) | None => Some(Ok(())),
        }
    }

    /// How many there are, and whether a file has all of them.
    pub(super) fn left(&self) -> (usize, bool) {
        (self.links.len(), self.file.as_ref().is_some_and(|file| file.stored == self.said))
    }

    /// Nothing more will come.
    pub(super) fn end(&mut self) {
        if let Some(file) = &mut self.file {
            file.ended = true;
        }
    }

    /// Whether the file could not be written the last time.
    pub(super) fn is_failing(&self) -> bool {
        self.file.as_ref().is_some_and(|file| file.failing.is_some())
    }

    /// Whether nothing more will come.
    pub(super) fn has_ended(&self) -> bool {
        self.file.as_ref().is_none_or(|file| file.ended)
    }

    /// What is to be written now, if anything.
    pub(super) fn work(&mut self) -> Option<Work> {
        let file = self.file.as_mut()?;
        let (anew, chain) = (file.anew || file.failing.is_some(), file.chain);
        if anew {
            file.anew = false;
            file.lines = file::whole(&self.head, &self.links);
        }
        let lines = std::mem::take(&mut file.lines);
        (!lines.is_empty()).then_some(Work { lines, anew, upto: self.said, chain })
    }

    /// What became of it.
    pub(super) fn worked(&mut self, work: &Work, done: Result<(), String>) {
        let Some(file) = &mut self.file else { return };
        match done {
            Ok(()) => {
                if file.failing.take().is_some() {
                    tracing::info!("audit records can be written again");
                }
                let bytes = u64::try_from(work.lines.len()).unwrap_or(u64::MAX);
                file.bytes = if work.anew { bytes } else { file.bytes.saturating_add(bytes) };
                // Where a new chain has begun meanwhile nothing of it is there.
                if work.chain == file.chain {
                    file.stored = work.upto;
                }
            }
            Err(why) => {
                if file.failing.is_none() {
                    tracing::error!("{why}; no job is run until they can be");
                }
                file.failing = Some(why);
            }
        }
    }
}

/// What a record takes.
fn size(link: &Link) -> usize {
    link.record.get().len() + LINK_BYTES
}

/// A record that says that it was made later than now, as one that was made now; none if it does not.
fn in_time(record: &serde_json::value::RawValue, now: Timestamp) -> Option<Box<serde_json::value::RawValue>> {
    let record: Record = serde_json::from_str(record.get()).ok()?;
    (record.time > now).then(|| to_raw_value(&Record { time: now, ..record }).ok()).flatten()
}
