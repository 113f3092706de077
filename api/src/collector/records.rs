//! What a node says for the trail, before it is stored: whether it is its own, sane, and follows what the trail has of it. So nobody but who holds
//! the broker can make the trail look as if it had been tampered with.

use std::time::Duration;

use probeops_shared::audit::chain::{Batch, began_at, beginning, hash, node_writer};
use probeops_shared::audit::{BATCH_MAX, RECORD_BYTES_MAX, Record, Verdict};
use probeops_shared::ids::{NodeId, Region};
use probeops_shared::planted;
use probeops_shared::presence::Refusal;
use probeops_shared::timestamp::Timestamp;
use serde_json::value::RawValue;

/// The largest batch that an agent sends, with room for what is around its records.
const BATCH_BYTES_MAX: usize = 160 * 1024;
/// No node has so many records, and behind it there are numbers left.
const SEQUENCE_MAX: u64 = 1 << 53;
/// How far in the future a record may be: further off no clock of a node is that the broker lets in, and what is further stands above all others.
const AHEAD_MAX: Duration = Duration::from_hours(24);

/// Records as they came.
pub(super) type Records<'a> = Batch<&'a RawValue>;

/// The end of what the trail has of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct End {
    /// The message's place in the trail; 0 where there is none.
    pub(super) message: u64,
    /// The chain, the number of its last record, and that one's hash; none where there is no message, or none of ours.
    chain: Option<(String, u64, String)>,
}

/// Reads a message of a node.
pub(super) fn read<'a>(payload: &'a [u8], region: &Region, node: &NodeId, now: Timestamp) -> Result<Records<'a>, String> {
    if payload.len() > BATCH_BYTES_MAX {
        return Err(format!("its audit records have {} bytes, not at most {BATCH_BYTES_MAX}", payload.len()));
    }
    let batch: Records<'_> = serde_json::from_slice(payload).map_err(|error| format!("they are no audit records: {error}"))?;
    if batch.records.is_empty() || batch.records.len() > BATCH_MAX {
        return Err(format!("it sends {} audit records at once, not 1 to {BATCH_MAX}", batch.records.len()));
    }
    if batch.writer != node_writer(node) {
        return Err("its audit records are in the name of another writer".to_owned());
    }
    if !(1..=SEQUENCE_MAX).contains(&batch.sequence) {
        return Err(format!("its audit records begin with number {}, not 1 to {SEQUENCE_MAX}", batch.sequence));
    }
    let latest = now.plus(AHEAD_MAX);
    if began_at(&batch.start).is_none_or(|began| began > latest) {
        return Err("its chain of audit records does not begin at a time, or one that is far from now".to_owned());
    }
    let mut before = batch.previous.as_str();
    for (link, sequence) in batch.records.iter().zip(batch.sequence..) {
        check(link.record, region, node, latest).map_err(|why| format!("its audit record {sequence} {why}"))?;
        if link.hash != hash(before, sequence, link.record.get()) {
            return Err(format!("its audit record {sequence} has a hash that is not its own"));
        }
        before = &link.hash;
    }
    Ok(batch)
}

fn check(record: &RawValue, region: &Region, node: &NodeId, latest: Timestamp) -> Result<(), String> {
    let bytes = record.get().len();
    if bytes > RECORD_BYTES_MAX {
        return Err(format!("has {bytes} bytes, not at most {RECORD_BYTES_MAX}"));
    }
    let record: Record = serde_json::from_str(record.get()).map_err(|error| format!("is none: {error}"))?;
    let own = record.node.as_ref() == Some(node) && record.region.as_ref() == Some(region);
    if !(own || planted!("collector" if record.verdict == Verdict::Lost && record.node.is_some())) {
        return Err("is of another node".to_owned());
    }
    let nodes_do = match record.verdict {
        Verdict::Started | Verdict::Finished | Verdict::Denied | Verdict::Lost => true,
        Verdict::Reported => record.principal == node_writer(node),
        Verdict::Accepted | Verdict::Refused | Verdict::Changed | Verdict::Signed | Verdict::Read | Verdict::Violation => false,
    };
    if !nodes_do {
        return Err(format!("says `{}` for {}, which is not a node's to say", record.verdict.as_str(), record.principal));
    }
    if record.time > latest {
        return Err(format!("is of {}, which is far in the future", record.time));
    }
    if record.duration_ms.is_some_and(|duration_ms| !duration_ms.is_finite() || duration_ms < 0.0) {
        return Err("has a duration that is none".to_owned());
    }
    Ok(())
}

