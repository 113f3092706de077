//! What `http` finds.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::http_url::HttpUrl;
use crate::tls::TlsSession;
use crate::tools::choice::choice;
use crate::tools::network::{Family, IcmpMessage};
use crate::tools::tcp::report::PortState;

use super::assertion::Verdict;

/// What a web server answered, request by request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HttpReport {
    /// One for each request: the first, then one for each redirect that was followed.
    pub requests: Vec<HttpRequest>,
    /// The status of the last answer; absent when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// How many redirects were followed.
    pub redirects: usize,
    /// Why the last redirect was not followed; absent when there is none left to follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect_not_followed: Option<String>,
    /// Why there is no complete answer to the last request; absent when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<HttpFailure>,
    /// What became of each assertion, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub assertions: Vec<Verdict>,
    /// All of it, in milliseconds.
    pub total_ms: f64,
}

/// One request and its answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HttpRequest {
    /// What was asked for.
    pub url: HttpUrl,
    /// By which method.
    pub method: String,
    /// The address that was connected to: the proxy's, if there is one.
    pub address: IpAddr,
    /// Its family.
    pub family: Family,
    /// The port that was connected to.
    pub port: u16,
    /// The proxy, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<HttpProxy>,
    /// What became of the connection.
    pub state: PortState,
    /// The ICMP message that said why it is not open; absent when it was the TCP of the host, or silence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<IcmpMessage>,
    /// What was agreed over TLS, and the chain; absent in clear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Box<TlsSession>>,
    /// The header lines that were sent; secret values are replaced by `***`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub request_headers: Vec<HeaderField>,
    /// The version of the answer, such as `HTTP/1.1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Its status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The words after the status; absent where the version has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// All its header fields, in HTTP/1 as they were sent, in order and case; secret values are replaced by `***`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderField>,
    /// Its body; absent when it did not get that far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<HttpBody>,
    /// How long each phase took.
    pub timings: HttpTimings,
    /// Why the answer is not complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<HttpFailure>,
}

/// How a proxy was used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HttpProxy {
    /// The proxy.
    pub url: HttpUrl,
    /// Whether through a tunnel (CONNECT); if not, the request was handed over whole.
    pub tunnel: bool,
    /// The address of the host behind it, which the tunnel leads to.
    pub address: IpAddr,
}

/// A header field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HeaderField {
    /// Its name.
    pub name: String,
    /// Its value; bytes that are no text are escaped.
    pub value: String,
}

/// A body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HttpBody {
    /// The beginning of it, after decompression; what is not UTF-8 is replaced.
    pub text: String,
    /// How many bytes were read, after decompression.
    pub size_bytes: usize,
    /// How many bytes were read before decompression; absent when there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compressed_bytes: Option<usize>,
    /// SHA-256 of what was read, after decompression, in hexadecimal.
    pub sha256: String,
    /// Whether the body goes on after what was read.
    pub truncated: bool,
}

/// How long each phase took, in milliseconds; absent what did not happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HttpTimings {
    /// To resolve the name; absent for a literal address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_ms: Option<f64>,
    /// To connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_ms: Option<f64>,
    /// Until the proxy had made the tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_ms: Option<f64>,
    /// For the TLS handshake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_ms: Option<f64>,
    /// From the request to the head of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_byte_ms: Option<f64>,
    /// From there to the end of the body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download_ms: Option<f64>,
    /// All of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_ms: Option<f64>,
}

choice! {
    /// Why there is no complete answer.
    HttpFailureCode {
        /// The port is not open.
        Connect = "connect",
        /// The proxy did not make the tunnel.
        Proxy = "proxy",
        /// The TLS handshake failed.
        Tls = "tls",
        /// It took too long.
        TimedOut = "timed_out",
        /// The answer is not HTTP, or breaks its rules.
        #[default]
        Protocol = "protocol",
        /// The server ended the connection too early.
        Closed = "closed",
        /// The body cannot be decompressed.
        Compression = "compression",
    }
}

/// Why there is no complete answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HttpFailure {
    /// Of which kind.
    pub code: HttpFailureCode,
    /// In words.
    pub detail: String,
}

choice! {
    /// How far a request has come.
    HttpPhase {
        /// It is connected.
        Connected = "connected",
        /// TLS is agreed.
        Secured = "secured",
        /// The head of the answer is there.
        Answered = "answered",
        /// It is over, one way or the other.
        #[default]
        Finished = "finished",
    }
}

/// What a run tells while it goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum HttpProgress {
    /// A phase is over.
    Phase {
        /// Which.
        phase: HttpPhase,
        /// The request as far as it is known.
        request: Box<HttpRequest>,
    },
    /// An assertion was judged.
    Assertion {
        /// Whether it holds; with a `type` of its own.
        verdict: Verdict,
    },
}
