//! What is said to a server and what it is expected to answer.

use std::fmt;
use std::str::FromStr;

use regex::bytes::{Regex, RegexBuilder};

use super::REPLY_BYTES_MAX;
use crate::text::as_text;

/// The most that is sent, or looked for as it stands, in bytes.
pub const TEXT_BYTES_MAX: usize = 512;
/// The longest regular expression, in characters.
const PATTERN_LENGTH_MAX: usize = 256;
/// How large a regular expression may become when it is compiled, in bytes: repetitions of repetitions grow without bound.
const COMPILED_BYTES_MAX: usize = 256 << 10;

/// Bytes, written as text in which `\r`, `\n`, `\t`, `\0`, `\\` and `\xHH` stand for what cannot be typed.
#[derive(Clone, PartialEq, Eq)]
pub struct Bytes(Vec<u8>);

impl Bytes {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// The bytes with what was caught in the places that are kept for it, `${1}` to `${9}`; at most as many as a reply may have.
    pub fn filled(&self, caught: &[Vec<u8>]) -> Vec<u8> {
        let mut filled = Vec::new();
        let mut rest = self.0.as_slice();
        while let Some((next, behind)) = rest.split_first() {
            if let Some((number, behind)) = place(rest) {
                filled.extend(caught.get(number - 1).into_iter().flatten());
                rest = behind;
            } else {
                filled.push(*next);
                rest = behind;
            }
        }
        filled.truncate(REPLY_BYTES_MAX);
        filled
    }

    /// The highest number of a place.
    pub(super) fn last_place(&self) -> Option<usize> {
        (0..self.0.len()).filter_map(|at| Some(place(self.0.get(at..)?)?.0)).max()
    }
}

/// The number of the place at the beginning of this, and what is behind it.
fn place(bytes: &[u8]) -> Option<(usize, &[u8])> {
    match bytes {
        [b'$', b'{', digit @ b'1'..=b'9', b'}', behind @ ..] => Some((usize::from(digit - b'0'), behind)),
        _ => None,
    }
}

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut bytes = Vec::with_capacity(text.len().min(TEXT_BYTES_MAX));
        let mut rest = text.chars();
        while let Some(next) = rest.next() {
            match next {
                '\\' => bytes.push(escape(&mut rest)?),
                plain => bytes.extend_from_slice(plain.encode_utf8(&mut [0; 4]).as_bytes()),
            }
            if bytes.len() > TEXT_BYTES_MAX {
                return Err(format!("must be at most {TEXT_BYTES_MAX} bytes long"));
            }
        }
        if bytes.is_empty() { Err("must not be empty; leave it out".to_owned()) } else { Ok(Self(bytes)) }
    }
}

fn escape(rest: &mut std::str::Chars<'_>) -> Result<u8, String> {
    const KNOWN: &str = "the escapes are \\r, \\n, \\t, \\0, \\\\ and \\x with two hexadecimal digits";
    match rest.next() {
        Some('r') => Ok(b'\r'),
        Some('n') => Ok(b'\n'),
        Some('t') => Ok(b'\t'),
        Some('0') => Ok(0),
        Some('\\') => Ok(b'\\'),
        Some('x') => {
            let digits: String = rest.by_ref().take(2).collect();
            let number = (digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())).then_some(digits.as_str());
            number.and_then(|digits| u8::from_str_radix(digits, 16).ok()).ok_or_else(|| format!("`\\x{digits}` is no byte; {KNOWN}"))
        }
        Some(other) => Err(format!("`\\{other}` means nothing; {KNOWN}")),
        None => Err(format!("it ends in a single `\\`; {KNOWN}")),
    }
}

