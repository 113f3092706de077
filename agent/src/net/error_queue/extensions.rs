//! What a router appends to the packet that it quotes: the MPLS labels it bore (RFC 4884, RFC 4950).

use probeops_shared::tools::network::MplsLabel;

/// The quoted packet is padded to this before anything is appended (RFC 4884, 5.1 and 5.5); its IP header is not among what the system keeps.
const QUOTE_BYTES: usize = 128;
/// The largest IP header without options that can be missing from it.
const IP_HEADER_BYTES_MAX: usize = 40;
/// The header of the extensions, of each object, and a label.
const WORD: usize = 4;
/// The version of the extensions, in the upper half of their first byte.
const VERSION: u8 = 2;
/// The class of a label stack, and its only type (RFC 4950, 3).
const LABEL_STACK: [u8; 2] = [1, 1];

/// The labels, outermost first.
///
/// How long the quoted packet is, the system keeps to itself, so the extensions are looked for at each word where they can begin; their own
/// checksum tells whether it is them.
pub(crate) fn labels(packet: &[u8]) -> Vec<MplsLabel> {
    let first = QUOTE_BYTES - IP_HEADER_BYTES_MAX;
    (first..packet.len()).step_by(WORD).filter_map(|start| packet.get(start..)).find_map(read).unwrap_or_default()
}

fn read(extensions: &[u8]) -> Option<Vec<MplsLabel>> {
    let (header, mut objects) = extensions.split_at_checked(WORD)?;
    if header.first()? >> 4 != VERSION || header.get(2..)? == [0, 0] || sum(extensions) != u16::MAX {
        return None;
    }
    let mut labels = Vec::new();
    while let Some((&[high, low, class, kind], _)) = objects.split_first_chunk::<WORD>() {
        let length = usize::from(u16::from_be_bytes([high, low]));
        let (object, rest) = objects.split_at_checked(length.max(WORD))?;
        if [class, kind] == LABEL_STACK {
            labels.extend(object.get(WORD..)?.chunks_exact(WORD).filter_map(|word| word.try_into().ok().map(label)));
        }
        objects = rest;
    }
    Some(labels)
}

/// Twenty bits of label, three of traffic class, one of bottom of stack, eight of time to live (RFC 3032, 2.1).
fn label(word: [u8; WORD]) -> MplsLabel {
    let [.., ttl] = word;
    let word = u32::from_be_bytes(word);
    MplsLabel { label: word >> 12, traffic_class: u8::try_from(word >> 9 & 7).unwrap_or_default(), bottom: word >> 8 & 1 == 1, ttl }
}

/// The sum in ones' complement (RFC 1071); all ones over data with its right checksum.
fn sum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair.first().copied().unwrap_or(0), pair.get(1).copied().unwrap_or(0)])));
    let mut sum: u32 = words.sum();
    while sum > u32::from(u16::MAX) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A quoted packet with two labels behind it.
    fn quoted(padding: usize) -> Vec<u8> {
        let mut extensions = vec![0x20, 0, 0, 0, 0, 12, 1, 1, 0x05, 0xdc, 0x12, 1, 0x06, 0x40, 0x01, 2];
        let checksum = !sum(&extensions);
        extensions[2..4].copy_from_slice(&checksum.to_be_bytes());
        [vec![7; padding], extensions].concat()
    }

    #[test]
    fn the_labels_behind_a_quoted_packet_are_read_whatever_ip_header_is_missing_from_it() {
        for header in [20, 40] {
            let labels = labels(&quoted(QUOTE_BYTES - header));
            let [outer, inner] = labels.as_slice() else { panic!("{labels:?}") };
            assert_eq!(*outer, MplsLabel { label: 24001, traffic_class: 1, bottom: false, ttl: 1 });
            assert_eq!(*inner, MplsLabel { label: 25600, traffic_class: 0, bottom: true, ttl: 2 });
        }
    }

    #[test]
    fn what_is_no_extension_is_none() {
        assert!(labels(&[]).is_empty() && labels(&[0x20; 700]).is_empty() && labels(&[7; 28]).is_empty());
        let mut broken = quoted(108);
        broken[120] ^= 1;
        assert!(labels(&broken).is_empty(), "its checksum is wrong");
        broken = quoted(108);
        broken.truncate(118);
        assert!(labels(&broken).is_empty(), "cut");
    }
}
