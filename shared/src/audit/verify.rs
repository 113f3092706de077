//! Whether an exported trail is whole: nothing changed, left out or swapped since it was written.

use std::collections::BTreeMap;
use std::fmt;

use crate::audit::chain::{Exported, beginning, hash, node_writer};
use crate::audit::{Record, Verdict};
use crate::{planted, subjects};

/// What is wrong with an export, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The line of the export, from 1.
    pub line: usize,
    /// What is wrong.
    pub detail: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.detail)
    }
}

/// A chain, as far as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// Whether its beginning is there.
    pub from_the_beginning: bool,
    /// The number of the first record that is there.
    pub first: u64,
    /// The number of the last.
    pub last: u64,
    /// The hash of the last: to be kept, if one wants to know later whether the end was cut off.
    pub hash: String,
    /// When the last was written.
    pub time: String,
    /// How many records say that others were left out.
    pub lost: usize,
    /// The hash before the first that is there.
    before: String,
    /// Of each record that is there, by number, the beginning of its hash and the message of the trail that it came with.
    places: BTreeMap<u64, (String, u64)>,
}

/// Checks an export line by line.
#[derive(Debug, Default)]
pub struct Verifier {
    line: usize,
    records: usize,
    repeated: usize,
    /// The message that the first line was of, and that of the last.
    first: Option<u64>,
    message: Option<u64>,
    /// Whether the first line is the trail's first record.
    from_the_beginning: bool,
    chains: BTreeMap<(String, String), Read>,
    findings: Vec<Finding>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Verified {
    /// How many records there were.
    pub records: usize,
    /// How many of them were there before: sent again because their acknowledgement was lost.
    pub repeated: usize,
    /// The chains, by writer and start.
    pub chains: BTreeMap<(String, String), Read>,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// The first message of the trail that there was something of, and the last.
    messages: Option<(u64, u64)>,
}

impl Verified {
    /// What does not fit between this export and a later one of the same trail, which goes on where this one ends, or has some or all of it too.
    pub fn followed_by(&self, later: &Self) -> Vec<String> {
        let (Some((_, end)), Some((begins, ends))) = (self.messages, later.messages) else { return Vec::new() };
        let mut found = Vec::new();
        if begins.saturating_sub(1) > end {
            found.push(format!("neither has {} of the trail", gap("message", end + 1, begins - 1)));
        }
        if ends < end {
            found.push(format!("the second ends with message {ends} of the trail, and the first with message {end}"));
        }
        for (key, read) in &self.chains {
            let again = later.chains.get(key);
            let name = |sequence: u64| format!("record {sequence} of {} (chain of {})", key.0, key.1);
            for (sequence, (hash, message)) in read.places.iter().filter(|(_, (_, message))| (begins..=ends).contains(message)) {
                match again.and_then(|again| again.places.get(sequence)) {
                    // It may begin in the middle of a message.
                    None if *message == begins && again.is_some_and(|again| *sequence < again.first) => {}
                    None => found.push(format!("{}, of message {message}, is missing in the second", name(*sequence))),
                    Some((other, _)) if other != hash => found.push(format!("{} is another in the second", name(*sequence))),
                    Some((_, place)) if place != message => {
                        found
                            .push(format!("{} is in message {message} of the first and in message {place} of the second", name(*sequence)));
                    }
                    Some(_) => {}
                }
            }
            match again {
                Some(again) if again.first.saturating_sub(1) > read.last => {
                    found.push(format!("neither has {} of {} (chain of {})", gap("record", read.last + 1, again.first - 1), key.0, key.1));
                }
                Some(again) if again.first.checked_sub(1) == Some(read.last) && again.before != read.hash => {
                    found.push(format!("{} of the second does not follow record {} of the first", name(again.first), read.last));
                }
                Some(_) | None => {}
            }
        }
        found
    }
}

impl Verifier {
    /// Takes the next line of the export.
    pub fn line(&mut self, text: &str) {
        self.line += 1;
        if text.trim().is_empty() {
            return;
        }
        match serde_json::from_str::<Exported>(text) {
            Ok(exported) => self.take(exported),
            Err(error) => self.find(format!("this is no record of an export: {error}")),
        }
    }

    /// What was found.
    pub fn end(self) -> Verified {
        let messages = self.first.zip(self.message);
        Verified { records: self.records, repeated: self.repeated, chains: self.chains, findings: self.findings, messages }
    }

