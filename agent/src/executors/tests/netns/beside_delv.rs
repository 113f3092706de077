//! `dns` with `validate` beside delv(1), below a root of our own: the same verdict, and why.

use serde_json::{Value, json};

use super::names::{Names, OTHER_RESOLVER, RESOLVER};
use super::network::Network;
use super::{Found, ours, theirs};

/// A name, a type, the state of the answer, and what the reason says: one of these.
const CASES: &[(&str, &str, &str, &str)] = &[
    ("www.probe.test", "A", "secure", ""),
    ("nope.probe.test", "A", "secure", ""),
    ("www.probe.test", "AAAA", "secure", ""),
    ("alias.probe.test", "A", "secure", ""),
    ("x.wild.probe.test", "A", "secure", ""),
    ("large.probe.test", "TXT", "secure", ""),
    ("probe.test", "DNSKEY", "secure", ""),
    ("probe.test", "DS", "secure", ""),
    ("www.hashed.test", "A", "secure", ""),
    ("nope.hashed.test", "A", "secure", ""),
    ("www.hashed.test", "MX", "secure", ""),
    ("x.wild.hashed.test", "A", "secure", ""),
    ("inner.probe.test", "A", "secure", ""),
    ("inner.hashed.test", "A", "secure", ""),
    ("x.wild.probe.test", "MX", "secure", ""),
    ("x.wild.hashed.test", "MX", "secure", ""),
    ("x.y.wild.probe.test", "A", "secure", ""),
    ("x.wildalias.probe.test", "A", "secure", ""),
    ("x.wildalias.hashed.test", "A", "secure", ""),
    ("dangling.probe.test", "A", "secure", ""),
    ("dangling.hashed.test", "A", "secure", ""),
    ("x.www.probe.test", "A", "secure", ""),
    ("astray.probe.test", "A", "secure", ""),
    ("astray.probe.test", "MX", "secure", ""),
    ("farther.probe.test", "A", "secure", ""),
    ("plain.test", "DS", "secure", ""),
    ("under.probe.test", "DS", "secure", ""),
    ("under.hashed.test", "DS", "secure", ""),
    ("under.optout.test", "DS", "secure", ""),
    ("www.optout.test", "A", "secure", ""),
    ("www.optout.test", "MX", "secure", ""),
    ("nope.optout.test", "A", "secure", ""),
    ("x.wild.optout.test", "A", "insecure", "a wildcard made the name"),
    ("www.renamed.probe.test", "A", "secure", ""),
    ("nope.renamed.probe.test", "A", "secure", ""),
    ("www.moved.probe.test", "A", "insecure", ""),
    ("www.probe.test", "ANY", "secure", ""),
    ("probe.test", "NSEC3PARAM", "secure", ""),
    ("hashed.test", "NSEC3PARAM", "secure", ""),
    ("test", "SOA", "secure", ""),
    (".", "NS", "secure", ""),
    ("nope", "A", "secure", ""),
    ("www.plain.test", "A", "insecure", "it is proven that plain.test. has no DS record at its parent"),
    ("nope.plain.test", "A", "insecure", "it is proven that plain.test. has no DS record at its parent"),
    ("www.island.test", "A", "insecure", "it is proven that island.test. has no DS record at its parent"),
    ("nope.island.test", "A", "insecure", "it is proven that island.test. has no DS record at its parent"),
    ("outside.probe.test", "A", "insecure", "it is proven that plain.test. has no DS record at its parent"),
    ("www.wrongkey.test", "A", "bogus", "is the one that its parent's DS record names"),
    ("nope.wrongkey.test", "A", "bogus", "is the one that its parent's DS record names"),
    ("www.expired.test", "A", "bogus", "expired on 2020-02-01 00:00:00 UTC"),
    ("nope.expired.test", "A", "bogus", "expired on 2020-02-01 00:00:00 UTC"),
    ("www.future.test", "A", "bogus", "counts only from 2037-01-01 00:00:00 UTC on"),
    (
        "www.stripped.test",
        "A",
        "bogus",
        "has a DS record at its parent, and no keys (DNSKEY)|the A records of www.stripped.test. are not signed",
    ),
    (
        "nope.stripped.test",
        "A",
        "bogus",
        "has a DS record at its parent, and no keys (DNSKEY)|the SOA records of stripped.test. are not signed",
    ),
    ("www.altered.test", "A", "bogus", "the signature of the A records of www.altered.test. (key tag "),
    ("nope.altered.test", "A", "secure", ""),
];

fn prove(network: &Network, names: &Names, name: &str, mut parameters: Value) -> Found {
    parameters["validate"] = json!(true);
    if parameters.get("resolver").is_none() {
        parameters["resolver"] = json!(RESOLVER);
    }
    if parameters.get("trust_anchor").is_none() {
        parameters["trust_anchor"] = json!(names.anchor("DS"));
    }
    ours(network, "dns", name, parameters)
}

