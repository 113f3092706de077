//! Whom the owner of this node lets tools touch.
//!
//! The owner's file always wins; callers and the control plane can only narrow it. Addresses are judged as they will really be connected to,
//! after a name was resolved, in every disguise. `rules` is the file, `keeper` what reads it again when it changes, `endpoints` the node's own
//! servers, `surroundings` what changes while the node runs: its addresses and those of its servers; `explain` and `command` say why.

pub mod command;
mod endpoints;
mod explain;
pub(crate) mod keeper;
mod rules;
pub(crate) mod surroundings;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use probeops_shared::reserved::{self, Reserved};
use probeops_shared::settings::{self, SettingsError};
use probeops_shared::tools::ToolName;

pub(crate) use endpoints::Endpoint;
use rules::{Entry, Rules};
use surroundings::Surroundings;

/// The owner's rules and the node's own endpoints.
#[derive(Debug)]
pub struct Policy {
    rules: Rules,
    endpoints: Vec<Endpoint>,
    /// The owner's file and what it says, to tell of its lines.
    file: PathBuf,
    text: String,
}

/// Why something is denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Denial {
    why: String,
    /// So many bytes after the beginning of the owner's file, where it comes from there.
    at: Option<usize>,
}

impl Denial {
    fn always(why: impl Into<String>) -> Self {
        Self { why: why.into(), at: None }
    }

    fn by<T>(rule: &Entry<T>, why: String) -> Self {
        Self { why, at: Some(rule.at) }
    }

