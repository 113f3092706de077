//! Scopes and limits.

use super::*;

#[test]
fn names_are_judged_by_names_and_addresses_by_networks() {
    let targets: Targets = "10.0.0.0/8,*.example.com,2001:db8::/32".parse().unwrap();
    assert!(targets.allow_name("a.example.com") && !targets.allow_name("example.com") && !targets.allow_name("aexample.com"));
    assert!(targets.allow_literal("10.1.2.3".parse().unwrap()) && !targets.allow_literal("11.1.2.3".parse().unwrap()));
    assert!(targets.allow_resolved("::ffff:10.1.2.3".parse().unwrap()) && !targets.allow_resolved("192.0.2.1".parse().unwrap()));
    assert!(targets.allow_resolved("2001:db8::9".parse().unwrap()));
    let all: Targets = "0.0.0.0/0".parse().unwrap();
    assert!(all.allow_literal("192.0.2.1".parse().unwrap()) && all.allow_name("any.example"));
    let names: Targets = "*.example.com".parse().unwrap();
    assert!(!names.allow_literal("10.0.0.1".parse().unwrap()) && names.allow_resolved("10.0.0.1".parse().unwrap()));
}

#[test]
fn an_address_in_disguise_is_judged_by_what_it_leads_to_as_well() {
    let targets: Targets = "64:ff9b::/96,2002::/16,10.20.0.0/16".parse().unwrap();
    for (address, allowed) in [("64:ff9b::a14:1", true), ("64:ff9b::a15:1", false), ("2002:a14:1::1", true), ("2002:a15:1::1", false)] {
        let address = address.parse().unwrap();
        assert_eq!((targets.allow_literal(address), targets.allow_resolved(address)), (allowed, allowed), "{address}");
    }
    let only_inner: Targets = "10.20.0.0/16".parse().unwrap();
    assert!(!only_inner.allow_literal("64:ff9b::a14:1".parse().unwrap()));
}

#[test]
fn what_cannot_be_understood_is_refused() {
    for text in ["", "10.0.0.0/33", "*", "*.", "a b", "10.0.0.0/x", "10.0.0.0/+8", "10.0.0.0/0008", "::/129"] {
        assert!(text.parse::<TargetPattern>().is_err(), "{text}");
    }
    for text in ["", "10", "0/s", "10/d", "x/m", "-1/s"] {
        assert!(text.parse::<Rate>().is_err(), "{text}");
    }
    for text in ["", "eu.*", "EU", "*eu", "eu*x", "-*"] {
        assert!(text.parse::<RegionPattern>().is_err(), "{text}");
    }
    assert_eq!(
        "jobs:wirte".parse::<Scope>().unwrap_err().split(';').nth(1),
        Some(
            " did you mean `jobs:write`? the scopes are jobs:write, jobs:read, nodes:read, nodes:write, nodes:enroll, keys:write, services:write, audit:read, metrics:read, admin"
        )
    );
}

#[test]
fn a_region_pattern_is_a_name_or_its_beginning() {
    let region: Region = "eu-central".parse().unwrap();
    for (pattern, matches) in [("eu-central", true), ("eu-*", true), ("*", true), ("us-*", false), ("eu", false)] {
        assert_eq!(pattern.parse::<RegionPattern>().unwrap().matches(&region), matches, "{pattern}");
    }
}

