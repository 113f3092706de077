//! What somebody may not know of is to him as what is not there: the same words, byte for byte, and in no list.

use probeops_tests::http::{Answer, Caller};
use serde_json::{Value, json};

use super::ways_in::{Ask, Service, Way, World};

/// All scopes but admin.
const SCOPES: [&str; 9] =
    ["jobs:write", "jobs:read", "nodes:read", "nodes:write", "nodes:enroll", "keys:write", "services:write", "audit:read", "metrics:read"];
/// What is in another region, at another node and under another label than those that are limited know, and what is nowhere.
const PLACES: [(&str, &str); 6] = [
    ("node:us-1", "node:zz-1"),
    ("us", "zz"),
    ("us:all", "zz:all"),
    ("us*2", "zz*2"),
    ("site=nyc", "site=zzz"),
    ("site in (nyc):all", "site in (zzz):all"),
];
/// Their names, which stand in answers to whoever gave them.
const NAMES: [(&str, &str); 3] = [("us-1", "zz-1"), ("nyc", "zzz"), ("us", "zz")];
/// Headers that are of the moment.
const OF_THE_MOMENT: [&str; 2] = ["date", "x-request-id"];

/// All that an answer says, but for what is of its moment.
fn said(answer: &Answer) -> (u16, Vec<(String, String)>, String) {
    let mut headers = answer.headers.clone();
    headers.retain(|(name, _)| !OF_THE_MOMENT.contains(&name.as_str()));
    let id = answer.header("x-request-id").unwrap();
    (answer.status, headers, answer.text.replace(id, "?"))
}

fn without_names(text: &str) -> String {
    NAMES.iter().fold(text.to_owned(), |text, (there, nowhere)| {
        ["`", "\"", ":", "(", "="].iter().fold(text, |text, before| {
            let [there, nowhere, neither] = [there, nowhere, &"?"].map(|name| format!("{before}{name}"));
            text.replace(&there, &neither).replace(&nowhere, &neither)
        })
    })
}

/// Asked for the one and for the other, he is told the same.
#[track_caller]
fn same(what: &str, there: &Answer, nowhere: &Answer) {
    let [a, b] = [said(there), said(nowhere)].map(|(status, headers, text)| (status, headers, without_names(&text)));
    assert_eq!(a, b, "{what}\n{}\n{}", there.text, nowhere.text);
}

/// An id of the same form that nothing has.
fn another(id: &str) -> String {
    let (rest, last) = id.split_at(id.len() - 1);
    format!("{rest}{}", if last == "a" { "b" } else { "a" })
}

fn ask(caller: &Caller, way: Way, from: &'static str) -> Answer {
    let body = Ask("echo", "x", from).body(0);
    let with = |name: &str, value: &str| {
        let mut body = body.clone();
        body[name] = value.into();
        body
    };
    match way {
        Way::Post => caller.post("/v1/jobs", &body),
        Way::Streamed => {
            let headers = [("accept", "text/event-stream")];
            caller.post_raw("/v1/jobs", "application/json", body.to_string().as_bytes(), &headers)
        }
        Way::ByUrl => caller.get(&format!("/v1/run/echo?target=x&from={}", from.replace('=', "%3D").replace(' ', "%20"))),
        Way::Batch => caller.post("/v1/jobs/batch", &json!({"jobs": [body]})),
        Way::Online => caller.post("/v1/jobs", &with("when", "online")),
        Way::Scheduled => caller.post("/v1/schedules", &with("every", "1h")),
        Way::Explained => caller.post("/v1/jobs?explain=true", &body),
    }
}

/// What an admin has made and done elsewhere: its ids, by where they are found.
struct Elsewhere {
    job: String,
    schedule: String,
    secret: String,
    key: String,
    token: String,
}

impl Elsewhere {
    fn of(world: &World) -> Self {
        let admin = world.api.admin();
        let id = |made: Answer| made.body["id"].as_str().unwrap_or_else(|| panic!("{}", made.text)).to_owned();
        let body = Ask("echo", "x", "node:us-1").body(0);
        let mut hourly = body.clone();
        hourly["every"] = json!("1h");
        let limits = json!({"nodes": ["us-1"], "regions": ["us"], "labels": ["site=nyc"]});
        let token = json!({"region": "us", "tools": ["echo"], "labels": {"site": "nyc"}, "node": "us-19"});
        admin.post("/v1/services", &json!({"name": "far-away", "regions": ["us"], "nodes": ["us-1"], "tools": ["echo"]})).expect(201);
        Self {
            job: id(admin.post("/v1/jobs", &body)),
            schedule: id(admin.post("/v1/schedules", &hourly)),
            secret: id(admin.post("/v1/secrets", &json!({"name": "far-away", "origin": "https://us-1.example"}))),
            key: id(admin.post("/v1/keys", &json!({"name": "far-away", "scopes": ["jobs:write"], "limits": limits}))),
            token: id(admin.post("/v1/enroll-tokens", &token)),
        }
    }
}

