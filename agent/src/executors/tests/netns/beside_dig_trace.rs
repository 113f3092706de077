//! `dns` with `trace` beside `dig +trace`, below a root of our own.

use serde_json::{Value, json};

use super::names::{Names, RESOLVER, ROOT};
use super::network::Network;
use super::{Context, Found, ours_on, policy, theirs, told_on};

/// A node that looks names up where dig does, and may not touch what is behind one of the delegations.
fn node() -> Context {
    let resolver = format!("{RESOLVER}:53").parse().unwrap();
    Context::new(policy("[deny]\nnetworks = [\"10.9.66.0/24\"]"), &[resolver]).unwrap()
}

fn trace(network: &Network, name: &str, mut parameters: Value) -> Found {
    parameters["trace"] = json!(true);
    parameters["timeout"] = json!(1);
    if parameters.get("resolver").is_none() {
        parameters["resolver"] = json!(ROOT);
    }
    ours_on(network, node, "dns", name, parameters)
}

/// Without the times, dig's introduction and its name for itself. Why a name has no address is said in other words, and who cannot be reached
/// is said more than once by dig.
fn comparable(text: &str) -> Vec<String> {
    let line = |line: &str| {
        let line = line.strip_prefix("dig: ").unwrap_or(line);
        let cut = [" in ", "': "].into_iter().filter(|_| line.starts_with(";; Received") || line.starts_with("couldn't get address"));
        cut.fold(line.to_owned(), |line, at| line.split(at).next().unwrap_or_default().to_owned())
    };
    let introductions = ["; <<>> DiG", ";; global options", "; (1 server found)"];
    let mut lines: Vec<String> =
        text.lines().filter(|text| !text.is_empty() && !introductions.iter().any(|start| text.starts_with(start))).map(line).collect();
    lines.dedup();
    // Where no server has an address, dig gives up before it says from whom it knows that.
    if let Some(at) = lines.iter().position(|line| line.starts_with("couldn't get address")).and_then(|at| at.checked_sub(1)) {
        lines.retain({
            let mut number = 0;
            move |line| {
                number += 1;
                number != at + 1 || !line.starts_with(";; Received")
            }
        });
    }
    lines
}

#[track_caller]
fn same(network: &Network, name: &str, dig: &[&str], parameters: Value) -> Found {
    let (real, found) = both(network, name, dig, parameters);
    assert_eq!(comparable(&found.output), comparable(&real), "dig said:\n{real}\nwe said:\n{}", found.output);
    found
}

fn both(network: &Network, name: &str, dig: &[&str], parameters: Value) -> (String, Found) {
    let at = format!("@{}", parameters.get("resolver").and_then(Value::as_str).unwrap_or(ROOT));
    let real = theirs(network, "dig", &[&[&at, "+trace", "+nocookie", "+time=1", "+tries=2", name], dig].concat());
    (real, trace(network, name, parameters))
}

fn results(found: &Found) -> Vec<&str> {
    found.report["trace"].as_array().unwrap().iter().map(|step| step["result"].as_str().unwrap()).collect()
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn every_step_reads_as_dig_prints_it() {
    let network = Network::new();
    let _names = Names::start(&network);
    let down = ["referral", "referral", "referral"];
    for (name, dig, parameters, last) in [
        ("www.probe.test", &[][..], json!({}), "answer"),
        ("www.probe.test", &[], json!({"resolver": RESOLVER}), "answer"),
        ("www.probe.test", &["AAAA"], json!({"type": "AAAA"}), "no_data"),
        ("nope.probe.test", &[], json!({}), "no_such_name"),
        ("alias.probe.test", &[], json!({}), "answer"),
        ("outside.hashed.test", &[], json!({}), "alias"),
        ("large.probe.test", &["TXT"], json!({"type": "TXT"}), "answer"),
        ("large.plain.test", &["TXT", "+ignore"], json!({"type": "TXT", "tcp_fallback": false}), "truncated"),
        ("www.plain.test", &["+tcp"], json!({"protocol": "tcp"}), "answer"),
        ("www.far.test", &[], json!({}), "answer"),
        ("lame.test", &[], json!({}), "error"),
    ] {
        let found = same(&network, name, dig, parameters);
        assert_eq!(results(&found), [&down[..], &[last]].concat(), "{}", found.output);
    }
    let (told, found) = told_on(&network, node, "dns", "www.probe.test", json!({"resolver": ROOT, "trace": true}));
    assert_eq!(told, found.output, "step by step");
    let found = same(&network, "nope.test", &[], json!({}));
    assert_eq!(results(&found), ["referral", "referral", "no_such_name"]);
    let found = trace(&network, "nope.test", json!({"family": "4"}));
    assert_eq!(results(&found), ["referral", "referral", "no_such_name"]);
    let found = same(&network, "test", &["NS"], json!({"type": "NS"}));
    assert_eq!(results(&found), ["referral", "referral", "answer"]);
    let found = same(&network, "nowhere.test", &[], json!({}));
    assert_eq!(results(&found), ["referral", "referral", "referral", "unresolved"]);
    let found = same(&network, "silent.test", &[], json!({}));
    assert_eq!(results(&found), ["referral", "referral", "referral", "no_answer"]);
    for name in ["sideways.test", "upwards.test"] {
        // dig goes on until it has asked too often; we say at once that it leads nowhere.
        let (real, found) = both(&network, name, &[], json!({}));
        assert_eq!(results(&found), ["referral", "referral", "referral", "bad_referral"]);
        assert!(comparable(&real).starts_with(&comparable(&found.output)), "dig said:\n{real}\nwe said:\n{}", found.output);
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_delegation_into_denied_addresses_is_followed_by_no_packet() {
    let network = Network::new();
    let _names = Names::start(&network);
    network.count_leaving("meta l4proto { tcp, udp } ip daddr != 10.9.1.48/28");
    network.count_leaving("meta l4proto { tcp, udp } meta nfproto ipv6");
    for (name, rule) in [("www.denied.test", "always denied"), ("www.private.test", "10.9.66.0/24 is in deny.networks")] {
        let found = trace(&network, name, json!({}));
        assert_eq!(results(&found), ["referral", "referral", "referral", "denied"], "{}", found.output);
        let last = &found.report["trace"][3];
        assert_eq!((last["attempts"].as_array().unwrap().len(), &found.report["answered"]), (0, &json!(false)), "{last}");
        assert!(last["servers"][0]["not_asked"].as_str().unwrap().contains("this node's policy: "), "{last}");
        assert!(found.output.contains(" is not asked: ") && (found.output.contains(rule) || rule == "always denied"), "{}", found.output);
    }
    // Of two addresses the one that may be asked is asked.
    let found = trace(&network, "www.mixed.test", json!({}));
    assert_eq!((results(&found)[3], &found.report["server"]["address"]), ("answer", &json!("10.9.1.56")), "{}", found.report);
    // A server that has to be looked up is judged like any other.
    let found = trace(&network, "www.rebound.test", json!({}));
    assert_eq!(results(&found), ["referral", "referral", "referral", "denied"], "{}", found.output);
    assert_eq!(network.leaving(), 0);
    theirs(&network, "dig", &["@127.0.0.1", "+tries=1", "+time=1", "x"]);
    assert!(network.leaving() > 0, "the rules count");
}
