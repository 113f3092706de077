//! `dns` beside dig(1) and delv(1): the same records, codes, flags and verdicts.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::super::names::{AUTHORITY, RESOLVER, ROOT};
use super::super::reference::{both, says};
use super::super::table::Row;
use super::super::{Asker, Testnet};

/// The resolver over IPv6.
const RESOLVER_V6: &str = "fd77:100::53";

/// What an answer says: its code, its flags, and its records in each section without the time that they may be kept.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    code: String,
    flags: String,
    records: BTreeSet<(String, String)>,
}

impl Answer {
    /// As dig prints it; ours reads like it.
    fn of(text: &str) -> Self {
        let mut answer = Self::default();
        let mut section = String::new();
        for line in text.lines() {
            if let Some((_, rest)) = line.split_once("status: ") {
                rest.split(',').next().unwrap_or_default().clone_into(&mut answer.code);
            } else if let Some(rest) = line.strip_prefix(";; flags: ") {
                rest.split(';').next().unwrap_or_default().clone_into(&mut answer.flags);
            } else if let Some(name) = line.strip_prefix(";; ").and_then(|rest| rest.strip_suffix(" SECTION:")) {
                name.clone_into(&mut section);
            } else if !line.is_empty() && !line.starts_with(';') {
                let words: Vec<&str> = line.split_whitespace().collect();
                let kept = words.iter().enumerate().filter(|(at, _)| *at != 1).map(|(_, word)| *word);
                answer.records.insert((section.clone(), kept.collect::<Vec<_>>().join(" ")));
            }
        }
        answer
    }
}

