//! The closed set of problem codes (RFC 9457 problems of the HTTP API). Statuses are picked by the API.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What kind of problem an HTTP answer reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request is malformed; `errors` says where.
    Invalid,
    /// No credential, or one that is not accepted.
    Unauthorized,
    /// The credential lacks a scope or is limited to something else.
    Forbidden,
    /// There is no such thing, or it is somebody else's.
    NotFound,
    /// No node was ever granted this region.
    NoSuchRegion,
    /// There is no node of this id.
    NoSuchNode,
    /// Nodes are known, but none that can run this is online.
    NoNodeAvailable,
    /// The path exists, but not with this method.
    MethodNotAllowed,
    /// The path and query are too long.
    UriTooLong,
    /// The headers are too large, or too many.
    HeadersTooLarge,
    /// The body is too large.
    TooLarge,
    /// The body is not JSON by its content type.
    UnsupportedMediaType,
    /// The request took too long to arrive.
    RequestTimeout,
    /// The principal's rate is used up.
    RateLimited,
    /// Something this request needs already exists or is in another state.
    Conflict,
    /// The request has the form that it should have and cannot be all the same: fields contradict each other, or a text is not what it should be
    /// inside; `errors` says where.
    Unprocessable,
    /// The idempotency key was used for another request.
    IdempotencyMismatch,
    /// The broker cannot be reached, or too much is going on.
    Unavailable,
    /// A fault of ours; `request_id` finds it in the log.
    Internal,
}

impl Code {
    /// All codes.
    pub const ALL: [Self; 19] = [
        Self::Invalid,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::NoSuchRegion,
        Self::NoSuchNode,
        Self::NoNodeAvailable,
        Self::MethodNotAllowed,
        Self::UriTooLong,
        Self::HeadersTooLarge,
        Self::TooLarge,
        Self::UnsupportedMediaType,
        Self::RequestTimeout,
        Self::RateLimited,
        Self::Conflict,
        Self::Unprocessable,
        Self::IdempotencyMismatch,
        Self::Unavailable,
        Self::Internal,
    ];

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::NoSuchRegion => "no_such_region",
            Self::NoSuchNode => "no_such_node",
            Self::NoNodeAvailable => "no_node_available",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::UriTooLong => "uri_too_long",
            Self::HeadersTooLarge => "headers_too_large",
            Self::TooLarge => "too_large",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::RequestTimeout => "request_timeout",
            Self::RateLimited => "rate_limited",
            Self::Conflict => "conflict",
            Self::Unprocessable => "unprocessable",
            Self::IdempotencyMismatch => "idempotency_mismatch",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }
}
