//! What nodes and the API say to each other beside jobs, and what registers and files keep of that.

use std::sync::OnceLock;

use probeops_agent::fuzzing as agent;
use probeops_api::access::keys::KeyRecord;
use probeops_api::enroll::tokens::TokenRecord;
use probeops_api::fuzzing as api;
use probeops_shared::access::Rate;
use probeops_shared::audit::chain::{Chain, Link, beginning, hash};
use probeops_shared::audit::{Record, Verdict};
use probeops_shared::enroll::NodeCredential;
use probeops_shared::ids::{NodeId, Region};
use probeops_shared::invalid::Invalid;
use probeops_shared::job::Event;
use probeops_shared::presence::{Beat, EventAck, Shares};
use probeops_shared::registry::{NodeGrant, RevokedKey, ServiceGrant, ValidFor};
use probeops_shared::timestamp::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::{alike, chosen};

/// A refusal repeats little of what was sent.
const DETAIL_LENGTH_MAX: usize = 4_096;
/// The writer of the file of records that wait here, and when its chain began.
const WRITER: &str = "node:n1";
const BEGAN: &str = "2026-01-02T03:04:05.678000Z/0123456789abcdef";
/// What clocks show here: 2026-11-28 12:00 UTC.
const NOW_UNIX_MS: i64 = 1_795_867_200_000;

fn now() -> Timestamp {
    Timestamp::from_unix_ms(NOW_UNIX_MS).expect("a time")
}

/// The first byte chooses: what a node announces and is told, a message of records, or records a line each, which are tied to one another here.
pub(crate) fn collector(input: &[u8]) {
    let (which, rest) = chosen(input);
    let (region, node): (Region, NodeId) = ("eu".parse().expect("a region"), "n1".parse().expect("an id"));
    match which % 4 {
        0 => {
            if let Ok(beat) = api::collector::beat(rest, &region, &node) {
                assert_eq!((&beat.node, &beat.region), (&node, &region));
                drop(same_again::<Beat>(rest));
            }
        }
        1 => {
            drop(same_again::<EventAck>(rest));
            drop(same_again::<Shares>(rest));
        }
        2 => records(rest, &region, &node),
        _ => {
            let mut chain = Chain::of_node(&node);
            let place = chain.clone();
            let lines = rest.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Box<RawValue>>(line).ok());
            let links: Vec<Link> = lines.map(|record| chain.link(record)).collect();
            if let Some((message, _)) = place.message(&links, usize::MAX) {
                records(&message, &region, &node);
            }
        }
    }
}

/// What is stored in a node's name is only what a node may say, of itself.
fn records(message: &[u8], region: &Region, node: &NodeId) {
    match api::collector::records(message, region, node, Timestamp::now()) {
        Ok(records) => {
            for text in records {
                let record: Record = serde_json::from_str(&text).expect("a record");
                assert_eq!((record.node.as_ref(), record.region.as_ref()), (Some(node), Some(region)), "{text}");
                assert!(record.duration_ms.is_none_or(|duration_ms| duration_ms >= 0.0), "{text}");
                assert!(!matches!(record.verdict, Verdict::Accepted | Verdict::Changed | Verdict::Signed), "{text}");
            }
        }
        Err(why) => assert!(!why.is_empty() && why.len() <= DETAIL_LENGTH_MAX, "{why}"),
    }
}

/// The first byte chooses whose they are, the second whose answer; then each line is a header.
pub(crate) fn headers(input: &[u8]) {
    let (which, rest) = chosen(input);
    let Ok(text) = str::from_utf8(rest) else { return };
    let given: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once(':')).map(|(name, value)| (name, value.trim())).collect();
    match which % 4 {
        0 => drop(job(&given, "api-0123abcd", true)),
        1 => {
            let read = job(&given, "svc", false);
            assert_eq!(read.principal, "svc", "a service speaks only for itself");
            assert_eq!(read.targets, Ok(None), "of a service no targets are believed");
        }
        2 => {
            if let Some((node, event, _, span)) = api::broker::answer(&given, "n1", 200) {
                assert_eq!(node.as_ref().map(NodeId::as_str), Some("n1"));
                assert!(given.iter().any(|(_, value)| *value == event.as_str()) || event == Event::Outcome);
                assert!(span.is_none_or(|span| span.trace_id() != 0 && span.span_id() != 0));
            }
        }
        _ => {
            let answer = api::broker::answer(&given, "_", 503);
            assert!(answer.is_some_and(|(node, event, ..)| node.is_none() && event == Event::Outcome), "nobody listens");
            assert!(api::broker::answer(&given, "_", 200).is_none(), "only the broker says that nobody listens");
        }
    }
}

