use std::sync::Arc;

use probeops_shared::access::Scope;
use probeops_shared::presence::{Beat, PolicyReport, Slots, Unavailable};
use probeops_shared::problem::Code;
use probeops_shared::registry::NodeGrant;
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::Spec;
use serde_json::{Value, json};

use super::*;
use crate::access::Identity;
use crate::access::kinds::{self, KINDS};
use crate::jobs::admission::check_target;

/// What a node of the test is.
#[derive(Clone, Copy)]
enum State {
    Free(usize),
    Offline,
    Draining,
    Revoked,
    WithoutPing,
    NotGranted,
}

fn node(id: &str, region: &str, labels: Value, state: State) -> (NodeGrant, Option<Beat>) {
    let (both, echo) = (vec![ToolName::Echo, ToolName::Ping], vec![ToolName::Echo]);
    let (granted, tools) = match state {
        State::NotGranted => (echo.clone(), echo),
        State::WithoutPing => (both, echo),
        _ => (both.clone(), both),
    };
    let free = if let State::Free(free) = state { free } else { 1 };
    let missing = Unavailable { tool: ToolName::Ping, missing: "raw sockets".to_owned(), grant: "setcap x".to_owned() };
    let beat = Beat {
        node: id.parse().unwrap(),
        region: region.parse().unwrap(),
        boot_id: "b".to_owned(),
        started_at: Timestamp::now(),
        counter: 1,
        version: "0".to_owned(),
        tools,
        unavailable: if matches!(state, State::WithoutPing) { vec![missing] } else { Vec::new() },
        slots: [(ToolName::Ping.class(), Slots { free, total: 32 })].into(),
        draining: matches!(state, State::Draining),
        clock_offset_ms: None,
        rtt_ms: None,
        policy: PolicyReport::new(""),
    };
    let grant = NodeGrant {
        labels: serde_json::from_value(labels).unwrap(),
        revoked_at: matches!(state, State::Revoked).then(Timestamp::now),
        ..NodeGrant::new(id.parse().unwrap(), region.parse().unwrap(), granted, "U", Timestamp::now())
    };
    (grant, (!matches!(state, State::Offline)).then_some(beat))
}

fn roster() -> Roster {
    Roster::of(vec![
        node("eu-1", "eu", json!({"site": "fra", "role": "edge"}), State::Free(3)),
        node("eu-2", "eu", json!({"site": "ber", "role": "core"}), State::Free(9)),
        node("eu-3", "eu", json!({"site": "fra", "env": "lab"}), State::Free(5)),
        node("eu-4", "eu", json!({"site": "fra"}), State::Offline),
        node("us-1", "us", json!({"site": "nyc", "role": "edge"}), State::Free(1)),
        node("us-2", "us", json!({}), State::Draining),
        node("ap-1", "ap", json!({"site": "syd"}), State::WithoutPing),
        node("ap-2", "ap", json!({}), State::NotGranted),
        node("ap-3", "ap", json!({"site": "syd"}), State::Revoked),
    ])
}

fn principal(limits: &str) -> Principal {
    let limits = serde_json::from_str(limits).unwrap();
    Principal::of(Arc::new(Identity {
        name: "key:k".to_owned(),
        scopes: vec![Scope::JobsWrite],
        limits,
        nodes: Vec::new(),
        expires_at: None,
    }))
}

fn from(selectors: &[&str]) -> Vec<Selector> {
    selectors.iter().map(|selector| selector.parse().unwrap()).collect()
}

/// Where the runs go, and who is missing.
fn chosen(limits: &str, selectors: &[&str]) -> Result<(Vec<String>, Vec<String>), Problem> {
    let chosen = choose(&roster(), &principal(limits), ToolName::Ping, &from(selectors))?;
    let to = chosen.destinations.iter().map(|destination| match destination {
        Destination::Region(region) => format!("any of {region}"),
        Destination::Node(node) => node.to_string(),
        Destination::OneOf(node, _) => format!("{node} or another"),
    });
    let missing = chosen.missing.iter().map(|excluded| format!("{} {}", excluded.node.as_ref().unwrap(), excluded.why));
    Ok((to.collect(), missing.collect()))
}

