//! Types of DNS records, by name and number (IANA "Resource Record (RR) TYPEs").

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::bounded::shown;
use crate::invalid::suggestion;
use crate::text::inline_schema;

/// A type of DNS record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordType(u16);

/// What stands in a question and is no record, or carries a message rather than data: OPT, TKEY, TSIG, and the zone transfers.
const NOT_ASKED_FOR: [u16; 5] = [41, 249, 250, 251, 252];

const NAMES: [(u16, &str); 93] = [
    (1, "A"),
    (2, "NS"),
    (3, "MD"),
    (4, "MF"),
    (5, "CNAME"),
    (6, "SOA"),
    (7, "MB"),
    (8, "MG"),
    (9, "MR"),
    (10, "NULL"),
    (11, "WKS"),
    (12, "PTR"),
    (13, "HINFO"),
    (14, "MINFO"),
    (15, "MX"),
    (16, "TXT"),
    (17, "RP"),
    (18, "AFSDB"),
    (19, "X25"),
    (20, "ISDN"),
    (21, "RT"),
    (22, "NSAP"),
    (23, "NSAP-PTR"),
    (24, "SIG"),
    (25, "KEY"),
    (26, "PX"),
    (27, "GPOS"),
    (28, "AAAA"),
    (29, "LOC"),
    (30, "NXT"),
    (31, "EID"),
    (32, "NIMLOC"),
    (33, "SRV"),
    (34, "ATMA"),
    (35, "NAPTR"),
    (36, "KX"),
    (37, "CERT"),
    (38, "A6"),
    (39, "DNAME"),
    (40, "SINK"),
    (41, "OPT"),
    (42, "APL"),
    (43, "DS"),
    (44, "SSHFP"),
    (45, "IPSECKEY"),
    (46, "RRSIG"),
    (47, "NSEC"),
    (48, "DNSKEY"),
    (49, "DHCID"),
    (50, "NSEC3"),
    (51, "NSEC3PARAM"),
    (52, "TLSA"),
    (53, "SMIMEA"),
    (55, "HIP"),
    (56, "NINFO"),
    (57, "RKEY"),
    (58, "TALINK"),
    (59, "CDS"),
    (60, "CDNSKEY"),
    (61, "OPENPGPKEY"),
    (62, "CSYNC"),
    (63, "ZONEMD"),
    (64, "SVCB"),
    (65, "HTTPS"),
    (66, "DSYNC"),
    (99, "SPF"),
    (100, "UINFO"),
    (101, "UID"),
    (102, "GID"),
    (103, "UNSPEC"),
    (104, "NID"),
    (105, "L32"),
    (106, "L64"),
    (107, "LP"),
    (108, "EUI48"),
    (109, "EUI64"),
    (249, "TKEY"),
    (250, "TSIG"),
    (251, "IXFR"),
    (252, "AXFR"),
    (253, "MAILB"),
    (254, "MAILA"),
    (255, "ANY"),
    (256, "URI"),
    (257, "CAA"),
    (258, "AVC"),
    (259, "DOA"),
    (260, "AMTRELAY"),
    (261, "RESINFO"),
    (262, "WALLET"),
    (263, "CLA"),
    (32_768, "TA"),
    (32_769, "DLV"),
];

impl RecordType {
    /// An IPv4 address.
    pub const A: Self = Self(1);
    /// A name server of a zone.
    pub const NS: Self = Self(2);
    /// An IPv6 address.
    pub const AAAA: Self = Self(28);
    /// A name for an address.
    pub const PTR: Self = Self(12);
    /// Text.
    pub const TXT: Self = Self(16);

    /// The type with this number, whether it can be asked for or not.
    pub const fn of(number: u16) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn number(self) -> u16 {
        self.0
    }

    fn asked_for(self) -> Result<Self, String> {
        if NOT_ASKED_FOR.contains(&self.0) { Err(format!("{self} is not a type of record that can be asked for")) } else { Ok(self) }
    }
}

impl fmt::Display for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(number, _)| *number == self.0) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "TYPE{}", self.0),
        }
    }
}

impl fmt::Debug for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RecordType {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let upper = text.to_ascii_uppercase();
        if let Some((number, _)) = NAMES.iter().find(|(_, name)| *name == upper) {
            return Self(*number).asked_for();
        }
        let digits = upper.strip_prefix("TYPE").unwrap_or(&upper);
        if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
            let number = digits.parse().ok().filter(|number| *number > 0);
            return number.map_or_else(
                || Err(format!("the number of a record type must be from 1 to 65535, not {digits}")),
                |number| Self(number).asked_for(),
            );
        }
        let meant = suggestion(&upper, NAMES.iter().map(|(_, name)| *name));
        Err(format!("unknown record type {}; {meant}give a name such as AAAA, or a number such as TYPE65", shown(&text.into())))
    }
}

impl Serialize for RecordType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RecordType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => text.parse().map_err(de::Error::custom),
            serde_json::Value::Number(number) => number.to_string().parse().map_err(de::Error::custom),
            other => Err(de::Error::custom(format!("must be a record type such as \"AAAA\" or \"TYPE65\", not {}", shown(&other)))),
        }
    }
}

inline_schema!(RecordType, {"type": "string", "pattern": "^([A-Za-z][A-Za-z0-9-]*|[0-9]{1,5})$", "examples": ["AAAA", "TYPE65"]});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_known_by_name_and_by_number() {
        for (text, printed) in
            [("a", "A"), ("HTTPS", "HTTPS"), ("TYPE65", "HTTPS"), ("65", "HTTPS"), ("type4711", "TYPE4711"), ("any", "ANY")]
        {
            assert_eq!(text.parse::<RecordType>().unwrap().to_string(), printed);
        }
        assert_eq!(serde_json::from_str::<RecordType>("28").unwrap(), RecordType::AAAA);
        for text in ["", "0", "65536", "TYPE", "TYPE-1", "99999999999999999999", "AXFR", "TYPE41", "1.5", "A A"] {
            assert!(text.parse::<RecordType>().is_err(), "{text}");
        }
    }

    #[test]
    fn no_name_or_number_stands_for_two() {
        let numbers: std::collections::BTreeSet<u16> = NAMES.iter().map(|(number, _)| *number).collect();
        let names: std::collections::BTreeSet<&str> = NAMES.iter().map(|(_, name)| *name).collect();
        assert_eq!((numbers.len(), names.len()), (NAMES.len(), NAMES.len()));
    }
}
