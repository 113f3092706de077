//! The owner's file.
//!
//! ```toml
//! allow_loopback = true            # this machine itself, by whichever of its addresses; denied unless set
//!
//! [allow]                          # what is listed here narrows: a list that is absent allows everything of its kind
//! networks = ["10.0.0.0/8", "2001:db8::/32"]
//! names = ["*.corp.example", "example.com"]
//! ports = [22, 443, "8000-8100"]
//! tools = ["ping", "dns", "tcp"]
//!
//! [deny]                           # wins over [allow]
//! networks = ["10.66.0.0/16"]
//! names = ["*.bank.example"]
//! ports = [25]
//! tools = ["tcp"]
//! endpoints = ["api.example:8443"] # servers of the node's own, denied like its broker
//! ```

use std::fmt::{self, Write as _};
use std::net::IpAddr;

use ipnet::IpNet;
use probeops_shared::access::TargetPattern;
use probeops_shared::planted;
use probeops_shared::reserved::Reserved;
use probeops_shared::tools::ToolName;
use serde::{Deserialize, Deserializer, de};
use toml::Spanned;

use super::endpoints::Endpoint;

/// How many entries of a list the summary shows.
const SUMMARY_ENTRIES_MAX: usize = 5;

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Rules {
    pub(super) allow_loopback: Option<Entry<bool>>,
    pub(super) allow: Allow,
    pub(super) deny: Deny,
}

/// What may be touched.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Allow {
    #[serde(deserialize_with = "allowed_networks")]
    pub(super) networks: Option<Vec<Entry<Network>>>,
    pub(super) names: Option<Vec<Entry<NameRule>>>,
    pub(super) ports: Option<Vec<Entry<Ports>>>,
    pub(super) tools: Option<Vec<Entry<ToolName>>>,
}

/// What may not.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Deny {
    pub(super) networks: Vec<Entry<Network>>,
    pub(super) names: Vec<Entry<NameRule>>,
    pub(super) ports: Vec<Entry<Ports>>,
    pub(super) tools: Vec<Entry<ToolName>>,
    pub(super) endpoints: Vec<Endpoint>,
}

/// What stands in the file, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry<T> {
    pub(super) what: T,
    /// So many bytes after the beginning.
    pub(super) at: usize,
}

impl<T: fmt::Display> fmt::Display for Entry<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.what.fmt(f)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entry<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::deserialize(deserializer)?;
        let at = spanned.span().start;
        Ok(Self { what: spanned.into_inner(), at })
    }
}

impl Rules {
    /// Whether this machine itself may be touched.
    pub(super) fn allows_loopback(&self) -> bool {
        self.allow_loopback.is_some_and(|given| given.what)
    }

    /// The rules in one line.
    pub(super) fn summary(&self) -> String {
        let loopback = if self.allows_loopback() { "allows loopback" } else { "denies loopback" };
        let mut text = format!("{loopback}; denies link-local, metadata, multicast, broadcast, its own servers");
        let (allow, deny) = (&self.allow, &self.deny);
        for (kind, allowed) in [
            ("networks", allow.networks.as_deref().map(listed)),
            ("names", allow.names.as_deref().map(listed)),
            ("ports", allow.ports.as_deref().map(listed)),
            ("tools", allow.tools.as_deref().map(listed)),
        ] {
            if let Some(list) = allowed {
                let _ = write!(text, "; only {kind} {list}");
            }
        }
        for (kind, denied) in [
            ("networks", deny.networks.first().map(|_| listed(&deny.networks))),
            ("names", deny.names.first().map(|_| listed(&deny.names))),
            ("ports", deny.ports.first().map(|_| listed(&deny.ports))),
            ("tools", deny.tools.first().map(|_| listed(&deny.tools))),
            ("endpoints", deny.endpoints.first().map(|_| listed(&deny.endpoints))),
        ] {
            if let Some(list) = denied {
                let _ = write!(text, "; no {kind} {list}");
            }
        }
        text
    }
}

fn listed<T: fmt::Display>(entries: &[T]) -> String {
    if entries.is_empty() {
        return "(none)".to_owned();
    }
    let shown: Vec<String> = entries.iter().take(SUMMARY_ENTRIES_MAX).map(ToString::to_string).collect();
    let more = entries.len().saturating_sub(SUMMARY_ENTRIES_MAX);
    if more > 0 { format!("{} and {more} more", shown.join(", ")) } else { shown.join(", ") }
}

/// A network, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Network(IpNet);

impl Network {
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }

    pub(super) fn net(&self) -> IpNet {
        self.0
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        let network =
            network.map_err(|_| de::Error::custom(format!("must be a network such as 10.0.0.0/8 or an address, not `{text}`")))?;
        if network.network() != network.addr() {
            let meant = network.trunc();
            return Err(de::Error::custom(format!("`{text}` has bits set beyond its prefix; write {meant} for the network")));
        }
        Ok(Self(network))
    }
}