#[track_caller]
fn goes(selectors: &[&str], to: &[&str], missing: &[&str]) {
    let (chosen_to, chosen_missing) = chosen("{}", selectors).unwrap();
    assert_eq!(
        (chosen_to, chosen_missing),
        (to.iter().map(ToString::to_string).collect(), missing.iter().map(ToString::to_string).collect())
    );
}

#[track_caller]
fn refuses(limits: &str, selectors: &[&str], code: Code, part: &str) {
    let problem = chosen(limits, selectors).unwrap_err();
    assert_eq!(problem.code(), code, "{problem}");
    assert!(problem.detail().contains(part), "{problem}");
}

#[test]
fn every_selector_finds_its_nodes() {
    goes(&["eu"], &["any of eu"], &[]);
    goes(&["node:eu-1"], &["eu-1"], &[]);
    goes(&["node:us-2"], &["us-2"], &[]);
    goes(&["eu:all"], &["eu-1", "eu-2", "eu-3"], &["eu-4 offline"]);
    goes(&["eu*2"], &["eu-2 or another", "eu-3 or another"], &[]);
    goes(&["eu*9"], &["eu-2 or another", "eu-3 or another", "eu-1 or another"], &["eu-4 offline"]);
    let no_asia = ["ap-1 tool_unavailable", "ap-2 tool_not_granted"];
    goes(&["*"], &["any of eu", "any of us"], &no_asia);
    goes(
        &["*:all"],
        &["eu-1", "us-1", "eu-2", "eu-3"],
        &["ap-1 tool_unavailable", "ap-2 tool_not_granted", "eu-4 offline", "us-2 draining"],
    );
    goes(&["*3"], &["eu-2 or another", "us-1 or another", "eu-3 or another"], &[]);
    goes(&["site=fra"], &["eu-3 or another"], &[]);
    goes(&["site=fra:all"], &["eu-1", "eu-3"], &["eu-4 offline"]);
    goes(&["site=fra,env!=lab:all"], &["eu-1"], &["eu-4 offline"]);
    goes(&["role in (edge,core):all"], &["eu-1", "eu-2", "us-1"], &[]);
    goes(&["role in (edge,core)*2"], &["eu-2 or another", "eu-1 or another"], &[]);
    goes(&["env!=lab*1"], &["eu-2 or another"], &[]);
}

#[test]
fn a_node_that_several_select_runs_once() {
    goes(&["node:eu-1", "eu:all"], &["eu-1", "eu-2", "eu-3"], &["eu-4 offline"]);
    goes(&["eu", "*"], &["any of eu", "any of us"], &["ap-1 tool_unavailable", "ap-2 tool_not_granted"]);
    goes(&["site=fra:all", "eu:all"], &["eu-1", "eu-3", "eu-2"], &["eu-4 offline"]);
}

#[test]
fn no_match_says_what_there_is() {
    refuses("{}", &["mars"], Code::NoSuchRegion, "the regions are: ap, eu, us");
    refuses("{}", &["eu", "mars:all"], Code::NoSuchRegion, "there is no region `mars`");
    refuses("{}", &["node:ap-3"], Code::NoSuchNode, "the nodes are: ap-1, ap-2, eu-1");
    refuses("{}", &["node:eu-4"], Code::NoNodeAvailable, "eu-4 is not online");
    refuses("{}", &["ap*2"], Code::NoNodeAvailable, "2 of its nodes are online, and they can run: echo");
    let labels =
        "no node has the labels of `site=muc:all`; the labels are: env=lab, role=core, role=edge, site=ber, site=fra, site=nyc, site=syd";
    refuses("{}", &["site=muc:all"], Code::NoSuchNode, labels);
    refuses("{}", &["site=syd"], Code::NoNodeAvailable, "there are: ap-1 (tool_unavailable)");
}

