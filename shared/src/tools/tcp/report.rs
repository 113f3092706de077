//! What a run of `tcp` finds.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::tls::{TlsFailure, TlsSession};
use crate::tools::choice::choice;
use crate::tools::network::{Family, IcmpMessage, Resolved};

choice! {
    /// What became of the handshake.
    PortState {
        /// It was completed.
        Open = "open",
        /// The host, or a firewall in its name, said that nothing listens there.
        Refused = "refused",
        /// Nobody answered, or somebody said that the connection is forbidden.
        #[default]
        Filtered = "filtered",
        /// The host cannot be reached.
        Unreachable = "unreachable",
    }
}

/// What became of the connections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TcpReport {
    /// The address that was asked.
    pub address: IpAddr,
    /// Its family.
    pub family: Family,
    /// How long the name took to resolve, in milliseconds; absent for a literal address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolve_ms: Option<f64>,
    /// Each port, in the order in which it became known what it is.
    pub ports: Vec<TcpPort>,
}

/// What became of the connection to one port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TcpPort {
    /// The port.
    pub port: u16,
    /// What became of the handshake.
    pub state: PortState,
    /// How long it took until the port was open or refused, in milliseconds; absent when nobody answered for the port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_ms: Option<f64>,
    /// The ICMP message that said so; absent when it was the TCP of the host, or silence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<IcmpMessage>,
    /// Why it is not open, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What became of TLS; absent unless asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Box<TcpTls>>,
    /// What the server said first; what is not printable ASCII is escaped as in `\r\n` and `\xff`. Absent unless asked for and heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub banner: Option<String>,
    /// The size of the banner; 0 when the server kept silent, absent unless asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub banner_bytes: Option<usize>,
    /// What became of what is said and expected first.
    #[serde(flatten)]
    pub first: TcpExchange,
    /// What became of what is said and expected then, as far as it went on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub then: Vec<TcpExchange>,
}

impl TcpPort {
    /// What became of all that is said and expected.
    pub fn exchanges(&self) -> impl Iterator<Item = &TcpExchange> {
        std::iter::once(&self.first).chain(&self.then)
    }
}

/// What became of something that was said and expected.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TcpExchange {
    /// How many bytes of `send` the connection took; absent unless there was something to send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_bytes: Option<usize>,
    /// What the server said after that, or at all when only something was expected; escaped like the banner, absent unless heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<String>,
    /// The size of the reply; 0 when the server kept silent, absent unless one was waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_bytes: Option<usize>,
    /// Whether the server said what was expected; absent unless something was, or when the port is not open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<TcpExpectation>,
    /// What became of TLS, where it begins after that; absent unless asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starttls: Option<Box<TcpTls>>,
}

impl TcpExchange {
    /// Whether the server did not say what was expected, or did not go over to TLS.
    pub fn has_failed(&self) -> bool {
        self.expect.as_ref().is_some_and(|expect| !expect.matched) || self.starttls.as_ref().is_some_and(|tls| tls.failure.is_some())
    }
}

/// What became of TLS on a connection. Whom one cannot trust is talked to all the same: that is a finding, not a failure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TcpTls {
    /// How long the handshake of TLS took, in milliseconds; absent when it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handshake_ms: Option<f64>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<TlsFailure>,
    /// What was agreed, what the server presented, and what is to be thought of it.
    #[serde(flatten)]
    pub session: TlsSession,
}

/// Whether what was expected was found in the reply.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TcpExpectation {
    /// Whether it was.
    pub matched: bool,
    /// What was found, escaped like the reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
    /// What the groups of the regular expression caught, in their order, escaped; null for a group that took no part.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Option<String>>,
}

/// What a run tells while it goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TcpProgress {
    /// Where the target is.
    Resolved(Resolved),
    /// A port is open, and there is more to find out.
    Open {
        /// The address.
        address: IpAddr,
        /// The port.
        port: u16,
        /// How long the handshake took, in milliseconds.
        connect_ms: f64,
    },
    /// One of several things was said, and answered as it should be or not.
    Exchange {
        /// The address.
        address: IpAddr,
        /// The port.
        port: u16,
        /// Which, from 0.
        number: usize,
        /// What became of it.
        #[serde(flatten)]
        exchange: Box<TcpExchange>,
    },
    /// All that is asked of a port is known.
    Port {
        /// The address.
        address: IpAddr,
        /// What became of it.
        #[serde(flatten)]
        report: Box<TcpPort>,
    },
}