fn allowed_networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Entry<Network>>>, D::Error> {
    let networks: Option<Vec<Entry<Network>>> = Option::deserialize(deserializer)?;
    for Entry { what: network, .. } in networks.iter().flatten() {
        let (first, last) = (Reserved::of(network.0.network()), Reserved::of(network.0.broadcast()));
        if let Some(reserved) = first.filter(|first| last == Some(*first) && *first != Reserved::Loopback) {
            return Err(de::Error::custom(format!("{network} cannot be allowed: {reserved} is always denied")));
        }
    }
    Ok(networks)
}

/// A name, or `*.` and the name above.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NameRule(TargetPattern);

impl NameRule {
    pub(super) fn matches(&self, name: &str) -> bool {
        self.0.matches_name(name)
    }
}

impl fmt::Display for NameRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for NameRule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.parse() {
            Ok(TargetPattern::Below(name)) if planted!("policy" if text.bytes().any(|byte| byte.is_ascii_uppercase())) => {
                Ok(Self(TargetPattern::Name(name)))
            }
            Ok(pattern @ (TargetPattern::Name(_) | TargetPattern::Below(_))) => Ok(Self(pattern)),
            Ok(TargetPattern::Network { .. }) | Err(_) => {
                Err(de::Error::custom(format!("must be a name such as example.com or *.example.com, not `{text}`")))
            }
        }
    }
}

/// A port, or all from one to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ports {
    first: u16,
    last: u16,
}

impl Ports {
    pub(super) fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    fn new(first: u16, last: u16) -> Option<Self> {
        (first > 0 && first <= last).then_some(Self { first, last })
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PortsVisitor)
    }
}

struct PortsVisitor;

impl de::Visitor<'_> for PortsVisitor {
    type Value = Ports;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a port such as 443, or a range such as \"8000-8100\"")
    }

    fn visit_i64<E: de::Error>(self, port: i64) -> Result<Ports, E> {
        let port = u16::try_from(port).ok().and_then(|port| Ports::new(port, port));
        port.ok_or_else(|| E::custom("a port must be from 1 to 65535"))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Ports, E> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let ports = first.trim().parse().ok().zip(last.trim().parse().ok()).and_then(|(first, last)| Ports::new(first, last));
        ports.ok_or_else(|| E::custom(format!("must be a port such as 443, or a range such as \"8000-8100\", not `{text}`")))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn parse(text: &str) -> Result<Rules, String> {
        probeops_shared::settings::parse(text, Path::new("policy.toml")).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn refuses(text: &str, message: &str) {
        assert_eq!(parse(text).unwrap_err(), message);
    }

    #[test]
    fn the_file_that_the_package_brings_changes_nothing_and_all_that_it_shows_is_right() {
        let shipped = include_str!("../../dist/policy.toml");
        assert_eq!(parse(shipped).unwrap().summary(), Rules::default().summary());
        // A comment for people has a space after its sign, a setting has none.
        let shown = shipped.lines().filter(|line| !line.starts_with("# ")).map(|line| line.trim_start_matches('#'));
        let shown = parse(&shown.collect::<Vec<_>>().join("\n")).unwrap();
        assert!(
            shown.allow.networks.is_some() && shown.allow.names.is_some() && shown.allow.ports.is_some() && shown.allow.tools.is_some()
        );
    }

    #[test]
    fn what_is_wrong_in_the_file_is_named_with_its_line() {
        refuses(
            "alow_loopback = true\n",
            "policy.toml line 1: `alow_loopback`: unknown key `alow_loopback`; did you mean `allow_loopback`? the keys are allow_loopback, allow, deny",
        );
        let in_list = |text: &str, part: &str| {
            let message = parse(text).unwrap_err();
            assert!(message.starts_with("policy.toml line 2: ") && message.contains(part), "{message}");
        };
        in_list("[allow]\nnetworks = [\"10.0.0.0/33\"]\n", "must be a network such as 10.0.0.0/8 or an address, not `10.0.0.0/33`");
        in_list("[deny]\nnetworks = [\"10.0.0.1/8\"]\n", "write 10.0.0.0/8");
        in_list("[allow]\nnetworks = [\"169.254.0.0/16\"]\n", "cannot be allowed: a link-local address");
        in_list("[allow]\nports = [0]\n", "from 1 to 65535");
        in_list("[allow]\nports = [\"9-8\"]\n", "not `9-8`");
        in_list("[allow]\ntools = [\"pnig\"]\n", "did you mean `ping`?");
        in_list("[deny]\nnames = [\"10.0.0.1\"]\n", "must be a name such as example.com");
        in_list("[deny]\nendpoints = [\"api.example\"]\n", "must be HOST:PORT");
    }

    #[test]
    fn the_summary_is_one_line() {
        let none = "denies loopback; denies link-local, metadata, multicast, broadcast, its own servers";
        assert_eq!(parse("").unwrap().summary(), none);
        let text =
            "allow_loopback = true\n[allow]\nnetworks = [\"10.0.0.0/8\"]\nports = [443, \"8000-8100\"]\n[deny]\nports = [1,2,3,4,5,6,7]\n";
        assert_eq!(
            parse(text).unwrap().summary(),
            "allows loopback; denies link-local, metadata, multicast, broadcast, its own servers; only networks 10.0.0.0/8; \
             only ports 443, 8000-8100; no ports 1, 2, 3, 4, 5 and 2 more"
        );
    }
}