#[test]
fn nobody_learns_of_nodes_outside_his_regions() {
    let limits = r#"{"regions":["eu"]}"#;
    for selector in ["*", "*:all", "*9", "site!=x:all"] {
        let (to, missing) = chosen(limits, &[selector]).unwrap();
        assert!(to.iter().chain(&missing).all(|node| node.contains("eu")), "{selector}: {to:?}, {missing:?}");
    }
    refuses(limits, &["us"], Code::Forbidden, "limited to the regions eu");
    refuses(limits, &["node:us-1"], Code::NoSuchNode, "the nodes are: eu-1, eu-2, eu-3, eu-4");
    refuses(limits, &["site=nyc"], Code::NoSuchNode, "the labels are: env=lab, role=core, role=edge, site=ber, site=fra");
    let explanation = explain(&roster(), &principal(limits), ToolName::Ping, &from(&["us", "node:us-1", "*"])).unwrap();
    assert!(!serde_json::to_string(&explanation).unwrap().contains("us-2"));
    let [us, named, everywhere] = explanation.selectors.as_slice() else { panic!() };
    assert_eq!((us.excluded[0].why, us.problem.as_ref().unwrap().code), (Why::OutsideLimits, Code::Forbidden));
    assert_eq!((named.excluded.len(), named.problem.as_ref().unwrap().code), (0, Code::NoSuchNode));
    assert_eq!((everywhere.runs, everywhere.nodes.len(), everywhere.excluded.len()), (1, 3, 1));
}

/// What a principal of each kind reaches with a selector: nodes, or the code and words of a refusal.
fn reached(kind: &str, limits: &Value, selector: &str) -> Result<Vec<String>, Problem> {
    let principal = kinds::principal(kind, limits, &["ap", "eu", "us"]);
    let chosen = choose(&roster(), &principal, ToolName::Ping, &from(&[selector]))?;
    // What is explained is what is done.
    let explanation = explain(&roster(), &principal, ToolName::Ping, &from(&[selector]))?;
    assert_eq!(explanation.runs, chosen.destinations.len(), "{kind} {limits} {selector}");
    let mut to: Vec<String> = chosen
        .destinations
        .iter()
        .flat_map(|destination| match destination {
            Destination::Region(region) => vec![format!("any of {region}")],
            Destination::Node(node) => vec![node.to_string()],
            Destination::OneOf(node, spares) => {
                std::iter::once(node.to_string()).chain(spares.left().iter().map(ToString::to_string)).collect()
            }
        })
        .collect();
    to.sort_unstable();
    to.dedup();
    Ok(to)
}

