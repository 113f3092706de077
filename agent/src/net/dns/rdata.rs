//! Record data in presentation form, as dig(1) prints it.
//!
//! RFC 1035 section 5 (names, strings), 3597 (unknown types), 4034 (DNSSEC), 5155 (NSEC3), 9460 (SVCB, HTTPS); each other type by its own RFC.
//! The library that decodes messages prints for programmers; people compare what they see with dig.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use data_encoding::{BASE32HEX_NOPAD, BASE64, HEXLOWER, HEXUPPER};
use hickory_proto::rr::Name;
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use probeops_shared::tools::dns::record_type::RecordType;
use time::OffsetDateTime;
use time::macros::format_description;

/// dig breaks long data with a space after so many characters.
const SPLIT_AFTER: usize = 56;

/// The data of a record: `start..end` of `message`. What does not fit its type is printed as data of an unknown type.
pub(super) fn presentation(kind: RecordType, message: &[u8], start: usize, end: usize) -> String {
    let raw = message.get(start..end).unwrap_or_default();
    let position = u16::try_from(start).unwrap_or(u16::MAX);
    let mut data = Data { decoder: BinDecoder::new(message).clone(position), end };
    let known = data.of(kind).filter(|_| data.decoder.index() == end);
    known.unwrap_or_else(|| unknown(raw))
}

/// RFC 3597, 5.
fn unknown(raw: &[u8]) -> String {
    if raw.is_empty() { "\\# 0".to_owned() } else { format!("\\# {} {}", raw.len(), split(&HEXUPPER.encode(raw))) }
}

/// A name in ASCII form with its final dot; what would be read as something else is escaped (RFC 1035, 5.1).
pub(super) fn name_text(name: &Name) -> String {
    let mut text = String::new();
    for label in name.iter() {
        for byte in label {
            match byte {
                b'.' | b'\\' | b'"' | b'(' | b')' | b';' | b'@' | b'$' => {
                    text.push('\\');
                    text.push(char::from(*byte));
                }
                0x21..=0x7e => text.push(char::from(*byte)),
                _ => {
                    let _ = write!(text, "\\{byte:03}");
                }
            }
        }
        text.push('.');
    }
    if text.is_empty() { ".".to_owned() } else { text }
}

fn split(text: &str) -> String {
    let pieces: Vec<&str> = text.as_bytes().chunks(SPLIT_AFTER).filter_map(|piece| std::str::from_utf8(piece).ok()).collect();
    pieces.join(" ")
}

fn quoted(bytes: &[u8]) -> String {
    format!("\"{}\"", escaped(bytes))
}

fn escaped(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        match byte {
            b'"' | b'\\' => {
                text.push('\\');
                text.push(char::from(*byte));
            }
            0x20..=0x7e => text.push(char::from(*byte)),
            _ => {
                let _ = write!(text, "\\{byte:03}");
            }
        }
    }
    text
}

/// A reader that stops at the end of the record.
struct Data<'a> {
    decoder: BinDecoder<'a>,
    end: usize,
}

