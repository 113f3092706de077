//! A network on whose behalf a query is asked (EDNS Client Subnet, RFC 7871).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::bounded::shown;
use crate::text::inline_schema;

/// A network: an address and how many of its leading bits count. The others are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    address: IpAddr,
    prefix_length: u8,
}

impl Subnet {
    /// The address, with zeros behind the prefix.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// How many leading bits count.
    pub fn prefix_length(self) -> u8 {
        self.prefix_length
    }

    fn new(address: IpAddr, prefix_length: u8) -> Self {
        let shift = |bits: u8| u32::from(bits.saturating_sub(prefix_length));
        let address = match address {
            IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() & u32::MAX.checked_shl(shift(32)).unwrap_or(0)).into(),
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & u128::MAX.checked_shl(shift(128)).unwrap_or(0)).into(),
        };
        Self { address, prefix_length }
    }
}

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wants = || format!("must be a network such as 192.0.2.0/24 or 2001:db8::/56, not {}", shown(&text.into()));
        let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
        let address: IpAddr = address.parse().map_err(|_| wants())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let length = length.map_or(Some(longest), |length| length.parse().ok()).filter(|length| *length <= longest);
        Ok(Self::new(address, length.ok_or_else(wants)?))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_length)
    }
}

impl Serialize for Subnet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Subnet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let text = value.as_str().ok_or_else(|| {
            let given = shown(&value);
            de::Error::custom(format!("must be a network such as 192.0.2.0/24 or 2001:db8::/56, not {given}"))
        })?;
        text.parse().map_err(de::Error::custom)
    }
}

inline_schema!(Subnet, {"type": "string", "examples": ["192.0.2.0/24", "2001:db8::/56"]});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_keeps_only_its_leading_bits() {
        for (text, network) in [
            ("192.0.2.77/24", "192.0.2.0/24"),
            ("192.0.2.77", "192.0.2.77/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8:1:2:3::/56", "2001:db8:1::/56"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(text.parse::<Subnet>().unwrap().to_string(), network);
        }
        for text in ["192.0.2.0/33", "192.0.2.0/", "192.0.2.0/-1", "::/129", "example.com", "192.0.2.0/24/8"] {
            let refusal = text.parse::<Subnet>().unwrap_err();
            assert!(refusal.starts_with("must be a network such as"), "{refusal}");
        }
    }
}
