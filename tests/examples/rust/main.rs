//! Asks straight over NATS with async-nats: a node for one outcome, the same with what happens on the way, the API's front door, and what the
//! broker forbids.
//!
//! ```sh
//! cargo run -p probeops-tests --bin example -- tls://127.0.0.1:4222 .probeops/tls/ca.pem .probeops/services/billing.creds billing demo-eu
//! ```

// Needs async-nats, futures-util, rand, serde_json and tokio.

#![expect(clippy::print_stdout, reason = "what it is told is for whoever runs it")]

use std::error::Error;
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event, HeaderMap, Message, Request, StatusCode, Subscriber};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;

const TIMEOUT: Duration = Duration::from_secs(70);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Result<()> {
    let [server, ca, creds, name, region] =
        std::env::args().skip(1).collect::<Vec<_>>().try_into().map_err(|_| "see the example's head")?;
    // A publication that is not granted is told only here, on the side: whoever waits for an answer to it waits in vain.
    let (told, mut forbidden) = mpsc::unbounded_channel();
    let client = ConnectOptions::with_credentials_file(creds)
        .await?
        .add_root_certificates(ca.into())
        .require_tls(true)
        // Where the front door answers; ours alone: the broker lets nobody else subscribe it.
        .custom_inbox_prefix(format!("_INBOX_f.{name}"))
        .event_callback(move |event| {
            if let Event::ServerError(error) = event {
                drop(told.send(error));
            }
            async {}
        })
        .connect(server)
        .await?;

    // 1. A node, directly: one question, one outcome. The last token of the answer's subject is the node, which the broker attests.
    let direct = async |parameters: Value, headers: HeaderMap| {
        let token = format!("{:032x}", rand::random::<u128>());
        let job = json!({"request_id": token, "tool": "ping", "target": "127.0.0.1", "parameters": parameters});
        let inbox = format!("_INBOX.{name}.{token}");
        ask(&client, format!("job.v1.{region}.ping.{name}"), (format!("{inbox}._"), format!("{inbox}.*")), &job, headers).await
    };
    let mut answers = direct(json!({"count": 1}), HeaderMap::new()).await?;
    let (_, outcome, subject) = next(&mut answers).await?;
    println!("outcome: {} from {}", text(&outcome["status"]), subject.rsplit('.').next().unwrap_or_default());

    // 2. The same, told as it happens.
    let mut answers = direct(json!({"count": 2, "interval_ms": 100}), live()).await?;
    loop {
        let (event, body, _) = next(&mut answers).await?;
        println!("event: {} {:?}", event.as_deref().unwrap_or("?"), text(&body["output"]).lines().take(1).collect::<Vec<_>>());
        if event.as_deref() == Some("outcome") {
            break;
        }
    }

    // 3. The front door: the body of POST /v1/jobs, with its selectors, retries and audit; the whole job comes back.
    let door = format!("api.v1.run.{name}");
    let job = json!({"tool": "ping", "target": "127.0.0.1", "from": region, "parameters": {"count": 2, "interval_ms": 100}});
    let done: Value = serde_json::from_slice(&request(&client, &door, &job).await?.payload)?;
    println!("job: {} with {} outcome", text(&done["status"]), done["results"].as_array().map_or(0, Vec::len));

    // 4. With events, on the same inbox; the answer itself is the message without Probe-Event.
    let inbox = client.new_inbox();
    let mut answers = ask(&client, door.clone(), (inbox.clone(), inbox), &job, live()).await?;
    loop {
        let (event, body, _) = next(&mut answers).await?;
        println!("door: {}", event.as_deref().unwrap_or_else(|| text(&body["status"])));
        if event.is_none() {
            break;
        }
    }

    // 5. What is not granted: the front door says so at once, the broker only on the side.
    let mut elsewhere = job;
    elsewhere["from"] = "elsewhere".into();
    let refused = request(&client, &door, &elsewhere).await?;
    let problem: Value = serde_json::from_slice(&refused.payload)?;
    let code = refused.headers.as_ref().and_then(|headers| headers.get("Nats-Service-Error-Code")).map_or("?", |code| code.as_str());
    println!("problem: {code} {}", text(&problem["code"]));
    client.publish(format!("job.v1.elsewhere.ping.{name}"), "{}".into()).await?;
    println!("forbidden: {}", timeout(TIMEOUT, forbidden.recv()).await?.ok_or("the connection is gone")?);
    Ok(())
}

/// Publishes; every message of the answer is to come.
async fn ask(client: &Client, subject: String, (reply, answers): (String, String), body: &Value, headers: HeaderMap) -> Result<Subscriber> {
    let answers = client.subscribe(answers).await?;
    client.publish_with_reply_and_headers(subject, reply, headers, body.to_string().into()).await?;
    Ok(answers)
}

/// The next message of an answer: what it is, its body, and its subject.
async fn next(answers: &mut Subscriber) -> Result<(Option<String>, Value, String)> {
    let message = timeout(TIMEOUT, answers.next()).await?.ok_or("the connection is gone")?;
    if message.status == Some(StatusCode::NO_RESPONDERS) {
        return Err("nobody listens".into());
    }
    let event = message.headers.as_ref().and_then(|headers| headers.get("Probe-Event")).map(ToString::to_string);
    let body = if message.payload.is_empty() { Value::Null } else { serde_json::from_slice(&message.payload)? };
    Ok((event, body, message.subject.to_string()))
}

async fn request(client: &Client, subject: &str, body: &Value) -> Result<Message> {
    let request = Request::new().payload(body.to_string().into()).timeout(Some(TIMEOUT));
    Ok(client.send_request(subject.to_owned(), request).await?)
}

fn live() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("Probe-Events", "1");
    headers
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