#[test]
fn every_limit_holds_for_every_kind_of_principal_in_every_selector() {
    let (nodes, labels) = (json!({"nodes": ["eu-1", "eu-4", "us-1"]}), json!({"labels": ["site=fra", "env!=lab"]}));
    let (regions, both) = (json!({"regions": ["eu"]}), json!({"regions": ["eu", "us"], "labels": ["role in (edge,core)"]}));
    for kind in KINDS {
        let reaches = |limits: &Value, selector: &str, nodes: &[&str]| {
            assert_eq!(reached(kind, limits, selector).unwrap(), nodes, "{kind} {limits} {selector}");
        };
        for selector in ["eu", "eu:all", "eu*9", "*", "*:all", "*5", "site=fra", "site=fra:all", "node:eu-1"] {
            reaches(&labels, selector, &["eu-1"]);
        }
        reaches(&regions, "*", &["any of eu"]);
        reaches(&regions, "*:all", &["eu-1", "eu-2", "eu-3"]);
        reaches(&both, "eu", &["eu-1", "eu-2"]);
        reaches(&both, "*", &["eu-1", "eu-2", "us-1"]);
        reaches(&both, "*:all", &["eu-1", "eu-2", "us-1"]);
        reaches(&nodes, "node:us-1", &["us-1"]);
        reaches(&nodes, "site!=x:all", &["eu-1", "us-1"]);
        if kind != "service" {
            reaches(&nodes, "eu", &["eu-1"]);
            reaches(&nodes, "*", &["eu-1", "us-1"]);
            reaches(&nodes, "*:all", &["eu-1", "us-1"]);
        }
        // What may not be known is refused in the very words of what is not there.
        for (limits, hidden, absent) in [
            (&nodes, "node:eu-2", "node:zz-2"),
            (&nodes, "site=ber", "site=zzz"),
            (&labels, "node:eu-3", "node:zz-3"),
            (&labels, "env=lab", "env=zzz"),
            (&labels, "us", "zz"),
            (&labels, "us:all", "zz:all"),
            (&regions, "node:us-1", "node:zz-1"),
            (&both, "node:eu-3", "node:zz-3"),
        ] {
            // A service has its regions by name: another is outside of them, whether it is there or not.
            if kind == "service" && absent.starts_with("zz") {
                continue;
            }
            let words = |selector: &str| match reached(kind, limits, selector) {
                Err(problem) => {
                    let name = selector.trim_start_matches("node:").trim_end_matches(":all");
                    (problem.code(), problem.detail().replace(&format!("`{name}`"), "?").replace(&format!("`{selector}`"), "?"))
                }
                Ok(to) => panic!("{kind} {limits} {selector}: {to:?}"),
            };
            assert_eq!(words(hidden), words(absent), "{kind} {limits} {hidden}");
            let explained =
                explain(&roster(), &kinds::principal(kind, limits, &["ap", "eu", "us"]), ToolName::Ping, &from(&[hidden])).unwrap();
            assert_eq!(
                explained.selectors[0].excluded.iter().filter(|excluded| excluded.why == Why::OutsideLimits).count(),
                0,
                "{kind} {hidden}"
            );
        }
        let tools = kinds::principal(kind, &json!({"tools": ["echo"]}), &["eu"]);
        let problem = choose(&roster(), &tools, ToolName::Ping, &from(&["eu"])).unwrap_err();
        assert_eq!(
            (problem.code(), problem.detail()),
            (Code::Forbidden, "your credential is limited to the tools echo; `ping` is none of them")
        );
        let narrow = kinds::principal(kind, &json!({"rate": "9/m", "at_once": 2, "targets": ["10.0.0.0/8", "*.example.com"]}), &["eu"]);
        assert_eq!((narrow.limits.rate, narrow.limits.at_once), (Some("9/m".parse().unwrap()), Some("2".parse().unwrap())), "{kind}");
        for (target, allowed) in [("10.1.2.3", true), ("11.1.2.3", false), ("a.example.com", true), ("example.com", false)] {
            let spec = Spec::parse(ToolName::Ping, target, serde_json::Map::new()).unwrap();
            let checked = check_target(&narrow, &spec).map_err(|problem| problem.code());
            assert_eq!(checked, if allowed { Ok(()) } else { Err(Code::Forbidden) }, "{kind} {target}");
        }
    }
}

#[test]
fn who_is_limited_to_nodes_sees_only_them() {
    for kind in KINDS {
        let seen = |limits: Value| {
            let principal = kinds::principal(kind, &limits, &["ap", "eu", "us"]);
            let roster = roster();
            let nodes: Vec<String> = roster.nodes_of(|node| principal.sees_node(node)).iter().map(|node| node.id.to_string()).collect();
            let regions = roster.look(|nodes| nodes.summaries(|region| principal.sees_region(region), |node| principal.sees_node(node)));
            (nodes.join(" "), regions.iter().map(|summary| format!("{} {}", summary.region, summary.nodes)).collect::<Vec<_>>().join(", "))
        };
        assert_eq!(seen(json!({"labels": ["role=edge"]})), ("eu-1 us-1".to_owned(), "eu 1, us 1".to_owned()), "{kind}");
        assert_eq!(seen(json!({"nodes": ["eu-2", "us-1"], "labels": ["role=edge"]})).0, "us-1", "{kind}");
        assert_eq!(seen(json!({"regions": ["us"]})), ("us-1 us-2".to_owned(), "us 2".to_owned()), "{kind}");
    }
}

