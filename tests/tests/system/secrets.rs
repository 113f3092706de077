//! Secrets are where they must be and nowhere else: not in logs, arguments, environments, problems or the trail.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use probeops_shared::timestamp::Timestamp;
use probeops_tests::fabric::{Agent, Api, ApiOptions, Fabric, Sentry, free_port};
use probeops_tests::http::Answer;
use probeops_tests::receiver::{Receiver, Reply};
use serde_json::{Value, json};

/// A signing secret of HS256, long enough to be one.
const HMAC_SECRET: &str = "PLANTED-hmac-0123456789abcdef0123456789abcdef";
/// Who a callback's receiver knows us by.
const HEADER_VALUE: &str = "PLANTED-header-value";
/// Something in the form of an enrolment token.
const TOKEN: &str = "pe_0198c0de_PLANTEDTOKEN0123456789abcdefghijklmnopq";
/// A password in an address.
const PASSWORD: &str = "PLANTED-password";
/// What jobs tell a target who they are by: in each place that is secret.
const BASIC: &str = "PLANTED-basic";
const OF_PROXY: &str = "PLANTED-of-the-proxy";
const COOKIE: &str = "PLANTED-cookie";
const AUTHORIZATION: &str = "PLANTED-authorization";
const TO_PROXY: &str = "PLANTED-to-the-proxy";

const PLANTED: [(&str, &str); 9] = [
    ("a token", TOKEN),
    ("the secret for JWTs", HMAC_SECRET),
    ("the header of a callback", HEADER_VALUE),
    ("a password for a target", PASSWORD),
    ("basic authentication", BASIC),
    ("authentication at a proxy", OF_PROXY),
    ("a cookie", COOKIE),
    ("an Authorization header", AUTHORIZATION),
    ("a secret header for a proxy", TO_PROXY),
];

/// Files of whom each has a secret: the operator, an account, the broker, who signs its certificate, and every part of the control plane.
const EACH_HAS_ONE: [&str; 14] = [
    "operator.nk",
    "APP-signing.nk",
    "server.key",
    "ca.key",
    "api.creds",
    "collector.creds",
    "acknowledger.creds",
    "store.creds",
    "frontdoor.creds",
    "auditor.creds",
    "keymaster.creds",
    "presence.creds",
    "sentry.creds",
    "s-1.creds",
];

/// What others can see of a process: its arguments; and what its own user could, were it not protected: its environment. Only root can read that, and
/// who cannot has looked at nothing.
#[track_caller]
fn seen_of(process: u32) -> String {
    let read = |name: &str| {
        let path = format!("/proc/{process}/{name}");
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{path} cannot be looked at, run this as root: {error}"));
        assert!(!bytes.is_empty(), "{path} is empty");
        String::from_utf8_lossy(&bytes).into_owned()
    };
    read("cmdline") + &read("environ")
}

/// The whole trail, as it is exported.
fn exported(api: &Api) -> String {
    let (mut text, mut cursor) = (String::new(), String::new());
    loop {
        let page = api.admin().get(&format!("/v1/audit/export?limit=100{cursor}"));
        assert_eq!(page.status, 200, "{}", page.text);
        text.push_str(&page.text);
        if page.body["end"] == true {
            return text;
        }
        cursor = format!("&cursor={}", page.body["next"].as_str().unwrap());
    }
}

/// A JWT, and the part of it that nobody else can make.
fn token() -> (String, String) {
    let now = Timestamp::now().unix_s();
    let claims = json!({
        "iss": "https://issuer.example", "aud": "probeops", "sub": "planted", "iat": now, "exp": now + 3_600, "scope": "jobs:write",
    });
    let token = encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(HMAC_SECRET.as_bytes())).unwrap();
    let signature = token.rsplit('.').next().unwrap().to_owned();
    (token, signature)
}

