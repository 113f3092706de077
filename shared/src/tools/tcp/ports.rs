//! A few ports, written as a list of numbers and ranges.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::bounded::shown;
use crate::text::inline_schema;

/// How many ports one run may try: enough to see what a host offers, too few to sweep it.
pub const PORTS_MAX: usize = 20;

/// Ports in the order in which they are tried, each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports(Vec<u16>);

impl Ports {
    /// The ports.
    pub fn as_slice(&self) -> &[u16] {
        &self.0
    }
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut ports = Vec::new();
        for part in text.split(',').map(str::trim) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let wrong =
                || format!("{} has {} in it, which is no port or range of ports; {WANTS}", shown(&text.into()), shown(&part.into()));
            let (first, last) = (port(first).ok_or_else(wrong)?, port(last).ok_or_else(wrong)?);
            if first > last {
                return Err(format!("the range {part} runs backwards; write {last}-{first}"));
            }
            for port in first..=last {
                if !ports.contains(&port) {
                    ports.push(port);
                }
                if ports.len() > PORTS_MAX {
                    return Err(format!("{} is more than {PORTS_MAX} ports, the most that one run tries", shown(&text.into())));
                }
            }
        }
        Ok(Self(ports))
    }
}

const WANTS: &str = "write numbers from 0 to 65535 and ranges of them, such as 22,80,8000-8010";

fn port(text: &str) -> Option<u16> {
    text.trim().parse().ok()
}

/// Neighbours are drawn together to ranges.
impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let follows = |before: &u16, after: &u16| before.checked_add(1) == Some(*after);
        for (index, run) in self.0.chunk_by(follows).enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match run {
                [first, .., last] => write!(f, "{comma}{first}-{last}")?,
                [one] => write!(f, "{comma}{one}")?,
                [] => {}
            }
        }
        Ok(())
    }
}

impl Serialize for Ports {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => text.parse().map_err(de::Error::custom),
            other => Err(de::Error::custom(format!("must be a string, not {}; {WANTS}", shown(&other)))),
        }
    }
}

inline_schema!(Ports, {"type": "string", "pattern": "^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$", "examples": ["22,80,8000-8010"]});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_ranges_are_read_in_their_order_and_each_port_once() {
        let ports: Ports = "443, 80,8000-8002,8001,81".parse().unwrap();
        assert_eq!(ports.as_slice(), [443, 80, 8000, 8001, 8002, 81]);
        assert_eq!(ports.to_string(), "443,80,8000-8002,81");
        assert_eq!("1-20".parse::<Ports>().unwrap().as_slice().len(), PORTS_MAX);
        assert_eq!("0,65535".parse::<Ports>().unwrap().as_slice(), [0, 65_535]);
    }

    #[test]
    fn what_is_no_port_is_refused_with_its_part() {
        let refused = |text: &str| text.parse::<Ports>().unwrap_err();
        assert!(refused("22,ssh").starts_with("the string \"22,ssh\" has the string \"ssh\" in it, which is no port"));
        assert!(refused("-1").contains("which is no port") && refused("70000").contains("from 0 to 65535"));
        assert!(refused("").contains("which is no port") && refused("22,").contains("which is no port"));
        assert_eq!(refused("90-80"), "the range 90-80 runs backwards; write 80-90");
        assert!(refused("1-65535").contains("more than 20 ports"));
    }
}
