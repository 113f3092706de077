//! Which queue groups the node is in: one for each tool that it can run and has room for.
//!
//! A class that stays full leaves its tools' groups, so that the broker picks somebody else, and rejoins when a slot is free.
//! Messages still on their way when it leaves are answered `busy`, not lost.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use async_nats::{Client, Subscriber};
use probeops_shared::outcome::NodeRef;
use probeops_shared::subjects;
use probeops_shared::tools::{Class, ToolName};

/// A class that has been full for this long leaves its groups.
const FULL_FOR: Duration = Duration::from_millis(300);

/// Membership in queue groups.
#[derive(Debug)]
pub(crate) struct Groups {
    client: Client,
    node: NodeRef,
    tools: Vec<ToolName>,
    joined: BTreeMap<ToolName, tokio::sync::oneshot::Sender<()>>,
    full_since: BTreeMap<Class, Instant>,
}

/// A subscription and the word that ends it.
pub(crate) type Joined = (Subscriber, tokio::sync::oneshot::Receiver<()>);

impl Groups {
    /// The node's groups, none joined yet.
    pub(crate) fn new(client: Client, node: NodeRef, tools: Vec<ToolName>) -> Self {
        Self { client, node, tools, joined: BTreeMap::new(), full_since: BTreeMap::new() }
    }

    /// Joins the groups of a class that are not joined; the caller reads the subscriptions.
    pub(crate) async fn join(&mut self, class: Class) -> Vec<Joined> {
        let mut subscriptions = Vec::new();
        for tool in self.tools.clone() {
            if tool.class() != class || self.joined.contains_key(&tool) {
                continue;
            }
            let subject = subjects::node_tool_group(&self.node.region, tool);
            match self.client.queue_subscribe(subject, subjects::NODE_QUEUE.to_owned()).await {
                Ok(subscription) => {
                    let (leave, left) = tokio::sync::oneshot::channel();
                    self.joined.insert(tool, leave);
                    subscriptions.push((subscription, left));
                }
                Err(error) => tracing::error!(%tool, %error, "could not join the tool's group"),
            }
        }
        subscriptions
    }

    /// Leaves the groups of a class.
    pub(crate) fn leave(&mut self, class: Class) {
        self.joined.retain(|tool, _| tool.class() != class);
    }

    /// Looks at a class's free slots and says what to do.
    pub(crate) fn judge(&mut self, class: Class, free: usize, now: Instant) -> Advice {
        if free > 0 {
            self.full_since.remove(&class);
            let left = self.tools.iter().any(|tool| tool.class() == class && !self.joined.contains_key(tool));
            return if left { Advice::Join } else { Advice::Stay };
        }
        let since = *self.full_since.entry(class).or_insert(now);
        let joined = self.joined.keys().any(|tool| tool.class() == class);
        if joined && now.duration_since(since) >= FULL_FOR { Advice::Leave } else { Advice::Stay }
    }
}

/// Tells the broker to send no more on a subscription, which goes on to yield what is already on its way.
///
/// The client's own `unsubscribe` and `drain` forget the subscription before the last messages have arrived, and these are lost. Asked to end
/// it after a number of messages, the client keeps it until then; and the broker, which reads no number of so many digits, ends it at once.
pub(crate) async fn leave(subscription: &mut Subscriber) {
    const NEVER: u64 = 10_000_000_000;
    if let Err(error) = subscription.unsubscribe_after(NEVER).await {
        tracing::debug!(%error, "a subscription had ended already");
    }
}

/// What a class should do about its groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Advice {
    /// Nothing.
    Stay,
    /// Leave them: it has been full for too long.
    Leave,
    /// Join them: there is room again.
    Join,
}
