//! A reader of record data that stops at the end of the record.

use std::fmt::Write as _;

use data_encoding::{BASE32HEX_NOPAD, BASE64, HEXUPPER};
use hickory_proto::rr::Name;
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use probeops_shared::tools::dns::record_type::RecordType;

use super::text::{name_text, quoted, split};

/// Where in a message the data of a record is; every read is `None` when there is not enough left.
pub(super) struct Data<'a> {
    decoder: BinDecoder<'a>,
    end: usize,
}

impl<'a> Data<'a> {
    /// The data at `start..end` of `message`.
    pub(super) fn new(message: &'a [u8], start: usize, end: usize) -> Self {
        let position = u16::try_from(start).unwrap_or(u16::MAX);
        Self { decoder: BinDecoder::new(message).clone(position), end }
    }

    /// Whether exactly all of it has been read.
    pub(super) fn is_read(&self) -> bool {
        self.decoder.index() == self.end
    }

    pub(super) fn left(&self) -> usize {
        self.end.saturating_sub(self.decoder.index())
    }

    pub(super) fn name(&mut self) -> Option<String> {
        Name::read(&mut self.decoder).ok().map(|name| name_text(&name))
    }

    pub(super) fn bytes(&mut self, length: usize) -> Option<Vec<u8>> {
        if length > self.left() {
            return None;
        }
        // The length was checked against the record's; what the bytes mean is the caller's to check.
        Some(self.decoder.read_slice(length).ok()?.unverified().to_vec())
    }

    pub(super) fn rest(&mut self) -> Option<Vec<u8>> {
        self.bytes(self.left())
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.bytes(1)?.first().copied()
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.bytes(2)?.try_into().ok()?))
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.bytes(4)?.try_into().ok()?))
    }

    pub(super) fn string(&mut self) -> Option<String> {
        let length = usize::from(self.u8()?);
        Some(quoted(&self.bytes(length)?))
    }

    pub(super) fn strings(&mut self) -> Option<String> {
        let mut strings = vec![self.string()?];
        while self.left() > 0 {
            strings.push(self.string()?);
        }
        Some(strings.join(" "))
    }

    pub(super) fn hex(&mut self) -> Option<String> {
        Some(split(&HEXUPPER.encode(&self.rest()?)))
    }

    pub(super) fn base64(&mut self) -> Option<String> {
        Some(split(&BASE64.encode(&self.rest()?)))
    }

    pub(super) fn salt(&mut self) -> Option<String> {
        let length = usize::from(self.u8()?);
        let salt = self.bytes(length)?;
        Some(if salt.is_empty() { "-".to_owned() } else { HEXUPPER.encode(&salt) })
    }

    pub(super) fn hash(&mut self) -> Option<String> {
        let length = usize::from(self.u8()?);
        Some(BASE32HEX_NOPAD.encode(&self.bytes(length)?))
    }

    /// Type bit maps (RFC 4034, 4.1.2), each with a space before it.
    pub(super) fn types(&mut self) -> Option<String> {
        let mut text = String::new();
        while self.left() > 0 {
            let window = u16::from(self.u8()?) * 256;
            // A window has 256 types at most, and at least one.
            let length = usize::from(self.u8()?);
            if !(1..=32).contains(&length) {
                return None;
            }
            for (index, byte) in (0..).step_by(8).zip(self.bytes(length)?) {
                for bit in (0..8).filter(|bit| byte & (0x80 >> bit) != 0) {
                    let _ = write!(text, " {}", RecordType::of(window + index + bit));
                }
            }
        }
        Some(text)
    }
}
