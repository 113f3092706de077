//! What each kind of credential may do, computed from the subjects. Only allow-lists.
//!
//! What keeps it airtight: what any node may publish and what any node may subscribe are disjoint over all nodes, and no node has a response
//! grant; no stream keeps a subject that a node can publish; whoever answers a node can publish to inboxes of nodes only, and whoever answers
//! a service at the front door to inboxes where no node answers; nobody but the caller subscribes its inbox; nodes have no rights in the broker's own APIs.
//!
//! The broker checks no reply subject, and its own answers go wherever whoever asks wants them in his account. So nobody of ours who runs is in an account
//! that has streams: whoever keeps something, whoever reads the trail and whoever hears nodes are in accounts of their own, and are lent what they need.
//! That no answer goes on from there into a bucket is what the broker does (2.14, 2.15), and nowhere promised: the tests of `reflected` watch it.

pub mod lists;

use probeops_shared::ids::{Caller, NodeId, OBSERVER, Region};
use probeops_shared::subjects;
use probeops_shared::tools::ToolName;
use serde::{Deserialize, Serialize};

/// What a credential is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// A node: takes jobs for the tools it was granted and answers them.
    Node {
        /// Its id.
        node: NodeId,
        /// Its region.
        region: Region,
        /// What it may serve.
        tools: Vec<ToolName>,
    },
    /// A replica of the API: asks nodes and the keymaster, and says so in the trail.
    Api {
        /// Its name on the wire, `api-…`.
        caller: Caller,
    },
    /// The same replica where it keeps something in streams and buckets.
    Store {
        /// Its name on the wire, `api-…`.
        caller: Caller,
    },
    /// A program that publishes jobs straight to the broker.
    Service {
        /// Its name on the wire.
        name: Caller,
        /// The regions it may ask.
        regions: Vec<Region>,
        /// The tools it may ask for.
        tools: Vec<ToolName>,
        /// The nodes it may ask by id.
        nodes: Vec<NodeId>,
        /// Whether it may publish jobs itself. One with limits that only the API can hold may not: it has the front door and nothing else.
        direct: bool,
    },
    /// Takes jobs of services at the front door and answers them; can publish to their inboxes for it and nowhere else.
    FrontDoor,
    /// Sees which NATS services there are, and how they do.
    Observer,
    /// A command of the operator: changes the registers of nodes, services and keys; lasts minutes.
    Registrar {
        /// Its name.
        name: Caller,
    },
    /// The same command where it says in the trail what it did; lasts minutes.
    Recorder {
        /// Its name, which is in its audit subjects.
        name: Caller,
    },
    /// Writes what nodes announce into bucket PRESENCE, and their audit records into the trail.
    Collector {
        /// Its name, which is in its audit subjects.
        name: Caller,
    },
    /// Answers nodes, and can publish nowhere else.
    Acknowledger,
    /// Sees connections of accounts come and go, and who is not let in, and can end connections.
    Presence {
        /// The accounts' public keys.
        accounts: Vec<String>,
    },
    /// Says in the trail what the broker refused, asks the keymaster to revoke, and tells nodes why they are cut.
    Sentry,
    /// Pushes account claims to the servers.
    Keymaster,
    /// Has the servers read their configuration and certificates again; lasts minutes.
    Reloader,
    /// Where replicas of the API ask the keymaster; can publish to their inboxes, say in the trail what it signed, and no more.
    KeymasterDesk,
    /// Reads the audit trail.
    Auditor,
    /// A server of another operator that keeps a copy of the audit trail, which comes over a leaf connection.
    Mirror,
    /// Makes and changes the streams and buckets of the store; not kept online.
    Provisioner,
    /// Makes and changes the stream of the audit trail; not kept online.
    AuditProvisioner,
}

/// An account of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&str")]
pub enum AccountName {
    /// The servers themselves.
    System,
    /// Jobs, their answers, and what nodes and the control plane say to one another; without streams.
    Application,
    /// Streams and buckets; only the provisioner comes there, for minutes.
    Store,
    /// Replicas of the API where they keep something in streams and buckets: wherever they want an answer, it stays among them.
    Keepers,
    /// The operator's commands where they keep something: wherever they want an answer, it stays among them.
    Commands,
    /// The audit trail.
    Audit,
    /// Those who read the trail, and nothing else: wherever they want an answer, it stays among them.
    Readers,
    /// Those who hear nodes: wherever they want an answer, it stays among them.
    Collectors,
}