#[test]
fn an_explanation_says_why_not_every_other() {
    let whys = |selector: &str| {
        let explanation = explain(&roster(), &principal("{}"), ToolName::Ping, &from(&[selector])).unwrap();
        let explained = explanation.selectors.into_iter().next().unwrap();
        let nodes = explained.nodes.iter().map(|node| node.id.to_string()).collect::<Vec<_>>().join(" ");
        let why = |excluded: &Excluded| format!("{} {}", excluded.node.as_ref().unwrap(), excluded.why);
        (explained.runs, nodes, explained.excluded.iter().map(why).collect::<Vec<_>>().join(", "))
    };
    let others = "us-1 other_region, us-2 other_region";
    let asia = "ap-1 other_region, ap-2 other_region, ap-3 other_region";
    assert_eq!(whys("eu"), (1, "eu-1 eu-2 eu-3".to_owned(), format!("{asia}, eu-4 offline, {others}")));
    assert_eq!(whys("eu*1"), (1, "eu-2".to_owned(), format!("{asia}, eu-1 not_needed, eu-3 not_needed, eu-4 offline, {others}")));
    assert_eq!(whys("node:us-1"), (1, "us-1".to_owned(), String::new()));
    let everywhere = "ap-1 tool_unavailable, ap-2 tool_not_granted, ap-3 revoked, eu-4 offline, us-2 draining";
    assert_eq!(whys("*"), (2, "eu-1 eu-2 eu-3 us-1".to_owned(), everywhere.to_owned()));
    let (runs, nodes, excluded) = whys("role=edge:all");
    assert_eq!((runs, nodes.as_str()), (2, "eu-1 us-1"));
    assert!(excluded.contains("eu-2 label_mismatch"), "{excluded}");
    let explanation = explain(&roster(), &principal("{}"), ToolName::Ping, &from(&["ap"])).unwrap();
    let detail = explanation.selectors[0].excluded[0].detail.as_deref();
    assert_eq!(detail, Some("missing: raw sockets; to grant it: setcap x"));
}

#[test]
fn a_job_has_at_most_a_thousand_runs_and_takes_fewer_when_asked_so() {
    let many = |count: usize| (0..count).map(|index| node(&format!("n-{index}"), "eu", json!({}), State::Free(1))).collect();
    let choose_from = |count, selector: &str| choose(&Roster::of(many(count)), &principal("{}"), ToolName::Ping, &from(&[selector]));
    assert_eq!(choose_from(1_000, "eu:all").unwrap().destinations.len(), 1_000);
    let problem = choose_from(1_001, "eu:all").unwrap_err();
    assert!(problem.detail().contains("/from: this comes to 1001 runs; a job has at most 1000"), "{problem}");
    assert_eq!(choose_from(1_001, "eu*1000").unwrap().destinations.len(), 1_000);
}

#[test]
fn a_node_that_moves_or_loses_a_label_is_found_where_it_is() {
    let (mut grant, beat) = node("eu-1", "eu", json!({"site": "fra"}), State::Free(1));
    let before = (grant.clone(), beat.clone());
    grant.region = "us".parse().unwrap();
    grant.labels = serde_json::from_value(json!({"site": "nyc"})).unwrap();
    let beat = beat.map(|beat| Beat { region: grant.region.clone(), ..beat });
    let roster = Roster::of(vec![before, (grant, beat)]);
    let choose =
        |selector: &str| choose(&roster, &principal("{}"), ToolName::Ping, &from(&[selector])).map(|chosen| chosen.destinations.len());
    assert_eq!(choose("us:all").unwrap(), 1);
    assert_eq!(choose("site=nyc:all").unwrap(), 1);
    assert_eq!(choose("eu:all").unwrap_err().code(), Code::NoSuchRegion);
    assert_eq!(choose("site=fra").unwrap_err().code(), Code::NoSuchNode);
}
