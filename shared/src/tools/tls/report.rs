//! What `tls` finds.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::tls::{TlsFailure, TlsSession, TlsVersion};
use crate::tools::choice::choice;
use crate::tools::network::{Family, IcmpMessage, Resolved};
use crate::tools::tcp::PortState;

/// What a server shows of itself. The fields of the session are here too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TlsReport {
    /// The address that was connected to.
    pub address: IpAddr,
    /// Its family.
    pub family: Family,
    /// The port.
    pub port: u16,
    /// What became of the connection.
    pub state: PortState,
    /// The ICMP message that said why it is not open; absent when it was the TCP of the host, or silence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<IcmpMessage>,
    /// Why it is not open, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How far the handshake went.
    pub handshake: Handshake,
    /// Why it went no further; absent when it was completed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<TlsFailure>,
    /// What was agreed and shown.
    #[serde(flatten)]
    pub session: TlsSession,
    /// Which versions the server accepts, newest first; absent unless asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versions: Option<Vec<VersionOffer>>,
    /// How long it all took.
    pub timings: TlsTimings,
}

choice! {
    /// How far a handshake went.
    Handshake {
        /// To its end.
        Completed = "completed",
        /// The server chose a version and a cipher and showed its certificates; we do not speak that version or cipher.
        Shown = "shown",
        /// Nowhere.
        #[default]
        Failed = "failed",
    }
}

/// What a server says to one version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VersionOffer {
    /// The version.
    pub version: TlsVersion,
    /// Whether the server took it.
    pub accepted: bool,
    /// The cipher suite it chose, by its IANA name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cipher: Option<String>,
    /// Why it did not take it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<TlsFailure>,
}

/// How long each part took, in milliseconds; absent what did not happen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TlsTimings {
    /// To resolve the name; absent for a literal address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolve_ms: Option<f64>,
    /// To connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_ms: Option<f64>,
    /// To get to TLS in the protocol that begins in clear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starttls_ms: Option<f64>,
    /// For the handshake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_ms: Option<f64>,
    /// All of it, with the versions that were tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_ms: Option<f64>,
}

/// What a run tells while it goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TlsProgress {
    /// Where the target is.
    Resolved(Resolved),
    /// The port is open.
    Connected {
        /// How long that took, in milliseconds.
        connect_ms: f64,
    },
    /// The protocol that begins in clear has gone over to TLS.
    StartedTls {
        /// How long that took, in milliseconds.
        starttls_ms: f64,
    },
    /// The handshake is over.
    Handshake(Box<TlsReport>),
    /// A version has been tried.
    Version(VersionOffer),
}
