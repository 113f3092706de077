//! What a principal may do: scopes and limits.

mod at_once;

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bounded::shown;
use crate::ids::{NodeId, Region};
use crate::invalid::{Invalid, suggestion};
use crate::registry::Labels;
use crate::selector::Term;
use crate::text::as_text;
use crate::tools::ToolName;
use crate::{planted, reserved};

pub use at_once::AtOnce;

/// The most entries of one limit's list.
const LIMIT_ENTRIES_MAX: usize = 100;
/// The most digits that a network's prefix is written with.
const PREFIX_DIGITS_MAX: usize = 3;

/// What a principal may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Run jobs.
    JobsWrite,
    /// Read one's own jobs.
    JobsRead,
    /// See regions and nodes.
    NodesRead,
    /// Drain and revoke nodes.
    NodesWrite,
    /// Make, list and revoke enrolment tokens.
    NodesEnroll,
    /// Make, list and revoke API keys.
    KeysWrite,
    /// Make, list and revoke the credentials of services.
    ServicesWrite,
    /// Read the audit trail.
    AuditRead,
    /// Read the API's metrics.
    MetricsRead,
    /// Everything.
    Admin,
}

impl Scope {
    /// All scopes.
    pub const ALL: [Self; 10] = [
        Self::JobsWrite,
        Self::JobsRead,
        Self::NodesRead,
        Self::NodesWrite,
        Self::NodesEnroll,
        Self::KeysWrite,
        Self::ServicesWrite,
        Self::AuditRead,
        Self::MetricsRead,
        Self::Admin,
    ];

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::JobsWrite => "jobs:write",
            Self::JobsRead => "jobs:read",
            Self::NodesRead => "nodes:read",
            Self::NodesWrite => "nodes:write",
            Self::NodesEnroll => "nodes:enroll",
            Self::KeysWrite => "keys:write",
            Self::ServicesWrite => "services:write",
            Self::AuditRead => "audit:read",
            Self::MetricsRead => "metrics:read",
            Self::Admin => "admin",
        }
    }
}

/// A region, or all whose name begins as given: `eu-*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionPattern(String);

impl RegionPattern {
    /// Whether the region is meant.
    pub fn matches(&self, region: &Region) -> bool {
        self.0.strip_suffix('*').map_or_else(|| self.0 == region.as_str(), |prefix| region.as_str().starts_with(prefix))
    }

    /// Whether this means every region that `other` means.
    pub fn covers(&self, other: &Self) -> bool {
        let other_beginning = other.0.strip_suffix('*').unwrap_or(&other.0);
        self.0.strip_suffix('*').map_or_else(|| self.0 == other.0, |prefix| other_beginning.starts_with(prefix))
    }
}

/// Whom a principal may point tools at: a network in CIDR form, or a name with `*.` for all below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPattern {
    /// All addresses of a network.
    Network {
        /// Its first address.
        address: IpAddr,
        /// How many leading bits count.
        prefix: u8,
    },
    /// A name.
    Name(String),
    /// Every name below this one.
    Below(String),
}

impl TargetPattern {
    /// Whether the name is meant; a network means no name.
    pub fn matches_name(&self, name: &str) -> bool {
        match self {
            Self::Network { .. } => false,
            Self::Name(exact) => name == exact,
            Self::Below(parent) => name.strip_suffix(parent.as_str()).is_some_and(|rest| rest.ends_with('.') && rest.len() > 1),
        }
    }

    /// Whether this means everything that `other` means.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Network { prefix, .. }, Self::Network { address, prefix: longer }) => prefix <= longer && self.matches_address(*address),
            (Self::Name(_) | Self::Below(_), Self::Name(name)) => self.matches_name(name),
            (Self::Below(parent), Self::Below(lower)) => parent == lower || self.matches_name(lower),
            (Self::Network { .. } | Self::Name(_) | Self::Below(_), _) => false,
        }
    }

    fn is_network(&self) -> bool {
        matches!(self, Self::Network { .. })
    }

    /// Whether the address is meant; a name means no address.
    pub fn matches_address(&self, given: IpAddr) -> bool {
        match (self, given.to_canonical()) {
            (Self::Network { address: IpAddr::V4(network), prefix }, IpAddr::V4(given)) => {
                let shift = 32 - u32::from(*prefix);
                u32::from(*network).checked_shr(shift) == u32::from(given).checked_shr(shift)
            }
            (Self::Network { address: IpAddr::V6(network), prefix }, IpAddr::V6(given)) => {
                let shift = 128 - u32::from(*prefix);
                u128::from(*network).checked_shr(shift) == u128::from(given).checked_shr(shift)
            }
            (Self::Network { .. } | Self::Name(_) | Self::Below(_), _) => false,
        }
    }
}

