//! How records are tied to one another, so that whoever changes, leaves out or swaps one is found out.
//!
//! Every writer makes a chain: it numbers its records from 1, and each has the SHA-256 of the one before, its own number and its own bytes, as
//! `<hash before>\n<number>\n<bytes>`. What stands before the first is the hash of the writer's name and of when it began, so that a writer that
//! starts anew begins a chain that cannot be taken for another. The bytes are those that are stored, so no canonical form is needed:
//! `printf '%s\n%s\n%s' BEFORE NUMBER RECORD | sha256sum`.
//!
//! No key is in it. Whoever can write all of a chain anew can make another that fits; that is what a copy elsewhere is for.

use std::fmt::Display;

use data_encoding::HEXLOWER;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::audit::{BATCH_MAX, Record};
use crate::timestamp::Timestamp;

/// What the first hash begins with.
const VERSION: &str = "probeops-audit-1";
/// What a node's name as a writer begins with.
const NODE: &str = "node:";
/// What a message has besides its records, in bytes, and each record besides itself.
const HEAD_BYTES: usize = 512;
const LINK_BYTES: usize = 96;

/// A message of the trail: records that follow one another in the chain of their writer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Batch<R = Box<RawValue>> {
    /// Who wrote them.
    pub writer: String,
    /// When that writer began with this chain, and a word by chance.
    pub start: String,
    /// The number of the first of them.
    pub sequence: u64,
    /// The hash of the record before the first of them.
    pub previous: String,
    /// They.
    pub records: Vec<Link<R>>,
}

/// A record in its chain.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Link<R = Box<RawValue>> {
    /// Its hash.
    pub hash: String,
    /// The record, in the very bytes that were hashed.
    pub record: R,
}

/// A record as `GET /v1/audit/export` gives it: with everything that tells whether it is whole and in its place.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "AuditLink")]
pub struct Exported {
    /// Its place in the trail: the message's number and the record's in it.
    pub cursor: String,
    /// The subject that it was published on; the broker lets each credential publish on its own only.
    pub subject: String,
    /// Who wrote it; a node is `node:<id>`.
    pub writer: String,
    /// When that writer began with this chain, and a word by chance.
    pub start: String,
    /// Its number in the chain, from 1.
    pub sequence: u64,
    /// The hash of the record before it; of writer and start, where it is the first.
    pub previous: String,
    /// SHA-256 of `previous`, `sequence` and the bytes of `record`, with line feeds between them.
    pub hash: String,
    /// The record. Its bytes are what was hashed: to write it anew in another form breaks the chain.
    #[schemars(with = "Record")]
    pub record: Box<RawValue>,
}

/// A place in the chain of one writer: between two of its records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    writer: String,
    start: String,
    sequence: u64,
    previous: String,
}

impl Chain {
    /// A chain that begins now.
    pub fn begin(writer: impl Display) -> Self {
        Self::begin_at(writer, Timestamp::now())
    }

    /// A chain that begins then.
    pub fn begin_at(writer: impl Display, time: Timestamp) -> Self {
        let writer = writer.to_string();
        let start = format!("{time}/{:016x}", rand::random::<u64>());
        let previous = beginning(&writer, &start);
        Self { writer, start, sequence: 1, previous }
    }

    /// A chain of a node.
    pub fn of_node(node: impl Display) -> Self {
        Self::begin(node_writer(node))
    }

    /// Who writes it.
    pub fn writer(&self) -> &str {
        &self.writer
    }

    /// The number of the record that comes next.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The next record, tied to those before it.
    pub fn link(&mut self, record: Box<RawValue>) -> Link {
        self.previous = hash(&self.previous, self.sequence, record.get());
        self.sequence += 1;
        Link { hash: self.previous.clone(), record }
    }

    /// Whether this is the next record.
    pub fn leads_to(&self, link: &Link) -> bool {
        hash(&self.previous, self.sequence, link.record.get()) == link.hash
    }

    /// Goes on behind the next record.
    pub fn pass(&mut self, link: &Link) {
        self.sequence += 1;
        self.previous.clone_from(&link.hash);
    }

