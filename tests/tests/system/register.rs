//! Nodes, services and keys: granted, listed and revoked while `up` runs.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event};
use futures_util::StreamExt;
use nix::sys::signal::Signal;
use probeops_nats::vault::credentials::Credentials;
use probeops_shared::timestamp::Timestamp;
use probeops_tests::up::{Home, Up, wait_until};
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// Only a hang takes this long.
const HANG: Duration = Duration::from_secs(60);

/// Runs a command on the data folder of the `up` that runs.
#[track_caller]
fn probeops(home: &Home, command: &str) -> String {
    home.run(&arguments(command)).good()
}

fn arguments(command: &str) -> Vec<&str> {
    command.split_whitespace().chain(["--data", "data"]).collect()
}

/// What `list` shows as JSON under its one name.
fn listed(home: &Home, kind: &str) -> Vec<Value> {
    let list: Value = serde_json::from_str(&probeops(home, &format!("{kind} list -o json"))).unwrap();
    list[kind].as_array().unwrap_or_else(|| panic!("{list}")).clone()
}

fn secret(home: &Home, path: &str) -> std::path::PathBuf {
    let path = home.path(path);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
    path
}

#[track_caller]
fn lasts_thirty_days(creds: &Path) {
    let expiry = Credentials::read_if_exists(creds).unwrap().unwrap().expires_at;
    let from_now = |hours| Timestamp::now().plus(Duration::from_hours(hours));
    assert!(from_now(30 * 24 - 1) < expiry && expiry <= from_now(30 * 24), "{expiry}");
}

fn servers(home: &Home) -> String {
    std::fs::read_to_string(home.path("data/servers")).unwrap().trim().to_owned()
}

