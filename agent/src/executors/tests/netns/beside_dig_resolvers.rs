//! `dns` beside dig(1) on a validating resolver: several resolvers at once.

use serde_json::{Value, json};

use super::names::{Names, OTHER_RESOLVER, RESOLVER};
use super::network::Network;
use super::{ours, theirs};

/// Without what differs between two runs, and without dig's introduction of itself.
fn comparable(text: &str) -> Vec<String> {
    let varies = [";; Query time:", ";; WHEN:", ";; ->>HEADER<<-", "; <<>> DiG", ";; global options", "; (1 server found)"];
    let lines = text.lines().filter(|line| !line.is_empty() && !varies.iter().any(|start| line.starts_with(start)));
    // A cache counts the seconds of its records.
    lines.map(|line| line.replace("\t299\t", "\t300\t").replace("\t298\t", "\t300\t")).collect()
}

#[test]
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