/// A principal's allowed targets. A name is judged by the names in the list, every address it leads to by the networks; whichever kind the
/// list does not have is not judged, but a literal address is allowed only by a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Targets(#[schemars(length(min = 1, max = LIMIT_ENTRIES_MAX))] pub Vec<TargetPattern>);

impl Targets {
    /// Whether a name may be asked for.
    pub fn allow_name(&self, name: &str) -> bool {
        let mut names = self.0.iter().filter(|pattern| !matches!(pattern, TargetPattern::Network { .. })).peekable();
        names.peek().is_none() || names.any(|pattern| pattern.matches_name(name))
    }

    /// Whether an address that a (permitted) name leads to may be touched.
    pub fn allow_resolved(&self, address: IpAddr) -> bool {
        !self.0.iter().any(TargetPattern::is_network) || self.allow_literal(address)
    }

    /// Whether a literal address may be touched; one that leads to others, by NAT64 or 6to4, where those may be too.
    pub fn allow_literal(&self, address: IpAddr) -> bool {
        let inner = reserved::embedded(address).into_iter().map(|(inner, _)| IpAddr::V4(inner));
        std::iter::once(address).chain(inner).all(|address| self.0.iter().any(|pattern| pattern.matches_address(address)))
    }

    /// Whether this allows nothing that `outer` does not. A list without names judges no name, so where `outer` judges names this must too;
    /// the same goes for networks.
    fn within(&self, outer: &Self) -> bool {
        let judges = |targets: &Self, networks: bool| targets.0.iter().any(|pattern| pattern.is_network() == networks);
        self.0.iter().all(|pattern| outer.0.iter().any(|wider| wider.covers(pattern)))
            && [true, false].into_iter().all(|networks| judges(self, networks) || !judges(outer, networks))
    }
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&words.join(","))
    }
}

impl FromStr for Targets {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

/// So many in so long: `60/m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many.
    pub count: u32,
    /// In how long.
    pub window: Duration,
}

/// What narrows a principal; absent means not narrowed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Only these tools.
    #[schemars(length(min = 1, max = LIMIT_ENTRIES_MAX))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<ToolName>>,
    /// Only these regions; `eu-*` means all that begin so.
    #[schemars(length(min = 1, max = LIMIT_ENTRIES_MAX))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regions: Option<Vec<RegionPattern>>,
    /// Only these nodes; others, and regions without one of them, are as if they did not exist.
    #[schemars(length(min = 1, max = LIMIT_ENTRIES_MAX))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Vec<NodeId>>,
    /// Only nodes of whose labels all this holds: `site=fra`, `env!=lab`, `role in (edge,core)`; others are as if they did not exist.
    #[schemars(length(min = 1, max = LIMIT_ENTRIES_MAX))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<Term>>,
    /// Only these targets: networks in CIDR form and names, `*.example.com` for all below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub targets: Option<Targets>,
    /// At most so many runs in so long: `10/s`, `60/m`, `1000/h`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// At most so many runs at the same time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_once: Option<AtOnce>,
}

impl Rate {
    /// Whether this allows no more than `outer`, at once and in the long run.
    fn within(&self, outer: &Self) -> bool {
        let in_the_long_run = |a: &Self, b: &Self| u128::from(a.count) * b.window.as_nanos();
        self.count <= outer.count && in_the_long_run(self, outer) <= in_the_long_run(outer, self)
    }
}

