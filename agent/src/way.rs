//! The way to the broker: straight, or through an HTTP proxy.
//!
//! The client library makes its own connections and takes none from elsewhere. Where a proxy stands between, it is led to a forwarder inside
//! this process, which asks the proxy for a tunnel, checks who is at its end, speaks TLS with the broker itself under the broker's own name,
//! and carries what the library says. The loopback sees it in clear, as this process does, and only its own user is let in.

pub mod authorities;
pub(crate) mod dial;
mod forwarder;
pub(crate) mod proxy;
pub(crate) mod server;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::Client;
use probeops_nats::connect::{Link, LinkError, LinkEvent, connect_through};
use tokio::sync::mpsc;

use crate::policy::Endpoint;
use forwarder::Forwarder;
use proxy::Proxies;
use server::Server;

/// How long what was said last may take to leave.
const CLOSED_WITHIN: Duration = Duration::from_secs(5);

/// What stood in the way last.
type Obstacle = Arc<Mutex<Option<String>>>;

/// How the broker is reached.
#[derive(Debug)]
pub(crate) struct Way {
    link: Link,
    /// Where the client library connects: the broker's own addresses, or those of forwarders.
    addresses: Vec<String>,
    forwarders: Vec<Forwarder>,
    /// The proxies on the way.
    proxies: Vec<Endpoint>,
    obstacle: Obstacle,
}

impl Way {
    /// Opens what is needed to reach the servers of a link.
    pub(crate) async fn open(link: Link, proxies: &Proxies) -> Result<Self, String> {
        let mut way = Self { addresses: Vec::new(), forwarders: Vec::new(), proxies: Vec::new(), obstacle: Obstacle::default(), link };
        for text in way.link.servers.clone() {
            let server: Server = text.parse()?;
            let Some(proxy) = proxies.of(&server.endpoint) else {
                way.addresses.push(text);
                continue;
            };
            tracing::info!(server = text, %proxy, "the broker is reached through a proxy");
            let endpoint = proxy.endpoint().clone();
            let forwarder = Forwarder::open(server, proxy, way.link.ca.clone(), Arc::clone(&way.obstacle));
            let forwarder =
                forwarder.await.map_err(|error| format!("cannot listen on the loopback, for the way through the proxy: {error}"))?;
            way.addresses.push(forwarder.address().to_owned());
            way.forwarders.push(forwarder);
            if !way.proxies.contains(&endpoint) {
                way.proxies.push(endpoint);
            }
        }
        Ok(way)
    }

    /// The servers, the credential and the authorities.
    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    /// What tools must keep away from, besides the broker.
    pub(crate) fn endpoints(&self) -> Vec<Endpoint> {
        self.proxies.iter().cloned().chain(self.forwarders.iter().map(Forwarder::endpoint)).collect()
    }

    /// Connects; an error says what the proxy or the broker behind it said, if they did.
    pub(crate) async fn connect(&self, name: &str, inbox_prefix: &str) -> Result<(Client, mpsc::Receiver<LinkEvent>), LinkError> {
        drop(self.obstacle());
        connect_through(&self.link, &self.addresses, name, inbox_prefix).await.map_err(|error| match (error, self.obstacle()) {
            (LinkError::Unreachable(_), Some(obstacle)) => LinkError::Unreachable(obstacle),
            (error, _) => error,
        })
    }

    /// Carries on what was said, and then closes.
    pub(crate) async fn close(self) {
        for forwarder in self.forwarders {
            if tokio::time::timeout(CLOSED_WITHIN, forwarder.close()).await.is_err() {
                tracing::warn!("the last messages may not have reached the broker through the proxy");
            }
        }
    }

    fn obstacle(&self) -> Option<String> {
        self.obstacle.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
