//! Record data in presentation form, as dig(1) prints it.
//!
//! RFC 1035 section 5 (names, strings), 3597 (unknown types), 4034 (DNSSEC), 5155 (NSEC3), 9460 (SVCB, HTTPS); each other type by its own RFC.
//! The library that decodes messages prints for programmers; people compare what they see with dig.

mod gateway;
mod location;
mod prefixes;
mod reader;
mod service;
mod text;

use std::net::{Ipv4Addr, Ipv6Addr};

use data_encoding::{BASE64, HEXLOWER, HEXUPPER};
use probeops_shared::tools::dns::record_type::RecordType;
use time::OffsetDateTime;
use time::macros::format_description;

use gateway::{ipsec, relay};
use location::location;
use prefixes::prefixes;
use reader::Data;
use service::service;
pub(super) use text::name_text;
use text::quoted;

/// The data of a record: `start..end` of `message`. What does not fit its type is printed as data of an unknown type.
pub(super) fn presentation(kind: RecordType, message: &[u8], start: usize, end: usize) -> String {
    let mut data = Data::new(message, start, end);
    let known = data.of(kind).filter(|_| data.is_read() && end > start);
    known.unwrap_or_else(|| text::unknown(message.get(start..end).unwrap_or_default()))
}

impl Data<'_> {
    /// The data as the type has it; none when it is not of that form.
    fn of(&mut self, kind: RecordType) -> Option<String> {
        Some(match kind.number() {
            1 => Ipv4Addr::from(<[u8; 4]>::try_from(self.bytes(4)?).ok()?).to_string(),
            28 => Ipv6Addr::from(<[u8; 16]>::try_from(self.bytes(16)?).ok()?).to_string(),
            2 | 3 | 4 | 5 | 7 | 8 | 9 | 12 | 23 | 39 => self.name()?,
            6 => self.soa()?,
            14 | 17 | 58 => format!("{} {}", self.name()?, self.name()?),
            15 | 18 | 21 | 36 | 107 => format!("{} {}", self.u16()?, self.name()?),
            26 => format!("{} {} {}", self.u16()?, self.name()?, self.name()?),
            11 => self.services()?,
            22 => format!("0x{}", HEXLOWER.encode(&self.rest()?)),
            13 | 16 | 19 | 20 | 27 | 56 | 99 | 258 | 261 | 262 | 263 => self.strings()?,
            29 => location(self)?,
            33 => format!("{} {} {} {}", self.u16()?, self.u16()?, self.u16()?, self.name()?),
            35 => format!("{} {} {} {} {} {}", self.u16()?, self.u16()?, self.string()?, self.string()?, self.string()?, self.name()?),
            37 => format!("{} {} {} {}", certificate_type(self.u16()?), self.u16()?, algorithm(self.u8()?), self.base64()?),
            43 | 59 | 32_768 | 32_769 => format!("{} {} {} {}", self.u16()?, self.u8()?, self.u8()?, self.hex()?),
            44 => format!("{} {} {}", self.u8()?, self.u8()?, self.hex()?),
            24 | 46 => self.signature()?,
            47 => format!("{}{}", self.name()?, self.types()?),
            42 => prefixes(self)?,
            45 => ipsec(self)?,
            25 | 48 | 57 | 60 => format!("{} {} {} {}", self.u16()?, self.u8()?, self.u8()?, self.base64()?),
            49 | 61 => self.base64()?,
            50 => format!("{} {} {} {} {}{}", self.u8()?, self.u8()?, self.u16()?, self.salt()?, self.hash()?, self.types()?),
            51 => format!("{} {} {} {}", self.u8()?, self.u8()?, self.u16()?, self.salt()?),
            55 => self.identity()?,
            52 | 53 => format!("{} {} {} {}", self.u8()?, self.u8()?, self.u8()?, self.hex()?),
            62 => format!("{} {}{}", self.u32()?, self.u16()?, self.types()?),
            63 => format!("{} {} {} {}", self.u32()?, self.u8()?, self.u8()?, self.hex()?),
            64 | 65 => service(self)?,
            104 | 106 => format!("{} {}", self.u16()?, locator(&self.rest()?)?),
            105 => format!("{} {}", self.u16()?, Ipv4Addr::from(<[u8; 4]>::try_from(self.bytes(4)?).ok()?)),
            108 | 109 => {
                let rest = self.rest()?;
                rest.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join("-")
            }
            256 => format!("{} {} {}", self.u16()?, self.u16()?, quoted(&self.rest()?)),
            257 => self.authorization()?,
            259 => {
                let (enterprise, kind, location, media) = (self.u32()?, self.u32()?, self.u8()?, self.string()?);
                let data = self.rest()?;
                format!("{enterprise} {kind} {location} {media} {}", if data.is_empty() { "-".to_owned() } else { BASE64.encode(&data) })
            }
            260 => relay(self)?,
            _ => return None,
        })
    }

    fn soa(&mut self) -> Option<String> {
        let (server, mailbox) = (self.name()?, self.name()?);
        Some(format!("{server} {mailbox} {} {} {} {} {}", self.u32()?, self.u32()?, self.u32()?, self.u32()?, self.u32()?))
    }

    /// RFC 4034, 3.2.
    fn signature(&mut self) -> Option<String> {
        let covered = RecordType::of(self.u16()?);
        let (algorithm, labels, ttl_s) = (self.u8()?, self.u8()?, self.u32()?);
        let (expiration, inception) = (time_text(self.u32()?)?, time_text(self.u32()?)?);
        let (key_tag, signer) = (self.u16()?, self.name()?);
        Some(format!("{covered} {algorithm} {labels} {ttl_s} {expiration} {inception} {key_tag} {signer} {}", self.base64()?))
    }

    /// RFC 1035, 3.4.2: an address, a protocol, and a bit for each of its ports.
    fn services(&mut self) -> Option<String> {
        let address = Ipv4Addr::from(<[u8; 4]>::try_from(self.bytes(4)?).ok()?);
        let protocol = self.u8()?;
        let map = self.rest()?;
        let open = |index: usize, byte: u8| (0..8).filter(move |bit| byte & (0x80 >> bit) != 0).map(move |bit| index * 8 + bit);
        let ports = map.iter().enumerate().flat_map(|(index, byte)| open(index, *byte)).map(|port| port.to_string());
        Some([address.to_string(), protocol.to_string()].into_iter().chain(ports).collect::<Vec<_>>().join(" "))
    }

    /// RFC 8005, 5: an identity, its key, and where to meet it.
    fn identity(&mut self) -> Option<String> {
        let (identity_length, algorithm, key_length) = (usize::from(self.u8()?), self.u8()?, usize::from(self.u16()?));
        let (identity, key) = (HEXUPPER.encode(&self.bytes(identity_length)?), BASE64.encode(&self.bytes(key_length)?));
        let mut text = format!("{algorithm} {identity} {key}");
        while self.left() > 0 {
            text.push(' ');
            text.push_str(&self.name()?);
        }
        Some(text)
    }

    /// RFC 8659, 4.1.
    fn authorization(&mut self) -> Option<String> {
        let flags = self.u8()?;
        let length = usize::from(self.u8()?);
        let tag = String::from_utf8(self.bytes(length)?).ok().filter(|tag| tag.bytes().all(|byte| byte.is_ascii_alphanumeric()))?;
        Some(format!("{flags} {tag} {}", quoted(&self.rest()?)))
    }
}

