//! The last messages of several subjects of a stream, in one request (NATS ADR-31, `multi_last`).

use std::time::Duration;

use async_nats::{Client, HeaderMap, Message};
use bytes::Bytes;
use futures_util::StreamExt;
use probeops_shared::subjects::broker;
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

/// A message of a stream.
#[derive(Clone, Debug)]
pub(crate) struct Last {
    /// On which subject.
    pub(crate) subject: String,
    /// Its place in the stream.
    pub(crate) sequence: u64,
    /// What it says.
    pub(crate) payload: Bytes,
}

/// The last message of each subject that one of the filters matches, in the order of the stream; at most 1,024 of them. What is read was there
/// at one moment.
pub(crate) async fn last_of_each(client: &Client, stream: &str, filters: &[String]) -> Result<Vec<Last>, String> {
    let mut found: Vec<Last> = Vec::new();
    let mut request = json!({"multi_last": filters});
    loop {
        let end = answered(client, stream, &request, &mut found).await?;
        // It may have stopped before the end, so as not to send too much at once.
        let more = header(end.as_ref(), NUM_PENDING).is_some_and(|pending: u64| pending > 0);
        let (Some(last), true) = (found.last(), more) else { return Ok(found) };
        request = json!({"multi_last": filters, "seq": last.sequence + 1, "up_to_seq": header::<u64>(end.as_ref(), UP_TO_SEQUENCE)});
    }
}

/// Asks for messages and adds them to what was found; the headers of the answer's end, which it does not have where nothing was found.
async fn answered(client: &Client, stream: &str, request: &Value, found: &mut Vec<Last>) -> Result<Option<HeaderMap>, String> {
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.map_err(|error| error.to_string())?;
    let asked = client.publish_with_reply(broker::direct_get(stream), inbox, request.to_string().into()).await;
    asked.map_err(|error| error.to_string())?;
    loop {
        let answer = tokio::time::timeout(NEXT_WITHIN, answers.next()).await;
        let answer = answer.map_err(|_elapsed| "the broker did not answer in time".to_owned())?;
        let answer = answer.ok_or_else(|| "the connection to the broker is closed".to_owned())?;
        match answer.status {
            None => found.push(read(answer)?),
            Some(status) if status.as_u16() == NOT_FOUND => return Ok(None),
            Some(status) if status.as_u16() == END_OF_BATCH => return Ok(answer.headers),
            Some(status) => return Err(format!("the broker answered {status} {}", answer.description.unwrap_or_default())),
        }
    }
}

/// The next messages from a place in the stream on whose subject the filter matches, in the order of the stream: as many as fit into one answer, at
/// most `count`. None are left when there are none.
pub(crate) async fn next_of(client: &Client, stream: &str, filter: &str, from_sequence: u64, count: usize) -> Result<Vec<Last>, String> {
    let request = json!({"seq": from_sequence, "next_by_subj": filter, "batch": count});
    let mut found = Vec::new();
    answered(client, stream, &request, &mut found).await?;
    Ok(found)
}

fn read(message: Message) -> Result<Last, String> {
    let headers = message.headers.as_ref();
    let (subject, sequence) = (header(headers, SUBJECT), header(headers, SEQUENCE));
    let (Some(subject), Some(sequence)) = (subject, sequence) else { return Err("the broker's answer lacks its headers".to_owned()) };
    Ok(Last { subject, sequence, payload: message.payload })
}

fn header<T: std::str::FromStr>(headers: Option<&HeaderMap>, name: &str) -> Option<T> {
    headers?.get(name)?.as_str().parse().ok()
}
