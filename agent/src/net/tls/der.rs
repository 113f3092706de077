//! Reading DER (X.690) where a whole parser would be more than is needed.

/// A piece of DER: its tag, what is in it, all of it, and what comes after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Item<'a> {
    /// The identifier octet.
    pub(super) tag: u8,
    /// What is in it.
    pub(super) content: &'a [u8],
    /// With tag and length.
    pub(super) whole: &'a [u8],
    /// What follows.
    pub(super) rest: &'a [u8],
}

/// SEQUENCE.
pub(super) const SEQUENCE: u8 = 0x30;
/// INTEGER.
pub(super) const INTEGER: u8 = 0x02;
/// OBJECT IDENTIFIER.
pub(super) const OID: u8 = 0x06;
/// OCTET STRING.
pub(super) const OCTETS: u8 = 0x04;
/// ENUMERATED.
pub(super) const ENUMERATED: u8 = 0x0a;
/// `GeneralizedTime`.
pub(super) const TIME: u8 = 0x18;

/// The first piece.
pub(super) fn item(der: &[u8]) -> Option<Item<'_>> {
    let (&tag, after) = der.split_first()?;
    let (&first, after) = after.split_first()?;
    let (length, after) = match first {
        0..=0x7f => (usize::from(first), after),
        0x81..=0x84 => {
            let (bytes, after) = after.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0_usize, |length, byte| (length << 8) | usize::from(*byte)), after)
        }
        _ => return None,
    };
    let (content, rest) = after.split_at_checked(length)?;
    let whole = der.get(..der.len() - rest.len())?;
    Some(Item { tag, content, whole, rest })
}

/// The first piece, if it has this tag.
pub(super) fn tagged(der: &[u8], tag: u8) -> Option<Item<'_>> {
    item(der).filter(|item| item.tag == tag)
}

/// All pieces of a row of them; ends at the first that is broken.
pub(super) fn items(der: &[u8]) -> impl Iterator<Item = Item<'_>> {
    std::iter::successors(item(der), |last| item(last.rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_every_form_are_read_and_broken_ones_are_not() {
        assert_eq!(item(&[2, 1, 7, 9]), Some(Item { tag: 2, content: &[7], whole: &[2, 1, 7], rest: &[9] }));
        assert_eq!(item(&[4, 0x81, 1, 7]).unwrap().content, [7]);
        assert_eq!(item(&[4, 0x82, 0, 1, 7]).unwrap().content, [7]);
        for broken in [&[][..], &[2], &[2, 2, 7], &[4, 0x80, 0, 0], &[4, 0x85, 0, 0, 0, 0, 1, 7], &[4, 0x84, 0xff, 0xff, 0xff, 0xff]] {
            assert_eq!(item(broken), None, "{broken:?}");
        }
        assert_eq!(items(&[2, 0, 5, 0, 9]).count(), 2);
    }
}