impl Data<'_> {
    /// The data as the type has it; none when it is not of that form.
    fn of(&mut self, kind: RecordType) -> Option<String> {
        Some(match kind.number() {
            1 => Ipv4Addr::from(<[u8; 4]>::try_from(self.bytes(4)?).ok()?).to_string(),
            28 => Ipv6Addr::from(<[u8; 16]>::try_from(self.bytes(16)?).ok()?).to_string(),
            2 | 3 | 4 | 5 | 7 | 8 | 9 | 12 | 39 => self.name()?,
            6 => self.soa()?,
            14 | 17 => format!("{} {}", self.name()?, self.name()?),
            15 | 18 | 21 | 36 | 107 => format!("{} {}", self.u16()?, self.name()?),
            26 => format!("{} {} {}", self.u16()?, self.name()?, self.name()?),
            13 | 16 | 19 | 20 | 56 | 99 | 258 | 261 | 262 | 263 => self.strings()?,
            29 => self.location()?,
            33 => format!("{} {} {} {}", self.u16()?, self.u16()?, self.u16()?, self.name()?),
            35 => format!("{} {} {} {} {} {}", self.u16()?, self.u16()?, self.string()?, self.string()?, self.string()?, self.name()?),
            37 => format!("{} {} {} {}", certificate_type(self.u16()?), self.u16()?, algorithm(self.u8()?), self.base64()?),
            43 | 59 | 32_768 | 32_769 => format!("{} {} {} {}", self.u16()?, self.u8()?, self.u8()?, self.hex()?),
            44 => format!("{} {} {}", self.u8()?, self.u8()?, self.hex()?),
            24 | 46 => self.signature()?,
            47 => format!("{}{}", self.name()?, self.types()?),
            25 | 48 | 60 => format!("{} {} {} {}", self.u16()?, self.u8()?, self.u8()?, self.base64()?),
            49 | 61 => self.base64()?,
            50 => format!("{} {} {} {} {}{}", self.u8()?, self.u8()?, self.u16()?, self.salt()?, self.hash()?, self.types()?),
            51 => format!("{} {} {} {}", self.u8()?, self.u8()?, self.u16()?, self.salt()?),
            52 | 53 => format!("{} {} {} {}", self.u8()?, self.u8()?, self.u8()?, self.hex()?),
            62 => format!("{} {}{}", self.u32()?, self.u16()?, self.types()?),
            63 => format!("{} {} {} {}", self.u32()?, self.u8()?, self.u8()?, self.hex()?),
            64 | 65 => self.service()?,
            104 | 106 => format!("{} {}", self.u16()?, locator(&self.rest()?)?),
            105 => format!("{} {}", self.u16()?, Ipv4Addr::from(<[u8; 4]>::try_from(self.bytes(4)?).ok()?)),
            108 | 109 => {
                let rest = self.rest()?;
                rest.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join("-")
            }
            256 => format!("{} {} {}", self.u16()?, self.u16()?, quoted(&self.rest()?)),
            257 => self.authorization()?,
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

    /// RFC 8659, 4.1.
    fn authorization(&mut self) -> Option<String> {
        let flags = self.u8()?;
        let length = usize::from(self.u8()?);
        let tag = String::from_utf8(self.bytes(length)?).ok()?;
        Some(format!("{flags} {tag} {}", quoted(&self.rest()?)))
    }

    /// RFC 9460, 2.1.
    fn service(&mut self) -> Option<String> {
        let mut text = format!("{} {}", self.u16()?, self.name()?);
        while self.left() > 0 {
            let key = self.u16()?;
            let length = usize::from(self.u16()?);
            let value = self.bytes(length)?;
            let _ = write!(text, " {}", parameter(key, &value)?);
        }
        Some(text)
    }

    /// RFC 1876, 3.
    fn location(&mut self) -> Option<String> {
        if self.u8()? != 0 {
            return None;
        }
        let sizes = [self.u8()?, self.u8()?, self.u8()?].map(|byte| centimetres(byte).map(metres));
        let (latitude, longitude) = (angle(self.u32()?, "N", "S"), angle(self.u32()?, "E", "W"));
        let altitude_cm = i64::from(self.u32()?) - 10_000_000;
        let [size, horizontal, vertical] = sizes;
        let (below, altitude_cm) = (if altitude_cm < 0 { "-" } else { "" }, altitude_cm.abs());
        let altitude = format!("{below}{}.{:02}m", altitude_cm / 100, altitude_cm % 100);
        Some(format!("{latitude} {longitude} {altitude} {} {} {}", size?, horizontal?, vertical?))
    }

    fn left(&self) -> usize {
        self.end.saturating_sub(self.decoder.index())
    }

    fn name(&mut self) -> Option<String> {
        Name::read(&mut self.decoder).ok().map(|name| name_text(&name))
    }

    fn bytes(&mut self, length: usize) -> Option<Vec<u8>> {
        if length > self.left() {
            return None;
        }
        // The length was checked against the record's; what the bytes mean is the caller's to check.
        Some(self.decoder.read_slice(length).ok()?.unverified().to_vec())
    }

    fn rest(&mut self) -> Option<Vec<u8>> {
        self.bytes(self.left())
    }

    fn u8(&mut self) -> Option<u8> {
        self.bytes(1)?.first().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.bytes(2)?.try_into().ok()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.bytes(4)?.try_into().ok()?))
    }

    fn string(&mut self) -> Option<String> {
        let length = usize::from(self.u8()?);
        Some(quoted(&self.bytes(length)?))
    }

    fn strings(&mut self) -> Option<String> {
        let mut strings = vec![self.string()?];
        while self.left() > 0 {
            strings.push(self.string()?);
        }
        Some(strings.join(" "))
    }

    fn hex(&mut self) -> Option<String> {
        Some(split(&HEXUPPER.encode(&self.rest()?)))
    }

    fn base64(&mut self) -> Option<String> {
        Some(split(&BASE64.encode(&self.rest()?)))
    }

    fn salt(&mut self) -> Option<String> {
        let length = usize::from(self.u8()?);
        let salt = self.bytes(length)?;
        Some(if salt.is_empty() { "-".to_owned() } else { HEXUPPER.encode(&salt) })
    }

    fn hash(&mut self) -> Option<String> {
        let length = usize::from(self.u8()?);
        Some(BASE32HEX_NOPAD.encode(&self.bytes(length)?))
    }

    /// Type bit maps (RFC 4034, 4.1.2), each with a space before it.
    fn types(&mut self) -> Option<String> {
        let mut text = String::new();
        while self.left() > 0 {
            let window = u16::from(self.u8()?) * 256;
            let length = usize::from(self.u8()?);
            for (index, byte) in (0..).step_by(8).zip(self.bytes(length)?) {
                for bit in (0..8).filter(|bit| byte & (0x80 >> bit) != 0) {
                    let _ = write!(text, " {}", RecordType::of(window + index + bit));
                }
            }
        }
        Some(text)
    }
}

