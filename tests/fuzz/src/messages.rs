//! What comes over the broker and over HTTP as JSON, and what stands in subjects and headers.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use probeops_api::fuzzing::{self as api, Said};
use probeops_api::jobs::Kind;
use probeops_shared::access::Targets;
use probeops_shared::audit::Record;
use probeops_shared::audit::chain::Exported;
use probeops_shared::audit::verify::Verifier;
use probeops_shared::host::{DnsName, Host};
use probeops_shared::http_url::HttpUrl;
use probeops_shared::ids::Caller;
use probeops_shared::invalid::Invalid;
use probeops_shared::job::{Event, Events, Job, Verb};
use probeops_shared::outcome::{OUTCOME_BYTES_MAX, Outcome};
use probeops_shared::selector::Selector;
use probeops_shared::subjects::{self, ToNode};
use probeops_shared::tools::whois::registered::Registered;
use probeops_shared::traceparent::Traceparent;
use serde_json::{Value, json};

use crate::{alike, chosen};

/// No run may last longer, whatever its options.
const BUDGET_MAX: Duration = Duration::from_secs(3_600);
/// A refusal repeats little of what was sent.
const DETAIL_LENGTH_MAX: usize = 4_096;
/// A trail of one writer, as it is exported, with its closing line.
const EXPORT: &str = include_str!("../export.jsonl");

pub(crate) fn job(input: &[u8]) {
    match Job::parse(input) {
        Ok(job) => {
            let written = job.to_bytes();
            let again = Job::parse(&written).unwrap_or_else(|rejected| panic!("what was read is refused: {}", rejected.invalid));
            assert_eq!((again.request_id.as_str(), again.to_bytes()), (job.request_id.as_str(), written), "not the same again");
            assert!(job.spec.budget() <= BUDGET_MAX, "a run of {:?}", job.spec.budget());
        }
        Err(rejected) => {
            names_its_place(&rejected.invalid, input);
            assert!(rejected.tool.chars().count() <= 256 && rejected.target.chars().count() <= 256);
            assert!(rejected.into_outcome::<Value>().to_bytes(OUTCOME_BYTES_MAX).len() <= OUTCOME_BYTES_MAX);
        }
    }
}

/// The first line is a header: its name, a colon, its value.
pub(crate) fn request(input: &[u8]) {
    let (line, body) = input.iter().position(|byte| *byte == b'\n').map_or((&[][..], input), |end| (&input[..end], &input[end + 1..]));
    let header =
        line.iter().position(|byte| *byte == b':').and_then(|colon| Some((str::from_utf8(&line[..colon]).ok()?, &line[colon + 1..])));
    match api::request(body, header.as_slice()) {
        Ok((spec, from, wait)) => {
            assert!(!from.is_empty() && from.iter().all(|selector| selector.parse::<Selector>().is_ok()), "{from:?}");
            assert!(spec.budget() <= BUDGET_MAX && wait <= Duration::from_secs(60));
        }
        Err(problem) => {
            assert!(!problem.detail().is_empty());
            let errors = api::errors(&problem);
            assert!(!errors.is_empty() || problem.detail().contains("header") || problem.detail().contains("larger"), "{problem}");
            errors.iter().for_each(|invalid| names_its_place(invalid, body));
        }
    }
}

pub(crate) fn outcome(input: &[u8]) {
    let (size, body) = chosen(input);
    let Ok(outcome) = serde_json::from_slice::<Outcome>(body) else { return };
    let written = outcome.clone().to_bytes(usize::MAX);
    let again: Outcome = serde_json::from_slice(&written).expect("what was written is read");
    assert!(alike(&serde_json::to_value(&again).expect("JSON"), &serde_json::to_value(&outcome).expect("JSON")), "not the same again");
    // What a node does with one that is too large for a message.
    let bare = Outcome { output: String::new(), report: None::<Value>, truncated: true, ..outcome.clone() }.to_bytes(usize::MAX).len();
    let bytes_max = bare + usize::from(size);
    let cut = outcome.clone().to_bytes(bytes_max);
    assert!(cut.len() <= bytes_max, "{} bytes where {bytes_max} are the most", cut.len());
    let read: Outcome = serde_json::from_slice(&cut).expect("what was cut is read");
    assert!(outcome.output.starts_with(&read.output) && (read.truncated || cut == written));
}

