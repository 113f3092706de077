use std::fs;

use probeops_shared::audit::chain::{Batch, began_at, hash};

use super::spool::WAITING_MAX;
use super::*;
use crate::testing::Scratch;

const MIB: usize = 1024 * 1024;
/// Up to so many waiting records those of what was refused are added.
const REFUSED_MAX: usize = WAITING_MAX / 2;

fn node() -> NodeRef {
    NodeRef { id: "a-1".parse().unwrap(), region: "eu".parse().unwrap() }
}

fn open(folder: Option<&Path>) -> Trail {
    Trail::open(node(), Arc::default(), folder, 64 * MIB).unwrap()
}

fn started(name: &str) -> Record {
    Record { request_id: name.to_owned(), ..Record::new(Verdict::Started, "svc") }
}

/// What a start of the agent finds after this one was killed: the file as it is now.
async fn found_by_the_next(folder: &Path) -> (Scratch, Trail) {
    let next = Scratch::new();
    fs::copy(folder.join("audit.spool"), next.path().join("audit.spool")).unwrap();
    let trail = open(Some(next.path()));
    trail.all_stored().await.unwrap();
    (next, trail)
}

fn sent(trail: &Trail) -> Batch {
    serde_json::from_slice(&trail.batch(false).unwrap().0).unwrap()
}

fn names(batch: &Batch) -> Vec<String> {
    let name = |record: Record| if record.request_id.is_empty() { record.verdict.as_str().to_owned() } else { record.request_id };
    batch.records.iter().map(|link| name(serde_json::from_str(link.record.get()).unwrap())).collect()
}

async fn kept(trail: &Trail, names: &[&str]) {
    for name in names {
        drop(trail.begin(started(name)).unwrap());
    }
    trail.all_stored().await.unwrap();
}

#[test]
fn a_batch_fits_a_message_whatever_callers_wrote() {
    let trail = open(None);
    let odd = "\u{1}".repeat(2_000);
    for _ in 0..BATCH_MAX {
        let (tool, target, detail, request_id) = (odd.clone(), odd.clone(), "\u{1}".repeat(16_000), odd.clone());
        trail.record(Record { tool, target, detail, request_id, ..Record::new(Verdict::Denied, odd.clone()) });
    }
    let (payload, count) = trail.batch(false).unwrap();
    assert!((5..BATCH_MAX).contains(&count) && payload.len() <= BATCH_BYTES_MAX, "{count}");
    let batch: Batch = serde_json::from_slice(&payload).unwrap();
    assert!(batch.records[0].record.get().len() <= probeops_shared::audit::RECORD_BYTES_MAX);
    let record: Record = serde_json::from_str(batch.records[0].record.get()).unwrap();
    assert_eq!(record.detail.chars().count(), DETAIL_CHARS_MAX + 1);
}

#[test]
fn what_has_begun_has_room_for_its_end_and_nothing_begins_without() {
    let trail = open(None);
    let first = trail.begin(started("x")).unwrap();
    while trail.0.waiting().len() < REFUSED_MAX - 1 {
        trail.record(Record::new(Verdict::Denied, "svc"));
    }
    for _ in REFUSED_MAX - 1..WAITING_MAX - 2 {
        trail.promise().unwrap().keep(Record::new(Verdict::Finished, "svc"));
    }
    assert!(trail.begin(started("x")).unwrap_err().contains("49998 of them wait"), "it would need two");
    let second = trail.promise().unwrap();
    assert!(trail.promise().is_err());
    trail.record(Record::new(Verdict::Denied, "svc"));
    first.keep(Record::new(Verdict::Finished, "svc"));
    let counts = {
        let waiting = trail.0.waiting();
        (waiting.len(), waiting.promised, waiting.lost)
    };
    assert_eq!(counts, (WAITING_MAX - 1, 1, 1));
    drop(second);
    // What was left out is told as soon as there is room.
    drop(trail.batch(false));
    let waiting = trail.0.waiting();
    assert_eq!((waiting.len(), waiting.lost), (WAITING_MAX, 0));
}

#[test]
fn bytes_are_bounded_too() {
    let trail = Trail::open(node(), Arc::default(), None, MIB).unwrap();
    let mut count = 0;
    while let Ok(promise) = trail.begin(Record { detail: "x".repeat(400), ..started("x") }) {
        promise.keep(Record::new(Verdict::Finished, "svc"));
        count += 1;
    }
    assert!((500..1_500).contains(&count), "{count}");
}