    fn find(&mut self, detail: String) {
        self.findings.push(Finding { line: self.line, detail });
    }

    fn take(&mut self, exported: Exported) {
        self.records += 1;
        let name = format!("record {} of {} (chain of {}, cursor {})", exported.sequence, exported.writer, exported.start, exported.cursor);
        let record: Option<Record> = serde_json::from_str(exported.record.get()).ok();
        self.check_place(&exported, &name);
        if !is_own(&exported, record.as_ref()) {
            self.find(format!("{name} was published on {}, which is not for that writer", exported.subject));
        }
        let signs = record.as_ref().is_some_and(|record| record.verdict == Verdict::Signed);
        if signs && subjects::parse_audit(&exported.subject).is_none_or(|(category, _)| category != subjects::AUDIT_KEYMASTER) {
            self.find(format!("{name} says `signed`, which the keymaster alone can say, and was published on {}", exported.subject));
        }
        let fits = hash(&exported.previous, exported.sequence, exported.record.get()) == exported.hash;
        if !(fits || planted!("audit" if record.is_none())) {
            self.find(format!("{name} was changed: its hash does not fit what it says"));
        }
        self.check_chain(exported, &name, record.as_ref());
    }

    /// The messages of the trail are numbered without a gap, whoever wrote them.
    fn check_place(&mut self, exported: &Exported, name: &str) {
        let place = exported.cursor.split_once('.').and_then(|(message, index)| Some((message.parse().ok()?, index.parse().ok()?)));
        let Some((message, index)): Option<(u64, u64)> = place else {
            return self.find(format!("{name} has no cursor such as 1200.3"));
        };
        // An export may begin in the middle of a message, and goes on with whole ones.
        if index > 0 && self.message.is_some_and(|before| before < message) {
            self.find(format!("the beginning of message {message} of the trail, before {name}, is missing"));
        }
        match self.message {
            Some(before) if message < before => {
                self.find(format!("{name} is out of its place: message {before} of the trail came before it"));
            }
            Some(before) if message.saturating_sub(1) > before => {
                let gap = gap("message", before + 1, message - 1);
                self.find(format!("{gap} of the trail, before {name}, is missing"));
            }
            Some(_) | None => {}
        }
        if self.first.is_none() {
            self.first = Some(message);
            self.from_the_beginning = (message, index) == (1, 0);
        }
        self.message = Some(message);
    }