impl AccountName {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::System, Self::Audit, Self::Store, Self::Application, Self::Keepers, Self::Commands, Self::Readers, Self::Collectors];
    /// Those whose claims are pushed to servers, which have those of the system account in their configuration.
    pub const PUSHED: [Self; 7] =
        [Self::Audit, Self::Store, Self::Application, Self::Keepers, Self::Commands, Self::Readers, Self::Collectors];

    /// Its name, in claims and of its files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "SYS",
            Self::Application => "APP",
            Self::Store => "STORE",
            Self::Keepers => "KEEPERS",
            Self::Commands => "COMMANDS",
            Self::Audit => "AUDIT",
            Self::Readers => "READERS",
            Self::Collectors => "COLLECTORS",
        }
    }
}

impl From<AccountName> for &str {
    fn from(name: AccountName) -> Self {
        name.as_str()
    }
}

impl TryFrom<String> for AccountName {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::ALL.into_iter().find(|name| name.as_str() == text).ok_or_else(|| format!("there is no account `{text}`"))
    }
}

/// Over what a credential may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// `tls://`.
    Standard,
    /// `wss://`.
    WebSocket,
    /// Another server, as a leaf.
    Leaf,
}

impl Transport {
    /// The word in claims.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Standard => "STANDARD",
            Self::WebSocket => "WEBSOCKET",
            Self::Leaf => "LEAFNODE",
        }
    }
}

/// What a credential may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// Subjects it may publish; never empty.
    pub publish: Vec<String>,
    /// Subjects it may subscribe, `subject queue` where only in that queue group; never empty.
    pub subscribe: Vec<String>,
    /// How many subscriptions it may have at once; no limit when absent.
    pub max_subscriptions: Option<usize>,
    /// The largest message it may publish, headers included, in bytes; the server's limit when absent.
    pub max_payload_bytes: Option<usize>,
    /// Over what it may connect.
    pub transports: Vec<Transport>,
}

impl Role {
    /// The name in its claims: the node, the caller, or what it is for.
    pub fn name(&self) -> String {
        match self {
            Self::Node { node, .. } => node.to_string(),
            Self::Api { caller } | Self::Store { caller } => caller.to_string(),
            Self::Service { name, .. } | Self::Registrar { name } | Self::Recorder { name } | Self::Collector { name } => name.to_string(),
            Self::FrontDoor => "frontdoor".to_owned(),
            Self::Observer => OBSERVER.to_owned(),
            Self::Acknowledger => "acknowledger".to_owned(),
            Self::Presence { .. } => "presence".to_owned(),
            Self::Sentry => subjects::SENTRY.to_owned(),
            Self::Keymaster => "keymaster".to_owned(),
            Self::Reloader => "reloader".to_owned(),
            Self::KeymasterDesk => "keymaster-desk".to_owned(),
            Self::Auditor => "auditor".to_owned(),
            Self::Mirror => "mirror".to_owned(),
            Self::Provisioner => "provisioner".to_owned(),
            Self::AuditProvisioner => "audit-provisioner".to_owned(),
        }
    }

    /// The inbox prefix that its client library must be given.
    pub fn inbox_prefix(&self) -> String {
        match self {
            Self::Node { node, .. } => subjects::node_inbox(node),
            // Where the front door can answer.
            Self::Service { name, .. } => subjects::door_inbox(name),
            Self::Observer => subjects::door_inbox(OBSERVER),
            Self::Api { .. }
            | Self::Store { .. }
            | Self::FrontDoor
            | Self::Registrar { .. }
            | Self::Recorder { .. }
            | Self::Collector { .. }
            | Self::Acknowledger
            | Self::Presence { .. }
            | Self::Sentry
            | Self::Keymaster
            | Self::Reloader
            | Self::KeymasterDesk
            | Self::Auditor
            | Self::Mirror
            | Self::Provisioner
            | Self::AuditProvisioner => subjects::client_inbox(self.name()),
        }
    }

    /// The account it belongs to.
    pub fn account(&self) -> AccountName {
        match self {
            Self::Presence { .. } | Self::Keymaster | Self::Reloader => AccountName::System,
            Self::Mirror | Self::AuditProvisioner => AccountName::Audit,
            Self::Auditor => AccountName::Readers,
            Self::Collector { .. } => AccountName::Collectors,
            Self::Provisioner => AccountName::Store,
            Self::Store { .. } => AccountName::Keepers,
            Self::Registrar { .. } => AccountName::Commands,
            Self::Node { .. }
            | Self::Api { .. }
            | Self::Service { .. }
            | Self::FrontDoor
            | Self::Observer
            | Self::Recorder { .. }
            | Self::Acknowledger
            | Self::Sentry
            | Self::KeymasterDesk => AccountName::Application,
        }
    }

    /// What it may do, or what is wrong with what was asked for.
    pub fn permissions(&self) -> Result<Permissions, String> {
        lists::of(self)
    }
}

#[cfg(test)]
mod tests;