    /// By a list that does not have it; where it begins, unless it is empty.
    fn unlisted<T>(list: &[Entry<T>], why: impl Into<String>) -> Self {
        Self { why: why.into(), at: list.first().map(|rule| rule.at) }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// Why there is no policy.
#[derive(Debug)]
pub enum PolicyError {
    /// The owner's file cannot be used.
    File(SettingsError),
    /// The address of the broker or the API cannot be read, so it could not be protected.
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
        match path {
            Some(path) => Self::new(&settings::read(path).map_err(PolicyError::File)?, path, servers),
            None => Self::new("", Path::new("(none)"), servers),
        }
    }

    /// Reads the text of the owner's file, and remembers the broker's addresses.
    fn new(text: &str, file: &Path, servers: &[String]) -> Result<Self, PolicyError> {
        let rules: Rules = settings::parse(text, file).map_err(PolicyError::File)?;
        let servers = servers.iter().map(|server| Endpoint::of_server(server).map_err(PolicyError::Server));
        let endpoints = servers.chain(rules.deny.endpoints.iter().cloned().map(Ok)).collect::<Result<_, _>>()?;
        Ok(Self { rules, endpoints, file: file.to_owned(), text: text.to_owned() })
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
    pub(crate) fn check_tool(&self, tool: ToolName) -> Result<(), Denial> {
        if let Some(rule) = self.rules.deny.tools.iter().find(|rule| rule.what == tool) {
            return Err(Denial::by(rule, format!("the tool {tool} is in deny.tools")));
        }
        match &self.rules.allow.tools {
            Some(allowed) if !allowed.iter().any(|rule| rule.what == tool) => {
                Err(Denial::unlisted(allowed, format!("the tool {tool} is not in allow.tools")))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Whether the name is not denied; what another leads to need not be allowed by name, too.
    pub(crate) fn check_denied_name(&self, name: &str) -> Result<(), Denial> {
        match self.rules.deny.names.iter().find(|rule| rule.what.matches(name)) {
            Some(rule) => Err(Denial::by(rule, format!("`{rule}` is in deny.names"))),
            None => Ok(()),
        }
    }

    /// Whether the name may be asked for.
    pub(crate) fn check_name(&self, name: &str) -> Result<(), Denial> {
        self.check_denied_name(name)?;
        match &self.rules.allow.names {
            Some(allowed) if !allowed.iter().any(|rule| rule.what.matches(name)) => {
                Err(Denial::unlisted(allowed, "it is not in allow.names"))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Whether the name is that of one of the node's own servers on this port, whatever it resolves to.
    pub(crate) fn check_endpoint_name(&self, name: &str, port: Option<u16>) -> Result<(), Denial> {
        match self.endpoints.iter().find(|own| port == Some(own.port) && own.host.to_string() == name) {
            Some(own) => Err(Denial::always(own.denial())),
            None => Ok(()),
        }
    }

    /// Whether the address may be touched.
    pub(crate) fn check_address(&self, touch: Touch, surroundings: &Surroundings) -> Result<(), Denial> {
        let disguised = reserved::embedded(touch.address).into_iter().map(|(inner, disguise)| (IpAddr::V4(inner), Some(disguise)));
        for (address, disguise) in std::iter::once((touch.address, None)).chain(disguised) {
            let touch = Touch { address, ..touch };
            let judged = self.check_denials(touch, surroundings).and_then(|()| self.check_allowed_network(touch));
            judged.map_err(|denial| match disguise {
                Some(disguise) => Denial { why: format!("it leads to {address} ({disguise}); {denial}"), ..denial },
                None => denial,
            })?;
        }
        touch.port.map_or(Ok(()), |port| self.check_port(port))
    }

    fn check_denials(&self, touch: Touch, surroundings: &Surroundings) -> Result<(), Denial> {
        let Touch { address, port, .. } = touch;
        match Reserved::of(address) {
            None | Some(Reserved::Loopback) if surroundings.is_here(address) => self.check_here(address)?,
            Some(reserved) => return Err(Denial::always(format!("{reserved} is always denied"))),
            None if surroundings.is_broadcast(address) => {
                return Err(Denial::always("the broadcast address of one of its networks is always denied"));
            }
            None => {}
        }
        let excused = |own: IpAddr| port.is_none() && own.is_loopback() && self.rules.allows_loopback();
        let hit = surroundings.endpoints().iter().find(|(_, own)| !excused(own.ip()) && surroundings.reaches(address, port, *own));
        if let Some((endpoint, _)) = hit {
            return Err(Denial::always(endpoint.denial()));
        }
        match self.rules.deny.networks.iter().find(|rule| rule.what.contains(address)) {
            Some(rule) => Err(Denial::by(rule, format!("{rule} is in deny.networks"))),
            None => Ok(()),
        }
    }

    /// Whether this machine itself may be touched, by this address of it.
    fn check_here(&self, address: IpAddr) -> Result<(), Denial> {
        if self.rules.allows_loopback() {
            return Ok(());
        }
        let what = if address.is_loopback() { "loopback is denied" } else { "it is this machine itself, denied like loopback" };
        let why = format!("{what} unless the node's owner sets allow_loopback = true");
        Err(Denial { why, at: self.rules.allow_loopback.map(|given| given.at) })
    }

    /// A name that `allow.names` has is judged by `allow.networks` only if there are any; a literal address needs a network as soon as either
    /// list exists, for otherwise a list of names would mean nothing.
    fn check_allowed_network(&self, touch: Touch) -> Result<(), Denial> {
        match (&self.rules.allow.networks, &self.rules.allow.names) {
            (Some(allowed), _) if allowed.iter().any(|rule| rule.what.contains(touch.address)) => Ok(()),
            (Some(allowed), _) => Err(Denial::unlisted(allowed, "it is in none of allow.networks")),
            (None, Some(names)) if !touch.named => {
                Err(Denial::unlisted(names, "only the names in allow.names may be used here, no addresses"))
            }
            (None, Some(_) | None) => Ok(()),
        }
    }

    fn check_port(&self, port: u16) -> Result<(), Denial> {
        if let Some(rule) = self.rules.deny.ports.iter().find(|rule| rule.what.contains(port)) {
            return Err(Denial::by(rule, format!("port {rule} is in deny.ports")));
        }
        match &self.rules.allow.ports {
            Some(allowed) if !allowed.iter().any(|rule| rule.what.contains(port)) => {
                Err(Denial::unlisted(allowed, format!("port {port} is not in allow.ports")))
            }
            Some(_) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
