//! The closing line of an export, which says what stands before it: so that one that was cut off at either end, or put in another order, is found out.
//!
//! It is `{"closing":{…},"sha256":"…"}`, where a record has its cursor. The digest is over all lines before it, each with its line feed, and over
//! the bytes of what `closing` is. Nobody signs it: whoever can write the whole file anew can close it anew, and only a digest that was noted
//! elsewhere, or another export, tells the two apart.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use sha2::{Digest, Sha256};

use crate::audit::chain::Exported;
use crate::timestamp::Timestamp;

/// What an export has in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Closing {
    /// Only what was stored since; absent where it has all from the trail's beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Only what was stored until then; absent where it has all that there was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// How many records there are.
    pub records: usize,
    /// The cursor of the first of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<String>,
    /// The cursor of the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
    /// Where each chain begins and ends in it.
    pub chains: Vec<Ends>,
}

/// The ends of a chain in an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ends {
    /// Who wrote it.
    pub writer: String,
    /// When that writer began with it, and a word by chance.
    pub start: String,
    /// The number of the first record that is there.
    pub first: u64,
    /// The number of the last.
    pub last: u64,
    /// The hash of the last.
    pub hash: String,
}

/// Follows what is written of an export, to close it.
#[derive(Debug, Default)]
pub struct Closer {
    lines: Lines,
    records: usize,
    cursors: Option<(String, String)>,
    chains: BTreeMap<(String, String), (u64, u64, String)>,
}

/// The lines of an export, as far as they were read or written.
#[derive(Debug, Default)]
pub(super) struct Lines(Sha256);

/// A closing line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line {
    pub(super) closing: Box<RawValue>,
    pub(super) sha256: String,
}

impl Closer {
    /// The next line, of this record.
    pub fn record(&mut self, exported: &Exported) -> serde_json::Result<String> {
        let Exported { cursor, writer, start, sequence, hash, .. } = exported;
        let line = serde_json::to_string(exported)?;
        self.records += 1;
        self.cursors = Some((self.cursors.take().map_or_else(|| cursor.clone(), |(first, _)| first), cursor.clone()));
        let chain = self.chains.entry((writer.clone(), start.clone())).or_insert_with(|| (*sequence, *sequence, hash.clone()));
        chain.0 = chain.0.min(*sequence);
        // What was sent again ends no chain.
        if *sequence > chain.1 {
            (chain.1, chain.2) = (*sequence, hash.clone());
        }
        self.lines.take(&line);
        Ok(line)
    }

    /// The next line, which is of no record.
    pub fn other(&mut self, line: &str) {
        self.lines.take(line);
    }

    /// The closing line, and the digest that it ends with.
    pub fn close(self, since: Option<Timestamp>, until: Option<Timestamp>) -> serde_json::Result<(String, String)> {
        let (first, last) = self.cursors.unzip();
        let chains = self.chains.into_iter().map(|((writer, start), (first, last, hash))| Ends { writer, start, first, last, hash });
        let closing = to_raw_value(&Closing { since, until, records: self.records, first, last, chains: chains.collect() })?;
        let sha256 = self.lines.digest(closing.get());
        Ok((serde_json::to_string(&Line { closing, sha256: sha256.clone() })?, sha256))
    }
}

impl Lines {
    pub(super) fn take(&mut self, line: &str) {
        self.0.update(line);
        self.0.update("\n");
    }

    /// Of an export that closes with this.
    pub(super) fn digest(&self, closing: &str) -> String {
        HEXLOWER.encode(&self.0.clone().chain_update(closing).finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_of_all_bytes_before_it_but_the_name_of_what_closes() {
        let mut closer = Closer::default();
        closer.other("a");
        let (line, sha256) = closer.close(None, None).unwrap();
        let closing = r#"{"records":0,"chains":[]}"#;
        assert_eq!(sha256, HEXLOWER.encode(&Sha256::digest(format!("a\n{closing}"))));
        assert_eq!(line, format!(r#"{{"closing":{closing},"sha256":"{sha256}"}}"#));
    }
}
