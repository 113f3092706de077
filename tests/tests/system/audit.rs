//! Everything asked and everything done is in the trail.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use probeops_shared::audit::chain::{Exported, hash};
use probeops_tests::asker::Asker;
use probeops_tests::fabric::Fabric;
use probeops_tests::up::Home;
use serde_json::value::RawValue;
use serde_json::{Value, json};

#[test]
fn accepted_refused_finished_and_denied_are_all_recorded() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("a-1", "eu");
    api.wait_for_nodes(1);
    let key = api.key(&json!({"name": "auditee", "scopes": ["jobs:write"]}));
    let caller = api.caller(&key);
    let id = caller.job("echo", "fine", "eu", &json!({})).expect(200)["id"].as_str().unwrap().to_owned();
    let denied = caller.job("tcp", "169.254.169.254", "eu", &json!({})).expect(200);
    assert_eq!(denied["results"][0]["failure"]["kind"], "denied", "{denied}");
    caller.get("/v1/audit").expect(403);
    let of_job = api.wait_for_audit(&format!("request_id={id}"), 2);
    let verdicts: std::collections::BTreeSet<_> = of_job.iter().map(|record| record["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts, ["accepted", "finished"].into());
    let finished = of_job.iter().find(|record| record["verdict"] == "finished").unwrap();
    assert_eq!((&finished["node"], &finished["tool"], &finished["target"]), (&json!("a-1"), &json!("echo"), &json!("fine")));
    assert!(finished["caller"].as_str().unwrap().starts_with("api-"), "{finished}");
    assert!(finished["principal"].as_str().unwrap().starts_with("key:"), "{finished}");
    let accepted = of_job.iter().find(|record| record["verdict"] == "accepted").unwrap();
    assert_eq!((&accepted["caller"], &accepted["principal"]), (&finished["caller"], &finished["principal"]), "{accepted}");
    let at_node = api.wait_for_audit("verdict=denied", 1);
    assert!(at_node[0]["detail"].as_str().unwrap().starts_with("denied:"), "{}", at_node[0]);
    let refused = api.wait_for_audit("verdict=refused", 1);
    assert!(refused[0]["detail"].as_str().unwrap().contains("audit:read"), "{}", refused[0]);

    // What a service asks a node for itself is recorded before it begins, and when it is over.
    let service = Asker::service(&fabric, &["echo"], &[]);
    assert_eq!(
        service.ask("job.v1.eu.echo", &json!({"request_id": "direct", "tool": "echo", "target": "x"}), &[]).hear().body["status"],
        "success"
    );
    let of_direct = api.wait_for_audit("request_id=direct", 2);
    let verdicts: Vec<&str> = of_direct.iter().rev().map(|record| record["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts, ["started", "finished"], "{of_direct:?}");
    assert!(of_direct.iter().all(|record| record["principal"] == "billing" && record["node"] == "a-1"), "{of_direct:?}");

    // All of it is whole, the node's part and the API's; and one that was changed is named.
    let home = Home::new();
    let probeops = |arguments: &[&str]| {
        let mut command = home.probeops(arguments);
        command.env("PROBEOPS_URL", api.url()).env("PROBEOPS_TOKEN", api.admin_key());
        home.finish(command)
    };
    let exported = probeops(&["audit", "export"]).good();
    let file = home.file("trail.jsonl", &exported);
    let verified = probeops(&["audit", "verify", file.to_str().unwrap()]).good();
    assert!(verified.contains("node:a-1 (chain of ") && verified.contains("\nwhole: nothing was changed"), "{verified}");
    let changed = exported.replacen("\"target\":\"fine\"", "\"target\":\"fire\"", 1);
    let file = home.file("changed.jsonl", &changed);
    let verified = probeops(&["audit", "verify", file.to_str().unwrap()]);
    assert!(verified.code == Some(1) && verified.out.contains("was changed: its hash does not fit what it says"), "{verified:?}");
    // And what comes is shown as it comes, no other than what was asked for.
    let mut tail = home.probeops(&["audit", "tail", "--target", "tailed", "-o", "json"]);
    tail.env("PROBEOPS_URL", api.url()).env("PROBEOPS_TOKEN", api.admin_key()).stdout(Stdio::piped());
    let mut tail = tail.spawn().unwrap();
    let shown = BufReader::new(tail.stdout.take().unwrap());
    let (tell, told) = std::sync::mpsc::channel();
    let reading = std::thread::spawn(move || shown.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
    let mut line = None;
    api.wait_until("the tail shows a job", || {
        caller.job("echo", "other", "eu", &json!({})).expect(200);
        caller.job("echo", "tailed", "eu", &json!({})).expect(200);
        line = told.try_recv().ok();
        line.is_some()
    });
    let record: Value = serde_json::from_str(&line.unwrap()).unwrap();
    assert_eq!((&record["target"], &record["tool"]), (&json!("tailed"), &json!("echo")));
    tail.kill().unwrap();
    tail.wait().unwrap();
    drop(told);
    drop(reading.join());
}

/// What was done to an export, what it is then, and what is said of it.
type Case = (&'static str, String, String);

/// An export, to be tampered with.
#[derive(Clone)]
struct Export {
    records: Vec<Exported>,
    closing: String,
}

impl Export {
    fn read(text: &str) -> Self {
        let mut lines: Vec<&str> = text.lines().collect();
        let closing = lines.pop().unwrap().to_owned();
        Self { records: lines.into_iter().map(|line| serde_json::from_str(line).unwrap()).collect(), closing }
    }

    fn text(&self) -> String {
        let lines = self.records.iter().map(|record| serde_json::to_string(record).unwrap() + "\n");
        lines.chain([self.closing.clone() + "\n"]).collect()
    }

    fn with(&self, tamper: impl FnOnce(&mut Vec<Exported>)) -> String {
        let mut tampered = self.clone();
        tamper(&mut tampered.records);
        tampered.text()
    }

    /// What a finding calls it.
    fn named(&self, at: usize) -> String {
        let Exported { writer, start, sequence, .. } = &self.records[at];
        format!("record {sequence} of {writer} (chain of {start}")
    }

    /// Where the messages begin.
    fn messages(&self) -> Vec<usize> {
        (0..self.records.len()).filter(|at| self.records[*at].cursor.ends_with(".0")).collect()
    }
}

fn chain(record: &Exported) -> (&str, &str) {
    (&record.writer, &record.start)
}

/// Cursors as if all messages were where they are now.
fn number_anew(records: &mut [Exported]) {
    let (mut number, mut before) = (0, String::new());
    for record in records {
        let (message, index) = record.cursor.split_once('.').unwrap();
        if before != message {
            number += 1;
            message.clone_into(&mut before);
        }
        record.cursor = format!("{number}.{index}");
    }
}

fn swap_with_cursors(records: &mut [Exported], one: usize, other: usize) {
    records.swap(one, other);
    let cursor = records[one].cursor.clone();
    records[one].cursor = std::mem::replace(&mut records[other].cursor, cursor);
}

/// With another target, and a hash that fits.
fn forge(record: &mut Exported) {
    let other = record.record.get().replacen("\"target\":\"", "\"target\":\"other", 1);
    record.record = RawValue::from_string(other).unwrap();
    record.hash = hash(&record.previous, record.sequence, record.record.get());
}

#[test]
fn whatever_is_done_to_an_export_is_found() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("a-1", "eu");
    api.wait_for_nodes(1);
    // Each command has a chain of its own, of one record.
    let home = Home::new();
    let add =
        ["nodes", "add", "n-1", "--region", "eu", "--tools", "echo", "--servers", &fabric.url(), "--data", fabric.data().to_str().unwrap()];
    home.run(&add).good();
    let service = Asker::service(&fabric, &["echo"], &[]);
    for number in 0..3 {
        api.admin().job("echo", &format!("n{number}"), "eu", &json!({})).expect(200);
        let job = json!({"request_id": format!("direct-{number}"), "tool": "echo", "target": "x"});
        assert_eq!(service.ask("job.v1.eu.echo", &job, &[]).hear().body["status"], "success");
    }
    api.wait_for_audit("verdict=finished", 6);
    let probeops = |arguments: &[&str]| {
        let mut command = home.probeops(arguments);
        command.env("PROBEOPS_URL", api.url()).env("PROBEOPS_TOKEN", api.admin_key());
        home.finish(command)
    };
    let exported = probeops(&["audit", "export"]);
    let noted = exported.err.trim().strip_prefix("SHA-256 ").unwrap().to_owned();
    let file = home.file("whole.jsonl", &exported.out);
    let whole = probeops(&["audit", "verify", file.to_str().unwrap(), "--sha256", &noted]).good();
    assert!(whole.contains("since it was exported: the trail from its first record on\n") && whole.contains(&noted), "{whole}");
    // As README says it is reckoned by hand.
    let by_hand =
        r#"{ head -n -1 whole.jsonl; tail -n 1 whole.jsonl | sed 's/^{"closing":\(.*\),"sha256":.*/\1/' | tr -d '\n'; } | sha256sum"#;
    assert!(include_str!("../../../README.md").contains(by_hand), "README");
    let reckoned = Command::new("sh").args(["-c", by_hand]).current_dir(file.parent().unwrap()).output().unwrap();
    assert!(String::from_utf8_lossy(&reckoned.stdout).starts_with(&noted), "{reckoned:?}");
    let export = Export::read(&exported.out);
    assert_eq!(export.text(), exported.out);
    each_is_found(&home, &export);

    // Another one is whole for itself, and not what was noted; from a time on, it says so.
    let file = home.file("later.jsonl", &probeops(&["audit", "export"]).good());
    let later = probeops(&["audit", "verify", file.to_str().unwrap(), "--sha256", &noted]);
    assert!(later.out.contains("\nwhole: ") && later.err.contains("is not the export of which that digest was noted"), "{later:?}");
    assert_eq!(later.code, Some(1));
    let file = home.file("since.jsonl", &probeops(&["audit", "export", "--since", "1h"]).good());
    let since = probeops(&["audit", "verify", file.to_str().unwrap()]).good();
    assert!(since.contains("since it was exported: what was stored since 2"), "{since}");
}

/// One line says so, and the exit code.
fn each_is_found(home: &Home, export: &Export) {
    for (what, text, part) in [missing(export), swapped(export), cut_off_or_added(export)].concat() {
        let file = home.file("tampered.jsonl", &text);
        let said = home.finish(home.probeops(&["audit", "verify", file.to_str().unwrap()]));
        let findings: Vec<&str> = said.out.lines().filter(|line| line.starts_with("line ")).collect();
        assert!(said.code == Some(1) && !said.out.contains("whole: "), "{what}: {said:?}");
        assert!(findings.len() == 1 && findings[0].contains(&part), "{what}, so: {part}\n{}\n{}", said.out, export.text());
    }
}

fn missing(export: &Export) -> Vec<Case> {
    let (records, messages) = (&export.records, export.messages());
    let (count, second, last) = (records.len(), messages[1], messages[messages.len() - 1]);
    let begins = |at: &usize| records[*at].sequence > 1 && chain(&records[at + 1]) == chain(&records[*at]);
    let middle = (1..count - 1).find(begins).expect("a record in the middle of its chain");
    let is_alone = |at: &&usize| records.iter().filter(|record| chain(record) == chain(&records[**at])).count() == 1;
    let alone = *messages.iter().rev().skip(1).find(is_alone).expect("a chain of one record");
    let named = |at| export.named(at);
    vec![
        ("the first is missing", export.with(|records| drop(records.remove(0))), named(0)),
        ("one in the middle is missing", export.with(|records| drop(records.remove(middle))), named(middle)),
        ("the last is missing", export.with(|records| drop(records.pop())), named(count - 1)),
        ("the first message is missing", export.with(|records| drop(records.drain(..second))), chain(&records[0]).1.to_owned()),
        ("the last message is missing", export.with(|records| records.truncate(last)), chain(&records[last]).1.to_owned()),
        ("the last is another", export.with(|records| forge(&mut records[count - 1])), named(count - 1)),
        ("one in the middle is another", export.with(|records| forge(&mut records[middle])), named(middle + 1)),
        (
            "a chain of one record is gone, and the cursors are made anew",
            export.with(|records| {
                records.remove(alone);
                number_anew(records);
            }),
            named(alone),
        ),
    ]
}

fn swapped(export: &Export) -> Vec<Case> {
    let (records, messages) = (&export.records, export.messages());
    let same = (1..records.len()).find(|at| chain(&records[at - 1]) == chain(&records[*at])).expect("two of one writer");
    let other = (1..records.len()).find(|at| chain(&records[at - 1]) != chain(&records[*at])).expect("two writers");
    let of_two = |at: &&[usize]| chain(&records[at[0]]) != chain(&records[at[1]]);
    let of_two: Vec<usize> = messages.windows(3).find(of_two).expect("messages of two writers").to_vec();
    let digest = || "the SHA-256 of all lines is not that of the closing line".to_owned();
    vec![
        ("two of one writer are swapped", export.with(|records| records.swap(same - 1, same)), export.named(same - 1)),
        (
            "two of one writer are swapped, with their cursors",
            export.with(|records| swap_with_cursors(records, same - 1, same)),
            export.named(same - 1),
        ),
        (
            "two of two writers are swapped, with their cursors",
            export.with(|records| swap_with_cursors(records, other - 1, other)),
            digest(),
        ),
        (
            "messages of two writers are swapped, with their cursors",
            export.with(|records| {
                records[of_two[0]..of_two[2]].rotate_left(of_two[1] - of_two[0]);
                number_anew(records);
            }),
            digest(),
        ),
    ]
}

fn cut_off_or_added(export: &Export) -> Vec<Case> {
    let (text, count) = (export.text(), export.records.len());
    let [first, last] = [0, count - 1].map(|at| serde_json::to_string(&export.records[at]).unwrap());
    let without = |bytes: usize| text[..text.len() - bytes].to_owned();
    let closing = export.closing.len() + 1;
    let no_line = || "neither a record nor the closing line, with which an export ends".to_owned();
    vec![
        ("it is cut off behind the last", without(closing), "not with its closing line".to_owned()),
        ("it is cut off in the last", without(closing + last.len() / 2), no_line()),
        ("it is cut off in the closing line", without(9), no_line()),
        ("one is there twice", export.with(|records| records.insert(0, records[0].clone())), format!("and here are {} records", count + 1)),
        ("one is there again at the end", export.with(|records| records.push(records[0].clone())), export.named(0)),
        ("one comes after the closing line", format!("{text}{first}\n"), "this comes after the closing line".to_owned()),
    ]
}

#[test]
fn the_trail_is_read_newest_first_in_pages() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent("a-1", "eu");
    api.wait_for_nodes(1);
    for number in 0..5 {
        api.admin().job("echo", &format!("n{number}"), "eu", &json!({})).expect(200);
    }
    api.wait_for_audit("verdict=accepted", 5);
    let mut targets = Vec::new();
    let mut path = "/v1/audit?verdict=accepted&limit=2".to_owned();
    loop {
        let page = api.admin().get(&path).expect(200);
        targets.extend(page["records"].as_array().unwrap().iter().map(|record| record["target"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/v1/audit?verdict=accepted&limit=2&cursor={next}");
    }
    assert_eq!(targets, ["n4", "n3", "n2", "n1", "n0"]);
}