/// What a node says of its run, event by event: its attempt, its number (8 bytes), how long it is, and that. The first byte says how it ends.
pub(crate) fn events(input: &[u8]) {
    let (ends, mut rest) = chosen(input);
    let node = "n1".parse().expect("an id");
    let mut said = Vec::new();
    while let Some((head, after)) = rest.split_first_chunk::<11>() {
        let (length, seq) =
            (usize::from(u16::from_be_bytes([head[9], head[10]])), u64::from_be_bytes(head[1..9].try_into().expect("8 bytes")));
        let (body, after) = after.split_at(length.min(after.len()));
        said.push(Said { attempt: u32::from(head[0] & 3), seq, progress: (head[0] & 0x80 == 0).then_some(body) });
        rest = after;
    }
    let outcome: Outcome = serde_json::from_value(
        json!({"request_id": "r", "status": "success", "output": "o", "duration_ms": 1.0, "tool": "ping", "target": "a"}),
    )
    .expect("an outcome");
    let answered = (ends & 1 == 1).then_some((u32::from(ends >> 1), u64::MAX - u64::from(ends)));
    let (all, again, there) = api::told(&node, &said, outcome, answered);
    assert!(!all.is_empty() && all.len() <= said.len() + 1);
    for told in &all {
        assert!(!told.data.contains(&b'\n'), "an event is one line");
        let data: Value = serde_json::from_slice(&told.data).expect("an event is JSON");
        assert_eq!(data["run"], json!(0));
        assert!(data.get("node").is_none_or(|node| node == "n1"), "a node speaks only for itself");
    }
    let mut told = BTreeMap::new();
    for id in all.iter().filter(|told| told.kind != Kind::Outcome).map(|told| told.id) {
        let before = told.insert(id.attempt, id.seq);
        assert!(before.is_none_or(|before| before < id.seq), "{id} again, or after {before:?}");
    }
    let ids = |events: &[probeops_api::jobs::Told]| events.iter().map(|told| told.id.to_string()).collect::<Vec<_>>();
    let all_ids = ids(&all);
    for rest in again {
        assert!(all_ids.ends_with(&ids(&rest)), "who comes back is told the rest");
    }
    assert!(all_ids.starts_with(&ids(&there)), "another replica is told the same");
}