/// Jobs that are told who they are to a target, in every way that the catalogue knows; nobody listens there, which is a finding.
fn secretive_jobs(api: &Api, caller: &str, (certificate, key): (&str, &str)) -> Vec<Answer> {
    let closed = free_port();
    let url = format!("http://{closed}/");
    let basic = json!({
        "basic_auth": format!("u:{BASIC}"), "proxy": format!("http://{closed}"), "proxy_auth": format!("p:{OF_PROXY}"), "timeout": 1,
        "headers": [format!("Cookie: c={COOKIE}")], "proxy_headers": [format!("X-Api-Key: {TO_PROXY}")],
    });
    let header = json!({"headers": [format!("Authorization: Bearer {AUTHORIZATION}")], "timeout": 1});
    let certified = json!({"client_certificate": certificate, "client_key": key, "timeout": 1});
    let port = json!({"port": closed.port(), "tls": true, "client_certificate": certificate, "client_key": key, "timeout": 1});
    let mut of_tls = port.clone();
    of_tls.as_object_mut().unwrap().remove("tls");
    let jobs: [(&str, &str, Value); 6] = [
        ("http", &url, json!({"bearer_token": PASSWORD, "timeout": 1})),
        ("http", &url, basic),
        ("http", &url, header),
        ("http", &format!("https://{closed}/"), certified),
        ("tcp", "127.0.0.1", port),
        ("tls", "127.0.0.1", of_tls),
    ];
    let answers: Vec<Answer> =
        jobs.iter().map(|(tool, target, parameters)| api.caller(caller).job(tool, target, "eu", parameters)).collect();
    for (answer, (tool, _, parameters)) in answers.iter().zip(&jobs) {
        assert_eq!(answer.status, 200, "{tool} {parameters}: {}", answer.text);
    }
    answers
}

/// Every file of a folder, and below.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Every seed (`SO…`, `SA…`, `SU…`) and private key that a fabric has made, with the file that it is in. Nothing of the kind belongs into what the
/// broker has.
fn held_by(fabric: &Fabric) -> Vec<(String, String)> {
    let is_seed = |word: &str| {
        word.len() == 58
            && ["SO", "SA", "SU"].iter().any(|kind| word.starts_with(kind))
            && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
    };
    let mut held = Vec::new();
    for path in files(fabric.data().parent().unwrap()) {
        if path.starts_with(fabric.data().join("broker")) || path.extension().is_some_and(|extension| extension == "log") {
            continue;
        }
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
        let of_key = text.split("PRIVATE KEY-----").nth(1).unwrap_or_default();
        let secrets = text.split_whitespace().filter(|word| is_seed(word)).chain(of_key.lines().filter(|line| line.len() > 40));
        held.extend(secrets.map(|secret| (path.display().to_string(), secret.to_owned())));
    }
    held
}

#[test]
fn planted_secrets_are_in_no_log_argument_environment_problem_or_record() {
    let fabric = Fabric::start_logging(Some("debug"));
    let sentry = fabric.sentry();
    let secret = fabric.file("hmac.secret", HMAC_SECRET);
    let options = ApiOptions {
        callback_allow: Some("127.0.0.0/8".to_owned()),
        jwt_secret: Some(secret),
        jwt_issuer: Some("https://issuer.example".to_owned()),
        jwt_audience: Some("probeops".to_owned()),
        ..ApiOptions::default()
    };
    let api = fabric.api_with(&options);
    let agent = fabric.agent("s-1", "eu");
    api.wait_for_nodes(1);

    let receiver = Receiver::start(|_, _| Reply::status(204));
    let made = api.admin().post("/v1/secrets", &json!({"name": "s", "origin": receiver.origin()})).expect(201);
    let (id, signing) = (made["id"].as_str().unwrap(), made["secret"].as_str().unwrap().to_owned());
    let key = api.key(&json!({"name": "planted", "scopes": ["jobs:write"]}));
    let callback = json!({"url": receiver.url("/c"), "secret_id": id, "header": {"name": "X-Token", "value": HEADER_VALUE}});
    let answered = api.admin().post("/v1/jobs", &json!({"tool": "echo", "target": "x", "from": "eu", "callback": callback}));
    assert_eq!(answered.status, 200, "{}", answered.text);
    receiver.wait_for("/c", 1);
    let pair = rcgen::generate_simple_self_signed(["client".to_owned()]).unwrap();
    let private = pair.signing_key.serialize_pem();
    let ran = secretive_jobs(&api, &key, (&pair.cert.pem(), &private));
    let (jwt, signature) = token();
    let known = api.caller(&jwt).post("/v1/jobs", &json!({"tool": "echo", "target": "by a JWT", "from": "eu"}));
    assert_eq!(known.status, 200, "{}", known.text);
    // Where a secret may be said by mistake: as a bearer token that is none, in a path, in fields that are refused.
    let cut = &key[..key.len() - 1];
    let mut problems = vec![
        api.caller(TOKEN).get("/v1/tools"),
        api.caller(cut).get("/v1/tools"),
        api.caller(HMAC_SECRET).post("/v1/jobs", &json!({})),
        api.caller(&key).get("/v1/audit"),
        api.caller(&key).post("/v1/jobs", &json!({"tool": "echo", "target": "x", "from": "nowhere", "callback": callback})),
        api.caller(&format!("{jwt}x")).get("/v1/tools"),
        api.caller(&jwt).get("/v1/audit"),
        known,
    ];
    problems.extend(ran);
    let refused: Vec<u16> = problems.iter().map(|problem| problem.status).collect();
    assert_eq!(refused[..7], [401, 401, 401, 403, 404, 401, 403], "{refused:?}");
    // Of each job, that it was accepted, and what the node says of it.
    for (filter, count) in
        [("tool=http&verdict=accepted", 4), ("tool=http&node=s-1", 4), ("tool=tcp&node=s-1", 1), ("tool=tls&node=s-1", 1)]
    {
        api.wait_for_audit(filter, count);
    }
    api.wait_for_audit("principal=jwt:planted", 2);
    let trail = exported(&api);
    for words in ["by a JWT", "jwt:planted", "127.0.0.1"] {
        assert!(trail.contains(words), "{words} is not in what was exported: {trail}");
    }

    let made = [
        ("the first key", api.admin_key()),
        ("a key", &key),
        ("the end of a key", &key[key.len() - 20..]),
        ("the secret that signs callbacks", &signing),
        ("a JWT", &jwt),
        ("the signature of a JWT", &signature),
    ];
    let all = PLANTED.iter().chain(&made);
    let mut secrets: Vec<(String, String)> = all.map(|(what, secret)| ((*what).to_owned(), (*secret).to_owned())).collect();
    secrets.extend(private.lines().filter(|line| line.len() > 40).map(|line| ("the key of a certificate".to_owned(), line.to_owned())));
    let held = held_by(&fabric);
    let files_with: BTreeSet<&str> = held.iter().filter_map(|(path, _)| path.rsplit('/').next()).collect();
    for file in EACH_HAS_ONE {
        assert!(files_with.contains(file), "no secret in {file}: {files_with:?}");
    }
    secrets.extend(held);
    let mut places = seen(&fabric, (&api, &agent, &sentry));
    places.push(("the trail".to_owned(), trail));
    places.extend(problems.iter().map(|problem| (format!("an answer with {}", problem.status), problem.text.clone())));
    for (place, text) in &places {
        for (what, secret) in &secrets {
            assert!(!text.contains(secret), "{what} is in {place}:\n{}", around(text, secret));
        }
    }
}

