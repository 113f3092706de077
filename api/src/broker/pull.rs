//! Messages of durable consumers, which all replicas share.

use std::time::Duration;

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::PullConsumer;
use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::time::sleep;

use super::{Broker, LinkState};

/// How long the broker holds a request for messages while there is none.
const ASK_FOR: Duration = Duration::from_secs(5);
/// When to go on after the broker did not take the request, or did not answer it.
const GO_ON_AFTER: Duration = Duration::from_millis(500);

impl Broker {
    /// Asks a consumer once for at most so many messages, and hands each on as it comes, until `take` says that there is no room for more. It waits
    /// for both connections first: what is asked while the broker is away is asked and given up in one moment when it is back, which has it give
    /// a message to nobody; and a job begins only where nodes and the trail can be spoken to.
    pub(crate) async fn pull(&self, queue: &PullConsumer, count: usize, mut take: impl FnMut(Message) -> bool) {
        let mut links = (self.0.link.clone(), self.0.store_link.clone());
        until_connected(&mut links).await;
        let Ok(mut messages) = queue.batch().max_messages(count).expires(ASK_FOR).messages().await else {
            return sleep(GO_ON_AFTER).await;
        };
        loop {
            let message = tokio::select! {
                message = messages.next() => message,
                // What was asked of a broker that is gone is not answered.
                _ = links.1.changed() => None,
                _ = links.0.wait_for(|link| !link.connected) => None,
            };
            match message {
                Some(Ok(message)) => {
                    if !take(message) {
                        return;
                    }
                }
                None => return,
                Some(Err(error)) => {
                    tracing::warn!(stream = queue.cached_info().stream_name, %error, "the broker does not give what waits; asking again");
                    return sleep(GO_ON_AFTER).await;
                }
            }
        }
    }
}

async fn until_connected((speaking, keeping): &mut (watch::Receiver<LinkState>, watch::Receiver<LinkState>)) {
    while !(speaking.borrow_and_update().connected && keeping.borrow_and_update().connected) {
        tokio::select! {
            Ok(()) = speaking.changed() => {}
            Ok(()) = keeping.changed() => {}
            // Whoever follows a connection ends with the program.
            else => std::future::pending().await,
        }
    }
}