pub(crate) fn subjects(input: &[u8]) {
    let (which, rest) = chosen(input);
    let Ok(text) = str::from_utf8(rest) else { return };
    let caller: Caller = "api-0123abcd".parse().expect("a caller");
    let node = "n1".parse().expect("an id");
    match which % 10 {
        0 => {
            if let Some(answer) = subjects::answer(text, &caller, &node) {
                let tokens: Vec<&str> = answer.split('.').collect();
                assert!(matches!(tokens.as_slice(), ["_INBOX", "api-0123abcd", _, "n1"]), "a node answers {answer}");
                assert!(tokens[2].bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'));
            }
        }
        1 => {
            if let Some((token, responder)) = subjects::parse_reply(text, &caller) {
                assert_eq!(subjects::parse_reply(&subjects::reply(&caller, token, responder), &caller), Some((token, responder)));
            }
        }
        2 => match subjects::parse_to_node(text) {
            Some(ToNode::Job { tool, caller }) => {
                let again = subjects::parse_to_node(&subjects::node_job(&node, &tool, &caller));
                assert_eq!(again, Some(ToNode::Job { tool, caller }));
            }
            Some(ToNode::Control { verb, caller }) => {
                assert!(Verb::parse(&verb).is_none_or(|known| known.as_str() == verb));
                let again = subjects::parse_to_node(&subjects::node_control(&node, &verb, &caller));
                assert_eq!(again, Some(ToNode::Control { verb, caller }));
            }
            None => {}
        },
        3 => {
            if let Some((region, node, kind)) = subjects::parse_event(text) {
                assert_eq!(subjects::parse_event(&subjects::event(&region, &node, kind)), Some((region, node, kind)));
            }
        }
        4 => {
            if let Some(caller) = subjects::parse_front_door(text) {
                assert_eq!(subjects::front_door(&caller), text);
            }
        }
        5 => {
            for (is_own, inbox) in [
                (subjects::is_own_client_inbox(text, &caller), subjects::client_inbox(&caller)),
                (subjects::is_own_door_inbox(text, &caller), subjects::door_inbox(&caller)),
            ] {
                assert!(!is_own || text.starts_with(&format!("{inbox}.")) && !text.contains(['*', '>', ' ']) && text.is_ascii(), "{text}");
            }
        }
        6 => drop(again::<Traceparent>(text)),
        7 => {
            assert!(Event::parse(Some(text)).is_none_or(|event| event.as_str() == text));
            assert!(text.parse::<Events>().is_ok_and(|events| events.as_str() == text) || text.parse::<Events>().is_err());
        }
        8 => {
            if let Some((from, caller)) = subjects::parse_replica(text) {
                assert!(!from.contains('.') && !caller.as_str().contains('.'));
            }
        }
        _ => drop(again::<Caller>(text)),
    }
}

/// The first byte chooses: records, what was done to an export, or lines of one.
pub(crate) fn audit(input: &[u8]) {
    let (which, rest) = chosen(input);
    match which % 3 {
        0 => records(rest),
        1 => tampered(rest),
        _ => {
            let mut verifier = Verifier::default();
            let lines = String::from_utf8_lossy(rest);
            lines.lines().for_each(|line| verifier.line(line));
            let verified = verifier.end();
            assert!(verified.records <= lines.lines().count() && verified.chains.len() <= verified.records);
        }
    }
}

fn records(input: &[u8]) {
    let Ok(records) = serde_json::from_slice::<Vec<Record>>(input) else { return };
    let again: Vec<Record> = serde_json::from_slice(&serde_json::to_vec(&records).expect("JSON")).expect("what was written is read");
    assert!(alike(&serde_json::to_value(again).expect("JSON"), &serde_json::to_value(records).expect("JSON")), "not the same again");
}

/// Each change is what is done (a byte replaced, a line left out, moved or repeated), two bytes that say where, and a line or a byte to do it with.
/// What comes through is what was written, and all of it.
fn tampered(input: &[u8]) {
    let mut lines: Vec<Vec<u8>> = EXPORT.lines().map(|line| line.as_bytes().to_vec()).collect();
    for change in input.chunks_exact(4) {
        let [what, line, place, with] = change else { return };
        let Some(at) = usize::from(*line).checked_rem(lines.len()) else { return };
        match what % 4 {
            0 => {
                let place = (usize::from(*place) + 256 * usize::from(what / 4)) % lines[at].len();
                lines[at][place] = *with;
            }
            1 => drop(lines.remove(at)),
            2 => {
                let moved = lines.remove(at);
                lines.insert(usize::from(*with) % (lines.len() + 1), moved);
            }
            _ if lines.len() < 16 => lines.insert(usize::from(*with) % (lines.len() + 1), lines[at].clone()),
            _ => {}
        }
    }
    let Ok(lines): Result<Vec<&str>, _> = lines.iter().map(|line| str::from_utf8(line)).collect() else { return };
    let mut verifier = Verifier::default();
    lines.iter().for_each(|line| verifier.line(line));
    if !verifier.end().findings.is_empty() {
        return;
    }
    let records = |lines: &[&str]| -> Vec<_> {
        let exported = lines.iter().filter_map(|line| serde_json::from_str::<Exported>(line).ok());
        exported.map(|line| (line.cursor, line.writer, line.start, line.sequence, line.record.get().to_owned())).collect()
    };
    // Of a file without a line the command itself says that nothing is verified.
    if lines.is_empty() {
        return;
    }
    let written: Vec<&str> = EXPORT.lines().collect();
    assert_eq!(records(&lines), records(&written), "nothing is wrong with it");
}

pub(crate) fn selector(input: &[u8]) {
    if let Ok(text) = str::from_utf8(input) {
        match text.parse::<Selector>() {
            Ok(selector) => same_again(&selector),
            Err(detail) => assert!(!detail.is_empty() && detail.len() <= DETAIL_LENGTH_MAX, "{detail}"),
        }
    }
    let Ok(value) = serde_json::from_slice::<Value>(input) else { return };
    match Selector::read(&value, "") {
        Ok(selector) => same_again(&selector),
        Err(invalid) => names_its_place(&invalid, input),
    }
}

fn same_again(selector: &Selector) {
    let text = selector.to_string();
    assert_eq!(text.parse::<Selector>().as_ref(), Ok(selector), "{text}");
    assert_eq!(serde_json::from_value::<Selector>(json!(text)).expect("a selector"), *selector);
}

pub(crate) fn target(input: &[u8]) {
    let (which, rest) = chosen(input);
    let Ok(text) = str::from_utf8(rest) else { return };
    match which % 6 {
        0 => {
            let Some(host) = again::<Host>(text) else { return };
            if let Host::Name(name) = &host {
                assert!(
                    name.len() <= 253
                        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte)),
                    "{name}"
                );
                // inet_aton(3) takes it for an address: it would be judged as a name and connected to as something else.
                let last = name.rsplit('.').next().unwrap_or_default();
                let hexadecimal = last.strip_prefix("0x").is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
                assert!(!last.bytes().all(|byte| byte.is_ascii_digit()) && !hexadecimal, "{name}");
            }
        }
        1 => drop(again::<DnsName>(text)),
        2 => {
            let Some(url) = again::<HttpUrl>(text) else { return };
            let shown = url.to_string();
            assert!(
                shown.bytes().all(|byte| byte.is_ascii_graphic()) && !shown.contains(['#', '@']) | url.path_and_query().contains('@'),
                "{shown}"
            );
            assert!(url.port() != 0 && url.path_and_query().starts_with('/'));
        }
        3 => {
            // From where it leads on, whatever a server says.
            let here: HttpUrl = "https://a.example/b/c?d".parse().expect("a URL");
            if let Ok(there) = here.join(text) {
                assert_eq!(there.to_string().parse::<HttpUrl>().as_ref(), Ok(&there));
            }
        }
        4 => drop(again::<Targets>(text)),
        _ => drop(again::<Registered>(text)),
    }
}