    /// A message with the first of the records that follow, no more of them than one may have and no larger than this; and how many it has. None
    /// of none.
    pub fn message<'a>(&self, links: impl IntoIterator<Item = &'a Link>, bytes_max: usize) -> Option<(Vec<u8>, usize)> {
        let (mut records, mut bytes): (Vec<Link<&RawValue>>, usize) = (Vec::new(), HEAD_BYTES);
        for Link { hash, record } in links.into_iter().take(BATCH_MAX) {
            bytes += record.get().len() + LINK_BYTES;
            if bytes > bytes_max && !records.is_empty() {
                break;
            }
            records.push(Link { hash: hash.clone(), record });
        }
        let count = records.len();
        let (writer, start, previous) = (self.writer.clone(), self.start.clone(), self.previous.clone());
        let batch = Batch { writer, start, sequence: self.sequence, previous, records };
        // Plain data always serialises.
        let written = (count > 0).then(|| serde_json::to_vec(&batch).ok()).flatten()?;
        Some((written, count))
    }

    /// Such a message of records that are tied to one another here; the chain goes on behind them.
    pub fn batch<'a>(&mut self, records: impl IntoIterator<Item = &'a Record>, bytes_max: usize) -> Option<(Vec<u8>, usize)> {
        let mut end = self.clone();
        let records = records.into_iter().take(BATCH_MAX).filter_map(|record| serde_json::value::to_raw_value(record).ok());
        let links: Vec<Link> = records.map(|record| end.link(record)).collect();
        let (written, count) = self.message(&links, bytes_max)?;
        links.iter().take(count).for_each(|link| self.pass(link));
        Some((written, count))
    }
}

impl<R> Batch<R> {
    /// The number of the last of its records.
    pub fn last(&self) -> u64 {
        self.sequence.saturating_add(self.records.len() as u64).saturating_sub(1)
    }

    /// Without the first of its records.
    #[must_use]
    pub fn without(mut self, count: usize) -> Self {
        if let Some(link) = self.records.drain(..count.min(self.records.len())).next_back() {
            self.previous = link.hash;
            self.sequence = self.sequence.saturating_add(count as u64);
        }
        self
    }
}

impl Batch {
    /// Its records, each for itself. `subject` and `message` are where it lies in the trail.
    pub fn exported(self, subject: &str, message: u64) -> impl Iterator<Item = Exported> + use<> {
        let Self { writer, start, sequence, mut previous, records } = self;
        let subject = subject.to_owned();
        records.into_iter().zip(sequence..).enumerate().map(move |(index, (link, sequence))| Exported {
            cursor: format!("{message}.{index}"),
            subject: subject.clone(),
            writer: writer.clone(),
            start: start.clone(),
            sequence,
            previous: std::mem::replace(&mut previous, link.hash.clone()),
            hash: link.hash,
            record: link.record,
        })
    }
}

/// When a chain began, as its start says.
pub fn began_at(start: &str) -> Option<Timestamp> {
    let (time, word) = start.split_once('/')?;
    let is_word = word.len() == 16 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    Timestamp::parse(time).filter(|read| is_word && read.to_string() == time)
}

/// The hash that stands before the first record of a chain.
pub fn beginning(writer: &str, start: &str) -> String {
    HEXLOWER.encode(&Sha256::digest(format!("{VERSION}\n{writer}\n{start}")))
}

/// The hash of a record.
pub fn hash(previous: &str, sequence: u64, record: &str) -> String {
    HEXLOWER.encode(&Sha256::digest(format!("{previous}\n{sequence}\n{record}")))
}

/// The name of a node as a writer.
pub fn node_writer(node: impl Display) -> String {
    format!("{NODE}{node}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Verdict;

    #[test]
    fn a_message_goes_on_where_the_one_before_ended() {
        let mut chain = Chain::begin("api-1");
        assert!(chain.batch(&[], 1024).is_none());
        let records = [Record::new(Verdict::Accepted, "a"), Record::new(Verdict::Accepted, "b"), Record::new(Verdict::Accepted, "c")];
        let read = |written: Vec<u8>| serde_json::from_slice::<Batch>(&written).unwrap();
        let (written, count) = chain.batch(&records[..2], 64 * 1024).unwrap();
        let first = read(written);
        assert_eq!((count, first.sequence, first.previous.as_str()), (2, 1, beginning("api-1", &first.start).as_str()));
        assert_eq!(first.records[1].hash, hash(&first.records[0].hash, 2, first.records[1].record.get()));
        let second = read(chain.batch(&records[2..], 64 * 1024).unwrap().0);
        assert_eq!((second.sequence, &second.previous), (3, &first.records[1].hash));
        assert_ne!(Chain::begin("api-1").start, first.start);
    }

    #[test]
    fn a_message_is_no_larger_than_it_may_be_and_has_no_more_than_it_may() {
        let records = vec![Record { detail: "\u{1}".repeat(500), ..Record::new(Verdict::Denied, "svc") }; BATCH_MAX + 1];
        let (written, count) = Chain::begin("node:a").batch(&records, 64 * 1024).unwrap();
        assert!(written.len() <= 64 * 1024 && count > 10, "{count} records in {} bytes", written.len());
        assert_eq!(Chain::begin("node:a").batch(&records, usize::MAX).unwrap().1, BATCH_MAX);
    }
}
