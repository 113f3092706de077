//! Several messages of a stream in one request (NATS ADR-31): the last of each subject, or those of a window of it.

use std::time::Duration;

use async_nats::{Client, HeaderMap, Message};
use bytes::Bytes;
use futures_util::StreamExt;
use probeops_shared::subjects::broker;
use probeops_shared::timestamp::Timestamp;
use serde_json::{Value, json};

/// How long the broker may be silent between two messages of its answer.
const NEXT_WITHIN: Duration = Duration::from_secs(5);
/// What an answer ends with.
const END_OF_BATCH: u16 = 204;
/// What it is when there is no such message.
const NOT_FOUND: u16 = 404;
/// How many messages are still to come.
const NUM_PENDING: &str = "Nats-Num-Pending";
/// The subject a message was stored on.
const SUBJECT: &str = "Nats-Subject";
/// Its place in the stream.
const SEQUENCE: &str = "Nats-Sequence";
/// The place in the stream at which the broker has looked.
const UP_TO_SEQUENCE: &str = "Nats-UpTo-Sequence";
/// When a message was stored.
const TIME_STAMP: &str = "Nats-Time-Stamp";

/// A message of a stream.
#[derive(Clone, Debug)]
pub(crate) struct Last {
    /// On which subject.
    pub(crate) subject: String,
    /// Its place in the stream.
    pub(crate) sequence: u64,
    /// When it was stored.
    pub(crate) stored_at: Timestamp,
    /// What it says.
    pub(crate) payload: Bytes,
}

/// The last message of each subject that one of the filters matches, in the order of the stream; at most 1,024 of them. What is read was there
/// at one moment.
pub(crate) async fn last_of_each(client: &Client, stream: &str, filters: &[String]) -> Result<Vec<Last>, String> {
    let mut found: Vec<Last> = Vec::new();
    let mut request = json!({"multi_last": filters});
    loop {
        let Batch { messages, more, up_to } = batch(client, stream, &request).await?;
        found.extend(messages);
        let (Some(last), true) = (found.last(), more) else { return Ok(found) };
        request = json!({"multi_last": filters, "seq": last.sequence + 1, "up_to_seq": up_to});
    }
}

/// The first messages on a subject, which may have wildcards, from a place in the stream on, in its order; at most so many, and whether there
/// are more.
pub(crate) async fn next_of(client: &Client, stream: &str, subject: &str, from: u64, count: usize) -> Result<(Vec<Last>, bool), String> {
    let mut found: Vec<Last> = Vec::new();
    loop {
        let from = found.last().map_or(from, |last| last.sequence + 1);
        let request = json!({"seq": from, "next_by_subj": subject, "batch": count - found.len()});
        let Batch { messages, more, .. } = batch(client, stream, &request).await?;
        let nothing = messages.is_empty();
        found.extend(messages);
        if nothing || !more || found.len() >= count {
            return Ok((found, more));
        }
    }
}

/// The first messages on a subject that were stored at this time or later, as [`next_of`] gives them.
pub(crate) async fn next_since(
    client: &Client,
    stream: &str,
    subject: &str,
    since: Timestamp,
    count: usize,
) -> Result<(Vec<Last>, bool), String> {
    let request = json!({"start_time": since, "next_by_subj": subject, "batch": count});
    let Batch { messages, more, .. } = batch(client, stream, &request).await?;
    Ok((messages, more))
}

/// What the broker sends for one request.
struct Batch {
    messages: Vec<Last>,
    /// It stopped before the end, so as not to send too much at once.
    more: bool,
    up_to: Option<u64>,
}

async fn batch(client: &Client, stream: &str, request: &Value) -> Result<Batch, String> {
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.map_err(|error| error.to_string())?;
    let asked = client.publish_with_reply(broker::lent(&broker::direct_get(stream)), inbox, request.to_string().into()).await;
    asked.map_err(|error| error.to_string())?;
    let mut messages = Vec::new();
    loop {
        let answer = tokio::time::timeout(NEXT_WITHIN, answers.next()).await;
        let answer = answer.map_err(|_elapsed| "the broker did not answer in time".to_owned())?;
        let answer = answer.ok_or_else(|| "the connection to the broker is closed".to_owned())?;
        match answer.status.map(|status| status.as_u16()) {
            None => messages.push(read(answer)?),
            Some(NOT_FOUND) => return Ok(Batch { messages, more: false, up_to: None }),
            Some(END_OF_BATCH) => {
                let headers = answer.headers.as_ref();
                let more = header(headers, NUM_PENDING).is_some_and(|pending: u64| pending > 0);
                return Ok(Batch { messages, more, up_to: header(headers, UP_TO_SEQUENCE) });
            }
            Some(status) => return Err(format!("the broker answered {status} {}", answer.description.unwrap_or_default())),
        }
    }
}

fn read(message: Message) -> Result<Last, String> {
    let headers = message.headers.as_ref();
    let (subject, sequence) = (header(headers, SUBJECT), header(headers, SEQUENCE));
    let stored_at = headers.and_then(|headers| Timestamp::parse(headers.get(TIME_STAMP)?.as_str()));
    let (Some(subject), Some(sequence), Some(stored_at)) = (subject, sequence, stored_at) else {
        return Err("the broker's answer lacks its headers".to_owned());
    };
    Ok(Last { subject, sequence, stored_at, payload: message.payload })
}

fn header<T: std::str::FromStr>(headers: Option<&HeaderMap>, name: &str) -> Option<T> {
    headers?.get(name)?.as_str().parse().ok()
}