/// The verdict in the words of delv, and whether it is about there being nothing. Of an alias delv gives one for each name; what all of them
/// have in common is the weakest.
fn verdict(text: &str) -> (&'static str, bool) {
    let words = ["unsigned answer", "fully validated", "resolution failed"];
    let said = words.into_iter().find(|words| text.lines().any(|line| line.starts_with(';') && line.contains(words)));
    (said.unwrap_or_else(|| panic!("no verdict: {text}")), text.contains("negative response") || text.contains("ncache"))
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn the_verdict_is_delvs_and_the_reason_is_said() {
    let network = Network::new();
    let names = Names::start(&network);
    let anchor = names.delv_anchor();
    let at = format!("@{RESOLVER}");
    let mut wrong = Vec::new();
    for (name, kind, state, reason) in CASES {
        let delv = theirs(&network, "delv", &[&at, "-a", anchor.to_str().unwrap(), "+root=.", name, kind]);
        let found = prove(&network, &names, name, json!({"type": kind}));
        let validation = &found.report["validation"];
        let said = validation["reason"].as_str().unwrap_or_default();
        let as_told = validation["state"] == *state && reason.split('|').any(|reason| said.contains(reason));
        // Of names that need not be signed Unbound does not say that there are none for sure (RFC 5155, 9.2); delv does, as we do.
        let says_less = validation["negative"] == true && name.contains(".optout.");
        let said_secure = validation["resolver_says_secure"] == (*state == "secure") || says_less;
        if verdict(&delv) != verdict(&found.output) || !as_told || !said_secure {
            wrong.push(format!("=== {name} {kind}: {validation}\ndelv said:\n{delv}\nwe said:\n{}", found.output));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn what_the_resolver_says_and_what_is_proven_are_told_apart() {
    let network = Network::new();
    let names = Names::start(&network);
    let other = |name: &str| prove(&network, &names, name, json!({"resolver": OTHER_RESOLVER})).report["validation"].clone();
    // It does not validate, and what it says is true; or it says for itself what is not signed.
    let hashed = other("www.hashed.test");
    assert_eq!((&hashed["state"], &hashed["resolver_says_secure"]), (&json!("secure"), &json!(false)), "{hashed}");
    let forged = other("www.probe.test");
    assert_eq!(forged["state"], "bogus", "{forged}");
    // A server that answers only for itself has nothing to prove it with.
    let alone = prove(&network, &names, "www.probe.test", json!({"resolver": "10.9.1.56"})).report["validation"].clone();
    assert_eq!(alone["state"], "indeterminate", "{alone}");
    assert!(alone["reason"].as_str().unwrap().ends_with(": the server answered REFUSED"), "{alone}");
    let silent = prove(&network, &names, "www.probe.test", json!({"resolver": "10.9.1.57", "timeout": 0.2})).report["validation"].clone();
    assert_eq!((&silent["state"], &silent["reason"]), (&json!("indeterminate"), &json!("there is no answer to prove")), "{silent}");
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_proof_begins_at_the_anchor_that_is_given() {
    let network = Network::new();
    let names = Names::start(&network);
    let with = |anchor: &str| prove(&network, &names, "www.probe.test", json!({"trust_anchor": anchor})).report["validation"].clone();
    let key = with(&names.anchor("DNSKEY"));
    assert_eq!((&key["state"], &key["trust_anchors"][0]), (&json!("secure"), &json!(with_joined_key(&names.anchor("DNSKEY")))), "{key}");
    for anchor in [names.anchor("DS").replace(" 13 2 ", " 13 2 00"), ". IN DNSKEY 257 3 13 AAAA".to_owned()] {
        let wrong = with(&anchor);
        assert_eq!((&wrong["state"], &wrong["resolver_says_secure"]), (&json!("bogus"), &json!(true)), "{wrong}");
        assert!(wrong["reason"].as_str().unwrap().ends_with("is the trust anchor"), "{wrong}");
    }
    // Without one it is that of the Internet, which has not signed this root.
    let found = ours(&network, "dns", "www.probe.test", json!({"resolver": RESOLVER, "validate": true}));
    assert_eq!(found.report["validation"]["state"], "bogus", "{}", found.report);
    assert_eq!(found.report["validation"]["trust_anchors"].as_array().unwrap().len(), 2);
}

/// A key in one word.
fn with_joined_key(anchor: &str) -> String {
    let words: Vec<&str> = anchor.split(' ').collect();
    format!("{} {}", words[..6].join(" "), words[6..].concat())
}