/// Lists, and whether an admin finds in them what is elsewhere.
const LISTS: [(&str, bool); 14] = [
    ("/v1/nodes", true),
    ("/v1/regions", true),
    ("/v1/jobs", true),
    ("/v1/schedules", true),
    ("/v1/keys", true),
    ("/v1/services", true),
    ("/v1/enroll-tokens", true),
    ("/v1/secrets", true),
    ("/v1/audit", true),
    ("/v1/audit/export", true),
    ("/metrics", true),
    ("/v1/limits", false),
    ("/v1/deliveries", false),
    ("/v1/tools", false),
];

fn names_elsewhere(text: &str) -> bool {
    ["us-1", "nyc", "\"us\"", "far-away"].iter().any(|name| text.contains(name))
}

#[test]
fn what_is_beyond_limits_is_told_as_what_is_not_there() {
    let world = World::new();
    let elsewhere = Elsewhere::of(&world);
    world.api.wait_for_audit("node=us-1&verdict=finished", 1);
    let all: Vec<(&str, Value)> = vec![
        ("regions", json!({"regions": ["eu"]})),
        ("nodes", json!({"nodes": ["eu-1"]})),
        ("labels", json!({"labels": ["site=fra"]})),
        ("all of them", json!({"regions": ["e*"], "nodes": ["eu-1", "eu-2"], "labels": ["site in (fra,ber)"]})),
    ];
    let admin = world.api.admin();
    for (path, finds) in LISTS {
        assert_eq!(names_elsewhere(&admin.get(path).text), finds, "an admin, {path}");
    }
    for (name, limits) in &all {
        let mut callers = vec![(*name, world.key(&SCOPES, limits))];
        // An admin who is limited oversees what is within his limits, and nothing else.
        callers.push(("an admin", world.key(&["admin"], limits)));
        for (who, caller) in &callers {
            let done = caller.post("/v1/jobs", &Ask("echo", "x", "node:eu-1").body(0)).expect(200);
            assert_eq!(done["results"][0]["status"], "success", "{done}");
            sees_no_list_beyond(&format!("{name}, {who}"), caller);
            finds_no_place_beyond(&format!("{name}, {who}"), caller);
            finds_nothing_of_others(&format!("{name}, {who}"), caller, &elsewhere);
        }
    }
    // A service always has tools, and regions or nodes.
    let granted = [&all[0].1, &all[1].1, &json!({"regions": ["eu"], "labels": ["site=fra"]})];
    for (index, limits) in granted.into_iter().enumerate() {
        let service = world.service(&format!("blind-{index}"), limits);
        for (there, nowhere) in PLACES {
            let asked = [there, nowhere].map(|from| at_the_door(&world, &service, from));
            assert_eq!(asked[0], asked[1], "{limits}: {there}, {nowhere}");
        }
    }
}

fn at_the_door(world: &World, service: &Service, from: &'static str) -> (u64, String) {
    let problem = service.at_the_door(&world.fabric, &Ask("echo", "x", from).body(0), "wait=60");
    let status = problem["status"].as_u64().unwrap_or_else(|| panic!("{from} runs: {problem}"));
    let id = problem["request_id"].as_str().unwrap();
    (status, without_names(&problem.to_string().replace(id, "?")))
}

#[track_caller]
fn sees_no_list_beyond(who: &str, caller: &Caller) {
    for (path, _) in LISTS {
        let answer = caller.get(path);
        assert_eq!(answer.status, 200, "{who}, {path}: {}", answer.text);
        assert!(!names_elsewhere(&answer.text), "{who}, {path}: {}", answer.text);
    }
    // And it is not that he sees nothing.
    for (path, part) in [("/v1/nodes", "\"eu-1\""), ("/v1/regions", "\"eu\""), ("/metrics", "region=\"eu\""), ("/v1/jobs", "eu-1")] {
        let answer = caller.get(path);
        assert!(answer.text.contains(part), "{who}, {path}: {}", answer.text);
    }
}