#[tokio::test]
async fn who_is_killed_goes_on_where_the_file_ends_and_says_nothing_twice() {
    let scratch = Scratch::new();
    let first = open(Some(scratch.path()));
    assert!(first.origin().starts_with("a new chain"));
    kept(&first, &["a", "b", "c"]).await;
    let message = sent(&first);
    assert_eq!((names(&message), message.sequence), (vec!["a".to_owned(), "b".to_owned(), "c".to_owned()], 1));
    // Killed before the acknowledgement came, the same is said again, in the same chain.
    let (folder, second) = found_by_the_next(scratch.path()).await;
    assert_eq!(second.origin(), "its records go on with number 4, and 3 of those before wait");
    kept(&second, &["d"]).await;
    let again = sent(&second);
    assert_eq!((names(&again).join(""), again.sequence, &again.start), ("abcd".to_owned(), 1, &message.start));
    assert_eq!(again.records[3].hash, hash(&message.records[2].hash, 4, again.records[3].record.get()));
    // Killed after it, only what follows.
    second.0.acknowledged(3);
    kept(&second, &["e"]).await;
    let (folder, third) = found_by_the_next(folder.path()).await;
    let rest = sent(&third);
    assert_eq!((names(&rest).join(""), rest.sequence, &rest.previous), ("de".to_owned(), 4, &message.records[2].hash));
    // And where all was acknowledged the chain goes on all the same.
    third.0.acknowledged(2);
    third.close().await;
    let (_folder, fourth) = found_by_the_next(folder.path()).await;
    kept(&fourth, &["f"]).await;
    assert_eq!((names(&sent(&fourth)).join(""), sent(&fourth).sequence), ("f".to_owned(), 6));
    assert!(Trail::open(node(), Arc::default(), Some(scratch.path()), MIB).unwrap_err().contains("another agent"));
}

#[tokio::test]
async fn a_file_grows_no_more_than_what_waits_needs() {
    let scratch = Scratch::new();
    let trail = open(Some(scratch.path()));
    for _ in 0..100 {
        for _ in 0..BATCH_MAX {
            trail.promise().unwrap().keep(Record { detail: "x".repeat(400), ..started("x") });
        }
        trail.all_stored().await.unwrap();
        trail.0.acknowledged(BATCH_MAX);
    }
    kept(&trail, &["y"]).await;
    let bytes = fs::metadata(scratch.path().join("audit.spool")).unwrap().len();
    assert!(bytes < 3 * 1024 * 1024, "{bytes}");
    assert_eq!((names(&sent(&trail)).join(""), sent(&trail).sequence), ("y".to_owned(), 10_001));
}

#[tokio::test]
async fn a_line_that_was_written_in_part_is_left_out_and_told_and_one_that_was_changed_ends_what_is_believed() {
    let scratch = Scratch::new();
    let trail = open(Some(scratch.path()));
    kept(&trail, &["a", "b", "c"]).await;
    let file = scratch.path().join("audit.spool");
    let whole = fs::read_to_string(&file).unwrap();
    let begun_with = async |text: &str| {
        let scratch = Scratch::new();
        fs::write(scratch.path().join("audit.spool"), text).unwrap();
        let trail = open(Some(scratch.path()));
        kept(&trail, &["z"]).await;
        let message = sent(&trail);
        let lost: Option<Record> = message.records.iter().rev().nth(1).map(|link| serde_json::from_str(link.record.get()).unwrap());
        let aside = fs::read_to_string(scratch.path().join("audit.damaged")).ok();
        (names(&message).join(" "), message.sequence, lost.unwrap().detail, aside)
    };
    let (said, sequence, why, aside) = begun_with(&whole[..whole.len() - 5]).await;
    assert_eq!((said.as_str(), sequence, aside), ("a b lost z", 1, None));
    assert_eq!(why, "the last audit record of an earlier start was written only in part, and is left out");
    let changed = whole.replacen("\"b\"", "\"x\"", 1);
    let (said, _, why, aside) = begun_with(&changed).await;
    assert_eq!((said.as_str(), aside.as_ref()), ("a lost z", Some(&changed)));
    assert!(why.starts_with("its audit records from line 3 of their file on are damaged"), "{why}");
    for other in [whole.replacen("node:a-1", "node:b-1", 1), "\0\0\0".to_owned(), "{}\n".to_owned()] {
        let (said, sequence, why, aside) = begun_with(&other).await;
        assert_eq!((said.as_str(), sequence, aside.as_ref()), ("lost z", 1, Some(&other)));
        assert!(why.starts_with("its audit records from before cannot be sent"), "{why}");
    }
}

