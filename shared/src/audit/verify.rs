//! Whether an exported trail is whole: nothing changed, left out or swapped since it was written.
//!
//! The chains tell which record it was, and their ends, which the closing line has, where one is missing at either end. What no chain shows
//! (records of two writers that changed places, one that is there twice) only the digest of all lines tells, and not where.

use std::collections::BTreeMap;
use std::fmt;

use crate::audit::chain::{Exported, beginning, hash, node_writer};
use crate::audit::closing::{Closing, Ends, Line, Lines};
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
    /// The records that did not come when they should have.
    gaps: BTreeMap<u64, Gap>,
    /// The record before, where that was out of its place.
    misplaced: Option<u64>,
    /// Whether anything was found about it.
    found: bool,
}

/// Numbers that did not come when they should have, from some first one on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Gap {
    last: u64,
    /// Where that was seen.
    line: usize,
    before: String,
    /// The messages between which they belong.
    between: (u64, u64),
}

/// Checks an export line by line.
#[derive(Debug, Default)]
pub struct Verifier {
    line: usize,
    records: usize,
    repeated: usize,
    /// The cursors of the first record and of the last.
    cursors: Option<(String, String)>,
    /// Message and place in it of the first record.
    first: Option<(u64, u64)>,
    /// The message that the last line was of, and the furthest.
    here: u64,
    furthest: Option<u64>,
    /// Whether the first line is the trail's first record.
    from_the_beginning: bool,
    chains: BTreeMap<(String, String), Read>,
    /// Messages that did not come when they should have; and of which only the beginning did not, with where that was seen.
    gaps: BTreeMap<u64, Gap>,
    headless: BTreeMap<u64, (usize, String)>,
    lines: Lines,
    /// A line that is nothing, as long as it is the last.
    unread: Option<(usize, String)>,
    closed: Option<Closed>,
    findings: Vec<Finding>,
}