#[test]
fn limits_of_nodes_and_labels_tell_nodes_apart() {
    let limits = |json: &str| serde_json::from_str::<Limits>(json).unwrap();
    let labels = |json: &str| serde_json::from_str::<Labels>(json).unwrap();
    let (fra, lab) = (labels(r#"{"site":"fra"}"#), labels(r#"{"site":"fra","env":"lab"}"#));
    let (n1, n2): (NodeId, NodeId) = ("n1".parse().unwrap(), "n2".parse().unwrap());
    for (json, allowed) in [
        ("{}", [true, true, true]),
        (r#"{"nodes":["n1"]}"#, [true, true, false]),
        (r#"{"labels":["site=fra","env!=lab"]}"#, [true, false, true]),
        (r#"{"nodes":["n1"],"labels":["env in (lab)"]}"#, [false, true, false]),
    ] {
        let limits = limits(json);
        let allows = [limits.allow_node(&n1, &fra), limits.allow_node(&n1, &lab), limits.allow_node(&n2, &fra)];
        assert_eq!(allows, allowed, "{json}");
        assert_eq!(limits.tell_nodes_apart(), json != "{}");
        assert_eq!(serde_json::to_string(&limits).unwrap(), json);
    }
    let outer = limits(r#"{"nodes":["n1","n2"],"labels":["site in (fra,ber)","env!=lab"]}"#);
    let under = |json: &str| limits(json).under(&outer).map(|inner| serde_json::to_string(&inner).unwrap());
    assert_eq!(under("{}").unwrap(), serde_json::to_string(&outer).unwrap());
    // What is said of labels is added to; what says more takes the place of what says less.
    assert_eq!(under(r#"{"nodes":["n2"],"labels":["site=fra"]}"#).unwrap(), r#"{"nodes":["n2"],"labels":["site=fra","env!=lab"]}"#);
    assert_eq!(
        under(r#"{"labels":["env in (prod)"]}"#).unwrap(),
        r#"{"nodes":["n1","n2"],"labels":["env in (prod)","site in (fra,ber)"]}"#
    );
    let refused = under(r#"{"nodes":["n1","n3"]}"#).unwrap_err();
    assert_eq!((refused.pointer.as_str(), refused.detail.contains("n1, n2")), ("/nodes", true), "{refused}");
    assert_eq!(limits(r#"{"nodes":[]}"#).check().unwrap_err().pointer, "/nodes");
    assert_eq!(limits(r#"{"labels":[]}"#).check().unwrap_err().pointer, "/labels");
    let schema = <Term as JsonSchema>::json_schema(&mut schemars::SchemaGenerator::default());
    let pattern = regex::Regex::new(schema.get("pattern").unwrap().as_str().unwrap()).unwrap();
    for (term, good) in [("site=fra", true), ("env!=lab", true), ("role in (edge,core)", true), ("site", false), ("a=b,c=d", false)] {
        assert_eq!((term.parse::<Term>().is_ok(), pattern.is_match(term)), (good, good), "{term}");
    }
}

#[test]
fn limits_given_on_are_never_wider() {
    let limits = |json: &str| serde_json::from_str::<Limits>(json).unwrap();
    let outer = limits(r#"{"tools":["echo"],"regions":["eu-*"],"targets":["10.0.0.0/8","*.example.com"],"rate":"60/m","at_once":8}"#);
    for narrower in [
        "{}",
        r#"{"regions":["eu-central","eu-w*"]}"#,
        r#"{"targets":["10.1.0.0/16","a.example.com"]}"#,
        r#"{"targets":["10.1.2.3","*.b.example.com"]}"#,
        r#"{"rate":"30/m"}"#,
        r#"{"rate":"60/h"}"#,
        r#"{"at_once":8}"#,
    ] {
        let inner = limits(narrower).under(&outer).unwrap();
        assert!(
            inner.tools.is_some() && inner.regions.is_some() && inner.targets.is_some() && inner.rate.is_some() && inner.at_once.is_some(),
            "{narrower}"
        );
    }
    for (wider, pointer) in [
        (r#"{"regions":["e*"]}"#, "/regions"),
        (r#"{"regions":["us-east"]}"#, "/regions"),
        (r#"{"targets":["10.0.0.0/7","a.example.com"]}"#, "/targets"),
        (r#"{"targets":["10.1.0.0/16"]}"#, "/targets"),
        (r#"{"targets":["a.example.com"]}"#, "/targets"),
        (r#"{"targets":["10.1.0.0/16","example.com"]}"#, "/targets"),
        (r#"{"rate":"61/m"}"#, "/rate"),
        (r#"{"rate":"2/s"}"#, "/rate"),
        (r#"{"at_once":9}"#, "/at_once"),
    ] {
        assert_eq!(limits(wider).under(&outer).unwrap_err().pointer, pointer, "{wider}");
    }
    assert_eq!(limits(r#"{"rate":"60/m"}"#).under(&limits(r#"{"rate":"1/s"}"#)).unwrap_err().pointer, "/rate");
    assert_eq!(limits(r#"{"targets":[]}"#).check().unwrap_err().pointer, "/targets");
}

#[test]
fn so_many_at_once_is_a_whole_number_that_limits_something() {
    for good in ["1", "8", "1000000"] {
        assert_eq!(good.parse::<AtOnce>().unwrap(), serde_json::from_str(good).unwrap(), "{good}");
    }
    for bad in ["0", "-1", "1.5", "1000001", "\"8\"", "null"] {
        let problem = serde_json::from_str::<AtOnce>(bad).unwrap_err().to_string();
        assert!(problem.contains("must be a whole number from 1 to 1000000, not "), "{problem}");
    }
    assert_eq!("many".parse::<AtOnce>().unwrap_err(), "must be a whole number from 1 to 1000000, not the string \"many\"");
}