impl End {
    /// After this message of the trail.
    pub(super) fn after(message: u64, batch: &Records<'_>) -> Self {
        let chain = batch.records.last().map(|link| (batch.start.clone(), batch.last(), link.hash.clone()));
        Self { message, chain }
    }

    /// After a message of the trail that is as it was stored.
    pub(super) fn stored(message: u64, payload: &[u8]) -> Self {
        serde_json::from_slice::<Records<'_>>(payload).map_or_else(|_| Self { message, chain: None }, |batch| Self::after(message, &batch))
    }

    /// How many of these records the trail has already; or why they do not follow.
    pub(super) fn known_of(&self, batch: &Records<'_>) -> Result<usize, Refusal> {
        let refuse = |why: String| {
            let after = self.chain.as_ref().and_then(|(start, ..)| began_at(start));
            Refusal { why, after }
        };
        let Some((start, last, end)) = &self.chain else { return begins(batch).map_err(refuse) };
        if batch.start != *start {
            if began_at(&batch.start) <= began_at(start) {
                return Err(refuse(format!(
                    "its chain of audit records, which the trail does not go on with, began no later than {start}"
                )));
            }
            return begins(batch).map_err(refuse);
        }
        let first = batch.sequence;
        if first > last + 1 {
            return Err(refuse(format!("its audit record {first} comes after {last}, and those between are missing")));
        }
        if batch.last() < *last {
            // What was repeated by mistake, long after it was acknowledged.
            return Ok(batch.records.len());
        }
        let known = usize::try_from(last + 1 - first).unwrap_or(usize::MAX);
        let before = known.checked_sub(1).and_then(|index| batch.records.get(index)).map_or(&batch.previous, |link| &link.hash);
        if before != end {
            return Err(refuse(format!("its audit record {last} is another than the one that the trail has")));
        }
        Ok(known)
    }
}

