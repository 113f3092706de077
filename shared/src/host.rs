//! Whom a tool is pointed at: an address or a name, checked once.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use crate::bounded::shown;
use crate::planted;
use crate::text::as_text;

/// The longest name DNS can carry, without the final dot (RFC 1035, 2.3.4).
const NAME_LENGTH_MAX: usize = 253;
/// What may stand in a host; what is beyond ASCII, IDNA knows alone.
const HOST_PATTERN: &str = "^[A-Za-z0-9_:.][A-Za-z0-9_:.-]*$|[^\\x00-\\x7f]";
/// The same of a name to ask for.
const DNS_NAME_PATTERN: &str = "^[A-Za-z0-9_:.*/][A-Za-z0-9_:.*/-]*$|[^\\x00-\\x7f]";
/// The longest label (RFC 1035, 2.3.4).
const LABEL_LENGTH_MAX: usize = 63;

/// A host: an IPv4 or IPv6 address, or a host name in its ASCII form (A-labels, RFC 5891).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A literal address.
    Address(IpAddr),
    /// A name to resolve at the node, lower case, without a final dot.
    Name(String),
}

impl Host {
    /// As people write whom a run has touched: the name and its address, or the address alone where it was given as one.
    pub fn with_address(&self, address: IpAddr) -> String {
        match self {
            Self::Address(_) => self.to_string(),
            Self::Name(name) => format!("{name} ({address})"),
        }
    }

    /// The address, when it is a literal one.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Address(address) => Some(*address),
            Self::Name(_) => None,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        refuse_what_is_no_host(text)?;
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let name = ascii_name(text.strip_suffix('.').unwrap_or(text), &['-', '_'])?;
        let last = name.rsplit('.').next().unwrap_or_default();
        // What inet_aton(3) and browsers read as a number is no name, whatever its dots say.
        if last.bytes().all(|byte| byte.is_ascii_digit())
            || (last.starts_with("0x")
                && last.bytes().skip(2).all(|byte| byte.is_ascii_hexdigit())
                && !planted!("target" if last.len() > 4))
        {
            return Err(format!(
                "{} is not a host name but a number form of an address; write it as four decimal numbers, such as 192.0.2.1",
                shown(&text.into())
            ));
        }
        for label in name.split('.') {
            if label.starts_with('-') || label.ends_with('-') {
                return Err(format!("{} has a label that starts or ends with `-`: `{label}`", shown(&text.into())));
            }
        }
        Ok(Self::Name(name))
    }
}

/// A name to ask the DNS for: any labels, underscores too, or `.` for the root; or an address, for its reverse name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DnsName {
    /// An address (asked for as its name under in-addr.arpa or ip6.arpa).
    Address(IpAddr),
    /// A name in ASCII form, without a final dot; empty for the root.
    Name(String),
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) if name.is_empty() => f.write_str("."),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl FromStr for DnsName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        refuse_what_is_no_host(text)?;
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        match text {
            "." => Ok(Self::Name(String::new())),
            // Wildcards, and the delegations of parts of a reverse zone (RFC 2317).
            _ => ascii_name(text.strip_suffix('.').unwrap_or(text), &['-', '_', '*', '/']).map(Self::Name),
        }
    }
}

/// Gives the common mistakes their own words.
fn refuse_what_is_no_host(text: &str) -> Result<(), String> {
    const WANTS: &str = "give an address such as 192.0.2.1 or 2001:db8::1, or a name such as example.com";
    let given = shown(&text.into());
    if text.is_empty() {
        return Err(format!("a target is required; {WANTS}"));
    }
    if text.chars().any(char::is_control) {
        return Err(format!("{given} has control characters in it; {WANTS}"));
    }
    if text.chars().any(char::is_whitespace) {
        return Err(format!("{given} has spaces in it; {WANTS}"));
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        return Err(format!("{given} is a {scheme} URL; give only its host: {host}"));
    }
    if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).filter(|inner| inner.parse::<Ipv6Addr>().is_ok()) {
        return Err(format!("{given} is in brackets; write the address without them: {inner}"));
    }
    if text.split_once('%').is_some_and(|(address, _)| address.parse::<Ipv6Addr>().is_ok()) {
        return Err(format!("{given} has a zone id, which means something only on one machine; {WANTS}"));
    }
    if text.starts_with('-') {
        return Err(format!("{given} starts with `-`; {WANTS}"));
    }
    Ok(())
}

