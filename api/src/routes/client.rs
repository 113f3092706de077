//! From which address somebody asks, as far as it is known.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

/// How a connection came.
#[derive(Clone, Copy, Debug)]
pub(crate) enum CameBy {
    /// Over TLS that ends here, from this address.
    Tls(IpAddr),
    /// In clear text, which is for this machine and a proxy in front: that says from where.
    ClearText,
}

/// The address of the client; none where a proxy in front says none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client(pub(super) Option<IpAddr>);

impl<S: Sync> FromRequestParts<S> for Client {
    type Rejection = Infallible;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(match parts.extensions.get::<CameBy>() {
            Some(CameBy::Tls(address)) => Some(*address),
            Some(CameBy::ClearText) => {
                // The proxy's own word is the last; what stands before it anybody may have written.
                let last = parts.headers.get_all("x-forwarded-for").iter().next_back().and_then(|value| value.to_str().ok());
                last.and_then(|said| address(said.rsplit(',').next()?.trim()))
            }
            None => None,
        }))
    }
}

/// As proxies write it: some with the port.
fn address(text: &str) -> Option<IpAddr> {
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    text.trim_matches(['[', ']']).parse().ok().or_else(with_port)
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    async fn client(came_by: CameBy, said: &[&str]) -> Option<String> {
        let mut request = Request::builder().extension(came_by);
        for said in said {
            request = request.header("x-forwarded-for", *said);
        }
        let Client(address) = Client::from_request_parts(&mut request.body(()).unwrap().into_parts().0, &()).await.unwrap();
        address.map(|address| address.to_string())
    }

    #[tokio::test]
    async fn the_word_of_a_proxy_counts_in_clear_text_only_and_only_the_last() {
        let tls = CameBy::Tls("192.0.2.1".parse().unwrap());
        assert_eq!(client(tls, &["198.51.100.1"]).await.as_deref(), Some("192.0.2.1"));
        for (said, address) in [
            (&["198.51.100.1"][..], Some("198.51.100.1")),
            (&["203.0.113.9, 198.51.100.1"], Some("198.51.100.1")),
            (&["203.0.113.9", "198.51.100.1:4711"], Some("198.51.100.1")),
            (&["[2001:db8::1]:443"], Some("2001:db8::1")),
            (&["2001:db8::1"], Some("2001:db8::1")),
            (&["unknown"], None),
            (&[], None),
        ] {
            assert_eq!(client(CameBy::ClearText, said).await.as_deref(), address, "{said:?}");
        }
    }
}