#[test]
fn a_node_that_was_added_joins_and_one_that_was_revoked_is_cut_off_and_stays_out() {
    let home = Home::new();
    let mut up = home.up("data", &["--name", "broker.example"]);
    assert_eq!(listed(&home, "nodes").len(), 2);
    let said = probeops(&home, "nodes add fra-1 --region office --tools echo,tcp --label site=fra --label role=edge");
    assert!(said.contains("fra-1.creds holds the credential of node fra-1 until "), "{said}");
    assert!(said.contains("probeops-agent --servers tls://broker.example:"), "{said}");
    let creds = secret(&home, "data/nodes/fra-1.creds");
    lasts_thirty_days(&creds);
    let again = home.run(&arguments("nodes add fra-1 --region office --tools echo")).bad(2);
    assert!(again.contains("node `fra-1` has a credential already; --renew makes it again"), "{again}");

    let agent = |creds: &Path| {
        let mut command = home.probeops(&["agent", "--servers", &servers(&home), "--ca", "data/tls/ca.pem"]);
        command.arg("--creds").arg(creds);
        command
    };
    let running = {
        let command = agent(&creds);
        std::thread::scope(|scope| {
            let ends = scope.spawn(|| home.finish(command));
            let caller = up.caller();
            wait_until("the node is online", || {
                let node = caller.get("/v1/nodes/fra-1");
                node.status == 200 && node.body["online"] == json!(true)
            });
            let outcome = caller.job("echo", "hello", "office", &json!({})).outcome();
            assert_eq!((&outcome["status"], &outcome["node"]["id"]), (&json!("success"), &json!("fra-1")), "{outcome}");
            assert_eq!(caller.job("dns", "example.com", "office", &json!({})).status, 503, "it was not granted dns");
            let labels = json!({"site": "fra", "role": "edge"});
            assert_eq!(caller.get("/v1/nodes/fra-1").expect(200)["labels"], labels);
            let by_label = ["site=fra,role in (edge,core)", "site=fra:all,role!=edge"]
                .map(|from| home.run(&["echo", "hello", "--from", from, "--data", "data"]));
            assert_eq!(by_label[0].code, Some(0), "{}", by_label[0].err);
            assert!(by_label[1].err.contains("site=fra:all"), "{}", by_label[1].err);
            let explained = probeops(&home, "echo hello --from office:all --explain");
            assert_eq!(explained.lines().take(2).collect::<Vec<_>>(), ["office:all: 1 run of", "  + fra-1 in office"], "{explained}");
            assert!(explained.contains("  - demo-eu-1 in demo-eu: other_region"), "{explained}");
            let table = probeops(&home, "nodes list");
            let row =
                |row: &str| row.starts_with("fra-1      office   echo,tcp") && row.contains("role=edge,site=fra") && row.contains("until ");
            assert!(table.lines().any(row), "{table}");
            // Its live connection is cut: it says why, and ends for good.
            probeops(&home, "nodes revoke fra-1");
            ends.join().unwrap()
        })
    };
    assert_eq!(running.code, Some(78), "{}", running.err);
    assert!(running.err.lines().last().unwrap().contains("it has been revoked"), "{}", running.err);
    assert_eq!(up.caller().job("echo", "x", "node:fra-1", &json!({})).status, 404);
    let unknown = home.run(&arguments("nodes revoke fra-2")).bad(2);
    assert!(unknown.contains("there is no node `fra-2`; `probeops nodes list` shows those there are"), "{unknown}");

    // A demo node may be revoked too: the rest goes on, also after the next start.
    probeops(&home, "nodes revoke demo-eu-1");
    up.wait_for_log("it has been revoked");
    up.wait_for_log("the rest goes on");
    assert_eq!(up.caller().job("echo", "x", "demo-us", &json!({})).outcome()["status"], "success");
    assert_eq!(up.end(Signal::SIGTERM), Some(0), "{}", up.log());
    let mut up = home.up("data", &[]);
    assert!(up.curl().contains(r#""from":"demo-us""#), "{}", up.curl());
    assert_eq!(home.finish(agent(&creds)).code, Some(78), "a revoked credential stays so");
    for node in listed(&home, "nodes") {
        assert_eq!(node["revoked_at"].is_string(), node["id"] != "demo-us-1", "{node}");
    }
    // Granted anew, it has a new key and joins again.
    let said = home.run(&arguments("nodes add demo-eu-1 --region demo-eu --tools echo"));
    assert!(said.err.contains("reached from this machine only"), "{}", said.err);
    said.good();
    assert_eq!(up.end(Signal::SIGTERM), Some(0));
    let mut up = home.up("data", &[]);
    assert_eq!(up.caller().job("echo", "x", "node:demo-eu-1", &json!({})).outcome()["status"], "success");
    assert_eq!(up.end(Signal::SIGTERM), Some(0));
}

#[test]
fn a_credential_that_was_carried_away_or_was_wider_is_void_once_another_takes_its_place() {
    let home = Home::new();
    let mut up = home.up("data", &[]);
    let ended = |creds: &Path| {
        let mut command = home.probeops(&["agent", "--servers", &servers(&home), "--ca", "data/tls/ca.pem"]);
        command.arg("--creds").arg(creds);
        home.finish(command).code
    };
    let (made, away, wider) = (home.path("data/nodes/fra-1.creds"), home.path("away.creds"), home.path("wider.creds"));
    probeops(&home, "nodes add fra-1 --region office --tools echo,tcp");
    std::fs::rename(&made, &away).unwrap();
    let renewed = home.run(&arguments("nodes add fra-1 --region office --tools echo,tcp --renew"));
    assert!(renewed.err.contains("void from now on"), "{}", renewed.err);
    renewed.good();
    assert_eq!(ended(&away), Some(78), "nothing else could take it back any more");

    // Renewed where it lies and with the same rights, it goes on; with fewer, the wider one must not.
    std::fs::copy(&made, &wider).unwrap();
    let key = |path: &Path| Credentials::read_if_exists(path).unwrap().unwrap().public_key;
    probeops(&home, "nodes add fra-1 --region office --tools echo,tcp --renew");
    assert_eq!(key(&made), key(&wider));
    probeops(&home, "nodes add fra-1 --region office --tools echo --renew");
    assert_eq!(ended(&wider), Some(78));
    probeops(&home, "nodes revoke fra-1");
    assert_eq!(ended(&made), Some(78));

    let (made, away) = (home.path("data/services/billing.creds"), home.path("billing.creds"));
    probeops(&home, "services add billing --regions demo-eu --tools echo");
    std::fs::rename(&made, &away).unwrap();
    probeops(&home, "services add billing --regions demo-eu --tools echo --renew");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    assert!(runtime.block_on(connect(&home, &away)).is_err());
    runtime.block_on(connect(&home, &made)).unwrap();
    assert_eq!(up.end(Signal::SIGTERM), Some(0), "{}", up.log());

    // A node of `up` itself, whose folder was carried away with its key, is no exception: it enrols anew.
    let (made, away) = (home.path("data/nodes/demo-eu-1"), home.path("demo-away"));
    std::fs::rename(&made, &away).unwrap();
    let mut up = home.up("data", &[]);
    let (made, away) = (made.join("node.creds"), away.join("node.creds"));
    assert_ne!(key(&made), key(&away));
    assert_eq!(ended(&away), Some(78));
    assert_eq!(up.end(Signal::SIGTERM), Some(0), "{}", up.log());
}

/// A connection of a service, and what happens to it.
async fn connect(home: &Home, creds: &Path) -> Result<(Client, mpsc::UnboundedReceiver<Event>), async_nats::ConnectError> {
    connect_as(home, creds, "_INBOX.billing").await
}

async fn connect_as(home: &Home, creds: &Path, inbox: &str) -> Result<(Client, mpsc::UnboundedReceiver<Event>), async_nats::ConnectError> {
    let (told, events) = mpsc::unbounded_channel();
    let options = ConnectOptions::with_credentials_file(creds).await.unwrap().custom_inbox_prefix(inbox);
    let options = options.add_root_certificates(home.path("data/tls/ca.pem")).require_tls(true).event_callback(move |event| {
        let told = told.clone();
        async move { drop(told.send(event)) }
    });
    Ok((options.connect(servers(home)).await?, events))
}

async fn ask(client: &Client, subject: &str) -> Value {
    let mut answers = client.subscribe("_INBOX.billing.0123.*").await.unwrap();
    let job = json!({"request_id": "r-1", "tool": "echo", "target": "x"}).to_string();
    client.publish_with_reply(subject.to_owned(), "_INBOX.billing.0123._", job.into()).await.unwrap();
    let answer = tokio::time::timeout(HANG, answers.next()).await.expect("an answer").unwrap();
    serde_json::from_slice(&answer.payload).unwrap_or(Value::Null)
}

#[test]
fn a_service_that_was_added_publishes_and_one_that_was_revoked_is_cut_off() {
    let home = Home::new();
    let mut up = home.up("data", &[]);
    assert_eq!(listed(&home, "services"), [] as [Value; 0]);
    let said = probeops(&home, "services add billing --regions demo-eu --tools echo");
    assert!(said.contains("It publishes to job.v1.demo-eu.echo.billing and answers come to _INBOX.billing.>"), "{said}");
    let creds = secret(&home, "data/services/billing.creds");
    lasts_thirty_days(&creds);
    let table = probeops(&home, "services list");
    assert!(table.lines().any(|row| row.starts_with("billing  demo-eu  echo ") && row.contains("until ")), "{table}");
    let again = home.run(&arguments("services add billing --regions demo-eu --tools echo")).bad(2);
    assert!(again.contains("service `billing` has a credential already"), "{again}");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (client, mut events) = connect(&home, &creds).await.unwrap();
        let outcome = ask(&client, "job.v1.demo-eu.echo.billing").await;
        assert_eq!((&outcome["status"], &outcome["node"]["id"]), (&json!("success"), &json!("demo-eu-1")), "{outcome}");
        probeops(&home, "services revoke billing");
        let mut seen = Vec::new();
        while !seen.iter().any(|event| matches!(event, Event::Disconnected)) {
            let event = tokio::time::timeout(HANG, events.recv()).await;
            seen.push(event.unwrap_or_else(|_| panic!("the connection is not cut: {seen:?}")).unwrap());
        }
        assert!(seen.iter().any(|event| event.to_string().to_lowercase().contains("revoked")), "{seen:?}");
        connect(&home, &creds).await.expect_err("a revoked credential");
    });
    assert!(listed(&home, "services")[0]["revoked_at"].is_string());
    // With targets it has the front door only; whoever looks at services sees that.
    let said = probeops(&home, "services add shop --regions demo-eu --tools echo,tcp --targets 127.0.0.1");
    assert!(said.contains("on api.v1.run.shop") && !said.contains("It publishes to"), "{said}");
    assert!(probeops(&home, "services list").lines().any(|row| row.starts_with("shop ") && row.contains("127.0.0.1")));
    let creds = secret(&home, "data/services/shop.creds");
    runtime.block_on(async {
        let (client, _events) = connect_as(&home, &creds, "_INBOX_f.shop").await.unwrap();
        let knock = async |body: Value| {
            let request = async_nats::Request::new().payload(body.to_string().into()).timeout(Some(HANG));
            let answer = client.send_request("api.v1.run.shop", request).await.unwrap();
            serde_json::from_slice::<Value>(&answer.payload).unwrap()
        };
        let problem = knock(json!({"tool": "tcp", "target": "127.0.0.2", "from": "demo-eu"})).await;
        assert_eq!(problem["code"], "forbidden", "{problem}");
        let job = knock(json!({"tool": "tcp", "target": "127.0.0.1", "from": "demo-eu", "parameters": {"timeout": 2}})).await;
        assert_eq!((&job["status"], &job["caller"]), (&json!("finished"), &json!("service:shop")), "{job}");
    });
    let said = probeops(&home, "services observe --out observer.creds");
    assert!(said.contains("its inbox prefix is _INBOX_f.observer"), "{said}");
    runtime.block_on(async {
        let (client, _events) = connect_as(&home, &secret(&home, "observer.creds"), "_INBOX_f.observer").await.unwrap();
        let seen = tokio::time::timeout(HANG, client.request("$SRV.INFO.probeops", "".into())).await.unwrap().unwrap();
        let info: Value = serde_json::from_slice(&seen.payload).unwrap();
        assert_eq!(info["endpoints"][0]["subject"], "api.v1.run.*", "{info}");
    });
    let unknown = home.run(&arguments("services revoke dealer")).bad(2);
    assert!(unknown.contains("there is no service `dealer`; `probeops services list` shows those there are"), "{unknown}");
    assert_eq!(up.end(Signal::SIGTERM), Some(0));
}

