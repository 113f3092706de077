//! CRC-32 (IEEE 802.3), as the last eight digits of an API key: a mistyped key is told apart from an unknown one, and secret scanners can
//! tell a key from look-alikes. It protects nothing.

const POLYNOMIAL: u32 = 0xedb8_8320;

/// The checksum.
pub(super) fn crc32(bytes: &[u8]) -> u32 {
    let remainder = bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 })
    });
    !remainder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_usual_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
    }
}