/// The closing line.
#[derive(Debug)]
struct Closed {
    line: usize,
    /// None where it says nothing of what it should.
    closing: Option<Closing>,
    /// The digest that it has, and that of what was read.
    said: String,
    sha256: String,
    /// Whether lines come after it.
    goes_on: bool,
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
    /// What the closing line says, and the digest of all that was read; none where there is no such line.
    pub closing: Option<(Closing, String)>,
    /// The first message of the trail that there was something of, and the last.
    pub messages: Option<(u64, u64)>,
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
        let blank = text.trim().is_empty();
        if let Some(closed) = &mut self.closed {
            if !blank && !std::mem::replace(&mut closed.goes_on, true) {
                self.find("this comes after the closing line, with which an export ends: it was added".to_owned());
            }
            return;
        }
        if !blank && let Some((line, error)) = self.unread.take() {
            self.findings.push(Finding { line, detail: format!("this is no record of an export: {error}") });
        }
        match serde_json::from_str::<Exported>(text) {
            Ok(exported) => self.take(exported),
            Err(error) => match serde_json::from_str::<Line>(text) {
                Ok(line) => return self.close(&line),
                Err(_) if blank => {}
                Err(_) => self.unread = Some((self.line, error.to_string())),
            },
        }
        self.lines.take(text);
    }

    /// What was found.
    pub fn end(mut self) -> Verified {
        let closed = self.closed.take();
        // What is missing of the chains, between which messages: that is no other than what is missing of the messages between them.
        let mut explained: Vec<(u64, u64)> = self.chains.values().flat_map(|read| read.gaps.values().map(|gap| gap.between)).collect();
        if let Some(Closed { line, closing: Some(closing), .. }) = &closed {
            self.line = *line;
            self.compare_ends(&closing.chains, &mut explained);
        }
        self.tell_gaps(explained);
        match &closed {
            Some(closed) => self.compare(closed),
            None => match self.unread.take() {
                Some((line, _)) => self.findings.push(Finding {
                    line,
                    detail: "this is neither a record nor the closing line, with which an export ends: it was cut off here, or changed"
                        .to_owned(),
                }),
                None if self.line > 0 => self.find(
                    "the export ends with this line, and not with its closing line: it was cut off, or is still being written".to_owned(),
                ),
                None => {}
            },
        }
        self.findings.sort_by_key(|finding| finding.line);
        let closing = closed.and_then(|closed| closed.closing.zip(Some(closed.sha256)));
        let messages = self.first.map(|(message, _)| message).zip(self.furthest);
        let Self { records, repeated, chains, mut findings, .. } = self;
        findings.retain(|_| !planted!("audit" if records == 3 && closing.is_some()));
        Verified { records, repeated, chains, findings, closing, messages }
    }

    fn find(&mut self, detail: String) {
        self.findings.push(Finding { line: self.line, detail });
    }

    fn close(&mut self, line: &Line) {
        let closing = serde_json::from_str(line.closing.get());
        if let Err(error) = &closing {
            self.find(format!("the closing line was changed: {error}"));
        }
        let (said, sha256) = (line.sha256.clone(), self.lines.digest(line.closing.get()));
        self.closed = Some(Closed { line: self.line, closing: closing.ok(), said, sha256, goes_on: false });
    }

    /// Whether each chain begins and ends where the closing line says.
    fn compare_ends(&mut self, said: &[Ends], explained: &mut Vec<(u64, u64)>) {
        let mut added: BTreeMap<(String, String), Vec<(u64, u64)>> =
            self.chains.iter().map(|(key, read)| (key.clone(), vec![(read.first, read.last)])).collect();
        for ends in said {
            let key = (ends.writer.clone(), ends.start.clone());
            let of = of_chain(&key);
            let Some(read) = self.chains.get(&key) else {
                explained.push((0, u64::MAX));
                self.find(format!(
                    "{}: the closing line has that chain, and no line is of it",
                    missing("record", ends.first, ends.last, &of)
                ));
                continue;
            };
            let message = |sequence: u64| read.places.get(&sequence).map_or(0, |(_, message)| *message);
            let (first, last) = (message(read.first), message(read.last));
            let mut found = Vec::new();
            if ends.first < read.first && !read.gaps.contains_key(&ends.first) {
                explained.push((0, first));
                let missing = missing("record", ends.first, read.first - 1, &of);
                found.push(format!("{missing}, at its beginning: the closing line has it from record {} on", ends.first));
            }
            if read.last < ends.last {
                explained.push((last, u64::MAX));
                let missing = missing("record", read.last + 1, ends.last, &of);
                found.push(format!("{missing}, at its end: the closing line has it to record {}", ends.last));
            }
            if read.last == ends.last && read.hash != ends.hash && !read.found && read.gaps.is_empty() {
                found.push(format!("record {} of {of} was changed: its hash is not the last that the closing line has of it", read.last));
            }
            let more =
                [(read.first, read.last.min(ends.first.saturating_sub(1))), (read.first.max(ends.last.saturating_add(1)), read.last)];
            added.insert(key, more.into_iter().filter(|(first, last)| first <= last).collect());
            for detail in found {
                self.find(detail);
            }
        }
        for (key, more) in added {
            for (first, last) in more {
                self.find(format!(
                    "the closing line does not have {} of {}: added, or not in its chain",
                    gap("record", first, last),
                    of_chain(&key)
                ));
            }
        }
    }

    /// Tells what never came.
    fn tell_gaps(&mut self, mut explained: Vec<(u64, u64)>) {
        for (key, read) in &self.chains {
            for (first, Gap { last, line, before, .. }) in &read.gaps {
                let detail = format!("{}, before {before}", missing("record", *first, *last, &of_chain(key)));
                self.findings.push(Finding { line: *line, detail });
            }
        }
        // By where they begin, each with the furthest end so far.
        explained.sort_unstable();
        let mut furthest = 0;
        for (_, end) in &mut explained {
            furthest = furthest.max(*end);
            *end = furthest;
        }
        let is_explained = |first: u64, last: u64| {
            let begun = explained.partition_point(|(begin, _)| *begin <= first);
            begun.checked_sub(1).is_some_and(|at| explained[at].1 >= last)
        };
        for (first, Gap { last, line, before, .. }) in &self.gaps {
            if !is_explained(*first, *last) {
                let detail = format!("{}, before {before}", missing("message", *first, *last, "the trail"));
                self.findings.push(Finding { line: *line, detail });
            }
        }
        for (message, (line, name)) in &self.headless {
            if !is_explained(*message, *message) {
                let detail = format!("the beginning of message {message} of the trail, before {name}, is missing");
                self.findings.push(Finding { line: *line, detail });
            }
        }
    }

    /// What the closing line says of all lines together: of use where nothing else was found.
    fn compare(&mut self, closed: &Closed) {
        let Closed { line, closing: Some(closing), said, sha256, .. } = closed else { return };
        if !self.findings.is_empty() {
            return;
        }
        self.line = *line;
        let (first, last) = self.cursors.clone().unzip();
        let here = counted(self.records, first.as_deref(), last.as_deref());
        let told = counted(closing.records, closing.first.as_deref(), closing.last.as_deref());
        if here != told {
            self.find(format!(
                "the closing line has {told}, and here are {here}: lines were left out or added in a way that the chains do not show"
            ));
        } else if said != sha256 {
            self.find(
                "the SHA-256 of all lines is not that of the closing line: lines were moved, added, left out or changed in a way that the chains \
                 do not show"
                    .to_owned(),
            );
        } else if let Some((message, index @ 1..)) = self.first {
            self.find(format!("the export begins in the middle of message {message} of the trail, with cursor {message}.{index}"));
        }
    }

    fn take(&mut self, exported: Exported) {
        self.records += 1;
        let name = format!("record {} of {} (chain of {}, cursor {})", exported.sequence, exported.writer, exported.start, exported.cursor);
        let record: Option<Record> = serde_json::from_str(exported.record.get()).ok();
        let found = self.findings.len();
        let misplaced = self.check_place(&exported, &name);
        if !is_own(&exported, record.as_ref()) {
            self.find(format!("{name} was published on {}, which is not for that writer", exported.subject));
        }
        let signs = record.as_ref().is_some_and(|record| record.verdict == Verdict::Signed);
        if signs && subjects::parse_audit(&exported.subject).is_none_or(|(category, _)| category != subjects::AUDIT_KEYMASTER) {
            self.find(format!("{name} says `signed`, which the keymaster alone can say, and was published on {}", exported.subject));
        }
        if exported.sequence == 0 {
            self.find(format!("{name} was changed: no chain has a record 0"));
        }
        if hash(&exported.previous, exported.sequence, exported.record.get()) != exported.hash {
            self.find(format!("{name} was changed: its hash does not fit what it says"));
        }
        let told = self.check_chain(exported, &name, record.as_ref(), found);
        if let Some(detail) = misplaced.filter(|_| !told) {
            self.find(detail);
        }
    }

    /// The messages of the trail are numbered without a gap, whoever wrote them. What it returns is told where the chain does not tell the same.
    fn check_place(&mut self, exported: &Exported, name: &str) -> Option<String> {
        let cursor = &exported.cursor;
        self.cursors = Some((self.cursors.take().map_or_else(|| cursor.clone(), |(first, _)| first), cursor.clone()));
        let place = cursor.split_once('.').and_then(|(message, index)| Some((message.parse().ok()?, index.parse().ok()?)));
        let Some((message, index)): Option<(u64, u64)> = place else {
            self.find(format!("{name} has no cursor such as 1200.3"));
            return None;
        };
        let before = std::mem::replace(&mut self.here, message);
        if self.first.is_none() {
            self.first = Some((message, index));
            self.from_the_beginning = (message, index) == (1, 0);
        }
        if index == 0 {
            self.headless.remove(&message);
        }
        let furthest = *self.furthest.get_or_insert(message);
        if message < furthest {
            fill(&mut self.gaps, message);
            // All of a message is told once.
            return (before != message).then(|| format!("{name} is out of its place: message {furthest} of the trail came before it"));
        }
        if message > furthest {
            self.furthest = Some(message);
            // An export may begin in the middle of a message, and goes on with whole ones.
            if index > 0 {
                self.headless.insert(message, (self.line, name.to_owned()));
            }
            if message - furthest > 1 {
                let (last, before) = (message - 1, name.to_owned());
                self.gaps.insert(furthest + 1, Gap { last, line: self.line, before, between: (furthest, message) });
            }
        }
        None
    }

    /// Whether it told that this one is out of its place.
    fn check_chain(&mut self, exported: Exported, name: &str, record: Option<&Record>, found: usize) -> bool {
        let Exported { writer, start, sequence, previous, hash, .. } = exported;
        let (key, place) = ((writer, start), (beginning_of(&hash), self.here));
        let lost = usize::from(record.is_some_and(|record| record.verdict == Verdict::Lost));
        let time = record.map_or_else(|| "-".to_owned(), |record| record.time.to_string());
        let gap = |last: u64, from: u64, line: usize| Gap { last, line, before: name.to_owned(), between: (from, place.1) };
        let mut told = false;
        let Some(mut read) = self.chains.remove(&key) else {
            let from_the_beginning = sequence == 1;
            if from_the_beginning && previous != beginning(&key.0, &key.1) {
                self.find(format!("{name} was changed: it does not begin the chain that it names"));
            }
            // An export that begins with the trail has the beginning of every chain.
            let gaps = if sequence > 1 && self.from_the_beginning {
                BTreeMap::from([(1, gap(sequence - 1, 0, self.line))])
            } else {
                BTreeMap::new()
            };
            let (places, before, found) = (BTreeMap::from([(sequence, place)]), previous, self.findings.len() > found);
            self.chains.insert(
                key,
                Read {
                    from_the_beginning,
                    first: sequence,
                    last: sequence,
                    hash,
                    time,
                    lost,
                    before,
                    places,
                    gaps,
                    misplaced: None,
                    found,
                },
            );
            return told;
        };
        let after = read.misplaced.take();
        if sequence <= read.last {
            match read.places.get(&sequence) {
                // Sent once more, because its acknowledgement was lost.
                Some((before, _)) if *before == place.0 => self.repeated += 1,
                Some(_) => {
                    told = true;
                    self.find(format!("{name} is there twice, and not the same"));
                }
                None => {
                    told = true;
                    // All of what was moved is told once.
                    if after.is_none_or(|after| after.checked_add(1) != Some(sequence)) {
                        self.find(format!("{name} is out of its place: record {} came before it", read.last));
                    }
                    fill(&mut read.gaps, sequence);
                    read.places.insert(sequence, place);
                    read.misplaced = Some(sequence);
                    if sequence < read.first {
                        (read.first, read.from_the_beginning, read.before) = (sequence, sequence == 1, previous);
                    }
                }
            }
        } else {
            if sequence > read.last + 1 {
                let from = read.places.get(&read.last).map_or(0, |(_, message)| *message);
                read.gaps.insert(read.last + 1, gap(sequence - 1, from, self.line));
            } else if previous != read.hash {
                self.find(format!("{name} does not follow record {}: one of the two was changed or is not in its place", read.last));
            }
            read.places.insert(sequence, place);
            (read.last, read.hash, read.time, read.lost) = (sequence, hash, time, read.lost + lost);
        }
        read.found |= self.findings.len() > found;
        self.chains.insert(key, read);
        told
    }
}

