//! A service at the front door, and a replica of the API at the keymaster, that ask for what is none.

use std::collections::BTreeSet;

use async_nats::{Client, HeaderMap};
use futures_util::StreamExt;
use nkeys::KeyPair;
use probeops_nats::permissions::Role;
use probeops_shared::ids::Caller;
use serde_json::{Value, json};

use super::http::by_chance;
use super::{HANG, Site};

/// How many requests of each kind come at once.
const EACH: usize = 40;
/// How often an honest service asks meanwhile.
const HONEST: usize = 20;
/// How many credentials are honestly asked for.
const HONEST_CREDENTIALS: usize = 10;

/// What the front door and the keymaster are for.
pub(super) fn honest(site: &Site) {
    let client = service(site, "polite");
    site.fabric.block_on(ask_honestly(&client, "polite"));
    for number in 0..HONEST_CREDENTIALS {
        let wanted = json!({"name": format!("polite-{number}"), "regions": ["good"], "tools": ["echo"]});
        drop(site.roomy.admin().post("/v1/services", &wanted).expect(201));
    }
}

/// Each request is answered as the mistake that it is, and an honest service meanwhile with its job.
pub(super) fn knocks(site: &Site) {
    let (knocking, honest) = (service(site, "knocking"), service(site, "patient"));
    let giant = service(site, "huge");
    let caller = Caller::new_api();
    let role = Role::Api { caller: caller.clone() };
    let replica = site.fabric.connect_in(&site.fabric.credential(&role), &role.inbox_prefix());
    site.fabric.block_on(async {
        // More than it may: the broker cuts it.
        for _ in 0..3 {
            drop(giant.publish("api.v1.run.huge", vec![b' '; 200_000].into()).await);
            drop(giant.flush().await);
        }
        futures_util::join!(at_the_door(&knocking), ask_honestly(&honest, "patient"), at_the_keymaster(&replica, &caller));
        again_at_the_door(&knocking).await;
        again_at_the_keymaster(&replica, &caller).await;
    });
}

fn service(site: &Site, name: &str) -> Client {
    let service = site.fabric.service(name, &["good"], &["echo"], &[]);
    site.fabric.connect_in(&service.creds, &format!("_INBOX_f.{name}"))
}

fn echo() -> String {
    json!({"tool": "echo", "target": "x", "from": "good"}).to_string()
}

async fn ask_honestly(client: &Client, name: &str) {
    for _ in 0..HONEST {
        let request = async_nats::Request::new().payload(echo().into()).timeout(Some(HANG));
        let answer = client.send_request(format!("api.v1.run.{name}"), request).await.expect("an answer");
        let job: Value = serde_json::from_slice(&answer.payload).unwrap();
        assert_eq!((&job["status"], &job["results"][0]["status"]), (&json!("finished"), &json!("success")), "{job}");
    }
}

/// What is no request anywhere: too large, too deep, cut off, by chance.
fn broken() -> Vec<Vec<u8>> {
    vec![
        Vec::new(),
        b"x".to_vec(),
        vec![b' '; 65 * 1024],
        vec![b'['; 60_000],
        format!("{{\"tool\":{}", "{\"a\":".repeat(10_000)).into_bytes(),
        format!("{{{}\"z\":1}}", "\"a\":1,".repeat(8_000)).into_bytes(),
        echo().as_bytes()[..20].to_vec(),
        b"{\"public_key\":\"U".to_vec(),
        by_chance()[..60_000].to_vec(),
    ]
}

/// The answers to these, all of which are asked at once.
async fn answers(client: &Client, subject: &str, headers: &HeaderMap, bodies: &[Vec<u8>]) -> Vec<Value> {
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(format!("{inbox}.*")).await.unwrap();
    for (number, body) in bodies.iter().enumerate() {
        let (reply, body) = (format!("{inbox}.{number}"), body.clone().into());
        client.publish_with_reply_and_headers(subject.to_owned(), reply, headers.clone(), body).await.unwrap();
    }
    client.flush().await.unwrap();
    let answers = answers.by_ref().take(bodies.len()).map(|answer| serde_json::from_slice(&answer.payload).unwrap());
    tokio::time::timeout(HANG, answers.collect()).await.expect("an answer to each")
}

async fn at_the_door(client: &Client) {
    for body in broken() {
        for problem in answers(client, "api.v1.run.knocking", &HeaderMap::new(), &vec![body.clone(); EACH]).await {
            let is_told = problem["status"].as_u64().is_some_and(|status| (400..500).contains(&status));
            assert!(is_told, "{problem}, to {}", String::from_utf8_lossy(&body[..body.len().min(40)]));
        }
    }
}

async fn at_the_keymaster(client: &Client, caller: &Caller) {
    let large = vec![b'['; 900_000];
    for verb in ["mint_node", "mint_service", "revoke"] {
        for body in broken().into_iter().chain([large.clone()]) {
            let few = if body == large { 5 } else { EACH };
            for answer in answers(client, &format!("key.v1.{verb}.{caller}"), &HeaderMap::new(), &vec![body.clone(); few]).await {
                let code = answer["problem"]["code"].as_str().unwrap_or_default();
                assert!(["invalid", "rate_limited"].contains(&code), "{verb}: {answer}");
            }
        }
    }
}

/// The same job again and again, which is one.
async fn again_at_the_door(client: &Client) {
    let mut headers = HeaderMap::new();
    headers.insert("Idempotency-Key", "again");
    let jobs = answers(client, "api.v1.run.knocking", &headers, &vec![echo().into_bytes(); EACH]).await;
    let ids: BTreeSet<&str> = jobs.iter().map(|job| job["id"].as_str().unwrap_or_else(|| panic!("{job}"))).collect();
    assert_eq!(ids.len(), 1, "{jobs:?}");
}

/// The same revocation again and again, which is answered as one.
async fn again_at_the_keymaster(client: &Client, caller: &Caller) {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", "again");
    let revoke = json!({"public_key": KeyPair::new_user().public_key()}).to_string().into_bytes();
    let told = answers(client, &format!("key.v1.revoke.{caller}"), &headers, &vec![revoke; EACH]).await;
    assert!(told.iter().all(|answer| *answer == told[0]), "{told:?}");
}
