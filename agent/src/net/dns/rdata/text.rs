//! Names, strings and long data as zone files have them (RFC 1035, 5.1).

use std::fmt::Write as _;

use data_encoding::HEXUPPER;
use hickory_proto::rr::Name;

/// dig breaks long data with a space after so many characters.
const SPLIT_AFTER: usize = 56;

/// A name in ASCII form with its final dot; what would be read as something else is escaped (RFC 1035, 5.1).
pub(crate) fn name_text(name: &Name) -> String {
    let mut text = String::new();
    for label in name {
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

/// Long data in pieces.
pub(super) fn split(text: &str) -> String {
    let pieces: Vec<&str> = text.as_bytes().chunks(SPLIT_AFTER).filter_map(|piece| std::str::from_utf8(piece).ok()).collect();
    pieces.join(" ")
}

/// A string.
pub(super) fn quoted(bytes: &[u8]) -> String {
    format!("\"{}\"", escaped(bytes))
}

/// A string without its quotes.
pub(super) fn escaped(bytes: &[u8]) -> String {
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

/// Data of a type that is not known, or not of the form of its type (RFC 3597, 5).
pub(super) fn unknown(raw: &[u8]) -> String {
    if raw.is_empty() { "\\# 0".to_owned() } else { format!("\\# {} {}", raw.len(), split(&HEXUPPER.encode(raw))) }
}
