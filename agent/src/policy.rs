//! Whom the owner of this node lets tools touch.
//!
//! The owner's file always wins; callers and the control plane can only narrow it. Addresses are judged as they will really be connected to,
//! after a name was resolved, in every disguise. `rules` is the file, `endpoints` the node's own
//! servers, `surroundings` what changes while the node runs: its addresses and those of its servers.

mod endpoints;
mod rules;
pub(crate) mod surroundings;

use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use probeops_shared::reserved::{self, Reserved};
use probeops_shared::settings::{self, SettingsError};
use probeops_shared::tools::ToolName;

pub(crate) use endpoints::Endpoint;
use rules::Rules;
use surroundings::Surroundings;

/// The owner's rules and the node's own endpoints.
#[derive(Debug)]
pub struct Policy {
    rules: Rules,
    endpoints: Vec<Endpoint>,
}

/// Why there is no policy.
#[derive(Debug)]
pub enum PolicyError {
    /// The owner's file cannot be used.
    File(SettingsError),
    /// A broker's address cannot be read, so it could not be protected.
    Server(String),
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(error) => error.fmt(f),
            Self::Server(detail) => f.write_str(detail),
        }
    }
}

impl std::error::Error for PolicyError {}

/// An address that a tool is about to touch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Touch {
    /// The address, v4-mapped ones as IPv4.
    pub(crate) address: IpAddr,
    /// The port, for tools that have one.
    pub(crate) port: Option<u16>,
    /// Whether a (permitted) name led to it.
    pub(crate) named: bool,
}

impl Policy {
    /// Reads the owner's file, if there is one, and remembers the broker's addresses.
    pub fn load(path: Option<&Path>, servers: &[String]) -> Result<Self, PolicyError> {
        let rules: Rules = settings::load_if_given(path).map_err(PolicyError::File)?;
        let servers = servers.iter().map(|server| Endpoint::of_server(server).map_err(PolicyError::Server));
        let endpoints = servers.chain(rules.deny.endpoints.iter().cloned().map(Ok)).collect::<Result<_, _>>()?;
        Ok(Self { rules, endpoints })
    }

    /// The same, with more that tools must keep away from.
    #[must_use]
    pub(crate) fn keeping_away_from(mut self, endpoints: Vec<Endpoint>) -> Self {
        self.endpoints.extend(endpoints);
        self
    }

    /// The policy in one line.
    pub fn summary(&self) -> String {
        self.rules.summary()
    }

    /// The node's own servers.
    pub(crate) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Whether the tool may be used at all.
    pub(crate) fn check_tool(&self, tool: ToolName) -> Result<(), String> {
        if self.rules.deny.tools.contains(&tool) {
            return Err(format!("the tool {tool} is in deny.tools"));
        }
        match &self.rules.allow.tools {
            Some(allowed) if !allowed.contains(&tool) => Err(format!("the tool {tool} is not in allow.tools")),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether the name is not denied; what another leads to need not be allowed by name, too.
    pub(crate) fn check_denied_name(&self, name: &str) -> Result<(), String> {
        match self.rules.deny.names.iter().find(|rule| rule.matches(name)) {
            Some(rule) => Err(format!("`{rule}` is in deny.names")),
            None => Ok(()),
        }
    }

    /// Whether the name may be asked for.
    pub(crate) fn check_name(&self, name: &str) -> Result<(), String> {
        self.check_denied_name(name)?;
        match &self.rules.allow.names {
            Some(allowed) if !allowed.iter().any(|rule| rule.matches(name)) => Err("it is not in allow.names".to_owned()),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether the name is that of one of the node's own servers on this port, whatever it resolves to.
    pub(crate) fn check_endpoint_name(&self, name: &str, port: Option<u16>) -> Result<(), String> {
        match self.endpoints.iter().find(|own| port == Some(own.port) && own.host.to_string() == name) {
            Some(own) => Err(own.denial()),
            None => Ok(()),
        }
    }

    /// Whether the address may be touched.
    pub(crate) fn check_address(&self, touch: Touch, surroundings: &Surroundings) -> Result<(), String> {
        let disguised = reserved::embedded(touch.address).into_iter().map(|(inner, disguise)| (IpAddr::V4(inner), Some(disguise)));
        for (address, disguise) in std::iter::once((touch.address, None)).chain(disguised) {
            self.check_denials(Touch { address, ..touch }, surroundings)
                .map_err(|rule| disguise.map_or_else(|| rule.clone(), |disguise| format!("it leads to {address} ({disguise}); {rule}")))?;
        }
        self.check_allowed_network(touch)?;
        touch.port.map_or(Ok(()), |port| self.check_port(port))
    }

    fn check_denials(&self, touch: Touch, surroundings: &Surroundings) -> Result<(), String> {
        let Touch { address, port, .. } = touch;
        match Reserved::of(address) {
            Some(Reserved::Loopback) if self.rules.allow_loopback => {}
            Some(Reserved::Loopback) => return Err("loopback is denied unless the node's owner sets allow_loopback = true".to_owned()),
            Some(reserved) => return Err(format!("{reserved} is always denied")),
            None if surroundings.is_broadcast(address) => {
                return Err("the broadcast address of one of its networks is always denied".to_owned());
            }
            None => {}
        }
        let excused = |own: IpAddr| port.is_none() && own.is_loopback() && self.rules.allow_loopback;
        let hit = surroundings.endpoints().iter().find(|(_, own)| !excused(own.ip()) && surroundings.reaches(address, port, *own));
        if let Some((endpoint, _)) = hit {
            return Err(endpoint.denial());
        }
        match self.rules.deny.networks.iter().find(|network| network.contains(address)) {
            Some(network) => Err(format!("{network} is in deny.networks")),
            None => Ok(()),
        }
    }

    /// A name that `allow.names` has is judged by `allow.networks` only if there are any; a literal address needs a network as soon as either
    /// list exists, for otherwise a list of names would mean nothing.
    fn check_allowed_network(&self, touch: Touch) -> Result<(), String> {
        match &self.rules.allow.networks {
            Some(allowed) if allowed.iter().any(|network| network.contains(touch.address)) => Ok(()),
            Some(_) => Err("it is in none of allow.networks".to_owned()),
            None if self.rules.allow.names.is_some() && !touch.named => {
                Err("only the names in allow.names may be used here, no addresses".to_owned())
            }
            None => Ok(()),
        }
    }

    fn check_port(&self, port: u16) -> Result<(), String> {
        if let Some(rule) = self.rules.deny.ports.iter().find(|rule| rule.contains(port)) {
            return Err(format!("port {rule} is in deny.ports"));
        }
        match &self.rules.allow.ports {
            Some(allowed) if !allowed.iter().any(|rule| rule.contains(port)) => Err(format!("port {port} is not in allow.ports")),
            Some(_) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