/// The name in lower-case A-labels; every label 1 to 63 long, 253 in all, of letters, digits and `others`.
fn ascii_name(text: &str, others: &[char]) -> Result<String, String> {
    let given = shown(&text.into());
    if text.is_ascii() && text.len() > NAME_LENGTH_MAX {
        return Err(format!("a name is at most {NAME_LENGTH_MAX} characters long, this one has {}", text.len()));
    }
    let name = if text.is_ascii() {
        text.to_ascii_lowercase()
    } else {
        idna::domain_to_ascii(text).map_err(|_| format!("{given} is not a valid internationalised name (IDNA, UTS 46)"))?
    };
    if name.len() > NAME_LENGTH_MAX {
        return Err(format!("a name is at most {NAME_LENGTH_MAX} characters long, this one has {} in its ASCII form", name.len()));
    }
    for label in name.split('.') {
        if label.is_empty() {
            return Err(format!("{given} has an empty label (two dots in a row, or a dot at the start)"));
        }
        if label.len() > LABEL_LENGTH_MAX {
            return Err(format!(
                "a label is at most {LABEL_LENGTH_MAX} characters long, `{}…` has {}",
                label.chars().take(20).collect::<String>(),
                label.len()
            ));
        }
        if let Some(odd) = label.chars().find(|c| !(c.is_ascii_alphanumeric() || others.contains(c))) {
            let others: Vec<String> = others.iter().map(|other| format!("`{other}`")).collect();
            return Err(format!("{given} has `{odd}` in it; a name is made of letters, digits, {} and dots", others.join(", ")));
        }
    }
    Ok(name)
}

as_text!(Host, {"type": "string", "minLength": 1, "maxLength": 254, "pattern": HOST_PATTERN, "description": "An IPv4 or IPv6 address, or a host name."});
as_text!(DnsName, {
    "type": "string",
    "minLength": 1,
    "maxLength": 254,
    "pattern": DNS_NAME_PATTERN,
    "description": "A name to ask the DNS for (`.` is the root), or an address to ask for by its reverse name."
});

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refuses(text: &str, part: &str) {
        let detail = text.parse::<Host>().unwrap_err();
        assert!(detail.contains(part), "{text:?}: {detail}");
    }

    #[test]
    fn addresses_and_names_are_hosts() {
        for (text, printed) in [
            ("192.0.2.1", "192.0.2.1"),
            ("2001:DB8::1", "2001:db8::1"),
            ("Example.COM.", "example.com"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("localhost", "localhost"),
            ("a_b.example", "a_b.example"),
        ] {
            assert_eq!(text.parse::<Host>().unwrap().to_string(), printed);
        }
    }

    #[test]
    fn each_common_mistake_has_its_own_words() {
        refuses("", "required");
        refuses("a b", "spaces");
        refuses("a\0b", "control characters");
        refuses("https://example.com/x", "give only its host: example.com");
        refuses("[::1]", "without them: ::1");
        refuses("fe80::1%eth0", "zone id");
        refuses("-x", "starts with `-`");
        refuses("a..b", "empty label");
        refuses(&format!("{}.{}", "a".repeat(64), "b"), "has 64");
        refuses(&"a".repeat(254), "at most 253");
        refuses("example.com:80", "`:`");
    }

    #[test]
    fn number_forms_of_addresses_are_no_names() {
        for text in ["2130706433", "0x7f.1", "127.1", "0177.0.0.1", "0x7f000001", "127.0.0.1.."] {
            assert!(text.parse::<Host>().is_err(), "{text}");
        }
    }

    #[test]
    fn dns_asks_for_names_that_are_no_hosts() {
        for (text, printed) in [
            (".", "."),
            ("_sip._tcp.example.com", "_sip._tcp.example.com"),
            ("com", "com"),
            ("192.0.2.1", "192.0.2.1"),
            ("a.1", "a.1"),
            ("*.example.com", "*.example.com"),
            ("1.0/25.2.0.192.in-addr.arpa", "1.0/25.2.0.192.in-addr.arpa"),
        ] {
            assert_eq!(text.parse::<DnsName>().unwrap().to_string(), printed);
        }
    }
}
