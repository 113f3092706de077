//! What the tools that touch the network have in common.

use std::net::IpAddr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::bounded::shown;
use crate::host::Host;
use crate::invalid::Invalid;
use crate::text::inline_schema;
use crate::tools::choice::choice;

/// The longest a node tries to find the addresses of a name.
pub const RESOLUTION_MAX: Duration = Duration::from_secs(5);
/// What a budget adds to the sum of a tool's own waits, so that the last of them ends before the budget does.
pub const BUDGET_SLACK: Duration = Duration::from_millis(500);
/// The longest a run may be planned to take.
const RUN_MAX: Duration = Duration::from_mins(5);

/// Refuses a plan that takes too long. `plan` says what takes that long, as far as its seconds; `lower` which options would shorten it, and
/// `option` the one of them that is to blame.
pub(crate) fn check_duration(longest: Duration, option: &str, plan: impl FnOnce() -> String, lower: &str) -> Result<(), Invalid> {
    if longest <= RUN_MAX {
        return Ok(());
    }
    let (plan, longest, most) = (plan(), longest.as_secs(), RUN_MAX.as_secs());
    Err(Invalid::new(format!("/parameters/{option}"), format!("{plan} {longest} s; a run may take at most {most} s, so lower {lower}")))
}

choice! {
    /// A version of the Internet Protocol.
    Family {
        /// IPv4.
        #[default]
        V4 = "4",
        /// IPv6.
        V6 = "6",
    }
}