/// Text stays text, whatever its script; only what is no text, or would be read as an escape, is escaped.
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for plain in chunk.valid().chars() {
                match plain {
                    '\r' => f.write_str("\\r")?,
                    '\n' => f.write_str("\\n")?,
                    '\t' => f.write_str("\\t")?,
                    '\\' => f.write_str("\\\\")?,
                    control if control.is_control() => {
                        control.encode_utf8(&mut [0; 4]).bytes().try_for_each(|byte| write!(f, "\\x{byte:02x}"))?;
                    }
                    plain => write!(f, "{plain}")?,
                }
            }
            chunk.invalid().iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// A regular expression in the syntax of the `regex` crate, over bytes and matched in linear time.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl Pattern {
    /// The compiled expression.
    pub fn regex(&self) -> &Regex {
        &self.0
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("must not be empty; leave it out".to_owned());
        }
        if text.chars().count() > PATTERN_LENGTH_MAX {
            return Err(format!("must be at most {PATTERN_LENGTH_MAX} characters long"));
        }
        let compiled = RegexBuilder::new(text).size_limit(COMPILED_BYTES_MAX).dfa_size_limit(COMPILED_BYTES_MAX).build();
        compiled.map(Self).map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => "is a regular expression that grows too large; use smaller repetitions".to_owned(),
            // The last line says what is wrong, the ones before it draw an arrow.
            other => {
                let text = other.to_string();
                let why = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
                format!("is not a regular expression: {why}")
            }
        })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}

// Each byte can take four characters, as `\xHH`.
as_text!(Bytes, {"type": "string", "minLength": 1, "maxLength": TEXT_BYTES_MAX * 4});
as_text!(Pattern, {"type": "string", "minLength": 1, "maxLength": PATTERN_LENGTH_MAX});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_stand_for_bytes_and_are_written_again() {
        let bytes: Bytes = "EHLO x\\r\\n\\x00\\0\\xFF\\\\é\t".parse().unwrap();
        assert_eq!(bytes.as_slice(), b"EHLO x\r\n\0\0\xff\\\xc3\xa9\t");
        assert_eq!(bytes.to_string(), "EHLO x\\r\\n\\x00\\x00\\xff\\\\é\\t");
        assert_eq!(bytes.to_string().parse::<Bytes>().unwrap(), bytes);
    }

    #[test]
    fn places_are_filled_with_what_was_caught() {
        let bytes: Bytes = "a ${2}${1} $3 ${x} ${9}$".parse().unwrap();
        assert_eq!(bytes.filled(&[b"one".to_vec(), b"two".to_vec()]), b"a twoone $3 ${x} $");
        assert_eq!((bytes.last_place(), "${0} $".parse::<Bytes>().unwrap().last_place()), (Some(9), None));
        assert_eq!("${1}${1}".parse::<Bytes>().unwrap().filled(&[vec![7; REPLY_BYTES_MAX]]).len(), REPLY_BYTES_MAX);
    }

    #[test]
    fn a_broken_escape_is_named() {
        let refused = |text: &str| text.parse::<Bytes>().unwrap_err();
        assert!(refused("a\\q").starts_with("`\\q` means nothing; the escapes are"));
        assert!(refused("\\x4").starts_with("`\\x4` is no byte") && refused("\\x+1").starts_with("`\\x+1` is no byte"));
        assert!(refused("a\\").starts_with("it ends in a single `\\`"));
        assert_eq!(refused(""), "must not be empty; leave it out");
        assert_eq!(refused(&"a".repeat(TEXT_BYTES_MAX + 1)), "must be at most 512 bytes long");
        assert!("\\x00".repeat(TEXT_BYTES_MAX).parse::<Bytes>().is_ok());
    }

    #[test]
    fn a_pattern_that_is_wrong_or_grows_too_large_is_refused_in_words() {
        let refused = |text: &str| text.parse::<Pattern>().unwrap_err();
        assert_eq!(refused("(220"), "is not a regular expression: unclosed group");
        assert!(refused("((a{100}){100}){100}").contains("grows too large"));
        assert!(refused(&"a".repeat(257)).contains("at most 256 characters"));
        assert_eq!("^220 ".parse::<Pattern>().unwrap().to_string(), "^220 ");
        // Over bytes, not text.
        assert!("(?-u)\\xff".parse::<Pattern>().unwrap().regex().is_match(b"\xff"));
    }
}