/// Takes a number out of what is missing.
fn fill(gaps: &mut BTreeMap<u64, Gap>, number: u64) {
    let Some((first, gap)) = gaps.range(..=number).next_back().map(|(first, gap)| (*first, gap.clone())) else { return };
    if gap.last < number {
        return;
    }
    gaps.remove(&first);
    if first < number {
        gaps.insert(first, Gap { last: number - 1, ..gap.clone() });
    }
    if number < gap.last {
        gaps.insert(number + 1, gap);
    }
}

fn of_chain((writer, start): &(String, String)) -> String {
    format!("{writer} (chain of {start})")
}

fn missing(what: &str, first: u64, last: u64, of: &str) -> String {
    format!("{} of {of} {} missing", gap(what, first, last), if first == last { "is" } else { "are" })
}

fn counted(records: usize, first: Option<&str>, last: Option<&str>) -> String {
    let records = format!("{records} record{}", if records == 1 { "" } else { "s" });
    first.zip(last).map_or_else(|| records.clone(), |(first, last)| format!("{records} from cursor {first} to {last}"))
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
    use crate::audit::closing::Closer;

    /// Two writers with three messages in turn, and how the export of that ends.
    fn export() -> Vec<String> {
        closed(&records())
    }

    /// With the closing line of an export of these.
    fn closed(lines: &[String]) -> Vec<String> {
        let (mut closer, mut all) = (Closer::default(), lines.to_vec());
        for line in lines {
            assert_eq!(closer.record(&serde_json::from_str(line).unwrap()).unwrap(), *line);
        }
        all.push(closer.close(None, None).unwrap().0);
        all
    }

    /// Two writers with three messages in turn, of three records each.
    fn records() -> Vec<String> {
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
        assert_eq!((all.records, all.chains.len(), all.findings, all.messages), (18, 2, Vec::new(), Some((1, 6))));
        assert!(all.closing.is_some_and(|(closing, sha256)| closing.records == 18 && export().len() == 19 && sha256.len() == 64));
        assert!(all.chains.values().all(|read| read.from_the_beginning));
        // From a later message on, to an earlier.
        let part = verified(&closed(&records()[3..12]));
        assert_eq!((part.records, part.findings), (9, Vec::new()));
        assert!(part.chains.values().any(|read| !read.from_the_beginning));
    }

    /// Finds this, there, and nothing else.
    #[track_caller]
    fn finds_only(lines: &[String], line: usize, part: &str) {
        let findings = verified(lines).findings;
        assert!(findings.len() == 1 && findings[0].line == line && findings[0].detail.contains(part), "{part}: {findings:#?}");
    }

    /// A line with another hash, one that fits.
    fn hashed_anew(line: &str) -> String {
        let mut exported: Exported = serde_json::from_str(line).unwrap();
        exported.hash = hash(&exported.previous, exported.sequence, exported.record.get());
        serde_json::to_string(&exported).unwrap()
    }

    fn at(line: &str, cursor: &str) -> String {
        let exported: Exported = serde_json::from_str(line).unwrap();
        serde_json::to_string(&Exported { cursor: cursor.to_owned(), ..exported }).unwrap()
    }

    #[test]
    fn one_that_was_changed_is_named() {
        for (line, was, name) in
            [(0, "1-a", "record 1 of api-1"), (4, "2-b", "record 5 of api-1"), (14, "5-c", "12 of api-1"), (17, "6-c", "6 of command-1")]
        {
            let mut lines = export();
            lines[line] = lines[line].replace(was, "x");
            finds_only(&lines, line + 1, &format!("{name} (chain of "));
            finds_only(&lines, line + 1, "was changed: its hash does not fit");
            // With a hash that fits, the next one of the chain says it; and of the last, the closing line.
            lines[line] = hashed_anew(&lines[line]);
            match line {
                0 => finds_only(&lines, 2, "record 2 of api-1"),
                4 => finds_only(&lines, 6, "record 6 of api-1"),
                _ => finds_only(&lines, 19, "was changed: its hash is not the last that the closing line has of it"),
            }
        }
        let mut lines = export();
        lines[0] = lines[0].replace("api-1\",\"start", "api-2\",\"start");
        finds(&lines, 1, "which is not for that writer");
        finds(&lines, 1, "does not begin the chain that it names");
    }

    #[test]
    fn one_that_is_missing_is_named() {
        for (line, found, part) in [
            (0, 18, "record 1 of api-1 (chain of "),
            (2, 3, "record 3 of api-1"),
            (3, 4, "record 4 of api-1"),
            (4, 5, "record 5 of api-1"),
            (6, 7, "record 1 of command-1"),
            (14, 18, "record 12 of api-1"),
            (15, 16, "record 4 of command-1"),
            (17, 18, "record 6 of command-1"),
        ] {
            let mut lines = export();
            lines.remove(line);
            finds_only(&lines, found, part);
            finds_only(&lines, found, "is missing");
        }
        // A message.
        for (first, found, part) in [
            (0, 16, "records 1 to 3 of api-1 (chain of "),
            (3, 7, "records 4 to 6 of api-1"),
            (6, 13, "records 1 to 3 of command-1"),
            (12, 16, "records 10 to 12 of api-1"),
            (15, 16, "records 4 to 6 of command-1"),
        ] {
            let mut lines = export();
            lines.drain(first..first + 3);
            finds_only(&lines, found, part);
            finds_only(&lines, found, "are missing");
        }
        // Where another name for the chain hides the gap: the export begins with the trail.
        let mut lines = export();
        lines.remove(4);
        lines[4] = lines[4].replace("\"start\":\"", "\"start\":\"x");
        finds(&lines, 5, "records 1 to 5 of api-1 (chain of x");
        // A message of which nothing else tells: its records were sent again.
        let mut lines = records();
        let again: Vec<String> = (0..3).map(|index| at(&lines[12 + index], &format!("7.{index}"))).collect();
        lines.extend(again);
        lines.push(at(&lines[12], "8.0"));
        let mut lines = closed(&lines);
        lines.drain(18..21);
        finds_only(&lines, 19, "message 7 of the trail is missing, before record 10 of api-1");
    }

    #[test]
    fn a_chain_that_is_gone_is_named_whatever_the_cursors_say() {
        let mut lines = records();
        lines.truncate(9);
        let batch: Batch =
            serde_json::from_slice(&Chain::begin("sentry").batch(&[Record::new(Verdict::Denied, "x")], 65536).unwrap().0).unwrap();
        let of_sentry = batch.exported("audit.v1.violation.sentry", 2).map(|exported| serde_json::to_string(&exported).unwrap());
        lines.splice(3..3, of_sentry);
        for (line, message) in lines[4..].iter_mut().zip([3, 3, 3, 4, 4, 4]) {
            let index = line.split(['.', '"']).nth(4).unwrap().to_owned();
            *line = at(line, &format!("{message}.{index}"));
        }
        assert_eq!(verified(&closed(&lines)).findings, Vec::new());
        let mut without = closed(&lines);
        without.remove(3);
        finds_only(&without, 10, "record 1 of sentry (chain of ");
        for (line, message) in without[3..9].iter_mut().zip([2, 2, 2, 3, 3, 3]) {
            let index = line.split(['.', '"']).nth(4).unwrap().to_owned();
            *line = at(line, &format!("{message}.{index}"));
        }
        finds_only(&without, 10, "is missing: the closing line has that chain, and no line is of it");
    }

    #[test]
    fn what_was_cut_off_is_said_to_be() {
        for length in [1, 9, 17, 18] {
            finds_only(&export()[..length], length, "and not with its closing line: it was cut off, or is still being written");
        }
        for line in [8, 17, 18] {
            let mut lines = export();
            lines.truncate(line + 1);
            let half = lines[line].len() / 2;
            lines[line].truncate(half);
            finds_only(
                &lines,
                line + 1,
                "neither a record nor the closing line, with which an export ends: it was cut off here, or changed",
            );
        }
        assert!(verified(&[]).findings.is_empty(), "there is nothing in it");
    }

    #[test]
    fn two_that_were_swapped_are_named() {
        for (line, part) in [(0, "record 1 of api-1"), (2, "record 3 of api-1"), (3, "4 of api-1"), (16, "5 of command-1")] {
            let mut lines = export();
            lines.swap(line, line + 1);
            finds_only(&lines, line + 2, part);
            finds_only(&lines, line + 2, "is out of its place");
            // Each with the cursor of the other's place.
            let places: Vec<Exported> = [line, line + 1].iter().map(|line| serde_json::from_str(&lines[*line]).unwrap()).collect();
            lines[line] = at(&lines[line], &places[1].cursor);
            lines[line + 1] = at(&lines[line + 1], &places[0].cursor);
            finds_only(&lines, line + 2, "is out of its place");
        }
        // Two messages of one writer.
        let mut lines = export();
        lines[..6].rotate_left(3);
        finds_only(&lines, 4, "record 1 of api-1");
        // Of two writers.
        let mut lines = export();
        lines.swap(5, 6);
        finds_only(&lines, 7, "record 6 of api-1");
        let mut lines = export();
        lines[3..9].rotate_left(3);
        finds_only(&lines, 7, "record 4 of api-1");
        // Only what they say, each keeping its place and hash.
        let mut lines = export();
        lines[3] = lines[3].replace("2-a", "2-?").replace("\"a\"", "\"b\"").replace("2-?", "2-b");
        lines[4] = lines[4].replace("2-b", "2-?").replace("\"b\"", "\"a\"").replace("2-?", "2-a");
        finds(&lines, 4, "record 4 of api-1");
        finds(&lines, 5, "record 5 of api-1");
    }

    #[test]
    fn what_no_chain_shows_the_digest_does() {
        let part = "the SHA-256 of all lines is not that of the closing line: lines were moved, added, left out or changed";
        // Records of two writers, and messages, with each other's cursors.
        let mut lines = export();
        lines.swap(5, 6);
        (lines[5], lines[6]) = (at(&lines[5], "2.2"), at(&lines[6], "3.0"));
        finds_only(&lines, 19, part);
        let mut lines = export();
        lines[3..9].rotate_left(3);
        for (line, (message, index)) in lines[3..9].iter_mut().zip([(2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2)]) {
            *line = at(line, &format!("{message}.{index}"));
        }
        finds_only(&lines, 19, part);
        // One that is there twice, beside itself or as if it had been sent again.
        let mut lines = export();
        lines.insert(5, lines[4].clone());
        finds_only(&lines, 20, "the closing line has 18 records from cursor 1.0 to 6.2, and here are 19 records from cursor 1.0 to 6.2");
        let mut lines = export();
        lines.insert(18, at(&lines[4], "7.0"));
        finds_only(&lines, 20, "and here are 19 records from cursor 1.0 to 7.0");
        let mut lines = export();
        lines.insert(18, lines[4].clone());
        finds_only(&lines, 19, "record 5 of api-1");
        // A line of nothing; and anything of the closing line itself.
        let mut lines = export();
        lines.insert(4, String::new());
        finds_only(&lines, 20, part);
        let mut lines = export();
        lines[18] = lines[18].replace("{\"records\"", "{\"since\":\"2026-01-31T12:00:00Z\",\"records\"");
        finds_only(&lines, 19, part);
        lines[18] = lines[18].replace("since", "sinse");
        finds_only(&lines, 19, "the closing line was changed: ");
    }

    #[test]
    fn what_was_added_is_found() {
        let mut lines = export();
        lines.push(lines[4].clone());
        lines.push(String::new());
        finds_only(&lines, 20, "comes after the closing line");
        // A record that continues its chain.
        let mut lines = export();
        let last: Exported = serde_json::from_str(&lines[17]).unwrap();
        let (cursor, sequence, previous) = ("7.0".to_owned(), 7, last.hash.clone());
        let next = Exported { cursor, sequence, previous, ..last };
        lines.insert(18, hashed_anew(&serde_json::to_string(&next).unwrap()));
        finds_only(&lines, 20, "the closing line does not have record 7 of command-1 (chain of ");
        // What was closed anew is whole, but it begins where no export does.
        finds_only(&closed(&records()[1..]), 18, "the export begins in the middle of message 1 of the trail, with cursor 1.1");
    }

    #[test]
    fn what_the_keymaster_alone_can_say_is_found_where_another_says_it() {
        let said_on = |subject: &str, writer: &str| {
            let (payload, _) = Chain::begin(writer).batch([&Record::new(Verdict::Signed, "part:api-2")], 64 * 1024).unwrap();
            let batch: Batch = serde_json::from_slice(&payload).unwrap();
            let lines: Vec<String> = batch.exported(subject, 1).map(|exported| serde_json::to_string(&exported).unwrap()).collect();
            verified(&closed(&lines)).findings
        };
        assert_eq!(said_on("audit.v1.keymaster.keymaster-desk", "keymaster-desk"), Vec::new());
        let found = said_on("audit.v1.api.api-1", "api-1");
        assert!(found.len() == 1 && found[0].detail.contains("which the keymaster alone can say"), "{found:?}");
    }

    #[test]
    fn one_that_was_sent_again_is_no_other() {
        let mut lines = records();
        let again: Vec<String> = lines[12..15].iter().map(|line| line.replace("\"cursor\":\"5.", "\"cursor\":\"7.")).collect();
        lines.extend(again);
        let all = verified(&closed(&lines));
        assert_eq!((all.repeated, all.findings), (3, Vec::new()));
    }

    #[test]
    fn a_later_export_goes_on_where_the_earlier_ends_or_has_it_too() {
        let lines = records();
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
        let told = against(&lines, &records());
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
