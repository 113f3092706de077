//! Echo requests to bytes, and what comes back from bytes (RFC 792, RFC 4443).

use probeops_shared::planted;
use probeops_shared::tools::network::Family;

/// Type, code, checksum, identifier, number.
pub(super) const HEADER_BYTES: usize = 8;
/// What a request carries first, by chance: whoever has not seen it cannot answer it.
const NONCE_BYTES: usize = 8;
/// Then two bytes that keep the checksum the same.
const BALANCE_BYTES: usize = 2;
/// An IPv4 header with all options.
pub(super) const IPV4_HEADER_BYTES_MAX: usize = 60;
/// All that may come before the payload: its header, and that of IPv4, which a raw socket shows too.
pub(super) const HEADERS_BYTES_MAX: usize = HEADER_BYTES + IPV4_HEADER_BYTES_MAX;

/// What is drawn for each request.
pub(crate) type Nonce = [u8; NONCE_BYTES];

/// The types of request and reply.
pub(super) fn types(family: Family) -> (u8, u8) {
    match family {
        Family::V6 => (128, 129),
        Family::V4 => (8, 0),
    }
}

/// A request. Its checksum is the same for all of one identifier and size, because routers that share packets out over equal paths may go by
/// it. On an IPv6 or a datagram socket the system writes the checksum itself, the same one.
pub(crate) fn request(family: Family, identifier: u16, number: u16, nonce: Nonce, payload_bytes: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload_bytes);
    bytes.extend([types(family).0, 0, 0, 0]);
    bytes.extend(identifier.to_be_bytes());
    bytes.extend(number.to_be_bytes());
    let balance = !add(number, sum(&nonce));
    let filling = (NONCE_BYTES + BALANCE_BYTES..).map(|index| index.to_le_bytes().first().copied().unwrap_or_default());
    bytes.extend(nonce.into_iter().chain(balance.to_be_bytes()).chain(filling).take(payload_bytes));
    if family != Family::V6 {
        let checksum = !sum(&bytes);
        if let Some(field) = bytes.get_mut(2..4) {
            field.copy_from_slice(&checksum.to_be_bytes());
        }
    }
    bytes
}

/// What a packet of ICMP says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Echo<'a> {
    pub(crate) kind: u8,
    pub(crate) identifier: u16,
    pub(crate) number: u16,
    pub(crate) payload: &'a [u8],
}

/// Reads an echo, request or reply.
pub(crate) fn read(bytes: &[u8]) -> Option<Echo<'_>> {
    let ([kind, _, _, _, id_high, id_low, high, low], payload) = bytes.split_first_chunk::<HEADER_BYTES>()?;
    Some(Echo { kind: *kind, identifier: u16::from_be_bytes([*id_high, *id_low]), number: u16::from_be_bytes([*high, *low]), payload })
}

/// A packet without its IPv4 header, which only a raw IPv4 socket shows.
pub(crate) fn without_header(bytes: &[u8]) -> &[u8] {
    let length = bytes.first().map_or(0, |first| usize::from(first & 0x0f) * 4);
    if planted!("icmp" if length > 20 && bytes.first().is_some_and(|first| first >> 4 == 4)) {
        return bytes.get(..length).unwrap_or_default();
    }
    bytes.get(length..).unwrap_or_default()
}

/// Whether as much of the request's own bytes as can be there is there. A router may quote none of them.
pub(crate) fn carries(payload: &[u8], nonce: Nonce) -> bool {
    let length = payload.len().min(NONCE_BYTES);
    payload.get(..length) == nonce.get(..length)
}

/// The sum in ones' complement (RFC 1071).
fn sum(bytes: &[u8]) -> u16 {
    let pair = |pair: &[u8]| u16::from_be_bytes([pair.first().copied().unwrap_or(0), pair.get(1).copied().unwrap_or(0)]);
    bytes.chunks(2).map(pair).fold(0, add)
}

fn add(sum: u16, word: u16) -> u16 {
    let (sum, carry) = sum.overflowing_add(word);
    sum + u16::from(carry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_requests_of_one_identifier_and_size_have_the_same_right_checksum() {
        let checksum = |number, nonce| {
            let bytes = request(Family::V4, 77, number, nonce, 56);
            assert_eq!((bytes.len(), sum(&bytes)), (64, u16::MAX));
            [bytes[2], bytes[3]]
        };
        let first = checksum(0, [0; 8]);
        for (number, nonce) in [(1, [1; 8]), (65_535, [255; 8]), (4711, *b"whatever")] {
            assert_eq!(checksum(number, nonce), first);
        }
    }

    #[test]
    fn what_a_request_carries_is_found_again() {
        for payload_bytes in [0, 5, 8, 9, 10, 300] {
            let bytes = request(Family::V6, 1, 0x1234, *b"chanceok", payload_bytes);
            let echo = read(&bytes).unwrap();
            assert_eq!((echo.kind, echo.identifier, echo.number, echo.payload.len()), (128, 1, 0x1234, payload_bytes));
            assert!(carries(echo.payload, *b"chanceok"));
            assert_eq!(carries(echo.payload, *b"CHANCEOK"), payload_bytes == 0);
        }
        assert_eq!(read(&[0; 7]), None);
        assert_eq!(without_header(&[0x46, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 9, 9, 9, 5]), [5]);
    }
}
