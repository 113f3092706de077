//! What each kind of credential may do, computed from the subjects. Only allow-lists.
//!
//! What keeps it airtight: what any node may publish and what any node may subscribe are disjoint over all nodes, and no node has a response
//! grant; no stream keeps a subject that a node can publish; whoever answers a node can publish to inboxes of nodes only, and whoever answers
//! a service at the front door to inboxes where no node answers; nobody but the caller subscribes its inbox; nodes have no rights in the broker's own APIs.

pub mod lists;

use probeops_shared::ids::{Caller, NodeId, OBSERVER, Region};
use probeops_shared::subjects;
use probeops_shared::tools::ToolName;

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
    /// A replica of the API.
    Api {
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
    /// A command of the operator: changes the registers of nodes, services and keys, and says so in the trail; lasts minutes.
    Registrar {
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
    /// Where replicas of the API ask the keymaster; can publish to their inboxes and nowhere else.
    KeymasterDesk,
    /// Reads the audit trail.
    Auditor,
    /// A server of another operator that keeps a copy of the audit trail, which comes over a leaf connection.
    Mirror,
    /// Makes and changes streams and buckets of the application account; not kept online.
    Provisioner,
    /// Makes and changes the stream of the audit trail; not kept online.
    AuditProvisioner,
}

/// An account of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AccountName {
    /// The servers themselves.
    System,
    /// Jobs, nodes, buckets.
    Application,
    /// The audit trail.
    Audit,
}

impl AccountName {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::System, Self::Application, Self::Audit];

    /// Its name, in claims and of its files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "SYS",
            Self::Application => "APP",
            Self::Audit => "AUDIT",
        }
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
            Self::Api { caller } => caller.to_string(),
            Self::Service { name, .. } | Self::Registrar { name } | Self::Collector { name } => name.to_string(),
            Self::FrontDoor => "frontdoor".to_owned(),
            Self::Observer => OBSERVER.to_owned(),
            Self::Acknowledger => "acknowledger".to_owned(),
            Self::Presence { .. } => "presence".to_owned(),
            Self::Sentry => "sentry".to_owned(),
            Self::Keymaster => "keymaster".to_owned(),
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
            | Self::FrontDoor
            | Self::Registrar { .. }
            | Self::Collector { .. }
            | Self::Acknowledger
            | Self::Presence { .. }
            | Self::Sentry
            | Self::Keymaster
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
            Self::Presence { .. } | Self::Keymaster => AccountName::System,
            Self::Auditor | Self::Mirror | Self::AuditProvisioner => AccountName::Audit,
            Self::Node { .. }
            | Self::Api { .. }
            | Self::Service { .. }
            | Self::FrontDoor
            | Self::Observer
            | Self::Registrar { .. }
            | Self::Collector { .. }
            | Self::Acknowledger
            | Self::Sentry
            | Self::KeymasterDesk
            | Self::Provisioner => AccountName::Application,
        }
    }

    /// What it may do, or what is wrong with what was asked for.
    pub fn permissions(&self) -> Result<Permissions, String> {
        lists::of(self)
    }
}

#[cfg(test)]
mod tests;
