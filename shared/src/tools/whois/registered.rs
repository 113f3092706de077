//! What registries know: names, addresses and the numbers of networks.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::bounded::shown;
use crate::host::Host;
use crate::text::inline_schema;
use crate::tools::choice::choice;

/// A domain name, an address, or the number of an autonomous system written as `AS64500`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Registered {
    /// A domain in ASCII form, without a final dot.
    Domain(String),
    /// An address.
    Address(IpAddr),
    /// An autonomous system (RFC 6793).
    AutonomousSystem(u32),
}

choice! {
    /// What kind of thing was looked up.
    RegisteredKind {
        /// A domain name.
        #[default]
        Domain = "domain",
        /// An address, and so the network it belongs to.
        Address = "address",
        /// An autonomous system.
        AutonomousSystem = "autonomous_system",
    }
}

impl Registered {
    /// Its kind.
    pub fn kind(&self) -> RegisteredKind {
        match self {
            Self::Domain(_) => RegisteredKind::Domain,
            Self::Address(_) => RegisteredKind::Address,
            Self::AutonomousSystem(_) => RegisteredKind::AutonomousSystem,
        }
    }

    /// The path of its RDAP object below a server's address (RFC 9082, 3.1).
    pub fn rdap_path(&self) -> String {
        match self {
            Self::Domain(name) => format!("domain/{name}"),
            Self::Address(address) => format!("ip/{address}"),
            Self::AutonomousSystem(number) => format!("autnum/{number}"),
        }
    }
}

impl fmt::Display for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Domain(name) => f.write_str(name),
            Self::Address(address) => address.fmt(f),
            Self::AutonomousSystem(number) => write!(f, "AS{number}"),
        }
    }
}

impl FromStr for Registered {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(format!("{} is a bare number; write the number of an autonomous system as AS{text}", shown(&text.into())));
        }
        // What it is shows in its ASCII form, without a final dot: that is what is asked for.
        let name = match text.parse()? {
            Host::Address(address) => return Ok(Self::Address(address)),
            Host::Name(name) => name,
        };
        match name.strip_prefix("as").filter(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())) {
            Some(number) => {
                let number = number.parse().map_err(|_| format!("{} is not a number from AS0 to AS4294967295", shown(&text.into())))?;
                Ok(Self::AutonomousSystem(number))
            }
            None => Ok(Self::Domain(name)),
        }
    }
}

inline_schema!(Registered, {
    "type": "string",
    "description": "A domain name, an IPv4 or IPv6 address, or an autonomous system such as AS64500.",
    "examples": ["example.com", "192.0.2.1", "AS64500"],
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_addresses_and_numbers_are_told_apart() {
        let parse = |text: &str| text.parse::<Registered>().unwrap();
        assert_eq!(parse("Example.COM."), Registered::Domain("example.com".to_owned()));
        assert_eq!(parse("com"), Registered::Domain("com".to_owned()));
        assert_eq!(parse("b\u{fc}cher.example").rdap_path(), "domain/xn--bcher-kva.example");
        assert_eq!(parse("2001:db8::1").rdap_path(), "ip/2001:db8::1");
        assert_eq!(parse("as64500"), Registered::AutonomousSystem(64_500));
        assert_eq!(parse("AS64500."), Registered::AutonomousSystem(64_500));
        assert_eq!(parse("AS4294967295").rdap_path(), "autnum/4294967295");
        assert_eq!(parse("as.example").kind(), RegisteredKind::Domain);
    }

    #[test]
    fn what_would_be_more_than_a_line_or_an_option_is_refused() {
        let refused = |text: &str| text.parse::<Registered>().unwrap_err();
        assert!(refused("-h example").contains("spaces") && refused("-V").contains("starts with `-`"));
        assert!(refused("example.com\r\nquit").contains("control characters"));
        assert!(refused("64500").ends_with("write the number of an autonomous system as AS64500"));
        assert!(refused("AS4294967296").contains("is not a number from AS0"));
    }
}