/// What is read of a text, if it can be read: shown, it is read as the same again.
#[track_caller]
fn again<T: FromStr<Err: std::fmt::Display> + ToString>(text: &str) -> Option<T> {
    match text.parse::<T>() {
        Ok(read) => {
            let shown = read.to_string();
            let again = shown.parse::<T>().unwrap_or_else(|error| panic!("`{text}` is shown as `{shown}`, which is refused: {error}"));
            assert_eq!(again.to_string(), shown, "`{text}`");
            Some(read)
        }
        Err(error) => {
            let detail = error.to_string();
            assert!(!detail.is_empty() && detail.len() <= DETAIL_LENGTH_MAX, "{detail}");
            None
        }
    }
}

/// A refusal says what is wrong, and where: what its pointer leads to is there, or is missing there.
#[track_caller]
fn names_its_place(invalid: &Invalid, body: &[u8]) {
    assert!(!invalid.detail.is_empty() && invalid.detail.len() <= DETAIL_LENGTH_MAX, "{} bytes: {invalid}", invalid.detail.len());
    let Ok(document) = serde_json::from_slice::<Value>(body) else { return };
    let Some((above, last)) = invalid.pointer.rsplit_once('/') else {
        assert!(invalid.pointer.is_empty(), "`{}` is no pointer", invalid.pointer);
        return;
    };
    let parts = last.split('~').skip(1);
    assert!(parts.clone().all(|part| part.starts_with(['0', '1'])), "`{}` is no pointer", invalid.pointer);
    // Options that are absent may be named all the same: a default may not go with what is there.
    let is_there = document.pointer(above).is_some() || above == "/parameters";
    assert!(is_there, "`{}` leads nowhere: {}", invalid.pointer, invalid.detail);
}