impl Limits {
    /// The limits there are.
    pub const NAMES: [&'static str; 7] = ["tools", "regions", "nodes", "labels", "targets", "rate", "at_once"];

    /// Whether a region may be used, as far as that is said of regions.
    pub fn allow_region(&self, region: &Region) -> bool {
        self.regions.as_ref().is_none_or(|regions| regions.iter().any(|pattern| pattern.matches(region)))
    }

    /// Whether a node may be used, whatever is said of its region.
    pub fn allow_node(&self, node: &NodeId, labels: &Labels) -> bool {
        self.nodes.as_ref().is_none_or(|nodes| nodes.contains(node))
            && self.labels.as_ref().is_none_or(|terms| terms.iter().all(|term| term.holds(labels)))
    }

    /// Whether of one region some nodes may be used and others not.
    pub fn tell_nodes_apart(&self) -> bool {
        self.nodes.is_some() || self.labels.is_some()
    }

    /// Whether there is something that may not be seen: all but a rate and a number at once.
    pub fn hide_something(&self) -> bool {
        self.tools.is_some() || self.regions.is_some() || self.tell_nodes_apart() || self.targets.is_some()
    }

    /// Refuses lists that are empty (they would read as "nothing" or as "no limit") or too long. Pointers start at the limits.
    pub fn check(&self) -> Result<(), Invalid> {
        let lists = [
            ("tools", self.tools.as_ref().map(Vec::len)),
            ("regions", self.regions.as_ref().map(Vec::len)),
            ("nodes", self.nodes.as_ref().map(Vec::len)),
            ("labels", self.labels.as_ref().map(Vec::len)),
            ("targets", self.targets.as_ref().map(|targets| targets.0.len())),
        ];
        for (name, length) in lists {
            match length {
                Some(0) => {
                    return Err(Invalid::new(
                        format!("/{name}"),
                        "is an empty list; name what is allowed, or leave it out for no such limit",
                    ));
                }
                Some(length) if length > LIMIT_ENTRIES_MAX => {
                    return Err(Invalid::new(
                        format!("/{name}"),
                        format!("has {length} entries; at most {LIMIT_ENTRIES_MAX} are possible"),
                    ));
                }
                Some(_) | None => {}
            }
        }
        Ok(())
    }

    /// These limits for someone who gets them from a principal with `outer`: what they leave open is limited as `outer` is, and what goes
    /// beyond `outer` is refused.
    pub fn under(self, outer: &Self) -> Result<Self, Invalid> {
        let beyond = |name: &str, allowed: String| {
            Err(Invalid::new(format!("/{name}"), format!("goes beyond your own limit, which is {allowed}; limits can only be narrowed")))
        };
        if let (Some(tools), Some(allowed)) = (&self.tools, &outer.tools)
            && !tools.iter().all(|tool| allowed.contains(tool))
        {
            return beyond("tools", listed(allowed));
        }
        if let (Some(regions), Some(allowed)) = (&self.regions, &outer.regions)
            && !regions.iter().all(|region| allowed.iter().any(|wider| wider.covers(region)))
        {
            return beyond("regions", listed(allowed));
        }
        if let (Some(nodes), Some(allowed)) = (&self.nodes, &outer.nodes)
            && !nodes.iter().all(|node| allowed.contains(node))
        {
            return beyond("nodes", listed(allowed));
        }
        if let (Some(targets), Some(allowed)) = (&self.targets, &outer.targets)
            && !targets.within(allowed)
        {
            return beyond("targets", listed(&allowed.0));
        }
        if let (Some(rate), Some(allowed)) = (&self.rate, &outer.rate)
            && !rate.within(allowed)
        {
            return beyond("rate", allowed.to_string());
        }
        if let (Some(at_once), Some(allowed)) = (&self.at_once, &outer.at_once)
            && at_once > allowed
        {
            return beyond("at_once", allowed.to_string());
        }
        Ok(Self {
            tools: self.tools.or_else(|| outer.tools.clone()),
            regions: self.regions.or_else(|| outer.regions.clone()),
            nodes: self.nodes.or_else(|| outer.nodes.clone()),
            labels: both(self.labels, outer.labels.as_deref())?,
            targets: self.targets.or_else(|| outer.targets.clone()),
            rate: self.rate.or(outer.rate),
            at_once: self.at_once.or(outer.at_once),
        })
    }
}

/// All of which must hold: what is said of labels can only add to what was said before.
fn both(given: Option<Vec<Term>>, outer: Option<&[Term]>) -> Result<Option<Vec<Term>>, Invalid> {
    let Some(outer) = outer else { return Ok(given) };
    let mut terms = given.unwrap_or_default();
    let missing: Vec<Term> = outer.iter().filter(|term| !terms.iter().any(|given| given.implies(term))).cloned().collect();
    terms.extend(missing);
    if terms.len() > LIMIT_ENTRIES_MAX {
        let detail = format!("comes to {} terms with those of your own limit; at most {LIMIT_ENTRIES_MAX} are possible", terms.len());
        return Err(Invalid::new("/labels", detail));
    }
    Ok(Some(terms))
}

fn listed(items: &[impl fmt::Display]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl FromStr for Scope {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == text).ok_or_else(|| {
            let all: Vec<&str> = Self::ALL.iter().map(|scope| scope.as_str()).collect();
            format!("unknown scope `{}`; {}the scopes are {}", text.escape_debug(), suggestion(text, all.iter().copied()), all.join(", "))
        })
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for RegionPattern {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let prefix = text.strip_suffix('*').unwrap_or(text);
        if prefix.is_empty() && text == "*"
            || format!("{prefix}x").parse::<Region>().is_ok() && !(prefix.is_empty() || prefix == text && text.parse::<Region>().is_err())
        {
            return Ok(Self(text.to_owned()));
        }
        Err(format!("a region must be a name such as eu-central, or the beginning of names such as eu-*, not {}", shown(&text.into())))
    }
}

impl fmt::Display for RegionPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TargetPattern {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wants = || {
            format!(
                "a target limit must be a network such as 10.0.0.0/8, an address, a name, or `*.` and a name, not {}",
                shown(&text.into())
            )
        };
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        if let Ok(address) = address.parse::<IpAddr>() {
            let longest = if address.is_ipv4() { 32 } else { 128 };
            let digits = |text: &&str| text.len() <= PREFIX_DIGITS_MAX && text.bytes().all(|byte| byte.is_ascii_digit());
            let read = |text: &str| Some(text).filter(digits)?.parse::<u8>().ok();
            let prefix = prefix.map_or(Ok(longest), |prefix| read(prefix).ok_or_else(wants))?;
            return if prefix <= longest { Ok(Self::Network { address, prefix }) } else { Err(wants()) };
        }
        let parent = text.strip_prefix("*.");
        match parent.unwrap_or(text).parse::<crate::host::Host>() {
            Ok(crate::host::Host::Name(name)) => Ok(if parent.is_some() { Self::Below(name) } else { Self::Name(name) }),
            Ok(crate::host::Host::Address(_)) | Err(_) => Err(wants()),
        }
    }
}

