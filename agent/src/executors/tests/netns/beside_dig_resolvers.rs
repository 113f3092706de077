//! `dns` beside dig(1) on a validating resolver: several resolvers at once, TLS and HTTPS.

use serde_json::{Value, json};

use super::names::{Names, OTHER_RESOLVER, RESOLVER, ROOT};
use super::network::Network;
use super::{ours, theirs};

/// Without what differs between two runs, and without dig's introduction of itself.
fn comparable(text: &str) -> Vec<String> {
    let varies = [";; Query time:", ";; WHEN:", "; <<>> DiG", ";; global options", "; (1 server found)"];
    let lines = text.lines().filter(|line| !line.is_empty() && !varies.iter().any(|start| line.starts_with(start)));
    lines.map(line).collect()
}

/// Without the number of a query; and a cache counts the seconds of its records.
fn line(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        [name, ttl, rest @ ..] if !line.starts_with(';') && ttl.parse::<u32>().is_ok() => format!("{name} TTL {}", rest.join(" ")),
        _ => line.split(", id: ").next().unwrap_or_default().to_owned(),
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn several_resolvers_read_as_dig_prints_them_and_differ_where_they_do() {
    let network = Network::new();
    let _names = Names::start(&network);
    let both = |name: &str| ours(&network, "dns", name, json!({"resolver": RESOLVER, "compare_with": [OTHER_RESOLVER]}));
    let found = both("www.probe.test");
    let (answers, summary) = found.output.split_once(";; COMPARISON: ").unwrap();
    let (at, other_at) = (format!("@{RESOLVER}"), format!("@{OTHER_RESOLVER}"));
    let real = theirs(&network, "dig", &["+nocookie", "www.probe.test", &at, "www.probe.test", &other_at]);
    let real = comparable(&real);
    for line in comparable(answers) {
        assert!(real.contains(&line), "{line}\ndig said:\n{real:?}");
    }
    assert_eq!(
        summary.lines().collect::<Vec<_>>(),
        [
            "2 different answers from 2 resolvers",
            ";; 10.9.1.52 has, and 10.9.1.53 has not: www.probe.test. A 192.0.2.99",
            ";; 10.9.1.53 has, and 10.9.1.52 has not: www.probe.test. A 192.0.2.80",
            ";; 10.9.1.53 says that it has verified the answer (ad), 10.9.1.52 does not"
        ]
    );
    // Signed wrongly: who verifies says that it failed, who does not passes it on.
    let comparison = both("www.altered.test").report["comparison"].clone();
    let codes: Vec<&Value> = comparison["groups"].as_array().unwrap().iter().map(|group| &group["rcode"]).collect();
    assert_eq!(codes, ["SERVFAIL", "NOERROR"], "{comparison}");
    assert_eq!(both("www.plain.test").report["comparison"]["agreed"], true);
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_web_server_is_where_the_resolver_that_is_given_says() {
    let network = Network::new();
    let _names = Names::start(&network);
    for (resolver, address) in [(RESOLVER, "192.0.2.80"), (OTHER_RESOLVER, "192.0.2.99")] {
        let at = format!("@{resolver}");
        assert_eq!(theirs(&network, "dig", &["+short", &at, "www.probe.test"]).trim(), address);
        let found = ours(&network, "http", "http://www.probe.test/", json!({"resolver": resolver, "timeout": 0.5}));
        let request = &found.report["requests"][0];
        assert!(request["address"] == address && request["timings"]["dns_ms"].is_number(), "{request}");
    }
}

/// What is asked over TLS or HTTPS of the resolver, whose certificate is among those to trust.
fn secure(names: &Names, protocol: &str, more: &Value) -> Value {
    let certificate = std::fs::read_to_string(names.certificate()).unwrap();
    let mut parameters = json!({"resolver": RESOLVER, "protocol": protocol, "ca_certificates": certificate, "timeout": 2, "tries": 1});
    parameters.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    parameters
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn tls_and_https_read_as_dig_prints_them() {
    let network = Network::new();
    let names = Names::start(&network);
    let at = format!("@{RESOLVER}");
    for (protocol, flag) in [("tls", "+tls"), ("https", "+https")] {
        for (name, kind, more, dig) in [
            ("www.probe.test", "A", json!({}), &[][..]),
            ("www.probe.test", "A", json!({"nsid": true, "dnssec": true}), &["+nsid", "+dnssec"]),
            ("nope.probe.test", "A", json!({}), &[]),
            ("large.probe.test", "TXT", json!({"type": "TXT"}), &[]),
        ] {
            let real = theirs(&network, "dig", &[&["+nocookie", &at, flag, name, kind], dig].concat());
            let found = ours(&network, "dns", name, secure(&names, protocol, &more));
            assert_eq!(comparable(&found.output), comparable(&real), "dig said:\n{real}\nwe said:\n{}", found.output);
            let (report, attempt) = (&found.report, &found.report["attempts"][0]);
            assert_eq!((&report["tls"]["verified"], &report["tls"]["version"]), (&json!(true), &json!("1.3")), "{report}");
            assert!(
                attempt["connect_ms"].is_number() && attempt["tls_ms"].is_number() && report["timings"]["tls_ms"].is_number(),
                "{report}"
            );
        }
        let found = ours(
            &network,
            "dns",
            "www.hashed.test",
            secure(&names, protocol, &json!({"validate": true, "trust_anchor": names.anchor("DS")})),
        );
        assert_eq!(found.report["validation"]["state"], "secure", "{}", found.report);
    }
    let found = ours(&network, "dns", "www.probe.test", secure(&names, "https", &json!({"path": "/elsewhere"})));
    let attempt = &found.report["attempts"][0];
    assert_eq!(
        (&attempt["result"], &attempt["detail"]),
        (&json!("malformed"), &json!("the web server answered 404 Not Found")),
        "{}",
        found.report
    );
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_server_whose_certificate_is_not_trusted_is_not_asked() {
    let network = Network::new();
    let names = Names::start(&network);
    let asked = |more: Value| ours(&network, "dns", "www.probe.test", secure(&names, "tls", &more)).report;
    for (more, problem) in [(json!({"ca_certificates": null}), "self_signed"), (json!({"tls_name": "other.test"}), "name_mismatch")] {
        let mut parameters = secure(&names, "tls", &more);
        parameters.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        let report = ours(&network, "dns", "www.probe.test", parameters.clone()).report;
        assert_eq!((&report["answered"], &report["attempts"][0]["result"]), (&json!(false), &json!("tls_failed")), "{report}");
        assert_eq!((&report["tls"]["verified"], &report["tls"]["problems"][0]["code"]), (&json!(false), &json!(problem)), "{report}");
        // Told to, it is asked all the same, and what is wrong is said.
        parameters["tls_verify"] = json!(false);
        let report = ours(&network, "dns", "www.probe.test", parameters).report;
        assert_eq!((&report["answered"], &report["tls"]["problems"][0]["code"]), (&json!(true), &json!(problem)), "{report}");
    }
    assert_eq!(asked(json!({"tls_name": "resolver.test"}))["answered"], true);
    // The port in clear takes a greeting for the length of a message, and waits for the rest of it.
    let in_clear = asked(json!({"port": 53, "timeout": 0.5}))["attempts"][0].clone();
    assert_eq!((&in_clear["result"], &in_clear["connect_ms"].is_number()), (&json!("timeout"), &true), "{in_clear}");
    let at = format!("@{ROOT}");
    let real = theirs(&network, "dig", &["+nocookie", "+tries=1", "+tls", &at, "www.probe.test"]);
    let found = ours(&network, "dns", "www.probe.test", secure(&names, "tls", &json!({"resolver": ROOT})));
    assert!(comparable(&real).starts_with(&comparable(&found.output)), "dig said:\n{real}\nwe said:\n{}", found.output);
    // dig says it once more when it gives up.
    let real = theirs(&network, "dig", &["+nocookie", "+tries=1", "+tls-ca", &format!("@{RESOLVER}"), "www.probe.test"]);
    let found = ours(&network, "dns", "www.probe.test", json!({"resolver": RESOLVER, "protocol": "tls", "tries": 1}));
    let said = |text: &str| {
        comparable(text).into_iter().find(|line| line.starts_with(";; TLS peer certificate verification for 10.9.1.53#853 failed:"))
    };
    assert!(said(&real).is_some() && said(&found.output).is_some(), "dig said:\n{real}\nwe said:\n{}", found.output);
}