    fn check_chain(&mut self, exported: Exported, name: &str, record: Option<&Record>) {
        let Exported { writer, start, sequence, previous, hash, .. } = exported;
        let (key, place) = ((writer, start), (beginning_of(&hash), self.message.unwrap_or(0)));
        let lost = usize::from(record.is_some_and(|record| record.verdict == Verdict::Lost));
        let time = record.map_or_else(|| "-".to_owned(), |record| record.time.to_string());
        let Some(read) = self.chains.remove(&key) else {
            let from_the_beginning = sequence == 1;
            if from_the_beginning && previous != beginning(&key.0, &key.1) {
                self.find(format!("{name} was changed: it does not begin the chain that it names"));
            }
            // An export that begins with the trail has the beginning of every chain.
            if !from_the_beginning && self.from_the_beginning {
                self.find(format!(
                    "{} of {} (chain of {}) is missing, before {name}",
                    gap("record", 1, sequence.saturating_sub(1)),
                    key.0,
                    key.1
                ));
            }
            let (places, before) = (BTreeMap::from([(sequence, place)]), previous);
            self.chains.insert(key, Read { from_the_beginning, first: sequence, last: sequence, hash, time, lost, before, places });
            return;
        };
        if sequence <= read.last {
            match read.places.get(&sequence) {
                // Sent once more, because its acknowledgement was lost.
                Some((before, _)) if *before == place.0 => self.repeated += 1,
                Some(_) => self.find(format!("{name} is there twice, and not the same")),
                None => self.find(format!("{name} is out of its place: record {} came before it", read.last)),
            }
            self.chains.insert(key, read);
            return;
        }
        if sequence > read.last + 1 {
            let gap = gap("record", read.last + 1, sequence - 1);
            self.find(format!("{gap} of {} (chain of {}) is missing, before {name}", key.0, key.1));
        } else if previous != read.hash {
            self.find(format!("{name} does not follow record {}: one of the two was changed or is not in its place", read.last));
        }
        let mut read = Read { last: sequence, hash, time, lost: read.lost + lost, ..read };
        read.places.insert(sequence, place);
        self.chains.insert(key, read);
    }
}

fn gap(what: &str, first: u64, last: u64) -> String {
    if first == last { format!("{what} {first}") } else { format!("{what}s {first} to {last}") }
}

/// As much of a hash as tells it from any other.
fn beginning_of(hash: &str) -> String {
    hash.chars().take(16).collect()
}

/// Whether the broker lets this writer publish there: the collectors, in the name of a node; everybody else, on a subject with his own name.
fn is_own(exported: &Exported, record: Option<&Record>) -> bool {
    let Some((category, publisher)) = subjects::parse_audit(&exported.subject) else { return false };
    if category == subjects::AUDIT_NODE {
        let node = record.and_then(|record| record.node.as_ref());
        return node.is_some_and(|node| node.as_str() == publisher && exported.writer == node_writer(node));
    }
    exported.writer == publisher
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::chain::{Batch, Chain};

    /// Two writers with three messages in turn, as they are exported.
    fn export() -> Vec<String> {
        let (mut api, mut command) = (Chain::begin("api-1"), Chain::begin("command-1"));
        let mut lines = Vec::new();
        for message in 1..=6_u64 {
            let (chain, subject) =
                if message % 3 == 0 { (&mut command, "audit.v1.command.command-1") } else { (&mut api, "audit.v1.api.api-1") };
            let records =
                ["a", "b", "c"].map(|name| Record { request_id: format!("{message}-{name}"), ..Record::new(Verdict::Accepted, name) });
            let batch: Batch = serde_json::from_slice(&chain.batch(&records, 64 * 1024).unwrap().0).unwrap();
            lines.extend(batch.exported(subject, message).map(|exported| serde_json::to_string(&exported).unwrap()));
        }
        lines
    }

    fn verified(lines: &[String]) -> Verified {
        let mut verifier = Verifier::default();
        for line in lines {
            verifier.line(line);
        }
        verifier.end()
    }

    #[track_caller]
    fn finds(lines: &[String], line: usize, part: &str) {
        let findings = verified(lines).findings;
        assert!(findings.iter().any(|finding| finding.line == line && finding.detail.contains(part)), "{findings:#?}");
    }

    #[test]
    fn what_was_not_touched_is_whole() {
        let all = verified(&export());
        assert_eq!((all.records, all.chains.len(), all.findings), (18, 2, Vec::new()));
        assert!(all.chains.values().all(|read| read.from_the_beginning));
        // From the middle on; its end cannot be known.
        let part = verified(&export()[4..10]);
        assert_eq!((part.records, part.findings), (6, Vec::new()));
        assert!(part.chains.values().any(|read| !read.from_the_beginning));
    }

    #[test]
    fn one_that_was_changed_is_named() {
        let mut lines = export();
        lines[4] = lines[4].replace("2-b", "2-x");
        finds(&lines, 5, "record 5 of api-1");
        assert_eq!(verified(&lines).findings.len(), 1, "and no other");
        // With a hash that fits, the next one says it.
        let mut exported: Exported = serde_json::from_str(&lines[4]).unwrap();
        exported.hash = hash(&exported.previous, exported.sequence, exported.record.get());
        lines[4] = serde_json::to_string(&exported).unwrap();
        finds(&lines, 6, "record 6 of api-1");
        let mut lines = export();
        lines[0] = lines[0].replace("api-1\",\"start", "api-2\",\"start");
        finds(&lines, 1, "which is not for that writer");
        finds(&lines, 1, "does not begin the chain that it names");
    }

    #[test]
    fn one_that_is_missing_is_named() {
        let mut lines = export();
        lines.remove(4);
        finds(&lines, 5, "record 5 of api-1 (chain of ");
        assert_eq!(verified(&lines).findings.len(), 1);
        // The first of a chain, so that it seems to have begun before.
        let mut lines = export();
        let first = lines.iter().position(|line| line.contains("\"sequence\":1,") && !line.contains("\"cursor\":\"1.")).unwrap();
        lines.remove(first);
        finds(&lines, first + 1, "the beginning of message ");
        // The same, where another name for the chain hides the gap: the export begins with the trail.
        let mut lines = export();
        lines.remove(4);
        lines[4] = lines[4].replace("\"start\":\"", "\"start\":\"x");
        finds(&lines, 5, "records 1 to 5 of api-1 (chain of x");
        // All of a message at the end of its chain, in the middle of the trail.
        let mut lines = export();
        lines.drain(12..15);
        finds(&lines, 13, "message 5 of the trail");
        // At the end nothing follows that could say so: what can be said is where the chain ends.
        let mut lines = export();
        lines.truncate(16);
        let cut = verified(&lines);
        assert!(cut.findings.is_empty() && cut.chains.values().any(|read| read.last == 4), "{cut:?}");
    }

    #[test]
    fn two_that_were_swapped_are_named() {
        let mut lines = export();
        lines.swap(3, 4);
        finds(&lines, 5, "record 4 of api-1 (chain of ");
        // Only what they say, each keeping its place and hash.
        let mut lines = export();
        lines[3] = lines[3].replace("2-a", "2-?").replace("\"a\"", "\"b\"").replace("2-?", "2-b");
        lines[4] = lines[4].replace("2-b", "2-?").replace("\"b\"", "\"a\"").replace("2-?", "2-a");
        finds(&lines, 4, "record 4 of api-1");
        finds(&lines, 5, "record 5 of api-1");
        let mut lines = export();
        lines.swap(2, 3);
        finds(&lines, 4, "out of its place");
    }

    #[test]
    fn what_the_keymaster_alone_can_say_is_found_where_another_says_it() {
        let said_on = |subject: &str, writer: &str| {
            let (payload, _) = Chain::begin(writer).batch([&Record::new(Verdict::Signed, "part:api-2")], 64 * 1024).unwrap();
            let batch: Batch = serde_json::from_slice(&payload).unwrap();
            let lines: Vec<String> = batch.exported(subject, 1).map(|exported| serde_json::to_string(&exported).unwrap()).collect();
            verified(&lines).findings
        };
        assert_eq!(said_on("audit.v1.keymaster.keymaster-desk", "keymaster-desk"), Vec::new());
        let found = said_on("audit.v1.api.api-1", "api-1");
        assert!(found.len() == 1 && found[0].detail.contains("which the keymaster alone can say"), "{found:?}");
    }

    #[test]
    fn one_that_was_sent_again_is_no_other() {
        let mut lines = export();
        let again: Vec<String> = lines[12..15].iter().map(|line| line.replace("\"cursor\":\"5.", "\"cursor\":\"7.")).collect();
        lines.extend(again);
        let all = verified(&lines);
        assert_eq!((all.repeated, all.findings), (3, Vec::new()));
    }

    #[test]
    fn a_later_export_goes_on_where_the_earlier_ends_or_has_it_too() {
        let lines = export();
        let against = |first: &[String], second: &[String]| verified(first).followed_by(&verified(second));
        for from in [0, 3, 4, 6, 9] {
            assert_eq!(against(&lines[..9], &lines[from..]), Vec::<String>::new(), "{from}");
        }
        let told = against(&lines[..6], &lines[9..]);
        assert!(told.iter().any(|told| told == "neither has message 3 of the trail"), "{told:?}");
        let told = against(&lines[..12], &lines[15..]);
        assert!(told.iter().any(|told| told.starts_with("neither has message 5")), "{told:?}");
        // Cut off at its end, which nothing in one of them shows.
        let told = against(&lines, &lines[..16]);
        assert!(
            told.iter().any(|told| told.starts_with("record 5 of command-1") && told.ends_with("is missing in the second")),
            "{told:?}"
        );
        assert!(against(&lines, &lines[..15]).iter().any(|told| told.starts_with("the second ends with message 5")));
        // Written anew, whole for itself.
        let told = against(&lines, &export());
        assert!(told.len() == 18 && told[0].ends_with("is missing in the second"), "{told:?}");
        // With other places.
        let moved: Vec<String> = lines
            .iter()
            .map(|line| {
                let message: u64 = line.split(['"', '.']).nth(3).unwrap().parse().unwrap();
                line.replacen(&format!("\"{message}."), &format!("\"{}.", message + 1), 1)
            })
            .collect();
        let told = against(&lines[..9], &moved);
        assert!(told.iter().any(|told| told.contains("is in message 2 of the first and in message 3 of the second")), "{told:?}");
    }

    #[test]
    fn what_is_no_record_is_said_to_be_none() {
        let mut lines = export();
        lines[1] = "{}".to_owned();
        finds(&lines, 2, "this is no record of an export");
    }
}