/// What a key may ask for.
fn status(up: &Up, key: &str, tool: &str, from: &str) -> u16 {
    up.caller().with_token(key).job(tool, "x.example", from, &json!({})).status
}

#[test]
fn a_key_that_was_added_is_limited_as_told_and_one_that_was_revoked_is_refused_at_once() {
    let home = Home::new();
    let mut up = home.up("data", &[]);
    let said = home.run(&arguments("keys add n8n --scopes jobs:write --tools echo --regions demo-eu --rate 2/h"));
    assert_eq!(said.err, "The key is shown once and kept nowhere:\n");
    let key = said.good().trim().to_owned();
    let id = key.split('_').nth(1).unwrap().to_owned();
    assert_eq!((status(&up, &key, "dns", "demo-eu"), status(&up, &key, "echo", "demo-us")), (403, 403), "outside its limits");
    let statuses: Vec<u16> = (0..3).map(|_| status(&up, &key, "echo", "demo-eu")).collect();
    assert_eq!(statuses, [200, 200, 429]);
    let table = probeops(&home, "keys list");
    assert!(table.lines().any(|row| row.starts_with(&format!("{id}  n8n    jobs:write")) && row.ends_with("good")), "{table}");
    let shown = listed(&home, "keys").into_iter().find(|key| key["id"] == json!(id)).unwrap();
    assert_eq!(shown["limits"], json!({"tools": ["echo"], "regions": ["demo-eu"], "rate": "2/h"}), "{shown}");
    assert!(!shown.to_string().contains(&key) && !shown.to_string().contains("sha256"), "{shown}");

    probeops(&home, &format!("keys revoke {id}"));
    assert_eq!(status(&up, &key, "echo", "demo-eu"), 401, "at once");
    let unknown = home.run(&arguments("keys revoke aaaaaaaaaa")).bad(2);
    assert!(unknown.contains("there is no key `aaaaaaaaaa`; `probeops keys list` shows those there are"), "{unknown}");

    // What was done is in the trail, and all of it is still so after the next start.
    assert_eq!(up.end(Signal::SIGTERM), Some(0));
    let mut up = home.up("data", &[]);
    assert_eq!(status(&up, &key, "echo", "demo-eu"), 401);
    let trail: Value = serde_json::from_str(&probeops(&home, "audit --verdict changed -o json")).unwrap();
    let records = trail["records"].as_array().unwrap().iter().filter_map(|record| record["detail"].as_str());
    let of_keys: Vec<&str> = records.filter(|detail| detail.starts_with("key ")).collect();
    assert_eq!(of_keys, ["key revoked", "key made: n8n"], "newest first");

    // Losing the first key is no end: the next start makes another, and says so.
    let first = up.line("key   ");
    let old = std::fs::read_to_string(&first).unwrap();
    probeops(&home, &format!("keys revoke {}", old.split('_').nth(1).unwrap()));
    assert_eq!(up.end(Signal::SIGTERM), Some(0));
    let mut up = home.up("data", &[]);
    assert!(up.log().contains("admin.key held no key that is accepted; it is written anew"), "{}", up.log());
    assert_ne!(std::fs::read_to_string(&first).unwrap(), old);
    assert_eq!(up.end(Signal::SIGTERM), Some(0));
}

#[test]
fn any_credential_is_made_void_by_its_file_and_of_the_servers_own_it_is_said_that_none_is() {
    let home = Home::new();
    let up = home.up("data", &[]);
    let key = Credentials::read_if_exists(&home.path("data/creds/store.creds")).unwrap().unwrap().public_key;
    let said = probeops(&home, "revoke data/creds/store.creds");
    assert!(said.contains(&format!("every credential of {key} (api-")) && said.contains(") is void on "), "{said}");
    wait_until("the API is cut off from its store", || up.caller().try_get("/readyz").is_ok_and(|answer| answer.status == 503));
    for (credential, why) in [
        ("data/keys/keymaster.creds", "data/keys/keymaster.creds is of the servers' own account, and ends when its 30 days are over"),
        ("nothing.creds", "cannot read the credential nothing.creds"),
    ] {
        let refused = home.run(&arguments(&format!("revoke {credential}"))).bad(2);
        assert!(refused.contains(why), "{refused}");
    }
}