/// Whether these are the first of a chain.
fn begins(batch: &Records<'_>) -> Result<usize, String> {
    if batch.sequence != 1 {
        return Err(format!(
            "the trail does not have the {} audit records before the first that it sends",
            batch.sequence.saturating_sub(1)
        ));
    }
    if batch.previous != beginning(&batch.writer, &batch.start) {
        return Err("its first audit record does not begin the chain that it names".to_owned());
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use probeops_shared::audit::chain::Chain;
    use serde_json::{Value, json};

    use super::*;

    fn record(name: &str) -> Record {
        let (node, region) = (Some("n-1".parse().unwrap()), Some("lab".parse().unwrap()));
        let time = Timestamp::from_unix_ms(1_769_860_800_000).unwrap();
        Record { time, node, region, request_id: name.to_owned(), ..Record::new(Verdict::Finished, "svc") }
    }

    fn batch(chain: &mut Chain, names: &[&str]) -> Vec<u8> {
        let records: Vec<Record> = names.iter().map(|name| record(name)).collect();
        chain.batch(&records, 64 * 1024).unwrap().0
    }

    fn of_node(payload: &[u8]) -> Result<Records<'_>, String> {
        read(payload, &"lab".parse().unwrap(), &"n-1".parse().unwrap(), Timestamp::now())
    }

    #[test]
    fn what_follows_is_taken_once() {
        let mut chain = Chain::of_node("n-1");
        let first = batch(&mut chain, &["a", "b"]);
        let second = batch(&mut chain, &["c", "d"]);
        let (first, second) = (of_node(&first).unwrap(), of_node(&second).unwrap());
        let end = End::default();
        assert_eq!(end.known_of(&first), Ok(0));
        assert!(end.known_of(&second).unwrap_err().why.starts_with("the trail does not have the 2 audit records before"));
        let end = End::after(7, &first);
        assert_eq!((end.known_of(&first), end.known_of(&second)), (Ok(2), Ok(0)));
        let end = End::after(8, &second);
        assert_eq!((end.known_of(&first), end.known_of(&second)), (Ok(2), Ok(2)));
        // What was sent before, and more; and what was sent otherwise.
        let mut chain = Chain::of_node("n-1");
        let [mut before, mut other] = [chain.clone(), chain.clone()];
        let end = End::stored(9, &batch(&mut before, &["a"]));
        let (all, other) = (batch(&mut chain, &["a", "b", "c"]), batch(&mut other, &["x", "b"]));
        let all = of_node(&all).unwrap();
        assert_eq!(end.known_of(&all), Ok(1));
        assert!(end.known_of(&of_node(&other).unwrap()).unwrap_err().why.contains("record 1 is another"));
        let rest = serde_json::to_vec(&all.clone().without(1)).unwrap();
        let rest = of_node(&rest).unwrap();
        assert_eq!((rest.sequence, rest.last(), end.known_of(&rest)), (2, 3, Ok(0)));
        let gap = serde_json::to_vec(&all.without(2)).unwrap();
        assert!(end.known_of(&of_node(&gap).unwrap()).unwrap_err().why.contains("record 3 comes after 1"));
    }

    #[test]
    fn another_chain_begins_later_and_at_its_first_record() {
        let mut old = Chain::of_node("n-1");
        let told = batch(&mut old, &["a"]);
        let end = End::stored(1, &told);
        let began = began_at(&of_node(&told).unwrap().start).unwrap();
        let earlier = Timestamp::from_unix_ms(began.unix_ms() - 1).unwrap();
        for (time, well) in [(began.plus(Duration::from_millis(1)), true), (earlier, false)] {
            let payload = batch(&mut Chain::begin_at("node:n-1", time), &["b"]);
            assert_eq!(end.known_of(&of_node(&payload).unwrap()).is_ok(), well, "{time}");
        }
        let mut new = Chain::begin_at("node:n-1", began.plus(Duration::from_secs(1)));
        drop(batch(&mut new, &["b"]));
        let payload = batch(&mut new, &["c"]);
        let refusal = end.known_of(&of_node(&payload).unwrap()).unwrap_err();
        assert_eq!(refusal.after, Some(began));
        // A message that is none of ours, or was not there, hinders nobody.
        assert_eq!(End::stored(3, b"?").known_of(&of_node(&told).unwrap()), Ok(0));
    }

    #[test]
    fn what_is_not_true_is_not_taken() {
        let good: Value = serde_json::from_slice(&batch(&mut Chain::of_node("n-1"), &["a", "b"])).unwrap();
        let far = Timestamp::now().plus(Duration::from_hours(48)).to_string();
        let lies: [(&str, Value, &str); 16] = [
            ("/writer", json!("node:n-2"), "another writer"),
            ("/start", json!("s"), "does not begin at a time"),
            ("/start", json!(format!("{far}/0123456789abcdef")), "far from now"),
            ("/sequence", json!(2), "record 2 has a hash"),
            ("/sequence", json!(0), "begin with number 0"),
            ("/sequence", json!(u64::MAX), "begin with number"),
            ("/previous", json!(""), "record 1 has a hash"),
            ("/records", json!([]), "0 audit records"),
            ("/records/1/hash", json!("x"), "record 2 has a hash"),
            ("/records/0/record/target", json!("other"), "record 1 has a hash"),
            ("/records/0/record/node", json!("n-2"), "is of another node"),
            ("/records/0/record/verdict", json!("changed"), "not a node's to say"),
            ("/records/0/record/verdict", json!("reported"), "not a node's to say"),
            ("/records/0/record/time", json!(far), "far in the future"),
            ("/records/0/record/duration_ms", json!(-1.0), "a duration that is none"),
            ("/records/0/record/detail", json!("x".repeat(RECORD_BYTES_MAX)), "bytes, not at most"),
        ];
        for (place, lie, why) in lies {
            let mut batch = good.clone();
            if let Some(field) = batch.pointer_mut(place) {
                *field = lie;
            } else {
                let name = place.rsplit('/').next().unwrap().to_owned();
                batch["records"][0]["record"].as_object_mut().unwrap().insert(name, lie);
            }
            let told = of_node(batch.to_string().as_bytes()).unwrap_err();
            assert!(told.contains(why), "{place}: {told}");
        }
        assert!(of_node(b"[]").unwrap_err().starts_with("they are no audit records"));
        assert!(of_node(&vec![b' '; BATCH_BYTES_MAX + 1]).unwrap_err().contains("bytes, not at most"));
    }
}