/// A name, a type, a server, what dig is told besides, and the same for us.
type Question = (&'static str, &'static str, &'static str, &'static [&'static str], fn() -> Value);

/// Every type of the zone is asked besides these, of the resolver and of the zone's own server.
const QUESTIONS: [Question; 17] = [
    ("nope.probe.test", "A", RESOLVER, &[], || json!({})),
    ("nope.probe.test", "A", AUTHORITY, &[], || json!({})),
    ("web.probe.test", "SOA", RESOLVER, &[], || json!({})),
    ("x.bogus.test", "A", RESOLVER, &[], || json!({})),
    ("www.bogus.test", "A", RESOLVER, &["+cd"], || json!({"checking_disabled": true})),
    ("www.plain.test", "A", RESOLVER, &[], || json!({})),
    ("web.probe.test", "A", RESOLVER, &["+dnssec"], || json!({"dnssec": true})),
    ("nope.probe.test", "A", RESOLVER, &["+dnssec"], || json!({"dnssec": true})),
    ("web.probe.test", "A", AUTHORITY, &["+norecurse"], || json!({"recursion": false})),
    ("web.probe.test", "AAAA", RESOLVER_V6, &[], || json!({})),
    ("example.com", "A", AUTHORITY, &[], || json!({})),
    ("big.probe.test", "TXT", AUTHORITY, &["+ignore"], || json!({"tcp_fallback": false})),
    ("big.probe.test", "TXT", AUTHORITY, &[], || json!({})),
    ("web.probe.test", "A", RESOLVER, &["+tcp"], || json!({"protocol": "tcp"})),
    ("web.probe.test", "A", RESOLVER, &["+tls"], || json!({"protocol": "tls", "tls_verify": false})),
    ("web.probe.test", "A", RESOLVER, &["+https"], || json!({"protocol": "https", "tls_verify": false})),
    ("a.b.probe.test", "A", RESOLVER, &["+noedns"], || json!({"edns": false})),
];

/// One of each type.
const TYPES: [(&str, &str); 20] = [
    ("web.probe.test", "A"),
    ("web.probe.test", "AAAA"),
    ("www.probe.test", "A"),
    ("multi.probe.test", "A"),
    ("probe.test", "SOA"),
    ("probe.test", "NS"),
    ("probe.test", "MX"),
    ("probe.test", "TXT"),
    ("probe.test", "CAA"),
    ("probe.test", "DNSKEY"),
    ("probe.test", "DS"),
    ("_https._tcp.probe.test", "SRV"),
    ("web.probe.test", "HTTPS"),
    ("_svc.probe.test", "SVCB"),
    ("host.probe.test", "SSHFP"),
    ("_443._tcp.web.probe.test", "TLSA"),
    ("naptr.probe.test", "NAPTR"),
    ("outside.probe.test", "A"),
    ("x.wild.probe.test", "A"),
    ("www.moved.probe.test", "A"),
];

/// Records, codes and flags, over every transport.
pub(super) fn answers(_: &Testnet, asker: &Asker) -> Row {
    let mut row = Row::new("answers: records, code, flags; UDP, TCP, TLS and HTTPS", "dig");
    let of_types = [RESOLVER, AUTHORITY]
        .into_iter()
        .flat_map(|server| TYPES.map(|(name, kind)| -> Question { (name, kind, server, &[], || json!({})) }));
    let (mut questions, mut same) = (0, 0);
    for (name, kind, server, dig, options) in of_types.chain(QUESTIONS) {
        let mut options = options();
        (options["resolver"], options["type"]) = (json!(server), json!(kind));
        let at = format!("@{server}");
        let arguments = [&["+nocookie", "+noidnout", "+time=5", &at, name, kind], dig].concat();
        let ((report, output), said) = both(|| asker.ask("dns", name, &options), || says("dig", &arguments));
        let (ours, theirs) = (Answer::of(&output), Answer::of(&said));
        row.same(format!("{name} {kind} {at} {dig:?}"), &ours, &theirs);
        row.same(format!("the code of {name} {kind} {at} in the report"), &super::text(&report["rcode"]["name"]), &theirs.code);
        (questions, same) = (questions + 1, same + usize::from(ours == theirs && !ours.code.is_empty()));
    }
    row.found(format!("{same} of {questions}"), questions)
}

/// The state of the answer, and what must be in the reason.
const PROOFS: [(&str, &str, &str, &str); 9] = [
    ("web.probe.test", "A", "secure", ""),
    ("www.probe.test", "A", "secure", ""),
    ("nope.probe.test", "A", "secure", ""),
    ("web.probe.test", "MX", "secure", ""),
    ("x.wild.probe.test", "A", "secure", ""),
    ("probe.test", "DNSKEY", "secure", ""),
    ("www.plain.test", "A", "insecure", "plain.test. has no DS record"),
    ("outside.probe.test", "A", "insecure", "plain.test. has no DS record"),
    ("www.bogus.test", "A", "bogus", "bogus.test"),
];

/// What can be proven from the root down.
pub(super) fn proofs(net: &Testnet, asker: &Asker) -> Row {
    let mut row = Row::new("DNSSEC verdicts: secure, insecure, bogus, proven absence", "delv");
    let anchor = std::fs::read_to_string(net.folder().join("dsset-.")).unwrap_or_default();
    let anchor = anchor.split_whitespace().collect::<Vec<_>>().join(" ");
    let (keys, at) = (net.folder().join("bind.keys").display().to_string(), format!("@{RESOLVER}"));
    let mut agreed = 0;
    for (name, kind, state, reason) in PROOFS {
        let options = json!({"type": kind, "resolver": RESOLVER, "validate": true, "trust_anchor": anchor});
        let arguments = [&at, "-a", &keys, "+root=.", name, kind];
        let ((report, output), said) = both(|| asker.ask("dns", name, &options), || says("delv", &arguments));
        let (ours, theirs) = (verdict(&output), verdict(&said));
        row.same(format!("{name} {kind}\n{output}\n{said}"), &ours, &theirs);
        let validation = &report["validation"];
        let as_built = validation["state"] == state && super::text(&validation["reason"]).contains(reason);
        row.check(as_built, || format!("{name} {kind} is built to be {state}: {validation}"));
        agreed += usize::from(ours == theirs);
    }
    row.found(format!("{agreed} of {}", PROOFS.len()), PROOFS.len())
}

/// The verdict in the words of delv, and whether it is about there being nothing. Of an alias there is one for each name; what all of them have
/// in common is the weakest.
fn verdict(text: &str) -> (&'static str, bool) {
    let words = ["unsigned answer", "fully validated", "resolution failed"];
    let said = words.into_iter().find(|words| text.lines().any(|line| line.starts_with(';') && line.contains(words)));
    (said.unwrap_or("nothing"), text.contains("negative response") || text.contains("ncache"))
}

/// Who refers to whom, from the root to the answer.
pub(super) fn delegations(_: &Testnet, asker: &Asker) -> Row {
    let mut row = Row::new("delegations from the root", "dig +trace");
    let mut steps = [0; 2];
    for (name, kind) in [("web.probe.test", "A"), ("web.probe.test", "AAAA"), ("www.plain.test", "A"), ("nope.probe.test", "A")] {
        let at = format!("@{ROOT}");
        let arguments = [&at, "+trace", "+nocookie", "+time=5", name, kind];
        let options = json!({"trace": true, "type": kind, "resolver": ROOT});
        let ((_, output), said) = both(|| asker.ask("dns", name, &options), || says("dig", &arguments));
        let (ours, theirs) = (Answer::of(&output), Answer::of(&said));
        row.same(format!("{name} {kind}\n{output}\n{said}"), &ours, &theirs);
        // Which of a zone's servers is asked is for each to choose.
        let received = |text: &str| text.matches(";; Received").count();
        row.same(format!("steps to {name}\n{output}\n{said}"), &received(&output), &received(&said));
        row.check(received(&output) == 4, || format!("{name} is three delegations away: {output}"));
        (steps[0], steps[1]) = (steps[0] + received(&output), steps[1] + received(&said));
    }
    row.found(format!("{} steps", steps[0]), steps[1])
}
