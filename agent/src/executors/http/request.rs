//! What is sent, and what is shown of it.

use bytes::Bytes;
use data_encoding::BASE64;
use http_body_util::Full;
use hyper::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, HOST, HeaderName, HeaderValue, PROXY_AUTHORIZATION, USER_AGENT};
use hyper::{Request, Version};
use probeops_shared::tools::http::HttpVersion;
use probeops_shared::tools::http::parts::{BasicAuth, concealed_value, is_secret};
use probeops_shared::tools::http::report::{HeaderField, HttpFailure, HttpFailureCode};

use super::hop::{Done, Hop};
use crate::net::http::{Speech, title_case};

impl Hop<'_> {
    /// The request, and its lines as they are shown.
    pub(super) fn request(&self, speech: Speech, done: &mut Done) -> Result<Request<Full<Bytes>>, HttpFailure> {
        let (options, url) = (self.options(), &self.next.url);
        let own_host = options.host_header.clone().filter(|_| self.is_targets_host()).unwrap_or_else(|| url.authority());
        let handed_over = done.request.proxy.as_ref().is_some_and(|proxy| !proxy.tunnel);
        let uri = match speech {
            Speech::Two => format!("{}://{own_host}{}", url.scheme().as_str(), url.path_and_query()),
            Speech::One if handed_over => url.to_string(),
            Speech::One => url.path_and_query().to_owned(),
        };
        let mut lines = Vec::new();
        if speech == Speech::One {
            lines.push((HOST, own_host));
        }
        lines.extend(self.lines(handed_over));
        let body = options.body.clone().filter(|_| self.next.with_body).unwrap_or_default();
        let version = if options.http_version == HttpVersion::V1_0 { Version::HTTP_10 } else { Version::default() };
        let mut builder = Request::builder().version(version).method(self.next.method.as_str()).uri(uri);
        for (name, value) in &lines {
            let value =
                HeaderValue::from_bytes(value.as_bytes()).map_err(|_| unsent(&format!("{name} has a value that cannot be sent")))?;
            builder = builder.header(name, value);
        }
        done.request.request_headers = lines
            .iter()
            .map(|(name, value)| HeaderField {
                name: if speech == Speech::One { title_case(name.as_str()) } else { name.to_string() },
                value: concealed_value(name.as_str(), value),
            })
            .collect();
        builder.body(Full::new(Bytes::from(body))).map_err(|error| unsent(&error.to_string()))
    }

    /// The header lines beside `Host`: ours, unless the caller has given them; credentials only to the origin that they were given for.
    fn lines(&self, handed_over: bool) -> Vec<(HeaderName, String)> {
        let options = self.options();
        let own = self.next.url.same_origin(self.run.target);
        let given = options.headers.pairs().filter(|(name, _)| own || !is_secret(name));
        let given = given.filter_map(|(name, value)| Some((HeaderName::from_bytes(name.as_bytes()).ok()?, value.to_owned())));
        let mut lines = Vec::new();
        for (name, value) in [(USER_AGENT, crate::net::USER_AGENT.to_owned()), (ACCEPT, "*/*".to_owned())] {
            if !options.headers.has(name.as_str()) {
                lines.push((name, value));
            }
        }
        if options.compression {
            lines.push((ACCEPT_ENCODING, "gzip, deflate".to_owned()));
        }
        let authorization = options.basic_auth.as_ref().map(basic);
        let authorization = authorization.or_else(|| options.bearer_token.as_ref().map(|token| format!("Bearer {}", token.expose())));
        lines.extend(authorization.filter(|_| own).map(|value| (AUTHORIZATION, value)));
        if handed_over {
            lines.extend(self.proxy_lines());
        }
        lines.extend(given);
        lines
    }

    /// The header lines for the proxy.
    pub(super) fn proxy_lines(&self) -> Vec<(HeaderName, String)> {
        let options = self.options();
        let given = options.proxy_headers.pairs();
        let given = given.filter_map(|(name, value)| Some((HeaderName::from_bytes(name.as_bytes()).ok()?, value.to_owned())));
        options.proxy_auth.as_ref().map(|auth| (PROXY_AUTHORIZATION, basic(auth))).into_iter().chain(given).collect()
    }
}

fn unsent(detail: &str) -> HttpFailure {
    HttpFailure { code: HttpFailureCode::Protocol, detail: detail.to_owned() }
}

/// RFC 7617.
fn basic(auth: &BasicAuth) -> String {
    format!("Basic {}", BASE64.encode(auth.expose().as_bytes()))
}