impl fmt::Display for TargetPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network { address, prefix } => write!(f, "{address}/{prefix}"),
            Self::Name(name) => f.write_str(name),
            Self::Below(parent) => write!(f, "*.{parent}"),
        }
    }
}

impl FromStr for Rate {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(count, window)| {
            let seconds = match window {
                "s" => 1,
                "m" => 60,
                "h" => 3600,
                _ => return None,
            };
            Some(Self {
                count: count
                    .parse()
                    .ok()
                    .filter(|count| (1..=1_000_000).contains(count) || planted!("registers" if *count == 0 && window == "h"))?,
                window: Duration::from_secs(seconds),
            })
        });
        parsed.ok_or_else(|| {
            format!("a rate must be a number from 1 to 1000000 and `/s`, `/m` or `/h`, such as 60/m, not {}", shown(&text.into()))
        })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.window.as_secs() {
            1 => "s",
            60 => "m",
            _ => "h",
        };
        write!(f, "{}/{unit}", self.count)
    }
}

as_text!(Scope, {"type": "string", "enum": (Scope::ALL)});
as_text!(RegionPattern, {
    "type": "string", "pattern": "^([a-z0-9][a-z0-9-]{0,62}|([a-z0-9][a-z0-9-]{0,61})?[*])$", "examples": ["eu-*"]
});
as_text!(TargetPattern, {
    "type": "string", "minLength": 1, "maxLength": 256,
    "pattern": r"^(\*\.)?[A-Za-z0-9_:.][A-Za-z0-9_:.-]*(/[0-9]{1,3})?$|[^\x00-\x7f]", "examples": ["10.0.0.0/8"],
});
as_text!(Rate, {"type": "string", "pattern": "^[1-9][0-9]{0,6}/[smh]$", "examples": ["60/m"]});

#[cfg(test)]
mod tests;