/// 64 bits in four groups (RFC 6742, 2.1.1).
fn locator(bytes: &[u8]) -> Option<String> {
    let groups: Vec<String> = bytes.chunks_exact(2).map(|pair| format!("{:x}", u16::from_be_bytes([pair[0], pair[1]]))).collect();
    (bytes.len() == 8).then(|| groups.join(":"))
}

/// RFC 4398, 2.1.
fn certificate_type(number: u16) -> String {
    const NAMES: [&str; 8] = ["PKIX", "SPKI", "PGP", "IPKIX", "ISPKI", "IPGP", "ACPKIX", "IACPKIX"];
    let name = match number {
        253 => Some("URI"),
        254 => Some("OID"),
        _ => usize::from(number).checked_sub(1).and_then(|index| NAMES.get(index)).copied(),
    };
    name.map_or_else(|| number.to_string(), str::to_owned)
}

/// The mnemonics that dig uses in CERT records, and only there.
fn algorithm(number: u8) -> String {
    let name = match number {
        1 => "RSAMD5",
        2 => "DH",
        3 => "DSA",
        5 => "RSASHA1",
        6 => "NSEC3DSA",
        7 => "NSEC3RSASHA1",
        8 => "RSASHA256",
        10 => "RSASHA512",
        12 => "ECCGOST",
        13 => "ECDSAP256SHA256",
        14 => "ECDSAP384SHA384",
        15 => "ED25519",
        16 => "ED448",
        252 => "INDIRECT",
        253 => "PRIVATEDNS",
        254 => "PRIVATEOID",
        other => return other.to_string(),
    };
    name.to_owned()
}

/// Year to second, in digits (RFC 4034, 3.2). The 32 bits are read as the years up to 2106.
fn time_text(seconds: u32) -> Option<String> {
    let at = OffsetDateTime::from_unix_timestamp(i64::from(seconds)).ok()?;
    at.format(format_description!("[year][month][day][hour][minute][second]")).ok()
}

#[cfg(test)]
mod tests;
