use serde_json::{Value, json};

use super::*;

fn nodes(place: Place, take: Take) -> Selector {
    Selector::Nodes { place, take }
}

fn labels(terms: &[&str], take: Take) -> Selector {
    nodes(Place::Labels(terms.iter().map(|term| term.parse().unwrap()).collect()), take)
}

#[track_caller]
fn refuses(text: &str, part: &str) {
    let detail = text.parse::<Selector>().unwrap_err();
    assert!(detail.contains(part), "{text}: {detail}");
}

#[test]
fn every_form_is_read_and_written_as_it_was() {
    let eu = || Place::Region("eu".parse().unwrap());
    let forms = [
        ("eu", nodes(eu(), Take::One)),
        ("eu:all", nodes(eu(), Take::All)),
        ("eu*3", nodes(eu(), Take::Distinct(3))),
        ("node:fra-1", Selector::Node("fra-1".parse().unwrap())),
        ("*", nodes(Place::Everywhere, Take::One)),
        ("*:all", nodes(Place::Everywhere, Take::All)),
        ("*5", nodes(Place::Everywhere, Take::Distinct(5))),
        ("site=fra", labels(&["site=fra"], Take::One)),
        ("site=fra,env!=lab:all", labels(&["site=fra", "env!=lab"], Take::All)),
        ("role in (edge,core)", labels(&["role in (edge,core)"], Take::One)),
        ("role in (edge,core),a.b/c=x*1000", labels(&["role in (edge,core)", "a.b/c=x"], Take::Distinct(1000))),
    ];
    for (text, selector) in forms {
        assert_eq!(text.parse(), Ok(selector.clone()), "{text}");
        assert_eq!(selector.to_string(), text);
        assert_eq!(serde_json::from_value::<Selector>(serde_json::to_value(&selector).unwrap()).unwrap(), selector);
    }
    assert_eq!("role in ( edge, core ), site=fra".parse::<Selector>().unwrap().to_string(), "role in (edge,core),site=fra");
}

#[test]
fn what_selects_nothing_is_told_what_would() {
    for region in ["", "eu.central", ">", "EU", "eu_x"] {
        refuses(region, "a region must be 1 to 63 of");
    }
    refuses("eu central", "says nothing of a label; write site=fra, env!=lab or role in (edge,core)");
    refuses("node:", "a node id must be");
    refuses("node:a:all", "a node id must be");
    refuses("label:x", "`label:` selects nothing; write a region such as eu-central");
    refuses("eu:al", "`eu:` selects nothing");
    for count in ["eu*", "eu*0", "eu*03", "eu*x", "*0", "**", "*+5", "eu*1001", "eu*99999999"] {
        refuses(count, "after `*` stands how many distinct nodes, from 1 to 1000");
    }
    refuses("site=", "the value of a label must be 1 to 63 of");
    refuses("=fra", "the name of a label must be 1 to 63 of");
    refuses("site=Fra", "not the string \"Fra\"");
    refuses("site=fra,", "says nothing of a label");
    refuses("role in edge", "values in parentheses: role in (edge,core)");
    refuses("role in ()", "the value of a label must be");
    refuses(&["a=b"; 9].join(","), "labels are 1 to 8 terms, not 9");
    refuses(&format!("a in ({})", ["b"; 17].join(",")), "1 to 16 values, not of 17");
}

#[test]
fn an_object_says_the_same() {
    let same = [
        (json!({"region": "eu"}), "eu"),
        (json!({"region": "eu", "take": "one"}), "eu"),
        (json!({"region": "eu", "take": "all"}), "eu:all"),
        (json!({"region": "*", "take": 5}), "*5"),
        (json!({"node": "fra-1"}), "node:fra-1"),
        (json!({"labels": {"site": "fra"}}), "site=fra"),
        (json!({"labels": "site=fra,env!=lab", "take": "all"}), "site=fra,env!=lab:all"),
        (json!({"labels": {"env": {"not": "lab"}, "role": ["edge", "core"]}, "take": 3}), "env!=lab,role in (edge,core)*3"),
    ];
    for (object, text) in same {
        assert_eq!(Selector::read(&object, "/from").unwrap().to_string(), text);
    }
    let wrong = [
        (json!({}), "/from", "exactly one of `region`"),
        (json!({"region": "eu", "node": "a"}), "/from", "exactly one of"),
        (json!({"region": 7}), "/from/region", "not 7"),
        (json!({"regoin": "eu"}), "/from/regoin", "did you mean `region`? the fields are region, node, labels, take"),
        (json!({"a/b~": "eu"}), "/from/a~1b~0", "unknown field `a/b~`"),
        (json!({"region": "eu", "take": 0}), "/from/take", "from 1 to 1000, not 0"),
        (json!({"region": "eu", "take": "two"}), "/from/take", "must be \"one\", \"all\""),
        (json!({"node": "a", "take": "all"}), "/from/take", "a node is one"),
        (json!({"labels": {}}), "/from/labels", "1 to 8 terms, not 0"),
        (json!({"labels": {"a/b": "X"}}), "/from/labels/a~1b", "the value of a label"),
        (json!({"labels": {"a": {"nto": "x"}}}), "/from/labels/a", "not an object"),
        (json!({"labels": {"a": []}}), "/from/labels/a", "1 to 16 values, not of 0"),
        (json!({"labels": 7}), "/from/labels", "not 7"),
        (json!(7), "/from", "selects nodes, not 7; write a region"),
    ];
    for (value, pointer, part) in wrong {
        let invalid = Selector::read(&value, "/from").unwrap_err();
        assert_eq!(invalid.pointer, pointer, "{value}");
        assert!(invalid.detail.contains(part), "{value}: {invalid}");
    }
}

#[test]
fn a_term_holds_as_it_says() {
    let labels: Labels = serde_json::from_value(json!({"site": "fra", "role": "edge"})).unwrap();
    for (term, holds) in [
        ("site=fra", true),
        ("site=ber", false),
        ("env=lab", false),
        ("site!=fra", false),
        ("site!=ber", true),
        ("env!=lab", true),
        ("role in (edge,core)", true),
        ("role in (core)", false),
        ("env in (lab)", false),
    ] {
        assert_eq!(term.parse::<Term>().unwrap().holds(&labels), holds, "{term}");
    }
}

#[test]
fn a_list_is_split_at_its_commas_but_labels_are_not() {
    assert_eq!(split_list("eu,node:fra-1,*5"), ["eu", "node:fra-1", "*5"]);
    assert_eq!(split_list("site=fra,env!=lab"), ["site=fra,env!=lab"]);
    assert_eq!(split_list("role in (edge,core)"), ["role in (edge,core)"]);
}

#[test]
fn the_schema_is_that_of_the_parser() {
    let schema = schemars::schema_for!(Selector).to_value();
    assert_eq!(schema["oneOf"].as_array().unwrap().len(), 4, "{schema}");
    assert!(schema["oneOf"][0]["pattern"].as_str().is_some_and(|pattern| pattern.starts_with("^(node:")));
    assert_eq!(schema["oneOf"][3]["properties"]["labels"]["oneOf"][0]["maxProperties"], Value::from(TERMS_MAX));
}