fn job(given: &[(&str, &str)], caller: &str, is_api: bool) -> agent::JobHeaders {
    let read = agent::job_headers(given, caller, is_api);
    let refused = [read.deadline_unix_ms.as_ref().err(), read.events.as_ref().err(), read.targets.as_ref().err()];
    let length: usize = given.iter().map(|(_, value)| value.len()).sum();
    for failure in refused.into_iter().flatten() {
        assert!(failure.detail.starts_with("header ") && failure.detail.len() <= DETAIL_LENGTH_MAX + 10 * length, "{failure}");
    }
    assert!(read.span.is_none_or(|span| span.trace_id() != 0 && span.span_id() != 0));
    if let Ok(Some(targets)) = &read.targets {
        assert_eq!(targets.to_string().parse().as_ref(), Ok(targets));
    }
    read
}

/// The first byte chooses: what a node asks, what it is given, or what it keeps of that.
pub(crate) fn enroll(input: &[u8]) {
    let (which, body) = chosen(input);
    match which % 5 {
        0 => drop(asked(api::challenge(body))),
        1 => {
            let Some(request) = asked(api::enroll(body)) else { return };
            for signature in [Some(&request.signature), request.new_signature.as_ref()].into_iter().flatten() {
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
                assert!(signature.as_str().len() == 86 && signature.as_str().bytes().all(plain), "{signature}");
            }
            let statement = request.statement("digest");
            assert_eq!(statement.split('\n').count(), 10, "a field stands for more than one: {statement}");
        }
        2 => {
            let Some(request) = asked(api::confirm(body)) else { return };
            assert_eq!(request.statement().split('\n').count(), 5);
        }
        3 => drop(same_again::<NodeCredential>(body)),
        _ => {
            let Ok(text) = str::from_utf8(body) else { return };
            if let Ok(record) = agent::enrollment(text) {
                let written = serde_json::to_string_pretty(&record).expect("JSON");
                assert_eq!(agent::enrollment(&written).as_ref(), Ok(&record));
            }
        }
    }
}

/// A request that is not refused.
fn asked<T: Serialize + DeserializeOwned>(read: Result<T, probeops_api::problem::Problem>) -> Option<T> {
    match read {
        Ok(request) => {
            drop(same_again::<T>(&serde_json::to_vec(&request).expect("JSON")));
            Some(request)
        }
        Err(problem) => {
            let errors = api::errors(&problem);
            assert!(
                !errors.is_empty() && errors.iter().all(|Invalid { detail, .. }| (1..=DETAIL_LENGTH_MAX).contains(&detail.len())),
                "{problem}"
            );
            None
        }
    }
}

/// The first byte chooses: what was granted to a node, to a service, a revoked key, a key, or a token.
pub(crate) fn registers(input: &[u8]) {
    let (which, value) = chosen(input);
    match which % 5 {
        0 => {
            if let Some(grant) = same_again::<NodeGrant>(value) {
                rate(grant.rate);
                assert!(grant.labels.iter().all(|(key, value)| (1..=63).contains(&key.as_str().len()) && value.as_str().len() <= 63));
            }
        }
        1 => {
            if let Some(grant) = same_again::<ServiceGrant>(value) {
                rate(grant.rate);
            }
        }
        2 => drop(same_again::<RevokedKey>(value)),
        3 => {
            if let Some(record) = same_again::<KeyRecord>(value) {
                rate(record.limits.rate);
            }
        }
        _ => drop(same_again::<TokenRecord>(value)),
    }
}

fn rate(rate: Option<Rate>) {
    assert!(rate.is_none_or(|rate| rate.count > 0 && !rate.window.is_zero()), "a rate of nothing: {rate:?}");
}

