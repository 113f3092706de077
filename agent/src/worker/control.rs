//! Messages that are no jobs: cancel, drain and limits.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use async_nats::{HeaderMap, Message};
use probeops_shared::ids::{Caller, RequestId};
use probeops_shared::job::Verb;
use probeops_shared::subjects;

use super::Worker;
use crate::outbox::Answer;

impl Worker {
    pub(super) async fn control(&self, verb: &str, caller: Caller, message: Message) {
        let given = message.reply.as_ref().map_or("", |reply| reply.as_str());
        let answer = subjects::answer(given, &caller, &self.node.id);
        let done = match Verb::parse(verb) {
            Some(_) if !caller.is_api() => Err("only replicas of the API may control a node"),
            // It says nothing but its subject, on which any replica can have the broker answer as well; that asks for no answer.
            Some(Verb::Drain) if answer.is_none() => Err("a drain is asked for by who wants to hear that it is done"),
            Some(Verb::Cancel) => match cancelled_request(&message.payload) {
                Some(request_id) => Ok(self.runs.cancel(&caller, &request_id)),
                None => Err("a cancel names its request_id"),
            },
            Some(Verb::Drain) => {
                tracing::info!(%caller, "told to drain: no new jobs from here on");
                let is_new = !self.draining.swap(true, Ordering::AcqRel);
                if is_new {
                    self.trail.report("drain", format!("told by {caller} to drain: it takes no new jobs from here on"));
                }
                Ok(is_new)
            }
            Some(Verb::Limits) => match serde_json::from_slice(&message.payload) {
                Ok(shares) => Ok(self.limits.learn(shares)),
                Err(_) => Err("limits are told by shares and their digest"),
            },
            None => Err("no such control message"),
        };
        if let Err(why) = done {
            self.count_unanswerable(&message, why);
        }
        let Some(subject) = answer else { return };
        let body: BTreeMap<&str, serde_json::Value> = match done {
            Ok(changed) => [("changed", changed.into())].into(),
            Err(why) => [("error", why.into())].into(),
        };
        let payload = serde_json::to_vec(&body).unwrap_or_default().into();
        self.outbox.send(Answer { subject, headers: HeaderMap::new(), payload }).await;
    }
}

fn cancelled_request(body: &[u8]) -> Option<RequestId> {
    serde_json::from_slice::<serde_json::Value>(body).ok()?.get("request_id")?.as_str()?.parse().ok()
}