#[tokio::test]
async fn where_nothing_can_be_written_nothing_begins_until_it_can() {
    let scratch = Scratch::new();
    // Where a file is written aside there is a folder.
    let obstacle = scratch.path().join("audit.new");
    fs::create_dir(&obstacle).unwrap();
    let trail = open(Some(scratch.path()));
    let refused = trail.all_stored().await.map(drop);
    assert!(refused.is_ok(), "nothing was said yet");
    let why = match trail.begin(started("a")) {
        Ok(promise) => promise.begun().await.unwrap_err(),
        Err(why) => why,
    };
    assert!(why.starts_with("audit records cannot be written to ") && why.contains("audit.spool"), "{why}");
    assert_eq!(trail.promise().unwrap_err(), why);
    trail.record(Record::new(Verdict::Denied, "svc"));
    assert!(trail.batch(false).is_none(), "what a next start would not know of is not sent");
    fs::remove_dir(&obstacle).unwrap();
    loop {
        let told = trail.0.written.notified();
        if trail.promise().is_ok() {
            break;
        }
        tokio::time::timeout(Duration::from_secs(60), told).await.unwrap();
    }
    assert!(trail.batch(false).is_some());
    trail.close().await;
}

#[tokio::test]
async fn what_is_not_taken_begins_a_new_chain_and_what_is_not_taken_then_is_left_out() {
    let scratch = Scratch::new();
    let trail = open(Some(scratch.path()));
    kept(&trail, &["a", "b"]).await;
    trail.0.acknowledged(1);
    let old = sent(&trail);
    assert_eq!(old.sequence, 2);
    let an_hour_ago = Timestamp::from_unix_ms(Timestamp::now().unix_ms() - 3_600_000).unwrap();
    let refusal = |why: &str, after| Refusal { why: why.to_owned(), after };
    trail.0.refused(1, &refusal("it does not follow", None), an_hour_ago);
    trail.all_stored().await.unwrap();
    let new = sent(&trail);
    assert_eq!((names(&new).join(" "), new.sequence), ("reported b".to_owned(), 1));
    assert_ne!(new.start, old.start);
    let records: Vec<Record> = new.records.iter().map(|link| serde_json::from_str(link.record.get()).unwrap()).collect();
    assert!(records[0].detail.ends_with("the one before: it does not follow"), "{:?}", records[0]);
    assert!(records.iter().all(|record| record.time <= an_hour_ago), "a clock that is ahead is put right");
    // A start that comes now knows the new chain only.
    let (_folder, next) = found_by_the_next(scratch.path()).await;
    assert_eq!(sent(&next).start, new.start);
    let tomorrow = Timestamp::now().plus(Duration::from_hours(24));
    trail.0.refused(2, &refusal("no", Some(tomorrow)), an_hour_ago);
    trail.all_stored().await.unwrap();
    assert_eq!(names(&sent(&trail)).join(" "), "lost");
    assert!(began_at(&sent(&trail).start).unwrap() > tomorrow);
}

#[test]
fn what_the_disk_does_not_take_is_told_of_every_record_that_waits() {
    let mut waiting = Waiting::with_file(Chain::of_node("a-1"), Vec::new(), MIB);
    let first = waiting.work().unwrap();
    waiting.worked(&first, Ok(()));
    waiting.push(&started("a"));
    assert!(waiting.is_stored(1).is_none());
    let work = waiting.work().unwrap();
    assert!(!work.anew);
    waiting.worked(&work, Err("no space".to_owned()));
    assert_eq!(waiting.is_stored(1), Some(Err("no space".to_owned())));
    assert_eq!(waiting.has_room(1), Err("no space".to_owned()));
    let whole = waiting.work().unwrap();
    assert!(whole.anew && String::from_utf8(whole.lines.clone()).unwrap().contains("\"request_id\":\"a\""));
    // A new chain that begins while it is written is not taken for written.
    waiting.begin_anew(Chain::of_node("a-1"), &started("first"), 0, Timestamp::now());
    waiting.worked(&whole, Ok(()));
    assert!(waiting.batch(MIB, false).is_none());
    let whole = waiting.work().unwrap();
    waiting.worked(&whole, Ok(()));
    assert_eq!(waiting.batch(MIB, false).unwrap().1, 2);
}
