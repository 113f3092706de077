//! Places on earth: LOC records (RFC 1876).

use super::reader::Data;

/// Latitude, longitude, altitude, size and precisions.
pub(super) fn location(data: &mut Data<'_>) -> Option<String> {
    if data.u8()? != 0 {
        return None;
    }
    let sizes = [data.u8()?, data.u8()?, data.u8()?].map(|byte| centimetres(byte).map(metres));
    let (latitude, longitude) = (angle(data.u32()?, "N", "S"), angle(data.u32()?, "E", "W"));
    let altitude_cm = i64::from(data.u32()?) - 10_000_000;
    let [size, horizontal, vertical] = sizes;
    let (below, altitude_cm) = (if altitude_cm < 0 { "-" } else { "" }, altitude_cm.abs());
    let altitude = format!("{below}{}.{:02}m", altitude_cm / 100, altitude_cm % 100);
    Some(format!("{latitude} {longitude} {altitude} {} {} {}", size?, horizontal?, vertical?))
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
