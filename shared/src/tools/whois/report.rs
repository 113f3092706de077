//! What a run of `whois` finds.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::registered::RegisteredKind;
use crate::tools::choice::choice;

choice! {
    /// How a registry is asked.
    Registry {
        /// RDAP: JSON over HTTP (RFC 9082, RFC 9083).
        #[default]
        Rdap = "rdap",
        /// WHOIS: text over TCP (RFC 3912).
        Whois = "whois",
    }
}

/// What registries say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WhoisReport {
    /// What was looked up.
    pub kind: RegisteredKind,
    /// How the answer was got; absent when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Registry>,
    /// Whether it is registered; absent when no registry said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registered: Option<bool>,
    /// What the registries say of it, put together: the registry's own word first, then what a registrar adds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<WhoisRecord>,
    /// Every server that was asked, in order, with its answer as it came.
    pub queries: Vec<WhoisQuery>,
}

/// What is said of a domain, a network or an autonomous system. What a registry does not say is absent; times are as the registry writes them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct WhoisRecord {
    /// The registry's own identifier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handle: Option<String>,
    /// The domain, or the name of the network or autonomous system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// First and last address, or number, as in `192.0.2.0 - 192.0.2.255`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<String>,
    /// The same as prefixes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<String>,
    /// Who holds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub organization: Option<String>,
    /// The country of whoever holds it, or where the network is used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub country: Option<String>,
    /// Through whom a domain is registered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registrar: Option<String>,
    /// The registrar's number at IANA.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registrar_iana_id: Option<String>,
    /// Where abuse is reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abuse_email: Option<String>,
    /// The same by telephone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abuse_phone: Option<String>,
    /// When it was registered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// When its record was last changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updated: Option<String>,
    /// When the registration ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// Its statuses, such as `clientTransferProhibited`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub statuses: Vec<String>,
    /// The name servers of a domain, lower case.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub name_servers: Vec<String>,
    /// Whether its delegation is signed (DNSSEC).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dnssec: Option<bool>,
}

impl WhoisRecord {
    /// Whether nothing is said at all.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes over from another what this does not say.
    pub fn complete(&mut self, other: Self) {
        let fill = |own: &mut Option<String>, other: Option<String>| {
            if own.is_none() {
                *own = other;
            }
        };
        fill(&mut self.handle, other.handle);
        fill(&mut self.name, other.name);
        fill(&mut self.range, other.range);
        fill(&mut self.organization, other.organization);
        fill(&mut self.country, other.country);
        fill(&mut self.registrar, other.registrar);
        fill(&mut self.registrar_iana_id, other.registrar_iana_id);
        fill(&mut self.abuse_email, other.abuse_email);
        fill(&mut self.abuse_phone, other.abuse_phone);
        fill(&mut self.created, other.created);
        fill(&mut self.updated, other.updated);
        fill(&mut self.expires, other.expires);
        for (own, other) in
            [(&mut self.prefixes, other.prefixes), (&mut self.statuses, other.statuses), (&mut self.name_servers, other.name_servers)]
        {
            if own.is_empty() {
                *own = other;
            }
        }
        self.dnssec = self.dnssec.or(other.dnssec);
    }
}

choice! {
    /// What became of asking a server.
    WhoisStatus {
        /// It has an entry.
        Found = "found",
        /// It has none.
        NotFound = "not_found",
        /// It says that another server knows more.
        Referral = "referral",
        /// It was not asked: the node may not touch it.
        Denied = "denied",
        /// It was not asked: its name has no address.
        Unresolved = "unresolved",
        /// It could not be reached, or did not answer in time.
        Unreachable = "unreachable",
        /// It answered with something that is no answer.
        #[default]
        Failed = "failed",
    }
}

/// One server that was asked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WhoisQuery {
    /// How.
    pub protocol: Registry,
    /// Which server: a URL for RDAP, a name or address for WHOIS.
    pub server: String,
    /// Its address; absent when it has none that may be touched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// What was asked for: the line that was sent; absent for RDAP, where the URL says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// What became of it.
    pub status: WhoisStatus,
    /// The status of HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_status: Option<u16>,
    /// How long connecting, asking and answering took, in milliseconds; absent when there was no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<f64>,
    /// The server that it refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub referral: Option<String>,
    /// Why there is no answer, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The size of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<usize>,
    /// Whether the answer was longer than is kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// The answer of WHOIS, as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The answer of RDAP, as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<Value>,
}

/// What a run tells while it goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum WhoisProgress {
    /// A server is about to be asked.
    Asking {
        /// How.
        protocol: Registry,
        /// Which.
        server: String,
        /// Its address.
        address: IpAddr,
    },
    /// What became of asking it.
    Answer {
        /// What it says.
        record: Option<Box<WhoisRecord>>,
        /// The whole of it.
        #[serde(flatten)]
        query: Box<WhoisQuery>,
    },
}