/// 64 bits in four groups (RFC 6742, 2.1.1).
fn locator(bytes: &[u8]) -> Option<String> {
    let groups: Vec<String> = bytes.chunks_exact(2).map(|pair| HEXLOWER.encode(pair)).collect();
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

/// YYYYMMDDHHmmSS (RFC 4034, 3.2). The 32 bits are read as the years up to 2106.
fn time_text(seconds: u32) -> Option<String> {
    let at = OffsetDateTime::from_unix_timestamp(i64::from(seconds)).ok()?;
    at.format(format_description!("[year][month][day][hour][minute][second]")).ok()
}

/// A service parameter (RFC 9460, 14.3.2; RFC 9461).
fn parameter(key: u16, value: &[u8]) -> Option<String> {
    let listed = |name: &str, items: Vec<String>| format!("{name}={}", items.join(","));
    Some(match key {
        0 => listed("mandatory", value.chunks_exact(2).map(|pair| parameter_name(u16::from_be_bytes([pair[0], pair[1]]))).collect()),
        1 => {
            let mut protocols = Vec::new();
            let mut rest = value;
            while let Some((length, after)) = rest.split_first() {
                let (protocol, next) = after.split_at_checked(usize::from(*length))?;
                // A comma inside a protocol's name is told from one between two (RFC 9460, A.1).
                protocols.push(escaped(protocol).replace('\\', "\\\\").replace(',', "\\\\,"));
                rest = next;
            }
            format!("alpn=\"{}\"", protocols.join(","))
        }
        2 if value.is_empty() => "no-default-alpn".to_owned(),
        3 => format!("port={}", u16::from_be_bytes(value.try_into().ok()?)),
        4 if value.len() % 4 == 0 => listed(
            "ipv4hint",
            value.chunks_exact(4).filter_map(|four| <[u8; 4]>::try_from(four).ok()).map(|four| Ipv4Addr::from(four).to_string()).collect(),
        ),
        5 => format!("ech={}", BASE64.encode(value)),
        6 if value.len() % 16 == 0 => listed(
            "ipv6hint",
            value
                .chunks_exact(16)
                .filter_map(|bytes| <[u8; 16]>::try_from(bytes).ok())
                .map(|bytes| Ipv6Addr::from(bytes).to_string())
                .collect(),
        ),
        _ if value.is_empty() => parameter_name(key),
        _ => format!("{}={}", parameter_name(key), quoted(value)),
    })
}

fn parameter_name(key: u16) -> String {
    const NAMES: [&str; 8] = ["mandatory", "alpn", "no-default-alpn", "port", "ipv4hint", "ech", "ipv6hint", "dohpath"];
    NAMES.get(usize::from(key)).map_or_else(|| format!("key{key}"), |name| (*name).to_owned())
}

/// A size of RFC 1876: four bits of mantissa, four of a power of ten.
fn centimetres(byte: u8) -> Option<i64> {
    let (mantissa, exponent) = (i64::from(byte >> 4), u32::from(byte & 15));
    (mantissa <= 9 && exponent <= 9).then(|| mantissa * 10_i64.pow(exponent))
}

/// Whole metres, or below one with its centimetres.
fn metres(centimetres: i64) -> String {
    if centimetres < 100 { format!("0.{centimetres:02}m") } else { format!("{}m", centimetres / 100) }
}

/// Thousandths of a second of arc, from 2^31 up or down.
fn angle(value: u32, positive: &str, negative: &str) -> String {
    let offset = i64::from(value) - (1 << 31);
    let (thousandths, direction) = (offset.abs(), if offset < 0 { negative } else { positive });
    let (degrees, minutes) = (thousandths / 3_600_000, thousandths / 60_000 % 60);
    let (seconds, rest) = (thousandths / 1000 % 60, thousandths % 1000);
    format!("{degrees} {minutes} {seconds}.{rest:03} {direction}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn prints(kind: &str, hex: &str, expected: &str) {
        let bytes = HEXUPPER.decode(hex.replace(' ', "").as_bytes()).unwrap();
        assert_eq!(presentation(kind.parse().unwrap(), &bytes, 0, bytes.len()), expected);
    }

    #[test]
    fn data_prints_as_dig_prints_it() {
        prints("A", "C0000201", "192.0.2.1");
        prints("AAAA", "20010DB8000000000000000000000001", "2001:db8::1");
        prints("TXT", "05 612262 5C63 02 0AFF", "\"a\\\"b\\\\c\" \"\\010\\255\"");
        prints("MX", "000A 046D61696C 076578616D706C65 00", "10 mail.example.");
        prints("SRV", "0001 0002 01BB 00", "1 2 443 .");
        prints("CAA", "00 05 6973737565 6C65", "0 issue \"le\"");
        prints(
            "DS",
            "7B65 08 02 CDE0D742D6998AA554A92D890F8184C698CFAC8A26FA59875A990C03E576343C",
            "31589 8 2 CDE0D742D6998AA554A92D890F8184C698CFAC8A26FA59875A990C03 E576343C",
        );
        prints(
            "HTTPS",
            "0001 00 0001 0006 02 6832 02 6833 0003 0002 20FB 0004 0008 C0000201 C0000202",
            "1 . alpn=\"h2,h3\" port=8443 ipv4hint=192.0.2.1,192.0.2.2",
        );
        prints("NSEC", "016200 0006 400100000003", "b. A MX RRSIG NSEC");
        prints("NSEC3", "01 00 000A 02 AABB 02 0001 0001 40", "1 0 10 AABB 000G A");
        prints("NSEC3PARAM", "01 00 0000 00", "1 0 0 -");
        prints("SSHFP", "04 02 ABCD", "4 2 ABCD");
        prints("TLSA", "03 01 01 AB", "3 1 1 AB");
        prints("NAPTR", "0001 0002 01 53 00 00 00", "1 2 \"S\" \"\" \"\" .");
        prints("URI", "0001 0002 61", "1 2 \"a\"");
        prints("EUI48", "0011223344FF", "00-11-22-33-44-ff");
        prints("LOC", "00 12 16 13 8936CDF4 6E9B6F1C 00988C18", "42 21 54.100 N 71 6 18.820 W -24.00m 1m 10000m 10m");
    }

    #[test]
    fn signatures_have_times_in_digits_and_algorithms_by_number() {
        prints(
            "RRSIG",
            "0001 0D 02 00000E10 65B90EB0 65918180 3039 0161 00 AABB",
            "A 13 2 3600 20240130145832 20231231145824 12345 a. qrs=",
        );
    }

    #[test]
    fn what_is_unknown_or_malformed_prints_as_bytes() {
        prints("TYPE65280", "ABCD", "\\# 2 ABCD");
        prints("TYPE65280", "", "\\# 0");
        prints("A", "C00002", "\\# 3 C00002");
        prints("MX", "00", "\\# 1 00");
    }

    #[test]
    fn odd_bytes_in_names_are_escaped() {
        let name = Name::from_labels([b"a.b".as_slice(), b"\xc3\xbc;"]).unwrap();
        assert_eq!(name_text(&name), "a\\.b.\\195\\188\\;.");
        assert_eq!(name_text(&Name::root()), ".");
    }
}