fn finds_no_place_beyond(who: &str, caller: &Caller) {
    for (there, nowhere) in PLACES {
        for way in Way::ALL {
            let [a, b] = [there, nowhere].map(|from| ask(caller, way, from));
            assert!(!a.text.contains("\"status\":\"success\""), "{who}, {way:?}, {there}: {}", a.text);
            same(&format!("{who}, {way:?}: {there}, {nowhere}"), &a, &b);
        }
    }
    for path in ["/v1/nodes/NAME", "/v1/audit?node=NAME"] {
        let [there, nowhere] = ["us-1", "zz-1"].map(|name| caller.get(&path.replace("NAME", name)));
        same(&format!("{who}, {path}"), &there, &nowhere);
    }
    for path in ["/v1/nodes/NAME/drain", "/v1/nodes/NAME/revoke"] {
        let [there, nowhere] = ["us-1", "zz-1"].map(|name| caller.post(&path.replace("NAME", name), &json!({})));
        assert_eq!(there.status, 404, "{who}, {path}: {}", there.text);
        same(&format!("{who}, {path}"), &there, &nowhere);
    }
    let by_node = json!({"name": "spy", "regions": [], "nodes": ["NODE"], "tools": ["echo"]});
    let token = json!({"region": "REGION", "tools": ["echo"], "node": "NODE", "labels": {"site": "LABEL"}});
    let limits = json!({"nodes": ["NODE"], "regions": ["REGION"], "labels": ["site=LABEL"]});
    let mut made = vec![("/v1/services", by_node), ("/v1/enroll-tokens", token)];
    // Whoever is limited to labels alone may name any region, and more labels: what he makes is limited as he is, and finds no node there.
    if !who.starts_with("labels") {
        made.push(("/v1/services", json!({"name": "spy", "regions": ["REGION"], "tools": ["echo"]})));
        made.push(("/v1/keys", json!({"name": "spy", "scopes": ["jobs:write"], "limits": limits})));
    }
    for (path, body) in made {
        let [there, nowhere] = [["us-1", "us", "nyc"], ["zz-1", "zz", "zzz"]].map(|[node, region, label]| {
            let body = body.to_string().replace("NODE", node).replace("REGION", region).replace("LABEL", label);
            caller.post_raw(path, "application/json", body.as_bytes(), &[])
        });
        assert!([403, 404].contains(&there.status), "{who}, {path}: {}", there.text);
        same(&format!("{who}, {path} {body}"), &there, &nowhere);
    }
}

fn finds_nothing_of_others(who: &str, caller: &Caller, elsewhere: &Elsewhere) {
    let Elsewhere { job, schedule, secret, key, token } = elsewhere;
    let same_without = |path: &str, id: &str, ask: &dyn Fn(&str) -> Answer| {
        let other = another(id);
        let [of_another, of_nobody] = [id, &other].map(|id| ask(&path.replace("ID", id)));
        assert_eq!(of_another.status, 404, "{who}, {path}: {}", of_another.text);
        let [a, b] = [(&of_another, id), (&of_nobody, &other)].map(|(answer, id)| {
            let (status, headers, text) = said(answer);
            (status, headers, text.replace(id, "?"))
        });
        assert_eq!(a, b, "{who}, {path}");
    };
    let get = |path: &str| caller.get(path);
    let delete = |path: &str| caller.delete(path);
    let post = |path: &str| caller.post(path, &json!({}));
    for (path, id) in
        [("/v1/jobs/ID", job), ("/v1/jobs/ID/events", job), ("/v1/schedules/ID", schedule), ("/v1/schedules/ID/results", schedule)]
    {
        same_without(path, id, &get);
    }
    for (path, id) in [
        ("/v1/jobs/ID", job),
        ("/v1/schedules/ID", schedule),
        ("/v1/secrets/ID", secret),
        ("/v1/keys/ID", key),
        ("/v1/enroll-tokens/ID", token),
    ] {
        same_without(path, id, &delete);
    }
    for (path, id) in [("/v1/schedules/ID/pause", schedule), ("/v1/schedules/ID/resume", schedule), ("/v1/secrets/ID/rotate", secret)] {
        same_without(path, id, &post);
    }
    same_without("/v1/services/ID", "far-away", &delete);
}
