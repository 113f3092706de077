//! Answers of nodes, as `tests/fuzz` calls their reader.

use async_nats::{HeaderMap, HeaderName, HeaderValue, Message};
use bytes::Bytes;
use probeops_shared::ids::NodeId;
use probeops_shared::job::Event;
use probeops_shared::traceparent::Traceparent;

use super::replies;

/// Who answers, with what, its number, and the node's span; headers that no client can send are left out.
pub fn answer(given: &[(&str, &str)], responder: &str, status: u16) -> Option<(Option<NodeId>, Event, u64, Option<Traceparent>)> {
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
            headers.append(name, value);
        }
    }
    let message = Message {
        subject: "a".into(),
        reply: None,
        payload: Bytes::new(),
        headers: Some(headers),
        status: status.try_into().ok(),
        description: None,
        length: 0,
    };
    let (node, event) = replies::read(&message, responder)?;
    Some((node, event, replies::seq(&message), replies::span(&message)))
}
