//! The API's way to the keymaster, which alone can sign credentials and take them back. The API itself holds no key that signs.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use probeops_shared::keymaster::{Answer, Mint, Minted, NodeRights, Refusal, Revoke, Revoked, ServiceRights, Verb};
use probeops_shared::problem::Code;
use probeops_shared::subjects;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::broker::{Broker, Unanswered};
use crate::problem::Problem;

/// How long the keymaster may take: it waits for the slowest server of the broker, and not for ever.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// After how long without an answer a revocation is asked for once more: of the servers of the broker that the keymaster listens at one may hang,
/// and what is asked is given to any.
const AGAIN_AFTER: Duration = Duration::from_millis(250);
/// How often it is asked for at most.
const ASKED_MAX: usize = 4;
/// How long it may be without a connection before it is said that none runs.
const RECONNECT_WITHIN: Duration = Duration::from_secs(2);
/// How often to look whether it is back.
const RECONNECT_POLL: Duration = Duration::from_millis(100);

/// The keymaster, asked in this replica's own name. What is asked is recorded in the trail by whoever asks, with who wanted it.
#[derive(Clone, Debug)]
pub struct Keymaster {
    broker: Broker,
}

impl Keymaster {
    pub(crate) fn new(broker: &Broker) -> Self {
        Self { broker: broker.clone() }
    }

    /// The credential of a node, for the public half of a key that the node has made.
    pub async fn mint_node(&self, public_key: &str, rights: NodeRights, lifetime: Duration) -> Result<Minted, Problem> {
        self.ask(Verb::MintNode, &Mint { public_key: public_key.to_owned(), rights, lifetime_s: lifetime.as_secs() }).await
    }

    /// The credential of a service, for the public half of a key.
    pub async fn mint_service(&self, public_key: &str, rights: ServiceRights, lifetime: Duration) -> Result<Minted, Problem> {
        self.ask(Verb::MintService, &Mint { public_key: public_key.to_owned(), rights, lifetime_s: lifetime.as_secs() }).await
    }

    /// Voids every credential of a key made so far and cuts its connections. It is final when this answers; which servers of the broker have
    /// taken it, and which have yet to, is in the answer. One of which no credential is in force, as far as the keymaster knows, is not found.
    pub async fn revoke(&self, public_key: &str) -> Result<Revoked, Problem> {
        let revoked: Result<Revoked, _> = self.ask(Verb::Revoke, &Revoke { public_key: public_key.to_owned() }).await;
        if revoked.as_ref().is_ok_and(|revoked| revoked.unrecorded) {
            tracing::warn!(
                public_key,
                "a key is revoked, and the keymaster's record of it is not in the audit trail yet; it waits there until it is"
            );
        }
        // The key is of our own records: what is wrong with it is not wrong with what was asked of us.
        revoked.map_err(|problem| if problem.code() == Code::Invalid { Problem::new(Code::Internal, problem.detail()) } else { problem })
    }

    async fn ask<T: DeserializeOwned>(&self, verb: Verb, request: &impl Serialize) -> Result<T, Problem> {
        let internal = |what: String| Problem::new(Code::Internal, what);
        let body =
            serde_json::to_vec(request).map_err(|error| internal(format!("a request to the keymaster cannot be written: {error}")))?;
        let subject = subjects::keymaster(verb, self.broker.caller());
        // By which the keymaster knows what it is asked again.
        let (begun, id) = (Instant::now(), format!("{:032x}", rand::random::<u128>()));
        let answer = loop {
            match self.heard(verb, (&subject, &id), &body).await {
                Err(Unanswered::Nobody) if begun.elapsed() < RECONNECT_WITHIN => tokio::time::sleep(RECONNECT_POLL).await,
                answer => break answer.map_err(unanswered)?,
            }
        };
        match serde_json::from_slice(&answer) {
            Ok(Answer::Done(done)) => Ok(done),
            Ok(Answer::Refused { problem: Refusal { code, detail, retry_after_ms } }) => {
                let problem = Problem::new(code, format!("the keymaster refuses: {detail}"));
                Err(match retry_after_ms {
                    Some(after_ms) => problem.retry_after(Duration::from_millis(after_ms)),
                    None => problem,
                })
            }
            Err(error) => Err(internal(format!("the keymaster's answer cannot be understood: {error}"))),
        }
    }
}

impl Keymaster {
    /// The first answer. A revocation that is asked for again changes nothing; a credential is asked for once.
    async fn heard(&self, verb: Verb, (subject, id): (&str, &str), body: &[u8]) -> Result<Bytes, Unanswered> {
        let asked_max = if verb == Verb::Revoke { ASKED_MAX } else { 1 };
        let mut asked = FuturesUnordered::new();
        loop {
            asked.push(self.broker.ask(subject.to_owned(), (id, body.to_vec()), ANSWER_WITHIN));
            let again = asked.len() < asked_max;
            tokio::select! {
                Some(answer) = asked.next() => return answer,
                () = tokio::time::sleep(AGAIN_AFTER), if again => {}
            }
        }
    }
}

fn unanswered(why: Unanswered) -> Problem {
    let detail = match why {
        Unanswered::Nobody => {
            "no keymaster runs, and it alone can make and revoke credentials; start `probeops keymaster`, then try again".to_owned()
        }
        Unanswered::Late => format!("the keymaster did not answer within {} s; look at its log, then try again", ANSWER_WITHIN.as_secs()),
        Unanswered::Broker(why) => why,
    };
    Problem::new(Code::Unavailable, detail)
}