/// The first byte chooses: when a schedule is due, or how long a credential lasts.
pub(crate) fn schedule(input: &[u8]) {
    let (which, rest) = chosen(input);
    if which % 4 == 0 {
        let Ok(text) = str::from_utf8(rest) else { return };
        if let Ok(lasts) = text.parse::<ValidFor>() {
            assert!(!lasts.duration().is_zero() && lasts.duration() <= ValidFor::MAX.duration(), "{lasts}");
            assert_eq!(lasts.to_string().parse(), Ok(lasts));
        }
        return;
    }
    let Ok(Value::Object(fields)) = serde_json::from_slice::<Value>(rest) else { return };
    match api::trigger(&fields, now()) {
        Ok((kept, dues)) => {
            assert!(kept.is_object() && dues.first().is_some_and(|due| *due > now()), "{kept} {dues:?}");
            assert!(dues.windows(2).all(|dues| dues[0] < dues[1]), "{kept} {dues:?}");
        }
        Err(Invalid { pointer, detail }) => {
            assert!(!detail.is_empty() && detail.len() <= DETAIL_LENGTH_MAX, "{detail}");
            assert!(pointer.is_empty() || fields.contains_key(&pointer[1..]), "{pointer}");
        }
    }
}

/// The file of records that wait, to which changes are made as in an export: each is what is done to a line (a byte replaced, the line left out,
/// moved, repeated, the file cut in it), two bytes that say where, and one to do it with. What is read are records that were written, one after
/// another.
pub(crate) fn spool(input: &[u8]) {
    static LINES: OnceLock<(Vec<String>, Vec<String>)> = OnceLock::new();
    let (records, file) = LINES.get_or_init(written);
    let (which, rest) = chosen(input);
    if which % 2 == 1 {
        let (_, links) = agent::spool(rest, WRITER);
        assert!(links.len() <= rest.len());
        return;
    }
    let mut lines: Vec<Vec<u8>> = file.iter().map(|line| line.as_bytes().to_vec()).collect();
    for change in rest.chunks_exact(4) {
        let [what, line, place, with] = change else { return };
        let Some(at) = usize::from(*line).checked_rem(lines.len()) else { break };
        let place = (usize::from(*place) + 256 * usize::from(what / 8)) % lines[at].len().max(1);
        match what % 5 {
            0 if !lines[at].is_empty() => lines[at][place] = *with,
            1 => drop(lines.remove(at)),
            2 => {
                let moved = lines.remove(at);
                lines.insert(usize::from(*with) % (lines.len() + 1), moved);
            }
            3 if lines.len() < 16 => lines.insert(usize::from(*with) % (lines.len() + 1), lines[at].clone()),
            4 => {
                lines.truncate(at + 1);
                lines[at].truncate(place);
            }
            _ => {}
        }
    }
    let (first, links) = agent::spool(&lines.concat(), WRITER);
    let found: Vec<&str> = links.iter().map(|link| link.record.get()).collect();
    if found.is_empty() {
        return;
    }
    let begins = usize::try_from(first).expect("a number").checked_sub(1).expect("numbers begin with 1");
    assert_eq!(records.get(begins..begins + found.len()).map(|part| part == found), Some(true), "from {first} on: {found:#?}");
}

/// Some records, and the file in which they wait, the first two of them acknowledged.
fn written() -> (Vec<String>, Vec<String>) {
    let record =
        |number: u64| json!({"time": "2026-01-02T03:04:05.678Z", "verdict": "started", "principal": "svc", "node": "n1", "number": number});
    let records: Vec<String> = (1..=6).map(|number| record(number).to_string()).collect();
    let mut before = beginning(WRITER, BEGAN);
    let mut file = vec![format!("{}\n", json!({"writer": WRITER, "start": BEGAN, "sequence": 1, "previous": before}))];
    for (sequence, record) in (1..).zip(&records) {
        before = hash(&before, sequence, record);
        file.push(format!("{{\"hash\":\"{before}\",\"record\":{record}}}\n"));
        if sequence == 4 {
            file.push("{\"acknowledged\":2}\n".to_owned());
        }
    }
    (records, file)
}

/// What is read of JSON, if it can be read: written, it is read as the same again.
fn same_again<T: DeserializeOwned + Serialize>(bytes: &[u8]) -> Option<T> {
    let read: T = serde_json::from_slice(bytes).ok()?;
    let written = serde_json::to_value(&read).expect("JSON");
    let again: T = serde_json::from_value(written.clone()).unwrap_or_else(|error| panic!("what was read is refused: {error}: {written}"));
    assert!(alike(&serde_json::to_value(&again).expect("JSON"), &written), "not the same again: {written}");
    Some(read)
}