choice! {
    /// Which of the addresses that a name has to use.
    FamilyChoice {
        /// Whichever address comes first.
        #[default]
        Any = "any",
        /// IPv4 only.
        V4 = "4",
        /// IPv6 only.
        V6 = "6",
        /// IPv4, and IPv6 where there is no such address that may be touched.
        Prefer4 = "prefer_4",
        /// IPv6, and IPv4 where there is no such address that may be touched.
        Prefer6 = "prefer_6",
    }
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl FamilyChoice {
    /// The choice for what is sent from this source: its family, where one is given.
    #[must_use]
    pub fn from_source(self, source: Option<Source>) -> Self {
        match source.map(Source::family) {
            Some(Family::V4) => Self::V4,
            Some(Family::V6) => Self::V6,
            None => self,
        }
    }

    /// The family outside of which nothing will do.
    pub fn only(self) -> Option<Family> {
        match self {
            Self::V4 => Some(Family::V4),
            Self::V6 => Some(Family::V6),
            Self::Any | Self::Prefer4 | Self::Prefer6 => None,
        }
    }

    /// Refuses a literal address of the other family.
    pub(crate) fn check(self, host: &Host) -> Result<(), Invalid> {
        match host.address() {
            Some(address) if !self.includes(address.to_canonical()) => {
                let detail =
                    format!("{address} is an IPv{} address; leave `family` out, or set it to \"any\"", Family::of(address.to_canonical()));
                Err(Invalid::new("/parameters/family", detail))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Whether the address will do.
    pub fn includes(self, address: IpAddr) -> bool {
        self.only().is_none_or(|only| only == Family::of(address))
    }

    /// Which place an address has among others by its family: the lower the better.
    pub fn rank(self, address: IpAddr) -> u8 {
        match self {
            Self::Any | Self::V4 | Self::V6 => 0,
            Self::Prefer4 => u8::from(address.is_ipv6()),
            Self::Prefer6 => u8::from(address.is_ipv4()),
        }
    }
}

/// An address of the node to send from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source(IpAddr);

impl Source {
    /// The address.
    pub fn address(self) -> IpAddr {
        self.0
    }

    /// The family to send in: that of the source.
    pub fn family(self) -> Family {
        Family::of(self.0)
    }

    /// Refuses a source from which nothing can be sent to the target, or to an address of the family asked for.
    pub(crate) fn check(self, family: FamilyChoice, target: &Host) -> Result<(), Invalid> {
        let wanted = target.address().map(|address| Family::of(address.to_canonical())).or(family.only());
        let own = self.family();
        let Some(wanted) = wanted.filter(|wanted| *wanted != own) else { return Ok(()) };
        let detail = format!("{} is an IPv{own} address, from which nothing can be sent over IPv{wanted}; give one of IPv{wanted}", self.0);
        Err(Invalid::new("/parameters/source", detail))
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Source {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let address = value.as_str().and_then(|text| text.parse::<IpAddr>().ok()).map(|address| Self(address.to_canonical()));
        address.ok_or_else(|| {
            de::Error::custom(format!("must be an address of the node, such as 192.0.2.1 or 2001:db8::1, not {}", shown(&value)))
        })
    }
}

inline_schema!(Source, {"type": "string", "pattern": "^[0-9A-Fa-f:.]+$", "examples": ["192.0.2.1", "2001:db8::1"]});

/// An ICMP message that somebody on the way, or the target, answered with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IcmpMessage {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: u8,
    /// Its code.
    pub code: u8,
    /// Who sent it; absent when the system did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<IpAddr>,
    /// The MTU of the link that the packet was too big for, where the message says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu_bytes: Option<u32>,
    /// What type and code mean.
    pub meaning: String,
}

impl IcmpMessage {
    /// A message of this type and code about a packet to an address of `family`.
    pub fn new(family: Family, kind: u8, code: u8, from: Option<IpAddr>) -> Self {
        Self { kind, code, from, mtu_bytes: None, meaning: meaning(family, kind, code) }
    }

    /// The same, saying which MTU the packet was too big for.
    #[must_use]
    pub fn with_mtu(self, mtu_bytes: u32) -> Self {
        // ping(8) puts it in brackets for IPv4 only.
        let meaning =
            if self.kind == 3 { format!("{} (mtu = {mtu_bytes})", self.meaning) } else { format!("{}: mtu={mtu_bytes}", self.meaning) };
        Self { mtu_bytes: Some(mtu_bytes), meaning, ..self }
    }

    /// Whether it says that the packet was too big for the way (RFC 792 *fragmentation needed*, RFC 4443 *packet too big*).
    pub fn is_too_big(&self, family: Family) -> bool {
        if family == Family::V6 { self.kind == 2 } else { (self.kind, self.code) == (3, 4) }
    }

    /// Whether a router says that the packet's time to live ended there (RFC 792 *time to live exceeded in transit*, RFC 4443 *hop limit
    /// exceeded in transit*).
    pub fn is_expired(&self, family: Family) -> bool {
        (self.kind, self.code) == if family == Family::V6 { (3, 0) } else { (11, 0) }
    }

    /// Whether it says that a filter on the way forbids the packet.
    pub fn is_prohibition(&self, family: Family) -> bool {
        match family {
            Family::V6 => self.kind == 1 && matches!(self.code, 1 | 5 | 6),
            Family::V4 => self.kind == 3 && matches!(self.code, 9 | 10 | 13),
        }
    }

    /// Whether it says that the host is there and nothing listens on the port.
    pub fn is_port_unreachable(&self, family: Family) -> bool {
        (self.kind, self.code) == if family == Family::V6 { (1, 4) } else { (3, 3) }
    }
}

/// The words that ping(8) has for it.
fn meaning(family: Family, kind: u8, code: u8) -> String {
    let words = match family {
        Family::V6 => meaning_v6(kind, code),
        Family::V4 => meaning_v4(kind, code),
    };
    words.map_or_else(|| format!("ICMP type {kind}, code {code}"), str::to_owned)
}

fn meaning_v6(kind: u8, code: u8) -> Option<&'static str> {
    Some(match (kind, code) {
        (1, 0) => "Destination unreachable: No route",
        (1, 1) => "Destination unreachable: Administratively prohibited",
        (1, 2) => "Destination unreachable: Beyond scope of source address",
        (1, 3) => "Destination unreachable: Address unreachable",
        (1, 4) => "Destination unreachable: Port unreachable",
        (1, 5) => "Destination unreachable: Source address failed ingress/egress policy",
        (1, 6) => "Destination unreachable: Reject route to destination",
        (2, _) => "Packet too big",
        (3, 0) => "Time exceeded: Hop limit",
        (3, 1) => "Time exceeded: Defragmentation failure",
        (4, _) => "Parameter problem",
        _ => return None,
    })
}

fn meaning_v4(kind: u8, code: u8) -> Option<&'static str> {
    Some(match (kind, code) {
        (3, 0) => "Destination Net Unreachable",
        (3, 1) => "Destination Host Unreachable",
        (3, 2) => "Destination Protocol Unreachable",
        (3, 3) => "Destination Port Unreachable",
        (3, 4) => "Frag needed and DF set",
        (3, 5) => "Source Route Failed",
        (3, 6) => "Destination Net Unknown",
        (3, 7) => "Destination Host Unknown",
        (3, 8) => "Source Host Isolated",
        (3, 9) => "Destination Net Prohibited",
        (3, 10) => "Destination Host Prohibited",
        (3, 11) => "Destination Net Unreachable for Type of Service",
        (3, 12) => "Destination Host Unreachable for Type of Service",
        (3, 13) => "Packet filtered",
        (3, 14) => "Precedence Violation",
        (3, 15) => "Precedence Cutoff",
        (4, _) => "Source Quench",
        (5, _) => "Redirect",
        (11, 0) => "Time to live exceeded",
        (11, 1) => "Frag reassembly time exceeded",
        (12, _) => "Parameter problem",
        _ => return None,
    })
}

/// A label that a packet bore in an MPLS network (RFC 3032).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MplsLabel {
    /// The label.
    pub label: u32,
    /// Its traffic class, formerly "experimental bits".
    pub traffic_class: u8,
    /// Whether it is the innermost.
    pub bottom: bool,
    /// Its time to live.
    pub ttl: u8,
}

/// A measured duration in milliseconds, to the microsecond: more digits would only be noise.
pub fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000_000.0).round() / 1000.0
}