/// The logs, arguments and environments of all that run.
fn seen(fabric: &Fabric, (api, agent, sentry): (&Api, &Agent, &Sentry)) -> Vec<(String, String)> {
    let mut places: Vec<(String, String)> = vec![
        ("the API's log".to_owned(), api.log()),
        ("the agent's log".to_owned(), agent.log()),
        ("what is seen of the API".to_owned(), seen_of(api.process_id())),
        ("what is seen of the agent".to_owned(), seen_of(agent.process_id())),
        ("what is seen of the broker".to_owned(), seen_of(fabric.broker_process_id())),
        ("the keymaster's log".to_owned(), fabric.keymaster_log()),
        ("the sentry's log".to_owned(), sentry.log()),
        ("what is seen of the keymaster".to_owned(), seen_of(fabric.keymaster_process_id())),
        ("what is seen of the sentry".to_owned(), seen_of(sentry.process_id())),
    ];
    let is_log = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("server."));
    let logs = files(&fabric.data().join("broker"));
    places.extend(logs.iter().filter(|path| is_log(path)).map(|path| (path.display().to_string(), std::fs::read_to_string(path).unwrap())));
    // The logs are those of level debug, and the arguments are read: else nothing could be found in them.
    for (place, text) in places.iter().filter(|(place, _)| place.ends_with("'s log")) {
        assert!(text.contains("DEBUG"), "no debug in {place}: {text}");
    }
    for (place, text) in places.iter().filter(|(place, _)| place.starts_with("what is seen of") && !place.ends_with("the broker")) {
        assert!(text.contains("PROBEOPS_LOG=debug"), "no environment in {place}: {text}");
        assert!(text.contains("--creds") || text.contains("--data"), "no arguments in {place}: {text}");
    }
    places
}

/// The line of a text in which something is.
fn around<'a>(text: &'a str, words: &str) -> &'a str {
    text.lines().find(|line| line.contains(words)).unwrap_or_default()
}

#[test]
fn a_password_in_a_setting_is_refused_and_not_repeated() {
    let mut command = probeops_tests::fabric::program();
    command.args([
        "agent",
        "--servers",
        "tls://b.example:4222",
        "--creds",
        "n.creds",
        "--proxy",
        &format!("http://u:{PASSWORD}@p.example:3128"),
    ]);
    let said = command.output().unwrap();
    let text = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.code() == Some(1) && text.contains("proxy_password_file") && !text.contains(PASSWORD), "{text}");
}