/// The address that a run will touch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Resolved {
    /// The address.
    pub address: IpAddr,
    /// Its family.
    pub family: Family,
    /// How long the name took to resolve, in milliseconds; absent for a literal address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolve_ms: Option<f64>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_word_that_is_no_choice_is_refused_with_the_choices() {
        assert_eq!(serde_json::from_value::<FamilyChoice>(json!("6")).unwrap(), FamilyChoice::V6);
        let error = serde_json::from_value::<FamilyChoice>(json!(4)).unwrap_err().to_string();
        assert_eq!(error, "must be one of \"any\", \"4\", \"6\", \"prefer_4\", \"prefer_6\", not 4");
    }

    #[test]
    fn a_preference_orders_addresses_and_excludes_none() {
        let (v4, v6) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
        for (choice, order) in [(FamilyChoice::Any, [v4, v6]), (FamilyChoice::Prefer4, [v4, v6]), (FamilyChoice::Prefer6, [v6, v4])] {
            let mut addresses = [v4, v6];
            addresses.sort_by_key(|address| choice.rank(*address));
            assert_eq!(addresses, order, "{choice}");
            assert!(choice.includes(v4) && choice.includes(v6) && choice.check(&Host::Address(v4)).is_ok(), "{choice}");
        }
        assert!(FamilyChoice::V6.includes(v6) && !FamilyChoice::V6.includes(v4) && FamilyChoice::V6.check(&Host::Address(v4)).is_err());
        let source: Source = serde_json::from_value(json!("192.0.2.9")).unwrap();
        let to: Host = "example.com".parse().unwrap();
        assert!(source.check(FamilyChoice::Prefer6, &to).is_ok() && source.check(FamilyChoice::V6, &to).is_err());
        assert_eq!(FamilyChoice::Prefer6.from_source(Some(source)), FamilyChoice::V4);
    }

    #[test]
    fn prohibition_and_closed_ports_are_told_from_other_errors() {
        let of = |family, kind, code| IcmpMessage::new(family, kind, code, None);
        assert!(of(Family::V4, 3, 13).is_prohibition(Family::V4) && !of(Family::V4, 3, 1).is_prohibition(Family::V4));
        assert!(of(Family::V6, 1, 1).is_prohibition(Family::V6) && of(Family::V6, 1, 4).is_port_unreachable(Family::V6));
        assert!(of(Family::V4, 3, 3).is_port_unreachable(Family::V4) && !of(Family::V6, 3, 3).is_port_unreachable(Family::V6));
        assert_eq!(of(Family::V6, 3, 0).meaning, "Time exceeded: Hop limit");
        assert_eq!(of(Family::V4, 42, 1).meaning, "ICMP type 42, code 1");
    }

    #[test]
    fn a_duration_is_rounded_to_the_microsecond() {
        assert!((ms(Duration::from_nanos(1_234_567)) - 1.235).abs() < f64::EPSILON);
    }
}
